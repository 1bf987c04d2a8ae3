//! `trainyard cluster`: create, show, list, delete.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use prost_types::Timestamp;
use trainyard_proto::v1::{
    AllocationState, Cluster, CreateClusterRequest, DeleteClusterRequest, GetClusterRequest,
    ManualScaleSettings, NodeStateCounts, ProvisioningState, ScaleSettings, VmPriority,
};
use trainyard_shared::client::new_request_id;
use trainyard_shared::validate;

use crate::args::{WorkspaceArg, YesArg};
use crate::console::confirm_delete;
use crate::context::Context;
use crate::error::Error;
use crate::job_file::{ParsedFile, Source};
use crate::scope::{any_workspace, cluster_name, is_any};
use crate::table::{Details, Table};
use crate::text::{age, ids, last_segment, now, short, time};

/// See the head of this file.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a cluster; it takes nodes from the pool
    Create(CreateArgs),
    /// Show one cluster
    Show(NameArg),
    /// List the clusters of a workspace, or of all
    List(WorkspaceArg),
    /// Delete a cluster; its nodes go back to the pool
    Delete(DeleteArgs),
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
pub(crate) struct CreateArgs {
    #[command(flatten)]
    name: NameArg,
    /// Number of nodes [default: 0, or what the file says]
    #[arg(short, long, value_name = "COUNT")]
    target: Option<u32>,
    /// Node class that the nodes must have [default: any]
    #[arg(short = 's', long, value_name = "CLASS")]
    vm_size: Option<String>,
    /// Whether the nodes may be taken away
    #[arg(long, value_enum)]
    vm_priority: Option<Priority>,
    /// Cluster file (JSON, or YAML when its name ends in .yaml or .yml; `-` is stdin). Flags override it
    #[arg(short = 'f', long = "config-file", value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Priority {
    // Kept.
    Dedicated,
    // May be preempted.
    Lowpriority,
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
        Command::Create(args) => create(context, args).await?,
        Command::Show(args) => {
            let name = cluster_name(&args.workspace, &args.name)?.to_string();
            let cluster = context
                .api()?
                .get_cluster(GetClusterRequest { name })
                .await?;
            context.output().one(&cluster, details)?;
        }
        Command::List(args) => {
            let parent = any_workspace(&args)?;
            let clusters = context.api()?.all_clusters(&parent).await?;
            context
                .output()
                .list(&clusters, |items| table(items, is_any(&parent), &now()))?;
        }
        Command::Delete(args) => {
            let name = cluster_name(&args.name.workspace, &args.name.name)?.to_string();
            let api = context.api()?;
            confirm_delete(args.yes.yes, &name)?;
            api.delete_cluster(DeleteClusterRequest {
                name: name.clone(),
                etag: String::new(),
                ..DeleteClusterRequest::default()
            })
            .await?;
            context.output().deleted(&name)?;
        }
    }
    Ok(0)
}

async fn create(context: &Context, args: CreateArgs) -> Result<(), Error> {
    let name = cluster_name(&args.name.workspace, &args.name.name)?;
    let source = args.file.as_deref().map(Source::read).transpose()?;
    let mut parsed = source.as_ref().map(Source::parse::<Cluster>).transpose()?;
    if let Some(parsed) = &mut parsed {
        name_flags(parsed, &args);
    }
    let mut cluster = parsed
        .as_ref()
        .map(|parsed| parsed.message().clone())
        .unwrap_or_default();
    override_by_flags(&mut cluster, &args);
    let violations = validate::cluster(&cluster);
    if !violations.is_empty() {
        return Err(match &parsed {
            Some(parsed) => parsed.refusal(violations),
            None => Error::usage(
                violations
                    .iter()
                    .map(|one| format!("{}: {}", one.field, one.message))
                    .collect::<Vec<_>>()
                    .join("\n"),
            ),
        });
    }
    let request = CreateClusterRequest {
        parent: name.parent().to_string(),
        cluster_id: name.id().to_owned(),
        cluster: Some(cluster),
        request_id: new_request_id(),
        ..CreateClusterRequest::default()
    };
    let created = context.api()?.create_cluster(request).await;
    let created = match (created, &parsed) {
        (Ok(created), _) => created,
        (Err(status), Some(parsed)) => return Err(parsed.explain(status)),
        (Err(status), None) => return Err(status.into()),
    };
    context.output().done("created", &created)
}

/// Says which fields come from flags, for refusals.
fn name_flags(parsed: &mut ParsedFile<Cluster>, args: &CreateArgs) {
    if let Some(target) = args.target {
        parsed.given_by_flag("scaleSettings", format!("--target {target}"));
    }
    if let Some(class) = &args.vm_size {
        parsed.given_by_flag("vmSize", format!("--vm-size {class}"));
    }
}

