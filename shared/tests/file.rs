//! Job and cluster files: real ones, wrong ones, and the same in YAML.
// Helpers stand outside of the test functions that clippy knows.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use trainyard_proto::v1::{Cluster, FileServer, JobSpec, SchedulingPriority, Workspace};
use trainyard_shared::file::{self, FileErrors, Format, Issue, Parsed};
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
        let toolkit = Toolkit::of(&parsed.message).unwrap();
        assert!(parsed.message.node_count > 0);
        assert!(parsed.message.mount_volumes.is_some());
        // Nothing but the toolkits that are still to come, and the cluster that the command names, is missing.
        for violation in validate::job(&parsed.message) {
            let expected = violation.field == "cluster"
                || (!toolkit.launchable() && violation.field == toolkit.key());
            assert!(expected, "{path:?}: {violation}");
        }
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

/// Sets a value by its path; null removes it.
fn set(value: &mut Value, pointer: &str, new: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = value.pointer_mut(parent).unwrap();
    match (parent, new) {
        (Value::Object(map), Value::Null) => {
            map.remove(key);
        }
        (Value::Object(map), new) => {
            map.insert(key.to_owned(), new);
        }
        (Value::Array(list), new) => list[key.parse::<usize>().unwrap()] = new,
        _ => panic!("{pointer}"),
    }
}

/// What is said about a file, in JSON and in YAML, which must agree.
fn said(value: &Value) -> (Vec<Issue>, Vec<Issue>) {
    let judge = |text: &str, format| match file::job_file("f", text, format) {
        Ok(parsed) => (vec![], parsed.warnings),
        Err(refused) => (refused.errors, refused.warnings),
    };
    let text = serde_json::to_string_pretty(value).unwrap();
    let from_json = judge(&text, Format::Json);
    let from_yaml = judge(&yaml(value), Format::Yaml);
    let bare = |issues: &[Issue]| -> Vec<(String, String)> {
        // Lines differ between the two.
        let mut bare: Vec<_> = issues
            .iter()
            .map(|issue| (issue.field.clone(), issue.message.clone()))
            .collect();
        bare.sort();
        bare
    };
    assert_eq!(bare(&from_json.0), bare(&from_yaml.0), "{text}");
    assert_eq!(bare(&from_json.1), bare(&from_yaml.1), "{text}");
    for issue in from_json.0.iter().chain(&from_json.1) {
        let last = issue.field.rsplit('.').next().unwrap();
        let key = last.split('[').next().unwrap();
        let shown = text.lines().nth(issue.line - 1).unwrap();
        // A field that is there is pointed at; one that is missing, at what lies around it.
        if text.contains(&format!("\"{key}\""))
            && !issue.message.starts_with("required")
            && !last.contains('[')
        {
            assert!(shown.contains(key), "{issue} points at {shown:?}");
        }
    }
    from_json
}

