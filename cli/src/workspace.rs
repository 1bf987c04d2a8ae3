//! `trainyard workspace`: create, show, list, update, delete.

use clap::{Args, Subcommand};
use prost_types::{FieldMask, Timestamp};
use tonic::Code;
use trainyard_proto::v1::{
    CreateWorkspaceRequest, DeleteWorkspaceRequest, GetWorkspaceRequest, ImageBinding,
    StorageBinding, UpdateWorkspaceRequest, Workspace,
};
use trainyard_shared::client::new_request_id;
use trainyard_shared::validate;

use crate::args::YesArg;
use crate::bindings::{self, image_text, storage_text};
use crate::console::confirm_delete;
use crate::context::Context;
use crate::error::Error;
use crate::scope::workspace_name;
use crate::table::{Details, Table};
use crate::text::{age, last_segment, now, time};

/// Times an update is made anew when somebody else changed the workspace in between.
const UPDATE_TRIES: u32 = 5;

/// See the head of this file.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a workspace
    Create(CreateArgs),
    /// Show one workspace
    Show(NameArg),
    /// List the workspaces
    List,
    /// Change tags, bindings or whether jobs may run as root
    Update(UpdateArgs),
    /// Delete an empty workspace
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NameArg {
    /// Workspace
    #[arg(short, long, alias = "workspace", value_name = "WORKSPACE")]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct SettingsArgs {
    /// What a share or container of job files means: a directory of each node, or one of a file server. May be given
    /// several times; ACCOUNT/SHARE binds the share of one account only
    #[arg(long, value_name = "SHARE=hostPath:/DIR|SHARE=FILESERVER:/DIR", value_parser = bindings::storage)]
    bind_storage: Vec<StorageBinding>,
    /// What an image of job files means: `host` runs directly on the node. May be given several times
    #[arg(long, value_name = "IMAGE=host", value_parser = bindings::image)]
    bind_image: Vec<ImageBinding>,
    /// Whether jobs may run as root
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_root: Option<bool>,
    /// Label; may be given several times
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = bindings::tag)]
    tags: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    name: NameArg,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Free text, kept for compatibility
    #[arg(
        short,
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    location: String,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    name: NameArg,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Remove the binding of a share; may be given several times
    #[arg(long, value_name = "SHARE")]
    unbind_storage: Vec<String>,
    /// Remove the binding of an image; may be given several times
    #[arg(long, value_name = "IMAGE")]
    unbind_image: Vec<String>,
    /// Remove a label; may be given several times
    #[arg(long, value_name = "KEY")]
    untag: Vec<String>,
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
            let workspace = get(context, &args.name).await?;
            context.output().one(&workspace, details)?;
        }
        Command::List => {
            let workspaces = context.api()?.all_workspaces().await?;
            context
                .output()
                .list(&workspaces, |items| table(items, &now()))?;
        }
        Command::Update(args) => update(context, &args).await?,
        Command::Delete(args) => {
            let name = workspace_name(&args.name.name)?.to_string();
            let api = context.api()?;
            confirm_delete(args.yes.yes, &name)?;
            api.delete_workspace(DeleteWorkspaceRequest {
                name: name.clone(),
                etag: String::new(),
            })
            .await?;
            context.output().deleted(&name)?;
        }
    }
    Ok(0)
}

async fn get(context: &Context, name: &str) -> Result<Workspace, Error> {
    let name = workspace_name(name)?.to_string();
    Ok(context
        .api()?
        .get_workspace(GetWorkspaceRequest { name })
        .await?)
}

async fn create(context: &Context, args: CreateArgs) -> Result<(), Error> {
    let name = workspace_name(&args.name.name)?;
    let workspace = Workspace {
        location: args.location,
        tags: args.settings.tags.into_iter().collect(),
        storage_bindings: args.settings.bind_storage,
        image_bindings: args.settings.bind_image,
        allow_root: args.settings.allow_root.unwrap_or(false),
        ..Workspace::default()
    };
    check(&workspace)?;
    let request = CreateWorkspaceRequest {
        workspace_id: name.id().to_owned(),
        workspace: Some(workspace),
        request_id: new_request_id(),
        ..CreateWorkspaceRequest::default()
    };
    let created = context.api()?.create_workspace(request).await?;
    context.output().done("created", &created)
}

