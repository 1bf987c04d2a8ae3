//! Puts the daemon together, runs it, and takes it apart again.
//!
//! Order of the start: identity, socket, log, loops, services. Order of the end: leadership is handed over while
//! everything still works; then streams end, the log stops, and calls finish.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use trainyard_proto::FILE_DESCRIPTOR_SET;
use trainyard_proto::v1 as proto;
use trainyard_proto::v1::peer_service_server::PeerServiceServer;
use trainyard_replication::transport::{GrpcTransport, PeerServer};
use trainyard_replication::{Handle, Member, Options, Replication, StartError};
use trainyard_shared::tls::{Identity, Role, TlsError};

use crate::changes::Changes;
use crate::channels::{self, Channels};
use crate::config::Config;
use crate::context::{Clock, Context};
use crate::front::FrontLayer;
use crate::loops;
use crate::machine::{Decision, Machine};
use crate::services::{
    Clusters, Experiments, FileServers, Jobs, Members, Nodes, Usages, Workspaces,
};
use crate::sessions::Sessions;
use crate::watch::stream::Watches;

/// Largest message of a client. A job file is far below it.
const MAX_CLIENT_BYTES: usize = 1024 * 1024;
/// Largest message of an agent: a whole view.
const MAX_AGENT_BYTES: usize = 4 * 1024 * 1024;
/// Streams of one connection. Another member forwards all its clients over one.
const MAX_STREAMS: u32 = 16_384;
/// How long leadership may take to be handed over at a stop.
const HANDOVER_WAIT: Duration = Duration::from_secs(3);
/// How long calls may take to finish at a stop.
const DRAIN_WAIT: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);

type ServerTask = JoinHandle<Result<(), tonic::transport::Error>>;

/// Why the daemon did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The certificate or key is missing or wrong.
    #[error("tls_dir: {0}")]
    Tls(#[from] TlsError),
    /// The certificate is another's.
    #[error(
        "tls_dir {dir}: the certificate is for {role:?}, but this is member {member}; point tls_dir at this member's own, or \
         issue one: trainyard-scheduler issue --member {member}"
    )]
    WrongRole {
        /// The directory.
        dir: PathBuf,
        /// Whom the certificate is for.
        role: Role,
        /// This member.
        member: u64,
    },
    /// The address cannot be listened on.
    #[error(
        "listen: cannot listen on {address}: {source}; stop what listens there, or give another address with --listen"
    )]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The replicated log did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The replicated log ended by itself.
    #[error("replication ended: {0}")]
    Replication(String),
    /// The server broke down.
    #[error("the server broke down: {0}")]
    Serve(String),
    /// The runtime or the signals cannot be set up.
    #[error("cannot set up the runtime: {0}")]
    Runtime(#[from] io::Error),
}

impl RunError {
    /// Whether the configuration has to be changed.
    pub fn is_configuration(&self) -> bool {
        match self {
            RunError::Tls(_) | RunError::WrongRole { .. } | RunError::Listen { .. } => true,
            RunError::Start(error) => matches!(
                error,
                StartError::Invalid { .. }
                    | StartError::WrongOwner { .. }
                    | StartError::MembersDiffer { .. }
            ),
            RunError::Replication(_) | RunError::Serve(_) | RunError::Runtime(_) => false,
        }
    }
}

/// Loads this member's identity and checks that it is this member's.
pub fn load_identity(config: &Config) -> Result<Identity, RunError> {
    let identity = Identity::load(&config.tls_dir)?;
    match identity.role() {
        Role::Member(id) if *id == config.member_id => Ok(identity),
        role => Err(RunError::WrongRole {
            dir: config.tls_dir.clone(),
            role: role.clone(),
            member: config.member_id,
        }),
    }
}

/// Runs the daemon until SIGTERM or SIGINT.
pub fn blocking(config: Config) -> Result<(), RunError> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let daemon = Daemon::start(config, None).await?;
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            error = daemon.failed() => {
                daemon.stop().await;
                return Err(error);
            }
        }
        daemon.stop().await;
        Ok(())
    });
    // A blocking task that hangs must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    /// What its parts share.
    pub context: Arc<Context>,
    /// Where it listens.
    pub address: SocketAddr,
    supervisor: JoinHandle<()>,
    server: ServerTask,
    health: JoinHandle<()>,
    drain: CancellationToken,
}

