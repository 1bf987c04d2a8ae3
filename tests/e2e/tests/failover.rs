//! Three schedulers of which some die: jobs, logs and acknowledged work must not notice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a scenario stops at the first surprise"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use trainyard_e2e::Result;
use trainyard_e2e::cluster::{
    Api, CLUSTER, Cluster, Gate, JobFile, WORKSPACE, in_experiment, text,
};

const FOLLOW_TIMEOUT: Duration = Duration::from_secs(180);
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Lines that the job of these tests writes, most of them after the scheduler has gone.
const LINES: u32 = 400;

/// A job that writes numbered lines, waits at the gate in their midst, and ends with status 7.
fn counting_job(gate: &Gate) -> JobFile {
    let half = LINES / 2;
    JobFile::custom(&format!(
        "echo pid $$; i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; \
         [ $i -ne {half} ] || {}; [ $((i % 20)) -ne 0 ] || sleep 0.1; done; echo pid $$; exit 7",
        gate.wait_command()
    ))
}

/// Checks that all lines of [`counting_job`] are there once, in order, and that it was one process.
fn check_counted(log: &str) {
    let mut lines = log.lines();
    let first = lines.next().unwrap();
    assert!(first.starts_with("pid "), "{log}");
    for number in 1..=LINES {
        assert_eq!(lines.next(), Some(format!("line {number}").as_str()));
    }
    assert_eq!(lines.next(), Some(first), "another process wrote the end");
    assert_eq!(lines.next(), None);
}

fn server_flags(cluster: &Cluster, first: u64) -> Vec<String> {
    let mut members = cluster.members().to_vec();
    members.sort_by_key(|(id, _)| *id != first);
    let flags = members
        .iter()
        .map(|(_, address)| format!("--server={address}"));
    flags.collect()
}

/// Creates jobs one after another until told to stop, and returns the names of those that were acknowledged.
fn create_until(config: std::path::PathBuf, stop: Arc<AtomicBool>) -> Result<Vec<String>> {
    let api = Api::new(&config, CALL_TIMEOUT)?;
    let mut acknowledged = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let name = format!("parked-{}", acknowledged.len());
        let created = api.create_job(&name, "parked", "true");
        created.map_err(|status| trainyard_e2e::RigError::new(format!("{name}: {status}")))?;
        acknowledged.push(name);
    }
    Ok(acknowledged)
}

#[test]
fn a_killed_leader_is_noticed_by_no_job_no_log_and_no_acknowledged_create() {
    let mut cluster = Cluster::builder().schedulers(3).start().unwrap();
    cluster.open_workspace(1).unwrap();
    let parked = [
        "cluster", "create", "-w", WORKSPACE, "-n", "parked", "-t", "0",
    ];
    cluster.command(parked).unwrap();
    let open = cluster.open_folder("open").unwrap();
    let gate = Gate::new(&open, "gate").unwrap();
    cluster.submit("counting", &counting_job(&gate)).unwrap();

    // One reader through each member, so that one hangs on the leader itself and two on members that relay.
    let mut readers = Vec::new();
    for id in 1..=3 {
        let servers = server_flags(&cluster, id);
        let servers: Vec<_> = servers.iter().map(String::as_str).collect();
        let logs = in_experiment(&["job", "logs"], &["-n", "counting", "--follow"]);
        readers.push(cluster.background([logs, servers].concat()).unwrap());
    }
    let half = format!("line {}", LINES / 2);
    for reader in &mut readers {
        reader.wait_line(&half).unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let creator = {
        let (config, stop) = (cluster.client_config().to_owned(), Arc::clone(&stop));
        std::thread::spawn(move || create_until(config, stop))
    };

    let leader = cluster.leader().unwrap();
    cluster.scheduler(leader).daemon.kill().unwrap();
    gate.open().unwrap();
    assert_ne!(cluster.leader().unwrap(), leader);
    assert_eq!(cluster.wait("counting").unwrap(), 7);
    // Work goes on with two of three.
    cluster
        .submit("later", &JobFile::custom("echo later"))
        .unwrap();
    assert_eq!(cluster.wait("later").unwrap(), 0);
    stop.store(true, Ordering::Relaxed);
    let acknowledged = creator.join().unwrap().unwrap();

    for reader in readers {
        let done = reader.finish(FOLLOW_TIMEOUT).unwrap();
        assert_eq!(done.status, 0, "{done:#?}");
        check_counted(&done.stdout);
    }
    let job = cluster.show("counting").unwrap();
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1), "{job:#}");
    assert_eq!(job["executionInfo"]["exitCode"], 7);

    let api = Api::new(cluster.client_config(), CALL_TIMEOUT).unwrap();
    let present = api.job_names().unwrap();
    for name in &acknowledged {
        assert!(present.contains(name), "{name} is lost");
    }
    assert_eq!(
        present.len(),
        acknowledged.len() + 2,
        "nothing was made twice"
    );

    // The old leader comes back as one of three.
    cluster.scheduler(leader).daemon.start().unwrap();
    cluster.wait_ready().unwrap();
    cluster.wait_caught_up(leader).unwrap();
}

