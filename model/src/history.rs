//! What really happened: who made what durable, and what is chosen by that.

use quorate_consensus::{Ballot, Configuration, Entry, Member, NodeId, Slot, Value, ValueKind};
use std::hash::{Hash, Hasher};

/// Acceptances that may still matter, and the values chosen so far.
#[derive(Clone, Debug)]
pub(crate) struct History {
    founding: Configuration,
    /// For slots that are not chosen, or another value in slots that are: who accepted what.
    accepted: Vec<(Slot, Ballot, Value, u8)>,
    chosen: Vec<Value>,
}

impl Hash for History {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (&self.accepted, &self.chosen).hash(hasher);
    }
}

impl History {
    pub(crate) fn new(founding: Configuration) -> Self {
        Self { founding, accepted: Vec::new(), chosen: Vec::new() }
    }

    /// The values chosen for the slots from 1 on.
    pub(crate) fn chosen(&self) -> &[Value] {
        &self.chosen
    }

    /// The configuration that decides `slot`, all slots below being chosen.
    pub(crate) fn deciding(&self, slot: Slot) -> Configuration {
        let below = self.chosen.iter().take(slot.previous().0 as usize).rev();
        let mut named = below.filter(|value| value.kind == ValueKind::Configuration);
        let named = named.find_map(|value| Configuration::decode(&value.bytes));
        named.unwrap_or_else(|| self.founding.clone())
    }

    /// `entry` became durable at `member`.
    ///
    /// # Errors
    /// Two values are chosen for one slot.
    pub(crate) fn accept(&mut self, member: Member, entry: &Entry) -> Result<(), String> {
        let Entry { slot, ballot, value } = entry;
        if self.chosen_at(*slot) == Some(value) {
            return Ok(());
        }
        let bit = 1 << member.node.0;
        let same = |held: &&mut (Slot, Ballot, Value, u8)| {
            held.0 == *slot && held.1 == *ballot && held.2 == *value
        };
        match self.accepted.iter_mut().find(same) {
            Some(held) => held.3 |= bit,
            None => {
                self.accepted.push((*slot, *ballot, value.clone(), bit));
                self.accepted.sort_by(|one, other| {
                    (one.0, one.1, &one.2.bytes).cmp(&(other.0, other.1, &other.2.bytes))
                });
            }
        }
        self.choose()
    }

    fn chosen_at(&self, slot: Slot) -> Option<&Value> {
        self.chosen.get(usize::try_from(slot.0.checked_sub(1)?).ok()?)
    }

    fn choose(&mut self) -> Result<(), String> {
        loop {
            let open = Slot(self.chosen.len() as u64 + 1);
            for (slot, ballot, value, who) in &self.accepted {
                if *slot < open
                    && self.deciding(*slot).is_quorum(|member| accepted_by(*who, member.node))
                    && self.chosen_at(*slot) != Some(value)
                {
                    return Err(format!("{slot:?}: {value:?} is chosen under {ballot:?} as well"));
                }
            }
            let deciding = self.deciding(open);
            let mut candidates = self.accepted.iter().filter(|(slot, _, _, who)| {
                *slot == open && deciding.is_quorum(|member| accepted_by(*who, member.node))
            });
            let Some((_, _, value, _)) = candidates.next() else { return Ok(()) };
            let value = value.clone();
            self.accepted.retain(|held| held.0 != open || held.2 != value);
            self.chosen.push(value);
        }
    }
}

fn accepted_by(who: u8, node: NodeId) -> bool {
    who & (1 << node.0) != 0
}
