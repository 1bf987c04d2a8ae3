//! Kills the leader of a replicated service again and again while clients write, and measures how long nothing is accepted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::error::{BenchError, Context, Result};
use crate::stats::Samples;
use crate::writer::{Group, Writer};

/// Load before and after each kill.
const STEADY: Duration = Duration::from_secs(2);
/// How long writes may fail to be accepted.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Between the writes of one client. Bounds the number of writes.
const PAUSE: Duration = Duration::from_millis(10);

/// One acknowledged write.
pub(crate) struct Acknowledged {
    /// The name it was written under.
    pub(crate) name: String,
    /// The id that the service gave it.
    pub(crate) uid: String,
    /// When it was called for the first time, and when it was answered.
    called: Instant,
    returned: Instant,
}

/// What was measured.
pub(crate) struct Outages {
    /// Of each kill, the longest time without any acknowledgement.
    pub(crate) gaps: Samples,
    /// Of each kill, the longest call of a client.
    pub(crate) slowest: Samples,
    /// Everything that was acknowledged.
    pub(crate) acknowledged: Vec<Acknowledged>,
}

/// What the writers have to tell.
type Record = Arc<Mutex<Vec<Acknowledged>>>;

/// Kills `kills` leaders under the load of the writers; each is started again and catches up before the next.
pub(crate) async fn measure<G: Group, W: Writer>(
    group: &mut G,
    writers: impl Iterator<Item = W>,
    kills: u16,
) -> Result<Outages> {
    let record = Record::default();
    let mut tasks = JoinSet::new();
    for (number, writer) in writers.enumerate() {
        tasks.spawn(write(writer, number, Arc::clone(&record)));
    }
    let mut gaps = Vec::new();
    let mut slowest = Vec::new();
    for number in 1..=kills {
        load(&mut tasks, STEADY).await?;
        group.wait_until_whole().await?;
        let leader = group.leader().await?;
        let killed = Instant::now();
        group.members()[leader].kill()?;
        let (gap, call) = wait_for_recovery(&mut tasks, &record, killed).await?;
        eprintln!("kill {number} of {kills}: no write for {gap:?}");
        gaps.push(gap);
        slowest.push(call);
        group.members()[leader].start()?;
        group.wait_until_whole().await?;
    }
    tasks.shutdown().await;
    let acknowledged = std::mem::take(&mut *lock(&record));
    Ok(Outages {
        gaps: gaps.into_iter().collect(),
        slowest: slowest.into_iter().collect(),
        acknowledged,
    })
}

/// Writes for ever. A call that was not acknowledged promises nothing; one that fails after all is an error.
async fn write<W: Writer>(mut writer: W, number: usize, record: Record) -> Result<()> {
    for count in 0_u64.. {
        let name = format!("c{number}-{count}");
        let called = Instant::now();
        let uid = writer.write(name.clone()).await?;
        lock(&record).push(Acknowledged {
            name,
            uid,
            called,
            returned: Instant::now(),
        });
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

fn lock(record: &Record) -> MutexGuard<'_, Vec<Acknowledged>> {
    // A writer that panicked has ended the run by itself; what it noted stays true.
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the writers write for a while; fails if one gives up.
async fn load(tasks: &mut JoinSet<Result<()>>, time: Duration) -> Result<()> {
    tokio::select! {
        () = tokio::time::sleep(time) => Ok(()),
        Some(ended) = tasks.join_next() => ended.cannot("wait for a client")?,
    }
}

/// Waits until writes flow again, and returns the longest time since the kill without any, and the longest call.
async fn wait_for_recovery(
    tasks: &mut JoinSet<Result<()>>,
    record: &Record,
    killed: Instant,
) -> Result<(Duration, Duration)> {
    loop {
        load(tasks, STEADY).await?;
        {
            let record = lock(record);
            // What the dead leader still sent does not count: the call must have begun after the kill.
            let accepted = record.iter().rev().find(|write| write.called > killed);
            if accepted.is_some_and(|write| write.returned.elapsed() < STEADY) {
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
    for write in record.iter().filter(|write| write.returned > killed) {
        gap = gap.max(write.returned.saturating_duration_since(last));
        last = write.returned;
    }
    gap
}

fn longest_call(record: &[Acknowledged], killed: Instant) -> Duration {
    let after = record.iter().filter(|write| write.returned > killed);
    after
        .map(|write| write.returned - write.called)
        .max()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledged(start: Instant, called: u64, returned: u64) -> Acknowledged {
        Acknowledged {
            name: "name".into(),
            uid: "uid".into(),
            called: start + Duration::from_millis(called),
            returned: start + Duration::from_millis(returned),
        }
    }

    #[test]
    fn the_gap_begins_after_what_the_dead_leader_sent() {
        let start = Instant::now();
        let killed = start + Duration::from_millis(100);
        let times = [(10, 20), (95, 101), (96, 901), (902, 905)];
        let record = times.map(|(called, returned)| acknowledged(start, called, returned));
        assert_eq!(longest_gap(&record, killed), Duration::from_millis(800));
        assert_eq!(longest_call(&record, killed), Duration::from_millis(805));
    }
}
