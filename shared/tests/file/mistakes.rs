//! One mistake at a time, and many at once.

use serde_json::{Value, json};
use trainyard_proto::v1::Workspace;
use trainyard_shared::file::{self, Format, Issue};

use super::{job, read, yaml};

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
            "/schedulingPriority",
            json!("lowest"),
            "schedulingPriority",
            "low, normal, high",
        ),
        (
            "/constraints",
            json!({"maxRetryCount": 1001}),
            "constraints.maxRetryCount",
            "at most 1000",
        ),
        (
            "/constraints",
            json!({"retryOn": ["exitcode"]}),
            "constraints.retryOn",
            "nothing is retried without maxRetryCount",
        ),
        (
            "/constraints",
            json!({"maxRetryCount": 1, "retryOn": ["mount", "mount"]}),
            "constraints.retryOn[1]",
            "stands already",
        ),
        (
            "/constraints",
            json!({"maxRetryCount": 1, "retryOn": ["mount"], "retryExitCodes": [3]}),
            "constraints.retryExitCodes",
            "needs exitcode",
        ),
        (
            "/constraints",
            json!({"maxRetryCount": 1, "retryExitCodes": [0]}),
            "constraints.retryExitCodes[0]",
            "from 1 to 255",
        ),
        ("/dependsOn", json!([{}]), "dependsOn[0].job.id", "required"),
        (
            "/dependsOn",
            json!([{"job": {"id": "a"}}, {"job": {"id": "a"}}]),
            "dependsOn[1].job.id",
            "stands already",
        ),
        (
            "/mountVolumes/azureFileShares/0/fileMode",
            json!("0700"),
            "mountVolumes.azureFileShares[0].fileMode",
            "only 0777",
        ),
        (
            "/containerSettings",
            json!({"imageSourceRegistry": {"image": "i", "serverUrl": "https://r.example.org"}}),
            "containerSettings.imageSourceRegistry.serverUrl",
            "must begin with the registry",
        ),
        (
            "/parameterSweep",
            json!({"parameters": []}),
            "parameterSweep.parameters",
            "name at least one",
        ),
        (
            "/parameterSweep",
            json!([]),
            "parameterSweep",
            "expected an object",
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
fn a_sweep_stands_beside_the_job() {
    let mut value = job();
    set(
        &mut value,
        "/parameterSweep",
        json!({"parameters": [{"name": "LR", "values": [0.1, "x", true]}]}),
    );
    let parsed = file::job_file("f", &value.to_string(), Format::Json).unwrap();
    assert_eq!(parsed.warnings, []);
    let sweep = parsed.sweep.clone().unwrap();
    assert_eq!(sweep.parameters[0].values, ["0.1", "x", "true"]);
    assert_ne!(
        parsed.locate("parameterSweep.parameters[0].name"),
        Some((1, 1))
    );
}

#[test]
fn what_cannot_be_started_is_well_written_all_the_same() {
    let mut value = job();
    set(
        &mut value,
        "/pyTorchSettings/communicationBackend",
        json!("MPI"),
    );
    let (errors, warnings) = said(&value);
    assert_eq!(errors, []);
    assert_eq!(warnings[0].field, "pyTorchSettings.communicationBackend");
    assert!(warnings[0].message.contains("mpirun"));
}

#[test]
fn legacy_keys_say_what_replaces_them() {
    let mut value = job();
    for (pointer, new) in [
        ("/priority", json!(5)),
        ("/toolType", json!("pytorch")),
        ("/name", json!("j")),
        ("/outputDirectories/0/createNew", json!(true)),
        ("/outputDirectories/0/type", json!("model")),
    ] {
        set(&mut value, pointer, new);
    }
    let (errors, warnings) = said(&value);
    assert_eq!(errors, []);
    for (field, said) in [
        ("priority", "schedulingPriority"),
        ("toolType", "settings object"),
        ("name", "beside the file"),
        ("outputDirectories[0].createNew", "always made"),
        ("outputDirectories[0].type", "may hold anything"),
    ] {
        let found = warnings.iter().find(|warning| warning.field == field);
        assert!(found.unwrap().message.contains(said), "{warnings:?}");
    }
    assert_eq!(warnings.len(), 5);
}
