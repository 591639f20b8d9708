//! Three machines: what happens to hosts and to the network between them.

use crate::PATIENCE;
use crate::one_host::listening;
use anyhow::{Context, Result, ensure};
use quorate_soft_roce::{Fault, Lab, Program, Traffic};
use std::time::{Duration, Instant};

pub(crate) fn write_latency(lab: &Lab) -> Result<()> {
    let before = lab.network().count(2, 1);
    let options = ["-d", "rxe0", "-x", "1", "-n", "200", "-s", "4096", "-F"];
    let server = lab.host(1).spawn(&Program::new("ib_write_lat").args(options))?;
    lab.host(1).shell(&listening(18_515), PATIENCE)?;
    let client = Program::new("ib_write_lat").args(options);
    let client = client.arg(lab.host(1).address().to_string());
    let said = lab.host(2).run(&client, PATIENCE)?.success()?;
    server.wait(PATIENCE)?.success()?;
    let line = said.lines().find(|line| line.trim_start().starts_with("4096"));
    println!("ib_write_lat between hosts: {}", line.context("no figures")?.trim());
    let count = lab.network().count(2, 1);
    let (frames, bytes) =
        (count.rdma_frames - before.rdma_frames, count.rdma_bytes - before.rdma_bytes);
    ensure!(frames >= 200 && bytes >= 200 * 4096, "{frames} frames with {bytes} bytes are too few");
    Ok(())
}

/// Whether host `from` reaches host `to`.
fn reaches(lab: &Lab, from: u16, to: u16) -> Result<bool> {
    let address = lab.host(to).address();
    let program = Program::shell(format!("busybox ping -c 1 -W 5 {address} >/dev/null"));
    Ok(lab.host(from).run(&program, PATIENCE)?.status.success())
}

/// Whether a verbs program at host 2 reaches one at host 1 in so many seconds; they meet over TCP first.
fn verbs_reach(lab: &Lab, seconds: u32) -> Result<bool> {
    let options = ["-e", "-d", "rxe0", "-g", "1", "-n", "20"];
    let server = lab.host(1).spawn(&Program::new("ibv_rc_pingpong").args(options))?;
    lab.host(1).shell(&listening(18_515), PATIENCE)?;
    // It asks for seven retries, which Soft-RoCE takes for infinitely many: it would never give up.
    let client = Program::new("timeout").arg(seconds.to_string());
    let client = client.args(["stdbuf", "-oL", "ibv_rc_pingpong"]).args(options);
    let client = client.arg(lab.host(1).address().to_string());
    let output = lab.host(2).run(&client, PATIENCE)?;
    let text = format!("{}{}", output.stdout, output.stderr);
    ensure!(text.contains("remote address:"), "TCP did not work: {text}");
    // The server may wait for ever for what was lost.
    drop(server);
    let gone = "while grep -qs pingpong /proc/[0-9]*/comm; do sleep 0.1; done";
    lab.host(1).shell(gone, PATIENCE)?;
    Ok(output.status.success())
}

pub(crate) fn partition_rdma(lab: &Lab) -> Result<()> {
    ensure!(verbs_reach(lab, 200)?, "before");
    lab.network().cut(1, 2, Traffic::Rdma);
    let lost = lab.network().count(2, 1).lost_frames;
    ensure!(!verbs_reach(lab, 10)?, "RDMA is cut");
    ensure!(lab.network().count(2, 1).lost_frames > lost, "the switch lost what was sent");
    lab.network().heal();
    ensure!(verbs_reach(lab, 200)?, "healed");
    Ok(())
}

pub(crate) fn partition_one_way(lab: &Lab) -> Result<()> {
    ensure!(reaches(lab, 1, 2)? && reaches(lab, 2, 3)?, "before");
    lab.network().set(2, 3, Traffic::All, Fault { cut: true, ..Fault::default() });
    // An answer needs the other way too.
    ensure!(!reaches(lab, 3, 2)?, "what host 2 sends is lost");
    ensure!(reaches(lab, 1, 2)? && reaches(lab, 1, 3)?, "the others go on");
    lab.network().heal();
    lab.network().isolate(1, Traffic::All);
    ensure!(!reaches(lab, 1, 2)? && !reaches(lab, 3, 1)? && reaches(lab, 2, 3)?, "isolated");
    lab.network().heal();
    ensure!(reaches(lab, 1, 2)? && reaches(lab, 2, 3)?, "healed");
    Ok(())
}

/// Milliseconds of a round trip.
fn round_trip(lab: &Lab, from: u16, to: u16) -> Result<f64> {
    let line = format!("busybox ping -c 3 -W 10 {}", lab.host(to).address());
    let said = lab.host(from).shell(&line, PATIENCE)?;
    let least = said.rsplit("= ").next().and_then(|figures| figures.split('/').next());
    least.context("no figures from ping")?.trim().parse().context("a figure of ping")
}

pub(crate) fn netem(lab: &Lab) -> Result<()> {
    lab.host(1).netem(Some("delay 150ms"))?;
    let delayed = round_trip(lab, 1, 2)?;
    lab.host(1).netem(None)?;
    ensure!(delayed >= 150.0, "{delayed} ms with a delay of 150 ms");
    let delay = Duration::from_millis(120);
    lab.network().set(2, 1, Traffic::All, Fault { delay, ..Fault::default() });
    let delayed = round_trip(lab, 1, 2)?;
    lab.network().heal();
    ensure!(delayed >= 120.0, "{delayed} ms with a delay of 120 ms in the switch");
    lab.host(2).interface(false)?;
    ensure!(!reaches(lab, 1, 2)?, "the interface is down");
    lab.host(2).interface(true)?;
    crate::wait_for("the interface", PATIENCE, || reaches(lab, 1, 2).ok().filter(|up| *up));
    Ok(())
}

pub(crate) fn pause(lab: &Lab) -> Result<()> {
    lab.host(3).pause()?;
    let reached = reaches(lab, 1, 3);
    lab.host(3).resume()?;
    ensure!(!reached?, "a paused host does not answer");
    crate::wait_for("an answer", PATIENCE, || reaches(lab, 1, 3).ok().filter(|up| *up));
    Ok(())
}

pub(crate) fn kill(lab: &Lab) -> Result<()> {
    let host = lab.host(2);
    for place in ["disk", "pmem"] {
        let line = format!("echo kept >/quorate/{place}/word; sync /quorate/{place}/word");
        host.shell(&line, PATIENCE)?;
    }
    host.shell("echo lost >/tmp/word", PATIENCE)?;
    let sleeping = host.spawn(&Program::shell("sleep 1000"))?;
    host.kill();
    let begin = Instant::now();
    ensure!(sleeping.wait(PATIENCE).is_err(), "its programs are gone");
    ensure!(begin.elapsed() < PATIENCE, "and that is known at once");
    ensure!(host.shell("true", PATIENCE).is_err(), "nothing runs there");
    ensure!(!reaches(lab, 1, 2)?, "it does not answer");
    lab.restart(2)?;
    assert_eq!(host.shell("cat /quorate/disk/word /quorate/pmem/word", PATIENCE)?, "kept\nkept\n");
    ensure!(host.shell("cat /tmp/word", PATIENCE).is_err(), "its memory is gone");
    ensure!(reaches(lab, 1, 2)?, "it is back");
    Ok(())
}