/// Refuses what the scheduler would refuse, before it is sent.
fn check(workspace: &Workspace) -> Result<(), Error> {
    let violations = validate::workspace(workspace);
    if violations.is_empty() {
        return Ok(());
    }
    let lines = violations
        .iter()
        .map(|violation| format!("{}: {}", violation.field, violation.message));
    Err(Error::usage(lines.collect::<Vec<_>>().join("\n")))
}

/// Reads, changes and writes back; anew when somebody else wrote in between, or when the answer to the first write was lost.
async fn update(context: &Context, args: &UpdateArgs) -> Result<(), Error> {
    let name = workspace_name(&args.name.name)?.to_string();
    let api = context.api()?;
    let mut tries = 0;
    loop {
        tries += 1;
        let present = api
            .get_workspace(GetWorkspaceRequest { name: name.clone() })
            .await?;
        let mut wanted = present.clone();
        change(&mut wanted, args)?;
        let paths = changed_paths(&present, &wanted);
        if paths.is_empty() {
            return if tries == 1 && is_empty(args) {
                Err(Error::usage(
                    "nothing to change: pass --bind-storage, --bind-image, --allow-root, --tag, --unbind-storage, \
                     --unbind-image or --untag",
                ))
            } else {
                context.output().done("updated", &present)
            };
        }
        check(&wanted)?;
        let request = UpdateWorkspaceRequest {
            workspace: Some(wanted),
            update_mask: Some(FieldMask { paths }),
        };
        match api.update_workspace(request).await {
            Ok(updated) => return context.output().done("updated", &updated),
            Err(status)
                if matches!(status.code(), Code::Aborted | Code::FailedPrecondition)
                    && tries < UPDATE_TRIES => {}
            Err(status) => return Err(status.into()),
        }
    }
}

fn is_empty(args: &UpdateArgs) -> bool {
    let settings = &args.settings;
    settings.bind_storage.is_empty()
        && settings.bind_image.is_empty()
        && settings.allow_root.is_none()
        && settings.tags.is_empty()
        && args.unbind_storage.is_empty()
        && args.unbind_image.is_empty()
        && args.untag.is_empty()
}

fn change(workspace: &mut Workspace, args: &UpdateArgs) -> Result<(), Error> {
    for share in &args.unbind_storage {
        remove(&mut workspace.storage_bindings, share, |binding| {
            &binding.share
        })
        .map_err(|known| no_such("storage binding", share, &known))?;
    }
    for image in &args.unbind_image {
        remove(&mut workspace.image_bindings, image, |binding| {
            &binding.image
        })
        .map_err(|known| no_such("image binding", image, &known))?;
    }
    for key in &args.untag {
        workspace.tags.remove(key);
    }
    bindings::merge(
        &mut workspace.storage_bindings,
        &args.settings.bind_storage,
        |binding| &binding.share,
    );
    bindings::merge(
        &mut workspace.image_bindings,
        &args.settings.bind_image,
        |binding| &binding.image,
    );
    workspace.tags.extend(args.settings.tags.iter().cloned());
    if let Some(allow_root) = args.settings.allow_root {
        workspace.allow_root = allow_root;
    }
    Ok(())
}

/// Removes the item of that key; fails with the keys there are.
fn remove<T>(
    items: &mut Vec<T>,
    key: &str,
    key_of: impl Fn(&T) -> &str,
) -> Result<(), Vec<String>> {
    match items.iter().position(|item| key_of(item) == key) {
        Some(index) => {
            items.remove(index);
            Ok(())
        }
        None => Err(items.iter().map(|item| key_of(item).to_owned()).collect()),
    }
}

fn no_such(what: &str, key: &str, known: &[String]) -> Error {
    let known = if known.is_empty() {
        "there are none".to_owned()
    } else {
        format!("there are: {}", known.join(", "))
    };
    Error::failure(format!("the workspace has no {what} of {key}; {known}"))
}

