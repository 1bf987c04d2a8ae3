//! The life of attempts, with real processes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use trainyard_proto::v1::{
    AttemptNodePhase as Phase, AttemptPhase, ContainerSettings, EnvironmentVariable,
    PyTorchSettings,
};

use trainyard_agent::confine::TaskUser;
use trainyard_agent::leftovers;

use crate::node::{Agent, Change, Place, host, key, until_file};

#[tokio::test]
async fn a_job_runs_and_leaves_its_output_and_nothing_else() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let job = place.job(
        "echo hello; echo oops >&2; echo weights > $AZ_BATCHAI_OUTPUT_MODEL/w; echo $GREETING",
    );
    let mut job = job.preparing("echo prepared");
    job.spec
        .as_mut()
        .unwrap()
        .environment_variables
        .push(EnvironmentVariable {
            name: "GREETING".to_owned(),
            value: "from $AZ_BATCHAI_CLUSTER_NAME".to_owned(),
        });
    agent.desire(&[&job]).await;
    let status = agent.until(&job, Phase::Exited).await;
    assert_eq!(status.exit_code, Some(0));
    assert!(status.errors.is_empty());
    assert_eq!(
        status.files,
        [
            "execution.log",
            "stdout-job_prep.txt",
            "stderr-job_prep.txt",
            "stdout.txt",
            "stderr.txt"
        ]
    );
    agent.finish(&job).await;

    assert!(place.read("stdout.txt").starts_with("hello\nfrom "));
    assert_eq!(place.read("stderr.txt"), "oops\n");
    assert_eq!(place.read("stdout-job_prep.txt"), "prepared\n");
    let weights = place.share().join("segment/outputs/models/w");
    assert_eq!(fs::read_to_string(weights).unwrap(), "weights\n");
    let log = place.read("execution.log");
    for step in [
        "attempt 1 of workspaces/w/experiments/e/jobs/j on nodes/n1, epoch 10",
        &format!(
            "mounted {} at {} in ",
            place.share().display(),
            place.data().join("mounts/w/c/share").display()
        ),
        "job preparation: exited with status 0",
        "launched ",
        "exited with status 0",
    ] {
        assert!(log.contains(step), "{step:?} is missing in\n{log}");
    }
    assert!(!log.contains("GREETING") && !log.contains("hello"), "{log}");
    for dir in ["jobs", "mounts/w/c"] {
        let left = fs::read_dir(place.data().join(dir)).map_or(0, |entries| entries.count());
        assert_eq!(left, 0, "{dir} is not empty");
    }
    // The scheduler drops it, the logs stay.
    agent.desire(&[]).await;
    let spool = agent.host.dirs.spool_dir(&job.uid, 1).join("stdout.txt");
    assert!(fs::read_to_string(spool).unwrap().starts_with("hello\n"));
    // A view from before asks for it again: it must not run twice.
    agent.desire(&[&job]).await;
    agent.until(&job, Phase::Cleaned).await;
    assert_eq!(place.read("stderr.txt"), "oops\n");
}

