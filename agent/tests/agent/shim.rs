//! The shim with real processes: exits, signals, left-over descendants, the lease, the share, a lost shim.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use trainyard_agent::confine::{Confinement, Credentials};
use trainyard_agent::shim::{
    self, Adopted, ExitReason, ExitRecord, Handle, Stream, TaskSpec, processes,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_trainyard-agent");

/// A task in a directory of its own.
struct Scene {
    dir: tempfile::TempDir,
    spec: TaskSpec,
}

impl Scene {
    fn new(command: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["spool", "share", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let stream = |name: &str| Stream {
            spool: dir.path().join("spool").join(name),
            share: Some(dir.path().join("share").join(name)),
        };
        let spec = TaskSpec {
            name: "main".into(),
            dir: dir.path().join("task"),
            argv: vec!["/bin/bash".into(), "-c".into(), command.into()],
            env: BTreeMap::from([
                ("PATH".into(), "/usr/bin:/bin".into()),
                ("SECRET".into(), "s3cret".into()),
            ]),
            cwd: dir.path().join("work"),
            user: Credentials::own(),
            copy_as: Credentials::own(),
            stdout: stream("stdout.txt"),
            stderr: stream("stderr.txt"),
            group: None,
            lease_file: None,
            attempt: 1,
            stop_grace_ms: 5_000,
            copy_deadline_ms: 5_000,
            kill_deadline_ms: 5_000,
        };
        Self { dir, spec }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    async fn spawn(&self) -> Handle {
        shim::spawn(Path::new(PROGRAM), &self.spec).await.unwrap()
    }

    async fn run(&self) -> ExitRecord {
        wait(&mut self.spawn().await).await
    }

    /// Waits for a file that the task writes, and returns the number in it.
    async fn number(&self, name: &str) -> i32 {
        let path = self.path(name);
        until(|| std::fs::read_to_string(&path).ok()?.trim().parse().ok()).await
    }
}

async fn wait(handle: &mut Handle) -> ExitRecord {
    tokio::time::timeout(Duration::from_secs(30), handle.wait())
        .await
        .expect("the shim must end")
        .unwrap()
}

async fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn lives(pid: i32) -> bool {
    processes::get(pid).is_some_and(|process| process.state != 'Z')
}

fn lease(scene: &mut Scene, left: Duration) -> PathBuf {
    let path = scene.path("lease");
    scene.spec.lease_file = Some(path.clone());
    renew(&path, left);
    path
}

fn renew(path: &Path, left: Duration) {
    use std::os::unix::fs::FileExt;
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    let deadline = Duration::from(now) + left;
    let file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap();
    file.write_all_at(
        &u64::try_from(deadline.as_nanos()).unwrap().to_le_bytes(),
        0,
    )
    .unwrap();
}

#[tokio::test]
async fn an_exit_status_and_both_streams_arrive() {
    let scene = Scene::new("echo out; echo err >&2; pwd; exit 7");
    let record = scene.run().await;
    assert_eq!(
        (record.exit_code, record.signal, record.reason),
        (7, None, ExitReason::Exited)
    );
    assert_eq!(record.share_error, None);
    let work = scene.path("work");
    for directory in ["spool", "share"] {
        assert_eq!(
            scene.read(&format!("{directory}/stdout.txt")),
            format!("out\n{}\n", work.display())
        );
        assert_eq!(scene.read(&format!("{directory}/stderr.txt")), "err\n");
    }
    assert!(
        matches!(shim::adopt(&scene.spec.dir).await.unwrap(), Adopted::Ended(found) if found == record)
    );
}

#[tokio::test]
async fn a_signal_counts_as_128_and_its_number() {
    let record = Scene::new("kill -SEGV $$").run().await;
    assert_eq!((record.exit_code, record.signal), (139, Some(11)));
    assert_eq!(record.message, "ended by SIGSEGV");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let mut scene = Scene::new("");
    scene.spec.argv = vec!["/no/such/program".into()];
    let error = shim::spawn(Path::new(PROGRAM), &scene.spec)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("cannot run /no/such/program: No such file"),
        "{error}"
    );
    let Adopted::Ended(record) = shim::adopt(&scene.spec.dir).await.unwrap() else {
        panic!("a record was expected")
    };
    assert_eq!(
        (record.exit_code, record.reason),
        (-1, ExitReason::NotStarted)
    );

    let mut scene = Scene::new("true");
    scene.spec.cwd = "/no/such/directory".into();
    let error = shim::spawn(Path::new(PROGRAM), &scene.spec)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("/no/such/directory"), "{error}");
}

#[tokio::test]
async fn what_the_task_leaves_behind_is_killed_before_the_record() {
    let scene = Scene::new(
        "setsid bash -c 'trap \"\" TERM; echo $$ > left; sleep 100' & while [ ! -s left ]; do sleep 0.01; done; exit 3",
    );
    let record = scene.run().await;
    assert_eq!(record.exit_code, 3);
    assert!(record.leftover.is_empty());
    assert!(!lives(scene.number("work/left").await));
}

#[tokio::test]
async fn a_stop_lets_the_whole_task_finish_within_the_grace() {
    // bash dies of SIGTERM at once; its child is still writing its checkpoint.
    let scene = Scene::new(
        "bash -c 'trap \"sleep 0.5; echo saved > checkpoint; exit 0\" TERM; echo 1 > ready; while :; do sleep 0.05; done'; echo",
    );
    let mut handle = scene.spawn().await;
    scene.number("work/ready").await;
    handle.stop();
    let record = wait(&mut handle).await;
    assert_eq!(
        (record.exit_code, record.reason),
        (143, ExitReason::Stopped)
    );
    assert_eq!(scene.read("work/checkpoint"), "saved\n");
}

#[tokio::test]
async fn a_task_that_ignores_the_stop_is_killed_after_the_grace() {
    let mut scene = Scene::new("trap '' TERM; echo 1 > ready; while :; do sleep 0.05; done");
    scene.spec.stop_grace_ms = 300;
    let mut handle = scene.spawn().await;
    scene.number("work/ready").await;
    let start = Instant::now();
    handle.stop();
    let record = wait(&mut handle).await;
    assert_eq!(
        (record.exit_code, record.signal, record.reason),
        (137, Some(9), ExitReason::Stopped)
    );
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_kill_asks_nobody() {
    let scene = Scene::new("trap '' TERM; echo 1 > ready; while :; do sleep 0.05; done");
    let mut handle = scene.spawn().await;
    scene.number("work/ready").await;
    let control = handle.control();
    let start = Instant::now();
    control.kill();
    let record = wait(&mut handle).await;
    assert_eq!((record.exit_code, record.reason), (137, ExitReason::Killed));
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_lease_that_passes_ends_the_task_without_any_agent() {
    let mut scene = Scene::new("trap '' TERM; echo 1 > ready; while :; do sleep 0.05; done");
    let file = lease(&mut scene, Duration::from_millis(700));
    let start = Instant::now();
    let mut handle = scene.spawn().await;
    scene.number("work/ready").await;
    renew(&file, Duration::from_millis(1_200));
    let record = wait(&mut handle).await;
    assert_eq!((record.exit_code, record.reason), (137, ExitReason::Lease));
    assert!(
        start.elapsed() >= Duration::from_millis(1_100),
        "a renewal counts"
    );
}

#[tokio::test]
async fn nothing_starts_without_a_lease() {
    let mut scene = Scene::new("touch ran");
    let file = lease(&mut scene, Duration::ZERO);
    assert!(
        shim::spawn(Path::new(PROGRAM), &scene.spec)
            .await
            .unwrap_err()
            .to_string()
            .contains("lease")
    );
    std::fs::write(&file, "").unwrap();
    scene.spec.dir = scene.path("task2");
    assert!(shim::spawn(Path::new(PROGRAM), &scene.spec).await.is_err());
    assert!(!scene.path("work/ran").exists());
}

#[tokio::test]
async fn ten_megabytes_reach_the_share_complete() {
    let scene = Scene::new("seq 1 1400000; seq 1 1400000 >&2");
    let record = scene.run().await;
    assert_eq!((record.exit_code, record.share_error), (0, None));
    let spool = std::fs::read(scene.path("spool/stdout.txt")).unwrap();
    assert!(spool.len() > 10_000_000);
    for name in ["stdout.txt", "stderr.txt"] {
        assert!(
            std::fs::read(scene.path("share").join(name)).unwrap() == spool,
            "{name} differs"
        );
    }
}

#[tokio::test]
async fn the_share_follows_while_the_task_runs() {
    let scene = Scene::new("echo first; while [ ! -e go ]; do sleep 0.02; done; echo second");
    let mut handle = scene.spawn().await;
    let share = scene.path("share/stdout.txt");
    until(|| {
        std::fs::read_to_string(&share)
            .ok()
            .filter(|text| text == "first\n")
    })
    .await;
    std::fs::write(scene.path("work/go"), "").unwrap();
    wait(&mut handle).await;
    assert_eq!(scene.read("share/stdout.txt"), "first\nsecond\n");
}

#[tokio::test]
async fn a_share_that_hangs_delays_only_the_record_and_only_to_its_deadline() {
    let mut scene = Scene::new("seq 1 100000; date +%s%N > ended; exit 5");
    scene.spec.copy_deadline_ms = 500;
    // Opening a pipe that nobody reads blocks, like a server that does not answer.
    nix::unistd::mkfifo(
        &scene.path("share/stdout.txt"),
        nix::sys::stat::Mode::S_IRWXU,
    )
    .unwrap();
    let start = Instant::now();
    let record = scene.run().await;
    assert_eq!(record.exit_code, 5);
    assert!(
        record
            .share_error
            .unwrap()
            .contains("did not take the last bytes within 500 ms")
    );
    assert!(start.elapsed() < Duration::from_secs(4));
    assert_eq!(scene.read("spool/stdout.txt").lines().count(), 100_000);
}

#[tokio::test]
async fn a_share_that_refuses_is_reported_and_the_spool_has_everything() {
    let scene = Scene::new("echo kept");
    std::fs::remove_dir(scene.path("share")).unwrap();
    let record = scene.run().await;
    assert_eq!(record.exit_code, 0);
    assert!(
        record
            .share_error
            .unwrap()
            .contains("share/stdout.txt: No such file")
    );
    assert_eq!(scene.read("spool/stdout.txt"), "kept\n");
}

#[tokio::test]
async fn a_later_attempt_keeps_the_earlier_ones_files() {
    let mut scene = Scene::new("echo new");
    scene.spec.attempt = 3;
    std::fs::write(scene.path("share/stdout.txt"), "old\n").unwrap();
    scene.run().await;
    assert_eq!(scene.read("share/stdout.txt"), "new\n");
    assert_eq!(scene.read("share/stdout.txt.attempt-2"), "old\n");
}

#[tokio::test]
async fn a_task_survives_its_agent_and_is_found_again() {
    let scene = Scene::new("while [ ! -e go ]; do sleep 0.02; done; exit 9");
    drop(scene.spawn().await);
    let Adopted::Running(mut handle) = shim::adopt(&scene.spec.dir).await.unwrap() else {
        panic!("it must run")
    };
    let mut again = match shim::adopt(&scene.spec.dir).await.unwrap() {
        Adopted::Running(handle) => handle,
        other => panic!("{other:?}"),
    };
    std::fs::write(scene.path("work/go"), "").unwrap();
    assert_eq!(wait(&mut handle).await.exit_code, 9);
    assert_eq!(wait(&mut again).await.exit_code, 9);
    assert_eq!(wait(&mut again).await.exit_code, 9);
}

#[tokio::test]
async fn a_killed_shim_takes_its_task_along_and_the_rest_is_killed_on_adoption() {
    let scene = Scene::new("sleep 200 & echo $! > child; echo $$ > main; wait");
    let mut handle = scene.spawn().await;
    let (child, main) = (
        scene.number("work/child").await,
        scene.number("work/main").await,
    );
    kill(Pid::from_raw(handle.pid()), Signal::SIGKILL).unwrap();
    let lost = handle.wait().await.unwrap_err();
    assert!(lost.to_string().contains("its shim was killed"), "{lost}");
    until(|| (!lives(child) && !lives(main)).then_some(())).await;
    assert!(matches!(
        shim::adopt(&scene.spec.dir).await.unwrap(),
        Adopted::Lost(_)
    ));
}

#[tokio::test]
async fn the_cgroup_of_a_lost_task_is_ended_and_removed() {
    let Confinement::CgroupV2 { base } = Confinement::detect() else {
        return;
    };
    let mut scene = Scene::new("(setsid setsid sleep 200 & echo $! > left); sleep 200");
    let group = base.join(format!("test-lost-{}", std::process::id()));
    scene.spec.group = Some(group.clone());
    let mut handle = scene.spawn().await;
    let left = scene.number("work/left").await;
    kill(Pid::from_raw(handle.pid()), Signal::SIGKILL).unwrap();
    handle.wait().await.unwrap_err();
    assert!(!lives(left));
    assert!(!group.exists());
    let _ = std::fs::remove_dir(&base);
}

#[tokio::test]
async fn a_directory_that_was_given_up_starts_no_task_any_more() {
    let scene = Scene::new("touch ran");
    assert!(matches!(
        shim::adopt(&scene.spec.dir).await.unwrap(),
        Adopted::NeverStarted
    ));
    std::fs::create_dir(&scene.spec.dir).unwrap();
    assert!(matches!(
        shim::adopt(&scene.spec.dir).await.unwrap(),
        Adopted::NeverStarted
    ));
    let error = shim::spawn(Path::new(PROGRAM), &scene.spec)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("given up by the agent"),
        "{error}"
    );
    assert!(!scene.path("work/ran").exists());
}

#[tokio::test]
async fn a_second_shim_of_a_task_refuses() {
    let scene = Scene::new("sleep 100");
    let mut handle = scene.spawn().await;
    let error = shim::spawn(Path::new(PROGRAM), &scene.spec)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("belongs to another shim"),
        "{error}"
    );
    handle.kill();
    assert_eq!(wait(&mut handle).await.reason, ExitReason::Killed);
}

#[tokio::test]
async fn variables_are_in_no_file_and_no_argument() {
    let scene = Scene::new("while [ ! -e go ]; do sleep 0.02; done; [ \"$SECRET\" = s3cret ]");
    let mut handle = scene.spawn().await;
    let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", handle.pid())).unwrap();
    assert!(!arguments.contains("s3cret"));
    for entry in std::fs::read_dir(&scene.spec.dir).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!text.contains("s3cret"));
    }
    std::fs::write(scene.path("work/go"), "").unwrap();
    assert_eq!(wait(&mut handle).await.exit_code, 0);
}