#[test]
fn every_mistake_is_found_with_its_field() {
    let cases: Vec<(&str, Value, &str, &str)> = vec![
        // Wrong types.
        ("/nodeCount", json!("2"), "nodeCount", "remove the quotes"),
        (
            "/nodeCount",
            json!("two"),
            "nodeCount",
            "expected a whole number, found a string",
        ),
        (
            "/nodeCount",
            json!(1.5),
            "nodeCount",
            "from 0 to 4294967295",
        ),
        ("/nodeCount", json!(-1), "nodeCount", "from 0 to 4294967295"),
        (
            "/nodeCount",
            json!(4_294_967_296_u64),
            "nodeCount",
            "from 0 to 4294967295",
        ),
        ("/nodeCount", json!([2]), "nodeCount", "found a list"),
        (
            "/nodeCount",
            json!(true),
            "nodeCount",
            "found true or false",
        ),
        (
            "/schedulingPriority",
            json!("urgent"),
            "schedulingPriority",
            "write one of low, normal, high",
        ),
        (
            "/schedulingPriority",
            json!(2),
            "schedulingPriority",
            "write one of low, normal, high",
        ),
        (
            "/stdOutErrPathPrefix",
            json!(5),
            "stdOutErrPathPrefix",
            "put it in quotes",
        ),
        (
            "/stdOutErrPathPrefix",
            json!({}),
            "stdOutErrPathPrefix",
            "expected a string, found an object",
        ),
        (
            "/cluster",
            json!("gpus"),
            "cluster",
            "found a string; write an object with id",
        ),
        (
            "/mountVolumes",
            json!([]),
            "mountVolumes",
            "found a list; write an object with azureFileShares",
        ),
        (
            "/mountVolumes/azureFileShares",
            json!({}),
            "mountVolumes.azureFileShares",
            "expected a list",
        ),
        (
            "/mountVolumes/azureFileShares/0",
            json!("logs"),
            "mountVolumes.azureFileShares[0]",
            "expected an object",
        ),
        (
            "/environmentVariables/0/value",
            json!(1),
            "environmentVariables[0].value",
            "put it in quotes",
        ),
        (
            "/environmentVariables/0/value",
            json!(true),
            "environmentVariables[0].value",
            "put it in quotes",
        ),
        (
            "/constraints/maxWallClockTime",
            json!(3600),
            "constraints.maxWallClockTime",
            "\"PT1H30M\"",
        ),
        (
            "/constraints/maxWallClockTime",
            json!("an hour"),
            "constraints.maxWallClockTime",
            "PT1H30M",
        ),
        (
            "/constraints/maxWallClockTime",
            json!("P1Y"),
            "constraints.maxWallClockTime",
            "write days",
        ),
        // Missing.
        ("/nodeCount", json!(null), "nodeCount", "required"),
        ("/nodeCount", json!(0), "nodeCount", "at least 1"),
        (
            "/stdOutErrPathPrefix",
            json!(null),
            "stdOutErrPathPrefix",
            "required",
        ),
        (
            "/pyTorchSettings",
            json!(null),
            "",
            "no toolkit: write exactly one of pyTorchSettings, custom",
        ),
        (
            "/pyTorchSettings",
            json!({"communicationBackend": "tcp"}),
            "pyTorchSettings.pythonScriptFilePath",
            "required",
        ),
        ("/cluster/id", json!(""), "cluster.id", "1 to 64 letters"),
        (
            "/mountVolumes/azureFileShares/0/relativeMountPath",
            json!(null),
            "mountVolumes.azureFileShares[0].relativeMountPath",
            "required",
        ),
        (
            "/mountVolumes/azureFileShares/0/azureFileUrl",
            json!(null),
            "mountVolumes.azureFileShares[0].azureFileUrl",
            "required",
        ),
        (
            "/inputDirectories/0/id",
            json!(null),
            "inputDirectories[0].id",
            "required",
        ),
        (
            "/inputDirectories/0/path",
            json!(null),
            "inputDirectories[0].path",
            "required",
        ),
        (
            "/outputDirectories/0/pathPrefix",
            json!(null),
            "outputDirectories[0].pathPrefix",
            "required",
        ),
        (
            "/environmentVariables/0/name",
            json!(null),
            "environmentVariables[0].name",
            "required",
        ),
        (
            "/jobPreparation",
            json!({}),
            "jobPreparation.commandLine",
            "required",
        ),
        (
            "/containerSettings",
            json!({}),
            "containerSettings.imageSourceRegistry",
            "required",
        ),
        (
            "/containerSettings",
            json!({"imageSourceRegistry": {}}),
            "containerSettings.imageSourceRegistry.image",
            "required",
        ),
        // Without sense.
        (
            "/customToolkitSettings",
            json!({"commandLine": "x"}),
            "customToolkitSettings",
            "second toolkit",
        ),
        ("/nodeCount", json!(10_001), "nodeCount", "at most 10000"),
        (
            "/pyTorchSettings/processCount",
            json!(1),
            "pyTorchSettings.processCount",
            "less than nodeCount (2)",
        ),
        (
            "/pyTorchSettings/communicationBackend",
            json!(null),
            "pyTorchSettings.communicationBackend",
            "required",
        ),
        (
            "/pyTorchSettings/communicationBackend",
            json!("MPI"),
            "pyTorchSettings.communicationBackend",
            "mpirun",
        ),
        (
            "/pyTorchSettings/communicationBackend",
            json!("x"),
            "pyTorchSettings.communicationBackend",
            "unknown",
        ),
        (
            "/stdOutErrPathPrefix",
            json!("logs"),
            "stdOutErrPathPrefix",
            "begin with `/`",
        ),
        (
            "/stdOutErrPathPrefix",
            json!("$X/../../etc"),
            "stdOutErrPathPrefix",
            "leave out `..`",
        ),
        (
            "/outputDirectories/0/pathSuffix",
            json!("/abs"),
            "outputDirectories[0].pathSuffix",
            "relative",
        ),
        (
            "/outputDirectories/0/id",
            json!("stdouterr"),
            "outputDirectories[0].id",
            "choose another",
        ),
        (
            "/outputDirectories/0/id",
            json!("a b"),
            "outputDirectories[0].id",
            "1 to 64 letters",
        ),
        (
            "/environmentVariables/0/name",
            json!("A=B"),
            "environmentVariables[0].name",
            "leave out `=`",
        ),
        (
            "/environmentVariables/0/value",
            json!("a\u{0}b"),
            "environmentVariables[0].value",
            "NUL",
        ),
        (
            "/constraints/maxWallClockTime",
            json!("PT0S"),
            "constraints.maxWallClockTime",
            "longer than nothing",
        ),
        (
            "/constraints/maxWallClockTime",
            json!("-PT5S"),
            "constraints.maxWallClockTime",
            "longer than nothing",
        ),
        ("/cluster/id", json!("a b"), "cluster.id", "1 to 64 letters"),
        (
            "/cluster/id",
            json!("workspaces/w/jobs/j"),
            "cluster.id",
            "workspaces/WORKSPACE/clusters/CLUSTER",
        ),
        (
            "/mountVolumes/azureFileShares/0/azureFileUrl",
            json!("logs"),
            "mountVolumes.azureFileShares[0].azureFileUrl",
            "not the address of a share",
        ),
        (
            "/mountVolumes/azureFileShares/0/relativeMountPath",
            json!("../x"),
            "mountVolumes.azureFileShares[0].relativeMountPath",
            "leave out `..`",
        ),
        (
            "/mountVolumes/fileServers/0/relativeMountPath",
            json!("logs/inner"),
            "mountVolumes.fileServers[0].relativeMountPath",
            "choose another",
        ),
        (
            "/mountVolumes/fileServers/0/fileServer",
            json!({}),
            "mountVolumes.fileServers[0].fileServer.id",
            "required",
        ),
        (
            "/secrets",
            json!([{"name": "S", "value": "geheim"}]),
            "secrets[0]",
            "refused",
        ),
        (
            "/containerSettings",
            json!({"imageSourceRegistry": {"image": "i", "credentials": {"username": "u", "password": "geheim"}}}),
            "containerSettings.imageSourceRegistry.credentials",
            "refused",
        ),
        (
            "/containerSettings",
            json!({"imageSourceRegistry": {"image": "i"}, "shmSize": "big"}),
            "containerSettings.shmSize",
            "16gb",
        ),
        (
            "/resourcesPerNode/gpus",
            json!(9999),
            "resourcesPerNode.gpus",
            "at most",
        ),
    ];
    for (pointer, new, field, message) in cases {
        let mut value = job();
        set(&mut value, pointer, new.clone());
        let (errors, _) = said(&value);
        let found = errors.iter().find(|error| error.field == field);
        let found = found.unwrap_or_else(|| panic!("{pointer} = {new}: {errors:?}"));
        assert!(
            found.message.contains(message),
            "{pointer} = {new}: {found}"
        );
        assert_eq!(errors.len(), 1, "{pointer} = {new}: {errors:?}");
        assert!(!found.to_string().contains("geheim"));
    }
}

