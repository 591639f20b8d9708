//! How a trace writes things: `n1 -> n2` is the control lane, `n1 => n2` the data lane.

use super::cluster::Cluster;
use super::replica::Replica;
use quorate_consensus::{
    Accept, Ballot, Configuration, Entry, Member, Message, NodeId, Notice, QuorumSizes, Row,
    RowFlags, Run, Slot, Value, ValueKind,
};
use std::fmt::Write as _;

/// A value as scripts name it; the no-op is a dash, one without its payload a star.
#[must_use]
pub fn value(value: &Value) -> String {
    match value.kind {
        ValueKind::Noop => "-".to_owned(),
        ValueKind::Commands => String::from_utf8_lossy(&value.bytes).into_owned(),
        ValueKind::Configuration => match Configuration::decode(&value.bytes) {
            Some(known) => configuration(&known),
            None => "#?".to_owned(),
        },
        ValueKind::Withheld => "*".to_owned(),
    }
}

/// `#2{1 2 4}`: the number of a configuration and its voters, with the life of a disk that is not the
/// first, then learners behind a plus, witnesses behind a star, other quorums than majorities, and `!` if it is settled.
#[must_use]
pub fn configuration(known: &Configuration) -> String {
    let member = |member: &Member| {
        let life = member.incarnation.0 / 1000;
        if life == 0 { member.node.to_string() } else { format!("{}'{life}", member.node) }
    };
    let voters: Vec<_> = known.voters.iter().map(member).collect();
    let learners: Vec<_> = known.learners.iter().map(|learner| learner.node.to_string()).collect();
    let mut text = format!("#{}{{{}", known.id, voters.join(" "));
    if !learners.is_empty() {
        let _ = write!(text, "+{}", learners.join(" "));
    }
    if !known.witnesses.is_empty() {
        let witnesses: Vec<_> = known.witnesses.iter().map(member).collect();
        let _ = write!(text, " *{}, copies {}", witnesses.join(" "), known.copies);
    }
    text.push('}');
    if let Some(QuorumSizes { phase_one, phase_two }) = known.quorums {
        let _ = write!(text, "{phase_one}/{phase_two}");
    }
    if known.settled {
        text.push('!');
    }
    text
}

/// `s3` or `s3..s7`.
#[must_use]
pub fn span(first: Slot, last: Slot) -> String {
    if first == last { format!("{first:?}") } else { format!("{first:?}..{last:?}") }
}

fn values<'a>(list: impl IntoIterator<Item = &'a Value>) -> String {
    list.into_iter().map(value).collect::<Vec<_>>().join(" ")
}

/// A record.
#[must_use]
pub fn accept(accept: &Accept) -> String {
    let slots = span(accept.first, accept.last());
    let (ballot, commit) = (accept.ballot, accept.commit_slot);
    format!("Accept {ballot:?} {slots} [{}] commit {commit:?}", values(&accept.values))
}

fn runs(list: &[Run]) -> String {
    if list.is_empty() {
        return "nothing".to_owned();
    }
    let run = |run: &Run| format!("{}@{}", span(run.first, run.last), run.ballot);
    list.iter().map(run).collect::<Vec<_>>().join(" ")
}

fn entries(list: &[Entry]) -> String {
    let entry = |entry: &Entry| format!("{}@{}", value(&entry.value), entry.ballot);
    let list: Vec<_> = list.iter().map(entry).collect();
    format!("[{}]", list.join(" "))
}

/// The name of a control message, as `drop` and `deliver` take it.
#[must_use]
pub fn kind(message: &Message) -> &'static str {
    match message {
        Message::PreVote { .. } => "PreVote",
        Message::PreVoteReply { .. } => "PreVoteReply",
        Message::Prepare { .. } => "Prepare",
        Message::Lead { .. } => "Lead",
        Message::Promise { .. } => "Promise",
        Message::Nack { .. } => "Nack",
        Message::Fetch { .. } => "Fetch",
        Message::Values { .. } => "Values",
        Message::Behind { .. } => "Behind",
        Message::CatchUpRequest { .. } => "CatchUpRequest",
        Message::CatchUpReply { .. } => "CatchUpReply",
        Message::Forward { .. } => "Forward",
        Message::ReadIndex { .. } => "ReadIndex",
        Message::ReadIndexReply { .. } => "ReadIndexReply",
        Message::Fresh { .. } => "Fresh",
        Message::Genesis { .. } => "Genesis",
        Message::Goodbye { .. } => "Goodbye",
        Message::SnapshotRequest { .. } => "SnapshotRequest",
        Message::SnapshotReply { .. } => "SnapshotReply",
    }
}

