//! The whole state, and the indexes derived from it.
//!
//! Resources are kept as protocol messages, in maps ordered by resource name. The indexes (queues, holdings,
//! members of clusters) can always be rebuilt from them and are never part of a snapshot. Only [`State::apply`]
//! changes a state.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trainyard_proto::v1::{
    Attempt, AttemptNodePhase, AttemptPhase, Cluster, ExecutionState, Experiment, FileServer, Job,
    Node, NodeClass, ProvisioningState, Quota, SchedulingPriority, Workspace,
};

use crate::capacity::Holding;
use crate::jobs::{JobTable, is_over, order_key};
use crate::requests::Requests;
use crate::usage::Ledger;

/// Place of a job in the queue of its cluster: higher priority first, then older first, then by its place in its array.
pub(crate) type QueueKey = (Reverse<i32>, u64, u32);

/// Place of a finished job among those of its workspace: seconds and nanoseconds of its end, then order of creation.
pub(crate) type EndKey = (i64, i32, u64, u32);

/// The state at one index of the log.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    pub(crate) index: u64,
    pub(crate) workspaces: BTreeMap<String, Workspace>,
    pub(crate) clusters: BTreeMap<String, Cluster>,
    pub(crate) file_servers: BTreeMap<String, FileServer>,
    pub(crate) experiments: BTreeMap<String, Experiment>,
    pub(crate) jobs: JobTable,
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) quotas: BTreeMap<String, Quota>,
    pub(crate) node_classes: BTreeMap<String, NodeClass>,
    pub(crate) usage: Ledger,
    pub(crate) requests: Requests,
    pub(crate) indexes: Indexes,
}

/// Derived from the resources; see [`State::rebuild_indexes`].
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Indexes {
    /// Jobs that could start now, by cluster.
    pub(crate) queues: BTreeMap<String, BTreeMap<QueueKey, String>>,
    /// What attempts hold of each node, by node and job. No entry: the node is free.
    pub(crate) holdings: BTreeMap<String, BTreeMap<String, Holding>>,
    /// Nodes of each cluster.
    pub(crate) cluster_nodes: BTreeMap<String, BTreeSet<String>>,
    /// Nodes that no cluster holds.
    pub(crate) pool: BTreeSet<String>,
    /// Jobs whose latest attempt has not ended.
    pub(crate) live: BTreeSet<String>,
    /// Jobs of each cluster that have not ended.
    pub(crate) unfinished: BTreeMap<String, BTreeSet<String>>,
    /// Managed file servers of each node.
    pub(crate) exports: BTreeMap<String, BTreeSet<String>>,
    /// Jobs of each workspace that are queued, whatever they wait for.
    pub(crate) waiting: BTreeMap<String, BTreeSet<Arc<str>>>,
    /// Jobs of each workspace of which nothing runs any more, by their end. Names are shared with the table of jobs.
    pub(crate) finished: BTreeMap<String, BTreeMap<EndKey, Arc<str>>>,
    /// Workspaces and experiments that are being deleted.
    pub(crate) deleting: BTreeSet<String>,
    /// Jobs that wait for each job.
    pub(crate) dependents: BTreeMap<String, BTreeSet<String>>,
}

impl State {
    /// Index of the entry of the log that was applied last; 0 for an empty state.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Computes all indexes from the resources. Used after a snapshot was read.
    pub(crate) fn rebuild_indexes(&mut self) {
        self.indexes = Indexes::default();
        for (name, node) in &self.nodes {
            if node.cluster.is_empty() {
                self.indexes.pool.insert(name.clone());
            } else {
                self.indexes
                    .cluster_nodes
                    .entry(node.cluster.clone())
                    .or_default()
                    .insert(name.clone());
            }
        }
        let going = |state: ProvisioningState| state == ProvisioningState::Deleting;
        for (name, workspace) in &self.workspaces {
            if going(workspace.provisioning_state()) {
                self.indexes.deleting.insert(name.clone());
            }
        }
        for (name, experiment) in &self.experiments {
            if going(experiment.provisioning_state()) {
                self.indexes.deleting.insert(name.clone());
            }
        }
        let servers: Vec<String> = self.file_servers.keys().cloned().collect();
        for name in servers {
            self.index_export(&name, true);
        }
        let names: Vec<Arc<str>> = self.jobs.names().cloned().collect();
        for name in names {
            self.index_job(&name);
        }
    }

