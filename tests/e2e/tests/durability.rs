//! An acknowledged create is on the disks of a majority. Seen from outside, by the system calls of the schedulers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a scenario stops at the first surprise"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use trainyard_e2e::cluster::{Api, Cluster, JobFile, Timing, WORKSPACE};
use trainyard_e2e::wait_until;

const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a create is retried that cannot succeed.
const HOPELESS_TIMEOUT: Duration = Duration::from_secs(8);
const STRACE_TIMEOUT: Duration = Duration::from_secs(30);
const CREATES: usize = 40;
const MAJORITY: usize = 2;

/// strace on a running scheduler. Detaches when dropped.
struct Tracer {
    strace: Child,
    log: PathBuf,
}

impl Tracer {
    /// Returns once every thread is traced.
    fn attach(folder: &Path, name: &str, scheduler: Pid, more: &[&str]) -> Self {
        let log = folder.join(format!("{name}.strace"));
        let said = folder.join(format!("{name}.attached"));
        let strace = Command::new("strace")
            .args(["-f", "-ttt", "-T", "-y", "-e", "trace=fsync,fdatasync"])
            .args(more)
            .arg("-o")
            .arg(&log)
            .args(["-p", &scheduler.to_string()])
            .stdin(Stdio::null())
            .stderr(fs::File::create(&said).unwrap())
            .spawn()
            .unwrap();
        wait_until("strace is attached", STRACE_TIMEOUT, || {
            let text = fs::read_to_string(&said).unwrap_or_default();
            Ok(text.contains("attached").then_some(()))
        })
        .unwrap();
        Self { strace, log }
    }

    /// Detaches, and returns when the successful syncs of the store returned, in seconds since 1970.
    fn finish(mut self) -> Vec<f64> {
        self.detach();
        let text = fs::read_to_string(&self.log).unwrap();
        let times: Vec<_> = text.lines().filter_map(sync_return).collect();
        assert!(!times.is_empty(), "no sync at all:\n{text}");
        times
    }

    fn detach(&mut self) {
        // It may have ended with the scheduler.
        let _ = kill(Pid::from_raw(self.strace.id() as i32), Signal::SIGINT);
        let _ = self.strace.wait();
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.detach();
    }
}

/// When a successful sync of the store's file returned, from a line such as
/// `17 1700000000.000001 fdatasync(9</data/db>) = 0 <0.000160>` or, cut in two by another thread,
/// `17 1700000000.000161 <... fdatasync resumed>) = 0 <0.000160>`.
fn sync_return(line: &str) -> Option<f64> {
    let (call, result) = line.rsplit_once(" = ")?;
    let (value, duration) = result.split_once(" <")?;
    if value != "0" {
        return None;
    }
    let duration: f64 = duration.trim_end_matches('>').parse().ok()?;
    let time: f64 = call.split_whitespace().nth(1)?.parse().ok()?;
    if call.contains("resumed") {
        Some(time)
    } else {
        call.contains("/db>").then_some(time + duration)
    }
}

