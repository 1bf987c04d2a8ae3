//! How many nodes each cluster wants, and which ones it gives up.
//!
//! Pure, from the state and the time alone. A cluster's goal is the target of its settings, or, when it scales by
//! itself, what its jobs need between minimum and maximum: it rises at once, and falls only as nodes have been idle for
//! the delay. A node that leaves takes no new job; a leaving node no longer counts towards the goal. Nothing here moves a
//! node: `apply` verifies every release again.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use prost_types::{Duration, Timestamp};
use trainyard_proto::store::v1::{ClusterTarget, NodeRelease, ReleaseCause};
use trainyard_proto::v1::{
    AutoScaleSettings, Cluster, JobSpec, Node, NodeDeallocationOption, NodeState,
    ProvisioningState, VmPriority,
};

use crate::admission::Admission;
use crate::capacity;
use crate::placement::nodes_of;
use crate::state::State;
use crate::time;

/// How long a node is idle before auto-scale lets it go, where the cluster does not say.
const DEFAULT_IDLE: Duration = Duration {
    seconds: 120,
    nanos: 0,
};
/// Queued jobs that auto-scale looks at: what lies behind them will be looked at when they have started.
const LOOK_AHEAD: usize = 10_000;

/// Nodes that the cluster wants now.
pub(crate) fn goal(cluster: &Cluster) -> u32 {
    if is_deleting(cluster) {
        return 0;
    }
    let settings = cluster.scale_settings.as_ref();
    match settings.and_then(|s| s.manual.as_ref()) {
        Some(manual) => manual.target_node_count,
        None if auto(cluster).is_some() => cluster.target_node_count,
        None => 0,
    }
}

/// Nodes that the cluster can want: what "larger than the cluster" is measured against.
pub(crate) fn ceiling(cluster: &Cluster) -> u32 {
    match auto(cluster) {
        Some(auto) if !is_deleting(cluster) => auto.maximum_node_count,
        Some(_) | None => goal(cluster),
    }
}

/// Settings of a cluster that scales by itself.
pub(crate) fn auto(cluster: &Cluster) -> Option<&AutoScaleSettings> {
    cluster.scale_settings.as_ref()?.auto_scale.as_ref()
}

/// Goal of a new cluster, or of one whose settings were changed.
pub(crate) fn first_goal(cluster: &Cluster, now: u32) -> u32 {
    match auto(cluster) {
        Some(auto) => now.clamp(
            auto.minimum_node_count,
            auto.maximum_node_count.max(auto.minimum_node_count),
        ),
        None => goal(cluster),
    }
}

/// Whether the cluster is being deleted.
pub(crate) fn is_deleting(cluster: &Cluster) -> bool {
    cluster.provisioning_state() == ProvisioningState::Deleting
}

/// Whether its nodes may be taken for dedicated clusters.
pub(crate) fn is_low_priority(cluster: &Cluster) -> bool {
    cluster.vm_priority() == VmPriority::Lowpriority
}

/// What happens to the jobs of nodes that leave because the cluster shrinks.
pub(crate) fn deallocation(cluster: &Cluster) -> NodeDeallocationOption {
    let settings = cluster.scale_settings.as_ref();
    match settings.and_then(|s| s.manual.as_ref()) {
        Some(manual) => match manual.node_deallocation_option() {
            NodeDeallocationOption::Unspecified => NodeDeallocationOption::Requeue,
            option => option,
        },
        None => NodeDeallocationOption::Waitforjobcompletion,
    }
}

impl State {
    /// Nodes that the cluster holds and keeps.
    pub(crate) fn staying<'a>(&'a self, cluster: &str) -> impl Iterator<Item = &'a Node> {
        nodes_of(self, cluster).filter(|node| !node.leaving)
    }

    /// Whether an attempt holds any part of the node.
    pub(crate) fn is_busy(&self, node: &str) -> bool {
        self.indexes.holdings.contains_key(node)
    }
}

/// New goals of the clusters that scale by themselves.
pub(crate) fn targets(state: &State, now: &Timestamp) -> Vec<ClusterTarget> {
    state
        .clusters
        .values()
        .filter_map(|cluster| {
            let target = wanted(state, cluster, now)?;
            let begins = !cluster.follows_jobs;
            (begins || target != cluster.target_node_count).then(|| ClusterTarget {
                cluster: cluster.name.clone(),
                target,
            })
        })
        .collect()
}

