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

use super::{check_request_id, child, list_parent, name, resource, unexpected};
use crate::context::{Context, new_uid};
use crate::page::Listing;

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
        let (metadata, _, request) = request.into_parts();
        resource::get::<ExperimentName, _>(&self.0, &metadata, &request.name, |state, name| {
            state.experiment(name).cloned()
        })
        .await
    }

    async fn list_experiments(
        &self,
        request: Request<ListExperimentsRequest>,
    ) -> Result<Response<ListExperimentsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        list_parent(&request.parent)?;
        let listing = Listing {
            collection: "experiments",
            parent: &request.parent,
            page_size: request.page_size,
            page_token: &request.page_token,
            ..Listing::default()
        };
        let page = resource::list(&self.0, &metadata, listing, |state, after, limit| {
            resource::by_name(after, limit, |after, limit| {
                state.experiments(&request.parent, after, limit)
            })
        })
        .await?;
        Ok(Response::new(ListExperimentsResponse {
            experiments: page.items,
            next_page_token: page.next_page_token,
            revision: page.revision,
        }))
    }

    async fn delete_experiment(
        &self,
        request: Request<DeleteExperimentRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let command = store::Delete {
            name: request.name,
            etag: request.etag,
            ..store::Delete::default()
        };
        resource::delete::<ExperimentName>(&self.0, command, Kind::DeleteExperiment).await?;
        Ok(Response::new(()))
    }
}
