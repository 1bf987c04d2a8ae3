//! Jobs: create, terminate, delete; and what the end of an attempt means for its job.
//!
//! What becomes of a job when something happens to it, with its retry policy:
//!
//! | the job | what happens | the job then |
//! |---|---|---|
//! | runs | fails for a cause of `retryOn`, retries left | queued again once its nodes are clean, `retryCount` + 1 |
//! | runs | fails for another cause, or no retry left | `failed` with the error of the last attempt |
//! | runs | a node is lost, or leaves its cluster | queued again, `retryCount` as before, however often |
//! | is being ended after a failure | a node that had not ended is lost | as a lost node: `retryCount` as before |
//! | is being ended after a failure | terminate or delete | `failed` with `JobTerminated`, never retried |
//! | is queued again | terminate or delete | `failed` with `JobTerminated`, at once or when its nodes are clean |
//! | runs | `maxWallClockTime` is over | `failed`; queued again only if `retryOn` names `wallclock`. Measured anew |
//! | is being ended by wall clock | terminate or delete | `failed` with `JobTerminated`, never retried |
//! | is being ended by wall clock | a node is lost | as by wall clock |
//! | runs or waits | its cluster is deleted, or shrinks with `terminate` | `failed` with that code, never retried |
//! | has succeeded on every node, is being cleaned up | any of these | `succeeded` |

use std::collections::VecDeque;

use trainyard_proto::store::v1::{
    CreateJob, Delete, ReleaseCause, TerminateCause, TerminateJob, TerminateJobs,
};
use trainyard_proto::v1::{
    AttemptOutcome, AttemptPhase, BatchAiError, ExecutionInfo, ExecutionState, Job, JobSpec,
    ProvisioningState, ResourceId,
};
use trainyard_shared::names::{ExperimentName, JobName};
use trainyard_shared::toolkit::Toolkit;
use trainyard_shared::validate::FieldViolation;

use super::dependencies::Waits;
use super::{Applied, Context, Prepared, alive, check_etag, incomplete, parse};
use crate::jobs::is_over;
use crate::outcome::{Change, Refusal, Reply};
use crate::scale::is_deleting;
use crate::state::{State, cluster_of, is_ended};
use crate::{attempt, resolve, retry};

impl State {
    /// The checking half of [`State::create_job`]; changes nothing.
    pub(super) fn prepare_job(
        &self,
        context: &Context,
        command: &CreateJob,
    ) -> Result<Prepared<Job>, Refusal> {
        let wanted = command.job.as_ref().ok_or_else(|| incomplete("job"))?;
        let parsed = parse::<JobName>(&wanted.name)?;
        let name = parsed.to_string();
        let find = |s: &Self, n: &str| {
            s.jobs
                .get(n)
                .map(|j| (j.uid.clone(), Reply::Job(Box::new(j.into_owned()))))
        };
        if let Some(reply) = self.replay(&command.request_id, &name, find) {
            return reply.map(|made| Prepared::Made(Box::new(made)));
        }
        self.parent_experiment(&parsed.experiment())?;
        let spec = wanted.spec.clone().unwrap_or_default();
        let job = self.new_job(context, &parsed, wanted.uid.clone(), spec)?;
        self.admit_jobs(&job.name, 1)?;
        Ok(Prepared::New(Box::new(Job {
            user: wanted.user.clone(),
            ..job
        })))
    }

    pub(super) fn create_job(&mut self, context: &mut Context, command: &CreateJob) -> Applied {
        let job = match self.prepare_job(context, command)? {
            Prepared::Made(reply) => return Ok(*reply),
            Prepared::New(job) => job,
        };
        self.requests
            .remember(&command.request_id, &job.name, &job.uid);
        self.insert_job(context, (*job).clone());
        Ok(Reply::Job(job))
    }

