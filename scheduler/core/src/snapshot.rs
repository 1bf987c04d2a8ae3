//! The state as bytes and back. Equal states give equal bytes; indexes are not part of them.
//!
//! Jobs are written and read one by one: there may be so many that all of them as messages would not fit into memory.

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use trainyard_proto::store::v1::Snapshot;
use trainyard_proto::v1::Job;

use crate::state::State;
use crate::usage::Ledger;

/// Format that this version writes and the newest that it reads.
const FORMAT: u32 = 1;

/// Field of `Snapshot` that holds the jobs.
const JOBS: u32 = 7;

/// A snapshot that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Not a snapshot.
    #[error("the snapshot is damaged: {0}")]
    Damaged(String),
    /// Written by a newer version.
    #[error(
        "the snapshot has format {0}, this version reads up to {FORMAT}; run the version that wrote it"
    )]
    Newer(u32),
}

impl State {
    /// The whole state.
    pub fn to_snapshot(&self) -> Vec<u8> {
        let mut bytes = Snapshot {
            format: FORMAT,
            index: self.index,
            workspaces: self.workspaces.values().cloned().collect(),
            clusters: self.clusters.values().cloned().collect(),
            file_servers: self.file_servers.values().cloned().collect(),
            experiments: self.experiments.values().cloned().collect(),
            jobs: Vec::new(),
            nodes: self.nodes.values().cloned().collect(),
            requests: self.requests.records(),
            quotas: self.quotas.values().cloned().collect(),
            node_classes: self.node_classes.values().cloned().collect(),
            usage: self.usage.records(),
            usage_complete_since: self.usage.complete_since(),
        }
        .encode_to_vec();
        self.jobs.encode_all(JOBS, &mut bytes);
        bytes
    }

    /// The state that [`State::to_snapshot`] wrote.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let (head, jobs) = split(bytes)?;
        let snapshot =
            Snapshot::decode(head.as_slice()).map_err(|e| SnapshotError::Damaged(e.to_string()))?;
        if snapshot.format == 0 {
            return Err(SnapshotError::Damaged("it carries no format".to_owned()));
        }
        if snapshot.format > FORMAT {
            return Err(SnapshotError::Newer(snapshot.format));
        }
        let mut state = Self {
            index: snapshot.index,
            ..Self::default()
        };
        state.workspaces = snapshot
            .workspaces
            .into_iter()
            .map(|w| (w.name.clone(), w))
            .collect();
        state.clusters = snapshot
            .clusters
            .into_iter()
            .map(|c| (c.name.clone(), c))
            .collect();
        state.file_servers = snapshot
            .file_servers
            .into_iter()
            .map(|f| (f.name.clone(), f))
            .collect();
        state.experiments = snapshot
            .experiments
            .into_iter()
            .map(|e| (e.name.clone(), e))
            .collect();
        for encoded in jobs {
            let job = Job::decode(encoded).map_err(|e| SnapshotError::Damaged(e.to_string()))?;
            let name = job.name.clone();
            state.jobs.insert(job);
            state.jobs.seal(&name);
        }
        state.nodes = snapshot
            .nodes
            .into_iter()
            .map(|n| (n.name.clone(), n))
            .collect();
        state.quotas = snapshot
            .quotas
            .into_iter()
            .map(|q| (q.name.clone(), q))
            .collect();
        state.node_classes = snapshot
            .node_classes
            .into_iter()
            .map(|c| (c.name.clone(), c))
            .collect();
        for record in &snapshot.requests {
            state
                .requests
                .remember(&record.request_id, &record.name, &record.uid);
        }
        state.usage = Ledger::from_records(snapshot.usage, snapshot.usage_complete_since, |name| {
            state.jobs.key(name)
        });
        state.rebuild_indexes();
        Ok(state)
    }
}

/// Everything but the jobs, and each job's bytes.
fn split(bytes: &[u8]) -> Result<(Vec<u8>, Vec<&[u8]>), SnapshotError> {
    let damaged = |e: prost::DecodeError| SnapshotError::Damaged(e.to_string());
    let (mut head, mut jobs) = (Vec::new(), Vec::new());
    let mut rest = bytes;
    while !rest.is_empty() {
        let start = rest;
        let (tag, wire) = decode_key(&mut rest).map_err(damaged)?;
        if tag == JOBS && wire == WireType::LengthDelimited {
            let length = decode_varint(&mut rest).map_err(damaged)?;
            let (job, after) = usize::try_from(length)
                .ok()
                .and_then(|length| rest.split_at_checked(length))
                .ok_or_else(|| SnapshotError::Damaged("a job is cut off".to_owned()))?;
            jobs.push(job);
            rest = after;
        } else {
            skip_field(wire, tag, &mut rest, DecodeContext::default()).map_err(damaged)?;
            head.extend_from_slice(&start[..start.len() - rest.len()]);
        }
    }
    Ok((head, jobs))
}
