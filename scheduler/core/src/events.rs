//! What one entry of the log did to each resource, in words that a person can follow.
//!
//! Events are told, not kept: nothing of them is part of the state, and no decision may hang on them. There is at most
//! one per resource and entry.

use std::collections::BTreeSet;

use trainyard_proto::store::v1::{Command, command::Kind};
use trainyard_proto::v1::watch_event::Resource;
use trainyard_proto::v1::{
    AllocationState, BatchAiError, Cluster, ExecutionState, Job, Node, NodeState, PowerState,
    ProvisioningState,
};

use crate::outcome::{Change, Event, EventKind};
use crate::state::State;

impl State {
    /// A resource by its name, as it is now, with computed fields filled in.
    pub fn resource(&self, name: &str) -> Option<Resource> {
        match kind_of(name)? {
            "workspaces" => self.workspace(name).cloned().map(Resource::Workspace),
            "clusters" => self.cluster(name).map(Resource::Cluster),
            "fileServers" => self.file_server(name).cloned().map(Resource::FileServer),
            "experiments" => self.experiment(name).cloned().map(Resource::Experiment),
            "jobs" => self.job(name).map(|job| Resource::Job(job.into_owned())),
            "nodes" => self.node(name).map(Resource::Node),
            _ => None,
        }
    }

    /// The resource that this command is about to make, and not merely to find; jobs say it by themselves.
    pub(crate) fn about_to_create(&self, command: &Command) -> Option<String> {
        let name = match command.kind.as_ref()? {
            Kind::CreateWorkspace(c) => c.workspace.as_ref()?.name.clone(),
            Kind::CreateCluster(c) => c.cluster.as_ref()?.name.clone(),
            Kind::CreateFileServer(c) => c.file_server.as_ref()?.name.clone(),
            Kind::CreateExperiment(c) => c.experiment.as_ref()?.name.clone(),
            Kind::RegisterNode(c) => format!("nodes/{}", c.hello.as_ref()?.node),
            _ => return None,
        };
        (!self.exists(&name)).then_some(name)
    }

    /// What the changes of this entry mean, in order of name. `made`: what it created, besides jobs.
    pub(crate) fn events(
        &self,
        index: u64,
        changes: &BTreeSet<Change>,
        made: Option<&str>,
    ) -> Vec<Event> {
        let mut events: Vec<Event> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Workspace(name)
                | Change::Cluster(name)
                | Change::FileServer(name)
                | Change::Experiment(name)
                | Change::Job(name)
                | Change::Node(name) => Some(self.event(index, name, made == Some(name.as_str()))),
                Change::Desired(_) | Change::Placement => None,
            })
            .collect();
        events.sort_by(|a, b| a.name.cmp(&b.name));
        events
    }

    fn event(&self, index: u64, name: &str, made: bool) -> Event {
        // Submits are many: a job that was just made is not copied to say that it is queued.
        let (kind, summary) = if let Some(job) = self.jobs.open(name) {
            (kind(job.sequence == index), of_job(job))
        } else {
            match self.resource(name) {
                None => (EventKind::Deleted, "deleted".to_owned()),
                Some(Resource::Job(job)) => (kind(job.sequence == index), of_job(&job)),
                Some(resource) => (kind(made), of_resource(&resource)),
            }
        };
        Event {
            name: name.to_owned(),
            kind,
            summary,
        }
    }

    fn exists(&self, name: &str) -> bool {
        match kind_of(name) {
            Some("workspaces") => self.workspaces.contains_key(name),
            Some("clusters") => self.clusters.contains_key(name),
            Some("fileServers") => self.file_servers.contains_key(name),
            Some("experiments") => self.experiments.contains_key(name),
            Some("nodes") => self.nodes.contains_key(name),
            Some(_) | None => false,
        }
    }
}

fn kind(made: bool) -> EventKind {
    if made {
        EventKind::Created
    } else {
        EventKind::Updated
    }
}

/// The segment before the last: what kind of resource a name is of.
fn kind_of(name: &str) -> Option<&str> {
    name.rsplit('/').nth(1)
}