    /// The experiment that is to hold a new job.
    pub(super) fn parent_experiment(&self, name: &ExperimentName) -> Result<(), Refusal> {
        let workspace = name.workspace();
        let name = name.to_string();
        let experiment = self
            .experiments
            .get(&name)
            .ok_or_else(|| Refusal::not_found(&name))?;
        self.parent_workspace(&workspace)?;
        alive(&name, experiment.provisioning_state())
    }

    /// A job as it is created, or why it cannot be. Its parents have been checked.
    pub(super) fn new_job(
        &self,
        context: &Context,
        parsed: &JobName,
        uid: String,
        spec: JobSpec,
    ) -> Result<Job, Refusal> {
        let name = parsed.to_string();
        if let Some(existing) = self.jobs.get(&name) {
            alive(&name, existing.provisioning_state())?;
            return Err(Refusal::already_exists(&name));
        }
        let (spec, tool_type) = self.resolve_spec(parsed, spec)?;
        let waits = self.wait_for(&spec.depends_on);
        let mut job = Job {
            job_output_directory_path_segment: format!("{name}/{uid}"),
            name,
            uid,
            spec: Some(spec),
            creation_time: Some(context.now),
            provisioning_state: ProvisioningState::Succeeded.into(),
            execution_state: ExecutionState::Queued.into(),
            execution_state_transition_time: Some(context.now),
            tool_type,
            etag: context.etag(),
            sequence: context.index,
            ..Job::default()
        };
        match waits {
            Waits::For(jobs) => job.waiting_for = jobs,
            Waits::InVain(error) => fail_unstarted(&mut job, error, context),
        }
        Ok(job)
    }

    pub(super) fn insert_job(&mut self, context: &mut Context, job: Job) {
        let name = job.name.clone();
        self.jobs.insert(job);
        self.index_job(&name);
        context.changed(Change::Job(name));
        context.changed(Change::Placement);
    }

    /// Fills in full names and checks everything that the job refers to.
    fn resolve_spec(
        &self,
        name: &JobName,
        mut spec: JobSpec,
    ) -> Result<(JobSpec, String), Refusal> {
        let job = name.to_string();
        let mut violations = Vec::new();
        let owner = name.workspace().to_string();
        let workspace = self
            .workspaces
            .get(&owner)
            .ok_or_else(|| Refusal::not_found(&owner))?;
        let id = spec.cluster.as_ref().map_or("", |c| c.id.as_str());
        match resolve::cluster_name(&name.workspace(), id) {
            Ok(cluster) => {
                let cluster = cluster.to_string();
                let problem = match self.clusters.get(&cluster) {
                    None => "does not exist; trainyard cluster list shows what does",
                    Some(c) if c.provisioning_state() == ProvisioningState::Deleting => {
                        "is being deleted; use another cluster"
                    }
                    Some(_) => "",
                };
                if !problem.is_empty() {
                    violations.push(FieldViolation {
                        field: "cluster.id".to_owned(),
                        message: format!("{cluster} {problem}"),
                    });
                }
                spec.cluster = Some(ResourceId { id: cluster });
            }
            Err(violation) => violations.push(violation),
        }
        if let Some(mounts) = spec.mount_volumes.as_ref()
            && let Err(more) = resolve::volumes(self, workspace, mounts, "mountVolumes")
        {
            violations.extend(more);
        }
        violations.extend(resolve::image(workspace, &spec));
        violations.extend(self.resolve_dependencies(name, &mut spec.depends_on));
        let tool_type = match Toolkit::of(&spec) {
            Ok(toolkit) => toolkit.tool_type().to_owned(),
            Err(error) => {
                violations.push(FieldViolation {
                    field: String::new(),
                    message: error.to_string(),
                });
                String::new()
            }
        };
        if violations.is_empty() {
            Ok((spec, tool_type))
        } else {
            Err(Refusal::invalid(&job, violations))
        }
    }

