//! Why a job waits: every blocker with its counts, the dominant one first, and what would unblock it. Typed, so
//! that a command line, a page and a program can each say it in their own way.

use std::collections::BTreeSet;

use prost_types::Timestamp;
use trainyard_proto::v1::{
    AttemptPhase, BehindOthers, Blocker, Cluster, ClusterDeleting, EndingPreviousAttempt,
    ExecutionState, Job, JobExplanation, LargerThanCluster, LargerThanNode, NodeState,
    NotEnoughNodes, WaitingForJobs, blocker::Reason,
};

use crate::admission::Admission;
use crate::attempt::phase_of;
use crate::capacity;
use crate::placement::{Room, largest_node, never_fits, nodes_of};
use crate::scale;
use crate::state::{State, cluster_of, node_is_involved, queue_key};

impl State {
    /// Explains `job` (a resource name). `unresponsive` nodes count as unusable. `None`: no such job.
    pub fn explain(
        &self,
        job: &str,
        unresponsive: &BTreeSet<String>,
        now: &Timestamp,
    ) -> Option<JobExplanation> {
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
        if job.waiting_for.is_empty()
            && let Some(queue) = self.indexes.queues.get(cluster)
        {
            explanation.queue_length = count(queue.len());
            let before = queue.range(..queue_key(job)).count();
            explanation.queue_position = count(before).saturating_add(1);
        }
        explanation.blockers = self.blockers(job, cluster, unresponsive, now);
        explanation.summary = explanation
            .blockers
            .first()
            .map_or_else(|| "it will start at once".to_owned(), summary);
        Some(explanation)
    }

    fn blockers(
        &self,
        job: &Job,
        cluster: &str,
        unresponsive: &BTreeSet<String>,
        now: &Timestamp,
    ) -> Vec<Blocker> {
        let mut blockers = Vec::new();
        if !job.waiting_for.is_empty() {
            blockers.push(blocker(
                Reason::WaitingForJobs(WaitingForJobs {
                    jobs: job.waiting_for.clone(),
                }),
                "it is queued when they have ended as dependsOn asks, and fails if one cannot any more",
            ));
            return blockers;
        }
        if let Some(ending) = ending_attempt(job) {
            blockers.push(blocker(
                Reason::EndingPreviousAttempt(ending),
                "nothing to do: it is queued again when those nodes have ended their tasks",
            ));
        }
        let (Some(spec), Some(held)) = (job.spec.as_ref(), self.clusters.get(cluster)) else {
            return blockers;
        };
        if scale::is_deleting(held) {
            blockers.push(blocker(
                Reason::ClusterDeleting(ClusterDeleting {
                    cluster: cluster.to_owned(),
                }),
                "create the job again on another cluster",
            ));
            return blockers;
        }
        let short = cluster.rsplit('/').next().unwrap_or(cluster);
        let most = scale::ceiling(held);
        if spec.node_count > most {
            let limit = match scale::auto(held) {
                Some(_) => "maximum",
                None => "target",
            };
            blockers.push(blocker(
                Reason::LargerThanCluster(LargerThanCluster {
                    wanted: spec.node_count,
                    target: most,
                }),
                format!(
                    "raise the {limit} of cluster {short} to {}, or ask for fewer nodes",
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
        let gpus = capacity::gpus_of(spec, room.gpus_of_a_node());
        if let Err(reason) = Admission::new(self, now).admits(job, gpus) {
            let remedy = limit_remedy(&reason);
            blockers.push(blocker(reason, remedy));
        }
        let free = room.count(spec);
        if free < spec.node_count {
            blockers.push(self.not_enough(spec.node_count, free, held, unresponsive));
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
        cluster: &Cluster,
        unresponsive: &BTreeSet<String>,
    ) -> Blocker {
        let mut found = NotEnoughNodes {
            wanted,
            free,
            ..NotEnoughNodes::default()
        };
        let mut staying = 0;
        for node in nodes_of(self, &cluster.name) {
            if node.leaving {
                found.leaving += 1;
                continue;
            }
            staying += 1;
            match node.state() {
                NodeState::Ready if !unresponsive.contains(&node.name) => {}
                NodeState::Preparing => found.preparing += 1,
                NodeState::Ready
                | NodeState::Cleaning
                | NodeState::Lost
                | NodeState::Unusable
                | NodeState::Unspecified => found.unusable += 1,
            }
        }
        // What a cluster that scales by itself has not asked for yet, it will ask for in the next plan.
        let goal = match scale::auto(cluster) {
            Some(_) => scale::ceiling(cluster).min(scale::goal(cluster).max(wanted)),
            None => scale::goal(cluster),
        };
        found.missing = goal.saturating_sub(staying);
        found.busy = staying
            .saturating_sub(free)
            .saturating_sub(found.unusable)
            .saturating_sub(found.preparing);
        let remedy = if found.busy > 0 {
            "it starts when running jobs end".to_owned()
        } else if found.preparing > 0 {
            "it starts when the nodes are set up; trainyard node list says how far they are"
                .to_owned()
        } else if found.unusable > 0 {
            "repair the unusable nodes; trainyard node list says what is wrong with them".to_owned()
        } else {
            format!(
                "connect {} more nodes: start trainyard-agent on hosts of the cluster's class; {}",
                found.missing,
                self.what_the_pool_lacks(cluster)
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
            "it wants {} nodes: {} free, {} busy, {} being set up, {} leaving, {} unusable, {} not there",
            r.wanted, r.free, r.busy, r.preparing, r.leaving, r.unusable, r.missing
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
        Some(Reason::WaitingForJobs(r)) => {
            let named: Vec<&str> = r.jobs.iter().take(3).map(String::as_str).collect();
            let more = r.jobs.len().saturating_sub(named.len());
            let named = named.join(", ");
            if more > 0 {
                format!("it waits for {named} and {more} more jobs")
            } else {
                format!("it waits for {named}")
            }
        }
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

/// What helps against a limit.
fn limit_remedy(reason: &Reason) -> String {
    match reason {
        Reason::ArrayLimit(_) => "it starts when another job of its array ends".to_owned(),
        _ => "it starts when others have ended, or when the administrator raises the limit"
            .to_owned(),
    }
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
