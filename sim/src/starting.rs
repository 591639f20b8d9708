//! How a process starts on what its disk has, and what is held against what the one before told.

use crate::checks;
use crate::coverage::Row;
use crate::machine::SimMachine;
use crate::medium::Survival;
use crate::process::{Process, options};
use crate::random::Random;
use crate::shape::MS;
use crate::spy::Spy;
use crate::transport::SimTransport;
use crate::world::{Happening, World};
use quorate_consensus::{Incarnation, Mistake, Slot};
use quorate_pmem_log::{End, Recovered, SyncSteps};
use quorate_replica::Node;
use std::sync::{Arc, Mutex};

impl World {
    /// A process starts on what the disk has.
    pub(crate) fn restart(&mut self, node: usize) {
        let place = &self.places[node];
        if place.process.is_some() || place.refused || place.idle {
            return;
        }
        let mut steps = SyncSteps::default();
        steps.mistake = Mistake::of(self.shape.mutant);
        steps.whims = self.whims.clone();
        let fresh = Incarnation(self.random.word());
        let medium = Arc::clone(&self.places[node].medium);
        if let Some((operations, times)) = self.places[node].recovery_deaths.take() {
            medium.control().kill_after(operations);
            let again = times.checked_sub(1).filter(|left| *left > 0);
            self.places[node].recovery_deaths = again.map(|left| (operations, left));
        }
        let opened = checks::open(Arc::clone(&medium), node, &self.shape, fresh, &steps);
        let (log, recovered) = match opened {
            Ok(opened) => opened,
            Err(error) if self.places[node].forgets && !medium.control().is_dead() => {
                self.say(|| format!("replica {} refuses to start: {error}", node + 1));
                self.places[node].refused = true;
                return;
            }
            // The disk failed again in the middle of it, or has no room: its operator tries again.
            Err(_) if medium.control().excuses() => {
                if medium.control().is_dead() {
                    self.coverage.observe(Row::F62);
                }
                if let Some(row) = medium.control().died_in() {
                    self.coverage.inject(row);
                    self.places[node].died_of.push(row);
                }
                let again = medium.after_crash(Survival::Subset, &mut self.random);
                again.control().set_full(medium.control().is_full());
                self.places[node].medium = again;
                return self.schedule(self.now + 100 * MS, Happening::Restart(node));
            }
            Err(error) => {
                return self.fail(format!("replica {} cannot open its log: {error}", node + 1));
            }
        };
        // It came back sooner than it was to die.
        medium.control().spare();
        if !self.places[node].forgets {
            let (told, vote) = self.places[node].told;
            let copy = medium.after_crash(Survival::Everything, &mut Random::new(0));
            let checked = self.checks.recovered(copy, &log, &recovered, told, vote);
            if let Err(what) = checked {
                return self.fail(format!("{what} (replica {}, restarted)", node + 1));
            }
        }
        self.note_return(node, &recovered);
        let (first, last) = (recovered.first_slot, recovered.last_slot);
        self.start(node, log, recovered, steps, first, last);
    }

    /// The replica survived what it died of, if its disk gave something back.
    fn note_return(&mut self, node: usize, recovered: &Recovered) {
        let place = &mut self.places[node];
        place.forgot = place.wiped || !recovered.promise_certain;
        place.damaged = (!recovered.damaged.is_empty()).then_some(place.told);
        let damaged = !recovered.damaged.is_empty() || !recovered.promise_certain;
        if place.deaths >= 3 && !place.died_of.is_empty() {
            self.coverage.observe(Row::F33);
        }
        for row in std::mem::take(&mut place.died_of) {
            let seen = match row {
                Row::F47 | Row::F50 | Row::F51 => damaged,
                // Seen when the checkpoint is read: see `note_checkpoints`.
                Row::F72 => false,
                Row::F58 => recovered.last_slot == Slot::ZERO,
                _ => recovered.last_slot > Slot::ZERO,
            };
            if seen {
                self.coverage.observe(row);
            }
        }
        if let End::TornTail { bytes } = recovered.end {
            self.coverage.meet(Row::F43);
            if bytes > 512 {
                self.coverage.meet(Row::F44);
            }
        }
    }

    fn start(
        &mut self,
        node: usize,
        log: quorate_pmem_log::Log,
        recovered: Recovered,
        steps: SyncSteps,
        first: Slot,
        last: Slot,
    ) {
        self.places[node].incarnation = Some(recovered.identity.incarnation);
        let peers = self.places[node].told_of(&self.shape);
        self.with_net(|net| {
            net.start(node, &peers);
        });
        let spy = Arc::new(Mutex::new(Spy::new(Arc::clone(&self.places[node].medium))));
        let transport = SimTransport::new(Arc::clone(&self.net), Arc::clone(&spy), node);
        let life = self.next_life();
        let machine = SimMachine::new(life, Arc::clone(&self.ledger));
        let options = options(&self.places[node], &self.shape, self.random.word(), &self.whims);
        let restored = recovered.promised;
        let made = Node::new(options, Box::new(transport), log, recovered, Box::new(machine));
        let medium = Arc::clone(&self.places[node].medium);
        let product = match made {
            Ok(product) => product,
            // The disk failed once more, in the middle of looking for checkpoints.
            Err(_) if medium.control().excuses() => {
                self.with_net(|net| net.stop(node));
                let again = medium.after_crash(Survival::Subset, &mut self.random);
                again.control().set_full(medium.control().is_full());
                self.places[node].medium = again;
                return self.schedule(self.now + 100 * MS, Happening::Restart(node));
            }
            Err(error) => return self.fail(format!("replica {} cannot start: {error}", node + 1)),
        };
        let (handle, born) = (product.handle(), self.now);
        let seen = checks::Seen::default();
        let checkpoints = product.checkpoint_steps();
        let process = Process {
            node: product,
            handle,
            steps,
            syncing: false,
            checkpoints,
            checkpointing: false,
            spy,
            life,
            born,
            restored,
            seen,
        };
        self.places[node].process = Some(process);
        self.places[node].step_at = u64::MAX;
        self.say(|| format!("replica {} starts with slots {first} to {last}", node + 1));
        self.wake(node);
    }
}
