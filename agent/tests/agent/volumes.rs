//! Volumes and scratch directories with real mounts, by real helper processes. What needs root is left out without it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use trainyard_agent::confine::Credentials;
use trainyard_agent::helper::{Helper, HelperError};
use trainyard_agent::launch::Preflight;
use trainyard_agent::layout::MountPoint;
use trainyard_agent::volumes::{self, Unmounted};
use trainyard_proto::v1::{NfsVolume, Volume, volume};

fn helper(deadline: Duration) -> Helper {
    Helper::new(
        PathBuf::from(env!("CARGO_BIN_EXE_trainyard-agent")),
        deadline,
    )
}

fn point(target: PathBuf, source: volume::Source) -> MountPoint {
    MountPoint {
        volume: Volume {
            relative_mount_path: "ext".into(),
            source: Some(source),
        },
        target,
    }
}

/// A temporary directory whose mounts go with it, also when a test fails.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(place.path("source")).unwrap();
        std::fs::write(place.path("source/data"), "kept").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for mount in volumes::mounts_below(self.0.path()).unwrap_or_default() {
            let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// Bind mounts stand in for file systems of other machines. Containers without the privilege cannot make them.
fn can_mount() -> bool {
    let place = Place::new();
    let source = place.path("source");
    nix::mount::mount(
        Some(&source),
        &source,
        None::<&str>,
        nix::mount::MsFlags::MS_BIND,
        None::<&str>,
    )
    .is_ok()
}

#[tokio::test]
async fn a_host_path_appears_and_goes() {
    let place = Place::new();
    let helper = helper(Duration::from_secs(20));
    let source = place.path("source").display().to_string();
    let point = point(place.path("mounts/ext"), volume::Source::HostPath(source));
    for _ in 0..2 {
        volumes::mount(&helper, &point, &Credentials::own())
            .await
            .unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(point.target.join("data")).unwrap(),
        "kept"
    );
    assert_eq!(
        volumes::unmount(&helper, &point.target).await.unwrap(),
        Unmounted::Clean
    );
    assert_eq!(
        volumes::unmount(&helper, &point.target).await.unwrap(),
        Unmounted::Absent
    );
    assert_eq!(
        std::fs::read_to_string(place.path("source/data")).unwrap(),
        "kept"
    );
}

#[tokio::test]
async fn a_mount_command_gets_the_mount_point_and_is_not_run_again() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let helper = helper(Duration::from_secs(20));
    let (log, source) = (place.path("log"), place.path("source"));
    let command = format!(
        "echo ran >> {}; mount --bind {}",
        log.display(),
        source.display()
    );
    // A blank in the path proves the quoting.
    let point = point(
        place.path("mounts of c/ext"),
        volume::Source::MountCommand(command),
    );
    for _ in 0..2 {
        volumes::mount(&helper, &point, &Credentials::own())
            .await
            .unwrap();
    }
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "ran\n");
    assert_eq!(
        std::fs::read_to_string(point.target.join("data")).unwrap(),
        "kept"
    );
    assert_eq!(
        volumes::mounts_below(&place.path("mounts of c")).unwrap(),
        std::slice::from_ref(&point.target)
    );

    // A scratch directory with a mount below it is never removed.
    let refused = helper
        .remove_tree(&place.path("mounts of c"))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("is still mounted"),
        "{refused}"
    );

    assert_eq!(
        volumes::unmount(&helper, &point.target).await.unwrap(),
        Unmounted::Clean
    );
    assert!(!point.target.exists());
    helper
        .remove_tree(&place.path("mounts of c"))
        .await
        .unwrap();
    assert_eq!(
        std::fs::read_to_string(place.path("source/data")).unwrap(),
        "kept"
    );
}

#[tokio::test]
async fn a_mount_in_use_goes_lazily() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let helper = helper(Duration::from_secs(20));
    let command = format!("mount --bind {}", place.path("source").display());
    let point = point(place.path("ext"), volume::Source::MountCommand(command));
    volumes::mount(&helper, &point, &Credentials::own())
        .await
        .unwrap();
    let in_use = std::fs::File::open(point.target.join("data")).unwrap();
    assert_eq!(
        volumes::unmount(&helper, &point.target).await.unwrap(),
        Unmounted::Lazy
    );
    assert!(volumes::mounts_below(&point.target).unwrap().is_empty());
    assert_eq!(std::io::read_to_string(in_use).unwrap(), "kept");
}