    pub(super) fn terminate_job(
        &mut self,
        context: &mut Context,
        command: &TerminateJob,
    ) -> Applied {
        let job = self
            .jobs
            .get(&command.name)
            .ok_or_else(|| Refusal::not_found(&command.name))?;
        if !command.uid.is_empty() && command.uid != job.uid {
            return Err(Refusal::not_found(&command.name));
        }
        self.end_job(context, &command.name, command.cause());
        Ok(self
            .jobs
            .get(&command.name)
            .map_or(Reply::None, |job| Reply::Job(Box::new(job.into_owned()))))
    }

    /// Ends those of the jobs that are still the ones that were meant.
    pub(super) fn terminate_jobs(
        &mut self,
        context: &mut Context,
        command: &TerminateJobs,
    ) -> Applied {
        let mut ended = 0;
        for meant in &command.jobs {
            let same = self
                .jobs
                .get(&meant.name)
                .is_some_and(|job| meant.uid.is_empty() || meant.uid == job.uid);
            if same && self.end_job(context, &meant.name, meant.cause()) {
                ended += 1;
            }
        }
        Ok(Reply::Count(ended))
    }

    pub(super) fn delete_job(&mut self, context: &mut Context, command: &Delete) -> Applied {
        let job = self
            .jobs
            .get(&command.name)
            .ok_or_else(|| Refusal::not_found(&command.name))?;
        if job.provisioning_state() == ProvisioningState::Deleting {
            return Ok(Reply::None);
        }
        check_etag(&command.name, &command.etag, &job.etag)?;
        self.begin_deleting_job(context, &command.name);
        Ok(Reply::None)
    }

    /// Terminates the job if it has not ended; it vanishes once its nodes are done with it.
    pub(super) fn begin_deleting_job(&mut self, context: &mut Context, name: &str) {
        let Some(job) = self.jobs.get_mut(name) else {
            // Nothing will happen to it any more.
            self.remove_job(name);
            context.changed(Change::Job(name.to_owned()));
            return;
        };
        job.set_provisioning_state(ProvisioningState::Deleting);
        if !self.end_job(context, name, TerminateCause::Requested) {
            self.job_changed(context, name);
        }
    }

    /// Ends a job for this cause. Returns whether anything changed.
    pub(super) fn end_job(
        &mut self,
        context: &mut Context,
        name: &str,
        cause: TerminateCause,
    ) -> bool {
        self.end_job_with(context, name, cause, attempt::terminated(cause))
    }

    /// As [`State::end_job`], with an error that says more.
    pub(super) fn end_job_with(
        &mut self,
        context: &mut Context,
        name: &str,
        cause: TerminateCause,
        error: BatchAiError,
    ) -> bool {
        let Some(job) = self.jobs.get_mut(name) else {
            return false;
        };
        let changed = terminate(job, cause, error, context);
        if changed {
            self.stop_waiting(name);
            self.job_changed(context, name);
        }
        changed
    }

    /// Takes a running job's nodes away because `node` leaves its cluster, and queues it again. Returns whether anything
    /// changed.
    pub(super) fn requeue_job(
        &mut self,
        context: &mut Context,
        name: &str,
        node: &str,
        cause: ReleaseCause,
    ) -> bool {
        let Some(attempt) = self
            .jobs
            .get_mut(name)
            .and_then(|job| job.attempts.last_mut())
        else {
            return false;
        };
        let changed = attempt::preempt(attempt, node, cause, &context.now);
        if changed {
            self.job_changed(context, name);
        }
        changed
    }

    /// To be called after any change of a job or its latest attempt: concludes the job if the attempt has ended,
    /// brings the indexes up to date, tells whoever must know, and goes on with the jobs that waited for it.
    pub(super) fn job_changed(&mut self, context: &mut Context, name: &str) {
        let mut changed = VecDeque::from([name.to_owned()]);
        while let Some(name) = changed.pop_front() {
            if let Some(state) = self.settle_job(context, &name) {
                changed.extend(self.release_dependents(context, &name, state));
            }
        }
    }

