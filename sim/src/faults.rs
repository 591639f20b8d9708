//! What each fault does to the world when it begins, and when it ends.

use crate::atlas::node_at;
use crate::coverage::Row;
use crate::medium::{Damage, Survival};
use crate::plan::{Fault, Item, Partition, Who};
use crate::process::Process;
use crate::random::Random;
use crate::shape::MS;
use crate::world::{Happening, World};
use quorate_consensus::{Configuration, NodeId, Slot};
use quorate_pmem_log::MediumKind;

/// How slow the disks are while a leader has lost its new voters.
const BRIDGE_STALL_NANOS: u64 = 30 * MS;

impl World {
    fn resolve(&self, who: Who) -> Option<usize> {
        match who {
            Who::Node(node) => Some(node),
            Who::Leader => self.leader(),
            Who::Follower(node) => (self.leader() != Some(node)).then_some(node),
        }
    }

    /// Whoever leads, under the highest ballot if several think so.
    #[must_use]
    pub(crate) fn leader(&self) -> Option<usize> {
        let cores = self.places.iter().filter_map(|place| {
            let core = place.process.as_ref()?.node.core()?;
            core.role_is_leader().then(|| (core.ballot(), place.index))
        });
        cores.max().map(|(_, index)| index)
    }

    /// A fault begins.
    pub(crate) fn begin(&mut self, index: usize) {
        if !self.core.is_empty() {
            // The liveness phase has begun: nothing new breaks.
            return;
        }
        let Item { fault, until, .. } = self.plan[index].clone();
        self.committed_before[index] = self.checks.committed;
        self.say(|| format!("fault {index} begins: {fault:?}"));
        match fault {
            Fault::Crash { node, survival } => {
                let Some(node) = self.resolve(node) else { return };
                self.note_crash(node, survival);
                if self.leader() == Some(node) {
                    self.coverage.inject(Row::F27);
                }
                self.crash(node, survival);
                self.hit[index] = Some(node);
            }
            Fault::CrashWithin { node, operations } => {
                self.coverage.inject(Row::F39);
                self.places[node].death = Some((Survival::Subset, until));
                self.places[node].medium.control().kill_after(operations);
            }
            Fault::CrashAll { survival } => {
                self.coverage.inject(Row::F30);
                for node in 0..self.shape.nodes {
                    self.note_crash(node, survival);
                    self.crash(node, survival);
                    let at = until + self.random.below(100 * MS);
                    self.schedule(at, Happening::Restart(node));
                }
                self.coverage.observe(Row::F30);
            }
            // With the last copy of the founding document the cluster is gone, and what its members found
            // then is another one: no oracle here speaks of that.
            Fault::Wipe { node } if self.is_last_founder(node) => {}
            Fault::Wipe { node } if self.shape.members.is_some() => {
                if self.may_lose(node) && !self.places[node].idle {
                    self.coverage.inject(Row::F58);
                    self.wipe(node);
                }
            }
            Fault::Wipe { node } => {
                self.coverage.inject(Row::F58);
                self.crash(node, Survival::Nothing);
                self.places[node].died_of = vec![Row::F58];
                // A vote left only under a leader, so a quorum knows the founding document.
                self.places[node].wiped |= self.places[node].told.1.1 > Slot::ZERO;
                self.places[node].medium = crate::medium::SimMedium::new(self.shape.profile);
                self.places[node].emptied = true;
                self.forget(node);
                self.places[node].refused = false;
            }
            Fault::Damage { node, kind } => {
                let seed = self.random.word();
                self.damage(node, kind, seed);
            }
            Fault::DamageAll { nodes, kind } => {
                // Logs are equal in long parts: the same chance hits the same place.
                let seed = self.random.word();
                let hit = nodes.iter().filter(|node| self.damage(**node, kind, seed)).count();
                if hit == nodes.len() {
                    self.coverage.inject(Row::F48);
                    self.hit[index] = Some(nodes[0]);
                }
            }
            Fault::CrashRecovering { node, operations, times } => {
                self.coverage.inject(Row::F62);
                self.note_crash(node, Survival::Subset);
                self.crash(node, Survival::Subset);
                self.places[node].recovery_deaths = Some((operations, times));
            }
            Fault::Gone { node } => {
                self.coverage.inject(Row::F113);
                self.crash(node, Survival::Everything);
            }
            Fault::Ambush { .. } => self.ambush = Some(index),
            Fault::Waylay { .. } => self.operator.waylay = Some(index),
            Fault::Refuse { node, kind } => {
                self.coverage.inject(Row::F08);
                self.with_net(|net| net.refuse_once(node, kind));
            }
            Fault::Fence { from, to } => {
                self.coverage.inject(Row::F95);
                self.with_net(|net| net.fence(from, to, true));
            }
            Fault::Constrain { node, others } => {
                let behind = self.places[node]
                    .subject()
                    .is_some_and(|subject| subject.core.commit_slot().0 < self.checks.committed);
                if behind {
                    self.coverage.inject(Row::F20);
                    self.hit[index] = Some(node);
                }
                for (from, to) in others {
                    self.with_net(|net| net.block(from, to, 20 * MS, Row::F19));
                }
            }
            Fault::StorageError { node, operations } => {
                self.coverage.inject(Row::F54);
                self.places[node].medium.control().fail_after(operations);
            }
            Fault::ReadError { node } => {
                self.coverage.inject(Row::F52);
                self.places[node].medium.control().fail_next_read();
            }
            Fault::Pause { node, stale } => {
                let Some(node) = self.resolve(node) else { return };
                self.coverage.inject(Row::F31);
                if stale && self.places[node].process.is_some() {
                    self.coverage.inject(Row::F32);
                    let clock = self.places[node].clock(self.now, self.shape.rates[node]);
                    self.places[node].stale_clock = Some(clock);
                }
                self.places[node].paused = true;
                self.places[node].step_at = u64::MAX;
                self.hit[index] = Some(node);
            }
            Fault::Slow { node, factor } => {
                self.coverage.inject(Row::F34);
                self.places[node].slow = factor;
            }
            Fault::Partition { row, shape } => {
                self.coverage.inject(row);
                let node = match &shape {
                    Partition::Isolate { node, .. } => self.resolve(*node),
                    Partition::Blocked(_) => None,
                };
                self.hit[index] = node;
                self.leader_before[index] = self.leader().filter(|leader| Some(*leader) != node);
                let notice = self.random.pick(&[20 * MS, 200 * MS, 2_000 * MS]);
                let notice = if self.shape.lease_storms { MS } else { notice };
                for (from, to) in self.blocked_by(&shape, node) {
                    self.with_net(|net| net.block(from, to, notice, row));
                }
            }
            Fault::Clog { pairs, row } => {
                self.coverage.inject(row);
                for (from, to) in pairs {
                    self.with_net(|net| net.block(from, to, 60_000 * MS, row));
                }
            }
            Fault::Flap { period, .. } => {
                self.coverage.inject(Row::F24);
                self.schedule(self.now, Happening::Flap(index, false));
                self.schedule(self.now + period, Happening::Flap(index, true));
            }
            Fault::Delay { a, b, extra } => {
                self.coverage.inject(Row::F11);
                self.with_net(|net| net.delay(a, b, extra));
            }
            Fault::Break { a, b, lane } => {
                self.coverage.inject(Row::F06);
                self.with_net(|net| net.fail(a, b, lane));
            }
            Fault::Stall { node, extra } => {
                let Some(node) = self.resolve(node) else { return };
                self.coverage.inject(Row::F55);
                self.places[node].stall = extra;
                self.hit[index] = Some(node);
            }
            Fault::SyncError { node } => {
                self.coverage.inject(Row::F45);
                self.places[node].medium.control().fail_next_sync();
            }
            Fault::Full { node } => {
                self.coverage.inject(Row::F46);
                self.places[node].medium.control().set_full(true);
            }
            Fault::Clock { node, milliseconds } => {
                self.coverage.inject(if milliseconds < 0 { Row::F36 } else { Row::F35 });
                self.places[node].wall_off_ms += milliseconds;
            }
        }
    }

