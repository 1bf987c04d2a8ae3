//! Managed file servers: which node exports them, to whom, and what they are.

#![allow(clippy::unwrap_used, clippy::panic)] // a test's helpers

mod world;

use trainyard_core::{Change, Refusal, RefusalKind, Reply};
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_proto::v1::{
    BatchAiError, DataDisks, ExportStatus, ExternalFileServer, FileServer, FileServerReference,
    Gpu, Hello, Inventory, ManagedFileServer, MountVolumes, Observed, ProvisioningState,
    ResourceId, file_server, volume,
};
use world::{W, World};

const F: &str = "workspaces/w/fileServers/f";

fn join(w: &mut World, node: &str, can_export: bool, exports: Vec<ExportStatus>) {
    w.ok(Kind::RegisterNode(store::RegisterNode {
        hello: Some(Hello {
            node: node.to_owned(),
            inventory: Some(Inventory {
                address: format!("10.0.0.{}", &node[1..]),
                gpus: vec![Gpu::default()],
                can_export,
                ..Inventory::default()
            }),
            boot_id: "boot".to_owned(),
            node_class: "disk".to_owned(),
            observed: Some(Observed {
                exports,
                ..Observed::default()
            }),
            ..Hello::default()
        }),
    }));
}

fn create(w: &mut World, name: &str, managed: ManagedFileServer) -> Result<FileServer, Refusal> {
    w.apply(Kind::CreateFileServer(store::CreateFileServer {
        file_server: Some(FileServer {
            name: name.to_owned(),
            uid: format!("uid-{}", name.rsplit('/').next().unwrap()),
            kind: Some(file_server::Kind::Managed(managed)),
            ..FileServer::default()
        }),
        request_id: String::new(),
    }))
    .reply
    .map(|reply| match reply {
        Reply::FileServer(server) => *server,
        other => panic!("{other:?}"),
    })
}

fn node_of(server: &FileServer) -> &str {
    match server.kind.as_ref().unwrap() {
        file_server::Kind::Managed(managed) => &managed.node,
        file_server::Kind::External(_) => panic!("external"),
    }
}

fn ready(uid: &str) -> ExportStatus {
    ExportStatus {
        file_server: F.to_owned(),
        uid: uid.to_owned(),
        ready: true,
        export: format!("/{uid}"),
        port: 12_049,
        capacity_bytes: 1_000,
        free_bytes: 900,
        ..ExportStatus::default()
    }
}

fn say(w: &mut World, node: &str, exports: Vec<ExportStatus>) -> Vec<Change> {
    let name = format!("nodes/{node}");
    let session_epoch = w.state.node(&name).unwrap().session_epoch;
    let observed = Observed {
        exports: exports.clone(),
        ..Observed::default()
    };
    let differs = w.state.report_differs(&name, session_epoch, &observed);
    let before = w.state.node(&name).unwrap().exports;
    assert_eq!(
        differs,
        before != exports,
        "worth an entry exactly when it is news"
    );
    let (_, changes) = w.ok(Kind::ReportAttempts(store::ReportAttempts {
        node: name,
        session_epoch,
        exports,
        ..store::ReportAttempts::default()
    }));
    w.check();
    changes
}

fn delete(w: &mut World, force: bool) -> Result<Reply, Refusal> {
    w.apply(Kind::DeleteFileServer(store::Delete {
        name: F.to_owned(),
        force,
        ..store::Delete::default()
    }))
    .reply
}

/// A world whose nodes `n1`, `n2` are in the cluster, and a pool node `n3` that can export.
fn world() -> World {
    let mut w = World::new(2, 1);
    join(&mut w, "n3", true, vec![]);
    w
}