#[test]
fn lines_of_strace_are_understood() {
    let plain = "17   1700000000.000001 fdatasync(9</x/data/db>) = 0 <0.5>";
    assert_eq!(sync_return(plain), Some(1_700_000_000.500_001));
    let cut = "17 1700000000.25 <... fdatasync resumed>) = 0 <0.5>";
    assert_eq!(sync_return(cut), Some(1_700_000_000.25));
    let failed =
        "17 1700000000.25 fdatasync(9</x/db>) = -1 EIO (Input/output error) (INJECTED) <0.5>";
    assert_eq!(sync_return(failed), None);
    assert_eq!(
        sync_return("17 1700000000.25 fdatasync(9</x/db> <unfinished ...>"),
        None
    );
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

fn park(cluster: &Cluster) {
    let parked = [
        "cluster", "create", "-w", WORKSPACE, "-n", "parked", "-t", "0",
    ];
    cluster.command(parked).unwrap();
}

#[test]
fn every_acknowledged_create_was_synced_by_a_majority_first() {
    let mut cluster = Cluster::builder().schedulers(3).start().unwrap();
    cluster.open_workspace(1).unwrap();
    park(&cluster);
    let folder = cluster.folder().to_owned();
    let mut tracers = BTreeMap::new();
    for (id, member) in cluster.schedulers() {
        let pid = member.daemon.pid().unwrap();
        tracers.insert(
            id,
            Tracer::attach(&folder, &format!("scheduler-{id}"), pid, &[]),
        );
    }
    let api = Api::new(cluster.client_config(), CALL_TIMEOUT).unwrap();
    let mut calls = Vec::new();
    for number in 0..CREATES {
        let sent = now();
        api.create_job(&format!("job-{number}"), "parked", "true")
            .unwrap();
        calls.push((sent, now()));
    }
    let syncs: Vec<_> = tracers.into_values().map(Tracer::finish).collect();
    for (sent, acknowledged) in calls {
        let synced = |times: &&Vec<f64>| {
            times
                .iter()
                .any(|time| (sent..=acknowledged).contains(time))
        };
        let members = syncs.iter().filter(synced).count();
        assert!(
            members >= MAJORITY,
            "only {members} members synced between {sent} and {acknowledged}:\n{syncs:#?}"
        );
    }
}

#[test]
fn nothing_is_acknowledged_while_a_majority_cannot_sync() {
    let mut cluster = Cluster::builder().schedulers(3).start().unwrap();
    cluster.open_workspace(1).unwrap();
    park(&cluster);
    let api = Api::new(cluster.client_config(), CALL_TIMEOUT).unwrap();
    api.create_job("before", "parked", "true").unwrap();
    let leader = cluster.leader().unwrap();
    let followers: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let folder = cluster.folder().to_owned();
    let broken = ["-e", "inject=fsync,fdatasync:error=EIO"];
    let mut tracers = Vec::new();
    for id in &followers {
        let pid = cluster.scheduler(*id).daemon.pid().unwrap();
        tracers.push(Tracer::attach(
            &folder,
            &format!("broken-{id}"),
            pid,
            &broken,
        ));
    }
    let hopeless = Api::new(cluster.client_config(), HOPELESS_TIMEOUT).unwrap();
    for name in ["during-1", "during-2"] {
        let answer = hopeless.create_job(name, "parked", "true");
        assert!(answer.is_err(), "{name} was acknowledged");
    }
    // A scheduler whose disk refused a sync cannot know what is on it: it must not go on as if nothing were.
    for (id, mut tracer) in followers.iter().zip(tracers) {
        tracer.detach();
        let daemon = &mut cluster.scheduler(*id).daemon;
        let status = daemon.wait(STRACE_TIMEOUT).unwrap();
        assert_eq!(status.code(), Some(1), "{}", daemon.log_tail());
        daemon.start().unwrap();
    }
    cluster.wait_ready().unwrap();
    api.create_job("after", "parked", "true").unwrap();
    let names = api.job_names().unwrap();
    for name in ["before", "after"] {
        assert!(
            names.contains(&name.to_owned()),
            "{name} is lost: {names:?}"
        );
    }
}

#[test]
fn a_create_waits_for_the_disks_and_not_only_for_the_network() {
    // Elections must not come in between while followers wait for their disks.
    let timing = Timing {
        tick_ms: 300,
        ..Timing::default()
    };
    let mut cluster = Cluster::builder()
        .schedulers(3)
        .timing(timing)
        .start()
        .unwrap();
    cluster.open_workspace(1).unwrap();
    park(&cluster);
    let api = Api::new(cluster.client_config(), CALL_TIMEOUT).unwrap();
    api.create_job("before", "parked", "true").unwrap();
    let leader = cluster.leader().unwrap();
    let folder = cluster.folder().to_owned();
    let slow = ["-e", "inject=fsync,fdatasync:delay_enter=700000"];
    let mut tracers = Vec::new();
    for id in (1..=3).filter(|id| *id != leader) {
        let pid = cluster.scheduler(id).daemon.pid().unwrap();
        tracers.push(Tracer::attach(&folder, &format!("slow-{id}"), pid, &slow));
    }
    let mut calls = Vec::new();
    for number in 0..3 {
        let sent = now();
        api.create_job(&format!("job-{number}"), "parked", "true")
            .unwrap();
        calls.push((sent, now()));
    }
    let syncs: Vec<_> = tracers.into_iter().map(Tracer::finish).collect();
    for (sent, acknowledged) in calls {
        let synced = |times: &Vec<f64>| {
            times
                .iter()
                .any(|time| (sent..=acknowledged).contains(time))
        };
        assert!(
            syncs.iter().any(synced),
            "no follower's disk was waited for between {sent} and {acknowledged}:\n{syncs:#?}"
        );
    }
}

#[test]
fn a_job_runs_once_though_every_scheduler_is_killed_right_after_the_acknowledgement() {
    let mut cluster = Cluster::builder().schedulers(3).start().unwrap();
    cluster.open_workspace(1).unwrap();
    let ran = cluster.open_folder("open").unwrap().join("ran");
    let job = JobFile::custom(&format!("echo once >>{}", ran.display()));
    cluster.submit("once", &job).unwrap();
    for id in 1..=3 {
        cluster.scheduler(id).daemon.kill().unwrap();
    }
    for id in 1..=3 {
        cluster.scheduler(id).daemon.start().unwrap();
    }
    assert_eq!(cluster.wait("once").unwrap(), 0);
    assert_eq!(fs::read_to_string(ran).unwrap(), "once\n");
}