impl Daemon {
    /// Starts everything; returns when it listens. `listener` stands in for the configured address.
    pub async fn start(config: Config, listener: Option<TcpListener>) -> Result<Self, RunError> {
        let identity = Arc::new(load_identity(&config)?);
        let listener = match listener {
            Some(listener) => listener,
            None => TcpListener::bind(&config.listen)
                .await
                .map_err(|source| RunError::Listen {
                    address: config.listen.clone(),
                    source,
                })?,
        };
        let address = listener.local_addr()?;
        let changes = Arc::new(Changes::default());
        let (machine, state) = Machine::new(Arc::clone(&changes));
        let options = options(&config, &identity);
        let log = start_log(options.clone(), &identity, machine).await?;
        let peers = PeerServer::service(&options, log.inbound());
        let (published, leadership) = watch::channel(None);
        let context = Arc::new(Context {
            cluster_id: identity.cluster_id().to_owned(),
            log,
            state,
            changes,
            leadership,
            channels: Channels::new(Arc::clone(&identity)),
            stopping: CancellationToken::new(),
            clock: Clock::default(),
            config,
        });
        let supervisor = tokio::spawn(loops::supervise(Arc::clone(&context), published));
        let drain = CancellationToken::new();
        let (server, health) = serve(&context, &identity, listener, peers, drain.clone())?;
        tracing::info!(
            "trainyard-scheduler ready member={} listen={address}",
            context.config.member_id
        );
        Ok(Self {
            context,
            address,
            supervisor,
            server,
            health,
            drain,
        })
    }

    /// Resolves if the daemon cannot go on.
    pub async fn failed(&self) -> RunError {
        let why = self.context.log.ended().await;
        RunError::Replication(why.unwrap_or_else(|| "it was stopped".to_owned()))
    }

    /// Stops cleanly: hands leadership over, ends streams, stops the log, lets calls finish.
    pub async fn stop(self) {
        let Self {
            context,
            supervisor,
            server,
            health,
            drain,
            ..
        } = self;
        if context.leadership.borrow().is_some() && context.config.members.len() > 1 {
            let handover = context.log.transfer_leadership(None);
            match tokio::time::timeout(HANDOVER_WAIT, handover).await {
                Ok(Ok(())) => tracing::info!("leadership handed over"),
                Ok(Err(error)) => tracing::warn!(%error, "leadership was not handed over"),
                Err(_) => tracing::warn!("leadership was not handed over in time"),
            }
        }
        context.stopping.cancel();
        // Ends the peers' streams as well, which would otherwise stay open; calls that wait for the log end as unavailable,
        // and their clients go on with another member.
        context.log.clone().stop().await;
        drain.cancel();
        let abort = server.abort_handle();
        if tokio::time::timeout(DRAIN_WAIT, server).await.is_err() {
            tracing::warn!("some calls did not finish in time");
            abort.abort();
        }
        health.abort();
        if supervisor.await.is_err() {
            tracing::error!("the leader's supervisor had broken down (a bug)");
        }
        tracing::info!("stopped");
    }
}

/// What replication is told.
fn options(config: &Config, identity: &Identity) -> Options {
    let members = config.members.iter().map(|m| Member {
        id: m.id,
        name: format!("members/{}", m.id),
        address: m.address.clone(),
    });
    let mut options = Options::new(
        &config.data_dir,
        identity.cluster_id(),
        config.member_id,
        members.collect(),
    );
    options.tick_ms = config.raft.tick_ms;
    options.election_ticks = config.raft.election_ticks;
    options.heartbeat_ticks = config.raft.heartbeat_ticks;
    options.snapshot_after_log_bytes = config.raft.snapshot_log_bytes;
    let least = options
        .snapshot_after_log_bytes
        .saturating_add(options.retain_log_bytes);
    options.max_log_bytes = options.max_log_bytes.max(least.saturating_mul(2));
    options
}

/// Opens the log and starts its thread. Reading the disk may take a while and blocks, so it has a thread of its own.
async fn start_log(
    options: Options,
    identity: &Arc<Identity>,
    machine: Machine,
) -> Result<Handle<Decision>, RunError> {
    let runtime = tokio::runtime::Handle::current();
    let identity = Arc::clone(identity);
    let transport = GrpcTransport::new(&options, runtime, move |member| {
        channels::peer(&identity, &member.address)
    });
    let started =
        tokio::task::spawn_blocking(move || Replication::start(options, machine, transport));
    match started.await {
        Ok(started) => Ok(started?),
        Err(error) => Err(RunError::Replication(error.to_string())),
    }
}

