//! `trainyard file-server`: create, show, list, delete.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use prost_types::Timestamp;
use trainyard_proto::v1::file_server::Kind;
use trainyard_proto::v1::{
    CreateFileServerRequest, DataDisks, DeleteFileServerRequest, ExternalFileServer, FileServer,
    GetFileServerRequest, ManagedFileServer, ProvisioningState,
};
use trainyard_shared::client::new_request_id;
use trainyard_shared::validate;

use crate::args::{WorkspaceArg, YesArg};
use crate::console::confirm_delete;
use crate::context::Context;
use crate::error::Error;
use crate::job_file::Source;
use crate::scope::{file_server_name, workspace};
use crate::table::{Details, Table};
use crate::text::{age, bytes, last_segment, now, short, time};

/// See the head of this file.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an NFS server known that exists already
    Create(CreateArgs),
    /// Show one file server
    Show(NameArg),
    /// List the file servers of a workspace
    List(WorkspaceArg),
    /// Forget a file server; what it holds stays
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NameArg {
    #[command(flatten)]
    workspace: WorkspaceArg,
    /// File server
    #[arg(short, long, alias = "file-server", value_name = "FILESERVER")]
    name: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "External: --address and --export of an NFS server that exists. Managed: --managed, and a directory of one \
                  of the nodes is exported by its agent to the nodes of the workspace's clusters."
)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    name: NameArg,
    /// External: host name or address
    #[arg(long, value_name = "HOST", requires = "export")]
    address: Option<String>,
    /// External: exported path
    #[arg(long, value_name = "/PATH", requires = "address")]
    export: Option<String>,
    /// External: NFS version: 3, 4, 4.0, 4.1 or 4.2 [default: 4.1]
    #[arg(long, value_name = "VERSION", requires = "address")]
    nfs_version: Option<String>,
    /// External: further options of mount.nfs, such as port=2049,hard
    #[arg(long, value_name = "OPTIONS", requires = "address")]
    mount_options: Option<String>,
    /// Export a directory of one of the nodes
    #[arg(long, conflicts_with = "address", required_unless_present_any = ["address", "file"])]
    managed: bool,
    /// Managed: the node [default: one that can export and exports least]
    #[arg(long, value_name = "NODE", requires = "managed")]
    node: Option<String>,
    /// Managed: directory below a root that the node's agent allows [default: one that the agent makes]
    #[arg(long, value_name = "/DIR", requires = "managed")]
    directory: Option<String>,
    /// Managed: node class to choose from
    #[arg(short = 's', long, value_name = "CLASS", requires = "managed")]
    vm_size: Option<String>,
    /// Managed: GB (10^9 bytes) that the directory's file system must have
    #[arg(long, value_name = "GB", requires = "managed")]
    disk_size: Option<u32>,
    /// Managed: how many times --disk-size
    #[arg(
        long,
        value_name = "COUNT",
        requires = "disk_size",
        default_value_t = 1
    )]
    disk_count: u32,
    /// File server file (JSON, or YAML when its name ends in .yaml or .yml; `-` is stdin)
    #[arg(short = 'f', long = "config-file", value_name = "FILE", conflicts_with_all = ["address", "managed"])]
    file: Option<PathBuf>,
    /// Ask the schedulers whether they would accept it, and make nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    name: NameArg,
    /// Delete it though it is in use: what mounts it from now on fails
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    yes: YesArg,
}

