//! The configuration file of `quorate serve`: TOML, every key documented in `docs/configuration.md`,
//! unknown keys refused with the nearest known one named.

use quorate::{Address, MediumKind, NodeId, NodeOptions, PROTOCOL_FIRST, PROTOCOL_NEWEST};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This replica.
    pub replica: ReplicaConfig,
    /// All founding members, this replica included.
    #[serde(rename = "member")]
    pub members: Vec<MemberConfig>,
    /// The Redis front end.
    #[serde(default)]
    pub client: ClientConfig,
    /// The Prometheus endpoint.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// Timers of the protocol.
    #[serde(default)]
    pub timers: TimerConfig,
    /// Limits.
    #[serde(default)]
    pub limits: LimitConfig,
    /// The RDMA device, where the transport is `rdma`.
    #[serde(default, skip_serializing_if = "RdmaConfig::is_default")]
    pub rdma: RdmaConfig,
    /// Checkpoints, and how much of the log stays beside them.
    #[serde(default)]
    pub checkpoints: CheckpointConfig,
}

/// `[replica]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaConfig {
    /// The number of this replica, 1..=65535: one of the members.
    pub node: u16,
    /// Where the log lives.
    pub directory: PathBuf,
    /// `file`, `dax`, `emulated` or `memory`.
    #[serde(default = "default_durability")]
    pub durability: String,
    /// What carries the log between replicas: `tcp` or `rdma`.
    #[serde(default = "default_transport")]
    pub transport: String,
    /// `active`: a follower votes by what it wrote down. `passive`: also by what landed in its memory,
    /// without its processor; only with `transport = "rdma"` and `durability = "memory"`.
    #[serde(default = "default_followers", skip_serializing_if = "is_active")]
    pub followers: String,
    /// The address to listen on for peers, where it is not the member's own `peer` address.
    pub listen_peer: Option<String>,
    /// Microseconds that the replica's thread spins before it sleeps. 0 is right where replicas share
    /// cores with others; 20 to 50 where each has a core of its own and latency matters.
    #[serde(default)]
    pub spin_us: u64,
    /// This replica joins a cluster that is there, and waits until it is added (`quorate member add`).
    /// The members named are itself and some of that cluster.
    #[serde(default)]
    pub join: bool,
    /// This replica is a witness: it votes, and keeps no payloads and no state. It joins (`join`), and is
    /// added with `quorate member add --witness`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub witness: bool,
    /// Bytes of a log segment.
    #[serde(default = "default_segment_bytes")]
    pub segment_bytes: u64,
    /// A leader hands over to a replica of higher priority that keeps up.
    #[serde(default = "default_priority")]
    pub priority: u8,
    /// Claims to speak the protocol up to this version only, so that the cluster does not use what
    /// an older program does not know.
    pub protocol_max: Option<u16>,
}

/// `[[member]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    /// Its number.
    pub node: u16,
    /// `HOST:PORT` where the other replicas reach it.
    pub peer: String,
    /// `HOST:PORT` where clients reach it.
    pub client: String,
}

/// `[client]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientConfig {
    /// The address to listen on, where it is not the member's own `client` address.
    pub listen: Option<String>,
    /// What a follower does with commands: `forward` them, or `redirect` the client.
    pub on_follower: String,
    /// Connections at the most.
    pub connections_max: usize,
    /// The longest value in bytes.
    pub value_bytes_max: usize,
    /// Commands of one connection that are executed as one batch.
    pub batch_commands_max: usize,
    /// Threads of the front end; 0 for as many as there are cores, at most 4.
    pub threads: usize,
    /// A request without an outcome after this long gets an error.
    pub request_timeout_ms: u64,
}

/// A device's own retries take longer.
const STALL_MS_MIN: u64 = 50;

/// `[rdma]`: what is left out is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RdmaConfig {
    /// Name of the device.
    pub device: Option<String>,
    /// Its port, from 1.
    pub port: Option<u8>,
    /// Index of the port's GID.
    pub gid_index: Option<u8>,
    /// A lane goes over TCP when the peer's device has not answered for so long.
    pub stall_ms: u64,
}

