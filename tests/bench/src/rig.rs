//! A whole installation on loopback, for the time of one benchmark: schedulers and agents from release binaries, with the
//! settings they are shipped with. It must never change a setting that a measurement depends on.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use nix::unistd::Pid;
use tempfile::TempDir;
use trainyard_proto::v1::NodeState;
use trainyard_shared::client::{Client, ClientConfig, DEFAULT_TIMEOUT};
use trainyard_shared::tls::Identity;

use crate::calls;
use crate::daemon::{Daemon, end_leftovers};
use crate::disk;
use crate::error::{BenchError, Context, Result};

/// On a disk by the file hierarchy standard, unlike `/tmp`.
const DEFAULT_DATA: &str = "/var/tmp";
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a daemon may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
const MAX_MEMBERS: u64 = 9;
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
    #[arg(long, value_name = "N", global = true, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=MAX_MEMBERS))]
    pub(crate) schedulers: u64,
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

/// Where a run keeps its files. Dropped last: the daemons write there.
enum RunDir {
    Temporary(TempDir),
    Kept(PathBuf),
}

impl RunDir {
    fn path(&self) -> &Path {
        match self {
            Self::Temporary(dir) => dir.path(),
            Self::Kept(path) => path,
        }
    }
}

/// A running installation. Dropping it ends all of it and removes its files.
pub(crate) struct Rig {
    pub(crate) members: Vec<Daemon>,
    pub(crate) agents: Vec<Daemon>,
    /// `HOST:PORT` of each of `members`.
    addresses: Vec<String>,
    identity: Identity,
    file_system: String,
    agent_program: PathBuf,
    run_dir: RunDir,
}

impl Rig {
    /// Starts an installation and waits until it has a leader and all nodes are ready. Call it from the main thread.
    pub(crate) async fn start(args: &RigArgs, nodes: u64, gpus: u32) -> Result<Self> {
        let data = args.data.clone().unwrap_or_else(|| DEFAULT_DATA.into());
        let file_system = disk::file_system(&data)?;
        disk::require_durable(&data, &file_system)?;
        let bin_dir = match &args.bin_dir {
            Some(dir) => dir.clone(),
            None => {
                let own = std::env::current_exe().cannot("find this program")?;
                own.parent().map(Path::to_owned).unwrap_or_default()
            }
        };
        let scheduler = program(&bin_dir, "trainyard-scheduler")?;
        let agent_program = program(&bin_dir, "trainyard-agent")?;
        let run_dir = make_run_dir(&data, args.keep)?;
        let root = run_dir.path();
        let addresses = free_addresses(args.schedulers)?;
        init(&scheduler, root, &addresses, nodes)?;
        let identity = Identity::load(&root.join("installation/clients/bench/tls"))
            .cannot("load the identity of the benchmark")?;
        let mut rig = Self {
            members: (1..=args.schedulers)
                .map(|id| member(&scheduler, root, id))
                .collect(),
            agents: (1..=nodes)
                .map(|number| agent(&agent_program, root, number, gpus))
                .collect(),
            addresses,
            identity,
            file_system,
            agent_program,
            run_dir,
        };
        for daemon in rig.members.iter_mut().chain(&mut rig.agents) {
            daemon.start()?;
        }
        rig.wait_until_ready(nodes).await?;
        Ok(rig)
    }

    /// Directory of the run.
    pub(crate) fn path(&self) -> &Path {
        self.run_dir.path()
    }

    /// Directory that tasks may write to.
    pub(crate) fn task_dir(&self) -> PathBuf {
        self.path().join("tasks")
    }

