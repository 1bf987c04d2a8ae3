use std::os::unix::fs::MetadataExt;

use trainyard_proto::v1::{
    Assignment, AttemptNode, EnvironmentVariable, InputDirectory, JobSpec, OutputDirectory, Volume,
    volume,
};

use super::*;
use crate::confine::Credentials;

/// An attempt of a job on some nodes, seen by the node of that index.
pub(crate) fn assignment(
    nodes: &[(&str, &str, &[u32])],
    node_index: u32,
    spec: JobSpec,
) -> Assignment {
    Assignment {
        job: "workspaces/w/experiments/e/jobs/j".into(),
        uid: "0d1e2f30-4152-6374-8596-a7b8c9dadbec".into(),
        attempt: 1,
        epoch: 7,
        spec: Some(spec),
        nodes: nodes
            .iter()
            .map(|(name, address, gpus)| AttemptNode {
                node: format!("nodes/{name}"),
                address: (*address).into(),
                gpus: gpus.to_vec(),
                whole_node: true,
                status: None,
            })
            .collect(),
        node_index,
        path_segment: "wuid/workspaces/w/experiments/e/jobs/j/juid".into(),
        cluster: "workspaces/w/clusters/c".into(),
        cluster_volumes: vec![host_volume("ext")],
        ..Assignment::default()
    }
}

pub(crate) fn host_volume(relative: &str) -> Volume {
    Volume {
        relative_mount_path: relative.into(),
        source: Some(volume::Source::HostPath("/srv".into())),
    }
}

pub(crate) fn spec() -> JobSpec {
    JobSpec {
        std_out_err_path_prefix: "$AZ_BATCHAI_MOUNT_ROOT/ext".into(),
        ..JobSpec::default()
    }
}

pub(crate) fn variable(name: &str, value: &str) -> EnvironmentVariable {
    EnvironmentVariable {
        name: name.into(),
        value: value.into(),
    }
}

pub(crate) fn facts() -> Facts {
    let user = |name: &str, id| TaskUser {
        name: name.into(),
        home: Some(format!("/home/{name}").into()),
        credentials: Credentials {
            uid: id,
            gid: id,
            groups: vec![id],
        },
    };
    Facts {
        interface: Some("eth0".into()),
        task_user: user("trainyard", 990),
        further_users: Vec::new(),
        root_user: user("root", 0),
        path: "/usr/bin:/bin".into(),
        default_python: "python3".into(),
        rendezvous_port: 29500,
    }
}

pub(crate) fn layout(assignment: &Assignment) -> Result<Layout, LayoutError> {
    Layout::new(&Dirs::new("/d".into()), assignment, &facts())
}

const ONE: &[(&str, &str, &[u32])] = &[("n-1", "10.0.0.4", &[0, 1])];
const TWO: &[(&str, &str, &[u32])] = &[("n-1", "10.0.0.4", &[0, 1]), ("n-2", "10.0.0.5", &[2, 3])];

