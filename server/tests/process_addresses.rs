//! Members that come and move: redirects follow them, and `quorate member ensure` brings about what a file
//! says, however often it is run.

mod process;

use process::client::{Client, Outcome};
use process::{Cluster, PATIENCE, quorate, wait};

fn ran(arguments: &[&str]) -> String {
    let output = quorate(arguments);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

/// Where a follower sends clients.
fn redirect(address: &str) -> Option<String> {
    match Client::new(address).words("SET redirected 1") {
        Outcome::Rejected(why) => why.strip_prefix("MOVED 0 ").map(str::to_owned),
        _ => None,
    }
}

/// Has the replica at `leader` lead until the one at `follower` sends clients there. On a busy machine it
/// takes more than one attempt, and may not last.
fn leads_and_is_named(leader: &str, follower: &str, others: &str) {
    let ask = format!("{others},{leader}");
    wait("clients are sent to the new leader", PATIENCE, || {
        let report = quorate_server::admin::status(leader).ok()?;
        if report.role != "leader" {
            quorate(&["transfer", "--to", &report.node.to_string(), "--addr", &ask]);
        }
        (redirect(follower)? == leader).then_some(())
    });
}

#[test]
fn what_a_file_says_is_ensured_and_redirects_follow_the_members() {
    let mut cluster = Cluster::prepare("addresses", "file", |config| {
        config.client.on_follower = "redirect".into();
    });
    cluster.start_all();
    cluster.leader();
    // A fourth, which the others' files do not know. Its own file says what there shall be.
    let four = cluster.join_with(|config| config.client.on_follower = "redirect".into());
    let file = cluster.replica(four).file.to_string_lossy().into_owned();
    let ensure = ["member", "ensure", &file, "--timeout", "60"];
    let said = ran(&ensure);
    assert!(said.contains("replica 4 votes"), "{said}");
    let said = ran(&ensure);
    assert!(said.contains("nothing to do: all 4 members are there"), "{said}");
    let members = cluster.report(four).and_then(|report| report.configuration).expect("it knows");
    let before = members.id;
    // It leads, and the others send clients to it.
    let addresses = cluster.addresses().join(",");
    leads_and_is_named(&cluster.address(four), &cluster.address(1), &addresses);
    // It moves: another port for clients, and another one for its peers.
    let (peer, client) = (cluster.ports.peer(9), cluster.ports.client(9));
    cluster.kill(four);
    let config = &mut cluster.replica(four).config;
    for member in config.members.iter_mut().filter(|member| member.node == four) {
        (member.peer, member.client) = (peer.clone(), client.clone());
    }
    cluster.restart(four);
    let addresses = cluster.addresses().join(",");
    let said = ran(&["member", "ensure", &file, "--timeout", "60", "--addr", &addresses]);
    assert!(said.contains(&format!("all look for replica 4 at {peer}")), "{said}");
    wait("the others reach it where it is now", PATIENCE, || {
        let report = quorate_server::admin::status(&client).ok()?;
        let peers = report.peers.iter().filter(|peer| peer.data_up && peer.control_up).count();
        (peers == 3 && report.votes).then_some(())
    });
    leads_and_is_named(&client, &cluster.address(1), &addresses);
    let said = ran(&["member", "ensure", &file, "--timeout", "60"]);
    assert!(said.contains("nothing to do"), "{said}");
    let report = quorate_server::admin::status(&client).expect("it answers");
    let members = report.configuration.expect("it knows the members");
    assert_eq!((members.voters, members.id), (vec![1, 2, 3, 4], before + 1));
}
