//! A public Batch AI recipe, unmodified: real distributed training over two hosts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a scenario stops at the first surprise"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use trainyard_e2e::cluster::{CLUSTER, Cluster, WORKSPACE, in_experiment, text};

const TRAINING_TIMEOUT: Duration = Duration::from_secs(300);

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

#[test]
fn the_pytorch_recipe_trains_on_two_hosts() {
    let cluster = Cluster::builder().nodes(2).start().unwrap();
    cluster.open_workspace(2).unwrap();
    let scripts = cluster.open_folder("scripts").unwrap();
    fs::create_dir(scripts.join("pytorch")).unwrap();
    let trainer = repository("deploy/training/mnist_trainer.py");
    fs::copy(trainer, scripts.join("pytorch/mnist_trainer.py")).unwrap();
    let scripts = format!("scripts=hostPath:{}", scripts.display());
    let update = [
        "workspace",
        "update",
        "-n",
        WORKSPACE,
        "--bind-storage",
        &scripts,
    ];
    let image = ["--bind-image", "pytorch/pytorch:0.4_cuda9_cudnn7=host"];
    cluster.command([&update[..], &image].concat()).unwrap();

    let file = repository("tests/data/recipes/PyTorch-GPU-Distributed-Gloo/job.json");
    let file = file.display().to_string();
    let rest = ["-n", "recipe", "-c", CLUSTER, "-f", &file, "--follow"];
    let followed = cluster
        .background(in_experiment(&["job", "create"], &rest))
        .unwrap();
    let done = followed.finish(TRAINING_TIMEOUT).unwrap();
    assert_eq!(done.status, 0, "{done:#?}");
    for rank in ["[rank 0]", "[rank 1]"] {
        let said = |text: &str| {
            done.stdout
                .lines()
                .any(|line| line.contains(rank) && line.contains(text))
        };
        assert!(said("epoch 10/10") && said("test accuracy"), "{done:#?}");
    }
    let job = cluster.show("recipe").unwrap();
    assert_eq!(text(&job, "/toolType"), "pytorch", "{job:#}");
    let nodes = job["attempts"][0]["nodes"].as_array().unwrap();
    let names: Vec<_> = nodes.iter().map(|node| text(node, "/node")).collect();
    assert_eq!(names, ["nodes/node-1", "nodes/node-2"]);
    for (rank, node) in nodes.iter().enumerate() {
        let files = node["status"]["files"].as_array().unwrap();
        let wanted = format!("stdout-{rank}.txt");
        assert!(files.iter().any(|file| *file == *wanted), "{node:#}");
    }
    for file in [
        "stdout-0.txt",
        "stdout-1.txt",
        "execution-node-1.log",
        "execution-node-2.log",
    ] {
        assert!(!cluster.log("recipe", file).unwrap().is_empty(), "{file}");
    }
}
