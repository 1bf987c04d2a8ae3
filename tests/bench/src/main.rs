//! `trainyard-bench`: measures Trainyard's budgets on one machine, with release binaries and real disks.
//!
//! Each benchmark starts an installation of its own on loopback, prints one JSON object on standard output and its progress
//! on standard error, and leaves nothing behind, not even when it is interrupted. It must never print a number that it did
//! not measure in this run. What each one means is in `docs/benchmarks.md`.

mod calls;
mod daemon;
mod disk;
mod error;
mod etcd;
mod failover;
mod fill;
mod idle;
mod latency;
mod list;
mod outage;
mod place;
mod restart;
mod rig;
mod stats;
mod submit;
mod throughput;
mod usage;
mod writer;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use error::{BenchError, Context, Result};
use rig::RigArgs;

/// Measure Trainyard on this machine
#[derive(Debug, Parser)]
#[command(name = "trainyard-bench", version, arg_required_else_help = true)]
struct Arguments {
    #[command(flatten)]
    rig: RigArgs,
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// Durable creates per second
    Submit(submit::SubmitArgs),
    /// From submission to the first instruction of a job, on an idle cluster
    Latency(latency::LatencyArgs),
    /// Time without accepted writes when the leader is killed, and what is lost
    Failover(failover::FailoverArgs),
    /// Trivial jobs per second, from submission to the end
    Throughput(throughput::ThroughputArgs),
    /// Memory and processor time of idle daemons
    Idle(idle::IdleArgs),
    /// Time of a page of a long list, and memory of the jobs
    List(list::ListArgs),
    /// Time without service when all schedulers are killed with many jobs in their state
    Restart(restart::RestartArgs),
}

impl Benchmark {
    async fn run(&self, rig: &RigArgs) -> Result<(&'static str, Value)> {
        eprintln!("starting {} schedulers", rig.schedulers);
        Ok(match self {
            Self::Submit(args) => ("submit", submit::run(rig, args).await?),
            Self::Latency(args) => ("latency", latency::run(rig, args).await?),
            Self::Failover(args) => ("failover", failover::run(rig, args).await?),
            Self::Throughput(args) => ("throughput", throughput::run(rig, args).await?),
            Self::Idle(args) => ("idle", idle::run(rig, args).await?),
            Self::List(args) => ("list", list::run(rig, args).await?),
            Self::Restart(args) => ("restart", restart::run(rig, args).await?),
        })
    }
}

// The main future stays on the main thread, from which alone daemons may be started.
#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("trainyard-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<Value> {
    let mut interrupt = signal(SignalKind::interrupt()).cannot("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).cannot("listen for SIGTERM")?;
    // What is dropped when a signal comes first ends its daemons and removes its files.
    let (name, mut report) = tokio::select! {
        done = arguments.benchmark.run(&arguments.rig) => done?,
        _ = interrupt.recv() => return Err(BenchError::new("interrupted")),
        _ = terminate.recv() => return Err(BenchError::new("terminated")),
    };
    if let Value::Object(fields) = &mut report {
        fields.insert("benchmark".into(), name.into());
        fields.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        fields.insert("processors".into(), processors.into());
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn documented_calls_parse() {
        let document = include_str!("../../../docs/benchmarks.md");
        let calls: Vec<&str> = document
            .lines()
            .filter(|line| line.starts_with("target/release/trainyard-bench "))
            .collect();
        assert!(calls.len() >= 7, "{calls:?}");
        for call in calls {
            Arguments::try_parse_from(call.split_whitespace()).unwrap();
        }
    }
}