/// The goal of a cluster that scales by itself; `None` for any other, and before its first job.
fn wanted(state: &State, cluster: &Cluster, now: &Timestamp) -> Option<u32> {
    let auto = auto(cluster).filter(|_| !is_deleting(cluster))?;
    if !cluster.follows_jobs && !state.indexes.unfinished.contains_key(&cluster.name) {
        return None;
    }
    let maximum = auto.maximum_node_count.max(auto.minimum_node_count);
    let needed = needed(state, cluster, maximum, now).clamp(auto.minimum_node_count, maximum);
    let mut held = 0_u32;
    let mut rested = 0_u32;
    let mut broken = 0_u32;
    for node in state.staying(&cluster.name) {
        let idle = !state.is_busy(&node.name);
        if idle && !is_usable(node) {
            broken += 1;
            continue;
        }
        held += 1;
        let over = rests_until(cluster, node).is_none_or(|until| time::passed(&until, now));
        rested += u32::from(idle && over);
    }
    // What cannot be used is replaced as long as its place is needed, and is the first to go when it is not.
    let replaced = if needed > held { broken } else { 0 };
    let kept = (held - rested).min(maximum);
    Some(needed.saturating_add(replaced).min(maximum).max(kept))
}

/// Whether the node can take jobs, or will soon.
fn is_usable(node: &Node) -> bool {
    !matches!(
        node.state(),
        NodeState::Lost | NodeState::Unusable | NodeState::Unspecified
    )
}

/// When an idle node has been idle long enough; `None`: it is not known since when it is.
fn rests_until(cluster: &Cluster, node: &Node) -> Option<Timestamp> {
    let delay = auto(cluster)
        .and_then(|a| a.node_idle_time_before_scale_down)
        .unwrap_or(DEFAULT_IDLE);
    Some(time::after(&node.idle_since?, &delay))
}

/// Nodes that running and queued jobs need: a gang all of its nodes or none, parts of nodes packed.
fn needed(state: &State, cluster: &Cluster, maximum: u32, now: &Timestamp) -> u32 {
    let mut total = 0_u32;
    let mut free_gpus = 0_u32;
    let mut gpus_of_a_node = 0_u32;
    for node in state.staying(&cluster.name) {
        gpus_of_a_node = gpus_of_a_node.max(capacity::gpu_count(node));
        let held = state.indexes.holdings.get(&node.name);
        if held.is_some() {
            total += 1;
            let free = capacity::free(node, held).gpus.len();
            free_gpus = free_gpus.saturating_add(u32::try_from(free).unwrap_or(u32::MAX));
        }
    }
    // Without a node to look at, one of the class in the pool says how large they are.
    if gpus_of_a_node == 0 {
        gpus_of_a_node = state
            .nodes
            .values()
            .filter(|node| state.fit(cluster, node).is_ok())
            .map(capacity::gpu_count)
            .max()
            .unwrap_or(0);
    }
    let mut least = 0_u32;
    let mut admission = Admission::new(state, now);
    let queue = state.indexes.queues.get(&cluster.name);
    for name in queue.into_iter().flat_map(|q| q.values()).take(LOOK_AHEAD) {
        let Some((job, spec)) = state
            .jobs
            .open(name)
            .and_then(|job| Some((job, job.spec.as_ref()?)))
        else {
            continue;
        };
        let gpus = capacity::gpus_of(spec, gpus_of_a_node);
        if spec.node_count > maximum || admission.admits(job, gpus).is_err() {
            continue;
        }
        admission.take(job, gpus);
        least = least.max(spec.node_count);
        let more = nodes_wanted(spec, gpus_of_a_node, &mut free_gpus);
        if total.saturating_add(more) <= maximum {
            total += more;
        }
        if total >= maximum {
            break;
        }
    }
    total.max(least)
}

/// Nodes that the job wants beyond the free parts of those that are in use.
fn nodes_wanted(spec: &JobSpec, gpus_of_a_node: u32, free_gpus: &mut u32) -> u32 {
    let part = capacity::gpus_per_node(spec);
    if part == 0 || gpus_of_a_node == 0 {
        return spec.node_count;
    }
    let gpus = part.saturating_mul(spec.node_count);
    let taken = gpus.min(*free_gpus);
    *free_gpus -= taken;
    let nodes = (gpus - taken).div_ceil(gpus_of_a_node);
    // What is left of the new nodes is there for the next job.
    *free_gpus = free_gpus.saturating_add(nodes * gpus_of_a_node - (gpus - taken));
    nodes
}

