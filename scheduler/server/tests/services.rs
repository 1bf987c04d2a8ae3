//! What each call of the services gives, and what it refuses with which words.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Group, furnish, job_request};
use prost::Message as _;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tower::ServiceExt as _;
use trainyard_proto::v1::cluster_service_client::ClusterServiceClient;
use trainyard_proto::v1::file_server_service_client::FileServerServiceClient;
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::node_service_client::NodeServiceClient;
use trainyard_proto::v1::workspace_service_client::WorkspaceServiceClient;
use trainyard_proto::v1::*;

/// Creates a job, claiming to be `mallory`.
async fn create_as(channel: &Channel, id: &str) -> Job {
    let mut request = Request::new(job_request(id, ""));
    request
        .metadata_mut()
        .insert("trainyard-user", "mallory".parse().unwrap());
    JobServiceClient::new(channel.clone())
        .create_job(request)
        .await
        .unwrap()
        .into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_belongs_to_the_certificate_that_created_it() {
    let group = Group::start(2).await;
    let leader = group.leader().await;
    let follower = 1 - leader;
    furnish(&group.admin(leader), 0).await;
    let here = create_as(&group.admin(leader), "here").await;
    assert_eq!(here.user, "admin", "what a client claims is not believed");
    let passed_on = create_as(&group.admin(follower), "passed-on").await;
    assert_eq!(passed_on.user, "admin", "a follower names its client");
    // A member asks by itself: it may name a client.
    let member = group.channel(leader, &format!("members/{}", follower + 1));
    assert_eq!(create_as(&member, "by-member").await.user, "mallory");
    group.stop().await;
}

async fn update_workspace(
    channel: &Channel,
    workspace: Workspace,
    paths: &[&str],
) -> Result<Workspace, Status> {
    WorkspaceServiceClient::new(channel.clone())
        .update_workspace(UpdateWorkspaceRequest {
            workspace: Some(workspace),
            update_mask: Some(prost_types::FieldMask {
                paths: paths.iter().map(|p| (*p).to_owned()).collect(),
            }),
        })
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_changes_what_its_mask_names_and_nothing_else() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let given = Workspace {
        name: "workspaces/w".into(),
        tags: [("team".to_owned(), "vision".to_owned())].into(),
        allow_root: true,
        ..Workspace::default()
    };
    let updated = update_workspace(&admin, given.clone(), &["tags"])
        .await
        .unwrap();
    assert_eq!(updated.tags, given.tags);
    assert!(!updated.allow_root);
    for (paths, text) in [
        (vec![], "update_mask: names no field"),
        (vec!["etag"], "update_mask: \"etag\" cannot be changed"),
        (
            vec!["tags", "colour"],
            "update_mask: \"colour\" is no field of a Workspace",
        ),
    ] {
        let refused = update_workspace(&admin, given.clone(), &paths)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(text), "{refused}");
    }
    let refused = ClusterServiceClient::new(admin.clone())
        .update_cluster(UpdateClusterRequest {
            cluster: Some(Cluster {
                name: "workspaces/w/clusters/c".into(),
                vm_size: "large".into(),
                ..Cluster::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["vm_size".into()],
            }),
        })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.message().contains("\"vm_size\" cannot be changed"),
        "{refused}"
    );
    group.stop().await;
}

