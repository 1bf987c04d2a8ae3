//! `trainyard node`: list, show, delete.

use clap::{Args, Subcommand};
use prost_types::Timestamp;
use trainyard_proto::v1::{
    DeleteNodeRequest, GetNodeRequest, GpuSource, Inventory, Node, NodeSetupPhase, NodeState,
    PowerState, RetryNodeRequest,
};

use crate::args::YesArg;
use crate::console::confirm_delete;
use crate::context::Context;
use crate::error::Error;
use crate::scope::node_name;
use crate::table::{Details, Table};
use crate::text::{age, bytes, ids, last_segment, now, short, time};

/// See the head of this file.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the nodes
    List(ListArgs),
    /// Show one node
    Show(NameArg),
    /// Set an unusable node up anew, or switch it on again
    Retry(NameArg),
    /// Forget a lost node
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NameArg {
    /// Node
    #[arg(short, long, alias = "node", value_name = "NODE")]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Which ones, such as `state = unusable` or `cluster = "workspaces/w/clusters/c"`
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,
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
        Command::List(args) => {
            let nodes = context.api()?.all_nodes(&args.filter).await?;
            context.output().list(&nodes, table)?;
        }
        Command::Show(args) => {
            let name = node_name(&args.name)?.to_string();
            let node = context.api()?.get_node(GetNodeRequest { name }).await?;
            context.output().one(&node, |node| details(node, &now()))?;
        }
        Command::Retry(args) => {
            let name = node_name(&args.name)?.to_string();
            let node = context.api()?.retry_node(RetryNodeRequest { name }).await?;
            context.output().done("retrying", &node)?;
        }
        Command::Delete(args) => {
            let name = node_name(&args.name.name)?.to_string();
            let api = context.api()?;
            confirm_delete(args.yes.yes, &name)?;
            api.delete_node(DeleteNodeRequest { name: name.clone() })
                .await?;
            context.output().deleted(&name)?;
        }
    }
    Ok(0)
}

/// State of a node in one word.
pub(crate) fn state(node: &Node) -> String {
    match node.state() {
        NodeState::Unspecified => String::new(),
        state if node.leaving => {
            format!("{}, leaving", short(state.as_str_name(), "NODE_STATE_"))
        }
        state => short(state.as_str_name(), "NODE_STATE_"),
    }
}

/// How far the set-up for the cluster is.
fn setup(node: &Node) -> String {
    let Some(setup) = &node.setup else {
        return String::new();
    };
    match setup.phase() {
        NodeSetupPhase::Unspecified => "ordered".to_owned(),
        phase => short(phase.as_str_name(), "NODE_SETUP_PHASE_"),
    }
}

fn power(node: &Node) -> String {
    match node.power_state() {
        PowerState::Unspecified => String::new(),
        state => short(state.as_str_name(), "POWER_STATE_"),
    }
}

/// `8`, or `4 (declared)` where the administrator only says so.
fn gpus(inventory: &Inventory) -> String {
    match inventory.gpu_source() {
        GpuSource::Declared => format!("{} (declared)", inventory.gpus.len()),
        GpuSource::Nvml | GpuSource::Unspecified => inventory.gpus.len().to_string(),
    }
}

pub(crate) fn table(nodes: &[Node]) -> String {
    let mut table = Table::new(&[
        "NAME", "STATE", "CLUSTER", "CLASS", "GPUS", ">CPUS", ">MEMORY", "REASON",
    ]);
    for node in nodes {
        let inventory = node.inventory.clone().unwrap_or_default();
        table.row([
            last_segment(&node.name).to_owned(),
            state(node),
            ids(&node.cluster),
            node.node_class.clone(),
            gpus(&inventory),
            inventory.cpus.to_string(),
            bytes(inventory.memory_bytes),
            node.state_reason.clone(),
        ]);
    }
    table.render()
}

fn details(node: &Node, now: &Timestamp) -> String {
    let inventory = node.inventory.clone().unwrap_or_default();
    let since = age(node.state_transition_time.as_ref(), now);
    let mut details = Details::default();
    details
        .add("Name", &node.name)
        .add(
            "State",
            if since.is_empty() {
                state(node)
            } else {
                format!("{} for {since}", state(node))
            },
        )
        .add("Reason", &node.state_reason)
        .add(
            "Cluster",
            if node.cluster.is_empty() {
                "none: in the pool"
            } else {
                node.cluster.as_str()
            },
        )
        .add("Node class", &node.node_class)
        .add("Set-up", setup(node))
        .add_all(
            "Set-up error",
            node.setup.iter().flat_map(|setup| {
                setup
                    .errors
                    .iter()
                    .map(|error| format!("{}: {}", error.code, error.message))
            }),
        )
        .add("Power", power(node))
        .add_all(
            "Exports",
            node.exports.iter().map(|export| {
                let state = if export.ready { "ready" } else { "not ready" };
                format!("{} ({state}) {}", export.file_server, export.directory)
            }),
        )
        .add_all("Runs", node.attempts.clone())
        .add("GPUs", gpus(&inventory))
        .add_all(
            "GPU",
            inventory.gpus.iter().map(|gpu| {
                let memory = if gpu.memory_bytes == 0 {
                    String::new()
                } else {
                    format!(", {}", bytes(gpu.memory_bytes))
                };
                format!("{}: {}{memory} ({})", gpu.index, gpu.model, gpu.uuid)
            }),
        )
        .add("CPUs", inventory.cpus.to_string())
        .add("Memory", bytes(inventory.memory_bytes))
        .add("Address", &inventory.address)
        .add("System", &inventory.os)
        .add("Users", inventory.task_users.join(", "))
        .add("Kernel", &inventory.kernel)
        .add("Confinement", &inventory.confinement)
        .add(
            "Agent",
            format!("{} at {}", node.agent_version, node.agent_address),
        )
        .add("Registered", time(node.creation_time.as_ref()));
    details.render()
}

#[cfg(test)]
mod tests {
    use trainyard_proto::v1::Gpu;

    use super::*;

    #[test]
    fn declared_gpus_say_so() {
        let node = Node {
            name: "nodes/n1".into(),
            state: NodeState::Ready.into(),
            cluster: "workspaces/w/clusters/c".into(),
            node_class: "any".into(),
            inventory: Some(Inventory {
                cpus: 2,
                memory_bytes: 24 << 30,
                gpus: vec![Gpu::default(); 4],
                gpu_source: GpuSource::Declared.into(),
                ..Inventory::default()
            }),
            ..Node::default()
        };
        assert_eq!(
            table(&[node]),
            "NAME  STATE  CLUSTER  CLASS  GPUS          CPUS  MEMORY  REASON\n\
             n1    ready  w/c      any    4 (declared)     2  24 GiB  -\n"
        );
    }

    #[test]
    fn a_lost_node_shows_why() {
        let node = Node {
            name: "nodes/n1".into(),
            state: NodeState::Lost.into(),
            state_reason: "no heartbeat for 30 s".into(),
            ..Node::default()
        };
        assert!(table(&[node]).contains("no heartbeat for 30 s"));
    }
}
