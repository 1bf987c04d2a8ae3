//! `trainyard experiment`: create, show, list, delete.

use clap::{Args, Subcommand};
use prost_types::Timestamp;
use trainyard_proto::v1::{
    CreateExperimentRequest, DeleteExperimentRequest, Experiment, GetExperimentRequest,
};
use trainyard_shared::client::new_request_id;

use crate::args::{WorkspaceArg, YesArg};
use crate::console::confirm_delete;
use crate::context::Context;
use crate::error::Error;
use crate::scope::{experiment_name, workspace};
use crate::table::{Details, Table};
use crate::text::{age, last_segment, now, time};

/// See the head of this file.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an experiment; one that exists already is left as it is
    Create(NameArg),
    /// Show one experiment
    Show(NameArg),
    /// List the experiments of a workspace
    List(WorkspaceArg),
    /// Delete an experiment that holds no jobs
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NameArg {
    #[command(flatten)]
    workspace: WorkspaceArg,
    /// Experiment
    #[arg(
        short,
        long,
        short_alias = 'e',
        alias = "experiment",
        value_name = "EXPERIMENT"
    )]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    name: NameArg,
    #[command(flatten)]
    yes: YesArg,
}

/// Does what the command says.
pub(crate) async fn run(context: &Context, command: Command) -> Result<u8, Error> {
    match command {
        Command::Create(args) => {
            let name = experiment_name(&args.workspace, &args.name)?;
            let request = CreateExperimentRequest {
                parent: name.parent().to_string(),
                experiment_id: name.id().to_owned(),
                experiment: Some(Experiment::default()),
                request_id: new_request_id(),
            };
            let created = context.api()?.create_experiment(request).await?;
            context.output().done("created", &created)?;
        }
        Command::Show(args) => {
            let name = experiment_name(&args.workspace, &args.name)?.to_string();
            let experiment = context
                .api()?
                .get_experiment(GetExperimentRequest { name })
                .await?;
            context.output().one(&experiment, details)?;
        }
        Command::List(args) => {
            let parent = workspace(&args)?;
            let experiments = context.api()?.all_experiments(parent.as_str()).await?;
            context
                .output()
                .list(&experiments, |items| table(items, &now()))?;
        }
        Command::Delete(args) => {
            let name = experiment_name(&args.name.workspace, &args.name.name)?.to_string();
            let api = context.api()?;
            confirm_delete(args.yes.yes, &name)?;
            api.delete_experiment(DeleteExperimentRequest {
                name: name.clone(),
                etag: String::new(),
            })
            .await?;
            context.output().deleted(&name)?;
        }
    }
    Ok(0)
}

fn table(experiments: &[Experiment], now: &Timestamp) -> String {
    let mut table = Table::new(&["NAME", "AGE"]);
    for experiment in experiments {
        table.row([
            last_segment(&experiment.name).to_owned(),
            age(experiment.creation_time.as_ref(), now),
        ]);
    }
    table.render()
}

fn details(experiment: &Experiment) -> String {
    let mut details = Details::default();
    details
        .add("Name", &experiment.name)
        .add("Created", time(experiment.creation_time.as_ref()));
    details.render()
}
