use trainyard_proto::v1::Volume;

use super::perform::link;
use super::table::{Mounted, parse};
use super::*;

fn point(source: volume::Source) -> MountPoint {
    let volume = Volume {
        relative_mount_path: "ext".into(),
        source: Some(source),
    };
    MountPoint {
        volume,
        target: "/d/mounts/w/c/ext".into(),
    }
}

fn nfs(address: &str, options: &str) -> volume::Source {
    volume::Source::Nfs(NfsVolume {
        file_server: "workspaces/w/fileServers/f".into(),
        address: address.into(),
        path: "/export/data".into(),
        nfs_version: "4.1".into(),
        mount_options: options.into(),
    })
}

#[test]
fn a_source_is_named_without_what_may_be_secret() {
    let command = |text: &str| volume::Source::MountCommand(text.into());
    let cases = [
        (nfs("nas", ""), "nas:/export/data"),
        (nfs("fd00::9", ""), "[fd00::9]:/export/data"),
        (volume::Source::HostPath("/srv".into()), "/srv"),
        (
            command(" mount -t cifs //nas/x -o password=hunter2"),
            "mount command `mount`",
        ),
        (command("KEY=hunter2 blobfuse2 mount"), "mount command"),
        (command("\"hunter2\" x"), "mount command"),
        (command(""), "mount command"),
    ];
    for (source, wanted) in cases {
        assert_eq!(describe(&point(source)), wanted);
    }
}

#[test]
fn nfs_options_put_ours_last() {
    let cases = [
        (
            "10.0.0.9",
            "rw,port=20049",
            "10.0.0.9:/export/data",
            "vers=4.1,rw,port=20049,nosuid,nodev",
        ),
        (
            "fd00::9",
            "",
            "[fd00::9]:/export/data",
            "vers=4.1,nosuid,nodev",
        ),
        (
            "nas",
            " rw, ",
            "nas:/export/data",
            "vers=4.1,rw,nosuid,nodev",
        ),
    ];
    for (address, options, device, expected) in cases {
        let request = request(&point(nfs(address, options)), &Credentials::own()).unwrap();
        let source = Source::Nfs {
            file_server: "workspaces/w/fileServers/f".into(),
            device: device.into(),
            options: expected.into(),
        };
        assert_eq!(request.source, source);
    }
}

#[test]
fn an_nfs_error_names_server_export_and_the_programs_words() {
    let point = point(nfs("10.0.0.9", "rw"));
    let failed = HelperError::Failed {
        message: "cannot mount 10.0.0.9:/export/data of file server f: mount: access denied".into(),
        output: "mount: access denied".into(),
    };
    let error = MountError::from_helper(&point, failed);
    assert_eq!(error.code(), "FileServerMountError");
    let details: Vec<_> = error
        .details()
        .into_iter()
        .map(|pair| (pair.name, pair.value))
        .collect();
    let expected = [
        ("volume", "ext"),
        ("fileServer", "workspaces/w/fileServers/f"),
        ("server", "10.0.0.9"),
        ("export", "/export/data"),
        ("options", "rw"),
        ("mountPoint", "/d/mounts/w/c/ext"),
        ("output", "mount: access denied"),
    ];
    assert_eq!(
        details,
        expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
    );

    let hung = MountError::from_helper(
        &point,
        HelperError::Deadline {
            what: "x".into(),
            deadline_ms: 30_000,
        },
    );
    assert_eq!(
        hung.to_string(),
        "volume ext: cannot mount 10.0.0.9:/export/data of file server workspaces/w/fileServers/f: no answer within \
         30000 ms"
    );
}

#[test]
fn the_mount_table_is_read_with_its_escapes() {
    let line = r"36 35 98:0 /mnt1 /mnt/a\040b\134c rw,noatime master:1 - nfs4 srv:/x\040y rw";
    assert_eq!(
        parse(line),
        Some(Mounted {
            target: "/mnt/a b\\c".into(),
            kind: "nfs4".into(),
            device: "srv:/x y".into()
        })
    );
    assert_eq!(parse("nonsense"), None);
}

#[test]
fn a_host_path_is_linked_replaced_and_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    std::fs::create_dir(&first).unwrap();
    std::fs::create_dir(&second).unwrap();
    std::fs::write(first.join("data"), "kept").unwrap();
    let target = dir.path().join("mounts/ext");

    link(&first, &target).unwrap();
    link(&first, &target).unwrap();
    assert_eq!(
        std::fs::read_to_string(target.join("data")).unwrap(),
        "kept"
    );
    link(&second, &target).unwrap();
    assert_eq!(std::fs::read_link(&target).unwrap(), second);

    assert_eq!(perform_unmount(&target, false).unwrap(), Unmounted::Clean);
    assert_eq!(perform_unmount(&target, false).unwrap(), Unmounted::Absent);
    assert!(first.join("data").exists());

    let missing = link(&dir.path().join("missing"), &target).unwrap_err();
    assert!(
        missing
            .message
            .contains("missing cannot be used on this node"),
        "{}",
        missing.message
    );
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("x"), "").unwrap();
    assert!(
        link(&first, &target).is_err(),
        "what is not ours is left alone"
    );
    assert!(target.join("x").exists());
}
