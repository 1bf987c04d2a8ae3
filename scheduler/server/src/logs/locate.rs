//! Which node has a file of a job: decided from the state alone.

use tonic::Status;
use trainyard_core::State;
use trainyard_proto::v1::{Attempt, AttemptNode, AttemptNodePhase, AttemptPhase, Job, NodeState};

use super::{STDOUTERR, Wanted};
use crate::status;
use crate::watch::job::has_ended;

/// Where a file is.
#[derive(Debug)]
pub(super) enum Place {
    /// Not known yet; a change of the job may tell. The text says what is missing, for a caller who does not wait.
    NotYet(String),
    /// On these nodes, in the order in which to ask them.
    At(Found),
    /// Nowhere, and that will not change.
    Never(Status),
}

/// The nodes that may have a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// UUID of the job.
    pub(super) uid: String,
    /// Number of the attempt.
    pub(super) attempt: u32,
    /// Whether nodes still work on the attempt.
    pub(super) alive: bool,
    /// Name of the file, as resolved.
    pub(super) file: String,
    /// The nodes and the addresses of their agents.
    pub(super) nodes: Vec<(String, String)>,
}

/// Finds the attempt: `number`, or the latest for 0.
pub(super) fn attempt(job: &Job, number: u32) -> Result<&Attempt, Place> {
    let found = match number {
        0 => job.attempts.last(),
        n => job.attempts.iter().find(|a| a.number == n),
    };
    if let Some(attempt) = found {
        return Ok(attempt);
    }
    let name = &job.name;
    let text = match number {
        0 => format!("{name} has not started yet, so it has no files"),
        n => format!("{name} has no attempt {n}; it has {}", job.attempts.len()),
    };
    let may_come = !has_ended(job) && job.attempts.last().map_or(0, |a| a.number) < number.max(1);
    Err(if may_come {
        Place::NotYet(text)
    } else {
        Place::Never(status::precondition("NO_ATTEMPT", name, text, []))
    })
}

/// Whether nodes still work on an attempt.
pub(super) fn is_alive(attempt: &Attempt) -> bool {
    match attempt.phase() {
        AttemptPhase::Unspecified | AttemptPhase::Prepare | AttemptPhase::Run => true,
        // While nodes clean up, tasks may still write.
        AttemptPhase::Stop => true,
        AttemptPhase::Ended => false,
    }
}

/// Finds a file of the job `name` with the UUID `uid`.
pub(super) fn file(state: &State, name: &str, uid: &str, number: u32, wanted: &Wanted) -> Place {
    let Some(job) = state.job(name).filter(|job| job.uid == uid) else {
        return Place::Never(status::not_found(name));
    };
    let job = &*job;
    let attempt = match attempt(job, number) {
        Ok(attempt) => attempt,
        Err(place) => return place,
    };
    let file = match resolve(job, attempt, wanted) {
        Ok(file) => file,
        Err(place) => return place,
    };
    let writers: Vec<&AttemptNode> = if wanted.is_reported() {
        let writes = |node: &&AttemptNode| files(node).contains(&file);
        attempt.nodes.iter().filter(writes).collect()
    } else {
        Vec::new()
    };
    // A file that no agent reported, such as one of an output directory, may lie on a share that all nodes mount.
    let candidates = if writers.is_empty() {
        attempt.nodes.iter().collect()
    } else {
        writers
    };
    let nodes = reachable(state, &candidates);
    if nodes.is_empty() {
        return Place::Never(lost(job, attempt, &candidates, wanted, &file));
    }
    Place::At(Found {
        uid: job.uid.clone(),
        attempt: attempt.number,
        alive: is_alive(attempt),
        file,
        nodes,
    })
}

/// The nodes that are not lost, with the addresses of their agents.
pub(super) fn reachable(state: &State, nodes: &[&AttemptNode]) -> Vec<(String, String)> {
    nodes
        .iter()
        .filter(|node| phase(node) != AttemptNodePhase::Lost)
        .filter_map(|node| state.node(&node.node))
        .filter(|node| node.state() != NodeState::Lost)
        .map(|node| (node.name, node.agent_address))
        .collect()
}

