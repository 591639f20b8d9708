//! The calls in the log that make something durable.

use super::Phase;
use crate::explore::Durable;

/// The size of a segment's header.
const HEADER_BYTES: u64 = 64;
/// The size of one copy of the superblock.
const COPY_BYTES: u64 = 32 << 10;

/// What an area is, by its name.
fn what(name: &str) -> Option<&'static str> {
    match name {
        "superblock.new" => Some("superblock in the making"),
        "superblock" => Some("superblock"),
        _ if name.starts_with("segment-") => Some("segment"),
        _ if name.starts_with("spare-") => Some("spare"),
        _ => None,
    }
}

pub(super) fn site(phase: Phase, durable: &Durable<'_>) -> Option<String> {
    Some(match *durable {
        Durable::Persist { name, offset, bytes } => match what(name)? {
            "segment" if phase == Phase::Opening => "settle the tail".to_owned(),
            "segment" => "a batch".to_owned(),
            "spare" if offset == 0 && bytes == HEADER_BYTES => "a segment's header".to_owned(),
            "spare" => "zeros of a new segment".to_owned(),
            "superblock" if bytes == 2 * COPY_BYTES => "the superblock as found".to_owned(),
            superblock if offset % COPY_BYTES == 0 && offset < 2 * COPY_BYTES => {
                format!("{superblock}, {phase}")
            }
            _ => return None,
        },
        Durable::Open { name } => format!("open a {}", what(name)?),
        Durable::Create { name } => format!("create a {}", what(name)?),
        Durable::Rename { from, to } => format!("rename a {} to {}", what(from)?, what(to)?),
        Durable::Remove { name } => format!("remove a {}, {phase}", what(name)?),
    })
}
