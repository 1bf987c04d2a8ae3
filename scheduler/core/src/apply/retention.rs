//! Retention: finished jobs that a workspace no longer keeps. The leader exports them and has them removed by name and
//! UUID; a job that is another by then, or has not ended, is passed over.

use std::sync::Arc;

use prost_types::Timestamp;
use trainyard_proto::store::v1::RemoveJobs;
use trainyard_proto::v1::{Job, ProvisioningState, RetentionPolicy, Workspace};

use super::{Applied, Context};
use crate::outcome::{Change, Reply};
use crate::state::{EndKey, State, is_ended};

impl State {
    /// At most `limit` finished jobs that retention removes at `now`, oldest end first.
    pub fn retired_jobs(&self, now: &Timestamp, limit: usize) -> Vec<Job> {
        let mut found: Vec<(&EndKey, &Arc<str>)> = Vec::new();
        for (workspace, retention) in self.retentions() {
            let Some(finished) = self.indexes.finished.get(&workspace.name) else {
                continue;
            };
            let excess = excess(retention, finished.len());
            found.extend(
                finished
                    .iter()
                    .enumerate()
                    .take_while(|(i, (key, _))| {
                        *i < excess || retires(retention, key).is_some_and(|at| at <= at_of(now))
                    })
                    .map(|(_, found)| found)
                    .take(limit),
            );
        }
        found.sort();
        found
            .into_iter()
            .take(limit)
            .filter_map(|(_, name)| Some(self.jobs.get(name)?.into_owned()))
            .collect()
    }

    /// When time alone will next make [`State::retired_jobs`] find something.
    pub fn next_retirement(&self) -> Option<Timestamp> {
        self.retentions()
            .filter_map(|(workspace, retention)| {
                let (oldest, _) = self
                    .indexes
                    .finished
                    .get(&workspace.name)?
                    .first_key_value()?;
                retires(retention, oldest)
            })
            .min()
            .map(|(seconds, nanos)| Timestamp { seconds, nanos })
    }

    pub(super) fn remove_jobs(&mut self, context: &mut Context, command: &RemoveJobs) -> Applied {
        let mut removed = 0;
        for meant in &command.jobs {
            let fits = self
                .jobs
                .get(&meant.name)
                .is_some_and(|job| job.uid == meant.uid && is_ended(job.execution_state()));
            if fits {
                self.remove_job(&meant.name);
                context.changed(Change::Job(meant.name.clone()));
                removed += 1;
            }
        }
        Ok(Reply::Count(removed))
    }

    /// A workspace that is being deleted needs no retention.
    fn retentions(&self) -> impl Iterator<Item = (&Workspace, &RetentionPolicy)> {
        self.workspaces
            .values()
            .filter(|w| w.provisioning_state() != ProvisioningState::Deleting)
            .filter_map(|w| Some((w, w.retention.as_ref()?)))
    }
}

/// How many of the oldest are more than the workspace keeps.
fn excess(retention: &RetentionPolicy, finished: usize) -> usize {
    match usize::try_from(retention.max_finished_jobs) {
        Ok(kept) if kept > 0 => finished.saturating_sub(kept),
        Ok(_) | Err(_) => 0,
    }
}

/// When the job becomes too old; `None`: never.
fn retires(retention: &RetentionPolicy, (seconds, nanos, _, _): &EndKey) -> Option<(i64, i32)> {
    let age = retention.max_age?;
    let nanos = nanos.saturating_add(age.nanos);
    let carry = i64::from(nanos >= 1_000_000_000);
    let seconds = seconds.saturating_add(age.seconds).saturating_add(carry);
    Some((seconds, nanos - if carry > 0 { 1_000_000_000 } else { 0 }))
}

fn at_of(time: &Timestamp) -> (i64, i32) {
    (time.seconds, time.nanos)
}
