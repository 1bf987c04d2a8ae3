//! §12: the job files of the public recipes, unmodified.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use trainyard_e2e::cluster::{CLUSTER, Cluster, WORKSPACE, in_experiment};

use crate::sheet::Sheet;

pub(crate) fn recipes(cluster: &Cluster, sheet: &mut Sheet) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/recipes");
    let mut names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    names.sort();
    assert_eq!(names.len(), 7);
    let data = cluster.open_folder("data").unwrap();
    for share in ["scripts", "data"] {
        let binding = format!("{share}=hostPath:{}", data.display());
        cluster
            .command([
                "workspace",
                "update",
                "-n",
                WORKSPACE,
                "--bind-storage",
                &binding,
            ])
            .unwrap();
    }
    let mut bound = BTreeSet::new();
    for path in names {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let file = path.join("job.json");
        let value: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let image = value
            .pointer("/properties/containerSettings/imageSourceRegistry/image")
            .and_then(Value::as_str)
            .unwrap();
        let file = file.display().to_string();
        let done = cluster.attempt(["job", "validate", "-f", &file]).unwrap();
        sheet.equal(
            &format!("§12 {name}: job validate accepts it unmodified"),
            done.status,
            0,
        );
        let create = |rest: &[&str]| {
            cluster
                .attempt(in_experiment(
                    &["job", "create"],
                    &[&["-n", "recipe", "-c", CLUSTER, "-f", &file], rest].concat(),
                ))
                .unwrap()
        };
        if bound.insert(image.to_owned()) {
            sheet.refused(
                &format!("§12 {name}: an image that is not bound is refused"),
                &create(&["--dry-run"]),
                &[image],
            );
        }
        cluster
            .command([
                "workspace",
                "update",
                "-n",
                WORKSPACE,
                "--bind-image",
                &format!("{image}=host"),
            ])
            .unwrap();
        let done = create(&["--dry-run"]);
        sheet.row(
            &format!("§12 {name}: job create --dry-run accepts it unmodified"),
            done.status == 0,
            &done,
        );
        if value.pointer("/properties/pyTorchSettings").is_none() {
            sheet.refused(
                &format!("§12 {name}: creating what cannot be started says so"),
                &create(&[]),
                &["cannot be started"],
            );
        }
    }
}
