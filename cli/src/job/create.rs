//! `trainyard job create`: reads the job file, fills in what the command line knows, submits, and follows if asked.

use std::path::PathBuf;

use clap::Args;
use trainyard_proto::v1::{CreateJobRequest, Job, JobSpec, ResourceId};
use trainyard_shared::client::new_request_id;
use trainyard_shared::names::{ClusterName, JobName};
use trainyard_shared::validate;

use super::follow::{Follow, Options};
use super::{NameArg, flags};
use crate::args::Format;
use crate::console::{Console, note};
use crate::context::Context;
use crate::error::Error;
use crate::job_file::{ParsedFile, Source};
use crate::placeholders;

/// See the head of this file.
#[derive(Debug, Args)]
#[command(
    after_help = "With --follow the exit status is the job's own: 0 when it succeeded, else its exit code, or 1 when it \
                        has none (as when it was terminated). Ctrl-C leaves the job running and returns 130."
)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    name: NameArg,
    /// Cluster to run on: its name in the job's workspace, or a full resource name [default: what the file says]
    #[arg(short, long, value_name = "CLUSTER")]
    cluster: Option<String>,
    /// Job file (JSON, or YAML when its name ends in .yaml or .yml; `-` is stdin)
    #[arg(short = 'f', long = "config-file", value_name = "FILE")]
    file: PathBuf,
    /// Stream what the job writes until it has ended
    #[arg(long)]
    follow: bool,
    /// Value of <AZURE_BATCHAI_STORAGE_ACCOUNT> in the job file; matters to bindings ACCOUNT/SHARE only [default: storage]
    #[arg(
        long,
        value_name = "ACCOUNT",
        env = "AZURE_BATCHAI_STORAGE_ACCOUNT",
        hide_env_values = true
    )]
    storage_account_name: Option<String>,
    /// Accepted for compatibility; bindings need no key and none is sent
    #[arg(long, value_name = "KEY", hide = true)]
    storage_account_key: Option<String>,
}

/// Does what the command says.
pub(super) async fn run(context: &Context, args: CreateArgs) -> Result<u8, Error> {
    let name = args.name.resolve()?;
    let mut parsed = Source::read(&args.file)?.parse::<JobSpec>()?;
    if let Some(cluster) = &args.cluster {
        parsed.given_by_flag("cluster", format!("--cluster {cluster}"));
    }
    let spec = complete(&parsed, &name, &args)?;
    let api = context.api()?;
    let request = CreateJobRequest {
        parent: name.parent().to_string(),
        job_id: name.id().to_owned(),
        job: Some(Job {
            spec: Some(spec),
            ..Job::default()
        }),
        request_id: new_request_id(),
        ..CreateJobRequest::default()
    };
    let job = api
        .create_job(request)
        .await
        .map_err(|status| parsed.explain(status))?;
    if args.follow {
        note(&format!("created {name}"));
        return Follow::new(api, name, Console::standard(), Options::of_a_whole_job())
            .run()
            .await;
    }
    context.output().done("created", &job)?;
    if context.output().format() == Format::Table {
        note(&format!(
            "see what it does: trainyard job logs --follow {}",
            flags(&name)
        ));
    }
    Ok(0)
}

/// The job of the file with the cluster of `-c` and without placeholders; refuses what a scheduler would refuse.
fn complete(
    parsed: &ParsedFile<JobSpec>,
    name: &JobName,
    args: &CreateArgs,
) -> Result<JobSpec, Error> {
    let mut spec = parsed.message().clone();
    placeholders::fill(&mut spec, args.storage_account_name.as_deref());
    let workspace = name.workspace();
    if let Some(cluster) = &args.cluster {
        let cluster = ClusterName::resolve(&workspace, cluster)
            .map_err(|error| Error::usage(error.to_string()))?;
        spec.cluster = Some(ResourceId {
            id: cluster.to_string(),
        });
    } else if spec
        .cluster
        .as_ref()
        .is_none_or(|cluster| cluster.id.is_empty())
    {
        return Err(Error::usage(
            "which cluster? Pass `-c CLUSTER`, or write `cluster: {id: ...}` in the job file",
        ));
    }
    let mut violations = validate::job(&spec);
    violations.extend(validate::launchable(&spec));
    if violations.is_empty() {
        Ok(spec)
    } else {
        Err(parsed.refusal(violations))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Noun};

    fn args(line: &str) -> CreateArgs {
        match Arguments::try_parse_from(line.split(' ')).unwrap().noun {
            Noun::Job(super::super::Command::Create(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    fn completed(text: &str, line: &str) -> Result<JobSpec, Error> {
        let args = args(line);
        let parsed = Source::new("job.json", text.to_owned()).parse::<JobSpec>()?;
        complete(&parsed, &args.name.resolve()?, &args)
    }

    const CUSTOM: &str = r#"{"properties": {"nodeCount": 1, "stdOutErrPathPrefix": "$AZ_BATCHAI_JOB_TEMP_DIR",
        "customToolkitSettings": {"commandLine": "true"}}}"#;

    #[test]
    fn a_bare_cluster_is_one_of_the_jobs_workspace() {
        let spec = completed(
            CUSTOM,
            "trainyard job create -w w -e e -n j -c c -f job.json",
        )
        .unwrap();
        assert_eq!(spec.cluster.unwrap().id, "workspaces/w/clusters/c");
    }

    #[test]
    fn a_full_cluster_name_stays() {
        let line = "trainyard job create -w w -e e -n j -c workspaces/other/clusters/c -f job.json";
        assert_eq!(
            completed(CUSTOM, line).unwrap().cluster.unwrap().id,
            "workspaces/other/clusters/c"
        );
    }

    #[test]
    fn a_missing_cluster_is_asked_for() {
        let error =
            completed(CUSTOM, "trainyard job create -w w -e e -n j -f job.json").unwrap_err();
        assert!(error.to_string().contains("`-c CLUSTER`"));
    }

    #[test]
    fn what_validation_refuses_gets_its_line() {
        let text = "{\"properties\": {\n\"nodeCount\": 0,\n\"stdOutErrPathPrefix\": \"$AZ_BATCHAI_JOB_TEMP_DIR\",\n\
                    \"customToolkitSettings\": {\"commandLine\": \"true\"}}}";
        let error =
            completed(text, "trainyard job create -w w -e e -n j -c c -f job.json").unwrap_err();
        assert!(error.to_string().starts_with("job.json:2:"), "{error}");
    }
}
