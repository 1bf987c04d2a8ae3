//! What flags add to a job file: dependencies, retries, limits and volumes. Pure.

use clap::{Args, ValueEnum};
use prost_types::Duration;
use trainyard_proto::v1::{
    AzureBlobFileSystemReference, AzureFileShareReference, DependencyCondition,
    FileServerReference, JobConstraints, JobDependency, JobSpec, MountVolumes, ResourceId,
    RetryCause,
};
use trainyard_shared::duration;

use super::sweep::Given;
use crate::placeholders::DEFAULT_ACCOUNT;

/// See the head of this file.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct OptionArgs {
    /// Wait for this job: a name in the same experiment or a resource name. It must succeed, or with `:end` end in any way.
    /// May be given several times; adds to dependsOn of the file
    #[arg(long, value_name = "JOB[:end]", value_parser = dependency)]
    depends_on: Vec<JobDependency>,
    /// Runs after a failure, beyond the first [default: 0, or what the file says]
    #[arg(long, value_name = "COUNT")]
    max_retries: Option<u32>,
    /// Which failures are retried [default: all but wallclock]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "CAUSE")]
    retry_on: Vec<Cause>,
    /// Longest time from start to end of a run: P1D, PT1H30M, 1.12:00:00 or 3600s [default: 7 days, or what the file says]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    max_wall_clock_time: Option<Duration>,
    /// Mount this file server for the job
    #[arg(long, value_name = "FILESERVER")]
    nfs: Option<String>,
    /// Where, below $AZ_BATCHAI_JOB_MOUNT_ROOT
    #[arg(long, value_name = "PATH", default_value = "nfs", requires = "nfs")]
    nfs_mount_path: String,
    /// Mount what the workspace binds to this share name
    #[arg(long, value_name = "SHARE")]
    afs_name: Option<String>,
    /// Where, below $AZ_BATCHAI_JOB_MOUNT_ROOT
    #[arg(
        long,
        value_name = "PATH",
        default_value = "afs",
        requires = "afs_name"
    )]
    afs_mount_path: String,
    /// Mount what the workspace binds to this container name
    #[arg(long, value_name = "CONTAINER")]
    bfs_name: Option<String>,
    /// Where, below $AZ_BATCHAI_JOB_MOUNT_ROOT
    #[arg(
        long,
        value_name = "PATH",
        default_value = "bfs",
        requires = "bfs_name"
    )]
    bfs_mount_path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Cause {
    // A task ended with another status than 0. (Not doc comments: clap would print a line for each value.)
    Exitcode,
    // The job preparation failed.
    Preparation,
    // A volume could not be mounted.
    Mount,
    // It could not be launched for another cause.
    Launch,
    // maxWallClockTime ran out.
    Wallclock,
}

impl Cause {
    fn to_proto(self) -> RetryCause {
        match self {
            Self::Exitcode => RetryCause::Exitcode,
            Self::Preparation => RetryCause::Preparation,
            Self::Mount => RetryCause::Mount,
            Self::Launch => RetryCause::Launch,
            Self::Wallclock => RetryCause::Wallclock,
        }
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|error| error.to_string())
}

/// Parses `JOB`, `JOB:success` or `JOB:end`.
fn dependency(text: &str) -> Result<JobDependency, String> {
    let (job, condition) = match text.split_once(':') {
        None => (text, DependencyCondition::Success),
        Some((job, "success")) => (job, DependencyCondition::Success),
        Some((job, "end")) => (job, DependencyCondition::End),
        Some((_, other)) => {
            return Err(format!(
                "{other:?} is no condition; write JOB (it must succeed) or JOB:end (it must end in any way)"
            ));
        }
    };
    if job.is_empty() {
        return Err("write JOB, or JOB:end".to_owned());
    }
    Ok(JobDependency {
        job: Some(ResourceId { id: job.to_owned() }),
        condition: condition.into(),
    })
}

impl OptionArgs {
    /// Adds to the job what the flags say. Gives the fields that they have set, each with its flag.
    pub(super) fn add_to(&self, spec: &mut JobSpec, account: Option<&str>) -> Given {
        let mut given = Vec::new();
        for dependency in &self.depends_on {
            given.push((
                format!("dependsOn[{}]", spec.depends_on.len()),
                format!("--depends-on {}", id(dependency.job.as_ref())),
            ));
            spec.depends_on.push(dependency.clone());
        }
        self.constrain(spec, &mut given);
        self.mount(spec, account, &mut given);
        given
    }

