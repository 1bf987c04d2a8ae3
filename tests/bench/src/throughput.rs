//! `throughput`: trivial jobs from the first submission until all have ended, more of them than fit at a time.

use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use trainyard_proto::v1::{ExecutionState, JobSpec};
use trainyard_shared::client::Client;

use crate::calls;
use crate::error::{BenchError, Context, Result};
use crate::rig::{NodeArgs, Rig, RigArgs, Target};
use crate::stats::{ms, round};
use crate::usage::CpuMeter;

/// Flags of `throughput`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ThroughputArgs {
    #[command(flatten)]
    nodes: NodeArgs,
    /// Jobs
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    jobs: u32,
    /// Clients that submit them
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// Members to call
    #[arg(long, value_enum, default_value_t = Target::Any)]
    to: Target,
}

/// Runs the benchmark.
pub(crate) async fn run(rig_args: &RigArgs, args: &ThroughputArgs) -> Result<Value> {
    let NodeArgs { nodes, gpus } = args.nodes;
    let rig = Rig::start(rig_args, nodes, gpus).await?;
    let watcher = rig.client()?;
    calls::prepare(&watcher, nodes).await?;
    let clients = rig.clients(args.clients.into(), args.to).await?;
    // One GPU each: as many jobs run beside each other as GPUs are declared.
    let out = rig.task_dir().display().to_string();
    let spec = calls::job_spec(calls::BUSY, "true", &out, 1);
    let first = calls::create_job(&watcher, "warm-up".into(), &spec).await;
    first.map_err(|status| BenchError::new(format!("cannot create a job: {status}")))?;
    calls::require_success(&calls::wait_for_job(&watcher, "warm-up").await?)?;

    let slots = nodes * u64::from(gpus);
    eprintln!("running {} jobs, {slots} at a time", args.jobs);
    let pids = [rig.member_pids()?, rig.agent_pids()?].concat();
    let meter = CpuMeter::start(pids)?;
    let begun = Instant::now();
    submit_all(&clients, args.jobs, &spec).await?;
    let accepted = begun.elapsed();
    eprintln!("accepted after {} ms", ms(accepted));
    wait_for_all(&watcher, args.jobs).await?;
    let all = begun.elapsed();
    let cpu = meter.read()?;
    let leader = rig.leader().await?;

    let jobs = calls::jobs(&watcher).await?;
    let succeeded = jobs
        .values()
        .filter(|job| job.execution_state() == ExecutionState::Succeeded)
        .count();
    let restarted = jobs.values().filter(|job| job.attempts.len() != 1).count();
    Ok(json!({
        "per_second": round(f64::from(args.jobs) / all.as_secs_f64()),
        "seconds": round(all.as_secs_f64()),
        "accepted_seconds": round(accepted.as_secs_f64()),
        "jobs": args.jobs,
        // Without the one for warming up.
        "succeeded": succeeded.saturating_sub(1),
        "run_more_than_once": restarted,
        "slots": slots,
        "schedulers": rig_args.schedulers,
        "nodes": nodes,
        "clients": args.clients,
        "calls_to": args.to.text(),
        "leader_cpu_percent": cpu.percent(leader),
        "agent_cpu_percent": cpu.percent(usize::from(rig_args.schedulers)),
        "client_cpu_percent": cpu.own_percent(),
        // Supervisors, helpers and tasks are in it.
        "other_cpu_percent": cpu.other_percent(),
        "file_system": rig.file_system(),
    }))
}

async fn submit_all(clients: &[Client], jobs: u32, spec: &JobSpec) -> Result<()> {
    let mut submitters = JoinSet::new();
    let step = u32::try_from(clients.len()).unwrap_or(u32::MAX).max(1);
    for (first, client) in (0..step).zip(clients) {
        let (client, spec) = (client.clone(), spec.clone());
        submitters.spawn(async move {
            for number in (first..jobs).step_by(step as usize) {
                calls::create_job(&client, job_id(number), &spec).await?;
            }
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(joined) = submitters.join_next().await {
        let done = joined.cannot("wait for a client")?;
        done.map_err(|status| BenchError::new(format!("cannot create a job: {status}")))?;
    }
    Ok(())
}

/// Waits for the job that was submitted last, then for those that others overtook: almost no load by watching.
async fn wait_for_all(client: &Client, jobs: u32) -> Result<()> {
    calls::wait_for_job(client, &job_id(jobs - 1)).await?;
    for (id, job) in calls::jobs(client).await? {
        if !calls::has_ended(&job) {
            calls::wait_for_job(client, &id).await?;
        }
    }
    Ok(())
}

fn job_id(number: u32) -> String {
    format!("job-{number:06}")
}
