//! PyTorch: one process per rank, started independently of each other, which meet at a port of the first node.
//!
//! Ranks are spread evenly in blocks: with 5 ranks on 2 nodes, ranks 0 to 2 run on the first. Where several ranks share
//! a node and it has GPUs enough, each rank sees only its own share of them (so that a script that takes the first GPU
//! it sees takes its own). A script that picks its GPU by `LOCAL_RANK` belongs under `torchrunSettings`, which shows
//! every process all GPUs of the node.

use trainyard_proto::v1::PyTorchSettings;

use super::{Context, LaunchError, LaunchPlan, Preflight, host_port, shell};
use crate::environment::visible_devices;

const KEY: &str = "pyTorchSettings";

pub(super) fn plan(
    context: &Context<'_>,
    settings: &PyTorchSettings,
) -> Result<LaunchPlan, LaunchError> {
    let backend = settings.communication_backend.to_ascii_lowercase();
    if backend == "mpi" {
        return Err(LaunchError::new(
            "pyTorchSettings.communicationBackend",
            "ranks under MPI cannot be launched yet; use Gloo or TCP, or torchrunSettings",
        ));
    }
    let nodes = context.assignment.nodes.len();
    let world = match settings.process_count {
        0 => nodes,
        count => count as usize,
    };
    let ranks = ranks_of(context.layout.node_index, nodes, world);
    let (master, port) = context.rendezvous()?;
    let mut tasks = Vec::new();
    let mut preflight = Preflight::default();
    for (local, rank) in ranks.clone().enumerate() {
        let mut extra = vec![
            ("AZ_BATCHAI_TASK_INDEX", rank.to_string()),
            ("AZ_BATCHAI_TASK_TYPE", "worker".to_owned()),
            (
                "AZ_BATCHAI_PYTORCH_INIT_METHOD",
                format!("tcp://{}", host_port(&master, port)),
            ),
            ("AZ_BATCH_MASTER_NODE", host_port(&master, port)),
            ("MASTER_ADDR", master.clone()),
            ("MASTER_PORT", port.to_string()),
            ("RANK", rank.to_string()),
            ("WORLD_SIZE", world.to_string()),
            ("LOCAL_RANK", local.to_string()),
            ("LOCAL_WORLD_SIZE", ranks.len().to_string()),
        ];
        if !backend.is_empty() {
            extra.push(("AZ_BATCHAI_PYTORCH_BACKEND", backend.clone()));
        }
        let share = share_of(context.gpus(), local, ranks.len());
        if !share.is_empty() {
            extra.push(("CUDA_VISIBLE_DEVICES", visible_devices(share)));
        }
        let env = context.layout.task_environment(&extra);
        let python = context.python(
            KEY,
            &settings.python_script_file_path,
            &settings.python_interpreter_path,
            &env,
        )?;
        preflight = python.preflight(&env, context.layout);
        let command = shell::command(
            &[&python.interpreter, &python.script],
            &settings.command_line_args,
        );
        tasks.push(context.task(format!("rank-{rank}"), command, &format!("-{rank}"), env));
    }
    Ok(LaunchPlan { tasks, preflight })
}

/// Ranks of a node: blocks as even as they can be, the longer ones first.
fn ranks_of(node: usize, nodes: usize, world: usize) -> std::ops::Range<usize> {
    let nodes = nodes.max(1);
    let (each, rest) = (world / nodes, world % nodes);
    let start = node * each + node.min(rest);
    start..start + each + usize::from(node < rest)
}

/// The GPUs of one of `ranks` ranks on a node: an equal share, or all where there are fewer GPUs than ranks.
fn share_of(gpus: &[u32], local: usize, ranks: usize) -> &[u32] {
    match gpus.len() / ranks.max(1) {
        0 => gpus,
        _ if ranks == 1 => gpus,
        each => &gpus[local * each..(local + 1) * each],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_spread_in_even_blocks() {
        let spread = |nodes, world| {
            (0..nodes)
                .map(|node| ranks_of(node, nodes, world))
                .collect::<Vec<_>>()
        };
        assert_eq!(spread(2, 2), [0..1, 1..2]);
        assert_eq!(spread(2, 8), [0..4, 4..8]);
        assert_eq!(spread(2, 5), [0..3, 3..5]);
        assert_eq!(spread(3, 2), [0..1, 1..2, 2..2]);
        assert_eq!(spread(1, 4), vec![0..4]);
    }

    #[test]
    fn gpus_are_shared_equally_where_they_suffice() {
        let gpus = [0, 1, 2, 3];
        assert_eq!(share_of(&gpus, 0, 1), [0, 1, 2, 3]);
        assert_eq!(share_of(&gpus, 1, 2), [2, 3]);
        assert_eq!(share_of(&gpus, 2, 3), [2]);
        assert_eq!(share_of(&gpus, 3, 4), [3]);
        assert_eq!(share_of(&gpus, 5, 8), [0, 1, 2, 3]);
        assert!(share_of(&[], 0, 2).is_empty());
    }
}