impl Default for RdmaConfig {
    fn default() -> Self {
        Self { device: None, port: None, gid_index: None, stall_ms: 1000 }
    }
}

impl RdmaConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// `[metrics]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// `HOST:PORT` of the Prometheus endpoint; none for no endpoint.
    pub listen: Option<String>,
}

/// `[timers]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimerConfig {
    /// How often a replica shows that it lives.
    pub heartbeat_ms: u64,
    /// A leader unheard for this long may be replaced; at least three heartbeats.
    pub election_timeout_min_ms: u64,
    /// Waits for an election are drawn from min to max.
    pub election_timeout_max_ms: u64,
    /// How long a leader's lease lasts at most, so that it answers reads without asking; 0: no leases.
    pub lease_ms: u64,
    /// How far the rate of any replica's clock may be off, in millionths; only leases need it.
    pub clock_drift_ppm: u32,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitConfig {
    /// A batch takes no further submission beyond this many bytes.
    pub batch_bytes_max: usize,
    /// Slots in flight.
    pub window_slots_max: u64,
    /// Payload bytes in flight.
    pub window_bytes_max: usize,
    /// Payload bytes kept in memory for followers that are behind.
    pub cache_bytes_max: usize,
    /// Bytes of the ring that each peer may write into.
    pub ring_bytes: usize,
}

/// `[checkpoints]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// One is taken after the log wrote so many bytes; 0 for never.
    pub log_bytes: u64,
    /// One is taken after so many slots were applied; 0 for never.
    pub slots: u64,
    /// One is taken after so many seconds, if anything was applied; 0 for never.
    pub interval_s: u64,
    /// How many are kept.
    pub keep: usize,
    /// Bytes of the log that stay for replicas a little behind.
    pub log_tail_bytes: u64,
    /// Bytes that checkpoints move in a second, at the most; 0 for no limit.
    pub bytes_per_second: u64,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        let options = NodeOptions::new(NodeId(1), Vec::new(), 0);
        Self {
            log_bytes: options.checkpoint_log_bytes,
            slots: options.checkpoint_slots,
            interval_s: options.checkpoint_interval.as_secs(),
            keep: options.checkpoints_kept,
            log_tail_bytes: options.log_tail_bytes,
            bytes_per_second: options.checkpoint_bytes_per_second,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
fn is_false(word: &bool) -> bool {
    !word
}

fn default_durability() -> String {
    "file".into()
}

/// What followers are where nothing is said.
#[must_use]
pub fn default_followers() -> String {
    "active".into()
}

pub(crate) fn is_active(followers: &str) -> bool {
    followers == "active"
}

fn default_transport() -> String {
    "tcp".into()
}

fn default_priority() -> u8 {
    100
}

fn default_segment_bytes() -> u64 {
    64 << 20
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            listen: None,
            on_follower: "forward".into(),
            connections_max: 10_000,
            value_bytes_max: 8 << 20,
            batch_commands_max: 1024,
            threads: 0,
            request_timeout_ms: 5_000,
        }
    }
}

impl Default for TimerConfig {
    fn default() -> Self {
        Self {
            heartbeat_ms: 25,
            election_timeout_min_ms: 200,
            election_timeout_max_ms: 400,
            lease_ms: 0,
            clock_drift_ppm: 1_000,
        }
    }
}

impl Default for LimitConfig {
    fn default() -> Self {
        let options = NodeOptions::new(NodeId(1), Vec::new(), 0);
        Self {
            batch_bytes_max: options.batch_bytes_max,
            window_slots_max: options.window_slots_max,
            window_bytes_max: options.window_bytes_max,
            cache_bytes_max: options.cache_bytes_max,
            ring_bytes: options.ring_bytes,
        }
    }
}

/// Why a configuration cannot be used. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {text}")]
    Text {
        /// Which file.
        path: PathBuf,
        /// What and where.
        text: String,
    },
    /// The keys contradict each other.
    #[error("{0}")]
    Contradiction(String),
}