#[test]
fn a_follower_that_comes_back_counts_again() {
    let mut cluster = Cluster::builder().schedulers(3).start().unwrap();
    cluster.open_workspace(1).unwrap();
    let leader = cluster.leader().unwrap();
    let followers: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();

    cluster.scheduler(followers[0]).daemon.kill().unwrap();
    for number in 0..20 {
        let name = format!("without-{number}");
        cluster.submit(&name, &JobFile::custom("true")).unwrap();
    }
    cluster.scheduler(followers[0]).daemon.start().unwrap();
    cluster.wait_ready().unwrap();
    cluster.wait_caught_up(followers[0]).unwrap();

    // Only with it there is a majority now.
    cluster.scheduler(followers[1]).daemon.kill().unwrap();
    cluster
        .submit("with", &JobFile::custom("echo with"))
        .unwrap();
    assert_eq!(cluster.wait("with").unwrap(), 0);
    assert_eq!(cluster.job_names().unwrap().len(), 21);
}

#[test]
fn without_a_majority_nothing_is_acknowledged_and_the_command_says_why() {
    let mut cluster = Cluster::builder().schedulers(3).start().unwrap();
    cluster.open_workspace(1).unwrap();
    cluster.submit("before", &JobFile::custom("true")).unwrap();
    assert_eq!(cluster.wait("before").unwrap(), 0);
    let leader = cluster.leader().unwrap();
    let followers: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for id in &followers {
        cluster.scheduler(*id).daemon.kill().unwrap();
    }
    let refused = cluster.try_submit("during", &JobFile::custom("true"));
    refused.unwrap().refused(1, &["scheduler"]).unwrap();

    for id in &followers {
        cluster.scheduler(*id).daemon.start().unwrap();
    }
    cluster.wait_ready().unwrap();
    cluster.leader().unwrap();
    assert!(cluster.job_names().unwrap().contains(&"before".to_owned()));
    cluster.submit("after", &JobFile::custom("true")).unwrap();
    assert_eq!(cluster.wait("after").unwrap(), 0);
}

#[test]
fn a_job_outlives_all_schedulers() {
    let mut cluster = Cluster::builder().schedulers(3).start().unwrap();
    cluster.open_workspace(1).unwrap();
    let open = cluster.open_folder("open").unwrap();
    let gate = Gate::new(&open, "gate").unwrap();
    cluster.submit("counting", &counting_job(&gate)).unwrap();
    cluster
        .submit("next", &JobFile::custom("echo next"))
        .unwrap();
    let mut reader = cluster.follow("counting").unwrap();
    reader.wait_line(&format!("line {}", LINES / 2)).unwrap();

    for id in 1..=3 {
        cluster.scheduler(id).daemon.kill().unwrap();
    }
    for id in 1..=3 {
        cluster.scheduler(id).daemon.start().unwrap();
    }
    cluster.wait_ready().unwrap();
    cluster.leader().unwrap();
    let job = cluster.show("counting").unwrap();
    assert_eq!(text(&job, "/executionState"), "running", "{job:#}");
    gate.open().unwrap();

    assert_eq!(cluster.wait("counting").unwrap(), 7);
    assert_eq!(cluster.wait("next").unwrap(), 0);
    let done = reader.finish(FOLLOW_TIMEOUT).unwrap();
    check_counted(&done.stdout);
    let job = cluster.show("counting").unwrap();
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1), "{job:#}");
    let shown = cluster.json(vec!["cluster", "show", "-w", WORKSPACE, "-n", CLUSTER]);
    assert_eq!(shown.unwrap()["currentNodeCount"], 1);
}

#[test]
fn a_planned_stop_hands_leadership_over() {
    let mut cluster = Cluster::builder().schedulers(3).start().unwrap();
    cluster.open_workspace(1).unwrap();
    let leader = cluster.leader().unwrap();
    let daemon = &mut cluster.scheduler(leader).daemon;
    let status = daemon.terminate(Duration::from_secs(30)).unwrap();
    assert!(status.success(), "{status}");
    cluster.submit("after", &JobFile::custom("true")).unwrap();
    assert_eq!(cluster.wait("after").unwrap(), 0);
}
