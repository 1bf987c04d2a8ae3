//! Jobs.

use prost::Message;
use trainyard_proto::v1::{
    ContainerSettings, DependencyCondition, EnvironmentVariable, ImageSourceRegistry,
    JobConstraints, JobSpec, ParameterSweep, ResourceId, RetryCause, SchedulingPriority,
};

use super::checks::Checker;
use super::{FieldViolation, MAX_COMMAND_BYTES, MAX_NODES, MAX_PATH_BYTES, MAX_PROCESSES_PER_NODE};
use super::{mounts, toolkits};
use crate::names::{ClusterName, ExperimentName, JobName, WorkspaceName};

/// Name by which the files of a job's own output are asked for.
const RESERVED_DIRECTORY: &str = "stdouterr";

/// Most retries of a job.
const MAX_RETRIES: u32 = 1_000;
/// Most jobs that a job can wait for.
const MAX_DEPENDENCIES: usize = 1_000;

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
    if SchedulingPriority::try_from(spec.scheduling_priority).is_err() {
        c.wrong("schedulingPriority", "unknown; write low, normal or high");
    }
    limits(&mut c, spec);
    dependencies(&mut c, spec);
    c.finish()
}

/// What this version cannot start, though the job is well written. Creating such a job is refused; checking one is not.
#[must_use]
pub fn launchable(spec: &JobSpec) -> Vec<FieldViolation> {
    let mut c = Checker::new();
    toolkits::launchable(&mut c, spec);
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

/// Everything that is wrong with a sweep, with fields relative to it.
#[must_use]
pub fn sweep(sweep: &ParameterSweep) -> Vec<FieldViolation> {
    crate::sweep::size(sweep).err().unwrap_or_default()
}

fn container_settings(c: &mut Checker, settings: &ContainerSettings) {
    match &settings.image_source_registry {
        None => c.wrong("imageSourceRegistry", "required; write the image as imageSourceRegistry.image"),
        Some(registry) => c.within("imageSourceRegistry", |c| {
            c.required("image", &registry.image, "the name of an image that the workspace binds");
            server_url(c, registry);
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

/// The registry is part of the image's name, which the workspace binds; another one would be ignored.
fn server_url(c: &mut Checker, registry: &ImageSourceRegistry) {
    const DEFAULT: [&str; 4] = [
        "docker.io",
        "index.docker.io",
        "registry-1.docker.io",
        "registry.hub.docker.com",
    ];
    if registry.server_url.is_empty() || !c.plain("serverUrl", &registry.server_url, MAX_PATH_BYTES)
    {
        return;
    }
    let url = registry.server_url.to_ascii_lowercase();
    let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    let begins = registry
        .image
        .to_ascii_lowercase()
        .strip_prefix(host)
        .is_some_and(|rest| rest.starts_with('/'));
    if host.is_empty() || !(begins || DEFAULT.contains(&host)) {
        c.wrong(
            "serverUrl",
            "the image must begin with the registry's host, as REGISTRY/IMAGE; or leave serverUrl out",
        );
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

pub(super) fn variables(c: &mut Checker, variables: &[EnvironmentVariable]) {
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

fn retries(c: &mut Checker, constraints: &JobConstraints) {
    if constraints.max_retry_count > MAX_RETRIES {
        c.wrong(
            "maxRetryCount",
            format!("at most {MAX_RETRIES} retries are possible"),
        );
    }
    if constraints.max_retry_count == 0 {
        for (key, given) in [
            ("retryOn", !constraints.retry_on.is_empty()),
            ("retryExitCodes", !constraints.retry_exit_codes.is_empty()),
        ] {
            if given {
                c.wrong(
                    key,
                    "nothing is retried without maxRetryCount; write how often",
                );
            }
        }
    }
    let known = |cause: i32| {
        RetryCause::try_from(cause).is_ok_and(|cause| cause != RetryCause::Unspecified)
    };
    for (index, cause) in constraints.retry_on.iter().enumerate() {
        let key = format!("retryOn[{index}]");
        if !known(*cause) {
            c.wrong(
                &key,
                "unknown; write one of exitcode, preparation, mount, launch, wallclock",
            );
        } else if constraints.retry_on[..index].contains(cause) {
            c.wrong(&key, "stands already before; leave it out");
        }
    }
    let on_exit = constraints.retry_on.is_empty()
        || constraints.retry_on.contains(&RetryCause::Exitcode.into());
    if !on_exit && !constraints.retry_exit_codes.is_empty() {
        c.wrong(
            "retryExitCodes",
            "needs exitcode among the causes of retryOn",
        );
    }
    for (index, code) in constraints.retry_exit_codes.iter().enumerate() {
        if !(1..=255).contains(code) {
            c.wrong(
                &format!("retryExitCodes[{index}]"),
                "write an exit code from 1 to 255",
            );
        }
    }
}

fn dependencies(c: &mut Checker, spec: &JobSpec) {
    if spec.depends_on.len() > MAX_DEPENDENCIES {
        c.wrong(
            "dependsOn",
            format!("at most {MAX_DEPENDENCIES} jobs can be waited for"),
        );
        return;
    }
    // A bare name is taken in the experiment of the job, which is not known here; any will do to check it.
    let any = WorkspaceName::new("w").and_then(|any| ExperimentName::new(&any, "e"));
    c.each("dependsOn", &spec.depends_on, |c, dependency| {
        if DependencyCondition::try_from(dependency.condition).is_err() {
            c.wrong("condition", "unknown; write success or end");
        }
        let id = dependency.job.as_ref().map_or("", |job| job.id.as_str());
        if c.required("job.id", id, "the name of a job of the same experiment") {
            let checked = any.clone().and_then(|any| JobName::resolve(&any, id));
            if let Err(error) = checked {
                c.wrong("job.id", error.to_string());
            }
        }
    });
    c.unique(
        "dependsOn",
        "job.id",
        spec.depends_on
            .iter()
            .map(|dependency| dependency.job.as_ref().map_or("", |job| job.id.as_str())),
    );
}

fn limits(c: &mut Checker, spec: &JobSpec) {
    if let Some(constraints) = &spec.constraints {
        c.within("constraints", |c| retries(c, constraints));
    }
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
