//! Real PyTorch under the launchers, where Debian's `python3-torch` is installed: two nodes on one host, gloo, a sum
//! over all processes. Left out elsewhere.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use trainyard_agent::confine::{Confinement, TaskUser};
use trainyard_agent::launch::{self, SpecOptions};
use trainyard_agent::layout::{Dirs, Facts, Layout};
use trainyard_agent::shim;
use trainyard_proto::v1::{
    Assignment, AttemptNode, EnvironmentVariable, JobSpec, PyTorchSettings, TorchrunSettings,
};

/// Debian's torch belongs to Debian's Python.
const PYTHON: &str = "/usr/bin/python3";

const SCRIPT: &str = r#"
import os, sys, torch, torch.distributed as dist
url = sys.argv[1] if len(sys.argv) > 1 else "env://"
dist.init_process_group("gloo", init_method=url, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
total = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(total)
sys.stdout.write(f"rank {dist.get_rank()} of {dist.get_world_size()} local {os.environ['LOCAL_RANK']}: {total.item()}\n")
sys.stdout.flush()
"#;

fn has_torch() -> bool {
    Path::new(PYTHON).exists() && Path::new("/usr/lib/python3/dist-packages/torch").is_dir()
}

fn assignment(spec: JobSpec, node_index: u32, port: u16) -> Assignment {
    let node = |name: &str| AttemptNode {
        node: format!("nodes/{name}"),
        address: "127.0.0.1".into(),
        whole_node: true,
        ..AttemptNode::default()
    };
    Assignment {
        job: "workspaces/w/experiments/e/jobs/j".into(),
        uid: "0d1e2f30-4152-6374-8596-a7b8c9dadbec".into(),
        attempt: 1,
        spec: Some(JobSpec {
            std_out_err_path_prefix: "$AZ_BATCHAI_JOB_TEMP_DIR".into(),
            environment_variables: vec![EnvironmentVariable {
                name: "OMP_NUM_THREADS".into(),
                value: "1".into(),
            }],
            ..spec
        }),
        nodes: vec![node("n-1"), node("n-2")],
        node_index,
        path_segment: "segment".into(),
        cluster: "workspaces/w/clusters/c".into(),
        rendezvous_port: u32::from(port),
        ..Assignment::default()
    }
}

/// Runs a job on two nodes of this host; returns all lines of stdout, sorted.
async fn run(make: impl Fn(&Path) -> JobSpec) -> Vec<String> {
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = place.path().join("train it.py");
    std::fs::write(&script, SCRIPT).unwrap();
    let (port, listener) = launch::free_port("127.0.0.1").unwrap();
    let own = TaskUser::root_or_self().unwrap();
    let facts = Facts {
        interface: Some("lo".into()),
        task_user: own.clone(),
        further_users: Vec::new(),
        root_user: own,
        path: "/usr/bin:/bin".into(),
        default_python: PYTHON.into(),
        rendezvous_port: 0,
    };
    let mut started = Vec::new();
    let mut streams: Vec<PathBuf> = Vec::new();
    drop(listener);
    for node_index in 0..2 {
        let dirs = Dirs::new(place.path().join(format!("node-{node_index}")));
        dirs.prepare().unwrap();
        let assignment = assignment(make(&script), node_index, port);
        let layout = Layout::new(&dirs, &assignment, &facts).unwrap();
        layout.make_local().unwrap();
        std::fs::create_dir_all(&layout.stdouterr_dir).unwrap();
        let plan = launch::plan(&assignment, &layout, &facts).unwrap();
        for task in &plan.tasks {
            let options = SpecOptions {
                lease_file: None,
                stop_grace_ms: 1_000,
            };
            let spec = task.spec(&layout, &Confinement::ProcessGroup, &options);
            let program = Path::new(env!("CARGO_BIN_EXE_trainyard-agent"));
            started.push(shim::spawn(program, &spec).await.unwrap());
            streams.push(layout.stdouterr_dir.join(&task.stdout));
            streams.push(layout.stdouterr_dir.join(&task.stderr));
        }
    }
    let mut codes = Vec::new();
    for handle in &mut started {
        let ended = tokio::time::timeout(Duration::from_secs(120), handle.wait()).await;
        if ended.is_err() {
            handle.kill();
        }
        codes.push(ended.expect("the ranks must meet").unwrap().exit_code);
    }
    let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let text: String = streams.iter().map(read).collect();
    assert!(codes.iter().all(|code| *code == 0), "{codes:?}\n{text}");
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with("rank "))
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn torchrun_joins_the_processes_of_two_nodes() {
    if !has_torch() {
        return;
    }
    let lines = run(|script| JobSpec {
        torchrun_settings: Some(TorchrunSettings {
            python_script_file_path: script.display().to_string(),
            nproc_per_node: 2,
            ..TorchrunSettings::default()
        }),
        ..JobSpec::default()
    })
    .await;
    let expected = [
        "rank 0 of 4 local 0: 10",
        "rank 1 of 4 local 1: 10",
        "rank 2 of 4 local 0: 10",
        "rank 3 of 4 local 1: 10",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn pytorch_ranks_meet_at_the_init_method() {
    if !has_torch() {
        return;
    }
    let lines = run(|script| JobSpec {
        py_torch_settings: Some(PyTorchSettings {
            python_script_file_path: script.display().to_string(),
            command_line_args: "$AZ_BATCHAI_PYTORCH_INIT_METHOD".into(),
            process_count: 3,
            communication_backend: "gloo".into(),
            ..PyTorchSettings::default()
        }),
        ..JobSpec::default()
    })
    .await;
    assert_eq!(
        lines,
        [
            "rank 0 of 3 local 0: 6",
            "rank 1 of 3 local 1: 6",
            "rank 2 of 3 local 0: 6"
        ]
    );
}
