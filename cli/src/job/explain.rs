//! `trainyard job explain`: why a job waits. The texts are made here from the typed explanation, so that what people read
//! and what programs read cannot differ.

use trainyard_proto::v1::blocker::Reason;
use trainyard_proto::v1::{Blocker, ExecutionState, ExplainJobRequest, JobExplanation};

use super::{NameArg, state};
use crate::args::Format;
use crate::context::Context;
use crate::error::Error;
use crate::output;
use crate::text::{count, ids, last_segment};

/// Explains one job.
pub(super) async fn run(context: &Context, args: &NameArg) -> Result<u8, Error> {
    let name = args.resolve()?.to_string();
    let explanation = context
        .api()?
        .explain_job(ExplainJobRequest { name })
        .await?;
    match context.output().format() {
        Format::Table => output::write(&text(&explanation))?,
        Format::Name => output::write(&format!("{}\n", explanation.job))?,
        Format::Json | Format::Yaml => {
            context
                .output()
                .value(&trainyard_shared::json::to_json(&explanation))?;
        }
    }
    Ok(0)
}

fn text(explanation: &JobExplanation) -> String {
    let mut text = format!(
        "{} is {}",
        explanation.job,
        state(explanation.execution_state())
    );
    if explanation.queue_position > 0 {
        text.push_str(&format!(
            ", place {} of {} in the queue of its cluster",
            explanation.queue_position, explanation.queue_length
        ));
    }
    text.push('\n');
    if explanation.execution_state() != ExecutionState::Queued {
        return text;
    }
    if explanation.blockers.is_empty() {
        text.push_str("nothing is in its way: it starts at once\n");
        return text;
    }
    for blocker in &explanation.blockers {
        text.push_str(&format!("- {}\n", blocker_text(blocker)));
        if !blocker.remedy.is_empty() {
            text.push_str(&format!("  {}\n", blocker.remedy));
        }
    }
    text
}

/// One line for the stderr of a command that follows a job which waits.
pub(super) fn waiting_text(explanation: &JobExplanation) -> Option<String> {
    if explanation.execution_state() != ExecutionState::Queued {
        return None;
    }
    let Some(first) = explanation.blockers.first() else {
        return Some("queued: it starts at once".to_owned());
    };
    let summary = if explanation.summary.is_empty() {
        blocker_text(first)
    } else {
        explanation.summary.clone()
    };
    let place = if explanation.queue_length > 1 {
        format!(
            " (place {} of {})",
            explanation.queue_position, explanation.queue_length
        )
    } else {
        String::new()
    };
    Some(format!("queued{place}: {summary}"))
}

fn blocker_text(blocker: &Blocker) -> String {
    match &blocker.reason {
        Some(Reason::LargerThanCluster(it)) => {
            format!(
                "it wants {}; the target of the cluster is {}",
                count(it.wanted.into(), "node"),
                it.target
            )
        }
        Some(Reason::NotEnoughNodes(it)) => format!(
            "it wants {}: {} free, {} busy, {} not usable, {} missing from the pool",
            count(it.wanted.into(), "node"),
            it.free,
            it.busy,
            it.unusable,
            it.missing
        ),
        Some(Reason::BehindOthers(it)) => {
            let first = if it.first.is_empty() {
                String::new()
            } else {
                format!(", first {}", ids(&it.first))
            };
            format!("{} before it in the queue{first}", count(it.jobs, "job"))
        }
        Some(Reason::LargerThanNode(it)) => {
            format!(
                "it wants {} of each node; the largest node has {}",
                count(it.wanted.into(), "GPU"),
                it.largest
            )
        }
        Some(Reason::EndingPreviousAttempt(it)) => {
            let nodes: Vec<&str> = it.nodes.iter().map(|node| last_segment(node)).collect();
            format!(
                "attempt {} is still being ended on {}",
                it.attempt,
                nodes.join(", ")
            )
        }
        _ => "a reason that this command does not know: upgrade it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use trainyard_proto::v1::NotEnoughNodes;

    use super::*;

    fn explanation() -> JobExplanation {
        JobExplanation {
            job: "workspaces/w/experiments/e/jobs/j".into(),
            execution_state: ExecutionState::Queued.into(),
            queue_position: 2,
            queue_length: 3,
            blockers: vec![Blocker {
                remedy: "it starts when 1 more node is free".into(),
                reason: Some(Reason::NotEnoughNodes(NotEnoughNodes {
                    wanted: 2,
                    free: 1,
                    busy: 1,
                    unusable: 0,
                    missing: 0,
                    ..NotEnoughNodes::default()
                })),
            }],
            summary: "waits for 2 nodes; 1 is free".into(),
        }
    }

    #[test]
    fn a_blocked_job() {
        assert_eq!(
            text(&explanation()),
            "workspaces/w/experiments/e/jobs/j is queued, place 2 of 3 in the queue of its cluster\n\
             - it wants 2 nodes: 1 free, 1 busy, 0 not usable, 0 missing from the pool\n  \
               it starts when 1 more node is free\n"
        );
        assert_eq!(
            waiting_text(&explanation()).unwrap(),
            "queued (place 2 of 3): waits for 2 nodes; 1 is free"
        );
    }

    #[test]
    fn a_running_job_has_nothing_to_explain() {
        let mut explanation = explanation();
        explanation.set_execution_state(ExecutionState::Running);
        assert_eq!(waiting_text(&explanation), None);
        assert!(text(&explanation).contains("is running"));
    }
}
