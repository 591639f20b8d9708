//! The faults of a run as data, so that they can be printed, and dropped one by one while the run
//! still fails.

use crate::coverage::Row;
use crate::medium::{AT_A_NAME, Damage, Survival};
use crate::network::MESSAGE_KINDS;
use crate::random::Random;
use crate::shape::{MS, Shape};
use quorate_pmem_log::MediumKind;

/// A fault with its time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Item {
    /// When it begins, in nanoseconds.
    pub(crate) at: u64,
    /// When it ends.
    pub(crate) until: u64,
    /// What.
    pub(crate) fault: Fault,
}

/// Replicas are counted from 0 here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// A process dies; it comes back at the end.
    Crash { node: Who, survival: Survival },
    /// It dies at the so-many-th change of its disk from now on.
    CrashWithin { node: usize, operations: u64 },
    /// All die at once.
    CrashAll { survival: Survival },
    /// It dies, and comes back with an empty disk.
    Wipe { node: usize },
    /// It dies; its disk broke its word meanwhile.
    Damage { node: usize, kind: Damage },
    /// It dies, and again in the middle of coming back, so often.
    CrashRecovering { node: usize, operations: u64, times: u32 },
    /// It dies and does not come back before the end of the safety phase.
    Gone { node: usize },
    /// Several die; the same place of their disks is damaged, as far as their logs are equal.
    DamageAll { nodes: Vec<usize>, kind: Damage },
    /// Whoever leads dies right after it learned that something is chosen, before anyone else learns
    /// of it, and the partition that began then ends at once.
    Ambush { lifts: u64 },
    /// Whoever puts a change of members into its log next dies at that moment, or is cut off, and comes
    /// back at the end.
    Waylay { dies: bool },
    /// It does nothing. If it goes on with a stale clock, it was stopped right after it read it.
    Pause { node: Who, stale: bool },
    /// One message of a kind is not taken by the lanes of a replica.
    Refuse { node: usize, kind: u8 },
    /// The writes of one replica into the memory of another are refused.
    Fence { from: usize, to: usize },
    /// Isolated for a while, then the only one that reaches a quorum.
    Constrain { node: usize, others: Vec<(usize, usize)> },
    /// Its turns take so many times longer.
    Slow { node: usize, factor: u64 },
    /// Directions that carry nothing.
    Partition { row: Row, shape: Partition },
    /// One direction holds everything back for less than anyone notices.
    Clog { pairs: Vec<(usize, usize)>, row: Row },
    /// A link that comes and goes.
    Flap { a: usize, b: usize, period: u64 },
    /// A link takes longer.
    Delay { a: usize, b: usize, extra: u64 },
    /// Lanes break.
    Break { a: usize, b: usize, lane: usize },
    /// Syncs take so much longer.
    Stall { node: Who, extra: u64 },
    /// A sync fails; the process is restarted at the end.
    SyncError { node: usize },
    /// Some call of the storage fails once; the process is restarted at the end.
    StorageError { node: usize, operations: u64 },
    /// A read fails once; the process is restarted at the end.
    ReadError { node: usize },
    /// No space.
    Full { node: usize },
    /// The wall clock jumps.
    Clock { node: usize, milliseconds: i64 },
}

/// Whom a fault hits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Who {
    /// This replica.
    Node(usize),
    /// Whoever leads then.
    Leader,
    /// This replica, unless it leads.
    Follower(usize),
}

/// Which directions carry nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Partition {
    /// One replica: what it sends, what it receives, or both.
    Isolate { node: Who, sends: bool, receives: bool },
    /// Everything but these.
    Blocked(Vec<(usize, usize)>),
}

/// How many kinds [`draw`] knows.
pub(crate) const KINDS: usize = 34;

/// The kind that goes for one leader after the other.
pub(crate) const STORM: usize = 22;

