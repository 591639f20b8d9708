//! The language of the scripts: one command a line, its words apart by spaces.
//!
//! | command | what it does |
//! | --- | --- |
//! | `cluster N [order=3,1,2] [seed=S] [cache=B] [catch-up=B] [window=S] [record=B] [rows=R] [lease=T] [drift=PPM] [quiet=BEATS] [prefers=N] [witnesses=K copies=C] [spares=K] [spare-witnesses=K]` | a new cluster of N voters (see [`Options`]) |
//! | `run 500ms` | time passes, everything is delivered at once |
//! | `tick 50ms [1 2]` | time passes, only these notice (all, if none is named), nothing is delivered |
//! | `settle` | delivers until nothing is in flight |
//! | `deliver 1 2 [Kind\|accept\|row]` | delivers all of 1 to 2, or the next of that kind; `deliver all` delivers what is in flight now |
//! | `propose 1 a b`, `fill 1 500`, `read 2` | client requests |
//! | `members 1 1,2,4 [learners=5] [witnesses=6 copies=2] [quorums=3/2] [readmit=4]` | a change of members (`cluster 3 spares=2` has replicas 4 and 5) |
//! | `transfer 1 [2]`, `unwilling 1`, `willing 1` | leadership goes to 2, or to whoever is best; a replica may not lead, and may again; `distrust 1`: its clock looked wrong |
//! | `hold-persist 2`, `persist 2 [K]`, `release-persist 2` | durability by hand |
//! | `crash 1`, `restart 1 [commit=S]`, `wipe 1`, `poison 1`, `pause 1`, `resume 1` | processes and disks |
//! | `disconnect 1 2`, `connect 1 2`, `reset 1 2`, `isolate 1 [2]` (each alone), `heal`, `links 1-2 2-3`, `partition 1 2 \| 3` | links, noticed by both ends |
//! | `trim 2 s5` | the log of 2 gives entries from s5 on; there is no checkpoint in a script |
//! | `stall 1 2`, `unstall 1 2`, `stall-all 1`, `unstall-all 1` | one-way (or both-way) cuts that nobody notices |
//! | `drop 1 2 Kind`, `dup 1 2 Kind`, `delay 1 2 Kind`, `ghost 1 2` | one control message is lost, doubled, moved behind all others, comes back from an old incarnation |
//! | `inject 1 2 accept b1.1 s2 a b [commit s1]`, `inject 1 2 Prepare b1.1 s1`, `... Nack b1.1 b2.2`, `... PreVote b1.1 s0`, `... PreVoteReply b1.1 granted\|refused b0.0`, `... Promise b1.1 s1 s0 s3@b0.2`, `... Behind b1.1 s5 s4`, `... Values b1.1 s2 a@b0.2`, `... Fetch b1.1 s1 s2`, `... ReadIndexReply 1 s1`, `... CatchUpReply s1 s2 a@b1.1 b@b1.1`, `... row b1.1 b1.1 s2 s1 [leading]` | hand-made messages |
//! | `state`, `log`, `queue`, `chosen`, `configurations`, `wants` | what is; the last: who needs a checkpoint |
//! | `quietly COMMAND` | the same with news only |

use super::cluster::{Cluster, Options, value_of};
use super::network::{InFlight, Lane};
use super::show;
use quorate_consensus::{
    Accept, Ballot, Change, Entry, Incarnation, Message, Nanos, NodeId, QuorumSizes, Row, RowFlags,
    Run, Slot, Value,
};

/// Runs the commands of one script file on one cluster.
#[derive(Debug)]
pub struct Interpreter {
    cluster: Cluster,
    failed: bool,
}

impl Default for Interpreter {
    fn default() -> Self {
        Self { cluster: Cluster::new(&Options::new(3)), failed: false }
    }
}

type Outcome = Result<(), String>;

