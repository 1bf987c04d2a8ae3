//! `JobService`: jobs, why they wait, how they go on, and their files.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use trainyard_core::filter::Kind as FilterKind;
use trainyard_core::{JobsQuery, Reply};
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_proto::v1::job_service_server::JobService;
use trainyard_proto::v1::{
    CreateJobArrayRequest, CreateJobArrayResponse, CreateJobRequest, DeleteJobRequest,
    ExplainJobRequest, GetJobRequest, Job, JobExplanation, JobSpec, ListJobFilesRequest,
    ListJobFilesResponse, ListJobsRequest, ListJobsResponse, StreamLogsRequest,
    TerminateJobRequest, TerminateJobsRequest, TerminateJobsResponse, WatchJobRequest,
};
use trainyard_shared::names::{ExperimentName, JobName};
use trainyard_shared::validate;

use super::{check, check_request_id, child, name, required, resource, unexpected};
use crate::context::{Context, new_uid, wants_stale};
use crate::front::caller;
use crate::page::Listing;
use crate::{logs, status, watch};

/// Jobs that one command ends: the log must not be held up by one client.
const TERMINATE_BATCH: usize = 500;
/// Jobs that are looked up at a time: what has ended by then need not be passed over for each command.
const TERMINATE_LOOK: usize = 20 * TERMINATE_BATCH;

/// See the module.
#[derive(Debug, Clone)]
pub struct Jobs(pub Arc<Context>);

#[tonic::async_trait]
impl JobService for Jobs {
    type WatchJobStream = watch::job::JobStream;
    type StreamLogsStream = logs::LogStream;

    async fn create_job(
        &self,
        request: Request<CreateJobRequest>,
    ) -> Result<Response<Job>, Status> {
        let user = caller(&request);
        let request = request.into_inner();
        let parent: ExperimentName = name("parent", &request.parent)?;
        let name = child("job_id", JobName::new(&parent, &request.job_id))?;
        check_request_id(&request.request_id)?;
        let spec = required("job.spec", request.job.and_then(|job| job.spec))?;
        check(&name, &validate::job(&spec))?;
        if !request.validate_only {
            check(&name, &validate::launchable(&spec))?;
        }
        let command = Kind::CreateJob(store::CreateJob {
            job: Some(new_job(name.to_string(), spec, user)),
            request_id: request.request_id,
        });
        match self.0.create(command, request.validate_only).await? {
            Reply::Job(job) => Ok(Response::new(*job)),
            other => Err(unexpected(&other)),
        }
    }

    async fn create_job_array(
        &self,
        request: Request<CreateJobArrayRequest>,
    ) -> Result<Response<CreateJobArrayResponse>, Status> {
        let user = caller(&request);
        let request = request.into_inner();
        let parent: ExperimentName = name("parent", &request.parent)?;
        let name = child("job_id", JobName::new(&parent, &request.job_id))?;
        check_request_id(&request.request_id)?;
        let spec = required("job.spec", request.job.and_then(|job| job.spec))?;
        let sweep = required("sweep", request.sweep)?;
        check(&name, &validate::job(&spec))?;
        if !request.validate_only {
            check(&name, &validate::launchable(&spec))?;
        }
        let command = Kind::CreateJobArray(store::CreateJobArray {
            job: Some(new_job(name.to_string(), spec, user)),
            sweep: Some(sweep),
            request_id: request.request_id,
        });
        match self.0.create(command, request.validate_only).await? {
            Reply::JobArray(array) => Ok(Response::new(array)),
            other => Err(unexpected(&other)),
        }
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        let (metadata, _, request) = request.into_parts();
        resource::get::<JobName, _>(&self.0, &metadata, &request.name, |state, name| {
            state.job(name).map(std::borrow::Cow::into_owned)
        })
        .await
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        list_parent(&request.parent)?;
        let query = JobsQuery {
            parent: request.parent.clone(),
            filter: resource::filter(FilterKind::Job, &request.filter)?,
            order: resource::order(FilterKind::Job, &request.order_by)?,
        };
        let listing = Listing {
            collection: "jobs",
            parent: &request.parent,
            filter: &request.filter,
            order_by: &request.order_by,
            page_size: request.page_size,
            page_token: &request.page_token,
        };
        let page = resource::list(&self.0, &metadata, listing, |state, after, limit| {
            state.list_jobs(&query, after, limit, resource::SCAN_BUDGET)
        })
        .await?;
        Ok(Response::new(ListJobsResponse {
            jobs: page.items,
            next_page_token: page.next_page_token,
            revision: page.revision,
        }))
    }

