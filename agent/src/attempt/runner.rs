//! The walk through the steps of an attempt, up to its end; [`super::cleanup`] does the rest.
//!
//! Every wait can be interrupted by a goal to stop or to fence; starting a task cannot, so that no task is ever
//! started that the runner does not know of.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use trainyard_proto::v1::{Assignment, AttemptNodePhase};

use super::log::ExecutionLog;
use super::problem::{Problem, node_name};
use super::tasks::Tasks;
use super::{Goal, Host};
use crate::launch::{self, TaskPlan};
use crate::layout::Layout;
use crate::reconcile::AttemptKey;
use crate::record::{self, Progress};
use crate::share::Share;
use crate::shim::Leftover;

/// Why a step did not end by itself.
pub(super) enum Interrupt {
    /// The attempt shall end.
    Stop,
    /// The lease is over.
    Fence,
    /// The step failed.
    Failed(Box<Problem>),
}

impl From<Problem> for Interrupt {
    fn from(problem: Problem) -> Interrupt {
        Interrupt::Failed(Box::new(problem))
    }
}

pub(super) type Step<T> = Result<T, Interrupt>;

/// Attends to one attempt.
pub(super) struct Runner {
    pub(super) host: Arc<Host>,
    pub(super) key: AttemptKey,
    pub(super) goal: watch::Receiver<Goal>,
    pub(super) assignment: Arc<Assignment>,
    pub(super) progress: Progress,
    pub(super) resumed: bool,
    pub(super) log: ExecutionLog,
    pub(super) tasks: Tasks,
    pub(super) share: Arc<Share>,
    pub(super) layout: Option<Layout>,
    /// Processes of ended tasks that SIGKILL has not ended.
    pub(super) left: Vec<Leftover>,
    /// Keeps the port of the rendezvous from others until the launch.
    pub(super) held_port: Option<std::net::TcpListener>,
}

impl Runner {
    pub(super) fn new(
        host: Arc<Host>,
        key: AttemptKey,
        goal: watch::Receiver<Goal>,
        found: Option<Progress>,
    ) -> Runner {
        let assignment = Arc::clone(&goal.borrow().assignment);
        let credentials = super::user(&host, &assignment).credentials.clone();
        let share = Arc::new(Share::new(host.share.clone(), credentials));
        let spool = host.dirs.spool_dir(&key.uid, key.attempt);
        let log = ExecutionLog::open(&spool, log_name(&assignment));
        let resumed = found.is_some();
        let progress = found.unwrap_or_else(|| Progress {
            boot_id: host.boot_id.clone(),
            ..Progress::default()
        });
        Runner {
            host,
            key,
            goal,
            assignment,
            progress,
            resumed,
            log,
            tasks: Tasks::default(),
            share,
            layout: None,
            left: Vec::new(),
            held_port: None,
        }
    }

    /// The whole life of the attempt.
    pub(super) async fn run(mut self) {
        // What was only found to be ended takes no further step.
        let ended = self.goal.borrow().stop;
        let walked = if ended { Ok(()) } else { self.walk().await };
        match walked {
            Ok(()) => {}
            Err(Interrupt::Stop) => {}
            Err(Interrupt::Fence) => {
                self.tasks.kill();
                let why = "the node was cut off from the schedulers for longer than its lease, so it ended its tasks";
                let problem = Problem::node_lost(&self.assignment, why);
                self.fail(problem);
            }
            Err(Interrupt::Failed(problem)) => {
                self.fail(*problem);
                self.tasks.stop();
            }
        }
        self.held_port = None;
        self.until_stop().await;
        self.clean_up().await;
    }