/// Bytes of a command beside its value: key, options, framing.
const COMMAND_OVERHEAD_BYTES: usize = 256 << 10;

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let config =
            Self::parse(&text).map_err(|text| ConfigError::Text { path: path.into(), text })?;
        config.check()?;
        Ok(config)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// What is wrong, where, and the nearest known key if one is misspelt.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| with_suggestion(&error.to_string()))
    }

    /// Checks that the keys go together.
    ///
    /// # Errors
    /// [`ConfigError::Contradiction`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let contradiction = |text: String| Err(ConfigError::Contradiction(text));
        let node = self.replica.node;
        if self.member(node).is_none() {
            return contradiction(format!(
                "replica.node is {node}, but no [[member]] has that number"
            ));
        }
        if let Err(text) = self.replica.durability.parse::<MediumKind>() {
            return contradiction(format!("replica.durability: {text}"));
        }
        if let Err(text) = check_transport(&self.replica.transport) {
            return contradiction(format!("replica.transport: {text}"));
        }
        if let Err(text) = check_followers(&self.replica) {
            return contradiction(format!(
                "replica.followers = \"{}\": {text}",
                self.replica.followers
            ));
        }
        if !["forward", "redirect"].contains(&self.client.on_follower.as_str()) {
            return contradiction(format!(
                "client.on_follower = \"{}\": use \"forward\" or \"redirect\"",
                self.client.on_follower
            ));
        }
        if self.rdma.stall_ms < STALL_MS_MIN {
            return contradiction(format!(
                "rdma.stall_ms is {}: use {STALL_MS_MIN} or more",
                self.rdma.stall_ms
            ));
        }
        self.node_options().check().map_err(ConfigError::Contradiction)
    }

    /// The member with this number.
    #[must_use]
    pub fn member(&self, node: u16) -> Option<&MemberConfig> {
        self.members.iter().find(|member| member.node == node)
    }

    /// The medium, if the word for it is known.
    #[must_use]
    pub fn medium(&self) -> MediumKind {
        self.replica.durability.parse().unwrap_or(MediumKind::File)
    }

    /// What the replica is told; its seed is set by whoever starts it.
    #[must_use]
    pub fn node_options(&self) -> NodeOptions {
        let members = self.members.iter().map(|member| NodeId(member.node)).collect();
        let mut options = NodeOptions::new(NodeId(self.replica.node), members, 0);
        options.heartbeat_interval = Duration::from_millis(self.timers.heartbeat_ms);
        options.election_timeout_min = Duration::from_millis(self.timers.election_timeout_min_ms);
        options.election_timeout_max = Duration::from_millis(self.timers.election_timeout_max_ms);
        options.priority = self.replica.priority;
        let claimed = self.replica.protocol_max.unwrap_or(PROTOCOL_NEWEST);
        options.protocol = claimed.clamp(PROTOCOL_FIRST, PROTOCOL_NEWEST);
        options.lease = Duration::from_millis(self.timers.lease_ms);
        options.clock_drift_ppm = self.timers.clock_drift_ppm;
        options.request_timeout = Duration::from_millis(self.client.request_timeout_ms);
        options.command_bytes_max = self.client.value_bytes_max + COMMAND_OVERHEAD_BYTES;
        options.batch_bytes_max = self.limits.batch_bytes_max;
        options.window_slots_max = self.limits.window_slots_max;
        options.window_bytes_max = self.limits.window_bytes_max;
        options.cache_bytes_max = self.limits.cache_bytes_max;
        options.ring_bytes = self.limits.ring_bytes;
        options.spin = Duration::from_micros(self.replica.spin_us);
        options.join = self.replica.join;
        options.witness = self.replica.witness;
        options.passive = self.replica.followers == "passive";
        let address = |member: &MemberConfig| Address {
            node: NodeId(member.node),
            peer: member.peer.clone(),
            client: member.client.clone(),
        };
        options.addresses = self.members.iter().map(address).collect();
        options.checkpoint_log_bytes = self.checkpoints.log_bytes;
        options.checkpoint_slots = self.checkpoints.slots;
        options.checkpoint_interval = Duration::from_secs(self.checkpoints.interval_s);
        options.checkpoints_kept = self.checkpoints.keep;
        options.log_tail_bytes = self.checkpoints.log_tail_bytes;
        options.checkpoint_bytes_per_second = self.checkpoints.bytes_per_second;
        options
    }
}