#[test]
fn all_mistakes_of_a_file_are_reported_in_its_order() {
    let text = r#"{
  "nodeCount": 0,
  "stdOutErrPathPrefix": "logs",
  "torchrunSettings": {
    "nprocPerNode": 5000,
    "maxRestarts": "2"
  },
  "mountVolumes": "none"
}"#;
    let refused = file::job_file("job.json", text, Format::Json).unwrap_err();
    let shown = refused.to_string();
    let places: Vec<&str> = shown
        .lines()
        .map(|line| line.split(": ").next().unwrap())
        .collect();
    assert_eq!(
        places,
        [
            "job.json:2:16",
            "job.json:3:26",
            "job.json:4:3",
            "job.json:5:21",
            "job.json:6:20",
            "job.json:8:19"
        ]
    );
}

#[test]
fn a_repeated_key_is_an_error_with_both_places() {
    let text = "nodeCount: 1\nstdOutErrPathPrefix: $X\nnodeCount: 2\n";
    let refused = read(text, Format::Yaml).unwrap_err();
    let expected = "job:3:1: nodeCount: stands already in line 1; keep one of the two";
    assert_eq!(refused.to_string(), expected);

    let text = "{\"nodeCount\": 1,\n \"properties\": {\"nodeCount\": 2}}";
    let refused = read(text, Format::Json).unwrap_err();
    assert!(
        refused
            .to_string()
            .starts_with("job:2:17: nodeCount: stands already"),
        "{refused}"
    );

    let two = "{\"pyTorchSettings\": {}, \"pyTorchSettings\": {}}";
    assert!(read(two, Format::Json).is_err());
    let tags = "tags: {a: x, a: y}";
    assert!(file::read::<Workspace>("w", tags, Format::Yaml).is_err());
}

