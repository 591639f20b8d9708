//! How lanes come up and go down: listening, dialling, greeting, backing off.
//!
//! The replica with the higher id dials, the one with the lower id listens. Each end sends a
//! greeting with a nonce; the two nonces make the incarnation of the lane.

use crate::TcpTransport;
use crate::connection::Connection;
use crate::greeting::Greeting;
use crate::lane::{Address, CONNECT_TIMEOUT, Dial, GREETING_TIMEOUT, LANES, Ready, lane_index};
use crate::resolver::{Resolver, Ticket};
use crate::wire::{Hello, incarnation};
use mio::net::TcpStream;
use mio::{Interest, Token};
use quorate_consensus::NodeId;
use quorate_transport::{Event, Lane};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Connections whose greeting is incomplete; further ones are closed at once.
pub const PENDING_MAX: usize = 64;
/// A poll accepts at most so many connections.
const ACCEPTS_PER_POLL: usize = 16;
/// After the system refused to accept (no file descriptors, say) it is asked again this much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A silent connection is probed after this long.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Refused connections are logged at most this often.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) const WAKER_TOKEN: Token = Token(0);
pub(crate) const LISTENER_TOKEN: Token = Token(1);
/// Descriptors that others read.
pub(crate) const WATCHED_TOKEN: Token = Token(2);
const LANE_TOKENS: usize = 3;
/// Above those of all lanes of all 65535 replicas.
const PENDING_TOKENS: usize = 1 << 20;

/// An accepted connection that has not said who it is.
#[derive(Debug)]
pub(crate) struct Pending {
    token: Token,
    greeting: Greeting,
}

pub(crate) const fn lane_token(peer: NodeId, lane: Lane) -> Token {
    Token(LANE_TOKENS + peer.0 as usize * 2 + lane_index(lane))
}

/// The lane whose token this is.
pub(crate) fn token_lane(token: Token) -> Option<(NodeId, Lane)> {
    let number = token.0.checked_sub(LANE_TOKENS)?;
    let peer = u16::try_from(number / 2).ok()?;
    Some((NodeId(peer), LANES[number % 2]))
}

impl TcpTransport {
    /// Brings lanes that greeted in an earlier poll up, and says so.
    pub(crate) fn promote(&mut self, events: &mut Vec<Event>) {
        for peer in &mut self.peers {
            for (lane, slot) in LANES.into_iter().zip(&mut peer.lanes) {
                let Some(ready) = slot.ready.take() else { continue };
                let rebuilt = slot.came_up();
                let Ready { stream, life, cluster } = ready;
                slot.connection = Some(Connection::new(stream, peer.id, lane, life, cluster));
                slot.dial = Dial::Idle;
                peer.reconnects += u64::from(rebuilt);
                tracing::debug!(peer = peer.id.0, ?lane, %life, "lane is up");
                events.push(Event::LinkUp { peer: peer.id, lane, incarnation: life });
            }
        }
    }

    /// Ends a life of a lane. `tell` the other end why if it is at fault or asked to know.
    pub(crate) fn drop_lane(&mut self, place: usize, lane: Lane, reason: &str, tell: bool) {
        let local = self.local;
        let peer = &mut self.peers[place];
        let slot = peer.lane(lane);
        slot.ready = None;
        let connection = slot.connection.take();
        let since = connection.as_ref().map(|connection| connection.since);
        if local > peer.id {
            peer.lane(lane).back_off(&mut self.random, since);
        }
        self.unsettled = true;
        reason.clone_into(&mut peer.last_error);
        if let Some(mut connection) = connection {
            if tell {
                connection.say_goodbye(reason);
            }
            tracing::warn!(peer = peer.id.0, ?lane, reason, "lane is down");
            let reason = reason.to_owned();
            self.events.push(Event::LinkDown { peer: peer.id, lane, reason });
        }
    }