/// Whether this build knows the transport.
///
/// # Errors
/// What it knows instead.
pub fn check_transport(transport: &str) -> Result<(), String> {
    match transport {
        "tcp" => Ok(()),
        "rdma" if cfg!(feature = "rdma") => Ok(()),
        "rdma" => {
            Err("this build is without RDMA: build it with the feature `rdma`, or use tcp".into())
        }
        other => Err(format!("'{other}' is no transport: use tcp or rdma")),
    }
}

/// Whether followers can be as they are asked to be, with this transport and this durability.
///
/// # Errors
/// What is in the way, and what to do.
pub fn check_followers(replica: &ReplicaConfig) -> Result<(), String> {
    followers_in(replica, cfg!(feature = "passive"))
}

/// In a build with passive followers, or without.
fn followers_in(replica: &ReplicaConfig, built: bool) -> Result<(), String> {
    match replica.followers.as_str() {
        "active" => return Ok(()),
        "passive" => {}
        _ => return Err("use \"active\" or \"passive\"".into()),
    }
    if !built {
        return Err(
            "this build is without passive followers: build it with the feature `passive` (cargo \
                    build --release -p quorate-server --features passive), or use \"active\""
                .into(),
        );
    }
    if replica.transport != "rdma" {
        return Err(
            "votes that a follower's processor does not cast are one-sided writes: they need \
                    transport = \"rdma\". Set it, or use \"active\""
                .into(),
        );
    }
    let why = match replica.durability.as_str() {
        "memory" => return Ok(()),
        "dax" => "memory on a DAX file system cannot be registered with the device",
        "emulated" => "what it acknowledges survives the death of all processes",
        _ => "what it acknowledges survives power failure",
    };
    Err(format!(
        "durability = \"{}\" cannot be kept so: {why}, and what only landed in a follower's memory does not. \
         Use durability = \"memory\", or \"active\"",
        replica.durability
    ))
}

