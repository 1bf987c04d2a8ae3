//! The session with the schedulers: connects, renews the lease, carries the two views.
//!
//! What it promises: exactly one session at a time; the observed view is sent whole after each change, several
//! changes in quick succession as one; a leader of a term below the highest ever seen is refused; when anything
//! goes wrong it tries the next scheduler, with pauses that grow from [`PAUSE_MIN`] to [`PAUSE_MAX`]. It decides
//! nothing about attempts and never ends by itself.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status};
use tracing::{debug, info, warn};
use trainyard_proto::v1::agent_service_client::AgentServiceClient;
use trainyard_proto::v1::{
    AgentMessage, Desired, Heartbeat, Hello, SchedulerMessage, Welcome, agent_message,
    scheduler_message,
};

use crate::board::Board;
use crate::clock;
use crate::lease::{Lease, LeaseFile};

/// First pause between two attempts to connect.
pub const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Longest that connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Longest that a member may take to answer Hello.
const WELCOME_MAX: Duration = Duration::from_secs(10);
/// Longest that a message may wait to be taken by the connection.
const SEND_MAX: Duration = Duration::from_secs(5);
/// Redirections followed without a pause.
const REDIRECTS_MAX: u32 = 3;
/// Messages on their way out; more wait for the connection.
const OUTGOING_MAX: usize = 4;
/// Longest pause between two heartbeats, whatever the scheduler asks for.
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);

/// Least time between two complaints in the log that no scheduler accepts a session.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

/// Largest message taken from a scheduler, in bytes: a desired view.
const MESSAGE_MAX: usize = 64 * 1024 * 1024;

/// What a session tells the supervisor.
#[derive(Debug)]
pub enum Event {
    /// A session was accepted. Views of earlier sessions no longer count.
    Welcomed,
    /// A desired view.
    Desired(Box<Desired>),
    /// The session is over; another is being sought.
    Closed,
}

/// Everything a session needs.
pub struct Context {
    /// `HOST:PORT` of schedulers.
    pub servers: Vec<String>,
    /// Who the agent is.
    pub tls: ClientTlsConfig,
    /// Hello without the observed view.
    pub hello: Hello,
    /// The observed view.
    pub board: Board,
    /// Takes the events. Bounded; the supervisor keeps up.
    pub events: mpsc::Sender<Event>,
    /// Where the deadline of the lease goes, in nanoseconds of `CLOCK_BOOTTIME`.
    pub deadline: watch::Sender<u64>,
    /// Where it goes for the shims.
    pub lease_file: Arc<LeaseFile>,
    /// The highest term.
    pub term: TermFile,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("{}: {}", .0.code(), .0.message())]
    Refused(Box<Status>),
    #[error("not the leader; the leader is {0}")]
    Redirected(String),
    #[error("no answer to Hello within {} s", WELCOME_MAX.as_secs())]
    NoWelcome,
    #[error("the first message is no Welcome")]
    NotWelcome,
    #[error(
        "term {term} is below {highest}, the highest seen: a leader that was deposed, or a store that was set back"
    )]
    OldTerm { term: u64, highest: u64 },
    #[error("the term cannot be stored: {0}")]
    Term(io::Error),
    #[error("no heartbeat was acknowledged for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the connection takes no messages")]
    Stuck,
    #[error("the scheduler closed the session")]
    Finished,
    #[error("the agent stops")]
    Stopping,
}

