//! Votes of passive followers, as the checks know them: by what lies in their memory and what left them.

use crate::atlas::node_at;
use crate::transport::lock;
use crate::world::World;

impl World {
    /// A record that lies in the ring of a passive follower is a vote as soon as the follower's promise is its
    /// ballot and a row has said so; whatever becomes of the row. It is none if the promise is above it.
    pub(crate) fn settle_written(&mut self) {
        let Self { written, places, checks, passive_votes, .. } = self;
        written.retain(|(record, life)| {
            let place = &places[record.to];
            let Some(process) = place.process.as_ref().filter(|process| process.life == *life)
            else {
                return false;
            };
            let Some(subject) = place.subject() else { return true };
            let promised = subject.core.promised();
            if promised != record.ballot {
                return promised < record.ballot;
            }
            if lock(&process.spy).passive != Some((node_at(record.from), record.ballot)) {
                return true;
            }
            let vote = (record.ballot, record.slot);
            *passive_votes += u64::from(subject.core.vote() < vote);
            checks.note_written(&subject, vote);
            false
        });
    }
}
