//! Turns host names into addresses on a thread of its own: the system's resolver blocks.

use mio::Waker;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};

/// Questions that may wait; each dialling lane has at most one.
const QUESTIONS_MAX: usize = 1024;
/// Addresses of one name that are tried, one after the other.
const ADDRESSES_MAX: usize = 16;

/// Which lane asks; handed back with the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    pub(crate) place: usize,
    /// Tells the answer to this question from one to an earlier one.
    pub(crate) serial: u64,
}

pub(crate) struct Answer {
    pub(crate) ticket: Ticket,
    /// At least one address.
    pub(crate) result: Result<Vec<SocketAddr>, String>,
}

/// Lives as long as its transport; the thread ends after the question that it is at.
#[derive(Debug)]
pub(crate) struct Resolver {
    questions: SyncSender<(Ticket, String)>,
    answers: Receiver<Answer>,
}

impl Resolver {
    pub(crate) fn start(waker: Arc<Waker>) -> std::io::Result<Self> {
        let (questions, asked) = mpsc::sync_channel::<(Ticket, String)>(QUESTIONS_MAX);
        let (answer, answers) = mpsc::sync_channel(QUESTIONS_MAX);
        std::thread::Builder::new().name("quorate-resolver".into()).spawn(move || {
            while let Ok((ticket, name)) = asked.recv() {
                let result = resolve(&name);
                if answer.send(Answer { ticket, result }).is_err() || waker.wake().is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { questions, answers })
    }

    /// Asks; `false` if too many questions wait.
    pub(crate) fn ask(&self, ticket: Ticket, name: &str) -> bool {
        match self.questions.try_send((ticket, name.to_owned())) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    pub(crate) fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

fn resolve(name: &str) -> Result<Vec<SocketAddr>, String> {
    let addresses =
        name.to_socket_addrs().map_err(|error| format!("cannot resolve {name}: {error}"))?;
    let addresses: Vec<SocketAddr> = addresses.take(ADDRESSES_MAX).collect();
    if addresses.is_empty() { Err(format!("{name} has no address")) } else { Ok(addresses) }
}
