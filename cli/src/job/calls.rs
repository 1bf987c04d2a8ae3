//! Calls about many jobs at once. As [`crate::api`]: must never interpret answers.

use tonic::Status;
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::{CreateJobArrayRequest, CreateJobArrayResponse, Job, ListJobsRequest};
use trainyard_shared::client::MAX_MESSAGE_BYTES;

use crate::api::Api;

/// Jobs asked for with each page.
const PAGE_SIZE: u32 = 1000;

/// Which jobs, and in which order.
#[derive(Debug, Clone, Default)]
pub(super) struct Query {
    /// `workspaces/{w}/experiments/{e}`, where `-` stands for any.
    pub(super) parent: String,
    /// The schedulers' filter; empty: all.
    pub(super) filter: String,
    /// The schedulers' order; empty: by name.
    pub(super) order_by: String,
}

/// Jobs as of a revision.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) jobs: Vec<Job>,
    /// A watch from the revision after this one misses nothing.
    pub(super) revision: u64,
}

/// Reads the jobs of a query page by page.
pub(super) struct Pages<'a> {
    api: &'a Api,
    query: Query,
    page_token: String,
    is_done: bool,
    /// Of the first page, once it was read.
    revision: Option<u64>,
}

impl Pages<'_> {
    /// The next page; none after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Job>>, Status> {
        if self.is_done {
            return Ok(None);
        }
        let request = ListJobsRequest {
            parent: self.query.parent.clone(),
            page_size: PAGE_SIZE,
            page_token: std::mem::take(&mut self.page_token),
            filter: self.query.filter.clone(),
            order_by: self.query.order_by.clone(),
        };
        let page = self.api.list_jobs(request).await?;
        self.revision.get_or_insert(page.revision);
        self.page_token = page.next_page_token;
        self.is_done = self.page_token.is_empty();
        Ok(Some(page.jobs))
    }
}

impl Api {
    /// The jobs of a query, page by page.
    pub(super) fn job_pages(&self, query: &Query) -> Pages<'_> {
        Pages {
            api: self,
            query: query.clone(),
            page_token: String::new(),
            is_done: false,
            revision: None,
        }
    }

    /// All jobs of a query.
    pub(super) async fn query_jobs(&self, query: &Query) -> Result<Listing, Status> {
        let mut pages = self.job_pages(query);
        let mut jobs = Vec::new();
        while let Some(page) = pages.next().await? {
            jobs.extend(page);
        }
        Ok(Listing {
            jobs,
            revision: pages.revision.unwrap_or_default(),
        })
    }

    /// Calls `CreateJobArray`.
    pub(super) async fn create_job_array(
        &self,
        request: CreateJobArrayRequest,
    ) -> Result<CreateJobArrayResponse, Status> {
        self.client()
            .unary(|channel| {
                let request = request.clone();
                let mut stub =
                    JobServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
                async move { stub.create_job_array(request).await }
            })
            .await
    }
}
