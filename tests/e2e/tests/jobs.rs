//! The life of a job as its user sees it: submit, follow, read, end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a scenario stops at the first surprise"
)]

use std::fs;
use std::time::Duration;

use serde_json::Value;
use trainyard_e2e::cluster::{Cluster, Gate, JobFile, in_experiment, text};

const FOLLOW_TIMEOUT: Duration = Duration::from_secs(120);
const SIGSEGV_STATUS: i32 = 128 + 11;

fn first_error(job: &Value) -> &str {
    text(job, "/executionInfo/errors/0/code")
}

#[test]
fn a_job_streams_its_output_and_ends_with_its_own_status() {
    let cluster = Cluster::builder().start().unwrap();
    cluster.open_workspace(1).unwrap();

    let hello = JobFile::custom("echo to stdout; echo to stderr >&2; echo last");
    let followed = cluster.submit_and_follow("hello", &hello).unwrap();
    let done = followed.finish(FOLLOW_TIMEOUT).unwrap();
    assert_eq!(done.status, 0, "{done:#?}");
    assert!(done.stdout.contains("to stdout") && done.stdout.contains("last"));
    assert!(format!("{}{}", done.stdout, done.stderr).contains("to stderr"));
    let job = cluster.show("hello").unwrap();
    assert_eq!(text(&job, "/executionState"), "succeeded", "{job:#}");
    assert_eq!(job["executionInfo"]["exitCode"], 0);
    assert_eq!(text(&job, "/toolType"), "custom");

    // The same bytes again: from the node's spool, and from the share where Batch AI puts them.
    assert_eq!(
        cluster.log("hello", "stdout.txt").unwrap(),
        "to stdout\nlast\n"
    );
    assert_eq!(cluster.log("hello", "stderr.txt").unwrap(), "to stderr\n");
    let segment = text(&job, "/jobOutputDirectoryPathSegment");
    let folder = cluster.logs().join(segment).join("stdouterr");
    assert_eq!(
        fs::read_to_string(folder.join("stdout.txt")).unwrap(),
        "to stdout\nlast\n"
    );
    assert_eq!(
        fs::read_to_string(folder.join("stderr.txt")).unwrap(),
        "to stderr\n"
    );
    let files = cluster
        .command(in_experiment(&["job", "file", "list"], &["-n", "hello"]))
        .unwrap();
    for name in ["stdout.txt", "stderr.txt", "execution.log"] {
        assert!(files.contains(name), "{files}");
        assert!(folder.join(name).is_file(), "{name} is not on the share");
    }

    for (name, command, status) in [
        ("three", "echo before; exit 3", 3),
        ("signal", "kill -SEGV $$", SIGSEGV_STATUS),
    ] {
        let followed = cluster.submit_and_follow(name, &JobFile::custom(command));
        let done = followed.unwrap().finish(FOLLOW_TIMEOUT).unwrap();
        assert_eq!(done.status, status, "{done:#?}");
        assert_eq!(cluster.wait(name).unwrap(), status);
        let job = cluster.show(name).unwrap();
        assert_eq!(text(&job, "/executionState"), "failed", "{job:#}");
        assert_eq!(job["executionInfo"]["exitCode"], status);
        assert_eq!(first_error(&job), "JobFailed");
    }
    assert_eq!(cluster.log("three", "stdout.txt").unwrap(), "before\n");
}

#[test]
fn a_failed_preparation_on_one_node_keeps_the_job_from_starting_anywhere() {
    let cluster = Cluster::builder().nodes(2).start().unwrap();
    cluster.open_workspace(2).unwrap();
    let open = cluster.open_folder("open").unwrap();
    let marker = open.join("the-job-ran");
    let job = JobFile::custom(&format!("touch {}", marker.display()))
        .nodes(2)
        .preparation("echo preparing $(hostname); [ $(hostname) = node-1 ] || exit 5");
    cluster.submit("prepared", &job).unwrap();
    assert_eq!(cluster.wait("prepared").unwrap(), 5);

    let job = cluster.show("prepared").unwrap();
    assert_eq!(text(&job, "/executionState"), "failed", "{job:#}");
    assert_eq!(job["executionInfo"]["exitCode"], 5);
    assert_eq!(first_error(&job), "JobPreparationFailed");
    let errors = job["executionInfo"]["errors"].to_string();
    assert!(errors.contains("node-2"), "which node? {errors}");
    assert!(!marker.exists(), "the job ran all the same");
    for node in ["node-1", "node-2"] {
        let log = cluster.log("prepared", &format!("stdout-job_prep-{node}.txt"));
        assert_eq!(log.unwrap(), format!("preparing {node}\n"));
    }

    // Nothing is left of it: both nodes take the next job.
    let next = JobFile::custom("echo ran")
        .nodes(2)
        .preparation("echo fine");
    cluster.submit("next", &next).unwrap();
    assert_eq!(cluster.wait("next").unwrap(), 0);
    assert_eq!(cluster.log("next", "stdout.txt").unwrap(), "ran\n");
}

