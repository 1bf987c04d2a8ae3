//! `submit`: how many jobs the schedulers accept per second, each on the disks of a majority before it is acknowledged.
//!
//! The jobs go to a cluster without nodes: nothing but their acceptance is measured.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use trainyard_proto::v1::JobSpec;
use trainyard_shared::client::Client;

use crate::calls;
use crate::disk;
use crate::error::{BenchError, Context, Result};
use crate::rig::{Rig, RigArgs, Target};
use crate::stats::{Samples, round};
use crate::usage::CpuMeter;

/// Time for connections to be made and for the first jobs, which is not measured.
const WARM_UP: Duration = Duration::from_secs(1);

/// Flags of `submit`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SubmitArgs {
    /// Clients that create one job after another
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// Connections that the clients share evenly [default: one for each client]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: Option<u16>,
    /// Time that is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    seconds: u64,
    /// Members to call
    #[arg(long, value_enum, default_value_t = Target::Any)]
    to: Target,
}

/// Runs the benchmark.
pub(crate) async fn run(rig_args: &RigArgs, args: &SubmitArgs) -> Result<Value> {
    let rig = Rig::start(rig_args, 0, 0).await?;
    eprintln!("measuring the disk");
    let floor = disk::floor(rig.path())?;
    calls::prepare(&rig.client()?, 0).await?;
    let connections = args.connections.unwrap_or(args.clients).min(args.clients);
    let clients = rig.clients(connections.into(), args.to).await?;
    let spec = calls::job_spec(calls::EMPTY, "true", "/tmp", 0);

    let seconds = Duration::from_secs(args.seconds);
    eprintln!(
        "creating jobs from {} clients for {} s",
        args.clients, args.seconds
    );
    let from = Instant::now() + WARM_UP;
    let until = from + seconds;
    let mut writers = JoinSet::new();
    for (number, client) in (0..args.clients).zip(clients.iter().cycle()) {
        writers.spawn(create_until(
            client.clone(),
            number,
            spec.clone(),
            from,
            until,
        ));
    }
    tokio::time::sleep_until(from.into()).await;
    let meter = CpuMeter::start(rig.member_pids()?)?;
    tokio::time::sleep_until(until.into()).await;
    let cpu = meter.read()?;
    let mut latencies = Vec::new();
    while let Some(joined) = writers.join_next().await {
        latencies.extend(joined.cannot("wait for a client")??);
    }
    let latencies: Samples = latencies.into_iter().collect();
    let leader = rig.leader().await?;
    Ok(json!({
        "per_second": round(latencies.len() as f64 / seconds.as_secs_f64()),
        "p50_ms": latencies.percentile_ms(50),
        "p99_ms": latencies.percentile_ms(99),
        "max_ms": latencies.max_ms(),
        "jobs": latencies.len(),
        "fdatasync_p50_ms": floor.append.percentile_ms(50),
        "fdatasync_p99_ms": floor.append.percentile_ms(99),
        "fdatasync_preallocated_p50_ms": floor.overwrite.percentile_ms(50),
        "schedulers": rig_args.schedulers,
        "clients": args.clients,
        "connections": connections,
        "seconds": args.seconds,
        "calls_to": args.to.text(),
        "leader_cpu_percent": cpu.percent(leader),
        "follower_cpu_percent": cpu.highest_percent_but(leader),
        "client_cpu_percent": cpu.own_percent(),
        "file_system": rig.file_system(),
    }))
}

/// Creates jobs until `until`; the times of those that were acknowledged from `from` on.
async fn create_until(
    client: Client,
    number: u16,
    spec: JobSpec,
    from: Instant,
    until: Instant,
) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for job in 0_u64.. {
        let begun = Instant::now();
        if begun >= until {
            break;
        }
        calls::create_job(&client, format!("c{number}-{job}"), &spec)
            .await
            .map_err(|status| {
                BenchError::new(format!(
                    "cannot create a job: {:?}: {}",
                    status.code(),
                    status.message()
                ))
            })?;
        let ended = Instant::now();
        if ended >= from && ended < until {
            times.push(ended - begun);
        }
    }
    Ok(times)
}