    /// Kind of the file system that holds the run.
    pub(crate) fn file_system(&self) -> &str {
        &self.file_system
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

    /// Index of the leader in `members`.
    pub(crate) async fn leader(&self) -> Result<usize> {
        let client = self.client()?;
        let leader = calls::leader(&client).await?;
        let position = self.addresses.iter().position(|address| *address == leader);
        position.ok_or_else(|| BenchError::new(format!("{leader} leads, which is none of ours")))
    }

    /// Asks `probe` again and again until it says yes; fails at once if a daemon ends by itself.
    pub(crate) async fn wait_until<F>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut probe: F,
    ) -> Result<()>
    where
        F: AsyncFnMut() -> Result<bool>,
    {
        let started = Instant::now();
        loop {
            if probe().await? {
                return Ok(());
            }
            for daemon in self.members.iter_mut().chain(&mut self.agents) {
                daemon.check_alive()?;
            }
            if started.elapsed() > timeout {
                let logs: Vec<_> = self
                    .members
                    .iter()
                    .chain(&self.agents)
                    .map(Daemon::log_tail)
                    .collect();
                return Err(BenchError::new(format!(
                    "waited {timeout:?} in vain until {what}\n{}",
                    logs.join("\n")
                )));
            }
            // Other programs announce none of these conditions.
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn wait_until_ready(&mut self, nodes: u64) -> Result<()> {
        let client = self.client()?;
        self.wait_until("all members follow a leader", START_TIMEOUT, async || {
            Ok(calls::lag(&client).await.is_ok_and(|lag| lag == 0))
        })
        .await?;
        self.wait_until("all nodes are ready", START_TIMEOUT, async || {
            let listed = calls::nodes(&client).await?;
            let ready = listed
                .iter()
                .filter(|node| node.state() == NodeState::Ready);
            Ok(ready.count() as u64 == nodes)
        })
        .await
    }

    /// Waits until the leader hears every member and none lacks an entry.
    pub(crate) async fn wait_until_whole(&mut self) -> Result<()> {
        let client = self.client()?;
        self.wait_until("every member has caught up", START_TIMEOUT, async || {
            Ok(calls::lag(&client).await.is_ok_and(|lag| lag == 0))
        })
        .await
    }

    /// The pids of the members, in order.
    pub(crate) fn member_pids(&self) -> Result<Vec<Pid>> {
        self.members.iter().map(Daemon::pid).collect()
    }

    /// The pids of the agents, in order.
    pub(crate) fn agent_pids(&self) -> Result<Vec<Pid>> {
        self.agents.iter().map(Daemon::pid).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Agents first: they end their tasks while there is a leader to hear of it.
        for daemons in [&mut self.agents, &mut self.members] {
            for daemon in daemons.iter() {
                daemon.ask_to_end();
            }
            let deadline = Instant::now() + STOP_TIMEOUT;
            for daemon in daemons.iter_mut() {
                daemon.end_by(deadline);
            }
        }
        let left = end_leftovers(self.run_dir.path(), &self.agent_program);
        if left > 0 {
            eprintln!("ended {left} processes that the agents had left running");
        }
        if let RunDir::Kept(path) = &self.run_dir {
            eprintln!("kept {}", path.display());
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

/// Makes the directory of a run. Tasks have to get through it, whatever user they run as.
fn make_run_dir(data: &Path, keep: bool) -> Result<RunDir> {
    let dir = tempfile::Builder::new()
        .prefix("trainyard-bench-")
        .tempdir_in(data)
        .cannot(format_args!("make a directory in {}", data.display()))?;
    let root = fs::canonicalize(dir.path()).cannot("resolve the run's directory")?;
    set_mode(&root, 0o755)?;
    for (name, mode) in [("agents", 0o755), ("tasks", 0o1777)] {
        let path = root.join(name);
        fs::create_dir(&path).cannot(format_args!("make {}", path.display()))?;
        set_mode(&path, mode)?;
    }
    Ok(if keep {
        RunDir::Kept(dir.keep())
    } else {
        RunDir::Temporary(dir)
    })
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .cannot(format_args!("set the mode of {}", path.display()))
}

/// Addresses on loopback that were free a moment ago.
fn free_addresses(count: u64) -> Result<Vec<String>> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<_>>()
        .cannot("find free ports on loopback")?;
    listeners
        .iter()
        .map(|listener| listener.local_addr().map(|address| address.to_string()))
        .collect::<std::io::Result<_>>()
        .cannot("read the address of a socket")
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

fn member(scheduler: &Path, root: &Path, id: u64) -> Daemon {
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
    fn addresses_differ() {
        let addresses = free_addresses(3).unwrap();
        assert!(addresses.iter().all(|a| a.starts_with("127.0.0.1:")));
        assert!(addresses[0] != addresses[1] && addresses[1] != addresses[2]);
    }

    #[test]
    fn a_run_leaves_nothing_behind_unless_it_shall() {
        let data = tempfile::tempdir().unwrap();
        let dir = make_run_dir(data.path(), false).unwrap();
        assert!(dir.path().join("tasks").is_dir());
        drop(dir);
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
        drop(make_run_dir(data.path(), true).unwrap());
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = program(Path::new("/nonexistent"), "trainyard-agent").unwrap_err();
        assert!(error.to_string().contains("--bin-dir"), "{error}");
    }
}
