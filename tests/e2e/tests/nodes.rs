//! Nodes that fail in part or as a whole: what ran goes on, or runs again elsewhere, but never twice at once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a scenario stops at the first surprise"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use trainyard_e2e::cluster::{Cluster, Gate, JobFile, Timing, text};
use trainyard_e2e::wait_until;

const FOLLOW_TIMEOUT: Duration = Duration::from_secs(180);
const BEAT_TIMEOUT: Duration = Duration::from_secs(120);

fn attempts(job: &serde_json::Value) -> usize {
    job["attempts"].as_array().map_or(0, Vec::len)
}

#[test]
fn a_killed_agent_comes_back_to_its_task() {
    let mut cluster = Cluster::builder().start().unwrap();
    cluster.open_workspace(1).unwrap();
    let open = cluster.open_folder("open").unwrap();
    let gate = Gate::new(&open, "gate").unwrap();
    let job = format!("echo pid $$; {}; echo pid $$; exit 7", gate.wait_command());
    cluster.submit("lasting", &JobFile::custom(&job)).unwrap();
    let mut log = cluster.follow("lasting").unwrap();
    let first = log.wait_line("pid").unwrap();

    let agent = &mut cluster.node("node-1").daemon;
    agent.kill().unwrap();
    agent.start().unwrap();
    cluster.wait_ready().unwrap();
    gate.open().unwrap();
    assert_eq!(cluster.wait("lasting").unwrap(), 7);
    let done = log.finish(FOLLOW_TIMEOUT).unwrap();
    assert_eq!(done.stdout, format!("{first}\n{first}\n"));
    let job = cluster.show("lasting").unwrap();
    assert_eq!(attempts(&job), 1, "{job:#}");
    assert_eq!(job["executionInfo"]["exitCode"], 7);
}

#[test]
fn a_task_that_ends_while_its_agent_is_dead_keeps_its_status_and_output() {
    let mut cluster = Cluster::builder().start().unwrap();
    cluster.open_workspace(1).unwrap();
    let open = cluster.open_folder("open").unwrap();
    let gate = Gate::new(&open, "gate").unwrap();
    let marker = open.join("ended");
    let job = format!(
        "echo first; {}; echo second; touch {}; exit 9",
        gate.wait_command(),
        marker.display()
    );
    cluster.submit("orphan", &JobFile::custom(&job)).unwrap();
    let mut log = cluster.follow("orphan").unwrap();
    log.wait_line("first").unwrap();

    cluster.node("node-1").daemon.kill().unwrap();
    gate.open().unwrap();
    wait_until("the task has ended", BEAT_TIMEOUT, || {
        Ok(marker.exists().then_some(()))
    })
    .unwrap();
    cluster.node("node-1").daemon.start().unwrap();
    assert_eq!(cluster.wait("orphan").unwrap(), 9);
    let done = log.finish(FOLLOW_TIMEOUT).unwrap();
    assert_eq!(done.stdout, "first\nsecond\n");
    assert_eq!(attempts(&cluster.show("orphan").unwrap()), 1);
}

#[test]
fn a_stopped_agent_leaves_its_task_alone() {
    let mut cluster = Cluster::builder().start().unwrap();
    cluster.open_workspace(1).unwrap();
    let open = cluster.open_folder("open").unwrap();
    let gate = Gate::new(&open, "gate").unwrap();
    let job = format!("echo pid $$; {}; echo pid $$", gate.wait_command());
    cluster.submit("upgraded", &JobFile::custom(&job)).unwrap();
    let mut log = cluster.follow("upgraded").unwrap();
    let first = log.wait_line("pid").unwrap();
    let agent = &mut cluster.node("node-1").daemon;
    let status = agent.terminate(Duration::from_secs(30)).unwrap();
    assert!(status.success(), "{status}");
    agent.start().unwrap();
    cluster.wait_ready().unwrap();
    gate.open().unwrap();
    assert_eq!(cluster.wait("upgraded").unwrap(), 0);
    let done = log.finish(FOLLOW_TIMEOUT).unwrap();
    assert_eq!(done.stdout, format!("{first}\n{first}\n"));
}

/// A job that writes the time into a file of its host again and again until the file `done` is there.
struct Beats {
    folder: PathBuf,
}

impl Beats {
    fn job(&self) -> JobFile {
        let folder = self.folder.display();
        // A subshell that ignores SIGTERM and a process group of its own make it as hard to kill as a task can be.
        JobFile::custom(&format!(
            "trap '' TERM; (trap '' TERM; until [ -e {folder}/done ]; do \
             echo $EPOCHREALTIME >>{folder}/beats-$(hostname); sleep 0.05; done); exit 0"
        ))
    }

