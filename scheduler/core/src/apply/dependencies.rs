//! Job chains: what a job waits for, and what the end of that means for it.
//!
//! A job counts by how it ended, also when it is deleted or removed afterwards: whoever waited has been told by then.
//! A name in `waiting_for` is therefore always that of a job that has not ended, never of a later one of the same name.

use std::collections::BTreeSet;

use trainyard_proto::v1::{
    BatchAiError, DependencyCondition, ExecutionState, JobDependency, ResourceId,
};
use trainyard_shared::names::JobName;
use trainyard_shared::validate::FieldViolation;

use super::Context;
use super::jobs::fail_unstarted;
use crate::attempt;
use crate::state::{State, is_ended};

/// What a new job waits for.
pub(super) enum Waits {
    /// These jobs; none: it can start.
    For(Vec<String>),
    /// One of them has failed already.
    InVain(BatchAiError),
}

impl State {
    /// Fills in full names and checks that the jobs exist.
    pub(super) fn resolve_dependencies(
        &self,
        job: &JobName,
        dependencies: &mut [JobDependency],
    ) -> Vec<FieldViolation> {
        let mut violations = Vec::new();
        let mut seen = BTreeSet::new();
        for (i, dependency) in dependencies.iter_mut().enumerate() {
            let id = dependency.job.as_ref().map_or("", |r| r.id.as_str());
            let checked = dependency_name(job, id).and_then(|name| {
                if !self.jobs.contains(&name) {
                    Err(format!(
                        "{name} does not exist; create it first, trainyard job list shows what does"
                    ))
                } else if !seen.insert(name.clone()) {
                    Err(format!("{name} is named twice; name it once"))
                } else {
                    Ok(name)
                }
            });
            match checked {
                Ok(name) => dependency.job = Some(ResourceId { id: name }),
                Err(message) => violations.push(FieldViolation {
                    field: format!("dependsOn[{i}].job.id"),
                    message,
                }),
            }
        }
        violations
    }

    /// What is left to wait for of dependencies with full names.
    pub(super) fn wait_for(&self, dependencies: &[JobDependency]) -> Waits {
        let mut waiting = Vec::new();
        for dependency in dependencies {
            let name = dependency.job.as_ref().map_or("", |r| r.id.as_str());
            let Some(job) = self.jobs.get(name) else {
                continue;
            };
            if !is_ended(job.execution_state()) {
                waiting.push(name.to_owned());
            } else if fails(dependency, job.execution_state()) {
                return Waits::InVain(attempt::dependency_failed(name));
            }
        }
        Waits::For(waiting)
    }

    /// Tells the jobs that wait for `name` that it has ended. Returns those that changed.
    pub(super) fn release_dependents(
        &mut self,
        context: &Context,
        name: &str,
        state: ExecutionState,
    ) -> BTreeSet<String> {
        let waiting = self.indexes.dependents.remove(name).unwrap_or_default();
        for dependent in &waiting {
            let Some(job) = self.jobs.get_mut(dependent) else {
                continue;
            };
            job.waiting_for.retain(|other| other != name);
            let in_vain = job.spec.as_ref().is_some_and(|spec| {
                spec.depends_on
                    .iter()
                    .any(|d| d.job.as_ref().is_some_and(|r| r.id == name) && fails(d, state))
            });
            if in_vain {
                fail_unstarted(job, attempt::dependency_failed(name), context);
                self.stop_waiting(dependent);
            }
        }
        waiting
    }

    /// A job that has ended waits for nothing any more.
    pub(super) fn stop_waiting(&mut self, name: &str) {
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        for dependency in std::mem::take(&mut job.waiting_for) {
            if let Some(waiting) = self.indexes.dependents.get_mut(&dependency) {
                waiting.remove(name);
                if waiting.is_empty() {
                    self.indexes.dependents.remove(&dependency);
                }
            }
        }
    }
}

/// Whether a dependency that ended like this fails the job.
fn fails(dependency: &JobDependency, state: ExecutionState) -> bool {
    dependency.condition() != DependencyCondition::End && state != ExecutionState::Succeeded
}

/// Full name of a job that `job` names: of its own experiment, or of another of its workspace.
fn dependency_name(job: &JobName, id: &str) -> Result<String, String> {
    if id.contains('/') {
        let name: JobName = id
            .parse()
            .map_err(|error: <JobName as std::str::FromStr>::Err| error.to_string())?;
        if name.workspace() != job.workspace() {
            return Err(format!(
                "{name} is in another workspace; a job can wait for jobs of its own workspace only"
            ));
        }
        Ok(name.to_string())
    } else {
        JobName::new(&job.experiment(), id)
            .map(|name| name.to_string())
            .map_err(|error| error.to_string())
    }
}
