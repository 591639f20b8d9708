//! What host and guest say to each other on the control channel, a serial port of the machine.
//!
//! A frame is `kind` (1 byte), `id` (4 bytes), `length` (4 bytes), all little-endian, and `length` bytes.
//! The id names a command that runs in the guest; both ends are the same build, so that there is no
//! version to agree on.

use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// The name of the serial port.
pub const PORT: &str = "quorate.control";

/// No frame is longer; output is cut into pieces of [`PIECE_BYTES`].
const FRAME_BYTES_MAX: usize = 4 << 20;

/// Bytes of output in one frame.
pub const PIECE_BYTES: usize = 32 << 10;

/// What a frame is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Host to guest: start a program, a [`Program`] in JSON.
    Run = 1,
    /// Host to guest: send a signal (4 bytes, little-endian) to the program's process group.
    Signal = 2,
    /// Host to guest: write file systems back and power off.
    PowerOff = 3,
    /// Guest to host: everything is set up; a [`Ready`] in JSON.
    Ready = 16,
    /// Guest to host: it could not be set up, in words.
    Failed = 17,
    /// Guest to host: a piece of standard output.
    Stdout = 18,
    /// Guest to host: a piece of standard error.
    Stderr = 19,
    /// Guest to host: the program ended; a [`Status`] in JSON. Nothing with this id follows.
    Exit = 20,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        let all = [
            Self::Run,
            Self::Signal,
            Self::PowerOff,
            Self::Ready,
            Self::Failed,
            Self::Stdout,
            Self::Stderr,
            Self::Exit,
        ];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A program to run in a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The program, by path or by name, and its arguments.
    pub argv: Vec<String>,
    /// Variables added to the guest's environment.
    pub environment: Vec<(String, String)>,
    /// Where it runs; the guest's root by default.
    pub directory: Option<String>,
}

impl Program {
    /// A program without arguments.
    #[must_use]
    pub fn new(program: impl Into<String>) -> Self {
        Self { argv: vec![program.into()], environment: Vec::new(), directory: None }
    }

    /// A line for the guest's shell.
    #[must_use]
    pub fn shell(line: impl Into<String>) -> Self {
        Self::new("/bin/sh").arg("-c").arg(line)
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.argv.push(argument.into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// One more variable.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Where it runs.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<String>) -> Self {
        self.directory = Some(directory.into());
        self
    }
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// By itself, with this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It did not start, for this reason.
    NotStarted(String),
}

impl Status {
    /// Whether it ended by itself with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        *self == Self::Code(0)
    }

    /// As a shell would say it: the code, 128 and the signal's number, 127 if it did not start.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Code(code) => u8::try_from(*code & 0xff).unwrap_or(u8::MAX),
            Self::Signal(signal) => u8::try_from(128 + (*signal & 0x7f)).unwrap_or(u8::MAX),
            Self::NotStarted(_) => 127,
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::NotStarted(why) => write!(f, "not started: {why}"),
        }
    }
}

/// What a guest says of itself when it is set up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// `uname -r`.
    pub kernel: String,
    /// The RDMA device, if one was asked for.
    pub device: Option<String>,
    /// Its index of the RoCE v2 GID that maps the IPv4 address.
    pub gid_index: u32,
    /// Seconds from the kernel's start until now.
    pub seconds: f64,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is about.
    pub kind: Kind,
    /// The command that it is about; 0 for none.
    pub id: u32,
    /// What it says.
    pub payload: Vec<u8>,
}

/// Writes a frame in one call.
///
/// # Errors
/// When the channel is broken, or the payload is too long for a frame.
pub fn write(out: &mut impl Write, kind: Kind, id: u32, payload: &[u8]) -> io::Result<()> {
    if payload.len() > FRAME_BYTES_MAX {
        return Err(io::Error::other("a frame of more than 4 MiB"));
    }
    let mut bytes = Vec::with_capacity(9 + payload.len());
    bytes.push(kind as u8);
    bytes.extend(id.to_le_bytes());
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(payload);
    out.write_all(&bytes)?;
    out.flush()
}

/// Reads a frame.
///
/// # Errors
/// When the channel is broken, or what comes is no frame.
pub fn read(input: &mut impl Read) -> io::Result<Frame> {
    let mut head = [0; 9];
    input.read_exact(&mut head)?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (id, length) = (word(1), word(5) as usize);
    let kind = Kind::of(head[0]).filter(|_| length <= FRAME_BYTES_MAX);
    let kind = kind.ok_or_else(|| io::Error::other("no frame on the control channel"))?;
    let mut payload = vec![0; length];
    input.read_exact(&mut payload)?;
    Ok(Frame { kind, id, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut bytes = Vec::new();
        write(&mut bytes, Kind::Stdout, 7, b"one").unwrap();
        write(&mut bytes, Kind::Exit, 7, b"").unwrap();
        let mut input = bytes.as_slice();
        let first = Frame { kind: Kind::Stdout, id: 7, payload: b"one".to_vec() };
        assert_eq!(read(&mut input).unwrap(), first);
        assert_eq!(read(&mut input).unwrap().kind, Kind::Exit);
        assert!(read(&mut input).is_err(), "the end is an error");
    }

    #[test]
    fn noise_is_no_frame() {
        assert!(read(&mut [99; 40].as_slice()).is_err());
        let mut long = vec![Kind::Stdout as u8, 0, 0, 0, 0];
        long.extend(u32::MAX.to_le_bytes());
        assert!(read(&mut long.as_slice()).is_err());
    }

    #[test]
    fn a_status_is_an_exit_code() {
        assert_eq!(Status::Code(3).code(), 3);
        assert_eq!(Status::Signal(9).code(), 137);
        assert_eq!(Status::NotStarted(String::new()).code(), 127);
    }
}
