//! A byte string that is cheap to clone and that prints as one word.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A key or a value: any bytes, shared, written as one word without blanks.
///
/// The word is the bytes themselves where they are printable ASCII other than `%` and the blank,
/// and `%XX` (two hexadecimal digits) elsewhere; the empty string is a lone `%`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(Arc<[u8]>);

impl Blob {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These bytes followed by those of `tail`.
    pub(crate) fn joined(&self, tail: &Blob) -> Blob {
        let mut bytes = Vec::with_capacity(self.len() + tail.len());
        bytes.extend_from_slice(&self.0);
        bytes.extend_from_slice(&tail.0);
        Blob(bytes.into())
    }
}

impl From<&[u8]> for Blob {
    fn from(bytes: &[u8]) -> Self {
        Blob(bytes.into())
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Blob(bytes.into())
    }
}

impl From<&str> for Blob {
    fn from(text: &str) -> Self {
        Blob(text.as_bytes().into())
    }
}

impl From<String> for Blob {
    fn from(text: String) -> Self {
        Blob(text.into_bytes().into())
    }
}

impl fmt::Display for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("%");
        }
        let mut word = String::with_capacity(self.len());
        for &byte in self.0.iter() {
            if byte.is_ascii_graphic() && byte != b'%' {
                word.push(char::from(byte));
            } else {
                word.push_str(&format!("%{byte:02X}"));
            }
        }
        f.pad(&word)
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A word that is not the written form of a [`Blob`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobError(String);

impl fmt::Display for BlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a word: expected printable ASCII with %XX escapes", self.0)
    }
}

impl std::error::Error for BlobError {}

impl FromStr for Blob {
    type Err = BlobError;

    fn from_str(word: &str) -> Result<Self, BlobError> {
        let wrong = || BlobError(word.to_owned());
        match word {
            "" => return Err(wrong()),
            "%" => return Ok(Blob::from("")),
            _ => {}
        }
        let mut bytes = Vec::with_capacity(word.len());
        let mut rest = word.as_bytes();
        while let [first, tail @ ..] = rest {
            if *first == b'%' {
                let [high, low, after @ ..] = tail else { return Err(wrong()) };
                bytes.push(hex(*high).ok_or_else(wrong)? << 4 | hex(*low).ok_or_else(wrong)?);
                rest = after;
            } else if first.is_ascii_graphic() {
                bytes.push(*first);
                rest = tail;
            } else {
                return Err(wrong());
            }
        }
        Ok(bytes.into())
    }
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}
