//! Logging of the daemons and the command: to standard error, as text or as JSON lines.
//!
//! What is logged is the business of each program; this module must never filter or rewrite it, and nobody may log a
//! key or the value of a secret.

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Variable of the environment that overrides the level: `debug`, or by part of the program
/// `info,trainyard_agent=trace`.
pub const LEVEL_VARIABLE: &str = "TRAINYARD_LOG";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

impl FromStr for Format {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            _ => Err(TelemetryError::Format(text.to_owned())),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Text => "text",
            Format::Json => "json",
        })
    }
}

/// Why logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `TRAINYARD_LOG` is not a list of levels.
    #[error(
        "{LEVEL_VARIABLE}={value:?} is not understood ({reason}); write a level (error, warn, info, debug, trace), or \
         levels by part such as info,trainyard_agent=trace"
    )]
    Level {
        /// Its value.
        value: String,
        /// What the reader of levels said.
        reason: String,
    },
    /// The format is unknown.
    #[error("log format {0:?} is unknown; write text or json")]
    Format(
        /// What was given.
        String,
    ),
    /// Logging was set up before.
    #[error("logging is set up already: {0}")]
    Twice(
        /// What tracing said.
        String,
    ),
}

/// Sets up logging for the rest of the program's life. `program` stands in every line; `default_level` counts where
/// `TRAINYARD_LOG` is unset or empty.
pub fn init(
    program: &'static str,
    default_level: tracing::Level,
    format: Format,
) -> Result<(), TelemetryError> {
    let filter = filter(
        std::env::var(LEVEL_VARIABLE).unwrap_or_default(),
        default_level,
    )?;
    let twice =
        |error: Box<dyn std::error::Error + Send + Sync>| TelemetryError::Twice(error.to_string());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        Format::Text => builder.try_init().map_err(twice)?,
        Format::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init()
            .map_err(twice)?,
    }
    tracing::debug!(program, version = env!("CARGO_PKG_VERSION"), "logging");
    Ok(())
}

/// The filter that `value` of the variable asks for. Without one, the consensus library speaks of trouble only: it tells
/// every step of every election, and the daemon says itself who leads.
fn filter(mut value: String, default_level: tracing::Level) -> Result<EnvFilter, TelemetryError> {
    let level = LevelFilter::from_level(default_level);
    let builder = EnvFilter::builder().with_default_directive(level.into());
    if value.is_empty() {
        value = format!("{level},raft=warn");
    }
    builder
        .parse(&value)
        .map_err(|error| TelemetryError::Level {
            value,
            reason: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_level_says_what_to_write() {
        let unset = filter(String::new(), tracing::Level::INFO).unwrap();
        assert!(unset.to_string().contains("raft=warn"), "{unset}");
        assert!(filter("debug".to_owned(), tracing::Level::INFO).is_ok());
        let error = filter("trainyard=loud".to_owned(), tracing::Level::INFO).unwrap_err();
        assert!(error.to_string().contains("error, warn, info"), "{error}");
    }

    #[test]
    fn formats_have_names() {
        for format in [Format::Text, Format::Json] {
            assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
        }
        assert!("xml".parse::<Format>().is_err());
    }
}
