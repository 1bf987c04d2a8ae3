//! Whole clusters of real daemons: N schedulers and M nodes, each a host of its own on one [`Net`].
//!
//! ```no_run
//! use trainyard_e2e::cluster::Cluster;
//!
//! let mut cluster = Cluster::builder().schedulers(3).nodes(2).start()?;
//! cluster.scheduler(1).daemon.kill()?;
//! cluster.command(["job", "list", "-w", "demo"])?;
//! # Ok::<(), trainyard_e2e::RigError>(())
//! ```
//!
//! The rig writes the daemons' configuration itself, with leases short enough for tests, and has `trainyard-scheduler init`
//! make the certificates. When a test fails the ends of all logs are printed; with `TRAINYARD_E2E_KEEP` set its folder stays.
//! The rig must never read or change a daemon's data: tests see a cluster as its users do.

mod binaries;
mod config;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::error::{Context, Result, RigError};
use crate::hosts::{Host, Net};
use crate::process::{Daemon, output, wait_until};

pub use binaries::{Binary, binary};
pub use config::Timing;

const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// The client that `init` makes a certificate for.
const CLIENT: &str = "admin";

/// What to start. Made by [`Cluster::builder`].
pub struct Builder {
    schedulers: u64,
    nodes: usize,
    gpus: u32,
    timing: Timing,
    task_user: Option<String>,
}

impl Builder {
    /// How many schedulers. Default: 1.
    pub fn schedulers(mut self, count: u64) -> Self {
        self.schedulers = count;
        self
    }

    /// How many nodes, named `node-1` and so on. Default: 1.
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    /// How many GPUs each node declares. Default: 4.
    pub fn gpus(mut self, count: u32) -> Self {
        self.gpus = count;
        self
    }

    /// Leases and election times.
    pub fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// The user that runs tasks. Default: the agent's own default.
    pub fn task_user(mut self, name: &str) -> Self {
        self.task_user = Some(name.to_owned());
        self
    }

    /// Starts everything and waits until every daemon says that it is ready.
    pub fn start(self) -> Result<Cluster> {
        let mut cluster = self.prepare()?;
        for scheduler in cluster.schedulers.values_mut() {
            scheduler.daemon.start()?;
        }
        for node in cluster.nodes.values_mut() {
            node.daemon.start()?;
        }
        cluster.wait_ready()?;
        Ok(cluster)
    }

    /// Makes hosts, certificates and configuration, and starts nothing.
    pub fn prepare(self) -> Result<Cluster> {
        let folder =
            TempDir::with_prefix("trainyard-cluster-").cannot("make a temporary folder")?;
        // Tasks run as another user and must reach their directories.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755))
            .cannot("open the cluster's folder")?;
        let net = Net::new()?;
        let mut scheduler_hosts = Vec::new();
        for id in 1..=self.schedulers {
            scheduler_hosts.push((id, net.host(&format!("scheduler-{id}"))?));
        }
        let mut node_hosts = Vec::new();
        for number in 1..=self.nodes {
            node_hosts.push(net.host(&format!("node-{number}"))?);
        }
        let members: Vec<_> = scheduler_hosts
            .iter()
            .map(|(id, host)| (*id, config::scheduler_address(host)))
            .collect();
        let layout = config::Layout::new(folder.path());
        layout.init(&members, node_hosts.iter().map(Host::name), CLIENT)?;

        let mut schedulers = BTreeMap::new();
        for (id, host) in scheduler_hosts {
            let file = layout.write_scheduler(id, &members, &self.timing)?;
            schedulers.insert(
                id,
                Member::new(
                    host,
                    Binary::Scheduler,
                    file,
                    &layout.log(&format!("scheduler-{id}")),
                )?,
            );
        }
        let mut nodes = BTreeMap::new();
        for host in node_hosts {
            let file = layout.write_agent(&host, &members, self.gpus, self.task_user.as_deref())?;
            let log = layout.log(host.name());
            nodes.insert(
                host.name().to_owned(),
                Member::new(host, Binary::Agent, file, &log)?,
            );
        }
        layout.write_client(CLIENT, &members)?;
        Ok(Cluster {
            schedulers,
            nodes,
            client_config: layout.client_config(CLIENT),
            net,
            folder: Some(folder),
        })
    }
}

/// A running cluster. Dropping it ends every process and removes its folder.
pub struct Cluster {
    schedulers: BTreeMap<u64, Member>,
    nodes: BTreeMap<String, Member>,
    client_config: PathBuf,
    net: Net,
    folder: Option<TempDir>,
}