fn manual(target_node_count: u32) -> ScaleSettings {
    ScaleSettings {
        manual: Some(ManualScaleSettings {
            target_node_count,
            ..ManualScaleSettings::default()
        }),
        ..ScaleSettings::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_checks_everything_and_creates_nothing() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    let mut workspaces = WorkspaceServiceClient::new(admin.clone());
    let checked = workspaces
        .create_workspace(CreateWorkspaceRequest {
            workspace_id: "w".into(),
            validate_only: true,
            ..CreateWorkspaceRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(checked.name, "workspaces/w");
    let get = GetWorkspaceRequest {
        name: "workspaces/w".into(),
    };
    let missing = workspaces.get_workspace(get).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);

    furnish(&admin, 0).await;
    let mut clusters = ClusterServiceClient::new(admin.clone());
    let cluster = |id: &str| CreateClusterRequest {
        parent: "workspaces/w".into(),
        cluster_id: id.into(),
        cluster: Some(Cluster {
            scale_settings: Some(manual(1)),
            ..Cluster::default()
        }),
        validate_only: true,
        ..CreateClusterRequest::default()
    };
    clusters.create_cluster(cluster("new")).await.unwrap();
    let taken = clusters.create_cluster(cluster("c")).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);

    let mut file_servers = FileServerServiceClient::new(admin.clone());
    let request = CreateFileServerRequest {
        parent: "workspaces/w".into(),
        file_server_id: "nfs".into(),
        file_server: Some(FileServer {
            kind: Some(file_server::Kind::External(ExternalFileServer {
                address: "nfs.example.org".into(),
                export: "/export".into(),
                ..ExternalFileServer::default()
            })),
            ..FileServer::default()
        }),
        validate_only: true,
        ..CreateFileServerRequest::default()
    };
    file_servers.create_file_server(request).await.unwrap();
    let listed = file_servers
        .list_file_servers(ListFileServersRequest {
            parent: "workspaces/w".into(),
            ..ListFileServersRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.file_servers.len(), 0);

    let mut jobs = JobServiceClient::new(admin.clone());
    let mut request = job_request("j", "");
    request.validate_only = true;
    let checked = jobs.create_job(request.clone()).await.unwrap().into_inner();
    assert_eq!(checked.name, "workspaces/w/experiments/e/jobs/j");
    assert_eq!(checked.user, "admin");
    request.parent = "workspaces/w/experiments/none".into();
    let refused = jobs.create_job(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("experiments/none"), "{refused}");

    let mut request = array_request("sweep", &["1", "2"]);
    request.validate_only = true;
    let checked = jobs.create_job_array(request).await.unwrap().into_inner();
    assert_eq!(checked.size, 2);
    let listed = jobs
        .list_jobs(ListJobsRequest {
            parent: "workspaces/-/experiments/-".into(),
            ..ListJobsRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.jobs.len(), 0, "{:?}", listed.jobs);
    group.stop().await;
}

fn array_request(id: &str, values: &[&str]) -> CreateJobArrayRequest {
    let job = job_request(id, "");
    CreateJobArrayRequest {
        parent: job.parent,
        job_id: job.job_id,
        job: job.job,
        sweep: Some(ParameterSweep {
            parameters: vec![SweepParameter {
                name: "LR".into(),
                values: values.iter().map(|v| (*v).to_owned()).collect(),
                ..SweepParameter::default()
            }],
            ..ParameterSweep::default()
        }),
        ..CreateJobArrayRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_array_is_created_listed_and_ended_as_one() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let mut jobs = JobServiceClient::new(admin.clone());
    let mut request = array_request("sweep", &["0.1", "0.2", "0.3"]);
    request.request_id = "once".into();
    let array = jobs
        .create_job_array(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(array.size, 3);
    assert_eq!(array.jobs[2], "workspaces/w/experiments/e/jobs/sweep-2");
    let again = jobs.create_job_array(request).await.unwrap().into_inner();
    assert_eq!(again.uid, array.uid, "a repeat gives the first result");

    let list = |filter: String| ListJobsRequest {
        parent: "workspaces/w/experiments/e".into(),
        filter,
        order_by: "creation_time".into(),
        page_size: 2,
        ..ListJobsRequest::default()
    };
    let of_array = format!("array = \"{}\"", array.uid);
    let mut request = list(of_array.clone());
    let mut members = Vec::new();
    loop {
        let page = jobs.list_jobs(request.clone()).await.unwrap().into_inner();
        members.extend(page.jobs);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let names: Vec<_> = members.iter().map(|job| job.name.clone()).collect();
    assert_eq!(names, array.jobs, "pages keep the order of the array");
    assert!(members.iter().all(|job| job.user == "admin"));

    common::create_job(&admin, "other").await;
    let terminate = |filter: String| TerminateJobsRequest {
        parent: "workspaces/w/experiments/e".into(),
        filter,
    };
    for expected in [3, 0] {
        let answer = jobs
            .terminate_jobs(terminate(of_array.clone()))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.terminated, expected);
    }
    let answer = jobs.terminate_jobs(terminate(String::new())).await.unwrap();
    assert_eq!(answer.into_inner().terminated, 1);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arrays_and_mass_ends_are_refused_by_field() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let mut jobs = JobServiceClient::new(admin.clone());
    let mut none = array_request("sweep", &["1"]);
    none.sweep = None;
    let refused = jobs.create_job_array(none).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "sweep: is missing");
    let refused = jobs
        .create_job_array(array_request("sweep", &[]))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("parameters[0]"), "{refused}");
    for (parent, filter, code, text) in [
        ("workspaces/w", "", Code::InvalidArgument, "parent: "),
        (
            "workspaces/w/experiments/none",
            "",
            Code::NotFound,
            "workspaces/w/experiments/none does not exist",
        ),
        (
            "workspaces/w/experiments/e",
            "state",
            Code::InvalidArgument,
            "filter: at character 6: expected a comparison",
        ),
    ] {
        let refused = jobs
            .terminate_jobs(TerminateJobsRequest {
                parent: parent.into(),
                filter: filter.into(),
            })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().starts_with(text), "{refused}");
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_resized_and_deleted_by_force_with_its_jobs() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let name = "workspaces/w/clusters/c";
    let mut clusters = ClusterServiceClient::new(admin.clone());
    let update = |scale_settings: Option<ScaleSettings>, etag: &str| UpdateClusterRequest {
        cluster: Some(Cluster {
            name: name.into(),
            etag: etag.into(),
            scale_settings,
            ..Cluster::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["scale_settings".into()],
        }),
    };
    let resized = clusters
        .update_cluster(update(Some(manual(3)), ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(resized.target_node_count, 3);
    let refused = clusters.update_cluster(update(None, "")).await.unwrap_err();
    assert_eq!(refused.message(), "cluster.scale_settings: is missing");
    let refused = clusters
        .update_cluster(update(Some(manual(1)), "old"))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    let refused = clusters
        .update_cluster(update(Some(manual(1_000_000)), ""))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused
            .message()
            .contains("scaleSettings.manual.targetNodeCount"),
        "{refused}"
    );

    let job = common::create_job(&admin, "j").await;
    let delete = |force: bool| DeleteClusterRequest {
        name: name.into(),
        force,
        ..DeleteClusterRequest::default()
    };
    let refused = clusters.delete_cluster(delete(false)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let answer = clusters
        .delete_cluster(delete(true))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.failed_queued_jobs, 1);
    assert_eq!(answer.jobs, std::slice::from_ref(&job.name));
    let ended = common::get_job(&admin, &job.name).await.unwrap();
    assert_eq!(ended.execution_state(), ExecutionState::Failed);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_classes_are_declared_listed_and_taken_back() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    let mut nodes = NodeServiceClient::new(admin.clone());
    let create = |id: &str, aliases: &[&str]| CreateNodeClassRequest {
        node_class_id: id.into(),
        node_class: Some(NodeClass {
            aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
            r#match: Some(NodeClassMatch {
                min_cpus: 1,
                ..NodeClassMatch::default()
            }),
            ..NodeClass::default()
        }),
        ..CreateNodeClassRequest::default()
    };
    let made = nodes
        .create_node_class(create("small", &["STANDARD_D1"]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(made.name, "nodeClasses/small");
    assert!(made.declared);
    let taken = nodes
        .create_node_class(create("other", &["standard_d1"]))
        .await
        .unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken}");
    let refused = nodes
        .create_node_class(create("bad", &["a b"]))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("aliases[0]: "), "{refused}");

    let get = |name: &str| GetNodeClassRequest { name: name.into() };
    let found = nodes
        .get_node_class(get("nodeClasses/small"))
        .await
        .unwrap();
    assert_eq!(found.into_inner().aliases, ["STANDARD_D1"]);
    let missing = nodes
        .get_node_class(get("nodeClasses/none"))
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let listed = nodes
        .list_node_classes(ListNodeClassesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.node_classes.len(), 1);
    let delete = DeleteNodeClassRequest {
        name: "nodeClasses/small".into(),
    };
    nodes.delete_node_class(delete.clone()).await.unwrap();
    let gone = nodes.delete_node_class(delete).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);

    let retry = |name: &str| RetryNodeRequest { name: name.into() };
    let missing = nodes.retry_node(retry("nodes/none")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let hello = common::FakeAgent::hello("node-1", "127.0.0.1:1");
    let agent = common::FakeAgent::open(group.channel(0, "nodes/node-1"), hello)
        .await
        .unwrap();
    let refused = nodes.retry_node(retry("nodes/node-1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let ready = nodes
        .list_nodes(ListNodesRequest {
            filter: "state = ready AND node_class = cpu".into(),
            ..ListNodesRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ready.nodes.len(), 1);
    drop(agent);
    group.stop().await;
}

/// Every method of the services for clients, by the protocol itself.
fn methods() -> Vec<String> {
    let files =
        prost_types::FileDescriptorSet::decode(trainyard_proto::FILE_DESCRIPTOR_SET).unwrap();
    files
        .file
        .iter()
        .flat_map(|file| &file.service)
        .filter(|service| {
            // Of agents, and for schedulers and agents alone.
            !["NodeFileService", "PeerService", "AgentService"].contains(&service.name())
        })
        .flat_map(|service| {
            service
                .method
                .iter()
                .map(|method| format!("trainyard.v1.{}/{}", service.name(), method.name()))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_of_the_protocol_is_answered() {
    let group = Group::start(1).await;
    group.leader().await;
    let methods = methods();
    assert!(methods.len() > 40, "{methods:?}");
    for method in methods {
        // An empty message: its frame is five zeros.
        let request = http::Request::post(format!("https://{}/{method}", group.addresses[0]))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(tonic::body::Body::new("\0".repeat(5)))
            .unwrap();
        let answer = common::within(&method, group.admin(0).oneshot(request))
            .await
            .unwrap();
        let code = Status::from_header_map(answer.headers()).map(|status| status.code());
        assert_ne!(code, Some(Code::Unimplemented), "{method}");
        assert_ne!(code, Some(Code::PermissionDenied), "{method}");
        assert_ne!(code, Some(Code::Internal), "{method}");
    }
    group.stop().await;
}
