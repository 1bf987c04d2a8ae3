//! What applying a command gives: a reply for the caller and the changes that others want to hear of.

use trainyard_proto::v1::{
    Cluster, CreateJobArrayResponse, DeleteClusterResponse, Experiment, FileServer, Job, Node,
    NodeClass, Quota, Workspace,
};
use trainyard_shared::validate::FieldViolation;

/// Result of one command.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// For the caller. A refusal has changed nothing.
    pub reply: Result<Reply, Refusal>,
    /// For the loops and watchers of the daemon. Empty for a refusal.
    pub changes: Vec<Change>,
    /// For those who watch resources: at most one for each. Empty for a refusal.
    pub events: Vec<Event>,
}

/// What an entry of the log did to a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Resource name.
    pub name: String,
    /// What happened.
    pub kind: EventKind,
    /// One sentence: `running on nodes/a, nodes/b`.
    pub summary: String,
}

/// What happened to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It was created.
    Created,
    /// It changed.
    Updated,
    /// It is gone.
    Deleted,
}

/// The resource that a command made or changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Nothing to show.
    None,
    /// A workspace.
    Workspace(Workspace),
    /// A cluster, counts filled.
    Cluster(Box<Cluster>),
    /// A file server.
    FileServer(Box<FileServer>),
    /// An experiment.
    Experiment(Experiment),
    /// A job.
    Job(Box<Job>),
    /// A node.
    Node(Box<Node>),
    /// An array of jobs.
    JobArray(CreateJobArrayResponse),
    /// How many resources a command for several has touched.
    Count(u64),
    /// Limits.
    Quota(Quota),
    /// A node class, counts filled.
    NodeClass(Box<NodeClass>),
    /// What became of the jobs of a deleted cluster.
    ClusterDeleted(DeleteClusterResponse),
}

/// Something that changed, by resource name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A workspace.
    Workspace(String),
    /// A cluster.
    Cluster(String),
    /// A file server.
    FileServer(String),
    /// An experiment.
    Experiment(String),
    /// A job.
    Job(String),
    /// A node.
    Node(String),
    /// What a node shall hold: its agent wants to know.
    Desired(String),
    /// Capacity or a queue: placement may find something to do.
    Placement,
}

/// Why a command was refused. The text names the resource and the way out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Class of the refusal.
    pub kind: RefusalKind,
    /// Resource name it is about.
    pub resource: String,
    /// One sentence for a person.
    pub message: String,
    /// Fields at fault, for `InvalidArgument`.
    pub violations: Vec<FieldViolation>,
    /// Typed facts behind the sentence; for `ResourceExhausted`: `quota`, `limitName`, `used`, `limit`, `wanted`.
    pub facts: Vec<(&'static str, String)>,
}

/// Class of a refusal; maps one to one to gRPC codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The resource does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The state of something else forbids it.
    FailedPrecondition,
    /// The request is wrong in itself.
    InvalidArgument,
    /// The etag does not match, or a remembered create was deleted since.
    Aborted,
    /// A limit of a quota is reached.
    ResourceExhausted,
}

impl Refusal {
    /// The resource does not exist.
    pub fn not_found(resource: &str) -> Self {
        Self::new(
            RefusalKind::NotFound,
            resource,
            format!(
                "{resource} does not exist; {} shows what does",
                list_command(resource)
            ),
        )
    }

    /// The name is taken.
    pub fn already_exists(resource: &str) -> Self {
        Self::new(
            RefusalKind::AlreadyExists,
            resource,
            format!("{resource} exists already; choose another name or delete it first"),
        )
    }

    /// The state of something else forbids it.
    pub fn precondition(resource: &str, message: impl Into<String>) -> Self {
        Self::new(RefusalKind::FailedPrecondition, resource, message)
    }

    /// Fields of the request are at fault.
    pub fn invalid(resource: &str, violations: Vec<FieldViolation>) -> Self {
        let message = violations
            .iter()
            .map(FieldViolation::to_string)
            .collect::<Vec<_>>()
            .join("; ");
        Self {
            kind: RefusalKind::InvalidArgument,
            resource: resource.to_owned(),
            message,
            violations,
            facts: Vec::new(),
        }
    }

    /// One field of the request is at fault.
    pub fn invalid_field(resource: &str, field: &str, message: impl Into<String>) -> Self {
        Self::invalid(
            resource,
            vec![FieldViolation {
                field: field.to_owned(),
                message: message.into(),
            }],
        )
    }

    /// The etag does not match.
    pub fn etag(resource: &str, given: &str, current: &str) -> Self {
        Self::new(
            RefusalKind::Aborted,
            resource,
            format!(
                "{resource} has changed (etag {given} was given, it is {current} now); read it again and retry"
            ),
        )
    }

    /// Any refusal.
    pub fn new(kind: RefusalKind, resource: &str, message: impl Into<String>) -> Self {
        Self {
            kind,
            resource: resource.to_owned(),
            message: message.into(),
            violations: Vec::new(),
            facts: Vec::new(),
        }
    }
}

/// The command that lists the siblings of a resource.
fn list_command(resource: &str) -> String {
    let segments: Vec<&str> = resource.split('/').collect();
    let noun = match segments.iter().rev().nth(1) {
        Some(&"workspaces") => "workspace",
        Some(&"clusters") => "cluster",
        Some(&"fileServers") => "file-server",
        Some(&"experiments") => "experiment",
        Some(&"jobs") => "job",
        Some(&"nodes") => "node",
        _ => return "`trainyard --help`".to_owned(),
    };
    let mut command = format!("trainyard {noun} list");
    if segments.len() > 2 && segments[0] == "workspaces" {
        command.push_str(&format!(" -w {}", segments[1]));
    }
    if segments.len() > 4 && segments[2] == "experiments" {
        command.push_str(&format!(" -e {}", segments[3]));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_exist_names_the_command_that_lists_what_does() {
        for (resource, command) in [
            ("workspaces/w", "trainyard workspace list shows"),
            (
                "workspaces/w/clusters/c",
                "trainyard cluster list -w w shows",
            ),
            (
                "workspaces/w/experiments/e",
                "trainyard experiment list -w w shows",
            ),
            (
                "workspaces/w/experiments/e/jobs/j",
                "trainyard job list -w w -e e shows",
            ),
            ("nodes/n", "trainyard node list shows"),
        ] {
            let message = Refusal::not_found(resource).message;
            assert!(message.contains(command), "{message}");
        }
    }
}
