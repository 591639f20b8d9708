//! `quorate cluster`: a whole cluster on this machine, one process for each replica.

use crate::cli::ClusterArgs;
use crate::config::{
    self, Config, MemberConfig, MetricsConfig, ReplicaConfig, TimerConfig, check_followers,
    check_transport,
};
use crate::status::{self, Answer};
use anyhow::{Context, Result, bail};
use quorate::MediumKind;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The status line is renewed this often.
const RENEW_EVERY: Duration = Duration::from_millis(250);
/// Replicas that were told to stop get this long before they are killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
const MANIFEST: &str = "cluster.toml";

/// What a folder says of the cluster in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// How many replicas.
    pub replicas: u16,
    /// The first client port.
    pub base_port: u16,
    /// `file`, `dax`, `emulated` or `memory`.
    pub durability: String,
    /// What carries the traffic between replicas.
    pub transport: String,
    /// `active` or `passive`.
    #[serde(default = "config::default_followers", skip_serializing_if = "config::is_active")]
    pub followers: String,
    /// The protocol's timers.
    #[serde(default)]
    pub timers: TimerConfig,
}

impl Manifest {
    /// Reads the manifest of `directory`; none if there is no cluster.
    ///
    /// # Errors
    /// When there is one and it cannot be read.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(MANIFEST);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        toml::from_str(&text).map(Some).with_context(|| {
            format!("{} is no description of a cluster: choose another folder", path.display())
        })
    }

    fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(MANIFEST);
        let text = toml::to_string(self).context("the description of the cluster")?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Where clients reach replica `node`.
    #[must_use]
    pub fn client_address(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.base_port + node - 1)
    }

    fn peer_address(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.base_port + 99 + node)
    }

    fn metrics_address(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.base_port + 199 + node)
    }

    /// The configuration of replica `node`.
    #[must_use]
    pub fn config(&self, directory: &Path, node: u16) -> Config {
        let members = (1..=self.replicas).map(|node| MemberConfig {
            node,
            peer: self.peer_address(node),
            client: self.client_address(node),
        });
        Config {
            replica: ReplicaConfig {
                node,
                directory: directory.join(format!("replica-{node}")).join("log"),
                durability: self.durability.clone(),
                transport: self.transport.clone(),
                followers: self.followers.clone(),
                listen_peer: None,
                spin_us: 0,
                join: false,
                witness: false,
                segment_bytes: 64 << 20,
                priority: 100,
                protocol_max: None,
            },
            members: members.collect(),
            client: Default::default(),
            metrics: MetricsConfig { listen: Some(self.metrics_address(node)) },
            timers: self.timers.clone(),
            limits: Default::default(),
            rdma: Default::default(),
            checkpoints: Default::default(),
        }
    }
}

/// The folder asked for, or the default one under the user's data directory.
///
/// # Errors
/// When there is no home to put it in.
pub fn directory(asked: Option<&Path>) -> Result<PathBuf> {
    if let Some(asked) = asked {
        // Replicas run with their own idea of where they are: give them the whole path.
        return std::path::absolute(asked).context("the folder's name");
    }
    // XDG Base Directory Specification: the user's data, or its default under the home directory.
    let named = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = named("XDG_DATA_HOME")
        .or_else(|| named("HOME").map(|home| home.join(".local/share")))
        .context("there is no home directory to put the data in: name a folder with --dir DIR")?;
    Ok(data.join("quorate").join("cluster"))
}

/// One replica's process.
#[derive(Debug)]
pub struct ReplicaProcess {
    /// Its number.
    pub node: u16,
    /// Its configuration file.
    pub config: PathBuf,
    /// What it logs.
    pub log: PathBuf,
    child: Child,
    ended: Option<ExitStatus>,
}

impl ReplicaProcess {
    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it ended since the last call.
    fn ended_now(&mut self) -> Option<ExitStatus> {
        if self.ended.is_some() {
            return None;
        }
        self.ended = self.child.try_wait().ok().flatten();
        self.ended
    }
}

/// The processes of a cluster. Dropping it stops them.
#[derive(Debug)]
pub struct ClusterProcesses {
    /// In order of their numbers.
    pub replicas: Vec<ReplicaProcess>,
}