#[test]
fn a_terminated_job_is_asked_first_and_one_that_waits_never_runs() {
    let cluster = Cluster::builder().start().unwrap();
    cluster.open_workspace(1).unwrap();
    let open = cluster.open_folder("open").unwrap();
    let gate = Gate::new(&open, "gate").unwrap();

    let polite = format!(
        "trap 'echo asked; exit 0' TERM; echo started; {}",
        gate.wait_command()
    );
    cluster
        .submit("running", &JobFile::custom(&polite))
        .unwrap();
    let mut log = cluster.follow("running").unwrap();
    log.wait_line("started").unwrap();
    let marker = open.join("it-ran");
    let waiting = JobFile::custom(&format!("touch {}", marker.display()));
    cluster.submit("queued", &waiting).unwrap();

    let why = cluster.explain("queued").unwrap();
    assert_eq!(text(&why, "/executionState"), "queued", "{why:#}");
    assert_eq!(why["queuePosition"], 1, "{why:#}");
    let blocker = &why["blockers"][0];
    assert_eq!(blocker["notEnoughNodes"]["busy"], 1, "{why:#}");
    assert!(!text(blocker, "/remedy").is_empty());

    for name in ["queued", "running"] {
        cluster
            .command(in_experiment(&["job", "terminate"], &["-n", name]))
            .unwrap();
        assert_ne!(cluster.wait(name).unwrap(), 0, "no one waits in vain");
        let job = cluster.show(name).unwrap();
        assert_eq!(text(&job, "/executionState"), "failed", "{job:#}");
        assert_eq!(first_error(&job), "JobTerminated");
        assert!(job["executionInfo"].get("exitCode").is_none(), "{job:#}");
    }
    let done = log.finish(FOLLOW_TIMEOUT).unwrap();
    assert_eq!(done.stdout, "started\nasked\n");
    assert!(!marker.exists());

    // A second request changes nothing.
    cluster
        .command(in_experiment(&["job", "terminate"], &["-n", "running"]))
        .unwrap();
    assert_eq!(
        first_error(&cluster.show("running").unwrap()),
        "JobTerminated"
    );
}

#[test]
fn a_task_that_ignores_the_request_is_killed_with_all_its_children() {
    let cluster = Cluster::builder().start().unwrap();
    cluster.open_workspace(1).unwrap();
    let open = cluster.open_folder("open").unwrap();
    let gate = Gate::new(&open, "gate").unwrap();
    let stubborn = format!(
        "trap '' TERM; setsid sleep 1000 & sleep 1000 & echo started; while :; do {}; done",
        gate.wait_command()
    );
    cluster
        .submit("stubborn", &JobFile::custom(&stubborn))
        .unwrap();
    let mut log = cluster.follow("stubborn").unwrap();
    log.wait_line("started").unwrap();
    cluster
        .command(in_experiment(&["job", "terminate"], &["-n", "stubborn"]))
        .unwrap();
    assert_ne!(cluster.wait("stubborn").unwrap(), 0);
    assert_eq!(
        first_error(&cluster.show("stubborn").unwrap()),
        "JobTerminated"
    );

    // The next job sees no process of the last one.
    let look = JobFile::custom("for p in /proc/[0-9]*; do cat $p/comm; done; true");
    cluster.submit("look", &look).unwrap();
    assert_eq!(cluster.wait("look").unwrap(), 0);
    let seen = cluster.log("look", "stdout.txt").unwrap();
    // The host's own first process is a `sleep` as well.
    let sleepers = seen.lines().filter(|name| *name == "sleep").count();
    assert_eq!(sleepers, 1, "{seen}");
}

#[test]
fn jobs_wait_for_their_turn_and_run_in_order() {
    let cluster = Cluster::builder().start().unwrap();
    cluster.open_workspace(1).unwrap();
    let open = cluster.open_folder("open").unwrap();
    let gate = Gate::new(&open, "gate").unwrap();
    let order = open.join("order");
    cluster
        .submit("first", &JobFile::custom(&gate.wait_command()))
        .unwrap();
    let names: Vec<_> = (0..5).map(|number| format!("job-{number}")).collect();
    for name in &names {
        let line = format!("echo {name} >>{}", order.display());
        cluster.submit(name, &JobFile::custom(&line)).unwrap();
    }
    let urgent = JobFile::custom(&format!("echo urgent >>{}", order.display()))
        .set("schedulingPriority", "high".into());
    cluster.submit("urgent", &urgent).unwrap();
    gate.open().unwrap();
    for name in names.iter().map(String::as_str).chain(["first", "urgent"]) {
        assert_eq!(cluster.wait(name).unwrap(), 0, "{name}");
    }
    let ran = fs::read_to_string(&order).unwrap();
    let ran: Vec<_> = ran.lines().collect();
    assert_eq!(ran[0], "urgent");
    assert_eq!(ran[1..], names[..]);
}

#[test]
fn a_job_that_takes_longer_than_it_may_is_ended() {
    let cluster = Cluster::builder().start().unwrap();
    cluster.open_workspace(1).unwrap();
    let open = cluster.open_folder("open").unwrap();
    let gate = Gate::new(&open, "gate").unwrap();
    let job = JobFile::custom(&gate.wait_command()).set(
        "constraints",
        serde_json::json!({ "maxWallClockTime": "PT2S" }),
    );
    cluster.submit("long", &job).unwrap();
    assert_ne!(cluster.wait("long").unwrap(), 0);
    let job = cluster.show("long").unwrap();
    assert_eq!(text(&job, "/executionState"), "failed", "{job:#}");
    let errors = job["executionInfo"]["errors"].to_string();
    assert!(errors.contains("maxWallClockTime"), "{errors}");
}
