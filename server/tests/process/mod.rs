//! A cluster of real processes for tests: each replica can be killed, stopped, woken and started
//! again, and none of them outlives its test.

#![allow(dead_code, unreachable_pub, reason = "each test program uses the part that it needs")]

pub mod client;
pub mod history;
pub mod load;
pub mod stream;

use quorate_server::admin;
use quorate_server::config::{Config, MemberConfig, MetricsConfig, ReplicaConfig};
use quorate_server::report::Report;
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The program under test.
pub const QUORATE: &str = env!("CARGO_BIN_EXE_quorate");
/// How long a healthy cluster may take for anything, on a machine that does much else besides.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of each replica's log that are shown when a test fails.
const LOG_LINES_SHOWN: usize = 60;

/// Clusters of one test program take turns: time-outs are about processes, not about how many
/// clusters share two cores.
static TURN: Mutex<()> = Mutex::new(());

/// Ports below those that Linux gives to outgoing connections (32768 and above): a replica that is
/// down must not lose its port to a client's socket.
const PORTS_FROM: u16 = 12_000;
const PORT_BLOCKS: u16 = 600;
const BLOCK: u16 = 32;
/// Within a block: the lock, then client ports, then peer ports.
const PEERS_FROM: u16 = 16;

/// A block of ports that no other test takes while this is alive.
#[derive(Debug)]
pub struct Ports {
    base: u16,
    _lock: TcpListener,
}

impl Ports {
    /// Finds a free block.
    pub fn reserve() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        // Test programs that run at the same time begin their search at different places.
        let start = (std::process::id() % u32::from(PORT_BLOCKS)) as u16;
        for _ in 0..PORT_BLOCKS {
            let block = (start + NEXT.fetch_add(1, Ordering::Relaxed)) % PORT_BLOCKS;
            let base = PORTS_FROM + block * BLOCK;
            let Ok(lock) = TcpListener::bind(("127.0.0.1", base)) else { continue };
            let free = (1..BLOCK).all(|port| TcpListener::bind(("127.0.0.1", base + port)).is_ok());
            if free {
                return Self { base, _lock: lock };
            }
        }
        panic!("no free block of ports");
    }

    /// Where clients reach replica `node`.
    pub fn client(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.base + node)
    }

    /// Where its peers reach replica `node`.
    pub fn peer(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.base + PEERS_FROM + node)
    }
}

/// A folder of its own on a real disk (the `file` medium refuses memory), gone with its test unless
/// that fails.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes an empty one.
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{name}-{}-{number}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // A leftover costs disk, not correctness.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// One replica: its configuration, and its process while it has one.
#[derive(Debug)]
pub struct Replica {
    pub config: Config,
    pub file: PathBuf,
    pub log: PathBuf,
    /// Arguments for `strace`, where the replica runs under it.
    strace: Vec<String>,
    child: Option<Child>,
}

impl Replica {
    fn start(&mut self) {
        assert!(self.child.is_none(), "replica {} runs already", self.config.replica.node);
        let text = toml::to_string(&self.config).expect("a configuration");
        fs::write(&self.file, text).expect("the configuration is written");
        let log = File::options().create(true).append(true).open(&self.log).expect("the log opens");
        let mut command = if self.strace.is_empty() {
            Command::new(QUORATE)
        } else {
            let mut command = Command::new("strace");
            command.args(&self.strace).args(["--", QUORATE]);
            command
        };
        let child = command
            .args(["serve", "--stop-with-stdin", "--config"])
            .arg(&self.file)
            // The end of the pipe ends the replica, should this process be killed.
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the replica's process starts");
        self.child = Some(child);
    }

    /// The replica's own process: below `strace`, if that runs it.
    fn process(&self) -> Option<Pid> {
        let id = self.child.as_ref()?.id();
        if self.strace.is_empty() {
            return Pid::from_raw(id as i32);
        }
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = self.process() {
            kill_process(process, signal).expect("the signal is delivered");
        }
    }

