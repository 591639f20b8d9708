//! Safe objects over libibverbs: what a device does, owned so that nothing dangles.
//!
//! Each object holds the ones it stands on: a [`QueuePair`] its completion queue and protection
//! domain, those the device, that the library. Whoever drops handles in whatever order destroys the
//! objects in the right one. A queue pair comes up in typed steps ([`NewQueuePair`] to
//! [`QueuePair`]); what cannot be posted to in a state has no method for it there.
//!
//! Only classic verbs are used. The calls of the data path go through the function table of the
//! context in Rust, as the inline functions of the header do in C.

mod completion;
mod device;
mod error;
mod library;
mod post;
mod queue_pair;
mod region;

pub use completion::{Channel, Completion, CompletionQueue, Status};
pub use device::{AsyncEvent, Device, DeviceLimits, Gid, GidKind, Port, PortState};
pub use error::{VerbsError, memlock_limit};
pub use library::Library;
pub use post::{Chain, PostFailure, Poster, Remote, Source};
pub use queue_pair::{
    Destination, InitQueuePair, NewQueuePair, Path, QueueDepths, QueuePair, ReceivingQueuePair,
};
pub use region::{Access, MemoryRegion, ProtectionDomain};