#[test]
fn unknown_and_meaningless_keys_are_warned_about() {
    let mut value = job();
    set(&mut value, "/nodecount", json!(3));
    set(&mut value, "/processCount", json!(3));
    set(&mut value, "/comment", json!({"any": ["thing"]}));
    set(
        &mut value,
        "/mountVolumes/azureFileShares/0/credentials",
        json!({"accountKey": "geheim"}),
    );
    let (errors, warnings) = said(&value);
    assert_eq!(errors, []);
    let shown: Vec<String> = warnings
        .iter()
        .map(|w| format!("{}: {}", w.field, w.message))
        .collect();
    let expect = |start: &str, end: &str| {
        assert!(
            shown
                .iter()
                .any(|w| w.starts_with(start) && w.contains(end)),
            "{start}: {shown:?}"
        );
    };
    expect("nodecount: unknown key", "did you mean nodeCount?");
    expect("processCount: unknown key", "it belongs into one of");
    expect("comment: unknown key, ignored", "");
    expect(
        "mountVolumes.azureFileShares[0].credentials: ignored",
        "needs no key",
    );
    assert_eq!(shown.len(), 4);
    assert!(!format!("{shown:?}").contains("geheim"));
    let text = value.to_string();
    let parsed = read(&text, Format::Json).unwrap();
    assert!(
        !format!("{:?}", parsed.message).contains("geheim"),
        "keys never leave the machine"
    );
}

