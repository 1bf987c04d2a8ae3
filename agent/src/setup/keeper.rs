//! Carries out what [`super::decide`] decides, one step after the other.
//!
//! Every wait ends when the order changes; starting the task does not, so that none is started that nobody knows of.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};
use trainyard_proto::v1::{NodeSetupOrder, NodeSetupPhase};

use super::decide::{Decision, decide};
use super::plan::{Plan, Run};
use super::record::{Progress, Record, problem};
use super::{Goal, mounts};
use crate::attempt::Host;
use crate::attempt::log::ExecutionLog;
use crate::clock;
use crate::layout::MountPoint;
use crate::reconcile::AttemptKey;
use crate::record::Problem;
use crate::share::Share;
use crate::shim::Handle;
use crate::volumes;

/// Pauses between tries of a mount that failed.
const MOUNT_RETRY_MIN: Duration = Duration::from_secs(5);
const MOUNT_RETRY_MAX: Duration = Duration::from_secs(60);
/// Pauses between tries of something that does not end: a busy mount, a process that hangs in the kernel.
pub(super) const CLEAN_RETRY_MIN: Duration = Duration::from_millis(200);
pub(super) const CLEAN_RETRY_MAX: Duration = Duration::from_secs(30);
/// Why a step did not end by itself.
pub(super) enum Interrupt {
    /// The order changed.
    Superseded,
    /// It failed.
    Failed(Box<Problem>),
}

impl From<Problem> for Interrupt {
    fn from(problem: Problem) -> Interrupt {
        Interrupt::Failed(Box::new(problem))
    }
}

pub(super) type Step<T> = Result<T, Interrupt>;

pub(super) struct Keeper {
    pub(super) host: Arc<Host>,
    goal: watch::Receiver<Goal>,
    pub(super) record: Option<Record>,
    log: Option<ExecutionLog>,
    /// The task that this life of the agent started or took over.
    pub(super) running: Option<Handle>,
    pub(super) share: Arc<Share>,
    mount_pause: Duration,
}

impl Keeper {
    pub(super) fn new(
        host: Arc<Host>,
        goal: watch::Receiver<Goal>,
        record: Option<Record>,
    ) -> Keeper {
        let credentials = host.facts.task_user.credentials.clone();
        let share = Arc::new(Share::new(host.share.clone(), credentials));
        let keeper = Keeper {
            host,
            goal,
            record,
            log: None,
            running: None,
            share,
            mount_pause: MOUNT_RETRY_MIN,
        };
        if let Some(record) = &keeper.record {
            keeper.register(&mounts(&keeper.host, record), &record.order);
        }
        keeper.show();
        keeper
    }

    pub(super) async fn run(mut self) {
        loop {
            let goal = self.goal.borrow_and_update().clone();
            let held = self.record.as_ref().map(Record::held);
            match decide(goal.wanted(), held.as_ref(), &self.host.boot_id) {
                Decision::Rest => {
                    if self.goal.changed().await.is_err() {
                        return;
                    }
                }
                Decision::Begin | Decision::Again => {
                    if let Goal::Order(order) = goal {
                        self.begin(&order).await;
                    }
                }
                Decision::Continue => {
                    let walked = self.walk().await;
                    self.conclude(walked).await;
                }
                Decision::RetryMounts => self.retry_mounts().await,
                Decision::Remove => self.remove().await,
            }
        }
    }

    /// Ends what an earlier order left running and notes the new one.
    async fn begin(&mut self, order: &NodeSetupOrder) {
        self.end_task().await;
        let mut run = 0;
        if let Some(old) = self.record.take() {
            run = old.progress.run;
            let wanted = Plan::new(&self.host, order, 1).map(|plan| plan.mounts);
            let wanted = wanted.unwrap_or_default();
            for mount in mounts(&self.host, &old).iter().rev() {
                if !wanted.contains(mount)
                    && let Err(error) = self.release(mount, &old.order).await
                {
                    warn!(target = %mount.target.display(), error, "an old volume stays");
                }
            }
            let _ = std::fs::remove_dir_all(Run::new(&self.host, run).dir());
        }
        info!(
            cluster = order.cluster,
            epoch = order.epoch,
            "setting the node up"
        );
        let mut progress = Progress {
            epoch: order.epoch,
            boot_id: self.host.boot_id.clone(),
            run: run + 1,
            ..Progress::default()
        };
        progress.set_phase(NodeSetupPhase::Preparing);
        let record = Record {
            order: order.clone(),
            progress,
        };
        self.mount_pause = MOUNT_RETRY_MIN;
        self.log = None;
        self.register(&mounts(&self.host, &record), order);
        let stored = record.store(&self.host.dirs.setup());
        self.record = Some(record);
        if let Err(error) = stored {
            // Without a record a restarted agent would do it again, which a setup task must bear anyway.
            warn!(%error, "the set-up cannot be recorded");
        }
        self.show();
    }

