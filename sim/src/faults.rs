//! What each fault does to the world when it begins, and when it ends.

use crate::coverage::Row;
use crate::medium::{Damage, Survival};
use crate::plan::{Fault, Item, Partition, Who};
use crate::shape::MS;
use crate::world::{Happening, World};
use quorate_consensus::Slot;
use quorate_pmem_log::MediumKind;

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
            Fault::Wipe { node } => {
                self.coverage.inject(Row::F58);
                self.crash(node, Survival::Nothing);
                self.places[node].died_of = Some(Row::F58);
                // A vote left only under a leader, so a quorum knows the founding document.
                self.places[node].wiped |= self.places[node].told.1.1 > Slot::ZERO;
                self.places[node].medium = crate::medium::SimMedium::new(self.shape.profile);
                self.places[node].forgets = true;
                self.places[node].refused = false;
            }
            Fault::Damage { node, kind } => self.damage(node, kind),
            Fault::Pause { node } => {
                let Some(node) = self.resolve(node) else { return };
                self.coverage.inject(Row::F31);
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
            Survival::Subset => Row::F41,
        };
        self.coverage.inject(row);
        let place = &mut self.places[node];
        place.deaths += 1;
        place.died_of = Some(row);
        if place.deaths == 3 {
            self.coverage.inject(Row::F33);
        }
    }

    fn damage(&mut self, node: usize, kind: Damage) {
        let row = match kind {
            Damage::Flip => Row::F47,
            Damage::LostSector => Row::F50,
            Damage::Misdirected => Row::F51,
        };
        self.crash(node, Survival::Subset);
        let done = self.places[node].medium.damage(kind, &mut self.random);
        if let Some(what) = done {
            self.coverage.inject(row);
            self.places[node].died_of = Some(row);
            self.places[node].forgets = true;
            self.say(|| format!("damage at replica {}: {what}", node + 1));
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
        let Item { fault, .. } = self.plan[index].clone();
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

    fn unblock(&mut self, from: usize, to: usize) {
        // In the liveness phase only what was left broken may still change: it is healed already
        // between replicas of the core.
        if !(self.core.contains(&from) && self.core.contains(&to)) {
            self.with_net(|net| net.unblock(from, to));
        }
    }

    /// The operator looks at a replica whose log failed, and restarts it.
    pub(crate) fn replace_failed_log(&mut self, node: usize) {
        let failed = self.places[node].subject().is_some_and(|subject| !subject.core.votes());
        if failed && !self.places[node].forgets {
            self.coverage.observe(Row::F45);
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
