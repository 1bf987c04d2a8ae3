//! A whole installation on loopback, for the time of one benchmark: schedulers and agents from release binaries, with the
//! settings they are shipped with. It must never change a setting that a measurement depends on.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use nix::unistd::Pid;
use trainyard_proto::v1::NodeState;
use trainyard_shared::client::{Client, ClientConfig, DEFAULT_TIMEOUT};
use trainyard_shared::tls::Identity;

use crate::calls;
use crate::daemon::{Daemon, end_all, end_leftovers, wait_until};
use crate::error::{BenchError, Context, Result};
use crate::place::{RunDir, free_addresses};

const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Entries that a member may lack under load and still count as one that has caught up.
const NEAR_ENTRIES: u64 = 500;
const MAX_MEMBERS: i64 = 9;
const MAX_NODES: u64 = 64;

/// Flags that every benchmark takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct RigArgs {
    /// Directory of trainyard-scheduler and trainyard-agent [default: that of this program]
    #[arg(long, value_name = "DIR", global = true)]
    bin_dir: Option<PathBuf>,
    /// Directory of a disk, below which the run's data goes [default: /var/tmp]
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<PathBuf>,
    /// Keep the run's data and logs
    #[arg(long, global = true)]
    keep: bool,
    /// Schedulers
    #[arg(long, value_name = "N", global = true, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=MAX_MEMBERS))]
    pub(crate) schedulers: u8,
}

impl RigArgs {
    /// A directory for a run, as the flags say.
    pub(crate) fn run_dir(&self) -> Result<RunDir> {
        RunDir::new(self.data.as_deref(), self.keep)
    }
}

/// How many agents, for the benchmarks that run jobs.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeArgs {
    /// Agents
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=MAX_NODES))]
    pub(crate) nodes: u64,
    /// GPUs that each agent declares; there need not be any
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) gpus: u32,
}

/// Whom the clients of a benchmark call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    /// Spread evenly over the members, as with real clients: those that do not lead forward
    Any,
    /// The leader alone
    Leader,
}

impl Target {
    /// As the report has it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Any => "any member, evenly",
            Self::Leader => "the leader",
        }
    }
}

/// A peer that is measured in the same run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Beside {
    /// As many members of etcd, from the PATH, without TLS
    Etcd,
}

/// A running installation. Dropping it ends all of it and removes its files.
pub(crate) struct Rig {
    /// The members in order, then the agents in order.
    daemons: Vec<Daemon>,
    /// `HOST:PORT` of each member.
    addresses: Vec<String>,
    identity: Identity,
    agent_program: PathBuf,
    task_dir: PathBuf,
    run_dir: RunDir,
}

impl Rig {
    /// Starts an installation and waits until it has a leader and all nodes are ready. Call it from the main thread.
    pub(crate) async fn start(args: &RigArgs, nodes: u64, gpus: u32) -> Result<Self> {
        let bin_dir = match &args.bin_dir {
            Some(dir) => dir.clone(),
            None => {
                let own = std::env::current_exe().cannot("find this program")?;
                own.parent().map(Path::to_owned).unwrap_or_default()
            }
        };
        let scheduler = program(&bin_dir, "trainyard-scheduler")?;
        let agent_program = match nodes {
            0 => PathBuf::new(),
            _ => program(&bin_dir, "trainyard-agent")?,
        };
        let run_dir = args.run_dir()?;
        // Tasks pass through it to what their agent makes for them.
        run_dir.make("agents", 0o755)?;
        let task_dir = run_dir.make("tasks", 0o1777)?;
        let root = run_dir.path();
        let addresses = free_addresses(usize::from(args.schedulers))?;
        init(&scheduler, root, &addresses, nodes)?;
        let identity = Identity::load(&root.join("installation/clients/bench/tls"))
            .cannot("load the identity of the benchmark")?;
        let members = (1..=args.schedulers).map(|id| member(&scheduler, root, id));
        let agents = (1..=nodes).map(|number| agent(&agent_program, root, number, gpus));
        let mut rig = Self {
            daemons: members.chain(agents).collect(),
            addresses,
            identity,
            agent_program,
            task_dir,
            run_dir,
        };
        for daemon in &mut rig.daemons {
            daemon.start()?;
        }
        rig.wait_until_whole().await?;
        rig.wait_until_nodes_ready(nodes).await?;
        Ok(rig)
    }

    /// Directory of the run.
    pub(crate) fn path(&self) -> &Path {
        self.run_dir.path()
    }

    /// Directory that tasks may write to.
    pub(crate) fn task_dir(&self) -> &Path {
        &self.task_dir
    }

    /// Kind of the file system that holds the run.
    pub(crate) fn file_system(&self) -> &str {
        self.run_dir.file_system()
    }

    /// The members, in order.
    pub(crate) fn members(&mut self) -> &mut [Daemon] {
        &mut self.daemons[..self.addresses.len()]
    }

    /// A client as people have it: it knows all members, draws the one to call first, and goes on with another when that
    /// one fails.
    pub(crate) fn client(&self) -> Result<Client> {
        self.client_of(self.addresses.clone())
    }

