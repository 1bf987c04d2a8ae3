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
