//! Jobs: create, terminate, delete; and what the end of an attempt means for its job.

use trainyard_proto::store::v1::{CreateJob, Delete, TerminateCause, TerminateJob};
use trainyard_proto::v1::{
    AttemptOutcome, AttemptPhase, ExecutionInfo, ExecutionState, Job, JobSpec, ProvisioningState,
    ResourceId,
};
use trainyard_shared::names::JobName;
use trainyard_shared::toolkit::Toolkit;
use trainyard_shared::validate::FieldViolation;

use super::{Applied, Context, check_etag, incomplete, parse};
use crate::attempt;
use crate::jobs::is_over;
use crate::outcome::{Change, Refusal, Reply};
use crate::resolve;
use crate::state::{State, is_ended};

impl State {
    pub(super) fn create_job(&mut self, context: &mut Context, command: &CreateJob) -> Applied {
        let wanted = command.job.as_ref().ok_or_else(|| incomplete("job"))?;
        let parsed = parse::<JobName>(&wanted.name)?;
        let name = parsed.to_string();
        let find = |s: &Self, n: &str| {
            s.jobs
                .get(n)
                .map(|j| (j.uid.clone(), Reply::Job(Box::new(j.into_owned()))))
        };
        if let Some(reply) = self.replay(&command.request_id, &name, find) {
            return reply;
        }
        let experiment = parsed.experiment().to_string();
        if !self.experiments.contains_key(&experiment) {
            return Err(Refusal::not_found(&experiment));
        }
        if self.jobs.contains(&name) {
            return Err(Refusal::already_exists(&name));
        }
        let (spec, tool_type) =
            self.resolve_spec(&parsed, wanted.spec.clone().unwrap_or_default())?;
        let job = Job {
            name: name.clone(),
            uid: wanted.uid.clone(),
            spec: Some(spec),
            creation_time: Some(context.now),
            provisioning_state: ProvisioningState::Succeeded.into(),
            execution_state: ExecutionState::Queued.into(),
            execution_state_transition_time: Some(context.now),
            job_output_directory_path_segment: format!("{name}/{}", wanted.uid),
            tool_type,
            etag: context.etag(),
            sequence: context.index,
            execution_info: None,
            attempts: Vec::new(),
            user: wanted.user.clone(),
            waiting_for: Vec::new(),
            retry_count: 0,
            array: None,
        };
        self.requests.remember(&command.request_id, &name, &job.uid);
        self.jobs.insert(job.clone());
        self.index_job(&name);
        context.changed(Change::Job(name));
        context.changed(Change::Placement);
        Ok(Reply::Job(Box::new(job)))
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
                if !self.clusters.contains_key(&cluster) {
                    violations.push(FieldViolation {
                        field: "cluster.id".to_owned(),
                        message: format!(
                            "{cluster} does not exist; trainyard cluster list shows what does"
                        ),
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
        let cause = command.cause();
        if let Some(job) = self.jobs.get_mut(&command.name)
            && terminate(job, cause, context)
        {
            self.job_changed(context, &command.name);
        }
        Ok(self
            .jobs
            .get(&command.name)
            .map_or(Reply::None, |job| Reply::Job(Box::new(job.into_owned()))))
    }

    pub(super) fn delete_job(&mut self, context: &mut Context, command: &Delete) -> Applied {
        let job = self
            .jobs
            .get(&command.name)
            .ok_or_else(|| Refusal::not_found(&command.name))?;
        check_etag(&command.name, &command.etag, &job.etag)?;
        self.jobs.edit(&command.name, |job| {
            job.set_provisioning_state(ProvisioningState::Deleting);
            terminate(job, TerminateCause::Requested, context);
        });
        self.job_changed(context, &command.name);
        Ok(Reply::None)
    }

    /// To be called after any change of a job or its latest attempt: concludes the job if the attempt has ended,
    /// brings the indexes up to date and tells whoever must know.
    pub(super) fn job_changed(&mut self, context: &mut Context, name: &str) {
        let changed = self.jobs.edit(name, |job| {
            conclude(job, context);
            job.etag = context.etag();
            let nodes: Vec<String> = job
                .attempts
                .last()
                .map(|a| a.nodes.iter().map(|n| n.node.clone()).collect())
                .unwrap_or_default();
            let gone = job.provisioning_state() == ProvisioningState::Deleting && is_over(job);
            (nodes, gone)
        });
        let Some((nodes, gone)) = changed else {
            return;
        };
        if gone {
            self.remove_job(name);
        } else {
            self.index_job(name);
        }
        context.changed(Change::Job(name.to_owned()));
        context.changed(Change::Placement);
        for node in nodes {
            context.changed(Change::Desired(node));
        }
    }
}

/// Ends a job on request. Returns whether anything changed.
fn terminate(job: &mut Job, cause: TerminateCause, context: &Context) -> bool {
    if is_ended(job.execution_state()) || job.execution_state() == ExecutionState::Terminating {
        return false;
    }
    let live = job
        .attempts
        .last_mut()
        .filter(|a| a.phase() != AttemptPhase::Ended);
    match live {
        Some(attempt) => {
            if !attempt::terminate(attempt, cause, &context.now) {
                return false;
            }
            set_state(job, ExecutionState::Terminating, context);
        }
        None => {
            let info = job.execution_info.get_or_insert_default();
            info.start_time = info.start_time.or(Some(context.now));
            info.end_time = Some(context.now);
            info.exit_code = None;
            info.errors = vec![attempt::terminated(cause)];
            set_state(job, ExecutionState::Failed, context);
        }
    }
    true
}

/// What the latest attempt means for the job: nothing while it runs; a result, or the queue again, once it ended.
fn conclude(job: &mut Job, context: &Context) {
    let Some(attempt) = job.attempts.last() else {
        return;
    };
    let (outcome, ended) = (attempt.outcome(), attempt.phase() == AttemptPhase::Ended);
    if outcome == AttemptOutcome::NodeLost && job.execution_state() == ExecutionState::Running {
        set_state(job, ExecutionState::Queued, context);
    }
    if !ended || is_ended(job.execution_state()) {
        return;
    }
    let state = match outcome {
        AttemptOutcome::Succeeded => ExecutionState::Succeeded,
        AttemptOutcome::Failed | AttemptOutcome::Terminated => ExecutionState::Failed,
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
