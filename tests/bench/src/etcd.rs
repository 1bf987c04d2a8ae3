//! etcd as a peer: the same load in the same run on the same disk, so that a ratio means something on any machine.
//!
//! It runs as its package has it, without TLS, which favours it. Only the three calls that are needed are spelled out.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Pid;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::daemon::{Daemon, end_all, wait_until};
use crate::error::{BenchError, Context, Result};
use crate::place::{RunDir, free_addresses};

const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Patience of a client that nothing hurries.
pub(crate) const CALM: Duration = Duration::from_secs(10);
/// Before the next member is tried.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Tries of one put before it has failed for good.
const MAX_TRIES: u32 = 300;

/// Bytes `key` set to `value`.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Nothing in it is read.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// How many keys lie in a range.
#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
    #[prost(bool, tag = "9")]
    count_only: bool,
}

/// See the request.
#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(int64, tag = "4")]
    count: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
    #[prost(uint64, tag = "5")]
    raft_index: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

/// A running etcd. Dropping it ends it and removes its files.
pub(crate) struct Etcd {
    members: Vec<Daemon>,
    /// `HOST:PORT` of each of `members`.
    addresses: Vec<String>,
    _run_dir: RunDir,
}

/// A client with a connection of its own to each member that it has used.
#[derive(Clone)]
pub(crate) struct EtcdClient {
    channels: Vec<Channel>,
    current: usize,
    patience: Duration,
}

impl Etcd {
    /// Starts `count` members and waits until they have a leader. Call it from the main thread.
    pub(crate) async fn start(run_dir: RunDir, count: u8) -> Result<Self> {
        let program = find_program()?;
        let mut addresses = free_addresses(2 * usize::from(count))?;
        let peers = addresses.split_off(usize::from(count));
        let numbered = peers.iter().enumerate();
        let cluster: Vec<String> = numbered
            .map(|(number, peer)| format!("m{number}=http://{peer}"))
            .collect();
        let members = addresses.iter().zip(&peers).enumerate();
        let mut etcd = Self {
            members: members
                .map(|(number, (address, peer))| {
                    let root = run_dir.path();
                    Daemon::new(
                        format!("etcd {number}"),
                        program.clone(),
                        arguments(root, number, address, peer, &cluster.join(",")),
                        root.join(format!("etcd-{number}.log")),
                    )
                })
                .collect(),
            addresses,
            _run_dir: run_dir,
        };
        for member in &mut etcd.members {
            member.start()?;
        }
        etcd.wait_until_whole().await?;
        Ok(etcd)
    }

    /// The members, in order.
    pub(crate) fn members(&mut self) -> &mut [Daemon] {
        &mut self.members
    }

    /// The pids of the members, in order.
    pub(crate) fn member_pids(&self) -> Result<Vec<Pid>> {
        self.members.iter().map(Daemon::pid).collect()
    }

    /// A client that turns to the member with this number first, and goes on with the next when it has no answer after
    /// `patience`.
    pub(crate) fn client(&self, first: usize, patience: Duration) -> Result<EtcdClient> {
        let channels = self.addresses.iter().map(|address| channel(address));
        Ok(EtcdClient {
            channels: channels.collect::<Result<_>>()?,
            current: first % self.addresses.len(),
            patience,
        })
    }

    /// Index of the member that leads.
    pub(crate) async fn leader(&self) -> Result<usize> {
        let states = self.states().await?;
        let leads = |state: &StatusResponse| {
            let own = state.header.as_ref().map(|header| header.member_id);
            own == Some(state.leader)
        };
        let position = states.iter().position(leads);
        position.ok_or_else(|| BenchError::new("no member of etcd leads"))
    }

    /// Waits until all members follow one leader and none is far behind.
    pub(crate) async fn wait_until_whole(&mut self) -> Result<()> {
        let client = self.client(0, CALM)?;
        wait_until(
            "etcd is whole",
            START_TIMEOUT,
            &mut self.members,
            async || {
                let states = client.states().await;
                Ok(states.is_ok_and(|states| is_whole(&states)))
            },
        )
        .await
    }

