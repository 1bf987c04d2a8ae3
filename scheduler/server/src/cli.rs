//! The command line of the scheduler: `run`, `check-config`, `init`, `issue`.
//!
//! It only parses and dispatches. Exit status: 0 clean, 1 runtime error, 2 bad configuration or usage.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use trainyard_shared::telemetry;

use crate::config::{Config, Overrides};
use crate::{init, run};

/// Trainyard's scheduler: keeps jobs, nodes and clusters, and decides what runs where.
#[derive(Debug, Parser)]
#[command(name = "trainyard-scheduler", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run this member until SIGTERM or SIGINT
    Run {
        #[command(flatten)]
        config: ConfigArgs,
        /// Form of the log lines on stderr
        #[arg(
            long,
            value_enum,
            default_value = "text",
            env = "TRAINYARD_SCHEDULER_LOG_FORMAT"
        )]
        log_format: LogFormat,
    },
    /// Check a configuration file and say what is wrong with it
    CheckConfig {
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Make the authority, certificates and configuration files of a new installation
    Init(init::InitArgs),
    /// Issue a certificate for one more member, node or client
    Issue(init::IssueArgs),
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE", env = "TRAINYARD_SCHEDULER_CONFIG")]
    config: PathBuf,
    /// Address to listen on, instead of the file's
    #[arg(long, value_name = "HOST:PORT", env = "TRAINYARD_SCHEDULER_LISTEN")]
    listen: Option<String>,
    /// Directory of the log and the state, instead of the file's
    #[arg(long, value_name = "DIR", env = "TRAINYARD_SCHEDULER_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Directory of ca.pem, cert.pem and key.pem, instead of the file's
    #[arg(long, value_name = "DIR", env = "TRAINYARD_SCHEDULER_TLS_DIR")]
    tls_dir: Option<PathBuf>,
}

impl ConfigArgs {
    fn load(self) -> Result<Config, String> {
        let overrides = Overrides {
            listen: self.listen,
            data_dir: self.data_dir,
            tls_dir: self.tls_dir,
        };
        Config::load(&self.config, &overrides).map_err(|e| e.to_string())
    }
}

/// Why the program ends with another status than 0.
enum Failure {
    /// Status 2.
    Usage(String),
    /// Status 1.
    Runtime(String),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => {
            eprintln!("trainyard-scheduler: {message}");
            ExitCode::from(2)
        }
        Err(Failure::Runtime(message)) => {
            eprintln!("trainyard-scheduler: {message}");
            ExitCode::from(1)
        }
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run { config, log_format } => {
            let config = config.load().map_err(Failure::Usage)?;
            let format = match log_format {
                LogFormat::Text => telemetry::Format::Text,
                LogFormat::Json => telemetry::Format::Json,
            };
            telemetry::init("trainyard-scheduler", tracing::Level::INFO, format)
                .map_err(|e| Failure::Usage(e.to_string()))?;
            run::blocking(config).map_err(|e| {
                if e.is_configuration() {
                    Failure::Usage(e.to_string())
                } else {
                    Failure::Runtime(e.to_string())
                }
            })
        }
        Command::CheckConfig { config } => {
            let config = config.load().map_err(Failure::Usage)?;
            let identity =
                run::load_identity(&config).map_err(|e| Failure::Usage(e.to_string()))?;
            println!(
                "ok: member {} of {} in cluster {}, listens on {}, keeps its data in {}",
                config.member_id,
                config.members.len(),
                identity.cluster_id(),
                config.listen,
                config.data_dir.display()
            );
            Ok(())
        }
        Command::Init(args) => init::init(&args).map_err(init_failure),
        Command::Issue(args) => init::issue(&args).map_err(init_failure),
    }
}

fn init_failure(error: init::InitError) -> Failure {
    match error {
        init::InitError::Usage(message) => Failure::Usage(message),
        other => Failure::Runtime(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