/// A control message.
#[must_use]
pub fn message(message: &Message) -> String {
    let kind = kind(message);
    match message {
        Message::PreVote { ballot, commit_slot } => {
            format!("{kind} {ballot:?} commit {commit_slot:?}")
        }
        Message::PreVoteReply { ballot, granted, promised, .. } => {
            let word = if *granted { "granted" } else { "refused" };
            format!("{kind} {ballot:?} {word}, promised {promised:?}")
        }
        Message::Prepare { ballot, from, released } => {
            let released = match *released {
                Ballot::ZERO => String::new(),
                released => format!(", released by {released:?}"),
            };
            format!("{kind} {ballot:?} from {from:?}{released}")
        }
        Message::Lead { ballot } => format!("{kind} {ballot:?}"),
        Message::Promise { ballot, from, commit_slot, runs: list, .. } => {
            let list = runs(list);
            format!("{kind} {ballot:?} from {from:?} commit {commit_slot:?} accepted {list}")
        }
        Message::Nack { ballot, promised } => format!("{kind} {ballot:?}, promised {promised:?}"),
        Message::Fetch { ballot, first, last } => {
            format!("{kind} {ballot:?} {}", span(*first, *last))
        }
        Message::Values { ballot, entries: list } => {
            format!("{kind} {ballot:?} {}", entries(list))
        }
        Message::Behind { ballot, first_available, commit_slot } => {
            format!("{kind} {ballot:?} first {first_available:?} commit {commit_slot:?}")
        }
        Message::CatchUpRequest { first, bytes_max } => {
            format!("{kind} {first:?} {bytes_max} B")
        }
        Message::CatchUpReply { first, commit_slot, entries: list, .. } => {
            format!("{kind} {first:?} {} commit {commit_slot:?}", entries(list))
        }
        Message::ReadIndex { id } => format!("{kind} {id}"),
        Message::ReadIndexReply { id, slot } => match slot {
            Some(slot) => format!("{kind} {id} {slot:?}"),
            None => format!("{kind} {id} not leading"),
        },
        Message::Forward { .. }
        | Message::Fresh { .. }
        | Message::Genesis { .. }
        | Message::SnapshotRequest { .. }
        | Message::SnapshotReply { .. }
        | Message::Goodbye { .. } => kind.to_owned(),
    }
}

/// What a row says that `before` did not; none if it is but a heartbeat.
#[must_use]
pub fn row_news(before: &Row, row: &Row) -> Option<String> {
    let mut news = String::new();
    if row.promised != before.promised {
        let _ = write!(news, " promised {:?}", row.promised);
    }
    if (row.accepted_ballot, row.accepted_slot) != (before.accepted_ballot, before.accepted_slot) {
        let _ = write!(news, " vote {:?}:{:?}", row.accepted_ballot, row.accepted_slot);
    }
    if row.commit_slot != before.commit_slot {
        let _ = write!(news, " commit {:?}", row.commit_slot);
    }
    if row.ping != before.ping {
        let _ = write!(news, " ping {}", row.ping);
    }
    if row.pong != before.pong {
        let _ = write!(news, " pong {}", row.pong);
    }
    if row.lease_granted != before.lease_granted {
        let _ = write!(news, " lease {}us", row.lease_granted);
    }
    let names = [
        (RowFlags::LEADING, "leading"),
        (RowFlags::QUORUM_CONNECTED, "connected"),
        (RowFlags::AMNESIAC, "amnesiac"),
        (RowFlags::POISONED, "poisoned"),
        (RowFlags::UNWILLING, "unwilling"),
        (RowFlags::QUIET, "quiet"),
        (RowFlags::WANTS_SIGN, "wants-sign"),
        (RowFlags::FULL, "full"),
    ];
    for (bit, name) in names {
        if row.flags.has(bit) != before.flags.has(bit) {
            let _ = write!(news, " {}{name}", if row.flags.has(bit) { '+' } else { '-' });
        }
    }
    (!news.is_empty()).then_some(news)
}

