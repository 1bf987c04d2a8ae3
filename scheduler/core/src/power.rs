//! What the power hook is to do: which hosts to switch on, which to switch off, which to give up.
//!
//! Pure: the leader's loop runs the hook and brings what came of it into the log (`SetPower`). A node is only ever
//! switched off while it is idle in the pool, and a node that no hook has switched off is never switched on.

use std::collections::BTreeSet;

use prost_types::Timestamp;
use trainyard_proto::v1::{Node, NodeState, PowerState, file_server};

use crate::placement;
use crate::state::State;
use crate::time;

/// How the administrator wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerPolicy {
    /// Milliseconds that a host may take to connect after it was switched on, or to go after it was switched off.
    pub wake_deadline_ms: u64,
    /// Milliseconds that a node is idle in the pool before it is switched off; `None`: never.
    pub off_after_idle_ms: Option<u64>,
}

/// What to do with a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerAction {
    /// Switch it on.
    Wake,
    /// Switch it off.
    Stop,
    /// It did not connect (`WAKING`), or did not go (`STOPPING`), by the deadline.
    GiveUp,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowerOrder {
    /// Resource name of the node.
    pub node: String,
    /// What to do.
    pub action: PowerAction,
    /// Hardware address; empty: unknown.
    pub mac: String,
    /// Address of the host.
    pub address: String,
}

/// A host that is being switched on or off now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowerTask {
    /// Resource name of the node.
    pub node: String,
    /// `Wake` or `Stop`.
    pub action: PowerAction,
    /// Hardware address; empty: unknown.
    pub mac: String,
    /// Address of the host.
    pub address: String,
    /// When it was begun.
    pub since: Timestamp,
}

/// What to begin now, in order of node.
pub fn orders(state: &State, policy: &PowerPolicy, now: &Timestamp) -> Vec<PowerOrder> {
    let wakes = wakes(state);
    state
        .nodes
        .values()
        .filter_map(|node| {
            let action = if overdue_at(node, policy).is_some_and(|at| time::passed(&at, now)) {
                PowerAction::GiveUp
            } else if stop_at(state, node, policy).is_some_and(|at| time::passed(&at, now)) {
                PowerAction::Stop
            } else if wakes.contains(node.name.as_str()) {
                PowerAction::Wake
            } else {
                return None;
            };
            Some(order(node, action))
        })
        .collect()
}

/// When time alone gives the next order; `None`: only a change of the state can.
pub fn next_change(state: &State, policy: &PowerPolicy, now: &Timestamp) -> Option<Timestamp> {
    state
        .nodes
        .values()
        .flat_map(|node| [overdue_at(node, policy), stop_at(state, node, policy)])
        .flatten()
        .filter(|at| !time::passed(at, now))
        .min_by_key(time::key)
}

/// Hosts that are being switched on or off: a new leader runs the hook for them again.
pub fn in_progress(state: &State) -> Vec<PowerTask> {
    state
        .nodes
        .values()
        .filter_map(|node| {
            let action = match node.power_state() {
                PowerState::Waking => PowerAction::Wake,
                PowerState::Stopping => PowerAction::Stop,
                PowerState::Unspecified | PowerState::On | PowerState::Off | PowerState::Failed => {
                    return None;
                }
            };
            let order = order(node, action);
            Some(PowerTask {
                node: order.node,
                action,
                mac: order.mac,
                address: order.address,
                since: node.power_state_transition_time.unwrap_or_default(),
            })
        })
        .collect()
}

/// Whether the node may be switched off as far as the state goes: idle in the pool, and nobody mounts files of it.
pub(crate) fn may_stop(state: &State, node: &Node) -> bool {
    node.cluster.is_empty()
        && node.state() == NodeState::Ready
        && !state.indexes.holdings.contains_key(&node.name)
        && !serves_files(state, node)
}

/// Hosts that clusters need and that are off: as many as they lack beyond what the pool has and what is on its way.
fn wakes(state: &State) -> BTreeSet<&str> {
    let (_, lacking) = placement::grow_clusters(state, &BTreeSet::new());
    let coming = |node: &&Node| {
        node.leaving
            || node.power_state() == PowerState::Waking
            || (node.cluster.is_empty() && node.state() == NodeState::Cleaning)
    };
    let mut coming: Vec<&Node> = state.nodes.values().filter(coming).collect();
    let mut off: Vec<&Node> = state
        .nodes
        .values()
        .filter(|n| n.power_state() == PowerState::Off && n.cluster.is_empty())
        .collect();
    let mut wakes = BTreeSet::new();
    for (cluster, missing) in lacking {
        let mut missing = missing;
        coming.retain(|node| {
            let serves = missing > 0 && state.fit(cluster, node).is_ok();
            missing -= u32::from(serves);
            !serves
        });
        off.retain(|node| {
            let serves = missing > 0 && state.fit(cluster, node).is_ok();
            if serves {
                missing -= 1;
                wakes.insert(node.name.as_str());
            }
            !serves
        });
    }
    wakes
}

fn serves_files(state: &State, node: &Node) -> bool {
    let id = node.name.rsplit('/').next().unwrap_or(&node.name);
    state.file_servers.values().any(|server| {
        matches!(&server.kind, Some(file_server::Kind::Managed(managed))
            if managed.node == node.name || managed.node == id)
    })
}

fn overdue_at(node: &Node, policy: &PowerPolicy) -> Option<Timestamp> {
    match node.power_state() {
        PowerState::Waking | PowerState::Stopping => Some(time::after_ms(
            &node.power_state_transition_time.unwrap_or_default(),
            policy.wake_deadline_ms,
        )),
        PowerState::Unspecified | PowerState::On | PowerState::Off | PowerState::Failed => None,
    }
}

fn stop_at(state: &State, node: &Node, policy: &PowerPolicy) -> Option<Timestamp> {
    let idle_ms = policy.off_after_idle_ms?;
    if node.power_state() != PowerState::On || !may_stop(state, node) {
        return None;
    }
    let idle_since = [
        node.idle_since,
        node.state_transition_time,
        node.power_state_transition_time,
    ]
    .into_iter()
    .flatten()
    .max_by_key(time::key)?;
    Some(time::after_ms(&idle_since, idle_ms))
}

fn order(node: &Node, action: PowerAction) -> PowerOrder {
    let inventory = node.inventory.as_ref();
    PowerOrder {
        node: node.name.clone(),
        action,
        mac: inventory.map(|i| i.mac.clone()).unwrap_or_default(),
        address: inventory.map(|i| i.address.clone()).unwrap_or_default(),
    }
}