#[test]
fn syntax_errors_say_where_and_what() {
    for (format, text, expected) in [
        (Format::Json, "", "job:1:1: the file is empty"),
        (Format::Json, "  \n", "job:1:1: the file is empty"),
        (
            Format::Json,
            "{\n\"a\": 1,\n}",
            "job:2:7: not valid JSON: remove the comma",
        ),
        (Format::Json, "{\n\"a\": 1\n\"b\": 2}", "a comma is missing"),
        (
            Format::Json,
            "{'a': 1}",
            "job:1:2: not valid JSON: write double quotes",
        ),
        (
            Format::Json,
            "{a: 1}",
            "job:1:2: not valid JSON: put the key in double quotes",
        ),
        (
            Format::Json,
            "{\"a\": x}",
            "job:1:7: not valid JSON: this cannot stand here; strings",
        ),
        (
            Format::Json,
            "// c\n{}",
            "job:1:1: not valid JSON: JSON has no comments",
        ),
        (
            Format::Json,
            "{\"a\": 1",
            "the `}` that closes this `{` is missing",
        ),
        (
            Format::Json,
            "nodeCount: 2",
            "job:1:1: not valid JSON: the file begins like YAML; name it .yaml",
        ),
        (
            Format::Json,
            "{\"a\" 1}",
            "a `:` must stand between key and value",
        ),
        (Format::Json, "{\"a\": }", "a value is missing before it"),
        (
            Format::Json,
            "{\"a\": 1, {",
            "a key in double quotes must stand here",
        ),
        (Format::Json, "{} {}", "remove what follows"),
        (
            Format::Json,
            "[]",
            "job:1:1: expected an object, found a list; write an object with",
        ),
        (Format::Yaml, "", "job:1:1: the file is empty"),
        (Format::Yaml, "# nothing\n", "job:1:1: the file is empty"),
        (Format::Yaml, "a: [1", "not valid YAML"),
        (Format::Yaml, "a: b: c", "job:1:5: not valid YAML"),
        (
            Format::Yaml,
            "a: 1\n---\nb: 2",
            "job:2:1: the file holds a second document",
        ),
        (
            Format::Yaml,
            "- a",
            "job:1:1: expected an object, found a list; write an object with",
        ),
        (Format::Yaml, "? [a]\n: b", "a key must be a string"),
        (
            Format::Yaml,
            "nodeCount: !mine 2",
            "tags are not understood",
        ),
        (
            Format::Yaml,
            "nodeCount: !!int two",
            "not what its tag says",
        ),
        (Format::Yaml, "nodeCount: &a [*a]", "alias"),
    ] {
        let shown = read(text, format).unwrap_err().to_string();
        assert!(shown.contains(expected), "{text:?} gave {shown}");
    }
}

#[test]
fn yaml_says_the_same_in_its_own_ways() {
    let text = "
nodeCount: 0x2   # hexadecimal
customToolkitSettings: {commandLine: 'echo $HOME'}
jobPreparation:
  commandLine: |
    first
    second
stdOutErrPathPrefix: &prefix $AZ_BATCHAI_JOB_MOUNT_ROOT/logs
outputDirectories:
  - id: MODEL
    pathPrefix: *prefix
environmentVariables:
- {name: A, value: !!str 5}
- {name: YES, value: yes}
constraints: ~
";
    let spec = read(text, Format::Yaml).unwrap().message;
    assert_eq!(spec.node_count, 2);
    assert_eq!(
        spec.job_preparation.unwrap().command_line,
        "first\nsecond\n"
    );
    assert_eq!(
        spec.output_directories[0].path_prefix,
        spec.std_out_err_path_prefix
    );
    let values: Vec<_> = spec
        .environment_variables
        .iter()
        .map(|v| v.value.as_str())
        .collect();
    assert_eq!(values, ["5", "yes"]);
    assert_eq!(spec.constraints, None);
}

