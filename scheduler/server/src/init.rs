//! `init` and `issue`: the authority, the certificates and the configuration files of an installation.
//!
//! `init` writes everything into a directory beside the target and renames it in one step, so that a half-made
//! installation never looks like a whole one. Neither ever overwrites a key.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use trainyard_shared::names::{self, NodeName};
use trainyard_shared::tls::{Authority, Role, TlsError};

use crate::config::check_address;

/// Arguments of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Directory to make; it must not exist or be empty
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// A scheduler and the address where everyone reaches it; once for each member
    #[arg(long = "member", value_name = "ID=HOST:PORT", required = true, value_parser = parse_member)]
    pub members: Vec<(u64, String)>,
    /// A node that will run an agent; may be repeated
    #[arg(long = "node", value_name = "NAME")]
    pub nodes: Vec<String>,
    /// A person or program that will use the command or the API; may be repeated
    #[arg(long = "client", value_name = "NAME")]
    pub clients: Vec<String>,
}

/// Arguments of `issue`.
#[derive(Debug, Args)]
pub struct IssueArgs {
    /// Directory of the authority: ca.pem and ca.key
    #[arg(long, value_name = "DIR")]
    pub authority: PathBuf,
    /// Whom the certificate is for
    #[command(flatten)]
    pub subject: Subject,
    /// Directory to make; it must not exist or be empty
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// A scheduler, for the configuration file of a node or client; may be repeated
    #[arg(long = "scheduler", value_name = "HOST:PORT")]
    pub schedulers: Vec<String>,
}

/// Whom a certificate is for: exactly one.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Subject {
    /// A scheduler
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub member: Option<u64>,
    /// A node
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// A person or program
    #[arg(long, value_name = "NAME")]
    pub client: Option<String>,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The arguments are wrong.
    #[error("{0}")]
    Usage(String),
    /// A file or directory cannot be written.
    #[error("{path}: cannot be written: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The authority or a certificate cannot be made or read.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

fn parse_member(text: &str) -> Result<(u64, String), String> {
    let (id, address) = text
        .split_once('=')
        .ok_or_else(|| "must be ID=HOST:PORT, such as 1=10.0.0.1:7700".to_owned())?;
    let id = id
        .parse::<u64>()
        .ok()
        .filter(|id| *id > 0)
        .ok_or_else(|| format!("{id:?} is not an id; ids are whole numbers from 1"))?;
    check_address(address)?;
    Ok((id, address.to_owned()))
}

