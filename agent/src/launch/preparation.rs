//! The job preparation: a command for bash on every node, before the toolkit starts anywhere.

use trainyard_proto::v1::Assignment;

use super::{TaskPlan, shell};
use crate::layout::Layout;

/// The preparation of this node, if the job has one.
#[must_use]
pub fn preparation(assignment: &Assignment, layout: &Layout) -> Option<TaskPlan> {
    let settings = assignment.spec.as_ref()?.job_preparation.as_ref()?;
    if settings.command_line.trim().is_empty() {
        return None;
    }
    let (stdout, stderr) = layout.preparation_files();
    Some(TaskPlan {
        name: "job_prep".to_owned(),
        node_index: layout.node_index,
        argv: shell::bash(settings.command_line.clone()),
        env: layout.task_environment(&[]),
        cwd: layout.job_root.clone(),
        stdout,
        stderr,
    })
}
