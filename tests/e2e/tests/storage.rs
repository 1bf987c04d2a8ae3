//! Volumes on an NFS server, mounted by the agent of a machine with a kernel of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a scenario stops at the first surprise"
)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use trainyard_e2e::cluster::{CLUSTER, Cluster, JobFile, WORKSPACE, in_experiment, text};
use trainyard_e2e::hosts::Ganesha;

const UML_TIMEOUT: Duration = Duration::from_secs(60);
const MACHINE: &str = "machine-1";
/// Where the volume of these tests appears to jobs.
const VOLUME: &str = "$AZ_BATCHAI_JOB_MOUNT_ROOT/data";

/// One machine, and an NFS server `nfs` on the host `storage`.
struct Storage {
    // First: what it mounted must go before the server does.
    cluster: Cluster,
    server: Ganesha,
    export: PathBuf,
}

impl Storage {
    fn start() -> Self {
        let builder = Cluster::builder().host("storage").nodes(0).machines(1);
        let cluster = builder.start().unwrap();
        let export = cluster.folder().join("export");
        fs::create_dir(&export).unwrap();
        fs::set_permissions(&export, Permissions::from_mode(0o777)).unwrap();
        let server = Ganesha::start(cluster.host("storage"), &export).unwrap();
        cluster.open_workspace(1).unwrap();
        let storage = Self {
            cluster,
            server,
            export,
        };
        storage.add_file_server("nfs", "/export");
        storage
    }

    fn add_file_server(&self, name: &str, export: &str) {
        let create = ["file-server", "create", "-w", WORKSPACE, "-n", name];
        let place = ["--address", "storage", "--export", export];
        self.cluster
            .command([&create[..], &place].concat())
            .unwrap();
    }

    /// A job that mounts a file server and logs there.
    fn job(server: &str, command: &str) -> JobFile {
        JobFile::custom(command)
            .log_below(&format!("{VOLUME}/logs"))
            .file_server(server, "data")
    }

    /// A job that needs no volume still runs, on the agent that was there all the time.
    fn check_node_works(&mut self, name: &str) {
        let plain = JobFile::custom("echo fine").log_below("$AZ_BATCHAI_JOB_TEMP");
        self.cluster.submit(name, &plain).unwrap();
        assert_eq!(self.cluster.wait(name).unwrap(), 0);
        assert_eq!(self.cluster.log(name, "stdout.txt").unwrap(), "fine\n");
        let log = self.cluster.machine(MACHINE).log_text();
        let starts = log.matches("trainyard-agent ready").count();
        assert_eq!(starts, 1, "the agent was started again:\n{log}");
        let node = self.cluster.show_node(MACHINE).unwrap();
        assert_eq!(text(&node, "/state"), "ready", "{node:#}");
    }

    fn mounts(&mut self) -> String {
        let uml = &mut self.cluster.machine(MACHINE).uml;
        uml.run("cat /proc/mounts", UML_TIMEOUT).unwrap()
    }
}

#[test]
fn a_job_reads_and_writes_a_volume_of_an_nfs_server() {
    let mut storage = Storage::start();
    fs::write(storage.export.join("input"), "from the server\n").unwrap();
    let command = format!(
        "cat {VOLUME}/input; grep ' nfs4 ' /proc/mounts; hostname >{VOLUME}/logs/result; echo to stderr >&2"
    );
    storage
        .cluster
        .submit("reads", &Storage::job("nfs", &command))
        .unwrap();
    assert_eq!(storage.cluster.wait("reads").unwrap(), 0);

    let log = storage.cluster.log("reads", "stdout.txt").unwrap();
    assert!(log.starts_with("from the server\n"), "{log}");
    assert!(
        log.contains("storage:/export") && log.contains("vers=4.1"),
        "{log}"
    );
    let result = fs::read_to_string(storage.export.join("logs/result")).unwrap();
    assert_eq!(result, format!("{MACHINE}\n"));

    // The server has the logs where Batch AI puts them.
    let job = storage.cluster.show("reads").unwrap();
    let segment = text(&job, "/jobOutputDirectoryPathSegment");
    let folder = storage.export.join("logs").join(segment).join("stdouterr");
    assert_eq!(fs::read_to_string(folder.join("stdout.txt")).unwrap(), log);
    assert_eq!(
        fs::read_to_string(folder.join("stderr.txt")).unwrap(),
        "to stderr\n"
    );
    let execution = fs::read_to_string(folder.join("execution.log")).unwrap();
    assert!(execution.contains("/export"), "{execution}");
    let mounts = storage.mounts();
    assert!(!mounts.contains("/export"), "still mounted:\n{mounts}");
    storage.check_node_works("after");
}