    /// Waits for the order to end, and keeps the lease meanwhile.
    async fn until_stop(&mut self) {
        loop {
            {
                let goal = self.goal.borrow_and_update();
                if goal.stop {
                    return;
                }
                if goal.fence {
                    self.tasks.kill();
                }
            }
            if self.goal.changed().await.is_err() {
                // The agent stops; the attempt goes on without it.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn walk(&mut self) -> Step<()> {
        let dir = self.host.dirs.state_dir(&self.key.uid, self.key.attempt);
        if self.resumed {
            self.log.line("agent restarted; resuming");
            if self.progress.boot_id != self.host.boot_id {
                let why = "the host was restarted while the job ran";
                return Err(Problem::node_lost(&self.assignment, why).into());
            }
            let phase = self.progress.status.to_proto().phase();
            match phase {
                AttemptNodePhase::Exited | AttemptNodePhase::Failed => return Ok(()),
                _ => {}
            }
        } else {
            record::begin(&dir, &self.assignment)
                .map_err(|error| Problem::node(&self.assignment, "its state directory", &error))?;
            self.log.line(&format!(
                "attempt {} of {} on {}, epoch {}",
                self.key.attempt,
                self.assignment.job,
                node_name(&self.assignment),
                self.assignment.epoch
            ));
        }
        let layout = Layout::new(&self.host.dirs, &self.assignment, &self.host.facts)
            .map_err(|error| Problem::layout(&self.assignment, &error))?;
        self.layout = Some(layout.clone());
        let preparation = launch::preparation(&self.assignment, &layout);
        // What the toolkit will write is known early, so that readers can wait for it; whether it can be launched, and
        // the real port, are judged when it is due.
        let mut assumed = Assignment::clone(&self.assignment);
        assumed.rendezvous_port = assumed.rendezvous_port.max(1);
        let assumed = launch::plan(&assumed, &layout, &self.host.facts);
        let tasks = assumed.map(|plan| plan.tasks).unwrap_or_default();
        self.name_files(preparation.iter().chain(&tasks));
        if !self.progress.launched && !self.progress.prepared {
            self.set_phase(AttemptNodePhase::Preparing);
        }
        self.prepare(&layout, preparation).await?;
        self.barrier().await?;
        let names = self.launch(&layout).await?;
        self.collect(&names).await
    }

    /// Sets which files this node writes into the stdouterr directory: its log, then those of the tasks.
    pub(super) fn name_files<'p>(&mut self, tasks: impl Iterator<Item = &'p TaskPlan>) {
        let log = self.log.name().to_owned();
        self.progress.status.files = std::iter::once(log).chain(launch::files(tasks)).collect();
    }

    pub(super) fn fail(&mut self, problem: Problem) {
        self.log.line(&format!(
            "failed: {}: {}",
            problem.error.code, problem.error.message
        ));
        let status = &mut self.progress.status;
        if status.errors.is_empty() {
            status.failure_time = Some((problem.time.seconds, problem.time.nanos));
            status.exit_code = problem.exit_code;
        }
        status.errors.push((&problem.error).into());
        self.set_phase(AttemptNodePhase::Failed);
    }

    /// Stores the progress, then shows it: what the scheduler was told is never forgotten.
    pub(super) fn set_phase(&mut self, phase: AttemptNodePhase) {
        self.progress.status.phase = phase.as_str_name().to_owned();
        self.store();
        let status = self.progress.status.to_proto();
        self.host.board.set_status(&self.key, &status);
    }

    pub(super) fn store(&mut self) {
        self.progress.log_on_share |= self.log.is_on_share();
        let dir = self.host.dirs.state_dir(&self.key.uid, self.key.attempt);
        if let Err(error) = record::store(&dir, &self.progress) {
            tracing::warn!(dir = %dir.display(), %error, "progress cannot be stored");
        }
    }
}

/// Runs `work` unless the goal interrupts it.
pub(super) async fn interruptible<T>(
    goal: &mut watch::Receiver<Goal>,
    work: impl Future<Output = T>,
) -> Step<T> {
    let interrupted = async {
        let stop = goal
            .wait_for(|goal| goal.stop || goal.fence)
            .await
            .map(|goal| goal.stop);
        match stop {
            Ok(true) => Interrupt::Stop,
            Ok(false) => Interrupt::Fence,
            // The agent stops; the attempt goes on without it.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        interrupt = interrupted => Err(interrupt),
        value = work => Ok(value),
    }
}

/// Name of the execution log; as [`Layout::execution_log`], but also for a job that has no usable layout.
fn log_name(assignment: &Assignment) -> String {
    if assignment.nodes.len() > 1 {
        let node = node_name(assignment);
        let id = node.rsplit('/').next().unwrap_or(&node);
        format!("execution-{id}.log")
    } else {
        "execution.log".to_owned()
    }
}

/// How long something took, for the log.
pub(super) fn took(since: Instant) -> String {
    format!("{} ms", since.elapsed().as_millis())
}
