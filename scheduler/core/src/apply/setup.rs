//! How a node enters and leaves its cluster: set-up on the way in, and the way back to the pool.
//!
//! A cluster without mounts and setup task needs no set-up. A set-up counts only for the epoch that ordered it and for
//! the boot of the host in which it was done. A node goes back to the pool only when nothing of its cluster is left on
//! it: no attempt, no mount.

use trainyard_proto::v1::{
    Cluster, Node, NodeDeallocationOption, NodeSetupPhase, NodeSetupStatus, NodeState,
    ObservedSetup,
};

use super::Context;
use crate::outcome::Change;
use crate::state::State;

/// Whether nodes of the cluster must be set up.
pub(crate) fn is_needed(cluster: &Cluster) -> bool {
    cluster.node_setup.as_ref().is_some_and(|setup| {
        let mounts = setup.mount_volumes.as_ref().is_some_and(|m| {
            !(m.azure_file_shares.is_empty()
                && m.azure_blob_file_systems.is_empty()
                && m.file_servers.is_empty()
                && m.unmanaged_file_systems.is_empty())
        });
        mounts || setup.setup_task.is_some()
    })
}

/// State of a connected node that has nothing to clean, by its set-up; and the reason.
pub(super) fn state(node: &Node) -> (NodeState, String) {
    let Some(setup) = node.setup.as_ref() else {
        return (NodeState::Ready, String::new());
    };
    match setup.phase() {
        NodeSetupPhase::Ready if setup.boot_id == node.boot_id => (NodeState::Ready, String::new()),
        NodeSetupPhase::Failed => {
            let reason = setup
                .errors
                .first()
                .map_or("its set-up failed", |e| e.message.as_str());
            (
                NodeState::Unusable,
                format!("{reason}; trainyard node retry sets it up anew"),
            )
        }
        NodeSetupPhase::Ready => (
            NodeState::Preparing,
            "it has booted and is being set up for its cluster anew".to_owned(),
        ),
        NodeSetupPhase::Unspecified | NodeSetupPhase::Preparing | NodeSetupPhase::Removing => (
            NodeState::Preparing,
            "it is being set up for its cluster: mounts, then the setup task".to_owned(),
        ),
    }
}

impl State {
    /// Orders the set-up that the node's cluster wants, from the beginning.
    pub(super) fn order_setup(&mut self, context: &mut Context, name: &str) {
        let Some(node) = self.nodes.get(name) else {
            return;
        };
        let needed = self.clusters.get(&node.cluster).is_some_and(is_needed);
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        node.setup = needed.then(|| NodeSetupStatus {
            epoch: context.index,
            ..NodeSetupStatus::default()
        });
        context.changed(Change::Node(name.to_owned()));
        context.changed(Change::Desired(name.to_owned()));
        context.changed(Change::Placement);
        if matches!(
            node.state(),
            NodeState::Ready | NodeState::Preparing | NodeState::Unusable
        ) {
            let (state, reason) = state(node);
            self.set_node_state(context, name, state, reason);
        }
    }

    /// Takes over what the agent says of its set-up. Word of another cluster or of an older order says that the present one
    /// has not begun.
    pub(super) fn merge_setup(
        &mut self,
        context: &mut Context,
        name: &str,
        observed: Option<&ObservedSetup>,
    ) {
        let Some(merged) = self.merged_setup(name, observed) else {
            return;
        };
        if let Some(node) = self.nodes.get_mut(name) {
            node.setup = merged;
            context.changed(Change::Node(name.to_owned()));
        }
    }

    /// The status after such a report; `None`: as it is.
    pub(crate) fn merged_setup(
        &self,
        name: &str,
        observed: Option<&ObservedSetup>,
    ) -> Option<Option<NodeSetupStatus>> {
        let node = self.nodes.get(name)?;
        let known = node.setup.as_ref()?;
        let uid = self.clusters.get(&node.cluster).map(|c| c.uid.as_str());
        let status = observed
            .filter(|o| Some(o.cluster_uid.as_str()) == uid)
            .and_then(|o| o.status.as_ref())
            .filter(|s| s.epoch == known.epoch);
        let merged = match (status, observed) {
            (Some(status), _) => Some(status.clone()),
            // Nothing is left of it, and nothing shall be.
            (None, None) if node.leaving && !self.is_busy(name) => None,
            (None, _) => Some(NodeSetupStatus {
                epoch: known.epoch,
                ..NodeSetupStatus::default()
            }),
        };
        (merged.as_ref() != Some(known)).then_some(merged)
    }

    /// The node takes no new job from now on; it goes when nothing of its cluster is left on it.
    pub(super) fn begin_leaving(
        &mut self,
        context: &mut Context,
        name: &str,
        option: NodeDeallocationOption,
    ) {
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        node.leaving = true;
        node.set_deallocation(option);
        context.changed(Change::Node(name.to_owned()));
        context.changed(Change::Desired(name.to_owned()));
        self.finish_leaving(context, name);
    }

    /// Gives the node back to the pool if it may go.
    pub(super) fn finish_leaving(&mut self, context: &mut Context, name: &str) {
        let busy = self.is_busy(name);
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        if !node.leaving || busy {
            return;
        }
        // A set-up of which the agent has never spoken leaves nothing behind that the next one would not replace.
        let begun = node
            .setup
            .as_ref()
            .is_some_and(|s| s.phase() != NodeSetupPhase::Unspecified);
        let lost = node.state() == NodeState::Lost;
        if begun && !lost {
            return;
        }
        let cluster = node.cluster.clone();
        node.leaving = false;
        node.set_deallocation(NodeDeallocationOption::Unspecified);
        node.setup = None;
        node.idle_since = Some(context.now);
        let settle = matches!(node.state(), NodeState::Preparing | NodeState::Unusable);
        self.move_node(name, "");
        if settle {
            self.set_node_state(context, name, NodeState::Ready, String::new());
        }
        context.changed(Change::Node(name.to_owned()));
        context.changed(Change::Desired(name.to_owned()));
        self.settle_cluster(context, &cluster);
    }
}
