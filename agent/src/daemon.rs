//! Puts the daemon together: directories, identity, inventory, the file service, the session, the supervisor.
//!
//! The order matters: the lease of an earlier boot is void before anything else happens, and nothing is started
//! before what an earlier life left behind is known.

use std::fs::File;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::TcpListenerStream;
use tracing::{info, warn};
use trainyard_proto::v1::Hello;
use trainyard_proto::v1::node_file_service_server::NodeFileServiceServer;
use trainyard_shared::tls::{Identity, Role, Server, TlsError};

use crate::attempt::Host;
use crate::attempt::mounts::ClusterMounts;
use crate::board::Board;
use crate::config::Config;
use crate::confine::{ConfineError, Confinement, TaskUser};
use crate::exports::{self, Exports};
use crate::files::{Files, Watcher};
use crate::helper::Helper;
use crate::launch;
use crate::layout::{Dirs, Facts};
use crate::lease::{Lease, LeaseFile};
use crate::leftovers;
use crate::session::{self, Context, TermFile};
use crate::setup::{self, Setup};
use crate::share::ShareProgram;
use crate::supervisor::Supervisor;
use crate::{inventory, record};

/// This program, whatever an upgrade does to its file.
const SELF: &str = "/proc/self/exe";
/// Events between session and supervisor.
const EVENTS_QUEUED: usize = 16;
/// Longest that a helper may take to touch the directories of a job.
const SHARE_MAX: Duration = Duration::from_secs(10);

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The identity is missing or wrong.
    #[error("tls_dir: {0}")]
    Tls(#[from] TlsError),
    /// The certificate is not this node's.
    #[error(
        "tls_dir: {}: the certificate is of {role}, but this is node {node}; issue one with \
         `trainyard-scheduler issue --node {node}`", dir.display()
    )]
    NotThisNode {
        /// Where the certificate lies.
        dir: PathBuf,
        /// Whose it is.
        role: Role,
        /// Name of the node.
        node: String,
    },
    /// The user of tasks is missing.
    #[error("task_user: {0}")]
    User(#[from] ConfineError),
    /// Another agent uses the directory.
    #[error("data_dir: {} is in use by another agent; stop it or choose another directory", .0.display())]
    Locked(PathBuf),
    /// The directory cannot be used.
    #[error("data_dir: {}: {error}", path.display())]
    Data {
        /// Which file or directory.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// The port cannot be listened on.
    #[error(
        "listen: cannot listen on {address}: {error}; stop what listens there, or give another address with --listen"
    )]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The system's words.
        error: io::Error,
    },
    /// The runtime failed.
    #[error("{0}")]
    Runtime(#[from] io::Error),
    /// The file service failed.
    #[error("file service: {0}")]
    Serve(#[from] tonic::transport::Error),
}

impl DaemonError {
    /// Exit status for it: 2 where the settings are to blame, else 1.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            DaemonError::Tls(_)
            | DaemonError::NotThisNode { .. }
            | DaemonError::User(_)
            | DaemonError::Listen { .. } => 2,
            DaemonError::Locked(_)
            | DaemonError::Data { .. }
            | DaemonError::Runtime(_)
            | DaemonError::Serve(_) => 1,
        }
    }
}

fn data(path: &Path) -> impl FnOnce(io::Error) -> DaemonError {
    let path = path.to_owned();
    move |error| DaemonError::Data { path, error }
}

/// Checks what `check-config` can check on this host beyond the settings themselves.
///
/// # Errors
/// See [`DaemonError`].
pub fn check(config: &Config) -> Result<Identity, DaemonError> {
    let identity = Identity::load(&config.tls_dir)?;
    match identity.role() {
        Role::Node(name) if *name == config.node => {}
        role => {
            return Err(DaemonError::NotThisNode {
                dir: config.tls_dir.clone(),
                role: role.clone(),
                node: config.node.clone(),
            });
        }
    }
    TaskUser::resolve(config.task_user.as_deref())?;
    TaskUser::resolve_further(&config.task_users)?;
    Ok(identity)
}