/// Draws the faults of a run in which the disks of a quorum, or of more, break their word.
#[must_use]
pub(crate) fn draw_disaster(seed: u64, shape: &Shape) -> Vec<Item> {
    let mut items = draw(seed, shape);
    let random = &mut Random::split(seed, 8);
    let nodes = shape.nodes;
    let mut all: Vec<usize> = (0..nodes).collect();
    random.shuffle(&mut all);
    // One disk at least keeps its word: a cluster of none but empty disks is a new one.
    let most = (nodes - 1).max(shape.quorum().min(nodes - 1)).max(1);
    all.truncate(random.between(shape.quorum().min(most) as u64, most as u64) as usize);
    let at = random.between(shape.safety_nanos / 2, shape.safety_nanos);
    let until = at + random.exponential(100 * MS);
    let wipe = nodes > 1 && (shape.profile.kind == MediumKind::Memory || random.chance(400_000));
    if wipe {
        items.extend(all.into_iter().map(|node| Item { at, until, fault: Fault::Wipe { node } }));
    } else {
        let kind = random.pick(&[Damage::Flip, Damage::LostSector, Damage::Misdirected]);
        items.push(Item { at, until, fault: Fault::DamageAll { nodes: all, kind } });
    }
    items.sort_by_key(|item| item.at);
    items
}

/// Draws the faults of a run of this shape.
#[must_use]
pub(crate) fn draw(seed: u64, shape: &Shape) -> Vec<Item> {
    let mut items = draw_plain(seed, shape);
    if shape.members.is_some() {
        draw_members(&mut Random::split(seed, 12), shape, &mut items);
        items.sort_by_key(|item| item.at);
    }
    items
}

/// What changes of members are afraid of: a leader that is gone with the change that it has just
/// proposed, and a member that is away for long, so that it is replaced, while another one is slow.
fn draw_members(random: &mut Random, shape: &Shape, items: &mut Vec<Item>) {
    let durable = shape.profile.kind != MediumKind::Memory;
    let waylaid = if shape.focus.bridges { 12 } else { random.below(4) };
    for _ in 0..waylaid {
        let at = random.between(200 * MS, shape.safety_nanos);
        let until = at + random.between(2, 12) * shape.election_max;
        items.push(Item {
            at,
            until,
            fault: Fault::Waylay { dies: durable && random.chance(400_000) },
        });
    }
    if shape.focus.damaged_checkpoints && durable {
        for _ in 0..random.between(4, 8) {
            let at = random.between(400 * MS, shape.safety_nanos);
            let node = random.below(shape.nodes as u64) as usize;
            let fault = Fault::Damage { node, kind: Damage::Checkpoint };
            items.push(Item { at, until: at + 20 * MS, fault });
        }
    }
    if durable && shape.checkpoint_slots > 0 && !shape.victims.is_empty() && random.chance(300_000)
    {
        let at = random.between(600 * MS, shape.safety_nanos);
        let node = random.below(shape.nodes as u64) as usize;
        let fault = Fault::Damage { node, kind: Damage::Checkpoint };
        items.push(Item { at, until: at + 20 * MS, fault });
    }
    if shape.focus.absences {
        for _ in 0..random.between(2, 5) {
            let at = random.between(200 * MS, shape.safety_nanos);
            let until = at + random.between(10, 40) * shape.election_max;
            let node = random.below(shape.nodes as u64) as usize;
            let away = match durable && random.chance(500_000) {
                true => Fault::Crash { node: Who::Node(node), survival: Survival::Everything },
                false => Fault::Wipe { node },
            };
            items.push(Item { at, until, fault: away });
        }
    }
    if random.chance(400_000) && shape.nodes > 2 {
        let at = random.between(200 * MS, shape.safety_nanos);
        let until = at + random.between(5, 30) * shape.election_max;
        let node = random.below(shape.nodes as u64) as usize;
        let away = match durable {
            true => Fault::Crash { node: Who::Node(node), survival: Survival::Everything },
            false => Fault::Pause { node: Who::Node(node), stale: false },
        };
        items.push(Item { at, until, fault: away });
        let other = (node + 1 + random.below(shape.nodes as u64 - 1) as usize) % shape.nodes;
        let slow = match random.chance(500_000) {
            true => Fault::Slow { node: other, factor: 10 },
            false => Fault::Stall { node: Who::Node(other), extra: 20 * MS },
        };
        items.push(Item { at, until, fault: slow });
    }
}

