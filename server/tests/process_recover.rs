//! `quorate recover` on real processes: five replicas lose three disks; what is left goes on as another
//! cluster, serves, grows again, and refuses those of the old one that come back.
//!
//! Rule F7.

mod process;

use process::client::{Client, Reply};
use process::load::Load;
use process::{Cluster, PATIENCE, quorate, wait};
use std::fs;
use std::path::Path;
use std::process::Output;

fn text(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn ran(arguments: &[&str], code: i32) -> String {
    let output = quorate(arguments);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder for the copy");
    for file in fs::read_dir(from).expect("the directory is there").flatten() {
        fs::copy(file.path(), to.join(file.file_name())).expect("it is copied");
    }
}

/// Waits until `node` leads.
fn leads(cluster: &Cluster, node: u16) {
    wait("it leads", PATIENCE, || cluster.report(node).filter(|report| report.role == "leader"));
}

#[test]
fn two_of_five_go_on_as_another_cluster_and_the_old_one_is_refused() {
    let mut cluster = Cluster::prepare_of(5, "recover", "file", |config| {
        config.client.value_bytes_max = 64 << 10;
        config.limits.batch_bytes_max = 64 << 10;
        config.replica.segment_bytes = 512 << 10;
        config.limits.cache_bytes_max = 1 << 10;
        config.checkpoints.keep = 1;
        config.checkpoints.log_bytes = 0;
        config.checkpoints.log_tail_bytes = 0;
    });
    cluster.start_all();
    cluster.leader();
    let load = Load::start(&cluster.addresses(), 1, 0);
    load.advance(200);
    ran(&["checkpoint", &cluster.addresses().join(",")], 0);
    load.advance(200);
    let account = load.stop();
    let before = cluster.converged();
    let file = cluster.replica(3).file.to_string_lossy().into_owned();
    let said = ran(&["recover", "--config", &file], 2);
    assert!(said.contains("is in use by process"), "{said}");
    // 2 and 3 keep their disks; 4 comes back from the dead later, with the one that it had.
    cluster.kill_all();
    let directory = |cluster: &Cluster, node: u16| {
        cluster.replicas[usize::from(node) - 1].config.replica.directory.clone()
    };
    let old = cluster.folder.path().join("old-4");
    copy(&directory(&cluster, 4), &old);
    for node in [1, 4, 5] {
        fs::remove_dir_all(directory(&cluster, node)).expect("its disk is lost");
    }
    let second = directory(&cluster, 2).to_string_lossy().into_owned();
    // One that runs and is no majority is to be stopped, and looked at.
    cluster.restart(2);
    wait("it answers", PATIENCE, || cluster.report(2).filter(|report| !report.cluster.is_empty()));
    let said = ran(&["recover", "--config", &file], 2);
    assert!(said.contains("replica 2 of cluster") && said.contains("stop it"), "{said}");
    cluster.kill(2);

    let plan = ran(&["recover", "--config", &file, "--and", &second], 1);
    let wanted =
        ["3 votes of replicas 1, 2, 3, 4, 5", "not here: 1, 4, 5", "CERTAIN", "LOST     what the"];
    for part in wanted {
        assert!(plan.contains(part), "{part}: {plan}");
    }
    let said = ran(&["recover", "--config", &file, "--accept-loss", "0123456789abcdef"], 2);
    assert!(said.contains("nothing was changed"), "{said}");
    // Enough of them are no case for a recovery.
    let (third, fourth) = (directory(&cluster, 3), old.to_string_lossy().into_owned());
    let said = ran(&["recover", "--config", &file, "--and", &second, "--and", &fourth], 2);
    assert!(
        said.contains("enough for a majority") && said.contains(&*third.to_string_lossy()),
        "{said}"
    );
    let confirmed =
        ["recover", "--config", &file, "--and", &second, "--accept-loss", &before.cluster];
    let said = ran(&confirmed, 0);
    assert!(said.contains("replica 3 alone"), "{said}");

    cluster.restart(3);
    leads(&cluster, 3);
    account.check(&cluster.address(3));
    let report = cluster.report(3).expect("it answers");
    assert_ne!(report.cluster, before.cluster);
    assert_eq!(report.recovered_from.as_ref(), Some(&before.cluster));
    assert_eq!(report.configuration.expect("it has one").voters, [3]);
    let mut client = Client::new(&cluster.address(3));
    assert!(client.words("SET after recovery").is_ok());
    // The old ones come back: 2 as it was, 4 from its copy. They are told, and lead nothing.
    fs::create_dir_all(directory(&cluster, 4)).expect("a disk");
    copy(&old, &directory(&cluster, 4));
    cluster.restart(2);
    cluster.restart(4);
    wait("4 is told why it is refused", PATIENCE, || {
        let report = cluster.report(4)?;
        let told = report.peers.iter().find(|peer| peer.node == 3)?;
        (told.last_error.contains("lost its majority") && report.leader.is_none()).then_some(())
    });
    let status = text(&cluster.status(false));
    assert!(status.contains("replica 2 (") && status.contains("goes on as cluster"), "{status}");
    for node in [2, 4] {
        cluster.kill(node);
        fs::remove_dir_all(directory(&cluster, node)).expect("its old disk goes");
    }
    // With empty disks they are welcome. The checkpoint of the old cluster serves nobody: replica 3 has
    // taken one of its own.
    let report = cluster.report(3).expect("it answers");
    assert!(report.checkpoints.taken > 0 && report.checkpoints.log_first > 1, "{report:?}");
    for node in [2, 4] {
        cluster.restart(node);
        let (peer, at) = (cluster.ports.peer(node), cluster.address(node));
        let number = node.to_string();
        let ask = ["--addr", &cluster.address(3), "--timeout", "60"];
        ran(&[&["member", "add", &number, &peer, &at][..], &ask].concat(), 0);
        ran(&[&["member", "promote", &number][..], &ask].concat(), 0);
    }
    let received = cluster.report(2).expect("it answers").checkpoints.received;
    assert!(received > 0, "the log alone did not help");
    cluster.kill(3);
    let survivor = wait("the others go on", PATIENCE, || {
        [2, 4]
            .into_iter()
            .find(|node| cluster.report(*node).is_some_and(|report| report.role == "leader"))
    });
    account.check(&cluster.address(survivor));
    let mut client = Client::new(&cluster.address(survivor));
    assert_eq!(client.insist("GET after"), Reply::Bulk(Some(b"recovery".to_vec())));
}