    fn note_crash(&mut self, node: usize, survival: Survival) {
        let row = match survival {
            Survival::Everything => Row::F29,
            Survival::Nothing => Row::F40,
            Survival::Subset if self.shape.profile.kind == MediumKind::Emulated => Row::F60,
            Survival::Lines if self.shape.profile.kind == MediumKind::Emulated => Row::F59,
            Survival::Subset | Survival::Lines => Row::F41,
        };
        self.coverage.inject(row);
        let place = &mut self.places[node];
        place.deaths += 1;
        place.died_of = vec![row];
        if place.deaths == 3 {
            self.coverage.inject(Row::F33);
        }
    }

    /// Damages a disk; whether anything of it was.
    fn damage(&mut self, node: usize, kind: Damage, seed: u64) -> bool {
        let row = match kind {
            Damage::Flip => Row::F47,
            Damage::LostSector => Row::F50,
            Damage::Misdirected => Row::F51,
            Damage::Superblock => Row::F53,
            Damage::Checkpoint => Row::F72,
        };
        // One copy is left to a superblock only where the first is not damaged already, and a cluster
        // is not founded without all of its disks.
        if kind == Damage::Superblock && self.places[node].subject().is_none() {
            return false;
        }
        if self.shape.members.is_some() && !self.may_lose(node) {
            return false;
        }
        self.crash(node, Survival::Subset);
        let done = self.places[node].medium.damage(kind, &mut Random::new(seed));
        let Some(what) = done else { return false };
        self.coverage.inject(row);
        self.places[node].died_of = vec![row];
        self.forget(node);
        self.say(|| format!("damage at replica {}: {what}", node + 1));
        true
    }

