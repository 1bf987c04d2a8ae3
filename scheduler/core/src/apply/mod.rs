//! Applies one command of the log to the state. One file per family of commands.
//!
//! A refusal changes nothing: every function here checks everything first and only then writes. Nothing in a
//! command is trusted to fit: placement's plans are verified part by part, so that a stale plan can never book a
//! GPU twice. Nothing here may panic: a command that makes no sense is refused on every member alike.

mod arrays;
mod check;
mod clusters;
mod dependencies;
mod experiments;
mod file_servers;
mod jobs;
mod node_classes;
mod nodes;
mod plan;
mod power;
mod quotas;
mod retention;
mod setup;
mod sweep;
mod workspaces;

use std::collections::BTreeSet;

use prost_types::Timestamp;
use trainyard_proto::store::v1::{Command, command::Kind};
use trainyard_proto::v1::ProvisioningState;
use trainyard_shared::names::WorkspaceName;

use crate::outcome::{Change, Outcome, Refusal, RefusalKind, Reply};
use crate::state::State;

/// What every handler gets: where in the log it stands, and what it tells others.
struct Context {
    /// Index of this entry.
    index: u64,
    /// The leader's clock.
    now: Timestamp,
    /// What changed so far.
    changes: BTreeSet<Change>,
}

impl Context {
    fn new(index: u64, command: &Command) -> Self {
        Self {
            index,
            now: command.time.unwrap_or_default(),
            changes: BTreeSet::new(),
        }
    }

    fn etag(&self) -> String {
        self.index.to_string()
    }

    fn changed(&mut self, change: Change) {
        self.changes.insert(change);
    }
}

type Applied = Result<Reply, Refusal>;

/// What the checking half of a create has found; it has changed nothing, so that a dry run can share it.
enum Prepared<T> {
    /// A repeat of a create: what it made.
    Made(Box<Reply>),
    /// To be written.
    New(Box<T>),
}

impl<T> Prepared<T> {
    /// The answer to a dry run.
    fn into_reply(self, reply: impl FnOnce(T) -> Reply) -> Reply {
        match self {
            Self::Made(made) => *made,
            Self::New(new) => reply(*new),
        }
    }
}

impl State {
    /// Applies the entry `index` of the log. Deterministic: the same log gives the same states and outcomes.
    pub fn apply(&mut self, index: u64, command: &Command) -> Outcome {
        self.index = index;
        let mut context = Context::new(index, command);
        let made = self.about_to_create(command);
        let reply = self.dispatch(&mut context, command);
        match reply {
            Ok(reply) => {
                let more = self.settle_exports(&context.changes, &context.now);
                context.changes.extend(more);
                Outcome {
                    reply: Ok(reply),
                    events: self.events(index, &context.changes, made.as_deref()),
                    changes: context.changes.into_iter().collect(),
                }
            }
            Err(refusal) => Outcome {
                reply: Err(refusal),
                changes: Vec::new(),
                events: Vec::new(),
            },
        }
    }

    fn dispatch(&mut self, context: &mut Context, command: &Command) -> Applied {
        let Some(kind) = command.kind.as_ref() else {
            return Err(Refusal::new(
                RefusalKind::InvalidArgument,
                "command",
                "the command is of a kind that this version does not know",
            ));
        };
        match kind {
            Kind::CreateWorkspace(c) => self.create_workspace(context, c),
            Kind::UpdateWorkspace(c) => self.update_workspace(context, c),
            Kind::DeleteWorkspace(c) => self.delete_workspace(context, c),
            Kind::CreateCluster(c) => self.create_cluster(context, c),
            Kind::DeleteCluster(c) => self.delete_cluster(context, c),
            Kind::CreateFileServer(c) => self.create_file_server(context, c),
            Kind::DeleteFileServer(c) => self.delete_file_server(context, c),
            Kind::CreateExperiment(c) => self.create_experiment(context, c),
            Kind::DeleteExperiment(c) => self.delete_experiment(context, c),
            Kind::CreateJob(c) => self.create_job(context, c),
            Kind::CreateJobArray(c) => self.create_job_array(context, c),
            Kind::TerminateJob(c) => self.terminate_job(context, c),
            Kind::TerminateJobs(c) => self.terminate_jobs(context, c),
            Kind::DeleteJob(c) => self.delete_job(context, c),
            Kind::RemoveJobs(c) => self.remove_jobs(context, c),
            Kind::Sweep(c) => self.sweep(context, c),
            Kind::RegisterNode(c) => self.register_node(context, c),
            Kind::ReportAttempts(c) => self.report_attempts(context, c),
            Kind::MarkNodesLost(c) => self.mark_nodes_lost(context, c),
            Kind::DeleteNode(c) => self.delete_node(context, c),
            Kind::ApplyPlan(c) => self.apply_plan(context, c),
            Kind::UpdateQuota(c) => self.update_quota(context, c),
            Kind::DropUsage(c) => {
                self.drop_usage(c);
                Ok(Reply::None)
            }
            Kind::CreateNodeClass(c) => self.create_node_class(context, c),
            Kind::DeleteNodeClass(c) => self.delete_node_class(context, c),
            Kind::RetryNode(c) => self.retry_node(context, c),
            Kind::SetPower(c) => self.set_power(context, c),
            Kind::UpdateCluster(c) => self.update_cluster(context, c),
        }
    }

    /// The resource that a repeated create made before, if the request id is known. `find` looks it up by name and
    /// gives its UUID and the reply.
    fn replay(
        &self,
        request_id: &str,
        name: &str,
        find: impl Fn(&Self, &str) -> Option<(String, Reply)>,
    ) -> Option<Applied> {
        let (made, uid) = self.requests.get(request_id)?;
        if made != name {
            return Some(Err(Refusal::new(
                RefusalKind::InvalidArgument,
                name,
                format!(
                    "request_id {request_id} was used to create {made}; use a new id for each create"
                ),
            )));
        }
        Some(match find(self, name) {
            Some((current, reply)) if current == uid => Ok(reply),
            Some(_) | None => Err(Refusal::new(
                RefusalKind::Aborted,
                name,
                format!("{name} was created by this request and has been deleted since"),
            )),
        })
    }

    /// The workspace that is to hold a new resource.
    fn parent_workspace(&self, name: &WorkspaceName) -> Result<(), Refusal> {
        let name = name.to_string();
        let workspace = self
            .workspaces
            .get(&name)
            .ok_or_else(|| Refusal::not_found(&name))?;
        alive(&name, workspace.provisioning_state())
    }
}

/// Refuses a change of, or inside, what is being deleted.
fn alive(name: &str, state: ProvisioningState) -> Result<(), Refusal> {
    if state == ProvisioningState::Deleting {
        return Err(Refusal::precondition(
            name,
            format!("{name} is being deleted; wait until it is gone, or use another name"),
        ));
    }
    Ok(())
}

/// Refuses when the caller's etag is set and is not the current one.
fn check_etag(resource: &str, given: &str, current: &str) -> Result<(), Refusal> {
    if given.is_empty() || given == current {
        Ok(())
    } else {
        Err(Refusal::etag(resource, given, current))
    }
}

/// Parses a resource name that a command carries.
fn parse<N>(name: &str) -> Result<N, Refusal>
where
    N: std::str::FromStr,
    N::Err: std::fmt::Display,
{
    name.parse()
        .map_err(|error: N::Err| Refusal::invalid_field(name, "name", error.to_string()))
}

/// The command lacks a part that every writer sets.
fn incomplete(what: &str) -> Refusal {
    Refusal::new(
        RefusalKind::InvalidArgument,
        what,
        format!("the command carries no {what}"),
    )
}
