//! What every request passes first: who calls, may they, and is this the member to answer.
//!
//! The caller's role comes from the certificate of the connection and from nowhere else. A client's request that only the
//! leader can answer is passed on to it as it is, body and all; a header stops it from being passed on twice, and another
//! names the client, which only a member is believed to say.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::CertificateDer;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tower::{Layer, Service, ServiceExt as _};
use trainyard_replication::transport::CallerMember;
use trainyard_shared::tls::{Role, peer_role};

use crate::context::{CONSISTENCY_METADATA, Context};
use crate::status;

/// Header of a request that another member passed on: the id of that member.
const FORWARDED: &str = "trainyard-forwarded";
/// Header of a request that another member passed on: the name of the client that sent it.
const USER: &str = "trainyard-user";
/// How long a request waits for a leader to be elected.
const LEADER_WAIT: Duration = Duration::from_secs(3);
/// How long an answer may take once the leader that should give it leads no more.
const DEPOSED_WAIT: Duration = Duration::from_millis(500);
/// Certificates whose role is remembered.
const MAX_KNOWN: usize = 4096;

/// Who calls: the role in the certificate. An extension of every request that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer(pub Arc<Role>);

/// Name of the client that sent a request, wherever it came in; empty when a member asks by itself.
pub fn caller<T>(request: &tonic::Request<T>) -> String {
    match request.extensions().get::<Peer>().map(|peer| &*peer.0) {
        Some(Role::Client(name)) => name.clone(),
        Some(Role::Member(_)) => request
            .metadata()
            .get(USER)
            .and_then(|name| name.to_str().ok())
            .unwrap_or_default()
            .to_owned(),
        Some(Role::Node(_)) | None => String::new(),
    }
}

/// Who may call what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Clients and, for what they pass on, members. Answered by the leader.
    Client,
    /// Agents. Answered by the leader, never passed on: the agent connects to it.
    Agent,
    /// Members only. Answered here.
    Peer,
    /// Anyone of this cluster. Answered here.
    Local,
}

impl Class {
    fn of(path: &str) -> Self {
        let service = path
            .strip_prefix('/')
            .and_then(|p| p.split('/').next())
            .unwrap_or_default();
        match service.strip_prefix("trainyard.v1.") {
            Some("PeerService") => Class::Peer,
            Some("AgentService") => Class::Agent,
            Some(_) => Class::Client,
            None => Class::Local,
        }
    }

    fn admits(self, role: &Role) -> bool {
        match (self, role) {
            (Class::Local, _)
            | (Class::Peer, Role::Member(_))
            | (Class::Agent, Role::Node(_))
            | (Class::Client, Role::Client(_) | Role::Member(_)) => true,
            (Class::Peer, Role::Node(_) | Role::Client(_))
            | (Class::Agent, Role::Member(_) | Role::Client(_))
            | (Class::Client, Role::Node(_)) => false,
        }
    }

    fn whom(self) -> &'static str {
        match self {
            Class::Client => "clients",
            Class::Agent => "agents",
            Class::Peer => "schedulers",
            Class::Local => "everyone",
        }
    }
}

/// Makes [`Front`]s.
#[derive(Debug, Clone)]
pub struct FrontLayer(Arc<Gate>);

impl FrontLayer {
    /// The front of a daemon.
    pub fn new(context: Arc<Context>) -> Self {
        Self(Arc::new(Gate {
            context,
            known: Mutex::default(),
        }))
    }
}

impl<S> Layer<S> for FrontLayer {
    type Service = Front<S>;