#[test]
fn the_output_tree_is_batch_ais() {
    let spec = JobSpec {
        output_directories: vec![
            OutputDirectory {
                id: "MODEL".into(),
                path_prefix: "$AZ_BATCHAI_MOUNT_ROOT/ext".into(),
                path_suffix: "/models//best/".into(),
            },
            OutputDirectory {
                id: "RAW".into(),
                path_prefix: "/data/$WHERE".into(),
                path_suffix: String::new(),
            },
        ],
        input_directories: vec![InputDirectory {
            id: "DATA".into(),
            path: "$AZ_BATCHAI_JOB_MOUNT_ROOT/in".into(),
        }],
        environment_variables: vec![variable("WHERE", "${AZ_BATCHAI_CLUSTER_NAME}-out")],
        ..spec()
    };
    let layout = layout(&assignment(ONE, 0, spec)).unwrap();
    let segment = "wuid/workspaces/w/experiments/e/jobs/j/juid";
    let expect = |path: &str| PathBuf::from(path.replace("SEGMENT", segment));
    assert_eq!(layout.mount_root, expect("/d/mounts/w/c"));
    assert_eq!(layout.job_root, expect("/d/jobs/0d1e2f304152-1"));
    assert_eq!(layout.job_mounts, expect("/d/jobs/0d1e2f304152-1/mounts"));
    assert_eq!(
        layout.state_dir,
        expect("/d/attempts/0d1e2f30-4152-6374-8596-a7b8c9dadbec-1")
    );
    assert_eq!(
        layout.spool_dir,
        expect("/d/spool/0d1e2f30-4152-6374-8596-a7b8c9dadbec-1")
    );
    assert_eq!(
        layout.stdouterr_dir,
        expect("/d/mounts/w/c/ext/SEGMENT/stdouterr")
    );
    assert_eq!(
        layout.output_dir("stdouterr"),
        Some(layout.stdouterr_dir.as_path())
    );
    assert_eq!(
        layout.output_dir("MODEL"),
        Some(expect("/d/mounts/w/c/ext/SEGMENT/outputs/models/best").as_path())
    );
    assert_eq!(
        layout.output_dir("RAW"),
        Some(expect("/data/c-out/SEGMENT/outputs").as_path())
    );
    assert_eq!(layout.output_dir("NONE"), None);
    assert_eq!(
        layout.environment["AZ_BATCHAI_INPUT_DATA"],
        "/d/jobs/0d1e2f304152-1/mounts/in"
    );
    let below: Vec<_> = layout
        .share_directories()
        .into_iter()
        .map(|request| request.below)
        .collect();
    assert_eq!(
        below,
        [
            Some(expect("/d/mounts/w/c/ext")),
            Some(expect("/d/mounts/w/c/ext")),
            None
        ]
    );
}

#[test]
fn file_names_carry_the_node_only_where_there_are_several() {
    let one = layout(&assignment(ONE, 0, spec())).unwrap();
    assert_eq!(one.execution_log(), "execution.log");
    assert_eq!(
        one.preparation_files(),
        ("stdout-job_prep.txt".into(), "stderr-job_prep.txt".into())
    );
    assert_eq!(one.shared_target, None);

    let two = layout(&assignment(TWO, 1, spec())).unwrap();
    assert_eq!(two.execution_log(), "execution-n-2.log");
    assert_eq!(
        two.preparation_files(),
        (
            "stdout-job_prep-n-2.txt".into(),
            "stderr-job_prep-n-2.txt".into()
        )
    );
    assert_eq!(
        two.shared_target,
        Some(PathBuf::from(
            "/d/mounts/w/c/ext/wuid/workspaces/w/experiments/e/jobs/j/juid/shared"
        ))
    );
    assert_eq!(two.hostfile_text, "10.0.0.4 slots=2\n10.0.0.5 slots=2\n");
}

