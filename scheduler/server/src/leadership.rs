//! One term of leadership: its leases and its sessions.
//!
//! Who owns what: leases and sessions live in the memory of the leader and die with its term; the state in the log only
//! learns that a node registered (which gives the session its epoch) and that nodes were lost. A heartbeat must never be
//! acknowledged once its node was condemned: the agent would count on a lease that the log is about to take away. So
//! both happen under one lock here.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use trainyard_core::State;
use trainyard_core::lease::LeaseTable;
use trainyard_proto::store::v1::LostNode;

use crate::config::LeaseConfig;

/// See the module.
#[derive(Debug)]
pub struct Leadership {
    /// Term of the replicated log.
    pub term: u64,
    /// Cancelled when the term is over.
    pub ended: CancellationToken,
    began: Instant,
    lease_ms: u64,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    leases: LeaseTable,
    sessions: HashMap<String, Live>,
}

#[derive(Debug)]
struct Live {
    epoch: u64,
    ended: CancellationToken,
    heard_ms: u64,
}

/// The session is not, or no longer, the one of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another session of this node has begun, or its lease has run out: connect again")]
pub struct Superseded;

impl Leadership {
    /// Begins a term now.
    pub fn new(term: u64, lease: LeaseConfig) -> Self {
        Self {
            term,
            ended: CancellationToken::new(),
            began: Instant::now(),
            lease_ms: lease.lease_ms,
            table: Mutex::new(Table {
                leases: LeaseTable::new(lease.lease_ms, lease.fence_ms, 0),
                sessions: HashMap::new(),
            }),
        }
    }

    /// Milliseconds since the term began. Never goes back.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// When `now_ms` will be `at_ms`.
    pub fn instant(&self, at_ms: u64) -> Instant {
        // A day is beyond any lease; it keeps the sum in range.
        self.began + Duration::from_millis(at_ms.min(self.now_ms().saturating_add(86_400_000)))
    }

    /// An agent said Hello and is about to be registered. To be called before the log learns of it: from then on the node
    /// counts as alive, and it must not be condemned before its session begins.
    pub fn greet(&self, node: &str) {
        let now_ms = self.now_ms();
        self.lock().leases.greet(node, now_ms);
    }

    /// Begins the session `epoch` of a node, which ends any older one. The token is cancelled when this session must end.
    pub fn open(&self, node: &str, epoch: u64) -> Result<CancellationToken, Superseded> {
        let now_ms = self.now_ms();
        let mut table = self.lock();
        if let Some(live) = table.sessions.get(node) {
            if live.epoch >= epoch {
                return Err(Superseded);
            }
            live.ended.cancel();
        }
        let ended = self.ended.child_token();
        table.sessions.insert(
            node.to_owned(),
            Live {
                epoch,
                ended: ended.clone(),
                heard_ms: now_ms,
            },
        );
        table.leases.renew(node, epoch, now_ms);
        Ok(ended)
    }

    /// A heartbeat: renews the lease. The answer says whether the node was silent for more than a lease before, so that
    /// placement should look at it again.
    pub fn renew(&self, node: &str, epoch: u64) -> Result<bool, Superseded> {
        let now_ms = self.now_ms();
        let mut table = self.lock();
        let live = table
            .sessions
            .get_mut(node)
            .filter(|live| live.epoch == epoch && !live.ended.is_cancelled())
            .ok_or(Superseded)?;
        let silent = now_ms.saturating_sub(live.heard_ms) >= self.lease_ms;
        live.heard_ms = now_ms;
        table.leases.renew(node, epoch, now_ms);
        Ok(silent)
    }

    /// The session has ended. Without effect if a newer one has begun.
    pub fn close(&self, node: &str, epoch: u64) {
        let mut table = self.lock();
        if table.sessions.get(node).is_some_and(|l| l.epoch == epoch) {
            table.sessions.remove(node);
        }
        table.leases.forget(node, epoch);
    }

    /// Whether the node has a session of this term.
    pub fn is_connected(&self, node: &str) -> bool {
        self.lock().sessions.contains_key(node)
    }

    /// Nodes whose tasks are dead by now. Their sessions, if any, end here: no heartbeat is acknowledged any more.
    pub fn condemn(&self, state: &State) -> Vec<LostNode> {
        let now_ms = self.now_ms();
        let mut table = self.lock();
        let lost = table.leases.lost(state, now_ms);
        for node in &lost {
            if let Some(live) = table
                .sessions
                .get(&node.node)
                .filter(|live| live.epoch <= node.session_epoch)
            {
                live.ended.cancel();
                table.sessions.remove(&node.node);
            }
        }
        lost
    }

    /// Nodes that get no new work.
    pub fn unresponsive(&self, state: &State) -> BTreeSet<String> {
        let now_ms = self.now_ms();
        self.lock().leases.unresponsive(state, now_ms)
    }

    /// When [`Leadership::condemn`] may next find something; `None` without nodes.
    pub fn next_check(&self, state: &State) -> Option<Instant> {
        let now_ms = self.now_ms();
        let at_ms = self.lock().leases.next_check(state, now_ms);
        at_ms.map(|at_ms| self.instant(at_ms))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing that holds the lock can leave the tables half-changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leadership() -> Leadership {
        Leadership::new(
            1,
            LeaseConfig {
                lease_ms: 20_000,
                fence_ms: 10_000,
                heartbeat_ms: 2_000,
            },
        )
    }

    #[test]
    fn a_newer_session_ends_the_older_one() {
        let leadership = leadership();
        let old = leadership.open("nodes/n", 5).unwrap();
        let new = leadership.open("nodes/n", 9).unwrap();
        assert!(old.is_cancelled() && !new.is_cancelled());
        assert_eq!(leadership.renew("nodes/n", 5), Err(Superseded));
        assert_eq!(leadership.renew("nodes/n", 9), Ok(false));
        assert!(leadership.open("nodes/n", 7).is_err(), "late registration");
        leadership.close("nodes/n", 5);
        assert_eq!(leadership.renew("nodes/n", 9), Ok(false));
    }

    #[test]
    fn the_end_of_the_term_ends_all_sessions() {
        let leadership = leadership();
        let session = leadership.open("nodes/n", 5).unwrap();
        leadership.ended.cancel();
        assert!(session.is_cancelled());
        assert_eq!(leadership.renew("nodes/n", 5), Err(Superseded));
    }
}
