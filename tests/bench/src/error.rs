//! The one error of the benchmarks: a text for the person who ran one. Nobody branches on it.

use std::fmt;

/// What went wrong, with all that helps to see why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BenchError(String);

/// The result of a benchmark's step.
pub(crate) type Result<T> = std::result::Result<T, BenchError>;

impl BenchError {
    /// An error with this text.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Turns any error into a [`BenchError`] that says what was being done.
pub(crate) trait Context<T> {
    /// `what` completes "cannot …".
    fn cannot(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn cannot(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| BenchError(format!("cannot {what}: {error}")))
    }
}
