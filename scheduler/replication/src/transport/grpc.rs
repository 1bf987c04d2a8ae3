//! The transport over gRPC: one long-lived stream and one bounded queue per peer.
//!
//! A task per peer keeps its stream open, with a growing pause between attempts. While a peer is away its messages are dropped
//! and it is reported; raft-rs sends anew what is still needed. Snapshots go by a call of their own, so that they never stand
//! in the way of heartbeats, and are read from the store only as fast as the peer takes them.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle as Runtime;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use trainyard_proto::v1::peer_service_client::PeerServiceClient;
use trainyard_proto::v1::{RaftMessages, SnapshotChunk, SnapshotHeader};

use super::{Reports, Transport};
use crate::options::{Limits, Member, Options};
use crate::store::SnapshotSource;

/// Messages are gathered up to this size; a larger one goes alone.
const BATCH_BYTES: usize = 1024 * 1024;
/// Turns of the replication thread that may wait for one peer.
const QUEUED_TURNS: usize = 4096;
/// Size of a snapshot's pieces on the wire.
const WIRE_CHUNK_BYTES: usize = 256 * 1024;
/// Pieces read ahead of the peer.
const CHUNKS_AHEAD: usize = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Makes a new channel to a member: TLS, timeouts and keep-alive are the caller's choice. Called within the runtime for every
/// new stream and every snapshot, so it should be lazy (`Endpoint::connect_lazy`) and not shared with other traffic, which
/// could delay a heartbeat. Set a keep-alive, so that a dead host is noticed.
pub type Dial = dyn Fn(&Member) -> Result<Channel, String> + Send + Sync;

/// The transport over gRPC: see the module. Dropping it ends its tasks.
pub struct GrpcTransport {
    shared: Arc<Shared>,
    peers: BTreeMap<u64, Peer>,
    limits: Limits,
    runtime: Runtime,
}

struct Shared {
    cluster_id: String,
    member_id: u64,
    members: Vec<Member>,
    dial: Box<Dial>,
}

struct Peer {
    queue: mpsc::Sender<Vec<Bytes>>,
    bytes: Arc<AtomicUsize>,
    task: AbortHandle,
    snapshot: Mutex<Option<AbortHandle>>,
    reports: Reports,
}

impl GrpcTransport {
    /// A transport to the other members of `options`; its tasks run on `runtime`.
    pub fn new(
        options: &Options,
        runtime: Runtime,
        dial: impl Fn(&Member) -> Result<Channel, String> + Send + Sync + 'static,
    ) -> Self {
        GrpcTransport {
            shared: Arc::new(Shared {
                cluster_id: options.cluster_id.clone(),
                member_id: options.member_id,
                members: options.members.clone(),
                dial: Box::new(dial),
            }),
            peers: BTreeMap::new(),
            limits: options.limits.clone(),
            runtime,
        }
    }
}

impl Transport for GrpcTransport {
    fn start(&mut self, reports: Reports) {
        for member in &self.shared.members {
            if member.id == self.shared.member_id {
                continue;
            }
            let (queue, receiver) = mpsc::channel(QUEUED_TURNS);
            let bytes = Arc::new(AtomicUsize::new(0));
            let messages = Messages {
                shared: self.shared.clone(),
                to: member.id,
                source: Arc::new(Mutex::new(Source {
                    receiver,
                    waiting: VecDeque::new(),
                })),
                bytes: bytes.clone(),
            };
            let keep_open = keep_open(member.clone(), messages, reports.clone());
            let task = self.runtime.spawn(keep_open).abort_handle();
            let peer = Peer {
                queue,
                bytes,
                task,
                snapshot: Mutex::new(None),
                reports: reports.clone(),
            };
            self.peers.insert(member.id, peer);
        }
    }

    fn send(&self, to: u64, messages: Vec<Bytes>) {
        let Some(peer) = self.peers.get(&to) else {
            return;
        };
        let bytes: usize = messages.iter().map(Bytes::len).sum();
        let queued = peer.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = queued == 0 || queued + bytes <= self.limits.max_peer_queue_bytes;
        if !fits || peer.queue.try_send(messages).is_err() {
            peer.bytes.fetch_sub(bytes, Ordering::Relaxed);
            peer.reports.unreachable(to);
        }
    }

    fn send_snapshot(&self, to: u64, message: Bytes, source: SnapshotSource) {
        let member = self.shared.members.iter().find(|member| member.id == to);
        let (Some(peer), Some(member)) = (self.peers.get(&to), member) else {
            return;
        };
        let shared = self.shared.clone();
        let (member, reports) = (member.clone(), peer.reports.clone());
        let task = self.runtime.spawn(async move {
            let (index, bytes) = (source.position().index, source.total_bytes());
            tracing::info!(member = to, index, bytes, "sending a snapshot");
            let sent = send_snapshot(&shared, &member, message, source).await;
            if let Err(error) = &sent {
                tracing::warn!(member = to, index, %error, "the snapshot did not arrive");
            }
            reports.snapshot(to, sent.is_ok());
        });
        let mut running = peer.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        // raft-rs sends another one only after the last was reported, or in another term; the last one wins.
        if let Some(before) = running.replace(task.abort_handle()) {
            before.abort();
        }
    }
}

impl Drop for GrpcTransport {
    fn drop(&mut self) {
        for peer in self.peers.values() {
            peer.task.abort();
            let running = peer.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(snapshot) = running.as_ref() {
                snapshot.abort();
            }
        }
    }
}

