//! `trainyard cluster create`: a cluster from flags, from a file, or from both, as `az batchai` had it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use trainyard_proto::v1::{
    AutoScaleSettings, Cluster, CreateClusterRequest, FileServerReference, ImageReference,
    ManualScaleSettings, ResourceId, ScaleSettings, SetupTask, VmPriority,
};
use trainyard_shared::client::new_request_id;
use trainyard_shared::{duration, validate};

use super::NameArg;
use crate::context::Context;
use crate::error::Error;
use crate::job_file::{ParsedFile, Source};
use crate::scope::cluster_name;

/// Mode of mounts that the original command chose.
const NFS_OPTIONS: &str = "rw";

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    name: NameArg,
    /// Number of nodes [default: 0, or what the file says]
    #[arg(short, long, value_name = "COUNT")]
    target: Option<u32>,
    /// Scale with the jobs: fewest nodes. With --max
    #[arg(long, value_name = "COUNT", requires = "max")]
    min: Option<u32>,
    /// Scale with the jobs: most nodes. With --min; equal to it, the number is fixed
    #[arg(long, value_name = "COUNT", requires = "min")]
    max: Option<u32>,
    /// Nodes at the start of a cluster that scales with the jobs [default: --target, else 0]
    #[arg(
        long,
        value_name = "COUNT",
        requires = "max",
        conflicts_with = "target"
    )]
    initial: Option<u32>,
    /// How long a node is idle before it leaves a cluster that scales with the jobs, such as 120s, PT2M or 0.00:02:00
    #[arg(long, value_name = "DURATION", requires = "max", value_parser = idle_time)]
    idle_time: Option<prost_types::Duration>,
    /// Node class that the nodes must have [default: that of the first node it takes]
    #[arg(short = 's', long, value_name = "CLASS")]
    vm_size: Option<String>,
    /// Image that the nodes must have; an empty part is any
    #[arg(short, long, value_name = "PUBLISHER:OFFER:SKU:VERSION", value_parser = image)]
    image: Option<ImageReference>,
    /// Whether the nodes may be taken away for clusters that are dedicated
    #[arg(long, value_enum)]
    vm_priority: Option<Priority>,
    /// User that runs the jobs, of those that the nodes' agents allow
    #[arg(short, long, value_name = "USER")]
    user_name: Option<String>,
    /// File server to mount on every node
    #[arg(long, value_name = "FILESERVER")]
    nfs: Option<String>,
    /// Directory below $AZ_BATCHAI_MOUNT_ROOT for it
    #[arg(long, value_name = "PATH", default_value = "nfs", requires = "nfs")]
    nfs_mount_path: String,
    /// Command line that prepares a node, as root; it must be idempotent
    #[arg(long, value_name = "COMMAND", requires = "setup_task_output")]
    setup_task: Option<String>,
    /// Directory of the logs of the setup task
    #[arg(long, value_name = "DIR", requires = "setup_task")]
    setup_task_output: Option<String>,
    /// Ask the schedulers whether they would accept it, and make nothing
    #[arg(long)]
    dry_run: bool,
    /// Cluster file (JSON, or YAML when its name ends in .yaml or .yml; `-` is stdin). Flags override it
    #[arg(short = 'f', long = "config-file", value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Priority {
    // Kept.
    Dedicated,
    // May be preempted.
    Lowpriority,
}

/// Does what the command says.
pub(super) async fn run(context: &Context, args: CreateArgs) -> Result<(), Error> {
    let name = cluster_name(&args.name.workspace, &args.name.name)?;
    let source = args.file.as_deref().map(Source::read).transpose()?;
    let mut parsed = source.as_ref().map(Source::parse::<Cluster>).transpose()?;
    if let Some(parsed) = &mut parsed {
        name_flags(parsed, &args);
    }
    let mut cluster = parsed
        .as_ref()
        .map(|parsed| parsed.message().clone())
        .unwrap_or_default();
    override_by_flags(&mut cluster, &args)?;
    let violations = validate::cluster(&cluster);
    if !violations.is_empty() {
        return Err(match &parsed {
            Some(parsed) => parsed.refusal(violations),
            None => Error::violations(&violations),
        });
    }
    let request = CreateClusterRequest {
        parent: name.parent().to_string(),
        cluster_id: name.id().to_owned(),
        cluster: Some(cluster),
        request_id: new_request_id(),
        validate_only: args.dry_run,
    };
    let created = context.api()?.create_cluster(request).await;
    let created = match (created, &parsed) {
        (Ok(created), _) => created,
        (Err(status), Some(parsed)) => return Err(parsed.explain(status)),
        (Err(status), None) => return Err(status.into()),
    };
    let what = if args.dry_run {
        "would create"
    } else {
        "created"
    };
    context.output().done(what, &created)
}