#[test]
fn bombs_are_refused_quickly() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
    }
    let shown = read(&bomb, Format::Yaml).unwrap_err().to_string();
    assert!(shown.contains("grows too large"), "{shown}");
    for (open, format) in [
        ("[", Format::Json),
        ("{\"a\":", Format::Json),
        ("[", Format::Yaml),
        ("{a: ", Format::Yaml),
        ("- ", Format::Yaml),
    ] {
        let deep = open.repeat(100_000);
        assert!(read(&deep, format).is_err(), "{open}");
    }
    let long = format!("{{\"x\": \"{}\"}}", "y".repeat(file::MAX_FILE_BYTES));
    assert!(
        read(&long, Format::Json)
            .unwrap_err()
            .to_string()
            .contains("at most")
    );
    let many: String = (0..40_000).map(|n| format!("k{n}: 1\n")).collect();
    let parsed = read(&many, Format::Yaml).unwrap();
    assert_eq!(parsed.warnings.len(), 50);
    assert!(parsed.warnings[49].message.contains("and more"));
}

#[test]
fn clusters_workspaces_and_file_servers_are_read() {
    let text = r#"{"properties": {
        "vmSize": "STANDARD_NC6",
        "scaleSettings": {"manual": {"targetNodeCount": 2, "nodeDeallocationOption": "WaitForJobCompletion"}},
        "userAccountSettings": {"adminUserName": "u", "adminUserPassword": "geheim"},
        "virtualMachineConfiguration": {"imageReference": {"publisher": "p", "offer": "o", "sku": "s"}},
        "provisioningState": "succeeded"
    }}"#;
    let parsed = file::cluster_file("c", text, Format::Json).unwrap();
    assert_eq!(
        parsed
            .message
            .scale_settings
            .unwrap()
            .manual
            .unwrap()
            .target_node_count,
        2
    );
    let warned: Vec<_> = parsed.warnings.iter().map(|w| w.field.as_str()).collect();
    assert_eq!(
        warned,
        ["userAccountSettings.adminUserPassword", "provisioningState"]
    );
    assert!(
        parsed
            .message
            .user_account_settings
            .unwrap()
            .admin_user_password
            .is_empty()
    );

    for (text, field) in [
        ("scaleSettings: {}", "scaleSettings"),
        (
            "scaleSettings: {autoScale: {minimumNodeCount: 0, maximumNodeCount: 1}}",
            "scaleSettings.autoScale",
        ),
        (
            "scaleSettings: {manual: {targetNodeCount: 20000}}",
            "scaleSettings.manual.targetNodeCount",
        ),
        ("subnet: {id: x}", "subnet"),
        (
            "nodeSetup: {setupTask: {commandLine: x}}",
            "nodeSetup.setupTask",
        ),
        (
            "nodeSetup: {performanceCountersSettings: {}}",
            "nodeSetup.performanceCountersSettings",
        ),
        (
            "nodeSetup: {mountVolumes: {unmanagedFileSystems: [{relativeMountPath: a}]}}",
            "nodeSetup.mountVolumes.unmanagedFileSystems[0].mountCommand",
        ),
        ("vmPriority: cheap", "vmPriority"),
    ] {
        let refused = file::cluster_file("c", text, Format::Yaml).unwrap_err();
        let fields: Vec<_> = refused
            .errors
            .iter()
            .map(|error| error.field.as_str())
            .collect();
        assert_eq!(fields, [field], "{text}");
    }

    for (text, field) in [
        ("storageBindings: [{share: logs, hostPath: /data}]", None),
        (
            "storageBindings: [{share: a/logs, fileServer: {fileServer: nfs, directory: /x}}]",
            None,
        ),
        (
            "storageBindings: [{share: logs, hostPath: data}]",
            Some("storageBindings[0].hostPath"),
        ),
        (
            "storageBindings: [{share: logs}]",
            Some("storageBindings[0]"),
        ),
        (
            "storageBindings: [{hostPath: /d}]",
            Some("storageBindings[0].share"),
        ),
        (
            "storageBindings: [{share: l, hostPath: /d, fileServer: {fileServer: n}}]",
            Some("storageBindings[0].fileServer"),
        ),
        (
            "storageBindings: [{share: l, hostPath: /d}, {share: l, hostPath: /e}]",
            Some("storageBindings[1].share"),
        ),
        ("imageBindings: [{image: i, host: {}}]", None),
        (
            "imageBindings: [{image: i, otherImage: j}]",
            Some("imageBindings[0].otherImage"),
        ),
    ] {
        let result = file::workspace_file("w", text, Format::Yaml);
        let found = result.err().map(|refused| {
            let fields: Vec<_> = refused
                .errors
                .iter()
                .map(|error| error.field.clone())
                .collect();
            fields.join(" ")
        });
        assert_eq!(found.as_deref(), field, "{text}");
    }

    for (text, field) in [
        ("external: {address: nfs, export: /export}", None),
        (
            "external: {address: '[fd00::1]', export: /export, nfsVersion: '4.2', mountOptions: 'hard,port=1'}",
            None,
        ),
        ("{}", Some("external")),
        ("external: {export: /export}", Some("external.address")),
        (
            "external: {address: 'nfs:/export', export: /export}",
            Some("external.address"),
        ),
        (
            "external: {address: nfs, export: export}",
            Some("external.export"),
        ),
        (
            "external: {address: nfs, export: /e, nfsVersion: '5'}",
            Some("external.nfsVersion"),
        ),
        (
            "external: {address: nfs, export: /e, mountOptions: 'a b'}",
            Some("external.mountOptions"),
        ),
    ] {
        let result = file::file_server_file("s", text, Format::Yaml);
        let found = result.err().map(|refused| refused.errors[0].field.clone());
        assert_eq!(found.as_deref(), field, "{text}");
    }
}