    /// `count` clients with a connection each that stays with one member, so that a run can be repeated.
    pub(crate) async fn clients(&self, count: usize, target: Target) -> Result<Vec<Client>> {
        let addresses = match target {
            Target::Any => self.addresses.clone(),
            Target::Leader => vec![self.addresses[self.leader().await?].clone()],
        };
        let mut servers = addresses.iter().cycle();
        (0..count)
            .filter_map(|_| servers.next())
            .map(|server| self.client_of(vec![server.clone()]))
            .collect()
    }

    fn client_of(&self, servers: Vec<String>) -> Result<Client> {
        Client::new(ClientConfig {
            servers,
            identity: self.identity.clone(),
            timeout: DEFAULT_TIMEOUT,
        })
        .cannot("make a client")
    }

    /// Index of the member that leads.
    pub(crate) async fn leader(&self) -> Result<usize> {
        let client = self.client()?;
        let leader = calls::leader(&client).await?;
        let position = self.addresses.iter().position(|address| *address == leader);
        position.ok_or_else(|| BenchError::new(format!("{leader} leads, which is none of ours")))
    }

    async fn wait_until_nodes_ready(&mut self, nodes: u64) -> Result<()> {
        let client = self.client()?;
        wait_until(
            "all nodes are ready",
            START_TIMEOUT,
            &mut self.daemons,
            async || {
                let listed = calls::nodes(&client).await?;
                let ready = listed
                    .iter()
                    .filter(|node| node.state() == NodeState::Ready);
                Ok(ready.count() as u64 == nodes)
            },
        )
        .await
    }

    /// Waits until the leader hears every member and none is far behind.
    pub(crate) async fn wait_until_whole(&mut self) -> Result<()> {
        let client = self.client()?;
        wait_until(
            "every member has caught up",
            START_TIMEOUT,
            &mut self.daemons,
            async || {
                Ok(calls::lag(&client)
                    .await
                    .is_ok_and(|lag| lag < NEAR_ENTRIES))
            },
        )
        .await
    }

    /// The pids of the members, in order.
    pub(crate) fn member_pids(&self) -> Result<Vec<Pid>> {
        self.daemons[..self.addresses.len()]
            .iter()
            .map(Daemon::pid)
            .collect()
    }

    /// The pids of the agents, in order.
    pub(crate) fn agent_pids(&self) -> Result<Vec<Pid>> {
        self.daemons[self.addresses.len()..]
            .iter()
            .map(Daemon::pid)
            .collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let (members, agents) = self.daemons.split_at_mut(self.addresses.len());
        // Agents first: they end their tasks while there is a leader to hear of it.
        end_all(agents);
        end_all(members);
        let left = end_leftovers(self.run_dir.path(), &self.agent_program);
        if left > 0 {
            eprintln!("ended {left} processes that the agents had left running");
        }
    }
}

fn program(bin_dir: &Path, name: &str) -> Result<PathBuf> {
    let path = bin_dir.join(name);
    fs::canonicalize(&path).cannot(format_args!(
        "find {}: build with `cargo build --release --workspace`, or name its directory with --bin-dir",
        path.display()
    ))
}

fn init(scheduler: &Path, root: &Path, addresses: &[String], nodes: u64) -> Result<()> {
    let mut command = Command::new(scheduler);
    command
        .args(["init", "--client", "bench", "--out"])
        .arg(root.join("installation"));
    for (id, address) in (1..).zip(addresses) {
        command.arg("--member").arg(format!("{id}={address}"));
    }
    for number in 1..=nodes {
        command.arg("--node").arg(node_name(number));
    }
    let output = command
        .stdin(Stdio::null())
        .output()
        .cannot("run trainyard-scheduler init")?;
    if output.status.success() {
        return Ok(());
    }
    Err(BenchError::new(format!(
        "trainyard-scheduler init ended with {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    )))
}

fn node_name(number: u64) -> String {
    format!("node-{number}")
}

fn member(scheduler: &Path, root: &Path, id: u8) -> Daemon {
    let config = root.join(format!("installation/members/{id}/scheduler.toml"));
    Daemon::new(
        format!("scheduler {id}"),
        scheduler.to_owned(),
        vec!["run".into(), "--config".into(), config.into()],
        root.join(format!("scheduler-{id}.log")),
    )
}

fn agent(agent: &Path, root: &Path, number: u64, gpus: u32) -> Daemon {
    let node = node_name(number);
    let config = root.join(format!("installation/nodes/{node}/agent.toml"));
    let data = root.join("agents").join(&node);
    let arguments: Vec<OsString> = vec![
        "run".into(),
        "--config".into(),
        config.into(),
        "--data-dir".into(),
        data.into(),
        "--gpus".into(),
        gpus.to_string().into(),
        "--node-class".into(),
        "bench".into(),
    ];
    let log = root.join(format!("agent-{number}.log"));
    Daemon::new(format!("agent {node}"), agent.to_owned(), arguments, log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named() {
        let error = program(Path::new("/nonexistent"), "trainyard-agent").unwrap_err();
        assert!(error.to_string().contains("--bin-dir"), "{error}");
    }
}