#[test]
fn the_environment_of_a_node() {
    let layout = layout(&assignment(TWO, 1, spec())).unwrap();
    let expected = [
        ("AZ_BATCHAI_CLUSTER_NAME", "c"),
        ("AZ_BATCHAI_GPU_COUNT", "2"),
        ("AZ_BATCHAI_IS_CURRENT_NODE_MASTER", "false"),
        ("AZ_BATCHAI_JOB_MASTER_NODE_IP", "10.0.0.4"),
        ("AZ_BATCHAI_JOB_MOUNT_ROOT", "/d/jobs/0d1e2f304152-1/mounts"),
        ("AZ_BATCHAI_JOB_TEMP", "/d/jobs/0d1e2f304152-1"),
        ("AZ_BATCHAI_JOB_TEMP_DIR", "/d/jobs/0d1e2f304152-1"),
        ("AZ_BATCHAI_JOB_WORK_DIR", "/d/jobs/0d1e2f304152-1"),
        ("AZ_BATCHAI_MOUNT_ROOT", "/d/mounts/w/c"),
        (
            "AZ_BATCHAI_MPI_HOST_FILE",
            "/d/jobs/0d1e2f304152-1/hostfile",
        ),
        ("AZ_BATCHAI_MPI_MASTER_NODE", "10.0.0.4"),
        ("AZ_BATCHAI_NODE_IP", "10.0.0.5"),
        ("AZ_BATCHAI_NUM_GPUS", "2"),
        ("AZ_BATCHAI_NUM_GPUS_PER_NODE", "2"),
        (
            "AZ_BATCHAI_SHARED_JOB_TEMP",
            "/d/jobs/0d1e2f304152-1/shared",
        ),
        (
            "AZ_BATCHAI_STDOUTERR_DIR",
            "/d/mounts/w/c/ext/wuid/workspaces/w/experiments/e/jobs/j/juid/stdouterr",
        ),
        ("AZ_BATCH_HOST_LIST", "10.0.0.4,10.0.0.5"),
        ("AZ_BATCH_NODE_LIST", "10.0.0.4;10.0.0.5"),
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        ("CUDA_VISIBLE_DEVICES", "2,3"),
        ("GLOO_SOCKET_IFNAME", "eth0"),
        ("HOME", "/home/trainyard"),
        ("LANG", "C.UTF-8"),
        ("LOGNAME", "trainyard"),
        ("NCCL_SOCKET_IFNAME", "eth0"),
        ("PATH", "/usr/bin:/bin"),
        ("SHELL", "/bin/bash"),
        ("TMPDIR", "/d/jobs/0d1e2f304152-1/tmp"),
        ("TRAINYARD_ATTEMPT", "1"),
        ("TRAINYARD_JOB", "workspaces/w/experiments/e/jobs/j"),
        ("TRAINYARD_NODE", "n-2"),
        ("USER", "trainyard"),
    ];
    let found: Vec<(&str, &str)> = layout
        .environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn the_users_variables_win_but_for_gpus_that_others_hold() {
    let spec = JobSpec {
        environment_variables: vec![
            variable("PATH", "/opt/bin:$PATH"),
            variable("GLOO_SOCKET_IFNAME", "ib0"),
            variable("CUDA_VISIBLE_DEVICES", "0,1,2,3"),
            variable("WHICH", "$AZ_BATCHAI_TASK_INDEX"),
        ],
        ..spec()
    };
    let mut assignment = assignment(ONE, 0, spec);
    let environment = |assignment: &Assignment| {
        layout(assignment)
            .unwrap()
            .task_environment(&[("AZ_BATCHAI_TASK_INDEX", "5".into())])
    };
    let whole = environment(&assignment);
    assert_eq!(whole["PATH"], "/opt/bin:/usr/bin:/bin");
    assert_eq!(whole["GLOO_SOCKET_IFNAME"], "ib0");
    assert_eq!(whole["CUDA_VISIBLE_DEVICES"], "0,1,2,3");
    assert_eq!(whole["WHICH"], "5");

    assignment.nodes[0].whole_node = false;
    assert_eq!(environment(&assignment)["CUDA_VISIBLE_DEVICES"], "0,1");
}

#[test]
fn root_only_where_the_workspace_allows_it() {
    let mut assignment = assignment(ONE, 0, spec());
    assert_eq!(layout(&assignment).unwrap().user.name, "trainyard");
    assignment.run_as_root = true;
    assert_eq!(layout(&assignment).unwrap().user.name, "root");
}

#[test]
fn paths_that_leave_their_place_are_refused_by_field() {
    let prefix = |prefix: &str| {
        assignment(
            ONE,
            0,
            JobSpec {
                std_out_err_path_prefix: prefix.into(),
                ..spec()
            },
        )
    };
    let suffix = assignment(
        ONE,
        0,
        JobSpec {
            output_directories: vec![OutputDirectory {
                id: "O".into(),
                path_prefix: "/x".into(),
                path_suffix: "../../y".into(),
            }],
            ..spec()
        },
    );
    let volumes = |paths: &[&str]| {
        let mut assignment = assignment(ONE, 0, spec());
        assignment.job_volumes = paths.iter().map(|path| host_volume(path)).collect();
        assignment
    };
    let mut uid = assignment(ONE, 0, spec());
    uid.uid = "../../etc".into();
    let cases = [
        (prefix("$UNDEFINED/x/.."), "stdOutErrPathPrefix"),
        (prefix("relative"), "stdOutErrPathPrefix"),
        (suffix, "outputDirectories[0].pathSuffix"),
        (volumes(&["/etc"]), "relativeMountPath"),
        (volumes(&["a/../../b"]), "relativeMountPath"),
        (volumes(&["a", "a/b"]), "relativeMountPath"),
        (volumes(&["a", "./a"]), "relativeMountPath"),
        (volumes(&["."]), "relativeMountPath"),
        (uid, "uid"),
    ];
    for (assignment, field) in cases {
        let error = layout(&assignment).unwrap_err();
        assert_eq!(error.field, field, "{error}");
    }
}

#[test]
fn local_directories_can_be_made_twice_and_keep_their_modes() {
    let data = tempfile::tempdir().unwrap();
    let dirs = Dirs::new(data.path().join("data"));
    dirs.prepare().unwrap();
    let own = TaskUser::root_or_self().unwrap();
    let facts = Facts {
        task_user: own.clone(),
        further_users: Vec::new(),
        root_user: own,
        ..facts()
    };
    for (nodes, shared_is_link) in [(ONE, false), (TWO, true)] {
        let mut assignment = assignment(nodes, 0, spec());
        assignment.attempt = u32::from(shared_is_link) + 1;
        let layout = Layout::new(&dirs, &assignment, &facts).unwrap();
        layout.make_local().unwrap();
        layout.make_local().unwrap();
        let mode = |path: &Path| path.symlink_metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode(&layout.job_root), 0o1770);
        assert_eq!(mode(&layout.spool_dir), 0o700);
        assert_eq!(mode(&layout.job_mounts), 0o755);
        assert_eq!(layout.shared_temp.is_symlink(), shared_is_link);
        assert_eq!(
            std::fs::read_to_string(&layout.hostfile).unwrap(),
            layout.hostfile_text
        );
    }
}

