//! What makes a resource acceptable, judged by its own words alone.
//!
//! Pure, and used by the command and the scheduler alike, so that a file is refused at once and with its line, and
//! nothing gets past the command that the scheduler would refuse. Everything wrong is reported, not only the first.
//! This module must never look at other resources: whether the cluster exists or a share is bound is for the state.

mod administration;
mod checks;
mod job;
mod mounts;
mod resources;
mod toolkits;

use std::fmt;

pub use administration::{node_class, quota};
pub use job::{job, launchable, sweep};
pub use resources::{cluster, file_server, workspace};

/// Most nodes of a job or cluster.
pub const MAX_NODES: u32 = 10_000;
/// Most processes of a job on one node.
pub const MAX_PROCESSES_PER_NODE: u32 = 1_024;
/// Largest job, workspace, cluster or file server, in bytes of its encoding: it must fit the replicated log many times.
pub const MAX_RESOURCE_BYTES: usize = 256 << 10;
/// Largest command line, in bytes: the kernel takes no longer argument.
pub const MAX_COMMAND_BYTES: usize = 128 << 10;
/// Longest path, in bytes.
pub const MAX_PATH_BYTES: usize = 4_096;

/// One thing wrong with a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field in the keys of files: `mountVolumes.azureFileShares[0].relativeMountPath`. Empty: the whole.
    pub field: String,
    /// What is wrong and what to write.
    pub message: String,
}

impl FieldViolation {
    /// The same of an object that stands in field `outer`.
    #[must_use]
    pub fn inside(self, outer: &str) -> Self {
        let field = if self.field.is_empty() {
            outer.to_owned()
        } else {
            format!("{outer}.{}", self.field)
        };
        Self { field, ..self }
    }
}

impl fmt::Display for FieldViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}