    /// Whether the disks of all others were emptied.
    pub(crate) fn is_last_founder(&self, node: usize) -> bool {
        let founders = &self.places[..self.shape.founders];
        founders.iter().all(|place| place.index == node || place.emptied)
    }

    /// The disk of `node` broke its word. In a safety run fewer than a quorum may: the last copy of
    /// what is chosen is never destroyed.
    fn forget(&mut self, node: usize) {
        self.places[node].forgets = true;
        if self.shape.members.is_some() {
            // `may_lose` has seen to it, for each configuration.
            return;
        }
        let forget = self.places.iter().filter(|place| place.forgets).count();
        if !self.shape.disaster && forget > self.shape.nodes - self.shape.quorum() {
            self.fail(format!("atlas: {forget} disks broke their word"));
        }
    }

    /// The leader is caught right after it learned that something is chosen.
    pub(crate) fn spring(&mut self, index: usize, node: usize) {
        let Item { until, fault: Fault::Ambush { lifts }, .. } = self.plan[index].clone() else {
            return;
        };
        self.say(|| format!("ambush {index}: replica {} is caught", node + 1));
        self.ambush = None;
        self.coverage.inject(Row::F27);
        self.with_net(|net| net.swallow(node));
        if self.shape.profile.kind == MediumKind::Memory {
            self.cut_off(node);
            self.hit[index] = Some(node);
        } else {
            self.note_crash(node, Survival::Everything);
            self.crash(node, Survival::Everything);
            let at = until.min(self.now + 4 * self.shape.election_max);
            self.schedule(at.max(self.now + 1), Happening::Restart(node));
        }
        let partition = |item: &Item| {
            item.at == lifts && matches!(item.fault, Fault::Partition { row: Row::F05, .. })
        };
        if let Some(place) = self.plan.iter().position(partition) {
            self.end(place);
        }
    }

    /// A change of members is in the log of the leader, and nowhere else yet.
    pub(crate) fn waylay(&mut self, node: usize, change: &Configuration) {
        let Some(index) = self.operator.waylay.take() else { return };
        let Fault::Waylay { dies } = self.plan[index].fault else { return };
        self.say(|| format!("fault {index}: replica {} is waylaid", node + 1));
        self.hit[index] = Some(node);
        if self.shape.focus.bridges {
            self.bridge(node, change);
        } else if dies {
            self.note_crash(node, Survival::Subset);
            self.crash(node, Survival::Subset);
        } else {
            self.coverage.inject(Row::F02);
            self.cut_off(node);
        }
    }

