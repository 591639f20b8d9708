//! The thread of a [`super::Client`]: one connection at a time, to the leader where it is known.

use super::client::{ClientOptions, ORDERS_MAX, Order};
use super::stream::Stream;
use super::wire::{Answer, Ask, VERSION, take_answer};
use bytes::{Bytes, BytesMut};
use quorate_consensus::NodeId;
use quorate_replica::{Consistency, Failure, GroupOutcome, Reason, Replier};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc::Receiver;
use tokio::time::{interval, timeout};

/// A connection that is not made by then is given up.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Time between two rounds through all addresses.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(10);
/// The client moves to the leader at most this often.
const MOVE_EVERY: Duration = Duration::from_secs(1);
/// Questions on their way at the most.
const QUERIES_IN_FLIGHT_MAX: usize = 512;
/// Bytes that wait for the socket before more is taken on.
const OUT_BYTES: usize = 1 << 20;

struct Query {
    items: Bytes,
    consistency: Consistency,
    reply: Replier,
    deadline: Instant,
    sent: bool,
}

pub(super) struct Driver {
    options: ClientOptions,
    orders: Receiver<Order>,
    /// Payload bytes of orders that wait in the channel or in here.
    bytes: Arc<AtomicUsize>,
    stream: Stream,
    queries: BTreeMap<u64, Query>,
    next_id: u64,
    /// Which replica answers at each address, as far as it said so.
    nodes: Vec<Option<NodeId>>,
    /// The index of the address to try next.
    address: usize,
    leader: Option<NodeId>,
    moved_at: Option<Instant>,
    command_bytes_max: usize,
    last_error: Reason,
    closing: bool,
}

/// Why a connection is left.
enum Leave {
    /// It broke, or its replica is of no use at present: try the next address.
    Next(Reason),
    /// The leader is at this address.
    To(usize),
    /// Nobody needs the client any more.
    Close,
}

impl Driver {
    pub(super) fn new(
        options: ClientOptions,
        session: u64,
        orders: Receiver<Order>,
        bytes: Arc<AtomicUsize>,
    ) -> Self {
        let count = options.addresses.len();
        Self {
            stream: Stream::new(session, options.session_idle, Instant::now()),
            orders,
            bytes,
            queries: BTreeMap::new(),
            next_id: 1,
            nodes: vec![None; count],
            address: session as usize % count,
            leader: None,
            moved_at: None,
            command_bytes_max: usize::MAX,
            last_error: Reason::Remote("no replica was reached yet".into()),
            closing: false,
            options,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let Some(socket) = self.connect().await else { break };
            let leave = self.serve(socket).await;
            self.stream.on_connection_lost();
            self.queries.values_mut().for_each(|query| query.sent = false);
            match leave {
                Leave::Next(reason) => {
                    self.last_error = reason;
                    self.address = (self.address + 1) % self.nodes.len();
                }
                Leave::To(address) => self.address = address,
                Leave::Close => break,
            }
        }
        self.orders.close();
        self.stream.on_time(Instant::now() + Duration::from_secs(1 << 30), &Reason::Stopped);
        for query in std::mem::take(&mut self.queries).into_values() {
            query.reply.send(Err(Failure::Rejected(Reason::Stopped)));
        }
        while let Some(order) = self.orders.recv().await {
            order.fail(Failure::Rejected(Reason::Stopped));
        }
    }

