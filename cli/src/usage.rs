//! `trainyard usage`: what is used of the limits, the limits themselves, and accounting over a period.

use clap::{Args, Subcommand, ValueEnum};
use prost_types::{FieldMask, Timestamp};
use serde_json::json;
use trainyard_proto::v1::{
    GetQuotaRequest, ListUsagesRequest, Quota, ReportUsageRequest, ReportUsageResponse,
    UpdateQuotaRequest, Usage, UsageGrouping,
};
use trainyard_shared::names::QuotaName;
use trainyard_shared::{duration, validate};

use crate::args::{Format, WorkspaceArg};
use crate::console::note;
use crate::context::Context;
use crate::error::Error;
use crate::output::write;
use crate::scope::workspace_name;
use crate::table::{Details, Table};
use crate::text::time;

/// See the head of this file.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What is used now of each limit: of a workspace, of each (`-w -`), or in total
    List(WorkspaceArg),
    /// GPU-hours and node-hours of a period
    Report(ReportArgs),
    /// Limits
    #[command(subcommand)]
    Quota(QuotaCommand),
}

/// Verbs of limits.
#[derive(Debug, Subcommand)]
pub(crate) enum QuotaCommand {
    /// Show the limits of a workspace, or of the whole group
    Show(WorkspaceArg),
    /// Set limits of a workspace, or of the whole group; `none` lifts one
    Set(SetArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    workspace: WorkspaceArg,
    /// What the rows stand for
    #[arg(long, value_enum, default_value_t)]
    by: By,
    /// Begin, such as 2026-11-01 or 2026-11-01T12:00:00Z [default: as far back as is known]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<Timestamp>,
    /// End, excluded [default: now]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Option<Timestamp>,
    /// Print comma-separated values
    #[arg(long)]
    csv: bool,
}

/// See [`ReportArgs`].
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum By {
    // One row per workspace.
    #[default]
    Workspace,
    // One row per experiment.
    Experiment,
    // One row per job.
    Job,
    // One row per user.
    User,
}

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    workspace: WorkspaceArg,
    /// Clusters
    #[arg(long, value_name = "COUNT|none", value_parser = limit::<u32>)]
    clusters: Option<Limit<u32>>,
    /// Nodes of clusters, by their targets or maxima
    #[arg(long, value_name = "COUNT|none", value_parser = limit::<u32>)]
    nodes: Option<Limit<u32>>,
    /// GPUs that jobs hold at one time
    #[arg(long, value_name = "COUNT|none", value_parser = limit::<u32>)]
    gpus: Option<Limit<u32>>,
    /// Jobs that run at one time
    #[arg(long, value_name = "COUNT|none", value_parser = limit::<u32>)]
    running_jobs: Option<Limit<u32>>,
    /// Jobs that wait
    #[arg(long, value_name = "COUNT|none", value_parser = limit::<u32>)]
    queued_jobs: Option<Limit<u32>>,
    /// GPU-hours of one period
    #[arg(long, value_name = "HOURS|none", value_parser = limit::<f64>)]
    gpu_hours: Option<Limit<f64>>,
    /// Length of the period, such as P30D
    #[arg(long, value_name = "DURATION", value_parser = length)]
    period: Option<prost_types::Duration>,
}

/// A limit that a flag sets (or lifts, when it is `None`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Limit<T>(Option<T>);

fn limit<T: std::str::FromStr>(text: &str) -> Result<Limit<T>, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(Limit(None));
    }
    text.parse()
        .map(|limit| Limit(Some(limit)))
        .map_err(|_| "write a number, or none for no limit".to_owned())
}

fn length(text: &str) -> Result<prost_types::Duration, String> {
    duration::parse(text).map_err(|error| error.to_string())
}

/// A day or a moment in UTC.
fn moment(text: &str) -> Result<Timestamp, String> {
    let full = if text.contains('T') {
        text.to_owned()
    } else {
        format!("{text}T00:00:00Z")
    };
    full.parse().map_err(|_| {
        "write a day (2026-11-01) or a moment (2026-11-01T12:00:00Z) in UTC".to_owned()
    })
}

