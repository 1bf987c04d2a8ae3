//! `trainyard job show` and the table of `trainyard job list`.

use prost_types::Timestamp;
use trainyard_proto::v1::{
    Attempt, AttemptNode, AttemptNodePhase, AttemptOutcome, AttemptPhase, BatchAiError,
    DependencyCondition, ExecutionState, ExplainJobRequest, GetJobRequest, Job,
};

use super::explain::some_of;
use super::{NameArg, state};
use crate::args::Format;
use crate::context::Context;
use crate::error::Error;
use crate::scope::is_any;
use crate::table::{Details, Table};
use crate::text::{age, ids, last_segment, length, now, seconds_between, short, time};

/// Shows one job; for people with the reason why it waits.
pub(super) async fn run(context: &Context, args: &NameArg) -> Result<u8, Error> {
    let name = args.resolve()?.to_string();
    let api = context.api()?;
    let job = api.get_job(GetJobRequest { name: name.clone() }).await?;
    let waits = if context.output().format() == Format::Table
        && job.execution_state() == ExecutionState::Queued
    {
        // The job is what was asked for; a reason that cannot be had now is no failure.
        api.explain_job(ExplainJobRequest { name })
            .await
            .map(|explanation| explanation.summary)
            .unwrap_or_default()
    } else {
        String::new()
    };
    context
        .output()
        .one(&job, |job| details(job, &waits, &now()))?;
    Ok(0)
}

/// Name of the job's cluster as people write it.
fn cluster(job: &Job) -> String {
    let id = job
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster.as_ref())
        .map_or("", |cluster| cluster.id.as_str());
    let workspace = job.name.split('/').nth(1);
    // A cluster of another workspace keeps its workspace.
    if id.split('/').nth(1) == workspace {
        last_segment(id).to_owned()
    } else {
        ids(id)
    }
}

fn nodes(job: &Job) -> u32 {
    job.spec.as_ref().map_or(0, |spec| spec.node_count)
}

/// The exit code, once there is one.
pub(super) fn exit_code(job: &Job) -> String {
    let code = job.execution_info.as_ref().and_then(|info| info.exit_code);
    code.map_or_else(String::new, |code| code.to_string())
}

/// The jobs of `parent`, which may stand for several experiments.
pub(super) fn table<'a>(
    jobs: impl IntoIterator<Item = &'a Job>,
    parent: &str,
    now: &Timestamp,
) -> String {
    let mut table = Table::new(&["NAME", "CLUSTER", "TOOL", ">NODES", "STATE", ">EXIT", "AGE"]);
    for job in jobs {
        table.row([
            if is_any(parent) {
                ids(&job.name)
            } else {
                last_segment(&job.name).to_owned()
            },
            cluster(job),
            job.tool_type.clone(),
            nodes(job).to_string(),
            state(job.execution_state()),
            exit_code(job),
            age(job.creation_time.as_ref(), now),
        ]);
    }
    table.render()
}

/// An error as a sentence: code, message, and those details that the message does not hold already.
pub(super) fn error_text(error: &BatchAiError) -> String {
    let details: Vec<String> = error
        .details
        .iter()
        .filter(|pair| !pair.value.is_empty() && !error.message.contains(&pair.value))
        .map(|pair| format!("{}={}", pair.name, pair.value))
        .collect();
    let details = if details.is_empty() {
        String::new()
    } else {
        format!(" ({})", details.join(", "))
    };
    format!("{}: {}{details}", error.code, error.message)
}

/// Where the job's logs are, as its file says it.
fn logs(job: &Job) -> String {
    let prefix = job
        .spec
        .as_ref()
        .map_or("", |spec| spec.std_out_err_path_prefix.as_str());
    let segment = &job.job_output_directory_path_segment;
    if prefix.is_empty() || segment.is_empty() {
        return String::new();
    }
    format!("{}/{segment}/stdouterr", prefix.trim_end_matches('/'))
}

fn waits_for(job: &Job) -> String {
    if job.waiting_for.is_empty() {
        String::new()
    } else {
        some_of(&job.waiting_for, "job")
    }
}

/// `prep, clean (any end)`.
fn depends_on(job: &Job) -> String {
    let dependencies = job.spec.iter().flat_map(|spec| &spec.depends_on);
    let texts: Vec<String> = dependencies
        .map(|dependency| {
            let id = dependency.job.as_ref().map_or("", |job| job.id.as_str());
            let id = if id.contains('/') {
                ids(id)
            } else {
                id.to_owned()
            };
            match dependency.condition() {
                DependencyCondition::End => format!("{id} (any end)"),
                DependencyCondition::Success | DependencyCondition::Unspecified => id,
            }
        })
        .collect();
    texts.join(", ")
}

