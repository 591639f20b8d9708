//! [`ShardTransport`]: the transport that one shard sees.

use super::trunk::{MESSAGE, MESSAGE_HEADER_BYTES, Trunk};
use super::{ShardId, region_of, shard_of};
use crate::{
    Event, LinkStatus, OpNumber, PeerError, PostError, RegionError, RegionId, Transport, Wake,
};
use bytes::{BufMut, Bytes, BytesMut};
use quorate_consensus::NodeId;
use std::sync::Arc;
use std::time::Duration;

/// One shard's view of the links of its process. See [`Trunk::shard`]. When it is dropped the shard is
/// gone from this process: its peers are told, and its memory goes when they have heard it.
#[derive(Debug)]
pub struct ShardTransport {
    trunk: Trunk,
    id: ShardId,
    local: NodeId,
    ready: Ready,
}

/// Keeps `dyn Wake` out of the debug output.
struct Ready(Arc<dyn Wake>);

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ready")
    }
}

impl ShardTransport {
    pub(super) fn new(trunk: Trunk, id: ShardId, local: NodeId, ready: Arc<dyn Wake>) -> Self {
        Self { trunk, id, local, ready: Ready(ready) }
    }
}

impl Transport for ShardTransport {
    fn local(&self) -> NodeId {
        self.local
    }

    /// Those of this shard: other shards may have others.
    fn peers(&self) -> Vec<NodeId> {
        let trunk = self.trunk.lock();
        let ties = trunk.shards.get(&self.id).map(|shard| shard.ties.keys().copied().collect());
        ties.unwrap_or_default()
    }

    /// The links get a peer that none of the process's shards had so far. If several shards say where it
    /// is, the newest word counts, and the others are tried in turn as long as it does not answer there.
    fn add_peer(&mut self, peer: NodeId, address: &str) -> Result<(), PeerError> {
        self.trunk.lock().add_peer(self.id, peer, address)
    }

    /// The links let go of a peer that no other shard of the process has.
    fn remove_peer(&mut self, peer: NodeId) {
        self.trunk.lock().remove_peer(self.id, peer);
    }

    /// Memory that was given back, but not let go because a former peer may still be writing there, is
    /// taken up again as it is, if it has that length: [`RegionError::Exists`].
    fn register(&mut self, region: RegionId, length: usize) -> Result<(), RegionError> {
        self.trunk.lock().register(self.id, region, length).map_err(own_name)
    }

    fn unregister(&mut self, region: RegionId) -> Result<(), RegionError> {
        self.trunk.lock().unregister(self.id, region).map_err(own_name)
    }

    fn grant(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        self.trunk.lock().grant(self.id, region, peer).map_err(own_name)
    }

    /// From one that is a peer no more nothing is taken back before it has heard that: a write that is
    /// refused would break the lanes of all shards.
    fn revoke(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        self.trunk.lock().revoke(self.id, region, peer).map_err(own_name)
    }

    fn copy_out(&self, region: RegionId, offset: usize, into: &mut [u8]) {
        self.trunk.lock().transport.copy_out(region_of(self.id, region), offset, into);
    }

    fn load(&self, region: RegionId, offset: usize) -> u64 {
        self.trunk.lock().transport.load(region_of(self.id, region), offset)
    }

    fn write(
        &mut self,
        peer: NodeId,
        region: RegionId,
        offset: usize,
        pieces: &[Bytes],
    ) -> Result<OpNumber, PostError> {
        let mut trunk = self.trunk.lock();
        if trunk.tie(peer, self.id)?.data.is_none() {
            return Err(PostError::Down(peer));
        }
        let region = region_of(self.id, region);
        let number = trunk.transport.write(peer, region, offset, pieces)?;
        Ok(trunk.wrote(peer, self.id, number))
    }

    fn send(&mut self, peer: NodeId, message: Bytes) -> Result<(), PostError> {
        let mut trunk = self.trunk.lock();
        let life = trunk.tie(peer, self.id)?.control.ok_or(PostError::Down(peer))?;
        if trunk.is_unsaid(peer, self.id) {
            // The lane was too full for the hello that goes first.
            return Err(PostError::Full(peer));
        }
        // One copy: a control message is one piece of memory for the links below.
        let mut framed = BytesMut::with_capacity(MESSAGE_HEADER_BYTES + message.len());
        framed.put_u8(MESSAGE);
        framed.put_u16_le(self.id.0);
        framed.put_u32_le(life.0 as u32);
        framed.put_slice(&message);
        trunk.transport.send(peer, framed.freeze())
    }

    fn flush(&mut self) {
        self.trunk.lock().flush_undriven();
    }

    fn poll(&mut self, events: &mut Vec<Event>) {
        self.trunk.lock().take_events(self.id, events);
    }

    fn park(&mut self, timeout: Duration) {
        self.trunk.park(timeout);
    }

    /// Wakes this shard: says that it is ready, and wakes whoever drives the trunk.
    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.ready.0)
    }

    fn hints(&self) -> bool {
        self.trunk.hints()
    }

    fn reset(&mut self, peer: NodeId, reason: &str) {
        self.trunk.lock().reset(peer, self.id, reason);
    }

    fn status(&self, peer: NodeId) -> LinkStatus {
        let trunk = self.trunk.lock();
        let Ok(tie) = trunk.tie(peer, self.id) else { return LinkStatus::default() };
        let link = trunk.transport.status(peer);
        LinkStatus {
            control_up: tie.control.is_some(),
            data_up: tie.data.is_some(),
            reconnects: tie.reconnects,
            last_error: match tie.last_error.is_empty() {
                true => link.last_error,
                false => tie.last_error.clone(),
            },
            ..link
        }
    }
}

impl Drop for ShardTransport {
    fn drop(&mut self) {
        self.trunk.lock().close(self.id);
    }
}

/// The error names the region as the shard knows it.
fn own_name(error: RegionError) -> RegionError {
    match error {
        RegionError::Exists(region) => RegionError::Exists(shard_of(region).1),
        RegionError::Missing(region) => RegionError::Missing(shard_of(region).1),
        RegionError::Lasting(region, peer) => RegionError::Lasting(shard_of(region).1, peer),
        RegionError::Fenced(region, peer) => RegionError::Fenced(shard_of(region).1, peer),
        RegionError::Refused(region, length, why) => {
            RegionError::Refused(shard_of(region).1, length, why)
        }
    }
}
