//! One replica's end of the simulated network.

use crate::network::Net;
use crate::spy::Spy;
use bytes::Bytes;
use quorate_consensus::NodeId;
use quorate_transport::{
    Event, LinkStatus, OpNumber, PeerError, PostError, RegionError, RegionId, Transport, Wake,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The network, shared by the world and the ends of all replicas: one thread uses it, the lock is
/// there because a transport may be sent to another thread.
pub(crate) type SharedNet = Arc<Mutex<Net>>;

/// Locks without caring for panics: the run is over then anyway.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The end of one process.
#[derive(Debug)]
pub(crate) struct SimTransport {
    net: SharedNet,
    spy: Arc<Mutex<Spy>>,
    node: usize,
    /// Whether there are grants for one life of a lane.
    for_life: bool,
}

impl SimTransport {
    /// The end of replica `node`, counted from 0.
    #[must_use]
    pub(crate) fn new(net: SharedNet, spy: Arc<Mutex<Spy>>, node: usize) -> Self {
        let for_life = lock(&net).has_for_life();
        Self { net, spy, node, for_life }
    }

    fn index(&self, peer: NodeId) -> Result<usize, PostError> {
        let index = usize::from(peer.0).wrapping_sub(1);
        let known = lock(&self.net).has_peer(self.node, index);
        if known { Ok(index) } else { Err(PostError::Unknown(peer)) }
    }
}

impl Transport for SimTransport {
    fn local(&self) -> NodeId {
        NodeId(self.node as u16 + 1)
    }

    fn peers(&self) -> Vec<NodeId> {
        let peers = lock(&self.net).peers(self.node);
        peers.into_iter().map(|node| NodeId(node as u16 + 1)).collect()
    }

    fn add_peer(&mut self, peer: NodeId, address: &str) -> Result<(), PeerError> {
        let index = usize::from(peer.0).wrapping_sub(1);
        if lock(&self.net).add_peer(self.node, index) {
            return Ok(());
        }
        Err(PeerError::Unusable(peer, address.to_owned(), "there is no such place".into()))
    }

    fn remove_peer(&mut self, peer: NodeId) {
        if let Ok(index) = self.index(peer) {
            lock(&self.net).remove_peer(self.node, index);
        }
    }

    fn unregister(&mut self, region: RegionId) -> Result<(), RegionError> {
        lock(&self.net).regions(self.node).unregister(region)
    }

    fn register(&mut self, region: RegionId, length: usize) -> Result<(), RegionError> {
        lock(&self.net).regions(self.node).register(region, length)
    }

    fn grant(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        let Ok(from) = self.index(peer) else {
            return lock(&self.net).regions(self.node).grant(region, peer);
        };
        lock(&self.net).grant(self.node, from, region)
    }

    fn grant_for_life(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        match self.index(peer) {
            Ok(from) if self.for_life => lock(&self.net).grant_for_life(self.node, from, region),
            _ => Err(RegionError::Lasting(region, peer)),
        }
    }

    fn revoke(&mut self, region: RegionId, peer: NodeId) -> Result<(), RegionError> {
        match self.index(peer) {
            Ok(from) => lock(&self.net).revoke(self.node, from, region),
            Err(_) => lock(&self.net).regions(self.node).revoke(region, peer),
        }
    }

    fn copy_out(&self, region: RegionId, offset: usize, into: &mut [u8]) {
        lock(&self.net).regions_ref(self.node).copy_out(region, offset, into);
    }

    fn load(&self, region: RegionId, offset: usize) -> u64 {
        lock(&self.net).regions_ref(self.node).load(region, offset)
    }

    fn write(
        &mut self,
        peer: NodeId,
        region: RegionId,
        offset: usize,
        pieces: &[Bytes],
    ) -> Result<OpNumber, PostError> {
        let to = self.index(peer)?;
        let mut spy = lock(&self.spy);
        if spy.is_cut() {
            return Err(PostError::Down(peer));
        }
        let bytes = pieces.concat();
        if region == RegionId::row(self.local()) {
            spy.on_row(peer, &bytes);
        }
        drop(spy);
        lock(&self.net).post_write(self.node, to, region, offset, bytes)
    }

    fn send(&mut self, peer: NodeId, message: Bytes) -> Result<(), PostError> {
        let to = self.index(peer)?;
        let mut spy = lock(&self.spy);
        if spy.is_cut() {
            return Err(PostError::Down(peer));
        }
        let mut net = lock(&self.net);
        net.accept(self.node, to, &message)?;
        spy.on_message(&message);
        drop(spy);
        net.post_message(self.node, to, message)
    }

    fn flush(&mut self) {}

    fn poll(&mut self, events: &mut Vec<Event>) {
        lock(&self.net).take_inbox(self.node, events);
    }

    fn park(&mut self, _timeout: Duration) {}

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(NoWake)
    }

    fn hints(&self) -> bool {
        lock(&self.net).hints()
    }

    fn reset(&mut self, peer: NodeId, _reason: &str) {
        if let Ok(to) = self.index(peer) {
            let mut net = lock(&self.net);
            net.note_reset(self.node, to);
            net.fail(self.node, to, 0);
            net.fail(self.node, to, 1);
        }
    }

    fn status(&self, peer: NodeId) -> LinkStatus {
        self.index(peer)
            .map_or_else(|_| LinkStatus::default(), |to| lock(&self.net).status(self.node, to))
    }
}

/// Nobody sleeps here: the world steps whom it has to.
struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}