#[tokio::test]
async fn a_mount_command_that_fails_or_mounts_nothing_says_so() {
    let place = Place::new();
    let helper = helper(Duration::from_secs(20));
    let failing = point(
        place.path("a"),
        volume::Source::MountCommand("echo no such server >&2; exit 32 #".into()),
    );
    let error = volumes::mount(&helper, &failing, &Credentials::own())
        .await
        .unwrap_err();
    assert_eq!(error.code(), "MountError");
    assert!(error.to_string().contains("no such server"), "{error}");
    assert!(
        error
            .details()
            .iter()
            .any(|pair| pair.name == "output" && pair.value == "no such server")
    );

    let nothing = point(place.path("b"), volume::Source::MountCommand("true".into()));
    let error = volumes::mount(&helper, &nothing, &Credentials::own())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("nothing is mounted there"),
        "{error}"
    );
}

#[tokio::test]
async fn a_mount_that_hangs_is_given_up_with_all_that_it_started() {
    let place = Place::new();
    let pid = place.path("pid");
    let command = format!("sleep 300 & echo $! > {}; wait; echo", pid.display());
    let point = point(place.path("ext"), volume::Source::MountCommand(command));
    let start = Instant::now();
    let error = volumes::mount(
        &helper(Duration::from_millis(1_500)),
        &point,
        &Credentials::own(),
    )
    .await
    .unwrap_err();
    assert!(
        error.to_string().contains("no answer within 1500 ms"),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(10));
    let pid: i32 = std::fs::read_to_string(&pid)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while trainyard_agent::shim::processes::get(pid).is_some_and(|process| process.state != 'Z') {
        assert!(Instant::now() < end, "it must be killed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_nfs_mount_that_fails_repeats_the_programs_words() {
    if !nix::unistd::Uid::effective().is_root() || !Path::new("/sbin/mount.nfs").exists() {
        return;
    }
    let place = Place::new();
    let nfs = NfsVolume {
        file_server: "workspaces/w/fileServers/f".into(),
        address: "127.0.0.1".into(),
        path: "/export".into(),
        nfs_version: "4.1".into(),
        // Nobody listens at the discard port.
        mount_options: "port=9,retry=0".into(),
    };
    let point = point(place.path("ext"), volume::Source::Nfs(nfs));
    let error = volumes::mount(
        &helper(Duration::from_secs(20)),
        &point,
        &Credentials::own(),
    )
    .await
    .unwrap_err();
    assert_eq!(error.code(), "FileServerMountError");
    let text = error.to_string();
    assert!(
        text.contains("127.0.0.1:/export") && text.contains("workspaces/w/fileServers/f"),
        "{text}"
    );
    assert!(
        error
            .details()
            .iter()
            .any(|pair| pair.name == "output" && pair.value.contains("mount.nfs")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_scratch_directory_goes_without_what_its_links_point_to() {
    let place = Place::new();
    let scratch = place.path("scratch");
    std::fs::create_dir_all(scratch.join("deep/er")).unwrap();
    std::os::unix::fs::symlink(place.path("source"), scratch.join("deep/link")).unwrap();
    let helper = helper(Duration::from_secs(20));
    helper.remove_tree(&scratch).await.unwrap();
    helper.remove_tree(&scratch).await.unwrap();
    assert!(!scratch.exists());
    assert_eq!(
        std::fs::read_to_string(place.path("source/data")).unwrap(),
        "kept"
    );
}

#[tokio::test]
async fn preflight_looks_as_the_jobs_user() {
    let place = Place::new();
    let script = place.path("source/train.py");
    let preflight = Preflight {
        files: vec![(
            "pyTorchSettings.pythonScriptFilePath".into(),
            script.clone(),
        )],
        programs: vec![(
            "pyTorchSettings.pythonInterpreterPath".into(),
            "bash".into(),
        )],
        shm_bytes: None,
        path: "/usr/bin:/bin".into(),
        cwd: place.path("source"),
    };
    let helper = helper(Duration::from_secs(20));
    let check = async |user: &Credentials| helper.preflight(&preflight, user).await;
    let Err(HelperError::Failed { message, .. }) = check(&Credentials::own()).await else {
        panic!("the script is missing");
    };
    assert!(
        message.contains(&format!("{} does not exist", script.display())),
        "{message}"
    );

    std::fs::write(&script, "").unwrap();
    check(&Credentials::own()).await.unwrap();
    if nix::unistd::Uid::effective().is_root() {
        let closed = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(place.path("source"), closed).unwrap();
        let nobody = Credentials {
            uid: 65534,
            gid: 65534,
            groups: vec![65534],
        };
        assert!(check(&nobody).await.is_err());
    }
}