impl Interpreter {
    /// Carries out one line. Returns what it printed.
    pub fn execute(&mut self, line: &str) -> Vec<String> {
        let (quiet, line) = match line.strip_prefix("quietly ") {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        self.cluster.set_chatty(!quiet);
        let mut words = line.split_whitespace();
        let command = words.next().unwrap_or_default();
        let arguments: Vec<&str> = words.collect();
        let outcome = self.dispatch(command, &arguments);
        let mut printed = self.cluster.take_trace();
        if let Err(what) = outcome {
            self.failed = true;
            printed.push(format!("ERROR in `{line}`: {what}"));
        }
        for violation in self.cluster.take_violations() {
            self.failed = true;
            printed.push(format!("VIOLATION {violation}"));
        }
        printed
    }

    /// Whether a command was wrong or an invariant broke: no expected output excuses either.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.failed
    }

    fn dispatch(&mut self, command: &str, arguments: &[&str]) -> Outcome {
        match command {
            "cluster" => self.new_cluster(arguments),
            "run" | "tick" | "settle" | "deliver" => self.progress(command, arguments),
            "propose" | "fill" | "read" => self.request(command, arguments),
            "members" => self.members(arguments),
            "hold-persist" | "persist" | "release-persist" => self.durability(command, arguments),
            "transfer" | "unwilling" | "willing" | "distrust" => {
                self.leadership(command, arguments)
            }
            "crash" | "restart" | "wipe" | "damage" | "trim" | "poison" | "pause" | "resume" => {
                self.process(command, arguments)
            }
            "disconnect" | "connect" | "reset" | "isolate" | "heal" | "links" | "partition" => {
                self.links(command, arguments)
            }
            "stall" | "unstall" | "stall-all" | "unstall-all" => self.stalls(command, arguments),
            "drop" | "dup" | "delay" | "ghost" => self.meddle(command, arguments),
            "inject" => self.inject(arguments),
            "state" | "log" | "queue" | "chosen" | "configurations" | "wants" => {
                self.print(command);
                Ok(())
            }
            _ => Err("no such command".to_owned()),
        }
    }

    fn new_cluster(&mut self, arguments: &[&str]) -> Outcome {
        let (count, settings) = arguments.split_first().ok_or("how many nodes?")?;
        let mut options = Options::new(number(count)?);
        for setting in settings {
            let (name, value) = setting.split_once('=').ok_or("a setting is name=value")?;
            match name {
                "order" => options.order = value.split(',').map(node).collect::<Result<_, _>>()?,
                "seed" => options.seed = Some(number(value)?),
                "cache" => options.cache_bytes_max = number(value)?,
                "catch-up" => options.catch_up_bytes = number(value)?,
                "window" => options.window_slots_max = number(value)?,
                "prefers" => options.prefers = Some(node(value)?),
                "lease" => options.lease = duration(value)?,
                "quiet" => options.quiet_after = number(value)?,
                "drift" => options.clock_drift_ppm = number(value)?,
                "rows" => options.rows_max = number(value)?,
                "spares" => options.spares = number(value)?,
                "witnesses" => options.witnesses = number(value)?,
                "spare-witnesses" => options.spare_witnesses = number(value)?,
                "copies" => options.copies = number(value)?,
                "record" => options.record_bytes = number(value)?,
                _ => return Err(format!("no setting is named {name}")),
            }
        }
        self.cluster = Cluster::new(&options);
        Ok(())
    }

    fn progress(&mut self, command: &str, arguments: &[&str]) -> Outcome {
        match (command, arguments) {
            ("settle", []) => self.cluster.settle(),
            ("run", [time]) => self.cluster.run(duration(time)?),
            ("tick", [time, nodes @ ..]) => {
                let mut nodes = all_nodes(nodes)?;
                if nodes.is_empty() {
                    nodes = self.cluster.nodes();
                }
                self.cluster.tick(duration(time)?, &nodes);
            }
            ("deliver", ["all"]) => {
                let mut now: Vec<_> = Vec::new();
                for (from, to) in self.cluster.network().pairs() {
                    now.extend(self.in_flight(from, to));
                }
                now.sort_unstable();
                for (_, from, to, lane) in now {
                    self.cluster.deliver(from, to, lane);
                }
            }
            ("deliver", [from, to]) => {
                let mut now = self.in_flight(node(from)?, node(to)?);
                now.sort_unstable();
                for (_, from, to, lane) in now {
                    self.cluster.deliver(from, to, lane);
                }
            }
            ("deliver", [from, to, kind]) => self.deliver_one(node(from)?, node(to)?, kind)?,
            _ => return Err("wrong arguments".to_owned()),
        }
        Ok(())
    }

