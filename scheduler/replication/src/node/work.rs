//! What a node wants done: the order of these steps is the law in the module above.

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeV2, Entry, EntryType, HardState, Message, MessageType, Snapshot,
};

use super::Node;
use crate::error::ProposeError;
use crate::log_view::cost;
use crate::store::{Position, SnapshotInfo};

/// Where a message goes and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// The member to send it to.
    pub to: u64,
    /// The message.
    pub payload: Payload,
}

/// A message in raft-rs's encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// An ordinary message.
    Message(Bytes),
    /// The announcement of the store's snapshot, which must be streamed with it; its end must be reported with
    /// [`Node::report_snapshot`].
    Snapshot(Bytes),
}

/// What must be durable before [`Node::persisted`].
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// The hard state, always.
    pub hard_state: HardState,
    /// Entries; they replace everything from their first index on.
    pub entries: Vec<Entry>,
    /// A snapshot from a peer, which replaces the whole log and comes before `entries`.
    pub snapshot: Option<SnapshotInfo>,
}

/// The first half of a step.
#[derive(Debug)]
pub struct Work {
    /// May be sent at once.
    pub messages: Vec<Outbound>,
    /// Must be written and synced; `None` when nothing needs to be durable.
    pub write: Option<Write>,
}

/// One command to apply.
#[derive(Debug)]
pub struct Committed<P> {
    /// Its index in the log.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The command.
    pub command: Bytes,
    /// The token, if it was proposed here.
    pub token: Option<P>,
}

/// The second half of a step.
#[derive(Debug)]
pub struct Done<P> {
    /// Must be sent now, and not before the write was durable.
    pub messages: Vec<Outbound>,
    /// The state machine must be restored from the snapshot that was just written, before anything is applied.
    pub snapshot: Option<SnapshotInfo>,
    /// Commands to apply, in order.
    pub committed: Vec<Committed<P>>,
    /// The index to pass to [`Node::applied`] then; `None` when nothing was committed.
    pub applied: Option<u64>,
}

impl<P, R> Node<P, R> {
    /// Whether there is work.
    pub fn has_ready(&self) -> bool {
        self.raw.has_ready()
    }

    /// The first half of a step. No other input may come before [`Node::persisted`].
    pub fn ready(&mut self) -> Work {
        debug_assert!(self.pending.is_none(), "one step at a time");
        let mut ready = self.raw.ready();
        for state in ready.take_read_states() {
            self.reads.confirm(&state.request_ctx, state.index);
        }
        let messages = outbound(ready.take_messages());
        let entries = ready.take_entries();
        let snapshot = Some(ready.snapshot())
            .filter(|snapshot| !snapshot.is_empty())
            .map(snapshot_info);
        let write =
            (ready.must_sync() || !entries.is_empty() || snapshot.is_some()).then(|| Write {
                hard_state: self.raw.raft.hard_state(),
                entries,
                snapshot,
            });
        self.pending = Some(ready);
        Work { messages, write }
    }

    /// The write of the first half is durable.
    pub fn persisted(&mut self, write: Option<Write>) -> Done<P> {
        let Some(mut ready) = self.pending.take() else {
            return Done {
                messages: Vec::new(),
                snapshot: None,
                committed: Vec::new(),
                applied: None,
            };
        };
        let mut snapshot = None;
        if let Some(write) = write {
            snapshot = write.snapshot;
            let log = self.raw.mut_store();
            if let Some(info) = &snapshot {
                log.replaced(info.clone());
            }
            log.append(write.entries);
        }
        let mut messages = ready.take_persisted_messages();
        let mut entries = ready.take_committed_entries();
        let mut light = self.raw.advance_append(ready);
        messages.extend(light.take_messages());
        entries.extend(light.take_committed_entries());

        let applied = entries
            .last()
            .map(|entry| entry.index)
            .or(snapshot.as_ref().map(|info| info.position.index));
        let committed = entries
            .into_iter()
            .filter_map(|entry| self.commit(entry))
            .collect();
        Done {
            messages: outbound(messages),
            snapshot,
            committed,
            applied,
        }
    }

    fn commit(&mut self, entry: Entry) -> Option<Committed<P>> {
        self.bytes_since_snapshot += cost(&entry);
        let mut token = None;
        while self
            .inflight
            .front()
            .is_some_and(|front| front.index <= entry.index)
            && let Some(front) = self.inflight.pop_front()
        {
            let own = front.index == entry.index
                && self.inflight_term == entry.term
                && entry.context == front.id.to_le_bytes()[..];
            if own {
                token = Some(front.token);
            } else {
                // Another entry took its place in the log, so it will never be applied.
                let leader = self.leader();
                let answer = (front.token, ProposeError::NotLeader { leader });
                self.answers.proposals.push(answer);
            }
        }
        match entry.entry_type {
            EntryType::EntryNormal => {}
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                self.membership.push(entry);
                return None;
            }
        }
        // A new leader's first entry is empty and means nothing to the state machine.
        (!entry.data.is_empty()).then(|| Committed {
            index: entry.index,
            term: entry.term,
            command: entry.data,
            token,
        })
    }

    /// Everything up to `index` is applied, or restored.
    pub fn applied(&mut self, index: u64) {
        for entry in std::mem::take(&mut self.membership) {
            self.apply_membership(&entry);
        }
        self.raw.advance_apply_to(index);
        self.settle();
    }

    fn apply_membership(&mut self, entry: &Entry) {
        let applied = match entry.entry_type {
            EntryType::EntryNormal => return,
            EntryType::EntryConfChange => ConfChange::parse_from_bytes(&entry.data)
                .map_err(raft::Error::from)
                .and_then(|change| self.raw.apply_conf_change(&change)),
            EntryType::EntryConfChangeV2 => ConfChangeV2::parse_from_bytes(&entry.data)
                .map_err(raft::Error::from)
                .and_then(|change| self.raw.apply_conf_change(&change)),
        };
        match applied {
            Ok(members) => {
                let ids = members.voters.iter().chain(&members.learners);
                let now = self.now;
                self.heard = ids
                    .map(|id| (*id, self.heard.get(id).copied().unwrap_or(now)))
                    .collect();
            }
            Err(error) => {
                tracing::error!(%error, index = entry.index, "a membership change was not applied");
            }
        }
    }
}

fn snapshot_info(snapshot: &Snapshot) -> SnapshotInfo {
    let metadata = snapshot.get_metadata();
    SnapshotInfo {
        position: Position {
            index: metadata.index,
            term: metadata.term,
        },
        conf_state: metadata.get_conf_state().clone(),
    }
}

fn outbound(messages: Vec<Message>) -> Vec<Outbound> {
    messages.into_iter().filter_map(encode).collect()
}

fn encode(message: Message) -> Option<Outbound> {
    let bytes = match message.write_to_bytes() {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) => {
            // Only a message over 2 GiB; our bounds make none.
            tracing::error!(%error, "a message could not be encoded");
            return None;
        }
    };
    let payload = match message.msg_type {
        MessageType::MsgSnapshot => Payload::Snapshot(bytes),
        _ => Payload::Message(bytes),
    };
    Some(Outbound {
        to: message.to,
        payload,
    })
}
