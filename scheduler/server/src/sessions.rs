//! Sessions of agents: Hello, heartbeats, what a node observed, what it shall hold.
//!
//! Both directions carry whole views, so a session keeps no history: of several reports that wait, the newest counts; of
//! several changes of the desired view, one message with the newest goes out. A session belongs to one term of one
//! leader and ends with it; the agent then connects to the next leader and sends everything again. It must never
//! acknowledge a heartbeat of a session that was replaced or whose node was condemned.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use trainyard_core::Reply;
use trainyard_proto::store::v1::{RegisterNode, ReportAttempts, command::Kind};
use trainyard_proto::v1::agent_service_server::AgentService;
use trainyard_proto::v1::{
    AgentMessage, Desired, HeartbeatAck, Hello, Observed, SchedulerMessage, Welcome, agent_message,
    scheduler_message,
};
use trainyard_replication::ProposeError;
use trainyard_shared::names::NodeName;
use trainyard_shared::tls::Role;

use crate::changes::Subscription;
use crate::config::check_address;
use crate::context::Context;
use crate::front::Peer;
use crate::leadership::{Leadership, Superseded};
use crate::status;

/// How long an agent may take to say Hello.
const HELLO_WAIT: Duration = Duration::from_secs(10);
/// Messages on their way to an agent.
const OUTBOUND: usize = 8;
/// Most attempts in one view of a node.
const MAX_ATTEMPTS: usize = 4096;
/// Most GPUs of a node.
const MAX_GPUS: usize = 256;
/// Most file servers that a node exports.
const MAX_EXPORTS: usize = 1024;
/// Most users that a node offers.
const MAX_USERS: usize = 64;
/// Largest inventory, in bytes.
const MAX_INVENTORY: usize = 256 * 1024;
/// Largest view of a node, in bytes: it goes into the log as one entry.
const MAX_OBSERVED: usize = 2 * 1024 * 1024;
/// Longest text of an inventory.
const MAX_TEXT: usize = 1024;

/// The service that agents call.
#[derive(Debug, Clone)]
pub struct Sessions(pub Arc<Context>);

type Outbound = mpsc::Sender<Result<SchedulerMessage, Status>>;