/// Runs until SIGTERM or SIGINT. Tasks run on under their shims.
///
/// # Errors
/// See [`DaemonError`].
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let identity = check(&config)?;
    let dirs = Dirs::new(absolute(&config.data_dir)?);
    dirs.prepare().map_err(data(&dirs.data))?;
    let _lock = lock(&dirs)?;
    let lease_file = Arc::new(LeaseFile::open(&dirs.lease_file()).map_err(data(&dirs.data))?);
    let helper = Helper::new(PathBuf::from(SELF), config.mount_deadline);
    let confinement = Confinement::detect();
    let address = match &config.address {
        Some(address) => address.clone(),
        None => inventory::default_address(),
    };
    let facts = Facts {
        interface: inventory::interface_of(&address),
        task_user: TaskUser::resolve(config.task_user.as_deref())?,
        further_users: TaskUser::resolve_further(&config.task_users)?,
        root_user: TaskUser::root_or_self()?,
        default_python: launch::default_python(&config.path),
        path: config.path.clone(),
        rendezvous_port: 0,
    };
    let export_program = exports::find_program().filter(|_| config.file_server.enabled);
    let collected = inventory::collect(
        &helper,
        &inventory::Options {
            address: address.clone(),
            gpus: config.gpus,
            node_class: config.node_class.clone(),
            confinement: confinement.name(),
            image: config.image.clone(),
            task_users: facts.user_names(),
            can_export: export_program.is_some(),
        },
    )
    .await;
    forget_other_boot(&dirs, &collected.boot_id, &lease_file).map_err(data(&dirs.data))?;
    let board = Board::default();
    info!(
        user = facts.task_user.name,
        confinement = confinement.name(),
        "tasks run as"
    );
    let share = ShareProgram {
        program: PathBuf::from(SELF),
        deadline: SHARE_MAX.min(config.mount_deadline),
    };
    let host = Arc::new(Host {
        node: config.node.clone(),
        lease_file: dirs.lease_file(),
        dirs,
        facts,
        confinement,
        boot_id: collected.boot_id.clone(),
        helper,
        share: share.clone(),
        board: board.clone(),
        cluster_mounts: ClusterMounts::default(),
    });
    let scan = record::scan(&host.dirs).map_err(data(&host.dirs.attempts()))?;
    for (dir, error) in scan.unreadable {
        warn!(dir = %dir.display(), %error, "not the record of an attempt; ending what it left");
        leftovers::discard(&dir).await;
    }
    let set_up = found_set_up(&host).await;
    leftovers::sweep(&host, &scan.found, set_up.as_ref()).await;
    let setup = Setup::start(&host, set_up);
    let exports = Exports::start(
        &host,
        exports::Settings {
            program: export_program,
            bind: ip_of(&address),
            port: config.file_server.port,
            roots: config.file_server.roots.clone(),
        },
    );
    let supervisor = Supervisor::new(
        Arc::clone(&host),
        scan.found,
        config.spool_keep_bytes,
        setup,
        exports,
    );

    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|error| DaemonError::Listen {
            address: config.listen,
            error,
        })?;
    let listen = listener.local_addr()?;
    let files = Files::new(
        format!("nodes/{}", config.node),
        identity.cluster_id().to_owned(),
        board.clone(),
        share,
        Watcher::start()?,
    );
    let serving = tokio::spawn(
        tonic::transport::Server::builder()
            .tls_config(identity.server_tls())?
            .tcp_nodelay(true)
            // A scheduler that vanished must not keep its readers alive.
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .add_service(NodeFileServiceServer::new(files))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );

    let deadline = watch::Sender::new(lease_file.read());
    let (event_sender, events) = mpsc::channel(EVENTS_QUEUED);
    let lease = Lease::restored(lease_file.read());
    let deadline_receiver = deadline.subscribe();
    let context = Context {
        servers: config.schedulers.clone(),
        tls: identity.client_tls(Server::Member),
        hello: Hello {
            node: config.node.clone(),
            inventory: Some(collected.inventory),
            agent_address: host_port(&address, listen.port()),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: collected.boot_id,
            node_class: collected.node_class,
            node_class_is_set: config.node_class.is_some(),
            observed: None,
        },
        board,
        events: event_sender,
        deadline,
        lease_file,
        term: TermFile::open(host.dirs.data.join("term"), identity.cluster_id())
            .map_err(data(&host.dirs.data))?,
    };
    let session = tokio::spawn(session::run(context, lease));
    let on_ready = move || {
        info!("trainyard-agent ready node={} listen={listen}", config.node);
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let until_stopped = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::select! {
        () = supervisor.run(events, deadline_receiver, on_ready, until_stopped) => {}
        served = serving => served.map_err(io::Error::other)??,
    }
    session.abort();
    info!("stopping; tasks run on under their supervisors");
    Ok(())
}

/// The set-up that an earlier life recorded. A damaged record is dropped with what it left running; its volumes are
/// unmounted as ones that nobody uses.
async fn found_set_up(host: &Host) -> Option<setup::record::Record> {
    let dir = host.dirs.setup();
    match setup::record::read(&dir) {
        Ok(found) => found,
        Err(error) => {
            warn!(dir = %dir.display(), %error, "not the record of a set-up; ending what it left");
            setup::discard(&dir).await;
            None
        }
    }
}

fn absolute(dir: &Path) -> Result<PathBuf, DaemonError> {
    std::path::absolute(dir).map_err(data(dir))
}

fn lock(dirs: &Dirs) -> Result<Flock<File>, DaemonError> {
    let path = dirs.data.join("lock");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(data(&path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| DaemonError::Locked(dirs.data.clone()))
}

/// The clock of leases begins anew at each boot: a deadline of an earlier one means nothing.
fn forget_other_boot(dirs: &Dirs, boot_id: &str, lease: &LeaseFile) -> io::Result<()> {
    let path = dirs.data.join("boot");
    let last = std::fs::read_to_string(&path).unwrap_or_default();
    if last.trim_end() != boot_id {
        lease.write(0)?;
        record::replace(&path, format!("{boot_id}\n").as_bytes())?;
    }
    Ok(())
}

/// An address or name of this host as an address, to listen on.
fn ip_of(address: &str) -> Option<IpAddr> {
    address.parse().ok().or_else(|| {
        let mut resolved = (address, 0).to_socket_addrs().ok()?;
        resolved.next().map(|socket| socket.ip())
    })
}

/// `HOST:PORT`, with brackets around an IPv6 address.
fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_of_an_earlier_boot_is_void() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(dir.path().to_owned());
        let lease = LeaseFile::open(&dirs.lease_file()).unwrap();
        forget_other_boot(&dirs, "boot-1", &lease).unwrap();
        lease.write(99).unwrap();
        forget_other_boot(&dirs, "boot-1", &lease).unwrap();
        assert_eq!(lease.read(), 99);
        forget_other_boot(&dirs, "boot-2", &lease).unwrap();
        assert_eq!(lease.read(), 0);
    }

    #[test]
    fn one_agent_per_directory() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(dir.path().to_owned());
        let first = lock(&dirs).unwrap();
        assert!(matches!(lock(&dirs), Err(DaemonError::Locked(_))));
        drop(first);
        assert!(lock(&dirs).is_ok());
    }

    #[test]
    fn addresses_of_both_families() {
        assert_eq!(host_port("10.0.0.1", 7), "10.0.0.1:7");
        assert_eq!(host_port("fe80::1", 7), "[fe80::1]:7");
    }
}