    /// Brings the indexes up to date with one job, after any change of it, and seals it if it is over.
    pub(crate) fn index_job(&mut self, name: &str) {
        let (Some(key), Some(job)) = (self.jobs.key(name), self.jobs.get(name)) else {
            return;
        };
        let waits = job.execution_state() == ExecutionState::Queued;
        set_waiting(&mut self.indexes.waiting, &key, waits);
        if is_over(&job) {
            self.indexes
                .finished
                .entry(workspace_of(name).to_owned())
                .or_default()
                .insert(end_key(&job), key);
        }
        let job = &*job;
        let cluster = cluster_of(job).to_owned();
        let queued = is_startable(job);
        let key = queue_key(job);
        let ended = is_ended(job.execution_state());
        let live = job
            .attempts
            .last()
            .is_some_and(|a| a.phase() != AttemptPhase::Ended);
        let held: Vec<(String, Option<Holding>)> = job
            .attempts
            .last()
            .map(|attempt| {
                attempt
                    .nodes
                    .iter()
                    .map(|n| (n.node.clone(), Holding::of(attempt, n)))
                    .collect()
            })
            .unwrap_or_default();

        let waiting_for = job.waiting_for.clone();

        for dependency in waiting_for {
            set_member(&mut self.indexes.dependents, &dependency, name, true);
        }
        set_member(&mut self.indexes.unfinished, &cluster, name, !ended);
        if queued {
            self.indexes
                .queues
                .entry(cluster)
                .or_default()
                .insert(key, name.to_owned());
        } else {
            remove_from_queue(&mut self.indexes.queues, &cluster, &key);
        }
        let was_live = if live {
            self.indexes.live.insert(name.to_owned());
            false
        } else {
            self.indexes.live.remove(name)
        };
        for (node, holding) in held {
            match holding {
                Some(holding) => {
                    self.indexes
                        .holdings
                        .entry(node)
                        .or_default()
                        .insert(name.to_owned(), holding);
                }
                None => remove_holding(&mut self.indexes.holdings, &node, name),
            }
        }
        if was_live {
            self.record_usage(name);
        }
        self.jobs.seal(name);
    }

    /// Takes a job out of the state and all indexes.
    pub(crate) fn remove_job(&mut self, name: &str) {
        if self.indexes.live.remove(name) {
            self.record_usage(name);
        }
        let Some(job) = self.jobs.remove(name) else {
            return;
        };
        let cluster = cluster_of(&job).to_owned();
        for dependency in &job.waiting_for {
            set_member(&mut self.indexes.dependents, dependency, name, false);
        }
        set_member(&mut self.indexes.unfinished, &cluster, name, false);
        remove_from_queue(&mut self.indexes.queues, &cluster, &queue_key(&job));
        set_waiting(&mut self.indexes.waiting, &Arc::from(name), false);
        let workspace = workspace_of(name);
        if let Some(ends) = self.indexes.finished.get_mut(workspace) {
            ends.remove(&end_key(&job));
            if ends.is_empty() {
                self.indexes.finished.remove(workspace);
            }
        }
        if let Some(attempt) = job.attempts.last() {
            for node in &attempt.nodes {
                remove_holding(&mut self.indexes.holdings, &node.node, name);
            }
        }
    }

    /// Moves a node between clusters; an empty name is the pool.
    pub(crate) fn move_node(&mut self, node_name: &str, cluster: &str) {
        let Some(node) = self.nodes.get_mut(node_name) else {
            return;
        };
        let from = std::mem::replace(&mut node.cluster, cluster.to_owned());
        if from.is_empty() {
            self.indexes.pool.remove(node_name);
        } else {
            set_member(&mut self.indexes.cluster_nodes, &from, node_name, false);
        }
        if cluster.is_empty() {
            self.indexes.pool.insert(node_name.to_owned());
        } else {
            set_member(&mut self.indexes.cluster_nodes, cluster, node_name, true);
        }
    }
}