/// A piece of news of one replica.
#[must_use]
pub fn notice(node: NodeId, notice: &Notice) -> String {
    match notice {
        Notice::Leading(ballot) => format!("{node:?} LEADS under {ballot:?}"),
        Notice::SteppedDown(ballot, why) => format!("{node:?} STEPS DOWN from {ballot:?}: {why}"),
        Notice::Following(ballot) => format!("{node:?} follows {ballot:?}"),
        Notice::Transferring(to) => format!("{node:?} hands over to {to:?}"),
        Notice::TransferFailed(to) => format!("{node:?} goes on leading: {to:?} did not take over"),
        Notice::Leaderless => format!("{node:?} is without a leader"),
        Notice::Campaigning(ballot) => format!("{node:?} campaigns under {ballot:?}"),
        Notice::Configured { id, settled: false } => format!("{node:?} is in configuration #{id}"),
        Notice::Configured { id, .. } => format!("{node:?} is in configuration #{id}, settled"),
        Notice::AwaitsCopy(ballot) => {
            format!("{node:?} awaits under {ballot:?} what a witness knows of")
        }
        Notice::StrangeConfiguration(slot) => format!("{node:?} cannot read {slot:?}"),
    }
}

/// One line about a replica.
#[must_use]
pub fn state(replica: &Replica) -> String {
    let node = replica.node;
    let Some(core) = replica.core() else {
        return format!("{node:?} crashed   promised {:?} on disk", replica.disk.promised);
    };
    let leader = core.leader().map_or_else(|| "-".to_owned(), |leader| format!("{leader:?}"));
    let (ballot, slot) = core.vote();
    let mut line = format!(
        "{node:?} {:<9} of {leader:<2} promised {:?} vote {ballot:?}:{slot:?} last {:?} commit {:?} \
         applied {:?}",
        core.role().to_string(),
        core.promised(),
        core.last_slot(),
        core.commit_slot(),
        core.applied_slot(),
    );
    for (is, word) in [(replica.paused, " paused"), (replica.poisoned, " poisoned")] {
        if is {
            line.push_str(word);
        }
    }
    line
}

/// Whether only a checkpoint of a peer helps a replica on.
#[must_use]
pub fn wants(replica: &Replica) -> String {
    let node = replica.node;
    match replica.core().and_then(quorate_consensus::Paxos::snapshot_wanted) {
        Some(slot) => format!("{node:?} wants a checkpoint at {slot:?} or above"),
        None => format!("{node:?} wants no checkpoint"),
    }
}

/// The configurations that matter to a replica, with the slots that they stand in, and its peers.
#[must_use]
pub fn configurations(replica: &Replica) -> String {
    let node = replica.node;
    let Some(core) = replica.core() else { return format!("{node:?} crashed") };
    let known = core.configurations().iter();
    let known: Vec<_> =
        known.map(|(slot, known)| format!("{slot:?} {}", configuration(known))).collect();
    let peers: Vec<_> = core.peer_nodes().map(|peer| peer.to_string()).collect();
    format!("{node:?} {} peers {}", known.join(", "), peers.join(" "))
}

/// What is on a replica's disk.
#[must_use]
pub fn log(replica: &Replica) -> String {
    let list: Vec<Entry> = replica.disk.log.values().cloned().collect();
    let (node, commit) = (replica.node, replica.disk.commit_slot);
    format!("{node:?} {} commit {commit:?} on disk", entries(&list))
}

/// Everything in flight.
#[must_use]
pub fn queues(cluster: &Cluster) -> Vec<String> {
    let mut lines = Vec::new();
    let network = cluster.network();
    for (from, to) in network.pairs() {
        let Some(lanes) = network.lanes(from, to) else { continue };
        let stalled = if lanes.stalled { " (stalled)" } else { "" };
        for queued in &lanes.control {
            lines.push(format!("{from:?} -> {to:?} {}{stalled}", message(&queued.item)));
        }
        for queued in &lanes.records {
            lines.push(format!("{from:?} => {to:?} {}{stalled}", accept(&queued.item)));
        }
        let mut before = lanes.row_delivered.unwrap_or_default();
        for queued in &lanes.rows {
            let news = row_news(&before, &queued.item).unwrap_or_else(|| " heartbeat".to_owned());
            lines.push(format!("{from:?} => {to:?} row{news}{stalled}"));
            before = queued.item;
        }
    }
    lines
}