fn draw_plain(seed: u64, shape: &Shape) -> Vec<Item> {
    let random = &mut Random::split(seed, 2);
    let mut items = Vec::new();
    if shape.lease_storms {
        draw_lease_storms(random, shape, &mut items);
        return items;
    }
    for _ in 0..shape.faults {
        let kind = random.pick(&shape.kinds);
        let at = random.between(50 * MS, shape.safety_nanos);
        let length = match random.below(4) {
            0 => random.exponential(10 * MS),
            1 | 2 => random.exponential(150 * MS),
            _ => random.exponential(1_000 * MS),
        };
        draw_kind(random, shape, kind, at, at + length + MS, &mut items);
    }
    items.sort_by_key(|item| item.at);
    items
}

fn who(random: &mut Random, nodes: usize) -> Who {
    if random.chance(400_000) {
        Who::Leader
    } else {
        Who::Node(random.below(nodes as u64) as usize)
    }
}

fn survival(random: &mut Random) -> Survival {
    random.pick(&[Survival::Everything, Survival::Nothing, Survival::Subset, Survival::Lines])
}

fn draw_kind(
    random: &mut Random,
    shape: &Shape,
    kind: usize,
    at: u64,
    until: u64,
    items: &mut Vec<Item>,
) {
    let nodes = shape.nodes;
    let node = random.below(nodes as u64) as usize;
    let other =
        (node + 1 + random.below(nodes as u64 - 1 + u64::from(nodes == 1)) as usize) % nodes;
    let volatile = shape.profile.kind == MediumKind::Memory;
    let victim = (!shape.victims.is_empty()).then(|| random.pick(&shape.victims));
    let mut add = |fault| items.push(Item { at, until, fault });
    match kind {
        // A disk that forgets with its process is a wiped disk.
        0..=3 if volatile => {
            if let Some(node) = victim {
                add(Fault::Wipe { node });
            }
        }
        0 | 1 => add(Fault::Crash { node: who(random, nodes), survival: survival(random) }),
        2 => {
            let count = random.below(12);
            let operations = if random.chance(400_000) { AT_A_NAME } else { count };
            add(Fault::CrashWithin { node, operations });
        }
        3 => add(Fault::CrashAll { survival: survival(random) }),
        4 => {
            if let Some(node) = victim {
                add(Fault::Wipe { node });
            }
        }
        5 => {
            let kind = random.pick(&[Damage::Flip, Damage::LostSector, Damage::Misdirected]);
            if let Some(node) = victim.filter(|_| !volatile) {
                add(Fault::Damage { node, kind });
            }
        }
        6 => add(Fault::Pause { node: who(random, nodes), stale: random.chance(300_000) }),
        7 => add(Fault::Slow { node, factor: random.pick(&[10, 100]) }),
        8..=14 if nodes > 1 => {
            let (row, shape) = draw_partition(random, kind, nodes, node);
            add(Fault::Partition { row, shape });
        }
        15 if nodes > 1 => {
            if random.chance(500_000) {
                let pairs = vec![(node, other)];
                return add(Fault::Clog { pairs, row: Row::F13 });
            }
            // One by one, and freed in another order.
            let mut ends: Vec<u64> = (0..nodes as u64).map(|step| until + step * 10 * MS).collect();
            random.shuffle(&mut ends);
            for (step, until) in ends.into_iter().enumerate().filter(|(step, _)| *step != node) {
                let fault = Fault::Clog { pairs: vec![(node, step), (step, node)], row: Row::F14 };
                items.push(Item { at: at + step as u64 * 5 * MS, until, fault });
            }
        }
        16 if nodes > 1 => {
            let period = random.between(shape.election_min / 2, shape.election_max * 2);
            add(Fault::Flap { a: node, b: other, period });
        }
        17 if nodes > 1 => {
            let extra = random.pick(&[2 * MS, 20 * MS, 200 * MS]);
            add(Fault::Delay { a: node, b: other, extra });
        }
        18 if nodes > 1 => {
            add(Fault::Break { a: node, b: other, lane: random.below(2) as usize });
        }
        19 => {
            add(Fault::Stall { node: who(random, nodes), extra: random.pick(&[20 * MS, 500 * MS]) })
        }
        20 if volatile => {}
        20 => add(Fault::SyncError { node }),
        21 if random.chance(500_000) => add(Fault::Full { node }),
        21 => {
            let milliseconds = random.pick(&[-3_600_000, -1_000, 1_000, 3_600_000]);
            add(Fault::Clock { node, milliseconds });
        }
        STORM if nodes > 1 => draw_storm(random, shape, at, items),
        23 | 24 if nodes > 2 => draw_ambush(random, shape, at, items),
        25 if nodes > 1 => {
            let kind = random.between(1, u64::from(MESSAGE_KINDS)) as u8;
            add(Fault::Refuse { node, kind });
        }
        26 if nodes > 1 => add(Fault::Fence { from: node, to: other }),
        27 if !volatile => add(Fault::StorageError { node, operations: random.below(30) }),
        28 if !volatile => add(Fault::ReadError { node }),
        29 if !volatile => {
            let times = random.between(1, 4) as u32;
            add(Fault::CrashRecovering { node, operations: random.below(8), times });
        }
        30 if nodes > 2 => {
            let others = (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b)));
            let others = others.filter(|(a, b)| a != b && *a != node && *b != node).collect();
            let behind = at + random.between(shape.election_max, shape.election_max * 3);
            let cut = Partition::Isolate { node: Who::Node(node), sends: true, receives: true };
            let fault = Fault::Partition { row: Row::F01, shape: cut };
            items.push(Item { at, until: behind, fault });
            let until = behind + random.between(4, 10) * shape.election_max;
            items.push(Item { at: behind, until, fault: Fault::Constrain { node, others } });
        }
        31 if nodes > 2 => {
            let fault = if volatile {
                victim.map(|node| Fault::Wipe { node })
            } else {
                Some(Fault::Gone { node })
            };
            if let Some(fault) = fault {
                items.push(Item { at, until: shape.safety_nanos, fault });
            }
        }
        32 if !volatile && !shape.victims.is_empty() => {
            let kind = random.pick(&[Damage::Flip, Damage::LostSector]);
            add(Fault::DamageAll { nodes: shape.victims.clone(), kind });
        }
        33 if !volatile => {
            if let Some(node) = victim {
                add(Fault::Damage { node, kind: Damage::Superblock });
            }
        }
        _ => {}
    }
}

