//! `trainyard job explain`: why a job waits. The texts are made here from the typed explanation, so that what people read
//! and what programs read cannot differ.

use trainyard_proto::v1::blocker::Reason;
use trainyard_proto::v1::{
    Blocker, ExecutionState, ExplainJobRequest, JobExplanation, NotEnoughNodes, OverQuota,
};

use super::{NameArg, state};
use crate::args::Format;
use crate::context::Context;
use crate::error::Error;
use crate::output;
use crate::text::{count, ids, last_segment, time};

/// Names of jobs that a sentence holds.
const MOST_NAMES: usize = 5;

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
        Some(Reason::NotEnoughNodes(it)) => not_enough(it),
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
        Some(Reason::WaitingForJobs(it)) => {
            format!("it waits for {}", some_of(&it.jobs, "job"))
        }
        Some(Reason::OverQuota(it)) => over_quota(it),
        Some(Reason::ArrayLimit(it)) => format!(
            "{} of its array {}; at most {} may",
            count(it.running.into(), "job"),
            if it.running == 1 { "runs" } else { "run" },
            it.max_running_jobs
        ),
        Some(Reason::ClusterDeleting(it)) => {
            format!("cluster {} is being deleted", ids(&it.cluster))
        }
        None => "a reason that this command does not know: upgrade it".to_owned(),
    }
}

fn not_enough(it: &NotEnoughNodes) -> String {
    let mut parts = vec![
        format!("{} free", it.free),
        format!("{} busy", it.busy),
        format!("{} not usable", it.unusable),
        format!("{} missing from the pool", it.missing),
    ];
    let passing = [
        (it.preparing, "being set up or switched on"),
        (it.leaving, "leaving"),
    ];
    parts.extend(
        passing
            .iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!("{number} {what}")),
    );
    format!(
        "it wants {}: {}",
        count(it.wanted.into(), "node"),
        parts.join(", ")
    )
}

fn over_quota(it: &OverQuota) -> String {
    let whose = match it.quota.split('/').collect::<Vec<_>>()[..] {
        ["workspaces", workspace, ..] => format!("workspace {workspace}"),
        _ => "the whole group".to_owned(),
    };
    let mut text = format!(
        "limit {} of {whose}: {} used, {} more wanted, {} allowed",
        it.limit_name,
        number(it.used),
        number(it.wanted),
        number(it.limit)
    );
    if let Some(next) = &it.next_period {
        text.push_str(&format!("; the next period begins {}", time(Some(next))));
    }
    text
}

/// Whole numbers without a point, others with two digits after it.
fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// Names when they are few, else the first ones and how many more.
pub(super) fn some_of(names: &[String], what: &str) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(MOST_NAMES)
        .map(|name| ids(name))
        .collect();
    let mut text = format!("{}: {}", count(names.len() as u64, what), shown.join(", "));
    if names.len() > MOST_NAMES {
        text.push_str(&format!(", and {} more", names.len() - MOST_NAMES));
    }
    text
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;
    use trainyard_proto::v1::{ArrayLimit, ClusterDeleting, WaitingForJobs};

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

    fn said(reason: Reason) -> String {
        blocker_text(&Blocker {
            reason: Some(reason),
            ..Blocker::default()
        })
    }

    #[test]
    fn every_reason_has_its_numbers() {
        let jobs = (0..7)
            .map(|number| format!("workspaces/w/experiments/e/jobs/j{number}"))
            .collect();
        let cases = [
            (
                Reason::WaitingForJobs(WaitingForJobs { jobs }),
                "it waits for 7 jobs: w/e/j0, w/e/j1, w/e/j2, w/e/j3, w/e/j4, and 2 more",
            ),
            (
                Reason::OverQuota(OverQuota {
                    quota: "workspaces/w/quota".into(),
                    limit_name: "gpus".into(),
                    wanted: 4.0,
                    used: 6.0,
                    limit: 8.0,
                    next_period: None,
                }),
                "limit gpus of workspace w: 6 used, 4 more wanted, 8 allowed",
            ),
            (
                Reason::OverQuota(OverQuota {
                    quota: "quota".into(),
                    limit_name: "gpuHours".into(),
                    wanted: 0.0,
                    used: 10.125,
                    limit: 10.0,
                    next_period: Some(Timestamp {
                        seconds: 86_400,
                        nanos: 0,
                    }),
                }),
                "limit gpuHours of the whole group: 10.12 used, 0 more wanted, 10 allowed; the next period begins \
                 1970-01-02T00:00:00Z",
            ),
            (
                Reason::ArrayLimit(ArrayLimit {
                    max_running_jobs: 2,
                    running: 2,
                }),
                "2 jobs of its array run; at most 2 may",
            ),
            (
                Reason::ClusterDeleting(ClusterDeleting {
                    cluster: "workspaces/w/clusters/c".into(),
                }),
                "cluster w/c is being deleted",
            ),
            (
                Reason::NotEnoughNodes(NotEnoughNodes {
                    wanted: 1,
                    preparing: 2,
                    ..NotEnoughNodes::default()
                }),
                "it wants 1 node: 0 free, 0 busy, 0 not usable, 0 missing from the pool, 2 being set up or switched on",
            ),
        ];
        for (reason, text) in cases {
            assert_eq!(said(reason), text);
        }
    }
}
