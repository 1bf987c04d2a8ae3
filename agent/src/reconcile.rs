//! What an agent shall do, decided from the desired view, what the node holds, and the time.
//!
//! Who owns what. The scheduler owns which attempts exist and in which phase; the agent owns how far each is on
//! its node. The epoch of an attempt is the index of the log at which it started, so among attempts of one job
//! the higher epoch is the later one: an assignment older than something the node has already seen of that job
//! is a stale command and is ignored. A view that misses an attempt orders its end. A lost view costs nothing:
//! the next one is whole. An attempt of which nothing is left is never run a second time, whatever a view says.
//!
//! Pure: no clock, no files, no processes. It orders; [`crate::supervisor`] carries out. It keeps no state, so
//! that calling it twice with the same arguments orders the same.

use std::collections::BTreeMap;

use trainyard_proto::v1::{Assignment, AttemptPhase, Desired};

/// Which attempt: UUID of the job and number of the attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptKey {
    /// UUID of the job.
    pub uid: String,
    /// Number of the attempt, from 1.
    pub attempt: u32,
}

impl AttemptKey {
    /// The key of an assignment.
    #[must_use]
    pub fn of(assignment: &Assignment) -> AttemptKey {
        AttemptKey {
            uid: assignment.uid.clone(),
            attempt: assignment.attempt,
        }
    }
}

impl std::fmt::Display for AttemptKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}#{}", self.uid, self.attempt)
    }
}

/// How the node holds an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// An earlier life of the agent left it on the disk; nobody attends to it yet.
    Found,
    /// A runner attends to it.
    Active {
        /// Its tasks were killed because the lease had expired.
        fenced: bool,
        /// It was told to end.
        ending: bool,
    },
    /// Nothing is left of it but its spooled logs.
    Cleaned,
}

/// An attempt that the node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Resource name of the job.
    pub job: String,
    /// Epoch of the attempt.
    pub epoch: u64,
    /// How.
    pub holding: Holding,
}

/// Everything the decision needs to know of the node.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// What it holds.
    pub held: &'a BTreeMap<AttemptKey, Held>,
    /// Highest epoch of each job (by UUID) whose attempts are gone but for retained logs.
    pub ended: &'a BTreeMap<String, u64>,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub now_ns: u64,
    /// When the lease ends, by the same clock.
    pub lease_deadline_ns: u64,
}

