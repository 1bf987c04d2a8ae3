//! Lists over real connections: pages, filters, orders, and what is refused.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Group, create_job, furnish};
use tonic::transport::Channel;
use tonic::{Code, Status};
use trainyard_proto::v1::cluster_service_client::ClusterServiceClient;
use trainyard_proto::v1::experiment_service_client::ExperimentServiceClient;
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::node_service_client::NodeServiceClient;
use trainyard_proto::v1::workspace_service_client::WorkspaceServiceClient;
use trainyard_proto::v1::*;

const EXPERIMENT: &str = "workspaces/w/experiments/e";

fn all_jobs() -> ListJobsRequest {
    ListJobsRequest {
        parent: EXPERIMENT.into(),
        ..ListJobsRequest::default()
    }
}

async fn list(channel: &Channel, request: ListJobsRequest) -> Result<ListJobsResponse, Status> {
    JobServiceClient::new(channel.clone())
        .list_jobs(request)
        .await
        .map(tonic::Response::into_inner)
}

/// Last segments of the names of all pages of a list.
async fn walk(channel: &Channel, request: ListJobsRequest) -> Vec<String> {
    let mut ids = Vec::new();
    let mut page_token = String::new();
    let mut first_revision = None;
    loop {
        let page = ListJobsRequest {
            page_token,
            ..request.clone()
        };
        let answer = list(channel, page).await.unwrap();
        let revision = *first_revision.get_or_insert(answer.revision);
        assert_eq!(answer.revision, revision, "each page says the first one's");
        ids.extend(answer.jobs.iter().map(|job| {
            let (_, id) = job.name.rsplit_once('/').unwrap();
            id.to_owned()
        }));
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return ids;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_listed_by_filter_and_in_order() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    for id in ["c", "a", "b", "d"] {
        create_job(&admin, id).await;
    }
    let ended = TerminateJobRequest {
        name: format!("{EXPERIMENT}/jobs/b"),
    };
    JobServiceClient::new(admin.clone())
        .terminate_job(ended)
        .await
        .unwrap();
    // (filter, order, jobs)
    for (filter, order_by, expected) in [
        ("", "", vec!["a", "b", "c", "d"]),
        ("", "name desc", vec!["d", "c", "b", "a"]),
        ("", "creation_time", vec!["c", "a", "b", "d"]),
        ("", "creation_time desc", vec!["d", "b", "a", "c"]),
        ("state = queued", "", vec!["a", "c", "d"]),
        ("state = failed", "creation_time", vec!["b"]),
        ("user = admin AND name != a", "", vec!["b", "c", "d"]),
        ("user = nobody", "", vec![]),
    ] {
        for page_size in [1, 3, 100] {
            let request = ListJobsRequest {
                filter: filter.into(),
                order_by: order_by.into(),
                page_size,
                ..all_jobs()
            };
            let found = walk(&admin, request).await;
            assert_eq!(found, expected, "{filter:?} {order_by:?} {page_size}");
        }
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_revision_of_a_list_is_where_a_watch_starts() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let before = list(&admin, all_jobs()).await.unwrap().revision;
    let job = create_job(&admin, "j").await;
    assert!(
        job.sequence > before,
        "{} is not after {before}",
        job.sequence
    );
    let after = list(&admin, all_jobs()).await.unwrap().revision;
    assert!(after >= job.sequence);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_list_cannot_be_asked_is_refused_by_field() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    for id in ["a", "b"] {
        create_job(&admin, id).await;
    }
    let first = ListJobsRequest {
        page_size: 1,
        ..all_jobs()
    };
    let token = list(&admin, first).await.unwrap().next_page_token;
    assert_ne!(token, "");
    // (request, what the text says)
    let cases = [
        (
            ListJobsRequest {
                filter: "state = sideways".into(),
                ..all_jobs()
            },
            "filter: at character 9: sideways is no value of state",
        ),
        (
            ListJobsRequest {
                filter: "colour = red".into(),
                ..all_jobs()
            },
            "filter: at character 1: colour is no field",
        ),
        (
            ListJobsRequest {
                order_by: "size".into(),
                ..all_jobs()
            },
            "order_by: at character 1: size is no order of this list",
        ),
        (
            ListJobsRequest {
                parent: "workspaces/w".into(),
                ..all_jobs()
            },
            "parent: ",
        ),
        (
            ListJobsRequest {
                page_token: token.clone(),
                filter: "state = queued".into(),
                ..all_jobs()
            },
            "page_token: is not a token of this list with this filter and order",
        ),
        (
            ListJobsRequest {
                page_token: token.clone(),
                order_by: "name desc".into(),
                ..all_jobs()
            },
            "page_token: is not a token of this list",
        ),
        (
            ListJobsRequest {
                page_token: token.clone(),
                parent: "workspaces/w/experiments/-".into(),
                ..all_jobs()
            },
            "page_token: is not a token of this list",
        ),
    ];
    for (request, text) in cases {
        let refused = list(&admin, request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().starts_with(text), "{refused}");
    }
    let other = NodeServiceClient::new(admin.clone())
        .list_nodes(ListNodesRequest {
            page_token: token,
            ..ListNodesRequest::default()
        })
        .await
        .unwrap_err();
    assert_eq!(other.code(), Code::InvalidArgument);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_small_lists_page_as_the_long_ones() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    let mut workspaces = WorkspaceServiceClient::new(admin.clone());
    for id in ["w-1", "w-2", "w-3"] {
        workspaces
            .create_workspace(CreateWorkspaceRequest {
                workspace_id: id.into(),
                ..CreateWorkspaceRequest::default()
            })
            .await
            .unwrap();
    }
    let mut experiments = ExperimentServiceClient::new(admin.clone());
    let mut clusters = ClusterServiceClient::new(admin.clone());
    for id in ["x", "y"] {
        experiments
            .create_experiment(CreateExperimentRequest {
                parent: "workspaces/w-1".into(),
                experiment_id: id.into(),
                ..CreateExperimentRequest::default()
            })
            .await
            .unwrap();
        clusters
            .create_cluster(CreateClusterRequest {
                parent: "workspaces/w-1".into(),
                cluster_id: id.into(),
                cluster: Some(Cluster {
                    vm_size: format!("size-{id}"),
                    scale_settings: Some(ScaleSettings {
                        manual: Some(ManualScaleSettings::default()),
                        ..ScaleSettings::default()
                    }),
                    ..Cluster::default()
                }),
                ..CreateClusterRequest::default()
            })
            .await
            .unwrap();
    }
    let page = |page_token: String| ListWorkspacesRequest {
        page_size: 2,
        page_token,
    };
    let one = workspaces
        .list_workspaces(page(String::new()))
        .await
        .unwrap()
        .into_inner();
    let two = workspaces
        .list_workspaces(page(one.next_page_token.clone()))
        .await
        .unwrap()
        .into_inner();
    let names = |found: &[Workspace]| found.iter().map(|w| w.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&one.workspaces), ["workspaces/w-1", "workspaces/w-2"]);
    assert_eq!(names(&two.workspaces), ["workspaces/w-3"]);
    assert_eq!(two.next_page_token, "");
    assert!(one.revision > 0 && one.revision == two.revision);

    let found = experiments
        .list_experiments(ListExperimentsRequest {
            parent: "workspaces/w-1".into(),
            page_size: 1,
            ..ListExperimentsRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(found.experiments.len(), 1);
    assert_ne!(found.next_page_token, "");

    let found = clusters
        .list_clusters(ListClustersRequest {
            parent: "workspaces/-".into(),
            filter: "vm_size = size-y".into(),
            order_by: "name desc".into(),
            ..ListClustersRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(found.clusters.len(), 1);
    assert_eq!(found.clusters[0].name, "workspaces/w-1/clusters/y");
    let refused = clusters
        .list_clusters(ListClustersRequest {
            parent: "workspaces/w-1".into(),
            order_by: "creation_time".into(),
            ..ListClustersRequest::default()
        })
        .await
        .unwrap_err();
    assert!(refused.message().starts_with("order_by: "), "{refused}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_is_walked_filtered_and_ended_in_slices() {
    const JOBS: u32 = 2_500;
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let template = common::job_request("sweep", "");
    let mut jobs = JobServiceClient::new(admin.clone());
    jobs.create_job_array(CreateJobArrayRequest {
        parent: template.parent,
        job_id: template.job_id,
        job: template.job,
        sweep: Some(ParameterSweep {
            parameters: vec![SweepParameter {
                name: "SEED".into(),
                start: Some(1.0),
                end: Some(f64::from(JOBS)),
                count: JOBS,
                ..SweepParameter::default()
            }],
            ..ParameterSweep::default()
        }),
        ..CreateJobArrayRequest::default()
    })
    .await
    .unwrap();
    for order_by in ["name desc", "creation_time"] {
        let mut found = walk(
            &admin,
            ListJobsRequest {
                order_by: order_by.into(),
                page_size: 999,
                ..all_jobs()
            },
        )
        .await;
        assert_eq!(found.len(), JOBS as usize, "{order_by}");
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), JOBS as usize, "{order_by}: each once");
    }
    // What matches lies behind many slices of what does not.
    let rare = ListJobsRequest {
        filter: format!("name = sweep-{}", JOBS - 1),
        order_by: "creation_time".into(),
        ..all_jobs()
    };
    assert_eq!(walk(&admin, rare).await, [format!("sweep-{}", JOBS - 1)]);

    let ended = jobs
        .terminate_jobs(TerminateJobsRequest {
            parent: EXPERIMENT.into(),
            ..TerminateJobsRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ended.terminated, u64::from(JOBS), "in several commands");
    let failed = ListJobsRequest {
        filter: "state = failed".into(),
        page_size: 1000,
        ..all_jobs()
    };
    assert_eq!(walk(&admin, failed).await.len(), JOBS as usize);
    group.stop().await;
}