    fn in_flight(&self, from: NodeId, to: NodeId) -> Vec<(u64, NodeId, NodeId, Lane)> {
        let Some(lanes) = self.cluster.network().lanes(from, to) else { return Vec::new() };
        if lanes.stalled {
            return Vec::new();
        }
        let control = lanes.control.iter().map(|queued| (queued.order, from, to, Lane::Control));
        let records = lanes.records.iter().map(|queued| (queued.order, from, to, Lane::Records));
        let row = lanes.rows.iter().map(|queued| (queued.order, from, to, Lane::Row));
        control.chain(records).chain(row).collect()
    }

    fn deliver_one(&mut self, from: NodeId, to: NodeId, kind: &str) -> Outcome {
        let lane = match kind {
            "accept" => Lane::Records,
            "row" => Lane::Row,
            _ => {
                let lanes = self.cluster.network().lanes(from, to).ok_or("no such pair")?;
                let next = lanes.control.front().ok_or("nothing is in flight")?;
                if show::kind(&next.item) != kind {
                    return Err(format!("the next message is a {}", show::kind(&next.item)));
                }
                Lane::Control
            }
        };
        if self.cluster.deliver(from, to, lane) { Ok(()) } else { Err("nothing there".to_owned()) }
    }

    fn request(&mut self, command: &str, arguments: &[&str]) -> Outcome {
        let (at, values) = arguments.split_first().ok_or("at which node?")?;
        let at = node(at)?;
        if command == "read" {
            return self.cluster.read(at).map(|_| ()).ok_or_else(|| "it does not run".to_owned());
        }
        if command == "fill" {
            let count: u64 = number(values.first().ok_or("how many?")?)?;
            for _ in 0..count {
                self.cluster.propose(at, "f");
            }
            return Ok(());
        }
        for value in values {
            self.cluster.propose(at, value);
        }
        Ok(())
    }

    fn members(&mut self, arguments: &[&str]) -> Outcome {
        let [at, voters, rest @ ..] = arguments else { return Err("where, and who?".to_owned()) };
        let list = |text: &str| text.split(',').map(node).collect::<Result<Vec<_>, _>>();
        let mut change = Change { voters: list(voters)?, ..Change::default() };
        for setting in rest {
            match setting.split_once('=').ok_or("a setting is name=value")? {
                ("learners", value) => change.learners = list(value)?,
                ("witnesses", value) => change.witnesses = list(value)?,
                ("copies", value) => change.copies = Some(number(value)?),
                ("readmit", value) => change.readmit = list(value)?,
                ("quorums", value) => {
                    let (one, two) = value.split_once('/').ok_or("quorums are 3/2")?;
                    let (phase_one, phase_two) = (number(one)?, number(two)?);
                    change.quorums = Some(QuorumSizes { phase_one, phase_two });
                }
                (name, _) => return Err(format!("no setting is named {name}")),
            }
        }
        self.cluster.change(node(at)?, &change);
        Ok(())
    }

    fn leadership(&mut self, command: &str, arguments: &[&str]) -> Outcome {
        let (at, rest) = arguments.split_first().ok_or("at which node?")?;
        let at = node(at)?;
        let to = rest.first().map(|word| node(word)).transpose()?;
        let mut refused = None;
        self.cluster.event(at, |core, now| match command {
            "transfer" => refused = core.transfer(now, to).err(),
            "distrust" => core.distrust_clocks(),
            _ => core.set_may_lead(command == "willing"),
        });
        if let Some(refused) = refused {
            self.cluster.note(format!("{at:?} refuses: {refused}"));
        }
        Ok(())
    }

