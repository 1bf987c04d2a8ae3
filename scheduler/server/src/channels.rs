//! Connections that this member opens: to the other members, to forward calls, and to agents, to read files.
//!
//! Every connection is mutual TLS and checks the role of the other side by its certificate. Channels connect when they
//! are first used and again after a loss. The number of cached connections to agents is bounded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use trainyard_shared::tls::{Identity, Server};

use crate::status;

/// Most cached connections to agents.
const MAX_AGENTS: usize = 512;
/// One stream of file bytes may be this far ahead of its reader.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// All streams of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// See the module.
pub struct Channels {
    identity: Arc<Identity>,
    members: Mutex<HashMap<u64, (String, Channel)>>,
    agents: Mutex<HashMap<String, (Channel, Instant)>>,
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channels").finish_non_exhaustive()
    }
}

impl Channels {
    /// No connection yet.
    pub fn new(identity: Arc<Identity>) -> Self {
        Self {
            identity,
            members: Mutex::default(),
            agents: Mutex::default(),
        }
    }

    /// The channel to a member.
    pub fn member(&self, id: u64, address: &str) -> Result<Channel, Status> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, channel)) = members.get(&id).filter(|(known, _)| known == address) {
            return Ok(channel.clone());
        }
        let channel = self.connect(address, Server::Member)?;
        members.insert(id, (address.to_owned(), channel.clone()));
        Ok(channel)
    }

    /// The channel to an agent. The least recently used one is dropped from the cache when that is full; streams on it
    /// go on.
    pub fn agent(&self, address: &str) -> Result<Channel, Status> {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((channel, used)) = agents.get_mut(address) {
            *used = Instant::now();
            return Ok(channel.clone());
        }
        if agents.len() >= MAX_AGENTS {
            let oldest = agents
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(address, _)| address.clone());
            if let Some(oldest) = oldest {
                agents.remove(&oldest);
            }
        }
        let channel = self.connect(address, Server::Node)?;
        agents.insert(address.to_owned(), (channel.clone(), Instant::now()));
        Ok(channel)
    }

    fn connect(&self, address: &str, role: Server) -> Result<Channel, Status> {
        let endpoint = endpoint(&self.identity, address, role).map_err(status::internal)?;
        Ok(endpoint
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect_lazy())
    }
}

/// A connection to another member for replication alone, so that no other traffic delays a heartbeat.
pub fn peer(identity: &Identity, address: &str) -> Result<Channel, String> {
    Ok(endpoint(identity, address, Server::Member)?.connect_lazy())
}

fn endpoint(identity: &Identity, address: &str, role: Server) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .and_then(|endpoint| endpoint.tls_config(identity.client_tls(role)))
        .map_err(|e| format!("cannot make a connection to {address}: {e}"))?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        // A host that is gone without a word is noticed within interval + timeout.
        .http2_keep_alive_interval(Duration::from_secs(3))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true))
}
