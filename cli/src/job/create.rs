//! `trainyard job create`: reads the job file, fills in what the command line knows, submits, and follows if asked. With
//! parameters it submits an array: one job per combination of values.

use std::path::PathBuf;

use clap::Args;
use trainyard_proto::v1::{
    CreateJobArrayRequest, CreateJobArrayResponse, CreateJobRequest, Job, JobSpec, ParameterSweep,
    ResourceId,
};
use trainyard_shared::client::new_request_id;
use trainyard_shared::file::SWEEP;
use trainyard_shared::names::{ClusterName, JobName};
use trainyard_shared::validate::{self, FieldViolation};
use trainyard_shared::{json, sweep};

use super::follow::{Follow, Options};
use super::options::OptionArgs;
use super::sweep::SweepArgs;
use super::wait::wait_for;
use super::{NameArg, flags};
use crate::api::Api;
use crate::args::Format;
use crate::console::{Console, note};
use crate::context::Context;
use crate::error::Error;
use crate::job_file::{ParsedFile, Source};
use crate::output::write;
use crate::placeholders;
use crate::text::{count, last_segment};

/// See the head of this file.
#[derive(Debug, Args)]
#[command(
    after_help = "With --follow the exit status is the job's own: 0 when it succeeded, else its exit code, or 1 when it \
                        has none (as when it was terminated); of an array that of the first that did not succeed. Ctrl-C leaves the \
                        job running and returns 130."
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
    /// Stream what the job writes until it has ended; of an array, say what becomes of each job
    #[arg(long)]
    follow: bool,
    /// Ask the scheduler to check everything, and create nothing
    #[arg(long, conflicts_with = "follow")]
    dry_run: bool,
    #[command(flatten)]
    options: OptionArgs,
    #[command(flatten)]
    sweep: SweepArgs,
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

/// What a create is made of.
struct Wanted {
    spec: JobSpec,
    sweep: Option<ParameterSweep>,
}

/// Does what the command says.
pub(super) async fn run(context: &Context, args: CreateArgs) -> Result<u8, Error> {
    let name = args.name.resolve()?;
    let mut parsed = Source::read(&args.file)?.parse::<JobSpec>()?;
    let wanted = complete(&mut parsed, &name, &args)?;
    submit(context, context.api()?, name, wanted, &parsed, &args).await
}

async fn submit(
    context: &Context,
    api: Api,
    name: JobName,
    wanted: Wanted,
    parsed: &ParsedFile<JobSpec>,
    args: &CreateArgs,
) -> Result<u8, Error> {
    match wanted.sweep {
        Some(sweep) => create_array(context, api, name, wanted.spec, sweep, parsed, args).await,
        None => create_one(context, api, name, wanted.spec, parsed, args).await,
    }
}

