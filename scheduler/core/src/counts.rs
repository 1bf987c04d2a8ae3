//! What a cluster shows of its nodes: counts by state, whether it is steady, and why it has fewer nodes than its goal.
//! Computed when it is read; only the allocation state is kept, for the time of its last transition.

use std::collections::BTreeMap;

use trainyard_proto::v1::{
    AllocationState, BatchAiError, Cluster, NameValuePair, Node, NodeState, NodeStateCounts,
};

use crate::class::{self, Misfit};
use crate::placement::nodes_of;
use crate::scale;
use crate::state::State;

impl State {
    /// The cluster with everything that its nodes say of it.
    pub(crate) fn with_counts(&self, cluster: &Cluster) -> Cluster {
        let mut cluster = cluster.clone();
        let mut counts = NodeStateCounts::default();
        let mut nodes = Vec::new();
        let mut errors = Vec::new();
        for node in nodes_of(self, &cluster.name) {
            *self.count_of(node, &mut counts) += 1;
            if is_unusable(node) {
                errors.push(node_error(node));
            }
            nodes.push(node.name.clone());
        }
        cluster.current_node_count = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        cluster.nodes = nodes;
        cluster.node_state_counts = Some(counts);
        cluster.errors.extend(errors);
        cluster.target_node_count = scale::goal(&cluster);
        cluster.set_allocation_state(self.allocation_state(&cluster));
        cluster.allocation_reason = self.allocation_reason(&cluster);
        cluster
    }

    /// The count that the node belongs to.
    fn count_of<'a>(&self, node: &Node, counts: &'a mut NodeStateCounts) -> &'a mut u32 {
        if is_unusable(node) {
            return &mut counts.unusable_node_count;
        }
        if node.leaving {
            return &mut counts.leaving_node_count;
        }
        match node.state() {
            NodeState::Ready if self.is_busy(&node.name) => &mut counts.running_node_count,
            NodeState::Ready => &mut counts.idle_node_count,
            NodeState::Cleaning | NodeState::Preparing => &mut counts.preparing_node_count,
            NodeState::Lost | NodeState::Unusable | NodeState::Unspecified => {
                &mut counts.unusable_node_count
            }
        }
    }

    /// Steady: it holds as many nodes as it wants, and none is leaving.
    pub(crate) fn allocation_state(&self, cluster: &Cluster) -> AllocationState {
        let mut staying = 0_u32;
        for node in nodes_of(self, &cluster.name) {
            if node.leaving {
                return AllocationState::Resizing;
            }
            staying += 1;
        }
        if staying == scale::goal(cluster) && !scale::is_deleting(cluster) {
            AllocationState::Steady
        } else {
            AllocationState::Resizing
        }
    }

    /// Why the cluster has not the nodes that it wants: one sentence; empty when it is steady.
    fn allocation_reason(&self, cluster: &Cluster) -> String {
        if scale::is_deleting(cluster) {
            return "it is being deleted: its nodes go back to the pool when nothing runs on them"
                .to_owned();
        }
        let goal = scale::goal(cluster);
        let staying = u32::try_from(self.staying(&cluster.name).count()).unwrap_or(u32::MAX);
        let leaving = nodes_of(self, &cluster.name).filter(|n| n.leaving).count();
        if staying >= goal {
            return match leaving {
                0 => String::new(),
                1 => "1 node is leaving".to_owned(),
                n => format!("{n} nodes are leaving"),
            };
        }
        format!(
            "{} of {goal} nodes; {}",
            staying,
            self.what_the_pool_lacks(cluster)
        )
    }

    /// What keeps the nodes of the pool out of the cluster, with counts, and what would help.
    pub(crate) fn what_the_pool_lacks(&self, cluster: &Cluster) -> String {
        let mut pool = 0_usize;
        let mut misfits: BTreeMap<Misfit, usize> = BTreeMap::new();
        let mut unready = 0_usize;
        for node in self.indexes.pool.iter().filter_map(|n| self.nodes.get(n)) {
            pool += 1;
            match self.fit(cluster, node) {
                Ok(()) if node.state() == NodeState::Ready => {}
                Ok(()) => unready += 1,
                Err(misfit) => *misfits.entry(misfit).or_default() += 1,
            }
        }
        if pool == 0 {
            return "the pool is empty: connect more hosts, or shrink another cluster".to_owned();
        }
        let mut facts = Vec::new();
        for (misfit, count) in misfits {
            facts.push(match misfit {
                Misfit::Class => {
                    format!("{count} are not of class {}", class::wanted_class(cluster))
                }
                Misfit::Image => format!(
                    "{count} have not the image {}",
                    class::image_of(cluster)
                        .map(class::image_text)
                        .unwrap_or_default()
                ),
                Misfit::User => {
                    format!("{count} do not allow the user {}", class::user_of(cluster))
                }
            });
        }
        if unready > 0 {
            facts.push(format!("{unready} are not ready"));
        }
        if facts.is_empty() {
            return "it is taking nodes from the pool".to_owned();
        }
        format!("of {pool} nodes in the pool {}", facts.join(", "))
    }
}

/// Whether the node can take nothing and does not get there by itself.
fn is_unusable(node: &Node) -> bool {
    matches!(
        node.state(),
        NodeState::Lost | NodeState::Unusable | NodeState::Unspecified
    )
}

/// What is wrong with an unusable node, as an error of its cluster.
fn node_error(node: &Node) -> BatchAiError {
    let setup = node.setup.as_ref().and_then(|s| s.errors.first());
    let mut error = match (node.state(), setup) {
        (NodeState::Unusable, Some(error)) => error.clone(),
        (NodeState::Lost, _) => BatchAiError {
            code: "NodeLost".to_owned(),
            ..BatchAiError::default()
        },
        _ => BatchAiError {
            code: "NodeUnusable".to_owned(),
            ..BatchAiError::default()
        },
    };
    error.message = format!("{}: {}", node.name, node.state_reason);
    error.details.push(NameValuePair {
        name: "node".to_owned(),
        value: node.name.clone(),
    });
    error
}