impl std::fmt::Debug for GrpcTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcTransport").finish_non_exhaustive()
    }
}

/// Keeps a peer's stream open for ever.
async fn keep_open(member: Member, messages: Messages, reports: Reports) {
    let mut pause = FIRST_PAUSE;
    loop {
        let begun = tokio::time::Instant::now();
        let error = match exchange(&member, &messages).await {
            // The queue's other end is gone, and with it the member.
            Ok(()) if messages.closed() => return,
            Ok(()) => "the peer ended the stream".to_owned(),
            Err(error) => error,
        };
        if begun.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        tracing::debug!(member = member.id, address = %member.address, error, "no stream to a member");
        messages.discard();
        reports.unreachable(member.id);
        // Spread, so that members that lost each other do not meet in step.
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One stream, on a connection of its own: whatever was wrong with the last one is gone with it.
async fn exchange(member: &Member, messages: &Messages) -> Result<(), String> {
    let channel = (messages.shared.dial)(member)?;
    PeerServiceClient::new(channel)
        .exchange(messages.clone())
        .await
        .map(drop)
        .map_err(|status| describe(&status))
}

/// The message of a status with what caused it.
fn describe(status: &tonic::Status) -> String {
    let mut text = format!("{}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// The stream of batches to one peer. Clones share the queue: one that is dropped with its connection loses nothing that is
/// still queued.
#[derive(Clone)]
struct Messages {
    shared: Arc<Shared>,
    to: u64,
    source: Arc<Mutex<Source>>,
    bytes: Arc<AtomicUsize>,
}

struct Source {
    receiver: mpsc::Receiver<Vec<Bytes>>,
    waiting: VecDeque<Bytes>,
}

impl Messages {
    fn lock(&self) -> std::sync::MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn closed(&self) -> bool {
        let source = self.lock();
        source.receiver.is_closed() && source.receiver.is_empty()
    }

    /// Drops what waits: it is old by the time the peer is back.
    fn discard(&self) {
        let mut source = self.lock();
        let mut dropped: usize = source.waiting.drain(..).map(|message| message.len()).sum();
        while let Ok(turn) = source.receiver.try_recv() {
            dropped += turn.iter().map(Bytes::len).sum::<usize>();
        }
        self.bytes.fetch_sub(dropped, Ordering::Relaxed);
    }
}

impl Stream for Messages {
    type Item = RaftMessages;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<RaftMessages>> {
        let mut guard = self.lock();
        let source = &mut *guard;
        if source.waiting.is_empty() {
            match source.receiver.poll_recv(context) {
                Poll::Ready(Some(turn)) => source.waiting.extend(turn),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
        let mut messages = Vec::new();
        let mut bytes = 0;
        loop {
            let Some(message) = source.waiting.pop_front() else {
                match source.receiver.try_recv() {
                    Ok(turn) => source.waiting.extend(turn),
                    Err(_) => break,
                }
                continue;
            };
            if bytes > 0 && bytes + message.len() > BATCH_BYTES {
                source.waiting.push_front(message);
                break;
            }
            bytes += message.len();
            messages.push(message);
        }
        drop(guard);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Poll::Ready(Some(RaftMessages {
            cluster_id: self.shared.cluster_id.clone(),
            from: self.shared.member_id,
            to: self.to,
            messages,
        }))
    }
}

async fn send_snapshot(
    shared: &Shared,
    member: &Member,
    message: Bytes,
    source: SnapshotSource,
) -> Result<(), String> {
    let total = source.total_bytes();
    let header = SnapshotHeader {
        cluster_id: shared.cluster_id.clone(),
        from: shared.member_id,
        to: member.id,
        message: message.to_vec(),
        total_bytes: total,
        crc32: source.crc32(),
    };
    let channel = (shared.dial)(member)?;
    let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let reader = tokio::task::spawn_blocking(move || read_chunks(header, source, &chunks));
    // A minute, and a second for each MiB: slower than any link worth having.
    let deadline = Duration::from_secs(60 + total / (1024 * 1024));
    let mut client = PeerServiceClient::new(channel);
    let call = client.install_snapshot(ReceiverStream::new(receiver));
    let called = match tokio::time::timeout(deadline, call).await {
        Ok(called) => called.map(drop).map_err(|status| describe(&status)),
        Err(_) => Err(format!("not taken within {} s", deadline.as_secs())),
    };
    match reader.await {
        Ok(Err(error)) => Err(error),
        Ok(Ok(())) | Err(_) => called,
    }
}

/// Reads a snapshot from the store in pieces, as fast as they are taken. Whoever hangs up ends it.
fn read_chunks(
    header: SnapshotHeader,
    mut source: SnapshotSource,
    chunks: &mpsc::Sender<SnapshotChunk>,
) -> Result<(), String> {
    let mut header = Some(header);
    let mut offset = 0;
    loop {
        let mut data = BytesMut::with_capacity(WIRE_CHUNK_BYTES + 32 * 1024);
        let mut last = false;
        while data.len() < WIRE_CHUNK_BYTES && !last {
            match source.next_chunk().map_err(|error| error.to_string())? {
                Some(piece) => data.extend_from_slice(&piece),
                None => last = true,
            }
        }
        let length = data.len() as u64;
        let chunk = SnapshotChunk {
            header: header.take(),
            offset,
            crc32: crc32fast::hash(&data),
            data: data.freeze(),
        };
        offset += length;
        if chunks.blocking_send(chunk).is_err() || last {
            return Ok(());
        }
    }
}
