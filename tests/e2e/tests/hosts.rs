//! The rigs themselves: what the end-to-end tests stand on has to hold.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use trainyard_e2e::hosts::{Ganesha, Host, Net, Uml};
use trainyard_e2e::{Daemon, Result, output, wait_until};

const SECONDS: Duration = Duration::from_secs(1);
const MEMORY_MIB: u32 = 256;

fn listener(host: &Host, folder: &Path) -> Daemon {
    let entrance = host.entrance();
    Daemon::new("listener", folder.join("listener.log"), move || {
        let mut command = entrance.command("busybox");
        command.args(["nc", "-ll", "-p", "700", "-e", "true"]);
        command
    })
}

fn connect(from: &Host, to: &Host) -> Result<String> {
    let script = format!("exec 3<>/dev/tcp/{}/700 && hostname", to.name());
    output(from.command("timeout").args(["1", "bash", "-c", &script]))
}

#[test]
fn hosts_reach_each_other_by_name_until_the_cable_is_pulled() {
    let folder = TempDir::new().unwrap();
    let net = Net::new().unwrap();
    let (alpha, beta) = (net.host("alpha").unwrap(), net.host("beta").unwrap());
    let mut daemon = listener(&beta, folder.path());
    daemon.start().unwrap();
    let reached = || {
        wait_until("alpha reaches beta", 5 * SECONDS, || {
            Ok(connect(&alpha, &beta).ok())
        })
        .unwrap()
    };
    assert_eq!(reached(), "alpha\n");

    beta.cut().unwrap();
    connect(&alpha, &beta).unwrap_err();
    beta.heal().unwrap();
    reached();

    daemon.kill().unwrap();
    connect(&alpha, &beta).unwrap_err();
    daemon.start().unwrap();
    reached();
}

/// The children of a process that have become `sleep`.
fn sleepers(parent: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let children = children.unwrap_or_default();
    let children = children
        .split_whitespace()
        .filter_map(|word| word.parse().ok().map(Pid::from_raw));
    let sleeps = |pid: &Pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
    };
    children.filter(sleeps).collect()
}

#[test]
fn a_killed_daemon_leaves_its_children_and_a_dropped_host_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let net = Net::new().unwrap();
    let host = net.host("alpha").unwrap();
    let entrance = host.entrance();
    let mut parent = Daemon::new("parent", folder.path().join("parent.log"), move || {
        let mut command = entrance.command("bash");
        command.args(["-c", "setsid sleep 1000 & setsid sleep 1000 & wait"]);
        command
    });
    parent.start().unwrap();
    let pid = parent.pid().unwrap();
    let children = wait_until("both children exist", 5 * SECONDS, || {
        Ok(Some(sleepers(pid)).filter(|found| found.len() == 2))
    });
    let children = children.unwrap();
    let gone = |pid: Pid| {
        wait_until("an orphan is gone", 5 * SECONDS, || {
            Ok(kill(pid, None).err())
        })
        .unwrap()
    };

    parent.kill().unwrap();
    for &child in &children {
        kill(child, None).unwrap();
    }
    kill(children[0], Signal::SIGKILL).unwrap();
    gone(children[0]);

    kill(children[1], None).unwrap();
    drop(host);
    gone(children[1]);
}

#[test]
fn the_test_is_back_in_its_own_network_when_the_rig_is_gone() {
    let here = || fs::read_link("/proc/thread-self/ns/net").unwrap();
    let home = here();
    let net = Net::new().unwrap();
    let host = net.host("alpha").unwrap();
    assert_ne!(here(), home);
    drop(net);
    assert_ne!(here(), home, "a host keeps its network");
    drop(host);
    assert_eq!(here(), home);
}

#[test]
fn a_machine_with_its_own_kernel_writes_through_nfs_and_comes_back_after_a_power_cut() {
    let folder = TempDir::new().unwrap();
    let (export, share) = (folder.path().join("export"), folder.path().join("share"));
    fs::create_dir(&export).unwrap();
    fs::create_dir(&share).unwrap();
    let net = Net::new().unwrap();
    let storage = net.host("storage").unwrap();
    let _server = Ganesha::start(&storage, &export).unwrap();
    let mut machine = Uml::boot(&net, "machine", &share, MEMORY_MIB).unwrap();

    let mount = "mkdir -p /mnt/nfs && mount -t nfs -o vers=4.1,proto=tcp storage:/export /mnt/nfs";
    machine.run(mount, 20 * SECONDS).unwrap();
    machine
        .run(
            "echo from $(uname -r) > /mnt/nfs/file && sync /mnt/nfs/file",
            10 * SECONDS,
        )
        .unwrap();
    let written = fs::read_to_string(export.join("file")).unwrap();
    assert!(written.starts_with("from 6."), "{written}");
    assert!(
        machine
            .run("cat /proc/mounts", 5 * SECONDS)
            .unwrap()
            .contains("vers=4.1")
    );

    let controllers = machine
        .run("cat /sys/fs/cgroup/cgroup.subtree_control", 5 * SECONDS)
        .unwrap();
    assert_eq!(controllers, "cpu io memory pids\n");
    let refused = machine
        .run("echo reason; exit 3", 5 * SECONDS)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("status 3") && refused.contains("reason"),
        "{refused}"
    );

    let share_file = share.join("kept");
    machine
        .run(
            &format!("echo kept > {0} && sync {0}", share_file.display()),
            5 * SECONDS,
        )
        .unwrap();
    let endless = machine.start("echo begun; sleep 1000").unwrap();
    machine.wait_line(endless, "begun", 5 * SECONDS).unwrap();
    machine.kill().unwrap();
    machine.start("true").unwrap_err();
    assert_eq!(fs::read_to_string(&share_file).unwrap(), "kept\n");

    machine.power_on().unwrap();
    machine.run(mount, 20 * SECONDS).unwrap();
    assert_eq!(
        machine.run("cat /mnt/nfs/file", 5 * SECONDS).unwrap(),
        written
    );
    machine.stop().unwrap();
}