    async fn delete_job(&self, request: Request<DeleteJobRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let command = store::Delete {
            name: request.name,
            etag: request.etag,
            ..store::Delete::default()
        };
        resource::delete::<JobName>(&self.0, command, Kind::DeleteJob).await?;
        Ok(Response::new(()))
    }

    async fn terminate_jobs(
        &self,
        request: Request<TerminateJobsRequest>,
    ) -> Result<Response<TerminateJobsResponse>, Status> {
        // What was acknowledged before must be ended as well.
        self.0
            .catch_up(&tonic::metadata::MetadataMap::new())
            .await?;
        let request = request.into_inner();
        let parent: ExperimentName = name("parent", &request.parent)?;
        let filter = resource::filter(FilterKind::Job, &request.filter)?;
        if self.0.state().experiment(parent.as_str()).is_none() {
            return Err(status::not_found(parent.as_str()));
        }
        let mut terminated = 0;
        loop {
            let jobs = self
                .0
                .state()
                .terminable(parent.as_str(), &filter, TERMINATE_LOOK);
            let before = terminated;
            for batch in jobs.chunks(TERMINATE_BATCH) {
                let jobs = batch.to_vec();
                let command = Kind::TerminateJobs(store::TerminateJobs { jobs });
                match self.0.propose(command).await? {
                    Reply::Count(count) => terminated += count,
                    other => return Err(unexpected(&other)),
                }
            }
            // Without effect: somebody else ends the same jobs.
            if jobs.len() < TERMINATE_LOOK || terminated == before {
                break;
            }
        }
        Ok(Response::new(TerminateJobsResponse { terminated }))
    }

    async fn terminate_job(
        &self,
        request: Request<TerminateJobRequest>,
    ) -> Result<Response<Job>, Status> {
        let request = request.into_inner();
        let _: JobName = name("name", &request.name)?;
        let command = store::TerminateJob {
            name: request.name,
            cause: store::TerminateCause::Requested.into(),
            uid: String::new(),
        };
        match self.0.propose(Kind::TerminateJob(command)).await? {
            Reply::Job(job) => Ok(Response::new(*job)),
            other => Err(unexpected(&other)),
        }
    }

    async fn explain_job(
        &self,
        request: Request<ExplainJobRequest>,
    ) -> Result<Response<JobExplanation>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        let _: JobName = name("name", &request.name)?;
        let leadership = self.0.leadership.borrow().clone();
        let state = self.0.state();
        // Only the leader hears heartbeats; a stale answer of another member knows of no silent node.
        let unresponsive = leadership
            .map(|l| l.unresponsive(&state))
            .unwrap_or_default();
        state
            .explain(&request.name, &unresponsive, &self.0.clock.now())
            .map(Response::new)
            .ok_or_else(|| status::not_found(&request.name))
    }

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let leadership = if wants_stale(request.metadata()) {
            None
        } else {
            Some(self.0.leading()?)
        };
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        let _: JobName = name("name", &request.name)?;
        watch::job::start(Arc::clone(&self.0), leadership, &request.name).map(Response::new)
    }

    async fn list_job_files(
        &self,
        request: Request<ListJobFilesRequest>,
    ) -> Result<Response<ListJobFilesResponse>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        let _: JobName = name("name", &request.name)?;
        logs::list(&self.0, &request).await.map(Response::new)
    }

    async fn stream_logs(
        &self,
        request: Request<StreamLogsRequest>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        let _: JobName = name("name", &request.name)?;
        logs::stream(Arc::clone(&self.0), &request).map(Response::new)
    }
}

/// A job as the log is to get it.
fn new_job(name: String, spec: JobSpec, user: String) -> Job {
    Job {
        name,
        uid: new_uid(),
        spec: Some(spec),
        user,
        ..Job::default()
    }
}

/// Checks the parent of a list of jobs; `-` stands for any workspace or experiment.
fn list_parent(parent: &str) -> Result<(), Status> {
    // With any id in place of `-` the name must be one.
    let parts: Vec<&str> = parent
        .split('/')
        .map(|part| if part == "-" { "any" } else { part })
        .collect();
    let named = parts.join("/");
    named.parse::<ExperimentName>().map(|_| ()).map_err(|_| {
        status::invalid_field(
            "parent",
            format!(
                "{parent:?} is not workspaces/WORKSPACE/experiments/EXPERIMENT, where `-` stands for any"
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_of_lists() {
        for good in [
            "workspaces/w/experiments/e",
            "workspaces/-/experiments/-",
            "workspaces/w/experiments/-",
            "workspaces/-/experiments/e",
        ] {
            assert!(list_parent(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "workspaces/w",
            "workspaces/w/experiments",
            "-/w/experiments/e",
        ] {
            assert!(list_parent(bad).is_err(), "{bad}");
        }
    }
}