    /// The leader at `node` and those that it makes voters lose each other, and all others are slow.
    fn bridge(&mut self, node: usize, change: &Configuration) {
        let voted = |at: NodeId| {
            let standing = self.checks.members.newest().map(|(_, standing)| standing);
            standing.is_some_and(|standing| standing.electors().any(|member| member.node == at))
        };
        let new: Vec<NodeId> =
            change.electors().map(|member| member.node).filter(|at| !voted(*at)).collect();
        for other in 0..self.shape.nodes {
            if new.contains(&node_at(other)) {
                self.with_net(|net| {
                    net.block(node, other, 20 * MS, Row::F22);
                    net.block(other, node, 20 * MS, Row::F22);
                });
            } else {
                self.places[other].stall = BRIDGE_STALL_NANOS;
            }
        }
    }

    /// Nothing reaches `node`, and nothing leaves it.
    fn cut_off(&mut self, node: usize) {
        for other in (0..self.shape.nodes).filter(|other| *other != node) {
            self.with_net(|net| {
                net.block(node, other, 20 * MS, Row::F02);
                net.block(other, node, 20 * MS, Row::F02);
            });
        }
    }

    fn let_in(&mut self, node: usize) {
        for other in (0..self.shape.nodes).filter(|other| *other != node) {
            self.unblock(node, other);
            self.unblock(other, node);
        }
    }

    fn blocked_by(&self, shape: &Partition, node: Option<usize>) -> Vec<(usize, usize)> {
        match shape {
            Partition::Blocked(pairs) => pairs.clone(),
            Partition::Isolate { sends, receives, .. } => {
                let Some(node) = node else { return Vec::new() };
                let others = (0..self.shape.nodes).filter(|other| *other != node);
                let pairs =
                    others.flat_map(|other| [(node, other, *sends), (other, node, *receives)]);
                pairs.filter(|(.., cut)| *cut).map(|(from, to, _)| (from, to)).collect()
            }
        }
    }

    /// A fault ends. What the liveness phase healed stays healed, what it left broken stays so.
    pub(crate) fn end(&mut self, index: usize) {
        if std::mem::replace(&mut self.ended[index], true) {
            return;
        }
        let Item { fault, at, .. } = self.plan[index].clone();
        let hit = self.hit[index];
        // The cluster went on meanwhile: that is what these faults must not prevent.
        let went_on = self.checks.committed > self.committed_before[index];
        let survived = match &fault {
            Fault::Delay { .. } => Some(Row::F11),
            Fault::Slow { .. } => Some(Row::F34),
            Fault::Clock { milliseconds, .. } if *milliseconds < 0 => Some(Row::F36),
            Fault::Clock { .. } => Some(Row::F35),
            Fault::Crash { .. } if hit.is_some() => Some(Row::F27),
            _ => None,
        };
        if let Some(row) = survived.filter(|_| went_on) {
            self.coverage.observe(row);
        }
        match fault {
            Fault::Crash { .. } => {
                if let Some(node) = hit {
                    self.restart(node);
                }
            }
            Fault::Wipe { node } | Fault::Damage { node, .. } => self.restart(node),
            Fault::DamageAll { nodes, .. } => {
                for node in nodes {
                    self.restart(node);
                }
                if hit.is_some() && went_on {
                    self.coverage.observe(Row::F48);
                }
            }
            Fault::CrashRecovering { node, .. } => self.restart(node),
            Fault::Gone { .. } if went_on => self.coverage.observe(Row::F113),
            Fault::Gone { .. } | Fault::Refuse { .. } => {}
            Fault::Ambush { .. } => {
                if self.ambush == Some(index) {
                    self.ambush = None;
                }
                if let Some(node) = hit {
                    self.let_in(node);
                }
            }
            Fault::Waylay { dies } => {
                if self.operator.waylay == Some(index) {
                    self.operator.waylay = None;
                }
                if self.shape.focus.bridges {
                    self.places.iter_mut().for_each(|place| place.stall = 0);
                }
                match hit {
                    Some(node) if dies => self.restart(node),
                    Some(node) => self.let_in(node),
                    None => {}
                }
            }
            Fault::Fence { from, to } => {
                if !(self.core.contains(&from) && self.core.contains(&to)) {
                    self.with_net(|net| net.fence(from, to, false));
                }
            }
            Fault::Constrain { node, others } => {
                if hit.is_some() && self.leader() == Some(node) {
                    self.coverage.observe(Row::F20);
                }
                for (from, to) in others {
                    self.unblock(from, to);
                }
            }
            Fault::StorageError { node, .. } => {
                if self.places[node].medium.control().failed().change {
                    self.coverage.observe(Row::F54);
                }
                self.replace_failed_log(node);
            }
            Fault::ReadError { node } => {
                if self.places[node].medium.control().failed().read {
                    self.coverage.observe(Row::F52);
                }
                self.replace_failed_log(node);
            }
            Fault::CrashWithin { .. } | Fault::CrashAll { .. } | Fault::Break { .. } => {}
            Fault::Pause { .. } => {
                if let Some(node) = hit {
                    self.go_on(node);
                }
            }
            Fault::Slow { node, .. } => self.places[node].slow = 1,
            Fault::Partition { shape, .. } => {
                for (from, to) in self.blocked_by(&shape, hit) {
                    self.unblock(from, to);
                }
                let long = self.now - at >= 2 * self.shape.election_max;
                let before = self.leader_before[index].filter(|leader| Some(*leader) != hit);
                if before.is_some() && hit.is_some() && before == self.leader() && long {
                    self.coverage.inject(Row::F25);
                    let at = self.now + 2 * self.shape.election_max;
                    self.schedule(at, Happening::Look(index));
                }
            }
            Fault::Clog { pairs, row } => {
                self.coverage.observe(row);
                for (from, to) in pairs {
                    self.unblock(from, to);
                }
            }
            Fault::Flap { .. } | Fault::Clock { .. } => {}
            Fault::Delay { a, b, .. } => self.with_net(|net| net.delay(a, b, 0)),
            Fault::Stall { .. } => {
                if let Some(node) = hit {
                    self.places[node].stall = 0;
                    self.coverage.observe(Row::F55);
                }
            }
            Fault::SyncError { node } => self.replace_failed_log(node),
            Fault::Full { node } => {
                let process = self.places[node].process.as_ref();
                if process.is_some_and(|process| process.node.status().trouble.contains("no space"))
                {
                    self.coverage.observe(Row::F46);
                }
                self.places[node].medium.control().set_full(false);
                self.wake(node);
            }
        }
    }

