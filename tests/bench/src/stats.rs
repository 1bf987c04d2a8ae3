//! Order statistics of measured times. It must never average: a mean hides the tail that budgets are about.

use std::time::Duration;

/// Measured times, sorted.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest value that at least `percent` of a hundred values do not exceed (nearest rank); zero without values.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }

    /// [`Samples::percentile`] in milliseconds.
    pub(crate) fn percentile_ms(&self, percent: usize) -> f64 {
        ms(self.percentile(percent))
    }

    /// The largest value in milliseconds; zero without values.
    pub(crate) fn max_ms(&self) -> f64 {
        ms(self.0.last().copied().unwrap_or_default())
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(values: I) -> Self {
        let mut sorted: Vec<Duration> = values.into_iter().collect();
        sorted.sort_unstable();
        Self(sorted)
    }
}

/// Milliseconds, to the microsecond.
pub(crate) fn ms(time: Duration) -> f64 {
    round(time.as_secs_f64() * 1e3)
}

/// Three digits after the point: more would be noise in a report.
pub(crate) fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: impl IntoIterator<Item = u64>) -> Samples {
        values.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred = samples((1..=100).rev());
        assert_eq!(hundred.percentile_ms(50), 50.0);
        assert_eq!(hundred.percentile_ms(99), 99.0);
        assert_eq!(hundred.percentile_ms(100), 100.0);
        assert_eq!(hundred.max_ms(), 100.0);
    }

    #[test]
    fn few_values_have_percentiles_too() {
        assert_eq!(samples([]).percentile_ms(50), 0.0);
        assert_eq!(samples([7]).percentile_ms(1), 7.0);
        assert_eq!(samples([1, 2, 3]).percentile_ms(50), 2.0);
        assert_eq!(samples([1, 2, 3]).percentile_ms(99), 3.0);
    }
}
