//! Daemons and commands that cannot start as they are told: they say why and how to go on, and touch nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a scenario stops at the first surprise"
)]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use trainyard_e2e::cluster::{Binary, Cluster, Finished, JobFile, binary, run};

const STOP_TIMEOUT: Duration = Duration::from_secs(60);

fn program(which: Binary, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary(which).unwrap());
    command.args(arguments);
    command
}

fn scheduler(arguments: &[&str]) -> Finished {
    run(program(Binary::Scheduler, arguments)).unwrap()
}

fn agent(arguments: &[&str]) -> Finished {
    run(program(Binary::Agent, arguments)).unwrap()
}

fn config_of(cluster: &Cluster, member: &str) -> PathBuf {
    let scheduler = cluster
        .install()
        .join("members")
        .join(member)
        .join("scheduler.toml");
    if scheduler.exists() {
        scheduler
    } else {
        cluster
            .install()
            .join("nodes")
            .join(member)
            .join("agent.toml")
    }
}

/// Puts `to` in place of `from` in a copy of a configuration file, beside it.
fn changed(config: &Path, from: &str, to: &str) -> String {
    let text = fs::read_to_string(config).unwrap();
    assert!(text.contains(from), "{text}");
    let path = config.with_extension("changed.toml");
    fs::write(&path, text.replacen(from, to, 1)).unwrap();
    path.display().to_string()
}

/// Every file below a folder with its bytes.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    all
}

/// The files of another cluster that nobody started.
fn foreign_install(cluster: &Cluster) -> PathBuf {
    let folder = cluster.folder().join("foreign");
    let out = folder.display().to_string();
    let arguments = [
        "init",
        "--out",
        &out,
        "--member",
        "1=127.0.0.1:7009",
        "--client",
        "stranger",
    ];
    scheduler(&arguments).success().unwrap();
    folder
}

#[test]
fn a_typo_in_a_configuration_is_found_by_file_line_and_key() {
    let cluster = Cluster::builder().prepare().unwrap();
    let member = config_of(&cluster, "1");
    let wrong = changed(&member, "stop_grace_ms", "stop_grace_mss");
    for verb in ["run", "check-config"] {
        let done = scheduler(&[verb, "--config", &wrong]);
        done.refused(2, &["scheduler.changed.toml:", "stop_grace_mss"])
            .unwrap();
    }
    assert!(
        !member.with_file_name("data").exists(),
        "it made its data folder"
    );
    let done = scheduler(&["check-config", "--config", &member.display().to_string()]);
    assert_eq!(done.status, 0, "{done:#?}");

    let node = config_of(&cluster, "node-1");
    let wrong = changed(&node, "gpus = 4", "gpus = \"four\"");
    for verb in ["run", "check-config"] {
        let done = agent(&[verb, "--config", &wrong]);
        done.refused(2, &["agent.changed.toml:", "gpus"]).unwrap();
    }
    assert!(
        !cluster.folder().join("data/node-1").exists(),
        "it made its data folder"
    );

    let wrong = changed(cluster.client_config(), "servers", "server");
    let done = run(program(
        Binary::Command,
        &["--config", &wrong, "job", "list"],
    ))
    .unwrap();
    done.refused(1, &["config.changed.toml", "server"]).unwrap();
    let done = run(program(
        Binary::Command,
        &["--config", "/nowhere.toml", "job", "list"],
    ))
    .unwrap();
    done.refused(1, &["/nowhere.toml"]).unwrap();
}

#[test]
fn a_port_in_use_is_named() {
    let cluster = Cluster::builder().prepare().unwrap();
    // The test's own place on the network stands for the busy host.
    let busy = TcpListener::bind((cluster.net().address(), 0)).unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let config = config_of(&cluster, "1").display().to_string();
    let done = scheduler(&["run", "--config", &config, "--listen", &address]);
    done.refused(2, &[&address, "in use", "--listen"]).unwrap();
    let config = config_of(&cluster, "node-1").display().to_string();
    let done = agent(&["run", "--config", &config, "--listen", &address]);
    done.refused(2, &[&address, "in use", "--listen"]).unwrap();
}

