//! What happens to a job, as sentences: compares each state of the job with the one before. Pure, so that following,
//! waiting and tests tell the same story.

use std::collections::BTreeMap;

use prost_types::Timestamp;
use trainyard_proto::v1::{Attempt, AttemptOutcome, AttemptPhase, ExecutionState, Job};

use crate::job::show::error_text;
use crate::text::{last_segment, length, seconds_between, short};

/// Something to say about a job.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// It has happened, and stays.
    Happened(String),
    /// It lasts until the next line.
    Lasts(String),
    /// It waits in the queue; an explanation says why.
    Queued,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Story {
    state: ExecutionState,
    /// Phase and outcome that were told, by attempt.
    attempts: BTreeMap<u32, (AttemptPhase, AttemptOutcome)>,
}

impl Story {
    /// What is new in this state of the job.
    pub(super) fn tell(&mut self, job: &Job) -> Vec<Line> {
        let mut lines = Vec::new();
        for attempt in &job.attempts {
            self.tell_attempt(attempt, &mut lines);
        }
        let state = job.execution_state();
        if state != self.state {
            match state {
                ExecutionState::Queued => lines.push(Line::Queued),
                ExecutionState::Terminating => {
                    lines.push(Line::Lasts("being ended on request".to_owned()))
                }
                // Attempts say more than `running`; the result stands at the end.
                ExecutionState::Unspecified
                | ExecutionState::Running
                | ExecutionState::Succeeded
                | ExecutionState::Failed => {}
            }
            self.state = state;
        }
        lines
    }

    fn tell_attempt(&mut self, attempt: &Attempt, lines: &mut Vec<Line>) {
        let now = (attempt.phase(), attempt.outcome());
        let before = self.attempts.insert(attempt.number, now);
        if before.is_none() {
            let nodes: Vec<&str> = attempt
                .nodes
                .iter()
                .map(|node| last_segment(&node.node))
                .collect();
            lines.push(Line::Happened(format!(
                "attempt {} on {}",
                attempt.number,
                nodes.join(", ")
            )));
        }
        if before.is_none_or(|(phase, _)| phase != now.0) {
            match now.0 {
                AttemptPhase::Prepare => lines.push(Line::Lasts("preparing".to_owned())),
                AttemptPhase::Run => lines.push(Line::Happened("running".to_owned())),
                AttemptPhase::Stop => lines.push(Line::Lasts("stopping".to_owned())),
                AttemptPhase::Unspecified | AttemptPhase::Ended => {}
            }
        }
        if now.1 == AttemptOutcome::NodeLost && before.is_none_or(|(_, outcome)| outcome != now.1) {
            let text = match attempt.errors.first() {
                Some(error) => format!("attempt {} ended: {}", attempt.number, error_text(error)),
                None => format!(
                    "attempt {} lost a node; the job is queued again",
                    attempt.number
                ),
            };
            lines.push(Line::Happened(text));
        }
    }
}

/// How a job that has ended did, in one sentence and a line per further error.
pub(in crate::job) fn result(job: &Job) -> Vec<String> {
    let info = job.execution_info.clone().unwrap_or_default();
    let took = took(info.start_time.as_ref(), info.end_time.as_ref());
    let name = last_segment(&job.name);
    if job.execution_state() == ExecutionState::Succeeded {
        return vec![format!("{name} succeeded{took}")];
    }
    let how = match info.exit_code {
        Some(code) => format!("failed with exit code {code}{took}"),
        None => format!(
            "{}{took}",
            short(job.execution_state().as_str_name(), "EXECUTION_STATE_")
        ),
    };
    let mut errors = info.errors.iter().map(error_text);
    let first = errors
        .next()
        .map(|error| format!(": {error}"))
        .unwrap_or_default();
    let mut lines = vec![format!("{name} {how}{first}")];
    lines.extend(errors.map(|error| format!("  {error}")));
    lines
}

fn took(start: Option<&Timestamp>, end: Option<&Timestamp>) -> String {
    match (start, end) {
        (Some(start), Some(end)) => format!(" after {}", length(seconds_between(start, end))),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use trainyard_proto::v1::{AttemptNode, BatchAiError, ExecutionInfo};

    use super::*;

    fn job(state: ExecutionState, attempts: Vec<Attempt>) -> Job {
        Job {
            name: "workspaces/w/experiments/e/jobs/j".into(),
            execution_state: state.into(),
            attempts,
            ..Job::default()
        }
    }

    fn attempt(number: u32, phase: AttemptPhase, outcome: AttemptOutcome) -> Attempt {
        Attempt {
            number,
            phase: phase.into(),
            outcome: outcome.into(),
            nodes: vec![AttemptNode {
                node: "nodes/node-1".into(),
                ..AttemptNode::default()
            }],
            ..Attempt::default()
        }
    }

    #[test]
    fn a_job_from_queue_to_run() {
        let mut story = Story::default();
        assert_eq!(
            story.tell(&job(ExecutionState::Queued, vec![])),
            [Line::Queued]
        );
        assert_eq!(story.tell(&job(ExecutionState::Queued, vec![])), []);
        let preparing = attempt(1, AttemptPhase::Prepare, AttemptOutcome::Unspecified);
        assert_eq!(
            story.tell(&job(ExecutionState::Running, vec![preparing])),
            [
                Line::Happened("attempt 1 on node-1".into()),
                Line::Lasts("preparing".into())
            ]
        );
        let running = attempt(1, AttemptPhase::Run, AttemptOutcome::Unspecified);
        assert_eq!(
            story.tell(&job(ExecutionState::Running, vec![running])),
            [Line::Happened("running".into())]
        );
    }

    #[test]
    fn a_lost_node_queues_the_job_again() {
        let mut story = Story::default();
        story.tell(&job(
            ExecutionState::Running,
            vec![attempt(1, AttemptPhase::Run, AttemptOutcome::Unspecified)],
        ));
        let lost = attempt(1, AttemptPhase::Ended, AttemptOutcome::NodeLost);
        assert_eq!(
            story.tell(&job(ExecutionState::Queued, vec![lost])),
            [
                Line::Happened("attempt 1 lost a node; the job is queued again".into()),
                Line::Queued
            ]
        );
    }

    #[test]
    fn results() {
        let mut failed = job(ExecutionState::Failed, vec![]);
        failed.execution_info = Some(ExecutionInfo {
            exit_code: Some(3),
            start_time: Some(Timestamp {
                seconds: 10,
                nanos: 0,
            }),
            end_time: Some(Timestamp {
                seconds: 22,
                nanos: 0,
            }),
            errors: vec![BatchAiError {
                code: "JobFailed".into(),
                message: "rank 1 ended with 3".into(),
                details: vec![],
            }],
        });
        assert_eq!(
            result(&failed),
            ["j failed with exit code 3 after 12s: JobFailed: rank 1 ended with 3"]
        );
        assert_eq!(
            result(&job(ExecutionState::Succeeded, vec![])),
            ["j succeeded"]
        );
    }
}
