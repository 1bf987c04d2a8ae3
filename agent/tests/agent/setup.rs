//! The set-up of a node for its cluster.

use std::fs;
use std::path::PathBuf;

use trainyard_agent::attempt::Host;
use trainyard_agent::confine::Credentials;
use trainyard_proto::v1::{
    AttemptNodePhase, AttemptPhase, Desired, EnvironmentVariable, NodeSetupOrder, NodeSetupPhase,
    NodeSetupStatus, SetupTask, Volume, volume,
};

use crate::node::{Agent, Change, Place, host, until_file};

/// What a cluster of this place orders.
fn order(place: &Place, command: &str) -> NodeSetupOrder {
    NodeSetupOrder {
        cluster: "workspaces/w/clusters/c".to_owned(),
        cluster_uid: "99999999-2222-3333-4444-555555555555".to_owned(),
        epoch: 5,
        volumes: vec![volume_at(&place.share())],
        setup_task: Some(SetupTask {
            command_line: command.to_owned(),
            environment_variables: vec![EnvironmentVariable {
                name: "GREETING".to_owned(),
                value: "hello $AZ_BATCHAI_CLUSTER_NAME".to_owned(),
            }],
            std_out_err_path_prefix: "$AZ_BATCHAI_MOUNT_ROOT/share/logs".to_owned(),
            ..SetupTask::default()
        }),
        path_segment: "workspaces/w/clusters/c/uid".to_owned(),
    }
}

fn volume_at(path: &std::path::Path) -> Volume {
    Volume {
        relative_mount_path: "share".to_owned(),
        source: Some(volume::Source::HostPath(
            path.to_string_lossy().into_owned(),
        )),
    }
}

fn logs(place: &Place) -> PathBuf {
    place.share().join("logs/workspaces/w/clusters/c/uid")
}

fn mount_point(place: &Place) -> PathBuf {
    place.data().join("mounts/w/c/share")
}

async fn order_it(agent: &mut Agent, order: Option<&NodeSetupOrder>) {
    agent
        .see(Desired {
            setup: order.cloned(),
            ..Desired::default()
        })
        .await;
}

async fn until(agent: &Agent, epoch: u64, phase: NodeSetupPhase) -> NodeSetupStatus {
    let reached = |status: &NodeSetupStatus| status.epoch == epoch && status.phase() == phase;
    agent
        .until_board(|board| board.setup()?.status.filter(reached))
        .await
}

async fn until_gone(agent: &Agent) {
    agent
        .until_board(|board| board.setup().is_none().then_some(()))
        .await;
}

/// How many times a task was run that adds a line to this file each time.
fn runs(place: &Place) -> usize {
    let text = fs::read_to_string(place.share().join("runs")).unwrap_or_default();
    text.lines().count()
}

const COUNT: &str = "echo run >>$AZ_BATCHAI_MOUNT_ROOT/share/runs";

#[tokio::test]
async fn a_node_is_set_up_keeps_its_volumes_for_its_jobs_and_gives_everything_back() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let command = "echo $GREETING; echo $AZ_BATCHAI_STDOUTERR_DIR; echo whispers >&2; id -u";
    let order = order(&place, command);
    order_it(&mut agent, Some(&order)).await;
    let status = until(&agent, 5, NodeSetupPhase::Ready).await;
    assert_eq!(status.exit_code, Some(0));
    assert_eq!(status.boot_id, agent.host.boot_id);
    assert!(status.end_time.is_some());
    let read = |name: &str| fs::read_to_string(logs(&place).join(name)).unwrap();
    let seen_dir = mount_point(&place).join("logs/workspaces/w/clusters/c/uid");
    let own = Credentials::own().uid;
    let expected = format!("hello c\n{}\n{own}\n", seen_dir.display());
    assert_eq!(read("stdout-n1.txt"), expected);
    assert_eq!(read("stderr-n1.txt"), "whispers\n");
    let log = read("execution-n1.log");
    assert!(log.contains("mounted"), "{log}");
    assert!(log.contains("exited with status 0"), "{log}");

    // A job finds the volume and leaves it.
    let job = place.job("cat $AZ_BATCHAI_MOUNT_ROOT/share/logs/*/*/*/*/*/stdout-n1.txt");
    let both = |assignments| Desired {
        setup: Some(order.clone()),
        assignments,
        ..Desired::default()
    };
    agent.see(both(vec![job.clone()])).await;
    let status = agent.until(&job, AttemptNodePhase::Exited).await;
    assert_eq!(status.exit_code, Some(0));
    agent
        .see(both(vec![job.clone().phase(AttemptPhase::Stop)]))
        .await;
    agent.until(&job, AttemptNodePhase::Cleaned).await;
    assert!(mount_point(&place).is_symlink());

    order_it(&mut agent, None).await;
    until_gone(&agent).await;
    assert!(!mount_point(&place).is_symlink());
    assert!(!place.data().join("setup").exists());
    agent.die().await;
}

