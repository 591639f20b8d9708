//! A blocking Redis client that knows what an error lets one believe.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a client waits for an answer before the outcome is unknown to it.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// Errors that promise that nothing was executed.
const NOTHING_HAPPENED: [&str; 5] = [
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ERR rejected, nothing was executed",
    "ERR max number of clients",
];

/// A reply in RESP2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Option<Vec<u8>>),
    Array(Option<Vec<Reply>>),
}

impl Reply {
    /// A bulk string with this text.
    pub fn text(text: &str) -> Self {
        Self::Bulk(Some(text.into()))
    }

    pub fn is_ok(&self) -> bool {
        *self == Self::Simple("OK".into())
    }
}

/// All that a client can know of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered; the answer may be an error such as a wrong type.
    Reply(Reply),
    /// It did not happen and will not.
    Rejected(String),
    /// It may have happened, or may still.
    Unknown(String),
}

impl Outcome {
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Reply(reply) if reply.is_ok())
    }
}

/// A connection that is made again after it broke.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    timeout: Duration,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    pub fn new(address: &str) -> Self {
        let address = address.parse().expect("an address");
        Self { address, timeout: TIMEOUT, stream: None }
    }

    /// Waits so long for an answer.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends a command and waits for its answer.
    pub fn call(&mut self, arguments: &[&[u8]]) -> Outcome {
        if self.stream.is_none() {
            match self.connect() {
                Ok(stream) => self.stream = Some(stream),
                // Nothing was sent.
                Err(error) => return Outcome::Rejected(format!("cannot connect: {error}")),
            }
        }
        let stream = self.stream.as_mut().expect("just connected");
        let answer =
            stream.get_mut().write_all(&encode(arguments)).and_then(|()| read_reply(stream));
        match answer {
            Ok(Reply::Error(text)) if NOTHING_HAPPENED.iter().any(|it| text.starts_with(it)) => {
                Outcome::Rejected(text)
            }
            Ok(Reply::Error(text)) if text.starts_with("UNKNOWN") => Outcome::Unknown(text),
            Ok(reply) => Outcome::Reply(reply),
            Err(error) => {
                self.stream = None;
                Outcome::Unknown(error.to_string())
            }
        }
    }

    /// [`Client::call`] with a command in words.
    pub fn words(&mut self, command: &str) -> Outcome {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        self.call(&words)
    }

    /// The answer to a command that has to be answered.
    pub fn reply(&mut self, command: &str) -> Reply {
        match self.words(command) {
            Outcome::Reply(reply) => reply,
            other => panic!("{command}: {other:?}"),
        }
    }

    /// Sends a command until it is answered. For commands that may be executed twice.
    pub fn insist(&mut self, command: &str) -> Reply {
        super::wait(&format!("answer to {command}"), super::PATIENCE, || {
            match self.words(command) {
                Outcome::Reply(reply) => Some(reply),
                _ => None,
            }
        })
    }

    fn connect(&self) -> io::Result<BufReader<TcpStream>> {
        let stream = TcpStream::connect_timeout(&self.address, self.timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok(BufReader::new(stream))
    }
}

/// A command as it goes over the wire.
pub fn encode(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Reads one reply.
pub fn read_reply(stream: &mut impl BufRead) -> io::Result<Reply> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let strange = || io::Error::other(format!("a strange reply: {line:?}"));
    if !line.ends_with("\r\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let rest = line.get(1..line.len() - 2).ok_or_else(strange)?;
    let number = || rest.parse::<i64>().map_err(|_| strange());
    Ok(match line.as_bytes()[0] {
        b'+' => Reply::Simple(rest.into()),
        b'-' => Reply::Error(rest.into()),
        b':' => Reply::Integer(number()?),
        b'$' => match usize::try_from(number()?) {
            Err(_) => Reply::Bulk(None),
            Ok(length) => {
                let mut bytes = vec![0; length + 2];
                stream.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Reply::Bulk(Some(bytes))
            }
        },
        b'*' => match usize::try_from(number()?) {
            Err(_) => Reply::Array(None),
            Ok(length) => {
                let items = (0..length).map(|_| read_reply(stream));
                Reply::Array(Some(items.collect::<io::Result<_>>()?))
            }
        },
        _ => return Err(strange()),
    })
}