async fn create_one(
    context: &Context,
    api: Api,
    name: JobName,
    spec: JobSpec,
    parsed: &ParsedFile<JobSpec>,
    args: &CreateArgs,
) -> Result<u8, Error> {
    let request = CreateJobRequest {
        parent: name.parent().to_string(),
        job_id: name.id().to_owned(),
        job: Some(Job {
            spec: Some(spec),
            ..Job::default()
        }),
        request_id: new_request_id(),
        validate_only: args.dry_run,
    };
    let job = api
        .create_job(request)
        .await
        .map_err(|status| parsed.explain(status))?;
    if args.dry_run {
        context
            .output()
            .one(&job, |_| format!("{name} can be created; nothing was\n"))?;
        return Ok(0);
    }
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

async fn create_array(
    context: &Context,
    api: Api,
    name: JobName,
    spec: JobSpec,
    sweep: ParameterSweep,
    parsed: &ParsedFile<JobSpec>,
    args: &CreateArgs,
) -> Result<u8, Error> {
    let request = CreateJobArrayRequest {
        parent: name.parent().to_string(),
        job_id: name.id().to_owned(),
        job: Some(Job {
            spec: Some(spec),
            ..Job::default()
        }),
        sweep: Some(sweep),
        request_id: new_request_id(),
        validate_only: args.dry_run,
    };
    let array = api
        .create_job_array(request)
        .await
        .map_err(|status| parsed.explain(status))?;
    match context.output().format() {
        Format::Table => write(&array_text(&array, &name, args.dry_run))?,
        Format::Name => write(
            &array
                .jobs
                .iter()
                .map(|job| format!("{job}\n"))
                .collect::<String>(),
        )?,
        Format::Json | Format::Yaml => context.output().value(&json::to_json(&array))?,
    }
    if args.dry_run {
        return Ok(0);
    }
    if args.follow {
        let mut console = Console::standard();
        return tokio::select! {
            end = wait_for(&api, &array.jobs, true, &mut console) => end,
            _ = tokio::signal::ctrl_c() => Err(Error::Interrupted),
        };
    }
    if context.output().format() == Format::Table {
        let experiment = name.experiment();
        note(&format!(
            "see what they do: trainyard job list --watch -w {} -e {} --filter 'array = \"{}\"'",
            name.workspace().id(),
            experiment.id(),
            array.uid
        ));
    }
    Ok(0)
}

fn array_text(array: &CreateJobArrayResponse, name: &JobName, dry_run: bool) -> String {
    let jobs = count(array.size.into(), "job");
    let ends = match (array.jobs.first(), array.jobs.last()) {
        (Some(first), Some(last)) if first != last => {
            format!("{first} to {}", last_segment(last))
        }
        (Some(only), _) => only.clone(),
        (None, _) => format!("{name}-0 and so on"),
    };
    if dry_run {
        format!("{jobs} can be created, {ends}; nothing was\n")
    } else {
        format!("created {jobs}, {ends} (array {})\n", array.uid)
    }
}

/// The job of the file with what flags add and without placeholders; refuses what a scheduler would refuse.
fn complete(
    parsed: &mut ParsedFile<JobSpec>,
    name: &JobName,
    args: &CreateArgs,
) -> Result<Wanted, Error> {
    let account = args.storage_account_name.as_deref();
    let mut spec = parsed.message().clone();
    placeholders::fill(&mut spec, account);
    set_cluster(&mut spec, parsed, name, args)?;
    for (field, flag) in args.options.add_to(&mut spec, account) {
        parsed.given_by_flag(field, flag);
    }
    let sweep = parsed.sweep_with(&args.sweep)?;
    let violations = match &sweep {
        Some(sweep) => check_members(&spec, sweep),
        None => validate::job(&spec),
    };
    if !violations.is_empty() {
        return Err(parsed.refusal(violations));
    }
    let unlaunchable = validate::launchable(&spec);
    if args.dry_run {
        parsed.warn(unlaunchable);
    } else if !unlaunchable.is_empty() {
        return Err(parsed.refusal(unlaunchable));
    }
    Ok(Wanted { spec, sweep })
}

fn set_cluster(
    spec: &mut JobSpec,
    parsed: &mut ParsedFile<JobSpec>,
    name: &JobName,
    args: &CreateArgs,
) -> Result<(), Error> {
    if let Some(cluster) = &args.cluster {
        parsed.given_by_flag("cluster", format!("--cluster {cluster}"));
        let cluster = ClusterName::resolve(&name.workspace(), cluster)
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
    Ok(())
}

impl ParsedFile<JobSpec> {
    /// The sweep of the file with the flags in it, none when neither has one. Remembers which fields the flags have given.
    pub(super) fn sweep_with(
        &mut self,
        flags: &SweepArgs,
    ) -> Result<Option<ParameterSweep>, Error> {
        let Some((sweep, given)) = flags.over(self.sweep())? else {
            return Ok(None);
        };
        for (field, flag) in given {
            self.given_by_flag(format!("{SWEEP}.{field}"), flag);
        }
        Ok(Some(sweep))
    }
}

/// What is wrong with a sweep, or with the first of its jobs that has something wrong.
pub(super) fn check_members(spec: &JobSpec, sweep: &ParameterSweep) -> Vec<FieldViolation> {
    match sweep::expand(sweep) {
        Err(violations) => violations
            .into_iter()
            .map(|violation| violation.inside(SWEEP))
            .collect(),
        Ok(jobs) => jobs
            .iter()
            .map(|values| match sweep::apply(spec, values) {
                Ok(member) => validate::job(&member),
                Err(violation) => vec![violation.inside(SWEEP)],
            })
            .find(|violations| !violations.is_empty())
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use trainyard_proto::v1::ExecutionState;

    use super::*;
    use crate::args::{Arguments, Noun};
    use crate::job::yard::{Yard, name_of};

    fn args(line: &str) -> CreateArgs {
        match Arguments::try_parse_from(line.split(' ')).unwrap().noun {
            Noun::Job(super::super::Command::Create(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn completed(text: &str, line: &str) -> Result<Wanted, Error> {
        let args = args(line);
        let mut parsed = Source::new("job.json", text.to_owned()).parse::<JobSpec>()?;
        complete(&mut parsed, &args.name.resolve()?, &args)
    }

    fn refused(text: &str, line: &str) -> String {
        match completed(text, line) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("was accepted: {line}"),
        }
    }

    const CUSTOM: &str = r#"{"properties": {"nodeCount": 1, "stdOutErrPathPrefix": "$AZ_BATCHAI_JOB_TEMP_DIR",
        "customToolkitSettings": {"commandLine": "train $PARAM_LR"}}}"#;
    const LINE: &str = "trainyard job create -w w -e e -n j -c c -f job.json";

    #[test]
    fn a_bare_cluster_is_one_of_the_jobs_workspace() {
        let spec = completed(CUSTOM, LINE).unwrap().spec;
        assert_eq!(spec.cluster.unwrap().id, "workspaces/w/clusters/c");
    }

    #[test]
    fn a_full_cluster_name_stays() {
        let line = "trainyard job create -w w -e e -n j -c workspaces/other/clusters/c -f job.json";
        assert_eq!(
            completed(CUSTOM, line).unwrap().spec.cluster.unwrap().id,
            "workspaces/other/clusters/c"
        );
    }

    #[test]
    fn a_missing_cluster_is_asked_for() {
        let error = refused(CUSTOM, "trainyard job create -w w -e e -n j -f job.json");
        assert!(error.contains("`-c CLUSTER`"));
    }

    #[test]
    fn what_validation_refuses_gets_its_line() {
        let text = "{\"properties\": {\n\"nodeCount\": 0,\n\"stdOutErrPathPrefix\": \"$AZ_BATCHAI_JOB_TEMP_DIR\",\n\
                    \"customToolkitSettings\": {\"commandLine\": \"true\"}}}";
        assert!(refused(text, LINE).starts_with("job.json:2:"));
    }

    #[test]
    fn parameters_of_file_and_flags_make_an_array() {
        let sweep = completed(
            CUSTOM,
            &format!("{LINE} --param LR=0.1,0.2 --max-running 1"),
        )
        .unwrap()
        .sweep
        .unwrap();
        assert_eq!(sweep::size(&sweep).unwrap(), 2);
        assert_eq!(sweep.max_running_jobs, 1);
        let in_file = CUSTOM.replace(
            "\"nodeCount\": 1,",
            "\"nodeCount\": 1, \"parameterSweep\": {\"parameters\": [{\"name\": \"LR\", \"values\": [\"1\", \"2\", \"3\"]}]},",
        );
        let sweep = completed(&in_file, LINE).unwrap().sweep.unwrap();
        assert_eq!(sweep::size(&sweep).unwrap(), 3);
    }

    #[test]
    fn a_wrong_parameter_is_named_by_its_flag() {
        let error = refused(CUSTOM, &format!("{LINE} --param lr=1,2"));
        assert!(error.starts_with("error: --param lr: "), "{error}");
    }

    #[test]
    fn a_wrong_retry_is_named_by_its_flag() {
        let error = refused(CUSTOM, &format!("{LINE} --max-retries 1000000"));
        assert!(
            error.starts_with("error: --max-retries 1000000: "),
            "{error}"
        );
    }

    async fn submitted(yard_api: Api, line: &str) -> Result<u8, Error> {
        let args = args(line);
        let name = args.name.resolve()?;
        let mut parsed = Source::new("job.json", CUSTOM.to_owned()).parse::<JobSpec>()?;
        let wanted = complete(&mut parsed, &name, &args)?;
        let context = Context::new(crate::args::GlobalArgs::default());
        submit(&context, yard_api, name, wanted, &parsed, &args).await
    }

    #[tokio::test]
    async fn a_dry_run_asks_and_creates_nothing() {
        let (yard, api) = Yard::start().await;
        assert_eq!(
            submitted(api.clone(), &format!("{LINE} --dry-run"))
                .await
                .unwrap(),
            0
        );
        let array = format!("{LINE} --dry-run --param LR=1,2,3");
        assert_eq!(submitted(api, &array).await.unwrap(), 0);
        assert_eq!(yard.names(), [""; 0]);
    }

    #[tokio::test]
    async fn an_array_is_followed_to_the_end_of_its_last_job() {
        let (yard, api) = Yard::start().await;
        let line = format!("{LINE} --param LR=1,2 --follow");
        let follow = tokio::spawn(async move { submitted(api, &line).await });
        yard.is_watched().await;
        assert_eq!(yard.names(), [name_of("j-0"), name_of("j-1")]);
        yard.put("j-0", ExecutionState::Succeeded);
        yard.put("j-1", ExecutionState::Failed);
        assert_eq!(follow.await.unwrap().unwrap(), 1);
    }

    #[tokio::test]
    async fn a_name_that_is_taken_is_an_error_of_the_scheduler() {
        let (yard, api) = Yard::start().await;
        yard.put("j", ExecutionState::Running);
        let error = submitted(api, LINE).await.unwrap_err();
        assert!(error.to_string().contains("exists already"), "{error}");
        assert_eq!(error.exit_status(), 1);
    }

    #[test]
    fn an_array_says_its_first_and_last_job() {
        let name: JobName = "workspaces/w/experiments/e/jobs/j".parse().unwrap();
        let array = CreateJobArrayResponse {
            uid: "u-1".into(),
            size: 2,
            jobs: vec![format!("{name}-0"), format!("{name}-1")],
        };
        assert_eq!(
            array_text(&array, &name, false),
            "created 2 jobs, workspaces/w/experiments/e/jobs/j-0 to j-1 (array u-1)\n"
        );
        assert!(array_text(&array, &name, true).contains("nothing was"));
    }
}
