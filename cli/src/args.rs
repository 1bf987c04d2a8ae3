//! The command line's grammar: global flags and the nouns. Each noun's verbs and flags stand in its own module. Must
//! never act on what it parses.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    cluster, completion, dev, events, experiment, file_server, job, member, node, node_class,
    usage, workspace,
};

/// Train models on GPU machines that you own.
#[derive(Debug, Parser)]
#[command(
    name = "trainyard",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit status: 0 success, 1 failure, 2 wrong usage. `job wait` and `job create --follow` return the job's \
                  own exit code.\nTo try Trainyard on this machine alone: trainyard dev"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// Flags that every noun takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Configuration file of the client [default: ~/.config/trainyard/config.toml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "TRAINYARD_CONFIG",
        hide_env_values = true
    )]
    pub(crate) config: Option<PathBuf>,
    /// Scheduler to talk to; may be given several times. Overrides the configuration file
    #[arg(
        long = "server",
        global = true,
        value_name = "HOST:PORT",
        env = "TRAINYARD_SERVERS",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub(crate) servers: Vec<String>,
    /// Directory with ca.pem, cert.pem and key.pem of this client. Overrides the configuration file
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "TRAINYARD_TLS_DIR",
        hide_env_values = true
    )]
    pub(crate) tls_dir: Option<PathBuf>,
    /// Shape of the output: table for people, json or yaml for programs, name for resource names alone
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "table|json|yaml|name"
    )]
    pub(crate) output: Format,
}

/// Shape of what goes to stdout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    // For people. (Not a doc comment: clap would print a line for each value.)
    #[default]
    Table,
    // For programs.
    Json,
    // The same as YAML.
    Yaml,
    // Resource names alone, one per line.
    Name,
}

/// What the command is about.
#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Workspaces hold clusters, file servers and experiments
    #[command(subcommand)]
    Workspace(workspace::Command),
    /// Clusters are groups of nodes that run jobs
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// File servers hold what jobs read and write
    #[command(subcommand)]
    FileServer(file_server::Command),
    /// Experiments group jobs
    #[command(subcommand)]
    Experiment(experiment::Command),
    /// Jobs: submit, follow, explain, end
    #[command(subcommand)]
    Job(job::Command),
    /// Print what happened to resources, and follow what happens
    Events(events::EventsArgs),
    /// Nodes are hosts that run an agent
    #[command(subcommand)]
    Node(node::Command),
    /// Node classes name the hardware of nodes
    #[command(subcommand)]
    NodeClass(node_class::Command),
    /// Limits, what is used of them, and accounting
    #[command(subcommand)]
    Usage(usage::Command),
    /// Members are the schedulers
    #[command(subcommand)]
    Member(member::Command),
    /// Print a completion script for a shell
    Completion(completion::Command),
    /// Run schedulers and agents on this machine, to try things out
    Dev(dev::Command),
}

/// The workspace of a command.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct WorkspaceArg {
    /// Workspace
    #[arg(
        short,
        long,
        value_name = "WORKSPACE",
        env = "TRAINYARD_WORKSPACE",
        hide_env_values = true
    )]
    pub(crate) workspace: Option<String>,
}

/// The experiment of a command.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ExperimentArg {
    #[command(flatten)]
    pub(crate) workspace: WorkspaceArg,
    /// Experiment
    #[arg(
        short,
        long,
        value_name = "EXPERIMENT",
        env = "TRAINYARD_EXPERIMENT",
        hide_env_values = true
    )]
    pub(crate) experiment: Option<String>,
}

/// Whether to ask before something is deleted.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct YesArg {
    /// Do not ask. Without a terminal nothing is ever asked
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn global_flags_may_stand_after_the_verb() {
        let parsed = Arguments::try_parse_from([
            "trainyard",
            "node",
            "list",
            "-o",
            "json",
            "--server",
            "a:1",
            "--server",
            "b:2",
        ])
        .unwrap();
        assert_eq!(parsed.global.output, Format::Json);
        assert_eq!(parsed.global.servers, ["a:1", "b:2"]);
    }

    #[test]
    fn an_unknown_flag_is_wrong_usage() {
        let error = Arguments::try_parse_from(["trainyard", "node", "list", "--nope"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