/// Paths of the fields that differ, for the field mask.
fn changed_paths(present: &Workspace, wanted: &Workspace) -> Vec<String> {
    let mut paths = Vec::new();
    let mut differ = |path: &str, differs: bool| {
        if differs {
            paths.push(path.to_owned());
        }
    };
    differ("tags", present.tags != wanted.tags);
    differ(
        "storage_bindings",
        present.storage_bindings != wanted.storage_bindings,
    );
    differ(
        "image_bindings",
        present.image_bindings != wanted.image_bindings,
    );
    differ("allow_root", present.allow_root != wanted.allow_root);
    paths
}

fn tags(workspace: &Workspace) -> String {
    // Sorted, whatever map the messages use.
    let mut tags: Vec<String> = workspace
        .tags
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    tags.sort();
    tags.join(",")
}

fn table(workspaces: &[Workspace], now: &Timestamp) -> String {
    let mut table = Table::new(&["NAME", ">STORAGE", ">IMAGES", "ROOT", "TAGS", "AGE"]);
    for workspace in workspaces {
        table.row([
            last_segment(&workspace.name).to_owned(),
            workspace.storage_bindings.len().to_string(),
            workspace.image_bindings.len().to_string(),
            if workspace.allow_root {
                "allowed".to_owned()
            } else {
                "no".to_owned()
            },
            tags(workspace),
            age(workspace.creation_time.as_ref(), now),
        ]);
    }
    table.render()
}

fn details(workspace: &Workspace) -> String {
    let mut details = Details::default();
    details
        .add("Name", &workspace.name)
        .add("Created", time(workspace.creation_time.as_ref()))
        .add("Location", &workspace.location)
        .add("Tags", tags(workspace))
        .add(
            "Root",
            if workspace.allow_root {
                "jobs may run as root"
            } else {
                "jobs never run as root"
            },
        )
        .add_all(
            "Storage",
            workspace.storage_bindings.iter().map(storage_text),
        )
        .add_all("Images", workspace.image_bindings.iter().map(image_text));
    details.render()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Noun};

    fn parse(line: &str) -> Command {
        let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
        match arguments.noun {
            Noun::Workspace(command) => command,
            other => panic!("{other:?}"),
        }
    }

    fn update_args(line: &str) -> UpdateArgs {
        match parse(line) {
            Command::Update(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn create_takes_bindings_and_root() {
        let command = parse(
            "trainyard workspace create -n w --bind-storage logs=hostPath:/l --bind-storage data=nfs:/d \
             --bind-image a:b=host --allow-root --tag k=v"
                .replace("             ", "")
                .as_str(),
        );
        let Command::Create(args) = command else {
            panic!()
        };
        assert_eq!(args.settings.bind_storage.len(), 2);
        assert_eq!(args.settings.allow_root, Some(true));
        assert_eq!(args.settings.tags, [("k".to_owned(), "v".to_owned())]);
    }

    #[test]
    fn update_changes_only_what_is_named() {
        let mut workspace = Workspace {
            storage_bindings: vec![bindings::storage("a=hostPath:/1").unwrap()],
            allow_root: true,
            ..Workspace::default()
        };
        let before = workspace.clone();
        let args = update_args(
            "trainyard workspace update -n w --bind-storage b=hostPath:/2 --allow-root=false",
        );
        change(&mut workspace, &args).unwrap();
        assert_eq!(
            changed_paths(&before, &workspace),
            ["storage_bindings", "allow_root"]
        );
        assert_eq!(workspace.storage_bindings.len(), 2);
    }

    #[test]
    fn unbinding_what_is_not_bound_names_what_is() {
        let mut workspace = Workspace {
            storage_bindings: vec![bindings::storage("a=hostPath:/1").unwrap()],
            ..Workspace::default()
        };
        let args = update_args("trainyard workspace update -n w --unbind-storage x");
        let error = change(&mut workspace, &args).unwrap_err();
        assert!(error.to_string().ends_with("there are: a"), "{error}");
    }
}
