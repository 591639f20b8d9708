//! A small blocking client: asks a replica for its status through its Redis port.

use crate::report::Report;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long one replica may take to answer.
const TIMEOUT: Duration = Duration::from_millis(1_000);
/// A report is a few kilobytes.
const REPLY_BYTES_MAX: usize = 1 << 20;

/// Why a replica gave no report.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No connection, or it broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Something else listens there, or another version.
    #[error("it answered something that is no status: {0}")]
    Answer(String),
}

/// Sends one request to the replica at `address`.
fn request(address: &str, words: &[&str]) -> Result<BufReader<TcpStream>, AdminError> {
    let mut resolved = address.to_socket_addrs()?;
    let target = resolved.next().ok_or_else(|| io::Error::other("the name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        text.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.write_all(text.as_bytes())?;
    Ok(BufReader::new(stream))
}

/// Asks the leader at `address` to hand over.
///
/// # Errors
/// [`AdminError`]: it does not lead, for example.
pub fn transfer(address: &str, to: Option<u16>) -> Result<(), AdminError> {
    let number = to.map(|node| node.to_string());
    let mut words = vec!["QUORATE", "TRANSFER"];
    words.extend(number.as_deref());
    let mut line = String::new();
    request(address, &words)?.take(1024).read_line(&mut line)?;
    match line.trim_end() {
        "+OK" => Ok(()),
        other => Err(AdminError::Answer(other.trim_start_matches("-ERR ").to_string())),
    }
}

/// Asks the replica at `address`, which should lead, to change the members; see
/// [`crate::members::parse`]. Returns the text of its refusal, or nothing.
///
/// # Errors
/// [`AdminError`].
pub fn change_members(address: &str, what: &str) -> Result<Option<String>, AdminError> {
    let mut line = String::new();
    request(address, &["QUORATE", "MEMBERS", what])?.take(4096).read_line(&mut line)?;
    match (line.strip_prefix('-'), line.strip_prefix(':')) {
        (Some(refusal), _) => Ok(Some(refusal.trim_end().to_owned())),
        (_, Some(_)) => Ok(None),
        _ => Err(AdminError::Answer(line.trim_end().to_owned())),
    }
}

/// Asks the replica at `address` for its report.
///
/// # Errors
/// [`AdminError`].
pub fn status(address: &str) -> Result<Report, AdminError> {
    let mut reader = request(address, &["QUORATE", "STATUS"])?;
    let mut line = String::new();
    reader.by_ref().take(1024).read_line(&mut line)?;
    let length: usize = line
        .strip_prefix('$')
        .and_then(|rest| rest.trim_end().parse().ok())
        .filter(|length| *length <= REPLY_BYTES_MAX)
        .ok_or_else(|| AdminError::Answer(line.trim_end().to_string()))?;
    let mut text = vec![0; length];
    reader.read_exact(&mut text)?;
    serde_json::from_slice(&text).map_err(|error| AdminError::Answer(error.to_string()))
}

/// Has the replica at `address` begin a checkpoint.
///
/// # Errors
/// [`AdminError`].
pub fn begin_checkpoint(address: &str) -> Result<(), AdminError> {
    let mut line = String::new();
    request(address, &["QUORATE", "CHECKPOINT"])?.take(1024).read_line(&mut line)?;
    if line.starts_with('+') {
        return Ok(());
    }
    Err(AdminError::Answer(line.trim_end().to_string()))
}
