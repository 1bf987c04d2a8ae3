//! One kept connection per scheduler, and which scheduler to ask next.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use super::config::{ConfigError, check_address};
use super::retry::Failure;
use crate::tls::{Identity, Server};

/// Longest time to set up a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one connect may take before the next scheduler is tried beside it: a host that is switched off swallows
/// packets, and people should not wait two seconds for each of them.
const STAGGER: Duration = Duration::from_millis(250);
/// A scheduler that is cut off or hangs is noticed after interval + timeout, also under a silent stream.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 windows: enough for logs at 200 MB/s over a round trip of 10 ms.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// A connection to one scheduler.
#[derive(Debug)]
pub(super) struct Connection {
    /// The channel; clones share the connection.
    pub(super) channel: Channel,
    /// Address of the scheduler.
    pub(super) address: String,
    index: usize,
    serial: u64,
}

/// The schedulers.
#[derive(Debug)]
pub(super) struct Servers {
    addresses: Vec<String>,
    endpoints: Vec<Endpoint>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Which one to ask.
    preferred: usize,
    /// Kept connections, each with the serial number by which a late complaint about an old one is known.
    kept: Vec<Option<(u64, Channel)>>,
    next_serial: u64,
}

impl Servers {
    pub(super) fn new(addresses: &[String], identity: &Identity) -> Result<Self, ConfigError> {
        if addresses.is_empty() {
            return Err(ConfigError::NoServers);
        }
        let endpoints = addresses
            .iter()
            .map(|address| endpoint(address, identity))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            addresses: addresses.to_vec(),
            state: Mutex::new(State {
                // Clients spread over the members, which all forward to the leader.
                preferred: fastrand::usize(..addresses.len()),
                kept: vec![None; addresses.len()],
                next_serial: 0,
            }),
            endpoints,
        })
    }

    /// Addresses of all, for messages.
    pub(super) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// A connection to the scheduler to ask now. The lock is held while connecting, so that callers at the same time
    /// share one connection.
    pub(super) async fn get(&self) -> Result<Connection, Failure> {
        let mut state = self.state.lock().await;
        let preferred = state.preferred;
        if state.kept[preferred].is_none() {
            let (index, channel) = self.race(&state).await?;
            state.preferred = index;
            if state.kept[index].is_none() {
                state.next_serial += 1;
                state.kept[index] = Some((state.next_serial, channel));
            }
        }
        let index = state.preferred;
        match &state.kept[index] {
            Some((serial, channel)) => Ok(Connection {
                channel: channel.clone(),
                address: self.addresses[index].clone(),
                index,
                serial: *serial,
            }),
            None => Err(Failure::no_connection()),
        }
    }

    /// Connects to the preferred scheduler, and to the next ones when that takes long or fails; the first that
    /// answers wins. Fails when every one has failed.
    async fn race(&self, state: &State) -> Result<(usize, Channel), Failure> {
        let count = self.endpoints.len();
        let mut waiting = (0..count).map(|step| (state.preferred + step) % count);
        let mut attempts = JoinSet::new();
        let mut failures = Vec::new();
        loop {
            let mut more = false;
            if let Some(index) = waiting.next() {
                more = true;
                if let Some((_, channel)) = &state.kept[index] {
                    return Ok((index, channel.clone()));
                }
                let endpoint = self.endpoints[index].clone();
                attempts.spawn(async move { (index, connect(&endpoint).await) });
            }
            tokio::select! {
                Some(joined) = attempts.join_next() => match joined {
                    Ok((index, Ok(channel))) => return Ok((index, channel)),
                    Ok((index, Err(error))) => {
                        failures.push(Failure::of_connect(&self.addresses[index], &*error));
                    }
                    // The runtime is shutting down.
                    Err(_) => {}
                },
                () = tokio::time::sleep(STAGGER), if more => {}
                else => return Err(Failure::all(failures)),
            }
        }
    }

    /// Takes note of a failed call: a broken connection is dropped, and the next scheduler is asked from now on.
    pub(super) async fn report(&self, connection: &Connection, failure: &Failure) {
        if !failure.may_repeat() {
            return;
        }
        let mut state = self.state.lock().await;
        let index = connection.index;
        if failure.is_broken() {
            // Unless someone has replaced it in the meantime.
            if matches!(&state.kept[index], Some((serial, _)) if *serial == connection.serial) {
                state.kept[index] = None;
            }
        }
        if state.preferred == index {
            state.preferred = (index + 1) % self.endpoints.len();
        }
    }
}

fn endpoint(address: &str, identity: &Identity) -> Result<Endpoint, ConfigError> {
    check_address(address)?;
    let tls = |error: tonic::transport::Error| ConfigError::Tls {
        server: address.to_owned(),
        reason: super::retry::chain(&error),
    };
    Ok(Endpoint::from_shared(format!("https://{address}"))
        .map_err(tls)?
        .tls_config(identity.client_tls(Server::Member))
        .map_err(tls)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES))
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn connect(endpoint: &Endpoint) -> Result<Channel, BoxError> {
    // The endpoint's own limit covers TCP alone.
    match tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()).into()),
    }
}