#[tokio::test]
async fn failures_name_their_cause() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let good = place.job("exit 3");

    let mut fails = good.clone();
    agent.desire(&[&fails]).await;
    let status = agent.until(&fails, Phase::Exited).await;
    assert_eq!(status.exit_code, Some(3));
    assert_eq!(status.errors[0].code, "JobFailed");
    assert!(status.errors[0].message.contains("stderr.txt"));
    assert!(status.failure_time.is_some());
    agent.finish(&fails).await;

    fails = good.clone().preparing("echo no >&2; exit 4");
    (fails.attempt, fails.epoch) = (2, 20);
    agent.desire(&[&fails]).await;
    let status = agent.until(&fails, Phase::Failed).await;
    assert_eq!(status.exit_code, Some(4));
    assert_eq!(status.errors[0].code, "JobPreparationFailed");
    agent.finish(&fails).await;
    assert_eq!(place.read("stderr-job_prep.txt"), "no\n");

    fails = good.clone();
    (fails.attempt, fails.epoch) = (3, 30);
    fails.cluster_volumes[0].source = Some(trainyard_proto::v1::volume::Source::HostPath(
        "/nowhere/at/all".to_owned(),
    ));
    agent.desire(&[&fails]).await;
    let status = agent.until(&fails, Phase::Failed).await;
    assert_eq!(status.errors[0].code, "MountError");
    assert!(status.errors[0].message.contains("/nowhere/at/all"));
    assert_eq!(status.exit_code, None);
    agent.finish(&fails).await;

    fails = good.clone();
    (fails.attempt, fails.epoch) = (4, 40);
    let spec = fails.spec.as_mut().unwrap();
    spec.custom_toolkit_settings = None;
    spec.py_torch_settings = Some(PyTorchSettings {
        python_script_file_path: "$AZ_BATCHAI_MOUNT_ROOT/share/train.py".to_owned(),
        ..PyTorchSettings::default()
    });
    agent.desire(&[&fails]).await;
    let status = agent.until(&fails, Phase::Failed).await;
    assert_eq!(status.errors[0].code, "LaunchError");
    assert!(status.errors[0].message.contains("train.py"), "{status:?}");
    agent.finish(&fails).await;

    // Each attempt has its own log; the one that lay there is kept aside.
    assert!(place.read("execution.log").contains("attempt 4 of"));
    assert!(
        place
            .read("execution.log.attempt-1")
            .contains("attempt 1 of")
    );
}

#[tokio::test]
async fn several_nodes_meet_before_the_launch() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let job = place
        .job_on(&["n1", "n2"], "echo here > $AZ_BATCHAI_OUTPUT_MODEL/here")
        .phase(AttemptPhase::Prepare);
    agent.desire(&[&job]).await;
    let status = agent.until(&job, Phase::Prepared).await;
    assert_eq!(status.rendezvous_port, 0, "one command has no ranks");
    assert!(status.files.contains(&"execution-n1.log".to_owned()));
    let here = place.share().join("segment/outputs/models/here");
    assert!(!here.exists());

    let mut run = job.clone().phase(AttemptPhase::Run);
    run.rendezvous_port = status.rendezvous_port;
    agent.desire(&[&run]).await;
    agent.until(&job, Phase::Exited).await;
    assert!(here.exists());
    agent.finish(&run).await;

    // A node that is not the first has nothing to run.
    let mut second = run.clone();
    (second.attempt, second.epoch, second.node_index) = (2, 20, 1);
    fs::remove_file(&here).unwrap();
    agent.desire(&[&second]).await;
    let status = agent.until(&second, Phase::Exited).await;
    assert_eq!(status.exit_code, Some(0));
    assert!(!here.exists());
    agent.finish(&second).await;
}

#[tokio::test]
async fn every_node_names_the_files_of_its_ranks() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let script = place.share().join("train.sh");
    fs::write(&script, "echo rank $RANK meets at $MASTER_PORT\n").unwrap();
    let mut job = place
        .job_on(&["n1", "n2"], "")
        .preparing("true")
        .phase(AttemptPhase::Prepare);
    job.node_index = 1;
    let spec = job.spec.as_mut().unwrap();
    spec.custom_toolkit_settings = None;
    spec.py_torch_settings = Some(PyTorchSettings {
        python_script_file_path: script.display().to_string(),
        python_interpreter_path: "/bin/bash".to_owned(),
        process_count: 4,
        ..PyTorchSettings::default()
    });
    let expected = [
        "execution-n2.log",
        "stdout-job_prep-n2.txt",
        "stderr-job_prep-n2.txt",
        "stdout-2.txt",
        "stderr-2.txt",
        "stdout-3.txt",
        "stderr-3.txt",
    ];
    // Readers can wait for them before the port of the ranks is known.
    agent.desire(&[&job]).await;
    let status = agent.until(&job, Phase::Prepared).await;
    assert_eq!(status.files, expected);

    let mut run = job.phase(AttemptPhase::Run);
    run.rendezvous_port = 29_500;
    agent.desire(&[&run]).await;
    let status = agent.until(&run, Phase::Exited).await;
    assert_eq!(status.exit_code, Some(0), "{status:?}");
    assert_eq!(status.files, expected);
    assert_eq!(agent.finish(&run).await.files, expected);
    assert_eq!(place.read("stdout-3.txt"), "rank 3 meets at 29500\n");
}

