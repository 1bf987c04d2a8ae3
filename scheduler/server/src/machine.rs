//! The state machine that the replicated log drives: decodes commands, applies them to `core`'s state, and tells who
//! wants to hear of it.
//!
//! Runs on the replication thread only. It must never wait for anybody: publishing is wake-ups, and the lock is held for
//! one batch of entries. A command that this release does not know stops the member loudly; skipping it would make its
//! state differ from the others'.

use std::sync::{Arc, PoisonError, RwLock};

use prost::Message as _;
use trainyard_core::{COMMAND_FORMAT, Change, EventKind, Refusal, Reply, State};
use trainyard_proto::store::v1::Command;
use trainyard_proto::v1::WatchEventType;
use trainyard_replication::{AppliedEntry, StateMachine};

use crate::changes::Changes;
use crate::watch::ring::Event;

/// What became of a command.
pub type Decision = Result<Reply, Refusal>;

/// The state as everybody reads it. Only [`Machine`] writes.
pub type SharedState = Arc<RwLock<State>>;

/// See the module.
#[derive(Debug)]
pub struct Machine {
    state: SharedState,
    changes: Arc<Changes>,
}

impl Machine {
    /// An empty state, and the handle by which others read it.
    pub fn new(changes: Arc<Changes>) -> (Self, SharedState) {
        let state = SharedState::default();
        let machine = Self {
            state: Arc::clone(&state),
            changes,
        };
        (machine, state)
    }
}

impl StateMachine for Machine {
    type Outcome = Decision;

    fn apply(&mut self, entries: &[AppliedEntry<'_>]) -> Vec<Decision> {
        // Decoded before the lock is taken, so that readers wait only for the applying itself.
        let commands = entries
            .iter()
            .map(|entry| decode(entry.index, entry.command))
            .collect::<Result<Vec<Command>, String>>();
        let commands = match commands {
            Ok(commands) => commands,
            Err(why) => {
                tracing::error!(
                    why,
                    "the log holds what this release cannot apply; this member stops here"
                );
                // Fewer outcomes than entries ends replication on this member, and with it the daemon.
                return Vec::new();
            }
        };
        let mut changes: Vec<Change> = Vec::new();
        let mut events: Vec<Event> = Vec::new();
        let mut decisions = Vec::with_capacity(entries.len());
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            for (entry, command) in entries.iter().zip(&commands) {
                let outcome = state.apply(entry.index, command);
                changes.extend(outcome.changes);
                events.extend(outcome.events.into_iter().map(|event| Event {
                    revision: entry.index,
                    time: command.time,
                    kind: event_type(event.kind),
                    name: event.name,
                    summary: event.summary,
                }));
                decisions.push(outcome.reply);
            }
        }
        changes.sort_unstable();
        changes.dedup();
        if let Some(last) = entries.last() {
            self.changes.events.append(last.index, events);
        }
        self.changes.publish(&changes);
        decisions
    }

    fn snapshot(&self) -> Vec<u8> {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .to_snapshot()
    }

    fn restore(&mut self, index: u64, bytes: &[u8]) -> Result<(), String> {
        let restored = State::from_snapshot(bytes).map_err(|e| e.to_string())?;
        if restored.index() > index {
            return Err(format!(
                "the snapshot says that it is of index {}, but the log says {index}",
                restored.index()
            ));
        }
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = restored;
        self.changes.publish_all(index);
        Ok(())
    }
}

fn event_type(kind: EventKind) -> WatchEventType {
    match kind {
        EventKind::Created => WatchEventType::Created,
        EventKind::Updated => WatchEventType::Updated,
        EventKind::Deleted => WatchEventType::Deleted,
    }
}

fn decode(index: u64, bytes: &[u8]) -> Result<Command, String> {
    let command = Command::decode(bytes)
        .map_err(|e| format!("the command at index {index} of the log cannot be read: {e}"))?;
    if command.format != COMMAND_FORMAT {
        return Err(format!(
            "the command at index {index} of the log has format {}, and this release knows {COMMAND_FORMAT}: start the \
             release that wrote it",
            command.format
        ));
    }
    if command.kind.is_none() {
        return Err(format!(
            "the command at index {index} of the log is of a kind that this release does not know: start the release that \
             wrote it"
        ));
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainyard_proto::store::v1::{CreateWorkspace, command::Kind};
    use trainyard_proto::v1::Workspace;

    fn create(format: u32, name: &str) -> Vec<u8> {
        Command {
            format,
            time: Some(prost_types::Timestamp::default()),
            kind: Some(Kind::CreateWorkspace(CreateWorkspace {
                workspace: Some(Workspace {
                    name: name.to_owned(),
                    uid: "u".into(),
                    ..Workspace::default()
                }),
                request_id: String::new(),
            })),
        }
        .encode_to_vec()
    }

    fn entry(index: u64, command: &[u8]) -> AppliedEntry<'_> {
        AppliedEntry {
            index,
            term: 1,
            command,
        }
    }

    #[test]
    fn commands_are_applied_and_survive_a_snapshot() {
        let (mut machine, state) = Machine::new(Arc::default());
        let (a, b) = (create(1, "workspaces/a"), create(1, "workspaces/a"));
        let decisions = machine.apply(&[entry(3, &a), entry(4, &b)]);
        assert!(decisions[0].is_ok() && decisions[1].is_err());
        let bytes = machine.snapshot();
        let (mut other, copy) = Machine::new(Arc::default());
        other.restore(4, &bytes).unwrap();
        assert_eq!(*state.read().unwrap(), *copy.read().unwrap());
    }

    #[test]
    fn an_unknown_command_stops_the_member_and_changes_nothing() {
        let (mut machine, state) = Machine::new(Arc::default());
        let good = create(1, "workspaces/a");
        let mut unknown = Command {
            format: 1,
            ..Command::default()
        }
        .encode_to_vec();
        // Field 2000, which no kind has.
        unknown.extend_from_slice(&[0x82, 0x7d, 0x00]);
        for (bad, word) in [
            (create(2, "workspaces/b"), "format 2"),
            (unknown, "kind"),
            (vec![0xff], "read"),
        ] {
            assert!(machine.apply(&[entry(1, &good), entry(2, &bad)]).is_empty());
            let error = decode(2, &bad).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(state.read().unwrap().index(), 0);
    }
}
