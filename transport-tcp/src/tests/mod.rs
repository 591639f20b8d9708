use crate::{TcpOptions, TcpTransport};
use quorate_consensus::NodeId;
use quorate_transport::{Transport, conformance};

mod adversity;

pub(crate) const A: NodeId = NodeId(1);
pub(crate) const B: NodeId = NodeId(2);

/// Endpoints on free ports of the loopback, told of each other.
pub(crate) fn endpoints(count: u16) -> Vec<TcpTransport> {
    let ids: Vec<NodeId> = (1..=count).map(NodeId).collect();
    let bind = |id: &NodeId| {
        let others = ids.iter().filter(|peer| *peer != id);
        let peers = others.map(|peer| (*peer, String::new())).collect();
        let listen = "127.0.0.1:0".parse().unwrap();
        TcpTransport::bind(TcpOptions { local: *id, listen, peers, cluster: 7 }).unwrap()
    };
    let mut ends: Vec<TcpTransport> = ids.iter().map(bind).collect();
    let addresses: Vec<String> = ends.iter().map(|end| end.local_addr().to_string()).collect();
    for (end, id) in ends.iter_mut().zip(&ids) {
        for (peer, address) in ids.iter().zip(&addresses).filter(|(peer, _)| *peer != id) {
            end.set_peer_address(*peer, address).unwrap();
        }
    }
    ends
}

#[test]
fn tcp_on_the_loopback_conforms() {
    let mut build = |count| {
        let boxed = |end| Box::new(end) as Box<dyn Transport>;
        endpoints(count).into_iter().map(boxed).collect()
    };
    conformance::run(&mut build).assert_passed();
}