/// Makes an installation.
pub fn init(args: &InitArgs) -> Result<(), InitError> {
    check_init(args)?;
    let parent = args.out.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    let name = args.out.file_name().ok_or_else(|| {
        InitError::Usage(format!("--out: {} names no directory", args.out.display()))
    })?;
    check_free(&args.out)?;
    make_dir(parent)?;
    let mut partial_name = std::ffi::OsString::from(".");
    partial_name.push(name);
    partial_name.push(format!(".{}.partial", std::process::id()));
    let partial = parent.join(partial_name);
    make_private_dir(&partial)?;
    let made = fill(args, &partial).and_then(|()| {
        fs::rename(&partial, &args.out).map_err(|source| InitError::Write {
            path: args.out.clone(),
            source,
        })
    });
    if let Err(error) = made {
        // What is left holds keys that nobody will use.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    println!("{}", summary(args));
    Ok(())
}

fn check_init(args: &InitArgs) -> Result<(), InitError> {
    for (i, (id, address)) in args.members.iter().enumerate() {
        if args.members[..i]
            .iter()
            .any(|(other, at)| other == id || at == address)
        {
            return Err(InitError::Usage(format!(
                "--member {id}={address}: each member needs an id and an address of its own"
            )));
        }
    }
    if args.members.len() > 9 {
        return Err(InitError::Usage(format!(
            "--member: at most 9 members; {} were given",
            args.members.len()
        )));
    }
    for (i, node) in args.nodes.iter().enumerate() {
        check_node(node)?;
        if args.nodes[..i].contains(node) {
            return Err(InitError::Usage(format!("--node {node}: given twice")));
        }
    }
    for (i, client) in args.clients.iter().enumerate() {
        check_client(client)?;
        if args.clients[..i].contains(client) {
            return Err(InitError::Usage(format!("--client {client}: given twice")));
        }
    }
    Ok(())
}

fn check_node(node: &str) -> Result<(), InitError> {
    NodeName::new(node)
        .map(|_| ())
        .map_err(|e| InitError::Usage(format!("--node: {e}")))
}

fn check_client(client: &str) -> Result<(), InitError> {
    names::check_id("client", client).map_err(|e| InitError::Usage(format!("--client: {e}")))
}

fn fill(args: &InitArgs, out: &Path) -> Result<(), InitError> {
    let authority = Authority::create(&uuid::Uuid::new_v4().to_string())?;
    let addresses: Vec<String> = args.members.iter().map(|(_, a)| a.clone()).collect();
    authority.save(&make_private_dir(&out.join("authority"))?)?;
    for (id, _) in &args.members {
        let dir = make_private_dir(&out.join("members").join(id.to_string()))?;
        save_identity(&authority, &Role::Member(*id), &dir)?;
        write(
            &dir.join("scheduler.toml"),
            &scheduler_toml(*id, &args.members),
        )?;
    }
    for node in &args.nodes {
        let dir = make_private_dir(&out.join("nodes").join(node))?;
        save_identity(&authority, &Role::Node(node.clone()), &dir)?;
        write(&dir.join("agent.toml"), &agent_toml(node, &addresses))?;
    }
    for client in &args.clients {
        let dir = make_private_dir(&out.join("clients").join(client))?;
        save_identity(&authority, &Role::Client(client.clone()), &dir)?;
        write(&dir.join("config.toml"), &client_toml(&addresses))?;
    }
    Ok(())
}

/// Issues one certificate.
pub fn issue(args: &IssueArgs) -> Result<(), InitError> {
    for scheduler in &args.schedulers {
        check_address(scheduler).map_err(|e| InitError::Usage(format!("--scheduler: {e}")))?;
    }
    let subject = &args.subject;
    let (role, file) = match (&subject.member, &subject.node, &subject.client) {
        (Some(id), _, _) => (Role::Member(*id), None),
        (None, Some(node), _) => {
            check_node(node)?;
            let file = ("agent.toml", agent_toml(node, &args.schedulers));
            (Role::Node(node.clone()), Some(file))
        }
        (None, None, Some(client)) => {
            check_client(client)?;
            let file = ("config.toml", client_toml(&args.schedulers));
            (Role::Client(client.clone()), Some(file))
        }
        (None, None, None) => {
            return Err(InitError::Usage(
                "say whom the certificate is for: --member, --node or --client".into(),
            ));
        }
    };
    check_free(&args.out)?;
    let authority = Authority::load(&args.authority)?;
    make_private_dir(&args.out)?;
    save_identity(&authority, &role, &args.out)?;
    if let Some((name, text)) = file.filter(|_| !args.schedulers.is_empty()) {
        write(&args.out.join(name), &text)?;
    }
    println!("wrote {}", args.out.display());
    Ok(())
}

fn save_identity(authority: &Authority, role: &Role, dir: &Path) -> Result<(), InitError> {
    let tls = make_private_dir(&dir.join("tls"))?;
    authority.issue(role)?.save(&tls)?;
    Ok(())
}

fn scheduler_toml(id: u64, members: &[(u64, String)]) -> String {
    let mut text = format!(
        "# Trainyard scheduler. Every key is explained in the manual; paths are relative to this file.\n\
         member_id = {id}\ndata_dir = \"data\"\ntls_dir = \"tls\"\n"
    );
    for (id, address) in members {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n[[members]]\nid = {id}\naddress = \"{address}\"\n");
    }
    text
}

fn agent_toml(node: &str, schedulers: &[String]) -> String {
    let mut text = format!(
        "# Trainyard agent. Paths are relative to this file.\n\
         node = \"{node}\"\nschedulers = {}\ntls_dir = \"tls\"\ndata_dir = \"data\"\n",
        list(schedulers)
    );
    if !schedulers.is_empty() && schedulers.iter().all(|a| is_loopback(a)) {
        // All on one host: nothing may be reachable from elsewhere.
        text.push_str("listen = \"127.0.0.1:0\"\naddress = \"127.0.0.1\"\n");
    }
    text
}

fn client_toml(schedulers: &[String]) -> String {
    format!(
        "# Trainyard command and clients. Paths are relative to this file.\nservers = {}\ntls_dir = \"tls\"\n",
        list(schedulers)
    )
}

