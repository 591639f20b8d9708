//! Three machines: what happens to hosts and to the network between them.

use crate::PATIENCE;
use crate::one_host::listening;
use anyhow::{Context, Result, bail, ensure};
use quorate_soft_roce::{Event, Fault, Lab, Program, Running, Traffic};
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

/// Waits until host `from` reaches host `to`: one lost packet on a busy machine says nothing.
fn until_reached(lab: &Lab, from: u16, to: u16) {
    let reached = || reaches(lab, from, to).ok().filter(|up| *up);
    crate::wait_for(&format!("answer of host {to} at host {from}"), PATIENCE, reached);
}

/// Whether host `from` reaches host `to` within five seconds.
fn reaches(lab: &Lab, from: u16, to: u16) -> Result<bool> {
    let address = lab.host(to).address();
    let program = Program::shell(format!("busybox ping -c 1 -W 5 {address} >/dev/null"));
    Ok(lab.host(from).run(&program, PATIENCE)?.status.success())
}

/// Starts a verbs program at host 2 that talks to one at host 1; waits until they met, over TCP.
fn verbs_meet(lab: &Lab) -> Result<(Running, Running)> {
    let options = ["-e", "-d", "rxe0", "-g", "1", "-n", "20"];
    let server = lab.host(1).spawn(&Program::new("ibv_rc_pingpong").args(options))?;
    lab.host(1).shell(&listening(18_515), PATIENCE)?;
    let client = Program::new("stdbuf").args(["-oL", "ibv_rc_pingpong"]).args(options);
    let client = lab.host(2).spawn(&client.arg(lab.host(1).address().to_string()))?;
    let (deadline, mut said) = (Instant::now() + PATIENCE, String::new());
    while !said.contains("remote address:") {
        let left = deadline.saturating_duration_since(Instant::now());
        match client.next(left)?.with_context(|| format!("TCP did not work: {said}"))? {
            Event::Stdout(text) | Event::Stderr(text) => said += &String::from_utf8_lossy(&text),
            Event::Exit(status) => bail!("{status}: {said}"),
        }
    }
    Ok((server, client))
}

fn verbs_reach(lab: &Lab) -> Result<()> {
    let (server, client) = verbs_meet(lab)?;
    client.wait(PATIENCE)?.success()?;
    server.wait(PATIENCE)?.success().map(drop)
}

pub(crate) fn partition_rdma(lab: &Lab) -> Result<()> {
    verbs_reach(lab).context("before")?;
    lab.network().cut(1, 2, Traffic::Rdma);
    let lost = || lab.network().count(2, 1).lost_frames;
    let before = lost();
    let (server, client) = verbs_meet(lab).context("RDMA alone is cut")?;
    // It sends what is lost again and again: it asked for seven retries, which Soft-RoCE takes for
    // infinitely many.
    crate::wait_for("loss in the switch", PATIENCE, || (lost() >= before + 3).then_some(()));
    while let Some(event) = client.next(Duration::ZERO)? {
        ensure!(!matches!(event, Event::Exit(_)), "RDMA is cut, and the program ended");
    }
    drop((server, client));
    for host in 1..=2 {
        let gone = "while grep -qs pingpong /proc/[0-9]*/comm; do sleep 0.1; done";
        lab.host(host).shell(gone, PATIENCE)?;
    }
    lab.network().heal();
    verbs_reach(lab).context("healed")
}

pub(crate) fn partition_one_way(lab: &Lab) -> Result<()> {
    for (from, to) in [(1, 2), (2, 3)] {
        until_reached(lab, from, to);
    }
    lab.network().set(2, 3, Traffic::All, Fault { cut: true, ..Fault::default() });
    // An answer needs the other way too.
    ensure!(!reaches(lab, 3, 2)?, "what host 2 sends is lost");
    for (from, to) in [(1, 2), (1, 3)] {
        until_reached(lab, from, to);
    }
    lab.network().heal();
    lab.network().isolate(1, Traffic::All);
    ensure!(!reaches(lab, 1, 2)? && !reaches(lab, 3, 1)?, "isolated");
    until_reached(lab, 2, 3);
    lab.network().heal();
    for (from, to) in [(1, 2), (2, 3)] {
        until_reached(lab, from, to);
    }
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
    until_reached(lab, 1, 2);
    Ok(())
}

pub(crate) fn pause(lab: &Lab) -> Result<()> {
    lab.host(3).pause()?;
    let reached = reaches(lab, 1, 3);
    lab.host(3).resume()?;
    ensure!(!reached?, "a paused host does not answer");
    until_reached(lab, 1, 3);
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
    until_reached(lab, 1, 2);
    Ok(())
}