#[tonic::async_trait]
impl AgentService for Sessions {
    type SessionStream = ReceiverStream<Result<SchedulerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let certified = match request.extensions().get::<Peer>().map(|p| Arc::clone(&p.0)) {
            Some(role) => match &*role {
                Role::Node(name) => name.clone(),
                Role::Member(_) | Role::Client(_) => {
                    return Err(Status::permission_denied("sessions are for agents"));
                }
            },
            None => return Err(Status::unauthenticated("a client certificate is needed")),
        };
        let leadership = self.0.leading()?;
        let context = Arc::clone(&self.0);
        let inbound = request.into_inner();
        let (outbound, stream) = mpsc::channel(OUTBOUND);
        // In a task of its own: some clients send Hello only after the answer's headers have come.
        tokio::spawn(async move {
            let ended = serve(&context, &leadership, &certified, inbound, &outbound).await;
            if let Err(status) = ended {
                tracing::info!(node = certified, reason = status.message(), "session ended");
                // The agent may be gone, or not reading: then it learns from the end of the stream.
                let _ = outbound.try_send(Err(status));
            } else {
                tracing::info!(node = certified, "session ended by the agent");
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// One session from Hello to its end.
async fn serve(
    context: &Arc<Context>,
    leadership: &Arc<Leadership>,
    certified: &str,
    mut inbound: Streaming<AgentMessage>,
    outbound: &Outbound,
) -> Result<(), Status> {
    let hello = hello(&mut inbound).await?;
    let node = check_hello(certified, &hello)?.to_string();
    // Before the registration, so that no change after it is missed.
    let desired = context
        .changes
        .desired(&node)
        .map_err(|e| status::exhausted(e.to_string()))?;
    let version = hello.agent_version.clone();
    leadership.greet(&node);
    let register = Kind::RegisterNode(RegisterNode { hello: Some(hello) });
    let epoch = match context.propose(register).await? {
        Reply::Node(node) => node.session_epoch,
        other => {
            return Err(status::internal(format!(
                "registering a node gave {other:?}"
            )));
        }
    };
    let ended = leadership.open(&node, epoch).map_err(superseded)?;
    tracing::info!(node, epoch, version, "session begins");
    // The node takes work from now on.
    context.changes.placement.notify_one();
    let session = Session {
        context,
        leadership,
        node: node.clone(),
        epoch,
        ended,
        outbound,
        sequence: 0,
        ack: None,
        push: true,
        observed: None,
    };
    let result = session.run(inbound, desired).await;
    leadership.close(&node, epoch);
    result
}

async fn hello(inbound: &mut Streaming<AgentMessage>) -> Result<Hello, Status> {
    let first = tokio::time::timeout(HELLO_WAIT, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no Hello came within 10 seconds"))??;
    match first.and_then(|message| message.kind) {
        Some(agent_message::Kind::Hello(hello)) => Ok(hello),
        Some(agent_message::Kind::Heartbeat(_) | agent_message::Kind::Observed(_)) | None => {
            Err(Status::invalid_argument("the first message must be Hello"))
        }
    }
}

/// Checks what an agent says of itself before it goes into the log.
fn check_hello(certified: &str, hello: &Hello) -> Result<NodeName, Status> {
    if hello.node != certified {
        return Err(Status::permission_denied(format!(
            "the agent calls itself {:?}, but its certificate is for {certified:?}; set `node` to that, or issue a \
             certificate for it",
            hello.node
        )));
    }
    let name = NodeName::new(&hello.node).map_err(|e| status::name("hello.node", &e))?;
    let inventory = hello
        .inventory
        .as_ref()
        .ok_or_else(|| status::invalid_field("hello.inventory", "is missing"))?;
    if hello.node_class.is_empty() {
        return Err(status::invalid_field("hello.node_class", "is empty"));
    }
    check_address(&hello.agent_address)
        .map_err(|e| status::invalid_field("hello.agent_address", e))?;
    if inventory.address.is_empty() {
        return Err(status::invalid_field("hello.inventory.address", "is empty"));
    }
    if inventory.gpus.len() > MAX_GPUS {
        return Err(status::invalid_field(
            "hello.inventory.gpus",
            format!("has more than {MAX_GPUS} entries"),
        ));
    }
    let texts = [
        &hello.agent_version,
        &hello.boot_id,
        &hello.node_class,
        &hello.agent_address,
        &inventory.address,
        &inventory.os,
        &inventory.kernel,
        &inventory.confinement,
    ];
    let image = inventory.image.iter().flat_map(|image| {
        [
            &image.publisher,
            &image.offer,
            &image.sku,
            &image.version,
            &image.virtual_machine_image_id,
        ]
    });
    let more = image.chain(&inventory.task_users).chain([&inventory.mac]);
    let gpu_texts = inventory.gpus.iter().flat_map(|g| [&g.uuid, &g.model]);
    if texts
        .into_iter()
        .chain(gpu_texts)
        .chain(more)
        .any(|t| t.len() > MAX_TEXT)
    {
        return Err(status::invalid_field(
            "hello",
            format!("has a text of more than {MAX_TEXT} bytes"),
        ));
    }
    if inventory.task_users.len() > MAX_USERS {
        return Err(status::invalid_field(
            "hello.inventory.task_users",
            format!("has more than {MAX_USERS} entries"),
        ));
    }
    let bytes = inventory.encoded_len();
    if bytes > MAX_INVENTORY {
        return Err(status::invalid_field(
            "hello.inventory",
            format!("has {bytes} bytes; at most {MAX_INVENTORY} are taken"),
        ));
    }
    if let Some(observed) = &hello.observed {
        check_observed(observed)?;
    }
    Ok(name)
}

fn check_observed(observed: &Observed) -> Result<(), Status> {
    let counts = [
        ("observed.attempts", observed.attempts.len(), MAX_ATTEMPTS),
        ("observed.exports", observed.exports.len(), MAX_EXPORTS),
    ];
    for (field, count, most) in counts {
        if count > most {
            return Err(status::invalid_field(
                field,
                format!("has {count} entries; at most {most} are taken"),
            ));
        }
    }
    let bytes = observed.encoded_len();
    if bytes > MAX_OBSERVED {
        return Err(status::invalid_field(
            "observed",
            format!("has {bytes} bytes; at most {MAX_OBSERVED} are taken"),
        ));
    }
    Ok(())
}

struct Session<'a> {
    context: &'a Arc<Context>,
    leadership: &'a Arc<Leadership>,
    node: String,
    epoch: u64,
    /// Cancelled when the term is over, a newer session has begun, or the node was condemned.
    ended: CancellationToken,
    outbound: &'a Outbound,
    /// Sequence of the newest view after Hello.
    sequence: u64,
    /// Heartbeat to acknowledge; a newer one acknowledges the older ones too.
    ack: Option<u64>,
    /// Whether the desired view changed since it was last sent.
    push: bool,
    /// The newest view that was not compared with the state yet.
    observed: Option<Observed>,
}

/// A report on its way through the log.
type Report = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

impl Session<'_> {
    async fn run(
        mut self,
        mut inbound: Streaming<AgentMessage>,
        mut desired: Subscription,
    ) -> Result<(), Status> {
        let lease = &self.context.config.lease;
        let welcome = scheduler_message::Kind::Welcome(Welcome {
            term: self.leadership.term,
            lease_ms: lease.lease_ms,
            heartbeat_ms: lease.heartbeat_ms,
        });
        let outbound = self.outbound.clone();
        if outbound.send(Ok(message(welcome))).await.is_err() {
            return Ok(());
        }
        let ended = self.ended.clone();
        let mut report: Option<Report> = None;
        loop {
            if report.is_none() {
                report = self.next_report();
            }
            let sending = self.push || self.ack.is_some();
            tokio::select! {
                biased;
                () = ended.cancelled() => return Err(self.end_reason()),
                () = self.context.stopping.cancelled() => return Err(status::stopping()),
                done = async { match report.as_mut() {
                    Some(report) => report.await,
                    None => std::future::pending().await,
                } } => {
                    report = None;
                    done?;
                }
                () = desired.changed() => self.push = true,
                permit = outbound.reserve(), if sending => match permit {
                    Ok(permit) => permit.send(Ok(self.next_message())),
                    Err(_) => return Ok(()),
                },
                received = inbound.message() => match received? {
                    Some(received) => self.take(received)?,
                    None => return Ok(()),
                },
            }
        }
    }

    /// A message of the agent.
    fn take(&mut self, received: AgentMessage) -> Result<(), Status> {
        match received.kind {
            Some(agent_message::Kind::Heartbeat(heartbeat)) => {
                let was_silent = self
                    .leadership
                    .renew(&self.node, self.epoch)
                    .map_err(superseded)?;
                if was_silent {
                    self.context.changes.placement.notify_one();
                }
                self.ack = Some(heartbeat.sequence);
            }
            Some(agent_message::Kind::Observed(observed)) => {
                check_observed(&observed)?;
                // Messages of a stream come in order; this guards against an agent that sends an old view again.
                if observed.sequence >= self.sequence {
                    self.sequence = observed.sequence;
                    self.observed = Some(observed);
                }
            }
            Some(agent_message::Kind::Hello(_)) => {
                return Err(Status::invalid_argument(
                    "Hello came a second time in one session",
                ));
            }
            // A newer agent may send what this release does not know.
            None => {}
        }
        Ok(())
    }

    /// What goes out next: acknowledgements first, since a lease hangs on them.
    fn next_message(&mut self) -> SchedulerMessage {
        if let Some(sequence) = self.ack.take() {
            return message(scheduler_message::Kind::HeartbeatAck(HeartbeatAck {
                sequence,
            }));
        }
        self.push = false;
        message(scheduler_message::Kind::Desired(self.desired()))
    }

    fn desired(&self) -> Desired {
        let mut desired = self.context.state().desired(&self.node);
        for assignment in &mut desired.assignments {
            assignment.stop_grace_ms = self.context.config.stop_grace_ms;
        }
        desired
    }

    /// The newest view, if the state does not know it yet. Compared only when no report is on its way: the state lacks
    /// what that one will say.
    fn next_report(&mut self) -> Option<Report> {
        let observed = self.observed.take()?;
        let differs = self
            .context
            .state()
            .report_differs(&self.node, self.epoch, &observed);
        if !differs {
            return None;
        }
        let context = Arc::clone(self.context);
        let report = ReportAttempts {
            node: self.node.clone(),
            session_epoch: self.epoch,
            attempts: observed.attempts,
            setup: observed.setup,
            exports: observed.exports,
        };
        Some(Box::pin(
            async move { propose_report(&context, report).await },
        ))
    }

    fn end_reason(&self) -> Status {
        if self.leadership.ended.is_cancelled() {
            let leader = self.context.leader();
            status::not_leader(leader.as_ref().map(|(_, address)| address.as_str()))
        } else {
            superseded(Superseded)
        }
    }
}

/// Brings a report into the log, however long the log is busy.
async fn propose_report(context: &Context, report: ReportAttempts) -> Result<(), Status> {
    let mut wait = Duration::from_millis(10);
    loop {
        match context.decide(Kind::ReportAttempts(report.clone())).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(refusal)) => {
                // Core ignores what does not fit any more; a refusal means that the node is gone or registered anew.
                return Err(status::refusal(&refusal));
            }
            Err(ProposeError::Overloaded) => {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_millis(500));
            }
            Err(error) => {
                return Err(status::propose_error(&error, |id| {
                    context.config.address_of(id)
                }));
            }
        }
    }
}

