//! The services for clients, one file each.
//!
//! A service checks names and fields, asks the log or the state, and shapes the answer. Decisions belong to `core`; a
//! service must never decide anything about a job or a node itself.

mod clusters;
mod experiments;
mod file_servers;
mod jobs;
mod mask;
mod members;
mod node_classes;
mod nodes;
mod resource;
mod usage;
mod workspaces;

pub use clusters::Clusters;
pub use experiments::Experiments;
pub use file_servers::FileServers;
pub use jobs::Jobs;
pub use members::Members;
pub use nodes::Nodes;
pub use usage::Usages;
pub use workspaces::Workspaces;

use std::fmt::Display;
use std::str::FromStr;

use tonic::Status;
use trainyard_core::Reply;
use trainyard_shared::names::{NameError, WorkspaceName};
use trainyard_shared::validate::FieldViolation;

use crate::status;

/// Longest `request_id`.
const MAX_REQUEST_ID: usize = 64;
/// Longest name or etag that is looked at.
const MAX_NAME: usize = 1024;

/// Parses the resource name in a field.
fn name<N>(field: &str, text: &str) -> Result<N, Status>
where
    N: FromStr<Err = NameError>,
{
    text.parse().map_err(|e| status::name(field, &e))
}

/// Unwraps a name that was made from a parent and an id.
fn child<N>(field: &str, made: Result<N, NameError>) -> Result<N, Status> {
    made.map_err(|e| status::name(field, &e))
}

/// Checks the parent of a list: a workspace, or `workspaces/-` for any.
fn list_parent(parent: &str) -> Result<(), Status> {
    if parent == "workspaces/-" {
        return Ok(());
    }
    name::<WorkspaceName>("parent", parent).map(|_| ())
}

fn check_request_id(request_id: &str) -> Result<(), Status> {
    if request_id.len() > MAX_REQUEST_ID {
        return Err(status::invalid_field(
            "request_id",
            format!(
                "has {} bytes; at most {MAX_REQUEST_ID} are taken, a UUID by custom",
                request_id.len()
            ),
        ));
    }
    Ok(())
}

fn check_etag(etag: &str) -> Result<(), Status> {
    if etag.len() > MAX_NAME {
        return Err(status::invalid_field("etag", "is too long to be one"));
    }
    Ok(())
}

/// Refuses a resource that breaks the rules of its fields.
fn check(resource: &dyn Display, violations: &[FieldViolation]) -> Result<(), Status> {
    if violations.is_empty() {
        Ok(())
    } else {
        Err(status::invalid(&resource.to_string(), violations))
    }
}

/// The message of a request that must have one.
fn required<T>(field: &str, message: Option<T>) -> Result<T, Status> {
    message.ok_or_else(|| status::invalid_field(field, "is missing"))
}

/// `core` gave another kind of reply than the command asks for.
fn unexpected(reply: &Reply) -> Status {
    status::internal(format!(
        "the command was answered by another kind of resource: {reply:?}"
    ))
}
