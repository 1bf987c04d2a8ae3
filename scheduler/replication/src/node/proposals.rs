//! Proposals and reads come in here: many commands become one append.

use raft::eraftpb::{Entry, Message, MessageType};

use super::{Inflight, Node};
use crate::error::{ProposeError, ReadError};

impl<P, R> Node<P, R> {
    /// Proposes commands in order, as one append. Refused ones come back through [`Node::take_answers`].
    pub fn propose(&mut self, batch: impl IntoIterator<Item = (P, Vec<u8>)>) {
        let refusal = self.refusal();
        let mut room = self.room();
        let term = self.raw.raft.term;
        let mut index = self.raw.raft.raft_log.last_index();
        let mut accepted = Vec::new();
        let mut entries = Vec::new();
        for (token, command) in batch {
            if let Some(refusal) = &refusal {
                self.answers.proposals.push((token, refusal.clone()));
                continue;
            }
            let bytes = command.len();
            let limit = self.limits.max_command_bytes;
            if bytes == 0 || bytes > limit {
                let refusal = ProposeError::TooLarge { bytes, limit };
                self.answers.proposals.push((token, refusal));
                continue;
            }
            let full = self.inflight.len() + accepted.len() >= self.limits.max_queued_proposals;
            let Some(left) = room.checked_sub(bytes as u64).filter(|_| !full) else {
                self.answers
                    .proposals
                    .push((token, ProposeError::Overloaded));
                continue;
            };
            room = left;
            index += 1;
            let id = self.next_proposal;
            self.next_proposal += 1;
            entries.push(Entry {
                data: command.into(),
                context: id.to_le_bytes().to_vec().into(),
                ..Entry::default()
            });
            accepted.push(Inflight { index, id, token });
        }
        if entries.is_empty() {
            return;
        }
        let message = Message {
            msg_type: MessageType::MsgPropose,
            from: self.raw.raft.id,
            entries: entries.into(),
            ..Message::default()
        };
        match self.raw.step(message) {
            Ok(()) => {
                debug_assert_eq!(self.raw.raft.raft_log.last_index(), index);
                self.inflight_term = term;
                self.inflight.extend(accepted);
            }
            Err(error) => {
                tracing::debug!(%error, "proposals dropped");
                let dropped = accepted
                    .into_iter()
                    .map(|inflight| (inflight.token, ProposeError::Overloaded));
                self.answers.proposals.extend(dropped);
            }
        }
        self.settle();
    }

    /// Why no proposal can be taken at all.
    fn refusal(&self) -> Option<ProposeError> {
        if !self.is_leader() {
            let leader = self.leader();
            return Some(ProposeError::NotLeader { leader });
        }
        if let Some(next) = self.raw.raft.lead_transferee {
            // The caller waits a moment and finds the next leader there.
            return Some(ProposeError::NotLeader { leader: Some(next) });
        }
        (self.log_bytes() >= self.max_log_bytes).then_some(ProposeError::Overloaded)
    }

    /// Bytes that may still be proposed before some are committed. raft-rs takes one command of any size when nothing is
    /// uncommitted, but takes a batch whole or not at all; so the bound is kept here.
    fn room(&self) -> u64 {
        let used = self.raw.raft.uncommitted_size() as u64;
        let largest = self.limits.max_command_bytes as u64;
        match used {
            0 => self.limits.max_uncommitted_bytes.max(largest),
            used => self.limits.max_uncommitted_bytes.saturating_sub(used),
        }
    }

    /// Asks for a linearizable read.
    pub fn read(&mut self, token: R) {
        let failure = if !self.is_leader() {
            let leader = self.leader();
            ReadError::NotLeader { leader }
        } else if self.reads.count() >= self.limits.max_queued_reads {
            ReadError::Overloaded
        } else {
            self.reads.ask(token, self.now);
            self.settle();
            return;
        };
        self.answers.failed_reads.push((token, failure));
    }
}
