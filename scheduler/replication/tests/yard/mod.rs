//! Three members with real threads, real disks and one of two networks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};
use trainyard_replication::store::SnapshotSource;
use trainyard_replication::transport::{GrpcTransport, PeerServer, Reports, Transport};
use trainyard_replication::{
    AppliedEntry, Handle, Inbound, Member, Options, Replication, StateMachine,
};

use crate::common::Journal;

/// A journal that the test can read.
#[derive(Clone, Default)]
pub(crate) struct Shared(pub(crate) Arc<Mutex<Journal>>);

impl StateMachine for Shared {
    type Outcome = usize;

    fn apply(&mut self, entries: &[AppliedEntry<'_>]) -> Vec<usize> {
        self.0.lock().unwrap().apply(entries)
    }

    fn snapshot(&self) -> Vec<u8> {
        self.0.lock().unwrap().snapshot()
    }

    fn restore(&mut self, index: u64, bytes: &[u8]) -> Result<(), String> {
        self.0.lock().unwrap().restore(index, bytes)
    }
}

impl Shared {
    pub(crate) fn texts(&self) -> Vec<String> {
        self.0.lock().unwrap().texts()
    }
}

/// The network of the first kind: channels, with members that can be cut off.
#[derive(Clone, Default)]
pub(crate) struct Channels(pub(crate) Arc<Mutex<Wires>>);

#[derive(Default)]
pub(crate) struct Wires {
    pub(crate) doors: BTreeMap<u64, Inbound>,
    pub(crate) cut: BTreeSet<u64>,
}

impl Channels {
    pub(crate) fn door(&self, from: u64, to: u64) -> Option<Inbound> {
        let wires = self.0.lock().unwrap();
        let open = !wires.cut.contains(&from) && !wires.cut.contains(&to);
        wires.doors.get(&to).filter(|_| open).cloned()
    }
}

pub(crate) struct ChannelTransport {
    pub(crate) from: u64,
    pub(crate) network: Channels,
    pub(crate) reports: Option<Reports>,
    pub(crate) queues: BTreeMap<u64, mpsc::UnboundedSender<Vec<Bytes>>>,
}

impl Transport for ChannelTransport {
    fn start(&mut self, reports: Reports) {
        for to in [1, 2, 3] {
            let (sender, mut receiver) = mpsc::unbounded_channel::<Vec<Bytes>>();
            let (network, from, reports) = (self.network.clone(), self.from, reports.clone());
            tokio::spawn(async move {
                while let Some(messages) = receiver.recv().await {
                    let arrived = match network.door(from, to) {
                        Some(door) => door.messages(from, messages).await.is_ok(),
                        None => false,
                    };
                    if !arrived {
                        reports.unreachable(to);
                    }
                }
            });
            self.queues.insert(to, sender);
        }
        self.reports = Some(reports);
    }

    fn send(&self, to: u64, messages: Vec<Bytes>) {
        let _ = self.queues[&to].send(messages);
    }

    fn send_snapshot(&self, to: u64, message: Bytes, mut source: SnapshotSource) {
        let (network, from) = (self.network.clone(), self.from);
        let reports = self.reports.clone().unwrap();
        let runtime = tokio::runtime::Handle::try_current();
        assert!(
            runtime.is_err(),
            "the replication thread is not the runtime's"
        );
        let queue = self.queues[&to].clone();
        std::thread::spawn(move || {
            let mut data = Vec::new();
            while let Some(chunk) = source.next_chunk().unwrap() {
                data.extend_from_slice(&chunk);
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            let arrived = runtime.block_on(async {
                match network.door(from, to) {
                    Some(door) => door.snapshot(from, message, data.into()).await.is_ok(),
                    None => false,
                }
            });
            drop(queue);
            reports.snapshot(to, arrived);
        });
    }
}

pub(crate) struct Yard {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) kind: Kind,
    pub(crate) members: Vec<Member>,
    pub(crate) running: BTreeMap<u64, Running>,
    pub(crate) listeners: BTreeMap<u64, std::net::TcpListener>,
    pub(crate) snapshot_after_log_bytes: u64,
}

pub(crate) enum Kind {
    Channels(Channels),
    Grpc,
}

pub(crate) struct Running {
    pub(crate) handle: Handle<usize>,
    pub(crate) journal: Shared,
    /// A runtime of its own, so that its connections end with it as those of a killed process do.
    pub(crate) server: Option<tokio::runtime::Runtime>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

impl Yard {
    pub(crate) fn new(grpc: bool) -> Self {
        let mut members = Vec::new();
        let mut listeners = BTreeMap::new();
        for id in 1..=3 {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            members.push(Member {
                id,
                name: format!("member-{id}"),
                address: listener.local_addr().unwrap().to_string(),
            });
            listeners.insert(id, listener);
        }
        let kind = match grpc {
            true => Kind::Grpc,
            false => Kind::Channels(Channels::default()),
        };
        Yard {
            directory: tempfile::tempdir().unwrap(),
            kind,
            members,
            running: BTreeMap::new(),
            listeners,
            snapshot_after_log_bytes: 1 << 30,
        }
    }

