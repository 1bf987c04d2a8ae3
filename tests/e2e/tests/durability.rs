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
        let times = sync_returns(&text);
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

/// When successful syncs of the store's file returned, from lines such as
/// `17 1700000000.000001 fdatasync(9</data/db>) = 0 <0.000160>` or, cut in two by another thread,
/// `17 1700000000.000001 fdatasync(9</data/db> <unfinished ...>` and
/// `17 1700000000.000161 <... fdatasync resumed>) = 0 <0.000160>`.
fn sync_returns(log: &str) -> Vec<f64> {
    // Per thread: whether its unfinished call is about the store's file.
    let mut unfinished = BTreeMap::new();
    let mut returns = Vec::new();
    for line in log.lines() {
        let mut words = line.split_whitespace();
        let (Some(thread), Some(time)) = (words.next(), words.next()) else {
            continue;
        };
        let Some((call, result)) = line.rsplit_once(" = ") else {
            unfinished.insert(thread, line.contains("/db>"));
            continue;
        };
        let (value, duration) = result.split_once('<').unwrap();
        let resumed = call.contains("resumed>");
        let of_store = match resumed {
            true => unfinished.remove(thread) == Some(true),
            false => call.contains("/db>"),
        };
        if of_store && value.split_whitespace().next() == Some("0") {
            let time: f64 = time.parse().unwrap();
            let duration: f64 = duration.trim_end_matches('>').parse().unwrap();
            returns.push(if resumed { time } else { time + duration });
        }
    }
    returns
}

#[test]
fn lines_of_strace_are_understood() {
    let log = "\
17   1000.25 fdatasync(9</x/data/db>) = 0 <0.5>
17   1001.25 fdatasync(9</x/data/db> <unfinished ...>
18   1002.25 fsync(7</x/data>) = 0 <0.5>
18   1003.25 fsync(7</x/data> <unfinished ...>
17   1004.25 <... fdatasync resumed>) = 0 (DELAYED) <3.0>
18   1005.25 <... fsync resumed>) = 0 <2.0>
17   1006.25 fdatasync(9</x/data/db>) = -1 EIO (Input/output error) (INJECTED) <0.5>
19   1007.25 +++ exited with 0 +++
";
    assert_eq!(sync_returns(log), [1000.75, 1004.25]);
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
