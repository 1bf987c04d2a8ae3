//! Brings the server to what is wanted, and says how far it is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};
use trainyard_proto::v1::{BatchAiError, Desired, Export, ExportStatus, NameValuePair};

use super::config::{self, Ids, Served};
use super::server::{Files, Server};
use super::{DirectoryAnswer, DirectoryRequest, Settings};
use crate::attempt::Host;
use crate::helper::Request;
use crate::reconcile::can_name_a_directory;
use crate::record::replace;

/// Between two looks at how full the file systems are.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// Pauses before a server that died is started again.
const RESTART_MIN: Duration = Duration::from_secs(1);
const RESTART_MAX: Duration = Duration::from_secs(60);
/// A server that lived this long has the shortest pause again.
const STABLE: Duration = Duration::from_secs(60);
/// Free bytes are reported anew when they changed by more than this part of the capacity.
const FREE_PART: u64 = 100;

pub(super) struct Keeper {
    host: Arc<Host>,
    settings: Settings,
    wanted: watch::Receiver<Vec<Export>>,
    files: Files,
    ids: Ids,
    server: Option<Server>,
    /// When the server was started, or found.
    since: Instant,
    /// Not before this is it started again.
    not_before: Option<Instant>,
    pause: Duration,
    /// Why it does not run.
    trouble: String,
    statuses: BTreeMap<String, ExportStatus>,
}

impl Keeper {
    pub(super) fn new(
        host: Arc<Host>,
        settings: Settings,
        wanted: watch::Receiver<Vec<Export>>,
    ) -> Keeper {
        let files = Files {
            dir: host.dirs.nfs(),
        };
        let ids = std::fs::read(ids_path(&files.dir))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let server = Server::adopt(&files, &host.boot_id);
        if server.is_some() {
            info!("the NFS server is taken over again");
        }
        let mut keeper = Keeper {
            host,
            settings,
            wanted,
            files,
            ids,
            server,
            since: Instant::now(),
            not_before: None,
            pause: RESTART_MIN,
            trouble: String::new(),
            statuses: BTreeMap::new(),
        };
        // What is known before the first look: that it is wanted.
        let wanted = keeper.wanted.borrow().clone();
        keeper.statuses = wanted
            .iter()
            .map(|export| (export.uid.clone(), keeper.status(export)))
            .collect();
        keeper.show();
        keeper
    }

