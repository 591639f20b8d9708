//! A rolling upgrade: replicas that speak only the older version of the protocol are replaced one by one
//! by ones that speak a newer, under load; the active version rises when the last one can, and not before.
//!
//! Rules V1, V2, V3.

mod process;

use process::client::{Client, Outcome, Reply};
use process::load::Load;
use process::{Cluster, PATIENCE, quorate, wait};
use quorate::PROTOCOL_NEWEST;

/// Starts `node` again, with a claim to speak only up to `version`; none for all.
fn restart(cluster: &mut Cluster, node: u16, version: Option<u16>) {
    cluster.kill(node);
    cluster.replica(node).config.replica.protocol_max = version;
    cluster.restart(node);
}

fn active(cluster: &Cluster, node: u16) -> Option<u16> {
    cluster.report(node).map(|report| report.protocol)
}

#[test]
fn the_version_rises_with_the_last_replica_and_never_goes_back() {
    let mut cluster = Cluster::prepare("upgrade", "file", |config| {
        config.replica.protocol_max = Some(1);
    });
    cluster.start_all();
    cluster.leader();
    let load = Load::start(&cluster.addresses(), 2, 0);
    load.advance(200);
    for node in 1..=3 {
        assert_eq!(active(&cluster, node), Some(1));
        let status = String::from_utf8_lossy(&cluster.status(false).stdout).into_owned();
        wait("the older version is active, and status says who holds it", PATIENCE, || {
            let status = cluster.status(false);
            let said = String::from_utf8_lossy(&status.stdout).into_owned();
            let held = format!("replica {node} speaks up to 1");
            (node == 1
                || said.contains("Protocol version 1; 2 once every member") && said.contains(&held))
            .then_some(())
        });
        assert!(!status.contains("Protocol version 2"), "{status}");
        restart(&mut cluster, node, None);
        // It serves, and knows the others, before the next one goes.
        cluster.leader();
        load.advance(100);
        wait("it has caught up", PATIENCE, || {
            let report = cluster.report(node)?;
            (report.votes && report.leader.is_some() && report.speaks == PROTOCOL_NEWEST)
                .then_some(())
        });
    }
    for node in 1..=3 {
        wait("the newer version is active", PATIENCE, || {
            (active(&cluster, node)? == 2).then_some(())
        });
    }
    load.advance(100);
    let account = load.stop();
    cluster.converged();
    for node in 1..=3 {
        account.check(&cluster.address(node));
    }
    wait("the newest version that all speak", PATIENCE, || {
        let said = String::from_utf8_lossy(&cluster.status(false).stdout).into_owned();
        said.contains("Protocol version 2, the newest that all speak").then_some(())
    });
    // An older program does not start on what a newer one wrote, and says why.
    let follower = cluster.follower(&[]);
    restart(&mut cluster, follower, Some(1));
    wait("it ends", PATIENCE, || cluster.ended(follower));
    let said = cluster.replica(follower).logged();
    assert!(said.contains("active protocol version is 2") && said.contains("up to 1"), "{said}");
    restart(&mut cluster, follower, None);
    // Nor does one become a voter.
    cluster.converged();
    let node = cluster.join_with(|config| config.replica.protocol_max = Some(1));
    let (peer, client) = (cluster.ports.peer(node), cluster.address(node));
    let number = node.to_string();
    let leader = cluster.address(cluster.leader());
    let ask = ["--addr", &leader, "--timeout", "30"];
    let add = quorate(&[&["member", "add", &number, &peer, &client][..], &ask].concat());
    let said = String::from_utf8_lossy(&add.stderr).into_owned();
    assert!(!add.status.success() && said.contains("version 2 is active"), "{said}");
    let mut client = Client::new(&leader);
    let refused = client.call(&[b"QUORATE", b"MEMBERS", b"voters=1,2,3,4"]);
    let Outcome::Reply(Reply::Error(refused)) = refused else { panic!("{refused:?}") };
    assert!(refused.contains("speaks the protocol up to version 1"), "{refused}");
    account.check(&leader);
}
