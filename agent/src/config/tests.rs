use super::*;

fn error(text: &str) -> String {
    Settings::parse(Path::new("agent.toml"), text)
        .unwrap_err()
        .to_string()
}

#[test]
fn errors_name_file_line_and_key() {
    let cases = [
        (
            "node = \"n\"\ncolour = 1\n",
            "agent.toml:2:1: colour: unknown field `colour`",
        ),
        (
            "node = \"n\"\ngpus = \"four\"\n",
            "agent.toml:2:8: gpus: invalid type: string \"four\", expected u32",
        ),
        (
            "schedulers = [\"here\"]\n",
            "agent.toml:1:1: schedulers: \"here\" is not HOST:PORT",
        ),
        (
            "\nlisten = \"x\"\n",
            "agent.toml:2:1: listen: \"x\" is not ADDRESS:PORT",
        ),
        (
            "address = \"h:1\"\n",
            "agent.toml:1:1: address: \"h:1\" has a port",
        ),
        (
            "mount_deadline_s = 0\n",
            "agent.toml:1:1: mount_deadline_s: must be 1 to 3600",
        ),
        ("node = \"a/b\"\n", "agent.toml:1:1: node: \"a/b\" is not"),
        (
            "task_users = [\"a b\"]\n",
            "agent.toml:1:1: task_users: \"a b\" is not the name of a user",
        ),
        (
            "image = \"Debian\"\n",
            "agent.toml:1:1: image: `Debian` is not PUBLISHER:OFFER:SKU",
        ),
        (
            "[file_server]\nport = 0\n",
            "agent.toml:2:1: file_server.port: 0 is no port",
        ),
        (
            "[file_server]\nroots = [\"/\"]\n",
            "agent.toml:2:1: file_server.roots: \"/\" is not an absolute directory below /",
        ),
        (
            "[file_server]\nroots = [\"/srv/../etc\"]\n",
            "agent.toml:2:1: file_server.roots: \"/srv/../etc\" is not",
        ),
        (
            "[file_server]\nprot = 1\n",
            "agent.toml:2:1: prot: unknown field `prot`",
        ),
        ("node = \n", "agent.toml:1:"),
    ];
    for (text, wanted) in cases {
        let got = error(text);
        assert!(
            got.starts_with(wanted),
            "{text:?}\n got: {got}\nwant: {wanted}"
        );
    }
}

#[test]
fn flags_win_over_the_file_and_directories_are_relative_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    std::fs::write(
        &path,
        "node = \"n1\"\nschedulers = [\"a:1\", \"b:2\"]\ndata_dir = \"data\"\ngpus = 4\n",
    )
    .unwrap();
    let flags = Settings {
        gpus: Some(2),
        ..Settings::default()
    };
    let config = flags.over(Settings::read(&path).unwrap()).finish().unwrap();
    assert_eq!(config.node, "n1");
    assert_eq!(config.gpus, Some(2));
    assert_eq!(config.data_dir, dir.path().join("data"));
    assert_eq!(config.tls_dir, dir.path().join("tls"));
    assert_eq!(config.schedulers, ["a:1", "b:2"]);
    assert_eq!(config.spool_keep_bytes, 1 << 30);
}

#[test]
fn schedulers_are_required() {
    let message = Settings::default().finish().unwrap_err().to_string();
    assert!(message.starts_with("schedulers: none given"), "{message}");
}

#[test]
fn a_missing_file_says_so() {
    let error = Settings::read(Path::new("/nowhere/agent.toml")).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("/nowhere/agent.toml: cannot read: ")
    );
}
