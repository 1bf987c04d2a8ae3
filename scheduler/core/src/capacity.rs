//! What a node has left. Used by placement to look, and by apply to verify: the one definition of "fits".

use std::collections::{BTreeMap, BTreeSet};

use trainyard_proto::store::v1::StartNode;
use trainyard_proto::v1::{Attempt, AttemptNode, AttemptNodePhase, JobSpec, Node, NodeState};

use crate::state::node_is_involved;

/// What one attempt holds of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holding {
    /// Number of the attempt.
    pub(crate) attempt: u32,
    /// Indexes of GPUs.
    pub(crate) gpus: Vec<u32>,
    /// Nobody else may use the node.
    pub(crate) whole_node: bool,
}

impl Holding {
    /// What `attempt` holds of this node; `None` once the node is done with it.
    pub(crate) fn of(attempt: &Attempt, node: &AttemptNode) -> Option<Self> {
        let phase = node
            .status
            .as_ref()
            .map_or(AttemptNodePhase::Unspecified, |s| s.phase());
        node_is_involved(attempt, phase).then(|| Self {
            attempt: attempt.number,
            gpus: node.gpus.clone(),
            whole_node: node.whole_node,
        })
    }
}

/// What is left of a node under its holdings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Free {
    /// Nobody holds any part.
    pub(crate) whole_node: bool,
    /// GPUs that nobody holds.
    pub(crate) gpus: Vec<u32>,
}

/// What is left of `node`.
pub(crate) fn free(node: &Node, holdings: Option<&BTreeMap<String, Holding>>) -> Free {
    let all = gpu_indexes(node);
    let Some(holdings) = holdings else {
        return Free {
            whole_node: true,
            gpus: all,
        };
    };
    if holdings.values().any(|h| h.whole_node) {
        return Free {
            whole_node: false,
            gpus: Vec::new(),
        };
    }
    let taken: BTreeSet<u32> = holdings
        .values()
        .flat_map(|h| h.gpus.iter().copied())
        .collect();
    Free {
        whole_node: holdings.is_empty(),
        gpus: all.into_iter().filter(|g| !taken.contains(g)).collect(),
    }
}

/// The part of the node that a job takes, if it fits into what is free. GPUs of low index first.
pub(crate) fn take(spec: &JobSpec, node: &Node, free: &Free) -> Option<StartNode> {
    let wanted = gpus_per_node(spec);
    if wanted == 0 {
        return free.whole_node.then(|| StartNode {
            node: node.name.clone(),
            gpus: gpu_indexes(node),
            whole_node: true,
        });
    }
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    (free.gpus.len() >= wanted).then(|| StartNode {
        node: node.name.clone(),
        gpus: free.gpus.iter().copied().take(wanted).collect(),
        whole_node: false,
    })
}

/// Whether exactly this part of the node is free and is what the job asked for.
pub(crate) fn fits(spec: &JobSpec, node: &Node, free: &Free, part: &StartNode) -> bool {
    let wanted = gpus_per_node(spec);
    if wanted == 0 {
        return part.whole_node && free.whole_node && part.gpus == gpu_indexes(node);
    }
    let distinct: BTreeSet<u32> = part.gpus.iter().copied().collect();
    !part.whole_node
        && distinct.len() == part.gpus.len()
        && u32::try_from(part.gpus.len()).is_ok_and(|n| n == wanted)
        && part.gpus.iter().all(|g| free.gpus.contains(g))
}

/// GPUs of each node that the job asks for; 0: whole nodes.
pub(crate) fn gpus_per_node(spec: &JobSpec) -> u32 {
    spec.resources_per_node.as_ref().map_or(0, |r| r.gpus)
}

/// GPUs that the job holds in all on nodes of this size.
pub(crate) fn gpus_of(spec: &JobSpec, gpus_of_a_node: u32) -> u32 {
    let each = match gpus_per_node(spec) {
        0 => gpus_of_a_node,
        part => part,
    };
    each.saturating_mul(spec.node_count)
}

/// Whether the node takes work.
pub(crate) fn is_ready(node: &Node) -> bool {
    node.state() == NodeState::Ready && !node.leaving
}

/// Number of GPUs.
pub(crate) fn gpu_count(node: &Node) -> u32 {
    u32::try_from(gpu_indexes(node).len()).unwrap_or(u32::MAX)
}

fn gpu_indexes(node: &Node) -> Vec<u32> {
    node.inventory
        .as_ref()
        .map(|i| i.gpus.iter().map(|g| g.index).collect())
        .unwrap_or_default()
}
