//! Quorate's durable log.
#![deny(unsafe_code)]
mod api;
mod error;
mod format;
mod group;
mod index;
mod log;
mod medium;
mod read;
mod recovery;
mod scan;
mod segments;
mod superblock;
pub use api::{
    Damage, Durability, End, Identity, LogOptions, LogStatistics, Lsn, MediumKind, Record,
    Recovered,
};
pub use error::{Fault, LogError, OpenError};
pub use log::Log;
pub use medium::{Area, FileMedium, MappedMedium, Medium, Profile, open_medium};
