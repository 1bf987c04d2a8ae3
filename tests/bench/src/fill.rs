//! Fills the schedulers with jobs, for the benchmarks of a large state. It must leave the state as it says, or fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use clap::Args;
use tokio::task::JoinSet;

use crate::calls;
use crate::error::{BenchError, Context, Result};
use crate::rig::{Rig, Target};

/// Clients that create the jobs.
const CLIENTS: usize = 32;
/// One job of so many stays queued; the others have ended, as in an installation that has run for long.
const QUEUED_ONE_OF: u32 = 10;
/// Jobs between two lines of progress.
const PROGRESS: u32 = 20_000;

/// How many jobs, for the benchmarks of a large state.
#[derive(Clone, Debug, Args)]
pub(crate) struct JobsArgs {
    /// Jobs in the state; nine of ten have ended
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    pub(crate) jobs: u32,
}

/// The id of the job with this number.
pub(crate) fn job_id(number: u32) -> String {
    format!("job-{number:07}")
}

/// Creates `jobs` jobs, each by a call of its own, and ends nine of ten.
pub(crate) async fn fill(rig: &Rig, jobs: u32) -> Result<()> {
    calls::prepare(&rig.client()?, 0).await?;
    let queued = jobs / QUEUED_ONE_OF;
    create(rig, 0..jobs - queued).await?;
    eprintln!("ending {} jobs", jobs - queued);
    let ended = calls::terminate_all(&rig.client()?).await?;
    if ended != u64::from(jobs - queued) {
        return Err(BenchError::new(format!(
            "{ended} jobs were ended instead of {}",
            jobs - queued
        )));
    }
    create(rig, jobs - queued..jobs).await
}

async fn create(rig: &Rig, numbers: std::ops::Range<u32>) -> Result<()> {
    let next = Arc::new(AtomicU32::new(numbers.start));
    let mut tasks = JoinSet::new();
    for client in rig.clients(CLIENTS, Target::Leader).await? {
        let (next, end) = (Arc::clone(&next), numbers.end);
        tasks.spawn(async move {
            let spec = calls::empty_job();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return Ok(());
                }
                if number % PROGRESS == 0 {
                    eprintln!("creating job {number}");
                }
                calls::create_job(&client, job_id(number), &spec)
                    .await
                    .map_err(|status| BenchError::new(format!("cannot create a job: {status}")))?;
            }
        });
    }
    while let Some(joined) = tasks.join_next().await {
        joined.cannot("wait for a client")??;
    }
    Ok(())
}
