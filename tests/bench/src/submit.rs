//! `submit`: how many jobs the schedulers accept per second, each on the disks of a majority before it is acknowledged.
//!
//! The jobs go to a cluster without nodes: nothing but their acceptance is measured.

use std::time::{Duration, Instant};

use clap::Args;
use nix::unistd::Pid;
use prost::Message;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::calls;
use crate::disk;
use crate::error::{Context, Result};
use crate::etcd::{CALM, Etcd};
use crate::rig::{Beside, Rig, RigArgs, Target};
use crate::stats::{Samples, round};
use crate::usage::{CpuMeter, CpuUse};
use crate::writer::{JobWriter, KeyWriter, Writer};

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
    /// Measure a peer afterwards in the same way: its puts, with values of a job's size
    #[arg(long, value_enum)]
    beside: Option<Beside>,
}

/// Runs the benchmark.
pub(crate) async fn run(rig_args: &RigArgs, args: &SubmitArgs) -> Result<Value> {
    let mut report = measure_jobs(rig_args, args).await?;
    if args.beside == Some(Beside::Etcd) {
        measure_etcd(rig_args, args, &mut report).await?;
    }
    Ok(report)
}

async fn measure_jobs(rig_args: &RigArgs, args: &SubmitArgs) -> Result<Value> {
    let rig = Rig::start(rig_args, 0, 0).await?;
    eprintln!("measuring the disk");
    let floor = disk::floor(rig.path())?;
    calls::prepare(&rig.client()?, 0).await?;
    let connections = args.connections.unwrap_or(args.clients).min(args.clients);
    let clients = rig.clients(connections.into(), args.to).await?;
    let writers = clients.iter().cycle().take(args.clients.into());
    let writers = writers.map(|client| JobWriter {
        client: client.clone(),
        spec: calls::empty_job(),
    });
    let seconds = args.seconds;
    eprintln!(
        "creating jobs from {} clients for {seconds} s",
        args.clients
    );
    let (latencies, cpu) = drive(writers, seconds, rig.member_pids()?).await?;
    let leader = rig.leader().await?;
    Ok(json!({
        "per_second": per_second(&latencies, seconds),
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
        "seconds": seconds,
        "calls_to": args.to.text(),
        "leader_cpu_percent": cpu.percent(leader),
        "follower_cpu_percent": cpu.highest_percent_but(leader),
        "client_cpu_percent": cpu.own_percent(),
        "other_cpu_percent": cpu.other_percent(),
        "file_system": rig.file_system(),
    }))
}

/// The same with etcd, whose clients have a connection each and spread evenly over the members.
async fn measure_etcd(rig_args: &RigArgs, args: &SubmitArgs, report: &mut Value) -> Result<()> {
    eprintln!("starting etcd");
    let etcd = Etcd::start(rig_args.run_dir()?, rig_args.schedulers).await?;
    let value = vec![b'x'; calls::empty_job().encoded_len()];
    let clients = (0..args.clients).map(|number| etcd.client(number.into(), CALM));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let writers = clients.into_iter().map(|client| KeyWriter {
        client,
        value: value.clone(),
    });
    eprintln!(
        "putting keys from {} clients for {} s",
        args.clients, args.seconds
    );
    let (latencies, cpu) = drive(writers, args.seconds, etcd.member_pids()?).await?;
    let leader = etcd.leader().await?;
    let etcd_per_second = per_second(&latencies, args.seconds);
    let own = report["per_second"].as_f64().unwrap_or_default();
    report["etcd_per_second"] = etcd_per_second.into();
    report["etcd_p50_ms"] = latencies.percentile_ms(50).into();
    report["etcd_p99_ms"] = latencies.percentile_ms(99).into();
    report["etcd_leader_cpu_percent"] = cpu.percent(leader).into();
    report["etcd_client_cpu_percent"] = cpu.own_percent().into();
    report["etcd_other_cpu_percent"] = cpu.other_percent().into();
    report["ratio_to_etcd"] = round(own / etcd_per_second).into();
    Ok(())
}

fn per_second(latencies: &Samples, seconds: u64) -> f64 {
    round(latencies.len() as f64 / seconds as f64)
}

/// Lets every writer write one thing after another. Returns the times of the writes that were answered in the measured time,
/// and what the processes used in it.
async fn drive<W: Writer>(
    writers: impl Iterator<Item = W>,
    seconds: u64,
    pids: Vec<Pid>,
) -> Result<(Samples, CpuUse)> {
    let from = Instant::now() + WARM_UP;
    let until = from + Duration::from_secs(seconds);
    let mut tasks = JoinSet::new();
    for (number, writer) in writers.enumerate() {
        tasks.spawn(write_until(writer, number, from, until));
    }
    tokio::time::sleep_until(from.into()).await;
    let meter = CpuMeter::start(pids)?;
    tokio::time::sleep_until(until.into()).await;
    let cpu = meter.read()?;
    let mut latencies = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        latencies.extend(joined.cannot("wait for a client")??);
    }
    Ok((latencies.into_iter().collect(), cpu))
}

/// Writes until `until`; the times of those writes that were answered from `from` on.
async fn write_until<W: Writer>(
    mut writer: W,
    number: usize,
    from: Instant,
    until: Instant,
) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for count in 0_u64.. {
        let begun = Instant::now();
        if begun >= until {
            break;
        }
        writer.write(format!("c{number}-{count}")).await?;
        let ended = Instant::now();
        if ended >= from && ended < until {
            times.push(ended - begun);
        }
    }
    Ok(times)
}
