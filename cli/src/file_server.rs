//! `trainyard file-server`: create, show, list, delete.

use clap::{Args, Subcommand};
use prost_types::Timestamp;
use trainyard_proto::v1::file_server::Kind;
use trainyard_proto::v1::{
    CreateFileServerRequest, DeleteFileServerRequest, ExternalFileServer, FileServer,
    GetFileServerRequest,
};
use trainyard_shared::client::new_request_id;
use trainyard_shared::validate;

use crate::args::{WorkspaceArg, YesArg};
use crate::console::confirm_delete;
use crate::context::Context;
use crate::error::Error;
use crate::scope::{file_server_name, workspace};
use crate::table::{Details, Table};
use crate::text::{age, last_segment, now, time};

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
pub(crate) struct CreateArgs {
    #[command(flatten)]
    name: NameArg,
    /// Host name or address of the server
    #[arg(long, value_name = "HOST")]
    address: String,
    /// Path that the server exports
    #[arg(long, value_name = "/PATH")]
    export: String,
    /// NFS version: 3, 4, 4.0, 4.1 or 4.2 [default: 4.1]
    #[arg(
        long,
        value_name = "VERSION",
        default_value = "",
        hide_default_value = true
    )]
    nfs_version: String,
    /// Further options of mount.nfs, such as port=2049,hard
    #[arg(
        long,
        value_name = "OPTIONS",
        default_value = "",
        hide_default_value = true
    )]
    mount_options: String,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    name: NameArg,
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
                ..DeleteFileServerRequest::default()
            })
            .await?;
            context.output().deleted(&name)?;
        }
    }
    Ok(0)
}

async fn create(context: &Context, args: CreateArgs) -> Result<(), Error> {
    let name = file_server_name(&args.name.workspace, &args.name.name)?;
    let server = FileServer {
        kind: Some(Kind::External(ExternalFileServer {
            address: args.address,
            export: args.export,
            nfs_version: args.nfs_version,
            mount_options: args.mount_options,
        })),
        ..FileServer::default()
    };
    let violations = validate::file_server(&server);
    if !violations.is_empty() {
        let lines = violations
            .iter()
            .map(|violation| format!("{}: {}", violation.field, violation.message));
        return Err(Error::usage(lines.collect::<Vec<_>>().join("\n")));
    }
    let request = CreateFileServerRequest {
        parent: name.parent().to_string(),
        file_server_id: name.id().to_owned(),
        file_server: Some(server),
        request_id: new_request_id(),
        ..CreateFileServerRequest::default()
    };
    let created = context.api()?.create_file_server(request).await?;
    context.output().done("created", &created)
}

fn external(server: &FileServer) -> ExternalFileServer {
    match &server.kind {
        Some(Kind::External(external)) => external.clone(),
        _ => ExternalFileServer::default(),
    }
}

fn version(external: &ExternalFileServer) -> &str {
    if external.nfs_version.is_empty() {
        "4.1"
    } else {
        &external.nfs_version
    }
}

fn table(servers: &[FileServer], now: &Timestamp) -> String {
    let mut table = Table::new(&["NAME", "ADDRESS", "EXPORT", "NFS", "OPTIONS", "AGE"]);
    for server in servers {
        let external = external(server);
        table.row([
            last_segment(&server.name).to_owned(),
            external.address.clone(),
            external.export.clone(),
            version(&external).to_owned(),
            external.mount_options,
            age(server.creation_time.as_ref(), now),
        ]);
    }
    table.render()
}

fn details(server: &FileServer) -> String {
    let external = external(server);
    let mut details = Details::default();
    details
        .add("Name", &server.name)
        .add("Address", &external.address)
        .add("Export", &external.export)
        .add("NFS version", version(&external))
        .add("Mount options", &external.mount_options)
        .add("Created", time(server.creation_time.as_ref()));
    details.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_version_is_shown() {
        let server = FileServer {
            name: "workspaces/w/fileServers/nfs1".into(),
            kind: Some(Kind::External(ExternalFileServer {
                address: "10.0.0.1".into(),
                export: "/export".into(),
                ..ExternalFileServer::default()
            })),
            ..FileServer::default()
        };
        let text = table(&[server], &Timestamp::default());
        assert_eq!(
            text,
            "NAME  ADDRESS   EXPORT   NFS  OPTIONS  AGE\nnfs1  10.0.0.1  /export  4.1  -        -\n"
        );
    }
}
