//! One attempt on this node, from its mounts to its clean-up.
//!
//! ```text
//! mount ─► directories ─► preparation ─► PREPARED ═barrier═► launch ─► RUNNING ─► EXITED ─┐
//!   └──────────┴──────────────┴─ a step fails ─────────────────┴──► FAILED ──────────────┤ STOP
//!                                                                                        ▼
//!                           CLEANED ◄─ remove ◄─ unmount ◄─ last bytes of the log ◄─ end tasks
//! ```
//!
//! A runner attends to one attempt until nothing is left of it but its logs. What it knows is on the disk
//! ([`crate::record`]), so that the next life of the agent resumes at the same step; tasks live on under their shims.
//! A runner never decides whether an attempt should exist: it is told so through its [`Goal`].

mod cleanup;
mod execute;
pub(crate) mod log;
pub mod mounts;
mod prepare;
pub(crate) mod problem;
mod runner;
mod tasks;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use trainyard_proto::v1::{Assignment, ObservedAttempt};

use crate::board::{AttemptFiles, Board};
use crate::confine::Confinement;
use crate::helper::Helper;
use crate::layout::{Dirs, Facts};
use crate::reconcile::AttemptKey;
use crate::record::{Progress, Status};
use crate::share::ShareProgram;
use mounts::ClusterMounts;

/// What all attempts of the node share.
#[derive(Debug)]
pub struct Host {
    /// Name of the node, without `nodes/`.
    pub node: String,
    /// The agent's directories.
    pub dirs: Dirs,
    /// What the node knows.
    pub facts: Facts,
    /// How tasks are kept together.
    pub confinement: Confinement,
    /// Changes at each boot.
    pub boot_id: String,
    /// Mounts, unmounts, removes.
    pub helper: Helper,
    /// Touches the directories of jobs.
    pub share: ShareProgram,
    /// Deadline of the lease, for the shims.
    pub lease_file: PathBuf,
    /// Where progress is shown.
    pub board: Board,
    /// Who uses which volume of a cluster.
    pub cluster_mounts: ClusterMounts,
}

/// What a runner is told.
#[derive(Debug, Clone)]
pub struct Goal {
    /// Newest form of the assignment.
    pub assignment: Arc<Assignment>,
    /// End whatever runs and clean up.
    pub stop: bool,
    /// The lease is over: kill the tasks at once.
    pub fence: bool,
}

/// A runner at work. Dropping it leaves the tasks running.
#[derive(Debug)]
pub struct Attempt {
    goal: watch::Sender<Goal>,
    runner: JoinHandle<()>,
}

impl Attempt {
    /// Begins an attempt (`found`: `None`) or resumes one. To be called within the runtime.
    #[must_use]
    pub fn begin(host: &Arc<Host>, assignment: Assignment, found: Option<Progress>) -> Attempt {
        let key = AttemptKey::of(&assignment);
        show(host, &assignment, found.as_ref(), true);
        mounts::register(host, &assignment);
        let goal = watch::Sender::new(Goal {
            assignment: Arc::new(assignment),
            stop: false,
            fence: false,
        });
        let runner = runner::Runner::new(Arc::clone(host), key, goal.subscribe(), found);
        Attempt {
            goal,
            runner: tokio::spawn(runner.run()),
        }
    }

    /// Hands over the newest form of the assignment.
    pub fn tell(&self, assignment: &Assignment) {
        self.goal.send_if_modified(|goal| {
            if *goal.assignment == *assignment {
                return false;
            }
            goal.assignment = Arc::new(assignment.clone());
            true
        });
    }

    /// Ends the attempt and cleans up.
    pub fn stop(&self) {
        self.goal
            .send_if_modified(|goal| !std::mem::replace(&mut goal.stop, true));
    }

    /// Kills the tasks at once; the attempt then waits for its end.
    pub fn fence(&self) {
        self.goal
            .send_if_modified(|goal| !std::mem::replace(&mut goal.fence, true));
    }

    /// Whether the runner is at its end: nothing is left to attend to.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.runner.is_finished()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.runner.abort();
    }
}

/// Puts an attempt on the board as its record has it.
pub fn show(host: &Host, assignment: &Assignment, found: Option<&Progress>, reported: bool) {
    let status = found.map_or_else(Status::default, |progress| progress.status.clone());
    let cleaned = found.is_some_and(|p| p.status.phase == cleaned_phase());
    let files = AttemptFiles {
        spool: host.dirs.spool_dir(&assignment.uid, assignment.attempt),
        directories: found.map(|p| p.directories.clone()).unwrap_or_default(),
        credentials: Some(user(host, assignment).credentials.clone()),
        closed: found
            .map(|p| p.closed_files.iter().cloned().collect())
            .unwrap_or_default(),
        alive: !cleaned,
    };
    let observed = ObservedAttempt {
        job: assignment.job.clone(),
        uid: assignment.uid.clone(),
        attempt: assignment.attempt,
        epoch: assignment.epoch,
        status: Some(status.to_proto()),
    };
    host.board.put(observed, reported, files);
}

/// The user of a job.
fn user<'a>(host: &'a Host, assignment: &Assignment) -> &'a crate::confine::TaskUser {
    // An attempt whose user this node does not allow fails before it touches anything.
    host.facts
        .user_of(assignment)
        .unwrap_or(&host.facts.task_user)
}

fn cleaned_phase() -> &'static str {
    trainyard_proto::v1::AttemptNodePhase::Cleaned.as_str_name()
}