#[tokio::test]
async fn a_task_survives_the_agent_and_is_taken_over() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let (go, begun) = (place.path().join("go"), place.path().join("begun"));
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let job = place.job(&format!(
        "echo once >> {}; cat {}; exit 5",
        begun.display(),
        go.display()
    ));
    agent.desire(&[&job]).await;
    agent.until(&job, Phase::Running).await;
    until_file(&begun, |text| !text.is_empty()).await;
    agent.die().await;

    let mut agent = Agent::start(&place);
    let found = agent.observed(&key(&job)).unwrap();
    assert_eq!(found.status.unwrap().phase(), Phase::Running);
    agent.desire(&[&job]).await;
    // Nothing is launched again, however often the view comes.
    agent.desire(&[&job]).await;
    fs::write(&go, "").unwrap();
    let status = agent.until(&job, Phase::Exited).await;
    assert_eq!(status.exit_code, Some(5));
    assert_eq!(fs::read_to_string(&begun).unwrap(), "once\n");
    agent.finish(&job).await;
    assert!(place.read("execution.log").contains("taken over again"));
}

#[tokio::test]
async fn an_exit_while_no_agent_was_there_is_found() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let done = place.path().join("done");
    let job = place.job(&format!("sleep 0.3; echo x > {}; exit 6", done.display()));
    agent.desire(&[&job]).await;
    agent.until(&job, Phase::Running).await;
    agent.die().await;
    until_file(&done, |text| !text.is_empty()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;

    let mut agent = Agent::start(&place);
    agent.desire(&[&job]).await;
    let status = agent.until(&job, Phase::Exited).await;
    assert_eq!(status.exit_code, Some(6));
    // A third life knows it without looking at the task.
    agent.die().await;
    let mut agent = Agent::start(&place);
    agent.desire(&[&job]).await;
    assert_eq!(agent.until(&job, Phase::Exited).await.exit_code, Some(6));
    agent.finish(&job).await;
}

#[tokio::test]
async fn a_leftover_that_nobody_wants_is_ended() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let pid = place.path().join("pid");
    let job = place.job(&format!("echo $$ > {}; exec sleep 1000", pid.display()));
    agent.desire(&[&job]).await;
    let pid: i32 = until_file(&pid, |text| text.ends_with('\n'))
        .await
        .trim()
        .parse()
        .unwrap();
    agent.until(&job, Phase::Running).await;
    agent.die().await;

    let mut agent = Agent::start(&place);
    agent.desire(&[]).await;
    let mut changes = agent.host.board.changes();
    while agent.observed(&key(&job)).is_some() {
        tokio::time::timeout(crate::node::PATIENCE, changes.changed())
            .await
            .unwrap()
            .unwrap();
    }
    let alive = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None);
    assert_eq!(alive, Err(nix::errno::Errno::ESRCH));
}

#[tokio::test]
async fn a_stop_is_graceful() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let ready = place.path().join("ready");
    let job = place.job(&format!(
        "trap 'echo saved; exit 0' TERM; echo x > {}; while :; do sleep 0.02; done",
        ready.display()
    ));
    agent.desire(&[&job]).await;
    until_file(&ready, |text| !text.is_empty()).await;
    agent.until(&job, Phase::Running).await;
    agent.finish(&job).await;
    assert_eq!(place.read("stdout.txt"), "saved\n");
}

#[tokio::test]
async fn the_end_of_the_lease_ends_the_tasks_but_blames_the_node() {
    for agent_only in [true, false] {
        let place = Place::new();
        let mut agent = Agent::start(&place);
        let ready = place.path().join("ready");
        let job = place.job(&format!(
            "trap '' TERM; echo x > {}; while :; do sleep 0.02; done",
            ready.display()
        ));
        agent.desire(&[&job]).await;
        until_file(&ready, |text| !text.is_empty()).await;
        agent.until(&job, Phase::Running).await;
        if agent_only {
            agent.end_lease_of_agent();
        } else {
            agent.end_lease();
        }
        let status = agent.until(&job, Phase::Failed).await;
        assert_eq!(status.errors[0].code, "NodeLost");
        assert_eq!(status.exit_code, None);
        agent.finish(&job).await;
    }
}

