//! Decides which nodes clusters take from the pool and which jobs start where.
//!
//! Stages, in order: clusters that scale by themselves get their goals; clusters above their goal let nodes go; those
//! below take fitting nodes from the pool, or from low-priority clusters; then each cluster walks its
//! queue (priority, then age) and starts jobs, gang by gang, until the first that does not fit now. A job that
//! cannot fit at the cluster's present size is passed over, since waiting for it would wait for an administrator.
//! Partial-node jobs go to the fullest node that fits, so that whole nodes stay whole. The plan is only a proposal:
//! `apply` verifies each part against the state it meets.

use std::collections::{BTreeMap, BTreeSet};

use prost_types::Timestamp;
use trainyard_proto::store::v1::{ApplyPlan, NodeAssignment, Start, StartNode};
use trainyard_proto::v1::{Cluster, Job, JobSpec, Node, PowerState};

use crate::admission::Admission;
use crate::capacity::{self, Free, Holding};
use crate::state::State;
use crate::{scale, time};

/// Most starts in one plan: bounds the size of a command. The loop plans again until nothing is left.
const MAX_STARTS: usize = 256;

/// What to do now. `unresponsive` nodes (by the leases) get nothing new.
pub fn plan(state: &State, unresponsive: &BTreeSet<String>, now: &Timestamp) -> ApplyPlan {
    let targets = scale::targets(state, now);
    let (assignments, missing) = grow_clusters(state, unresponsive);
    let lacking: Vec<(&Cluster, u32)> = missing
        .into_iter()
        .filter(|(cluster, _)| !scale::is_low_priority(cluster))
        .collect();
    let mut plan = ApplyPlan {
        assignments,
        starts: Vec::new(),
        releases: scale::releases(state, &targets, &lacking),
        targets,
    };
    let leaving: BTreeSet<&str> = plan.releases.iter().map(|r| r.node.as_str()).collect();
    let mut admission = Admission::new(state, now);
    for (cluster, queue) in &state.indexes.queues {
        let mut room = Room::new(state, cluster, unresponsive);
        room.nodes
            .retain(|(node, _)| !leaving.contains(node.name.as_str()));
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
            let gpus = capacity::gpus_of(spec, room.gpus_of_a_node());
            if admission.admits(job, gpus).is_err() {
                continue;
            }
            match room.place(spec) {
                Some(nodes) => {
                    admission.take(job, gpus);
                    plan.starts.push(start(job, nodes));
                }
                None => break,
            }
        }
    }
    plan
}

/// Whether there is nothing to do.
pub fn is_empty(plan: &ApplyPlan) -> bool {
    plan.assignments.is_empty()
        && plan.starts.is_empty()
        && plan.releases.is_empty()
        && plan.targets.is_empty()
}

/// When time alone will next give the plan something to do; `None`: only a change of the state can.
pub fn next_change(state: &State, now: &Timestamp) -> Option<Timestamp> {
    [scale::next_change(state, now), state.next_quota_period(now)]
        .into_iter()
        .flatten()
        .min_by_key(time::key)
}

/// Whether the job asks for more than the cluster will ever have by itself, however long it waits.
pub(crate) fn never_fits(state: &State, cluster: &str, spec: &JobSpec) -> bool {
    let Some(cluster) = state.clusters.get(cluster) else {
        return true;
    };
    let most = scale::ceiling(cluster);
    if spec.node_count > most {
        return true;
    }
    let wanted = capacity::gpus_per_node(spec);
    let complete = state
        .indexes
        .cluster_nodes
        .get(&cluster.name)
        .is_some_and(|nodes| u32::try_from(nodes.len()).is_ok_and(|n| n >= most));
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

/// Nodes that clusters take from the pool, dedicated ones first, and how many each still lacks then.
pub(crate) fn grow_clusters<'a>(
    state: &'a State,
    unresponsive: &BTreeSet<String>,
) -> (Vec<NodeAssignment>, Vec<(&'a Cluster, u32)>) {
    let mut pool: Vec<&Node> = state
        .indexes
        .pool
        .iter()
        .filter(|name| !unresponsive.contains(*name))
        .filter_map(|name| state.nodes.get(name))
        .filter(|node| capacity::is_ready(node) && node.power_state() != PowerState::Stopping)
        .collect();
    let mut assignments = Vec::new();
    let mut lacking = Vec::new();
    let (low, dedicated): (Vec<&Cluster>, Vec<&Cluster>) = state
        .clusters
        .values()
        .partition(|cluster| scale::is_low_priority(cluster));
    for cluster in dedicated.into_iter().chain(low) {
        let held = u32::try_from(state.staying(&cluster.name).count()).unwrap_or(u32::MAX);
        let mut missing = scale::goal(cluster).saturating_sub(held);
        // Of several classes that would do, the first node decides.
        let mut class = cluster.node_class.clone();
        pool.retain(|node| {
            let same = class.is_empty() || state.is_of_class(node, &class);
            let take = missing > 0 && same && state.fit(cluster, node).is_ok();
            if take {
                missing -= 1;
                if class.is_empty() {
                    class.clone_from(&node.node_class);
                }
                assignments.push(NodeAssignment {
                    node: node.name.clone(),
                    cluster: cluster.name.clone(),
                });
            }
            !take
        });
        if missing > 0 {
            lacking.push((cluster, missing));
        }
    }
    (assignments, lacking)
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

    /// GPUs of the largest of the nodes.
    pub(crate) fn gpus_of_a_node(&self) -> u32 {
        let counts = self.nodes.iter().map(|(node, _)| capacity::gpu_count(node));
        counts.max().unwrap_or(0)
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