    /// Kills the process, if there is one, and waits until it is gone.
    fn kill(&mut self) {
        if let Some(process) = self.process() {
            // It may have ended by itself.
            let _ = kill_process(process, Signal::KILL);
        }
        if let Some(mut child) = self.child.take() {
            if self.strace.is_empty() {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }

    /// Everything that it has logged.
    pub fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A cluster of processes. Dropping it kills them all; on a failed test it shows their logs first.
#[derive(Debug)]
pub struct Cluster {
    pub replicas: Vec<Replica>,
    pub ports: Ports,
    pub folder: Folder,
    /// How many replicas founded it: those that most of what follows is about.
    founders: u16,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Three replicas on `durability`, running, with a leader.
    pub fn start(name: &str, durability: &str) -> Self {
        let mut cluster = Self::prepare(name, durability, |_| {});
        cluster.start_all();
        cluster.leader();
        cluster
    }

    /// Three replicas that do not run yet, each configuration changed by `adjust`.
    pub fn prepare(name: &str, durability: &str, adjust: impl Fn(&mut Config)) -> Self {
        Self::prepare_of(3, name, durability, adjust)
    }

    /// As many founding members that do not run yet.
    pub fn prepare_of(
        count: u16,
        name: &str,
        durability: &str,
        adjust: impl Fn(&mut Config),
    ) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let ports = Ports::reserve();
        let folder = Folder::new(name);
        let replicas = (1..=count).map(|node| {
            let home = folder.path().join(format!("replica-{node}"));
            fs::create_dir_all(&home).expect("a folder for the replica");
            let mut config = config(&ports, &home, node, durability);
            let member =
                |node| MemberConfig { node, peer: ports.peer(node), client: ports.client(node) };
            config.members = (1..=count).map(member).collect();
            adjust(&mut config);
            Replica {
                config,
                file: home.join("replica.toml"),
                log: home.join("replica.log"),
                strace: Vec::new(),
                child: None,
            }
        });
        Self { replicas: replicas.collect(), ports, folder, founders: count, _turn: turn }
    }

    /// One more replica, which joins when it is added. It has the next number, and runs.
    pub fn join(&mut self) -> u16 {
        self.join_with(|_| {})
    }

    /// As [`Cluster::join`], with its configuration changed by `adjust`.
    pub fn join_with(&mut self, adjust: impl Fn(&mut Config)) -> u16 {
        let node = self.replicas.len() as u16 + 1;
        let home = self.folder.path().join(format!("replica-{node}"));
        fs::create_dir_all(&home).expect("a folder for the replica");
        let durability = self.replicas[0].config.replica.durability.clone();
        let mut config = config(&self.ports, &home, node, &durability);
        config.replica.join = true;
        let (peer, client) = (self.ports.peer(node), self.ports.client(node));
        config.members.push(MemberConfig { node, peer, client });
        adjust(&mut config);
        self.replicas.push(Replica {
            config,
            file: home.join("replica.toml"),
            log: home.join("replica.log"),
            strace: Vec::new(),
            child: None,
        });
        self.restart(node);
        node
    }

    /// Runs `quorate member` about this cluster, to its end.
    pub fn member(&self, arguments: &[&str]) -> Output {
        let addresses: Vec<String> =
            self.replicas.iter().map(|replica| self.address(replica.config.replica.node)).collect();
        let addresses = addresses.join(",");
        let mut all = vec!["member"];
        all.extend(arguments);
        all.extend(["--addr", &addresses]);
        if !arguments.contains(&"--timeout") {
            all.extend(["--timeout", "60"]);
        }
        quorate(&all)
    }

    /// Runs replica `node` under `strace` from its next start on.
    pub fn set_strace(&mut self, node: u16, arguments: &[&str]) {
        self.replica(node).strace = arguments.iter().map(ToString::to_string).collect();
    }

    pub fn replica(&mut self, node: u16) -> &mut Replica {
        &mut self.replicas[usize::from(node) - 1]
    }

    pub fn start_all(&mut self) {
        for replica in &mut self.replicas {
            replica.start();
        }
    }

    /// Starts a replica that is down, with its own data.
    pub fn restart(&mut self, node: u16) {
        self.replica(node).start();
    }

    /// `kill -9`.
    pub fn kill(&mut self, node: u16) {
        self.replica(node).kill();
    }

    /// `kill -9` of all, as close together as it gets.
    pub fn kill_all(&mut self) {
        for replica in &self.replicas {
            replica.signal(Signal::KILL);
        }
        for replica in &mut self.replicas {
            replica.kill();
        }
    }

    /// Stops the process where it stands.
    pub fn pause(&mut self, node: u16) {
        self.replica(node).signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&mut self, node: u16) {
        self.replica(node).signal(Signal::CONT);
    }

    /// How a replica's process ended, if it did by itself.
    pub fn ended(&mut self, node: u16) -> Option<ExitStatus> {
        self.replica(node).child.as_mut()?.try_wait().expect("the child can be asked")
    }

    pub fn address(&self, node: u16) -> String {
        self.ports.client(node)
    }

    pub fn addresses(&self) -> Vec<String> {
        (1..=self.founders).map(|node| self.address(node)).collect()
    }

    /// What a replica says of itself, if it answers.
    pub fn report(&self, node: u16) -> Option<Report> {
        admin::status(&self.address(node)).ok()
    }

    pub fn reports(&self) -> Vec<Option<Report>> {
        (1..=self.founders).map(|node| self.report(node)).collect()
    }

    /// Waits for a leader that a majority follows under the same ballot.
    pub fn leader(&self) -> u16 {
        self.wait("a leader that a majority follows", || {
            let reports: Vec<Report> = self.reports().into_iter().flatten().collect();
            let leader = reports.iter().find(|report| report.role == "leader")?;
            let followed = reports.iter().filter(|report| {
                report.leader == Some(leader.node) && report.ballot == leader.ballot
            });
            (followed.count() > usize::from(self.founders) / 2).then_some(leader.node)
        })
    }

    /// A replica that does not lead, and is not in `not`.
    pub fn follower(&self, not: &[u16]) -> u16 {
        let leader = self.leader();
        let mut nodes = 1..=self.founders;
        nodes.find(|node| *node != leader && !not.contains(node)).expect("there are three replicas")
    }

    /// Waits until all founders have applied the same slots with the same result.
    pub fn converged(&self) -> Report {
        self.wait("equal applied_slot and digest on all replicas", || {
            let reports: Vec<Report> = self.reports().into_iter().flatten().collect();
            let first = reports.first()?;
            let same = reports.iter().all(|report| {
                report.applied_slot == first.applied_slot
                    && report.applied_slot == report.commit_slot
                    && report.digest == first.digest
                    && report.leader.is_some()
            });
            (same && reports.len() == usize::from(self.founders)).then(|| first.clone())
        })
    }

    /// Waits until `found` finds something.
    pub fn wait<T>(&self, what: &str, found: impl FnMut() -> Option<T>) -> T {
        wait(what, PATIENCE, found)
    }

    /// Runs `quorate status` about this cluster.
    pub fn status(&self, json: bool) -> Output {
        let addresses = self.addresses().join(",");
        let mut arguments = vec!["status", "--addr", &addresses];
        if json {
            arguments.push("--json");
        }
        quorate(&arguments)
    }

    /// The ends of the replicas' logs.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for replica in &self.replicas {
            let logged = replica.logged();
            let lines: Vec<&str> = logged.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            let node = replica.config.replica.node;
            let _ = writeln!(text, "--- replica {node}, {}", replica.log.display());
            for line in tail {
                let _ = writeln!(text, "{line}");
            }
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let nodes = 1..=self.replicas.len() as u16;
            for report in nodes.filter_map(|node| self.report(node)) {
                eprintln!("{}", serde_json::to_string(&report).unwrap_or_default());
            }
            eprintln!("{}", self.logs());
        }
    }
}