    fn durability(&mut self, command: &str, arguments: &[&str]) -> Outcome {
        let (at, rest) = arguments.split_first().ok_or("at which node?")?;
        let at = node(at)?;
        let replica = self.cluster.replica_mut(at).ok_or("no such node")?;
        match command {
            "hold-persist" => replica.holds_persists = true,
            "release-persist" => {
                replica.holds_persists = false;
                self.cluster.persist(at, usize::MAX);
            }
            _ => {
                let count = rest.first().map_or(Ok(usize::MAX), |count| number(count))?;
                self.cluster.persist(at, count);
            }
        }
        Ok(())
    }

    fn process(&mut self, command: &str, arguments: &[&str]) -> Outcome {
        let (at, rest) = arguments.split_first().ok_or("which node?")?;
        let at = node(at)?;
        let replica = self.cluster.replica_mut(at).ok_or("no such node")?;
        match command {
            "crash" => self.cluster.crash(at),
            "wipe" if replica.life.is_none() => replica.wipe(),
            "damage" if replica.life.is_none() => {
                let exact = rest.get(1) != Some(&"on");
                replica.damage(slot(rest.first().ok_or("which slot?")?)?, exact);
            }
            "wipe" | "damage" => return Err("crash it first".to_owned()),
            "trim" => {
                let first = slot(rest.first().ok_or("from which slot on?")?)?;
                self.cluster.event(at, |core, _| core.on_log_trimmed(first));
            }
            "poison" => self.cluster.poison(at),
            "pause" => replica.paused = true,
            "resume" => {
                replica.paused = false;
                self.cluster.event(at, |_, _| ());
            }
            _ => {
                let commit = match rest.first().and_then(|word| word.strip_prefix("commit=")) {
                    Some(commit) => slot(commit)?,
                    None => Slot(u64::MAX),
                };
                self.cluster.restart(at, commit);
            }
        }
        Ok(())
    }

    fn links(&mut self, command: &str, arguments: &[&str]) -> Outcome {
        let nodes = self.cluster.nodes();
        let groups: Vec<Vec<NodeId>> = match command {
            "links" => {
                let pair = |pair: &&str| {
                    let (a, b) = pair.split_once('-').ok_or("a link is a-b")?;
                    Ok::<_, String>(vec![node(a)?, node(b)?])
                };
                arguments.iter().map(pair).collect::<Result<_, _>>()?
            }
            "partition" => {
                let groups = arguments.split(|word| *word == "|");
                groups.map(all_nodes).collect::<Result<_, _>>()?
            }
            "isolate" => {
                let alone = all_nodes(arguments)?;
                vec![nodes.iter().copied().filter(|node| !alone.contains(node)).collect()]
            }
            "heal" => vec![nodes.clone()],
            _ => {
                let [a, b] = arguments else { return Err("which pair?".to_owned()) };
                let (a, b) = (node(a)?, node(b)?);
                match command {
                    "reset" => self.cluster.reset_link(a, b),
                    _ => self.cluster.set_link(a, b, command == "connect"),
                }
                return Ok(());
            }
        };
        for (index, &a) in nodes.iter().enumerate() {
            for &b in &nodes[index + 1..] {
                let joined = groups.iter().any(|group| group.contains(&a) && group.contains(&b));
                self.cluster.set_link(a, b, joined);
            }
        }
        Ok(())
    }

    fn stalls(&mut self, command: &str, arguments: &[&str]) -> Outcome {
        let stalled = command.starts_with("stall");
        match arguments {
            [from, to] => self.cluster.stall(node(from)?, node(to)?, stalled),
            [one] if command.ends_with("-all") => {
                let one = node(one)?;
                for other in self.cluster.nodes() {
                    self.cluster.stall(one, other, stalled);
                    self.cluster.stall(other, one, stalled);
                }
            }
            _ => return Err("which pair?".to_owned()),
        }
        Ok(())
    }

