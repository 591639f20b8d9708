//! One machine: programs, verbs and persistent memory in it.

use crate::PATIENCE;
use anyhow::{Context, Result, bail, ensure};
use quorate_soft_roce::{Lab, Program, Status};
use std::net::TcpStream;
use std::time::Duration;

pub(crate) fn output_and_exit_code(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let program = Program::shell("echo \"out $WORD\"; echo err >&2; pwd; exit 7");
    let output = host.run(&program.variable("WORD", "here").directory("/usr"), PATIENCE)?;
    assert_eq!(output.status, Status::Code(7));
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out here\n/usr\n", "err\n"));
    let output = host.run(&Program::shell("kill -9 $$"), PATIENCE)?;
    assert_eq!(output.status, Status::Signal(9));
    let output = host.run(&Program::new("/no/such/program"), PATIENCE)?;
    ensure!(matches!(output.status, Status::NotStarted(_)), "{}", output.status);
    // More than any buffer on the way.
    let output = host.run(&Program::shell("head -c 3000000 /dev/zero | tr '\\0' x"), PATIENCE)?;
    assert_eq!(output.stdout.len(), 3_000_000);
    Ok(())
}

pub(crate) fn time_limit(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let line = "echo begun; sleep 1000 & sleep 1001";
    // On a busy machine it may not even begin within the first limit.
    let limits = [2, 20, 120].map(Duration::from_secs);
    let told = limits.iter().any(|limit| {
        let error = host.run(&Program::shell(line), *limit).expect_err("it takes longer");
        format!("{error:#}").contains("begun")
    });
    ensure!(told, "what it said is told");
    crate::wait_for("end of both", PATIENCE, || {
        let count = "ls -l /proc/[0-9]*/exe 2>/dev/null | grep -c 'sleep$' || true";
        host.shell(count, PATIENCE).ok().filter(|count| count.trim() == "0")
    });
    Ok(())
}

/// Connections to a forwarded port wait for a guest that is busy, however many they are.
pub(crate) fn forwarded(lab: &Lab) -> Result<()> {
    const MANY: u64 = 40;
    let host = lab.host(1);
    let address = host.forwarded(crate::client_port(1));
    host.pause()?;
    let connect = || {
        let all: std::io::Result<Vec<_>> =
            (0..MANY).map(|_| TcpStream::connect_timeout(&address, PATIENCE)).collect();
        let waiting = || connections_waiting(address.port()).filter(|waiting| *waiting == MANY);
        crate::wait_for("room for all connections", Duration::from_secs(30), waiting);
        all.map(drop).context("cannot connect")
    };
    let result = std::panic::catch_unwind(connect);
    host.resume()?;
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Connections that wait at a port of this machine: the queue of one that listens (`proc_net_tcp(5)`).
fn connections_waiting(port: u16) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let local = format!("0100007F:{port:04X}");
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|words| words.get(1) == Some(&&*local) && words.get(3) == Some(&"0A"))?;
    u64::from_str_radix(line.get(4)?.split(':').nth(1)?, 16).ok()
}

pub(crate) fn ping_pong(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let before = sent_packets(lab)?;
    // With events: two programs that spin would wait for each other's time slice on one processor.
    let options = ["-e", "-d", "rxe0", "-g", "1", "-n", "200"];
    let server = host.spawn(&Program::new("ibv_rc_pingpong").args(options))?;
    host.shell(&listening(18_515), PATIENCE)?;
    let client = Program::new("ibv_rc_pingpong").args(options).arg(host.address().to_string());
    let said = host.run(&client, PATIENCE)?.success()?;
    ensure!(said.contains("200 iters in"), "{said}");
    server.wait(PATIENCE)?.success()?;
    let sent = sent_packets(lab)? - before;
    ensure!(sent >= 400, "200 messages each way are more than {sent} packets");
    Ok(())
}

/// A line of shell that waits until somebody listens on a TCP port (`proc_net_tcp(5)`).
pub(crate) fn listening(port: u16) -> String {
    format!(
        "until grep -q ':{port:04X} 0*:0000 0A' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done"
    )
}

fn sent_packets(lab: &Lab) -> Result<u64> {
    let said = lab.host(1).shell("rdma statistic show link rxe0/1", PATIENCE)?;
    let mut words = said.split_whitespace().skip_while(|word| *word != "sent_pkts");
    words.nth(1).context("no counter of packets")?.parse().context("a counter")
}

pub(crate) fn map_sync(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    // mmap(2) of one page with MAP_SHARED_VALIDATE and MAP_SYNC; perl-base is on every Debian.
    let map = |file: &str| {
        let script = format!(
            "open F, '+>', '{file}' or die; truncate F, 4096; \
             $r = syscall(9, 0, 4096, 3, 0x80003, fileno(F), 0); \
             print $r == -1 ? 'refused' : 'mapped'"
        );
        host.run(&Program::new("perl").arg("-e").arg(script), PATIENCE)?.success()
    };
    assert_eq!(map("/quorate/pmem/page")?, "mapped");
    assert_eq!(map("/tmp/page")?, "refused", "the check can fail");
    Ok(())
}

pub(crate) fn device_gone(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let devices = || host.shell("ls /sys/class/infiniband", PATIENCE);
    assert_eq!(devices()?.trim(), "rxe0");
    host.device(false)?;
    if !devices()?.trim().is_empty() {
        bail!("the device is still there");
    }
    host.device(true)?;
    assert_eq!(devices()?.trim(), "rxe0");
    Ok(())
}
