//! `trainyard job validate`: judges job files without a scheduler, by the very rules that the schedulers use. Must never
//! connect to anything: what depends on the cluster (bindings, names, limits) is for `job create --dry-run`.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use trainyard_proto::v1::JobSpec;
use trainyard_shared::toolkit::Toolkit;
use trainyard_shared::{sweep, validate};

use super::create::check_members;
use super::sweep::SweepArgs;
use crate::args::Format;
use crate::context::Context;
use crate::error::Error;
use crate::job_file::{ParsedFile, Source};
use crate::output::write;
use crate::text::count;

/// See the head of this file.
#[derive(Debug, Args)]
#[command(
    after_help = "No scheduler is asked. `trainyard job create --dry-run` asks one: it also knows bindings, clusters, \
                        limits.\nExit status: 0 when every file is valid, else 1."
)]
pub(crate) struct ValidateArgs {
    /// Job file (JSON, or YAML when its name ends in .yaml or .yml; `-` is stdin); may be given several times
    #[arg(
        short = 'f',
        long = "config-file",
        value_name = "FILE",
        required = true,
        num_args = 1..
    )]
    files: Vec<PathBuf>,
    #[command(flatten)]
    sweep: SweepArgs,
}

/// What there is to say of a valid file.
struct Verdict {
    file: String,
    tool: String,
    nodes: u32,
    /// Jobs of the array; none for a single job.
    jobs: Option<u32>,
    /// Whether this version can start it.
    is_launchable: bool,
}

/// Does what the command says. Every file is judged, also after one that is refused.
pub(super) fn run(context: &Context, args: &ValidateArgs) -> Result<u8, Error> {
    let mut verdicts = Vec::new();
    let mut refused = Vec::new();
    for path in &args.files {
        match Source::read(path).and_then(|source| judge(&source, &args.sweep)) {
            Ok(verdict) => verdicts.push(verdict),
            Err(error @ Error::File(_)) => refused.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    let output = context.output();
    match output.format() {
        Format::Table => write(&verdicts.iter().map(line).collect::<String>())?,
        Format::Name => {
            let names = verdicts.iter().map(|verdict| format!("{}\n", verdict.file));
            write(&names.collect::<String>())?;
        }
        Format::Json | Format::Yaml => {
            output.value(&Value::Array(verdicts.iter().map(to_json).collect()))?;
        }
    }
    if refused.is_empty() {
        Ok(0)
    } else {
        Err(Error::File(refused.join("\n")))
    }
}

fn judge(source: &Source, flags: &SweepArgs) -> Result<Verdict, Error> {
    let mut parsed: ParsedFile<JobSpec> = source.check_job()?;
    let sweep = parsed.sweep_with(flags)?;
    let spec = parsed.message();
    if let Some(sweep) = &sweep {
        let mut violations = check_members(spec, sweep);
        // The command that creates the job may name the cluster.
        violations.retain(|violation| spec.cluster.is_some() || violation.field != "cluster");
        if !violations.is_empty() {
            return Err(parsed.refusal(violations));
        }
    }
    Ok(Verdict {
        file: source.name().to_owned(),
        tool: Toolkit::of(spec).map_or_else(|_| String::new(), |tool| tool.tool_type().to_owned()),
        nodes: spec.node_count,
        jobs: sweep.as_ref().and_then(|sweep| sweep::size(sweep).ok()),
        is_launchable: validate::launchable(spec).is_empty(),
    })
}

fn line(verdict: &Verdict) -> String {
    let nodes = count(verdict.nodes.into(), "node");
    let what = match verdict.jobs {
        None => format!("{} job of {nodes}", verdict.tool),
        Some(jobs) => format!("{jobs} {} jobs of {nodes} each", verdict.tool),
    };
    let but = if verdict.is_launchable {
        ""
    } else {
        "; this version cannot start it"
    };
    format!("{}: valid: {what}{but}\n", verdict.file)
}

fn to_json(verdict: &Verdict) -> Value {
    json!({
        "file": verdict.file,
        "toolType": verdict.tool,
        "nodeCount": verdict.nodes,
        "jobs": verdict.jobs.unwrap_or(1),
        "launchable": verdict.is_launchable,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str) -> Result<Verdict, Error> {
        judge(
            &Source::new("job.yaml", text.to_owned()),
            &SweepArgs::default(),
        )
    }

    const CUSTOM: &str = "nodeCount: 2\nstdOutErrPathPrefix: $AZ_BATCHAI_JOB_TEMP_DIR\n\
                          customToolkitSettings: {commandLine: train --lr $PARAM_LR}\n";

    #[test]
    fn a_file_without_cluster_is_valid() {
        let verdict = judged(CUSTOM).ok().unwrap();
        assert_eq!(line(&verdict), "job.yaml: valid: custom job of 2 nodes\n");
    }

    #[test]
    fn an_array_says_how_many_jobs_it_makes() {
        let text = format!(
            "{CUSTOM}parameterSweep:\n  parameters: [{{name: LR, values: [\"1\", \"2\"]}}]\n"
        );
        let verdict = judged(&text).ok().unwrap();
        assert_eq!(
            line(&verdict),
            "job.yaml: valid: 2 custom jobs of 2 nodes each\n"
        );
        assert_eq!(to_json(&verdict)["jobs"], 2);
    }

    #[test]
    fn a_wrong_sweep_is_refused_with_its_line() {
        let text =
            format!("{CUSTOM}parameterSweep:\n  parameters: [{{name: lr, values: [\"1\"]}}]\n");
        let Err(error) = judged(&text) else { panic!() };
        assert!(error.to_string().starts_with("job.yaml:5:"), "{error}");
    }

    #[test]
    fn a_missing_field_is_refused() {
        let Err(error) = judged("nodeCount: 1\n") else {
            panic!()
        };
        assert!(error.to_string().contains("stdOutErrPathPrefix"), "{error}");
    }
}
