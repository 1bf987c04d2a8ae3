//! A scheduler for tests: accepts sessions and says what the test wants.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use trainyard_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use trainyard_proto::v1::{
    AgentMessage, Desired, HeartbeatAck, Hello, Observed, SchedulerMessage, Welcome, agent_message,
    scheduler_message,
};
use trainyard_shared::tls::{Authority, Role};

/// How it behaves.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    pub(crate) term: u64,
    pub(crate) lease_ms: u64,
    pub(crate) heartbeat_ms: u64,
    /// Leave heartbeats unanswered.
    pub(crate) mute: bool,
    /// Send agents to another one.
    pub(crate) leader: Option<String>,
}

impl Default for Manner {
    fn default() -> Manner {
        Manner {
            term: 1,
            lease_ms: 20_000,
            heartbeat_ms: 100,
            mute: false,
            leader: None,
        }
    }
}

/// What it got.
#[derive(Debug)]
pub(crate) enum Got {
    Hello(Box<Hello>),
    Observed(Box<Observed>),
    Heartbeat,
    Left,
}

#[derive(Clone)]
struct Service {
    manner: Arc<Mutex<Manner>>,
    desired: watch::Receiver<Desired>,
    got: mpsc::UnboundedSender<Got>,
}

pub(crate) struct Scheduler {
    pub(crate) address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
    pub(crate) desired: watch::Sender<Desired>,
    pub(crate) got: mpsc::UnboundedReceiver<Got>,
    serving: tokio::task::JoinHandle<()>,
}

impl Scheduler {
    pub(crate) async fn start(authority: &Authority, id: u64, manner: Manner) -> Scheduler {
        let identity = authority.issue(&Role::Member(id)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let manner = Arc::new(Mutex::new(manner));
        let desired = watch::Sender::new(Desired::default());
        let (sender, got) = mpsc::unbounded_channel();
        let service = Service {
            manner: Arc::clone(&manner),
            desired: desired.subscribe(),
            got: sender,
        };
        let server = tonic::transport::Server::builder()
            .tls_config(identity.server_tls())
            .unwrap()
            .add_service(AgentServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let serving = tokio::spawn(async move { server.await.unwrap() });
        Scheduler {
            address,
            manner,
            desired,
            got,
            serving,
        }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.manner.lock().unwrap());
    }

    /// The next thing it got that the test cares for.
    pub(crate) async fn next<T>(&mut self, wanted: impl Fn(&Got) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let got = self.got.recv().await.unwrap();
                if let Some(found) = wanted(&got) {
                    return found;
                }
            }
        };
        tokio::time::timeout(crate::node::PATIENCE, waiting)
            .await
            .unwrap()
    }

    pub(crate) async fn hello(&mut self) -> Hello {
        self.next(|got| match got {
            Got::Hello(hello) => Some((**hello).clone()),
            _ => None,
        })
        .await
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[tonic::async_trait]
impl AgentService for Service {
    type SessionStream = ReceiverStream<Result<SchedulerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let manner = self.manner.lock().unwrap().clone();
        if let Some(leader) = manner.leader {
            let mut status = Status::unavailable("not the leader");
            status
                .metadata_mut()
                .insert("trainyard-leader", leader.parse().unwrap());
            return Err(status);
        }
        let mut incoming = request.into_inner();
        let (sender, receiver) = mpsc::channel(8);
        let service = self.clone();
        tokio::spawn(async move {
            let say = |kind| sender.send(Ok(SchedulerMessage { kind: Some(kind) }));
            let mut desired = service.desired.clone();
            desired.mark_changed();
            loop {
                tokio::select! {
                    message = incoming.message() => {
                        let Ok(Some(AgentMessage { kind: Some(kind) })) = message else { break };
                        match kind {
                            agent_message::Kind::Hello(hello) => {
                                let _ = service.got.send(Got::Hello(Box::new(hello)));
                                let _ = say(scheduler_message::Kind::Welcome(Welcome {
                                    term: manner.term,
                                    lease_ms: manner.lease_ms,
                                    heartbeat_ms: manner.heartbeat_ms,
                                })).await;
                            }
                            agent_message::Kind::Heartbeat(beat) => {
                                let _ = service.got.send(Got::Heartbeat);
                                if !service.manner.lock().unwrap().mute {
                                    let sequence = beat.sequence;
                                    let _ = say(scheduler_message::Kind::HeartbeatAck(HeartbeatAck { sequence })).await;
                                }
                            }
                            agent_message::Kind::Observed(observed) => {
                                let _ = service.got.send(Got::Observed(Box::new(observed)));
                            }
                        }
                    }
                    _ = desired.changed() => {
                        let view = desired.borrow_and_update().clone();
                        let _ = say(scheduler_message::Kind::Desired(view)).await;
                    }
                }
            }
            let _ = service.got.send(Got::Left);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
