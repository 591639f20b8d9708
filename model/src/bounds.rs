//! How much may happen.

use quorate_consensus::Mutant;

/// Whether rows may be late.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rows {
    /// The row that arrives is what its sender would write now.
    Fresh,
    /// A row that was overwritten may still arrive, if no later one did.
    Late,
}

/// How much may happen in one run.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Who votes at first; at most 3.
    pub voters: Vec<u16>,
    /// Who votes after the change of members; none for no change.
    pub change: Option<Vec<u16>>,
    /// How often replica 1 campaigns, replica 2, and so on.
    pub campaigns: [u8; 3],
    /// How many commands are proposed, by all leaders together.
    pub commands: u8,
    /// A command or a change is proposed for slots up to this one.
    pub slots: u64,
    /// Nothing happens any more once an entry stands above this slot: a leader's own no-op, or the entry
    /// that settles a change.
    pub last_slot: u64,
    /// How many times a replica stops and starts again.
    pub crashes: u8,
    /// Persists become durable one by one, as events.
    pub slow_disks: bool,
    /// Whether rows may be late.
    pub rows: Rows,
    /// A mistake in every replica.
    pub mistake: Option<Mutant>,
}

impl Bounds {
    /// Replicas in the model.
    pub const REPLICAS: usize = 3;

    /// Nothing but one proposer and one slot.
    #[must_use]
    pub fn least() -> Self {
        Self {
            voters: vec![1, 2, 3],
            change: None,
            campaigns: [1, 0, 0],
            commands: 0,
            slots: 3,
            last_slot: 4,
            crashes: 0,
            slow_disks: false,
            rows: Rows::Fresh,
            mistake: None,
        }
    }
}

impl std::fmt::Display for Bounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |nodes: &[u16]| {
            let nodes: Vec<String> = nodes.iter().map(u16::to_string).collect();
            format!("{{{}}}", nodes.join(","))
        };
        let proposers = self.campaigns.iter().filter(|count| **count > 0).count();
        write!(f, "{} acceptors, voters {}", Self::REPLICAS, list(&self.voters))?;
        match &self.change {
            Some(next) => write!(f, " -> {} (1 reconfiguration)", list(next))?,
            None => f.write_str(", no reconfiguration")?,
        }
        let disks = if self.slow_disks { "flushed one by one" } else { "flushed at once" };
        write!(
            f,
            "; {proposers} proposers, campaigns {:?}; commands {} in slots 1 to {}, no entry above slot {}; crashes {}; disks \
             {disks}; rows {:?}; messages and records lost, doubled and in any order",
            self.campaigns, self.commands, self.slots, self.last_slot, self.crashes, self.rows
        )?;
        match self.mistake {
            Some(mistake) => write!(f, "; with the mistake {mistake:?}"),
            None => Ok(()),
        }
    }
}
