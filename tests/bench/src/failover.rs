//! `failover`: how long no write is accepted after the leader is killed under load, and whether anything is lost by it.
//!
//! Every job that was acknowledged is looked up in the end, by name and id, after the kills and again after all members
//! were killed at once. A job that runs all the while must not notice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use prost::Message;
use serde_json::{Value, json};
use trainyard_proto::v1::{ExecutionState, Job};
use trainyard_shared::client::Client;

use crate::calls;
use crate::error::{BenchError, Context, Result};
use crate::etcd::{CALM, Etcd};
use crate::outage::{self, Acknowledged};
use crate::rig::{Beside, Rig, RigArgs};
use crate::stats::{ms, round};
use crate::writer::{JobWriter, KeyWriter};

/// The job that runs all the while.
const RUNNING: &str = "running";

/// Flags of `failover`.
#[derive(Clone, Debug, Args)]
pub(crate) struct FailoverArgs {
    /// Leaders to kill, one after another
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    kills: u16,
    /// Clients that create jobs
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    clients: u16,
    /// Measure a peer afterwards in the same way
    #[arg(long, value_enum)]
    beside: Option<Beside>,
}

/// Runs the benchmark.
pub(crate) async fn run(rig_args: &RigArgs, args: &FailoverArgs) -> Result<Value> {
    if rig_args.schedulers < 3 {
        return Err(BenchError::new(
            "fewer than three schedulers do not survive the loss of one: give --schedulers 3",
        ));
    }
    let mut report = measure_trainyard(rig_args, args).await?;
    if args.beside == Some(Beside::Etcd) {
        measure_etcd(rig_args, args, &mut report).await?;
    }
    Ok(report)
}

async fn measure_trainyard(rig_args: &RigArgs, args: &FailoverArgs) -> Result<Value> {
    let mut rig = Rig::start(rig_args, 1, 1).await?;
    let watcher = rig.client()?;
    calls::prepare(&watcher, 1).await?;
    start_running_job(&rig, &watcher).await?;
    let clients = (0..args.clients).map(|_| rig.client());
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let writers = clients.into_iter().map(|client| JobWriter {
        client,
        spec: calls::empty_job(),
    });
    let outages = outage::measure(&mut rig, writers, args.kills).await?;

    let acknowledged = &outages.acknowledged;
    eprintln!("looking up {} jobs", acknowledged.len());
    let lost = count_lost(acknowledged, &calls::jobs(&watcher).await?);
    for member in rig.members() {
        member.kill()?;
    }
    for member in rig.members() {
        member.start()?;
    }
    let back = Instant::now();
    rig.wait_until_whole().await?;
    let back = back.elapsed();
    let jobs = calls::jobs(&watcher).await?;
    let lost_by_all = count_lost(acknowledged, &jobs);
    let touched = !runs_untouched(jobs.get(RUNNING));
    calls::terminate_job(&watcher, RUNNING).await?;
    calls::wait_for_job(&watcher, RUNNING).await?;
    Ok(json!({
        "gap_p50_ms": outages.gaps.percentile_ms(50),
        "gap_max_ms": outages.gaps.max_ms(),
        "slowest_call_max_ms": outages.slowest.max_ms(),
        "kills": args.kills,
        "acknowledged": acknowledged.len(),
        "lost": lost,
        "lost_after_all_were_killed": lost_by_all,
        "restart_of_all_ms": ms(back),
        "running_jobs_touched": u8::from(touched),
        "schedulers": rig_args.schedulers,
        "clients": args.clients,
        "calls_to": "any member, drawn by the client",
        "file_system": rig.file_system(),
    }))
}

/// The same with etcd, whose clients give up a member that does not answer soon, and go on with the next.
async fn measure_etcd(rig_args: &RigArgs, args: &FailoverArgs, report: &mut Value) -> Result<()> {
    eprintln!("starting etcd");
    let mut etcd = Etcd::start(rig_args.run_dir()?, rig_args.schedulers).await?;
    let value = vec![b'x'; calls::empty_job().encoded_len()];
    let clients = (0..args.clients).map(|number| etcd.client(number.into(), patience(number)));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let writers = clients.into_iter().map(|client| KeyWriter {
        client,
        value: value.clone(),
    });
    let outages = outage::measure(&mut etcd, writers, args.kills).await?;
    // There may be more: a put whose answer was lost counts as well.
    let found = etcd.client(0, CALM)?.count().await?;
    let acknowledged = outages.acknowledged.len() as u64;
    let own = report["gap_max_ms"].as_f64().unwrap_or_default();
    report["etcd_gap_p50_ms"] = outages.gaps.percentile_ms(50).into();
    report["etcd_gap_max_ms"] = outages.gaps.max_ms().into();
    report["etcd_slowest_call_max_ms"] = outages.slowest.max_ms().into();
    report["etcd_acknowledged"] = acknowledged.into();
    report["etcd_lost_at_least"] = acknowledged.saturating_sub(found).into();
    report["gap_max_ratio_to_etcd"] = round(own / outages.gaps.max_ms()).into();
    Ok(())
}

/// A member of etcd forwards to a leader that is dead without noticing. All clients together must not be the ones who make
/// the gap longer: they give up soon, and not all at once.
fn patience(number: u16) -> Duration {
    Duration::from_millis(200 + 10 * u64::from(number % 16))
}

/// Starts a job that sleeps, and waits until it does.
async fn start_running_job(rig: &Rig, client: &Client) -> Result<()> {
    let out = rig.task_dir().display().to_string();
    let spec = calls::job_spec(calls::BUSY, "exec sleep 86400", &out, 0);
    calls::create_job(client, RUNNING.into(), &spec)
        .await
        .map_err(|status| BenchError::new(format!("cannot create a job: {status}")))?;
    let mut states = client.watch_job(calls::job_name(RUNNING));
    while let Some(job) = states.message().await.cannot("follow a job")? {
        if job.execution_state() == ExecutionState::Running {
            return Ok(());
        }
    }
    Err(BenchError::new("the job that should run has ended"))
}

fn runs_untouched(job: Option<&Job>) -> bool {
    job.is_some_and(|job| {
        job.execution_state() == ExecutionState::Running && job.attempts.len() == 1
    })
}

fn count_lost(acknowledged: &[Acknowledged], jobs: &BTreeMap<String, Job>) -> usize {
    let is_lost = |write: &&Acknowledged| {
        let found = jobs.get(&write.name);
        found.is_none_or(|job| job.uid != write.uid)
    };
    acknowledged.iter().filter(is_lost).count()
}
