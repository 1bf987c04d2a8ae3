//! Scenarios of resources: creates that are retried, parents, bindings, refusals that change nothing.

mod world;

use trainyard_core::{RefusalKind, Reply, State};
use trainyard_proto::store::v1 as store;
use trainyard_proto::store::v1::command::Kind;
use trainyard_proto::v1::*;
use world::{C, E, W, World, job, spec};

#[test]
fn a_retried_create_makes_one_job() {
    let mut w = World::new(1, 0);
    let Ok(Reply::Job(first)) = w.try_job("j", spec(1), "request-1") else {
        panic!()
    };
    let Ok(Reply::Job(again)) = w.try_job("j", spec(1), "request-1") else {
        panic!()
    };
    assert_eq!(first.uid, again.uid);
    let refusal = w.try_job("j", spec(1), "request-2").unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::AlreadyExists);
    let refusal = w.try_job("other", spec(1), "request-1").unwrap_err();
    assert_eq!(
        refusal.kind,
        RefusalKind::InvalidArgument,
        "an id belongs to one create"
    );
    w.delete(&job("j")).unwrap();
    let refusal = w.try_job("j", spec(1), "request-1").unwrap_err();
    assert_eq!(
        refusal.kind,
        RefusalKind::Aborted,
        "the job was deleted since: it is not made anew"
    );
}

#[test]
fn the_memory_of_requests_survives_a_snapshot() {
    let mut w = World::new(1, 0);
    w.try_job("j", spec(1), "request-1").unwrap();
    w.state = State::from_snapshot(&w.state.to_snapshot()).unwrap();
    assert!(w.try_job("j", spec(1), "request-1").is_ok());
    assert_eq!(w.state.jobs(E, "", 10).len(), 1);
}

#[test]
fn a_refusal_changes_nothing_but_the_index() {
    let mut w = World::new(1, 0);
    w.try_job("j", spec(1), "").unwrap();
    let before = w.state.clone();
    let missing_cluster = JobSpec {
        cluster: Some(ResourceId { id: "nope".into() }),
        ..spec(1)
    };
    let refusals = [
        w.try_job("j", spec(1), "").unwrap_err(),
        w.try_job("k", missing_cluster, "r").unwrap_err(),
        w.delete(C).unwrap_err(),
        w.delete("workspaces/w/experiments/none").unwrap_err(),
        w.delete("nodes/n1").unwrap_err(),
    ];
    let kinds: Vec<RefusalKind> = refusals.iter().map(|r| r.kind).collect();
    use RefusalKind::{AlreadyExists, FailedPrecondition, InvalidArgument, NotFound};
    assert_eq!(
        kinds,
        [
            AlreadyExists,
            InvalidArgument,
            FailedPrecondition,
            NotFound,
            FailedPrecondition
        ]
    );
    assert_eq!(refusals[1].violations[0].field, "cluster.id");
    let mut after = w.state.clone();
    // The index moves with the log; all else must be as before.
    let bytes = |s: &State| {
        use prost::Message;
        let mut snapshot = store::Snapshot::decode(s.to_snapshot().as_slice()).unwrap();
        snapshot.index = 0;
        snapshot.encode_to_vec()
    };
    assert_eq!(bytes(&before), bytes(&after));
    after = State::from_snapshot(&after.to_snapshot()).unwrap();
    assert_eq!(after, w.state);
}

#[test]
fn nothing_is_made_without_its_parent() {
    let mut w = World::default();
    assert_eq!(w.cluster(C, 1).unwrap_err().resource, W);
    assert_eq!(w.try_job("j", spec(1), "").unwrap_err().resource, E);
}

fn bind(
    w: &mut World,
    bindings: Vec<StorageBinding>,
    images: Vec<ImageBinding>,
) -> Result<Reply, trainyard_core::Refusal> {
    w.apply(Kind::UpdateWorkspace(store::UpdateWorkspace {
        workspace: Some(Workspace {
            name: W.into(),
            storage_bindings: bindings,
            image_bindings: images,
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["storage_bindings".into(), "image_bindings".into()],
        }),
    }))
    .reply
}

fn share(name: &str, path: &str) -> AzureFileShareReference {
    AzureFileShareReference {
        azure_file_url: format!("https://account.file.core.windows.net/{name}"),
        relative_mount_path: path.into(),
        ..Default::default()
    }
}