#[test]
fn the_node_with_the_fewest_exports_is_chosen_and_a_named_one_is_checked() {
    let mut w = World::new(1, 1);
    let refusal = create(&mut w, F, ManagedFileServer::default()).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::FailedPrecondition);
    assert!(
        refusal.message.contains("of 1 nodes 1 are ready"),
        "{refusal}"
    );
    join(&mut w, "n3", true, vec![]);
    join(&mut w, "n4", true, vec![]);
    let first = create(&mut w, F, ManagedFileServer::default()).unwrap();
    assert_eq!(node_of(&first), "nodes/n3");
    assert_eq!(first.provisioning_state(), ProvisioningState::Updating);
    let second = create(
        &mut w,
        "workspaces/w/fileServers/g",
        ManagedFileServer::default(),
    );
    assert_eq!(node_of(&second.unwrap()), "nodes/n4");
    let named = |node: &str, class: &str| ManagedFileServer {
        node: node.to_owned(),
        vm_size: class.to_owned(),
        ..ManagedFileServer::default()
    };
    let third = create(&mut w, "workspaces/w/fileServers/h", named("n4", "DISK")).unwrap();
    assert_eq!(node_of(&third), "nodes/n4");
    for (node, class, word) in [
        ("n9", "", "does not exist"),
        ("n1", "", "nfs-ganesha"),
        ("n4", "gpu1", "of class disk"),
        ("../n4", "", "nodes/"),
    ] {
        let name = "workspaces/w/fileServers/i";
        let refusal = create(&mut w, name, named(node, class)).unwrap_err();
        assert!(refusal.message.contains(word), "{refusal}");
    }
    w.lose("n4");
    let fourth = create(
        &mut w,
        "workspaces/w/fileServers/j",
        ManagedFileServer::default(),
    );
    assert_eq!(
        node_of(&fourth.unwrap()),
        "nodes/n3",
        "n4 exports more and is lost"
    );
}

