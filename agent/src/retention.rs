//! Which spooled logs of ended attempts stay on the node.
//!
//! Pure: [`surplus`] picks, the supervisor deletes. It never picks an attempt that has not ended.

use std::path::Path;

use crate::reconcile::AttemptKey;

/// Ended attempts kept at most, whatever their size.
pub const ATTEMPTS_MAX: usize = 1_000;

/// An attempt of which only the logs are left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub key: AttemptKey,
    /// Epoch: the higher, the later.
    pub epoch: u64,
    /// Bytes of its logs.
    pub bytes: u64,
}

/// The attempts to delete so that the rest fits `keep_bytes` and [`ATTEMPTS_MAX`]: the oldest go first. The newest
/// one alone may exceed the bytes and goes too, since a full disk would stop the node.
#[must_use]
pub fn surplus(ended: &[Ended], keep_bytes: u64) -> Vec<AttemptKey> {
    let mut newest_first: Vec<&Ended> = ended.iter().collect();
    newest_first.sort_by(|a, b| b.epoch.cmp(&a.epoch).then_with(|| b.key.cmp(&a.key)));
    let mut bytes = 0u64;
    let mut fits = true;
    newest_first
        .into_iter()
        .enumerate()
        .filter(|(position, attempt)| {
            bytes = bytes.saturating_add(attempt.bytes);
            // Once one is too much all older ones go: gaps in the history would only puzzle.
            fits = fits && *position < ATTEMPTS_MAX && bytes <= keep_bytes;
            !fits
        })
        .map(|(_, attempt)| attempt.key.clone())
        .collect()
}

/// Bytes of the files directly in a spool directory, on the agent's own disk; 0 where there is none.
#[must_use]
pub fn spooled_bytes(dir: &Path) -> u64 {
    std::fs::read_dir(dir).map_or(0, |entries| {
        entries
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .map(|metadata| metadata.len())
            .sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(epochs_and_bytes: &[(u64, u64)]) -> Vec<Ended> {
        epochs_and_bytes
            .iter()
            .map(|(epoch, bytes)| Ended {
                key: AttemptKey {
                    uid: format!("job{epoch}"),
                    attempt: 1,
                },
                epoch: *epoch,
                bytes: *bytes,
            })
            .collect()
    }

    fn goes(ended: &[Ended], keep_bytes: u64) -> Vec<String> {
        surplus(ended, keep_bytes)
            .into_iter()
            .map(|key| key.uid)
            .collect()
    }

    #[test]
    fn the_oldest_go_first() {
        let attempts = ended(&[(3, 40), (1, 40), (2, 40)]);
        assert_eq!(goes(&attempts, 120), Vec::<String>::new());
        assert_eq!(goes(&attempts, 100), ["job1"]);
        assert_eq!(goes(&attempts, 40), ["job2", "job1"]);
    }

    #[test]
    fn one_that_is_too_large_takes_the_older_ones_with_it() {
        assert_eq!(
            goes(&ended(&[(3, 10), (2, 1_000), (1, 10)]), 100),
            ["job2", "job1"]
        );
        assert_eq!(goes(&ended(&[(1, 1_000)]), 100), ["job1"]);
    }

    #[test]
    fn the_number_is_limited_too() {
        let many: Vec<(u64, u64)> = (1..=1_002).map(|epoch| (epoch, 0)).collect();
        assert_eq!(goes(&ended(&many), 1), ["job2", "job1"]);
    }
}
