//! Makes hosts, certificates and configuration for a cluster, and starts it.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::binaries::Binary;
use super::config::{AgentSettings, Layout, Timing, scheduler_address};
use super::machine::Machine;
use super::member::Member;
use super::{CLIENT, Cluster};
use crate::error::{Context, Result};
use crate::hosts::{Host, Net, Uml};

const MACHINE_MEMORY_MIB: u32 = 512;
/// Where a machine's agent keeps its data: in memory, as its disk is the test's own and read-only.
const MACHINE_DATA: &str = "/run/trainyard";

/// What to start. Made by [`Cluster::builder`].
pub struct Builder {
    schedulers: u64,
    nodes: usize,
    machines: usize,
    hosts: Vec<String>,
    gpus: u32,
    timing: Timing,
    task_user: Option<String>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            schedulers: 1,
            nodes: 1,
            machines: 0,
            hosts: Vec::new(),
            gpus: 4,
            timing: Timing::default(),
            task_user: None,
        }
    }
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

    /// How many nodes with a kernel of their own, named `machine-1` and so on. Default: 0.
    pub fn machines(mut self, count: usize) -> Self {
        self.machines = count;
        self
    }

    /// One more host, with no daemon of Trainyard: an NFS server's. Machines know only the names of hosts that were there first.
    pub fn host(mut self, name: &str) -> Self {
        self.hosts.push(name.to_owned());
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
        for machine in cluster.machines.values_mut() {
            machine.start_agent()?;
        }
        Ok(cluster)
    }

    /// Makes hosts, certificates and configuration, boots the machines, and starts no daemon.
    pub fn prepare(self) -> Result<Cluster> {
        let folder =
            TempDir::with_prefix("trainyard-cluster-").cannot("make a temporary folder")?;
        // Tasks run as another user and must reach their directories.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755))
            .cannot("open the cluster's folder")?;
        let layout = Layout::new(folder.path());
        let net = Net::new()?;
        let mut scheduler_hosts = Vec::new();
        for id in 1..=self.schedulers {
            scheduler_hosts.push((id, net.host(&format!("scheduler-{id}"))?));
        }
        let members: Vec<_> = scheduler_hosts
            .iter()
            .map(|(id, host)| (*id, scheduler_address(host)))
            .collect();
        let node_names = names("node", self.nodes);
        let machine_names = names("machine", self.machines);
        let all_nodes = [node_names.clone(), machine_names.clone()].concat();
        layout.init(&members, &all_nodes, CLIENT)?;
        layout.write_client(CLIENT, &members)?;

        let mut schedulers = BTreeMap::new();
        for (id, host) in scheduler_hosts {
            let file = layout.write_scheduler(id, &members, &self.timing)?;
            let log = layout.log(host.name());
            let member = Member::new(host, Binary::Scheduler, file, &log)?;
            schedulers.insert(id, member);
        }
        let mut nodes = BTreeMap::new();
        for name in node_names {
            let host = net.host(&name)?;
            let file = self.write_agent(&layout, &host, &members)?;
            let log = layout.log(&name);
            nodes.insert(name, Member::new(host, Binary::Agent, file, &log)?);
        }
        let mut hosts = BTreeMap::new();
        for name in &self.hosts {
            hosts.insert(name.clone(), net.host(name)?);
        }
        let mut machines = BTreeMap::new();
        for name in machine_names {
            let uml = Uml::boot(&net, &name, folder.path(), MACHINE_MEMORY_MIB)?;
            let settings = AgentSettings {
                node: &name,
                address: uml.address(),
                data_dir: PathBuf::from(MACHINE_DATA),
                gpus: self.gpus,
                task_user: self.task_user.as_deref(),
            };
            let file = layout.write_agent(&settings, &members)?;
            let log = layout.log(&name);
            machines.insert(name, Machine::new(uml, file, log));
        }
        Ok(Cluster {
            schedulers,
            nodes,
            machines,
            hosts,
            members,
            install: layout.install(),
            client_config: layout.client_config(CLIENT),
            net,
            folder: Some(folder),
        })
    }

    fn write_agent(
        &self,
        layout: &Layout,
        host: &Host,
        members: &[(u64, std::net::SocketAddr)],
    ) -> Result<PathBuf> {
        let settings = AgentSettings {
            node: host.name(),
            address: host.address(),
            data_dir: layout.agent_data(host.name()),
            gpus: self.gpus,
            task_user: self.task_user.as_deref(),
        };
        layout.write_agent(&settings, members)
    }
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (1..=count)
        .map(|number| format!("{prefix}-{number}"))
        .collect()
}
