//! Why a job waits: every blocker with its counts, the dominant one first, and what would unblock it. Typed, so
//! that a command line, a page and a program can each say it in their own way.

use std::collections::BTreeSet;

use trainyard_proto::v1::{
    AttemptPhase, BehindOthers, Blocker, EndingPreviousAttempt, ExecutionState, Job,
    JobExplanation, LargerThanCluster, LargerThanNode, NotEnoughNodes, blocker::Reason,
};

use crate::attempt::phase_of;
use crate::capacity;
use crate::placement::{Room, largest_node, never_fits, nodes_of};
use crate::query::target;
use crate::state::{State, cluster_of, node_is_involved, queue_key};

impl State {
    /// Explains `job` (a resource name). `unresponsive` nodes count as unusable. `None`: no such job.
    pub fn explain(&self, job: &str, unresponsive: &BTreeSet<String>) -> Option<JobExplanation> {
        let job = &*self.jobs.get(job)?;
        let mut explanation = JobExplanation {
            job: job.name.clone(),
            execution_state: job.execution_state,
            ..JobExplanation::default()
        };
        if job.execution_state() != ExecutionState::Queued {
            explanation.summary = state_summary(job);
            return Some(explanation);
        }
        let cluster = cluster_of(job);
        if let Some(queue) = self.indexes.queues.get(cluster) {
            explanation.queue_length = count(queue.len());
            let before = queue.range(..queue_key(job)).count();
            explanation.queue_position = count(before).saturating_add(1);
        }
        explanation.blockers = self.blockers(job, cluster, unresponsive);
        explanation.summary = explanation
            .blockers
            .first()
            .map_or_else(|| "it will start at once".to_owned(), summary);
        Some(explanation)
    }

    fn blockers(&self, job: &Job, cluster: &str, unresponsive: &BTreeSet<String>) -> Vec<Blocker> {
        let mut blockers = Vec::new();
        if let Some(ending) = ending_attempt(job) {
            blockers.push(blocker(
                Reason::EndingPreviousAttempt(ending),
                "nothing to do: it is queued again when those nodes have ended their tasks",
            ));
        }
        let (Some(spec), Some(held)) = (job.spec.as_ref(), self.clusters.get(cluster)) else {
            return blockers;
        };
        let short = cluster.rsplit('/').next().unwrap_or(cluster);
        let goal = target(held);
        if spec.node_count > goal {
            blockers.push(blocker(
                Reason::LargerThanCluster(LargerThanCluster {
                    wanted: spec.node_count,
                    target: goal,
                }),
                format!(
                    "raise the target of cluster {short} to {}, or ask for fewer nodes",
                    spec.node_count
                ),
            ));
            return blockers;
        }
        if never_fits(self, cluster, spec) {
            let largest = largest_node(self, cluster);
            let wanted = capacity::gpus_per_node(spec);
            blockers.push(blocker(
                Reason::LargerThanNode(LargerThanNode { wanted, largest }),
                format!("ask for at most {largest} GPUs of each node, or for more nodes"),
            ));
            return blockers;
        }
        let room = Room::new(self, cluster, unresponsive);
        let free = room.count(spec);
        if free < spec.node_count {
            blockers.push(self.not_enough(spec.node_count, free, cluster, goal, unresponsive));
        }
        if let Some(behind) = self.waiting_before(job, cluster) {
            let first = behind.first.clone();
            blockers.push(blocker(
                Reason::BehindOthers(behind),
                format!("it moves up when {first} starts; a higher schedulingPriority passes it"),
            ));
        }
        blockers
    }

