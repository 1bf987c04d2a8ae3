//! Clients that write durably, to Trainyard or to a peer, for the benchmarks that compare the two.

use std::future::Future;

use trainyard_proto::v1::JobSpec;
use trainyard_shared::client::Client;

use crate::calls;
use crate::daemon::Daemon;
use crate::error::{BenchError, Result};
use crate::etcd::{Etcd, EtcdClient};
use crate::rig::Rig;

/// One client.
pub(crate) trait Writer: Send + 'static {
    /// Writes one thing under a name that was never used; once it returns, the thing must not be lost. Returns the id that
    /// the service gave it, or nothing where it gives none. Repeats by itself what may be repeated.
    fn write(&mut self, name: String) -> impl Future<Output = Result<String>> + Send;
}

/// Creates jobs.
pub(crate) struct JobWriter {
    pub(crate) client: Client,
    pub(crate) spec: JobSpec,
}

impl Writer for JobWriter {
    async fn write(&mut self, name: String) -> Result<String> {
        match calls::create_job(&self.client, name, &self.spec).await {
            Ok(job) => Ok(job.uid),
            Err(status) => Err(BenchError::new(format!(
                "cannot create a job: {:?}: {}",
                status.code(),
                status.message()
            ))),
        }
    }
}

/// Puts keys into etcd.
pub(crate) struct KeyWriter {
    pub(crate) client: EtcdClient,
    pub(crate) value: Vec<u8>,
}

impl Writer for KeyWriter {
    async fn write(&mut self, name: String) -> Result<String> {
        self.client.put(name, self.value.clone()).await?;
        Ok(String::new())
    }
}

/// A replicated service whose members can be killed.
pub(crate) trait Group {
    /// The members, in order.
    fn members(&mut self) -> &mut [Daemon];
    /// Index of the member that leads.
    async fn leader(&self) -> Result<usize>;
    /// Waits until every member follows the leader closely.
    async fn wait_until_whole(&mut self) -> Result<()>;
}

impl Group for Rig {
    fn members(&mut self) -> &mut [Daemon] {
        Rig::members(self)
    }

    async fn leader(&self) -> Result<usize> {
        Rig::leader(self).await
    }

    async fn wait_until_whole(&mut self) -> Result<()> {
        Rig::wait_until_whole(self).await
    }
}

impl Group for Etcd {
    fn members(&mut self) -> &mut [Daemon] {
        Etcd::members(self)
    }

    async fn leader(&self) -> Result<usize> {
        Etcd::leader(self).await
    }

    async fn wait_until_whole(&mut self) -> Result<()> {
        Etcd::wait_until_whole(self).await
    }
}