/// Resource name of the cluster that a job runs on; empty only for a malformed job.
pub(crate) fn cluster_of(job: &Job) -> &str {
    job.spec
        .as_ref()
        .and_then(|s| s.cluster.as_ref())
        .map_or("", |c| c.id.as_str())
}

/// Whether the job waits for nodes alone: for no other job, and nothing of an earlier attempt is left.
pub(crate) fn is_startable(job: &Job) -> bool {
    job.execution_state() == ExecutionState::Queued
        && job.waiting_for.is_empty()
        && job
            .attempts
            .last()
            .is_none_or(|a| a.phase() == AttemptPhase::Ended)
}

/// Whether the job will not run again.
pub(crate) fn is_ended(state: ExecutionState) -> bool {
    match state {
        ExecutionState::Succeeded | ExecutionState::Failed => true,
        ExecutionState::Unspecified
        | ExecutionState::Queued
        | ExecutionState::Running
        | ExecutionState::Terminating => false,
    }
}

/// Place of the job in the queue.
pub(crate) fn queue_key(job: &Job) -> QueueKey {
    let priority = job
        .spec
        .as_ref()
        .map_or(SchedulingPriority::Normal, |s| s.scheduling_priority());
    let rank = match priority {
        SchedulingPriority::High => 1,
        SchedulingPriority::Normal | SchedulingPriority::Unspecified => 0,
        SchedulingPriority::Low => -1,
    };
    let (sequence, index) = order_key(job);
    (Reverse(rank), sequence, index)
}

/// Resource name of the workspace that a resource belongs to; the whole name if it belongs to none.
pub(crate) fn workspace_of(name: &str) -> &str {
    name.match_indices('/')
        .nth(1)
        .map_or(name, |(end, _)| &name[..end])
}

/// Place of a finished job among those of its workspace.
pub(crate) fn end_key(job: &Job) -> EndKey {
    let end = job
        .execution_info
        .as_ref()
        .and_then(|info| info.end_time)
        .unwrap_or_default();
    let (sequence, index) = order_key(job);
    (end.seconds, end.nanos, sequence, index)
}

/// Whether the node still has, or may have, anything of the attempt.
pub(crate) fn node_is_involved(attempt: &Attempt, phase: AttemptNodePhase) -> bool {
    attempt.phase() != AttemptPhase::Ended
        && !matches!(phase, AttemptNodePhase::Cleaned | AttemptNodePhase::Lost)
}

fn set_member(map: &mut BTreeMap<String, BTreeSet<String>>, key: &str, value: &str, present: bool) {
    if present {
        map.entry(key.to_owned())
            .or_default()
            .insert(value.to_owned());
    } else if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

fn set_waiting(waiting: &mut BTreeMap<String, BTreeSet<Arc<str>>>, name: &Arc<str>, present: bool) {
    let workspace = workspace_of(name);
    if present {
        waiting
            .entry(workspace.to_owned())
            .or_default()
            .insert(Arc::clone(name));
    } else if let Some(names) = waiting.get_mut(workspace) {
        names.remove(name);
        if names.is_empty() {
            waiting.remove(workspace);
        }
    }
}

fn remove_from_queue(
    queues: &mut BTreeMap<String, BTreeMap<QueueKey, String>>,
    cluster: &str,
    key: &QueueKey,
) {
    if let Some(queue) = queues.get_mut(cluster) {
        queue.remove(key);
        if queue.is_empty() {
            queues.remove(cluster);
        }
    }
}

fn remove_holding(
    holdings: &mut BTreeMap<String, BTreeMap<String, Holding>>,
    node: &str,
    job: &str,
) {
    if let Some(held) = holdings.get_mut(node) {
        held.remove(job);
        if held.is_empty() {
            holdings.remove(node);
        }
    }
}
