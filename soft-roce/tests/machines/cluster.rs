//! A cluster of three replicas on three hosts, clients outside, and what happens to hosts and network.

use crate::shared::client::{Client, Reply};
use crate::shared::history::Clients;
use crate::{CLIENT_PORT, PATIENCE};
use anyhow::{Context, Result, bail, ensure};
use quorate_check::{History, Kv, Limits, check};
use quorate_server::admin;
use quorate_server::report::Report;
use quorate_soft_roce::{Count, Fault, Host, Lab, Program, Running, Traffic};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

const PEER_PORT: u16 = 7101;
const CLIENTS: usize = 10;
/// Acknowledged before the power of all hosts is cut.
const WRITES_BEFORE_THE_CUT: u32 = 200;
/// Between two operations of a client, on average.
const PACE: Duration = Duration::from_millis(10);

/// Replicas on all hosts of a lab. Dropping it ends them; their data stays until the lab ends.
struct Cluster<'a> {
    lab: &'a Lab,
    name: String,
    running: BTreeMap<u16, Running>,
}

impl<'a> Cluster<'a> {
    fn start(lab: &'a Lab, transport: &str, durability: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{transport}-{durability}-{number}");
        let mut cluster = Self { lab, name, running: BTreeMap::new() };
        for host in lab.hosts() {
            let config = cluster.config(host.number(), transport, durability);
            let file = lab.share().join(cluster.file(host.number(), "toml"));
            std::fs::write(file, config)?;
            cluster.start_replica(host.number())?;
        }
        cluster.leader();
        Ok(cluster)
    }

    fn file(&self, number: u16, extension: &str) -> String {
        format!("{}-{number}.{extension}", self.name)
    }

    /// Timers are long: machines pause when this one is busy. Clients come over an interface of their own.
    fn config(&self, number: u16, transport: &str, durability: &str) -> String {
        let place = if durability == "dax" { "pmem" } else { "disk" };
        let name = &self.name;
        let mut text = format!(
            "[replica]\n\
             node = {number}\n\
             directory = \"/quorate/{place}/{name}\"\n\
             durability = \"{durability}\"\n\
             transport = \"{transport}\"\n\
             segment_bytes = 16777216\n\
             [client]\n\
             listen = \"0.0.0.0:{CLIENT_PORT}\"\n\
             value_bytes_max = 1048576\n\
             threads = 1\n\
             [timers]\n\
             heartbeat_ms = 100\n\
             election_timeout_min_ms = 1000\n\
             election_timeout_max_ms = 2000\n\
             [limits]\n\
             ring_bytes = 4194304\n"
        );
        for host in self.lab.hosts() {
            let (node, address) = (host.number(), host.address());
            text += &format!(
                "[[member]]\n\
                 node = {node}\n\
                 peer = \"{address}:{PEER_PORT}\"\n\
                 client = \"{address}:{CLIENT_PORT}\"\n"
            );
        }
        text
    }

    fn start_replica(&mut self, number: u16) -> Result<()> {
        let line = format!(
            "exec '{}' serve --config /quorate/share/{} >>/quorate/share/{} 2>&1",
            crate::built("quorate")?.display(),
            self.file(number, "toml"),
            self.file(number, "log"),
        );
        self.running.insert(number, self.lab.host(number).spawn(&Program::shell(line))?);
        Ok(())
    }

    fn address(&self, number: u16) -> String {
        self.lab.host(number).forwarded(CLIENT_PORT).to_string()
    }

    fn addresses(&self) -> Vec<String> {
        self.lab.hosts().iter().map(|host| self.address(host.number())).collect()
    }

    fn report(&self, number: u16) -> Option<Report> {
        admin::status(&self.address(number)).ok()
    }

