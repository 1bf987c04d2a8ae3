//! Experiments: create, delete.

use trainyard_proto::store::v1::{CreateExperiment, Delete};
use trainyard_proto::v1::{Experiment, ProvisioningState};
use trainyard_shared::names::ExperimentName;

use super::{Applied, Context, Prepared, alive, check_etag, incomplete, parse};
use crate::outcome::{Change, Refusal, Reply};
use crate::state::State;

impl State {
    /// The checking half of [`State::create_experiment`]; changes nothing.
    pub(super) fn prepare_experiment(
        &self,
        context: &Context,
        command: &CreateExperiment,
    ) -> Result<Prepared<Experiment>, Refusal> {
        let wanted = command
            .experiment
            .as_ref()
            .ok_or_else(|| incomplete("experiment"))?;
        let parsed = parse::<ExperimentName>(&wanted.name)?;
        let name = parsed.to_string();
        self.parent_workspace(&parsed.workspace())?;
        if let Some(existing) = self.experiments.get(&name) {
            alive(&name, existing.provisioning_state())?;
            return Ok(Prepared::Made(Box::new(Reply::Experiment(
                existing.clone(),
            ))));
        }
        let mut experiment = wanted.clone();
        experiment.creation_time = Some(context.now);
        experiment.set_provisioning_state(ProvisioningState::Succeeded);
        experiment.etag = context.etag();
        Ok(Prepared::New(Box::new(experiment)))
    }

    /// Creating an experiment that exists gives the existing one, as Batch AI does.
    pub(super) fn create_experiment(
        &mut self,
        context: &mut Context,
        command: &CreateExperiment,
    ) -> Applied {
        let experiment = match self.prepare_experiment(context, command)? {
            Prepared::Made(reply) => return Ok(*reply),
            Prepared::New(experiment) => *experiment,
        };
        self.experiments
            .insert(experiment.name.clone(), experiment.clone());
        context.changed(Change::Experiment(experiment.name.clone()));
        Ok(Reply::Experiment(experiment))
    }

    /// An empty experiment vanishes at once; another is `deleting` until sweeps have emptied it.
    pub(super) fn delete_experiment(&mut self, context: &mut Context, command: &Delete) -> Applied {
        let name = &command.name;
        let current = self
            .experiments
            .get(name)
            .ok_or_else(|| Refusal::not_found(name))?;
        if current.provisioning_state() == ProvisioningState::Deleting {
            return Ok(Reply::None);
        }
        check_etag(name, &command.etag, &current.etag)?;
        self.begin_deleting_experiment(context, name);
        Ok(Reply::None)
    }
}