fn of_resource(resource: &Resource) -> String {
    match resource {
        Resource::Workspace(workspace) => of_provisioning(workspace.provisioning_state(), &[]),
        Resource::Experiment(experiment) => of_provisioning(experiment.provisioning_state(), &[]),
        Resource::FileServer(server) => {
            of_provisioning(server.provisioning_state(), &server.errors)
        }
        Resource::Cluster(cluster) => of_cluster(cluster),
        Resource::Node(node) => of_node(node),
        Resource::Job(job) => of_job(job),
    }
}

fn of_provisioning(state: ProvisioningState, errors: &[BatchAiError]) -> String {
    let word = match state {
        ProvisioningState::Unspecified | ProvisioningState::Succeeded => "ready",
        ProvisioningState::Creating => "being created",
        ProvisioningState::Failed => "failed",
        ProvisioningState::Deleting => "being deleted",
        ProvisioningState::Updating => "being updated",
    };
    with_error(word.to_owned(), errors)
}

fn of_cluster(cluster: &Cluster) -> String {
    let counted = format!(
        "{} of {} nodes",
        cluster.current_node_count, cluster.target_node_count
    );
    match (cluster.provisioning_state(), cluster.allocation_state()) {
        (ProvisioningState::Deleting, _) => format!("being deleted, {counted}"),
        (_, AllocationState::Resizing) => format!("resizing, {counted}"),
        (_, AllocationState::Unspecified | AllocationState::Steady) => {
            format!("steady, {counted}")
        }
    }
}

fn of_node(node: &Node) -> String {
    let state = match (node.power_state(), node.state()) {
        (PowerState::Waking, _) => "being switched on",
        (PowerState::Stopping, _) => "being switched off",
        (PowerState::Off, _) => "switched off",
        (_, NodeState::Unspecified) => "unknown",
        (_, NodeState::Ready) => "ready",
        (_, NodeState::Cleaning) => "cleaning up",
        (_, NodeState::Lost) => "lost",
        (_, NodeState::Preparing) => "preparing",
        (_, NodeState::Unusable) => "unusable",
    };
    let place = match node.cluster.as_str() {
        "" => " in the pool".to_owned(),
        cluster if node.leaving => format!(", leaving {cluster}"),
        cluster => format!(" in {cluster}"),
    };
    match node.state_reason.as_str() {
        "" => format!("{state}{place}"),
        reason => format!("{state}{place}: {reason}"),
    }
}

fn of_job(job: &Job) -> String {
    let attempt = job.attempts.last();
    let text = match job.execution_state() {
        ExecutionState::Unspecified | ExecutionState::Queued => match job.waiting_for.as_slice() {
            [] if attempt.is_some() => "queued again".to_owned(),
            [] => "queued".to_owned(),
            [one] => format!("waiting for {one}"),
            [first, rest @ ..] => format!("waiting for {first} and {} more", rest.len()),
        },
        ExecutionState::Running => {
            let nodes: Vec<&str> = attempt
                .map(|attempt| attempt.nodes.iter().map(|n| n.node.as_str()).collect())
                .unwrap_or_default();
            match nodes.as_slice() {
                [shown @ .., last] if shown.len() < 4 => {
                    let mut all = shown.to_vec();
                    all.push(last);
                    format!("running on {}", all.join(", "))
                }
                [first, second, third, rest @ ..] => format!(
                    "running on {first}, {second}, {third} and {} more",
                    rest.len()
                ),
                _ => "running".to_owned(),
            }
        }
        ExecutionState::Terminating => "terminating".to_owned(),
        ExecutionState::Succeeded => "succeeded".to_owned(),
        ExecutionState::Failed => {
            let errors = attempt.map(|a| a.errors.as_slice()).unwrap_or_default();
            let info = job.execution_info.as_ref();
            let errors = info.map_or(errors, |info| info.errors.as_slice());
            with_error("failed".to_owned(), errors)
        }
    };
    match job.provisioning_state() {
        ProvisioningState::Deleting => format!("{text}, being deleted"),
        _ => text,
    }
}

fn with_error(text: String, errors: &[BatchAiError]) -> String {
    match errors.first() {
        None => text,
        Some(error) => format!("{text}: {}: {}", error.code, error.message),
    }
}
