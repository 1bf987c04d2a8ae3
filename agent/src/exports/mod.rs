//! Managed file servers: directories of this node that nfs-ganesha exports to the nodes of a workspace's clusters.
//!
//! One server per node carries all of them, under the paths `/UUID`. It outlives the agent and is found again; when it
//! dies it is started again, with a growing pause. A change of exports is read by the running server, so that the other
//! exports go on undisturbed. What was wanted last is on the disk: after a reboot the exports are back before a session
//! is.
//!
//! ```text
//! DATA/file-servers/UUID   a directory that the agent made for a file server; never removed
//! DATA/nfs/                configuration, log, recovery state of the server, what is wanted, numbers of exports
//! ```
//!
//! It must never remove or change what a directory holds, and never export one outside the roots of the configuration.

mod config;
mod directory;
mod keeper;
mod server;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use trainyard_proto::v1::Export;

use crate::attempt::Host;
use crate::confine::Credentials;

pub(crate) use directory::{DirectoryAnswer, DirectoryRequest, perform};

/// Where nfs-ganesha is looked for.
const PROGRAMS: [&str; 3] = [
    "/usr/bin/ganesha.nfsd",
    "/usr/sbin/ganesha.nfsd",
    "/usr/local/bin/ganesha.nfsd",
];

/// What the node allows.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The server's program; `None`: this node exports nothing.
    pub program: Option<PathBuf>,
    /// Address to listen on; `None`: all.
    pub bind: Option<IpAddr>,
    /// TCP port.
    pub port: u16,
    /// Directories below which others may be exported, besides the agent's own.
    pub roots: Vec<PathBuf>,
}

/// Keeps the exports. Dropping it leaves the server running.
#[derive(Debug)]
pub struct Exports {
    wanted: watch::Sender<Vec<Export>>,
    keeper: JoinHandle<()>,
}

impl Exports {
    /// Takes over what an earlier life of the agent kept. To be called within the runtime.
    #[must_use]
    pub fn start(host: &Arc<Host>, settings: Settings) -> Exports {
        let last = keeper::last_wanted(&host.dirs.nfs());
        let wanted = watch::Sender::new(last);
        let keeper = keeper::Keeper::new(Arc::clone(host), settings, wanted.subscribe());
        Exports {
            wanted,
            keeper: tokio::spawn(keeper.run()),
        }
    }

    /// Says what the newest view wants.
    pub fn tell(&self, exports: &[Export]) {
        self.wanted.send_if_modified(|wanted| {
            if wanted == exports {
                return false;
            }
            *wanted = exports.to_vec();
            true
        });
    }
}

impl Drop for Exports {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// The program of the NFS server, where this host and agent can run it: it needs root.
#[must_use]
pub fn find_program() -> Option<PathBuf> {
    let found = PROGRAMS.iter().map(Path::new).find(|path| path.exists());
    found
        .filter(|_| Credentials::own().is_root())
        .map(Path::to_owned)
}
