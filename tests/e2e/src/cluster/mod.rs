//! Whole clusters of real daemons: N schedulers and M nodes, each a host of its own on one [`Net`].
//!
//! ```no_run
//! use trainyard_e2e::cluster::{Cluster, JobFile};
//!
//! let mut cluster = Cluster::builder().schedulers(3).nodes(2).start()?;
//! cluster.open_workspace(2)?;
//! cluster.submit("hello", &JobFile::custom("echo hello"))?;
//! cluster.scheduler(1).daemon.kill()?;
//! assert_eq!(cluster.wait("hello")?, 0);
//! # Ok::<(), trainyard_e2e::RigError>(())
//! ```
//!
//! The rig writes the daemons' configuration itself, with leases that suit tests, and has `trainyard-scheduler init` make the
//! certificates. When a test fails the ends of all logs are printed; with `TRAINYARD_E2E_KEEP` set its folder stays.
//! The rig must never read or change a daemon's data: tests see a cluster as its users do.

mod api;
mod binaries;
mod builder;
mod command;
mod config;
mod gate;
mod jobs;
mod machine;
mod member;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::Result;
use crate::hosts::{Host, Net};

pub use api::Api;
pub use binaries::{Binary, binary};
pub use builder::Builder;
pub use command::{Finished, Following, run};
pub use config::Timing;
pub use gate::Gate;
pub use jobs::{CLUSTER, EXPERIMENT, JobFile, WORKSPACE, in_experiment, text};
pub use machine::Machine;
pub use member::Member;

/// The client that `init` makes a certificate for.
const CLIENT: &str = "admin";

/// A running cluster. Dropping it ends every process and removes its folder.
pub struct Cluster {
    schedulers: BTreeMap<u64, Member>,
    nodes: BTreeMap<String, Member>,
    machines: BTreeMap<String, Machine>,
    hosts: BTreeMap<String, Host>,
    members: Vec<(u64, SocketAddr)>,
    install: PathBuf,
    client_config: PathBuf,
    net: Net,
    folder: Option<TempDir>,
}

impl Cluster {
    /// One scheduler and one node with 4 GPUs, unless told otherwise.
    pub fn builder() -> Builder {
        Builder::default()
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

    /// The node with a kernel of its own and this name, such as `machine-1`.
    ///
    /// # Panics
    /// When there is none: the test is wrong.
    #[allow(
        clippy::panic,
        reason = "a scenario that names a machine it did not ask for cannot go on"
    )]
    pub fn machine(&mut self, name: &str) -> &mut Machine {
        self.machines
            .get_mut(name)
            .unwrap_or_else(|| panic!("this cluster has no machine {name}"))
    }

    /// A host that the builder was asked for.
    ///
    /// # Panics
    /// When there is none: the test is wrong.
    #[allow(
        clippy::panic,
        reason = "a scenario that names a host it did not ask for cannot go on"
    )]
    pub fn host(&self, name: &str) -> &Host {
        self.hosts
            .get(name)
            .unwrap_or_else(|| panic!("this cluster has no host {name}"))
    }

    /// All schedulers by id.
    pub fn schedulers(&mut self) -> impl Iterator<Item = (u64, &mut Member)> {
        self.schedulers.iter_mut().map(|(id, member)| (*id, member))
    }

    /// Ids and addresses of the schedulers.
    pub fn members(&self) -> &[(u64, SocketAddr)] {
        &self.members
    }

    /// The network.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// A folder that every host sees, tasks included, and that goes with the cluster.
    pub fn folder(&self) -> &Path {
        self.folder
            .as_ref()
            .map_or(Path::new("/nonexistent"), TempDir::path)
    }

    /// What `trainyard-scheduler init` made, with the configuration that the rig wrote: `members/1/scheduler.toml` and so on.
    pub fn install(&self) -> &Path {
        &self.install
    }

    /// The configuration file of a client with a certificate.
    pub fn client_config(&self) -> &Path {
        &self.client_config
    }

    /// Waits until every daemon that runs has said that it is ready since its last start.
    pub fn wait_ready(&mut self) -> Result<()> {
        for member in self.schedulers.values_mut().chain(self.nodes.values_mut()) {
            member.wait_ready()?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in self.schedulers.values().chain(self.nodes.values()) {
                eprintln!("{}", member.daemon.log_tail());
            }
            for machine in self.machines.values() {
                eprintln!("--- log of {}\n{}", machine.uml.name(), machine.log_text());
            }
        }
        if std::env::var_os("TRAINYARD_E2E_KEEP").is_some()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("kept {}", folder.keep().display());
        }
    }
}