#[test]
fn its_node_exports_it_to_the_nodes_of_the_workspaces_clusters() {
    let mut w = world();
    let wanted = ManagedFileServer {
        directory: "/data/f".to_owned(),
        data_disks: Some(DataDisks {
            disk_size_in_gb: 10,
            disk_count: 3,
            ..DataDisks::default()
        }),
        ..ManagedFileServer::default()
    };
    create(&mut w, F, wanted).unwrap();
    let exports = w.state.desired("nodes/n3").exports;
    assert_eq!(exports.len(), 1);
    assert_eq!(exports[0].clients, ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    assert_eq!(exports[0].directory, "/data/f");
    assert_eq!(exports[0].min_capacity_bytes, 30_000_000_000);
    // The cluster goes: its nodes may not mount it any more, and the exporting node hears of it.
    w.delete("workspaces/w/clusters/c").unwrap();
    w.plan();
    assert_eq!(w.state.desired("nodes/n3").exports[0].clients, ["10.0.0.3"]);
    let name = "workspaces/w/clusters/d";
    w.cluster(name, 1).unwrap();
    let now = prost_types::Timestamp {
        seconds: w.now,
        nanos: 0,
    };
    let plan = trainyard_core::placement::plan(&w.state, &w.unresponsive, &now);
    let (_, changes) = w.ok(Kind::ApplyPlan(plan));
    assert!(changes.contains(&Change::Desired("nodes/n3".to_owned())));
    assert_eq!(w.state.desired("nodes/n3").exports[0].clients.len(), 2);
    assert!(delete(&mut w, false).is_ok());
    assert!(w.state.desired("nodes/n3").exports.is_empty());
}

#[test]
fn it_is_what_its_node_says_fails_with_it_and_comes_back() {
    let mut w = world();
    create(&mut w, F, ManagedFileServer::default()).unwrap();
    let state = |w: &World| w.state.file_server(F).unwrap().clone();
    say(&mut w, "n3", vec![ready("another")]);
    assert_eq!(state(&w).provisioning_state(), ProvisioningState::Updating);
    let changes = say(&mut w, "n3", vec![ready("uid-f")]);
    for change in [
        Change::FileServer(F.to_owned()),
        Change::Desired("nodes/n1".to_owned()),
    ] {
        assert!(changes.contains(&change), "{changes:?}");
    }
    let server = state(&w);
    assert_eq!(server.provisioning_state(), ProvisioningState::Succeeded);
    let mount = server.mount_settings.unwrap();
    assert_eq!(
        (
            mount.mount_point.as_str(),
            mount.file_server_internal_ip.as_str(),
            mount.port
        ),
        ("/uid-f", "10.0.0.3", 12_049)
    );
    assert_eq!((server.capacity_bytes, server.free_bytes), (1_000, 900));
    say(
        &mut w,
        "n3",
        vec![ExportStatus {
            ready: false,
            errors: vec![BatchAiError {
                code: "FileServerDiskTooSmall".to_owned(),
                ..BatchAiError::default()
            }],
            ..ready("uid-f")
        }],
    );
    assert_eq!(state(&w).provisioning_state(), ProvisioningState::Failed);
    assert_eq!(state(&w).errors[0].code, "FileServerDiskTooSmall");
    assert_eq!(state(&w).mount_settings, None);
    say(&mut w, "n3", vec![ready("uid-f")]);
    w.lose("n3");
    assert_eq!(state(&w).provisioning_state(), ProvisioningState::Failed);
    assert_eq!(state(&w).errors[0].code, "NodeLost");
    join(&mut w, "n3", true, vec![ready("uid-f")]);
    assert_eq!(state(&w).provisioning_state(), ProvisioningState::Succeeded);
    assert!(state(&w).errors.is_empty());
}

#[test]
fn its_volumes_carry_address_path_and_port() {
    let mut w = world();
    create(&mut w, F, ManagedFileServer::default()).unwrap();
    say(&mut w, "n3", vec![ready("uid-f")]);
    let mut spec = world::spec(1);
    spec.mount_volumes = Some(MountVolumes {
        file_servers: vec![FileServerReference {
            file_server: Some(ResourceId { id: "f".to_owned() }),
            source_directory: "sub".to_owned(),
            relative_mount_path: "data".to_owned(),
            mount_options: "ro".to_owned(),
        }],
        ..MountVolumes::default()
    });
    w.try_job("j", spec, "").unwrap();
    w.plan();
    let node = w.attempt("j").nodes[0].node.clone();
    let assignment = w.state.desired(&node).assignments.remove(0);
    let Some(volume::Source::Nfs(nfs)) = &assignment.job_volumes[0].source else {
        panic!("{assignment:?}");
    };
    assert_eq!(
        (
            nfs.address.as_str(),
            nfs.path.as_str(),
            nfs.mount_options.as_str()
        ),
        ("10.0.0.3", "/uid-f/sub", "port=12049,ro")
    );
    let refusal = delete(&mut w, false).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::FailedPrecondition);
    assert!(refusal.message.contains("jobs/j"), "{refusal}");
    delete(&mut w, true).unwrap();
    assert!(w.state.file_server(F).is_none());
    w.check();
}

#[test]
fn an_external_one_says_at_once_how_to_mount_it() {
    let mut w = World::new(0, 0);
    let reply = w
        .ok(Kind::CreateFileServer(store::CreateFileServer {
            file_server: Some(FileServer {
                name: format!("{W}/fileServers/x"),
                kind: Some(file_server::Kind::External(ExternalFileServer {
                    address: "filer".to_owned(),
                    export: "/data".to_owned(),
                    mount_options: "hard, port=3049".to_owned(),
                    ..ExternalFileServer::default()
                })),
                ..FileServer::default()
            }),
            request_id: String::new(),
        }))
        .0;
    let Reply::FileServer(server) = reply else {
        panic!("{reply:?}");
    };
    assert_eq!(server.provisioning_state(), ProvisioningState::Succeeded);
    let mount = server.mount_settings.unwrap();
    assert_eq!(
        (
            mount.file_server_public_ip.as_str(),
            mount.mount_point.as_str(),
            mount.port
        ),
        ("filer", "/data", 3049)
    );
}