/// Says which fields come from flags, for refusals.
fn name_flags(parsed: &mut ParsedFile<Cluster>, args: &CreateArgs) {
    if let Some(target) = args.target {
        parsed.given_by_flag("scaleSettings", format!("--target {target}"));
    }
    if let (Some(min), Some(max)) = (args.min, args.max) {
        parsed.given_by_flag("scaleSettings", format!("--min {min} --max {max}"));
    }
    if let Some(class) = &args.vm_size {
        parsed.given_by_flag("vmSize", format!("--vm-size {class}"));
    }
    if let Some(user) = &args.user_name {
        parsed.given_by_flag("userAccountSettings", format!("--user-name {user}"));
    }
    if args.setup_task.is_some() {
        parsed.given_by_flag("nodeSetup.setupTask", "--setup-task".to_owned());
    }
}

fn override_by_flags(cluster: &mut Cluster, args: &CreateArgs) -> Result<(), Error> {
    if let Some(scale) = scale(cluster, args)? {
        cluster.scale_settings = Some(scale);
    }
    if let Some(class) = &args.vm_size {
        cluster.vm_size.clone_from(class);
    }
    if let Some(image) = &args.image {
        let machine = cluster
            .virtual_machine_configuration
            .get_or_insert_default();
        machine.image_reference = Some(image.clone());
    }
    if let Some(priority) = args.vm_priority {
        cluster.set_vm_priority(match priority {
            Priority::Dedicated => VmPriority::Dedicated,
            Priority::Lowpriority => VmPriority::Lowpriority,
        });
    }
    if let Some(user) = &args.user_name {
        let account = cluster.user_account_settings.get_or_insert_default();
        account.admin_user_name.clone_from(user);
    }
    if let Some(nfs) = &args.nfs {
        let setup = cluster.node_setup.get_or_insert_default();
        let mounts = setup.mount_volumes.get_or_insert_default();
        mounts.file_servers.push(FileServerReference {
            file_server: Some(ResourceId { id: nfs.clone() }),
            relative_mount_path: args.nfs_mount_path.clone(),
            mount_options: NFS_OPTIONS.to_owned(),
            source_directory: String::new(),
        });
    }
    if let (Some(command), Some(output)) = (&args.setup_task, &args.setup_task_output) {
        let setup = cluster.node_setup.get_or_insert_default();
        setup.setup_task = Some(SetupTask {
            command_line: command.clone(),
            std_out_err_path_prefix: output.clone(),
            ..setup.setup_task.take().unwrap_or_default()
        });
    }
    Ok(())
}

/// Scale settings by flags. With --min and --max, --target is what it begins with; when all are equal the number is fixed.
fn scale(cluster: &Cluster, args: &CreateArgs) -> Result<Option<ScaleSettings>, Error> {
    let fixed = |target_node_count| {
        let node_deallocation_option = cluster
            .scale_settings
            .as_ref()
            .and_then(|scale| scale.manual.as_ref())
            .map_or(0, |manual| manual.node_deallocation_option);
        Some(ScaleSettings {
            manual: Some(ManualScaleSettings {
                target_node_count,
                node_deallocation_option,
            }),
            auto_scale: None,
        })
    };
    let (Some(min), Some(max)) = (args.min, args.max) else {
        return Ok(args.target.and_then(fixed));
    };
    if min > max {
        return Err(Error::usage(format!(
            "--min {min} is more than --max {max}; write the smaller one as --min"
        )));
    }
    if min == max {
        return match args.initial.or(args.target) {
            Some(target) if target != min => Err(Error::usage(format!(
                "{target} nodes contradict --min {min} --max {max}; leave --target and --initial out"
            ))),
            Some(_) | None => Ok(fixed(min)),
        };
    }
    Ok(Some(auto(
        min,
        max,
        args.initial.or(args.target).unwrap_or(0),
        args.idle_time,
    )))
}