fn message(kind: scheduler_message::Kind) -> SchedulerMessage {
    SchedulerMessage { kind: Some(kind) }
}

fn superseded(error: Superseded) -> Status {
    Status::aborted(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;
    use trainyard_proto::v1::{ExportStatus, Gpu, Inventory};

    fn good() -> Hello {
        Hello {
            node: "n-1".into(),
            inventory: Some(Inventory {
                address: "10.0.0.1".into(),
                ..Inventory::default()
            }),
            agent_address: "10.0.0.1:7710".into(),
            node_class: "cpu".into(),
            ..Hello::default()
        }
    }

    #[test]
    fn a_hello_is_checked_before_it_reaches_the_log() {
        assert_eq!(check_hello("n-1", &good()).unwrap().as_str(), "nodes/n-1");
        type Spoil = fn(&mut Hello);
        let cases: [(&str, Spoil); 10] = [
            ("certificate", |h| h.node = "n-2".into()),
            ("node_class", |h| h.node_class.clear()),
            ("inventory", |h| h.inventory = None),
            ("agent_address", |h| h.agent_address = "10.0.0.1".into()),
            ("gpus", |h| {
                h.inventory.get_or_insert_default().gpus = vec![Gpu::default(); MAX_GPUS + 1];
            }),
            ("1024", |h| h.boot_id = "x".repeat(MAX_TEXT + 1)),
            ("1024", |h| {
                h.inventory.get_or_insert_default().mac = "x".repeat(MAX_TEXT + 1);
            }),
            ("task_users", |h| {
                h.inventory.get_or_insert_default().task_users = vec!["u".into(); MAX_USERS + 1];
            }),
            ("observed.exports", |h| {
                h.observed.get_or_insert_default().exports =
                    vec![ExportStatus::default(); MAX_EXPORTS + 1];
            }),
            ("observed: has", |h| {
                let setup = &mut h.observed.get_or_insert_default().setup;
                setup.get_or_insert_default().cluster = "x".repeat(MAX_OBSERVED);
            }),
        ];
        for (word, spoil) in cases {
            let mut hello = good();
            spoil(&mut hello);
            let error = check_hello("n-1", &hello).unwrap_err();
            assert!(error.message().contains(word), "{word}: {error}");
            assert_ne!(error.code(), Code::Internal);
        }
    }
}