/// An order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action<'a> {
    /// Begin an attempt.
    Start(&'a Assignment),
    /// Resume an attempt that was found on the disk.
    Adopt(&'a Assignment),
    /// Hand a runner the newest form of its assignment (phase, port of the rendezvous).
    Tell(&'a Assignment),
    /// Kill the tasks of an attempt at once: the lease is over.
    Fence(AttemptKey),
    /// End an attempt and clean up; it may be one that was only found.
    End(AttemptKey),
    /// Nothing of this attempt is here: say so.
    ReportCleaned(&'a Assignment),
    /// Stop reporting an attempt: nothing is left, and the scheduler knows.
    Forget(AttemptKey),
    /// Ignore an assignment.
    Ignore(&'a Assignment, Reason),
}

/// Why an assignment is ignored for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The node has seen a later attempt of the job.
    StaleEpoch,
    /// The identity of the job cannot name a directory.
    BadIdentity,
    /// An earlier attempt of the job is still being ended here; the assignment is looked at again afterwards.
    EarlierAttempt,
    /// The lease is over: nothing starts.
    NoLease,
}

/// Decides. `desired` is `None` until a session has brought a view: then nothing is ended for being undesired.
#[must_use]
pub fn reconcile<'a>(desired: Option<&'a Desired>, node: Node<'_>) -> Vec<Action<'a>> {
    let mut actions = Vec::new();
    let leased = node.now_ns < node.lease_deadline_ns;
    if !leased {
        for (key, held) in node.held {
            match held.holding {
                Holding::Active { fenced: false, .. } => actions.push(Action::Fence(key.clone())),
                Holding::Active { fenced: true, .. } | Holding::Found | Holding::Cleaned => {}
            }
        }
    }
    let Some(desired) = desired else {
        return actions;
    };
    let wanted = latest(desired);
    // Ends come first, so that what they free is free for what starts.
    for (key, held) in node.held {
        if wanted.contains_key(key) {
            continue;
        }
        match held.holding {
            Holding::Found | Holding::Active { ending: false, .. } => {
                actions.push(Action::End(key.clone()));
            }
            Holding::Active { ending: true, .. } => {}
            Holding::Cleaned => actions.push(Action::Forget(key.clone())),
        }
    }
    for (key, assignment) in wanted {
        actions.extend(decide(&key, assignment, node, leased));
    }
    actions
}

/// The order for one assignment, if it takes one.
fn decide<'a>(
    key: &AttemptKey,
    assignment: &'a Assignment,
    node: Node<'_>,
    leased: bool,
) -> Option<Action<'a>> {
    if !can_name_a_directory(&key.uid) {
        return Some(Action::Ignore(assignment, Reason::BadIdentity));
    }
    let seen = node
        .held
        .iter()
        .filter(|(other, _)| other.uid == key.uid)
        .map(|(_, held)| held.epoch)
        .chain(node.ended.get(&key.uid).copied())
        .max()
        .unwrap_or(0);
    if assignment.epoch < seen {
        // Unless it is the very attempt that is held, which may still be told to end.
        let same = node
            .held
            .get(key)
            .is_some_and(|held| held.epoch == assignment.epoch);
        if !same {
            return Some(Action::Ignore(assignment, Reason::StaleEpoch));
        }
    }
    if let Some(held) = node.held.get(key) {
        let same_epoch = held.epoch == assignment.epoch;
        return match held.holding {
            Holding::Found if same_epoch => Some(Action::Adopt(assignment)),
            Holding::Active { .. } if same_epoch => Some(Action::Tell(assignment)),
            Holding::Cleaned if same_epoch => None,
            // The number was given out again, which only a scheduler with a new log does.
            Holding::Found | Holding::Active { ending: false, .. } => {
                Some(Action::End(key.clone()))
            }
            Holding::Active { ending: true, .. } => None,
            Holding::Cleaned => Some(Action::Forget(key.clone())),
        };
    }
    if node.ended.get(&key.uid) == Some(&assignment.epoch) {
        return Some(Action::ReportCleaned(assignment));
    }
    match assignment.phase() {
        AttemptPhase::Stop | AttemptPhase::Ended => Some(Action::ReportCleaned(assignment)),
        AttemptPhase::Unspecified | AttemptPhase::Prepare | AttemptPhase::Run => {
            if !leased {
                return Some(Action::Ignore(assignment, Reason::NoLease));
            }
            // Attempts of one job share its directories on the node. A re-created job has the same name.
            let earlier = node.held.iter().any(|(other, held)| {
                (other.uid == key.uid || held.job == assignment.job)
                    && held.holding != Holding::Cleaned
            });
            if earlier {
                Some(Action::Ignore(assignment, Reason::EarlierAttempt))
            } else {
                Some(Action::Start(assignment))
            }
        }
    }
}

/// The assignments by key; of two with one key the later epoch counts.
fn latest(desired: &Desired) -> BTreeMap<AttemptKey, &Assignment> {
    let mut latest: BTreeMap<AttemptKey, &Assignment> = BTreeMap::new();
    for assignment in &desired.assignments {
        let entry = latest
            .entry(AttemptKey::of(assignment))
            .or_insert(assignment);
        if entry.epoch < assignment.epoch {
            *entry = assignment;
        }
    }
    latest
}

/// Whether a job's UUID is fit to be part of a path: it comes from outside.
#[must_use]
pub fn can_name_a_directory(uid: &str) -> bool {
    (1..=64).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use Reason::{BadIdentity, EarlierAttempt, NoLease, StaleEpoch};

    const ACTIVE: Holding = Holding::Active {
        fenced: false,
        ending: false,
    };
    const ENDING: Holding = Holding::Active {
        fenced: false,
        ending: true,
    };
    const FENCED: Holding = Holding::Active {
        fenced: true,
        ending: false,
    };

    /// A node and a view, written in one line: `a#1@10` is attempt 1 of the job with UUID a at epoch 10.
    #[derive(Default)]
    struct Scenario {
        held: BTreeMap<AttemptKey, Held>,
        ended: BTreeMap<String, u64>,
        desired: Option<Desired>,
        expired: bool,
    }

    fn parse(text: &str) -> (AttemptKey, u64) {
        let (uid, rest) = text.split_once('#').unwrap();
        let (attempt, epoch) = rest.split_once('@').unwrap();
        let key = AttemptKey {
            uid: uid.to_owned(),
            attempt: attempt.parse().unwrap(),
        };
        (key, epoch.parse().unwrap())
    }

    impl Scenario {
        fn holds(mut self, attempt: &str, holding: Holding) -> Scenario {
            let (key, epoch) = parse(attempt);
            let job = format!("jobs/{}", key.uid);
            let held = Held {
                job,
                epoch,
                holding,
            };
            self.held.insert(key, held);
            self
        }
        fn ended(mut self, uid: &str, epoch: u64) -> Scenario {
            self.ended.insert(uid.to_owned(), epoch);
            self
        }
        fn nothing_wanted(mut self) -> Scenario {
            self.desired.get_or_insert_default();
            self
        }
        fn wants(mut self, attempt: &str, phase: AttemptPhase) -> Scenario {
            let (key, epoch) = parse(attempt);
            self.desired
                .get_or_insert_default()
                .assignments
                .push(Assignment {
                    job: format!("jobs/{}", key.uid),
                    uid: key.uid,
                    attempt: key.attempt,
                    epoch,
                    phase: phase.into(),
                    ..Assignment::default()
                });
            self
        }
        fn lease_is_over(mut self) -> Scenario {
            self.expired = true;
            self
        }
        fn orders(self, wanted: &[&str]) {
            let node = Node {
                held: &self.held,
                ended: &self.ended,
                now_ns: 100,
                lease_deadline_ns: if self.expired { 100 } else { 101 },
            };
            let text = |a: &Assignment| format!("{}#{}@{}", a.uid, a.attempt, a.epoch);
            let got: Vec<String> = reconcile(self.desired.as_ref(), node)
                .into_iter()
                .map(|action| match action {
                    Action::Start(a) => format!("start {}", text(a)),
                    Action::Adopt(a) => format!("adopt {}", text(a)),
                    Action::Tell(a) => format!("tell {}", text(a)),
                    Action::Fence(key) => format!("fence {key}"),
                    Action::End(key) => format!("end {key}"),
                    Action::ReportCleaned(a) => format!("cleaned {}", text(a)),
                    Action::Forget(key) => format!("forget {key}"),
                    Action::Ignore(a, reason) => {
                        let why = match reason {
                            StaleEpoch => "stale",
                            BadIdentity => "bad",
                            EarlierAttempt => "earlier",
                            NoLease => "no lease",
                        };
                        format!("ignore {} ({why})", text(a))
                    }
                })
                .collect();
            assert_eq!(got, wanted);
        }
    }

    fn node() -> Scenario {
        Scenario::default()
    }

    use AttemptPhase::{Prepare, Run, Stop};

    #[test]
    fn before_the_first_view_nothing_is_touched() {
        node()
            .holds("a#1@10", Holding::Found)
            .holds("b#1@11", ACTIVE)
            .orders(&[]);
    }

    #[test]
    fn what_is_wanted_and_new_starts() {
        node()
            .wants("a#1@10", Run)
            .wants("b#2@11", Prepare)
            .orders(&["start a#1@10", "start b#2@11"]);
    }

    #[test]
    fn a_runner_is_told_the_newest_phase() {
        node()
            .holds("a#1@10", ACTIVE)
            .wants("a#1@10", Run)
            .orders(&["tell a#1@10"]);
        node()
            .holds("a#1@10", ENDING)
            .wants("a#1@10", Stop)
            .orders(&["tell a#1@10"]);
    }

    #[test]
    fn what_is_not_wanted_ends_and_is_then_forgotten() {
        node()
            .holds("a#1@10", ACTIVE)
            .nothing_wanted()
            .orders(&["end a#1"]);
        node().holds("a#1@10", ENDING).nothing_wanted().orders(&[]);
        node()
            .holds("a#1@10", Holding::Cleaned)
            .nothing_wanted()
            .orders(&["forget a#1"]);
    }

    #[test]
    fn leftovers_are_adopted_if_wanted_else_ended() {
        node()
            .holds("a#1@10", Holding::Found)
            .holds("b#1@11", Holding::Found)
            .wants("a#1@10", Run)
            .orders(&["end b#1", "adopt a#1@10"]);
    }

    #[test]
    fn a_leftover_of_another_epoch_is_not_adopted() {
        node()
            .holds("a#1@10", Holding::Found)
            .wants("a#1@12", Run)
            .orders(&["end a#1"]);
        node()
            .holds("a#1@10", ENDING)
            .wants("a#1@12", Run)
            .orders(&[]);
        node()
            .holds("a#1@10", Holding::Cleaned)
            .wants("a#1@12", Run)
            .orders(&["forget a#1"]);
    }

    #[test]
    fn a_stale_view_starts_and_ends_nothing_of_a_later_attempt() {
        node()
            .holds("a#2@20", ACTIVE)
            .wants("a#1@10", Run)
            .wants("a#2@20", Run)
            .orders(&["ignore a#1@10 (stale)", "tell a#2@20"]);
        node()
            .ended("a", 20)
            .wants("a#1@10", Run)
            .orders(&["ignore a#1@10 (stale)"]);
        node()
            .holds("a#1@20", ACTIVE)
            .wants("a#1@10", Stop)
            .orders(&["ignore a#1@10 (stale)"]);
    }

    #[test]
    fn an_attempt_that_ended_here_never_runs_again() {
        node()
            .ended("a", 10)
            .wants("a#1@10", Run)
            .orders(&["cleaned a#1@10"]);
    }

    #[test]
    fn the_next_attempt_waits_for_the_end_of_the_one_before() {
        node()
            .holds("a#1@10", ACTIVE)
            .wants("a#2@20", Run)
            .orders(&["end a#1", "ignore a#2@20 (earlier)"]);
        node()
            .holds("a#1@10", ENDING)
            .wants("a#2@20", Run)
            .orders(&["ignore a#2@20 (earlier)"]);
        node()
            .holds("a#1@10", Holding::Cleaned)
            .wants("a#2@20", Run)
            .orders(&["forget a#1", "start a#2@20"]);
    }

    #[test]
    fn the_earlier_attempt_of_two_wanted_ones_can_still_be_told_to_stop() {
        node()
            .holds("a#1@10", ACTIVE)
            .holds("a#2@20", ACTIVE)
            .wants("a#1@10", Stop)
            .wants("a#2@20", Run)
            .orders(&["tell a#1@10", "tell a#2@20"]);
    }

    #[test]
    fn stopping_what_is_not_here_is_done_at_once() {
        node().wants("a#1@10", Stop).orders(&["cleaned a#1@10"]);
        node()
            .holds("a#1@10", Holding::Cleaned)
            .wants("a#1@10", Stop)
            .orders(&[]);
    }

    #[test]
    fn without_lease_everything_is_fenced_once_and_nothing_starts() {
        node()
            .holds("a#1@10", ACTIVE)
            .holds("b#1@11", FENCED)
            .holds("c#1@12", Holding::Found)
            .lease_is_over()
            .orders(&["fence a#1"]);
        node()
            .lease_is_over()
            .wants("a#1@10", Run)
            .wants("b#1@11", Stop)
            .orders(&["ignore a#1@10 (no lease)", "cleaned b#1@11"]);
    }

    #[test]
    fn of_two_assignments_with_one_key_the_later_counts() {
        node()
            .wants("a#1@12", Run)
            .wants("a#1@10", Run)
            .orders(&["start a#1@12"]);
    }

    #[test]
    fn an_identity_that_is_a_path_is_refused() {
        for uid in ["..", "a/b", "", "a.b"] {
            node()
                .wants(&format!("{uid}#1@10"), Run)
                .orders(&[&format!("ignore {uid}#1@10 (bad)")]);
        }
    }

    #[test]
    fn deciding_twice_decides_the_same() {
        let scenario = node()
            .holds("a#1@10", Holding::Found)
            .wants("a#1@10", Run)
            .wants("b#1@11", Run);
        let node = Node {
            held: &scenario.held,
            ended: &scenario.ended,
            now_ns: 1,
            lease_deadline_ns: 2,
        };
        let desired = scenario.desired.as_ref();
        assert_eq!(reconcile(desired, node), reconcile(desired, node));
    }
}