/// One host with its daemon.
pub struct Member {
    /// The daemon; it goes first when both are dropped.
    pub daemon: Daemon,
    /// Where it runs: to cut its network, or to look around on it.
    pub host: Host,
}

impl Member {
    fn new(host: Host, program: Binary, config: PathBuf, log: &Path) -> Result<Self> {
        let path = binary(program)?;
        let entrance = host.entrance();
        let spec = move || {
            let mut command = entrance.command(&path);
            command.arg("run").arg("--config").arg(&config);
            command
        };
        Ok(Self {
            daemon: Daemon::new(host.name(), log, spec),
            host,
        })
    }

    /// Ends every process of the host at once: the daemon, its shims, their tasks. Start the daemon again for a reboot.
    pub fn kill_all(&mut self) -> Result<()> {
        self.host.kill_processes()?;
        self.daemon.wait(READY_TIMEOUT).map(drop)
    }
}

impl Cluster {
    /// One scheduler and one node with 4 GPUs, unless told otherwise.
    pub fn builder() -> Builder {
        Builder {
            schedulers: 1,
            nodes: 1,
            gpus: 4,
            timing: Timing::default(),
            task_user: None,
        }
    }

    /// The scheduler with this id, counted from 1.
    ///
    /// # Panics
    /// When there is none: the test is wrong.
    #[allow(
        clippy::panic,
        reason = "a scenario that names a scheduler it did not ask for cannot go on"
    )]
    pub fn scheduler(&mut self, id: u64) -> &mut Member {
        self.schedulers
            .get_mut(&id)
            .unwrap_or_else(|| panic!("this cluster has no scheduler {id}"))
    }

    /// The node with this name, such as `node-1`.
    ///
    /// # Panics
    /// When there is none: the test is wrong.
    #[allow(
        clippy::panic,
        reason = "a scenario that names a node it did not ask for cannot go on"
    )]
    pub fn node(&mut self, name: &str) -> &mut Member {
        self.nodes
            .get_mut(name)
            .unwrap_or_else(|| panic!("this cluster has no node {name}"))
    }

    /// All schedulers by id.
    pub fn schedulers(&mut self) -> impl Iterator<Item = (u64, &mut Member)> {
        self.schedulers.iter_mut().map(|(id, member)| (*id, member))
    }

    /// The network, to add hosts of the test's own (an NFS server).
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// A folder that every host sees and that goes with the cluster.
    pub fn folder(&self) -> &Path {
        self.folder
            .as_ref()
            .map_or(Path::new("/nonexistent"), TempDir::path)
    }

    /// The configuration file of a client with a certificate.
    pub fn client_config(&self) -> &Path {
        &self.client_config
    }

    /// Runs `trainyard ARGUMENTS…` as its users do and returns its standard output.
    pub fn command<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        output(self.raw_command()?.args(arguments))
    }

    /// `trainyard`, set up for this cluster, for tests that need more than its output.
    pub fn raw_command(&self) -> Result<Command> {
        let mut command = Command::new(binary(Binary::Command)?);
        command
            .env("TRAINYARD_CONFIG", &self.client_config)
            .current_dir(self.folder());
        Ok(command)
    }

    /// Waits until every daemon that runs has said that it is ready since its last start.
    pub fn wait_ready(&mut self) -> Result<()> {
        for member in self.schedulers.values_mut() {
            wait_line(&mut member.daemon, "trainyard-scheduler ready")?;
        }
        for member in self.nodes.values_mut() {
            wait_line(&mut member.daemon, "trainyard-agent ready")?;
        }
        Ok(())
    }
}

fn wait_line(daemon: &mut Daemon, text: &str) -> Result<()> {
    if daemon.pid().is_none() {
        return Ok(());
    }
    let waited = wait_until(&format!("it logs '{text}'"), READY_TIMEOUT, || {
        daemon.check_alive()?;
        Ok(daemon.log_since_start()?.contains(text).then_some(()))
    });
    waited.map_err(|error| {
        RigError::new(format!("{}: {error}\n{}", daemon.name(), daemon.log_tail()))
    })
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in self.schedulers.values().chain(self.nodes.values()) {
                eprintln!("{}", member.daemon.log_tail());
            }
        }
        if std::env::var_os("TRAINYARD_E2E_KEEP").is_some()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("kept {}", folder.keep().display());
        }
    }
}
