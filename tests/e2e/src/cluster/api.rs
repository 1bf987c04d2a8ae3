//! The gRPC interface, for tests that need to know when exactly a call was answered.

use std::path::Path;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tonic::transport::Channel;
use tonic::{Response, Status};
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::{
    CreateJobRequest, CustomToolkitSettings, Job, JobSpec, ListJobsRequest, ResourceId,
};
use trainyard_shared::client::{Client, ConfigFile, new_request_id};

use super::jobs::{EXPERIMENT, WORKSPACE};
use crate::error::{Context, Result};

/// A client with its own runtime. Its sockets are on the network of the thread that makes it: make it after the cluster, on the
/// cluster's thread or on one that the cluster's thread started.
pub struct Api {
    client: Client,
    runtime: Runtime,
}

impl Api {
    /// With a client's configuration file. Each call is retried until `timeout` has passed.
    pub fn new(config: &Path, timeout: Duration) -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .cannot("start a runtime")?;
        let mut config = ConfigFile::load(config)
            .and_then(|file| file.client_config())
            .cannot("read the client's configuration")?;
        config.timeout = timeout;
        let client = {
            let _inside = runtime.enter();
            Client::new(config).cannot("make a client")?
        };
        Ok(Self { client, runtime })
    }

    /// Any call.
    pub fn call<T, F, Fut>(&self, call: F) -> std::result::Result<T, Status>
    where
        F: FnMut(Channel) -> Fut,
        Fut: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        self.runtime.block_on(self.client.unary(call))
    }

    /// Creates a job of the custom toolkit on one node of a cluster. It is queued for good when this returns.
    pub fn create_job(
        &self,
        name: &str,
        cluster: &str,
        command: &str,
    ) -> std::result::Result<Job, Status> {
        let spec = JobSpec {
            cluster: Some(ResourceId {
                id: cluster.to_owned(),
            }),
            node_count: 1,
            custom_toolkit_settings: Some(CustomToolkitSettings {
                command_line: command.to_owned(),
            }),
            std_out_err_path_prefix: "$AZ_BATCHAI_JOB_TEMP".to_owned(),
            ..JobSpec::default()
        };
        let request = CreateJobRequest {
            parent: parent(),
            job_id: name.to_owned(),
            job: Some(Job {
                spec: Some(spec),
                ..Job::default()
            }),
            request_id: new_request_id(),
            ..CreateJobRequest::default()
        };
        let call = self.client.unary(|channel| {
            let request = request.clone();
            async move { JobServiceClient::new(channel).create_job(request).await }
        });
        self.runtime.block_on(call)
    }

    /// The last segments of the names of all jobs.
    pub fn job_names(&self) -> std::result::Result<Vec<String>, Status> {
        let mut names = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListJobsRequest {
                parent: parent(),
                page_size: 1000,
                page_token: page_token.clone(),
                ..ListJobsRequest::default()
            };
            let call = self.client.unary(|channel| {
                let request = request.clone();
                async move { JobServiceClient::new(channel).list_jobs(request).await }
            });
            let page = self.runtime.block_on(call)?;
            let last = |job: &Job| job.name.rsplit('/').next().unwrap_or_default().to_owned();
            names.extend(page.jobs.iter().map(last));
            if page.next_page_token.is_empty() {
                return Ok(names);
            }
            page_token = page.next_page_token;
        }
    }
}

fn parent() -> String {
    format!("workspaces/{WORKSPACE}/experiments/{EXPERIMENT}")
}