#[test]
fn each_attempt_has_a_shared_directory_of_its_own() {
    let mut assignment = assignment(TWO, 0, spec());
    let target = |assignment: &Assignment| layout(assignment).unwrap().shared_target.unwrap();
    let first = target(&assignment);
    assignment.attempt = 2;
    let second = target(&assignment);
    assert!(first.ends_with("shared"), "{}", first.display());
    assert!(second.ends_with("shared-2"), "{}", second.display());
}

#[test]
fn a_cluster_chooses_among_the_users_that_the_agent_allows() {
    let dirs = Dirs::new("/d".into());
    let mut facts = facts();
    facts.further_users = vec![TaskUser {
        name: "alice".into(),
        ..facts.task_user.clone()
    }];
    assert_eq!(facts.user_names(), ["trainyard", "alice"]);
    let mut assignment = assignment(ONE, 0, spec());
    for (wanted, as_root, user) in [
        ("", false, "trainyard"),
        ("alice", false, "alice"),
        ("trainyard", false, "trainyard"),
        ("alice", true, "root"),
    ] {
        assignment.task_user = wanted.to_owned();
        assignment.run_as_root = as_root;
        let layout = Layout::new(&dirs, &assignment, &facts).unwrap();
        assert_eq!(layout.user.name, user, "{wanted} {as_root}");
    }
    assignment.run_as_root = false;
    for refused in ["mallory", "root"] {
        assignment.task_user = refused.to_owned();
        let error = Layout::new(&dirs, &assignment, &facts).unwrap_err();
        assert_eq!(error.field, "userAccountSettings.adminUserName");
        assert!(error.message.contains("task_users"), "{error}");
    }
}
