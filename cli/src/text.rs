//! Short texts for people: states, ages, sizes. Pure: the time is a parameter.

use std::time::SystemTime;

use prost_types::Timestamp;

/// The last segment of a resource name.
pub(crate) fn last_segment(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The ids of a resource name without the collection names: `workspaces/w/clusters/c` gives `w/c`.
pub(crate) fn ids(name: &str) -> String {
    name.split('/')
        .skip(1)
        .step_by(2)
        .collect::<Vec<_>>()
        .join("/")
}

/// An enum value as it is written in files: `EXECUTION_STATE_RUNNING` with the prefix `EXECUTION_STATE_` is `running`.
pub(crate) fn short(value: &str, prefix: &str) -> String {
    value
        .strip_prefix(prefix)
        .unwrap_or(value)
        .to_ascii_lowercase()
        .replace('_', "-")
}

/// The present time.
pub(crate) fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}

/// Seconds from one time to another, 0 when they are in the wrong order.
pub(crate) fn seconds_between(from: &Timestamp, to: &Timestamp) -> u64 {
    u64::try_from(to.seconds.saturating_sub(from.seconds)).unwrap_or(0)
}

/// How long ago, in at most two units: `42s`, `3m12s`, `5h7m`, `9d`.
pub(crate) fn age(from: Option<&Timestamp>, now: &Timestamp) -> String {
    from.map_or_else(String::new, |from| length(seconds_between(from, now)))
}

/// A length of time in at most two units.
pub(crate) fn length(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => two(seconds / 60, 'm', seconds % 60, 's'),
        3600..86_400 => two(seconds / 3600, 'h', seconds % 3600 / 60, 'm'),
        _ if seconds < 10 * 86_400 => two(seconds / 86_400, 'd', seconds % 86_400 / 3600, 'h'),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn two(large: u64, large_unit: char, small: u64, small_unit: char) -> String {
    if small == 0 {
        format!("{large}{large_unit}")
    } else {
        format!("{large}{large_unit}{small}{small_unit}")
    }
}

/// A number of bytes: `640 B`, `1.5 MiB`, `48 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// Seconds since 1970 as `2026-01-31T12:00:00Z`.
pub(crate) fn time_of_seconds(seconds: i64) -> String {
    Timestamp { seconds, nanos: 0 }.to_string()
}

/// A time as `2026-01-31T12:00:00Z`, without fractions; empty when there is none.
pub(crate) fn time(time: Option<&Timestamp>) -> String {
    time.map_or_else(String::new, |time| time_of_seconds(time.seconds))
}

/// `1 node`, `2 nodes`.
pub(crate) fn count(number: u64, singular: &str) -> String {
    if number == 1 {
        format!("1 {singular}")
    } else {
        format!("{number} {singular}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(last_segment("workspaces/w/clusters/c"), "c");
        assert_eq!(ids("workspaces/w/experiments/e/jobs/j"), "w/e/j");
        assert_eq!(
            short("EXECUTION_STATE_RUNNING", "EXECUTION_STATE_"),
            "running"
        );
    }

    #[test]
    fn lengths() {
        let cases = [
            (0, "0s"),
            (59, "59s"),
            (192, "3m12s"),
            (180, "3m"),
            (18_420, "5h7m"),
            (864_000, "10d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(length(seconds), text);
        }
    }

    #[test]
    fn sizes() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (48 << 30, "48 GiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn a_clock_behind_the_cluster_gives_no_negative_age() {
        let later = Timestamp {
            seconds: 10,
            nanos: 0,
        };
        assert_eq!(
            age(
                Some(&later),
                &Timestamp {
                    seconds: 5,
                    nanos: 0
                }
            ),
            "0s"
        );
    }
}
