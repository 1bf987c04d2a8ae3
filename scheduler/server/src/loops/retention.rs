//! Removes finished jobs that their workspaces no longer keep, and records of usage that are too old, each after it was
//! exported.
//!
//! The export is on the disk before the removal is proposed. A leader that dies in between leaves both the file and the
//! jobs; the next leader exports them again, into its own directory. It must never propose to remove what it could not
//! write.

use std::sync::Arc;
use std::time::Duration;

use prost_types::Timestamp;
use trainyard_core::Reply;
use trainyard_proto::store::v1::{DropUsage, JobReference, RemoveJobs, command::Kind};
use trainyard_proto::v1::Job;

use super::{After, after, until};
use crate::context::Context;
use crate::export::{self, ExportError};

/// Jobs that are exported and removed in one go.
const JOBS: usize = 100;
/// Records of usage that are exported in one go.
const RECORDS: usize = 1_000;
/// Jobs that end closer together than this are looked at together.
const GATHER: Duration = Duration::from_secs(1);
/// Pause after the log was overloaded.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause after an export failed.
const REPAIR: Duration = Duration::from_secs(60);
/// Longest sleep, so that a step of the host's clock is noticed.
const LONGEST: Duration = Duration::from_secs(600);
const DAY_S: i64 = 86_400;

/// What came of a step.
enum Step {
    /// Look again at once.
    Done,
    /// Look again after this.
    Later(Duration),
    /// The leadership is lost.
    End,
}

/// Removes jobs until the leadership is lost.
pub(super) async fn jobs(context: Arc<Context>) {
    loop {
        let now = context.clock.now();
        let (retired, next) = {
            let state = context.state();
            (state.retired_jobs(&now, JOBS), state.next_retirement())
        };
        if !retired.is_empty() {
            match retire(&context, now, retired).await {
                Step::Done => {}
                Step::Later(pause) => tokio::time::sleep(pause).await,
                Step::End => return,
            }
            continue;
        }
        let wait = next.map_or(LONGEST, |at| until(&now, &at).min(LONGEST));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = context.changes.retention.notified() => tokio::time::sleep(GATHER).await,
        }
    }
}

async fn retire(context: &Arc<Context>, now: Timestamp, retired: Vec<Job>) -> Step {
    let jobs: Vec<JobReference> = retired
        .iter()
        .map(|job| JobReference {
            name: job.name.clone(),
            uid: job.uid.clone(),
        })
        .collect();
    let dir = context.config.export_dir.clone();
    if !write(move || export::jobs(&dir, &now, &retired)).await {
        return Step::Later(REPAIR);
    }
    let count = jobs.len();
    match context.decide(Kind::RemoveJobs(RemoveJobs { jobs })).await {
        Ok(Ok(Reply::Count(0))) => {
            // Without the pause the same jobs would be exported over and over.
            tracing::error!(count, "retired jobs were not removed (a bug)");
            Step::Later(REPAIR)
        }
        Ok(Ok(_)) => {
            tracing::info!(count, "retention removed finished jobs");
            Step::Done
        }
        Ok(Err(refusal)) => {
            tracing::error!(%refusal, "the removal of retired jobs was refused (a bug)");
            Step::Later(REPAIR)
        }
        Err(error) => match after("retired jobs", &error) {
            After::Retry => Step::Later(PAUSE),
            After::End => Step::End,
        },
    }
}

/// Drops records of usage until the leadership is lost: whole days, once a day.
pub(super) async fn usage(context: Arc<Context>) {
    loop {
        let now = context.clock.now();
        let today_s = now.seconds - now.seconds.rem_euclid(DAY_S);
        let before = Timestamp {
            seconds: today_s - i64::from(context.config.usage_retention_days) * DAY_S,
            nanos: 0,
        };
        let tomorrow = Timestamp {
            seconds: today_s + DAY_S,
            nanos: 0,
        };
        match drop_usage(&context, now, before).await {
            Step::Done => tokio::time::sleep(until(&now, &tomorrow).min(LONGEST)).await,
            Step::Later(pause) => tokio::time::sleep(pause).await,
            Step::End => return,
        }
    }
}

async fn drop_usage(context: &Arc<Context>, now: Timestamp, before: Timestamp) -> Step {
    let mut exported = 0;
    loop {
        // Records are in order of end and new ones end now, so the place in the list stays good.
        let records = context
            .state()
            .usage_ended_before(&before, exported, RECORDS);
        if records.is_empty() {
            break;
        }
        exported += records.len();
        let dir = context.config.export_dir.clone();
        if !write(move || export::usage(&dir, &now, &records)).await {
            return Step::Later(REPAIR);
        }
    }
    if exported == 0 {
        return Step::Done;
    }
    let command = DropUsage {
        before: Some(before),
    };
    match context.decide(Kind::DropUsage(command)).await {
        Ok(Ok(_)) => {
            tracing::info!(records = exported, "old records of usage were dropped");
            Step::Done
        }
        Ok(Err(refusal)) => {
            tracing::error!(%refusal, "the drop of old usage was refused (a bug)");
            Step::Later(LONGEST)
        }
        Err(error) => match after("old usage", &error) {
            After::Retry => Step::Later(PAUSE),
            After::End => Step::End,
        },
    }
}

/// Writes on a thread that may block. False: it did not work, and was said.
async fn write(work: impl FnOnce() -> Result<(), ExportError> + Send + 'static) -> bool {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::error!(%error, "an export failed; it is tried again in a minute");
            false
        }
        Err(error) => {
            tracing::error!(%error, "an export broke down (a bug)");
            false
        }
    }
}