impl ClusterProcesses {
    /// Writes the configurations and starts every replica.
    ///
    /// # Errors
    /// A port in use, a folder that cannot be written, …
    pub fn start(manifest: &Manifest, directory: &Path, log_filter: &str) -> Result<Self> {
        check_ports(manifest)?;
        let mut replicas = Vec::new();
        for node in 1..=manifest.replicas {
            let home = directory.join(format!("replica-{node}"));
            fs::create_dir_all(&home)
                .with_context(|| format!("cannot create the folder {}", home.display()))?;
            let config = home.join("replica.toml");
            let text =
                toml::to_string(&manifest.config(directory, node)).context("a configuration")?;
            fs::write(&config, text)
                .with_context(|| format!("cannot write {}", config.display()))?;
            let log = home.join("replica.log");
            replicas.push(spawn(node, config, log, log_filter)?);
        }
        Ok(Self { replicas })
    }

    /// Kills a replica where it stands, as `kill -9` does.
    ///
    /// # Errors
    /// When the system does not let us.
    pub fn kill(&mut self, node: u16) -> Result<()> {
        let replica = &mut self.replicas[usize::from(node) - 1];
        replica.child.kill().context("killing a replica")?;
        replica.ended = Some(replica.child.wait().context("waiting for its end")?);
        Ok(())
    }

    /// Starts a replica that ended again.
    ///
    /// # Errors
    /// As [`ClusterProcesses::start`].
    pub fn restart(&mut self, node: u16, log_filter: &str) -> Result<()> {
        let place = usize::from(node) - 1;
        let (config, log) = (self.replicas[place].config.clone(), self.replicas[place].log.clone());
        self.replicas[place] = spawn(node, config, log, log_filter)?;
        Ok(())
    }

