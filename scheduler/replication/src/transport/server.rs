//! The server side of the peer protocol, to be mounted by the daemon.
//!
//! It checks that a call is meant for this cluster and this member, puts snapshots together, and hands everything to the
//! replication thread, whose pace it passes on to the caller. That the caller is a member at all, the daemon checks by its
//! certificate before a call gets here; which member, this server checks if the daemon says so with [`CallerMember`].

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};
use trainyard_proto::v1::peer_service_server::{PeerService, PeerServiceServer};
use trainyard_proto::v1::{
    ExchangeReply, InstallSnapshotReply, RaftMessages, SnapshotChunk, SnapshotHeader,
};

use crate::error::InboundError;
use crate::handle::Inbound;
use crate::options::Options;

/// Largest piece of a snapshot that is taken.
const MAX_CHUNK_BYTES: usize = 1024 * 1024;
/// Room for what surrounds the largest message.
const ENVELOPE_BYTES: usize = 4 * 1024 * 1024;

/// Which member calls, from its certificate. The daemon puts it into a request's extensions; messages in another member's
/// name are refused then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallerMember(pub u64);

/// The server: see the module.
#[derive(Debug)]
pub struct PeerServer {
    cluster_id: String,
    member_id: u64,
    inbound: Inbound,
    /// One snapshot at a time may take memory here.
    snapshots: Arc<Semaphore>,
}

impl PeerServer {
    /// The service for this member, to be added to a tonic server.
    pub fn service(options: &Options, inbound: Inbound) -> PeerServiceServer<PeerServer> {
        let limits = &options.limits;
        let largest = limits
            .max_command_bytes
            .max(limits.max_message_bytes as usize);
        PeerServiceServer::new(PeerServer {
            cluster_id: options.cluster_id.clone(),
            member_id: options.member_id,
            inbound,
            snapshots: Arc::new(Semaphore::new(1)),
        })
        .max_decoding_message_size(2 * largest + ENVELOPE_BYTES)
    }

    fn check(
        &self,
        caller: Option<CallerMember>,
        cluster_id: &str,
        from: u64,
        to: u64,
    ) -> Result<(), Status> {
        let wrong = |what: String| Err(Status::failed_precondition(what));
        if cluster_id != self.cluster_id {
            return wrong(format!(
                "this scheduler belongs to cluster {}, the caller to {cluster_id}: check the members' addresses",
                self.cluster_id
            ));
        }
        if to != self.member_id {
            return wrong(format!(
                "this is member {}, the caller means {to}: check the members' addresses",
                self.member_id
            ));
        }
        match caller {
            Some(CallerMember(id)) if id != from => Err(Status::permission_denied(format!(
                "the certificate is member {id}'s, the message says {from}"
            ))),
            _ => Ok(()),
        }
    }

    async fn receive_snapshot(
        &self,
        header: &SnapshotHeader,
        first: SnapshotChunk,
        mut stream: Streaming<SnapshotChunk>,
    ) -> Result<Bytes, Status> {
        let broken = |what: &str| Status::data_loss(format!("the snapshot is broken: {what}"));
        self.inbound
            .check_snapshot_size(header.total_bytes)
            .map_err(to_status)?;
        // What is announced is only a hint until it has arrived.
        const FIRST_BYTES: u64 = 64 * 1024 * 1024;
        let mut data = BytesMut::with_capacity(header.total_bytes.min(FIRST_BYTES) as usize);
        let mut next = Some(first);
        while let Some(chunk) = next {
            if chunk.offset != data.len() as u64 || chunk.data.len() > MAX_CHUNK_BYTES {
                return Err(broken("a gap between its pieces"));
            }
            if crc32fast::hash(&chunk.data) != chunk.crc32 {
                return Err(broken("a piece's checksum does not match"));
            }
            if data.len() as u64 + chunk.data.len() as u64 > header.total_bytes {
                return Err(broken("it is longer than announced"));
            }
            data.extend_from_slice(&chunk.data);
            next = stream.message().await?;
        }
        if data.len() as u64 != header.total_bytes || crc32fast::hash(&data) != header.crc32 {
            return Err(broken("its length or checksum does not match"));
        }
        Ok(data.freeze())
    }
}

#[tonic::async_trait]
impl PeerService for PeerServer {
    async fn exchange(
        &self,
        request: Request<Streaming<RaftMessages>>,
    ) -> Result<Response<ExchangeReply>, Status> {
        let caller = request.extensions().get::<CallerMember>().copied();
        let mut stream = request.into_inner();
        let hung_up = self.inbound.hung_up();
        tokio::pin!(hung_up);
        loop {
            let batch = tokio::select! {
                batch = stream.message() => batch?,
                () = &mut hung_up => None,
            };
            let Some(batch) = batch else {
                return Ok(Response::new(ExchangeReply {}));
            };
            self.check(caller, &batch.cluster_id, batch.from, batch.to)?;
            self.inbound
                .messages(batch.from, batch.messages)
                .await
                .map_err(to_status)?;
        }
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<InstallSnapshotReply>, Status> {
        let caller = request.extensions().get::<CallerMember>().copied();
        let mut stream = request.into_inner();
        let Some(mut first) = stream.message().await? else {
            return Err(Status::invalid_argument("a snapshot without a first piece"));
        };
        let Some(header) = first.header.take() else {
            return Err(Status::invalid_argument("a snapshot without a header"));
        };
        self.check(caller, &header.cluster_id, header.from, header.to)?;
        let _turn = self
            .snapshots
            .try_acquire()
            .map_err(|_| Status::resource_exhausted("another snapshot is on its way here"))?;
        let data = tokio::select! {
            data = self.receive_snapshot(&header, first, stream) => data?,
            () = self.inbound.hung_up() => return Err(to_status(InboundError::Stopped)),
        };
        self.inbound
            .snapshot(header.from, header.message.into(), data)
            .await
            .map_err(to_status)?;
        Ok(Response::new(InstallSnapshotReply {}))
    }
}

fn to_status(error: InboundError) -> Status {
    let text = error.to_string();
    match error {
        InboundError::Stopped => Status::unavailable(text),
        InboundError::Malformed { .. } => Status::invalid_argument(text),
        InboundError::TooLarge { .. } => Status::failed_precondition(text),
    }
}
