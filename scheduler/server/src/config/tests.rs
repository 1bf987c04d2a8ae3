//! Configurations that are right, and what is said of those that are not.

use super::*;

const GOOD: &str = r#"member_id = 1
listen = "127.0.0.1:7701"
data_dir = "state"

[[members]]
id = 2
address = "b.example:7700"

[[members]]
id = 1
address = "a.example:7700"

[lease]
lease_ms = 6000
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(
        Path::new("/etc/ty/scheduler.toml"),
        text,
        &Overrides::default(),
    )
    .map_err(|e| e.to_string())
}

#[test]
fn paths_are_relative_to_the_file_and_defaults_fill_the_rest() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.data_dir, Path::new("/etc/ty/state"));
    assert_eq!(config.tls_dir, Path::new("/etc/ty/tls"));
    assert_eq!(config.members[0].id, 1);
    assert_eq!(config.lease.lease_ms, 6_000);
    assert_eq!(config.lease.fence_ms, 10_000);
    assert_eq!(config.raft, RaftConfig::default());
    assert_eq!(config.address_of(2), Some("b.example:7700"));
}

#[test]
fn listen_defaults_to_the_members_own_address() {
    let config = parse(&GOOD.replace("listen = \"127.0.0.1:7701\"\n", "")).unwrap();
    assert_eq!(config.listen, "a.example:7700");
}

#[test]
fn flags_win() {
    let overrides = Overrides {
        listen: Some("0.0.0.0:1".into()),
        data_dir: Some("here".into()),
        tls_dir: Some("/there".into()),
    };
    let config = Config::parse(Path::new("/etc/ty/s.toml"), GOOD, &overrides).unwrap();
    assert_eq!(config.listen, "0.0.0.0:1");
    assert_eq!(config.data_dir, Path::new("here"));
    assert_eq!(config.tls_dir, Path::new("/there"));
    let wrong = Overrides {
        listen: Some("nowhere".into()),
        ..Overrides::default()
    };
    let error = Config::parse(Path::new("s"), GOOD, &wrong).unwrap_err();
    assert!(
        error.to_string().starts_with("--listen: \"nowhere\""),
        "{error}"
    );
}

#[test]
fn mistakes_are_named_with_their_place() {
    // (what to replace, with what, what the error must say)
    let cases = [
        (
            "data_dir",
            "data_dri",
            ":3:1: data_dri: there is no such key; did you mean `data_dir`?",
        ),
        (
            "data_dir",
            "colour",
            ":3:1: colour: there is no such key; the keys here are member_id, listen,",
        ),
        (
            "lease_ms",
            "leese_ms",
            ":14:1: leese_ms: there is no such key; did you mean `lease_ms`?",
        ),
        (
            "member_id = 1",
            "member_id = 7",
            ":1:13: member_id: 7 is not among the ids of [[members]] (1, 2)",
        ),
        ("id = 2", "id = 1", ":10:6: members.id: 1 is given twice"),
        (
            "b.example:7700",
            "b.example",
            ":7:11: members.address: \"b.example\" is not HOST:PORT",
        ),
        (
            "b.example",
            "a.example",
            ":11:11: members.address: a.example:7700 is given twice",
        ),
        (
            "lease_ms = 6000",
            "lease_ms = 60",
            "lease.heartbeat_ms: 2000 must be",
        ),
        (
            "lease_ms = 6000",
            "lease_ms = \"long\"",
            ":14:12: invalid type: string \"long\", expected u64",
        ),
        ("member_id = 1\n", "", "missing field `member_id`"),
        ("listen = ", "listen ", ":2:"),
    ];
    for (from, to, expected) in cases {
        let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err();
        assert!(
            error.starts_with("/etc/ty/scheduler.toml:") && error.contains(expected),
            "{from} -> {to}: {error}"
        );
    }
}

#[test]
fn addresses() {
    for good in ["127.0.0.1:1", "[::1]:7700", "host-1.example:65535"] {
        assert!(check_address(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        ":1",
        "host",
        "host:",
        "host:70000",
        "::1:5",
        "a b:1",
        "http://a:1",
    ] {
        assert!(check_address(bad).is_err(), "{bad}");
    }
}

#[test]
fn exports_lie_in_the_data_directory_unless_told_otherwise() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.export_dir, Path::new("/etc/ty/state/exports"));
    assert_eq!((config.usage_retention_days, config.power), (400, None));
    let text = format!("export_dir = \"kept\"\nusage_retention_days = 30\n{GOOD}");
    let config = parse(&text).unwrap();
    assert_eq!(config.export_dir, Path::new("/etc/ty/kept"));
    assert_eq!(config.usage_retention_days, 30);
    let error = parse(&format!("usage_retention_days = 0\n{GOOD}")).unwrap_err();
    assert!(
        error.contains(":1:24: usage_retention_days: must be"),
        "{error}"
    );
}

#[test]
fn power_is_taken_by_command_or_by_lan() {
    let config = parse(&format!(
        "{GOOD}[power]\nwake_command = [\"/bin/on\", \"-x\"]\nstop_command = [\"/bin/off\"]\nstop_after_idle_s = 900\n\
         wake_deadline_s = 60\n"
    ));
    let power = config.unwrap().power.unwrap();
    assert_eq!(
        power.wake,
        Wake::Command(vec!["/bin/on".into(), "-x".into()])
    );
    assert_eq!(power.stop_command, Some(vec!["/bin/off".into()]));
    assert_eq!(power.stop_after_idle.unwrap().as_secs(), 900);
    assert_eq!(power.wake_deadline.as_secs(), 60);
    let lan = parse(&format!("{GOOD}[power]\nwake_on_lan = true\n")).unwrap();
    assert_eq!(
        lan.power.unwrap().wake,
        Wake::OnLan("255.255.255.255:9".into())
    );
}

#[test]
fn mistakes_of_power_are_named_with_their_place() {
    let on = "wake_on_lan = true\n";
    let cases = [
        ("".to_owned(), "power: says not how a host is switched on"),
        (
            "wake_command = []\n".into(),
            ":16:16: power.wake_command: must begin with the absolute path",
        ),
        (
            "wake_command = [\"on\"]\n".into(),
            ":16:16: power.wake_command: must begin with the absolute path",
        ),
        (
            format!("wake_command = [\"/on\"]\n{on}"),
            ":17:15: power.wake_on_lan: there is a wake_command already",
        ),
        (
            format!("{on}wake_on_lan_address = \"here\"\n"),
            ":17:23: power.wake_on_lan_address: \"here\" is not HOST:PORT",
        ),
        (
            format!("{on}stop_after_idle_s = 900\n"),
            ":17:21: power.stop_after_idle_s: needs power.stop_command",
        ),
        (
            format!("{on}stop_command = [\"/off\"]\n"),
            "power.stop_command: is never run without",
        ),
        (
            format!("{on}wake_deadline_s = 0\n"),
            ":17:19: power.wake_deadline_s: must be between 1 and 86400",
        ),
        (
            format!("{on}wake_comand = [\"/on\"]\n"),
            ":17:1: wake_comand: there is no such key; did you mean `wake_command`?",
        ),
    ];
    for (section, expected) in cases {
        let error = parse(&format!("{GOOD}[power]\n{section}")).unwrap_err();
        assert!(error.contains(expected), "{section}: {error}");
    }
}
