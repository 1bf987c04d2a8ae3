//! `trainyard cluster resize` and `trainyard cluster auto-scale`: the two kinds of scale settings.

use clap::{Args, ValueEnum};
use prost_types::FieldMask;
use trainyard_proto::v1::{
    Cluster, ManualScaleSettings, NodeDeallocationOption, ScaleSettings, UpdateClusterRequest,
};

use super::NameArg;
use super::create::{auto, idle_time};
use crate::context::Context;
use crate::error::Error;
use crate::scope::cluster_name;

#[derive(Debug, Args)]
pub(crate) struct ResizeArgs {
    #[command(flatten)]
    name: NameArg,
    /// Number of nodes
    #[arg(short, long, value_name = "COUNT")]
    target: u32,
    /// What happens to the jobs of nodes that leave: they are queued again, ended for good, or awaited
    #[arg(long, value_enum, default_value_t)]
    deallocation: Deallocation,
}

/// See [`ResizeArgs`].
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum Deallocation {
    // Killed and queued again.
    #[default]
    Requeue,
    // Killed for good.
    Terminate,
    // Awaited.
    Waitforjobcompletion,
}

#[derive(Debug, Args)]
pub(crate) struct AutoScaleArgs {
    #[command(flatten)]
    name: NameArg,
    /// Fewest nodes
    #[arg(long, value_name = "COUNT")]
    min: u32,
    /// Most nodes
    #[arg(long, value_name = "COUNT")]
    max: u32,
    /// How long a node is idle before it leaves, such as 120s, PT2M or 0.00:02:00 [default: 120s]
    #[arg(long, value_name = "DURATION", value_parser = idle_time)]
    idle_time: Option<prost_types::Duration>,
}

/// Gives the cluster a fixed number of nodes.
pub(super) async fn resize(context: &Context, args: &ResizeArgs) -> Result<(), Error> {
    let option = match args.deallocation {
        Deallocation::Requeue => NodeDeallocationOption::Requeue,
        Deallocation::Terminate => NodeDeallocationOption::Terminate,
        Deallocation::Waitforjobcompletion => NodeDeallocationOption::Waitforjobcompletion,
    };
    let settings = ScaleSettings {
        manual: Some(ManualScaleSettings {
            target_node_count: args.target,
            node_deallocation_option: option.into(),
        }),
        auto_scale: None,
    };
    update(context, &args.name, settings).await
}

/// Lets the number of nodes follow the jobs.
pub(super) async fn auto_scale(context: &Context, args: &AutoScaleArgs) -> Result<(), Error> {
    if args.min > args.max {
        return Err(Error::usage(format!(
            "--min {} is more than --max {}; write the smaller one as --min",
            args.min, args.max
        )));
    }
    let settings = auto(args.min, args.max, 0, args.idle_time);
    update(context, &args.name, settings).await
}

async fn update(context: &Context, name: &NameArg, settings: ScaleSettings) -> Result<(), Error> {
    let name = cluster_name(&name.workspace, &name.name)?;
    let request = UpdateClusterRequest {
        cluster: Some(Cluster {
            name: name.to_string(),
            scale_settings: Some(settings),
            ..Cluster::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec!["scale_settings".to_owned()],
        }),
    };
    let updated = context.api()?.update_cluster(request).await?;
    context.output().done("updated", &updated)
}