/// Keeps a session for as long as the supervisor listens.
pub async fn run(mut context: Context, mut lease: Lease) {
    let mut next = fastrand::usize(..context.servers.len().max(1));
    let mut redirect: Option<String> = None;
    let mut redirects = 0;
    let mut pause = PAUSE_MIN;
    let mut complained: Option<Instant> = None;
    while !context.events.is_closed() {
        let redirected = redirect.is_some();
        let Some(server) = redirect
            .take()
            .or_else(|| context.servers.get(next).cloned())
        else {
            return;
        };
        let mut welcomed = false;
        let ended = attempt(&mut context, &mut lease, &server, &mut welcomed).await;
        if welcomed {
            pause = PAUSE_MIN;
            redirects = 0;
            if context.events.send(Event::Closed).await.is_err() {
                return;
            }
            warn!(server, reason = %ended, "session ended");
            complained = None;
        } else if matches!(ended, Ended::Redirected(_))
            || complained.is_some_and(|at| at.elapsed() < COMPLAINT_INTERVAL)
        {
            debug!(server, reason = %ended, "no session");
        } else {
            warn!(server, reason = %ended, "no session; trying on");
            complained = Some(Instant::now());
        }
        match ended {
            Ended::Redirected(leader) if redirects < REDIRECTS_MAX => {
                redirects += 1;
                redirect = Some(leader);
                continue;
            }
            _ => redirects = 0,
        }
        if !redirected {
            next = (next + 1) % context.servers.len().max(1);
        }
        // Jitter, so that a thousand agents do not return to a new leader at the same instant.
        let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            () = context.events.closed() => return,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn attempt(
    context: &mut Context,
    lease: &mut Lease,
    server: &str,
    welcomed: &mut bool,
) -> Ended {
    let channel = match connect(context, server).await {
        Ok(channel) => channel,
        Err(ended) => return ended,
    };
    let (outgoing, outgoing_stream) = mpsc::channel(OUTGOING_MAX);
    let mut changes = context.board.changes();
    changes.mark_unchanged();
    let mut hello = context.hello.clone();
    hello.observed = Some(context.board.view(1));
    let hello_sent_ns = clock::boottime_ns();
    if outgoing
        .try_send(message(agent_message::Kind::Hello(hello)))
        .is_err()
    {
        return Ended::Stuck;
    }
    let mut client = AgentServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
    let opening = async {
        let mut incoming = client
            .session(ReceiverStream::new(outgoing_stream))
            .await?
            .into_inner();
        let first = incoming.message().await?;
        Ok::<_, Status>((incoming, first))
    };
    let (incoming, first) = match timeout(WELCOME_MAX, opening).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(status)) => return refused(status),
        Err(_) => return Ended::NoWelcome,
    };
    let Some(SchedulerMessage {
        kind: Some(scheduler_message::Kind::Welcome(welcome)),
    }) = first
    else {
        return Ended::NotWelcome;
    };
    if let Err(ended) = context.term.accept(welcome.term) {
        return ended;
    }
    let deadline = lease.welcomed(hello_sent_ns, welcome.lease_ms);
    context.publish(deadline);
    *welcomed = true;
    if context.events.send(Event::Welcomed).await.is_err() {
        return Ended::Stopping;
    }
    info!(server, term = welcome.term, "session accepted");
    let mut session = Session {
        context,
        lease,
        incoming,
        outgoing,
        changes,
        observed: 1,
        heartbeat: 0,
    };
    session.carry(&welcome).await
}

async fn connect(context: &Context, server: &str) -> Result<Channel, Ended> {
    let error = |error: tonic::transport::Error| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        Ended::Connect(text)
    };
    let endpoint = Endpoint::from_shared(format!("https://{server}"))
        .and_then(|endpoint| endpoint.tls_config(context.tls.clone()))
        .map_err(error)?
        .connect_timeout(CONNECT_MAX)
        .tcp_nodelay(true);
    timeout(CONNECT_MAX * 2, endpoint.connect())
        .await
        .map_err(|_| Ended::Connect("no answer".to_owned()))?
        .map_err(error)
}

fn refused(status: Status) -> Ended {
    let leader = status
        .metadata()
        .get("trainyard-leader")
        .and_then(|value| value.to_str().ok())
        .filter(|leader| !leader.is_empty());
    match leader {
        Some(leader) if status.code() == Code::Unavailable => Ended::Redirected(leader.to_owned()),
        _ => Ended::Refused(Box::new(status)),
    }
}

fn message(kind: agent_message::Kind) -> AgentMessage {
    AgentMessage { kind: Some(kind) }
}

impl Context {
    fn publish(&self, deadline_ns: u64) {
        // The file first: the shims' deadline must not be the earlier one for longer than it takes.
        if let Err(error) = self.lease_file.write(deadline_ns) {
            warn!(%error, "the lease cannot be written; tasks will end at the last deadline written");
        }
        self.deadline.send_replace(deadline_ns);
    }
}

/// An accepted session.
struct Session<'a> {
    context: &'a mut Context,
    lease: &'a mut Lease,
    incoming: tonic::Streaming<SchedulerMessage>,
    outgoing: mpsc::Sender<AgentMessage>,
    changes: watch::Receiver<u64>,
    observed: u64,
    heartbeat: u64,
}

