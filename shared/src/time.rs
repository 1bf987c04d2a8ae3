//! Points in time as text: RFC 3339 in UTC.
//!
//! Pure: this module must never ask what time it is.

use prost_types::Timestamp;

/// Why a text is not a point in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time; write it as 2031-05-17T08:30:00Z")]
pub struct TimeError(String);

/// Reads RFC 3339.
pub fn parse(text: &str) -> Result<Timestamp, TimeError> {
    let time: jiff::Timestamp = text
        .trim()
        .parse()
        .map_err(|_| TimeError(text.chars().take(40).collect()))?;
    // The protocol counts nanoseconds upwards from the second below, also before 1970.
    let (seconds, nanos) = (time.as_second(), time.subsec_nanosecond());
    Ok(if nanos < 0 {
        Timestamp {
            seconds: seconds - 1,
            nanos: nanos + 1_000_000_000,
        }
    } else {
        Timestamp { seconds, nanos }
    })
}

/// Writes RFC 3339 in UTC, with as many digits of the second as it has: `2031-05-17T08:30:00.25Z`. A time outside of
/// the years -9999 to 9999, which no Trainyard writes, becomes its number of seconds since 1970.
#[must_use]
pub fn format(time: &Timestamp) -> String {
    match jiff::Timestamp::new(time.seconds, time.nanos) {
        Ok(time) => time.to_string(),
        Err(_) => time.seconds.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (1_936_773_000, 250_000_000, "2031-05-17T08:30:00.25Z"),
            (-1, 500_000_000, "1969-12-31T23:59:59.5Z"),
        ] {
            let time = Timestamp { seconds, nanos };
            assert_eq!(format(&time), text);
            assert_eq!(parse(text), Ok(time));
        }
        assert_eq!(
            parse("2031-05-17T10:30:00+02:00").unwrap().seconds,
            1_936_773_000
        );
        assert_eq!(
            format(&Timestamp {
                seconds: i64::MAX,
                nanos: 0
            }),
            i64::MAX.to_string()
        );
        assert!(parse("yesterday").is_err());
    }
}
