//! `JobService`: jobs, why they wait, how they go on, and their files.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use trainyard_core::Reply;
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_proto::v1::job_service_server::JobService;
use trainyard_proto::v1::{
    CreateJobRequest, DeleteJobRequest, ExplainJobRequest, GetJobRequest, Job, JobExplanation,
    ListJobFilesRequest, ListJobFilesResponse, ListJobsRequest, ListJobsResponse,
    StreamLogsRequest, TerminateJobRequest, WatchJobRequest,
};
use trainyard_shared::names::{ExperimentName, JobName};
use trainyard_shared::validate;

use super::{check, check_etag, check_request_id, child, name, required, unexpected};
use crate::context::{Context, new_uid, wants_stale};
use crate::page::Cursor;
use crate::{logs, status, watch};

/// See the module.
#[derive(Debug, Clone)]
pub struct Jobs(pub Arc<Context>);

#[tonic::async_trait]
impl JobService for Jobs {
    async fn create_job_array(
        &self,
        _request: Request<trainyard_proto::v1::CreateJobArrayRequest>,
    ) -> Result<Response<trainyard_proto::v1::CreateJobArrayResponse>, Status> {
        Err(Status::unimplemented("not answered here"))
    }

    async fn terminate_jobs(
        &self,
        _request: Request<trainyard_proto::v1::TerminateJobsRequest>,
    ) -> Result<Response<trainyard_proto::v1::TerminateJobsResponse>, Status> {
        Err(Status::unimplemented("not answered here"))
    }

    type WatchJobStream = watch::job::JobStream;
    type StreamLogsStream = logs::LogStream;

    async fn create_job(
        &self,
        request: Request<CreateJobRequest>,
    ) -> Result<Response<Job>, Status> {
        let request = request.into_inner();
        let parent: ExperimentName = name("parent", &request.parent)?;
        let name = child("job_id", JobName::new(&parent, &request.job_id))?;
        check_request_id(&request.request_id)?;
        let spec = required("job.spec", request.job.and_then(|job| job.spec))?;
        check(&name, &validate::job(&spec))?;
        let job = Job {
            name: name.to_string(),
            uid: new_uid(),
            spec: Some(spec),
            ..Job::default()
        };
        let command = store::CreateJob {
            job: Some(job),
            request_id: request.request_id,
        };
        match self.0.propose(Kind::CreateJob(command)).await? {
            Reply::Job(job) => Ok(Response::new(*job)),
            other => Err(unexpected(&other)),
        }
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        let _: JobName = name("name", &request.name)?;
        let state = self.0.state();
        state
            .job(&request.name)
            .map(|job| Response::new(job.into_owned()))
            .ok_or_else(|| status::not_found(&request.name))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        list_parent(&request.parent)?;
        let cursor = Cursor::parse(&request.parent, request.page_size, &request.page_token)?;
        let found = self
            .0
            .state()
            .jobs(&request.parent, &cursor.after, cursor.limit);
        let (jobs, next_page_token) = cursor.cut(found, |job| &job.name);
        Ok(Response::new(ListJobsResponse {
            jobs,
            next_page_token,
            ..ListJobsResponse::default()
        }))
    }

    async fn delete_job(&self, request: Request<DeleteJobRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let _: JobName = name("name", &request.name)?;
        check_etag(&request.etag)?;
        let command = store::Delete {
            name: request.name,
            etag: request.etag,
            ..store::Delete::default()
        };
        self.0.propose(Kind::DeleteJob(command)).await?;
        Ok(Response::new(()))
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
