//! `trainyard-agent`: the daemon of a GPU host, and the helper processes it starts of itself.
//!
//! Helpers are dispatched before anything else is set up: they must start in a millisecond and stay small, so no
//! argument parser, logger or runtime of the daemon may come before them.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use trainyard_agent::config::{Config, ConfigError, FileServerSettings, Settings};
use trainyard_agent::daemon;
use trainyard_shared::telemetry;

/// Exit status of bad settings or usage.
const EXIT_CONFIG: u8 = 2;
/// Threads for blocking calls on the node's own disk; they end when idle.
const BLOCKING_THREADS: usize = 32;

/// Trainyard's agent: runs the tasks of jobs on this host.
#[derive(Parser)]
#[command(name = "trainyard-agent", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent until SIGTERM; tasks outlive it and are taken over by the next one.
    Run(Options),
    /// Check settings, certificate and task user, then print the settings.
    CheckConfig(Options),
}

#[derive(Args)]
struct Options {
    /// Settings. Flags and variables win over them.
    #[arg(long, env = "TRAINYARD_AGENT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of the node. Default: the host's name.
    #[arg(long, env = "TRAINYARD_AGENT_NODE", value_name = "NAME")]
    node: Option<String>,
    /// A scheduler; give several.
    #[arg(
        long = "scheduler",
        env = "TRAINYARD_AGENT_SCHEDULER",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    schedulers: Vec<String>,
    /// Directory of ca.pem, cert.pem and key.pem.
    #[arg(long, env = "TRAINYARD_AGENT_TLS_DIR", value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// Directory for everything the agent keeps.
    #[arg(long, env = "TRAINYARD_AGENT_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the agent serves files to schedulers; port 0: any free one.
    #[arg(long, env = "TRAINYARD_AGENT_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Address under which schedulers and other nodes reach this host.
    #[arg(long, env = "TRAINYARD_AGENT_ADDRESS", value_name = "HOST")]
    address: Option<String>,
    /// Declare GPUs instead of asking NVML; for tests.
    #[arg(long, env = "TRAINYARD_AGENT_GPUS", value_name = "N")]
    gpus: Option<u32>,
    /// Class of the node. Default: derived from the inventory.
    #[arg(long, env = "TRAINYARD_AGENT_NODE_CLASS", value_name = "CLASS")]
    node_class: Option<String>,
    /// User that tasks run as. Default: `trainyard`, or `nobody`.
    #[arg(long, env = "TRAINYARD_AGENT_TASK_USER", value_name = "NAME")]
    task_user: Option<String>,
    /// A further user that clusters may choose to run their tasks as; give several.
    #[arg(
        long = "also-task-user",
        env = "TRAINYARD_AGENT_TASK_USERS",
        value_name = "NAME",
        value_delimiter = ','
    )]
    task_users: Vec<String>,
    /// The system as an image, for clusters that demand one. Default: made from /etc/os-release.
    #[arg(
        long,
        env = "TRAINYARD_AGENT_IMAGE",
        value_name = "PUBLISHER:OFFER:SKU[:VERSION]"
    )]
    image: Option<String>,
    /// Longest that one mount may take.
    #[arg(long, env = "TRAINYARD_AGENT_MOUNT_DEADLINE_S", value_name = "SECONDS")]
    mount_deadline_s: Option<u64>,
    /// PATH of tasks.
    #[arg(long, env = "TRAINYARD_AGENT_PATH", value_name = "PATH")]
    path: Option<String>,
    /// Logs of ended attempts to keep.
    #[arg(long, env = "TRAINYARD_AGENT_SPOOL_KEEP_MIB", value_name = "MIB")]
    spool_keep_mib: Option<u64>,
    /// Form of the agent's own log: text or json.
    #[arg(long, env = "TRAINYARD_AGENT_LOG_FORMAT", default_value = "text")]
    log_format: telemetry::Format,
}

fn main() -> ExitCode {
    match std::env::args_os()
        .nth(1)
        .as_deref()
        .and_then(|first| first.to_str())
    {
        Some("shim") => return trainyard_agent::shim::main(),
        Some("mount") => return trainyard_agent::helper::main(),
        Some("share") => return trainyard_agent::share::main(),
        _ => {}
    }
    let (run, options) = match Cli::parse().command {
        Command::Run(options) => (true, options),
        Command::CheckConfig(options) => (false, options),
    };
    let format = options.log_format;
    if let Err(error) = telemetry::init("trainyard-agent", tracing::Level::INFO, format) {
        eprintln!("trainyard-agent: {error}");
        return ExitCode::from(EXIT_CONFIG);
    }
    let config = match options.read() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("trainyard-agent: {error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if run { serve(config) } else { check(&config) }
}

fn check(config: &Config) -> ExitCode {
    match daemon::check(config) {
        Ok(_) => {
            println!("{config:#?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("trainyard-agent: {error}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

fn serve(config: Config) -> ExitCode {
    // One thread does all: the agent's work is waiting. Blocking calls on the local disk get threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("trainyard-agent: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(daemon::run(config));
    // A thread that hangs must not keep the agent from stopping.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trainyard-agent: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

impl Options {
    fn read(self) -> Result<Config, ConfigError> {
        let flags = Settings {
            node: self.node,
            schedulers: self.schedulers,
            tls_dir: self.tls_dir,
            data_dir: self.data_dir,
            listen: self.listen,
            address: self.address,
            gpus: self.gpus,
            node_class: self.node_class,
            task_user: self.task_user,
            // What follows from other software on the host belongs into its file.
            task_users: self.task_users,
            image: self.image,
            file_server: FileServerSettings::default(),
            mount_deadline_s: self.mount_deadline_s,
            path: self.path,
            spool_keep_mib: self.spool_keep_mib,
        };
        let file = match &self.config {
            Some(path) => Settings::read(path)?,
            None => Settings::default(),
        };
        flags.over(file).finish()
    }
}