#[tokio::test]
async fn a_task_of_another_user_runs_as_it_and_owns_its_files() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let mut scene = Scene::new("id -u; id -g; id -G; cat /proc/self/oom_score_adj");
    scene.spec.user = Credentials {
        uid: 65534,
        gid: 65534,
        groups: vec![65534, 7],
    };
    scene.spec.copy_as = scene.spec.user.clone();
    for directory in ["share", "work"] {
        std::os::unix::fs::chown(scene.path(directory), Some(65534), Some(65534)).unwrap();
    }
    let record = scene.run().await;
    assert_eq!((record.exit_code, record.share_error), (0, None));
    assert_eq!(scene.read("share/stdout.txt"), "65534\n65534\n65534 7\n0\n");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        scene.path("share/stdout.txt").metadata().unwrap().uid(),
        65534
    );
    assert_eq!(scene.path("spool/stdout.txt").metadata().unwrap().uid(), 0);
}

#[tokio::test]
async fn a_cgroup_holds_and_ends_all_of_a_task() {
    let Confinement::CgroupV2 { base } = Confinement::detect() else {
        return;
    };
    let mut scene =
        Scene::new("cat /proc/self/cgroup; (setsid sleep 100 & echo $! > left); exit 4");
    let group = base.join(format!("test-{}", std::process::id()));
    scene.spec.group = Some(group.clone());
    let record = scene.run().await;
    assert_eq!(record.exit_code, 4);
    assert!(
        scene
            .read("spool/stdout.txt")
            .contains(&format!("test-{}", std::process::id()))
    );
    assert!(!lives(scene.number("work/left").await));
    assert!(!group.exists(), "the group is removed");
    // Gone as well, unless another test is using it.
    let _ = std::fs::remove_dir(&base);
}

/// Not a check but a measurement: `cargo nextest run --run-ignored all -E 'test(latency)' --no-capture`.
#[tokio::test]
#[ignore = "measures"]
async fn latency_from_spawn_to_the_first_instruction() {
    let mut starts = Vec::new();
    let mut turns = Vec::new();
    for _ in 0..100 {
        let mut scene = Scene::new("");
        scene.spec.argv = vec!["/bin/date".into(), "+%s%N".into()];
        let before = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let mut handle = scene.spawn().await;
        wait(&mut handle).await;
        let after = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let began: u64 = scene.read("spool/stdout.txt").trim().parse().unwrap();
        starts.push(Duration::from_nanos(began) - before);
        turns.push(after - before);
    }
    starts.sort();
    turns.sort();
    println!(
        "spawn to first output: p50 {:?} p90 {:?}; to the record: p50 {:?}",
        starts[50], starts[90], turns[50]
    );
}