    pub(crate) fn path(&self, id: u64) -> PathBuf {
        self.directory.path().join(id.to_string())
    }

    pub(crate) fn options(&self, id: u64) -> Options {
        let mut options = Options::new(self.path(id), "yard", id, self.members.clone());
        options.read_timeout_ms = 1_000;
        options.snapshot_after_log_bytes = self.snapshot_after_log_bytes;
        options.retain_log_bytes = self.snapshot_after_log_bytes / 4;
        options.max_log_bytes = 1 << 32;
        options
    }

    pub(crate) async fn start(&mut self, id: u64) {
        let journal = Shared::default();
        let options = self.options(id);
        let (handle, server) = match &self.kind {
            Kind::Channels(network) => {
                let transport = ChannelTransport {
                    from: id,
                    network: network.clone(),
                    reports: None,
                    queues: BTreeMap::new(),
                };
                let handle = Replication::start(options, journal.clone(), transport).unwrap();
                let mut wires = network.0.lock().unwrap();
                wires.doors.insert(id, handle.inbound());
                (handle, None)
            }
            Kind::Grpc => {
                let runtime = tokio::runtime::Handle::current();
                let transport = GrpcTransport::new(&options, runtime, |member: &Member| {
                    let uri = format!("http://{}", member.address);
                    let endpoint = Endpoint::from_shared(uri).map_err(|e| e.to_string())?;
                    Ok(endpoint.connect_lazy())
                });
                let handle =
                    Replication::start(options.clone(), journal.clone(), transport).unwrap();
                let listener = match self.listeners.remove(&id) {
                    Some(listener) => listener,
                    None => rebind(&self.members[id as usize - 1].address).await,
                };
                let service = PeerServer::service(&options, handle.inbound());
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.spawn(async move {
                    let listener = TcpListener::from_std(listener).unwrap();
                    Server::builder()
                        .add_service(service)
                        .serve_with_incoming(TcpListenerStream::new(listener))
                        .await
                        .unwrap();
                });
                (handle, Some(runtime))
            }
        };
        let running = Running {
            handle,
            journal,
            server,
        };
        self.running.insert(id, running);
    }

    pub(crate) async fn start_all(grpc: bool) -> Self {
        let mut yard = Yard::new(grpc);
        for id in 1..=3 {
            yard.start(id).await;
        }
        yard
    }

    pub(crate) async fn stop(&mut self, id: u64) {
        let mut running = self.running.remove(&id).unwrap();
        if let Kind::Channels(network) = &self.kind {
            network.0.lock().unwrap().doors.remove(&id);
        }
        if let Some(server) = running.server.take() {
            server.shutdown_background();
        }
        running.handle.clone().stop().await;
    }

    pub(crate) fn handle(&self, id: u64) -> Handle<usize> {
        self.running[&id].handle.clone()
    }

    pub(crate) fn leader_now(&self) -> Option<u64> {
        self.running
            .iter()
            .filter(|(_, running)| running.handle.status().borrow().ready)
            .max_by_key(|(_, running)| running.handle.status().borrow().term)
            .map(|(id, _)| *id)
    }

    pub(crate) async fn leader(&self) -> u64 {
        until("a leader", || self.leader_now()).await
    }

    /// Waits until everybody has applied the same, and that is `expected` but for repeats: on a busy machine a
    /// command may be retried after a change of leader.
    pub(crate) async fn all_have(&self, expected: &[String]) {
        until("everybody has everything", || {
            let journals: Vec<Vec<String>> = self
                .running
                .values()
                .map(|running| running.journal.texts())
                .collect();
            let same = journals.len() == 3 && journals.iter().all(|one| *one == journals[0]);
            let mut seen = BTreeSet::new();
            let first = journals[0].iter().filter(|command| seen.insert(*command));
            (same && first.eq(expected)).then_some(())
        })
        .await;
    }

    /// Proposes until it is applied, as a client with a request id would.
    pub(crate) async fn insist(&self, command: &str) -> usize {
        let begun = Instant::now();
        loop {
            let leader = self.leader().await;
            match self.handle(leader).propose(command.into()).await {
                Ok(applied) => return applied.outcome,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
            }
        }
    }
}

pub(crate) async fn rebind(address: &str) -> std::net::TcpListener {
    until("the port is free again", || {
        let listener = std::net::TcpListener::bind(address).ok()?;
        listener.set_nonblocking(true).ok()?;
        Some(listener)
    })
    .await
}

pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "not in time: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
