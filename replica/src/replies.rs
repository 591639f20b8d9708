//! The replies of one submission, one behind the other.

use crate::arena;
use crate::machine::{Context, REPLY_BYTES_MAX, StateMachine};
use bytes::{Bytes, BytesMut};
use quorate_consensus::batch::{Group, put_item, take_item};

/// Collects replies; the buffers of one submission serve the next.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    one: BytesMut,
    all: BytesMut,
}

impl Replies {
    /// With room for `bytes`, for one submission alone.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { one: BytesMut::new(), all: BytesMut::with_capacity(bytes) }
    }

    /// Makes room for `bytes` more, so that most replies cost no allocation.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        arena::reserve(&mut self.all, bytes);
    }

    /// Adds the reply that `write` writes; an empty one where a submission has too many bytes of them.
    pub(crate) fn add<R>(&mut self, write: impl FnOnce(&mut BytesMut) -> R) -> R {
        self.one.clear();
        let returned = write(&mut self.one);
        if self.all.len() + self.one.len() > REPLY_BYTES_MAX {
            self.one.clear();
        }
        put_item(&mut self.all, &self.one);
        returned
    }

    /// Those that were added since the last time.
    pub(crate) fn take(&mut self) -> Bytes {
        self.all.split().freeze()
    }

    /// Applies the commands of `group` behind those that are `known` already, and takes their replies.
    pub(crate) fn of_commands(
        &mut self,
        machine: &mut dyn StateMachine,
        context: &Context,
        group: &Group,
        known: u32,
    ) -> Bytes {
        let count = group.header.count;
        self.reserve(16 * count as usize);
        let mut commands = &group.commands[..];
        for index in 0..count {
            let Some(command) = take_item(&mut commands) else { break };
            if index >= known {
                self.add(|reply| machine.apply(context, command, reply));
            }
        }
        self.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(replies: &mut Replies) -> Vec<usize> {
        let taken = replies.take();
        let mut rest = &taken[..];
        std::iter::from_fn(|| take_item(&mut rest).map(<[u8]>::len)).collect()
    }

    #[test]
    fn a_reply_that_makes_all_of_them_too_long_is_empty_and_the_next_is_not() {
        let mut replies = Replies::default();
        for length in [5, REPLY_BYTES_MAX, 7] {
            replies.add(|reply| reply.resize(length, 1));
        }
        assert_eq!(taken(&mut replies), [5, 0, 7]);
        replies.add(|reply| reply.resize(3, 1));
        assert_eq!(taken(&mut replies), [3], "of the next submission alone");
    }
}
