//! Carries out what [`crate::reconcile`] orders: owns the runners, the found attempts and the retained logs.
//!
//! One loop, woken by the session, by the runners' progress and by the end of the lease; it never waits for any of
//! the work itself. When it returns, tasks run on under their shims: the next life of the agent takes them over.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};
use trainyard_proto::v1::{
    Assignment, AttemptNodePhase, AttemptNodeStatus, Desired, ObservedAttempt,
};

use crate::attempt::{self, Attempt, Host};
use crate::board::AttemptFiles;
use crate::clock;
use crate::exports::Exports;
use crate::reconcile::{Action, AttemptKey, Held, Holding, Node, reconcile};
use crate::record::Found;
use crate::retention::{self, Ended};
use crate::session::Event;
use crate::setup::Setup;

/// Runs attempts.
pub struct Supervisor {
    host: Arc<Host>,
    slots: BTreeMap<AttemptKey, Slot>,
    ended: BTreeMap<AttemptKey, Ended>,
    desired: Option<Box<Desired>>,
    /// Revision of the newest view of this session.
    revision: u64,
    spool_keep_bytes: u64,
    setup: Setup,
    exports: Exports,
}

/// An attempt that the node holds.
struct Slot {
    job: String,
    epoch: u64,
    state: State,
}

enum State {
    Found(Box<Found>),
    Active {
        attempt: Attempt,
        fenced: bool,
        ending: bool,
    },
    Cleaned,
}

impl Slot {
    fn held(&self) -> Held {
        let holding = match &self.state {
            State::Found(_) => Holding::Found,
            State::Active { fenced, ending, .. } => Holding::Active {
                fenced: *fenced,
                ending: *ending,
            },
            State::Cleaned => Holding::Cleaned,
        };
        Held {
            job: self.job.clone(),
            epoch: self.epoch,
            holding,
        }
    }
}

impl Supervisor {
    /// Takes stock of what was found on the disk; nothing is touched before a session brings a view.
    #[must_use]
    pub fn new(
        host: Arc<Host>,
        found: Vec<Found>,
        spool_keep_bytes: u64,
        setup: Setup,
        exports: Exports,
    ) -> Supervisor {
        let mut supervisor = Supervisor {
            host,
            slots: BTreeMap::new(),
            ended: BTreeMap::new(),
            desired: None,
            revision: 0,
            spool_keep_bytes,
            setup,
            exports,
        };
        for found in found {
            let key = AttemptKey::of(&found.assignment);
            let cleaned = found.is_cleaned();
            let (assignment, progress) = (&found.assignment, &found.progress);
            attempt::show(&supervisor.host, assignment, Some(progress), !cleaned);
            if cleaned {
                supervisor.retain(key, found.assignment.epoch);
            } else {
                attempt::mounts::register(&supervisor.host, &found.assignment);
                let slot = Slot {
                    job: found.assignment.job.clone(),
                    epoch: found.assignment.epoch,
                    state: State::Found(Box::new(found)),
                };
                supervisor.slots.insert(key, slot);
            }
        }
        supervisor.drop_surplus();
        supervisor
    }