fn override_by_flags(cluster: &mut Cluster, args: &CreateArgs) {
    if let Some(target) = args.target {
        let node_deallocation_option = cluster
            .scale_settings
            .as_ref()
            .and_then(|scale| scale.manual.as_ref())
            .map_or(0, |manual| manual.node_deallocation_option);
        cluster.scale_settings = Some(ScaleSettings {
            manual: Some(ManualScaleSettings {
                target_node_count: target,
                node_deallocation_option,
            }),
            auto_scale: None,
        });
    }
    if let Some(class) = &args.vm_size {
        cluster.vm_size.clone_from(class);
    }
    if let Some(priority) = args.vm_priority {
        cluster.set_vm_priority(match priority {
            Priority::Dedicated => VmPriority::Dedicated,
            Priority::Lowpriority => VmPriority::Lowpriority,
        });
    }
}

/// `deleting`, or how the allocation stands.
fn state(cluster: &Cluster) -> String {
    if cluster.provisioning_state() == ProvisioningState::Deleting {
        return "deleting".to_owned();
    }
    match cluster.allocation_state() {
        AllocationState::Unspecified => String::new(),
        state => short(state.as_str_name(), "ALLOCATION_STATE_"),
    }
}

fn target(cluster: &Cluster) -> String {
    let Some(scale) = &cluster.scale_settings else {
        return "0".to_owned();
    };
    match (&scale.manual, &scale.auto_scale) {
        (_, Some(auto)) => format!("{}-{}", auto.minimum_node_count, auto.maximum_node_count),
        (Some(manual), None) => manual.target_node_count.to_string(),
        (None, None) => "0".to_owned(),
    }
}

fn class(cluster: &Cluster) -> String {
    if cluster.vm_size.is_empty() {
        "any".to_owned()
    } else {
        cluster.vm_size.clone()
    }
}

fn table(clusters: &[Cluster], several_workspaces: bool, now: &Timestamp) -> String {
    let mut table = Table::new(&[
        "NAME",
        "CLASS",
        "STATE",
        ">TARGET",
        ">NODES",
        ">IDLE",
        ">RUNNING",
        ">PREPARING",
        ">LEAVING",
        ">UNUSABLE",
        "AGE",
    ]);
    for cluster in clusters {
        let counts = cluster.node_state_counts.unwrap_or_default();
        table.row([
            if several_workspaces {
                ids(&cluster.name)
            } else {
                last_segment(&cluster.name).to_owned()
            },
            class(cluster),
            state(cluster),
            target(cluster),
            cluster.current_node_count.to_string(),
            counts.idle_node_count.to_string(),
            counts.running_node_count.to_string(),
            counts.preparing_node_count.to_string(),
            counts.leaving_node_count.to_string(),
            counts.unusable_node_count.to_string(),
            age(cluster.creation_time.as_ref(), now),
        ]);
    }
    table.render()
}

fn counts_text(counts: &NodeStateCounts) -> String {
    let parts = [
        (counts.idle_node_count, "idle"),
        (counts.running_node_count, "running"),
        (counts.preparing_node_count, "preparing"),
        (counts.leaving_node_count, "leaving"),
        (counts.unusable_node_count, "unusable"),
    ];
    let shown: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if shown.is_empty() {
        String::new()
    } else {
        format!(" ({})", shown.join(", "))
    }
}

fn details(cluster: &Cluster) -> String {
    let counts = cluster.node_state_counts.unwrap_or_default();
    let mut details = Details::default();
    details
        .add("Name", &cluster.name)
        .add("State", state(cluster))
        .add("Node class", class(cluster))
        .add("Target", target(cluster))
        .add(
            "Nodes",
            format!("{}{}", cluster.current_node_count, counts_text(&counts)),
        )
        .add_all(
            "Holds",
            cluster
                .nodes
                .iter()
                .map(|node| last_segment(node).to_owned()),
        )
        .add("Created", time(cluster.creation_time.as_ref()))
        .add_all(
            "Error",
            cluster
                .errors
                .iter()
                .map(|error| format!("{}: {}", error.code, error.message)),
        );
    details.render()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Noun};

    fn create_args(line: &str) -> CreateArgs {
        match Arguments::try_parse_from(line.split(' ')).unwrap().noun {
            Noun::Cluster(Command::Create(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_override_the_file() {
        let args = create_args(
            "trainyard cluster create -w w -n c -t 4 -s h100x8 --vm-priority lowpriority",
        );
        let mut cluster = Cluster {
            vm_size: "old".into(),
            ..Cluster::default()
        };
        cluster.scale_settings = Some(ScaleSettings {
            manual: None,
            auto_scale: Some(Default::default()),
        });
        override_by_flags(&mut cluster, &args);
        assert_eq!(cluster.vm_size, "h100x8");
        assert_eq!(target(&cluster), "4");
        assert_eq!(cluster.vm_priority(), VmPriority::Lowpriority);
    }

    #[test]
    fn a_list_over_workspaces_names_them() {
        let cluster = Cluster {
            name: "workspaces/w/clusters/c".into(),
            current_node_count: 2,
            allocation_state: AllocationState::Steady.into(),
            ..Cluster::default()
        };
        let text = table(std::slice::from_ref(&cluster), true, &Timestamp::default());
        assert!(
            text.lines()
                .nth(1)
                .unwrap()
                .starts_with("w/c   any    steady"),
            "{text}"
        );
        assert!(table(&[cluster], false, &Timestamp::default()).contains("\nc "));
    }
}
