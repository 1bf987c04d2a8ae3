//! Follows jobs of a fake scheduler.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use trainyard_proto::v1::{
    Attempt, AttemptNode, AttemptNodeStatus, AttemptOutcome, AttemptPhase, BatchAiError, Blocker,
    ExecutionInfo, ExecutionState, Job, JobExplanation, JobSpec,
};

use super::{Attempts, Follow, Options};
use crate::api::Api;
use crate::console::Console;
use crate::error::Error;
use crate::job::fake::Fake;
use crate::job::yard::Seen;

const NAME: &str = "workspaces/w/experiments/e/jobs/j";

struct Following {
    stdout: Seen,
    stderr: Seen,
    end: JoinHandle<Result<u8, Error>>,
}

fn follow(api: Api, options: Options) -> Following {
    let (stdout, stderr) = (Seen::default(), Seen::default());
    let console = Console::plain(Box::new(stdout.clone()), Box::new(stderr.clone()));
    let end = tokio::spawn(Follow::new(api, NAME.parse().unwrap(), console, options).run());
    Following {
        stdout,
        stderr,
        end,
    }
}

impl Following {
    async fn result(self) -> (Result<u8, Error>, String, String) {
        let result = timeout(Duration::from_secs(20), self.end)
            .await
            .unwrap()
            .unwrap();
        (result, self.stdout.text(), self.stderr.text())
    }
}

fn job(state: ExecutionState, attempts: Vec<Attempt>) -> Job {
    Job {
        name: NAME.into(),
        execution_state: state.into(),
        spec: Some(JobSpec {
            node_count: 1,
            ..JobSpec::default()
        }),
        attempts,
        ..Job::default()
    }
}

/// An attempt that runs; one node per list of files.
fn running(number: u32, files: &[&[&str]]) -> Attempt {
    let node = |(index, files): (usize, &&[&str])| AttemptNode {
        node: format!("nodes/node-{}", index + 1),
        status: Some(AttemptNodeStatus {
            files: files.iter().map(|file| (*file).to_owned()).collect(),
            ..AttemptNodeStatus::default()
        }),
        ..AttemptNode::default()
    };
    Attempt {
        number,
        phase: AttemptPhase::Run.into(),
        nodes: files.iter().enumerate().map(node).collect(),
        ..Attempt::default()
    }
}