    fn wait<T>(&self, what: &str, poll: impl FnMut() -> Option<T>) -> T {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            crate::wait_for(what, PATIENCE, poll)
        }));
        result.unwrap_or_else(|panic| {
            for host in self.lab.hosts() {
                let log = self.lab.share().join(self.file(host.number(), "log"));
                let text = std::fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                let end = lines[lines.len().saturating_sub(30)..].join("\n");
                eprintln!("host {}: {:?}\n{end}", host.number(), self.report(host.number()));
            }
            std::panic::resume_unwind(panic)
        })
    }

    /// Who leads, with a majority behind it: it has just answered a write.
    fn leader(&self) -> u16 {
        self.wait("a leader", || {
            let leader = self.lab.hosts().iter().map(Host::number).find(|number| {
                self.report(*number).is_some_and(|report| report.role == "leader")
            })?;
            let mut client = Client::new(&self.address(leader));
            client.words("SET leader known").is_ok().then_some(leader)
        })
    }

    fn follower(&self) -> u16 {
        let leader = self.leader();
        self.lab.hosts().iter().map(Host::number).find(|number| *number != leader).unwrap_or(1)
    }

    /// Waits until all replicas applied the same and agree on what it was.
    fn converged(&self) {
        self.wait("agreement of all replicas", || {
            let reports: Vec<_> =
                self.lab.hosts().iter().map(|host| self.report(host.number())).collect();
            let reports: Option<Vec<_>> = reports.into_iter().collect();
            let reports = reports?;
            let first = &reports[0];
            let equal = |report: &Report| report.applied_slot == first.applied_slot;
            reports.iter().all(equal).then(|| {
                assert!(reports.iter().all(|report| report.digest == first.digest), "{reports:?}");
            })
        });
    }

    /// Cuts the power of a host.
    fn kill(&mut self, number: u16) {
        self.lab.host(number).kill();
        self.running.remove(&number);
    }

    /// Gives it power again, and starts its replica.
    fn revive(&mut self, number: u16) -> Result<()> {
        self.lab.restart(number)?;
        self.start_replica(number)?;
        self.wait("the restarted replica", || self.report(number));
        Ok(())
    }
}

/// A program of Redis against a replica.
fn redis(program: &str, address: &str, arguments: &[&str]) -> Result<String> {
    let (host, port) = address.rsplit_once(':').context("an address")?;
    let output = Command::new(program).args(["-h", host, "-p", port]).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{program}: {text}");
    Ok(text)
}

/// `redis-cli` and `redis-benchmark` from outside, against any replica.
fn serves_redis(cluster: &Cluster<'_>) -> Result<()> {
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let (leader, follower) = (cluster.address(leader), cluster.address(follower));
    assert_eq!(redis("redis-cli", &leader, &["SET", "word", "here"])?, "OK\n");
    assert_eq!(redis("redis-cli", &follower, &["GET", "word"])?, "here\n");
    let load = ["-t", "set,get", "-n", "2000", "-c", "20", "-d", "100", "--csv"];
    let said = redis("redis-benchmark", &leader, &load)?;
    let figures: Vec<_> = said.lines().filter(|line| !line.starts_with("\"test\"")).collect();
    ensure!(figures.len() == 2, "{said}");
    println!("redis-benchmark: {}", figures.join(" "));
    Ok(())
}

pub(crate) fn redis_tcp(lab: &Lab) -> Result<()> {
    let cluster = Cluster::start(lab, "tcp", "file")?;
    serves_redis(&cluster)?;
    cluster.converged();
    Ok(())
}

/// What happened to a cluster.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    leaders_killed: u32,
    leaders_cut: u32,
    leaders_deaf: u32,
    hosts_paused: u32,
    lossy: u32,
}

/// One fault after the other, until the clients got `operations` answers and each kind happened.
fn torment(cluster: &mut Cluster<'_>, clients: &Clients, operations: u64) -> Result<Faults> {
    let lab = cluster.lab;
    let mut faults = Faults::default();
    let begin = Instant::now();
    for round in 0.. {
        let leader = cluster.leader();
        match round % 5 {
            0 => {
                cluster.kill(leader);
                // The other two serve on meanwhile.
                clients.advance(200);
                cluster.revive(leader)?;
                faults.leaders_killed += 1;
            }
            1 => {
                lab.network().isolate(leader, Traffic::All);
                clients.advance(200);
                faults.leaders_cut += 1;
            }
            2 => {
                // It still sends to the others, and hears nobody.
                for other in lab.hosts().iter().map(Host::number).filter(|other| *other != leader) {
                    let cut = Fault { cut: true, ..Fault::default() };
                    lab.network().set(other, leader, Traffic::All, cut);
                }
                clients.advance(200);
                faults.leaders_deaf += 1;
            }
            3 => {
                lab.host(leader).pause()?;
                clients.advance(100);
                lab.host(leader).resume()?;
                faults.hosts_paused += 1;
            }
            _ => {
                let fault = Fault {
                    loss: 0.02,
                    duplicate: 0.02,
                    delay: Duration::from_millis(1),
                    jitter: Duration::from_millis(5),
                    ..Fault::default()
                };
                for (one, other) in [(1, 2), (1, 3), (2, 3)] {
                    lab.network().set_both(one, other, Traffic::All, fault);
                }
                clients.advance(500);
                faults.lossy += 1;
            }
        }
        lab.network().heal();
        clients.advance(500);
        if round >= 4 && clients.answered() >= operations {
            break;
        }
    }
    println!(
        "{} operations answered in {:.0} s; {faults:?}",
        clients.answered(),
        begin.elapsed().as_secs_f64()
    );
    Ok(faults)
}