    /// Asks every replica to stop, waits, and kills those that do not.
    pub fn stop(&mut self) {
        for replica in &mut self.replicas {
            // The end of its standard input tells a replica to stop.
            drop(replica.child.stdin.take());
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        for replica in &mut self.replicas {
            while replica.ended.is_none() {
                replica.ended_now();
                if replica.ended.is_none() && Instant::now() > deadline {
                    // It may have ended this moment, which is as good.
                    let _ = replica.child.kill();
                    replica.ended = replica.child.wait().ok();
                    break;
                }
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
    }
}

impl Drop for ClusterProcesses {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(node: u16, config: PathBuf, log: PathBuf, log_filter: &str) -> Result<ReplicaProcess> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let output = File::options().create(true).append(true).open(&log);
    let output = output.with_context(|| format!("cannot write {}", log.display()))?;
    let child = Command::new(program)
        .args(["--log", log_filter, "serve", "--stop-with-stdin", "--config"])
        .arg(&config)
        .stdin(Stdio::piped())
        .stdout(output.try_clone().context("a second handle of the log file")?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("cannot start replica {node}"))?;
    Ok(ReplicaProcess { node, config, log, child, ended: None })
}

fn check_ports(manifest: &Manifest) -> Result<()> {
    for node in 1..=manifest.replicas {
        for (what, address) in [
            ("clients", manifest.client_address(node)),
            ("peers", manifest.peer_address(node)),
            ("metrics", manifest.metrics_address(node)),
        ] {
            if let Err(error) = std::net::TcpListener::bind(&address) {
                bail!(
                    "replica {node} cannot listen for {what} on {address}: {error}. Stop what uses \
                     the port, or choose others with --base-port"
                );
            }
        }
    }
    Ok(())
}

/// What the command line and the folder together say.
fn manifest(args: &ClusterArgs, directory: &Path) -> Result<Manifest> {
    check_transport(&args.transport)
        .map_err(|text| anyhow::anyhow!("--transport {}: {text}", args.transport))?;
    if let Some(asked) = &args.durability {
        asked.parse::<MediumKind>().map_err(anyhow::Error::msg)?;
    }
    let before = Manifest::read(directory)?;
    if let Some(before) = &before {
        if before.replicas != args.replicas {
            bail!(
                "the cluster in {} has {} replicas, not {}: start it with --replicas {}, or choose \
                 another folder with --dir",
                directory.display(),
                before.replicas,
                args.replicas,
                before.replicas
            );
        }
        if let Some(asked) = args.durability.as_ref().filter(|asked| **asked != before.durability) {
            bail!(
                "the cluster in {} keeps its logs on `{}`, not `{asked}`: leave --durability out, or \
                 choose another folder with --dir",
                directory.display(),
                before.durability
            );
        }
    }
    let durability = args.durability.clone().or(before.map(|before| before.durability));
    let manifest = Manifest {
        replicas: args.replicas,
        base_port: args.base_port,
        durability: durability.unwrap_or_else(|| "file".into()),
        transport: args.transport.clone(),
        followers: args.followers.clone(),
        timers: args.timers.config(),
    };
    check_followers(&manifest.config(directory, 1).replica)
        .map_err(|text| anyhow::anyhow!("--followers {}: {text}", args.followers))?;
    Ok(manifest)
}

/// Runs the command until it is interrupted.
///
/// # Errors
/// What kept the cluster from starting, with what to do.
pub fn run(args: &ClusterArgs, log_filter: &str) -> Result<ExitCode> {
    let directory = directory(args.dir.as_deref())?;
    let manifest = manifest(args, &directory)?;
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create the folder {}", directory.display()))?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Release))
        .context("cannot catch Ctrl-C")?;
    let mut cluster = ClusterProcesses::start(&manifest, &directory, log_filter)?;
    manifest.write(&directory)?;
    let medium: MediumKind = manifest.durability.parse().map_err(anyhow::Error::msg)?;
    println!("{} replicas, data in {}", manifest.replicas, directory.display());
    for replica in &cluster.replicas {
        println!(
            "replica {}: clients {}  peers {}  metrics http://{}/metrics  process {}",
            replica.node,
            manifest.client_address(replica.node),
            manifest.peer_address(replica.node),
            manifest.metrics_address(replica.node),
            replica.id(),
        );
    }
    println!("an acknowledged write survives: {}", medium.durability());
    println!("try: redis-cli -p {} set hello world   (Ctrl-C stops all)", manifest.base_port);
    watch(&manifest, &mut cluster, &interrupted);
    println!("\nstopping");
    cluster.stop();
    Ok(ExitCode::SUCCESS)
}

/// Keeps the status line current until Ctrl-C, or until no replica is left.
fn watch(manifest: &Manifest, cluster: &mut ClusterProcesses, interrupted: &AtomicBool) {
    let addresses: Vec<_> =
        (1..=manifest.replicas).map(|node| manifest.client_address(node)).collect();
    let mut line = StatusLine { terminal: std::io::stdout().is_terminal(), shown: String::new() };
    while !interrupted.load(Ordering::Acquire) {
        for replica in &mut cluster.replicas {
            if let Some(status) = replica.ended_now() {
                line.interrupt(&format!(
                    "replica {} (process {}) ended: {status}. {}\n  start it again with: {} serve \
                     --config {}",
                    replica.node,
                    replica.id(),
                    last_error(&replica.log),
                    std::env::current_exe().unwrap_or_else(|_| "quorate".into()).display(),
                    replica.config.display()
                ));
            }
        }
        let answers = status::ask(&addresses);
        let reachable = answers.iter().any(|answer| answer.report.is_ok());
        if !reachable && cluster.replicas.iter().all(|replica| replica.ended.is_some()) {
            line.interrupt("no replica is left");
            return;
        }
        line.show(&summary(&answers));
        std::thread::park_timeout(RENEW_EVERY);
    }
}

/// What the status line says.
fn summary(answers: &[Answer]) -> String {
    let reports: Vec<_> = answers.iter().filter_map(|answer| answer.report.as_ref().ok()).collect();
    let up = reports.len();
    let leader = reports.iter().find(|report| report.role == "leader");
    let leads = match leader {
        Some(leader) => format!("replica {} leads under ballot {}", leader.node, leader.ballot),
        None => "no leader".to_string(),
    };
    let newest = reports.iter().map(|report| report.applied_slot).max().unwrap_or(0);
    let oldest = reports.iter().map(|report| report.applied_slot).min().unwrap_or(0);
    let trouble = reports.iter().find(|report| !report.trouble.is_empty());
    let trouble = trouble.map_or_else(String::new, |report| {
        format!(" | replica {}: {}", report.node, report.trouble)
    });
    format!("{up}/{} up | {leads} | applied {oldest}..{newest}{trouble}", answers.len())
}

/// One line that is written over itself on a terminal, and only when it changed elsewhere.
struct StatusLine {
    terminal: bool,
    shown: String,
}

impl StatusLine {
    fn show(&mut self, text: &str) {
        // Slots move all the time; in a file only what an operator would act on is worth a line.
        let essence = |text: &str| text.split(" | applied").next().unwrap_or_default().to_string();
        if self.terminal {
            print!("\r\x1b[K{text}");
        } else if essence(text) != essence(&self.shown) {
            println!("{text}");
        }
        self.shown = text.to_string();
        // A terminal that is gone ends us by its signal.
        let _ = std::io::stdout().flush();
    }

    fn interrupt(&mut self, text: &str) {
        if self.terminal {
            print!("\r\x1b[K");
        }
        println!("{text}");
        self.shown.clear();
    }
}

/// The last thing that a replica's log says, if it is an error.
fn last_error(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rev().take(20).find(|line| line.starts_with("error:"));
    last.map_or_else(|| format!("its log is {}", log.display()), ToString::to_string)
}
