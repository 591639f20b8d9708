//! Histories: what was asked and answered, when; and their text form.

use std::fmt::{self, Display, Write as _};
use std::str::FromStr;

use crate::record::ClientLog;

/// One operation of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<I, O> {
    /// Who asked. A label only: one client may have several operations in flight.
    pub client: u32,
    /// When it was asked, in any unit that only grows.
    pub call: u64,
    /// What was asked.
    pub input: I,
    /// The answer; `None` when the outcome is unknown: the operation may take effect at any time
    /// after its call, or never.
    pub ret: Option<Return<O>>,
}

/// An answer and when it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Return<O> {
    /// Time of the answer, not before the call.
    pub at: u64,
    /// The answer.
    pub output: O,
}

impl<I, O> Operation<I, O> {
    /// The answer, if one came.
    pub fn output(&self) -> Option<&O> {
        self.ret.as_ref().map(|ret| &ret.output)
    }
}

impl<I: Display, O: Display> Display for Operation<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ret {
            Some(ret) => write!(f, "{} -> {}", self.input, ret.output),
            None => write!(f, "{} -> ?", self.input),
        }
    }
}

/// A set of operations, in the order of their calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History<I, O> {
    operations: Vec<Operation<I, O>>,
}

/// The first line of a history in text form.
const HEADER: &str = "# quorate history v1: client call return|? input -> output|?";

impl<I, O> History<I, O> {
    /// A history of these operations, in any order.
    ///
    /// # Errors
    /// An answer before its call is refused: no history has one, so the recording is wrong.
    pub fn new(mut operations: Vec<Operation<I, O>>) -> Result<Self, HistoryError> {
        for (index, operation) in operations.iter().enumerate() {
            if operation.ret.as_ref().is_some_and(|ret| ret.at < operation.call) {
                return Err(HistoryError { line: index + 1, what: "returned before its call" });
            }
        }
        operations.sort_by_key(|operation| (operation.call, operation.client));
        Ok(History { operations })
    }

    /// The history that several clients recorded.
    ///
    /// An answer stamped before its call (possible only with [`ClientLog::returned_at`]) counts
    /// as having come with the call.
    pub fn merge(logs: impl IntoIterator<Item = ClientLog<I, O>>) -> Self {
        let mut operations: Vec<_> =
            logs.into_iter().flat_map(ClientLog::into_operations).collect();
        for operation in &mut operations {
            if let Some(ret) = &mut operation.ret {
                ret.at = ret.at.max(operation.call);
            }
        }
        operations.sort_by_key(|operation| (operation.call, operation.client));
        History { operations }
    }

    /// The operations in the order of their calls.
    pub fn operations(&self) -> &[Operation<I, O>] {
        &self.operations
    }

    /// Takes the operations out, in the order of their calls.
    pub fn into_operations(self) -> Vec<Operation<I, O>> {
        self.operations
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether there is no operation.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

impl<I: Display, O: Display> History<I, O> {
    /// The text form: a header, then one operation a line. Keep it when a check fails.
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\n");
        for operation in &self.operations {
            let at = operation.ret.as_ref().map_or("?".to_owned(), |ret| ret.at.to_string());
            let line = writeln!(text, "{} {} {at} {operation}", operation.client, operation.call);
            debug_assert!(line.is_ok(), "writing to a string cannot fail");
        }
        text
    }
}

impl<I: FromStr, O: FromStr> History<I, O> {
    /// Reads the text form. Empty lines and lines that begin with `#` say nothing.
    ///
    /// # Errors
    /// The first line that is not an operation.
    pub fn from_text(text: &str) -> Result<Self, HistoryError> {
        let mut operations = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let operation = parse(line).map_err(|what| HistoryError { line: index + 1, what })?;
            operations.push(operation);
        }
        History::new(operations)
    }
}

fn parse<I: FromStr, O: FromStr>(line: &str) -> Result<Operation<I, O>, &'static str> {
    let (asked, answer) = line.rsplit_once(" -> ").ok_or("no ` -> ` before the answer")?;
    let mut words = asked.splitn(4, ' ');
    let client = words.next().and_then(|word| word.parse().ok()).ok_or("bad client number")?;
    let call = words.next().and_then(|word| word.parse().ok()).ok_or("bad time of call")?;
    let at = words.next().ok_or("no time of return")?;
    let input = words.next().and_then(|word| word.parse().ok()).ok_or("bad input")?;
    let ret = match (at, answer) {
        ("?", "?") => None,
        ("?", _) | (_, "?") => return Err("an unknown outcome has neither time nor answer"),
        (at, output) => Some(Return {
            at: at.parse().map_err(|_| "bad time of return")?,
            output: output.parse().map_err(|_| "bad answer")?,
        }),
    };
    Ok(Operation { client, call, input, ret })
}

/// Operations that are no history, or text that is no operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryError {
    line: usize,
    what: &'static str,
}

impl Display for HistoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "history, line or operation {}: {}", self.line, self.what)
    }
}

impl std::error::Error for HistoryError {}
