//! Trainyard's command line: `trainyard NOUN VERB`.
//!
//! A gRPC client and nothing more: it must never decide what the schedulers decide, read their data directories, or keep
//! state of its own. (`trainyard dev` starts daemons as child processes; it talks to them like any other client.)
//!
//! One module per noun; what they share: `args` (global flags), `context` (connection and output of one run),
//! `api` (typed calls), `scope` (`-w -e -n` to resource names), `output` and `table` (what goes to stdout),
//! `console` (what goes to stderr while something lasts), `error` and `status` (sentences and exit statuses).
//!
//! Exit status: 0 success; 1 failure; 2 wrong usage; 130 left by Ctrl-C; 141 the reader of the output has closed it.
//! `job wait` and `job create --follow` return the job's own exit code (see `job`).

mod api;
mod args;
mod bindings;
mod cluster;
mod completion;
mod console;
mod context;
mod dev;
mod error;
mod events;
mod experiment;
mod file_server;
mod gone;
mod job;
mod job_file;
mod member;
mod node;
mod node_class;
mod output;
mod placeholders;
mod scope;
mod status;
mod table;
mod text;
mod usage;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

use args::{Arguments, Noun};
use context::Context;
use error::Error;

/// Parses the arguments of the process, does what they say, and returns the exit status of the process. Errors are
/// printed to stderr.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Two threads: one may be stuck in a write to a slow reader of stdout while the other keeps connections alive.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(arguments));
            // A read of stdin that nobody answers must not keep the process.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Error::failure(format!("cannot start the runtime: {error}"))),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            error.print();
            ExitCode::from(error.exit_status())
        }
    }
}

async fn run(arguments: Arguments) -> Result<u8, Error> {
    let context = Context::new(arguments.global);
    match arguments.noun {
        Noun::Workspace(command) => workspace::run(&context, command).await,
        Noun::Cluster(command) => cluster::run(&context, command).await,
        Noun::FileServer(command) => file_server::run(&context, command).await,
        Noun::Experiment(command) => experiment::run(&context, command).await,
        Noun::Job(command) => job::run(&context, command).await,
        Noun::Events(args) => events::run(&context, &args).await,
        Noun::Node(command) => node::run(&context, command).await,
        Noun::NodeClass(command) => node_class::run(&context, command).await,
        Noun::Usage(command) => usage::run(&context, command).await,
        Noun::Member(command) => member::run(&context, command).await,
        Noun::Completion(command) => completion::run(&command),
        Noun::Dev(command) => dev::run(command).await,
    }
}
