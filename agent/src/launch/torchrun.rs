//! torchrun: one launcher of PyTorch's own on every node, with the static rendezvous, because the dynamic one needs each
//! host's own name to resolve to the address that the others use. Its files are named by the node: `stdout-0.txt` has
//! the output of all processes of node 0, also where there is only one node.
//!
//! PyTorch 1.13 under Python 3.11 (Debian 12) fails on torchrun's own default for redirects. A mapping for a local rank
//! that does not exist works there and changes nothing elsewhere, so it is given in the variables that torchrun reads;
//! the user may set them to something else. With ten or more processes on a node the tenth one's lines get a prefix.

use trainyard_proto::v1::TorchrunSettings;

use super::{Context, LaunchError, LaunchPlan, shell};

const KEY: &str = "torchrunSettings";

/// The highest local rank that torchrun's syntax for mappings can name.
const NO_SUCH_RANK: &str = "9:1";

pub(super) fn plan(
    context: &Context<'_>,
    settings: &TorchrunSettings,
) -> Result<LaunchPlan, LaunchError> {
    let node = context.layout.node_index;
    let (master, port) = context.rendezvous()?;
    let processes = match settings.nproc_per_node {
        0 => context.gpus().len().max(1),
        count => count as usize,
    };
    let extra = [
        ("AZ_BATCHAI_TASK_INDEX", node.to_string()),
        ("AZ_BATCHAI_TASK_TYPE", "worker".to_owned()),
        ("AZ_BATCH_MASTER_NODE", super::host_port(&master, port)),
        ("PET_REDIRECTS", NO_SUCH_RANK.to_owned()),
        ("PET_TEE", NO_SUCH_RANK.to_owned()),
    ];
    let env = context.layout.task_environment(&extra);
    let python = context.python(
        KEY,
        &settings.python_script_file_path,
        &settings.python_interpreter_path,
        &env,
    )?;
    let command = shell::command(
        &[
            &python.interpreter,
            "-m",
            "torch.distributed.run",
            "--nnodes",
            &context.assignment.nodes.len().to_string(),
            "--node_rank",
            &node.to_string(),
            "--master_addr",
            &master,
            "--master_port",
            &port.to_string(),
            "--nproc_per_node",
            &processes.to_string(),
            "--max_restarts",
            &settings.max_restarts.to_string(),
            &python.script,
        ],
        &settings.command_line_args,
    );
    let preflight = python.preflight(&env, context.layout);
    let task = context.task(
        format!("torchrun-{node}"),
        command,
        &format!("-{node}"),
        env,
    );
    Ok(LaunchPlan {
        tasks: vec![task],
        preflight,
    })
}
