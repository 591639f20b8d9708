//! What a network looks like from outside.

use super::{Net, lane_index, lane_of};
use quorate_transport::{Lane, LinkStatus};

impl Net {
    /// Whether a lane works, as `node` believes.
    #[must_use]
    pub(crate) fn status(&self, node: usize, peer: usize) -> LinkStatus {
        let lanes = &self.lanes[node.min(peer) * self.nodes() + node.max(peer)];
        let up = |lane: Lane| lanes[lane_index(lane)].believed[usize::from(node > peer)].is_some();
        LinkStatus {
            control_up: up(Lane::Control),
            data_up: up(Lane::Data),
            carrier: "simulated",
            ..LinkStatus::default()
        }
    }

    /// Every lane, for whoever looks for what is stuck.
    #[must_use]
    pub(crate) fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (index, lanes) in self.lanes.iter().enumerate() {
            let (a, b) = (index / self.nodes(), index % self.nodes());
            if a >= b {
                continue;
            }
            for (lane, state) in lanes.iter().enumerate() {
                let waiting = state.directions.each_ref().map(|direction| {
                    let first = direction.queue.front().map(|queued| queued.arrival);
                    (direction.posted, direction.queue.len(), first, direction.landing.is_some())
                });
                lines.push(format!(
                    "{}-{} {:?}: up {}, life {}, believed {:?}, blocked {}/{}, \
                     (posted, queued, first, landing) {waiting:?}",
                    a + 1,
                    b + 1,
                    lane_of(lane),
                    state.up,
                    state.life,
                    state.believed,
                    self.is_blocked(a, b),
                    self.is_blocked(b, a),
                ));
            }
        }
        lines
    }

    /// Bytes that wait anywhere: bounded by what a direction queues.
    #[must_use]
    pub(crate) fn queued_bytes(&self) -> usize {
        let lanes = self.lanes.iter().flatten();
        let directions = lanes.flat_map(|lane| &lane.directions);
        directions.map(|direction| direction.bytes).max().unwrap_or(0)
    }
}
