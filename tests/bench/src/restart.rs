//! `restart`: how long the service is away when all schedulers are killed at once with many jobs in their state.
//!
//! The time counts from the kill to the first linearizable read that is answered, and the read must find the newest job.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::calls;
use crate::error::{BenchError, Result};
use crate::fill::{self, JobsArgs};
use crate::rig::{Rig, RigArgs};
use crate::stats::{Samples, ms, round};

/// After which a restart counts as failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two tries; a refused connection answers at once.
const PAUSE: Duration = Duration::from_millis(2);

/// Flags of `restart`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RestartArgs {
    #[command(flatten)]
    jobs: JobsArgs,
    /// Times that all are killed
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=100))]
    rounds: u8,
}

/// Runs the benchmark.
pub(crate) async fn run(rig_args: &RigArgs, args: &RestartArgs) -> Result<Value> {
    let mut rig = Rig::start(rig_args, 0, 0).await?;
    fill::fill(&rig, args.jobs.jobs).await?;
    let mut serving = Vec::new();
    let mut lost = 0;
    for round in 0..args.rounds {
        let id = format!("newest-{round}");
        let newest = calls::create_job(&rig.client()?, id.clone(), &calls::empty_job())
            .await
            .map_err(|status| BenchError::new(format!("cannot create a job: {status}")))?;
        eprintln!("killing all schedulers");
        let killed = Instant::now();
        for member in rig.members() {
            member.kill()?;
        }
        for member in rig.members() {
            member.start()?;
        }
        let found = first_read(&mut rig, &id, killed).await?;
        serving.push(killed.elapsed());
        lost += usize::from(found.as_deref() != Some(newest.uid.as_str()));
        rig.wait_until_whole().await?;
    }
    let found = calls::jobs(&rig.client()?).await?.len();
    let wanted = usize::try_from(args.jobs.jobs).unwrap_or(usize::MAX) + usize::from(args.rounds);
    let serving: Samples = serving.into_iter().collect();
    Ok(json!({
        "jobs": args.jobs.jobs,
        "serving_s": round(serving.percentile(50).as_secs_f64()),
        "serving_max_s": round(ms(serving.percentile(100)) / 1e3),
        "rounds": args.rounds,
        "lost": lost + wanted.saturating_sub(found),
        "schedulers": rig_args.schedulers,
        "file_system": rig.file_system(),
    }))
}

/// Reads the newest job until the read is answered; its id, or `None` if it does not exist.
async fn first_read(rig: &mut Rig, id: &str, since: Instant) -> Result<Option<String>> {
    let client = rig.client()?;
    loop {
        if let Some(answer) = calls::try_job(&client, id).await {
            return Ok(answer);
        }
        for member in rig.members() {
            member.check_alive()?;
        }
        if since.elapsed() > PATIENCE {
            return Err(BenchError::new(format!(
                "no read was answered within {PATIENCE:?} of the kill"
            )));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