/// Operations of a checked history: more by the variable `QUORATE_OPERATIONS`.
fn operations(default: u64) -> u64 {
    std::env::var("QUORATE_OPERATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Clients write down all that they see while hosts and network fail; then the checker judges.
fn linearizable(lab: &Lab, transport: &str, operations: u64) -> Result<()> {
    let mut cluster = Cluster::start(lab, transport, "file")?;
    let mut before = Client::new(&cluster.address(cluster.leader()));
    for number in 0..50 {
        ensure!(before.words(&format!("SET before-{number} {number}")).is_ok(), "a write");
    }
    let clients = Clients::start(&cluster.addresses(), CLIENTS, PACE, 11);
    let faults = torment(&mut cluster, &clients, operations);
    let history = History::merge(clients.stop());
    let faults = faults?;
    ensure!(faults.leaders_killed > 0 && faults.lossy > 0, "void: {faults:?}");
    cluster.converged();
    let mut after = Client::new(&cluster.address(cluster.leader()));
    for number in 0..50 {
        let value = after.insist(&format!("GET before-{number}"));
        assert_eq!(value, Reply::text(&number.to_string()), "an acknowledged write is there");
    }
    let verdict = check(&Kv, &history, &Limits::default());
    if !verdict.is_linearizable() {
        let file = std::env::temp_dir().join(format!("quorate-history-{}", std::process::id()));
        std::fs::write(&file, history.to_text())?;
        bail!("{verdict}\nthe history is in {}", file.display());
    }
    println!("{verdict}");
    Ok(())
}

/// Writes one after the other, each again until it is acknowledged, until the power is cut.
fn write_until_cut_off(address: &str, acknowledged: &AtomicU32, cut: &AtomicBool) {
    let mut client = Client::new(address);
    while !cut.load(Ordering::Acquire) {
        let number = acknowledged.load(Ordering::Acquire);
        if client.words(&format!("SET key-{number} {number}")).is_ok() {
            acknowledged.store(number + 1, Ordering::Release);
        }
    }
}

/// The power of all hosts is cut while a client writes: what was acknowledged is on persistent memory,
/// and every replica still knows what it promised.
pub(crate) fn power_cut_on_dax(lab: &Lab) -> Result<()> {
    let mut cluster = Cluster::start(lab, "tcp", "dax")?;
    let acknowledged = AtomicU32::new(0);
    let cut = AtomicBool::new(false);
    let address = cluster.address(cluster.leader());
    std::thread::scope(|scope| {
        scope.spawn(|| write_until_cut_off(&address, &acknowledged, &cut));
        let begin = Instant::now();
        while acknowledged.load(Ordering::Acquire) < WRITES_BEFORE_THE_CUT
            && begin.elapsed() < PATIENCE
        {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        for host in lab.hosts() {
            cluster.kill(host.number());
        }
        cut.store(true, Ordering::Release);
    });
    let count = acknowledged.load(Ordering::Acquire);
    ensure!(count >= WRITES_BEFORE_THE_CUT, "void: only {count} writes were acknowledged");
    lab.restart_all()?;
    for host in lab.hosts() {
        cluster.start_replica(host.number())?;
    }
    let mut client = Client::new(&cluster.address(cluster.leader()));
    for number in 0..count {
        let value = client.insist(&format!("GET key-{number}"));
        assert_eq!(value, Reply::text(&number.to_string()), "it was acknowledged");
    }
    cluster.converged();
    for host in lab.hosts() {
        let report = cluster.wait("a replica that votes and has no trouble", || {
            let report = cluster.report(host.number())?;
            (report.votes && report.trouble.is_empty()).then_some(report)
        });
        let says = (report.medium.as_str(), report.durability.as_str());
        assert_eq!(says, ("dax", "power failure"));
    }
    println!("power cut at all hosts: {count} acknowledged writes are there, all replicas vote");
    Ok(())
}

/// A host is started again under a replica whose log did not reach the disk: it must not vote.
pub(crate) fn power_cut_on_emulated(lab: &Lab) -> Result<()> {
    let mut cluster = Cluster::start(lab, "tcp", "emulated")?;
    let mut client = Client::new(&cluster.address(cluster.leader()));
    for number in 0..50 {
        client.insist(&format!("SET key-{number} {number}"));
    }
    let follower = cluster.follower();
    // What the file system writes back by itself within half a minute, so that a log is there.
    lab.host(follower).shell("sync", PATIENCE)?;
    cluster.kill(follower);
    cluster.revive(follower)?;
    let report = cluster.wait("a replica that knows that it may have forgotten", || {
        cluster.report(follower).filter(|report| report.trouble.contains("started again"))
    });
    ensure!(!report.votes, "{report:?}");
    println!("replica {follower} says: {}", report.trouble);
    client.insist("SET after yes");
    cluster.converged();
    Ok(())
}

pub(crate) fn linearizable_tcp(lab: &Lab) -> Result<()> {
    linearizable(lab, "tcp", operations(3_000))
}

pub(crate) fn linearizable_rdma(lab: &Lab) -> Result<()> {
    linearizable(lab, "rdma", operations(10_000))
}

/// Bytes that went from one host to all others, by RDMA and by TCP.
fn sent(lab: &Lab, from: u16) -> (u64, u64) {
    let others = lab.hosts().iter().map(Host::number).filter(|to| *to != from);
    let counts: Vec<_> = others.map(|to| lab.network().count(from, to)).collect();
    let sum = |of: fn(&Count) -> u64| counts.iter().map(of).sum();
    (sum(|count| count.rdma_bytes), sum(|count| count.tcp_bytes))
}

/// How many links of all replicas go by RDMA, and how many by TCP, as status says.
fn carriers(cluster: &Cluster<'_>) -> Option<(usize, usize)> {
    let hosts = cluster.lab.hosts().iter();
    let reports: Option<Vec<_>> = hosts.map(|host| cluster.report(host.number())).collect();
    let peers: Vec<_> = reports?.into_iter().flat_map(|report| report.peers).collect();
    let up =
        |carrier: &str| peers.iter().filter(|peer| peer.data_up && peer.carrier == carrier).count();
    Some((up("rdma"), up("tcp")))
}

fn all_by(cluster: &Cluster<'_>, wanted: (usize, usize)) {
    cluster.wait(&format!("links by RDMA and TCP: {wanted:?}"), || {
        carriers(cluster).filter(|found| *found == wanted)
    });
}

/// Writes of 1000 bytes to the leader.
const WRITES: u64 = 1_000;

fn write_load(cluster: &Cluster<'_>) -> Result<()> {
    let leader = cluster.address(cluster.leader());
    let load = ["-t", "set", "-n", "1000", "-c", "20", "-d", "1000", "-r", "1000", "--csv"];
    redis("redis-benchmark", &leader, &load).map(drop)
}

/// Records travel by RDMA and not by TCP, as the switch between the hosts sees it.
pub(crate) fn redis_rdma(lab: &Lab) -> Result<()> {
    let cluster = Cluster::start(lab, "rdma", "file")?;
    all_by(&cluster, (6, 0));
    serves_redis(&cluster)?;
    let leader = cluster.leader();
    let before = sent(lab, leader);
    write_load(&cluster)?;
    let after = sent(lab, leader);
    ensure!(cluster.leader() == leader, "void: another leader");
    let (rdma, tcp) = (after.0 - before.0, after.1 - before.1);
    println!(
        "leader to followers, {WRITES} writes of 1000 bytes: {rdma} bytes RDMA, {tcp} bytes TCP"
    );
    ensure!(rdma >= 2 * WRITES * 1000, "each follower gets each write: {rdma} bytes");
    // What TCP carries besides, such as the control lane, is less than one follower's records.
    ensure!(tcp < WRITES * 1000, "records do not go by TCP: {tcp} bytes");
    cluster.converged();
    Ok(())
}

/// RDMA is lost while TCP lives: lanes fall back, service goes on, status says so; healed, they return.
pub(crate) fn rdma_lost(lab: &Lab) -> Result<()> {
    let cluster = Cluster::start(lab, "rdma", "file")?;
    all_by(&cluster, (6, 0));
    for host in 1..=3 {
        lab.network().isolate(host, Traffic::Rdma);
    }
    all_by(&cluster, (0, 6));
    let leader = cluster.leader();
    let before = sent(lab, leader);
    write_load(&cluster)?;
    let tcp = sent(lab, leader).1 - before.1;
    ensure!(tcp >= 2 * WRITES * 1000, "records go by TCP now: {tcp} bytes");
    lab.network().heal();
    all_by(&cluster, (6, 0));
    let leader = cluster.leader();
    let before = sent(lab, leader);
    write_load(&cluster)?;
    let rdma = sent(lab, leader).0 - before.0;
    ensure!(rdma >= 2 * WRITES * 1000, "and by RDMA again: {rdma} bytes");
    cluster.converged();
    Ok(())
}