    fn meddle(&mut self, command: &str, arguments: &[&str]) -> Outcome {
        let [from, to, kinds @ ..] = arguments else { return Err("which pair?".to_owned()) };
        let (from, to) = (node(from)?, node(to)?);
        if command == "ghost" {
            let count = self.cluster.network_mut().raise_ghosts(from, to);
            return if count > 0 { Ok(()) } else { Err("nothing was lost there".to_owned()) };
        }
        let kind = kinds.first().ok_or("which kind of message?")?;
        let lanes = self.cluster.network_mut().lanes_mut(from, to).ok_or("no such pair")?;
        let is_kind = |queued: &InFlight<Message>| show::kind(&queued.item) == *kind;
        let index = lanes.control.iter().position(is_kind).ok_or("no such message in flight")?;
        let message = lanes.control.remove(index).ok_or("no such message in flight")?;
        match command {
            "dup" => {
                lanes.control.insert(index, message.clone());
                lanes.control.push_back(message);
            }
            "delay" => lanes.control.push_back(message),
            _ => {}
        }
        Ok(())
    }

    fn inject(&mut self, arguments: &[&str]) -> Outcome {
        let [from, to, kind, rest @ ..] = arguments else {
            return Err("from, to, and what?".to_owned());
        };
        let (from, to) = (node(from)?, node(to)?);
        if *kind == "row" {
            let row = Row { incarnation: self.incarnation(from), ..handmade_row(rest)? };
            let news = show::row_news(&Row::default(), &row).unwrap_or_default();
            self.cluster.note(format!("{from:?} => {to:?} row{news} (injected)"));
            self.cluster.event(to, |core, now| core.on_row(now, from, row));
        } else if *kind == "accept" {
            let accept = record(rest)?;
            self.cluster.note(format!("{from:?} => {to:?} {} (injected)", show::accept(&accept)));
            self.cluster.hand_record(from, to, accept);
        } else {
            let message = handmade(kind, rest, self.incarnation(from))?;
            self.cluster.note(format!("{from:?} -> {to:?} {} (injected)", show::message(&message)));
            self.cluster.hand_message(from, to, message);
        }
        Ok(())
    }

    fn incarnation(&self, node: NodeId) -> Incarnation {
        let replica = self.cluster.replica(node);
        replica.map_or(Incarnation(0), |replica| replica.settings.incarnation)
    }

    fn print(&mut self, what: &str) {
        let nodes = self.cluster.nodes();
        let replicas = nodes.iter().filter_map(|node| self.cluster.replica(*node));
        let lines: Vec<String> = match what {
            "state" => replicas.map(show::state).collect(),
            "log" => replicas.map(show::log).collect(),
            "wants" => replicas.map(show::wants).collect(),
            "configurations" => replicas.map(show::configurations).collect(),
            "queue" => show::queues(&self.cluster),
            _ => {
                let chosen = self.cluster.ledger().chosen().iter();
                let list: Vec<_> = chosen
                    .map(|(slot, (_, value))| format!("{slot:?}={}", show::value(value)))
                    .collect();
                vec![format!("chosen {}", list.join(" "))]
            }
        };
        for line in lines {
            self.cluster.note(line);
        }
    }
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word} is no number"))
}

fn node(word: &str) -> Result<NodeId, String> {
    number(word).map(NodeId)
}

fn all_nodes(words: &[&str]) -> Result<Vec<NodeId>, String> {
    words.iter().map(|word| node(word)).collect()
}

fn slot(word: &str) -> Result<Slot, String> {
    number(word.strip_prefix('s').unwrap_or(word)).map(Slot)
}

fn ballot(word: &str) -> Result<Ballot, String> {
    let (round, owner) = word
        .strip_prefix('b')
        .and_then(|word| word.split_once('.'))
        .ok_or_else(|| format!("{word} is no ballot such as b2.1"))?;
    Ok(Ballot { round: number(round)?, node: node(owner)? })
}

fn duration(word: &str) -> Result<Nanos, String> {
    let number_of_ms = word.strip_suffix("ms").ok_or_else(|| format!("{word} is not in ms"))?;
    number(number_of_ms).map(Nanos::from_millis)
}