    pub(super) async fn run(mut self) {
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            self.bring_about(&wanted).await;
            let next = match self.not_before {
                Some(at) => at,
                None if wanted.is_empty() => Instant::now() + LOOK_INTERVAL * 60,
                None => Instant::now() + LOOK_INTERVAL,
            };
            tokio::select! {
                biased;
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = ended(self.server.as_ref()) => self.note_end(),
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    fn note_end(&mut self) {
        self.server = None;
        if self.since.elapsed() > STABLE {
            self.pause = RESTART_MIN;
        }
        self.give_up(format!("the NFS server ended: {}", self.files.reason()));
    }

    fn give_up(&mut self, why: String) {
        warn!(again_in_ms = self.pause.as_millis(), "{why}");
        self.trouble = why;
        self.not_before = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(RESTART_MAX);
    }

    async fn bring_about(&mut self, wanted: &[Export]) {
        if let Err(error) = self.remember(wanted) {
            warn!(dir = %self.files.dir.display(), %error, "what is exported cannot be recorded");
        }
        let mut statuses = BTreeMap::new();
        let mut served: Vec<Served> = Vec::new();
        for export in wanted {
            let (mut status, found) = self.look(export).await;
            if let Some(found) = found {
                match overlap(&served, &found) {
                    Some(message) => {
                        status
                            .errors
                            .push(error("FileServerDirectoryNotAllowed", message, &status))
                    }
                    None => served.push(found),
                }
            }
            statuses.insert(export.uid.clone(), status);
        }
        if served.is_empty() {
            if let Some(server) = self.server.take() {
                info!("nothing is exported any more; ending the NFS server");
                server.stop().await;
            }
            self.not_before = None;
        } else {
            self.serve(&served).await;
        }
        let running = self.server.is_some();
        for export in &served {
            if let Some(status) = statuses.get_mut(&export.uid) {
                status.ready = running;
                if !running {
                    let message = self.trouble.clone();
                    status
                        .errors
                        .push(error("FileServerUnavailable", message, status));
                }
            }
        }
        self.statuses = statuses;
        self.show();
    }

    /// Looks at one directory, and makes it if it is missing.
    async fn look(&self, export: &Export) -> (ExportStatus, Option<Served>) {
        let mut status = self.status(export);
        let refuse = |mut status: ExportStatus, code: &str, message: String| {
            let error = error(code, message, &status);
            status.errors.push(error);
            (status, None)
        };
        if self.settings.program.is_none() {
            let message = "this node exports nothing: nfs-ganesha (nfs-ganesha, nfs-ganesha-vfs) is missing, the agent is \
                           not root, or [file_server] enabled is false in its agent.toml";
            return refuse(status, "FileServerUnavailable", message.to_owned());
        }
        let id = self.ids.get(&export.uid);
        let Some(id) = id.filter(|_| can_name_a_directory(&export.uid)) else {
            let message = format!("`{}` cannot name an export", export.uid);
            return refuse(status, "FileServerUnavailable", message);
        };
        let request = Request::Export(DirectoryRequest {
            roots: self.settings.roots.clone(),
            own_root: self.host.dirs.file_servers(),
            directory: export.directory.clone(),
            uid: export.uid.clone(),
            clients: export.clients.clone(),
        });
        let (path, capacity, free, clients) = match self.host.helper.ask(&request).await {
            Ok(DirectoryAnswer::Found {
                path,
                capacity_bytes,
                free_bytes,
                clients,
                unresolved,
            }) => {
                if !unresolved.is_empty() {
                    warn!(file_server = export.file_server, names = ?unresolved, "clients that do not resolve are left out");
                }
                (path, capacity_bytes, free_bytes, clients)
            }
            Ok(DirectoryAnswer::Refused { code, message }) => {
                return refuse(status, &code, message);
            }
            Err(error) => return refuse(status, "FileServerDirectoryError", error.to_string()),
        };
        status.directory = path.to_string_lossy().into_owned();
        status.capacity_bytes = capacity;
        status.free_bytes = self.free_to_report(export, capacity, free);
        if !config::is_plain(&path) {
            let message = format!(
                "{}: a directory with quotes, backslashes or control characters in its path cannot be exported",
                path.display()
            );
            return refuse(status, "FileServerDirectoryNotAllowed", message);
        }
        if capacity < export.min_capacity_bytes {
            let message = format!(
                "the file system of {} has {capacity} bytes, and {} are demanded; choose another node or directory",
                path.display(),
                export.min_capacity_bytes
            );
            return refuse(status, "FileServerCapacityTooSmall", message);
        }
        let served = Served {
            id,
            uid: export.uid.clone(),
            path,
            clients: clients.into_iter().collect::<BTreeSet<IpAddr>>(),
        };
        (status, Some(served))
    }

    fn free_to_report(&self, export: &Export, capacity: u64, free: u64) -> u64 {
        let last = self.statuses.get(&export.uid);
        last.filter(|last| last.capacity_bytes == capacity)
            .map(|last| last.free_bytes)
            .filter(|last| last.abs_diff(free) <= capacity / FREE_PART)
            .unwrap_or(free)
    }

    /// Writes the configuration and has the server follow it.
    async fn serve(&mut self, served: &[Served]) {
        let Some(program) = self.settings.program.clone() else {
            return;
        };
        let (bind, port) = (self.settings.bind, self.settings.port);
        let head = config::head(bind, port, &self.files.recovery());
        let text = head.clone() + &config::exports(served);
        let path = self.files.config();
        let old = std::fs::read_to_string(&path).unwrap_or_default();
        if old != text
            && let Err(error) = replace(&path, text.as_bytes())
        {
            self.trouble = format!("{}: {error}", path.display());
            warn!("{}", self.trouble);
            return;
        }
        if let Some(server) = self.server.take() {
            if old == text {
                self.files.trim_log();
                self.server = Some(server);
                return;
            }
            if old.starts_with(&head) {
                match server.reload().await {
                    Ok(()) => {
                        info!(
                            exports = served.len(),
                            "the NFS server has read its exports again"
                        );
                        self.server = Some(server);
                        return;
                    }
                    Err(error) => warn!(%error, "the NFS server is started anew"),
                }
            }
            server.stop().await;
        } else if self.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let listen = SocketAddr::new(bind.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port);
        match Server::start(&program, &self.files, &self.host.boot_id, listen).await {
            Ok(server) => {
                info!(exports = served.len(), %listen, "the NFS server runs");
                self.server = Some(server);
                self.since = Instant::now();
                self.not_before = None;
                self.trouble.clear();
            }
            Err(error) => self.give_up(error),
        }
    }

    /// Notes what is wanted, for the next life of the agent, and numbers it.
    fn remember(&mut self, wanted: &[Export]) -> io::Result<()> {
        if wanted.is_empty() && !self.files.dir.exists() {
            return Ok(());
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.files.dir)?;
        let before = self.ids.clone();
        self.ids
            .assign(wanted.iter().map(|export| export.uid.as_str()));
        if self.ids != before {
            replace(&ids_path(&self.files.dir), &serde_json::to_vec(&self.ids)?)?;
        }
        let view = Desired {
            exports: wanted.to_vec(),
            ..Desired::default()
        };
        replace(&wanted_path(&self.files.dir), &view.encode_to_vec())
    }

    fn status(&self, export: &Export) -> ExportStatus {
        ExportStatus {
            file_server: export.file_server.clone(),
            uid: export.uid.clone(),
            export: config::pseudo(&export.uid),
            port: u32::from(self.settings.port),
            directory: export.directory.clone(),
            ..ExportStatus::default()
        }
    }

    fn show(&self) {
        let statuses = self.statuses.values().cloned().collect();
        self.host.board.set_exports(statuses);
    }
}

/// Ready when the server has ended; never without one.
async fn ended(server: Option<&Server>) {
    match server {
        Some(server) => server.ended().await,
        None => std::future::pending().await,
    }
}

/// Whether a directory is, holds or lies in one that is exported already: its users could lead ganesha astray by a
/// link, and read each other's files.
fn overlap(served: &[Served], new: &Served) -> Option<String> {
    let other = served
        .iter()
        .find(|old| old.path.starts_with(&new.path) || new.path.starts_with(&old.path))?;
    Some(format!(
        "{} overlaps with {}, which another file server of this node exports; choose a directory of its own",
        new.path.display(),
        other.path.display()
    ))
}

fn error(code: &str, message: String, status: &ExportStatus) -> BatchAiError {
    let details = [
        ("fileServer", &status.file_server),
        ("directory", &status.directory),
    ];
    BatchAiError {
        code: code.to_owned(),
        message,
        details: details
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| NameValuePair {
                name: name.to_owned(),
                value: value.clone(),
            })
            .collect(),
    }
}

/// What an earlier life of the agent was told to export.
pub(super) fn last_wanted(dir: &Path) -> Vec<Export> {
    let bytes = std::fs::read(wanted_path(dir)).unwrap_or_default();
    Desired::decode(bytes.as_slice())
        .map(|view| view.exports)
        .unwrap_or_default()
}

fn wanted_path(dir: &Path) -> PathBuf {
    dir.join("wanted.pb")
}

fn ids_path(dir: &Path) -> PathBuf {
    dir.join("ids.json")
}
