//! Job and cluster files: real ones, wrong ones, and the same in YAML.
// Helpers stand outside of the test functions that clippy knows.
#![allow(clippy::unwrap_used, clippy::panic)]

mod compatibility;
mod mistakes;
mod resources;
mod schemas;
mod syntax;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use trainyard_proto::v1::{JobSpec, SchedulingPriority};
use trainyard_shared::file::{self, FileErrors, Format, Parsed};
use trainyard_shared::toolkit::Toolkit;
use trainyard_shared::validate;

fn read(text: &str, format: Format) -> Result<Parsed<JobSpec>, FileErrors> {
    file::read("job", text, format)
}

fn yaml(value: &Value) -> String {
    serde_yaml_ng::to_string(value).unwrap()
}

#[test]
fn every_recipe_is_read_in_json_and_yaml() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/recipes");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path().join("job.json");
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        count += 1;
        let parsed = read(&text, Format::Json).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        assert_eq!(parsed.warnings, [], "{path:?}");
        Toolkit::of(&parsed.message).unwrap();
        assert!(parsed.message.node_count > 0);
        assert!(parsed.message.mount_volumes.is_some());
        // Accepted as it is; the cluster alone is still to be named.
        file::job_file("job.json", &text, Format::Json).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let missing = validate::job(&parsed.message);
        assert!(
            missing.iter().all(|one| one.field == "cluster"),
            "{path:?}: {missing:?}"
        );
        let value: Value = serde_json::from_str(&text).unwrap();
        let from_yaml = read(&yaml(&value), Format::Yaml).unwrap();
        assert_eq!(from_yaml.message, parsed.message, "{path:?}");
        // Without the envelope as well.
        let bare = read(&value["properties"].to_string(), Format::Json).unwrap();
        assert_eq!(bare.message, parsed.message, "{path:?}");
    }
    assert_eq!(count, 7);
}

/// A job without fault.
fn job() -> Value {
    json!({
        "cluster": {"id": "gpus"},
        "nodeCount": 2,
        "schedulingPriority": "High",
        "pyTorchSettings": {
            "pythonScriptFilePath": "$AZ_BATCHAI_JOB_MOUNT_ROOT/scripts/train.py",
            "communicationBackend": "Gloo",
            "processCount": 4,
        },
        "stdOutErrPathPrefix": "$AZ_BATCHAI_JOB_MOUNT_ROOT/logs",
        "mountVolumes": {
            "azureFileShares": [
                {"azureFileUrl": "https://acc.file.core.windows.net/logs", "relativeMountPath": "logs"},
            ],
            "fileServers": [{"fileServer": {"id": "nfs"}, "relativeMountPath": "data"}],
        },
        "inputDirectories": [{"id": "DATA", "path": "$AZ_BATCHAI_JOB_MOUNT_ROOT/data"}],
        "outputDirectories": [{"id": "MODEL", "pathPrefix": "/out", "pathSuffix": "Models"}],
        "environmentVariables": [{"name": "A", "value": "1"}],
        "constraints": {"maxWallClockTime": "PT1H"},
        "resourcesPerNode": {"gpus": 1},
    })
}

#[test]
fn a_good_job_is_good() {
    let text = serde_json::to_string_pretty(&job()).unwrap();
    let parsed = file::job_file("job.json", &text, Format::Json).unwrap();
    let spec = &parsed.message;
    assert_eq!(spec.scheduling_priority(), SchedulingPriority::High);
    assert_eq!(
        spec.constraints
            .clone()
            .unwrap()
            .max_wall_clock_time
            .unwrap()
            .seconds,
        3600
    );
    assert_eq!(parsed.warnings, []);
    // Fields, entries of lists and fields that the file lacks are all found.
    assert_eq!(
        parsed.locate("nodeCount"),
        Some((line(&text, "nodeCount"), 16))
    );
    assert_eq!(
        parsed
            .locate("mountVolumes.azureFileShares[0].relativeMountPath")
            .unwrap()
            .0,
        line(&text, "relativeMountPath")
    );
    let settings = line(&text, "pyTorchSettings");
    assert_eq!(
        parsed.locate("pyTorchSettings.commandLineArgs"),
        Some((settings, 3))
    );
    assert_eq!(parsed.locate("jobPreparation.commandLine"), Some((1, 1)));
}

fn line(text: &str, word: &str) -> usize {
    1 + text.lines().position(|line| line.contains(word)).unwrap()
}

#[test]
fn the_format_is_guessed() {
    for (name, text, format) in [
        ("job.yaml", "{}", Format::Yaml),
        ("JOB.YML", "{}", Format::Yaml),
        ("job.json", "a: 1", Format::Json),
        ("-", " \n{\"a\": 1}", Format::Json),
        ("-", "a: 1", Format::Yaml),
    ] {
        assert_eq!(Format::guess(name, text), format, "{name} {text}");
    }
}