    /// The state of the job if it has ended.
    fn settle_job(&mut self, context: &mut Context, name: &str) -> Option<ExecutionState> {
        let (state, nodes, gone, cluster) = self.jobs.edit(name, |job| {
            conclude(job, context);
            job.etag = context.etag();
            let nodes: Vec<String> = job
                .attempts
                .last()
                .map(|a| a.nodes.iter().map(|n| n.node.clone()).collect())
                .unwrap_or_default();
            let gone = job.provisioning_state() == ProvisioningState::Deleting && is_over(job);
            let cluster = cluster_of(job).to_owned();
            (job.execution_state(), nodes, gone, cluster)
        })?;
        if gone {
            self.remove_job(name);
        } else {
            self.index_job(name);
        }
        context.changed(Change::Job(name.to_owned()));
        context.changed(Change::Placement);
        for node in nodes {
            self.node_use_changed(context, &node);
        }
        if self.clusters.get(&cluster).is_some_and(is_deleting) {
            self.settle_cluster(context, &cluster);
        }
        is_ended(state).then_some(state)
    }
}

/// Ends a job on request. Returns whether anything changed.
fn terminate(job: &mut Job, cause: TerminateCause, error: BatchAiError, context: &Context) -> bool {
    if is_ended(job.execution_state()) {
        return false;
    }
    let live = job
        .attempts
        .last_mut()
        .filter(|a| a.phase() != AttemptPhase::Ended);
    match live {
        Some(attempt) => {
            if !attempt::terminate(attempt, cause, error, &context.now) {
                return false;
            }
            set_state(job, ExecutionState::Terminating, context);
        }
        None => fail_unstarted(job, error, context),
    }
    true
}

/// Ends a job of which nothing runs.
pub(super) fn fail_unstarted(job: &mut Job, error: BatchAiError, context: &Context) {
    let info = job.execution_info.get_or_insert_default();
    info.start_time = info.start_time.or(Some(context.now));
    info.end_time = Some(context.now);
    info.exit_code = None;
    info.errors = vec![error];
    set_state(job, ExecutionState::Failed, context);
}

/// What the latest attempt means for the job: nothing while it runs; a result, or the queue again, once it ended.
fn conclude(job: &mut Job, context: &Context) {
    let Some(attempt) = job.attempts.last() else {
        return;
    };
    let (outcome, ended) = (attempt.outcome(), attempt.phase() == AttemptPhase::Ended);
    let queued_again = matches!(
        outcome,
        AttemptOutcome::NodeLost | AttemptOutcome::Preempted
    );
    if queued_again && job.execution_state() == ExecutionState::Running {
        set_state(job, ExecutionState::Queued, context);
    }
    if !ended || is_ended(job.execution_state()) {
        return;
    }
    let state = match outcome {
        AttemptOutcome::Succeeded => ExecutionState::Succeeded,
        AttemptOutcome::Failed | AttemptOutcome::Terminated => {
            // The attempt of a job that waits to run again has been looked at before.
            if job.execution_state() == ExecutionState::Queued {
                return;
            }
            if job
                .attempts
                .last()
                .is_some_and(|attempt| retry::is_due(job, attempt))
            {
                job.retry_count = job.retry_count.saturating_add(1);
                set_state(job, ExecutionState::Queued, context);
                return;
            }
            ExecutionState::Failed
        }
        AttemptOutcome::NodeLost | AttemptOutcome::Preempted | AttemptOutcome::Unspecified => {
            return;
        }
    };
    if let Some(attempt) = job.attempts.last() {
        job.execution_info = Some(ExecutionInfo {
            start_time: attempt.start_time,
            end_time: attempt.end_time,
            exit_code: attempt.exit_code,
            errors: attempt.errors.clone(),
        });
    }
    set_state(job, state, context);
}

pub(super) fn set_state(job: &mut Job, state: ExecutionState, context: &Context) {
    job.set_execution_state(state);
    job.execution_state_transition_time = Some(context.now);
}
