//! The custom toolkit: a command for bash on the first node alone. The other nodes are held and prepared; the command
//! finds them in `AZ_BATCH_HOST_LIST` and `AZ_BATCHAI_MPI_HOST_FILE`.

use trainyard_proto::v1::CustomToolkitSettings;

use super::{Context, LaunchError, LaunchPlan, Preflight};

pub(super) fn plan(
    context: &Context<'_>,
    settings: &CustomToolkitSettings,
) -> Result<LaunchPlan, LaunchError> {
    if settings.command_line.trim().is_empty() {
        return Err(LaunchError::new(
            "customToolkitSettings.commandLine",
            "is empty; write what to run",
        ));
    }
    if context.layout.node_index != 0 {
        return Ok(LaunchPlan {
            tasks: Vec::new(),
            preflight: Preflight::default(),
        });
    }
    let extra: Vec<_> = context.master_variable().into_iter().collect();
    let env = context.layout.task_environment(&extra);
    let task = context.task("main".to_owned(), settings.command_line.clone(), "", env);
    Ok(LaunchPlan {
        tasks: vec![task],
        preflight: Preflight::default(),
    })
}
