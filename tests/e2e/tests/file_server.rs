//! Managed file servers: a node exports a directory, a machine with its own kernel mounts it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a scenario stops at the first surprise"
)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tonic::{Code, Status};
use trainyard_e2e::cluster::{Api, Cluster, JobFile, WORKSPACE};
use trainyard_e2e::wait_until;
use trainyard_proto::v1::file_server::Kind;
use trainyard_proto::v1::file_server_service_client::FileServerServiceClient;
use trainyard_proto::v1::{
    CreateFileServerRequest, DeleteFileServerRequest, FileServer, GetFileServerRequest,
    ManagedFileServer, ProvisioningState,
};
use trainyard_shared::client::new_request_id;

const TIMEOUT: Duration = Duration::from_secs(60);
const NAME: &str = "shared";

/// One machine in the cluster, and the node `node-1` in the pool, which exports.
struct Scene {
    cluster: Cluster,
    api: Api,
}

impl Scene {
    fn start() -> Self {
        let mut cluster = Cluster::builder().nodes(1).machines(1).prepare().unwrap();
        cluster.scheduler(1).daemon.start().unwrap();
        cluster.scheduler(1).wait_ready().unwrap();
        cluster.machine("machine-1").start_agent().unwrap();
        cluster.open_workspace(1).unwrap();
        cluster.wait_node("machine-1", "ready").unwrap();
        // The cluster has its node by now: this one stays in the pool.
        cluster.node("node-1").daemon.start().unwrap();
        cluster.node("node-1").wait_ready().unwrap();
        let api = Api::new(cluster.client_config(), TIMEOUT).unwrap();
        Self { cluster, api }
    }

    fn create(&self, managed: ManagedFileServer) -> FileServer {
        let request = CreateFileServerRequest {
            parent: format!("workspaces/{WORKSPACE}"),
            file_server_id: NAME.to_owned(),
            file_server: Some(FileServer {
                kind: Some(Kind::Managed(managed)),
                ..FileServer::default()
            }),
            request_id: new_request_id(),
            ..CreateFileServerRequest::default()
        };
        self.api
            .call(|channel| {
                let request = request.clone();
                async move {
                    FileServerServiceClient::new(channel)
                        .create_file_server(request)
                        .await
                }
            })
            .unwrap()
    }

    fn get(&self) -> Result<FileServer, Status> {
        self.api.call(|channel| async move {
            let request = GetFileServerRequest {
                name: format!("workspaces/{WORKSPACE}/fileServers/{NAME}"),
            };
            FileServerServiceClient::new(channel)
                .get_file_server(request)
                .await
        })
    }

    fn delete(&self, force: bool) -> Result<(), Status> {
        self.api.call(|channel| async move {
            let request = DeleteFileServerRequest {
                name: format!("workspaces/{WORKSPACE}/fileServers/{NAME}"),
                force,
                ..DeleteFileServerRequest::default()
            };
            FileServerServiceClient::new(channel)
                .delete_file_server(request)
                .await
        })
    }

    fn wait_state(&self, state: ProvisioningState) -> FileServer {
        let what = format!("the file server is {}", state.as_str_name());
        wait_until(&what, TIMEOUT, || {
            let server = self.get().unwrap();
            Ok((server.provisioning_state() == state).then_some(server))
        })
        .unwrap_or_else(|error| panic!("{error}: {:#?}", self.get()))
    }

    /// The directory as the exporting host sees it.
    fn directory(&self, server: &FileServer) -> PathBuf {
        let status = self.cluster.show_node("node-1").unwrap();
        let directory = trainyard_e2e::cluster::text(&status, "/exports/0/directory");
        assert!(!directory.is_empty(), "{status:#} {server:#?}");
        PathBuf::from(directory)
    }

    fn job(command: &str) -> JobFile {
        JobFile::custom(command).file_server(NAME, "data")
    }
}

#[test]
fn jobs_mount_a_directory_that_another_node_exports() {
    let mut scene = Scene::start();
    let server = scene.create(ManagedFileServer {
        node: "node-1".to_owned(),
        ..ManagedFileServer::default()
    });
    assert_ne!(server.provisioning_state(), ProvisioningState::Failed);
    let server = scene.wait_state(ProvisioningState::Succeeded);
    let mount = server.mount_settings.as_ref().unwrap();
    assert_eq!(
        (mount.mount_point.clone(), mount.port),
        (format!("/{}", server.uid), 2049)
    );
    assert!(server.capacity_bytes > 0);
    let directory = scene.directory(&server);

    let volume = "$AZ_BATCHAI_JOB_MOUNT_ROOT/data";
    let writes = format!("echo from the job >{volume}/note; grep ' nfs4 ' /proc/mounts");
    scene
        .cluster
        .submit("writes", &Scene::job(&writes))
        .unwrap();
    assert_eq!(scene.cluster.wait("writes").unwrap(), 0);
    assert_eq!(
        fs::read_to_string(directory.join("note")).unwrap(),
        "from the job\n"
    );

    // The export does not depend on the life of the agent.
    scene.cluster.node("node-1").daemon.kill().unwrap();
    let reads = format!("cat {volume}/note");
    scene.cluster.submit("reads", &Scene::job(&reads)).unwrap();
    assert_eq!(scene.cluster.wait("reads").unwrap(), 0);
    assert_eq!(
        scene.cluster.log("reads", "stdout.txt").unwrap(),
        "from the job\n"
    );
    scene.cluster.node("node-1").daemon.start().unwrap();
    scene.cluster.node("node-1").wait_ready().unwrap();
    scene.wait_state(ProvisioningState::Succeeded);

    // In use it goes by force only; what it holds stays.
    let waits = format!("until [ -e {volume}/go ]; do sleep 0.1; done");
    scene.cluster.submit("waits", &Scene::job(&waits)).unwrap();
    scene
        .cluster
        .wait_job("waits", "runs", |job| {
            trainyard_e2e::cluster::text(job, "/executionState") == "running"
        })
        .unwrap();
    let refused = scene.delete(false).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    fs::write(directory.join("go"), "").unwrap();
    assert_eq!(scene.cluster.wait("waits").unwrap(), 0);
    scene.delete(false).unwrap();
    wait_until("the file server is gone", TIMEOUT, || {
        Ok(scene.get().is_err().then_some(()))
    })
    .unwrap();
    wait_until("the export is gone", TIMEOUT, || {
        let node = scene.cluster.show_node("node-1")?;
        let none = node.pointer("/exports/0").is_none();
        Ok(none.then_some(()))
    })
    .unwrap();
    assert!(directory.join("note").exists());
}

#[test]
fn a_directory_outside_the_roots_of_the_node_is_refused_with_the_reason() {
    let scene = Scene::start();
    scene.create(ManagedFileServer {
        node: "node-1".to_owned(),
        directory: "/etc".to_owned(),
        ..ManagedFileServer::default()
    });
    let server = scene.wait_state(ProvisioningState::Failed);
    let error = server.errors.first().unwrap();
    assert_eq!(error.code, "FileServerDirectoryNotAllowed");
    assert!(error.message.contains("/etc"), "{}", error.message);
    scene.delete(false).unwrap();
}