/// The configuration of replica `node`: small segments, so that tests see many of them.
pub fn config(ports: &Ports, home: &Path, node: u16, durability: &str) -> Config {
    let members = (1..=3).map(|node| MemberConfig {
        node,
        peer: ports.peer(node),
        client: ports.client(node),
    });
    Config {
        replica: ReplicaConfig {
            node,
            directory: home.join("log"),
            durability: durability.into(),
            transport: "tcp".into(),
            followers: "active".into(),
            listen_peer: None,
            spin_us: 0,
            join: false,
            witness: false,
            segment_bytes: 16 << 20,
            priority: 100,
            protocol_max: None,
        },
        members: members.collect(),
        client: Default::default(),
        metrics: MetricsConfig { listen: None },
        timers: Default::default(),
        limits: Default::default(),
        rdma: Default::default(),
        checkpoints: Default::default(),
    }
}

/// Runs the program to its end.
pub fn quorate(arguments: &[&str]) -> Output {
    Command::new(QUORATE).args(arguments).stdin(Stdio::null()).output().expect("quorate runs")
}

/// Waits until `found` finds something, and fails the test if that takes longer than `patience`.
pub fn wait<T>(what: &str, patience: Duration, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(it) = found() {
            return it;
        }
        assert!(Instant::now() < deadline, "no {what} within {patience:?}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// A number from the environment, for longer runs.
pub fn environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}