/// Settings of a cluster that scales with its jobs.
pub(super) fn auto(
    minimum_node_count: u32,
    maximum_node_count: u32,
    initial_node_count: u32,
    node_idle_time_before_scale_down: Option<prost_types::Duration>,
) -> ScaleSettings {
    ScaleSettings {
        manual: None,
        auto_scale: Some(AutoScaleSettings {
            minimum_node_count,
            maximum_node_count,
            initial_node_count,
            node_idle_time_before_scale_down,
        }),
    }
}

/// Parses `PUBLISHER:OFFER:SKU:VERSION`; what is left out at the end is any.
fn image(text: &str) -> Result<ImageReference, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let part = |i: usize| parts.get(i).map_or_else(String::new, |p| (*p).to_owned());
    if parts.len() > 4 || parts.iter().all(|part| part.is_empty()) {
        return Err(
            "write PUBLISHER:OFFER:SKU:VERSION, such as Canonical:UbuntuServer:22.04-LTS:latest"
                .to_owned(),
        );
    }
    Ok(ImageReference {
        publisher: part(0),
        offer: part(1),
        sku: part(2),
        version: part(3),
        virtual_machine_image_id: String::new(),
    })
}

/// Parses a duration in any form that files take.
pub(super) fn idle_time(text: &str) -> Result<prost_types::Duration, String> {
    duration::parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Noun};

    fn create_args(line: &str) -> CreateArgs {
        match Arguments::try_parse_from(line.split(' ')).unwrap().noun {
            Noun::Cluster(super::super::Command::Create(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_override_the_file() {
        let args = create_args(
            "trainyard cluster create -w w -n c -t 4 -s h100x8 --vm-priority lowpriority",
        );
        let mut cluster = Cluster {
            vm_size: "old".into(),
            ..Cluster::default()
        };
        cluster.scale_settings = Some(ScaleSettings {
            manual: None,
            auto_scale: Some(Default::default()),
        });
        override_by_flags(&mut cluster, &args).unwrap();
        assert_eq!(cluster.vm_size, "h100x8");
        assert_eq!(
            cluster
                .scale_settings
                .unwrap()
                .manual
                .unwrap()
                .target_node_count,
            4
        );
        assert_eq!(cluster.vm_priority(), VmPriority::Lowpriority);
    }

    #[test]
    fn equal_bounds_fix_the_number_and_contradictions_are_refused() {
        let settings = |line: &str| {
            let args = create_args(&format!("trainyard cluster create -w w -n c {line}"));
            let mut cluster = Cluster::default();
            override_by_flags(&mut cluster, &args).map(|()| cluster.scale_settings.unwrap())
        };
        let fixed = settings("--min 2 --max 2").unwrap();
        assert_eq!(fixed.manual.unwrap().target_node_count, 2);
        let follows = settings("--min 0 --max 4 -t 1 --idle-time PT2M").unwrap();
        let follows = follows.auto_scale.unwrap();
        assert_eq!(
            (follows.maximum_node_count, follows.initial_node_count),
            (4, 1)
        );
        assert_eq!(
            follows.node_idle_time_before_scale_down.unwrap().seconds,
            120
        );
        assert!(
            settings("--min 3 --max 2")
                .unwrap_err()
                .to_string()
                .contains("--min 3")
        );
        assert!(settings("--min 2 --max 2 -t 3").is_err());
        let follows = settings("--min 0 --max 4 --initial 2").unwrap();
        assert_eq!(follows.auto_scale.unwrap().initial_node_count, 2);
    }

    #[test]
    fn flags_mount_and_prepare() {
        let args = create_args(
            "trainyard cluster create -w w -n c --nfs data --setup-task true --setup-task-output /logs -u alice -i Debian",
        );
        let mut cluster = Cluster::default();
        override_by_flags(&mut cluster, &args).unwrap();
        let setup = cluster.node_setup.unwrap();
        let mounts = setup.mount_volumes.unwrap();
        assert_eq!(mounts.file_servers[0].relative_mount_path, "nfs");
        assert_eq!(setup.setup_task.unwrap().std_out_err_path_prefix, "/logs");
        assert_eq!(
            cluster.user_account_settings.unwrap().admin_user_name,
            "alice"
        );
        assert!(image(":::").is_err() && image("a:b:c:d:e").is_err());
    }
}
