//! `failover`: how long no write is accepted after the leader is killed under load, and whether anything is lost by it.
//!
//! Every job that was acknowledged is looked up in the end, by name and id, after the kills and again after all members
//! were killed at once. A job that runs all the while must not notice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use trainyard_proto::v1::{ExecutionState, Job, JobSpec};
use trainyard_shared::client::Client;

use crate::calls;
use crate::error::{BenchError, Context, Result};
use crate::rig::{Rig, RigArgs};
use crate::stats::Samples;

/// Load before and after each kill.
const STEADY: Duration = Duration::from_secs(2);
/// How long writes may fail to be accepted.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Between the writes of one client. Bounds the number of jobs.
const PAUSE: Duration = Duration::from_millis(10);
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
}

/// One acknowledged job.
struct Acknowledged {
    id: String,
    uid: String,
    /// When its create was called and when it returned.
    called: Instant,
    returned: Instant,
}

/// What the writers have to tell.
type Record = Arc<Mutex<Vec<Acknowledged>>>;

/// Runs the benchmark.
pub(crate) async fn run(rig_args: &RigArgs, args: &FailoverArgs) -> Result<Value> {
    if rig_args.schedulers < 3 {
        return Err(BenchError::new(
            "fewer than three schedulers do not survive the loss of one: give --schedulers 3",
        ));
    }
    let mut rig = Rig::start(rig_args, 1, 1).await?;
    let watcher = rig.client()?;
    calls::prepare(&watcher, 1).await?;
    start_running_job(&rig, &watcher).await?;

    let record = Record::default();
    let spec = calls::job_spec(calls::EMPTY, "true", "/tmp", 0);
    let mut writers = JoinSet::new();
    for number in 0..args.clients {
        writers.spawn(write(
            rig.client()?,
            number,
            spec.clone(),
            Arc::clone(&record),
        ));
    }
    let mut gaps = Vec::new();
    let mut slowest = Vec::new();
    for number in 1..=args.kills {
        load(&mut writers, STEADY).await?;
        rig.wait_until_whole().await?;
        let leader = rig.leader().await?;
        let killed = Instant::now();
        rig.members[leader].kill()?;
        let (gap, call) = wait_for_recovery(&mut writers, &record, killed).await?;
        eprintln!("kill {number} of {}: no write for {gap:?}", args.kills);
        gaps.push(gap);
        slowest.push(call);
        rig.members[leader].start()?;
        rig.wait_until_whole().await?;
    }
    writers.shutdown().await;

    let acknowledged = std::mem::take(&mut *lock(&record));
    eprintln!("looking up {} jobs", acknowledged.len());
    let lost = count_lost(&acknowledged, &calls::jobs(&watcher).await?);
    for member in &mut rig.members {
        member.kill()?;
    }
    for member in &mut rig.members {
        member.start()?;
    }
    let back = Instant::now();
    rig.wait_until_whole().await?;
    let back = back.elapsed();
    let jobs = calls::jobs(&watcher).await?;
    let lost_by_all = count_lost(&acknowledged, &jobs);
    let touched = !runs_untouched(jobs.get(RUNNING));
    calls::terminate_job(&watcher, RUNNING).await?;
    calls::wait_for_job(&watcher, RUNNING).await?;

    let (gaps, slowest): (Samples, Samples) =
        (gaps.into_iter().collect(), slowest.into_iter().collect());
    Ok(json!({
        "gap_p50_ms": gaps.percentile_ms(50),
        "gap_max_ms": gaps.max_ms(),
        "slowest_call_max_ms": slowest.max_ms(),
        "kills": args.kills,
        "acknowledged": acknowledged.len(),
        "lost": lost,
        "lost_after_all_were_killed": lost_by_all,
        "restart_of_all_ms": crate::stats::ms(back),
        "running_jobs_touched": u8::from(touched),
        "schedulers": rig_args.schedulers,
        "clients": args.clients,
        "calls_to": "any member, drawn by the client",
        "file_system": rig.file_system(),
    }))
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

/// Creates jobs for ever. A call that was not acknowledged promises nothing; one that fails after all is an error.
async fn write(client: Client, number: u16, spec: JobSpec, record: Record) -> Result<()> {
    for job in 0_u64.. {
        let id = format!("c{number}-{job}");
        let called = Instant::now();
        let created = calls::create_job(&client, id.clone(), &spec)
            .await
            .map_err(|status| BenchError::new(format!("cannot create job {id}: {status}")))?;
        lock(&record).push(Acknowledged {
            id,
            uid: created.uid,
            called,
            returned: Instant::now(),
        });
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

fn lock(record: &Record) -> std::sync::MutexGuard<'_, Vec<Acknowledged>> {
    // A writer that panicked has ended the run by itself; what it noted stays true.
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the writers write for a while; fails if one gives up.
async fn load(writers: &mut JoinSet<Result<()>>, time: Duration) -> Result<()> {
    tokio::select! {
        () = tokio::time::sleep(time) => Ok(()),
        Some(ended) = writers.join_next() => ended.cannot("wait for a client")?,
    }
}

/// Waits until writes flow again, and returns the longest time since the kill without any, and the longest call.
async fn wait_for_recovery(
    writers: &mut JoinSet<Result<()>>,
    record: &Record,
    killed: Instant,
) -> Result<(Duration, Duration)> {
    loop {
        load(writers, STEADY).await?;
        {
            let record = lock(record);
            // What the dead leader still sent does not count: the call must have begun after the kill.
            let accepted = record.iter().rev().find(|job| job.called > killed);
            if accepted.is_some_and(|job| job.returned.elapsed() < STEADY) {
                return Ok((longest_gap(&record, killed), longest_call(&record, killed)));
            }
        }
        if killed.elapsed() > RECOVERY_TIMEOUT {
            return Err(BenchError::new(format!(
                "no write was accepted for {RECOVERY_TIMEOUT:?} after the leader was killed"
            )));
        }
    }
}

/// The longest time after `killed` in which nothing was acknowledged, from the kill or an acknowledgement to the next.
fn longest_gap(record: &[Acknowledged], killed: Instant) -> Duration {
    let mut gap = Duration::ZERO;
    let mut last = killed;
    // The record is in order of the acknowledgements but for a few microseconds.
    for job in record.iter().filter(|job| job.returned > killed) {
        gap = gap.max(job.returned.saturating_duration_since(last));
        last = job.returned;
    }
    gap
}

fn longest_call(record: &[Acknowledged], killed: Instant) -> Duration {
    let after = record.iter().filter(|job| job.returned > killed);
    after
        .map(|job| job.returned - job.called)
        .max()
        .unwrap_or_default()
}

fn count_lost(acknowledged: &[Acknowledged], jobs: &BTreeMap<String, Job>) -> usize {
    let is_there =
        |job: &&Acknowledged| jobs.get(&job.id).is_some_and(|found| found.uid == job.uid);
    acknowledged.len() - acknowledged.iter().filter(is_there).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledged(start: Instant, id: &str, called: u64, returned: u64) -> Acknowledged {
        Acknowledged {
            id: id.into(),
            uid: format!("uid-{id}"),
            called: start + Duration::from_millis(called),
            returned: start + Duration::from_millis(returned),
        }
    }

    #[test]
    fn the_gap_begins_after_what_the_dead_leader_sent() {
        let start = Instant::now();
        let killed = start + Duration::from_millis(100);
        let record = [
            acknowledged(start, "a", 10, 20),
            acknowledged(start, "b", 95, 101),
            acknowledged(start, "c", 96, 901),
            acknowledged(start, "d", 902, 905),
        ];
        assert_eq!(longest_gap(&record, killed), Duration::from_millis(800));
        assert_eq!(longest_call(&record, killed), Duration::from_millis(805));
    }

    #[test]
    fn a_job_under_another_id_is_lost() {
        let start = Instant::now();
        let record = ["a", "b", "c"].map(|id| acknowledged(start, id, 0, 1));
        let found = |id: &str, uid: &str| {
            let job = Job {
                uid: uid.into(),
                ..Default::default()
            };
            (id.to_owned(), job)
        };
        let jobs = BTreeMap::from([found("a", "uid-a"), found("b", "another")]);
        assert_eq!(count_lost(&record, &jobs), 2);
    }
}