/// Nodes that are to leave: those beyond the goals, and those that dedicated clusters need. `targets` are goals that the
/// same plan sets, `missing` what dedicated clusters lack after taking from the pool.
pub(crate) fn releases(
    state: &State,
    targets: &[ClusterTarget],
    missing: &[(&Cluster, u32)],
) -> Vec<NodeRelease> {
    let mut releases = Vec::new();
    let mut chosen = BTreeSet::new();
    for cluster in state.clusters.values() {
        let goal = targets
            .iter()
            .find(|t| t.cluster == cluster.name)
            .map_or_else(|| goal(cluster), |t| t.target);
        let held = state.staying(&cluster.name).count();
        let excess = held.saturating_sub(usize::try_from(goal).unwrap_or(usize::MAX));
        if excess == 0 {
            continue;
        }
        let option = deallocation(cluster);
        let only_idle = auto(cluster).is_some() && !is_deleting(cluster);
        let cause = if is_deleting(cluster) {
            ReleaseCause::Deletion
        } else {
            ReleaseCause::Shrink
        };
        let leaving = in_order_of_leaving(state, &cluster.name)
            .into_iter()
            .filter(|node| !only_idle || !state.is_busy(&node.name))
            .take(excess);
        for node in leaving {
            chosen.insert(node.name.clone());
            releases.push(release(node, cluster, option, cause));
        }
    }
    for (dedicated, lacks) in missing {
        releases.extend(preempt(state, dedicated, *lacks, &mut chosen));
    }
    releases
}

/// Nodes of low-priority clusters for a dedicated one that lacks `lacks` nodes.
fn preempt(
    state: &State,
    dedicated: &Cluster,
    lacks: u32,
    chosen: &mut BTreeSet<String>,
) -> Vec<NodeRelease> {
    // Nodes that are on their way to the pool already are not asked for twice.
    let coming = state
        .nodes
        .values()
        .filter(|n| n.leaving && is_usable(n) && state.fit(dedicated, n).is_ok())
        .count();
    let lacks = usize::try_from(lacks).unwrap_or(usize::MAX);
    let mut wanted = lacks.saturating_sub(coming);
    let mut releases = Vec::new();
    for donor in state.clusters.values() {
        if !is_low_priority(donor) || is_deleting(donor) {
            continue;
        }
        for node in in_order_of_leaving(state, &donor.name) {
            if wanted == 0 {
                return releases;
            }
            let fits = is_usable(node) && state.fit(dedicated, node).is_ok();
            if fits && chosen.insert(node.name.clone()) {
                wanted -= 1;
                releases.push(release(
                    node,
                    donor,
                    NodeDeallocationOption::Requeue,
                    ReleaseCause::Preemption,
                ));
            }
        }
    }
    releases
}

fn release(
    node: &Node,
    cluster: &Cluster,
    option: NodeDeallocationOption,
    cause: ReleaseCause,
) -> NodeRelease {
    NodeRelease {
        node: node.name.clone(),
        cluster: cluster.name.clone(),
        option: option.into(),
        cause: cause.into(),
    }
}

/// Nodes that stay so far, the first to leave first: unusable ones, then idle ones by how long they have been, then the
/// one whose job started last.
fn in_order_of_leaving<'a>(state: &'a State, cluster: &str) -> Vec<&'a Node> {
    let mut nodes: Vec<&Node> = state.staying(cluster).collect();
    nodes.sort_by_key(|node| {
        let started = latest_start(state, node);
        let idle = node.idle_since.as_ref().map(time::key);
        (is_usable(node), started.is_some(), Reverse(started), idle)
    });
    nodes
}

/// When the youngest attempt on the node started.
fn latest_start(state: &State, node: &Node) -> Option<(i64, i32)> {
    let held = state.indexes.holdings.get(&node.name)?;
    held.keys()
        .filter_map(|job| state.jobs.open(job)?.attempts.last()?.start_time)
        .map(|t| time::key(&t))
        .max()
        .or(Some((0, 0)))
}

/// When idle time alone will next let a node go.
pub(crate) fn next_change(state: &State, now: &Timestamp) -> Option<Timestamp> {
    let clusters = state.clusters.values();
    clusters
        .filter(|c| auto(c).is_some() && c.follows_jobs && !is_deleting(c))
        .flat_map(|cluster| {
            state
                .staying(&cluster.name)
                .filter(|node| !state.is_busy(&node.name))
                .filter_map(move |node| rests_until(cluster, node))
        })
        .filter(|until| !time::passed(until, now))
        .min_by_key(time::key)
}
