//! Many state machines over one transport: [`Trunk`] shares the links of a process among *shards*,
//! and [`ShardTransport`] is a [`Transport`](crate::Transport) to each of them.
//!
//! A shard's lanes are lives of their own on top of the links' lives: each end draws an *epoch* for
//! each shard and peer and tells it (`hello`); the incarnation of a shard's lane mixes that of the link
//! with both epochs. So a shard can start over with a peer ([`Transport::reset`](crate::Transport::reset)) while the others and
//! the link go on, and C5 holds: ring records and rows carry the incarnation, control messages a
//! part of it.
//!
//! ```text
//! control message = kind u8, body
//!   0 message: shard u16, tag u32 (low half of the sender's incarnation of the lane), bytes
//!   1 hello:   (shard u16, epoch u64)*         "this shard is here; its regions may be written"
//!   2 bye:     (shard u16)*                    "it is not, or starts over"
//! region          = shard << 18 | region       regions of a shard are below 2^18
//! ```
//!
//! Isolation has one limit: [`Transport::revoke`](crate::Transport::revoke) fails the data lane of a peer that writes on, and with
//! it that of all shards. Nothing above revokes while a peer is a member.

mod endpoint;
mod parting;
mod peers;
mod trunk;

#[cfg(test)]
mod members_tests;
#[cfg(test)]
mod tests;

pub use endpoint::ShardTransport;
pub use trunk::Trunk;

use crate::{PeerError, RegionId};

/// Shards that one process can hold.
pub const SHARDS_MAX: u16 = 1 << 14;

const REGION_BITS: u32 = 18;

/// Names a shard: below [`SHARDS_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardId(pub u16);

impl std::fmt::Display for ShardId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Why a shard cannot be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShardError {
    /// Opened twice in one process, or the first one has not ended yet.
    #[error("shard {0} is open in this process already")]
    Exists(ShardId),
    /// Above the limit.
    #[error("shard {0} is above the limit: numbers go from 0 to {max}", max = SHARDS_MAX - 1)]
    TooHigh(ShardId),
    /// One of its peers cannot be one.
    #[error(transparent)]
    Peer(PeerError),
}

fn region_of(shard: ShardId, region: RegionId) -> RegionId {
    debug_assert!(region.0 < 1 << REGION_BITS, "{region:?}");
    RegionId(u32::from(shard.0) << REGION_BITS | region.0)
}

fn shard_of(region: RegionId) -> (ShardId, RegionId) {
    (ShardId((region.0 >> REGION_BITS) as u16), RegionId(region.0 & ((1 << REGION_BITS) - 1)))
}