    /// Goes through the addresses until one answers; none when nobody needs it any more.
    async fn connect(&mut self) -> Option<TcpStream> {
        let mut tried = 0;
        loop {
            if self.closing && !self.is_waited_for() {
                return None;
            }
            let address = self.options.addresses[self.address].clone();
            let attempt = async {
                let socket = TcpStream::connect(&address).await?;
                socket.set_nodelay(true)?;
                greet(socket).await
            };
            let made = self.meanwhile(timeout(CONNECT_WITHIN, attempt)).await;
            match made.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok((
                    socket,
                    Answer::Welcome { version: VERSION, node, leader, command_bytes_max },
                )) => {
                    self.nodes[self.address] = Some(node);
                    self.leader = leader.or(self.leader);
                    self.command_bytes_max = command_bytes_max as usize;
                    return Some(socket);
                }
                Ok(_) => {
                    let text = format!("{address} speaks another version of the client protocol");
                    self.last_error = Reason::Remote(text);
                }
                Err(error) => self.last_error = Reason::Remote(format!("{address}: {error}")),
            }
            self.address = (self.address + 1) % self.nodes.len();
            tried += 1;
            if tried % self.nodes.len() == 0 {
                self.meanwhile(tokio::time::sleep(ROUND_PAUSE)).await;
            }
        }
    }

    /// Waits for something while orders are taken and deadlines are kept.
    async fn meanwhile<T>(&mut self, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        let mut tick = interval(TICK);
        loop {
            tokio::select! {
                done = &mut future => return done,
                order = self.orders.recv(), if self.has_room() => self.take(order),
                _ = tick.tick() => self.on_time(),
            }
        }
    }

    async fn serve(&mut self, socket: TcpStream) -> Leave {
        let (mut reader, mut writer) = socket.into_split();
        let (mut incoming, mut out) = (BytesMut::new(), BytesMut::new());
        let mut tick = interval(TICK);
        let mut heard_at = Instant::now();
        loop {
            self.fill(&mut out);
            if let Some(leave) = self.leave(heard_at) {
                if matches!(leave, Leave::Close) {
                    self.say_goodbye(&mut writer).await;
                }
                return leave;
            }
            tokio::select! {
                read = reader.read_buf(&mut incoming) => match read {
                    Ok(0) => return Leave::Next(Reason::Remote("the replica hung up".into())),
                    Ok(_) => {
                        heard_at = Instant::now();
                        if let Some(leave) = self.take_answers(&mut incoming) {
                            return leave;
                        }
                    }
                    Err(error) => return Leave::Next(Reason::Remote(error.to_string())),
                },
                written = writer.write_buf(&mut out), if !out.is_empty() => {
                    if let Err(error) = written {
                        return Leave::Next(Reason::Remote(error.to_string()));
                    }
                }
                order = self.orders.recv(), if self.has_room() => {
                    if !self.is_in_flight() {
                        // Silence counts from when something was asked.
                        heard_at = Instant::now();
                    }
                    self.take(order);
                    // What came together goes together.
                    while self.has_room() && let Ok(order) = self.orders.try_recv() {
                        self.take(Some(order));
                    }
                }
                _ = tick.tick() => self.on_time(),
            }
        }
    }

    async fn say_goodbye(&mut self, writer: &mut OwnedWriteHalf) {
        let mut out = BytesMut::new();
        Ask::Group { id: self.next_id, group: self.stream.close() }.encode(&mut out);
        // The session expires by itself if this is lost.
        let _ = timeout(CONNECT_WITHIN, writer.write_all(&out)).await;
        let _ = writer.shutdown().await;
    }

    fn leave(&self, heard_at: Instant) -> Option<Leave> {
        if self.closing && !self.is_waited_for() {
            return Some(Leave::Close);
        }
        if self.is_in_flight() {
            let silent = heard_at.elapsed() >= self.options.patience;
            return silent.then_some(Leave::Next(Reason::TimedOut));
        }
        let leader = self.leader?;
        let recently = self.moved_at.is_some_and(|at| at.elapsed() < MOVE_EVERY);
        if recently || self.nodes[self.address] == Some(leader) {
            return None;
        }
        let known = self.nodes.iter().position(|node| *node == Some(leader));
        // Perhaps it is at an address where nobody answered yet.
        known.or_else(|| self.nodes.iter().position(Option::is_none)).map(Leave::To)
    }

    fn is_in_flight(&self) -> bool {
        self.stream.is_in_flight() || self.queries.values().any(|query| query.sent)
    }

    fn is_waited_for(&self) -> bool {
        self.stream.is_waited_for() || !self.queries.is_empty()
    }

    /// Whether another order may be taken out of the callers' queue.
    fn has_room(&self) -> bool {
        !self.closing && self.stream.len() + self.queries.len() < ORDERS_MAX
    }

    fn take(&mut self, order: Option<Order>) {
        let Some(order) = order else {
            self.closing = true;
            return;
        };
        let deadline = order.asked_at + self.options.timeout;
        if order.items.len() > self.command_bytes_max {
            self.bytes.fetch_sub(order.items.len(), Ordering::Relaxed);
            let (length, limit) = (order.items.len(), self.command_bytes_max);
            order.reply.send(Err(Failure::Rejected(Reason::TooLarge { length, limit })));
            return;
        }
        match order.query {
            None => self.stream.submit(order.items, 1, order.reply, deadline),
            Some(consistency) => {
                let (items, reply) = (order.items, order.reply);
                let query = Query { items, consistency, reply, deadline, sent: false };
                self.queries.insert(self.next_id, query);
                self.next_id += 1;
            }
        }
    }

    /// What waits goes out, as far as there is room.
    fn fill(&mut self, out: &mut BytesMut) {
        let now = Instant::now();
        while out.len() < OUT_BYTES {
            let Some(group) = self.stream.next_group(self.next_id, now) else { break };
            Ask::Group { id: self.next_id, group }.encode(out);
            self.next_id += 1;
        }
        let mut room = QUERIES_IN_FLIGHT_MAX
            .saturating_sub(self.queries.values().filter(|query| query.sent).count());
        for (&id, query) in self.queries.iter_mut().filter(|(_, query)| !query.sent) {
            if room == 0 || out.len() >= OUT_BYTES {
                break;
            }
            room -= 1;
            query.sent = true;
            let (consistency, items) = (query.consistency, query.items.clone());
            Ask::Query { id, consistency, count: 1, items }.encode(out);
        }
    }

    fn take_answers(&mut self, incoming: &mut BytesMut) -> Option<Leave> {
        loop {
            let (id, outcome) = match take_answer(incoming) {
                Ok(None) => return None,
                Ok(Some(Answer::Outcome { id, leader, outcome })) => {
                    self.leader = leader;
                    (id, outcome)
                }
                Ok(Some(Answer::Welcome { .. })) | Err(_) => {
                    return Some(Leave::Next(Reason::Malformed));
                }
            };
            let refused = if self.queries.contains_key(&id) {
                self.answer_query(id, outcome)
            } else {
                let before = self.stream.bytes();
                let refused = self.stream.on_outcome(id, outcome, Instant::now());
                self.release(before);
                refused
            };
            if let Some(reason) = refused {
                if reason != Reason::Busy {
                    return Some(Leave::Next(reason));
                }
                self.last_error = reason;
            }
        }
    }

    /// Questions change nothing: without an answer they are asked again until their time is over.
    fn answer_query(&mut self, id: u64, outcome: Result<GroupOutcome, Failure>) -> Option<Reason> {
        match outcome {
            Ok(GroupOutcome::Applied(items)) => {
                if let Some(query) = self.queries.remove(&id) {
                    self.bytes.fetch_sub(query.items.len(), Ordering::Relaxed);
                    query.reply.send(Ok(items));
                }
                None
            }
            Ok(_) => Some(Reason::Malformed),
            Err(Failure::Rejected(reason) | Failure::Unknown(reason)) => {
                if let Some(query) = self.queries.get_mut(&id) {
                    query.sent = false;
                }
                Some(reason)
            }
        }
    }

    /// What the stream kept before and does not any more leaves room for others.
    fn release(&self, before: usize) {
        self.bytes.fetch_sub(before - self.stream.bytes(), Ordering::Relaxed);
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        let why = match &self.last_error {
            Reason::Busy | Reason::TimedOut => Reason::TimedOut,
            reason => reason.clone(),
        };
        let before = self.stream.bytes();
        self.stream.on_time(now, &why);
        self.release(before);
        let late: Vec<u64> = self
            .queries
            .iter()
            .filter(|(_, query)| now >= query.deadline)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            if let Some(query) = self.queries.remove(&id) {
                self.bytes.fetch_sub(query.items.len(), Ordering::Relaxed);
                query.reply.send(Err(Failure::Rejected(why.clone())));
            }
        }
    }
}

/// Says hello and waits for the welcome.
async fn greet(mut socket: TcpStream) -> io::Result<(TcpStream, Answer)> {
    let mut buffer = BytesMut::new();
    Ask::Hello { version: VERSION }.encode(&mut buffer);
    socket.write_all_buf(&mut buffer).await?;
    loop {
        if socket.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let answer = take_answer(&mut buffer)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if let Some(answer) = answer {
            return Ok((socket, answer));
        }
    }
}
