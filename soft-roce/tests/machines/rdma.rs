//! The product on a real device: one machine, several processes on one Soft-RoCE.

use crate::PATIENCE;
use anyhow::{Context, Result, ensure};
use quorate_soft_roce::{Lab, Program, agent};

pub(crate) fn conformance(lab: &Lab) -> Result<()> {
    let program = crate::built("examples/conformance")?;
    let program = Program::new(program.display().to_string()).arg(agent::DEVICE);
    let output = lab.host(1).run(&program, PATIENCE)?;
    let last = output.stdout.lines().last().unwrap_or_default().to_owned();
    println!("conformance on {}: {last}", agent::DEVICE);
    let said = output.success()?;
    let passed: usize = last.split(' ').next().unwrap_or_default().parse().context("a count")?;
    ensure!(passed >= 30 && last.ends_with(" 0 skipped"), "the whole suite ran: {last}");
    let for_life = said.lines().filter(|line| line.starts_with("ok      for life: "));
    ensure!(for_life.count() >= 7, "grants for one life of a lane: {said}");
    Ok(())
}

/// The suite has to notice a transport that does not deregister what it revokes.
pub(crate) fn broken_fence(lab: &Lab) -> Result<()> {
    let program = crate::built("examples/conformance")?;
    let program = Program::new(program.display().to_string());
    let program = program.args([agent::DEVICE, "fence: no byte", "broken-fence"]);
    let output = lab.host(1).run(&program, PATIENCE)?;
    let noticed = output.stdout.contains("bytes changed after the fence");
    ensure!(noticed, "{}\n{}{}", output.status, output.stdout, output.stderr);
    ensure!(output.stdout.contains("0 passed, 1 failed"), "{}", output.stdout);
    Ok(())
}

/// Rounds of a leader that goes on writing while the next promise is made.
const DEPOSED_ROUNDS: &str = "50";

/// What completed is reported, in each round; without a fence, or with one that comes late, it is not.
pub(crate) fn deposed(lab: &Lab) -> Result<()> {
    let program = crate::built("examples/deposed")?;
    let program = Program::new(program.display().to_string());
    let program = program.args([agent::DEVICE, DEPOSED_ROUNDS, CONTROL_SECONDS]);
    let output = lab.host(1).run(&program, PATIENCE + PATIENCE)?;
    print!("{}", output.stdout);
    let said = output.success()?;
    let held = said.contains("what completed is reported; the controls noticed");
    ensure!(held, "{said}");
    Ok(())
}

/// The control is a race that most runs win within seconds; it is over for good after so many.
const CONTROL_SECONDS: &str = "180";

pub(crate) fn fence(lab: &Lab) -> Result<()> {
    let program = crate::built("examples/fence_torture")?;
    let program = Program::new(program.display().to_string());
    let program = program.args([agent::DEVICE, "50", CONTROL_SECONDS]);
    let said = lab.host(1).run(&program, PATIENCE + PATIENCE)?.success()?;
    let sum = |fence: &str| -> Result<(u32, u32)> {
        let mut sum = (0, 0);
        for line in said.lines().filter_map(|line| line.strip_prefix(fence)) {
            // After the name: bytes, rounds, late, torn, refused.
            let mut numbers = line.split_whitespace().skip(1).map(str::parse::<u32>);
            sum.0 += numbers.next().context("rounds")??;
            sum.1 += numbers.next().context("late")??;
        }
        Ok(sum)
    };
    let ((held, late), (tried, control)) = (sum("ibv_dereg_mr")?, sum("access flags")?);
    println!("late: {late} of {held} after ibv_dereg_mr, {control} of {tried} after access flags");
    ensure!(held >= 100 && late == 0, "late after deregistration:\n{said}");
    ensure!(control > 0, "the control never failed, so the test would not notice:\n{said}");
    Ok(())
}
