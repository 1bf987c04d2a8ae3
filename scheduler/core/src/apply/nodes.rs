//! Nodes: registration by their agents' Hello, reports, loss, removal.
//!
//! A node's `session_epoch` is the index of the entry that registered it last. A report or a loss that names an
//! older session is ignored: it speaks of a past that a newer Hello has already described.

use trainyard_proto::store::v1::{Delete, MarkNodesLost, RegisterNode, ReportAttempts};
use trainyard_proto::v1::{
    AttemptNodePhase, AttemptPhase, Hello, Node, NodeState, ObservedAttempt, PowerState,
};
use trainyard_shared::names::NodeName;

use super::{Applied, Context, incomplete, parse, setup};
use crate::attempt::{advance, mark_lost, merge_status, phase_of};
use crate::outcome::{Change, Refusal, RefusalKind, Reply};
use crate::state::State;

impl State {
    pub(super) fn register_node(
        &mut self,
        context: &mut Context,
        command: &RegisterNode,
    ) -> Applied {
        let hello = command.hello.as_ref().ok_or_else(|| incomplete("hello"))?;
        let name = parse::<NodeName>(&format!("nodes/{}", hello.node))?.to_string();
        let observed = hello
            .observed
            .as_ref()
            .map(|o| o.attempts.as_slice())
            .unwrap_or_default();
        let rebooted = self
            .nodes
            .get(&name)
            .is_some_and(|n| !n.boot_id.is_empty() && n.boot_id != hello.boot_id);
        self.write_off_vanished(context, &name, observed, rebooted);

        let node = self.nodes.entry(name.clone()).or_insert_with(|| Node {
            name: name.clone(),
            creation_time: Some(context.now),
            ..Node::default()
        });
        take_over(node, hello);
        node.session_epoch = context.index;
        if node.idle_since.is_none() && !self.indexes.holdings.contains_key(&name) {
            node.idle_since = Some(context.now);
        }
        if node.power_state() != PowerState::On {
            node.set_power_state(PowerState::On);
            node.power_state_transition_time = Some(context.now);
        }
        let resolved = node.clone();
        let class = self.resolve_class(&resolved);
        if let Some(node) = self.nodes.get_mut(&name) {
            node.node_class = class;
        }
        if resolved.cluster.is_empty() {
            self.indexes.pool.insert(name.clone());
        }
        self.take_exports(
            &name,
            hello
                .observed
                .as_ref()
                .map(|o| o.exports.as_slice())
                .unwrap_or_default(),
        );
        self.merge_report(context, &name, observed);
        let setup = hello.observed.as_ref().and_then(|o| o.setup.as_ref());
        self.merge_setup(context, &name, setup);
        self.settle_node(context, &name, observed, true);
        context.changed(Change::Node(name.clone()));
        context.changed(Change::Desired(name.clone()));
        context.changed(Change::Placement);
        let node = self.node(&name).ok_or_else(|| incomplete("node"))?;
        Ok(Reply::Node(Box::new(node)))
    }

    pub(super) fn report_attempts(
        &mut self,
        context: &mut Context,
        command: &ReportAttempts,
    ) -> Applied {
        let node = self
            .nodes
            .get(&command.node)
            .ok_or_else(|| Refusal::not_found(&command.node))?;
        if node.session_epoch != command.session_epoch {
            return Err(Refusal::new(
                RefusalKind::Aborted,
                &command.node,
                format!(
                    "{} has registered again since this report was sent",
                    command.node
                ),
            ));
        }
        if self.take_exports(&command.node, &command.exports) {
            context.changed(Change::Node(command.node.clone()));
        }
        self.merge_report(context, &command.node, &command.attempts);
        self.merge_setup(context, &command.node, command.setup.as_ref());
        self.settle_node(context, &command.node, &command.attempts, false);
        Ok(Reply::None)
    }

    pub(super) fn mark_nodes_lost(
        &mut self,
        context: &mut Context,
        command: &MarkNodesLost,
    ) -> Applied {
        for lost in &command.nodes {
            let Some(node) = self.nodes.get_mut(&lost.node) else {
                continue;
            };
            if node.session_epoch != lost.session_epoch || node.state() == NodeState::Lost {
                continue;
            }
            node.set_state(NodeState::Lost);
            if node.power_state() == PowerState::Stopping {
                node.set_power_state(PowerState::Off);
                node.power_state_transition_time = Some(context.now);
                node.state_reason = "it was switched off, since it was idle".to_owned();
            } else {
                node.state_reason =
                    "no heartbeat within the lease and the fencing time: the host or its network is down".to_owned();
            }
            node.state_transition_time = Some(context.now);
            context.changed(Change::Node(lost.node.clone()));
            self.write_off_vanished(context, &lost.node, &[], true);
            self.finish_leaving(context, &lost.node);
            self.node_counts_changed(context, &lost.node);
        }
        Ok(Reply::None)
    }