    fn register(&self, mounts: &[MountPoint], order: &NodeSetupOrder) {
        for mount in mounts {
            self.host
                .cluster_mounts
                .register(&mount.target, &key(order));
        }
    }

    async fn walk(&mut self) -> Step<()> {
        let Some(record) = &self.record else {
            return Ok(());
        };
        let order = record.order.clone();
        let (run, resumed) = (record.progress.run, record.progress.started);
        let plan = Plan::new(&self.host, &order, run)
            .map_err(|error| problem("NodeSetupFailed", self.on_node(&error.to_string()), []))?;
        self.open_log(&order, run);
        if plan.task.is_some() && !self.host.facts.root_user.credentials.is_root() {
            let message = format!(
                "a setup task runs as root, and the agent runs as `{}`; run the agent as root, or take the setup task out \
                 of the cluster",
                self.host.facts.root_user.name
            );
            return Err(self.task_failed(&message, None, String::new()).into());
        }
        if !resumed {
            self.mount(&plan.mounts).await?;
        }
        let Some(task) = plan.task else {
            return Ok(());
        };
        if !resumed {
            self.make_directories(&task).await?;
        }
        let (share, path) = (Arc::clone(&self.share), task.directory.path.clone());
        let begun = self
            .record
            .as_ref()
            .is_some_and(|r| r.progress.log_on_share);
        if let Some(log) = &mut self.log {
            log.publish(&share, &path, run, begun);
        }
        let end = self.run_task(&task, resumed).await?;
        self.judge(&task, end).await
    }

    async fn mount(&mut self, mounts: &[MountPoint]) -> Step<()> {
        for mount in mounts {
            let started = Instant::now();
            let what = format!("{} at {}", volumes::describe(mount), mount.target.display());
            let (host, point) = (Arc::clone(&self.host), mount.clone());
            let mounting = async move {
                let _turn = host.cluster_mounts.turn(&point.target).await;
                // As root, like the setup task: the volumes are the cluster's, not a job's.
                let user = &host.facts.root_user.credentials;
                volumes::mount(&host.helper, &point, user).await
            };
            match self.interruptible(mounting).await? {
                Ok(()) => self.line(&format!(
                    "mounted {what} in {} ms",
                    started.elapsed().as_millis()
                )),
                Err(error) => {
                    self.line(&format!("mounting {what} failed: {error}"));
                    let mut failed = problem(error.code(), self.on_node(&error.to_string()), []);
                    let details = error.details().into_iter().map(|d| (d.name, d.value));
                    failed.details = std::iter::once(("node".to_owned(), self.node_name()))
                        .chain(details)
                        .collect();
                    return Err(failed.into());
                }
            }
        }
        Ok(())
    }

    /// Notes how the walk ended.
    async fn conclude(&mut self, walked: Step<()>) {
        let failed = match walked {
            Ok(()) => None,
            Err(Interrupt::Failed(problem)) => Some(*problem),
            Err(Interrupt::Superseded) => return,
        };
        let phase = match &failed {
            None => {
                self.line("the node is set up");
                NodeSetupPhase::Ready
            }
            Some(problem) => {
                self.line(&format!("failed: {}: {}", problem.code, problem.message));
                warn!(
                    code = problem.code,
                    "the set-up failed: {}", problem.message
                );
                NodeSetupPhase::Failed
            }
        };
        self.close_log().await;
        let now = clock::wall();
        self.change(|progress| {
            progress.set_phase(phase);
            progress.errors = failed.into_iter().collect();
            progress.end_time = Some((now.seconds, now.nanos));
        });
        self.show();
    }

    /// Waits, then tries the mounts; the rest of the set-up follows when they work.
    async fn retry_mounts(&mut self) {
        let pause = self.mount_pause;
        if self.interruptible(tokio::time::sleep(pause)).await.is_err() {
            return;
        }
        self.mount_pause = (pause * 2).min(MOUNT_RETRY_MAX);
        let Some(record) = &self.record else { return };
        let (order, run) = (record.order.clone(), record.progress.run);
        let wanted = mounts(&self.host, record);
        self.open_log(&order, run);
        match self.mount(&wanted).await {
            Ok(()) => {
                self.change(|progress| {
                    progress.set_phase(NodeSetupPhase::Preparing);
                    progress.errors.clear();
                    progress.end_time = None;
                });
                self.show();
            }
            Err(Interrupt::Failed(problem)) => {
                self.change(|progress| progress.errors = vec![*problem]);
                self.show();
            }
            Err(Interrupt::Superseded) => {}
        }
    }

