//! `list`: how long a page of a long list takes, what the jobs cost in memory, and whether lists hold up writes.
//!
//! Every page of every pass is checked: a pass that misses a job or shows one twice is an error, not a number.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use trainyard_shared::client::Client;

use crate::calls::{self, ListOf};
use crate::error::{BenchError, Context, Result};
use crate::fill::{self, JobsArgs};
use crate::rig::{Rig, RigArgs, Target};
use crate::stats::{Samples, round};
use crate::usage::resident_mib;

/// Pages per kind of list that is not read to its end.
const PAGES: usize = 100;
/// Creates that are measured alone, and again beside lists.
const CREATES: usize = 500;

/// Flags of `list`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    jobs: JobsArgs,
    /// Passes over the whole list
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
    passes: u8,
    /// Jobs of a page
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1000))]
    page_size: u32,
}

/// Runs the benchmark.
pub(crate) async fn run(rig_args: &RigArgs, args: &ListArgs) -> Result<Value> {
    let rig = Rig::start(rig_args, 0, 0).await?;
    let before = leader_mib(&rig).await?;
    let jobs = args.jobs.jobs;
    fill::fill(&rig, jobs).await?;
    let filled = leader_mib(&rig).await?;
    let client = rig.clients(1, Target::Leader).await?.remove(0);

    eprintln!("reading all pages {} times", args.passes);
    let mut pages = Vec::new();
    let mut passes = Vec::new();
    for _ in 0..args.passes {
        let begun = Instant::now();
        pages.extend(read_all(&client, jobs, args.page_size).await?);
        passes.push(begun.elapsed());
    }
    let newest = some_pages(&client, "", "creation_time desc").await?;
    let filtered = some_pages(&client, "state = queued", "").await?;

    eprintln!("creating jobs alone, then beside lists");
    let writer = rig.clients(1, Target::Leader).await?.remove(0);
    let alone = create(&writer, "alone").await?;
    let beside = create_beside_lists(&client, &writer, args.page_size).await?;
    let after = leader_mib(&rig).await?;

    let pages: Samples = pages.into_iter().collect();
    let passes: Samples = passes.into_iter().collect();
    Ok(json!({
        "jobs": jobs,
        "page_size": args.page_size,
        "page_p50_ms": pages.percentile_ms(50),
        "page_p99_ms": pages.percentile_ms(99),
        "page_max_ms": pages.max_ms(),
        "pages": pages.len(),
        "whole_list_p50_ms": passes.percentile_ms(50),
        "newest_first_page_p50_ms": newest.percentile_ms(50),
        "newest_first_page_p99_ms": newest.percentile_ms(99),
        "filtered_page_p50_ms": filtered.percentile_ms(50),
        "filtered_page_p99_ms": filtered.percentile_ms(99),
        "create_alone_p50_ms": alone.percentile_ms(50),
        "create_alone_p99_ms": alone.percentile_ms(99),
        "create_beside_lists_p50_ms": beside.percentile_ms(50),
        "create_beside_lists_p99_ms": beside.percentile_ms(99),
        "rss_mib": after,
        "rss_before_mib": before,
        "rss_filled_mib": filled,
        "kib_per_job": round((filled - before) * 1024.0 / f64::from(jobs)),
        "schedulers": rig_args.schedulers,
        "file_system": rig.file_system(),
    }))
}

/// Resident memory of the leader.
async fn leader_mib(rig: &Rig) -> Result<f64> {
    let leader = rig.leader().await?;
    let pids = rig.member_pids()?;
    let pid = pids
        .get(leader)
        .ok_or_else(|| BenchError::new("the leader has no process"))?;
    resident_mib(*pid).map(round)
}

/// Reads the whole list, and checks that it shows every job once. Returns the time of each page.
async fn read_all(client: &Client, jobs: u32, page_size: u32) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    let mut names = BTreeSet::new();
    let mut shown = 0;
    let mut list = ListOf::new(page_size, "", "");
    while let Some((page, time)) = timed_page(client, &mut list).await? {
        times.push(time);
        shown += page.len();
        names.extend(page);
    }
    let wanted = usize::try_from(jobs).cannot("count the jobs")?;
    if names.len() != wanted || shown != wanted {
        return Err(BenchError::new(format!(
            "the list showed {shown} jobs, {} of them different, instead of {wanted}",
            names.len()
        )));
    }
    Ok(times)
}

/// The times of the first pages of a list, again and again until there are enough.
async fn some_pages(client: &Client, filter: &str, order_by: &str) -> Result<Samples> {
    let mut times = Vec::new();
    while times.len() < PAGES {
        let mut list = ListOf::new(100, filter, order_by);
        let before = times.len();
        while let Some((page, time)) = timed_page(client, &mut list).await? {
            if page.is_empty() {
                return Err(BenchError::new(format!("no job matches {filter:?}")));
            }
            times.push(time);
            if times.len() - before == PAGES / 10 {
                break;
            }
        }
    }
    Ok(times.into_iter().collect())
}

async fn timed_page(client: &Client, list: &mut ListOf) -> Result<Option<(Vec<String>, Duration)>> {
    let begun = Instant::now();
    let page = list.next(client).await?;
    Ok(page.map(|names| (names, begun.elapsed())))
}

/// Creates jobs one after another.
async fn create(client: &Client, prefix: &str) -> Result<Samples> {
    let spec = calls::empty_job();
    let mut times = Vec::new();
    for number in 0..CREATES {
        let begun = Instant::now();
        calls::create_job(client, format!("{prefix}-{number}"), &spec)
            .await
            .map_err(|status| BenchError::new(format!("cannot create a job: {status}")))?;
        times.push(begun.elapsed());
    }
    Ok(times.into_iter().collect())
}

/// The same while another client reads the list without pause.
async fn create_beside_lists(reader: &Client, writer: &Client, page_size: u32) -> Result<Samples> {
    let reading = async {
        loop {
            let mut list = ListOf::new(page_size, "", "");
            while list.next(reader).await?.is_some() {}
        }
    };
    tokio::select! {
        created = create(writer, "beside") => created,
        failed = reading => failed,
    }
}
