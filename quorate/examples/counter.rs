//! A replicated, durable counter: three replicas over TCP, one trait of two methods.
use quorate::{BytesMut, Consistency, Context, Replica, StateMachine};

/// The state: replicas feed it the same commands in the same order.
#[derive(Default)]
struct Counter(i64);

impl StateMachine for Counter {
    /// A command is a number to add; the reply is the sum.
    fn apply(&mut self, _: &Context, command: &[u8], reply: &mut BytesMut) {
        match std::str::from_utf8(command).ok().and_then(|text| text.parse::<i64>().ok()) {
            Some(number) => {
                self.0 = self.0.wrapping_add(number);
                reply.extend_from_slice(self.0.to_string().as_bytes());
            }
            None => reply.extend_from_slice(b"not a number"),
        }
    }

    fn query(&self, _: &Context, _: &[u8], reply: &mut BytesMut) {
        reply.extend_from_slice(self.0.to_string().as_bytes());
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "target/counter".into());
    let addresses = ["127.0.0.1:7191", "127.0.0.1:7192", "127.0.0.1:7193"];
    let mut replicas = Vec::new();
    for number in 1..=3 {
        let replica = Replica::builder(number)
            .members(addresses)
            .directory(format!("{directory}/{number}"))
            .start(Counter::default())?;
        replicas.push(replica);
    }
    // Any replica takes any command. A reply means: durable at a majority, applied in order.
    for (replica, number) in replicas.iter().cycle().zip(1..=30) {
        let sum = replica.handle().propose(number.to_string().as_bytes()).wait()?;
        println!("replica {} added {number}: {}", replica.status().node, sum.escape_ascii());
    }
    // The replicas are told to stop one by one; the two that are left go on.
    replicas.remove(0).stop();
    let sum = replicas[0].handle().propose(b"1000").wait()?;
    println!("with one replica gone: {}", sum.escape_ascii());
    let read = replicas[1].handle().query(b"", Consistency::Linearizable).wait()?;
    println!("a linearizable read elsewhere: {}", read.escape_ascii());
    println!("what a reply survives: {}", replicas[0].status().durability);
    Ok(())
}
