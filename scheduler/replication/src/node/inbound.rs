//! Messages from peers: checked before raft-rs sees them, because raft-rs panics on what it thinks impossible.

use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};

use super::Node;
use crate::error::{FatalError, InboundError};
use crate::store::Position;

/// What a message from a peer led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepError {
    /// It was refused; nothing has changed.
    Refused(InboundError),
    /// It proves that this member must stop.
    Fatal(FatalError),
}

impl<P, R> Node<P, R> {
    /// Takes a message from a peer, in raft-rs's encoding.
    pub fn step(&mut self, from: u64, bytes: &[u8]) -> Result<(), StepError> {
        let message = self.parse(from, bytes)?;
        if message.msg_type == MessageType::MsgSnapshot {
            return Err(refused(from, "a snapshot outside of InstallSnapshot"));
        }
        self.take(from, message)
    }

    /// Takes the announcement of a snapshot whose data has arrived; tells the position that it stands for if the node
    /// wants it, and it must be given to the store with the next [`super::Write`].
    pub fn step_snapshot(
        &mut self,
        from: u64,
        bytes: &[u8],
    ) -> Result<Option<Position>, StepError> {
        let message = self.parse(from, bytes)?;
        if message.msg_type != MessageType::MsgSnapshot {
            return Err(refused(from, "InstallSnapshot without a snapshot"));
        }
        let metadata = message.get_snapshot().get_metadata();
        let position = Position {
            index: metadata.index,
            term: metadata.term,
        };
        if position.index == 0 || metadata.get_conf_state().voters.is_empty() {
            return Err(refused(from, "a snapshot of nothing"));
        }
        self.take(from, message)?;
        let wanted = self.raw.snap().is_some_and(|pending| {
            let metadata = pending.get_metadata();
            metadata.index == position.index && metadata.term == position.term
        });
        Ok(wanted.then_some(position))
    }

    fn parse(&self, from: u64, bytes: &[u8]) -> Result<Message, StepError> {
        let message =
            Message::parse_from_bytes(bytes).map_err(|error| refused(from, &error.to_string()))?;
        if message.from != from || message.to != self.raw.raft.id {
            return Err(refused(from, "sender or receiver differ from the envelope"));
        }
        if from == self.raw.raft.id || self.raw.raft.prs().get(from).is_none() {
            return Err(refused(from, "the sender is not a member"));
        }
        if message.term == 0 {
            return Err(refused(from, "a message without a term"));
        }
        match message.msg_type {
            MessageType::MsgAppend
            | MessageType::MsgAppendResponse
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgSnapshot
            | MessageType::MsgHeartbeat
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgTimeoutNow
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse => Ok(message),
            MessageType::MsgHup
            | MessageType::MsgBeat
            | MessageType::MsgPropose
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
            | MessageType::MsgCheckQuorum
            | MessageType::MsgTransferLeader
            | MessageType::MsgReadIndex
            | MessageType::MsgReadIndexResp => {
                Err(refused(from, "a message that members do not send"))
            }
        }
    }

    fn take(&mut self, from: u64, message: Message) -> Result<(), StepError> {
        self.check_sense(from, &message)?;
        self.heard.insert(from, self.now.max(1));
        if let Err(error) = self.raw.step(message) {
            // A message that came too late, such as from a peer of an older term.
            tracing::debug!(%error, from, "a message was dropped");
        }
        self.settle();
        Ok(())
    }

    fn check_sense(&self, from: u64, message: &Message) -> Result<(), StepError> {
        let last = self.raw.raft.raft_log.last_index();
        match message.msg_type {
            MessageType::MsgAppend => {
                let mut term = message.log_term;
                for (offset, entry) in (1..).zip(message.entries.iter()) {
                    let expected = message.index.checked_add(offset);
                    if expected != Some(entry.index)
                        || entry.term < term
                        || entry.term > message.term
                    {
                        return Err(refused(from, "entries out of order"));
                    }
                    term = entry.term;
                }
            }
            MessageType::MsgAppendResponse
                if self.is_leader()
                    && message.term == self.term()
                    && !message.reject
                    && message.index > last =>
            {
                return Err(refused(from, "it acknowledges what was never sent"));
            }
            // The leader speaks only of what this member has acknowledged as durable.
            MessageType::MsgHeartbeat if message.term >= self.term() && message.commit > last => {
                return Err(StepError::Fatal(FatalError::LostEntries {
                    acknowledged: message.commit,
                    last,
                }));
            }
            _ => {}
        }
        Ok(())
    }
}

fn refused(from: u64, why: &str) -> StepError {
    StepError::Refused(InboundError::Malformed {
        from,
        why: why.to_owned(),
    })
}