    /// Some time after an isolated replica returned: does the leader of before still lead?
    pub(crate) fn look(&mut self, index: usize) {
        if self.leader_before[index].is_some() && self.leader_before[index] == self.leader() {
            self.coverage.observe(Row::F25);
        }
    }

    fn unblock(&mut self, from: usize, to: usize) {
        // In the liveness phase only what was left broken may still change: it is healed already
        // between replicas of the core.
        if !(self.core.contains(&from) && self.core.contains(&to)) {
            self.with_net(|net| net.unblock(from, to));
        }
    }

    /// The operator looks at a replica whose log failed, and restarts it.
    pub(crate) fn replace_failed_log(&mut self, node: usize) {
        // It asks for it, also before its cluster is founded.
        let asks = |process: &Process| process.node.status().trouble.contains("the log failed");
        let forgets = self.places[node].forgets;
        let failed = match self.places[node].subject() {
            // Of those that are no members nobody expects a vote, nor of a disk that broke its word.
            Some(subject) if self.shape.members.is_none() && !forgets => !subject.core.votes(),
            _ => self.places[node].process.as_ref().is_some_and(asks),
        };
        if failed {
            if self.places[node].medium.control().failed().sync {
                self.coverage.observe(Row::F45);
            }
            self.crash(node, Survival::Subset);
            self.restart(node);
        }
    }

    /// A stopped process goes on.
    pub(crate) fn go_on(&mut self, node: usize) {
        if std::mem::replace(&mut self.places[node].paused, false) {
            self.coverage.observe(Row::F31);
            self.wake(node);
        }
    }

    /// A flapping link opens or closes.
    pub(crate) fn flap(&mut self, index: usize, open: bool) {
        let Item { fault: Fault::Flap { a, b, period }, until, .. } = self.plan[index].clone()
        else {
            return;
        };
        let in_core = self.core.contains(&a) && self.core.contains(&b);
        for (from, to) in [(a, b), (b, a)] {
            if open {
                self.unblock(from, to);
            } else if !in_core {
                self.with_net(|net| net.block(from, to, 20 * MS, Row::F24));
            }
        }
        // It ends open.
        let next = self.now + 2 * period;
        if next < until && !in_core {
            self.schedule(next, Happening::Flap(index, open));
        }
    }
}
