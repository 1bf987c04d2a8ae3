//! `trainyard cluster`: create, show, list, resize, delete.

mod create;
mod scale;
mod show;

use clap::{Args, Subcommand};
use trainyard_proto::v1::{DeleteClusterRequest, DeleteClusterResponse, GetClusterRequest};

use crate::args::{WorkspaceArg, YesArg};
use crate::console::{confirm_delete, note};
use crate::context::Context;
use crate::error::Error;
use crate::gone::{self, WaitArg};
use crate::node;
use crate::scope::{any_workspace, cluster_name, is_any};
use crate::text::{count, now};

/// See the head of this file.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a cluster; it takes nodes from the pool
    Create(Box<create::CreateArgs>),
    /// Show one cluster
    Show(NameArg),
    /// List the clusters of a workspace, or of all
    List(WorkspaceArg),
    /// Give a cluster a fixed number of nodes
    Resize(scale::ResizeArgs),
    /// Let the number of nodes follow the jobs
    AutoScale(scale::AutoScaleArgs),
    /// The nodes of a cluster
    #[command(subcommand)]
    Node(NodeCommand),
    /// Delete a cluster; its nodes go back to the pool
    Delete(DeleteArgs),
}

/// Verbs of the nodes of a cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List them with their states and reasons
    List(ClusterArg),
}

#[derive(Debug, Args)]
pub(crate) struct ClusterArg {
    #[command(flatten)]
    workspace: WorkspaceArg,
    /// Cluster
    #[arg(short, long, alias = "name", short_alias = 'n', value_name = "CLUSTER")]
    cluster: String,
}

#[derive(Debug, Args)]
pub(crate) struct NameArg {
    #[command(flatten)]
    workspace: WorkspaceArg,
    /// Cluster
    #[arg(short, long, alias = "cluster", value_name = "CLUSTER")]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    name: NameArg,
    /// Delete it though jobs have not ended: queued ones fail, running ones are ended
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    yes: YesArg,
    #[command(flatten)]
    wait: WaitArg,
}

/// Does what the command says.
pub(crate) async fn run(context: &Context, command: Command) -> Result<u8, Error> {
    match command {
        Command::Create(args) => create::run(context, *args).await?,
        Command::Resize(args) => scale::resize(context, &args).await?,
        Command::AutoScale(args) => scale::auto_scale(context, &args).await?,
        Command::Node(NodeCommand::List(args)) => {
            let cluster = cluster_name(&args.workspace, &args.cluster)?.to_string();
            let api = context.api()?;
            let request = GetClusterRequest {
                name: cluster.clone(),
            };
            api.get_cluster(request).await?;
            let nodes = api.all_nodes(&format!("cluster = \"{cluster}\"")).await?;
            context.output().list(&nodes, node::table)?;
        }
        Command::Show(args) => {
            let name = cluster_name(&args.workspace, &args.name)?.to_string();
            let cluster = context
                .api()?
                .get_cluster(GetClusterRequest { name })
                .await?;
            context.output().one(&cluster, show::details)?;
        }
        Command::List(args) => {
            let parent = any_workspace(&args)?;
            let clusters = context.api()?.all_clusters(&parent).await?;
            context.output().list(&clusters, |items| {
                show::table(items, is_any(&parent), &now())
            })?;
        }
        Command::Delete(args) => {
            let name = cluster_name(&args.name.workspace, &args.name.name)?.to_string();
            let api = context.api()?;
            confirm_delete(args.yes.yes, &name)?;
            let request = DeleteClusterRequest {
                name: name.clone(),
                force: args.force,
                ..DeleteClusterRequest::default()
            };
            if let Some(answer) = api.delete_cluster(request).await? {
                tell(&answer);
            }
            if args.wait.no_wait {
                return Ok(0);
            }
            gone::wait(context, &name, |api| {
                let request = GetClusterRequest { name: name.clone() };
                async move { api.get_cluster(request).await }
            })
            .await?;
            context.output().deleted(&name)?;
        }
    }
    Ok(0)
}

/// Says what became of the jobs.
fn tell(answer: &DeleteClusterResponse) {
    let DeleteClusterResponse {
        failed_queued_jobs,
        terminated_running_jobs,
        jobs,
    } = answer;
    if failed_queued_jobs + terminated_running_jobs == 0 {
        return;
    }
    note(&format!(
        "{} failed, {} being ended:",
        count(*failed_queued_jobs, "queued job"),
        count(*terminated_running_jobs, "running job")
    ));
    for job in jobs {
        note(&format!("  {job}"));
    }
}
