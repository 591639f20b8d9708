//! Wrong flags, files, ports, directories and bytes: each gets a message that says what to do, and
//! disturbs nobody else.

mod process;

use process::client::{Client, Outcome, Reply, encode, read_reply};
use process::{Cluster, Folder, PATIENCE, Ports, config, quorate, wait};
use quorate_check::generate::Random;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

/// Resident bytes that a replica of these tests may have: it holds next to no data.
const MEMORY_MAX_KIB: u64 = 1 << 20;

fn complaint(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// A replica of a cluster of three that is not there, in a folder of its own.
struct Lone {
    folder: Folder,
    ports: Ports,
}

impl Lone {
    fn new(name: &str) -> Self {
        Self { folder: Folder::new(name), ports: Ports::reserve() }
    }

    fn text(&self) -> String {
        toml::to_string(&config(&self.ports, self.folder.path(), 1, "file")).expect("TOML")
    }

    /// What `quorate serve` says about this configuration before it gives up.
    fn refused(&self, text: &str) -> String {
        let file = self.folder.path().join("replica.toml");
        fs::write(&file, text).expect("the configuration is written");
        complaint(&quorate(&["serve", "--config", &file.to_string_lossy()]))
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

#[test]
fn a_wrong_flag_or_value_is_answered_with_the_right_one() {
    let said = complaint(&quorate(&["cluster", "--replica", "3"]));
    assert!(said.contains("--replicas"), "{said}");
    let said = complaint(&quorate(&["cluster", "--replicas", "12"]));
    assert!(said.contains("12 is not in 1..=9"), "{said}");
    let said = complaint(&quorate(&["serve"]));
    assert!(said.contains("--config"), "{said}");
    let said = complaint(&quorate(&["statsu"]));
    assert!(said.contains("status"), "{said}");
    let folder = Folder::new("bad-durability");
    let directory = folder.path().to_string_lossy();
    let said = complaint(&quorate(&["cluster", "--dir", &directory, "--durability", "disk"]));
    assert!(said.contains("'disk'") && said.contains("emulated"), "{said}");
}

#[test]
fn a_configuration_that_is_wrong_names_the_file_and_the_key() {
    let lone = Lone::new("bad-configuration");
    let said = complaint(&quorate(&["serve", "--config", "/nowhere/replica.toml"]));
    assert!(said.contains("cannot read the configuration /nowhere/replica.toml"), "{said}");
    let said = lone.refused(&lone.text().replace("spin_us", "spin_ms"));
    assert!(said.contains("did you mean `spin_us`?"), "{said}");
    assert!(said.contains("replica.toml"), "{said}");
    let said = lone.refused(&lone.text().replace("heartbeat_ms", "heartbeat"));
    assert!(said.contains("did you mean `heartbeat_ms`?"), "{said}");
    let said = lone.refused("node = ");
    assert!(said.contains("replica.toml"), "{said}");
    let said = lone.refused(&lone.text().replacen("node = 1", "node = 9", 1));
    assert!(said.contains("replica.node is 9"), "{said}");
    let passive = lone.text().replacen("node = 1", "node = 1\nfollowers = \"passive\"", 1);
    let said = lone.refused(&passive);
    let why = if cfg!(feature = "passive") { "transport = \"rdma\"" } else { "--features passive" };
    assert!(said.contains("replica.followers") && said.contains(why), "{said}");
    let folder = Folder::new("bad-followers");
    let directory = folder.path().to_string_lossy();
    let said = complaint(&quorate(&["cluster", "--dir", &directory, "--followers", "lazy"]));
    assert!(said.contains("--followers lazy") && said.contains("passive"), "{said}");
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    let lone = Lone::new("bad-port");
    let address = lone.ports.client(1);
    let taken = TcpListener::bind(&address).expect("the port is free");
    let said = lone.refused(&lone.text());
    assert!(said.contains(&format!("cannot listen for clients on {address}")), "{said}");
    assert!(said.contains("choose another") && said.contains("stop what uses it"), "{said}");
    drop(taken);
    let address = lone.ports.peer(1);
    let _taken = TcpListener::bind(&address).expect("the port is free");
    let said = lone.refused(&lone.text());
    assert!(said.contains(&address), "{said}");
    assert!(said.contains("in use"), "{said}");
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named_with_the_reason() {
    let lone = Lone::new("bad-directory");
    // A file where the directory should be: also root cannot make that one.
    fs::write(lone.data(), "no directory").expect("a file");
    let said = lone.refused(&lone.text());
    assert!(said.contains(&*lone.data().to_string_lossy()), "{said}");
    fs::remove_file(lone.data()).expect("the file goes");
    // Somebody else's files.
    fs::create_dir(lone.data()).expect("a directory");
    let precious = lone.data().join("superblock");
    fs::write(&precious, "my precious notes").expect("a file");
    fs::write(lone.data().join("holiday.jpg"), [7; 4096]).expect("a file");
    let said = lone.refused(&lone.text());
    assert!(said.contains(&*lone.data().to_string_lossy()), "{said}");
    let notes = fs::read_to_string(&precious).expect("the file is still there");
    assert_eq!(notes, "my precious notes", "a foreign file was overwritten");
    println!("foreign directory: {said}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

#[test]
fn directories_of_another_node_another_cluster_or_in_use_are_refused() {
    let other_cluster = {
        let mut cluster = Cluster::start("bad-other-cluster", "file");
        Client::new(&cluster.address(1)).insist("SET from other");
        cluster.kill_all();
        let folder = Folder::new("bad-other-copy");
        copy(&cluster.replicas[0].config.replica.directory, folder.path());
        folder
    };
    let mut cluster = Cluster::start("bad-swapped", "file");
    Client::new(&cluster.address(1)).insist("SET from here");
    cluster.converged();
    let serve = |file: &Path| quorate(&["serve", "--config", &file.to_string_lossy()]);
    // The directory of a running replica, with ports of its own.
    let mut second = cluster.replicas[0].config.clone();
    let ports = Ports::reserve();
    second.members[0].peer = ports.peer(1);
    second.members[0].client = ports.client(1);
    let file = cluster.folder.path().join("second.toml");
    fs::write(&file, toml::to_string(&second).expect("TOML")).expect("a configuration");
    let said = complaint(&serve(&file));
    let holder = cluster.report(1).expect("it runs").process;
    assert!(said.contains(&holder.to_string()), "names who holds it: {said}");
    // The directory of replica 2, given to replica 1.
    cluster.kill(1);
    let own = cluster.replicas[0].config.replica.directory.clone();
    let aside = own.with_extension("aside");
    fs::rename(&own, &aside).expect("the directory is set aside");
    copy(&cluster.replicas[1].config.replica.directory, &own);
    let said = complaint(&serve(&cluster.replicas[0].file));
    assert!(said.contains("belongs to replica 2, not to 1"), "{said}");
    assert_eq!(said.matches("belongs to").count(), 1, "said once: {said}");
    fs::remove_dir_all(&own).expect("the copy goes");
    // The directory of replica 1 of another cluster: its peers will not have it.
    copy(other_cluster.path(), &own);
    cluster.restart(1);
    let foreign = cluster.wait("the replica of the other cluster", || cluster.report(1)).cluster;
    let ours = cluster.report(2).expect("it runs").cluster;
    assert_ne!(foreign, ours);
    // The operator learns it from `quorate status`, as the reason why there is no link.
    cluster.wait("a status that names both clusters", || {
        let said = String::from_utf8_lossy(&cluster.status(false).stdout).into_owned();
        let named = said.contains(&foreign) && said.contains(&ours);
        (named && said.contains("wrong cluster")).then_some(())
    });
    let mut here = Client::new(&cluster.address(cluster.leader()));
    assert_eq!(here.insist("GET from"), Reply::text("here"));
    let mut stranger = Client::new(&cluster.address(1));
    let outcome = stranger.words("SET from stranger");
    assert!(!outcome.is_ok(), "a replica of another cluster acknowledged: {outcome:?}");
    assert_eq!(here.insist("GET from"), Reply::text("here"));
    // With its own directory all is well again.
    cluster.kill(1);
    fs::remove_dir_all(&own).expect("the copy goes");
    fs::rename(&aside, &own).expect("the directory is back");
    cluster.restart(1);
    cluster.converged();
}

#[test]
fn garbage_on_the_ports_of_peers_and_clients_disturbs_nobody() {
    let cluster = Cluster::start("bad-bytes", "file");
    let mut client = Client::new(&cluster.address(1));
    client.insist("SET key value");
    let before = cluster.leader();
    let ballot = cluster.report(before).expect("it leads").ballot;
    let mut random = Random::new(46);
    for round in 0..60 {
        for node in 1..=3 {
            for address in [cluster.ports.peer(node), cluster.address(node)] {
                let mut stream = TcpStream::connect(&address).expect("the port listens");
                stream.set_write_timeout(Some(Duration::from_secs(5))).expect("an option");
                // The other end may close at any byte.
                let _ = stream.write_all(&garbage(round, &mut random));
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
        assert!(client.insist("INCR counter") == Reply::Integer(round as i64 + 1));
    }
    let after = cluster.report(cluster.leader()).expect("it leads");
    assert_eq!(after.ballot, ballot, "garbage made the leader change");
    assert!(!cluster.logs().contains("panicked"), "{}", cluster.logs());
    cluster.converged();
}

/// Noise, HTTP, absurd lengths, a good beginning with a bad end, by turns.
fn garbage(round: u64, random: &mut Random) -> Vec<u8> {
    let mut noise: Vec<u8> = (0..1 + random.below(4096)).map(|_| random.below(256) as u8).collect();
    match round % 6 {
        0 => noise,
        1 => b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        2 => b"*2147483647\r\n$2147483647\r\n".to_vec(),
        3 => vec![0xff; 4096],
        4 => b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$-5\r\n".to_vec(),
        _ => {
            let mut bytes = encode(&[b"PING"]);
            bytes.append(&mut noise);
            bytes
        }
    }
}

fn resident_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
}

#[test]
fn ten_thousand_idle_connections_and_the_server_still_answers() {
    // Children get the limit of the test: both ends need a descriptor for each connection.
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("the soft limit may be raised");
    let descriptors = limit.maximum.unwrap_or(1 << 20);
    let count = (descriptors.saturating_sub(500) as usize).min(10_000 - 10);
    let cluster = Cluster::start("bad-idle", "memory");
    let process = cluster.report(1).expect("it runs").process;
    let before = resident_kib(process);
    let mut idle = Vec::with_capacity(count);
    for number in 0..count {
        let stream = TcpStream::connect(cluster.address(1));
        idle.push(stream.unwrap_or_else(|error| panic!("connection {number}: {error}")));
    }
    let mut client = Client::new(&cluster.address(1));
    assert!(client.insist("SET key value").is_ok());
    for stream in idle.iter_mut().step_by(count / 10 + 1) {
        stream.write_all(&encode(&[b"GET", b"key"])).expect("an idle connection still works");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        let reply = read_reply(&mut BufReader::new(stream)).expect("an answer");
        assert_eq!(reply, Reply::text("value"));
    }
    let after = resident_kib(process);
    println!("{count} idle connections: {before} KiB before, {after} KiB with them");
    assert!(after < MEMORY_MAX_KIB, "{after} KiB");
    drop(idle);
    assert!(client.insist("SET key other").is_ok());
}

#[test]
fn a_client_that_never_reads_costs_bounded_memory_and_nobody_else_waits() {
    let cluster = Cluster::start("bad-greedy", "memory");
    let process = cluster.report(1).expect("it runs").process;
    let mut client = Client::new(&cluster.address(1));
    let value = vec![b'v'; 1 << 20];
    let outcome = client.call(&[b"SET", b"large", &value]);
    assert!(outcome.is_ok(), "{outcome:?}");
    let mut greedy = TcpStream::connect(cluster.address(1)).expect("a connection");
    greedy.set_write_timeout(Some(Duration::from_secs(2))).expect("an option");
    // Ten thousand megabytes of answers that nobody takes.
    let question = encode(&[b"GET", b"large"]).repeat(100);
    let asked = (0..100).take_while(|_| greedy.write_all(&question).is_ok()).count();
    let mut most = 0;
    for number in 0..200 {
        assert_eq!(client.reply("INCR counter"), Reply::Integer(number + 1));
        most = most.max(resident_kib(process));
    }
    println!("{asked} times 100 questions of a silent client; at most {most} KiB resident");
    assert!(most < MEMORY_MAX_KIB, "{most} KiB");
    drop(greedy);
    assert!(client.insist("SET key value").is_ok());
}

#[test]
fn too_many_clients_are_told_so_and_room_is_made_when_one_leaves() {
    let mut cluster = Cluster::prepare("bad-crowd", "memory", |config| {
        config.client.connections_max = 8;
    });
    cluster.start_all();
    cluster.leader();
    let mut crowd: Vec<Client> = (0..7).map(|_| Client::new(&cluster.address(1))).collect();
    for client in &mut crowd {
        client.insist("PING");
    }
    wait("a refusal", PATIENCE, || {
        let mut late = Client::new(&cluster.address(1));
        let outcome = late.words("PING");
        crowd.push(late);
        matches!(&outcome, Outcome::Rejected(text) if text.contains("max number of clients"))
            .then_some(())
    });
    drop(crowd);
    let mut client = Client::new(&cluster.address(1));
    assert_eq!(client.insist("PING"), Reply::Simple("PONG".into()));
}

#[test]
fn memory_durability_a_killed_replica_comes_back_without_a_vote_and_says_so() {
    let mut cluster = Cluster::start("bad-memory", "memory");
    let victim = cluster.follower(&[]);
    let mut client = Client::new(&cluster.address(cluster.leader()));
    client.insist("SET key value");
    cluster.kill(victim);
    cluster.restart(victim);
    let report = cluster.wait("a replica that says that it has no vote", || {
        let report = cluster.report(victim)?;
        report.trouble.contains("lost what it had promised").then_some(report)
    });
    assert!(!report.votes, "it forgot its promises and votes: {report:?}");
    assert!(client.insist("SET key other").is_ok());
    let converged = cluster.converged();
    let own = cluster.report(victim).expect("it runs");
    assert_eq!(own.digest, converged.digest, "it follows");
    assert_eq!(own.role, "learner");
    let output = cluster.status(false);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("does not vote until it is made a member again"), "{said}");
    // One voter of two left cannot decide alone: it must say so, not guess.
    cluster.kill(cluster.leader());
    let left = (1..=3).find(|node| *node != victim && cluster.report(*node).is_some());
    let left = left.expect("one voter is left");
    cluster.wait("a leaderless voter", || cluster.report(left)?.leader.is_none().then_some(()));
    let outcome = Client::new(&cluster.address(left)).words("SET key lost");
    assert!(!matches!(outcome, Outcome::Reply(_)), "{outcome:?}");
}

/// What the leader heard before the kill says that the replica votes.
#[test]
fn memory_durability_a_replica_is_made_a_member_again_right_after_its_start() {
    let mut cluster = Cluster::start("bad-readmit", "memory");
    for _ in 0..5 {
        let victim = cluster.follower(&[]);
        cluster.kill(victim);
        cluster.restart(victim);
        let node = victim.to_string();
        let output = cluster.member(&["replace", &node, &node]);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let done = format!("replica {victim} votes with the disk that it has now");
        assert!(output.status.success() && said.contains(&done), "{said}");
        cluster.wait("its vote", || cluster.report(victim)?.votes.then_some(()));
    }
}

#[test]
fn a_lost_disk_comes_back_as_a_learner_and_its_old_promises_are_not_forgotten() {
    let mut cluster = Cluster::start("bad-lost-disk", "file");
    let victim = cluster.follower(&[]);
    let mut client = Client::new(&cluster.address(cluster.leader()));
    client.insist("SET key value");
    cluster.kill(victim);
    let directory = cluster.replica(victim).config.replica.directory.clone();
    fs::remove_dir_all(directory).expect("the disk is lost");
    cluster.restart(victim);
    let report = cluster.converged();
    let own = cluster.report(victim).expect("it runs");
    assert!(!own.votes && own.role == "learner", "{own:?}");
    assert_eq!(own.applied_slot, report.applied_slot);
}

#[test]
fn a_half_sent_request_holds_up_only_its_own_connection() {
    let cluster = Cluster::start("bad-half", "memory");
    let mut half = TcpStream::connect(cluster.address(2)).expect("a connection");
    half.write_all(b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$1000\r\nonly a part").expect("it is sent");
    let mut client = Client::new(&cluster.address(2));
    assert!(client.insist("SET key whole").is_ok());
    half.shutdown(Shutdown::Write).expect("the end");
    let mut rest = Vec::new();
    half.set_read_timeout(Some(PATIENCE)).expect("an option");
    half.read_to_end(&mut rest).expect("the server closes too");
    assert_eq!(rest, b"");
    assert_eq!(client.reply("GET key"), Reply::text("whole"));
}