/// One leader after the other is cut off or dies, about as soon as it leads: what was accepted under
/// several ballots is then adopted under yet another one.
fn draw_storm(random: &mut Random, shape: &Shape, begin: u64, items: &mut Vec<Item>) {
    let mut at = begin;
    for _ in 0..random.between(2, 8) {
        let until = at + random.between(shape.election_min / 2, shape.election_max * 3);
        let fault = if random.chance(400_000) && shape.profile.kind != MediumKind::Memory {
            Fault::Crash { node: Who::Leader, survival: survival(random) }
        } else {
            let cut = Partition::Isolate {
                node: Who::Leader,
                sends: random.chance(800_000),
                receives: random.chance(800_000),
            };
            Fault::Partition { row: Row::F02, shape: cut }
        };
        items.push(Item { at, until, fault });
        at += random.between(shape.election_min / 2, shape.election_max * 2);
    }
}

/// The leader is cut off, again and again; the others notice at once, and some of them die and come
/// back before their grants have ended. Its clients go on asking it.
fn draw_lease_storms(random: &mut Random, shape: &Shape, items: &mut Vec<Item>) {
    let mut at = 200 * MS;
    while at < shape.safety_nanos {
        let until = at + shape.election_max * 3;
        let cut = Partition::Isolate { node: Who::Leader, sends: true, receives: true };
        items.push(Item { at, until, fault: Fault::Partition { row: Row::F02, shape: cut } });
        if shape.focus.stale_leaders {
            let until = until - shape.election_max / 4;
            items.push(Item { at, until, fault: Fault::Pause { node: Who::Leader, stale: true } });
            at = until + random.between(shape.election_max, shape.election_max * 3);
            continue;
        }
        let survival = Survival::Everything;
        let mut bounce = |node, at| {
            let fault = Fault::Crash { node: Who::Follower(node), survival };
            items.push(Item { at, until: at + MS, fault });
        };
        match random.below(3) {
            0 => (0..shape.nodes)
                .for_each(|node| bounce(node, at + random.between(MS, shape.lease / 4))),
            1 => {
                // One that the leader did not reach, so that it granted nothing, asks one that did
                // and forgot it.
                let node = random.below(shape.nodes as u64) as usize;
                let other = (node + 1) % shape.nodes;
                let third = (node + 2) % shape.nodes;
                bounce(if random.chance(500_000) { other } else { third }, at + 2 * MS);
                let begin = at.saturating_sub(shape.election_max * 2);
                let pairs = Partition::Blocked(vec![(node, other), (other, node)]);
                let fault = Fault::Partition { row: Row::F21, shape: pairs };
                items.push(Item { at: begin, until, fault });
            }
            _ => {}
        }
        at = until + random.between(shape.election_max, shape.election_max * 3);
    }
    items.sort_by_key(|item| item.at);
}

