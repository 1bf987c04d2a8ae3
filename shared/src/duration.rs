//! Durations as people write them in files, and as Trainyard writes them.
//!
//! Pure: this module must never ask for the time.

use jiff::{Span, SpanRelativeTo};
use prost_types::Duration;

/// Longest duration that the protocol can carry, in seconds: about 10,000 years.
const MAX_SECONDS: i64 = 315_576_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// It is in none of the forms.
    #[error(
        "{0:?} is not a duration; write days as P7D, hours and minutes as PT1H30M, d.hh:mm:ss as 7.00:00:00, or seconds \
         as 3600s"
    )]
    Form(
        /// What was written.
        String,
    ),
    /// It counts in months or years.
    #[error("{0:?} counts in months or years, whose length varies; write days, such as P30D")]
    Calendar(
        /// What was written.
        String,
    ),
    /// It is longer than the protocol can carry.
    #[error("{0:?} is too long")]
    TooLong(
        /// What was written.
        String,
    ),
}

/// Reads `P7D`, `PT1H30M`, `7.00:00:00`, `01:30:00`, `3600s`, `1h 30m`. A day has 24 hours.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    let form = || DurationError::Form(shown(text));
    if let Some(result) = parse_clock(text) {
        return result.map_err(|()| DurationError::TooLong(shown(text)));
    }
    if text.contains(':') {
        // jiff would take 1:60:00.
        return Err(form());
    }
    let span: Span = text.parse().map_err(|_| form())?;
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(DurationError::Calendar(shown(text)));
    }
    let too_long = || DurationError::TooLong(shown(text));
    let length = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| too_long())?;
    if length.as_secs().unsigned_abs() > MAX_SECONDS.unsigned_abs() {
        return Err(too_long());
    }
    Ok(Duration {
        seconds: length.as_secs(),
        nanos: length.subsec_nanos(),
    })
}

/// What is shown of a text in an error.
fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Reads `d.hh:mm:ss` and `hh:mm:ss`, with an optional fraction of the second; None if the text has another form.
fn parse_clock(text: &str) -> Option<Result<Duration, ()>> {
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse::<i64>().map_err(|_| ()))
    };
    let mut parts = text.split(':');
    let (head, minutes, seconds) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let (days, hours) = head.split_once('.').unwrap_or(("0", head));
    let (seconds, fraction) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let (days, hours, minutes, seconds) = (
        number(days)?,
        number(hours)?,
        number(minutes)?,
        number(seconds)?,
    );
    let _ = number(fraction)?;
    let (Ok(hours @ 0..24), Ok(minutes @ 0..60), Ok(seconds @ 0..60)) = (hours, minutes, seconds)
    else {
        return None;
    };
    let nanos = format!("{fraction:0<9.9}").parse().unwrap_or_default();
    let total = days.and_then(|days| {
        days.checked_mul(SECONDS_PER_DAY)
            .map(|days| days + hours * 3600 + minutes * 60 + seconds)
            .filter(|seconds| *seconds <= MAX_SECONDS)
            .ok_or(())
    });
    Some(total.map(|seconds| Duration { seconds, nanos }))
}

/// Writes a duration in ISO 8601: `P7D`, `PT1H30M`, `PT0.25S`, `PT0S`.
#[must_use]
pub fn format(duration: &Duration) -> String {
    let total = i128::from(duration.seconds) * 1_000_000_000 + i128::from(duration.nanos);
    let sign = if total < 0 { "-" } else { "" };
    let total = total.unsigned_abs();
    let (seconds, nanos) = (total / 1_000_000_000, total % 1_000_000_000);
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    let mut text = format!("{sign}P");
    if days > 0 {
        text.push_str(&format!("{days}D"));
    }
    let mut time = String::new();
    if hours > 0 {
        time.push_str(&format!("{hours}H"));
    }
    if minutes > 0 {
        time.push_str(&format!("{minutes}M"));
    }
    if nanos > 0 {
        let fraction = format!("{nanos:09}");
        time.push_str(&format!("{seconds}.{}S", fraction.trim_end_matches('0')));
    } else if seconds > 0 || (time.is_empty() && days == 0) {
        time.push_str(&format!("{seconds}S"));
    }
    if !time.is_empty() {
        text.push('T');
        text.push_str(&time);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        for (text, seconds, nanos) in [
            ("P7D", 604_800, 0),
            ("P1W", 604_800, 0),
            ("PT1H30M", 5_400, 0),
            ("P1DT1S", 86_401, 0),
            ("PT0.25S", 0, 250_000_000),
            ("PT0S", 0, 0),
            ("-PT1.5S", -1, -500_000_000),
            ("7.00:00:00", 604_800, 0),
            ("01:30:00", 5_400, 0),
            ("0.00:00:01.5", 1, 500_000_000),
            ("3600s", 3_600, 0),
            ("1h 30m", 5_400, 0),
            (" P1D ", 86_400, 0),
        ] {
            assert_eq!(parse(text), Ok(Duration { seconds, nanos }), "{text}");
        }
    }

    #[test]
    fn anything_else_says_what_to_write() {
        for text in [
            "",
            "7",
            "3600",
            "P",
            "PT",
            "soon",
            "1:2",
            "1.2.3:00:00",
            "24:00:00",
            "1:60:00",
            "🕐",
        ] {
            let error = parse(text).unwrap_err();
            assert!(matches!(error, DurationError::Form(_)), "{text}: {error}");
            assert!(error.to_string().contains("P7D"));
        }
        assert!(matches!(parse("P1M"), Err(DurationError::Calendar(_))));
        assert!(matches!(parse("P1Y"), Err(DurationError::Calendar(_))));
        assert!(matches!(
            parse("99999999999999999999.00:00:00"),
            Err(DurationError::TooLong(_))
        ));
        assert!(parse("9223372036854775807d").is_err());
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (seconds, nanos, text) in [
            (0, 0, "PT0S"),
            (604_800, 0, "P7D"),
            (5_400, 0, "PT1H30M"),
            (90_061, 250_000_000, "P1DT1H1M1.25S"),
            (-1, -500_000_000, "-PT1.5S"),
        ] {
            let duration = Duration { seconds, nanos };
            assert_eq!(format(&duration), text);
            assert_eq!(parse(text), Ok(duration));
        }
    }
}
