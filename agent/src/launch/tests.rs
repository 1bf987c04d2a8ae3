use trainyard_proto::v1::{
    Assignment, CustomToolkitSettings, JobPreparation, JobSpec, PyTorchSettings, TorchrunSettings,
};

use super::*;
use crate::layout::tests::{assignment, facts, layout, spec, variable};

const ONE: &[(&str, &str, &[u32])] = &[("n-1", "10.0.0.4", &[0, 1, 2, 3])];
const TWO: &[(&str, &str, &[u32])] = &[("n-1", "10.0.0.4", &[0, 1]), ("n-2", "10.0.0.5", &[0, 1])];

fn planned(assignment: &Assignment) -> Result<LaunchPlan, LaunchError> {
    plan(assignment, &layout(assignment).unwrap(), &facts())
}

/// A task in short: name, command, files, and the variables that the node's other tasks lack.
fn brief(task: &TaskPlan, assignment: &Assignment) -> (String, String, String, Vec<String>) {
    assert_eq!(task.argv[..2], ["/bin/bash", "-c"]);
    assert_eq!(task.argv.len(), 3);
    let common = layout(assignment).unwrap().environment;
    let own = task
        .env
        .iter()
        .filter(|(name, value)| common.get(*name) != Some(value));
    (
        task.name.clone(),
        task.argv[2].clone(),
        format!("{} {}", task.stdout, task.stderr),
        own.map(|(name, value)| format!("{name}={value}")).collect(),
    )
}

fn expect(
    name: &str,
    command: &str,
    files: &str,
    variables: &[&str],
) -> (String, String, String, Vec<String>) {
    (
        name.into(),
        command.into(),
        files.into(),
        variables
            .iter()
            .map(|&variable| variable.to_owned())
            .collect(),
    )
}

fn custom() -> JobSpec {
    let settings = CustomToolkitSettings {
        command_line: "echo \"$AZ_BATCH_HOST_LIST\" | tee x".into(),
    };
    JobSpec {
        custom_toolkit_settings: Some(settings),
        ..spec()
    }
}

fn pytorch(process_count: u32) -> JobSpec {
    JobSpec {
        py_torch_settings: Some(PyTorchSettings {
            python_script_file_path: "$AZ_BATCHAI_MOUNT_ROOT/ext/my script.py".into(),
            command_line_args: "--init $AZ_BATCHAI_PYTORCH_INIT_METHOD\n --name 'a b'".into(),
            process_count,
            communication_backend: "Gloo".into(),
            ..PyTorchSettings::default()
        }),
        ..spec()
    }
}

fn torchrun(settings: TorchrunSettings) -> JobSpec {
    let script = "/s/train.py".to_owned();
    JobSpec {
        torchrun_settings: Some(TorchrunSettings {
            python_script_file_path: script,
            ..settings
        }),
        ..spec()
    }
}

#[test]
fn a_custom_command_runs_on_the_first_node_alone() {
    let mut first = assignment(TWO, 0, custom());
    first.rendezvous_port = 30000;
    let plan = planned(&first).unwrap();
    assert_eq!(plan.tasks.len(), 1);
    assert_eq!(
        brief(&plan.tasks[0], &first),
        expect(
            "main",
            "echo \"$AZ_BATCH_HOST_LIST\" | tee x",
            "stdout.txt stderr.txt",
            &["AZ_BATCH_MASTER_NODE=10.0.0.4:30000"],
        )
    );
    assert_eq!(plan.tasks[0].cwd.to_str(), Some("/d/jobs/0d1e2f304152-1"));
    assert_eq!(
        files(&plan.tasks).collect::<Vec<_>>(),
        ["stdout.txt", "stderr.txt"]
    );
    assert!(
        planned(&assignment(TWO, 1, custom()))
            .unwrap()
            .tasks
            .is_empty()
    );
}