#[test]
fn random_files_never_panic() {
    // More rounds for a long run; the seed makes a failure come back.
    let number = |name: &str, default| match std::env::var(name) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => default,
    };
    let rounds = number("TRAINYARD_FUZZ_ROUNDS", 400);
    let mut random = fastrand::Rng::with_seed(number("TRAINYARD_FUZZ_SEED", 7));
    let good = [serde_json::to_string_pretty(&job()).unwrap(), yaml(&job())];
    let pieces = [
        "{", "}", "[", "]", ":", ",", "\"", "'", "\n", "  ", "- ", "&a ", "*a", "!!str ", "? ",
        "| ", "> ", "---\n", "#", "null", "1e999", "-0", "0x", "\u{feff}", "é", "\u{0}", "\\u",
        "\\ud800", "%", "@", "`", "<<", "\t", "\r",
    ];
    for round in 0..rounds as usize {
        let mut text: Vec<char> = if round % 4 == 0 {
            (0..random.usize(..200)).map(|_| random.char(..)).collect()
        } else {
            good[round % 2].chars().collect()
        };
        for _ in 0..random.usize(1..8) {
            let at = random.usize(..=text.len());
            match random.u8(..3) {
                0 => {
                    let end = (at + random.usize(..30)).min(text.len());
                    text.drain(at..end);
                }
                1 => {
                    let piece = pieces[random.usize(..pieces.len())];
                    text.splice(at..at, piece.chars());
                }
                _ => {
                    let from = random.usize(..=at);
                    let part: Vec<char> = text[from..at.min(from + 40)].to_vec();
                    let to = random.usize(..=text.len());
                    text.splice(to..to, part);
                }
            }
        }
        let text: String = text.into_iter().collect();
        for format in [Format::Json, Format::Yaml] {
            match file::job_file("f", &text, format) {
                Ok(parsed) => assert!(parsed.locate("nodeCount").is_some()),
                Err(refused) => {
                    assert!(!refused.errors.is_empty());
                    assert!(refused.errors.iter().all(|e| e.line >= 1 && e.column >= 1));
                }
            }
            let _ = file::read::<Cluster>("f", &text, format);
            let _ = file::read::<Workspace>("f", &text, format);
            let _ = file::read::<FileServer>("f", &text, format);
        }
    }
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
