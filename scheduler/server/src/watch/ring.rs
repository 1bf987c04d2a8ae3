//! The last events of this member's log, kept for those who watch.
//!
//! Applying appends, watchers read by position. The ring is bounded by number and by bytes; what is dropped takes nobody's
//! memory along, since a reader holds a number and not an event. A reader that was overrun is told so, and must never be
//! given a later event in place of the ones it missed. The lock is held for a search or a push, never while events are
//! looked at.
//!
//! The ring begins anew when the state is replaced by a snapshot: what happened before is then not known here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost_types::Timestamp;
use tokio::sync::watch;
use trainyard_proto::v1::WatchEventType;

/// Most events that are kept.
const MAX_EVENTS: usize = 100_000;
/// Most bytes of events that are kept.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Events that a reader looks at in one go.
const MAX_LOOK: u64 = 10_000;
/// Bytes that an event costs beside its texts.
const OVERHEAD: usize = size_of::<Event>() + 32;

/// One change of one resource by one entry of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Index of the entry.
    pub revision: u64,
    /// The leader's clock.
    pub time: Option<Timestamp>,
    /// What happened.
    pub kind: WatchEventType,
    /// Resource name.
    pub name: String,
    /// One sentence.
    pub summary: String,
}

/// Events that were applied together.
#[derive(Debug)]
struct Batch {
    /// Position of the first.
    first: u64,
    /// Never empty; revisions never fall.
    events: Vec<Event>,
    bytes: usize,
}

impl Batch {
    fn end(&self) -> u64 {
        self.first + len(&self.events)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Ring {
    kept: Mutex<Kept>,
    /// Counts appends, so that readers wake.
    appended: watch::Sender<u64>,
    max_events: usize,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Kept {
    batches: VecDeque<Arc<Batch>>,
    events: usize,
    bytes: usize,
    /// Position that the next event gets.
    next: u64,
    /// Positions below are not known any more, and belong to another history if the state was replaced.
    first: u64,
    /// Events of revisions up to this one were dropped, or never known.
    dropped: u64,
    /// Revision that was applied last.
    applied: u64,
}

/// Where a reader is in the ring. A number, so that it holds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    next: u64,
    /// Events of earlier revisions are passed over.
    from: u64,
}

/// What a reader asked for is not known here (any more).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "changes before revision {oldest} are not known here any more: list again, and watch from the revision of the list"
)]
pub struct Overrun {
    /// The oldest revision of which everything is known.
    pub oldest: u64,
}

/// What comes next for a reader.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// An event that it wants.
    Event {
        /// The event.
        event: Event,
        /// Whether another one of the same revision follows.
        more: bool,
    },
    /// Many were looked at and none was wanted: let others work, and ask again.
    Later,
    /// Nothing more for now; all up to this revision was looked at.
    Nothing(u64),
}

impl Default for Ring {
    fn default() -> Self {
        Self::with_limits(MAX_EVENTS, MAX_BYTES)
    }
}

impl Ring {
    fn with_limits(max_events: usize, max_bytes: usize) -> Self {
        Self {
            kept: Mutex::default(),
            appended: watch::Sender::new(0),
            max_events,
            max_bytes,
        }
    }

    /// Appends what a batch of entries up to `applied` changed. Called by applying only, after the state was changed.
    pub fn append(&self, applied: u64, events: Vec<Event>) {
        let some = !events.is_empty();
        {
            let mut kept = self.lock();
            kept.applied = applied;
            if some {
                let bytes = events
                    .iter()
                    .map(|e| OVERHEAD + e.name.len() + e.summary.len())
                    .sum();
                let batch = Batch {
                    first: kept.next,
                    events,
                    bytes,
                };
                kept.next = batch.end();
                kept.events += batch.events.len();
                kept.bytes += bytes;
                kept.batches.push_back(Arc::new(batch));
                kept.shrink(self.max_events, self.max_bytes);
            }
        }
        if some {
            self.wake();
        }
    }

    /// The state was replaced by the one at this revision: whoever reads has missed something.
    pub fn restart(&self, revision: u64) {
        {
            let mut kept = self.lock();
            // One position is left out, so that even a reader that had read everything is overrun.
            let next = kept.next + 1;
            *kept = Kept {
                next,
                first: next,
                dropped: revision,
                applied: revision,
                ..Kept::default()
            };
        }
        self.wake();
    }

    /// The revision that was applied last.
    pub fn applied(&self) -> u64 {
        self.lock().applied
    }

    /// The position of what comes after everything so far, and the revision that this is.
    pub fn end(&self) -> (Position, u64) {
        let kept = self.lock();
        let position = Position {
            next: kept.next,
            from: kept.applied + 1,
        };
        (position, kept.applied)
    }

    /// The position of everything that is known, and the revision before it.
    pub fn start(&self) -> (Position, u64) {
        let kept = self.lock();
        let position = Position {
            next: kept.first,
            from: kept.dropped + 1,
        };
        (position, kept.dropped)
    }

    /// The position of the first event of this revision or a later one, which need not have been applied yet.
    pub fn from(&self, revision: u64) -> Result<Position, Overrun> {
        let kept = self.lock();
        if revision <= kept.dropped {
            return Err(kept.overrun());
        }
        let at = kept.batches.partition_point(|batch| {
            batch
                .events
                .last()
                .is_some_and(|last| last.revision < revision)
        });
        let next = kept.batches.get(at).map_or(kept.next, |batch| batch.first);
        Ok(Position {
            next,
            from: revision,
        })
    }