    /// Everything that is not data: new connections, greetings, attempts, timers.
    pub(crate) fn step_links(&mut self) {
        let now = Instant::now();
        self.accept(now);
        self.step_pending(now);
        self.take_answers(now);
        for place in 0..self.peers.len() {
            for lane in LANES {
                self.step_dial(place, lane, now);
            }
        }
        let lanes = self.peers.iter().flat_map(|peer| &peer.lanes);
        let mut busy = lanes.map(|slot| slot.ready.is_some() || !matches!(slot.dial, Dial::Idle));
        self.unsettled = busy.any(|busy| busy) || !self.pending.is_empty() || self.accept_ready;
    }

    /// The next moment at which [`Self::step_links`] has to run though no socket is ready; now, if
    /// one is.
    pub(crate) fn next_timer(&self, now: Instant) -> Option<Instant> {
        let slots = self.peers.iter().flat_map(|peer| &peer.lanes);
        let dials = slots.filter_map(|slot| {
            let ready = match &slot.dial {
                Dial::Connecting { ready, .. } => *ready,
                Dial::Greeting(greeting) => greeting.ready,
                _ => false,
            };
            if ready || slot.ready.is_some() { Some(now) } else { slot.dial.timer() }
        });
        let pending = self
            .pending
            .iter()
            .map(|pending| if pending.greeting.ready { now } else { pending.greeting.deadline });
        let accept = self.accept_ready.then(|| self.accept_after.unwrap_or(now));
        dials.chain(pending).chain(accept).min()
    }

