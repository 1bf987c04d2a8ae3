//! A group of schedulers in this process, with real sockets, TLS and disks, and a stand-in for an agent.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic
)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use trainyard_proto::v1::agent_service_client::AgentServiceClient;
use trainyard_proto::v1::cluster_service_client::ClusterServiceClient;
use trainyard_proto::v1::experiment_service_client::ExperimentServiceClient;
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::workspace_service_client::WorkspaceServiceClient;
use trainyard_proto::v1::*;
use trainyard_scheduler::config::{Config, Overrides};
use trainyard_scheduler::init::{InitArgs, init};
use trainyard_scheduler::run::Daemon;
use trainyard_shared::tls::{Identity, Server};

/// How long anything may take before a test gives up.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Awaits with a limit.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .unwrap_or_else(|_| panic!("{what} took too long"))
}

pub struct Group {
    dir: TempDir,
    pub addresses: Vec<SocketAddr>,
    pub daemons: Vec<Option<Daemon>>,
    adjust: Box<dyn Fn(&mut Config) + Send + Sync>,
}

impl Group {
    /// Starts a group with the nodes node-1 and node-2 and the client admin.
    pub async fn start(size: usize) -> Self {
        Self::start_with(size, |_| {}).await
    }

    /// As [`Group::start`], with a configuration that was adjusted.
    pub async fn start_with(
        size: usize,
        adjust: impl Fn(&mut Config) + Send + Sync + 'static,
    ) -> Self {
        let dir = TempDir::new().unwrap();
        let mut listeners = Vec::new();
        for _ in 0..size {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses: Vec<SocketAddr> =
            listeners.iter().map(|l| l.local_addr().unwrap()).collect();
        init(&InitArgs {
            out: dir.path().join("ty"),
            members: (1..)
                .zip(addresses.iter().map(ToString::to_string))
                .collect(),
            nodes: vec!["node-1".into(), "node-2".into()],
            clients: vec!["admin".into()],
        })
        .unwrap();
        let mut group = Self {
            dir,
            addresses,
            daemons: Vec::new(),
            adjust: Box::new(adjust),
        };
        for (i, listener) in listeners.into_iter().enumerate() {
            let daemon = Daemon::start(group.config(i), Some(listener))
                .await
                .unwrap();
            group.daemons.push(Some(daemon));
        }
        group
    }

    fn config(&self, i: usize) -> Config {
        let file = self.path(&format!("members/{}/scheduler.toml", i + 1));
        let mut config = Config::load(&file, &Overrides::default()).unwrap();
        config.raft.tick_ms = 20;
        config.lease.lease_ms = 3_000;
        config.lease.fence_ms = 500;
        config.lease.heartbeat_ms = 200;
        (self.adjust)(&mut config);
        config
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("ty").join(below)
    }

    pub fn identity(&self, below: &str) -> Identity {
        Identity::load(&self.path(below).join("tls")).unwrap()
    }

    /// A channel to one member with the identity of `clients/admin`, `nodes/node-1` or the like.
    pub fn channel(&self, member: usize, identity: &str) -> Channel {
        let tls = self.identity(identity).client_tls(Server::Member);
        Endpoint::from_shared(format!("https://{}", self.addresses[member]))
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect_lazy()
    }

    pub fn admin(&self, member: usize) -> Channel {
        self.channel(member, "clients/admin")
    }

    /// Index of the member that leads and is ready.
    pub async fn leader(&self) -> usize {
        within("an election", async {
            loop {
                let leader = self.daemons.iter().position(|daemon| {
                    daemon
                        .as_ref()
                        .is_some_and(|d| d.context.leadership.borrow().is_some())
                });
                if let Some(leader) = leader {
                    return leader;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }

    pub async fn stop_member(&mut self, member: usize) {
        if let Some(daemon) = self.daemons[member].take() {
            within("a stop", daemon.stop()).await;
        }
    }

    /// Starts a stopped member again, on its data.
    pub async fn start_member(&mut self, member: usize) {
        let daemon = Daemon::start(self.config(member), None).await.unwrap();
        self.daemons[member] = Some(daemon);
    }

    pub async fn stop(mut self) {
        for member in 0..self.daemons.len() {
            self.stop_member(member).await;
        }
    }
}

/// A workspace `w` with a cluster `c` of `target` nodes and an experiment `e`.
pub async fn furnish(channel: &Channel, target: u32) {
    WorkspaceServiceClient::new(channel.clone())
        .create_workspace(CreateWorkspaceRequest {
            workspace_id: "w".into(),
            ..CreateWorkspaceRequest::default()
        })
        .await
        .unwrap();
    ClusterServiceClient::new(channel.clone())
        .create_cluster(CreateClusterRequest {
            parent: "workspaces/w".into(),
            cluster_id: "c".into(),
            cluster: Some(Cluster {
                scale_settings: Some(ScaleSettings {
                    manual: Some(ManualScaleSettings {
                        target_node_count: target,
                        ..ManualScaleSettings::default()
                    }),
                    ..ScaleSettings::default()
                }),
                ..Cluster::default()
            }),
            ..CreateClusterRequest::default()
        })
        .await
        .unwrap();
    ExperimentServiceClient::new(channel.clone())
        .create_experiment(CreateExperimentRequest {
            parent: "workspaces/w".into(),
            experiment_id: "e".into(),
            ..CreateExperimentRequest::default()
        })
        .await
        .unwrap();
}

pub fn job_request(id: &str, request_id: &str) -> CreateJobRequest {
    CreateJobRequest {
        parent: "workspaces/w/experiments/e".into(),
        job_id: id.into(),
        request_id: request_id.into(),
        job: Some(Job {
            spec: Some(JobSpec {
                cluster: Some(ResourceId {
                    id: "workspaces/w/clusters/c".into(),
                }),
                node_count: 1,
                custom_toolkit_settings: Some(CustomToolkitSettings {
                    command_line: "true".into(),
                }),
                std_out_err_path_prefix: "/tmp/out".into(),
                ..JobSpec::default()
            }),
            ..Job::default()
        }),
        ..CreateJobRequest::default()
    }
}

pub async fn create_job(channel: &Channel, id: &str) -> Job {
    JobServiceClient::new(channel.clone())
        .create_job(job_request(id, ""))
        .await
        .unwrap()
        .into_inner()
}

pub async fn get_job(channel: &Channel, name: &str) -> Result<Job, Status> {
    JobServiceClient::new(channel.clone())
        .get_job(GetJobRequest { name: name.into() })
        .await
        .map(tonic::Response::into_inner)
}

/// A stand-in for an agent: says what a test tells it to say.
pub struct FakeAgent {
    pub name: String,
    sender: mpsc::Sender<AgentMessage>,
    inbound: Streaming<SchedulerMessage>,
    sequence: u64,
    pub welcome: Welcome,
}

impl FakeAgent {
    pub fn hello(name: &str, address: &str) -> Hello {
        Hello {
            node: name.into(),
            inventory: Some(Inventory {
                address: "127.0.0.1".into(),
                cpus: 4,
                memory_bytes: 1 << 30,
                confinement: "process-group".into(),
                ..Inventory::default()
            }),
            agent_address: address.into(),
            agent_version: "0".into(),
            boot_id: "b".into(),
            node_class: "cpu".into(),
            observed: Some(Observed::default()),
            ..Hello::default()
        }
    }

    /// Opens a session and waits for Welcome.
    pub async fn open(channel: Channel, hello: Hello) -> Result<Self, Status> {
        let name = hello.node.clone();
        let (sender, receiver) = mpsc::channel(16);
        let kind = agent_message::Kind::Hello(hello);
        sender
            .send(AgentMessage { kind: Some(kind) })
            .await
            .unwrap();
        let mut inbound = AgentServiceClient::new(channel)
            .session(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        let first = within("Welcome", inbound.message()).await?;
        let Some(scheduler_message::Kind::Welcome(welcome)) = first.and_then(|m| m.kind) else {
            panic!("the first message is not Welcome");
        };
        Ok(Self {
            name,
            sender,
            inbound,
            sequence: 0,
            welcome,
        })
    }

    pub async fn send(&mut self, kind: agent_message::Kind) {
        // A closed session shows when the test reads from it.
        let _ = self.sender.send(AgentMessage { kind: Some(kind) }).await;
    }

    pub async fn next(&mut self) -> Result<scheduler_message::Kind, Status> {
        match within("a message", self.inbound.message()).await? {
            Some(message) => Ok(message.kind.unwrap()),
            None => Err(Status::ok("the end of the session")),
        }
    }

    /// Sends a heartbeat and waits for its acknowledgement.
    pub async fn heartbeat(&mut self, sequence: u64) -> Result<(), Status> {
        self.send(agent_message::Kind::Heartbeat(Heartbeat { sequence }))
            .await;
        loop {
            if let scheduler_message::Kind::HeartbeatAck(ack) = self.next().await? {
                assert_eq!(ack.sequence, sequence);
                return Ok(());
            }
        }
    }

    /// Waits for a desired view that satisfies `accept`.
    pub async fn desired(&mut self, accept: impl Fn(&Desired) -> bool) -> Desired {
        loop {
            if let scheduler_message::Kind::Desired(desired) = self.next().await.unwrap()
                && accept(&desired)
            {
                return desired;
            }
        }
    }

    /// Reports one attempt as the whole view.
    pub async fn observe(&mut self, assignment: &Assignment, status: AttemptNodeStatus) {
        self.sequence += 1;
        let observed = Observed {
            sequence: self.sequence,
            attempts: vec![ObservedAttempt {
                job: assignment.job.clone(),
                uid: assignment.uid.clone(),
                attempt: assignment.attempt,
                epoch: assignment.epoch,
                status: Some(status),
            }],
            ..Observed::default()
        };
        self.send(agent_message::Kind::Observed(observed)).await;
    }

    /// Drives an assignment from RUN to its end with this exit code.
    pub async fn drive(&mut self, assignment: &Assignment, exit_code: i32) {
        let status = |phase: AttemptNodePhase, exit_code: Option<i32>| AttemptNodeStatus {
            phase: phase.into(),
            exit_code,
            files: vec!["stdout.txt".into(), "stderr.txt".into()],
            ..AttemptNodeStatus::default()
        };
        self.observe(assignment, status(AttemptNodePhase::Running, None))
            .await;
        self.observe(
            assignment,
            status(AttemptNodePhase::Exited, Some(exit_code)),
        )
        .await;
        self.desired(|d| {
            d.assignments
                .first()
                .is_some_and(|a| a.phase() == AttemptPhase::Stop)
        })
        .await;
        self.observe(
            assignment,
            status(AttemptNodePhase::Cleaned, Some(exit_code)),
        )
        .await;
        self.desired(|d| d.assignments.is_empty()).await;
    }
}