fn array(job: &Job) -> String {
    job.array.as_ref().map_or_else(String::new, |array| {
        format!("index {} of {} in {}", array.index, array.size, array.uid)
    })
}

/// Failures that were retried, of those that may be.
fn retries(job: &Job) -> String {
    let allowed = job
        .spec
        .as_ref()
        .and_then(|spec| spec.constraints.as_ref())
        .map_or(0, |constraints| constraints.max_retry_count);
    if allowed == 0 && job.retry_count == 0 {
        String::new()
    } else {
        format!("{} of {allowed}", job.retry_count)
    }
}

fn details(job: &Job, waits: &str, now: &Timestamp) -> String {
    let info = job.execution_info.clone().unwrap_or_default();
    let since = age(job.execution_state_transition_time.as_ref(), now);
    let mut state = state(job.execution_state());
    if !since.is_empty() {
        state = format!("{state} for {since}");
    }
    let mut details = Details::default();
    details
        .add("Name", &job.name)
        .add("State", state)
        .add("Waits", waits)
        .add(
            "Waits for",
            if waits.is_empty() {
                waits_for(job)
            } else {
                String::new()
            },
        )
        .add("Cluster", cluster(job))
        .add("Tool", &job.tool_type)
        .add("Nodes", nodes(job).to_string())
        .add("User", &job.user)
        .add("Array", array(job))
        .add("Depends on", depends_on(job))
        .add("Created", time(job.creation_time.as_ref()))
        .add("Started", time(info.start_time.as_ref()))
        .add("Ended", time(info.end_time.as_ref()))
        .add("Exit code", exit_code(job))
        .add("Retries", retries(job))
        .add_all("Error", info.errors.iter().map(error_text));
    for attempt in &job.attempts {
        details.add_all(
            &format!("Attempt {}", attempt.number),
            attempt_lines(attempt, &info.errors, now),
        );
    }
    details.add("Logs", logs(job));
    details.render()
}

/// One run; errors that are `known` as the job's own are not said again.
fn attempt_lines(attempt: &Attempt, known: &[BatchAiError], now: &Timestamp) -> Vec<String> {
    let end = attempt.end_time.as_ref().unwrap_or(now);
    let took = attempt
        .start_time
        .as_ref()
        .map_or_else(String::new, |start| length(seconds_between(start, end)));
    let how = match attempt.outcome() {
        AttemptOutcome::Unspecified => match attempt.phase() {
            AttemptPhase::Unspecified => "starting".to_owned(),
            AttemptPhase::Prepare => "preparing".to_owned(),
            AttemptPhase::Run => "running".to_owned(),
            AttemptPhase::Stop => "stopping".to_owned(),
            AttemptPhase::Ended => "ended".to_owned(),
        },
        outcome => short(outcome.as_str_name(), "ATTEMPT_OUTCOME_"),
    };
    let code = attempt
        .exit_code
        .filter(|code| *code != 0)
        .map_or_else(String::new, |code| format!(" with exit code {code}"));
    let since = match &attempt.start_time {
        Some(start) => format!(", begun {}", time(Some(start))),
        None => String::new(),
    };
    let mut lines = vec![format!("{how}{code} after {took}{since}")];
    let causes: Vec<&BatchAiError> = attempt
        .errors
        .iter()
        .filter(|error| !known.contains(error))
        .collect();
    lines.extend(causes.iter().map(|error| error_text(error)));
    // A node that says the same as the attempt says nothing new.
    let known: Vec<&BatchAiError> = known.iter().chain(&attempt.errors).collect();
    lines.extend(attempt.nodes.iter().map(|node| node_line(node, &known)));
    lines
}

fn node_line(node: &AttemptNode, known: &[&BatchAiError]) -> String {
    let status = node.status.clone().unwrap_or_default();
    let phase = match status.phase() {
        AttemptNodePhase::Unspecified => "not reported yet".to_owned(),
        phase => short(phase.as_str_name(), "ATTEMPT_NODE_PHASE_"),
    };
    let gpus: Vec<String> = node.gpus.iter().map(ToString::to_string).collect();
    let gpus = if gpus.is_empty() {
        String::new()
    } else {
        format!(", GPUs {}", gpus.join(","))
    };
    let code = status
        .exit_code
        .map_or_else(String::new, |code| format!(", exit code {code}"));
    let errors: String = status
        .errors
        .iter()
        .filter(|error| !known.contains(error))
        .map(|error| format!(", {}", error_text(error)))
        .collect();
    format!("{}: {phase}{gpus}{code}{errors}", last_segment(&node.node))
}

