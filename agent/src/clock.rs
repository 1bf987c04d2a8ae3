//! The two clocks of the agent: the one that leases count by, and the wall clock for what people read.
//!
//! Leases must never be measured by the wall clock, which jumps.

use std::time::{SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;

/// Nanoseconds of `CLOCK_BOOTTIME`: since the boot of the host, time spent suspended included.
///
/// Every process of the host reads the same clock, so that shims can judge a deadline the agent wrote.
#[must_use]
pub fn boottime_ns() -> u64 {
    // The call cannot fail for a clock every supported kernel has; should it, time zero would make every lease
    // look fresh, hence the end of time, which ends tasks instead of running them twice.
    match nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME) {
        Ok(time) => {
            let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
            let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
            seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
        }
        Err(_) => u64::MAX,
    }
}

/// The wall clock as a protocol timestamp.
#[must_use]
pub fn wall() -> Timestamp {
    wall_at(SystemTime::now())
}

/// A point of the wall clock as a protocol timestamp; times before 1970 become 1970.
#[must_use]
pub fn wall_at(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

/// `2026-03-01T12:00:00.123Z`, for lines of the execution log.
#[must_use]
pub fn rfc3339(time: &Timestamp) -> String {
    // Days to a civil date: Howard Hinnant's algorithm, exact for the whole range of i64 seconds we meet.
    let days = time.seconds.div_euclid(86_400);
    let second = time.seconds.rem_euclid(86_400);
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        time.nanos / 1_000_000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_people_write_them() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, 5_000_000, "2000-02-29T00:00:00.005Z"),
            (1_772_366_399, 999_999_999, "2026-03-01T11:59:59.999Z"),
            (4_102_444_800, 0, "2100-01-01T00:00:00.000Z"),
        ];
        for (seconds, nanos, text) in cases {
            assert_eq!(rfc3339(&Timestamp { seconds, nanos }), text);
        }
    }

    #[test]
    fn boot_time_moves_forward() {
        let first = boottime_ns();
        assert!(first > 0 && boottime_ns() >= first);
    }
}