    fn file(&self, node: &str) -> PathBuf {
        self.folder.join(format!("beats-{node}"))
    }

    /// Times of the beats on a node, in seconds since 1970 by the one clock that all hosts share.
    fn of(&self, node: &str) -> Vec<f64> {
        let text = fs::read_to_string(self.file(node)).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| line.parse().unwrap()).collect()
    }

    fn wait(&self, node: &str, count: usize) {
        wait_until(&format!("the job beats on {node}"), BEAT_TIMEOUT, || {
            Ok((self.of(node).len() >= count).then_some(()))
        })
        .unwrap();
    }
}

/// The node that runs the job, and the other one.
fn places(beats: &Path) -> (&'static str, &'static str) {
    let found = |name: &str| beats.join(format!("beats-{name}")).exists();
    wait_until("the job beats somewhere", BEAT_TIMEOUT, || {
        Ok(if found("node-1") {
            Some(("node-1", "node-2"))
        } else if found("node-2") {
            Some(("node-2", "node-1"))
        } else {
            None
        })
    })
    .unwrap()
}

fn lose_a_host(kill_the_agent: bool) {
    let builder = Cluster::builder().schedulers(3).nodes(2);
    let mut cluster = builder.timing(Timing::short_lease()).start().unwrap();
    cluster.open_workspace(2).unwrap();
    let beats = Beats {
        folder: cluster.open_folder("beats").unwrap(),
    };
    cluster.submit("moving", &beats.job()).unwrap();
    let (lost, other) = places(&beats.folder);
    beats.wait(lost, 3);

    let node = cluster.node(lost);
    if kill_the_agent {
        node.daemon.kill().unwrap();
    }
    node.host.cut().unwrap();
    beats.wait(other, 10);
    cluster.wait_node(lost, "lost").unwrap();
    let job = cluster.show("moving").unwrap();
    assert_eq!(attempts(&job), 2, "{job:#}");
    let outcome = text(&job, "/attempts/0/outcome").to_lowercase();
    assert!(outcome.contains("lost"), "{job:#}");
    let (before, after) = (beats.of(lost), beats.of(other));
    let (end, start) = (before[before.len() - 1], after[0]);
    assert!(
        end < start,
        "the attempts overlap: {end} is not before {start}"
    );

    // The host is back: it cleans up, takes work again, and nothing of the first attempt stirs.
    let node = cluster.node(lost);
    node.host.heal().unwrap();
    if kill_the_agent {
        node.daemon.start().unwrap();
    }
    cluster.wait_node(lost, "ready").unwrap();
    beats.wait(other, after.len() + 10);
    assert_eq!(beats.of(lost).len(), before.len());
    fs::write(beats.folder.join("done"), "").unwrap();
    assert_eq!(cluster.wait("moving").unwrap(), 0);
    let both = JobFile::custom("echo both").nodes(2);
    cluster.submit("both", &both).unwrap();
    assert_eq!(cluster.wait("both").unwrap(), 0);
}

#[test]
fn a_job_whose_host_is_cut_off_runs_again_elsewhere_and_never_twice_at_once() {
    lose_a_host(false);
}

#[test]
fn a_task_ends_by_itself_when_its_host_is_cut_off_and_its_agent_dead() {
    lose_a_host(true);
}

#[test]
fn a_short_cut_of_the_network_disturbs_no_job() {
    let mut cluster = Cluster::builder().start().unwrap();
    cluster.open_workspace(1).unwrap();
    let open = cluster.open_folder("open").unwrap();
    let gate = Gate::new(&open, "gate").unwrap();
    let job = format!("echo first; {}; echo second", gate.wait_command());
    cluster.submit("calm", &JobFile::custom(&job)).unwrap();
    let mut log = cluster.follow("calm").unwrap();
    log.wait_line("first").unwrap();
    cluster.node("node-1").host.cut().unwrap();
    // What happens meanwhile is told when the cable is back.
    gate.open().unwrap();
    cluster.node("node-1").host.heal().unwrap();
    assert_eq!(cluster.wait("calm").unwrap(), 0);
    let done = log.finish(FOLLOW_TIMEOUT).unwrap();
    assert_eq!(done.stdout, "first\nsecond\n");
    assert_eq!(attempts(&cluster.show("calm").unwrap()), 1);
}