/// Adds the nearest known key to a message about an unknown one.
fn with_suggestion(message: &str) -> String {
    let quoted: Vec<&str> = message
        .find("unknown field")
        .map(|at| message[at..].split('`').skip(1).step_by(2).collect())
        .unwrap_or_default();
    let Some((unknown, known)) = quoted.split_first() else { return message.to_string() };
    let distance = |key: &&&str| strsim::damerau_levenshtein(unknown, key);
    match known.iter().min_by_key(distance) {
        Some(nearest) => format!("{}\ndid you mean `{nearest}`?", message.trim_end()),
        None => message.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        [replica]
        node = 1
        directory = "data"
        [[member]]
        node = 1
        peer = "127.0.0.1:7101"
        client = "127.0.0.1:7001"
    "#;

    #[test]
    fn a_minimal_file_gets_all_defaults_and_survives_a_round_trip() {
        let config = Config::parse(MINIMAL).unwrap();
        config.check().unwrap();
        assert_eq!(config.medium(), MediumKind::File);
        assert_eq!(config.client.value_bytes_max, 8 << 20);
        let text = toml::to_string(&config).unwrap();
        assert_eq!(Config::parse(&text).unwrap(), config);
    }

    #[test]
    fn a_misspelt_key_is_refused_with_the_nearest_one() {
        let text = MINIMAL.replace("directory", "directroy");
        let message = Config::parse(&text).unwrap_err();
        assert!(message.contains("did you mean `directory`?"), "{message}");
        let text = format!("{MINIMAL}\n[timers]\nheartbeat = 3\n");
        let message = Config::parse(&text).unwrap_err();
        assert!(message.contains("did you mean `heartbeat_ms`?"), "{message}");
    }

    #[test]
    fn contradictions_are_named() {
        let of = |text: &str| Config::parse(text).unwrap().check().unwrap_err().to_string();
        assert!(of(&MINIMAL.replacen("node = 1", "node = 2", 1)).contains("replica.node is 2"));
        let text = MINIMAL.replace("directory =", "durability = \"disk\"\ndirectory =");
        assert!(of(&text).contains("'disk'"));
        let text = format!("{MINIMAL}\n[timers]\nheartbeat_ms = 100\n");
        assert!(of(&text).contains("three heartbeats"));
        let text = format!("{MINIMAL}\n[client]\non_follower = \"drop\"\n");
        assert!(of(&text).contains("redirect"));
        let text = format!("{MINIMAL}\n[rdma]\nstall_ms = 49\n");
        assert!(of(&text).contains("rdma.stall_ms is 49"));
        let text = MINIMAL.replace("directory =", "followers = \"lazy\"\ndirectory =");
        assert!(of(&text).contains("use \"active\" or \"passive\""));
    }

    #[test]
    fn passive_followers_take_rdma_and_a_log_that_promises_nothing() {
        let passive = |transport: &str, durability: &str| {
            let keys = format!(
                "followers = \"passive\"\ntransport = \"{transport}\"\ndurability = \"{durability}\"\ndirectory ="
            );
            Config::parse(&MINIMAL.replace("directory =", &keys)).unwrap()
        };
        let config = passive("rdma", "memory");
        assert_eq!(followers_in(&config.replica, true), Ok(()));
        assert!(config.node_options().passive);
        let text = toml::to_string(&config).unwrap();
        assert_eq!(Config::parse(&text).unwrap(), config);
        assert!(!Config::parse(MINIMAL).unwrap().node_options().passive);
        let refused = followers_in(&passive("tcp", "memory").replica, true).unwrap_err();
        assert!(refused.contains("transport = \"rdma\""), "{refused}");
        for (durability, why) in [
            ("file", "survives power failure"),
            ("emulated", "survives the death of all processes"),
            ("dax", "cannot be registered"),
        ] {
            let refused = followers_in(&passive("rdma", durability).replica, true).unwrap_err();
            let told = refused.contains(why) && refused.contains("durability = \"memory\"");
            assert!(told, "{durability}: {refused}");
        }
        let refused = followers_in(&config.replica, false).unwrap_err();
        assert!(refused.contains("--features passive"), "{refused}");
        assert_eq!(config.check().is_ok(), cfg!(feature = "passive"));
    }

    #[test]
    fn documented_example_parses() {
        let page = include_str!("../../docs/configuration.md");
        let example = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let config = Config::parse(example).unwrap();
        config.check().unwrap();
        // What is said to be a default is the default.
        assert_eq!(config.timers, TimerConfig::default());
        assert_eq!(config.limits, LimitConfig::default());
        assert!(config.rdma.device.is_some() && config.rdma.gid_index.is_some());
        let listen = config.client.listen.clone();
        assert!(listen.is_some() && config.replica.listen_peer.is_some());
        assert_eq!(config.client, ClientConfig { listen, ..ClientConfig::default() });
        let minimal = Config::parse(MINIMAL).unwrap().replica;
        let ReplicaConfig { directory, listen_peer, .. } = config.replica.clone();
        assert_eq!(config.replica, ReplicaConfig { directory, listen_peer, ..minimal });
        // No key is missing, neither in the example nor in the tables.
        for line in toml::to_string(&config).unwrap().lines() {
            let Some((key, _)) = line.split_once(" = ") else { continue };
            let in_example = example.lines().any(|line| line.starts_with(&format!("{key} = ")));
            assert!(in_example, "`{key}` is not in the example");
            assert!(page.contains(&format!("| `{key}` |")), "`{key}` is in no table");
        }
    }
}
