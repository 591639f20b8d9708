//! The conformance suite of all transports on a real device: `conformance [DEVICE] [PART] [broken-fence]`.
//! `PART` picks the scenarios whose names contain it. With `broken-fence` the transport forgets to
//! deregister what it revokes: the suite has to fail then.

mod broken;

use broken::BrokenFence;
use quorate_consensus::NodeId;
use quorate_ffi::verbs::Library;
use quorate_transport::{Transport, conformance};
use quorate_transport_rdma::{AdapterOptions, RdmaOptions, RdmaTransport};
use quorate_transport_tcp::TcpOptions;
use std::error::Error;
use std::process::ExitCode;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let device = arguments.next().filter(|name| name != "-");
    let part = arguments.next().unwrap_or_default();
    let broken = match arguments.next().as_deref() {
        None => false,
        Some("broken-fence") => true,
        Some(other) => return Err(format!("what is {other}?").into()),
    };
    let library = Library::load()?;
    let adapter = AdapterOptions { device, ..AdapterOptions::default() };
    // One that cannot be made at all is told as it is.
    drop(endpoints(&library, &adapter, 1)?);
    let mut build = |count| {
        let ends = endpoints(&library, &adapter, count).expect("the first one could be made");
        let boxed = |end| match broken {
            true => Box::new(BrokenFence(end)) as Box<dyn Transport>,
            false => Box::new(end),
        };
        ends.into_iter().map(boxed).collect()
    };
    let report = conformance::run_matching(&mut build, &part);
    print!("{report}");
    let failed = report.failures().count();
    let skipped = report.cases.iter().filter(|case| case.skipped.is_some()).count();
    println!(
        "{} passed, {failed} failed, {skipped} skipped",
        report.cases.len() - failed - skipped
    );
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn endpoints(
    library: &Library,
    adapter: &AdapterOptions,
    count: u16,
) -> Result<Vec<RdmaTransport>, Box<dyn Error>> {
    let ids: Vec<NodeId> = (1..=count).map(NodeId).collect();
    let mut ends = Vec::new();
    for local in ids.iter().copied() {
        let peers = ids.iter().filter(|peer| **peer != local);
        let peers = peers.map(|peer| (*peer, String::new())).collect();
        let tcp = TcpOptions { local, listen: "127.0.0.1:0".parse()?, peers, cluster: 7 };
        let options = RdmaOptions { tcp, adapter: adapter.clone() };
        ends.push(RdmaTransport::bind(library, options)?);
    }
    let addresses: Vec<String> = ends.iter().map(|end| end.local_addr().to_string()).collect();
    for (end, local) in ends.iter_mut().zip(&ids) {
        for (peer, address) in ids.iter().zip(&addresses).filter(|(peer, _)| *peer != local) {
            end.set_peer_address(*peer, address)?;
        }
    }
    Ok(ends)
}