impl Session<'_> {
    async fn carry(&mut self, welcome: &Welcome) -> Ended {
        let pace = Duration::from_millis(welcome.heartbeat_ms)
            .clamp(Duration::from_millis(10), HEARTBEAT_MAX);
        // Three missed answers: early enough to find another leader before the lease is over.
        let silence = pace * 3 + Duration::from_millis(500);
        let mut beats = tokio::time::interval_at(Instant::now() + pace, pace);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let quiet = tokio::time::sleep(silence);
        tokio::pin!(quiet);
        loop {
            let step = tokio::select! {
                biased;
                incoming = self.incoming.message() => {
                    quiet.as_mut().reset(Instant::now() + silence);
                    match incoming {
                        Ok(Some(message)) => self.take(message).await,
                        Ok(None) => Err(Ended::Finished),
                        Err(status) => Err(refused(status)),
                    }
                }
                _ = beats.tick() => self.beat().await,
                _ = self.changes.changed() => self.report().await,
                () = &mut quiet => Err(Ended::Silent(silence)),
                () = self.context.events.closed() => Err(Ended::Stopping),
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    }

    async fn take(&mut self, message: SchedulerMessage) -> Result<(), Ended> {
        match message.kind {
            Some(scheduler_message::Kind::HeartbeatAck(ack)) => {
                if let Some(deadline) = self.lease.acked(ack.sequence) {
                    self.context.publish(deadline);
                }
                Ok(())
            }
            Some(scheduler_message::Kind::Desired(desired)) => self
                .context
                .events
                .send(Event::Desired(Box::new(desired)))
                .await
                .map_err(|_| Ended::Stopping),
            // A second Welcome means nothing; an unknown kind is from a newer scheduler.
            Some(scheduler_message::Kind::Welcome(_)) | None => Ok(()),
        }
    }

    async fn beat(&mut self) -> Result<(), Ended> {
        self.heartbeat += 1;
        let sequence = self.heartbeat;
        self.lease.sent(sequence, clock::boottime_ns());
        self.send(agent_message::Kind::Heartbeat(Heartbeat { sequence }))
            .await
    }

    async fn report(&mut self) -> Result<(), Ended> {
        self.observed += 1;
        let observed = self.context.board.view(self.observed);
        self.send(agent_message::Kind::Observed(observed)).await
    }

    async fn send(&self, kind: agent_message::Kind) -> Result<(), Ended> {
        match timeout(SEND_MAX, self.outgoing.send(message(kind))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::Finished),
            Err(_) => Err(Ended::Stuck),
        }
    }
}

/// The highest term the node has seen, kept on the disk: a deposed leader must stay powerless across restarts.
/// It belongs to one group of schedulers; a node that joins another group begins anew.
#[derive(Debug)]
pub struct TermFile {
    path: PathBuf,
    cluster_id: String,
    highest: u64,
}

impl TermFile {
    /// Reads the file.
    ///
    /// # Errors
    /// When it is there but cannot be read or understood.
    pub fn open(path: PathBuf, cluster_id: &str) -> io::Result<TermFile> {
        let highest = match std::fs::read_to_string(&path) {
            Ok(text) => match text.trim_end().rsplit_once(' ') {
                Some((id, term)) if id == cluster_id => term.parse().map_err(|_| {
                    let message = format!(
                        "{}: {text:?} is no term; remove the file if no scheduler was ever set back",
                        path.display()
                    );
                    io::Error::new(io::ErrorKind::InvalidData, message)
                })?,
                _ => 0,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(TermFile {
            path,
            cluster_id: cluster_id.to_owned(),
            highest,
        })
    }

    fn accept(&mut self, term: u64) -> Result<(), Ended> {
        if term < self.highest {
            return Err(Ended::OldTerm {
                term,
                highest: self.highest,
            });
        }
        if term > self.highest {
            self.store(term).map_err(Ended::Term)?;
            self.highest = term;
        }
        Ok(())
    }

    fn store(&self, term: u64) -> io::Result<()> {
        let text = format!("{} {term}\n", self.cluster_id);
        crate::record::replace(&self.path, text.as_bytes())?;
        std::fs::File::open(&self.path)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_term_is_refused_even_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("term");
        let mut term = TermFile::open(path.clone(), "c1").unwrap();
        assert!(term.accept(4).is_ok());
        assert!(term.accept(4).is_ok());
        assert!(matches!(
            term.accept(3),
            Err(Ended::OldTerm {
                term: 3,
                highest: 4
            })
        ));
        let mut again = TermFile::open(path.clone(), "c1").unwrap();
        assert!(again.accept(3).is_err());
        assert!(again.accept(5).is_ok());
        let mut elsewhere = TermFile::open(path.clone(), "c2").unwrap();
        assert!(elsewhere.accept(1).is_ok(), "another group of schedulers");
        std::fs::write(&path, "c1 many").unwrap();
        assert!(TermFile::open(path, "c1").is_err());
    }

    #[test]
    fn a_redirection_needs_the_leader() {
        let mut status = Status::unavailable("not the leader");
        assert!(matches!(refused(status.clone()), Ended::Refused(_)));
        status
            .metadata_mut()
            .insert("trainyard-leader", "h:1".parse().unwrap());
        assert!(matches!(refused(status), Ended::Redirected(leader) if leader == "h:1"));
    }
}