/// The name of the file: as given, or the first stdout of the job, which the master writes.
fn resolve(job: &Job, attempt: &Attempt, wanted: &Wanted) -> Result<String, Place> {
    if !wanted.file.is_empty() {
        let unknown = wanted.is_reported()
            && is_alive(attempt)
            && !attempt
                .nodes
                .iter()
                .any(|n| files(n).contains(&wanted.file))
            && attempt.nodes.iter().any(|n| !has_launched(n));
        if unknown {
            return Err(Place::NotYet(format!(
                "attempt {} of {} has not written {} yet",
                attempt.number, job.name, wanted.file
            )));
        }
        return Ok(wanted.file.clone());
    }
    let master = attempt.nodes.first();
    let stdout = |node: &AttemptNode| {
        let names = files(node).iter().filter(|name| is_stdout(name));
        names.min_by_key(|name| natural(name)).cloned()
    };
    if let Some(found) = master.and_then(stdout) {
        return Ok(found);
    }
    let launching = is_alive(attempt) && master.is_none_or(|node| !has_launched(node));
    if launching {
        return Err(Place::NotYet(format!(
            "attempt {} of {} has not started its tasks yet",
            attempt.number, job.name
        )));
    }
    let all = attempt.nodes.iter().filter_map(stdout);
    if let Some(found) = all.min_by(|a, b| natural(a).cmp(&natural(b))) {
        return Ok(found);
    }
    let written: Vec<&str> = attempt
        .nodes
        .iter()
        .flat_map(files)
        .map(String::as_str)
        .collect();
    let text = format!(
        "attempt {} of {} started no task, so it has no stdout; its files are: {}",
        attempt.number,
        job.name,
        if written.is_empty() {
            "none".to_owned()
        } else {
            written.join(", ")
        }
    );
    let attempt = attempt.number.to_string();
    Err(Place::Never(status::precondition(
        "NO_STDOUT",
        &job.name,
        text,
        [("attempt", attempt)],
    )))
}

fn files(node: &AttemptNode) -> &[String] {
    node.status.as_ref().map_or(&[], |s| &s.files)
}

fn phase(node: &AttemptNode) -> AttemptNodePhase {
    node.status
        .as_ref()
        .map_or(AttemptNodePhase::Unspecified, |s| s.phase())
}

/// Whether the list of files of a node is complete.
fn has_launched(node: &AttemptNode) -> bool {
    match phase(node) {
        AttemptNodePhase::Unspecified
        | AttemptNodePhase::Preparing
        | AttemptNodePhase::Prepared => false,
        AttemptNodePhase::Running
        | AttemptNodePhase::Exited
        | AttemptNodePhase::Failed
        | AttemptNodePhase::Cleaned
        | AttemptNodePhase::Lost => true,
    }
}

fn is_stdout(name: &str) -> bool {
    name.starts_with("stdout") && !name.starts_with("stdout-job_prep")
}

/// `stdout.txt` before `stdout-2.txt` before `stdout-10.txt`.
fn natural(name: &str) -> (usize, &str) {
    (name.len(), name)
}

/// All nodes that could have a file are lost: says so, and where the file is if the job wrote it to a share.
fn lost(
    job: &Job,
    attempt: &Attempt,
    nodes: &[&AttemptNode],
    wanted: &Wanted,
    file: &str,
) -> Status {
    let names: Vec<&str> = nodes.iter().map(|n| n.node.as_str()).collect();
    let path = path_on_share(job, wanted, file);
    let text = format!(
        "attempt {} of {} ran on {}, which is lost; what reached the share is {path}",
        attempt.number,
        job.name,
        names.join(", ")
    );
    let facts = [
        ("attempt", attempt.number.to_string()),
        ("node", names.join(",")),
        ("path", path),
    ];
    status::precondition("NODE_LOST", &job.name, text, facts)
}

