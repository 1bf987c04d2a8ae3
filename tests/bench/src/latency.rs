//! `latency`: how long a job takes from its submission to its first instruction, on a cluster that does nothing else.
//!
//! The job's first instruction notes the time by the same host's clock; nothing is measured through a poll. The floor is
//! the same instruction started by hand.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};
use trainyard_shared::client::Client;

use crate::calls;
use crate::error::{BenchError, Context, Result};
use crate::rig::{NodeArgs, Rig, RigArgs, Target};
use crate::stats::Samples;

/// Jobs before the measured ones: connections, caches, directories.
const WARM_UP_JOBS: u32 = 6;
const FLOOR_RUNS: u32 = 100;
/// Between jobs, so that the cluster is idle again.
const PAUSE: Duration = Duration::from_millis(50);

/// Flags of `latency`.
#[derive(Clone, Debug, Args)]
pub(crate) struct LatencyArgs {
    #[command(flatten)]
    nodes: NodeArgs,
    /// Jobs that are measured, one after another
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    jobs: u32,
    /// Members to call
    #[arg(long, value_enum, default_value_t = Target::Any)]
    to: Target,
}

/// Times of one job, from its submission on.
struct Timeline {
    /// The create was answered.
    acknowledged: Duration,
    /// The job's first instruction.
    started: Duration,
    /// The client saw that it had ended.
    ended: Duration,
}

/// Runs the benchmark.
pub(crate) async fn run(rig_args: &RigArgs, args: &LatencyArgs) -> Result<Value> {
    let rig = Rig::start(rig_args, args.nodes.nodes, args.nodes.gpus).await?;
    calls::prepare(&rig.client()?, args.nodes.nodes).await?;
    let members = usize::from(rig_args.schedulers);
    let clients = rig.clients(members, args.to).await?;
    let dir = rig.task_dir().to_owned();
    eprintln!("measuring the floor");
    let floor: Samples = (0..FLOOR_RUNS)
        .map(|_| spawn_by_hand(&dir.join("floor")))
        .collect::<Result<_>>()?;

    eprintln!("running {} jobs one after another", args.jobs);
    let mut timelines = Vec::new();
    for (number, client) in (0..WARM_UP_JOBS + args.jobs).zip(clients.iter().cycle()) {
        let timeline = run_one(client, &dir, &format!("job-{number}")).await?;
        if number >= WARM_UP_JOBS {
            timelines.push(timeline);
        }
        tokio::time::sleep(PAUSE).await;
    }
    let started: Samples = timelines.iter().map(|times| times.started).collect();
    let acknowledged: Samples = timelines.iter().map(|times| times.acknowledged).collect();
    let ended: Samples = timelines.iter().map(|times| times.ended).collect();
    let to_leader = leader_share(&rig, &timelines, members, args.to).await?;
    Ok(json!({
        "p50_ms": started.percentile_ms(50),
        "p99_ms": started.percentile_ms(99),
        "max_ms": started.max_ms(),
        "via_leader_p50_ms": to_leader.percentile_ms(50),
        "acknowledged_p50_ms": acknowledged.percentile_ms(50),
        "acknowledged_p99_ms": acknowledged.percentile_ms(99),
        "ended_p50_ms": ended.percentile_ms(50),
        "ended_p99_ms": ended.percentile_ms(99),
        "spawn_floor_ms": floor.percentile_ms(50),
        "spawn_floor_p99_ms": floor.percentile_ms(99),
        "jobs": args.jobs,
        "schedulers": rig_args.schedulers,
        "nodes": args.nodes.nodes,
        "calls_to": args.to.text(),
        "file_system": rig.file_system(),
    }))
}

/// The times to the first instruction of those jobs that were submitted to the leader itself.
async fn leader_share(
    rig: &Rig,
    timelines: &[Timeline],
    members: usize,
    target: Target,
) -> Result<Samples> {
    let leader = rig.leader().await?;
    let warm_up = WARM_UP_JOBS as usize;
    Ok(timelines
        .iter()
        .enumerate()
        .filter(|(index, _)| target == Target::Leader || (index + warm_up) % members == leader)
        .map(|(_, times)| times.started)
        .collect())
}

async fn run_one(client: &Client, dir: &Path, id: &str) -> Result<Timeline> {
    let stamp = dir.join(id);
    let out = dir.display().to_string();
    let spec = calls::job_spec(calls::BUSY, &stamp_command(&stamp), &out, 0);
    let submitted = since_epoch(SystemTime::now())?;
    calls::create_job(client, id.to_owned(), &spec)
        .await
        .map_err(|status| BenchError::new(format!("cannot create a job: {status}")))?;
    let acknowledged = since_epoch(SystemTime::now())?;
    let job = calls::wait_for_job(client, id).await?;
    let ended = since_epoch(SystemTime::now())?;
    calls::require_success(&job)?;
    Ok(Timeline {
        acknowledged: acknowledged.saturating_sub(submitted),
        started: read_stamp(&stamp)?.saturating_sub(submitted),
        ended: ended.saturating_sub(submitted),
    })
}

/// A line of bash whose first action is to read the clock: words are expanded before files are opened.
fn stamp_command(stamp: &Path) -> String {
    format!("echo $EPOCHREALTIME >'{}'", stamp.display())
}

/// From just before bash is started to its first instruction.
fn spawn_by_hand(stamp: &Path) -> Result<Duration> {
    let before = since_epoch(SystemTime::now())?;
    let status = Command::new("bash")
        .arg("-c")
        .arg(stamp_command(stamp))
        .stdin(Stdio::null())
        .status()
        .cannot("run bash")?;
    if !status.success() {
        return Err(BenchError::new(format!("bash ended with {status}")));
    }
    Ok(read_stamp(stamp)?.saturating_sub(before))
}

fn read_stamp(path: &Path) -> Result<Duration> {
    let text = fs::read_to_string(path).cannot(format_args!("read {}", path.display()))?;
    parse_stamp(&text).ok_or_else(|| {
        BenchError::new(format!(
            "{} holds {text:?}, no time: bash 5 or later is needed",
            path.display()
        ))
    })
}

/// `SECONDS.MICROSECONDS` since 1970; some locales have a comma.
fn parse_stamp(text: &str) -> Option<Duration> {
    let (seconds, micros) = text.trim().split_once(['.', ','])?;
    if micros.len() != 6 {
        return None;
    }
    Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?))
}

fn since_epoch(time: SystemTime) -> Result<Duration> {
    time.duration_since(UNIX_EPOCH).cannot("read the clock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_seconds_and_micros() {
        let time = Duration::from_micros(1_700_000_000_000_123);
        assert_eq!(parse_stamp("1700000000.000123\n"), Some(time));
        assert_eq!(parse_stamp("1700000000,000123"), Some(time));
        for wrong in ["", "1700000000", "1.5", "a.000000"] {
            assert_eq!(parse_stamp(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn bash_notes_a_time_after_its_start() {
        let dir = tempfile::tempdir().unwrap();
        let taken = spawn_by_hand(&dir.path().join("stamp"));
        let taken = taken.unwrap();
        assert!(
            taken > Duration::ZERO && taken < Duration::from_secs(10),
            "{taken:?}"
        );
    }
}