fn ended(mut job: Job, exit_code: i32) -> Job {
    job.execution_state = if exit_code == 0 {
        ExecutionState::Succeeded
    } else {
        ExecutionState::Failed
    }
    .into();
    job.execution_info = Some(ExecutionInfo {
        exit_code: Some(exit_code),
        ..ExecutionInfo::default()
    });
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn one_rank_is_followed_to_its_end() {
    let (fake, api) = Fake::start().await;
    fake.set_job(job(ExecutionState::Queued, vec![]));
    fake.set_explanation(JobExplanation {
        execution_state: ExecutionState::Queued.into(),
        summary: "waits for 1 node; 0 are free".into(),
        blockers: vec![Blocker::default()],
        queue_length: 1,
        queue_position: 1,
        ..JobExplanation::default()
    });
    let following = follow(api, Options::of_a_whole_job());
    following
        .stderr
        .shows("trainyard: queued: waits for 1 node; 0 are free\n")
        .await;
    // A stream breaks in the middle; not a byte is lost or doubled.
    fake.break_once_at(3);
    let now_running = job(
        ExecutionState::Running,
        vec![running(
            1,
            &[&["stdout.txt", "stderr.txt", "execution.log"]],
        )],
    );
    fake.write(1, "stdout.txt", "epoch 1\n");
    fake.write(1, "stderr.txt", "warning\n");
    fake.set_job(now_running.clone());
    following.stdout.shows("epoch 1\n").await;
    following.stderr.shows("warning\n").await;
    fake.write(1, "stdout.txt", "epoch 2, no line feed");
    fake.set_job(ended(now_running, 0));
    sleep(Duration::from_millis(50)).await;
    fake.write(1, "stdout.txt", "!");
    fake.complete(1);
    let (result, stdout, stderr) = following.result().await;
    assert_eq!(result.unwrap(), 0);
    assert_eq!(stdout, "epoch 1\nepoch 2, no line feed!");
    assert!(
        stderr.contains("trainyard: attempt 1 on node-1\n"),
        "{stderr}"
    );
    assert!(stderr.ends_with("trainyard: j succeeded\n"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_are_told_apart_and_the_exit_code_is_the_jobs() {
    let (fake, api) = Fake::start().await;
    let mut now = job(
        ExecutionState::Running,
        vec![running(1, &[&["stdout-0.txt"], &["stdout-1.txt"]])],
    );
    fake.write(1, "stdout-0.txt", "a\nb\n");
    fake.write(1, "stdout-1.txt", "c");
    fake.set_job(now.clone());
    let following = follow(api, Options::of_a_whole_job());
    following.stdout.shows("[0] b\n").await;
    fake.complete(1);
    now.attempts[0].outcome = AttemptOutcome::Failed.into();
    let mut now = ended(now, 3);
    now.execution_info.as_mut().unwrap().errors = vec![BatchAiError {
        code: "JobFailed".into(),
        message: "rank 1 ended with 3".into(),
        details: vec![],
    }];
    fake.set_job(now);
    let (result, stdout, stderr) = following.result().await;
    assert_eq!(result.unwrap(), 3);
    let mut lines: Vec<&str> = stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["[0] a", "[0] b", "[1] c"]);
    assert!(
        stderr.ends_with("trainyard: j failed with exit code 3: JobFailed: rank 1 ended with 3\n"),
        "{stderr}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeued_job_is_followed_into_its_next_attempt() {
    let (fake, api) = Fake::start().await;
    fake.write(1, "stdout.txt", "first\n");
    let first = running(1, &[&["stdout.txt"]]);
    fake.set_job(job(ExecutionState::Running, vec![first.clone()]));
    let following = follow(api, Options::of_a_whole_job());
    following.stdout.shows("first\n").await;
    let lost = Attempt {
        outcome: AttemptOutcome::NodeLost.into(),
        phase: AttemptPhase::Ended.into(),
        ..first
    };
    fake.complete(1);
    fake.set_job(job(ExecutionState::Queued, vec![lost.clone()]));
    following
        .stderr
        .shows("attempt 1 lost a node; the job is queued again")
        .await;
    fake.write(2, "stdout.txt", "second\n");
    fake.complete(2);
    fake.set_job(ended(
        job(
            ExecutionState::Running,
            vec![lost, running(2, &[&["stdout.txt"]])],
        ),
        0,
    ));
    let (result, stdout, _) = following.result().await;
    assert_eq!(result.unwrap(), 0);
    assert_eq!(stdout, "first\nsecond\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_the_latest_attempt_leave_out_the_earlier_ones() {
    let (fake, api) = Fake::start().await;
    for (attempt, text) in [(1, "old\n"), (2, "new\n")] {
        fake.write(attempt, "stdout.txt", text);
        fake.complete(attempt);
    }
    let attempts = vec![
        running(1, &[&["stdout.txt"]]),
        running(2, &[&["stdout.txt"]]),
    ];
    fake.set_job(ended(job(ExecutionState::Running, attempts), 7));
    let (result, stdout, _) = follow(api.clone(), Options::of_logs(Attempts::Latest))
        .result()
        .await;
    // The logs were printed: that the job failed is no failure of this command.
    assert_eq!((result.unwrap(), stdout.as_str()), (0, "new\n"));
    let (_, stdout, _) = follow(api.clone(), Options::of_logs(Attempts::Only(1)))
        .result()
        .await;
    assert_eq!(stdout, "old\n");
    let (result, stdout, _) = follow(api, Options::of_states_alone()).result().await;
    assert_eq!((result.unwrap(), stdout.as_str()), (7, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_no_node_reported_are_found_at_the_end() {
    let (fake, api) = Fake::start().await;
    fake.write(1, "stdout.txt", "last words\n");
    fake.complete(1);
    fake.set_job(ended(
        job(ExecutionState::Running, vec![running(1, &[&[]])]),
        1,
    ));
    let (result, stdout, _) = follow(api, Options::of_a_whole_job()).result().await;
    assert_eq!((result.unwrap(), stdout.as_str()), (1, "last words\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_no_node_reported_are_looked_for_while_the_job_runs() {
    let (fake, api) = Fake::start().await;
    fake.write(1, "stdout-job_prep.txt", "");
    let now = job(
        ExecutionState::Running,
        vec![running(1, &[&["stdout-job_prep.txt"]])],
    );
    fake.set_job(now.clone());
    let following = follow(api, Options::of_a_whole_job());
    following.stderr.shows("running").await;
    fake.write(1, "stdout-0.txt", "here\n");
    following.stdout.shows("here\n").await;
    fake.complete(1);
    fake.set_job(ended(now, 0));
    assert_eq!(following.result().await.0.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_job_says_so() {
    let (fake, api) = Fake::start().await;
    fake.set_job(job(ExecutionState::Queued, vec![]));
    fake.set_explanation(JobExplanation {
        execution_state: ExecutionState::Queued.into(),
        ..JobExplanation::default()
    });
    let following = follow(api, Options::of_states_alone());
    following.stderr.shows("queued: it starts at once").await;
    fake.delete_job();
    let (result, _, _) = following.result().await;
    assert!(result.unwrap_err().to_string().ends_with("was deleted"));
}
