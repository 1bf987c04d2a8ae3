//! Experiments: create, delete.

use trainyard_proto::store::v1::{CreateExperiment, Delete};
use trainyard_proto::v1::ProvisioningState;
use trainyard_shared::names::ExperimentName;

use super::{Applied, Context, check_etag, incomplete, parse};
use crate::outcome::{Change, Refusal, Reply};
use crate::state::State;

impl State {
    /// Creating an experiment that exists gives the existing one, as Batch AI does.
    pub(super) fn create_experiment(
        &mut self,
        context: &mut Context,
        command: &CreateExperiment,
    ) -> Applied {
        let wanted = command
            .experiment
            .as_ref()
            .ok_or_else(|| incomplete("experiment"))?;
        let parsed = parse::<ExperimentName>(&wanted.name)?;
        let name = parsed.to_string();
        self.parent_workspace(&parsed.workspace())?;
        if let Some(existing) = self.experiments.get(&name) {
            return Ok(Reply::Experiment(existing.clone()));
        }
        let mut experiment = wanted.clone();
        experiment.creation_time = Some(context.now);
        experiment.set_provisioning_state(ProvisioningState::Succeeded);
        experiment.etag = context.etag();
        self.experiments.insert(name.clone(), experiment.clone());
        context.changed(Change::Experiment(name));
        Ok(Reply::Experiment(experiment))
    }

    pub(super) fn delete_experiment(&mut self, context: &mut Context, command: &Delete) -> Applied {
        let name = &command.name;
        let current = self
            .experiments
            .get(name)
            .ok_or_else(|| Refusal::not_found(name))?;
        check_etag(name, &command.etag, &current.etag)?;
        if !self.jobs(name, "", 1).is_empty() {
            return Err(Refusal::precondition(
                name,
                format!("{name} still holds jobs; delete them first"),
            ));
        }
        self.experiments.remove(name);
        context.changed(Change::Experiment(name.clone()));
        Ok(Reply::None)
    }
}
