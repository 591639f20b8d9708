//! The program `quorate-soft-roce` as people call it.

use crate::{AGENT, PATIENCE};
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use std::process::{Command, Stdio};

type Test = (&'static str, fn() -> Result<()>);

pub(crate) const TESTS: [Test; 3] = [
    ("run: faults while the command runs", faults),
    ("run: two hosts, output by lines, the worst exit code", two_hosts),
    ("run: killed, no emulator is left", killed),
];

fn two_hosts() -> Result<()> {
    let script = "echo host $QUORATE_HOST of $QUORATE_HOSTS; echo bad >&2; \
                  echo $QUORATE_HOST >/quorate/results/$QUORATE_HOST; exit $QUORATE_HOST";
    let results = tempfile::tempdir()?;
    let run = || {
        Command::new(AGENT)
            .args(["run", "--in", "vm", "--hosts", "2", "--quiet", "--results"])
            .arg(results.path())
            .args(["--", "sh", "-c", script])
            .output()
    };
    let mut output = run()?;
    if output.status.code() == Some(125) {
        println!("the machines did not come up, once more: {output:?}");
        output = run()?;
    }
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let mut lines: Vec<_> = std::str::from_utf8(&output.stdout)?.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["1| host 1 of 2", "2| host 2 of 2"]);
    let mut lines: Vec<_> = std::str::from_utf8(&output.stderr)?.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["1| bad", "2| bad"]);
    for host in ["1\n", "2\n"] {
        assert_eq!(std::fs::read_to_string(results.path().join(host.trim()))?, host);
    }
    Ok(())
}

/// Without the cut host 1 would go on for ever, without the kill host 3.
fn faults() -> Result<()> {
    let script = "case $QUORATE_HOST in \
                  1) while busybox ping -c 1 -W 5 10.77.0.2 >/dev/null; do sleep 0.1; done; echo lost;; \
                  2) echo fine;; \
                  3) sleep 1000;; esac";
    let run = || {
        Command::new(AGENT)
            .args(["run", "--in", "vm", "--hosts", "3", "--time-limit", "240"])
            .args(["--fault", "1 kill 3", "--fault", "0.5 cut 2 1", "--", "sh", "-c", script])
            .output()
    };
    let mut output = run()?;
    if output.status.code() == Some(125) {
        println!("the machines did not come up, once more: {output:?}");
        output = run()?;
    }
    // The worst code: that of the command whose host lost its power.
    assert_eq!(output.status.code(), Some(128 + 9), "{output:?}");
    let mut lines: Vec<_> = std::str::from_utf8(&output.stdout)?.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["1| lost", "2| fine"]);
    let said = String::from_utf8_lossy(&output.stderr);
    let order = (said.find("0.5 cut 2 1"), said.find("1 kill 3"));
    ensure!(matches!(order, (Some(first), Some(second)) if first < second), "{said}");
    Ok(())
}

fn killed() -> Result<()> {
    let mut program = Command::new(AGENT)
        .args(["run", "--in", "vm", "--quiet", "--", "sleep", "1000"])
        .stdout(Stdio::null())
        .spawn()?;
    let find = || emulator_of(program.id());
    let emulator = crate::wait_for("the emulator", PATIENCE, find);
    program.kill().context("cannot kill it")?;
    program.wait()?;
    let process = format!("/proc/{emulator}");
    // Its parent's death kills it; whoever adopts it buries it.
    crate::wait_for("end of the emulator", PATIENCE, || {
        let state = std::fs::read_to_string(Path::new(&process).join("stat")).unwrap_or_default();
        let state = state.rsplit(')').next().unwrap_or_default().trim_start().chars().next();
        matches!(state, None | Some('Z' | 'X')).then_some(())
    });
    ensure!(emulator_of(program.id()).is_none(), "none is left");
    Ok(())
}

/// The child of `parent` that runs the emulator.
fn emulator_of(parent: u32) -> Option<u32> {
    let children = std::fs::read_dir(format!("/proc/{parent}/task")).ok()?;
    let lists = children
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    let numbers: Vec<u32> = lists
        .flat_map(|list| list.split_whitespace().flat_map(str::parse).collect::<Vec<_>>())
        .collect();
    numbers.into_iter().find(|child| {
        std::fs::read_to_string(format!("/proc/{child}/comm"))
            .is_ok_and(|name| name.starts_with("qemu-system"))
    })
}

/// This very program, where no emulator is to be found: all its tests are ignored, and a line says why.
pub(crate) fn without_an_emulator(tests: usize) -> Result<()> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--skip", crate::WITHOUT])
        .env("PATH", "/nonexistent")
        .env_remove("QUORATE_SOFT_ROCE")
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{output:?}");
    let skipped: Vec<_> = said.lines().filter(|line| line.starts_with("skipped: ")).collect();
    let [line] = skipped[..] else { bail!("one line, not {skipped:?}: {said}") };
    let begin = format!("skipped: no Soft-RoCE here ({tests} tests), missing: qemu-system-x86_64");
    ensure!(line.starts_with(&begin), "{line}");
    ensure!(line.ends_with("Run: cargo run -p quorate-soft-roce -- check --install"), "{line}");
    let counted = format!("0 passed; 0 failed; {tests} ignored;");
    ensure!(said.contains(&counted), "{counted}: {said}");
    Ok(())
}
