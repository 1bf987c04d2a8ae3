//! The files of a test cluster: where they lie and what is in them.
//!
//! What `trainyard-scheduler init` makes holds keys and is closed to others. Tasks run as another user, so the agents' data,
//! and whatever a test shares with its jobs, lies beside it.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::binaries::{Binary, binary};
use crate::error::{Context, Result};
use crate::hosts::Host;
use crate::process::output;

const SCHEDULER_PORT: u16 = 7001;
const AGENT_PORT: u16 = 7002;
/// Between SIGTERM and SIGKILL of a task: long enough for a busy machine, short enough to wait for.
const STOP_GRACE_MS: u64 = 3000;
/// How long a mount may take.
const MOUNT_DEADLINE_S: u64 = 20;

/// Times that decide how fast a cluster notices faults. The defaults suit tests on two busy cores that lose no node.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How long a heartbeat lets a node run tasks, in milliseconds.
    pub lease_ms: u64,
    /// How long after that the scheduler waits before it takes the node for lost, in milliseconds.
    pub fence_ms: u64,
    /// Between heartbeats, in milliseconds.
    pub heartbeat_ms: u64,
    /// Raft's tick, in milliseconds.
    pub tick_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease_ms: 60_000,
            fence_ms: 10_000,
            heartbeat_ms: 1000,
            tick_ms: 50,
        }
    }
}

impl Timing {
    /// For tests that wait for the loss of a node.
    pub fn short_lease() -> Self {
        Self {
            lease_ms: 4000,
            fence_ms: 4000,
            heartbeat_ms: 500,
            tick_ms: 50,
        }
    }
}

/// Where a scheduler on this host listens.
pub(super) fn scheduler_address(host: &Host) -> SocketAddr {
    SocketAddr::from((host.address(), SCHEDULER_PORT))
}

/// What an agent's configuration says.
pub(super) struct AgentSettings<'a> {
    pub(super) node: &'a str,
    pub(super) address: Ipv4Addr,
    pub(super) data_dir: PathBuf,
    pub(super) gpus: u32,
    pub(super) task_user: Option<&'a str>,
}

/// The folder of a cluster: `install` as `trainyard-scheduler init` lays it out, and everything else beside it.
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.log"))
    }

    pub(super) fn install(&self) -> PathBuf {
        self.root.join("install")
    }

    pub(super) fn agent_data(&self, node: &str) -> PathBuf {
        self.root.join("data").join(node)
    }

    pub(super) fn client_config(&self, client: &str) -> PathBuf {
        let clients = self.install().join("clients");
        clients.join(client).join("config.toml")
    }

    /// Makes all certificates, and the `python` that job files expect on the PATH.
    pub(super) fn init(
        &self,
        members: &[(u64, SocketAddr)],
        nodes: &[String],
        client: &str,
    ) -> Result<()> {
        let mut command = Command::new(binary(Binary::Scheduler)?);
        command.arg("init").arg("--out").arg(self.install());
        command.args(["--client", client]);
        for (id, address) in members {
            command.arg("--member").arg(format!("{id}={address}"));
        }
        for node in nodes {
            command.args(["--node", node]);
        }
        output(&mut command)?;
        fs::create_dir(self.root.join("data")).cannot("make the folder of the agents' data")?;
        // Debian has no `python`, and a version manager may have put another Python first on this PATH.
        let python = self.bin().join("python");
        fs::create_dir(self.bin()).cannot("make the folder of python")?;
        write(&python, "#!/bin/sh\nexec /usr/bin/python3 \"$@\"\n")?;
        fs::set_permissions(&python, Permissions::from_mode(0o755)).cannot("make python executable")
    }

    fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    pub(super) fn write_scheduler(
        &self,
        id: u64,
        members: &[(u64, SocketAddr)],
        timing: &Timing,
    ) -> Result<PathBuf> {
        let Timing {
            lease_ms,
            fence_ms,
            heartbeat_ms,
            tick_ms,
        } = timing;
        let mut text = format!(
            "member_id = {id}\ndata_dir = \"data\"\ntls_dir = \"tls\"\nstop_grace_ms = {STOP_GRACE_MS}\n"
        );
        if let Some((_, address)) = members.iter().find(|(member, _)| *member == id) {
            let _ = writeln!(text, "listen = \"{address}\"");
        }
        for (member, address) in members {
            let _ = writeln!(
                text,
                "\n[[members]]\nid = {member}\naddress = \"{address}\""
            );
        }
        let _ = writeln!(
            text,
            "\n[lease]\nlease_ms = {lease_ms}\nfence_ms = {fence_ms}\nheartbeat_ms = {heartbeat_ms}"
        );
        let _ = writeln!(text, "\n[raft]\ntick_ms = {tick_ms}");
        let members = self.install().join("members");
        let file = members.join(id.to_string()).join("scheduler.toml");
        write(&file, &text)?;
        Ok(file)
    }

    pub(super) fn write_agent(
        &self,
        settings: &AgentSettings<'_>,
        members: &[(u64, SocketAddr)],
    ) -> Result<PathBuf> {
        let AgentSettings {
            node,
            address,
            data_dir,
            gpus,
            task_user,
        } = settings;
        let mut text = format!("node = {node:?}\ntls_dir = \"tls\"\ngpus = {gpus}\n");
        let _ = writeln!(text, "data_dir = {data_dir:?}");
        let _ = writeln!(text, "schedulers = {}", addresses(members));
        let _ = writeln!(
            text,
            "address = \"{address}\"\nlisten = \"{address}:{AGENT_PORT}\""
        );
        let _ = writeln!(text, "mount_deadline_s = {MOUNT_DEADLINE_S}");
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", self.bin().display());
        let _ = writeln!(text, "path = {path:?}");
        if let Some(user) = task_user {
            let _ = writeln!(text, "task_user = {user:?}");
        }
        let file = self.install().join("nodes").join(node).join("agent.toml");
        write(&file, &text)?;
        Ok(file)
    }

    pub(super) fn write_client(&self, client: &str, members: &[(u64, SocketAddr)]) -> Result<()> {
        let text = format!("servers = {}\ntls_dir = \"tls\"\n", addresses(members));
        write(&self.client_config(client), &text)
    }
}

/// A TOML array of the schedulers' addresses.
fn addresses(members: &[(u64, SocketAddr)]) -> String {
    let quoted: Vec<_> = members
        .iter()
        .map(|(_, address)| format!("\"{address}\""))
        .collect();
    format!("[{}]", quoted.join(", "))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).cannot(format_args!("write {}", path.display()))
}
