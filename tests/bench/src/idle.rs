//! `idle`: what the daemons use while nothing is to be done, with the settings they are shipped with.

use std::time::Duration;

use clap::Args;
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::error::Result;
use crate::rig::{NodeArgs, Rig, RigArgs};
use crate::stats::round;
use crate::usage::{CpuMeter, resident_mib};

/// After the start, until connections and logs have settled.
const SETTLE: Duration = Duration::from_secs(5);

/// Flags of `idle`.
#[derive(Clone, Debug, Args)]
pub(crate) struct IdleArgs {
    #[command(flatten)]
    nodes: NodeArgs,
    /// Time that is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

/// Runs the benchmark.
pub(crate) async fn run(rig_args: &RigArgs, args: &IdleArgs) -> Result<Value> {
    let rig = Rig::start(rig_args, args.nodes.nodes, args.nodes.gpus).await?;
    let leader = rig.leader().await?;
    let (members, agents) = (rig.member_pids()?, rig.agent_pids()?);
    tokio::time::sleep(SETTLE).await;
    eprintln!("watching for {} s", args.seconds);
    let meter = CpuMeter::start([members.clone(), agents.clone()].concat())?;
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let cpu = meter.read()?;
    let first_agent = members.len();
    let percents =
        |range: std::ops::Range<usize>| range.map(|index| cpu.percent(index)).fold(0.0, f64::max);
    // Of several daemons of a kind, the one that uses most.
    Ok(json!({
        "agent_rss_mib": largest_mib(&agents)?,
        "agent_cpu_percent": percents(first_agent..first_agent + agents.len()),
        "scheduler_rss_mib": largest_mib(&members)?,
        "scheduler_cpu_percent": percents(0..first_agent),
        "leader_cpu_percent": cpu.percent(leader),
        "other_cpu_percent": cpu.other_percent(),
        "seconds": args.seconds,
        "schedulers": rig_args.schedulers,
        "nodes": args.nodes.nodes,
        "file_system": rig.file_system(),
    }))
}

fn largest_mib(pids: &[Pid]) -> Result<f64> {
    let sizes: Vec<f64> = pids
        .iter()
        .copied()
        .map(resident_mib)
        .collect::<Result<_>>()?;
    Ok(round(sizes.into_iter().fold(0.0, f64::max)))
}
