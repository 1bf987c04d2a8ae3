//! The walk through the steps of an attempt, up to its end; [`super::cleanup`] does the rest.
//!
//! Every wait can be interrupted by a goal to stop or to fence; starting a task cannot, so that no task is ever
//! started that the runner does not know of.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;
use trainyard_proto::v1::{Assignment, AttemptNodePhase, AttemptPhase};

use super::log::ExecutionLog;
use super::problem::{Problem, node_name};
use super::tasks::{End, Tasks};
use super::{Goal, Host};
use crate::clock;
use crate::launch::{self, TaskPlan};
use crate::layout::Layout;
use crate::reconcile::AttemptKey;
use crate::record::{self, Directory, Progress};
use crate::share::{MakeDirectory, Share};
use crate::shim::{self, ExitReason, Leftover};
use crate::volumes;

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

/// Longest search for a free port.
const PORT_MAX: Duration = Duration::from_secs(10);

type Step<T> = Result<T, Interrupt>;

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
    held_port: Option<std::net::TcpListener>,
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
        let mut files = vec![self.log.name().to_owned()];
        let preparation = launch::preparation(&self.assignment, &layout);
        if let Some(plan) = &preparation {
            files.extend([plan.stdout.clone(), plan.stderr.clone()]);
        }
        // What the toolkit will write is known early, so that readers can wait for it; whether it can be launched is
        // judged when it is due.
        if let Ok(plan) = launch::plan(&self.assignment, &layout, &self.host.facts) {
            files.extend(launch::files(&plan));
        }
        self.progress.status.files = files;
        if !self.progress.launched && !self.progress.prepared {
            self.set_phase(AttemptNodePhase::Preparing);
        }
        self.prepare(&layout, preparation).await?;
        self.barrier().await?;
        let names = self.launch(&layout).await?;
        self.collect(&names).await
    }

    /// Mounts, directories, job preparation.
    async fn prepare(&mut self, layout: &Layout, preparation: Option<TaskPlan>) -> Step<()> {
        layout.make_local().map_err(|error| {
            Problem::node(&self.assignment, "the directories of the job", &error)
        })?;
        if !self.progress.prepared {
            self.mount(layout).await?;
            self.make_directories(layout).await?;
        }
        self.log.publish(
            &self.share,
            &layout.stdouterr_dir,
            self.key.attempt,
            self.progress.log_on_share,
        );
        if self.progress.prepared {
            return Ok(());
        }
        if let Some(plan) = preparation {
            let started = Instant::now();
            self.log.line("job preparation: started");
            self.start(layout, &plan).await?;
            let Some((name, end)) = self.interruptible_end().await? else {
                return Ok(());
            };
            let (exit_code, problem) = self.judge(&plan, &name, end).await;
            self.log.line(&format!(
                "job preparation: exited with status {exit_code} after {}",
                took(started)
            ));
            if let Some(problem) = problem {
                return Err(problem.into());
            }
        }
        self.progress.prepared = true;
        self.store();
        Ok(())
    }

    async fn mount(&mut self, layout: &Layout) -> Step<()> {
        let credentials = layout.user.credentials.clone();
        let cluster = layout.cluster_mounts(&self.assignment);
        let shared = cluster.len();
        let all = cluster
            .into_iter()
            .chain(layout.job_mounts(&self.assignment));
        for (position, mount) in all.enumerate() {
            let started = Instant::now();
            let host = Arc::clone(&self.host);
            let user = credentials.clone();
            let target = mount.target.clone();
            let mounting = async move {
                let turn = match position < shared {
                    true => Some(host.cluster_mounts.turn(&mount.target).await),
                    false => None,
                };
                let mounted = volumes::mount(&host.helper, &mount, &user).await;
                drop(turn);
                mounted
            };
            match interruptible(&mut self.goal, mounting).await? {
                Ok(()) => self.log.line(&format!(
                    "mounted {} in {}",
                    target.display(),
                    took(started)
                )),
                Err(error) => {
                    self.log.line(&format!(
                        "mounting {} failed after {}: {error}",
                        target.display(),
                        took(started)
                    ));
                    return Err(Problem::mount(&self.assignment, &error).into());
                }
            }
        }
        Ok(())
    }

    async fn make_directories(&mut self, layout: &Layout) -> Step<()> {
        let started = Instant::now();
        let wanted = layout
            .share_directories()
            .into_iter()
            .map(|request| MakeDirectory {
                path: request.path,
                below: request.below,
            })
            .collect();
        let share = Arc::clone(&self.share);
        let making = async move { share.make_directories(wanted).await };
        if let Err(error) = interruptible(&mut self.goal, making).await? {
            self.log
                .line(&format!("making directories failed: {error}"));
            return Err(Problem::directory(&self.assignment, &error).into());
        }
        self.log.line(&format!(
            "made {} and {} output directories in {}",
            layout.stdouterr_dir.display(),
            layout.outputs.len(),
            took(started)
        ));
        self.progress.directories = directories(&self.assignment, layout);
        self.store();
        let directories = self.progress.directories.clone();
        self.host
            .board
            .set_files(&self.key, |files| files.directories = directories);
        Ok(())
    }

    /// Reports that this node is prepared and waits until all are.
    async fn barrier(&mut self) -> Step<()> {
        let master = self.assignment.node_index == 0;
        if master && !self.progress.launched && launch::needs_port(&self.assignment) {
            // Also for an attempt of one node, whose ranks may be several.
            self.hold_port().await?;
        }
        let told = self.goal.borrow().assignment.phase();
        if told != AttemptPhase::Run && !self.progress.launched {
            self.set_phase(AttemptNodePhase::Prepared);
            self.log.line("prepared; waiting for the other nodes");
        }
        let started = Instant::now();
        loop {
            let assignment = Arc::clone(&self.goal.borrow_and_update().assignment);
            if assignment.phase() == AttemptPhase::Run {
                self.assignment = assignment;
                break;
            }
            let mut goal = self.goal.clone();
            let changed = async move { goal.changed().await };
            if interruptible(&mut self.goal, changed).await?.is_err() {
                std::future::pending::<()>().await;
            }
        }
        if told != AttemptPhase::Run {
            self.log
                .line(&format!("all nodes prepared after {}", took(started)));
        }
        Ok(())
    }

    /// Finds a port that is free and keeps it until the launch.
    async fn hold_port(&mut self) -> Step<()> {
        let address = usize::try_from(self.assignment.node_index)
            .ok()
            .and_then(|index| self.assignment.nodes.get(index))
            .map_or_else(String::new, |node| node.address.clone());
        // After a restart of the agent it is the port that was reported before, if nobody took it meanwhile.
        let before = u16::try_from(self.progress.status.rendezvous_port).unwrap_or_default();
        // The address may be a name, and resolving one can take long.
        let finding = tokio::task::spawn_blocking(move || {
            if before == 0 {
                return launch::free_port(&address).map(|(port, held)| (port, Some(held)));
            }
            let held = std::net::TcpListener::bind((address.as_str(), before)).ok();
            Ok((before, held))
        });
        let found = interruptible(&mut self.goal, timeout(PORT_MAX, finding)).await?;
        match found {
            Ok(Ok(Ok((port, held)))) => {
                self.progress.status.rendezvous_port = u32::from(port);
                self.held_port = held;
                Ok(())
            }
            Ok(Ok(Err(error))) => Err(self.no_port(&error)),
            Ok(Err(error)) => Err(self.no_port(&std::io::Error::other(error))),
            Err(_) => Err(self.no_port(&std::io::Error::from(std::io::ErrorKind::TimedOut))),
        }
    }

    fn no_port(&self, error: &std::io::Error) -> Interrupt {
        Problem::node(
            &self.assignment,
            "no port for the rendezvous of the ranks",
            error,
        )
        .into()
    }

    /// Starts the tasks of this node, or finds them running. Returns their plans.
    async fn launch(&mut self, layout: &Layout) -> Step<Vec<TaskPlan>> {
        let mut facts = self.host.facts.clone();
        facts.default_python = launch::default_python(&facts.path);
        facts.rendezvous_port =
            u16::try_from(self.progress.status.rendezvous_port).unwrap_or_default();
        let plan = launch::plan(&self.assignment, layout, &facts)
            .map_err(|error| Problem::plan(&self.assignment, &error))?;
        if !self.progress.launched {
            let (helper, preflight) = (self.host.helper.clone(), plan.preflight.clone());
            let credentials = layout.user.credentials.clone();
            let checking = async move { helper.preflight(&preflight, &credentials).await };
            if let Err(error) = interruptible(&mut self.goal, checking).await? {
                self.log.line(&format!("launch refused: {error}"));
                return Err(Problem::launch(&self.assignment, error.to_string()).into());
            }
            self.progress.launched = true;
            self.store();
        }
        self.held_port = None;
        let started = Instant::now();
        for task in &plan.tasks {
            self.start(layout, task).await?;
        }
        if !plan.tasks.is_empty() {
            self.set_phase(AttemptNodePhase::Running);
            let names: Vec<&str> = plan.tasks.iter().map(|task| task.name.as_str()).collect();
            self.log.line(&format!(
                "launched {} in {}",
                names.join(", "),
                took(started)
            ));
        }
        Ok(plan.tasks)
    }

    /// Starts one task, unless an earlier life of the agent did.
    async fn start(&mut self, layout: &Layout, plan: &TaskPlan) -> Step<()> {
        let dir = layout.task_dir(&plan.name);
        if self.resumed && dir.exists() {
            let adopted = shim::adopt(&dir).await.map_err(|error| {
                Problem::launch(&self.assignment, format!("task {}: {error}", plan.name))
            })?;
            if self.tasks.adopt(&plan.name, adopted) {
                self.log
                    .line(&format!("task {}: taken over again", plan.name));
                return Ok(());
            }
            std::fs::remove_dir_all(&dir)
                .map_err(|error| Problem::node(&self.assignment, "the state of a task", &error))?;
        }
        let options = launch::SpecOptions {
            lease_file: Some(self.host.lease_file.clone()),
            stop_grace_ms: self.assignment.stop_grace_ms,
        };
        let spec = plan.spec(layout, &self.host.confinement, &options);
        match shim::spawn(self.host.helper.program(), &spec).await {
            Ok(handle) => {
                self.tasks.add(&plan.name, handle);
                Ok(())
            }
            Err(error) => {
                self.log
                    .line(&format!("task {} cannot be started: {error}", plan.name));
                let message = format!("task {}: {error}", plan.name);
                Err(Problem::launch(&self.assignment, message).into())
            }
        }
    }

    /// Waits for the tasks. The first that fails ends the others and is the cause.
    async fn collect(&mut self, plans: &[TaskPlan]) -> Step<()> {
        let mut ended = VecDeque::new();
        while let Some((name, end)) = self.interruptible_end().await? {
            let Some(plan) = plans.iter().find(|plan| plan.name == name) else {
                continue;
            };
            let (exit_code, problem) = self.judge(plan, &name, end).await;
            self.log
                .line(&format!("task {name} exited with status {exit_code}"));
            if let Some(problem) = problem {
                if self.tasks.len() > 0 {
                    self.log.line("ending the other tasks of this node");
                    return Err(problem.into());
                }
                return self.exited(exit_code, Some(problem));
            }
            ended.push_back(name);
        }
        self.exited(0, None)
    }

    fn exited(&mut self, exit_code: i32, problem: Option<Problem>) -> Step<()> {
        match problem {
            // Not the task's own doing: no exit status of the job.
            Some(problem) if problem.exit_code.is_none() => return Err(problem.into()),
            Some(problem) => {
                self.progress.status.errors = vec![(&problem.error).into()];
                self.progress.status.failure_time =
                    Some((problem.time.seconds, problem.time.nanos));
            }
            None => {}
        }
        self.progress.status.exit_code = Some(exit_code);
        self.set_phase(AttemptNodePhase::Exited);
        Ok(())
    }

    /// The next end of a task; interruptible.
    async fn interruptible_end(&mut self) -> Step<Option<(String, End)>> {
        let tasks = &mut self.tasks;
        interruptible(&mut self.goal, tasks.next()).await
    }

    /// What an end means: the exit status, and the problem unless it was 0.
    pub(super) async fn judge(
        &mut self,
        plan: &TaskPlan,
        name: &str,
        end: End,
    ) -> (i32, Option<Problem>) {
        self.close_files(plan, &end).await;
        let record = match end {
            Ok(record) => record,
            Err(lost) => {
                return (-1, Some(Problem::task_lost(&self.assignment, name, &lost)));
            }
        };
        self.left.extend(&record.leftover);
        let time = millis(record.time_ms);
        let problem = match record.reason {
            ExitReason::Lease => Some(Problem::node_lost(
                &self.assignment,
                "the node was cut off from the schedulers for longer than its lease, so its tasks ended",
            )),
            ExitReason::NotStarted => Some(Problem::launch(
                &self.assignment,
                format!("task {name}: {}", record.message),
            )),
            ExitReason::Exited | ExitReason::Stopped | ExitReason::Killed => {
                (record.exit_code != 0).then(|| {
                    if self.progress.prepared {
                        Problem::job_failed(
                            &self.assignment,
                            name,
                            &plan.stderr,
                            record.exit_code,
                            time,
                        )
                    } else {
                        Problem::preparation_failed(
                            &self.assignment,
                            &plan.stderr,
                            record.exit_code,
                            time,
                        )
                    }
                })
            }
        };
        (record.exit_code, problem)
    }

    /// Tells the readers of a task's files that nothing more comes, and brings to the share what its shim could not.
    async fn close_files(&mut self, plan: &TaskPlan, end: &End) {
        let names = [&plan.stdout, &plan.stderr];
        for name in names {
            if !self.progress.closed_files.contains(name) {
                self.progress.closed_files.push(name.clone());
            }
        }
        self.host.board.set_files(&self.key, |files| {
            files.closed.extend(names.into_iter().cloned());
        });
        let missing = match end {
            Ok(record) => record.share_error.clone(),
            Err(_) => Some("the task's supervisor is gone".to_owned()),
        };
        let (Some(missing), Some(layout)) = (missing, &self.layout) else {
            return;
        };
        self.log.line(&format!(
            "task {}: output on the share: {missing}",
            plan.name
        ));
        for name in names {
            let (from, to) = (layout.spool(name), layout.stdouterr_dir.join(name));
            if let Err(error) = self.share.copy(&from, &to, None).await {
                self.log
                    .line(&format!("{name} stays incomplete on the share: {error}"));
                // A share that hangs would cost the deadline for each file.
                return;
            }
        }
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

fn took(since: Instant) -> String {
    format!("{} ms", since.elapsed().as_millis())
}

fn millis(time_ms: u64) -> prost_types::Timestamp {
    clock::wall_at(std::time::UNIX_EPOCH + std::time::Duration::from_millis(time_ms))
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

/// Where the output directories lie, and where they can still be found once the mounts are gone.
fn directories(assignment: &Assignment, layout: &Layout) -> Vec<Directory> {
    let mounts: Vec<_> = layout
        .cluster_mounts(assignment)
        .into_iter()
        .chain(layout.job_mounts(assignment))
        .collect();
    let stdouterr = std::iter::once(("stdouterr", &layout.stdouterr_dir));
    let outputs = layout.outputs.iter().map(|o| (o.id.as_str(), &o.path));
    stdouterr
        .chain(outputs)
        .map(|(id, path)| {
            let mount = mounts
                .iter()
                .filter(|mount| path.starts_with(&mount.target))
                .max_by_key(|mount| mount.target.as_os_str().len());
            let lasting = match mount {
                Some(mount) => match (&mount.volume.source, path.strip_prefix(&mount.target)) {
                    (Some(trainyard_proto::v1::volume::Source::HostPath(host)), Ok(rest)) => {
                        Some(std::path::Path::new(host).join(rest))
                    }
                    _ => None,
                },
                None if path.starts_with(&layout.job_root) => None,
                None => Some(path.clone()),
            };
            Directory {
                id: id.to_owned(),
                path: path.clone(),
                lasting,
            }
        })
        .collect()
}