/// The path of a file as the job's nodes see it.
fn path_on_share(job: &Job, wanted: &Wanted, file: &str) -> String {
    let spec = job.spec.as_ref();
    let segment = &job.job_output_directory_path_segment;
    let mut parts: Vec<&str> = Vec::new();
    if wanted.output_directory_id == STDOUTERR {
        parts.extend([
            spec.map_or("", |s| &s.std_out_err_path_prefix),
            segment,
            STDOUTERR,
        ]);
    } else {
        let output = spec.and_then(|s| {
            s.output_directories
                .iter()
                .find(|o| o.id == wanted.output_directory_id)
        });
        parts.extend([
            output.map_or("", |o| &o.path_prefix),
            segment,
            "outputs",
            output.map_or("", |o| &o.path_suffix),
        ]);
    }
    parts.extend([wanted.directory.as_str(), file]);
    let parts: Vec<&str> = parts
        .into_iter()
        .map(|part| part.trim_end_matches('/'))
        .filter(|part| !part.is_empty())
        .collect();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainyard_proto::v1::{AttemptNodeStatus, ExecutionState, JobSpec};

    fn node(name: &str, phase: AttemptNodePhase, files: &[&str]) -> AttemptNode {
        AttemptNode {
            node: format!("nodes/{name}"),
            status: Some(AttemptNodeStatus {
                phase: phase.into(),
                files: files.iter().map(|f| (*f).to_owned()).collect(),
                ..AttemptNodeStatus::default()
            }),
            ..AttemptNode::default()
        }
    }

    fn job(state: ExecutionState, nodes: Vec<AttemptNode>, phase: AttemptPhase) -> Job {
        Job {
            name: "workspaces/w/experiments/e/jobs/j".into(),
            execution_state: state.into(),
            job_output_directory_path_segment: "u/workspaces/w/experiments/e/jobs/j/x".into(),
            spec: Some(JobSpec {
                std_out_err_path_prefix: "/mnt/share/".into(),
                ..JobSpec::default()
            }),
            attempts: vec![Attempt {
                number: 1,
                nodes,
                phase: phase.into(),
                ..Attempt::default()
            }],
            ..Job::default()
        }
    }

    fn wanted(file: &str) -> Wanted {
        Wanted::check("", "", file).unwrap()
    }

    #[test]
    fn the_default_is_the_first_stdout_of_the_master() {
        use AttemptNodePhase::{Failed, Preparing, Running};
        let prepared = ["execution.log", "stdout-job_prep.txt"];
        let resolved = |nodes: Vec<AttemptNode>| {
            let job = job(ExecutionState::Running, nodes, AttemptPhase::Run);
            resolve(&job, &job.attempts[0], &wanted("")).map_err(|place| format!("{place:?}"))
        };
        let ranks = node(
            "a",
            Running,
            &["stdout-10.txt", "stdout-2.txt", "stderr-2.txt"],
        );
        assert_eq!(resolved(vec![ranks]).unwrap(), "stdout-2.txt");
        let waiting = vec![
            node("a", Preparing, &prepared),
            node("b", Running, &["stdout-1.txt"]),
        ];
        assert!(
            resolved(waiting).unwrap_err().starts_with("NotYet"),
            "master not launched"
        );
        let failed = resolved(vec![node("a", Failed, &prepared)]).unwrap_err();
        assert!(
            failed.starts_with("Never") && failed.contains("execution.log"),
            "{failed}"
        );
    }

    #[test]
    fn a_named_file_is_awaited_until_all_nodes_have_launched() {
        let nodes = vec![
            node("a", AttemptNodePhase::Running, &["stdout-0.txt"]),
            node("b", AttemptNodePhase::Prepared, &[]),
        ];
        let mut job = job(ExecutionState::Running, nodes, AttemptPhase::Run);
        let file = |job: &Job, name: &str| resolve(job, &job.attempts[0], &wanted(name)).ok();
        assert_eq!(file(&job, "stdout-0.txt").as_deref(), Some("stdout-0.txt"));
        assert_eq!(file(&job, "stdout-1.txt"), None);
        job.attempts[0].set_phase(AttemptPhase::Ended);
        assert_eq!(file(&job, "stdout-1.txt").as_deref(), Some("stdout-1.txt"));
    }

    #[test]
    fn attempts_that_may_come_are_awaited() {
        let queued = Job {
            execution_state: ExecutionState::Queued.into(),
            ..Job::default()
        };
        assert!(matches!(attempt(&queued, 0), Err(Place::NotYet(_))));
        assert!(matches!(attempt(&queued, 1), Err(Place::NotYet(_))));
        let ended = job(ExecutionState::Succeeded, vec![], AttemptPhase::Ended);
        assert!(matches!(attempt(&ended, 2), Err(Place::Never(_))));
        assert_eq!(attempt(&ended, 0).unwrap().number, 1);
    }

    #[test]
    fn a_lost_file_is_named_with_its_place_on_the_share() {
        let nodes = vec![node("a", AttemptNodePhase::Lost, &["stdout.txt"])];
        let job = job(ExecutionState::Queued, nodes, AttemptPhase::Ended);
        let attempt = &job.attempts[0];
        let status = lost(
            &job,
            attempt,
            &[&attempt.nodes[0]],
            &wanted("stdout.txt"),
            "stdout.txt",
        );
        let path = "/mnt/share/u/workspaces/w/experiments/e/jobs/j/x/stdouterr/stdout.txt";
        assert!(
            status.message().contains(path) && status.message().contains("attempt 1"),
            "{status}"
        );
    }
}