#[test]
fn a_data_directory_of_another_member_or_cluster_or_in_use_is_refused() {
    let mut cluster = Cluster::builder().schedulers(3).nodes(0).start().unwrap();
    cluster.open_workspace(0).unwrap();
    let other = foreign_install(&cluster);
    let data = config_of(&cluster, "1").with_file_name("data");
    let data_text = data.display().to_string();
    let address = format!("{}:7009", cluster.net().address());
    let foreign = other.join("members/1/scheduler.toml").display().to_string();
    let start = |config: &str| {
        scheduler(&[
            "run",
            "--config",
            config,
            "--data-dir",
            &data_text,
            "--listen",
            &address,
        ])
    };
    let own = config_of(&cluster, "1").display().to_string();
    let done = start(&own);
    done.refused(1, &[&data_text, "in use"]).unwrap();

    cluster.scheduler(1).daemon.terminate(STOP_TIMEOUT).unwrap();
    let before = contents(&data);
    let done = start(&foreign);
    done.refused(2, &[&data_text, "cluster"]).unwrap();
    let second = config_of(&cluster, "2").display().to_string();
    let done = start(&second);
    done.refused(2, &[&data_text, "member"]).unwrap();
    assert!(contents(&data) == before, "a refusal changes nothing");

    cluster.scheduler(1).daemon.start().unwrap();
    cluster.wait_ready().unwrap();
    cluster.wait_caught_up(1).unwrap();
}

#[test]
fn a_damaged_store_refuses_to_start_and_the_others_go_on() {
    let mut cluster = Cluster::builder().schedulers(3).start().unwrap();
    cluster.open_workspace(1).unwrap();
    for number in 0..30 {
        let name = format!("recognisable-{number}");
        cluster.submit(&name, &JobFile::custom("true")).unwrap();
    }
    let damaged = 2;
    cluster
        .scheduler(damaged)
        .daemon
        .terminate(STOP_TIMEOUT)
        .unwrap();
    let file = config_of(&cluster, "2").with_file_name("data/log/db");
    let mut bytes = fs::read(&file).unwrap();
    // The file keeps stale copies: the live one is among all.
    let word = b"recognisable-12";
    let copies = (0..bytes.len() - word.len()).filter(|place| bytes[*place..].starts_with(word));
    let copies: Vec<_> = copies.collect();
    assert!(!copies.is_empty(), "the job's name is not in the store");
    for place in copies {
        bytes[place] ^= 0x20;
    }
    fs::write(&file, &bytes).unwrap();

    // It does not heal by trying again.
    for _ in 0..2 {
        let daemon = &mut cluster.scheduler(damaged).daemon;
        daemon.start().unwrap();
        let status = daemon.wait(STOP_TIMEOUT).unwrap();
        assert_eq!(status.code(), Some(1), "{}", daemon.log_tail());
        let said = daemon.log_since_start().unwrap();
        assert!(said.contains("rejoin") && said.contains("data"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }

    cluster.submit("after", &JobFile::custom("true")).unwrap();
    assert_eq!(cluster.wait("after").unwrap(), 0);
}

#[test]
fn strangers_are_turned_away() {
    let cluster = Cluster::builder().start().unwrap();
    let foreign = foreign_install(&cluster);
    let own = cluster.install();
    // Another authority's certificate, a node's where a client's is due, and none at all.
    let cases: [(_, &[&str]); 3] = [
        (foreign.join("clients/stranger/tls"), &["certificate"]),
        (own.join("nodes/node-1/tls"), &["node"]),
        (own.join("nowhere"), &["nowhere", "issue"]),
    ];
    for (tls, words) in cases {
        let mut command = cluster.raw_command().unwrap();
        command
            .args(["workspace", "create", "-n", "mine", "--tls-dir"])
            .arg(&tls);
        run(command).unwrap().refused(1, words).unwrap();
    }
    assert_eq!(
        cluster
            .command(["workspace", "list", "-o", "name"])
            .unwrap(),
        ""
    );
}