#[test]
fn names_of_a_job_file_are_resolved_by_bindings() {
    let mut w = World::new(1, 0);
    let mut wanted = spec(1);
    wanted.mount_volumes = Some(MountVolumes {
        azure_file_shares: vec![share("logs", "logs"), share("data", "data")],
        ..Default::default()
    });
    wanted.container_settings = Some(ContainerSettings {
        image_source_registry: Some(ImageSourceRegistry {
            image: "pytorch:1".into(),
            ..Default::default()
        }),
        ..Default::default()
    });
    let refusal = w.try_job("j", wanted.clone(), "").unwrap_err();
    let fields: Vec<&str> = refusal
        .violations
        .iter()
        .map(|v| v.field.as_str())
        .collect();
    assert_eq!(
        fields,
        [
            "mountVolumes.azureFileShares[0].azureFileUrl",
            "mountVolumes.azureFileShares[1].azureFileUrl",
            "containerSettings.imageSourceRegistry.image",
        ]
    );
    assert!(
        refusal
            .message
            .contains("--bind-storage logs=hostPath:/DIRECTORY"),
        "{}",
        refusal.message
    );
    assert!(
        refusal.message.contains("--bind-image pytorch:1=host"),
        "{}",
        refusal.message
    );

    w.ok(Kind::CreateFileServer(store::CreateFileServer {
        file_server: Some(FileServer {
            name: format!("{W}/fileServers/nas"),
            kind: Some(file_server::Kind::External(ExternalFileServer {
                address: "10.0.0.9".into(),
                export: "/export/".into(),
                mount_options: "port=20049".into(),
                ..Default::default()
            })),
            ..Default::default()
        }),
        request_id: String::new(),
    }));
    let host = |share: &str, path: &str| StorageBinding {
        share: share.into(),
        target: Some(storage_binding::Target::HostPath(path.into())),
    };
    let nas = |share: &str, server: &str| StorageBinding {
        share: share.into(),
        target: Some(storage_binding::Target::FileServer(FileServerDirectory {
            file_server: server.into(),
            directory: "/d".into(),
        })),
    };
    let image = ImageBinding {
        image: "pytorch:1".into(),
        target: Some(image_binding::Target::Host(HostImage {})),
    };
    let refusal = bind(&mut w, vec![nas("data", "typo")], vec![]).unwrap_err();
    assert_eq!(refusal.violations[0].field, "storageBindings[0]");
    bind(
        &mut w,
        vec![host("logs", "/srv/logs"), nas("data", "nas")],
        vec![image],
    )
    .unwrap();
    w.try_job("j", wanted, "").unwrap();
    w.plan();
    let desired = w.state.desired("nodes/n1");
    let volumes = &desired.assignments[0].job_volumes;
    assert_eq!(
        volumes[0].source,
        Some(volume::Source::HostPath("/srv/logs".into()))
    );
    assert_eq!(
        volumes[1].source,
        Some(volume::Source::Nfs(NfsVolume {
            file_server: format!("{W}/fileServers/nas"),
            address: "10.0.0.9".into(),
            path: "/export/d".into(),
            nfs_version: "4.1".into(),
            mount_options: "port=20049".into(),
        }))
    );
    let refusal = w.delete("workspaces/w/fileServers/nas").unwrap_err();
    assert!(
        refusal.message.contains("the binding of data"),
        "{}",
        refusal.message
    );
}

#[test]
fn lists_come_in_pages_in_order_of_name() {
    let mut w = World::new(0, 0);
    w.ok(Kind::CreateExperiment(store::CreateExperiment {
        experiment: Some(Experiment {
            name: format!("{E}2"),
            ..Default::default()
        }),
        request_id: String::new(),
    }));
    for i in 0..5 {
        w.submit(&format!("j{i}"), 1);
    }
    let first = w.state.jobs(E, "", 2);
    let second = w.state.jobs(E, &first[1].name, 10);
    let names: Vec<&str> = first
        .iter()
        .chain(&second)
        .map(|j| j.name.rsplit('/').next().unwrap())
        .collect();
    assert_eq!(names, ["j0", "j1", "j2", "j3", "j4"]);
    assert_eq!(
        w.state.jobs(&format!("{E}2"), "", 10).len(),
        0,
        "a prefix of a name is not a parent"
    );
    assert_eq!(w.state.jobs("workspaces/-/experiments/-", "", 10).len(), 5);
    assert_eq!(w.state.jobs("workspaces/-/experiments/e", "", 10).len(), 5);
    assert_eq!(w.state.jobs("workspaces/w/experiments/-", "", 10).len(), 5);
    assert_eq!(w.state.experiments(W, "", 10).len(), 2);
}

#[test]
fn an_etag_guards_an_update() {
    let mut w = World::new(0, 0);
    let stale = w.state.workspace(W).unwrap().etag.clone();
    bind(&mut w, vec![], vec![]).unwrap();
    let refusal = w
        .apply(Kind::DeleteWorkspace(store::Delete {
            name: W.into(),
            etag: stale,
            ..store::Delete::default()
        }))
        .reply
        .unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Aborted);
}

#[test]
fn a_command_of_an_unknown_kind_is_refused_and_never_panics() {
    let mut state = State::default();
    let outcome = state.apply(1, &store::Command::default());
    assert_eq!(
        outcome.reply.unwrap_err().kind,
        RefusalKind::InvalidArgument
    );
    assert_eq!(state.index(), 1);
}

#[test]
fn only_a_workspace_that_allows_root_has_its_tasks_run_as_root() {
    let mut w = World::new(1, 0);
    w.submit("j", 1);
    w.plan();
    for allowed in [false, true, false] {
        w.ok(Kind::UpdateWorkspace(store::UpdateWorkspace {
            workspace: Some(Workspace {
                name: W.into(),
                allow_root: allowed,
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["allow_root".into()],
            }),
        }));
        let desired = w.state.desired("nodes/n1");
        assert_eq!(desired.assignments[0].run_as_root, allowed);
    }
}