#[test]
fn a_mount_that_fails_says_which_and_why_and_the_node_takes_the_next_job() {
    let mut storage = Storage::start();
    storage.add_file_server("wrong", "/nothing/here");
    let job = Storage::job("wrong", "echo never");
    let followed = storage.cluster.submit_and_follow("fails", &job).unwrap();
    let done = followed.finish(UML_TIMEOUT).unwrap();
    assert_ne!(done.status, 0, "{done:#?}");
    check_mount_error(
        &storage.cluster,
        "fails",
        &["storage", "/nothing/here", "mount.nfs"],
    );
    let told = format!("{}{}", done.stdout, done.stderr);
    assert!(
        told.contains("/nothing/here"),
        "the user is not told: {told}"
    );
    storage.check_node_works("after");
}

#[test]
fn a_mount_that_hangs_fails_its_job_and_hangs_nothing_else() {
    let mut storage = Storage::start();
    storage.server.daemon().signal(Signal::SIGSTOP).unwrap();
    let job = Storage::job("nfs", "echo never");
    storage.cluster.submit("hangs", &job).unwrap();
    assert_ne!(storage.cluster.wait("hangs").unwrap(), 0);
    check_mount_error(&storage.cluster, "hangs", &["storage", "/export"]);
    storage.check_node_works("meanwhile");

    storage.server.daemon().signal(Signal::SIGCONT).unwrap();
    let job = Storage::job("nfs", "echo at last");
    storage.cluster.submit("later", &job).unwrap();
    assert_eq!(storage.cluster.wait("later").unwrap(), 0);
    assert_eq!(
        storage.cluster.log("later", "stdout.txt").unwrap(),
        "at last\n"
    );
}

/// Checks that a job failed by its mount, with the words a person needs, and as typed details for programs.
fn check_mount_error(cluster: &Cluster, name: &str, words: &[&str]) {
    let job = cluster.show(name).unwrap();
    assert_eq!(text(&job, "/executionState"), "failed", "{job:#}");
    let error = &job["executionInfo"]["errors"][0];
    assert_eq!(text(error, "/code"), "FileServerMountError", "{job:#}");
    let all = error.to_string();
    for word in words {
        assert!(all.contains(word), "'{word}' is missing: {error:#}");
    }
    let message = text(error, "/message");
    assert!(message.contains("storage"), "{message}");
    let details = error["details"].as_array().unwrap();
    let names: Vec<_> = details.iter().map(|detail| text(detail, "/name")).collect();
    assert!(
        names.contains(&"server") && names.contains(&"export"),
        "{error:#}"
    );
    let shown = cluster
        .command(in_experiment(&["job", "show"], &["-n", name]))
        .unwrap();
    assert!(shown.contains("FileServerMountError"), "{shown}");
}

#[test]
fn a_job_runs_again_on_a_machine_that_lost_its_power() {
    let builder = Cluster::builder().nodes(0).machines(1);
    let mut cluster = builder.start().unwrap();
    cluster.open_workspace(1).unwrap();
    let marks = cluster.open_folder("marks").unwrap();
    // The first attempt waits for ever; the second finds its mark and ends.
    let mark = marks.join("first");
    let job = JobFile::custom(&format!(
        "if [ -e {0} ]; then echo second; exit 0; fi; echo >{0}; sync {0}; echo first; exec sleep 1000",
        mark.display()
    ));
    let job = job.log_below("$AZ_BATCHAI_JOB_TEMP");
    cluster.submit("again", &job).unwrap();
    let mut log = cluster.follow("again").unwrap();
    log.wait_line("first").unwrap();

    let machine = cluster.machine(MACHINE);
    machine.uml.kill().unwrap();
    machine.uml.power_on().unwrap();
    machine.start_agent().unwrap();
    assert_eq!(cluster.wait("again").unwrap(), 0);
    assert_eq!(cluster.log("again", "stdout.txt").unwrap(), "second\n");
    let job = cluster.show("again").unwrap();
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(2), "{job:#}");
    let shown = cluster
        .json(vec!["cluster", "show", "-w", WORKSPACE, "-n", CLUSTER])
        .unwrap();
    assert_eq!(shown["currentNodeCount"], 1, "{shown:#}");
}
