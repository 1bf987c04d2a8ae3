//! `ListJobFiles`: what the nodes of an attempt have in one directory, taken together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tonic::{Code, Status};
use trainyard_proto::v1::node_file_service_client::NodeFileServiceClient;
use trainyard_proto::v1::{
    Attempt, FileInfo, ListJobFilesRequest, ListJobFilesResponse, ListNodeFilesRequest,
};

use super::locate::{self, Place};
use super::{Wanted, list_command};
use crate::context::Context;
use crate::status;

/// Nodes asked at the same time.
const AT_ONCE: usize = 32;
/// How long one node may take.
const NODE_WAIT: Duration = Duration::from_secs(5);

/// Lists a directory. The job must exist in the state by now.
pub async fn list(
    context: &Arc<Context>,
    request: &ListJobFilesRequest,
) -> Result<ListJobFilesResponse, Status> {
    // Any name stands for the file, which a list does not have.
    let wanted = Wanted::check(&request.output_directory_id, &request.directory, "-")?;
    let (uid, attempt, nodes) = {
        let state = context.state();
        let job = state
            .job(&request.name)
            .ok_or_else(|| status::not_found(&request.name))?;
        let attempt = locate::attempt(&job, request.attempt)
            .map_err(|place| refused(&request.name, place))?;
        let all: Vec<_> = attempt.nodes.iter().collect();
        (
            job.uid.clone(),
            attempt.clone(),
            locate::reachable(&state, &all),
        )
    };
    if nodes.is_empty() {
        let number = attempt.number;
        return Err(status::precondition(
            "NODE_LOST",
            &request.name,
            format!("every node of attempt {number} of {} is lost", request.name),
            [("attempt", number.to_string())],
        ));
    }
    let asked = ListNodeFilesRequest {
        uid,
        attempt: attempt.number,
        output_directory_id: wanted.output_directory_id.clone(),
        directory: wanted.directory.clone(),
    };
    let answers = ask(context, nodes, &asked).await;
    merge(&request.name, &attempt, &wanted, answers)
}

type Answer = (String, Result<Vec<FileInfo>, Status>);

/// Asks all nodes, some at a time.
async fn ask(
    context: &Arc<Context>,
    nodes: Vec<(String, String)>,
    request: &ListNodeFilesRequest,
) -> Vec<Answer> {
    let mut waiting = nodes.into_iter();
    let mut running = JoinSet::new();
    let mut answers = Vec::new();
    loop {
        while running.len() < AT_ONCE {
            let Some((node, address)) = waiting.next() else {
                break;
            };
            let (context, request) = (Arc::clone(context), request.clone());
            running.spawn(async move {
                let answer =
                    tokio::time::timeout(NODE_WAIT, one(&context, &address, request)).await;
                let answer = answer.unwrap_or_else(|_| {
                    Err(Status::deadline_exceeded("no answer within 5 seconds"))
                });
                (node, answer)
            });
        }
        match running.join_next().await {
            Some(Ok(answer)) => answers.push(answer),
            Some(Err(error)) => tracing::error!(%error, "listing files broke down (a bug)"),
            None => break,
        }
    }
    answers.sort_by(|a, b| a.0.cmp(&b.0));
    answers
}

async fn one(
    context: &Context,
    address: &str,
    request: ListNodeFilesRequest,
) -> Result<Vec<FileInfo>, Status> {
    let channel = context.channels.agent(address)?;
    let response = NodeFileServiceClient::new(channel)
        .list_node_files(request)
        .await?;
    Ok(response.into_inner().files)
}

/// One list of all answers. On a share every node sees the same file: the entry of the node that writes it counts, else
/// the newest.
fn merge(
    name: &str,
    attempt: &Attempt,
    wanted: &Wanted,
    answers: Vec<Answer>,
) -> Result<ListJobFilesResponse, Status> {
    let writes = |file: &FileInfo| {
        attempt.nodes.iter().any(|node| {
            node.node == file.node
                && node
                    .status
                    .as_ref()
                    .is_some_and(|s| s.files.contains(&file.name))
        })
    };
    let mut files: BTreeMap<String, FileInfo> = BTreeMap::new();
    let mut silent: Vec<String> = Vec::new();
    let mut found = false;
    for (node, answer) in answers {
        match answer {
            Ok(listed) => {
                found = true;
                for mut file in listed {
                    file.node.clone_from(&node);
                    let better = files.get(&file.name).is_none_or(|known| {
                        (writes(&file), file.modified_seconds)
                            > (writes(known), known.modified_seconds)
                    });
                    if better {
                        files.insert(file.name.clone(), file);
                    }
                }
            }
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => silent.push(format!("{node}: {}", status.message())),
        }
    }
    match (found, silent.is_empty()) {
        (true, _) => Ok(ListJobFilesResponse {
            files: files.into_values().collect(),
        }),
        (false, false) => Err(status::unavailable("NODE_UNREACHABLE", silent.join("; "))),
        (false, true) => Err(Status::not_found(missing(name, attempt.number, wanted))),
    }
}

/// Says that no node has the directory. Only the one above can be listed instead.
fn missing(name: &str, attempt: u32, wanted: &Wanted) -> String {
    let id = &wanted.output_directory_id;
    if wanted.directory.is_empty() {
        return format!(
            "attempt {attempt} of {name} has no directory {id}, or nothing was written to it yet"
        );
    }
    format!(
        "attempt {attempt} of {name} has no directory {} in {id}; {} shows what that has",
        wanted.directory,
        list_command(name, attempt, wanted)
    )
}

fn refused(name: &str, place: Place) -> Status {
    match place {
        Place::NotYet(text) => Status::not_found(text),
        Place::Never(status) => status,
        Place::At(_) => status::not_found(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainyard_proto::v1::{AttemptNode, AttemptNodeStatus};

    fn info(name: &str, modified_seconds: i64) -> FileInfo {
        FileInfo {
            name: name.into(),
            modified_seconds,
            ..FileInfo::default()
        }
    }

    #[test]
    fn the_writer_of_a_file_counts_before_the_newest_view_of_it() {
        let attempt = Attempt {
            number: 1,
            nodes: vec![AttemptNode {
                node: "nodes/a".into(),
                status: Some(AttemptNodeStatus {
                    files: vec!["stdout.txt".into()],
                    ..AttemptNodeStatus::default()
                }),
                ..AttemptNode::default()
            }],
            ..Attempt::default()
        };
        let answers = vec![
            (
                "nodes/a".to_owned(),
                Ok(vec![info("stdout.txt", 5), info("x", 1)]),
            ),
            (
                "nodes/b".to_owned(),
                Ok(vec![info("stdout.txt", 9), info("x", 2)]),
            ),
            ("nodes/c".to_owned(), Err(Status::unavailable("gone"))),
        ];
        let wanted = Wanted::check("MODEL", "deep", "-").unwrap();
        let files = merge("j", &attempt, &wanted, answers).unwrap().files;
        let places: Vec<_> = files
            .iter()
            .map(|f| (f.name.as_str(), f.node.as_str()))
            .collect();
        assert_eq!(places, [("stdout.txt", "nodes/a"), ("x", "nodes/b")]);
        let none = vec![("nodes/a".to_owned(), Err(Status::not_found("x")))];
        let name = "workspaces/w/experiments/e/jobs/j";
        let error = merge(name, &attempt, &wanted, none).unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        let way_out = "trainyard job file list -w w -e e -n j --attempt 1 -d MODEL shows";
        assert!(error.message().contains(way_out), "{error}");
    }
}