    /// Runs until `stop` is ready.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut deadline: watch::Receiver<u64>,
        on_ready: impl FnOnce(),
        stop: impl Future<Output = ()>,
    ) {
        let mut progress = self.host.board.changes();
        let mut on_ready = Some(on_ready);
        tokio::pin!(stop);
        loop {
            let lease = *deadline.borrow_and_update();
            let woken = tokio::select! {
                biased;
                () = &mut stop => return,
                event = events.recv() => match event {
                    Some(Event::Welcomed) => {
                        // A new leader's view counts from its own beginning.
                        self.revision = 0;
                        if let Some(on_ready) = on_ready.take() {
                            on_ready();
                        }
                        false
                    }
                    Some(Event::Desired(desired)) => self.take(desired),
                    Some(Event::Closed) => false,
                    // The session ends with the runtime only.
                    None => return,
                },
                _ = progress.changed() => self.note_cleaned(),
                _ = deadline.changed() => false,
                () = until(lease), if self.must_watch() => true,
            };
            if woken {
                self.reconcile(*deadline.borrow());
            }
        }
    }

    /// Whether the end of the lease would concern a running attempt.
    fn must_watch(&self) -> bool {
        self.slots.values().any(|slot| match slot.state {
            State::Active { fenced, .. } => !fenced,
            State::Found(_) | State::Cleaned => false,
        })
    }

    fn take(&mut self, desired: Box<Desired>) -> bool {
        if desired.revision < self.revision {
            debug!(
                revision = desired.revision,
                newest = self.revision,
                "an overtaken view is ignored"
            );
            return false;
        }
        self.revision = desired.revision;
        self.setup.tell(desired.setup.as_ref());
        self.exports.tell(&desired.exports);
        self.desired = Some(desired);
        true
    }

    /// Looks which runners are done. Returns whether any is.
    fn note_cleaned(&mut self) -> bool {
        let mut any = false;
        for (key, slot) in &mut self.slots {
            let cleaned = self.host.board.phase(key) == Some(AttemptNodePhase::Cleaned);
            if matches!(slot.state, State::Active { .. }) && cleaned {
                slot.state = State::Cleaned;
                any = true;
            }
        }
        any
    }

    fn reconcile(&mut self, lease_deadline_ns: u64) {
        let desired = self.desired.take();
        let held = self
            .slots
            .iter()
            .map(|(key, slot)| (key.clone(), slot.held()))
            .collect();
        let mut ended: BTreeMap<String, u64> = BTreeMap::new();
        for attempt in self.ended.values() {
            let highest = ended.entry(attempt.key.uid.clone()).or_default();
            *highest = (*highest).max(attempt.epoch);
        }
        let node = Node {
            held: &held,
            ended: &ended,
            now_ns: clock::boottime_ns(),
            lease_deadline_ns,
        };
        for action in reconcile(desired.as_deref(), node) {
            self.carry_out(action);
        }
        self.desired = desired;
    }

    fn carry_out(&mut self, action: Action<'_>) {
        match action {
            Action::Start(assignment) => self.begin(assignment),
            Action::Adopt(assignment) => self.adopt(assignment),
            Action::Tell(assignment) => self.tell(assignment),
            Action::Fence(key) => self.fence(&key),
            Action::End(key) => self.end(&key),
            Action::ReportCleaned(assignment) => self.report_cleaned(assignment),
            Action::Forget(key) => self.forget(key),
            Action::Ignore(assignment, reason) => {
                debug!(
                    job = assignment.job,
                    attempt = assignment.attempt,
                    ?reason,
                    "assignment ignored"
                );
            }
        }
    }

    fn begin(&mut self, assignment: &Assignment) {
        info!(
            job = assignment.job,
            attempt = assignment.attempt,
            epoch = assignment.epoch,
            "attempt begins"
        );
        let attempt = Attempt::begin(&self.host, assignment.clone(), None);
        self.activate(assignment, attempt);
    }

    fn adopt(&mut self, assignment: &Assignment) {
        let key = AttemptKey::of(assignment);
        let Some(slot) = self.slots.remove(&key) else {
            return;
        };
        let State::Found(found) = slot.state else {
            self.slots.insert(key, slot);
            return;
        };
        info!(
            job = assignment.job,
            attempt = assignment.attempt,
            "attempt is taken over again"
        );
        let attempt = Attempt::begin(&self.host, assignment.clone(), Some(found.progress));
        self.activate(assignment, attempt);
        self.tell(assignment);
    }

    fn activate(&mut self, assignment: &Assignment, attempt: Attempt) {
        let slot = Slot {
            job: assignment.job.clone(),
            epoch: assignment.epoch,
            state: State::Active {
                attempt,
                fenced: false,
                ending: false,
            },
        };
        self.slots.insert(AttemptKey::of(assignment), slot);
    }

    fn tell(&mut self, assignment: &Assignment) {
        let key = AttemptKey::of(assignment);
        if let Some(Slot {
            state: State::Active {
                attempt, ending, ..
            },
            ..
        }) = self.slots.get_mut(&key)
        {
            use trainyard_proto::v1::AttemptPhase;
            attempt.tell(assignment);
            if matches!(assignment.phase(), AttemptPhase::Stop | AttemptPhase::Ended) {
                attempt.stop();
                *ending = true;
            }
        }
    }

    fn fence(&mut self, key: &AttemptKey) {
        if let Some(Slot {
            job,
            state: State::Active {
                attempt, fenced, ..
            },
            ..
        }) = self.slots.get_mut(key)
        {
            warn!(%job, attempt = key.attempt, "the lease is over: ending the tasks");
            attempt.fence();
            *fenced = true;
        }
    }

    fn end(&mut self, key: &AttemptKey) {
        let Some(slot) = self.slots.remove(key) else {
            return;
        };
        let Slot { job, epoch, state } = slot;
        let state = match state {
            State::Found(found) => {
                info!(%job, attempt = key.attempt, "a leftover attempt is ended");
                let Found {
                    assignment,
                    progress,
                    ..
                } = *found;
                let attempt = Attempt::begin(&self.host, assignment, Some(progress));
                attempt.stop();
                State::Active {
                    attempt,
                    fenced: false,
                    ending: true,
                }
            }
            State::Active {
                attempt, fenced, ..
            } => {
                info!(%job, attempt = key.attempt, "attempt is no longer wanted and is ended");
                attempt.stop();
                State::Active {
                    attempt,
                    fenced,
                    ending: true,
                }
            }
            State::Cleaned => State::Cleaned,
        };
        self.slots.insert(key.clone(), Slot { job, epoch, state });
    }

    fn report_cleaned(&mut self, assignment: &Assignment) {
        let key = AttemptKey::of(assignment);
        self.ended.remove(&key);
        if !self.host.board.report_again(&key) {
            let mut status = AttemptNodeStatus::default();
            status.set_phase(AttemptNodePhase::Cleaned);
            let observed = ObservedAttempt {
                job: assignment.job.clone(),
                uid: assignment.uid.clone(),
                attempt: assignment.attempt,
                epoch: assignment.epoch,
                status: Some(status),
            };
            let files = AttemptFiles {
                spool: self.host.dirs.spool_dir(&key.uid, key.attempt),
                ..AttemptFiles::default()
            };
            self.host.board.put(observed, true, files);
        }
        let slot = Slot {
            job: assignment.job.clone(),
            epoch: assignment.epoch,
            state: State::Cleaned,
        };
        self.slots.insert(key, slot);
    }

    fn forget(&mut self, key: AttemptKey) {
        if let Some(slot) = self.slots.remove(&key) {
            info!(job = slot.job, attempt = key.attempt, "attempt ended");
            self.host.board.retain(&key);
            self.retain(key, slot.epoch);
            self.drop_surplus();
        }
    }

    fn retain(&mut self, key: AttemptKey, epoch: u64) {
        let spool = self.host.dirs.spool_dir(&key.uid, key.attempt);
        let ended = Ended {
            bytes: retention::spooled_bytes(&spool),
            key: key.clone(),
            epoch,
        };
        self.ended.insert(key, ended);
    }

    /// Removes the logs that are too old or too many.
    fn drop_surplus(&mut self) {
        let all: Vec<Ended> = self.ended.values().cloned().collect();
        let surplus = retention::surplus(&all, self.spool_keep_bytes);
        if surplus.is_empty() {
            return;
        }
        for key in &surplus {
            self.ended.remove(key);
            self.host.board.remove(key);
        }
        let dirs = self.host.dirs.clone();
        // Gigabytes of logs take a while to remove.
        tokio::task::spawn_blocking(move || {
            for key in surplus {
                // The spool first: a record without spool is removed next time, a spool without record never.
                for dir in [
                    dirs.spool_dir(&key.uid, key.attempt),
                    dirs.state_dir(&key.uid, key.attempt),
                ] {
                    match std::fs::remove_dir_all(&dir) {
                        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                            warn!(dir = %dir.display(), %error, "old logs cannot be removed");
                        }
                        Ok(()) | Err(_) => {}
                    }
                }
            }
        });
    }
}

/// Returns when `CLOCK_BOOTTIME` has passed `deadline_ns`. Timers do not count the time a host is suspended, so a
/// long wait is cut into pieces.
async fn until(deadline_ns: u64) {
    loop {
        let now = clock::boottime_ns();
        if now >= deadline_ns {
            return;
        }
        let left = Duration::from_nanos(deadline_ns - now);
        tokio::time::sleep(left.min(Duration::from_secs(5)) + Duration::from_millis(1)).await;
    }
}
