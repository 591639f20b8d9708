//! A transport whose fence does not hold.

use bytes::Bytes;
use quorate_consensus::NodeId;
use quorate_transport::{
    Event, LinkStatus, OpNumber, PostError, RegionError, RegionId, Transport, Wake,
};
use quorate_transport_rdma::RdmaTransport;
use std::sync::Arc;
use std::time::Duration;

/// Says that it took the right to write back, and leaves the memory registered.
pub(crate) struct BrokenFence(pub(crate) RdmaTransport);

impl Transport for BrokenFence {
    fn revoke(&mut self, _region: RegionId, _peer: NodeId) -> Result<(), RegionError> {
        Ok(())
    }

    fn local(&self) -> NodeId {
        self.0.local()
    }

    fn peers(&self) -> Vec<NodeId> {
        self.0.peers()
    }

    fn register(&mut self, region: RegionId, length: usize) -> Result<(), RegionError> {
        self.0.register(region, length)
    }

    fn grant(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        self.0.grant(region, peer)
    }

    fn grant_for_life(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        self.0.grant_for_life(region, peer)
    }

    fn copy_out(&self, region: RegionId, offset: usize, into: &mut [u8]) {
        self.0.copy_out(region, offset, into);
    }

    fn load(&self, region: RegionId, offset: usize) -> u64 {
        self.0.load(region, offset)
    }

    fn write(
        &mut self,
        peer: NodeId,
        region: RegionId,
        offset: usize,
        pieces: &[Bytes],
    ) -> Result<OpNumber, PostError> {
        self.0.write(peer, region, offset, pieces)
    }

    fn send(&mut self, peer: NodeId, message: Bytes) -> Result<(), PostError> {
        self.0.send(peer, message)
    }

    fn flush(&mut self) {
        self.0.flush();
    }

    fn poll(&mut self, events: &mut Vec<Event>) {
        self.0.poll(events);
    }

    fn park(&mut self, timeout: Duration) {
        self.0.park(timeout);
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.0.waker()
    }

    fn hints(&self) -> bool {
        self.0.hints()
    }

    fn reset(&mut self, peer: NodeId, reason: &str) {
        self.0.reset(peer, reason);
    }

    fn status(&self, peer: NodeId) -> LinkStatus {
        self.0.status(peer)
    }
}