    pub(crate) fn pending_is_ready(&mut self, token: Token) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.token == token) {
            pending.greeting.ready = true;
        }
    }

    fn accept(&mut self, now: Instant) {
        if !self.accept_ready || self.accept_after.is_some_and(|after| after > now) {
            return;
        }
        self.accept_after = None;
        for _ in 0..ACCEPTS_PER_POLL {
            match self.listener.accept() {
                Ok((stream, from)) => {
                    if let Err(error) = self.admit(stream, now) {
                        self.refused(&format!("a connection from {from}: {error}"));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.accept_ready = false;
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.refused(&format!("the system refuses to accept connections: {error}"));
                    self.accept_after = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut stream: TcpStream, now: Instant) -> Result<(), String> {
        if self.pending.len() == PENDING_MAX {
            return Err(format!("{PENDING_MAX} others have not greeted yet"));
        }
        prepare(&stream);
        let token = Token(PENDING_TOKENS + self.next_pending);
        self.next_pending = (self.next_pending + 1) % PENDING_TOKENS;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self.poll.registry().register(&mut stream, token, interest);
        registered.map_err(|error| error.to_string())?;
        let greeting = Greeting::new(stream, now + GREETING_TIMEOUT, self.random.word());
        self.pending.push(Pending { token, greeting });
        Ok(())
    }

    fn step_pending(&mut self, now: Instant) {
        let mut place = 0;
        while place < self.pending.len() {
            let greeting = &mut self.pending[place].greeting;
            let heard = if greeting.ready { greeting.hear() } else { Ok(None) };
            let outcome = match heard {
                Ok(Some(hello)) => {
                    let pending = self.pending.swap_remove(place);
                    self.welcome(pending.greeting, &hello)
                }
                Ok(None) if greeting.deadline > now => {
                    place += 1;
                    continue;
                }
                Ok(None) => {
                    self.pending.swap_remove(place);
                    Err("a connection was silent".into())
                }
                Err(reason) => {
                    self.pending.swap_remove(place);
                    Err(reason)
                }
            };
            if let Err(reason) = outcome {
                self.refused(&reason);
            }
        }
    }

    /// Answers a greeting, and hands the connection to its lane; or refuses it with a reason.
    fn welcome(&mut self, mut greeting: Greeting, hello: &Hello) -> Result<(), String> {
        let nonce = greeting.nonce;
        let reply = |refusal| Hello {
            lane: hello.lane,
            from: self.local,
            to: hello.from,
            cluster: self.cluster,
            nonce,
            refusal,
        };
        let place = match self.judge(hello) {
            Ok(place) => place,
            Err(reason) => {
                // It gets the reason if it is still there; nothing else can be done for it.
                let _ = greeting.say(&reply(Some(0)), &reason);
                return Err(format!("replica {} was refused: {reason}", hello.from));
            }
        };
        greeting.say(&reply(None), "")?;
        let mut stream = greeting.stream;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let token = lane_token(hello.from, hello.lane);
        let registered = self.poll.registry().reregister(&mut stream, token, interest);
        registered.map_err(|error| error.to_string())?;
        if self.peers[place].lane(hello.lane).connection.is_some() {
            self.drop_lane(place, hello.lane, "a newer connection took its place", false);
        }
        let ours = (self.local, nonce);
        let life = incarnation(ours, (hello.from, hello.nonce), hello.lane);
        let cluster = hello.cluster;
        self.peers[place].lane(hello.lane).ready = Some(Ready { stream, life, cluster });
        Ok(())
    }

    /// The place of the peer that greets, or why it is refused.
    fn judge(&self, hello: &Hello) -> Result<usize, String> {
        if hello.to != self.local {
            return Err(format!(
                "this is replica {}, not {}: check the addresses",
                self.local, hello.to
            ));
        }
        // First, since it says most.
        self.same_cluster(hello.cluster)?;
        let place = self.place(hello.from);
        let place = place.ok_or_else(|| format!("replica {} is not a peer", hello.from))?;
        if hello.from < self.local {
            return Err("the replica with the higher id dials".into());
        }
        Ok(place)
    }

    fn same_cluster(&self, theirs: u64) -> Result<(), String> {
        if theirs == 0 || self.cluster == 0 || theirs == self.cluster {
            return Ok(());
        }
        let ours = self.cluster;
        if theirs == self.lost_cluster {
            return Err(format!(
                "cluster {theirs:016x} lost its majority and goes on as cluster {ours:016x}, without what \
                 this directory has: start the replica with an empty one, then `quorate member add`"
            ));
        }
        Err(format!("wrong cluster: {theirs:016x} there, {ours:016x} here"))
    }

    fn refused(&mut self, reason: &str) {
        self.statistics.refused += 1;
        let now = Instant::now();
        if self.warned.is_none_or(|warned| now - warned >= WARNING_INTERVAL) {
            self.warned = Some(now);
            tracing::warn!(reason, refused = self.statistics.refused, "connection refused");
        }
    }

    fn step_dial(&mut self, place: usize, lane: Lane, now: Instant) {
        let dial = &mut self.peers[place].lane(lane).dial;
        let next = match std::mem::replace(dial, Dial::Idle) {
            Dial::Waiting(at) if at <= now => self.start_dial(place, lane, now),
            Dial::Connecting { stream, ready: true, deadline } => {
                self.step_connecting(place, lane, stream, deadline)
            }
            Dial::Connecting { deadline, .. } if deadline <= now => {
                Err("the connection attempt took too long".into())
            }
            Dial::Greeting(greeting) if greeting.ready => self.step_greeting(place, lane, greeting),
            Dial::Greeting(greeting) if greeting.deadline <= now => {
                Err("the other end did not answer the greeting".into())
            }
            other => Ok(other),
        };
        match next {
            Ok(dial) => self.peers[place].lane(lane).dial = dial,
            Err(reason) => self.dial_failed(place, lane, &reason),
        }
    }

    fn dial_failed(&mut self, place: usize, lane: Lane, reason: &str) {
        let peer = &mut self.peers[place];
        // The same thing again and again is news only once.
        if peer.last_error != reason {
            tracing::warn!(peer = peer.id.0, ?lane, reason, "cannot connect");
            reason.clone_into(&mut peer.last_error);
        }
        peer.lane(lane).back_off(&mut self.random, None);
    }

    fn start_dial(&mut self, place: usize, lane: Lane, now: Instant) -> Result<Dial, String> {
        match self.peers[place].address.clone() {
            Address::Unset => Ok(Dial::Idle),
            Address::Literal(address) => self.connect(place, lane, address, now),
            Address::Name(name) => {
                self.serial += 1;
                let serial = self.serial;
                let ticket = Ticket { place: place * 2 + lane_index(lane), serial };
                if self.resolver.is_none() {
                    let started = Resolver::start(std::sync::Arc::clone(&self.waker));
                    self.resolver = Some(started.map_err(|error| error.to_string())?);
                }
                let asked = self.resolver.as_ref().is_some_and(|at| at.ask(ticket, &name));
                if asked { Ok(Dial::Resolving(serial)) } else { Err("no resolver".into()) }
            }
        }
    }

    fn take_answers(&mut self, now: Instant) {
        while let Some(answer) = self.resolver.as_ref().and_then(Resolver::answer) {
            let (place, lane) = (answer.ticket.place / 2, LANES[answer.ticket.place % 2]);
            // It may be for a peer that is none any more.
            let Some(peer) = self.peers.get_mut(place) else { continue };
            let slot = peer.lane(lane);
            if !matches!(slot.dial, Dial::Resolving(serial) if serial == answer.ticket.serial) {
                continue;
            }
            slot.attempts += 1;
            let attempt = slot.attempts;
            let dialled = answer.result.and_then(|addresses| {
                self.connect(place, lane, addresses[attempt % addresses.len()], now)
            });
            match dialled {
                Ok(dial) => self.peers[place].lane(lane).dial = dial,
                Err(reason) => self.dial_failed(place, lane, &reason),
            }
        }
    }

    fn connect(
        &mut self,
        place: usize,
        lane: Lane,
        address: SocketAddr,
        now: Instant,
    ) -> Result<Dial, String> {
        let show = |error: io::Error| format!("cannot connect to {address}: {error}");
        let mut stream = TcpStream::connect(address).map_err(show)?;
        let token = lane_token(self.peers[place].id, lane);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, token, interest).map_err(show)?;
        Ok(Dial::Connecting { stream, deadline: now + CONNECT_TIMEOUT, ready: false })
    }

    fn step_connecting(
        &mut self,
        place: usize,
        lane: Lane,
        stream: TcpStream,
        deadline: Instant,
    ) -> Result<Dial, String> {
        match stream.take_error() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => return Err(format!("cannot connect: {error}")),
        }
        match stream.peer_addr() {
            Ok(_) => {}
            // The news was not about the connection yet.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                return Ok(Dial::Connecting { stream, deadline, ready: false });
            }
            Err(error) => return Err(format!("cannot connect: {error}")),
        }
        prepare(&stream);
        let nonce = self.random.word();
        let mut greeting = Greeting::new(stream, Instant::now() + GREETING_TIMEOUT, nonce);
        let (from, to, cluster) = (self.local, self.peers[place].id, self.cluster);
        greeting.say(&Hello { lane, from, to, cluster, nonce, refusal: None }, "")?;
        Ok(Dial::Greeting(greeting))
    }

    fn step_greeting(
        &mut self,
        place: usize,
        lane: Lane,
        mut greeting: Greeting,
    ) -> Result<Dial, String> {
        let Some(hello) = greeting.hear()? else { return Ok(Dial::Greeting(greeting)) };
        let id = self.peers[place].id;
        if hello.from != id {
            return Err(format!("replica {} answers at the address of replica {id}", hello.from));
        }
        if hello.to != self.local || hello.lane != lane {
            return Err(format!("replica {id} answers another greeting than it was given"));
        }
        self.same_cluster(hello.cluster)?;
        let life = incarnation((self.local, greeting.nonce), (id, hello.nonce), lane);
        let ready = Ready { stream: greeting.stream, life, cluster: hello.cluster };
        self.peers[place].lane(lane).ready = Some(ready);
        Ok(Dial::Idle)
    }
}

/// Options that make a lane quicker or its death more visible; it works without them too.
fn prepare(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
    let results = [stream.set_nodelay(true), socket.set_tcp_keepalive(&keepalive)];
    for error in results.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "a socket option was refused");
    }
}