#[cfg(test)]
pub(super) mod tests {
    use trainyard_proto::v1::{ExecutionInfo, JobArrayMember, JobDependency, JobSpec, ResourceId};

    use super::*;

    /// A job of two nodes that has failed.
    fn failed_job() -> Job {
        Job {
            name: "workspaces/w/experiments/e/jobs/train".into(),
            tool_type: "pytorch".into(),
            execution_state: ExecutionState::Failed.into(),
            creation_time: Some(Timestamp {
                seconds: 1000,
                nanos: 0,
            }),
            spec: Some(JobSpec {
                node_count: 2,
                cluster: Some(ResourceId {
                    id: "workspaces/w/clusters/c".into(),
                }),
                ..JobSpec::default()
            }),
            execution_info: Some(ExecutionInfo {
                exit_code: Some(3),
                errors: vec![BatchAiError {
                    code: "JobFailed".into(),
                    message: "rank 1 on node-2 ended with exit code 3".into(),
                    details: vec![],
                }],
                ..ExecutionInfo::default()
            }),
            attempts: vec![Attempt {
                number: 1,
                outcome: AttemptOutcome::Failed.into(),
                start_time: Some(Timestamp {
                    seconds: 1000,
                    nanos: 0,
                }),
                end_time: Some(Timestamp {
                    seconds: 1010,
                    nanos: 0,
                }),
                nodes: vec![AttemptNode {
                    node: "nodes/node-2".into(),
                    gpus: vec![0, 1],
                    ..AttemptNode::default()
                }],
                ..Attempt::default()
            }],
            ..Job::default()
        }
    }

    #[test]
    fn a_list_is_compact() {
        let now = Timestamp {
            seconds: 1192,
            nanos: 0,
        };
        assert_eq!(
            table(&[failed_job()], "workspaces/w/experiments/e", &now),
            "NAME   CLUSTER  TOOL     NODES  STATE   EXIT  AGE\n\
             train  c        pytorch      2  failed     3  3m12s\n"
        );
        assert!(
            table(&[failed_job()], "workspaces/w/experiments/-", &now).contains("\nw/e/train ")
        );
    }

    #[test]
    fn a_failed_job_says_why_and_where() {
        let text = details(
            &failed_job(),
            "",
            &Timestamp {
                seconds: 1192,
                nanos: 0,
            },
        );
        assert!(
            text.contains("JobFailed: rank 1 on node-2 ended with exit code 3"),
            "{text}"
        );
        assert!(text.contains("failed after 10s"), "{text}");
        assert!(
            text.contains("node-2: not reported yet, GPUs 0,1"),
            "{text}"
        );
    }

    #[test]
    fn the_history_tells_what_was_retried_and_why() {
        let mut job = failed_job();
        let spec = job.spec.get_or_insert_default();
        spec.constraints.get_or_insert_default().max_retry_count = 3;
        spec.depends_on = vec![JobDependency {
            job: Some(ResourceId { id: "prep".into() }),
            condition: DependencyCondition::End.into(),
        }];
        job.retry_count = 1;
        job.user = "ada".into();
        job.array = Some(JobArrayMember {
            uid: "u-1".into(),
            index: 2,
            size: 4,
            max_running_jobs: 0,
        });
        job.waiting_for = vec!["workspaces/w/experiments/e/jobs/prep".into()];
        job.attempts.insert(
            0,
            Attempt {
                number: 1,
                outcome: AttemptOutcome::Failed.into(),
                exit_code: Some(9),
                start_time: Some(Timestamp::default()),
                end_time: Some(Timestamp {
                    seconds: 5,
                    nanos: 0,
                }),
                errors: vec![BatchAiError {
                    code: "JobFailed".into(),
                    message: "out of memory".into(),
                    details: vec![],
                }],
                ..Attempt::default()
            },
        );
        let text = details(&job, "", &Timestamp::default());
        for line in [
            "Retries:     1 of 3\n",
            "Depends on:  prep (any end)\n",
            "Waits for:   1 job: w/e/prep\n",
            "User:        ada\n",
            "Array:       index 2 of 4 in u-1\n",
            "Attempt 1:   failed with exit code 9 after 5s, begun 1970-01-01T00:00:00Z\n",
            "             JobFailed: out of memory\n",
        ] {
            assert!(text.contains(line), "{line:?} in {text}");
        }
    }

    #[test]
    fn a_cluster_of_another_workspace_keeps_its_workspace() {
        let mut job = failed_job();
        job.name = "workspaces/other/experiments/e/jobs/train".into();
        assert_eq!(cluster(&job), "w/c");
    }
}