    fn layer(&self, inner: S) -> Front<S> {
        Front {
            inner,
            gate: Arc::clone(&self.0),
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Front<S> {
    inner: S,
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct Gate {
    context: Arc<Context>,
    /// Roles by certificate, so that it is parsed once and not for each request.
    known: Mutex<HashMap<Vec<u8>, Peer>>,
}

impl<S> Service<Request<Body>> for Front<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The service that was polled ready must be the one that is called.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let gate = Arc::clone(&self.gate);
        Box::pin(async move {
            match gate.pass(&mut request).await {
                Ok(Route::Here) => inner.call(request).await,
                Ok(Route::Leader(id, address)) => Ok(gate.forward(request, id, &address).await),
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

/// Who answers a request.
enum Route {
    Here,
    Leader(u64, String),
}

impl Gate {
    /// Admits the request and decides who answers it.
    async fn pass(&self, request: &mut Request<Body>) -> Result<Route, Status> {
        let class = Class::of(request.uri().path());
        let peer = self.peer(request)?;
        if !class.admits(&peer.0) {
            return Err(Status::permission_denied(format!(
                "{} is for {}, and the certificate of this connection is for {}",
                request.uri().path(),
                class.whom(),
                describe(&peer.0)
            )));
        }
        let forwarded =
            request.headers().contains_key(FORWARDED) && matches!(*peer.0, Role::Member(_));
        if let Role::Member(id) = *peer.0 {
            request.extensions_mut().insert(CallerMember(id));
        } else {
            request.headers_mut().remove(USER);
        }
        request.extensions_mut().insert(peer);
        let stale = reads(request.uri().path())
            && request
                .headers()
                .get(CONSISTENCY_METADATA)
                .is_some_and(|v| v.as_bytes() == b"stale");
        match class {
            Class::Peer | Class::Local => Ok(Route::Here),
            Class::Client if stale => Ok(Route::Here),
            Class::Client => self.route(!forwarded).await,
            Class::Agent => self.route(false).await,
        }
    }

    /// Waits until this member leads or knows who does.
    async fn route(&self, may_forward: bool) -> Result<Route, Status> {
        let context = &self.context;
        if context.leadership.borrow().is_some() {
            return Ok(Route::Here);
        }
        let mut leadership = context.leadership.clone();
        let mut log = context.log.status();
        let deadline = tokio::time::sleep(LEADER_WAIT);
        tokio::pin!(deadline);
        loop {
            if leadership.borrow_and_update().is_some() {
                return Ok(Route::Here);
            }
            log.mark_unchanged();
            match context.leader() {
                Some((id, address)) if may_forward => return Ok(Route::Leader(id, address)),
                Some((_, address)) => return Err(status::not_leader(Some(&address))),
                None => {}
            }
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() { return Err(status::stopping()); },
                changed = log.changed() => if changed.is_err() { return Err(status::stopping()); },
                () = context.stopping.cancelled() => return Err(status::stopping()),
                () = &mut deadline => return Err(status::not_leader(None)),
            }
        }
    }

    /// Passes a request on to the leader.
    async fn forward(
        &self,
        mut request: Request<Body>,
        leader: u64,
        address: &str,
    ) -> Response<Body> {
        let context = &self.context;
        let mut channel = match context.channels.member(leader, address) {
            Ok(channel) => channel,
            Err(status) => return status.into_http(),
        };
        request
            .headers_mut()
            .insert(FORWARDED, HeaderValue::from(context.config.member_id));
        if let Some(user) = client_of(&request) {
            request.headers_mut().insert(USER, user);
        }
        let answer = async {
            let ready = channel.ready().await?;
            ready.call(request).await
        };
        let mut log = context.log.status();
        let deposed = async {
            // An error means that replication has stopped here; the answer may still come.
            let _ = log.wait_for(|s| s.leader != Some(leader)).await;
            tokio::time::sleep(DEPOSED_WAIT).await;
        };
        tokio::select! {
            answer = answer => answer.unwrap_or_else(|error| {
                tracing::debug!(leader, %error, "the leader did not answer");
                let text = format!("the leader at {address} does not answer: {error}");
                status::unavailable("LEADER_UNREACHABLE", text).into_http()
            }),
            () = deposed => {
                let text = format!("the leader at {address} lost its office before it answered; retry");
                status::unavailable(status::LEADERSHIP_LOST, text).into_http()
            }
        }
    }

    /// The role in the certificate of the connection, which TLS has verified.
    fn peer(&self, request: &Request<Body>) -> Result<Peer, Status> {
        let certificates = request
            .extensions()
            .get::<TlsConnectInfo<TcpConnectInfo>>()
            .and_then(TlsConnectInfo::peer_certs)
            .ok_or_else(|| Status::unauthenticated("a client certificate is needed"))?;
        let leaf: &CertificateDer<'_> = certificates
            .first()
            .ok_or_else(|| Status::unauthenticated("a client certificate is needed"))?;
        if let Some(peer) = self.known().get(leaf.as_ref()) {
            return Ok(peer.clone());
        }
        let (cluster_id, role) =
            peer_role(&certificates).map_err(|e| Status::unauthenticated(e.to_string()))?;
        if cluster_id != self.context.cluster_id {
            return Err(Status::unauthenticated(format!(
                "the certificate is of cluster {cluster_id}, and this member is of cluster {}",
                self.context.cluster_id
            )));
        }
        let peer = Peer(Arc::new(role));
        let mut known = self.known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(leaf.as_ref().to_vec(), peer.clone());
        Ok(peer)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<u8>, Peer>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client whose own connection a request came by. Names of clients are plain words, which any header can hold.
fn client_of(request: &Request<Body>) -> Option<HeaderValue> {
    match &*request.extensions().get::<Peer>()?.0 {
        Role::Client(name) => HeaderValue::from_str(name).ok(),
        Role::Member(_) | Role::Node(_) => None,
    }
}

/// Whether a method only reads, so that any member can answer it from its own state.
fn reads(path: &str) -> bool {
    let method = path.rsplit('/').next().unwrap_or_default();
    ["Get", "List", "Explain", "Watch", "Stream", "Report"]
        .iter()
        .any(|verb| method.starts_with(verb))
}

fn describe(role: &Role) -> String {
    match role {
        Role::Member(id) => format!("scheduler {id}"),
        Role::Node(name) => format!("node {name}"),
        Role::Client(name) => format!("client {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every method of the services for clients, by the protocol itself.
    fn methods() -> Vec<String> {
        use prost::Message as _;
        let files =
            prost_types::FileDescriptorSet::decode(trainyard_proto::FILE_DESCRIPTOR_SET).unwrap();
        files
            .file
            .iter()
            .flat_map(|file| file.service.iter().map(move |s| (file.package(), s)))
            .flat_map(|(package, service)| {
                let path = format!("/{package}.{}", service.name());
                service
                    .method
                    .iter()
                    .map(move |m| format!("{path}/{}", m.name()))
            })
            // Agents serve this one.
            .filter(|path| !path.starts_with("/trainyard.v1.NodeFileService/"))
            .filter(|path| Class::of(path) == Class::Client)
            .collect()
    }

    #[test]
    fn only_reads_may_be_stale() {
        let methods = methods();
        assert!(methods.len() > 40, "{methods:?}");
        for path in methods {
            let method = path.rsplit('/').next().unwrap();
            let writes = ["Create", "Update", "Delete", "Terminate", "Retry"]
                .iter()
                .any(|verb| method.starts_with(verb));
            assert_ne!(reads(&path), writes, "{path} is neither, or both");
        }
        assert!(reads("/trainyard.v1.UsageService/ReportUsage"));
        assert!(reads("/trainyard.v1.WatchService/Watch"));
        assert!(!reads("/trainyard.v1.JobService/TerminateJobs"));
    }

    #[test]
    fn each_service_admits_its_callers_and_no_other() {
        let member = Role::Member(1);
        let node = Role::Node("n".into());
        let client = Role::Client("c".into());
        // (path, member, node, client)
        let cases = [
            ("/trainyard.v1.PeerService/Exchange", true, false, false),
            ("/trainyard.v1.AgentService/Session", false, true, false),
            ("/trainyard.v1.JobService/CreateJob", true, false, true),
            ("/trainyard.v1.Unheard/Of", true, false, true),
            ("/grpc.health.v1.Health/Check", true, true, true),
            (
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                true,
                true,
                true,
            ),
            ("/", true, true, true),
        ];
        for (path, m, n, c) in cases {
            let class = Class::of(path);
            assert_eq!(
                (
                    class.admits(&member),
                    class.admits(&node),
                    class.admits(&client)
                ),
                (m, n, c),
                "{path}"
            );
        }
    }
}
