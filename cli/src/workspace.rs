//! `trainyard workspace`: create, show, list, update, bindings, delete.

use clap::{Args, Subcommand};
use prost_types::{FieldMask, Timestamp};
use tonic::Code;
use trainyard_proto::v1::{
    CreateWorkspaceRequest, DeleteWorkspaceRequest, GetWorkspaceRequest, ImageBinding,
    RetentionPolicy, StorageBinding, UpdateWorkspaceRequest, Workspace,
};
use trainyard_shared::client::new_request_id;
use trainyard_shared::{duration, validate};

use crate::args::{WorkspaceArg, YesArg};
use crate::bindings::{self, image_text, storage_text};
use crate::console::confirm_delete;
use crate::context::Context;
use crate::error::Error;
use crate::gone::{self, WaitArg};
use crate::scope::{workspace, workspace_name};
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
    /// What shares and images of job files mean
    #[command(subcommand)]
    Binding(BindingCommand),
    /// Delete a workspace with everything in it; running jobs are ended first
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NameArg {
    /// Workspace
    #[arg(short, long, alias = "workspace", value_name = "WORKSPACE")]
    name: String,
}

#[derive(Debug, Default, Args)]
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
    /// Remove finished jobs that ended longer ago, such as P90D; `none` keeps them
    #[arg(long, value_name = "DURATION|none", value_parser = keep_for)]
    keep_jobs_for: Option<KeepFor>,
    /// Keep at most so many finished jobs, the newest; 0 keeps all
    #[arg(long, value_name = "COUNT")]
    keep_jobs: Option<u32>,
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

/// Verbs of bindings.
#[derive(Debug, Subcommand)]
pub(crate) enum BindingCommand {
    /// List the bindings of a workspace
    List(WorkspaceArg),
    /// Bind a share or an image, or bind it anew
    Set(BindArgs),
    /// Remove bindings
    Remove(UnbindArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BindArgs {
    #[command(flatten)]
    workspace: WorkspaceArg,
    /// What a share or container of job files means; may be given several times
    #[arg(long, value_name = "SHARE=hostPath:/DIR|SHARE=FILESERVER:/DIR", value_parser = bindings::storage, required_unless_present = "image")]
    storage: Vec<StorageBinding>,
    /// What an image of job files means; may be given several times
    #[arg(long, value_name = "IMAGE=host", value_parser = bindings::image)]
    image: Vec<ImageBinding>,
}

#[derive(Debug, Args)]
pub(crate) struct UnbindArgs {
    #[command(flatten)]
    workspace: WorkspaceArg,
    /// Share whose binding goes; may be given several times
    #[arg(long, value_name = "SHARE", required_unless_present = "image")]
    storage: Vec<String>,
    /// Image whose binding goes; may be given several times
    #[arg(long, value_name = "IMAGE")]
    image: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    name: NameArg,
    #[command(flatten)]
    yes: YesArg,
    #[command(flatten)]
    wait: WaitArg,
}

/// How long finished jobs are kept; `None`: for ever.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct KeepFor(Option<prost_types::Duration>);

fn keep_for(text: &str) -> Result<KeepFor, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(KeepFor(None));
    }
    duration::parse(text)
        .map(|length| KeepFor(Some(length)))
        .map_err(|error| error.to_string())
}

/// The policy as flags change it.
fn retention(present: Option<RetentionPolicy>, settings: &SettingsArgs) -> Option<RetentionPolicy> {
    let mut policy = present.unwrap_or_default();
    if let Some(KeepFor(age)) = settings.keep_jobs_for {
        policy.max_age = age;
    }
    if let Some(count) = settings.keep_jobs {
        policy.max_finished_jobs = count;
    }
    (policy != RetentionPolicy::default()).then_some(policy)
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
        Command::Binding(BindingCommand::List(args)) => {
            let name = workspace(&args)?.to_string();
            let workspace = context
                .api()?
                .get_workspace(GetWorkspaceRequest { name })
                .await?;
            context.output().one(&workspace, bindings_table)?;
        }
        Command::Binding(BindingCommand::Set(args)) => {
            let settings = SettingsArgs {
                bind_storage: args.storage,
                bind_image: args.image,
                ..SettingsArgs::default()
            };
            update(context, &UpdateArgs::of(&args.workspace, settings)?).await?;
        }
        Command::Binding(BindingCommand::Remove(args)) => {
            let wanted = UpdateArgs {
                unbind_storage: args.storage,
                unbind_image: args.image,
                ..UpdateArgs::of(&args.workspace, SettingsArgs::default())?
            };
            update(context, &wanted).await?;
        }
        Command::Delete(args) => {
            let name = workspace_name(&args.name.name)?.to_string();
            let api = context.api()?;
            confirm_delete(args.yes.yes, &name)?;
            api.delete_workspace(DeleteWorkspaceRequest {
                name: name.clone(),
                etag: String::new(),
            })
            .await?;
            if args.wait.no_wait {
                return Ok(0);
            }
            gone::wait(context, &name, |api| {
                let request = GetWorkspaceRequest { name: name.clone() };
                async move { api.get_workspace(request).await }
            })
            .await?;
            context.output().deleted(&name)?;
        }
    }
    Ok(0)
}

impl UpdateArgs {
    /// Nothing but these settings.
    fn of(workspace_arg: &WorkspaceArg, settings: SettingsArgs) -> Result<Self, Error> {
        Ok(Self {
            name: NameArg {
                name: workspace(workspace_arg)?.to_string(),
            },
            settings,
            unbind_storage: Vec::new(),
            unbind_image: Vec::new(),
            untag: Vec::new(),
        })
    }
}

fn bindings_table(workspace: &Workspace) -> String {
    let mut table = Table::new(&["KIND", "BINDING"]);
    for binding in &workspace.storage_bindings {
        table.row(["storage".to_owned(), storage_text(binding)]);
    }
    for binding in &workspace.image_bindings {
        table.row(["image".to_owned(), image_text(binding)]);
    }
    table.render()
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
        retention: retention(None, &args.settings),
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
                    "nothing to change: pass --bind-storage, --bind-image, --allow-root, --keep-jobs-for, --keep-jobs, --tag, \
                     --unbind-storage, --unbind-image or --untag",
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
        && settings.keep_jobs.is_none()
        && settings.keep_jobs_for.is_none()
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
    workspace.retention = retention(workspace.retention, &args.settings);
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
    differ("retention", present.retention != wanted.retention);
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

/// What becomes of finished jobs.
fn kept(workspace: &Workspace) -> String {
    let Some(policy) = &workspace.retention else {
        return "kept until they are deleted".to_owned();
    };
    let mut parts = Vec::new();
    if let Some(age) = &policy.max_age {
        parts.push(format!("for {}", duration::format(age)));
    }
    if policy.max_finished_jobs > 0 {
        parts.push(format!("at most {}", policy.max_finished_jobs));
    }
    format!("kept {}", parts.join(", "))
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
        .add("Finished jobs", kept(workspace))
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