/// Starts the server and the reporter of its health.
fn serve(
    context: &Arc<Context>,
    identity: &Identity,
    listener: TcpListener,
    peers: PeerServiceServer<PeerServer>,
    drain: CancellationToken,
) -> Result<(ServerTask, JoinHandle<()>), RunError> {
    let wrong = |error: &dyn std::fmt::Display| RunError::Serve(error.to_string());
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|e| wrong(&e))?;
    let incoming = TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .with_keepalive(Some(Duration::from_secs(30)));
    let shared = || Arc::clone(context);
    let jobs = proto::job_service_server::JobServiceServer::new(Jobs(shared()));
    let workspaces =
        proto::workspace_service_server::WorkspaceServiceServer::new(Workspaces(shared()));
    let clusters = proto::cluster_service_server::ClusterServiceServer::new(Clusters(shared()));
    let file_servers =
        proto::file_server_service_server::FileServerServiceServer::new(FileServers(shared()));
    let experiments =
        proto::experiment_service_server::ExperimentServiceServer::new(Experiments(shared()));
    let nodes = proto::node_service_server::NodeServiceServer::new(Nodes(shared()));
    let usages = proto::usage_service_server::UsageServiceServer::new(Usages(shared()));
    let members = proto::member_service_server::MemberServiceServer::new(Members(shared()));
    let watches = proto::watch_service_server::WatchServiceServer::new(Watches::new(shared()));
    let agents = proto::agent_service_server::AgentServiceServer::new(Sessions(shared()));
    let server = Server::builder()
        .tls_config(identity.server_tls().timeout(HANDSHAKE_WAIT))
        .map_err(|e| wrong(&e))?
        .max_concurrent_streams(Some(MAX_STREAMS))
        .initial_stream_window_size(Some(1024 * 1024))
        .initial_connection_window_size(Some(8 * 1024 * 1024))
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .layer(FrontLayer::new(shared()))
        .add_service(jobs.max_decoding_message_size(MAX_CLIENT_BYTES))
        .add_service(workspaces.max_decoding_message_size(MAX_CLIENT_BYTES))
        .add_service(clusters.max_decoding_message_size(MAX_CLIENT_BYTES))
        .add_service(file_servers.max_decoding_message_size(MAX_CLIENT_BYTES))
        .add_service(experiments.max_decoding_message_size(MAX_CLIENT_BYTES))
        .add_service(nodes.max_decoding_message_size(MAX_CLIENT_BYTES))
        .add_service(usages.max_decoding_message_size(MAX_CLIENT_BYTES))
        .add_service(members.max_decoding_message_size(MAX_CLIENT_BYTES))
        .add_service(watches.max_decoding_message_size(MAX_CLIENT_BYTES))
        .add_service(agents.max_decoding_message_size(MAX_AGENT_BYTES))
        .add_service(peers)
        .add_service(health)
        .add_service(reflection);
    let drained = drain.cancelled_owned();
    let server = tokio::spawn(server.serve_with_incoming_shutdown(incoming, drained));
    let health = tokio::spawn(report_health(Arc::clone(context), reporter));
    Ok((server, health))
}

/// Serving means: a leader is known, so that this member can answer or forward any call.
async fn report_health(context: Arc<Context>, reporter: HealthReporter) {
    let mut log = context.log.status();
    let mut shown = None;
    loop {
        let leads = log.borrow_and_update().leader.is_some();
        if shown != Some(leads) {
            shown = Some(leads);
            let status = if leads {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            reporter.set_service_status("", status).await;
            reporter
                .set_service_status("trainyard.v1.JobService", status)
                .await;
        }
        tokio::select! {
            changed = log.changed() => if changed.is_err() { break },
            () = context.stopping.cancelled() => break,
        }
    }
    reporter
        .set_service_status("", ServingStatus::NotServing)
        .await;
    reporter
        .set_service_status("trainyard.v1.JobService", ServingStatus::NotServing)
        .await;
}

/// Allows as many open files as the system lets this process have: each client, agent and member is one.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => {
            if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
                tracing::warn!(%error, "cannot raise the limit of open files");
            }
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot read the limit of open files"),
    }
}
