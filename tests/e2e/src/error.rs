//! The one error of the rigs: a text for the person who reads the failed test. Nobody branches on it.

use std::fmt;

/// What went wrong in a rig, with all that helps to see why.
pub struct RigError(String);

/// The result of a rig's step.
pub type Result<T> = std::result::Result<T, RigError>;

impl RigError {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for RigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// `Result::unwrap` prints this form: line breaks of logs must survive.
impl fmt::Debug for RigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for RigError {}

/// Turns any error into a [`RigError`] that says what was being done.
pub(crate) trait Context<T> {
    /// `what` completes "cannot …".
    fn cannot(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn cannot(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| RigError(format!("cannot {what}: {error}")))
    }
}