    /// Takes everything away; returns when nothing is left.
    async fn remove(&mut self) {
        self.change(|progress| progress.set_phase(NodeSetupPhase::Removing));
        self.show();
        self.end_task().await;
        self.close_log().await;
        self.log = None;
        let Some(record) = self.record.clone() else {
            return;
        };
        info!(
            cluster = record.order.cluster,
            "the node's set-up is taken away"
        );
        let mut pause = CLEAN_RETRY_MIN;
        for mount in mounts(&self.host, &record).iter().rev() {
            while let Err(error) = self.release(mount, &record.order).await {
                warn!(target = %mount.target.display(), error, "not unmounted yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(CLEAN_RETRY_MAX);
            }
        }
        // A working directory may hold much; the files of the record go last, so that an agent that dies goes on here.
        let run = Run::new(&self.host, record.progress.run);
        if let Err(error) = self.host.helper.remove_tree(run.dir()).await {
            warn!(%error, "files of the set-up stay");
        }
        if let Err(error) = self.host.helper.remove_tree(&self.host.dirs.setup()).await {
            warn!(%error, "files of the set-up stay");
        }
        self.record = None;
        self.show();
    }

    /// Unmounts a volume unless an attempt still uses it, which then unmounts it.
    async fn release(&self, mount: &MountPoint, order: &NodeSetupOrder) -> Result<(), String> {
        let mounts = &self.host.cluster_mounts;
        let _turn = mounts.turn(&mount.target).await;
        if !mounts.release(&mount.target, &key(order)) {
            return Ok(());
        }
        let unmounted = volumes::unmount(&self.host.helper, &mount.target).await;
        unmounted.map(drop).map_err(|error| error.to_string())
    }

    /// Ready when the order is no longer the one that is being carried out.
    pub(super) fn superseded(&self) -> impl Future<Output = ()> + use<> {
        let mut goal = self.goal.clone();
        let held = self.record.as_ref().map(Record::held);
        let boot_id = self.host.boot_id.clone();
        async move {
            let changed = goal
                .wait_for(|goal| {
                    let decision = decide(goal.wanted(), held.as_ref(), &boot_id);
                    matches!(
                        decision,
                        Decision::Begin | Decision::Again | Decision::Remove
                    )
                })
                .await
                .map(drop);
            if changed.is_err() {
                // The agent stops; the task goes on without it.
                std::future::pending::<()>().await;
            }
        }
    }

    pub(super) async fn interruptible<T>(&self, work: impl Future<Output = T>) -> Step<T> {
        tokio::select! {
            biased;
            () = self.superseded() => Err(Interrupt::Superseded),
            value = work => Ok(value),
        }
    }

    fn open_log(&mut self, order: &NodeSetupOrder, run: u32) {
        if self.log.is_some() {
            return;
        }
        let spool = Run::new(&self.host, run).spool();
        let name = format!("execution-{}.log", self.host.node);
        let mut log = ExecutionLog::open(&spool, name);
        log.line(&format!(
            "set-up of {} for {}, epoch {}, run {run}",
            self.node_name(),
            order.cluster,
            order.epoch
        ));
        self.log = Some(log);
    }

    /// Brings the last lines of the log to the share.
    async fn close_log(&mut self) {
        if let Some(log) = &mut self.log {
            if let Err(error) = log.finish().await {
                log.line(&format!("the log ends here on the share: {error}"));
            }
            let on_share = log.is_on_share();
            self.change(|progress| progress.log_on_share |= on_share);
        }
        self.share.rest().await;
    }

    pub(super) fn line(&mut self, text: &str) {
        if let Some(log) = &mut self.log {
            log.line(text);
        }
    }

    /// Changes the progress and stores it: what the scheduler is told is never forgotten.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Progress)) {
        let Some(record) = &mut self.record else {
            return;
        };
        change(&mut record.progress);
        if let Err(error) = record.store_progress(&self.host.dirs.setup()) {
            warn!(%error, "the set-up's progress cannot be stored");
        }
    }

    fn show(&self) {
        let observed = self.record.as_ref().map(Record::observed);
        self.host.board.set_setup(observed);
    }

    pub(super) fn node_name(&self) -> String {
        format!("nodes/{}", self.host.node)
    }

    pub(super) fn on_node(&self, message: &str) -> String {
        format!("{}: {message}", self.node_name())
    }
}

/// How the set-up counts among the users of a volume: attempts are numbered from 1.
fn key(order: &NodeSetupOrder) -> AttemptKey {
    AttemptKey {
        uid: order.cluster_uid.clone(),
        attempt: 0,
    }
}