/// A leader goes on alone, unheard; the next one has something chosen and dies before anyone learns of
/// it, and the first one is back for the third election. (Figure 8 of the Raft paper, for Paxos.)
fn draw_ambush(random: &mut Random, shape: &Shape, begin: u64, items: &mut Vec<Item>) {
    let mut at = begin;
    for _ in 0..random.between(1, 3) {
        let until = at + 12 * shape.election_max;
        let alone =
            Partition::Isolate { node: Who::Leader, sends: true, receives: random.chance(300_000) };
        let fault = Fault::Partition { row: Row::F05, shape: alone };
        let lifts = at;
        items.push(Item { at, until, fault });
        let ambush = at + random.between(shape.election_min / 4, shape.election_max);
        items.push(Item { at: ambush, until, fault: Fault::Ambush { lifts } });
        at = until + random.below(shape.election_max * 4);
    }
}

fn draw_partition(random: &mut Random, kind: usize, nodes: usize, node: usize) -> (Row, Partition) {
    let mut order: Vec<usize> = (0..nodes).collect();
    random.shuffle(&mut order);
    let place = |node: usize| order.iter().position(|other| *other == node).unwrap_or(0);
    let pairs = (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b))).filter(|(a, b)| a != b);
    let blocked = |open: &dyn Fn(usize, usize) -> bool| {
        Partition::Blocked(pairs.clone().filter(|(a, b)| !open(place(*a), place(*b))).collect())
    };
    let half = nodes / 2;
    match kind {
        8 => {
            let node = who(random, nodes);
            let row = if node == Who::Leader { Row::F02 } else { Row::F01 };
            (row, Partition::Isolate { node, sends: true, receives: true })
        }
        9 => {
            let sends = random.chance(500_000);
            let row = if sends { Row::F05 } else { Row::F04 };
            let node = who(random, nodes);
            (row, Partition::Isolate { node, sends, receives: !sends })
        }
        10 => (Row::F03, blocked(&|a, b| (a < half) == (b < half))),
        // All reach the first one only.
        11 => (Row::F19, blocked(&|a, b| a == 0 || b == 0)),
        12 => (Row::F21, blocked(&|a, b| a.abs_diff(b) == 1)),
        13 => (Row::F22, blocked(&|a, b| a == 0 || b == 0 || (a <= half) == (b <= half))),
        _ if nodes > 3 => {
            let reach = nodes / 4 + 1;
            let ring = move |a: usize, b: usize| {
                let apart = a.abs_diff(b);
                apart.min(nodes - apart) <= reach
            };
            (Row::F23, blocked(&ring))
        }
        _ => (Row::F01, Partition::Isolate { node: Who::Node(node), sends: true, receives: true }),
    }
}