#[test]
fn preparation_runs_on_every_node() {
    let spec = JobSpec {
        job_preparation: Some(JobPreparation {
            command_line: "mkdir -p $AZ_BATCHAI_OUTPUT_X".into(),
        }),
        environment_variables: vec![variable("A", "$AZ_BATCHAI_NODE_IP")],
        ..custom()
    };
    let second = assignment(TWO, 1, spec);
    let task = preparation(&second, &layout(&second).unwrap()).unwrap();
    assert_eq!(
        brief(&task, &second),
        expect(
            "job_prep",
            "mkdir -p $AZ_BATCHAI_OUTPUT_X",
            "stdout-job_prep-n-2.txt stderr-job_prep-n-2.txt",
            &["A=10.0.0.5"],
        )
    );
    let none = assignment(ONE, 0, custom());
    assert_eq!(preparation(&none, &layout(&none).unwrap()), None);
}

#[test]
fn one_pytorch_rank_per_node_by_default() {
    let mut second = assignment(TWO, 1, pytorch(0));
    second.rendezvous_port = 30000;
    let plan = planned(&second).unwrap();
    assert_eq!(plan.tasks.len(), 1);
    assert_eq!(
        brief(&plan.tasks[0], &second),
        expect(
            "rank-1",
            "python3 '/d/mounts/w/c/ext/my script.py' --init $AZ_BATCHAI_PYTORCH_INIT_METHOD  --name 'a b'",
            "stdout-1.txt stderr-1.txt",
            &[
                "AZ_BATCHAI_PYTORCH_BACKEND=gloo",
                "AZ_BATCHAI_PYTORCH_INIT_METHOD=tcp://10.0.0.4:30000",
                "AZ_BATCHAI_TASK_INDEX=1",
                "AZ_BATCHAI_TASK_TYPE=worker",
                "AZ_BATCH_MASTER_NODE=10.0.0.4:30000",
                "LOCAL_RANK=0",
                "LOCAL_WORLD_SIZE=1",
                "MASTER_ADDR=10.0.0.4",
                "MASTER_PORT=30000",
                "RANK=1",
                "WORLD_SIZE=2",
            ],
        )
    );
    assert_eq!(
        plan.preflight,
        Preflight {
            files: vec![(
                "pyTorchSettings.pythonScriptFilePath".into(),
                "/d/mounts/w/c/ext/my script.py".into()
            )],
            programs: vec![(
                "pyTorchSettings.pythonInterpreterPath".into(),
                "python3".into()
            )],
            shm_bytes: None,
            path: "/usr/bin:/bin".into(),
            cwd: "/d/jobs/0d1e2f304152-1".into(),
        }
    );
}

#[test]
fn pytorch_ranks_of_a_node_share_its_gpus() {
    let one = assignment(ONE, 0, pytorch(2));
    let plan = planned(&one).unwrap();
    let shown: Vec<_> = plan
        .tasks
        .iter()
        .map(|task| {
            [
                "RANK",
                "LOCAL_RANK",
                "LOCAL_WORLD_SIZE",
                "CUDA_VISIBLE_DEVICES",
                "MASTER_PORT",
            ]
            .map(|name| task.env[name].as_str())
        })
        .collect();
    assert_eq!(
        shown,
        [
            ["0", "0", "2", "0,1", "29500"],
            ["1", "1", "2", "2,3", "29500"]
        ]
    );
    assert_eq!(
        files(&plan.tasks).collect::<Vec<_>>(),
        [
            "stdout-0.txt",
            "stderr-0.txt",
            "stdout-1.txt",
            "stderr-1.txt"
        ]
    );

    let mut chosen = pytorch(2);
    chosen.environment_variables = vec![variable("CUDA_VISIBLE_DEVICES", "3")];
    let plan = planned(&assignment(ONE, 0, chosen)).unwrap();
    assert!(
        plan.tasks
            .iter()
            .all(|task| task.env["CUDA_VISIBLE_DEVICES"] == "3")
    );
}

