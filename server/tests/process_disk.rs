//! Disks that fail, dawdle and fill up, made by `strace` between a real replica and the kernel.

mod process;

use process::client::{Client, Outcome};
use process::load::{Account, Load};
use process::{Cluster, PATIENCE, wait};
use quorate_server::report::Report;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The log's syncs before a disk starts to misbehave, so that the cluster is founded by then.
/// `strace` counts them for each thread.
const HEALTHY_SYNCS: u64 = 200;
/// Writes into the first segment of a log before they come short.
const HEALTHY_WRITES: usize = 50;
const DELAY: Duration = Duration::from_millis(300);

/// Whether `strace` can be used; says so if not.
fn strace_works() -> bool {
    let tried = Command::new("strace")
        .args(["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match tried {
        Ok(status) if status.success() => true,
        Ok(_) => {
            println!("skipped: strace may not trace here");
            false
        }
        Err(_) => {
            println!("skipped: strace is not installed");
            false
        }
    }
}

/// Three replicas on files, `nodes` of them behind a `strace` that injects `fault`.
fn start(name: &str, nodes: &[u16], syscalls: &str, fault: &str) -> Cluster {
    let mut cluster = Cluster::prepare(name, "file", |_| {});
    for node in nodes {
        let trace = format!("trace={syscalls}");
        let inject = format!("inject={syscalls}:{fault}");
        let arguments =
            ["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        cluster.set_strace(*node, &arguments);
    }
    cluster.start_all();
    cluster.leader();
    cluster
}

/// Kills leaders until `node` leads, or does not.
fn arrange(cluster: &mut Cluster, node: u16, leads: bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let leader = cluster.leader();
        if (leader == node) == leads {
            cluster.converged();
            if cluster.leader() == leader {
                return;
            }
        }
        assert!(Instant::now() < deadline, "replica {node} cannot be made to lead: {leads}");
        if leader != node || !leads {
            cluster.kill(leader);
            cluster.leader();
            cluster.restart(leader);
            cluster.converged();
        }
    }
}

/// Waits until a replica says that something is wrong, and says what.
fn trouble(cluster: &Cluster, node: u16, word: &str) -> Report {
    cluster.wait(&format!("trouble with {word:?} at replica {node}"), || {
        cluster.report(node).filter(|report| report.trouble.contains(word))
    })
}

fn sync_fails(name: &str, leads: bool) {
    if !strace_works() {
        return;
    }
    let fault = format!("error=EIO:when={HEALTHY_SYNCS}+");
    let mut cluster = start(name, &[1], "fdatasync", &fault);
    arrange(&mut cluster, 1, leads);
    let load = Load::start(&cluster.addresses(), 2, 0);
    let report = trouble(&cluster, 1, "the log failed");
    println!("replica 1 says: {}", report.trouble);
    assert!(!report.votes, "a replica whose log failed must not vote");
    assert!(report.trouble.contains("restart it"), "{}", report.trouble);
    let leader = cluster.leader();
    assert_ne!(leader, 1, "a replica whose log failed must not lead");
    load.advance(300);
    let account = load.stop();
    assert!(account.acknowledged > 0);
    let mut refused = Client::new(&cluster.address(1));
    let outcome = refused.words("SET key value");
    let says_why = matches!(&outcome, Outcome::Rejected(text) if text.contains("log"));
    assert!(says_why, "{outcome:?}");
    let said = String::from_utf8_lossy(&cluster.status(false).stdout).into_owned();
    assert!(said.contains("! replica 1 (") && said.contains("the log failed"), "{said}");
    account.check(&cluster.address(leader));
    // On a disk that works again it is a full member.
    cluster.kill(1);
    cluster.set_strace(1, &[]);
    cluster.restart(1);
    let report = cluster.converged();
    account.check(&cluster.address(1));
    let healed = cluster.report(1).expect("it answers");
    assert!(healed.votes && healed.trouble.is_empty(), "{healed:?}");
    println!("healed at slot {}, {} acknowledged", report.applied_slot, account.acknowledged);
}

#[test]
fn a_followers_sync_fails_it_stops_voting_and_says_why_and_the_cluster_goes_on() {
    sync_fails("disk-follower-eio", false);
}

#[test]
fn the_leaders_sync_fails_it_hands_over_and_nothing_acknowledged_is_lost() {
    sync_fails("disk-leader-eio", true);
}

/// How long each of ten writes takes once replicas 2 and 3, or only 3, sync slowly.
fn write_times(name: &str, slow: &[u16]) -> Vec<Duration> {
    let fault = format!("delay_enter={}:when={HEALTHY_SYNCS}+", DELAY.as_micros());
    let mut cluster = start(name, slow, "fdatasync", &fault);
    arrange(&mut cluster, 1, true);
    let mut client = Client::new(&cluster.address(1));
    wait("slow disks", PATIENCE, || {
        assert!(client.insist("SET warm up").is_ok());
        // From the first slow sync on all are.
        let begun = |node: &u16| {
            let report = cluster.report(*node);
            report.is_some_and(|it| u128::from(it.latencies.flush.max) >= DELAY.as_micros())
        };
        slow.iter().all(begun).then_some(())
    });
    let times: Vec<Duration> = (0..10)
        .map(|number| {
            let sent = Instant::now();
            assert!(client.insist(&format!("SET key-{number} value")).is_ok());
            sent.elapsed()
        })
        .collect();
    assert_eq!(cluster.leader(), 1, "void: another replica leads now");
    println!("slow: {slow:?}: {times:?}");
    times
}

#[test]
fn both_followers_sync_slowly_no_write_is_acknowledged_before_a_sync_could_have_ended() {
    if strace_works() {
        let times = write_times("disk-two-slow", &[2, 3]);
        assert!(times.iter().all(|time| *time >= DELAY), "{times:?}");
    }
}

#[test]
fn one_follower_syncs_slowly_and_writes_stay_fast() {
    if strace_works() {
        let mut times = write_times("disk-one-slow", &[3]);
        times.sort();
        assert!(times[times.len() / 2] < DELAY / 2, "{times:?}");
    }
}

/// Fills the log of replica 1's disk until the next segment finds no space.
fn disk_fills(name: &str, leads: bool) {
    if !strace_works() {
        return;
    }
    // The first calls of a thread make the first segments. Then there is no space for so many
    // tries, one about every 20 ms, and there is some again.
    let tries = if leads { 300 } else { 150 };
    let fault = format!("error=ENOSPC:when=3..{}", 2 + tries);
    let mut cluster = start(name, &[1], "fallocate", &fault);
    arrange(&mut cluster, 1, leads);
    let writer_at = if leads { 1 } else { cluster.leader() };
    let mut writer = Client::new(&cluster.address(writer_at));
    let value = vec![b'v'; 512 << 10];
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    let report = wait("trouble about space", PATIENCE, || {
        let key = format!("key-{}", acknowledged.len());
        match writer.call(&[b"SET", key.as_bytes(), &value]) {
            outcome if outcome.is_ok() => acknowledged.push(key),
            Outcome::Rejected(_) => refused += 1,
            other => println!("{other:?}"),
        }
        cluster.report(1).filter(|report| report.trouble.contains("no space"))
    });
    println!("{} writes, {refused} refused, then: {}", acknowledged.len(), report.trouble);
    // The others serve on while it is full: a leader hands over.
    let other =
        cluster.wait("a leader with space", || Some(cluster.leader()).filter(|it| *it != 1));
    let mut elsewhere = Client::new(&cluster.address(other));
    elsewhere.insist("SET while-full yes");
    let still = cluster.report(1).expect("it runs");
    assert!(still.trouble.contains("no space"), "void: there was space again: {still:?}");
    cluster.wait("space again", || cluster.report(1).filter(|it| it.trouble.is_empty()));
    cluster.converged();
    for key in &acknowledged {
        let reply = elsewhere.insist(&format!("STRLEN {key}"));
        assert_eq!(reply, process::client::Reply::Integer(value.len() as i64), "{key}");
    }
    writer.insist("SET after yes");
}

#[test]
fn a_followers_disk_is_full_it_says_so_and_goes_on_when_there_is_space() {
    disk_fills("disk-follower-full", false);
}

#[test]
fn the_leaders_disk_is_full_it_refuses_or_hands_over_and_goes_on_when_there_is_space() {
    disk_fills("disk-leader-full", true);
}

#[test]
fn syncs_fail_everywhere_nothing_more_is_acknowledged_and_nothing_is_lost() {
    if !strace_works() {
        return;
    }
    let fault = format!("error=EIO:when={HEALTHY_SYNCS}+");
    let mut cluster = start("disk-all-eio", &[1, 2, 3], "fdatasync", &fault);
    let load = Load::start(&cluster.addresses(), 2, 0);
    cluster.wait("no majority of disks", || {
        let reports = cluster.reports();
        let failed = reports.iter().flatten().filter(|it| it.trouble.contains("the log failed"));
        (failed.count() >= 2).then_some(())
    });
    let mut account = Account::default();
    account.add(load.stop());
    for node in 1..=3 {
        let outcome = Client::new(&cluster.address(node)).words("SET key value");
        assert!(!matches!(outcome, Outcome::Reply(_)), "acknowledged without disks: {outcome:?}");
    }
    cluster.kill_all();
    for node in 1..=3 {
        cluster.set_strace(node, &[]);
        cluster.restart(node);
    }
    cluster.converged();
    account.check(&cluster.address(1));
    assert!(account.acknowledged > 0);
}

/// The name of a log's first segment file.
const FIRST_SEGMENT: &str = "segment-0000000000000001";

/// Runs replica `node` so that the reads of its log's first segment with these numbers fail, for each
/// of its threads or only for the one that opens the log.
fn reads_fail(cluster: &mut Cluster, node: u16, when: &str, in_all_threads: bool) {
    let directory = cluster.replica(node).config.replica.directory.clone();
    let segment = directory.join(FIRST_SEGMENT).display().to_string();
    let inject = format!("inject=pread64:error=EIO:when={when}");
    let mut arguments = vec!["-qq", "-o", "/dev/null", "-P", &segment];
    arguments.extend(["-e", "trace=pread64", "-e", &inject]);
    if in_all_threads {
        arguments.extend(["-f", "--seccomp-bpf"]);
    }
    cluster.set_strace(node, &arguments);
}

/// The segment as a whole cannot be read, and of its pages the first two: a header, and the records
/// that follow it.
#[test]
fn a_disk_cannot_read_a_part_of_the_log_the_replica_follows_without_a_vote_until_it_is_repaired() {
    if !strace_works() {
        return;
    }
    let mut cluster = Cluster::start("disk-read-eio", "file");
    let load = Load::start(&cluster.addresses(), 2, 0);
    load.advance(300);
    let mut account = load.stop();
    cluster.converged();
    arrange(&mut cluster, 1, false);
    cluster.kill(1);
    reads_fail(&mut cluster, 1, "1..3", false);
    cluster.restart(1);
    let report = trouble(&cluster, 1, "damaged part");
    println!("replica 1 says: {}", report.trouble);
    assert!(!report.votes, "it may have accepted what it cannot read: {report:?}");
    assert!(report.trouble.contains("does not vote"), "{}", report.trouble);
    let said = cluster.replica(1).logged();
    assert!(said.contains("the device did not read the log at once"), "{said}");
    // The others serve on, and it has everything from them.
    let load = Load::start(&cluster.addresses(), 2, 1_000_000);
    load.advance(300);
    account.add(load.stop());
    cluster.converged();
    account.check(&cluster.address(1));
    // Under another leadership nothing that it forgot can matter any more (decision 19). On a busy
    // machine there may have been a change already: then it votes again, and may even lead.
    let leader = cluster.leader();
    if leader != 1 && !cluster.report(1).expect("it runs").votes {
        cluster.kill(leader);
        cluster.restart(leader);
    }
    cluster.leader();
    cluster.wait("a vote for the repaired replica", || {
        cluster.report(1).filter(|report| report.votes && report.trouble.is_empty())
    });
    cluster.converged();
    account.check(&cluster.address(1));
}

#[test]
fn disks_cannot_read_for_a_peer_they_say_so_and_the_peer_gets_nothing_else_instead() {
    if !strace_works() {
        return;
    }
    let mut cluster = Cluster::prepare("disk-read-peer", "file", |config| {
        config.limits.cache_bytes_max = 1 << 20;
    });
    // A log that was just made is not read before somebody asks for what is not in memory any more.
    reads_fail(&mut cluster, 1, "1+", true);
    reads_fail(&mut cluster, 2, "1+", true);
    cluster.start_all();
    arrange(&mut cluster, 3, false);
    cluster.kill(3);
    let leader = cluster.leader();
    let mut client = Client::new(&cluster.address(leader));
    let value = vec![b'v'; 64 << 10];
    for number in 0..100 {
        let key = format!("key-{number}");
        wait("a write", PATIENCE, || {
            client.call(&[b"SET", key.as_bytes(), &value]).is_ok().then_some(())
        });
    }
    cluster.restart(3);
    let (node, report) = cluster.wait("a replica that cannot read its log", || {
        let reports = [1, 2].map(|node| (node, cluster.report(node)));
        reports.into_iter().find_map(|(node, report)| {
            Some((node, report.filter(|it| it.trouble.contains("cannot read the log"))?))
        })
    });
    println!("replica {node} says: {}", report.trouble);
    assert!(report.votes, "it knows all that it promised and accepted: {report:?}");
    let behind = cluster.report(3).expect("it runs");
    assert!(behind.applied_slot < report.applied_slot, "void: it has everything: {behind:?}");
    // One of the disks works again; its replica reads its log and serves the third.
    cluster.kill(node);
    cluster.set_strace(node, &[]);
    cluster.restart(node);
    cluster.converged();
    let mut client = Client::new(&cluster.address(3));
    for number in 0..100 {
        let reply = client.insist(&format!("STRLEN key-{number}"));
        assert_eq!(reply, process::client::Reply::Integer(value.len() as i64), "{number}");
    }
}

/// How many bytes a traced `pwrite64` was to write, and where: its last two arguments.
fn extent(line: &str) -> (u64, u64) {
    let (call, _) = line.rsplit_once(") = ").expect("a call that returned");
    let mut last = call.rsplit(", ").map(|it| it.parse().expect("a number"));
    let offset = last.next().expect("an offset");
    (last.next().expect("a count"), offset)
}

/// The kernel says that it wrote 512 bytes and wrote none. The log goes on with the rest, as it must
/// after a short write; what is missing on the disk is found at the next start and not taken for data.
#[test]
fn writes_come_short_and_what_is_missing_is_found_and_not_given_out() {
    if !strace_works() {
        return;
    }
    let mut cluster = Cluster::start("disk-short-write", "file");
    arrange(&mut cluster, 1, false);
    cluster.kill(1);
    let directory = cluster.replica(1).config.replica.directory.clone();
    let segment = directory.join(FIRST_SEGMENT).display().to_string();
    let trace = directory.with_file_name("short-writes").display().to_string();
    let inject = format!("inject=pwrite64:retval=512:when={HEALTHY_WRITES}+10");
    let arguments = ["-f", "-qq", "--seccomp-bpf", "-o", &trace, "-P", &segment];
    cluster.set_strace(1, &[&arguments[..], &["-e", "trace=pwrite64", "-e", &inject]].concat());
    cluster.restart(1);
    let load = Load::start(&cluster.addresses(), 2, 0);
    load.advance(2_000);
    let mut account = load.stop();
    cluster.converged();
    cluster.kill(1);
    let traced = fs::read_to_string(&trace).expect("the trace of strace");
    let writes: Vec<&str> = traced.lines().filter(|line| line.contains(" pwrite64(")).collect();
    let short: Vec<usize> =
        (0..writes.len()).filter(|at| writes[*at].ends_with("= 512 (INJECTED)")).collect();
    assert!(short.len() > 10, "void: {} writes came short", short.len());
    for at in &short {
        let ((bytes, offset), rest) =
            (extent(writes[*at]), writes.get(at + 1).map(|it| extent(it)));
        assert_eq!(rest, Some((bytes - 512, offset + 512)), "the rest of a write follows it");
    }
    cluster.set_strace(1, &[]);
    cluster.restart(1);
    let report = trouble(&cluster, 1, "damaged part");
    println!("{} writes came short; replica 1 says: {}", short.len(), report.trouble);
    assert!(!report.votes, "it may have accepted what is missing: {report:?}");
    // The very last write could be taken for one that a crash cut.
    let found: usize =
        report.trouble.split(' ').next().and_then(|it| it.parse().ok()).expect("a count");
    assert!(found == short.len() || found + 1 == short.len(), "{}", report.trouble);
    // The others serve on, and it has everything from them.
    let load = Load::start(&cluster.addresses(), 2, 1_000_000);
    load.advance(300);
    account.add(load.stop());
    cluster.converged();
    account.check(&cluster.address(1));
}