/// Does what the command says.
pub(crate) async fn run(context: &Context, command: Command) -> Result<u8, Error> {
    match command {
        Command::Create(args) => create(context, args).await?,
        Command::Show(args) => {
            let name = file_server_name(&args.workspace, &args.name)?.to_string();
            let server = context
                .api()?
                .get_file_server(GetFileServerRequest { name })
                .await?;
            context.output().one(&server, details)?;
        }
        Command::List(args) => {
            let parent = workspace(&args)?;
            let servers = context.api()?.all_file_servers(parent.as_str()).await?;
            context
                .output()
                .list(&servers, |items| table(items, &now()))?;
        }
        Command::Delete(args) => {
            let name = file_server_name(&args.name.workspace, &args.name.name)?.to_string();
            let api = context.api()?;
            confirm_delete(args.yes.yes, &name)?;
            api.delete_file_server(DeleteFileServerRequest {
                name: name.clone(),
                etag: String::new(),
                force: args.force,
            })
            .await?;
            context.output().deleted(&name)?;
        }
    }
    Ok(0)
}

async fn create(context: &Context, args: CreateArgs) -> Result<(), Error> {
    let name = file_server_name(&args.name.workspace, &args.name.name)?;
    let source = args.file.as_deref().map(Source::read).transpose()?;
    let parsed = source
        .as_ref()
        .map(Source::parse::<FileServer>)
        .transpose()?;
    let dry_run = args.dry_run;
    let server = match &parsed {
        Some(parsed) => parsed.message().clone(),
        None => by_flags(args),
    };
    let violations = validate::file_server(&server);
    if !violations.is_empty() {
        return Err(match &parsed {
            Some(parsed) => parsed.refusal(violations),
            None => Error::violations(&violations),
        });
    }
    let request = CreateFileServerRequest {
        parent: name.parent().to_string(),
        file_server_id: name.id().to_owned(),
        file_server: Some(server),
        request_id: new_request_id(),
        validate_only: dry_run,
    };
    let created = context.api()?.create_file_server(request).await;
    let created = match (created, &parsed) {
        (Ok(created), _) => created,
        (Err(status), Some(parsed)) => return Err(parsed.explain(status)),
        (Err(status), None) => return Err(status.into()),
    };
    let what = if dry_run { "would create" } else { "created" };
    context.output().done(what, &created)
}

fn by_flags(args: CreateArgs) -> FileServer {
    let kind = if args.managed {
        Kind::Managed(ManagedFileServer {
            node: args.node.unwrap_or_default(),
            directory: args.directory.unwrap_or_default(),
            vm_size: args.vm_size.unwrap_or_default(),
            data_disks: args.disk_size.map(|disk_size_in_gb| DataDisks {
                disk_size_in_gb,
                disk_count: args.disk_count,
                ..DataDisks::default()
            }),
            ..ManagedFileServer::default()
        })
    } else {
        Kind::External(ExternalFileServer {
            address: args.address.unwrap_or_default(),
            export: args.export.unwrap_or_default(),
            nfs_version: args.nfs_version.unwrap_or_default(),
            mount_options: args.mount_options.unwrap_or_default(),
        })
    };
    FileServer {
        kind: Some(kind),
        ..FileServer::default()
    }
}

fn state(server: &FileServer) -> String {
    match server.provisioning_state() {
        ProvisioningState::Unspecified => String::new(),
        state => short(state.as_str_name(), "PROVISIONING_STATE_"),
    }
}

/// What it is: the address of an external one, the node of a managed one.
fn place(server: &FileServer) -> String {
    match &server.kind {
        Some(Kind::External(external)) => format!("{}:{}", external.address, external.export),
        Some(Kind::Managed(managed)) => {
            format!("{}:{}", last_segment(&managed.node), managed.directory)
        }
        None => String::new(),
    }
}

fn kind(server: &FileServer) -> &'static str {
    match &server.kind {
        Some(Kind::Managed(_)) => "managed",
        Some(Kind::External(_)) | None => "external",
    }
}

/// How it is mounted: `ADDRESS:PATH`, with the port where it is not the usual one.
fn mount(server: &FileServer) -> String {
    server
        .mount_settings
        .as_ref()
        .map_or_else(String::new, |m| {
            let port = match m.port {
                0 | 2049 => String::new(),
                port => format!(" port {port}"),
            };
            format!("{}:{}{port}", m.file_server_internal_ip, m.mount_point)
        })
}