fn value(text: &str) -> Value {
    if text == "-" {
        return Value::noop();
    }
    value_of(text)
}

/// `a@b1.1 b@b1.1`, for consecutive slots.
fn entries(first: Slot, words: &[&str]) -> Result<Vec<Entry>, String> {
    let entry = |(at, word): (u64, &&str)| {
        let (text, under) = word.split_once('@').ok_or("an entry is value@b1.1")?;
        Ok(Entry { slot: Slot(at), ballot: ballot(under)?, value: value(text) })
    };
    (first.0..).zip(words).map(entry).collect()
}

fn record(words: &[&str]) -> Result<Accept, String> {
    let [under, first, rest @ ..] = words else { return Err("ballot and slot?".to_owned()) };
    let (values, commit_slot) = match rest {
        [values @ .., "commit", commit] => (values, slot(commit)?),
        values => (values, Slot::ZERO),
    };
    let values = values.iter().map(|text| value(text)).collect();
    Ok(Accept { ballot: ballot(under)?, first: slot(first)?, commit_slot, values })
}

/// `PROMISED VOTE-BALLOT VOTE-SLOT COMMIT [leading]`
fn handmade_row(words: &[&str]) -> Result<Row, String> {
    let [promised, under, accepted, commit, flags @ ..] = words else {
        return Err("promised, ballot and slot of the vote, commit?".to_owned());
    };
    Ok(Row {
        promised: ballot(promised)?,
        accepted_ballot: ballot(under)?,
        accepted_slot: slot(accepted)?,
        commit_slot: slot(commit)?,
        flags: RowFlags(if flags == ["leading"] { RowFlags::LEADING } else { 0 }),
        ..Row::default()
    })
}

fn handmade(kind: &str, words: &[&str], incarnation: Incarnation) -> Result<Message, String> {
    Ok(match (kind, words) {
        ("Prepare", [under, from]) => {
            Message::Prepare { ballot: ballot(under)?, from: slot(from)?, released: Ballot::ZERO }
        }
        ("Nack", [under, promised]) => {
            Message::Nack { ballot: ballot(under)?, promised: ballot(promised)? }
        }
        ("PreVote", [under, commit]) => {
            Message::PreVote { ballot: ballot(under)?, commit_slot: slot(commit)? }
        }
        ("PreVoteReply", [under, word, promised]) => Message::PreVoteReply {
            ballot: ballot(under)?,
            granted: *word == "granted",
            promised: ballot(promised)?,
            incarnation,
        },
        ("Promise", [under, from, commit, list @ ..]) => {
            let run = |word: &&str| {
                let (at, under) = word.split_once('@').ok_or("a run is s3@b1.1")?;
                Ok(Run { first: slot(at)?, last: slot(at)?, ballot: ballot(under)? })
            };
            Message::Promise {
                ballot: ballot(under)?,
                from: slot(from)?,
                commit_slot: slot(commit)?,
                runs: list.iter().map(run).collect::<Result<_, String>>()?,
                incarnation,
            }
        }
        ("Behind", [under, first, commit]) => Message::Behind {
            ballot: ballot(under)?,
            first_available: slot(first)?,
            commit_slot: slot(commit)?,
        },
        ("Values", [under, first, list @ ..]) => {
            Message::Values { ballot: ballot(under)?, entries: entries(slot(first)?, list)? }
        }
        ("Fetch", [under, first, last]) => {
            Message::Fetch { ballot: ballot(under)?, first: slot(first)?, last: slot(last)? }
        }
        ("CatchUpReply", [first, commit, list @ ..]) => {
            let first = slot(first)?;
            let entries = entries(first, list)?;
            Message::CatchUpReply { first, commit_slot: slot(commit)?, log_first: Slot(1), entries }
        }
        ("ReadIndexReply", [id, at]) => {
            Message::ReadIndexReply { id: number(id)?, slot: Some(slot(at)?) }
        }
        _ => return Err(format!("cannot make such a {kind}")),
    })
}
