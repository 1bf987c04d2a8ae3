//! Decides which nodes clusters take from the pool and which jobs start where.
//!
//! Stages, in order: clusters below their target take fitting nodes from the pool; then each cluster walks its
//! queue (priority, then age) and starts jobs, gang by gang, until the first that does not fit now. A job that
//! cannot fit at the cluster's present size is passed over, since waiting for it would wait for an administrator.
//! Partial-node jobs go to the fullest node that fits, so that whole nodes stay whole. The plan is only a proposal:
//! `apply` verifies each part against the state it meets.

use std::collections::{BTreeMap, BTreeSet};

use trainyard_proto::store::v1::{ApplyPlan, NodeAssignment, Start, StartNode};
use trainyard_proto::v1::{Cluster, Job, JobSpec, Node};

use crate::capacity::{self, Free, Holding};
use crate::query::target;
use crate::state::State;

/// Most starts in one plan: bounds the size of a command. The loop plans again until nothing is left.
const MAX_STARTS: usize = 256;

/// What to do now. `unresponsive` nodes (by the leases) get nothing new. Empty: nothing to do.
pub fn plan(state: &State, unresponsive: &BTreeSet<String>) -> ApplyPlan {
    let mut plan = ApplyPlan {
        assignments: grow_clusters(state, unresponsive),
        starts: Vec::new(),
        releases: Vec::new(),
        targets: Vec::new(),
    };
    for (cluster, queue) in &state.indexes.queues {
        let mut room = Room::new(state, cluster, unresponsive);
        for job in queue.values().filter_map(|name| state.jobs.open(name)) {
            if plan.starts.len() >= MAX_STARTS {
                return plan;
            }
            let Some(spec) = job.spec.as_ref() else {
                continue;
            };
            if never_fits(state, cluster, spec) {
                continue;
            }
            match room.place(spec) {
                Some(nodes) => plan.starts.push(start(job, nodes)),
                None => break,
            }
        }
    }
    plan
}

/// Whether the cluster takes nodes of this node's class.
pub(crate) fn wants_class(cluster: &Cluster, node: &Node) -> bool {
    cluster.vm_size.is_empty() || cluster.vm_size.eq_ignore_ascii_case(&node.node_class)
}

/// Whether the job asks for more than the cluster has at its present target, however long it waits.
pub(crate) fn never_fits(state: &State, cluster: &str, spec: &JobSpec) -> bool {
    let Some(cluster) = state.clusters.get(cluster) else {
        return true;
    };
    if spec.node_count > target(cluster) {
        return true;
    }
    let wanted = capacity::gpus_per_node(spec);
    let complete = state
        .indexes
        .cluster_nodes
        .get(&cluster.name)
        .is_some_and(|nodes| u32::try_from(nodes.len()).is_ok_and(|n| n >= target(cluster)));
    wanted > 0 && complete && wanted > largest_node(state, &cluster.name)
}

/// GPUs of the largest node that the cluster holds.
pub(crate) fn largest_node(state: &State, cluster: &str) -> u32 {
    nodes_of(state, cluster)
        .map(capacity::gpu_count)
        .max()
        .unwrap_or(0)
}

/// The nodes that a cluster holds, in order of name.
pub(crate) fn nodes_of<'a>(state: &'a State, cluster: &str) -> impl Iterator<Item = &'a Node> {
    state
        .indexes
        .cluster_nodes
        .get(cluster)
        .into_iter()
        .flatten()
        .filter_map(|name| state.nodes.get(name))
}

fn grow_clusters(state: &State, unresponsive: &BTreeSet<String>) -> Vec<NodeAssignment> {
    let mut pool: Vec<&Node> = state
        .indexes
        .pool
        .iter()
        .filter(|name| !unresponsive.contains(*name))
        .filter_map(|name| state.nodes.get(name))
        .filter(|node| capacity::is_ready(node))
        .collect();
    let mut assignments = Vec::new();
    for cluster in state.clusters.values() {
        let held = state
            .indexes
            .cluster_nodes
            .get(&cluster.name)
            .map_or(0, BTreeSet::len);
        let mut missing = usize::try_from(target(cluster))
            .unwrap_or(usize::MAX)
            .saturating_sub(held);
        pool.retain(|node| {
            let take = missing > 0 && wants_class(cluster, node);
            if take {
                missing -= 1;
                assignments.push(NodeAssignment {
                    node: node.name.clone(),
                    cluster: cluster.name.clone(),
                });
            }
            !take
        });
    }
    assignments
}

fn start(job: &Job, nodes: Vec<StartNode>) -> Start {
    Start {
        job: job.name.clone(),
        uid: job.uid.clone(),
        nodes,
    }
}

/// The room in a cluster, shrinking as the plan grows.
pub(crate) struct Room<'a> {
    nodes: Vec<(&'a Node, Free)>,
}

impl<'a> Room<'a> {
    pub(crate) fn new(state: &'a State, cluster: &str, unresponsive: &BTreeSet<String>) -> Self {
        let nodes = nodes_of(state, cluster)
            .filter(|node| capacity::is_ready(node) && !unresponsive.contains(&node.name))
            .map(|node| (node, capacity::free(node, holdings(state, node))))
            .collect();
        Self { nodes }
    }

    /// Nodes that could take one part of such a job now.
    pub(crate) fn count(&self, spec: &JobSpec) -> u32 {
        let fitting = self
            .nodes
            .iter()
            .filter(|(node, free)| capacity::take(spec, node, free).is_some())
            .count();
        u32::try_from(fitting).unwrap_or(u32::MAX)
    }

    /// Takes the room for a whole gang, or nothing.
    fn place(&mut self, spec: &JobSpec) -> Option<Vec<StartNode>> {
        let mut candidates: Vec<(usize, usize, StartNode)> = self
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(i, (node, free))| {
                Some((free.gpus.len(), i, capacity::take(spec, node, free)?))
            })
            .collect();
        let wanted = usize::try_from(spec.node_count).unwrap_or(usize::MAX);
        if candidates.len() < wanted || wanted == 0 {
            return None;
        }
        // Fullest first for parts of nodes; by name among equals, and for whole nodes.
        candidates.sort_by_key(|(free, i, part)| (if part.whole_node { 0 } else { *free }, *i));
        candidates.truncate(wanted);
        candidates.sort_by_key(|(_, i, _)| *i);
        for (_, i, part) in &candidates {
            let (_, free) = &mut self.nodes[*i];
            free.whole_node = false;
            free.gpus.retain(|g| !part.gpus.contains(g));
        }
        Some(candidates.into_iter().map(|(_, _, part)| part).collect())
    }
}

fn holdings<'a>(state: &'a State, node: &Node) -> Option<&'a BTreeMap<String, Holding>> {
    state.indexes.holdings.get(&node.name)
}