#[tokio::test]
async fn stopping_what_is_unknown_is_done_at_once_and_the_next_attempt_runs() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let job = place.job("true");
    agent
        .desire(&[&job.clone().phase(AttemptPhase::Stop)])
        .await;
    agent.until(&job, Phase::Cleaned).await;
    let mut next = job.clone();
    (next.attempt, next.epoch) = (2, 20);
    agent.desire(&[&next]).await;
    agent.until(&next, Phase::Exited).await;
    agent.finish(&next).await;
}

#[tokio::test]
async fn a_stop_in_the_middle_of_the_preparation_leaves_nothing() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let ready = place.path().join("ready");
    let job = place
        .job("true")
        .preparing(&format!("echo x > {}; exec sleep 1000", ready.display()));
    agent.desire(&[&job]).await;
    until_file(&ready, |text| !text.is_empty()).await;
    let status = agent.finish(&job).await;
    assert!(status.errors.is_empty(), "{status:?}");
    let left = fs::read_dir(place.data().join("jobs")).unwrap().count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn tasks_of_an_earlier_boot_are_lost_with_it() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let job = place.job("sleep 0.2");
    agent.desire(&[&job]).await;
    agent.until(&job, Phase::Running).await;
    agent.die().await;

    let mut rebooted = host(&place);
    rebooted.boot_id = "the next one".to_owned();
    let mut agent = Agent::start_as(rebooted, 1 << 30);
    agent.desire(&[&job]).await;
    let status = agent.until(&job, Phase::Failed).await;
    assert_eq!(status.errors[0].code, "NodeLost");
    agent.finish(&job).await;
}

#[tokio::test]
async fn a_share_that_hangs_fails_the_job_and_not_the_node() {
    let place = Place::new();
    // A helper that never answers, as one in the grip of a dead file server.
    let hung = place.path().join("hung");
    fs::write(&hung, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&hung, fs::Permissions::from_mode(0o755)).unwrap();
    let mut slow = host(&place);
    slow.share.program = hung;
    slow.share.deadline = Duration::from_millis(200);
    let mut agent = Agent::start_as(slow, 1 << 30);
    let job = place.job("true");
    agent.desire(&[&job]).await;
    let status = agent.until(&job, Phase::Failed).await;
    assert_eq!(status.errors[0].code, "OutputDirectoryError");
    assert!(status.errors[0].message.contains("the storage hangs"));
    agent.finish(&job).await;
}

#[tokio::test]
async fn old_logs_make_room_for_new_ones() {
    let place = Place::new();
    let mut agent = Agent::start_as(host(&place), 5_000);
    let mut attempts = Vec::new();
    for attempt in 1..=3 {
        let mut job = place.job("head -c 3000 /dev/zero");
        (job.attempt, job.epoch) = (attempt, u64::from(attempt) * 10);
        agent.desire(&[&job]).await;
        agent.until(&job, Phase::Exited).await;
        agent.finish(&job).await;
        attempts.push(job);
    }
    agent.desire(&[]).await;
    let spool = |attempt: usize| {
        let job = &attempts[attempt - 1];
        agent.host.dirs.spool_dir(&job.uid, job.attempt)
    };
    let gone = async {
        while spool(1).exists() || spool(2).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::node::PATIENCE, gone)
        .await
        .unwrap();
    assert!(spool(3).join("stdout.txt").exists());
    assert!(agent.host.board.files(&key(&attempts[0])).is_none());
    assert!(agent.host.board.files(&key(&attempts[2])).is_some());
}

#[tokio::test]
async fn what_no_record_explains_is_ended_and_removed() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let pid = place.path().join("pid");
    let job = place.job(&format!("echo $$ > {}; exec sleep 1000", pid.display()));
    agent.desire(&[&job]).await;
    agent.until(&job, Phase::Running).await;
    let pid = until_file(&pid, |text| text.ends_with('\n')).await;
    agent.die().await;
    let host = host(&place);
    let state = host.dirs.state_dir(&job.uid, 1);
    fs::write(state.join("attempt.json"), "{ torn").unwrap();

    leftovers::discard(&state).await;
    leftovers::sweep(&host, &[], None).await;
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    assert_eq!(
        nix::sys::signal::kill(pid, None),
        Err(nix::errno::Errno::ESRCH)
    );
    assert!(!state.exists());
    assert_eq!(fs::read_dir(host.dirs.jobs()).unwrap().count(), 0);
}

