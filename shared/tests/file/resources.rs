//! Clusters, workspaces and file servers.

use trainyard_shared::file::{self, Format};

#[test]
fn clusters_workspaces_and_file_servers_are_read() {
    let text = r#"{"properties": {
        "vmSize": "STANDARD_NC6",
        "scaleSettings": {"manual": {"targetNodeCount": 2, "nodeDeallocationOption": "WaitForJobCompletion"}},
        "userAccountSettings": {"adminUserName": "u"},
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
    assert_eq!(warned, ["provisioningState"]);

    for (text, field) in [
        ("scaleSettings: {}", "scaleSettings"),
        (
            "scaleSettings: {autoScale: {minimumNodeCount: 2, maximumNodeCount: 1}}",
            "scaleSettings.autoScale.minimumNodeCount",
        ),
        (
            "scaleSettings: {autoScale: {maximumNodeCount: 1}}",
            "scaleSettings.autoScale.minimumNodeCount",
        ),
        (
            "scaleSettings: {autoScale: {minimumNodeCount: 0, maximumNodeCount: 1, initialNodeCount: 2}}",
            "scaleSettings.autoScale.initialNodeCount",
        ),
        (
            "scaleSettings: {manual: {}}",
            "scaleSettings.manual.targetNodeCount",
        ),
        (
            "userAccountSettings: {adminUserName: u, adminUserPassword: geheim}",
            "userAccountSettings.adminUserPassword",
        ),
        (
            "scaleSettings: {manual: {targetNodeCount: 20000}}",
            "scaleSettings.manual.targetNodeCount",
        ),
        ("subnet: {id: x}", "subnet"),
        (
            "nodeSetup: {setupTask: {commandLine: x}}",
            "nodeSetup.setupTask.stdOutErrPathPrefix",
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
        ("managed: {}", None),
        (
            "{vmSize: STANDARD_D2, dataDisks: {diskSizeInGB: 10, diskCount: 2}}",
            None,
        ),
        (
            "{vmSize: a, sshConfiguration: {publicIPsToAllow: ['1.2.3.4']}}",
            Some("sshConfiguration"),
        ),
        (
            "managed: {dataDisks: {diskSizeInGB: 1, cachingType: none}}",
            Some("managed.dataDisks.cachingType"),
        ),
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