fn list(addresses: &[String]) -> String {
    let quoted: Vec<String> = addresses.iter().map(|a| format!("\"{a}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

fn is_loopback(address: &str) -> bool {
    address.starts_with("127.")
        || address.starts_with("localhost:")
        || address.starts_with("[::1]:")
}

fn summary(args: &InitArgs) -> String {
    let out = args.out.display();
    let mut text = format!("made {out}:\n");
    for (id, address) in &args.members {
        let _ = writeln!(
            text,
            "  members/{id}: copy to {address}, then: trainyard-scheduler run --config scheduler.toml"
        );
    }
    for node in &args.nodes {
        let _ = writeln!(
            text,
            "  nodes/{node}: copy to {node}, then: trainyard-agent run --config agent.toml"
        );
    }
    for client in &args.clients {
        let _ = writeln!(
            text,
            "  clients/{client}: copy to ~/.config/trainyard of {client}"
        );
    }
    let _ = write!(
        text,
        "  authority: keep it offline; `trainyard-scheduler issue --authority {out}/authority` makes further certificates"
    );
    text
}

fn check_free(out: &Path) -> Result<(), InitError> {
    match fs::read_dir(out) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(InitError::Usage(format!(
                "--out: {} is not empty; name a new directory, so that no key is overwritten",
                out.display()
            ))),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(InitError::Write {
            path: out.to_owned(),
            source,
        }),
    }
}

fn make_dir(path: &Path) -> Result<(), InitError> {
    fs::create_dir_all(path).map_err(|source| InitError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Makes a directory that only its owner can enter.
fn make_private_dir(path: &Path) -> Result<PathBuf, InitError> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| InitError::Write {
            path: path.to_owned(),
            source,
        })?;
    Ok(path.to_owned())
}

fn write(path: &Path, text: &str) -> Result<(), InitError> {
    fs::write(path, text).map_err(|source| InitError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides};
    use trainyard_shared::tls::Identity;

    fn args(out: &Path) -> InitArgs {
        InitArgs {
            out: out.to_owned(),
            members: vec![(1, "127.0.0.1:7701".into()), (2, "127.0.0.1:7702".into())],
            nodes: vec!["gpu-1.example".into()],
            clients: vec!["admin".into()],
        }
    }

    #[test]
    fn what_init_writes_can_be_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new");
        init(&args(&out)).unwrap();
        let config =
            Config::load(&out.join("members/2/scheduler.toml"), &Overrides::default()).unwrap();
        assert_eq!(config.listen, "127.0.0.1:7702");
        let member = Identity::load(&config.tls_dir).unwrap();
        let node = Identity::load(&out.join("nodes/gpu-1.example/tls")).unwrap();
        assert_eq!(member.role(), &Role::Member(2));
        assert_eq!(node.role(), &Role::Node("gpu-1.example".into()));
        assert_eq!(member.cluster_id(), node.cluster_id());
        let again = init(&args(&out)).unwrap_err();
        assert!(again.to_string().contains("is not empty"), "{again}");
    }

    #[test]
    fn issue_adds_a_node_of_the_same_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new");
        init(&args(&out)).unwrap();
        issue(&IssueArgs {
            authority: out.join("authority"),
            subject: Subject {
                member: None,
                node: Some("late".into()),
                client: None,
            },
            out: dir.path().join("late"),
            schedulers: vec!["127.0.0.1:7701".into()],
        })
        .unwrap();
        let late = Identity::load(&dir.path().join("late/tls")).unwrap();
        let member = Identity::load(&out.join("members/1/tls")).unwrap();
        assert_eq!(late.cluster_id(), member.cluster_id());
        assert!(dir.path().join("late/agent.toml").exists());
    }

    #[test]
    fn wrong_arguments_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut twice = args(&dir.path().join("x"));
        twice.members.push((2, "127.0.0.1:9".into()));
        assert!(
            init(&twice)
                .unwrap_err()
                .to_string()
                .contains("2=127.0.0.1:9")
        );
        let mut node = args(&dir.path().join("x"));
        node.nodes.push("a/b".into());
        assert!(matches!(init(&node), Err(InitError::Usage(_))));
        assert!(!dir.path().join("x").exists());
        assert!(parse_member("1").is_err() && parse_member("0=a:1").is_err());
    }
}
