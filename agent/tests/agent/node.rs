//! A node for tests: a supervisor with everything behind it, told what to hold by the test in the scheduler's place.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot, watch};
use trainyard_agent::attempt::Host;
use trainyard_agent::attempt::mounts::ClusterMounts;
use trainyard_agent::board::Board;
use trainyard_agent::confine::{Confinement, TaskUser};
use trainyard_agent::exports::{self, Exports};
use trainyard_agent::helper::Helper;
use trainyard_agent::layout::{Dirs, Facts};
use trainyard_agent::lease::LeaseFile;
use trainyard_agent::reconcile::AttemptKey;
use trainyard_agent::session::Event;
use trainyard_agent::setup::{self, Setup};
use trainyard_agent::share::ShareProgram;
use trainyard_agent::supervisor::Supervisor;
use trainyard_agent::{inventory, record};
use trainyard_proto::v1::{
    Assignment, AttemptNode, AttemptNodePhase, AttemptNodeStatus, AttemptPhase,
    CustomToolkitSettings, Desired, JobPreparation, JobSpec, ObservedAttempt, OutputDirectory,
    Volume, volume,
};

/// This crate's program, for shims and helpers.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_trainyard-agent");
/// Longest that a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Directories that outlive agents.
pub(crate) struct Place {
    root: TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("share")).unwrap();
        Place { root }
    }

    /// The directory that jobs see at `$AZ_BATCHAI_MOUNT_ROOT/share`.
    pub(crate) fn share(&self) -> PathBuf {
        self.root.path().join("share")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    pub(crate) fn path(&self) -> &Path {
        self.root.path()
    }

    /// The stdouterr directory of [`Place::job`]'s jobs.
    pub(crate) fn stdouterr(&self) -> PathBuf {
        self.share().join("segment/stdouterr")
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.stdouterr().join(name)).unwrap_or_default()
    }

    /// A job of one node that runs a command.
    pub(crate) fn job(&self, command: &str) -> Assignment {
        self.job_on(&["n1"], command)
    }

    /// A job of some nodes; this one is the first.
    pub(crate) fn job_on(&self, nodes: &[&str], command: &str) -> Assignment {
        Assignment {
            job: "workspaces/w/experiments/e/jobs/j".to_owned(),
            uid: "11111111-2222-3333-4444-555555555555".to_owned(),
            attempt: 1,
            epoch: 10,
            phase: AttemptPhase::Run.into(),
            spec: Some(JobSpec {
                node_count: u32::try_from(nodes.len()).unwrap(),
                custom_toolkit_settings: Some(CustomToolkitSettings {
                    command_line: command.to_owned(),
                }),
                std_out_err_path_prefix: "$AZ_BATCHAI_MOUNT_ROOT/share".to_owned(),
                output_directories: vec![OutputDirectory {
                    id: "MODEL".to_owned(),
                    path_prefix: "$AZ_BATCHAI_MOUNT_ROOT/share".to_owned(),
                    path_suffix: "models".to_owned(),
                }],
                ..JobSpec::default()
            }),
            nodes: nodes
                .iter()
                .map(|node| AttemptNode {
                    node: format!("nodes/{node}"),
                    address: "127.0.0.1".to_owned(),
                    whole_node: true,
                    ..AttemptNode::default()
                })
                .collect(),
            path_segment: "segment".to_owned(),
            cluster: "workspaces/w/clusters/c".to_owned(),
            cluster_volumes: vec![Volume {
                relative_mount_path: "share".to_owned(),
                source: Some(volume::Source::HostPath(
                    self.share().to_string_lossy().into_owned(),
                )),
            }],
            stop_grace_ms: 2_000,
            ..Assignment::default()
        }
    }
}

/// Changes to an assignment, in one line.
pub(crate) trait Change: Sized {
    fn phase(self, phase: AttemptPhase) -> Self;
    fn preparing(self, command: &str) -> Self;
}

impl Change for Assignment {
    fn phase(mut self, phase: AttemptPhase) -> Assignment {
        self.phase = phase.into();
        self
    }

    fn preparing(mut self, command: &str) -> Assignment {
        self.spec.as_mut().unwrap().job_preparation = Some(JobPreparation {
            command_line: command.to_owned(),
        });
        self
    }
}

pub(crate) fn key(assignment: &Assignment) -> AttemptKey {
    AttemptKey::of(assignment)
}

/// What the attempts of one agent share.
pub(crate) fn host(place: &Place) -> Host {
    let dirs = Dirs::new(place.data());
    dirs.prepare().unwrap();
    // Tests may run as root: the job's user is the one who runs the test, unless a test says otherwise.
    let user = TaskUser::root_or_self().unwrap();
    Host {
        node: "n1".to_owned(),
        lease_file: dirs.lease_file(),
        facts: Facts {
            interface: None,
            task_user: user.clone(),
            further_users: Vec::new(),
            root_user: user,
            path: "/usr/local/bin:/usr/bin:/bin".to_owned(),
            default_python: "python3".to_owned(),
            rendezvous_port: 0,
        },
        dirs,
        confinement: Confinement::ProcessGroup,
        boot_id: inventory::boot_id(),
        helper: Helper::new(PathBuf::from(PROGRAM), Duration::from_secs(20)),
        share: ShareProgram {
            program: PathBuf::from(PROGRAM),
            deadline: Duration::from_secs(20),
        },
        board: Board::default(),
        cluster_mounts: ClusterMounts::default(),
    }
}

