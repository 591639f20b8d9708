//! Quorate's durable log. Being built.
mod api;

pub use api::{
    Damage, Durability, End, Identity, LogOptions, LogStatistics, Lsn, MediumKind, Record,
    Recovered,
};