/// Only root can run tasks as somebody else.
#[tokio::test]
async fn tasks_and_their_directories_are_the_users_or_roots_where_it_is_allowed() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let place = Place::new();
    // The share belongs to root and lets nobody write: only the mount point's own helper may make directories there.
    for dir in [place.path().to_owned(), place.share()] {
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let user = TaskUser::resolve(None).unwrap();
    let uid = user.credentials.uid;
    assert_ne!(uid, 0, "root is nobody's default");
    let mut other = host(&place);
    other.facts.task_user = user;
    let mut agent = Agent::start_as(other, 1 << 30);
    for (run_as_root, uid) in [(false, uid), (true, 0)] {
        let mut job = place
            .job("id -u; echo x > $AZ_BATCHAI_OUTPUT_MODEL/x; echo y > $AZ_BATCHAI_JOB_TEMP/y")
            .preparing("id -u");
        job.run_as_root = run_as_root;
        job.uid = format!("{uid:08}-2222-3333-4444-555555555555");
        job.path_segment = format!("segment-{uid}");
        agent.desire(&[&job]).await;
        let status = agent.until(&job, Phase::Exited).await;
        assert_eq!(status.exit_code, Some(0), "{status:?}");
        agent.finish(&job).await;
        let segment = place.share().join(&job.path_segment);
        for name in ["stdout.txt", "stdout-job_prep.txt"] {
            let text = fs::read_to_string(segment.join("stdouterr").join(name)).unwrap();
            assert_eq!(text, format!("{uid}\n"), "{name}");
        }
        for path in ["outputs/models/x", "stdouterr/execution.log"] {
            let metadata = fs::metadata(segment.join(path)).unwrap();
            assert_eq!(metadata.uid(), uid, "{path}");
        }
    }
    assert_eq!(fs::metadata(place.share()).unwrap().uid(), 0);
}

/// Whether the nodes share it depends on where stdouterr lies.
#[tokio::test]
async fn the_shared_directory_goes_with_the_attempt_unless_it_lies_on_a_volume() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let on_volume = place.share().join("segment/shared-3/met");
    for (attempt, prefix, kept) in [
        (1, "$AZ_BATCHAI_JOB_TEMP", false),
        (2, place.path().to_str().unwrap(), false),
        (3, "$AZ_BATCHAI_MOUNT_ROOT/share", true),
    ] {
        let mut job = place.job_on(&["n1", "n2"], "echo here > $AZ_BATCHAI_SHARED_JOB_TEMP/met");
        (job.attempt, job.epoch) = (attempt, u64::from(attempt) * 10);
        job.spec.as_mut().unwrap().std_out_err_path_prefix = prefix.to_owned();
        agent.desire(&[&job]).await;
        let status = agent.until(&job, Phase::Exited).await;
        assert_eq!(status.exit_code, Some(0), "{status:?}");
        agent.finish(&job).await;
        // Other nodes may still use one on a volume.
        assert_eq!(on_volume.exists(), kept, "{prefix}");
        let beside = place.path().join(format!("segment/shared-{attempt}"));
        assert!(!beside.exists(), "{prefix}");
        let left = fs::read_dir(place.data().join("jobs")).unwrap().count();
        assert_eq!(left, 0, "{prefix}");
    }
}

#[tokio::test]
async fn a_job_that_wants_more_shared_memory_than_the_node_has_is_not_started() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let mut job = place.job("echo started");
    job.spec.as_mut().unwrap().container_settings = Some(ContainerSettings {
        shm_size: "999999gb".to_owned(),
        ..ContainerSettings::default()
    });
    agent.desire(&[&job]).await;
    let status = agent.until(&job, Phase::Failed).await;
    let error = &status.errors[0];
    assert!(
        error.message.contains("containerSettings.shmSize"),
        "{}",
        error.message
    );
    agent.finish(&job).await;
    assert_eq!(place.read("stdout.txt"), "");
    agent.die().await;
}
