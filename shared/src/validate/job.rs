//! Jobs.

use prost::Message;
use trainyard_proto::v1::{ContainerSettings, EnvironmentVariable, JobSpec, ResourceId};

use super::checks::Checker;
use super::{FieldViolation, MAX_COMMAND_BYTES, MAX_NODES, MAX_PATH_BYTES, MAX_PROCESSES_PER_NODE};
use super::{mounts, toolkits};
use crate::names::{ClusterName, WorkspaceName};

/// Name by which the files of a job's own output are asked for.
const RESERVED_DIRECTORY: &str = "stdouterr";

/// Everything that is wrong with a job. Empty: the job may be created, where its cluster exists and its names are bound.
#[must_use]
pub fn job(spec: &JobSpec) -> Vec<FieldViolation> {
    let mut c = Checker::new();
    c.size(spec.encoded_len());
    cluster(&mut c, spec.cluster.as_ref());
    if spec.node_count == 0 {
        c.wrong(
            "nodeCount",
            "required; write how many nodes the job needs, at least 1",
        );
    } else if spec.node_count > MAX_NODES {
        c.wrong(
            "nodeCount",
            format!("at most {MAX_NODES} nodes are possible"),
        );
    }
    toolkits::check(&mut c, spec);
    if let Some(preparation) = &spec.job_preparation {
        c.within("jobPreparation", |c| {
            c.command("commandLine", &preparation.command_line)
        });
    }
    c.rooted_path("stdOutErrPathPrefix", &spec.std_out_err_path_prefix);
    if let Some(volumes) = &spec.mount_volumes {
        c.within("mountVolumes", |c| mounts::check(c, volumes));
    }
    if let Some(container) = &spec.container_settings {
        c.within("containerSettings", |c| container_settings(c, container));
    }
    directories(&mut c, spec);
    variables(&mut c, &spec.environment_variables);
    for index in 0..spec.secrets.len() {
        c.wrong(
            &format!("secrets[{index}]"),
            "secrets cannot be kept safely yet and are refused; put the value into a file on a mounted share that only \
             the job's user can read",
        );
    }
    limits(&mut c, spec);
    c.finish()
}

fn cluster(c: &mut Checker, cluster: Option<&ResourceId>) {
    let Some(ResourceId { id }) = cluster else {
        c.wrong(
            "cluster",
            "required; name the cluster with `-c`, or write cluster.id",
        );
        return;
    };
    if !c.plain("cluster.id", id, MAX_PATH_BYTES) {
        return;
    }
    // A bare name is taken in the workspace of the job, which is not known here; any will do to check it.
    let checked = WorkspaceName::new("w").and_then(|any| ClusterName::resolve(&any, id));
    if let Err(error) = checked {
        c.wrong("cluster.id", error.to_string());
    }
}

fn container_settings(c: &mut Checker, settings: &ContainerSettings) {
    match &settings.image_source_registry {
        None => c.wrong("imageSourceRegistry", "required; write the image as imageSourceRegistry.image"),
        Some(registry) => c.within("imageSourceRegistry", |c| {
            c.required("image", &registry.image, "the name of an image that the workspace binds");
            c.plain("serverUrl", &registry.server_url, MAX_PATH_BYTES);
            if registry.credentials.is_some() {
                c.wrong(
                    "credentials",
                    "credentials of registries cannot be kept safely yet and are refused; leave them out: images are \
                     bound by the workspace and not pulled",
                );
            }
        }),
    }
    if !settings.shm_size.is_empty() && !is_size(&settings.shm_size) {
        c.wrong("shmSize", "write a size such as 512m or 16gb");
    }
}

/// Docker's syntax: a number and b, k, m or g, with or without a further b.
fn is_size(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &lower[digits.len()..];
    !digits.is_empty()
        && digits.len() <= 15
        && digits.bytes().all(|b| b.is_ascii_digit())
        && matches!(unit, "" | "b" | "k" | "kb" | "m" | "mb" | "g" | "gb")
}

fn directories(c: &mut Checker, spec: &JobSpec) {
    c.each(
        "inputDirectories",
        &spec.input_directories,
        |c, directory| {
            directory_id(c, &directory.id);
            c.rooted_path("path", &directory.path);
        },
    );
    c.unique(
        "inputDirectories",
        "id",
        spec.input_directories.iter().map(|d| d.id.as_str()),
    );
    c.each(
        "outputDirectories",
        &spec.output_directories,
        |c, directory| {
            directory_id(c, &directory.id);
            if directory.id.eq_ignore_ascii_case(RESERVED_DIRECTORY) {
                c.wrong(
                    "id",
                    format!(
                        "{RESERVED_DIRECTORY:?} stands for stdOutErrPathPrefix; choose another"
                    ),
                );
            }
            c.rooted_path("pathPrefix", &directory.path_prefix);
            c.relative_path("pathSuffix", &directory.path_suffix);
        },
    );
    c.unique(
        "outputDirectories",
        "id",
        spec.output_directories.iter().map(|d| d.id.as_str()),
    );
}

fn directory_id(c: &mut Checker, id: &str) {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if c.required("id", id, "a short name, such as MODEL")
        && (id.len() > 64 || !id.bytes().all(allowed))
    {
        c.wrong(
            "id",
            "use 1 to 64 letters, digits and `_`: the id becomes part of a variable's name",
        );
    }
}

fn variables(c: &mut Checker, variables: &[EnvironmentVariable]) {
    c.each("environmentVariables", variables, |c, variable| {
        if c.required("name", &variable.name, "the name of the variable")
            && variable.name.contains('=')
        {
            c.wrong("name", "leave out `=`: the value stands in `value`");
        }
        c.plain("value", &variable.value, MAX_COMMAND_BYTES);
    });
    c.unique(
        "environmentVariables",
        "name",
        variables.iter().map(|v| v.name.as_str()),
    );
}

fn limits(c: &mut Checker, spec: &JobSpec) {
    let limit = spec
        .constraints
        .as_ref()
        .and_then(|constraints| constraints.max_wall_clock_time.as_ref());
    if let Some(limit) = limit {
        let sane = (0..1_000_000_000).contains(&limit.nanos);
        if limit.seconds < 0 || !sane || (limit.seconds == 0 && limit.nanos == 0) {
            c.wrong(
                "constraints.maxWallClockTime",
                "must be longer than nothing; write P7D or PT1H30M",
            );
        } else if limit.seconds > 3650 * 86_400 {
            c.wrong(
                "constraints.maxWallClockTime",
                "must be at most ten years, P3650D",
            );
        }
    }
    if spec
        .resources_per_node
        .is_some_and(|part| part.gpus > MAX_PROCESSES_PER_NODE)
    {
        c.wrong(
            "resourcesPerNode.gpus",
            format!("at most {MAX_PROCESSES_PER_NODE} GPUs of a node are possible"),
        );
    }
}