fn capacity(server: &FileServer) -> String {
    if server.capacity_bytes == 0 {
        return String::new();
    }
    format!(
        "{} of {} free",
        bytes(server.free_bytes),
        bytes(server.capacity_bytes)
    )
}

fn table(servers: &[FileServer], now: &Timestamp) -> String {
    let mut table = Table::new(&["NAME", "KIND", "STATE", "PLACE", "MOUNT", "CAPACITY", "AGE"]);
    for server in servers {
        table.row([
            last_segment(&server.name).to_owned(),
            kind(server).to_owned(),
            state(server),
            place(server),
            mount(server),
            capacity(server),
            age(server.creation_time.as_ref(), now),
        ]);
    }
    table.render()
}

fn details(server: &FileServer) -> String {
    let mut details = Details::default();
    details
        .add("Name", &server.name)
        .add("Kind", kind(server))
        .add("State", state(server))
        .add_all(
            "Error",
            server
                .errors
                .iter()
                .map(|error| format!("{}: {}", error.code, error.message)),
        );
    match &server.kind {
        Some(Kind::External(external)) => {
            details
                .add("Address", &external.address)
                .add("Export", &external.export)
                .add("NFS version", version(external))
                .add("Mount options", &external.mount_options);
        }
        Some(Kind::Managed(managed)) => {
            details
                .add("Node", &managed.node)
                .add("Directory", &managed.directory)
                .add("Node class", &managed.vm_size);
        }
        None => {}
    }
    details
        .add("Mount", mount(server))
        .add("Capacity", capacity(server))
        .add("Created", time(server.creation_time.as_ref()));
    details.render()
}

fn version(external: &ExternalFileServer) -> &str {
    if external.nfs_version.is_empty() {
        "4.1"
    } else {
        &external.nfs_version
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use trainyard_proto::v1::MountSettings;

    use super::*;
    use crate::args::{Arguments, Noun};

    fn create_args(line: &str) -> Result<CreateArgs, clap::Error> {
        let line = format!("trainyard file-server create -w w -n f {line}");
        let parsed = Arguments::try_parse_from(line.split_whitespace())?;
        match parsed.noun {
            Noun::FileServer(Command::Create(args)) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_server_is_external_or_managed_and_not_both() {
        let external = by_flags(create_args("--address 10.0.0.1 --export /export").unwrap());
        assert_eq!(place(&external), "10.0.0.1:/export");
        let managed =
            by_flags(create_args("--managed --node n1 --disk-size 10 --disk-count 2").unwrap());
        assert_eq!(kind(&managed), "managed");
        let Some(Kind::Managed(managed)) = managed.kind else {
            panic!("{managed:?}")
        };
        assert_eq!(managed.data_disks.unwrap().disk_count, 2);
        assert!(create_args("").is_err());
        assert!(create_args("--managed --address a --export /b").is_err());
        assert!(create_args("--address a").is_err());
    }

    #[test]
    fn a_managed_one_shows_where_it_is_and_how_it_is_mounted() {
        let server = FileServer {
            name: "workspaces/w/fileServers/f".into(),
            kind: Some(Kind::Managed(ManagedFileServer {
                node: "nodes/n1".into(),
                directory: "/srv".into(),
                ..ManagedFileServer::default()
            })),
            mount_settings: Some(MountSettings {
                mount_point: "/uid".into(),
                file_server_internal_ip: "10.0.0.1".into(),
                port: 20_049,
                ..MountSettings::default()
            }),
            capacity_bytes: 4 << 30,
            free_bytes: 1 << 30,
            ..FileServer::default()
        };
        let text = table(&[server], &Timestamp::default());
        assert!(text.contains("n1:/srv"), "{text}");
        assert!(text.contains("10.0.0.1:/uid port 20049"), "{text}");
        assert!(text.contains("1.0 GiB of 4.0 GiB free"), "{text}");
    }
}