#[test]
fn torchrun_once_per_node_with_a_process_per_gpu() {
    let settings = TorchrunSettings {
        python_interpreter_path: "$AZ_BATCHAI_MOUNT_ROOT/ext/venv/bin/python".into(),
        command_line_args: "--epochs 2".into(),
        max_restarts: 3,
        ..TorchrunSettings::default()
    };
    let mut second = assignment(TWO, 1, torchrun(settings));
    second.rendezvous_port = 30000;
    let plan = planned(&second).unwrap();
    assert_eq!(plan.tasks.len(), 1);
    assert_eq!(
        brief(&plan.tasks[0], &second),
        expect(
            "torchrun-1",
            "/d/mounts/w/c/ext/venv/bin/python -m torch.distributed.run --nnodes 2 --node_rank 1 --master_addr 10.0.0.4 \
             --master_port 30000 --nproc_per_node 2 --max_restarts 3 /s/train.py --epochs 2",
            "stdout-1.txt stderr-1.txt",
            &[
                "AZ_BATCHAI_TASK_INDEX=1",
                "AZ_BATCHAI_TASK_TYPE=worker",
                "AZ_BATCH_MASTER_NODE=10.0.0.4:30000",
                "PET_REDIRECTS=9:1",
                "PET_TEE=9:1",
            ],
        )
    );
}

#[test]
fn torchrun_on_one_node_without_gpus() {
    let one = assignment(
        &[("n-1", "127.0.0.1", &[])],
        0,
        torchrun(TorchrunSettings::default()),
    );
    let plan = planned(&one).unwrap();
    assert_eq!(
        plan.tasks[0].argv[2],
        "python3 -m torch.distributed.run --nnodes 1 --node_rank 0 --master_addr 127.0.0.1 --master_port 29500 \
         --nproc_per_node 1 --max_restarts 0 /s/train.py"
    );
    assert!(!plan.tasks[0].env.contains_key("CUDA_VISIBLE_DEVICES"));
}

#[test]
fn what_cannot_be_launched_names_its_field() {
    let mpi = {
        let mut spec = pytorch(2);
        spec.py_torch_settings
            .as_mut()
            .unwrap()
            .communication_backend = "MPI".into();
        spec
    };
    let script = {
        let mut spec = pytorch(1);
        spec.py_torch_settings
            .as_mut()
            .unwrap()
            .python_script_file_path = "$NOWHERE".into();
        spec
    };
    let cases = [
        (mpi, "pyTorchSettings.communicationBackend"),
        (script, "pyTorchSettings.pythonScriptFilePath"),
        (spec(), "job"),
    ];
    for (spec, field) in cases {
        assert_eq!(planned(&assignment(ONE, 0, spec)).unwrap_err().field, field);
    }
    let portless = assignment(TWO, 0, torchrun(TorchrunSettings::default()));
    let facts = Facts {
        rendezvous_port: 0,
        ..facts()
    };
    let error = plan(&portless, &layout(&portless).unwrap(), &facts).unwrap_err();
    assert_eq!(error.field, "rendezvousPort");
    assert!(needs_port(&portless));
}

#[test]
fn a_spec_for_the_shim_points_into_spool_and_share() {
    let one = assignment(ONE, 0, custom());
    let layout = layout(&one).unwrap();
    let options = SpecOptions {
        lease_file: Some("/d/lease".into()),
        stop_grace_ms: 500,
    };
    let task = &planned(&one).unwrap().tasks[0];
    let group = Confinement::CgroupV2 { base: "/g".into() };
    let spec = task.spec(&layout, &group, &options);
    assert_eq!(
        spec.dir.to_str(),
        Some("/d/attempts/0d1e2f30-4152-6374-8596-a7b8c9dadbec-1/tasks/main")
    );
    assert_eq!(
        spec.stdout.spool.to_str(),
        Some("/d/spool/0d1e2f30-4152-6374-8596-a7b8c9dadbec-1/stdout.txt")
    );
    assert_eq!(
        spec.stderr.share,
        Some(layout.stdouterr_dir.join("stderr.txt"))
    );
    assert_eq!(
        spec.group,
        Some("/g/n-1.0d1e2f30-4152-6374-8596-a7b8c9dadbec-1.main".into())
    );
    assert_eq!(
        (spec.user.uid, spec.attempt, spec.stop_grace_ms),
        (990, 1, 500)
    );
    assert_eq!(
        task.spec(&layout, &Confinement::ProcessGroup, &options)
            .group,
        None
    );
}