#[tokio::test]
async fn volumes_outlast_the_set_up_while_a_job_uses_them() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let mut order = order(&place, "true");
    order.setup_task = None;
    let job = place.job("sleep 60");
    agent
        .see(Desired {
            setup: Some(order),
            assignments: vec![job.clone()],
            ..Desired::default()
        })
        .await;
    agent.until(&job, AttemptNodePhase::Running).await;
    agent.desire(&[&job]).await;
    until_gone(&agent).await;
    assert!(mount_point(&place).is_symlink());
    agent.finish(&job).await;
    assert!(!mount_point(&place).is_symlink());
    agent.die().await;
}

#[tokio::test]
async fn a_task_that_fails_says_why_and_is_run_again_for_a_new_order_only() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let mut order = order(&place, &format!("{COUNT}; echo no such disk >&2; exit 3"));
    order_it(&mut agent, Some(&order)).await;
    let status = until(&agent, 5, NodeSetupPhase::Failed).await;
    assert_eq!(status.exit_code, Some(3));
    let error = &status.errors[0];
    assert_eq!(error.code, "NodeSetupTaskFailed");
    assert!(error.message.contains("nodes/n1"), "{}", error.message);
    assert!(error.message.contains("no such disk"), "{}", error.message);
    assert!(error.message.contains("stderr-n1.txt"), "{}", error.message);
    let detail = |name: &str| error.details.iter().find(|d| d.name == name).unwrap();
    assert_eq!(detail("exitCode").value, "3");
    assert_eq!(detail("stderr").value, "no such disk");
    agent.die().await;

    let mut agent = Agent::start(&place);
    // Known before a view comes: Hello must tell it.
    assert_eq!(agent.host.board.setup().unwrap().status, Some(status));
    order_it(&mut agent, Some(&order)).await;
    let old_runs = runs(&place);
    order.epoch = 8;
    order.setup_task.as_mut().unwrap().command_line = COUNT.to_owned();
    order_it(&mut agent, Some(&order)).await;
    until(&agent, 8, NodeSetupPhase::Ready).await;
    assert_eq!((old_runs, runs(&place)), (1, 2));
    // The logs of the first time are kept.
    assert!(logs(&place).join("stderr-n1.txt.attempt-1").exists());
    agent.die().await;
}

#[tokio::test]
async fn a_restarted_agent_takes_the_running_task_over() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let command =
        format!("{COUNT}; until [ -e $AZ_BATCHAI_MOUNT_ROOT/share/go ]; do sleep 0.05; done");
    let order = order(&place, &command);
    order_it(&mut agent, Some(&order)).await;
    until_file(&place.share().join("runs"), |text| !text.is_empty()).await;
    agent.die().await;
    let mut agent = Agent::start(&place);
    until(&agent, 5, NodeSetupPhase::Preparing).await;
    order_it(&mut agent, Some(&order)).await;
    fs::write(place.share().join("go"), "").unwrap();
    let status = until(&agent, 5, NodeSetupPhase::Ready).await;
    assert_eq!((status.exit_code, runs(&place)), (Some(0), 1));
    agent.die().await;
}

