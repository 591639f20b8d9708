//! The clients of the server's own tests of processes, and what they need of the module around them.

#![allow(dead_code, unreachable_pub, reason = "shared with the server's tests")]

pub(crate) use crate::{PATIENCE, wait_for as wait};

#[path = "../../../server/tests/process/client.rs"]
pub mod client;
#[path = "../../../server/tests/process/history.rs"]
pub mod history;
