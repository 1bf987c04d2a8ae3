//! What can go wrong with an attempt on a node, as the scheduler and the user are told.
//!
//! Codes are stable: people match on them. Messages name the file, volume or node and what to do next.

use prost_types::Timestamp;
use trainyard_proto::v1::{Assignment, BatchAiError, NameValuePair};

use crate::clock;
use crate::launch::LaunchError;
use crate::layout::LayoutError;
use crate::share::ShareError;
use crate::shim::TaskLost;
use crate::volumes::MountError;

/// A cause.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Problem {
    /// Code, message, details.
    pub(super) error: BatchAiError,
    /// Exit status of the task that failed.
    pub(super) exit_code: Option<i32>,
    /// When.
    pub(super) time: Timestamp,
}

impl Problem {
    fn new(code: &str, message: String, details: Vec<NameValuePair>) -> Problem {
        Problem {
            error: BatchAiError {
                code: code.to_owned(),
                message,
                details,
            },
            exit_code: None,
            time: clock::wall(),
        }
    }

    /// A task of the toolkit ended with another status than 0.
    pub(super) fn job_failed(
        assignment: &Assignment,
        task: &str,
        stderr: &str,
        exit_code: i32,
        time: Timestamp,
    ) -> Problem {
        let node = node_name(assignment);
        let message = format!(
            "Task {task} exited with status {exit_code}{} on {node}; see {stderr} in the stdouterr directory.",
            signal_words(exit_code)
        );
        Problem {
            exit_code: Some(exit_code),
            time,
            ..Problem::new(
                "JobFailed",
                message,
                vec![
                    detail("node", node),
                    detail("task", task),
                    detail("exitCode", exit_code.to_string()),
                ],
            )
        }
    }

    /// The job preparation ended with another status than 0.
    pub(super) fn preparation_failed(
        assignment: &Assignment,
        stderr: &str,
        exit_code: i32,
        time: Timestamp,
    ) -> Problem {
        let node = node_name(assignment);
        let message = format!(
            "The job preparation exited with status {exit_code}{} on {node}, so the job was not started; see {stderr} \
             in the stdouterr directory.",
            signal_words(exit_code)
        );
        Problem {
            exit_code: Some(exit_code),
            time,
            ..Problem::new(
                "JobPreparationFailed",
                message,
                vec![
                    detail("node", node),
                    detail("exitCode", exit_code.to_string()),
                ],
            )
        }
    }

    /// The tasks were killed because the lease was over, or died with the host. The job is not to blame: the
    /// scheduler treats this code as the loss of the node.
    pub(super) fn node_lost(assignment: &Assignment, why: &str) -> Problem {
        let node = node_name(assignment);
        Problem::new(
            "NodeLost",
            format!("{node}: {why}"),
            vec![detail("node", node)],
        )
    }

    /// The supervisor of a task is gone and left no exit status.
    pub(super) fn task_lost(assignment: &Assignment, task: &str, lost: &TaskLost) -> Problem {
        let node = node_name(assignment);
        Problem::new(
            "TaskLost",
            format!("Task {task} ended on {node} without leaving an exit status: {lost}."),
            vec![detail("node", node), detail("task", task)],
        )
    }

    /// A volume cannot be mounted.
    pub(super) fn mount(assignment: &Assignment, error: &MountError) -> Problem {
        let mut details = error.details();
        details.push(detail("node", node_name(assignment)));
        Problem::new(error.code(), error.to_string(), details)
    }

    /// Something that must be there before a task can start is not.
    pub(super) fn launch(assignment: &Assignment, message: String) -> Problem {
        let node = node_name(assignment);
        Problem::new(
            "LaunchError",
            format!("{node}: {message}"),
            vec![detail("node", node)],
        )
    }

    /// A path of the job cannot be used.
    pub(super) fn layout(assignment: &Assignment, error: &LayoutError) -> Problem {
        Problem::launch(assignment, error.to_string())
    }

    /// The plan of the launch is refused.
    pub(super) fn plan(assignment: &Assignment, error: &LaunchError) -> Problem {
        Problem::launch(assignment, error.to_string())
    }

    /// A directory of the job cannot be made.
    pub(super) fn directory(assignment: &Assignment, error: &ShareError) -> Problem {
        let node = node_name(assignment);
        let message = format!(
            "{node}: an output directory cannot be made: {error}. Check that the volume is writable for the job's user."
        );
        Problem::new("OutputDirectoryError", message, vec![detail("node", node)])
    }

    /// The node's own disk refuses.
    pub(super) fn node(assignment: &Assignment, what: &str, error: &std::io::Error) -> Problem {
        let node = node_name(assignment);
        Problem::new(
            "NodeError",
            format!("{node}: {what}: {error}"),
            vec![detail("node", node)],
        )
    }
}

fn detail(name: &str, value: impl Into<String>) -> NameValuePair {
    NameValuePair {
        name: name.to_owned(),
        value: value.into(),
    }
}

/// Which node of the attempt this is.
pub(super) fn node_name(assignment: &Assignment) -> String {
    usize::try_from(assignment.node_index)
        .ok()
        .and_then(|index| assignment.nodes.get(index))
        .map_or_else(|| "this node".to_owned(), |node| node.node.clone())
}

/// What people call an exit status above 128.
pub(crate) fn signal_words(exit_code: i32) -> String {
    match exit_code
        .checked_sub(128)
        .map(nix::sys::signal::Signal::try_from)
    {
        Some(Ok(nix::sys::signal::Signal::SIGKILL)) => {
            " (SIGKILL: killed from outside, often for lack of memory)".to_owned()
        }
        Some(Ok(signal)) => format!(" ({signal})"),
        Some(Err(_)) | None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainyard_proto::v1::AttemptNode;

    #[test]
    fn messages_name_the_node_the_status_and_the_file() {
        let assignment = Assignment {
            nodes: vec![AttemptNode {
                node: "nodes/n1".to_owned(),
                ..AttemptNode::default()
            }],
            ..Assignment::default()
        };
        let time = Timestamp::default();
        let problem = Problem::job_failed(&assignment, "task", "stderr.txt", 139, time);
        assert_eq!(problem.exit_code, Some(139));
        assert_eq!(
            problem.error.message,
            "Task task exited with status 139 (SIGSEGV) on nodes/n1; see stderr.txt in the stdouterr directory."
        );
        let problem = Problem::preparation_failed(&assignment, "stderr-job_prep.txt", 3, time);
        assert_eq!(problem.error.code, "JobPreparationFailed");
        assert!(
            problem
                .error
                .message
                .contains("exited with status 3 on nodes/n1")
        );
        assert_eq!(signal_words(1), "");
        assert_eq!(signal_words(255), "");
    }
}
