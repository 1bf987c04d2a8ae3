//! Placement's plan, verified part by part. A part that no longer fits is skipped; the loop that proposed it will
//! plan again from the new state.

use std::collections::BTreeSet;

use trainyard_proto::store::v1::{ApplyPlan, NodeAssignment, Start};
use trainyard_proto::v1::{Attempt, AttemptNode, AttemptPhase, ExecutionInfo, ExecutionState};

use super::jobs::set_state;
use super::{Applied, Context};
use crate::attempt::keep_history;
use crate::capacity;
use crate::outcome::{Change, Reply};
use crate::placement::wants_class;
use crate::query::target;
use crate::state::{State, cluster_of, is_startable};

impl State {
    pub(super) fn apply_plan(&mut self, context: &mut Context, command: &ApplyPlan) -> Applied {
        for assignment in &command.assignments {
            self.assign_node(context, assignment);
        }
        for start in &command.starts {
            if self.start_fits(start) {
                self.start_attempt(context, start);
            }
        }
        Ok(Reply::None)
    }

    fn assign_node(&mut self, context: &mut Context, assignment: &NodeAssignment) {
        let Some(cluster) = self.clusters.get(&assignment.cluster) else {
            return;
        };
        let held = self
            .indexes
            .cluster_nodes
            .get(&assignment.cluster)
            .map_or(0, BTreeSet::len);
        let Some(node) = self.nodes.get(&assignment.node) else {
            return;
        };
        let wanted = usize::try_from(target(cluster)).unwrap_or(usize::MAX);
        if held >= wanted || !node.cluster.is_empty() || !wants_class(cluster, node) {
            return;
        }
        self.move_node(&assignment.node, &assignment.cluster);
        if held + 1 == wanted
            && let Some(cluster) = self.clusters.get_mut(&assignment.cluster)
        {
            cluster.allocation_state_transition_time = Some(context.now);
        }
        context.changed(Change::Node(assignment.node.clone()));
        context.changed(Change::Cluster(assignment.cluster.clone()));
        context.changed(Change::Placement);
    }

    /// Whether the job still waits and every part of the allocation is free.
    fn start_fits(&self, start: &Start) -> bool {
        let Some(job) = self.jobs.open(&start.job) else {
            return false;
        };
        let Some(spec) = job.spec.as_ref() else {
            return false;
        };
        let distinct: BTreeSet<&str> = start.nodes.iter().map(|n| n.node.as_str()).collect();
        job.uid == start.uid
            && is_startable(job)
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
