//! Clients of other processes: exactly once through broken connections and dead leaders, and three
//! honest outcomes.

#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use quorate::{
    BytesMut, Client, ClientOptions, Consistency, Context, Failure, MediumKind, Replica, RoleName,
    StateMachine,
};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Sum(i64);

impl StateMachine for Sum {
    fn apply(&mut self, _: &Context, command: &[u8], reply: &mut BytesMut) {
        self.0 += std::str::from_utf8(command).unwrap().parse::<i64>().unwrap();
        reply.extend_from_slice(self.0.to_string().as_bytes());
    }

    fn query(&self, _: &Context, _: &[u8], reply: &mut BytesMut) {
        reply.extend_from_slice(self.0.to_string().as_bytes());
    }
}

fn cluster(count: u16) -> Vec<Replica> {
    let held: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers: Vec<String> =
        held.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    drop(held);
    let start = |node| {
        Replica::builder(node)
            .members(&peers)
            .medium(MediumKind::Memory)
            .clients("127.0.0.1:0")
            .start(Sum::default())
            .unwrap()
    };
    (1..=count).map(start).collect()
}

fn addresses(replicas: &[Replica]) -> Vec<String> {
    replicas.iter().map(|replica| replica.clients_address().unwrap().to_string()).collect()
}

fn leader_of(replicas: &[Replica]) -> usize {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let leads = |replica: &Replica| replica.status().role == RoleName::Leader;
        if let Some(leader) = replicas.iter().position(leads) {
            return leader;
        }
        assert!(Instant::now() < deadline, "no leader");
        std::thread::yield_now();
    }
}

/// Passes bytes on to `target`, and cuts each connection after some of them, while `cutting`.
struct Proxy {
    address: SocketAddr,
    cuts: Arc<AtomicU64>,
    cutting: Arc<AtomicBool>,
}

impl Proxy {
    fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, cutting) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(true)));
        let (counted, active) = (Arc::clone(&cuts), Arc::clone(&cutting));
        std::thread::spawn(move || {
            for (index, accepted) in listener.incoming().enumerate() {
                let (near, far) = (accepted.unwrap(), TcpStream::connect(target));
                let Ok(far) = far else { continue };
                // Cut in the answers of some connections and in the questions of others.
                let budget = 150 + index * 97 % 900;
                let (up, down) =
                    if index % 2 == 0 { (budget, usize::MAX) } else { (usize::MAX, budget) };
                for (from, into, limit) in [(&near, &far, up), (&far, &near, down)] {
                    let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    let (counted, active) = (Arc::clone(&counted), Arc::clone(&active));
                    std::thread::spawn(move || pass(from, into, limit, &counted, &active));
                }
            }
        });
        Self { address, cuts, cutting }
    }
}

fn pass(
    mut from: TcpStream,
    mut into: TcpStream,
    limit: usize,
    cuts: &AtomicU64,
    active: &AtomicBool,
) {
    let (mut buffer, mut passed) = ([0; 4096], 0);
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 {
            break;
        }
        if active.load(Ordering::Relaxed) && passed + count > limit {
            let _ = into.write_all(&buffer[..limit - passed]);
            cuts.fetch_add(1, Ordering::Relaxed);
            break;
        }
        passed = passed.saturating_add(count);
        if into.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = into.shutdown(Shutdown::Both);
}

// Rule S9.
#[test]
fn each_command_happens_once_through_connections_that_break_all_the_time() {
    let replicas = cluster(3);
    let proxies: Vec<_> =
        replicas.iter().map(|replica| Proxy::to(replica.clients_address().unwrap())).collect();
    let options = ClientOptions {
        patience: Duration::from_millis(500),
        timeout: Duration::from_secs(60),
        ..ClientOptions::new(proxies.iter().map(|proxy| proxy.address.to_string()))
    };
    let client = Client::with_options(options).unwrap();
    let mut expected = 0;
    let cuts = || proxies.iter().map(|proxy| proxy.cuts.load(Ordering::Relaxed)).sum::<u64>();
    let duplicates =
        || replicas.iter().map(|replica| replica.status().counters.duplicates).sum::<u64>();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut round = 0;
    while cuts() < 20 || duplicates() == 0 {
        assert!(Instant::now() < deadline, "{} cuts, {} duplicates", cuts(), duplicates());
        round += 1;
        let count = 1 + round % 40;
        let pending: Vec<_> = (0..count).map(|_| client.propose(b"1")).collect();
        for one in pending {
            expected += 1;
            // The outcome is the first one, whichever try was applied.
            assert_eq!(one.wait().unwrap(), expected.to_string());
        }
    }
    proxies.iter().for_each(|proxy| proxy.cutting.store(false, Ordering::Relaxed));
    let read = client.query(b"", Consistency::Linearizable).wait().unwrap();
    assert_eq!(read, expected.to_string());
}

#[test]
fn the_death_of_the_leader_costs_a_client_nothing_but_time() {
    let mut replicas = cluster(3);
    let client = Client::connect(addresses(&replicas)).unwrap();
    assert_eq!(client.propose(b"1").wait().unwrap(), "1");
    let pending: Vec<_> = (0..500).map(|_| client.propose(b"1")).collect();
    replicas.remove(leader_of(&replicas)).stop();
    for (number, one) in (2..).zip(pending) {
        assert_eq!(one.wait().unwrap(), number.to_string());
    }
    assert_eq!(client.query(b"", Consistency::Linearizable).wait().unwrap(), "501");
}

#[test]
fn what_never_left_is_rejected_and_what_lost_its_majority_is_unknown() {
    let mut replicas = cluster(3);
    let all = addresses(&replicas);
    let quick = |at: Vec<String>| {
        let timeout = Duration::from_millis(800);
        Client::with_options(ClientOptions { timeout, ..ClientOptions::new(at) }).unwrap()
    };
    let client = quick(all);
    client.propose(b"1").wait().unwrap();
    let leader = replicas.remove(leader_of(&replicas));
    // Only the leader is left, and does not know it yet: it takes the command.
    let alone = quick(vec![leader.clients_address().unwrap().to_string()]);
    alone.propose(b"1").wait().unwrap();
    replicas.into_iter().for_each(Replica::stop);
    let outcome = alone.propose(b"1").wait();
    assert!(matches!(outcome, Err(Failure::Unknown(_))), "{outcome:?}");
    drop(leader);
    let nobody = quick(vec!["127.0.0.1:1".into()]);
    let outcome = nobody.propose(b"1").wait();
    assert!(matches!(outcome, Err(Failure::Rejected(_))), "{outcome:?}");
    let outcome = nobody.query(b"", Consistency::Linearizable).wait();
    assert!(matches!(outcome, Err(Failure::Rejected(_))), "{outcome:?}");
}

#[test]
fn sessions_close_with_their_client_and_strangers_are_hung_up_on() {
    let replicas = cluster(1);
    let at = replicas[0].clients_address().unwrap();
    let client = Client::connect([at.to_string()]).unwrap();
    let clone = client.clone();
    assert_eq!(client.propose(b"2").wait().unwrap(), "2");
    let last = clone.propose(b"3");
    drop((client, clone));
    assert_eq!(last.wait().unwrap(), "5", "a dropped client ends after its last outcome");
    let mut stranger = TcpStream::connect(at).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    stranger.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert!(matches!(stranger.read(&mut [0; 16]), Ok(0) | Err(_)));
}
