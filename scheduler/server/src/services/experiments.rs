//! `ExperimentService`: experiments of workspaces.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use trainyard_core::Reply;
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_proto::v1::experiment_service_server::ExperimentService;
use trainyard_proto::v1::{
    CreateExperimentRequest, DeleteExperimentRequest, Experiment, GetExperimentRequest,
    ListExperimentsRequest, ListExperimentsResponse,
};
use trainyard_shared::names::{ExperimentName, WorkspaceName};

use super::{check_etag, check_request_id, child, list_parent, name, unexpected};
use crate::context::{Context, new_uid};
use crate::page::Cursor;
use crate::status;

/// See the module.
#[derive(Debug, Clone)]
pub struct Experiments(pub Arc<Context>);

#[tonic::async_trait]
impl ExperimentService for Experiments {
    async fn create_experiment(
        &self,
        request: Request<CreateExperimentRequest>,
    ) -> Result<Response<Experiment>, Status> {
        let request = request.into_inner();
        let parent: WorkspaceName = name("parent", &request.parent)?;
        let name = child(
            "experiment_id",
            ExperimentName::new(&parent, &request.experiment_id),
        )?;
        check_request_id(&request.request_id)?;
        let mut experiment = request.experiment.unwrap_or_default();
        experiment.name = name.to_string();
        experiment.uid = new_uid();
        let command = store::CreateExperiment {
            experiment: Some(experiment),
            request_id: request.request_id,
        };
        match self.0.propose(Kind::CreateExperiment(command)).await? {
            Reply::Experiment(experiment) => Ok(Response::new(experiment)),
            other => Err(unexpected(&other)),
        }
    }

    async fn get_experiment(
        &self,
        request: Request<GetExperimentRequest>,
    ) -> Result<Response<Experiment>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        let _: ExperimentName = name("name", &request.name)?;
        let state = self.0.state();
        state
            .experiment(&request.name)
            .cloned()
            .map(Response::new)
            .ok_or_else(|| status::not_found(&request.name))
    }

    async fn list_experiments(
        &self,
        request: Request<ListExperimentsRequest>,
    ) -> Result<Response<ListExperimentsResponse>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        list_parent(&request.parent)?;
        let cursor = Cursor::parse(&request.parent, request.page_size, &request.page_token)?;
        let found = self
            .0
            .state()
            .experiments(&request.parent, &cursor.after, cursor.limit);
        let (experiments, next_page_token) = cursor.cut(found, |experiment| &experiment.name);
        Ok(Response::new(ListExperimentsResponse {
            experiments,
            next_page_token,
            ..ListExperimentsResponse::default()
        }))
    }

    async fn delete_experiment(
        &self,
        request: Request<DeleteExperimentRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let _: ExperimentName = name("name", &request.name)?;
        check_etag(&request.etag)?;
        let command = store::Delete {
            name: request.name,
            etag: request.etag,
            ..store::Delete::default()
        };
        self.0.propose(Kind::DeleteExperiment(command)).await?;
        Ok(Response::new(()))
    }
}
