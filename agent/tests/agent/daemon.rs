//! The program itself, against a scheduler of the test's.

use std::fs;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use trainyard_proto::v1::{AttemptNodePhase as Phase, AttemptPhase, Desired, GpuSource};
use trainyard_shared::tls::{Authority, Role};

use crate::node::{Change, PATIENCE, PROGRAM, Place, until_file};
use crate::scheduler::{Got, Manner, Scheduler};

struct Daemon {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
}

impl Daemon {
    async fn start(place: &Place, scheduler: &Scheduler) -> Daemon {
        let mut child = Command::new(PROGRAM)
            .arg("run")
            .arg("--config")
            .arg(place.path().join("agent.toml"))
            .arg("--scheduler")
            .arg(scheduler.address.to_string())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = async {
            while let Some(line) = log.next_line().await.unwrap() {
                if line.contains("trainyard-agent ready node=n1 listen=127.0.0.1:") {
                    return;
                }
            }
            panic!("it ended");
        };
        tokio::time::timeout(PATIENCE, ready).await.unwrap();
        Daemon { child, log }
    }

    async fn end(mut self, signal: nix::sys::signal::Signal) -> std::process::ExitStatus {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        drop(self.log);
        status.unwrap().unwrap()
    }
}

fn configure(place: &Place) -> Authority {
    let authority = Authority::create("c1").unwrap();
    let identity = authority.issue(&Role::Node("n1".to_owned())).unwrap();
    identity.save(&place.path().join("tls")).unwrap();
    let me = nix::unistd::User::from_uid(nix::unistd::Uid::effective());
    let me = me.unwrap().unwrap().name;
    let settings = format!(
        "node = \"n1\"\nlisten = \"127.0.0.1:0\"\naddress = \"127.0.0.1\"\ndata_dir = \"data\"\ngpus = 2\n\
         task_user = \"{me}\"\n"
    );
    fs::write(place.path().join("agent.toml"), settings).unwrap();
    authority
}

async fn phase(scheduler: &mut Scheduler, wanted: Phase) {
    scheduler
        .next(|got| match got {
            Got::Observed(observed) => observed
                .attempts
                .iter()
                .any(|attempt| attempt.status.as_ref().unwrap().phase() == wanted)
                .then_some(()),
            _ => None,
        })
        .await;
}

fn view(revision: u64, job: &trainyard_proto::v1::Assignment) -> Desired {
    Desired {
        revision,
        assignments: vec![job.clone()],
        ..Desired::default()
    }
}

#[tokio::test]
async fn a_job_goes_on_while_the_agent_is_replaced_and_while_it_is_killed() {
    let place = Place::new();
    let authority = configure(&place);
    let mut scheduler = Scheduler::start(&authority, 1, Manner::default()).await;
    let daemon = Daemon::start(&place, &scheduler).await;
    let hello = scheduler.hello().await;
    let inventory = hello.inventory.unwrap();
    assert_eq!(inventory.gpus.len(), 2);
    assert_eq!(inventory.gpu_source(), GpuSource::Declared);
    assert!(hello.agent_address.starts_with("127.0.0.1:"));
    assert!(!hello.node_class.is_empty() && !hello.boot_id.is_empty());

    let (go, begun) = (place.path().join("go"), place.path().join("begun"));
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let job = place.job(&format!(
        "echo once >> {}; cat {}; exit 7",
        begun.display(),
        go.display()
    ));
    scheduler.desired.send_replace(view(1, &job));
    phase(&mut scheduler, Phase::Running).await;
    until_file(&begun, |text| !text.is_empty()).await;

    let status = daemon.end(nix::sys::signal::Signal::SIGTERM).await;
    assert!(status.success());
    let daemon = Daemon::start(&place, &scheduler).await;
    let found = scheduler.hello().await.observed.unwrap().attempts;
    assert_eq!(found[0].status.as_ref().unwrap().phase(), Phase::Running);

    daemon.end(nix::sys::signal::Signal::SIGKILL).await;
    let daemon = Daemon::start(&place, &scheduler).await;
    scheduler.hello().await;
    tokio::task::spawn_blocking(move || fs::write(&go, "").unwrap())
        .await
        .unwrap();
    phase(&mut scheduler, Phase::Exited).await;
    assert_eq!(fs::read_to_string(&begun).unwrap(), "once\n");
    let stop = job.phase(AttemptPhase::Stop);
    scheduler.desired.send_replace(view(2, &stop));
    phase(&mut scheduler, Phase::Cleaned).await;
    daemon.end(nix::sys::signal::Signal::SIGTERM).await;
}

#[tokio::test]
async fn two_agents_do_not_share_a_directory() {
    let place = Place::new();
    let authority = configure(&place);
    let scheduler = Scheduler::start(&authority, 1, Manner::default()).await;
    let daemon = Daemon::start(&place, &scheduler).await;
    let second = Command::new(PROGRAM)
        .args(["run", "--scheduler", "127.0.0.1:1", "--config"])
        .arg(place.path().join("agent.toml"))
        .output()
        .await
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let message = String::from_utf8(second.stderr).unwrap();
    assert!(message.contains("in use by another agent"), "{message}");
    daemon.end(nix::sys::signal::Signal::SIGINT).await;
}

#[tokio::test]
async fn a_port_in_use_is_refused_with_the_way_out() {
    let place = Place::new();
    configure(&place);
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let output = Command::new(PROGRAM)
        .args(["run", "--scheduler", "127.0.0.1:1", "--listen", &address])
        .arg("--config")
        .arg(place.path().join("agent.toml"))
        .output()
        .await
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    for wanted in [
        &format!("listen: cannot listen on {address}: "),
        "; stop what listens there, or give another address with --listen",
    ] {
        assert!(message.contains(wanted), "{message}");
    }
}

#[tokio::test]
async fn bad_settings_are_refused_with_place_and_reason() {
    let place = Place::new();
    configure(&place);
    let run = |arguments: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.arg("check-config").args(arguments);
        command.arg("--config").arg(place.path().join("agent.toml"));
        command.output()
    };
    let output = run(&["--scheduler", "127.0.0.1:1"]).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for (arguments, wanted) in [
        (vec![], "schedulers: none given"),
        (
            vec!["--scheduler", "x"],
            "schedulers: \"x\" is not HOST:PORT",
        ),
        (
            vec!["--scheduler", "h:1", "--node", "n2"],
            "the certificate is of node/n1, but this is node n2",
        ),
        (
            vec!["--scheduler", "h:1", "--task-user", "nobody-of-that-name"],
            "task_user: ",
        ),
    ] {
        let output = run(&arguments).await.unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {message}");
        assert!(message.contains(wanted), "{arguments:?} {message}");
    }
}
