//! How messages reach peers: a narrow trait, and its form over gRPC.
//!
//! A transport may lose, delay and repeat messages, but must not invent or change them. It never makes the replication thread
//! wait: what does not fit into its bounded queues is dropped and reported.

mod grpc;
mod server;

use std::sync::Weak;

use bytes::Bytes;

pub use grpc::{Dial, GrpcTransport};
pub use server::{CallerMember, PeerServer};

use crate::inbox::ReportSink;
use crate::store::SnapshotSource;

/// How messages reach peers.
pub trait Transport: Send + 'static {
    /// Called once, before anything is sent.
    fn start(&mut self, reports: Reports);

    /// Sends messages to a member, in order. Must not block; messages that cannot be sent are dropped, and the member
    /// reported with [`Reports::unreachable`].
    fn send(&self, to: u64, messages: Vec<Bytes>);

    /// Sends a snapshot with its announcement. Must not block; its end must be reported with [`Reports::snapshot`], else
    /// that member gets nothing any more.
    fn send_snapshot(&self, to: u64, message: Bytes, source: SnapshotSource);
}

/// Where a transport reports to. It does not keep the member alive.
#[derive(Clone)]
pub struct Reports(pub(crate) Weak<dyn ReportSink>);

impl Reports {
    /// Messages to this member were lost.
    pub fn unreachable(&self, member: u64) {
        if let Some(sink) = self.0.upgrade() {
            sink.unreachable(member);
        }
    }

    /// A snapshot to this member has arrived, or has not.
    pub fn snapshot(&self, member: u64, arrived: bool) {
        if let Some(sink) = self.0.upgrade() {
            sink.snapshot(member, arrived);
        }
    }
}

impl std::fmt::Debug for Reports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reports").finish_non_exhaustive()
    }
}