#[tokio::test]
async fn a_task_ends_when_its_order_goes_but_not_with_the_lease() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let command = "trap 'echo ended >>$AZ_BATCHAI_MOUNT_ROOT/share/end; exit 1' TERM; \
                   echo up >$AZ_BATCHAI_MOUNT_ROOT/share/up; while :; do sleep 0.05; done";
    let order = order(&place, command);
    order_it(&mut agent, Some(&order)).await;
    until_file(&place.share().join("up"), |text| !text.is_empty()).await;
    agent.end_lease();
    until(&agent, 5, NodeSetupPhase::Preparing).await;
    assert!(!place.share().join("end").exists());
    order_it(&mut agent, None).await;
    until_gone(&agent).await;
    assert_eq!(
        fs::read_to_string(place.share().join("end")).unwrap(),
        "ended\n"
    );
    agent.die().await;
}

#[tokio::test]
async fn each_boot_needs_the_set_up_again() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let order = order(&place, COUNT);
    order_it(&mut agent, Some(&order)).await;
    until(&agent, 5, NodeSetupPhase::Ready).await;
    agent.die().await;
    let rebooted = Host {
        boot_id: "another-boot".to_owned(),
        ..host(&place)
    };
    let mut agent = Agent::start_as(rebooted, 1 << 30);
    order_it(&mut agent, Some(&order)).await;
    let status = agent
        .until_board(|board| {
            let status = board.setup()?.status?;
            (status.boot_id == "another-boot" && status.phase() == NodeSetupPhase::Ready)
                .then_some(status)
        })
        .await;
    assert_eq!((status.epoch, runs(&place)), (5, 2));
    agent.die().await;
}

#[tokio::test]
async fn a_volume_that_is_missing_fails_the_set_up_until_it_is_there() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let mut order = order(&place, COUNT);
    order.volumes = vec![volume_at(&place.path().join("late"))];
    order_it(&mut agent, Some(&order)).await;
    let status = until(&agent, 5, NodeSetupPhase::Failed).await;
    let error = &status.errors[0];
    assert_eq!(error.code, "MountError");
    assert!(error.message.contains("late"), "{}", error.message);
    assert_eq!(status.exit_code, None);
    fs::create_dir(place.path().join("late")).unwrap();
    let status = until(&agent, 5, NodeSetupPhase::Ready).await;
    assert_eq!(status.errors, []);
    assert!(place.path().join("late/runs").exists());
    agent.die().await;
}

#[tokio::test]
async fn an_agent_that_is_not_root_says_that_a_setup_task_needs_root() {
    let place = Place::new();
    let mut host = host(&place);
    host.facts.root_user.name = "carol".to_owned();
    host.facts.root_user.credentials.uid = 1234;
    let mut agent = Agent::start_as(host, 1 << 30);
    order_it(&mut agent, Some(&order(&place, COUNT))).await;
    let status = until(&agent, 5, NodeSetupPhase::Failed).await;
    let error = &status.errors[0];
    assert_eq!(error.code, "NodeSetupTaskFailed");
    assert!(
        error.message.contains("runs as `carol`"),
        "{}",
        error.message
    );
    assert_eq!(runs(&place), 0);
    agent.die().await;
}

#[tokio::test]
async fn a_node_moves_from_one_cluster_to_another() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    let first = order(&place, COUNT);
    order_it(&mut agent, Some(&first)).await;
    until(&agent, 5, NodeSetupPhase::Ready).await;
    let second = NodeSetupOrder {
        cluster: "workspaces/w/clusters/d".to_owned(),
        cluster_uid: "88888888-2222-3333-4444-555555555555".to_owned(),
        epoch: 7,
        ..first
    };
    order_it(&mut agent, Some(&second)).await;
    until(&agent, 7, NodeSetupPhase::Ready).await;
    assert_eq!(
        agent.host.board.setup().unwrap().cluster_uid,
        second.cluster_uid
    );
    assert!(!mount_point(&place).is_symlink());
    assert!(place.data().join("mounts/w/d/share").is_symlink());
    agent.die().await;
}
