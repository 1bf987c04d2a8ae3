//! Arithmetic of time stamps. No clock: times come in from outside.

use prost_types::{Duration, Timestamp};

/// For comparisons.
pub(crate) fn key(t: &Timestamp) -> (i64, i32) {
    (t.seconds, t.nanos)
}

/// Whether `at` is over at `now`.
pub(crate) fn passed(at: &Timestamp, now: &Timestamp) -> bool {
    key(at) <= key(now)
}

/// `t` and so many milliseconds.
pub(crate) fn after_ms(t: &Timestamp, ms: u64) -> Timestamp {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(ms % 1000).unwrap_or(0) * 1_000_000;
    after(t, &Duration { seconds, nanos })
}

/// `t` and a duration; the end of time where it would overflow.
pub(crate) fn after(t: &Timestamp, by: &Duration) -> Timestamp {
    let nanos = i64::from(t.nanos) + i64::from(by.nanos);
    Timestamp {
        seconds: t
            .seconds
            .saturating_add(by.seconds)
            .saturating_add(nanos.div_euclid(1_000_000_000)),
        nanos: i32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_carry_over() {
        let t = |seconds, nanos| Timestamp { seconds, nanos };
        assert_eq!(after_ms(&t(1, 999_000_000), 1_001), t(3, 0));
        assert!(passed(&t(3, 0), &t(3, 0)) && !passed(&t(3, 1), &t(3, 0)));
        assert_eq!(after_ms(&t(i64::MAX, 0), 5_000).seconds, i64::MAX);
    }
}