/// One life of an agent.
pub(crate) struct Agent {
    pub(crate) host: Arc<Host>,
    events: mpsc::Sender<Event>,
    deadline: watch::Sender<u64>,
    lease: LeaseFile,
    stop: Option<oneshot::Sender<()>>,
    run: tokio::task::JoinHandle<()>,
    revision: u64,
}

impl Agent {
    /// Starts an agent over what earlier ones left, with a lease that does not end.
    pub(crate) fn start(place: &Place) -> Agent {
        Agent::start_as(host(place), 1 << 30)
    }

    /// The same, on a particular host, keeping so many bytes of logs.
    pub(crate) fn start_as(host: Host, spool_keep_bytes: u64) -> Agent {
        let nothing = exports::Settings {
            program: None,
            bind: None,
            port: 2049,
            roots: Vec::new(),
        };
        Agent::start_with(host, spool_keep_bytes, nothing)
    }

    /// The same, allowed to export.
    pub(crate) fn start_with(
        host: Host,
        spool_keep_bytes: u64,
        settings: exports::Settings,
    ) -> Agent {
        let host = Arc::new(host);
        let scan = record::scan(&host.dirs).unwrap();
        assert!(scan.unreadable.is_empty(), "{:?}", scan.unreadable);
        let lease = LeaseFile::open(&host.lease_file).unwrap();
        lease.write(u64::MAX).unwrap();
        let deadline = watch::Sender::new(u64::MAX);
        let (events, receiver) = mpsc::channel(4);
        let (stop, stopped) = oneshot::channel();
        let supervisor = {
            let found = setup::record::read(&host.dirs.setup()).unwrap();
            let setup = Setup::start(&host, found);
            let exports = Exports::start(&host, settings);
            Supervisor::new(
                Arc::clone(&host),
                scan.found,
                spool_keep_bytes,
                setup,
                exports,
            )
        };
        let run = tokio::spawn(
            supervisor.run(receiver, deadline.subscribe(), || (), async move {
                let _ = stopped.await;
            }),
        );
        Agent {
            host,
            events,
            deadline,
            lease,
            stop: Some(stop),
            run,
            revision: 0,
        }
    }

    /// Sends a view.
    pub(crate) async fn desire(&mut self, assignments: &[&Assignment]) {
        self.see(Desired {
            assignments: assignments.iter().map(|&a| a.clone()).collect(),
            ..Desired::default()
        })
        .await;
    }

    /// Sends a view of any kind.
    pub(crate) async fn see(&mut self, view: Desired) {
        self.revision += 1;
        let desired = Desired {
            revision: self.revision,
            ..view
        };
        let event = Event::Desired(Box::new(desired));
        self.events.send(event).await.unwrap();
    }

    /// Lets the lease end now, for the agent and the shims.
    pub(crate) fn end_lease(&self) {
        self.lease.write(1).unwrap();
        self.deadline.send_replace(1);
    }

    /// Lets the lease end for the agent alone.
    pub(crate) fn end_lease_of_agent(&self) {
        self.deadline.send_replace(1);
    }

    pub(crate) fn observed(&self, key: &AttemptKey) -> Option<ObservedAttempt> {
        self.host
            .board
            .observed()
            .into_iter()
            .find(|observed| observed.uid == key.uid && observed.attempt == key.attempt)
    }

    /// Waits until the board says so.
    pub(crate) async fn until_board<T>(&self, probe: impl Fn(&Board) -> Option<T>) -> T {
        let mut changes = self.host.board.changes();
        let waiting = async {
            loop {
                changes.mark_unchanged();
                if let Some(found) = probe(&self.host.board) {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("never came about: {:#?}", self.host.board.view(0)),
        }
    }

    /// Waits for a phase and returns the status.
    pub(crate) async fn until(
        &self,
        assignment: &Assignment,
        phase: AttemptNodePhase,
    ) -> AttemptNodeStatus {
        let key = key(assignment);
        let mut changes = self.host.board.changes();
        let waiting = async {
            loop {
                changes.mark_unchanged();
                let status = self.observed(&key).and_then(|observed| observed.status);
                if let Some(status) = status
                    && status.phase() == phase
                {
                    return status;
                }
                changes.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(status) => status,
            Err(_) => panic!("not {phase:?} but {:?}", self.observed(&key)),
        }
    }

    /// Ends the attempt and waits until nothing is left of it.
    pub(crate) async fn finish(&mut self, assignment: &Assignment) -> AttemptNodeStatus {
        let stop = assignment.clone().phase(AttemptPhase::Stop);
        self.desire(&[&stop]).await;
        self.until(assignment, AttemptNodePhase::Cleaned).await
    }

    /// The agent is gone; its shims are not.
    pub(crate) async fn die(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        (&mut self.run).await.unwrap();
    }
}

/// Waits until a file holds something, without caring how long that takes.
pub(crate) async fn until_file(path: &Path, wanted: impl Fn(&str) -> bool) -> String {
    let waiting = async {
        loop {
            let text = fs::read_to_string(path).unwrap_or_default();
            if wanted(&text) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(text) => text,
        Err(_) => panic!("{} never held it", path.display()),
    }
}