    /// The next event for a reader, who moves on.
    pub fn next(
        &self,
        position: &mut Position,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Next, Overrun> {
        let from = position.from;
        let wants = |event: &Event| event.revision >= from && wanted(&event.name);
        let started = position.next;
        loop {
            if position.next - started > MAX_LOOK {
                return Ok(Next::Later);
            }
            let batch = {
                let kept = self.lock();
                if position.next < kept.first {
                    return Err(kept.overrun());
                }
                let at = kept
                    .batches
                    .partition_point(|batch| batch.end() <= position.next);
                match kept.batches.get(at) {
                    Some(batch) => Arc::clone(batch),
                    None => return Ok(Next::Nothing(kept.applied)),
                }
            };
            let skip = usize::try_from(position.next - batch.first).unwrap_or(usize::MAX);
            let mut rest = batch.events.iter().skip(skip);
            while let Some(event) = rest.next() {
                position.next += 1;
                if wants(event) {
                    // A revision is never spread over two batches.
                    let more = rest
                        .take_while(|later| later.revision == event.revision)
                        .any(wants);
                    let event = event.clone();
                    return Ok(Next::Event { event, more });
                }
            }
        }
    }

    /// Wakes its holder at each append.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.appended.subscribe()
    }

    fn wake(&self) {
        self.appended
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing that holds the lock can leave the ring half-changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn shrink(&mut self, max_events: usize, max_bytes: usize) {
        while self.events > max_events || self.bytes > max_bytes {
            let Some(oldest) = self.batches.pop_front() else {
                return;
            };
            self.events -= oldest.events.len();
            self.bytes -= oldest.bytes;
            self.first = oldest.end();
            if let Some(last) = oldest.events.last() {
                self.dropped = last.revision;
            }
        }
    }

    fn overrun(&self) -> Overrun {
        Overrun {
            oldest: self.dropped + 1,
        }
    }
}

fn len(events: &[Event]) -> u64 {
    u64::try_from(events.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: u64, name: &str) -> Event {
        Event {
            revision,
            time: None,
            kind: WatchEventType::Updated,
            name: name.to_owned(),
            summary: String::new(),
        }
    }

    /// Names and `more` of all that comes now.
    fn drain(ring: &Ring, position: &mut Position) -> Vec<(u64, String, bool)> {
        let mut found = Vec::new();
        while let Next::Event { event, more } = ring.next(position, |n| n != "other").unwrap() {
            found.push((event.revision, event.name, more));
        }
        found
    }

    #[test]
    fn a_reader_sees_each_event_once_and_knows_when_a_revision_is_complete() {
        let ring = Ring::default();
        ring.append(
            4,
            vec![
                event(2, "a"),
                event(2, "b"),
                event(2, "other"),
                event(4, "a"),
            ],
        );
        let (mut position, before) = ring.start();
        assert_eq!(before, 0);
        let seen = |list: &[(u64, &str, bool)]| {
            list.iter()
                .map(|(r, n, m)| (*r, (*n).to_owned(), *m))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            drain(&ring, &mut position),
            seen(&[(2, "a", true), (2, "b", false), (4, "a", false)])
        );
        ring.append(5, Vec::new());
        assert_eq!(
            ring.next(&mut position, |_| true),
            Ok(Next::Nothing(5)),
            "silence has a revision too"
        );
        let (mut late, applied) = ring.end();
        assert_eq!(applied, 5);
        ring.append(6, vec![event(6, "c")]);
        assert_eq!(drain(&ring, &mut late), seen(&[(6, "c", false)]));
        assert_eq!(drain(&ring, &mut position), seen(&[(6, "c", false)]));
    }

    #[test]
    fn a_watch_resumes_at_any_revision_that_is_known_or_still_to_come() {
        let ring = Ring::default();
        ring.append(2, vec![event(1, "a"), event(2, "b")]);
        ring.append(7, vec![event(5, "c"), event(7, "d")]);
        for (revision, expected) in [(1, 4), (2, 3), (3, 2), (5, 2), (6, 1), (7, 1), (8, 0)] {
            let mut position = ring.from(revision).unwrap();
            assert_eq!(drain(&ring, &mut position).len(), expected, "{revision}");
        }
        let mut ahead = ring.from(9).unwrap();
        ring.append(9, vec![event(8, "e"), event(9, "f")]);
        assert_eq!(drain(&ring, &mut ahead), [(9, "f".to_owned(), false)]);
    }

    #[test]
    fn what_is_dropped_is_refused_and_never_passed_over() {
        let ring = Ring::with_limits(3, usize::MAX);
        ring.append(1, vec![event(1, "a")]);
        let (mut slow, _) = ring.start();
        ring.append(3, vec![event(2, "b"), event(3, "c")]);
        ring.append(4, vec![event(4, "d")]);
        let overrun = Overrun { oldest: 2 };
        assert_eq!(ring.next(&mut slow, |_| true), Err(overrun));
        assert_eq!(ring.from(1), Err(overrun));
        assert_eq!(drain(&ring, &mut ring.from(2).unwrap()).len(), 3);
        assert_eq!(ring.start().1, 1);

        let ring = Ring::with_limits(usize::MAX, 2 * OVERHEAD + 100);
        for revision in 1..=10 {
            ring.append(revision, vec![event(revision, &"x".repeat(90))]);
        }
        assert_eq!(ring.from(9), Err(Overrun { oldest: 10 }));
    }

    #[test]
    fn a_snapshot_overruns_everyone() {
        let ring = Ring::default();
        ring.append(3, vec![event(3, "a")]);
        let (mut done, _) = ring.end();
        ring.restart(10);
        assert_eq!(
            ring.next(&mut done, |_| true),
            Err(Overrun { oldest: 11 }),
            "it has missed what the snapshot holds"
        );
        assert_eq!(ring.from(10), Err(Overrun { oldest: 11 }));
        let mut position = ring.from(11).unwrap();
        ring.append(11, vec![event(11, "b")]);
        assert_eq!(drain(&ring, &mut position).len(), 1);
    }
}