    fn constrain(&self, spec: &mut JobSpec, given: &mut Given) {
        let constraints = |spec: &mut JobSpec, change: &dyn Fn(&mut JobConstraints)| {
            change(spec.constraints.get_or_insert_default());
        };
        if let Some(retries) = self.max_retries {
            constraints(spec, &|it| it.max_retry_count = retries);
            given.push((
                "constraints.maxRetryCount".into(),
                format!("--max-retries {retries}"),
            ));
        }
        if !self.retry_on.is_empty() {
            constraints(spec, &|it| {
                it.retry_on = self
                    .retry_on
                    .iter()
                    .map(|cause| cause.to_proto().into())
                    .collect();
            });
            given.push(("constraints.retryOn".into(), "--retry-on".into()));
        }
        if let Some(time) = self.max_wall_clock_time {
            constraints(spec, &|it| it.max_wall_clock_time = Some(time));
            given.push((
                "constraints.maxWallClockTime".into(),
                format!("--max-wall-clock-time {}", duration::format(&time)),
            ));
        }
    }

    fn mount(&self, spec: &mut JobSpec, account: Option<&str>, given: &mut Given) {
        let volumes = |spec: &mut JobSpec, change: &mut dyn FnMut(&mut MountVolumes)| {
            change(spec.mount_volumes.get_or_insert_default());
        };
        if let Some(server) = &self.nfs {
            volumes(spec, &mut |it| {
                given.push((
                    format!("mountVolumes.fileServers[{}]", it.file_servers.len()),
                    format!("--nfs {server} --nfs-mount-path {}", self.nfs_mount_path),
                ));
                it.file_servers.push(FileServerReference {
                    file_server: Some(ResourceId { id: server.clone() }),
                    relative_mount_path: self.nfs_mount_path.clone(),
                    ..FileServerReference::default()
                });
            });
        }
        if let Some(share) = &self.afs_name {
            let account = account.unwrap_or(DEFAULT_ACCOUNT);
            volumes(spec, &mut |it| {
                given.push((
                    format!(
                        "mountVolumes.azureFileShares[{}]",
                        it.azure_file_shares.len()
                    ),
                    format!(
                        "--afs-name {share} --afs-mount-path {}",
                        self.afs_mount_path
                    ),
                ));
                it.azure_file_shares.push(AzureFileShareReference {
                    azure_file_url: format!("https://{account}.file.core.windows.net/{share}"),
                    relative_mount_path: self.afs_mount_path.clone(),
                    ..AzureFileShareReference::default()
                });
            });
        }
        if let Some(container) = &self.bfs_name {
            volumes(spec, &mut |it| {
                given.push((
                    format!(
                        "mountVolumes.azureBlobFileSystems[{}]",
                        it.azure_blob_file_systems.len()
                    ),
                    format!(
                        "--bfs-name {container} --bfs-mount-path {}",
                        self.bfs_mount_path
                    ),
                ));
                it.azure_blob_file_systems
                    .push(AzureBlobFileSystemReference {
                        account_name: account.unwrap_or_default().to_owned(),
                        container_name: container.clone(),
                        relative_mount_path: self.bfs_mount_path.clone(),
                        ..AzureBlobFileSystemReference::default()
                    });
            });
        }
    }
}

fn id(resource: Option<&ResourceId>) -> &str {
    resource.map_or("", |resource| resource.id.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_name_their_condition() {
        assert_eq!(
            dependency("prep").unwrap().condition(),
            DependencyCondition::Success
        );
        let any = dependency("workspaces/w/experiments/e/jobs/j:end").unwrap();
        assert_eq!(any.condition(), DependencyCondition::End);
        assert_eq!(id(any.job.as_ref()), "workspaces/w/experiments/e/jobs/j");
        assert!(dependency("prep:soon").unwrap_err().contains("JOB:end"));
        assert!(dependency(":end").is_err());
    }

    #[test]
    fn flags_add_to_the_file_and_name_themselves() {
        let args = OptionArgs {
            depends_on: vec![dependency("b").unwrap()],
            max_retries: Some(2),
            retry_on: vec![Cause::Mount],
            max_wall_clock_time: Some(parse_duration("1.00:00:00").unwrap()),
            nfs: Some("nfs1".into()),
            nfs_mount_path: "data".into(),
            ..OptionArgs::default()
        };
        let mut spec = JobSpec {
            depends_on: vec![dependency("a").unwrap()],
            ..JobSpec::default()
        };
        let given = args.add_to(&mut spec, None);
        assert_eq!(spec.depends_on.len(), 2);
        let constraints = spec.constraints.unwrap();
        assert_eq!(constraints.max_retry_count, 2);
        assert_eq!(constraints.max_wall_clock_time.unwrap().seconds, 86_400);
        let volumes = spec.mount_volumes.unwrap();
        assert_eq!(volumes.file_servers[0].relative_mount_path, "data");
        assert!(given.contains(&("dependsOn[1]".into(), "--depends-on b".into())));
        assert!(given.contains(&(
            "mountVolumes.fileServers[0]".into(),
            "--nfs nfs1 --nfs-mount-path data".into()
        )));
    }
}