/// Does what the command says.
pub(crate) async fn run(context: &Context, command: Command) -> Result<u8, Error> {
    match command {
        Command::List(args) => {
            let request = ListUsagesRequest {
                parent: match args.workspace.as_deref() {
                    None => String::new(),
                    Some("-") => "workspaces/-".to_owned(),
                    Some(name) => workspace_name(name)?.to_string(),
                },
            };
            let usages = context.api()?.list_usages(request).await?.usages;
            match context.output().format() {
                Format::Table => write(&usages_table(&usages))?,
                Format::Name => {
                    write(
                        &usages
                            .iter()
                            .map(|u| format!("{}\n", u.name))
                            .collect::<String>(),
                    )?;
                }
                Format::Json | Format::Yaml => context.output().value(&json!(
                    usages
                        .iter()
                        .map(trainyard_shared::json::to_json)
                        .collect::<Vec<_>>()
                ))?,
            }
        }
        Command::Report(args) => report(context, args).await?,
        Command::Quota(QuotaCommand::Show(args)) => {
            let name = quota_name(&args)?.to_string();
            let quota = context.api()?.get_quota(GetQuotaRequest { name }).await?;
            context.output().one(&quota, quota_details)?;
        }
        Command::Quota(QuotaCommand::Set(args)) => {
            let (quota, paths) = wanted(&args)?;
            let violations = validate::quota(&quota);
            if !violations.is_empty() {
                return Err(Error::violations(&violations));
            }
            let request = UpdateQuotaRequest {
                quota: Some(quota),
                update_mask: Some(FieldMask { paths }),
            };
            let updated = context.api()?.update_quota(request).await?;
            context.output().one(&updated, quota_details)?;
        }
    }
    Ok(0)
}

fn quota_name(arg: &WorkspaceArg) -> Result<QuotaName, Error> {
    match arg.workspace.as_deref() {
        None => Ok(QuotaName::total()),
        Some(name) => format!("{}/quota", workspace_name(name)?)
            .parse()
            .map_err(|error: trainyard_shared::names::NameError| Error::usage(error.to_string())),
    }
}

/// The limits that flags name, and their paths.
fn wanted(args: &SetArgs) -> Result<(Quota, Vec<String>), Error> {
    let mut quota = Quota {
        name: quota_name(&args.workspace)?.to_string(),
        ..Quota::default()
    };
    let mut paths = Vec::new();
    let mut named = |path: &str, is_set: bool| {
        if is_set {
            paths.push(path.to_owned());
        }
    };
    named("clusters", args.clusters.is_some());
    named("nodes", args.nodes.is_some());
    named("gpus", args.gpus.is_some());
    named("running_jobs", args.running_jobs.is_some());
    named("queued_jobs", args.queued_jobs.is_some());
    named("gpu_hours", args.gpu_hours.is_some());
    named("gpu_hours_period", args.period.is_some());
    if paths.is_empty() {
        return Err(Error::usage(
            "nothing to set: pass --clusters, --nodes, --gpus, --running-jobs, --queued-jobs, --gpu-hours or --period",
        ));
    }
    quota.clusters = args.clusters.and_then(|limit| limit.0);
    quota.nodes = args.nodes.and_then(|limit| limit.0);
    quota.gpus = args.gpus.and_then(|limit| limit.0);
    quota.running_jobs = args.running_jobs.and_then(|limit| limit.0);
    quota.queued_jobs = args.queued_jobs.and_then(|limit| limit.0);
    quota.gpu_hours = args.gpu_hours.and_then(|limit| limit.0);
    quota.gpu_hours_period = args.period;
    Ok((quota, paths))
}

async fn report(context: &Context, args: ReportArgs) -> Result<(), Error> {
    let group_by = match args.by {
        By::Workspace => UsageGrouping::Workspace,
        By::Experiment => UsageGrouping::Experiment,
        By::Job => UsageGrouping::Job,
        By::User => UsageGrouping::User,
    };
    let parent = match args.workspace.workspace.as_deref() {
        None | Some("-") => String::new(),
        Some(name) => workspace_name(name)?.to_string(),
    };
    let request = ReportUsageRequest {
        start_time: args.from,
        end_time: args.to,
        group_by: group_by.into(),
        parent,
    };
    let report = context.api()?.report_usage(request).await?;
    if let Some(since) = &report.complete_since {
        note(&format!(
            "records that ended before {} were dropped; the report lacks them",
            time(Some(since))
        ));
    }
    if args.csv {
        return write(&csv(&report));
    }
    match context.output().format() {
        Format::Table => write(&report_table(&report)),
        Format::Name => {
            let names = report.rows.iter().map(|row| format!("{}\n", row.name));
            write(&names.collect::<String>())
        }
        Format::Json | Format::Yaml => context
            .output()
            .value(&trainyard_shared::json::to_json(&report)),
    }
}

fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn usages_table(usages: &[Usage]) -> String {
    let several = usages.iter().any(|usage| !usage.workspace.is_empty());
    let mut table = Table::new(&["WORKSPACE", "NAME", ">USED", ">LIMIT", "UNIT"]);
    for usage in usages {
        table.row([
            if several {
                usage.workspace.trim_start_matches("workspaces/").to_owned()
            } else {
                "(total)".to_owned()
            },
            usage.name.clone(),
            number(usage.current_value),
            usage.limit.map_or_else(String::new, number),
            usage.unit.clone(),
        ]);
    }
    table.render()
}

fn report_table(report: &ReportUsageResponse) -> String {
    let mut table = Table::new(&["NAME", ">GPU-HOURS", ">NODE-HOURS", ">ATTEMPTS"]);
    for row in &report.rows {
        table.row([
            if row.name.is_empty() {
                "(others)".to_owned()
            } else {
                row.name.clone()
            },
            number(row.gpu_hours),
            number(row.node_hours),
            row.attempts.to_string(),
        ]);
    }
    table.render()
}

/// As RFC 4180 has it. Names hold no comma and no quote.
fn csv(report: &ReportUsageResponse) -> String {
    let mut text = "name,gpu_hours,node_hours,attempts\n".to_owned();
    for row in &report.rows {
        text.push_str(&format!(
            "{},{},{},{}\n",
            row.name,
            number(row.gpu_hours),
            number(row.node_hours),
            row.attempts
        ));
    }
    text
}

fn quota_details(quota: &Quota) -> String {
    let count = |limit: Option<u32>| limit.map_or_else(|| "no limit".to_owned(), |n| n.to_string());
    let mut details = Details::default();
    details
        .add("Name", &quota.name)
        .add("Clusters", count(quota.clusters))
        .add("Nodes", count(quota.nodes))
        .add("GPUs", count(quota.gpus))
        .add("Running jobs", count(quota.running_jobs))
        .add("Queued jobs", count(quota.queued_jobs))
        .add(
            "GPU-hours",
            quota
                .gpu_hours
                .map_or_else(|| "no limit".to_owned(), number),
        )
        .add(
            "Period",
            quota
                .gpu_hours_period
                .as_ref()
                .map_or_else(|| "P30D".to_owned(), duration::format),
        );
    details.render()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use trainyard_proto::v1::UsageRow;

    use super::*;
    use crate::args::{Arguments, Noun};

    fn set_args(line: &str) -> SetArgs {
        let line = format!("trainyard usage quota set {line}");
        match Arguments::try_parse_from(line.split_whitespace())
            .unwrap()
            .noun
        {
            Noun::Usage(Command::Quota(QuotaCommand::Set(args))) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_limits_that_are_named_change_and_none_lifts() {
        let (quota, paths) = wanted(&set_args("-w w --gpus 8 --nodes none")).unwrap();
        assert_eq!(quota.name, "workspaces/w/quota");
        assert_eq!(paths, ["nodes", "gpus"]);
        assert_eq!((quota.gpus, quota.nodes), (Some(8), None));
        assert!(wanted(&set_args("")).is_err(), "nothing to set");
        assert_eq!(wanted(&set_args("--gpus 1")).unwrap().0.name, "quota");
    }

    #[test]
    fn reports_print_as_table_and_csv() {
        let report = ReportUsageResponse {
            rows: vec![UsageRow {
                name: "workspaces/w".into(),
                gpu_hours: 1.5,
                node_hours: 0.25,
                attempts: 2,
            }],
            ..ReportUsageResponse::default()
        };
        assert_eq!(
            csv(&report),
            "name,gpu_hours,node_hours,attempts\nworkspaces/w,1.5,0.25,2\n"
        );
        assert!(report_table(&report).contains("1.5"));
    }

    #[test]
    fn days_and_moments_are_both_understood() {
        assert_eq!(moment("1970-01-02").unwrap().seconds, 86_400);
        assert_eq!(moment("1970-01-01T01:00:00Z").unwrap().seconds, 3600);
        assert!(moment("yesterday").is_err());
    }
}
