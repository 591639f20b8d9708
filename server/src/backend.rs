//! The Redis front end's way to the replica of its process.

use crate::report::Report;
use crate::resp::{Backend, Freshness, SubmitError};
use quorate::{Bytes, Consistency, Failure, Handle, NodeId, Pending, Reason, RoleName, Slot};
use std::fmt::Write;
use std::sync::Arc;

/// A change of members is proposed, or refused, within a turn of the replica's thread.
const CHANGE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

/// What a follower does with commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnFollower {
    /// Passes them to the leader, and answers when they are applied here.
    #[default]
    Forward,
    /// Answers with where the leader is.
    Redirect,
}

/// A replica, as the front end sees it.
#[derive(Clone, Debug)]
pub struct ReplicaBackend {
    handle: Handle,
    on_follower: OnFollower,
    /// The client address of each member.
    members: Arc<[(NodeId, String)]>,
}

impl ReplicaBackend {
    /// Serves clients from `handle`'s replica.
    #[must_use]
    pub fn new(handle: Handle, on_follower: OnFollower, members: Vec<(NodeId, String)>) -> Self {
        Self { handle, on_follower, members: members.into() }
    }

    /// Refuses what is not for a follower, where redirects were asked for.
    fn check_leads(&self) -> Result<(), SubmitError> {
        if self.on_follower == OnFollower::Forward {
            return Ok(());
        }
        let status = self.handle.status();
        if status.role == RoleName::Leader {
            return Ok(());
        }
        let Some(leader) = status.leader else { return Err(SubmitError::NoLeader) };
        // Members come and move; what the file says is what was so at the start.
        let known = status.configuration.as_ref().and_then(|known| known.address(leader));
        let known = known.map(|at| at.client.clone()).filter(|address| !address.is_empty());
        let in_file = || self.members.iter().find(|(node, _)| *node == leader);
        let address = known.or_else(|| in_file().map(|(_, address)| address.clone()));
        Err(SubmitError::NotLeader { leader: address })
    }

    async fn outcome(pending: Pending) -> Result<Bytes, SubmitError> {
        pending.await.map_err(|failure| match failure {
            Failure::Unknown(reason) => SubmitError::Unknown(reason.to_string()),
            Failure::Rejected(Reason::Busy) => SubmitError::Busy,
            Failure::Rejected(Reason::NoLeader) => SubmitError::NoLeader,
            Failure::Rejected(Reason::Stopped) => SubmitError::ShuttingDown,
            Failure::Rejected(Reason::TooLarge { length, limit }) => {
                SubmitError::TooLarge { bytes: length, limit }
            }
            Failure::Rejected(reason) => SubmitError::Rejected(reason.to_string()),
        })
    }
}

impl Backend for ReplicaBackend {
    async fn write(&self, count: usize, commands: Bytes) -> Result<Bytes, SubmitError> {
        self.check_leads()?;
        Self::outcome(self.handle.propose_items(count as u32, commands)).await
    }

    async fn read(
        &self,
        count: usize,
        queries: Bytes,
        freshness: Freshness,
    ) -> Result<Bytes, SubmitError> {
        let consistency = match freshness {
            Freshness::Stale => Consistency::Stale,
            Freshness::AtLeast(slot) => Consistency::AtLeast(Slot(slot)),
            Freshness::Linearizable => {
                self.check_leads()?;
                Consistency::Linearizable
            }
        };
        Self::outcome(self.handle.query_items(count as u32, queries, consistency)).await
    }

    fn applied_slot(&self) -> u64 {
        self.handle.applied_slot().0
    }

    fn transfer(&self, to: Option<u16>) -> Result<(), String> {
        let status = self.handle.status();
        if status.role != RoleName::Leader {
            let leader = status.leader.map_or("nobody does".into(), |node| node.to_string());
            return Err(format!("this replica does not lead, ask the one that does: {leader}"));
        }
        // It goes its way; the status shows how it ends.
        drop(self.handle.transfer(to.map(NodeId)));
        Ok(())
    }

    fn begin_checkpoint(&self) -> Result<(), String> {
        // Whoever asked looks at the status: a connection does not wait for a disk.
        drop(self.handle.checkpoint());
        Ok(())
    }

    fn status_json(&self) -> String {
        let report = Report::from(&self.handle.status());
        serde_json::to_string(&report).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }

    fn change_members(&self, what: &str) -> Result<u64, String> {
        let change = crate::members::parse(what).map_err(|error| format!("ERR {error}"))?;
        let pending = self.handle.change_members(change);
        // The replica's thread answers in its next turn. It is waited for on another thread, since this
        // one belongs to the runtime, and not for ever, since that one may be busy.
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(pending.wait()));
        let outcome = receiver.recv_timeout(CHANGE_PATIENCE);
        match outcome {
            Ok(Ok(slot)) => {
                let slot = slot.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                Ok(slot)
            }
            Ok(Err(Failure::Rejected(Reason::Members(refusal)))) if refusal.is_temporary() => {
                Err(format!("TRYAGAIN {refusal}"))
            }
            Ok(Err(Failure::Rejected(reason))) => Err(format!("REFUSED {reason}")),
            Ok(Err(Failure::Unknown(reason))) => Err(format!("UNKNOWN {reason}")),
            Err(_) => Err("UNKNOWN the replica did not answer in time".into()),
        }
    }

    fn info(&self) -> String {
        let status = self.handle.status();
        let mut info = String::new();
        let role = if status.role == RoleName::Leader { "master" } else { "slave" };
        let connected = status.peers.iter().filter(|peer| peer.link.data_up).count();
        let leader = status.leader.map_or(String::from("none"), |node| node.to_string());
        // Writing to a string cannot fail.
        let _ = write!(
            info,
            "# Replication\r\nrole:{role}\r\nconnected_slaves:{connected}\r\n\
             quorate_node:{}\r\nquorate_role:{}\r\nquorate_leader:{leader}\r\nquorate_ballot:{}\r\n\
             quorate_commit_slot:{}\r\nquorate_applied_slot:{}\r\n\
             # Persistence\r\nloading:0\r\naof_enabled:1\r\nquorate_medium:{}\r\n\
             quorate_durability:{}\r\n",
            status.node,
            status.role,
            status.ballot,
            status.commit_slot,
            status.applied_slot,
            status.medium,
            status.durability,
        );
        info
    }

    fn acknowledged_replicas(&self) -> u32 {
        let known = self.handle.status().configuration;
        // Where there are witnesses, so many others hold a write (rule W1).
        let copies = known.as_ref().map_or(0, |known| known.copies);
        if copies > 0 {
            return u32::from(copies) - 1;
        }
        let voters = known.map_or(self.members.len(), |known| known.electors().count());
        (voters / 2) as u32
    }
}