    fn not_enough(
        &self,
        wanted: u32,
        free: u32,
        cluster: &str,
        goal: u32,
        unresponsive: &BTreeSet<String>,
    ) -> Blocker {
        let mut found = NotEnoughNodes {
            wanted,
            free,
            ..NotEnoughNodes::default()
        };
        let mut held = 0;
        for node in nodes_of(self, cluster) {
            held += 1;
            if !capacity::is_ready(node) || unresponsive.contains(&node.name) {
                found.unusable += 1;
            }
        }
        found.missing = goal.saturating_sub(held);
        found.busy = held.saturating_sub(free).saturating_sub(found.unusable);
        let remedy = if found.busy > 0 {
            "it starts when running jobs end".to_owned()
        } else if found.unusable > 0 {
            "repair the unusable nodes; trainyard node list says what is wrong with them".to_owned()
        } else {
            format!(
                "connect {} more nodes: start trainyard-agent on hosts of the cluster's class",
                found.missing
            )
        };
        blocker(Reason::NotEnoughNodes(found), remedy)
    }

    /// Jobs of the queue before this one that could run at all.
    fn waiting_before(&self, job: &Job, cluster: &str) -> Option<BehindOthers> {
        let queue = self.indexes.queues.get(cluster)?;
        let mut before = queue
            .range(..queue_key(job))
            .map(|(_, name)| name)
            .filter(|name| {
                self.jobs
                    .open(name)
                    .and_then(|j| j.spec.as_ref())
                    .is_some_and(|spec| !never_fits(self, cluster, spec))
            });
        let first = before.next()?.clone();
        Some(BehindOthers {
            jobs: count(before.count()).saturating_add(1),
            first,
        })
    }
}

fn ending_attempt(job: &Job) -> Option<EndingPreviousAttempt> {
    let attempt = job
        .attempts
        .last()
        .filter(|a| a.phase() != AttemptPhase::Ended)?;
    let nodes = attempt
        .nodes
        .iter()
        .filter(|n| node_is_involved(attempt, phase_of(n)))
        .map(|n| n.node.clone())
        .collect();
    Some(EndingPreviousAttempt {
        attempt: attempt.number,
        nodes,
    })
}

fn blocker(reason: Reason, remedy: impl Into<String>) -> Blocker {
    Blocker {
        reason: Some(reason),
        remedy: remedy.into(),
    }
}

fn summary(blocker: &Blocker) -> String {
    let what = match blocker.reason.as_ref() {
        Some(Reason::LargerThanCluster(r)) => {
            format!(
                "it wants {} nodes and the cluster's target is {}",
                r.wanted, r.target
            )
        }
        Some(Reason::LargerThanNode(r)) => {
            format!(
                "it wants {} GPUs of each node and the largest node has {}",
                r.wanted, r.largest
            )
        }
        Some(Reason::NotEnoughNodes(r)) => format!(
            "it wants {} nodes: {} free, {} busy, {} unusable, {} not connected",
            r.wanted, r.free, r.busy, r.unusable, r.missing
        ),
        Some(Reason::BehindOthers(r)) => {
            format!("{} jobs wait before it, {} first", r.jobs, r.first)
        }
        Some(Reason::EndingPreviousAttempt(r)) => {
            format!(
                "attempt {} is still being ended on {}",
                r.attempt,
                r.nodes.join(", ")
            )
        }
        Some(Reason::WaitingForJobs(r)) => format!("it waits for {}", r.jobs.join(", ")),
        Some(Reason::OverQuota(r)) => format!(
            "{} {} of {} are used by {}",
            r.used, r.limit_name, r.limit, r.quota
        ),
        Some(Reason::ArrayLimit(r)) => format!(
            "{} jobs of its array run and {} may",
            r.running, r.max_running_jobs
        ),
        Some(Reason::ClusterDeleting(r)) => format!("{} is being deleted", r.cluster),
        None => "unknown".to_owned(),
    };
    format!("{what}; {}", blocker.remedy)
}

fn state_summary(job: &Job) -> String {
    match job.execution_state() {
        ExecutionState::Running => "it runs".to_owned(),
        ExecutionState::Terminating => "it is being ended".to_owned(),
        ExecutionState::Succeeded => "it has succeeded".to_owned(),
        ExecutionState::Failed => "it has failed; trainyard job show says why".to_owned(),
        ExecutionState::Queued | ExecutionState::Unspecified => "it waits".to_owned(),
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