    pub(super) fn delete_node(&mut self, context: &mut Context, command: &Delete) -> Applied {
        let node = self
            .nodes
            .get(&command.name)
            .ok_or_else(|| Refusal::not_found(&command.name))?;
        // One that could not be switched off is still there.
        let gone = match node.state() {
            NodeState::Lost => true,
            NodeState::Unusable => node.power_state() == PowerState::Failed,
            NodeState::Ready
            | NodeState::Cleaning
            | NodeState::Preparing
            | NodeState::Unspecified => false,
        };
        if !gone || self.is_busy(&command.name) {
            return Err(Refusal::precondition(
                &command.name,
                format!(
                    "{} is connected; stop its agent and wait until it is lost first",
                    command.name
                ),
            ));
        }
        let cluster = node.cluster.clone();
        self.move_node(&command.name, "");
        self.indexes.pool.remove(&command.name);
        self.nodes.remove(&command.name);
        self.settle_cluster(context, &cluster);
        context.changed(Change::Node(command.name.clone()));
        context.changed(Change::Placement);
        Ok(Reply::None)
    }

    /// Writes off this node's part of attempts that had begun on it and of which nothing is there any more: all of
    /// them when `everything` (loss, reboot), else those that are not among `observed`.
    fn write_off_vanished(
        &mut self,
        context: &mut Context,
        node: &str,
        observed: &[ObservedAttempt],
        everything: bool,
    ) {
        let held: Vec<String> = self
            .indexes
            .holdings
            .get(node)
            .into_iter()
            .flat_map(|h| h.keys().cloned())
            .collect();
        for job_name in held {
            let Some(job) = self.jobs.get_mut(&job_name) else {
                continue;
            };
            let uid = job.uid.clone();
            let Some(attempt) = job.attempts.last_mut() else {
                continue;
            };
            let (number, stopping) = (attempt.number, attempt.phase() == AttemptPhase::Stop);
            let Some(mine) = attempt.nodes.iter_mut().find(|n| n.node == node) else {
                continue;
            };
            let there = observed.iter().any(|o| o.uid == uid && o.attempt == number);
            let begun = stopping || phase_of(mine) != AttemptNodePhase::Unspecified;
            if everything || (begun && !there) {
                mark_lost(mine);
                advance(attempt, &context.now);
                self.job_changed(context, &job_name);
            }
        }
    }

    /// Takes over the statuses of the node's own attempts and moves these on.
    fn merge_report(&mut self, context: &mut Context, node: &str, observed: &[ObservedAttempt]) {
        for report in observed {
            if self.observed_attempt(node, report).is_none() {
                continue;
            }
            let Some(status) = report.status.as_ref() else {
                continue;
            };
            let Some(attempt) = self
                .jobs
                .get_mut(&report.job)
                .and_then(|j| j.attempts.last_mut())
            else {
                continue;
            };
            let Some(mine) = attempt.nodes.iter_mut().find(|n| n.node == node) else {
                continue;
            };
            if merge_status(mine, status) {
                advance(attempt, &context.now);
                self.job_changed(context, &report.job);
            }
        }
    }

    /// A node that has nothing but what is its own takes work, once it is set up for its cluster. One that registers with
    /// more is cleaning up first; on a node that takes work, attempts end all the time, and what they hold is only given
    /// away when it is cleaned.
    fn settle_node(
        &mut self,
        context: &mut Context,
        name: &str,
        observed: &[ObservedAttempt],
        registers: bool,
    ) {
        let clean = self.is_clean(name, observed);
        let Some(node) = self.nodes.get(name) else {
            return;
        };
        if !clean && !registers && node.state() == NodeState::Lost {
            return;
        }
        let (state, reason) = if clean {
            setup::state(node)
        } else if registers || node.state() == NodeState::Cleaning {
            (
                NodeState::Cleaning,
                "ending tasks of attempts that were taken from it while it was away".to_owned(),
            )
        } else {
            setup::state(node)
        };
        self.set_node_state(context, name, state, reason);
        self.finish_leaving(context, name);
    }

    /// Sets state and reason, and tells those who care.
    pub(super) fn set_node_state(
        &mut self,
        context: &mut Context,
        name: &str,
        state: NodeState,
        reason: String,
    ) {
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        if node.state() == state && node.state_reason == reason {
            return;
        }
        if node.state() != state {
            node.set_state(state);
            node.state_transition_time = Some(context.now);
        }
        node.state_reason = reason;
        context.changed(Change::Node(name.to_owned()));
        context.changed(Change::Placement);
        self.node_counts_changed(context, name);
    }

    /// The counts of the node's cluster have changed.
    fn node_counts_changed(&mut self, context: &mut Context, name: &str) {
        let Some(node) = self.nodes.get(name) else {
            return;
        };
        if !node.cluster.is_empty() {
            context.changed(Change::Cluster(node.cluster.clone()));
        }
    }

    /// To be called when an attempt begins or ends on a node, after the indexes are up to date.
    pub(super) fn node_use_changed(&mut self, context: &mut Context, name: &str) {
        let busy = self.is_busy(name);
        if let Some(node) = self.nodes.get_mut(name) {
            if busy {
                node.idle_since = None;
            } else if node.idle_since.is_none() {
                node.idle_since = Some(context.now);
            }
        }
        context.changed(Change::Desired(name.to_owned()));
        self.finish_leaving(context, name);
    }
}

fn take_over(node: &mut Node, hello: &Hello) {
    node.inventory = hello.inventory.clone();
    node.agent_address = hello.agent_address.clone();
    node.agent_version = hello.agent_version.clone();
    node.boot_id = hello.boot_id.clone();
    node.reported_node_class = hello.node_class.clone();
    node.node_class_is_set = hello.node_class_is_set;
}
