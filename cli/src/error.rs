//! How a command fails: one clear sentence with the way out on stderr, and the exit status. Must never print to stdout
//! nor panic when stderr is closed.

use std::io::{self, Write};

use tonic::Status;
use trainyard_shared::validate::FieldViolation;

use crate::status;

/// Exit status of a failure.
pub(crate) const FAILURE: u8 = 1;
/// Exit status of wrong usage.
pub(crate) const USAGE: u8 = 2;
/// Exit status after Ctrl-C, as shells have it (128 + SIGINT).
pub(crate) const INTERRUPTED: u8 = 130;
/// Exit status when the reader of stdout has gone (128 + SIGPIPE).
const CLOSED_PIPE: u8 = 141;

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// Anything else that has its sentence already; may be several lines.
    #[error("{0}")]
    Failure(String),
    /// A file is refused: lines `FILE:LINE:COL: field: message`, as editors find them.
    #[error("{0}")]
    File(String),
    /// A scheduler refused, or none answered.
    #[error("{}", status::describe(.0))]
    Remote(Box<Status>),
    /// The output could not be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// Ctrl-C; what was to be said has been said.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// A failure with its sentence.
    pub(crate) fn failure(message: impl Into<String>) -> Self {
        Self::Failure(message.into())
    }

    /// Wrong usage with its sentence.
    /// Flags that make no valid resource.
    pub(crate) fn violations(violations: &[FieldViolation]) -> Self {
        let lines = violations
            .iter()
            .map(|violation| format!("{}: {}", violation.field, violation.message));
        Self::Usage(lines.collect::<Vec<_>>().join("\n"))
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// Whether the reader of stdout has gone, as after `| head`.
    fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Prints the sentence to stderr, unless nobody needs one.
    pub(crate) fn print(&self) {
        if self.is_closed_pipe() || matches!(self, Self::Interrupted) {
            return;
        }
        // A closed stderr leaves nobody to tell.
        let _ = writeln!(io::stderr().lock(), "{}", self.rendered());
    }

    /// The text with `error: ` before each line, except where a place in a file stands.
    fn rendered(&self) -> String {
        let text = self.to_string();
        if matches!(self, Self::File(_)) {
            return text;
        }
        text.lines()
            .map(|line| format!("error: {line}"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The exit status of the process.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Interrupted => INTERRUPTED,
            Self::Output(_) if self.is_closed_pipe() => CLOSED_PIPE,
            Self::Failure(_) | Self::File(_) | Self::Remote(_) | Self::Output(_) => FAILURE,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Remote(Box::new(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses() {
        assert_eq!(Error::usage("x").exit_status(), 2);
        assert_eq!(Error::failure("x").exit_status(), 1);
        assert_eq!(Error::from(Status::not_found("x")).exit_status(), 1);
        let closed = Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(closed.exit_status(), 141);
    }

    #[test]
    fn places_in_files_stand_at_the_beginning_of_their_lines() {
        let in_file = Error::File("job.json:3:7: nodeCount: must be at least 1".into());
        assert!(in_file.rendered().starts_with("job.json:3:7: "));
        assert_eq!(
            Error::failure("a: x\nb: y").rendered(),
            "error: a: x\nerror: b: y"
        );
    }
}