    async fn states(&self) -> Result<Vec<StatusResponse>> {
        self.client(0, CALM)?
            .states()
            .await
            .cannot("ask etcd for its state")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        end_all(&mut self.members);
    }
}

fn is_whole(states: &[StatusResponse]) -> bool {
    let leader = states.first().map_or(0, |state| state.leader);
    let indexes = states.iter().map(|state| state.raft_index);
    let near = indexes.clone().max().unwrap_or(0) - indexes.min().unwrap_or(0) < 500;
    leader != 0 && near && states.iter().all(|state| state.leader == leader)
}

impl EtcdClient {
    /// Sets a key, whatever it takes.
    pub(crate) async fn put(&mut self, key: String, value: Vec<u8>) -> Result<()> {
        let request = PutRequest {
            key: key.into_bytes(),
            value,
        };
        let mut tries = 0;
        loop {
            let channel = self.channels[self.current].clone();
            let call = unary(channel, "/etcdserverpb.KV/Put", request.clone());
            let failure = match tokio::time::timeout(self.patience, call).await {
                Ok(Ok(PutResponse {})) => return Ok(()),
                Ok(Err(status)) => status.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            tries += 1;
            if tries >= MAX_TRIES {
                return Err(BenchError::new(format!("etcd takes no put: {failure}")));
            }
            self.current = (self.current + 1) % self.channels.len();
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// How many keys there are, linearizable.
    pub(crate) async fn count(&self) -> Result<u64> {
        let request = RangeRequest {
            key: vec![0],
            range_end: vec![0],
            count_only: true,
        };
        let channel = self.channels[self.current].clone();
        let answer: RangeResponse = unary(channel, "/etcdserverpb.KV/Range", request)
            .await
            .cannot("count the keys of etcd")?;
        answer.count.try_into().cannot("count the keys of etcd")
    }

    async fn states(&self) -> std::result::Result<Vec<StatusResponse>, Status> {
        let mut states = Vec::new();
        for channel in &self.channels {
            let path = "/etcdserverpb.Maintenance/Status";
            states.push(unary(channel.clone(), path, StatusRequest {}).await?);
        }
        Ok(states)
    }
}

async fn unary<Q, A>(
    channel: Channel,
    path: &'static str,
    request: Q,
) -> std::result::Result<A, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut client = tonic::client::Grpc::new(channel);
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static(path);
    let codec = ProstCodec::<Q, A>::default();
    let response = client.unary(Request::new(request), path, codec).await?;
    Ok(response.into_inner())
}

fn channel(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .cannot(format_args!("use the address {address}"))?;
    Ok(endpoint.tcp_nodelay(true).connect_lazy())
}

fn find_program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("etcd"))
        .find(|program| program.is_file())
        .ok_or_else(|| {
            BenchError::new(
                "etcd is not on the PATH: install Debian's etcd-server, or leave --beside out",
            )
        })
}

fn arguments(
    root: &Path,
    number: usize,
    address: &str,
    peer: &str,
    cluster: &str,
) -> Vec<OsString> {
    let client_url = format!("http://{address}");
    let peer_url = format!("http://{peer}");
    let mut arguments: Vec<OsString> = vec![
        "--data-dir".into(),
        root.join(format!("etcd-{number}")).into(),
    ];
    for (flag, value) in [
        ("--name", format!("m{number}").as_str()),
        ("--listen-client-urls", &client_url),
        ("--advertise-client-urls", &client_url),
        ("--listen-peer-urls", &peer_url),
        ("--initial-advertise-peer-urls", &peer_url),
        ("--initial-cluster", cluster),
        ("--initial-cluster-state", "new"),
        ("--logger", "zap"),
        ("--log-level", "error"),
    ] {
        arguments.extend([flag.into(), value.into()]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_must_follow_one_leader_closely() {
        let state = |leader, raft_index| StatusResponse {
            leader,
            raft_index,
            ..Default::default()
        };
        assert!(is_whole(&[state(7, 1000), state(7, 900)]));
        assert!(!is_whole(&[state(7, 1000), state(8, 1000)]));
        assert!(!is_whole(&[state(7, 1000), state(7, 10)]));
        assert!(!is_whole(&[state(0, 1), state(0, 1)]));
    }
}
