//! Who may run tasks: the leases of nodes, as the leader keeps them in memory.
//!
//! An agent counts its lease from when it *sent* a heartbeat that was acknowledged, the leader from when it
//! *received* it, which is later. So when the leader's count has passed `lease + fence`, the agent (or, if it is
//! dead, each shim) has known for at least `fence` that its lease is over, and has killed its tasks. Only then may
//! the node be called lost. A new leader knows no heartbeats: it counts from when it became leader, which extends
//! every lease by up to one period and disturbs no job. Times are milliseconds of any clock that never goes back.

use std::collections::{BTreeMap, BTreeSet};

use trainyard_proto::store::v1::LostNode;
use trainyard_proto::v1::{Node, NodeState, PowerState};

use crate::state::State;

/// Leases as one leader knows them; made anew by each leader.
#[derive(Debug, Clone)]
pub struct LeaseTable {
    lease_ms: u64,
    fence_ms: u64,
    since_ms: u64,
    renewed: BTreeMap<String, Renewal>,
}

#[derive(Debug, Clone, Copy)]
struct Renewal {
    session_epoch: u64,
    at_ms: u64,
    connected: bool,
}

impl LeaseTable {
    /// Becomes leader at `now_ms`.
    pub fn new(lease_ms: u64, fence_ms: u64, now_ms: u64) -> Self {
        Self {
            lease_ms,
            fence_ms,
            since_ms: now_ms,
            renewed: BTreeMap::new(),
        }
    }

    /// A heartbeat, or Hello, of the session `session_epoch` arrived. One of an older session is ignored.
    pub fn renew(&mut self, node: &str, session_epoch: u64, now_ms: u64) {
        let renewal = Renewal {
            session_epoch,
            at_ms: now_ms,
            connected: true,
        };
        match self.renewed.get_mut(node) {
            Some(known) if known.session_epoch > session_epoch => {}
            Some(known) => *known = renewal,
            None => {
                self.renewed.insert(node.to_owned(), renewal);
            }
        }
    }

    /// A Hello arrived, whose session has no epoch yet. The node is not lost for a whole lease: else it could be called
    /// lost between the registration in the log and the begin of its session.
    pub fn greet(&mut self, node: &str, now_ms: u64) {
        self.renewed
            .entry(node.to_owned())
            .and_modify(|known| known.at_ms = now_ms)
            .or_insert(Renewal {
                session_epoch: 0,
                at_ms: now_ms,
                connected: false,
            });
    }

    /// The session ended. The lease runs on, but the node gets no new work. Ignored for an older session.
    pub fn forget(&mut self, node: &str, session_epoch: u64) {
        if let Some(known) = self.renewed.get_mut(node)
            && known.session_epoch == session_epoch
        {
            known.connected = false;
        }
    }

    /// Nodes whose tasks are dead by now.
    pub fn lost(&self, state: &State, now_ms: u64) -> Vec<LostNode> {
        live_nodes(state)
            .filter(|node| now_ms >= self.lost_at(node))
            .map(|node| LostNode {
                node: node.name.clone(),
                session_epoch: node.session_epoch,
            })
            .collect()
    }

    /// Nodes that get no new work: without a session, or silent for more than a lease.
    pub fn unresponsive(&self, state: &State, now_ms: u64) -> BTreeSet<String> {
        live_nodes(state)
            .filter(|node| {
                self.renewed
                    .get(&node.name)
                    .is_none_or(|r| !r.connected || now_ms >= r.at_ms.saturating_add(self.lease_ms))
            })
            .map(|node| node.name.clone())
            .collect()
    }

    /// When [`LeaseTable::lost`] may next have something new to say; `None` without nodes.
    pub fn next_check(&self, state: &State, now_ms: u64) -> Option<u64> {
        live_nodes(state)
            .map(|node| self.lost_at(node).max(now_ms))
            .min()
    }

    fn lost_at(&self, node: &Node) -> u64 {
        let renewed = self
            .renewed
            .get(&node.name)
            .map_or(self.since_ms, |r| r.at_ms.max(self.since_ms));
        renewed
            .saturating_add(self.lease_ms)
            .saturating_add(self.fence_ms)
    }
}

fn live_nodes(state: &State) -> impl Iterator<Item = &Node> {
    state.nodes.values().filter(|node| match node.state() {
        NodeState::Ready | NodeState::Cleaning | NodeState::Preparing => true,
        // One that did not come up was lost before, and its reason must stay.
        NodeState::Unusable => node.power_state() != PowerState::Failed,
        NodeState::Lost | NodeState::Unspecified => false,
    })
}
