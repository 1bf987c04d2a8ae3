//! Deletion of workspaces and experiments with everything in them, as a state that anybody can see.
//!
//! A delete marks its resource `deleting`; from then on nothing can be created inside. `Sweep` commands, which the
//! leader proposes while [`State::sweep_due`], walk down in bounded batches: experiments are marked, jobs terminated
//! and deleted, clusters and, last of all, file servers deleted by force; what has become empty vanishes. The state
//! alone says how far a deletion is, so it goes on after any crash. A parent never vanishes before its children.

use std::ops::Bound;

use trainyard_proto::store::v1::{Delete, Sweep};
use trainyard_proto::v1::ProvisioningState;

use super::{Applied, Context};
use crate::outcome::{Change, Reply};
use crate::state::State;

/// The next thing to do for a resource that is being deleted.
enum Step {
    /// Terminate and delete this job.
    Job(String),
    /// Mark this experiment.
    Experiment(String),
    /// Delete this cluster.
    Cluster(String),
    /// Delete this file server.
    FileServer(String),
    /// It is empty.
    Vanish,
    /// What is left in it is already on its way.
    Wait,
}

impl State {
    /// Whether a `Sweep` would make progress.
    pub fn sweep_due(&self) -> bool {
        self.indexes
            .deleting
            .iter()
            .any(|name| !matches!(self.next_step(name, ""), Step::Wait))
    }

    /// Takes at most `limit` steps.
    pub(super) fn sweep(&mut self, context: &mut Context, command: &Sweep) -> Applied {
        // From behind: children come before their parents.
        let parents: Vec<String> = self.indexes.deleting.iter().rev().cloned().collect();
        let mut left = command.limit.max(1);
        for parent in parents {
            self.sweep_in(context, &parent, &mut left);
        }
        let steps = command.limit.max(1).saturating_sub(left);
        Ok(Reply::Count(u64::from(steps)))
    }

    fn sweep_in(&mut self, context: &mut Context, parent: &str, left: &mut u32) {
        let mut after = String::new();
        while *left > 0 {
            let forced = |name: &str| Delete {
                name: name.to_owned(),
                etag: String::new(),
                force: true,
            };
            match self.next_step(parent, &after) {
                Step::Job(name) => {
                    self.begin_deleting_job(context, &name);
                    after = name;
                }
                Step::Experiment(name) => self.begin_deleting_experiment(context, &name),
                Step::Cluster(name) => {
                    if self.delete_cluster(context, &forced(&name)).is_err() {
                        return;
                    }
                }
                Step::FileServer(name) => {
                    if self.delete_file_server(context, &forced(&name)).is_err() {
                        return;
                    }
                }
                Step::Vanish => {
                    self.vanish(context, parent);
                    *left -= 1;
                    return;
                }
                Step::Wait => return,
            }
            *left -= 1;
        }
    }

    /// Marks the experiment, or takes it away when it is empty.
    pub(super) fn begin_deleting_experiment(&mut self, context: &mut Context, name: &str) {
        let Some(experiment) = self.experiments.get_mut(name) else {
            return;
        };
        experiment.set_provisioning_state(ProvisioningState::Deleting);
        experiment.etag = context.etag();
        self.begin_deleting(context, name);
        context.changed(Change::Experiment(name.to_owned()));
    }

    /// Marks the workspace, or takes it away when it is empty.
    pub(super) fn begin_deleting_workspace(&mut self, context: &mut Context, name: &str) {
        let Some(workspace) = self.workspaces.get_mut(name) else {
            return;
        };
        workspace.set_provisioning_state(ProvisioningState::Deleting);
        workspace.etag = context.etag();
        self.begin_deleting(context, name);
        context.changed(Change::Workspace(name.to_owned()));
    }

    fn begin_deleting(&mut self, context: &mut Context, name: &str) {
        self.indexes.deleting.insert(name.to_owned());
        if matches!(self.next_step(name, ""), Step::Vanish) {
            self.vanish(context, name);
        }
    }

    fn vanish(&mut self, context: &mut Context, name: &str) {
        self.indexes.deleting.remove(name);
        if self.experiments.remove(name).is_some() {
            context.changed(Change::Experiment(name.to_owned()));
        }
        if self.workspaces.remove(name).is_some() {
            self.quotas.remove(&format!("{name}/quota"));
            context.changed(Change::Workspace(name.to_owned()));
        }
    }

    /// `after`: the job up to which an experiment was looked through.
    fn next_step(&self, parent: &str, after: &str) -> Step {
        if self.experiments.contains_key(parent) {
            self.next_job(parent, after)
        } else {
            self.next_child(parent)
        }
    }

    fn next_job(&self, experiment: &str, after: &str) -> Step {
        let first = format!("{experiment}/jobs/");
        // The next character after `/`: the end of the names of its jobs.
        let end = format!("{experiment}/jobs0");
        let from = if after.is_empty() {
            Bound::Included(first.as_str())
        } else {
            Bound::Excluded(after)
        };
        let to = Bound::Excluded(end.as_str());
        for name in self.jobs.range(from, to) {
            let going = self
                .jobs
                .open(name)
                .is_some_and(|job| job.provisioning_state() == ProvisioningState::Deleting);
            if !going {
                return Step::Job(name.to_string());
            }
        }
        let mut all = self.jobs.range(Bound::Included(&first), to);
        if all.next().is_some() {
            Step::Wait
        } else {
            Step::Vanish
        }
    }

    fn next_child(&self, workspace: &str) -> Step {
        let going = |state: ProvisioningState| state == ProvisioningState::Deleting;
        let prefix = format!("{workspace}/experiments/");
        let mut waits = false;
        for (name, experiment) in inside(&self.experiments, &prefix) {
            if !going(experiment.provisioning_state()) {
                return Step::Experiment(name.clone());
            }
            waits = true;
        }
        let prefix = format!("{workspace}/clusters/");
        for (name, cluster) in inside(&self.clusters, &prefix) {
            if !going(cluster.provisioning_state()) {
                return Step::Cluster(name.clone());
            }
            waits = true;
        }
        if waits {
            return Step::Wait;
        }
        // Nothing mounts them any more.
        let prefix = format!("{workspace}/fileServers/");
        for (name, file_server) in inside(&self.file_servers, &prefix) {
            if !going(file_server.provisioning_state()) {
                return Step::FileServer(name.clone());
            }
            waits = true;
        }
        if waits { Step::Wait } else { Step::Vanish }
    }
}

fn inside<'a, T>(
    map: &'a std::collections::BTreeMap<String, T>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a String, &'a T)> {
    map.range(prefix.to_owned()..)
        .take_while(move |(name, _)| name.starts_with(prefix))
}
