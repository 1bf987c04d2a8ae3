//! Placement's plan, verified part by part. A part that no longer fits is skipped; the loop that proposed it will
//! plan again from the new state.

use std::collections::BTreeSet;

use trainyard_proto::store::v1::{
    ApplyPlan, ClusterTarget, NodeAssignment, NodeRelease, ReleaseCause, Start, TerminateCause,
};
use trainyard_proto::v1::{
    Attempt, AttemptNode, AttemptPhase, ExecutionInfo, ExecutionState, Job, NodeDeallocationOption,
    PowerState,
};

use super::jobs::set_state;
use super::{Applied, Context};
use crate::admission::Admission;
use crate::attempt::keep_history;
use crate::outcome::Reply;
use crate::state::{State, cluster_of, is_startable};
use crate::{capacity, scale};

impl State {
    pub(super) fn apply_plan(&mut self, context: &mut Context, command: &ApplyPlan) -> Applied {
        for target in &command.targets {
            self.set_target(context, target);
        }
        for release in &command.releases {
            self.release_node(context, release);
        }
        for assignment in &command.assignments {
            self.assign_node(context, assignment);
        }
        for start in &command.starts {
            if self.start_fits(context, start) {
                self.start_attempt(context, start);
            }
        }
        Ok(Reply::None)
    }

    /// The goal of a cluster that scales by itself.
    fn set_target(&mut self, context: &mut Context, target: &ClusterTarget) {
        let Some(cluster) = self.clusters.get_mut(&target.cluster) else {
            return;
        };
        let Some(auto) = scale::auto(cluster).filter(|_| !scale::is_deleting(cluster)) else {
            return;
        };
        let maximum = auto.maximum_node_count.max(auto.minimum_node_count);
        cluster.target_node_count = target.target.clamp(auto.minimum_node_count, maximum);
        cluster.follows_jobs = true;
        cluster.etag = context.etag();
        self.settle_cluster(context, &target.cluster);
    }

    fn release_node(&mut self, context: &mut Context, release: &NodeRelease) {
        let (Some(node), Some(cluster)) = (
            self.nodes.get(&release.node),
            self.clusters.get(&release.cluster),
        ) else {
            return;
        };
        if node.cluster != release.cluster || node.leaving {
            return;
        }
        let goal = usize::try_from(scale::goal(cluster)).unwrap_or(usize::MAX);
        let holds = match release.cause() {
            ReleaseCause::Preemption => scale::is_low_priority(cluster),
            ReleaseCause::Unspecified | ReleaseCause::Shrink | ReleaseCause::Deletion => {
                self.staying(&release.cluster).count() > goal
                    && (scale::auto(cluster).is_none()
                        || scale::is_deleting(cluster)
                        || !self.is_busy(&release.node))
            }
        };
        if !holds {
            return;
        }
        let jobs: Vec<String> = self
            .indexes
            .holdings
            .get(&release.node)
            .into_iter()
            .flat_map(|held| held.keys().cloned())
            .collect();
        // First the mark: what ends from here on must not start on the node again.
        if let Some(node) = self.nodes.get_mut(&release.node) {
            node.leaving = true;
        }
        for job in jobs {
            match release.option() {
                NodeDeallocationOption::Unspecified | NodeDeallocationOption::Requeue => {
                    self.requeue_job(context, &job, &release.node, release.cause());
                }
                NodeDeallocationOption::Terminate => {
                    self.end_job(context, &job, TerminateCause::ClusterShrunk);
                }
                NodeDeallocationOption::Waitforjobcompletion => {}
            }
        }
        self.begin_leaving(context, &release.node, release.option());
        self.settle_cluster(context, &release.cluster);
    }

    fn assign_node(&mut self, context: &mut Context, assignment: &NodeAssignment) {
        let (Some(cluster), Some(node)) = (
            self.clusters.get(&assignment.cluster),
            self.nodes.get(&assignment.node),
        ) else {
            return;
        };
        let held = self.staying(&assignment.cluster).count();
        let goal = usize::try_from(scale::goal(cluster)).unwrap_or(usize::MAX);
        if held >= goal
            || !node.cluster.is_empty()
            || !capacity::is_ready(node)
            || node.power_state() == PowerState::Stopping
            || self.fit(cluster, node).is_err()
        {
            return;
        }
        let class = node.node_class.clone();
        if let Some(cluster) = self.clusters.get_mut(&assignment.cluster)
            && cluster.node_class.is_empty()
        {
            cluster.node_class = class;
        }
        self.move_node(&assignment.node, &assignment.cluster);
        self.order_setup(context, &assignment.node);
        self.settle_cluster(context, &assignment.cluster);
    }

    /// Whether limits let the job start. What runs is only counted when there is a limit.
    fn is_admitted(&self, context: &Context, job: &Job, gpus: u32) -> bool {
        let in_array = job.array.as_ref().is_some_and(|a| a.max_running_jobs > 0);
        (self.quotas.is_empty() && !in_array)
            || Admission::new(self, &context.now).admits(job, gpus).is_ok()
    }

    /// Whether the job still waits and every part of the allocation is free.
    fn start_fits(&self, context: &Context, start: &Start) -> bool {
        let Some(job) = self.jobs.open(&start.job) else {
            return false;
        };
        let Some(spec) = job.spec.as_ref() else {
            return false;
        };
        let gpus = start.nodes.iter().map(|n| n.gpus.len()).sum::<usize>();
        let gpus = u32::try_from(gpus).unwrap_or(u32::MAX);
        let distinct: BTreeSet<&str> = start.nodes.iter().map(|n| n.node.as_str()).collect();
        job.uid == start.uid
            && is_startable(job)
            && self.is_admitted(context, job, gpus)
            && distinct.len() == start.nodes.len()
            && u32::try_from(start.nodes.len()).is_ok_and(|n| n == spec.node_count)
            && start.nodes.iter().all(|part| {
                self.nodes.get(&part.node).is_some_and(|node| {
                    let free = capacity::free(node, self.indexes.holdings.get(&part.node));
                    capacity::is_ready(node)
                        && node.cluster == cluster_of(job)
                        && capacity::fits(spec, node, &free, part)
                })
            })
    }

    fn start_attempt(&mut self, context: &mut Context, start: &Start) {
        let nodes: Vec<AttemptNode> = start
            .nodes
            .iter()
            .map(|part| AttemptNode {
                node: part.node.clone(),
                address: self
                    .nodes
                    .get(&part.node)
                    .and_then(|n| n.inventory.as_ref())
                    .map(|i| i.address.clone())
                    .unwrap_or_default(),
                gpus: part.gpus.clone(),
                whole_node: part.whole_node,
                status: None,
            })
            .collect();
        let Some(job) = self.jobs.get_mut(&start.job) else {
            return;
        };
        let number = job.attempts.last().map_or(1, |a| a.number + 1);
        let phase = if nodes.len() == 1 {
            AttemptPhase::Run
        } else {
            AttemptPhase::Prepare
        };
        job.attempts.push(Attempt {
            number,
            epoch: context.index,
            nodes,
            start_time: Some(context.now),
            phase: phase.into(),
            ..Attempt::default()
        });
        keep_history(&mut job.attempts);
        job.execution_info = Some(ExecutionInfo {
            start_time: Some(context.now),
            ..ExecutionInfo::default()
        });
        set_state(job, ExecutionState::Running, context);
        self.job_changed(context, &start.job);
    }
}
