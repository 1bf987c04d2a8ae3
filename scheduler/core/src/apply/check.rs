//! Dry runs: everything that a create would be refused for, and what it would make. Changes nothing.
//!
//! It shares the checking half of each create, so that the two can never disagree.

use trainyard_proto::store::v1::{Command, command::Kind};

use super::arrays::NewArray;
use super::{Applied, Context};
use crate::outcome::{Refusal, RefusalKind, Reply};
use crate::state::State;

impl State {
    /// What applying this create now would answer. Other commands are refused.
    pub fn check(&self, command: &Command) -> Applied {
        let context = &Context::new(self.index.saturating_add(1), command);
        Ok(match command.kind.as_ref() {
            Some(Kind::CreateWorkspace(c)) => self
                .prepare_workspace(context, c)?
                .into_reply(Reply::Workspace),
            Some(Kind::CreateCluster(c)) => self
                .prepare_cluster(context, c)?
                .into_reply(|cluster| Reply::Cluster(Box::new(cluster))),
            Some(Kind::CreateFileServer(c)) => self
                .prepare_file_server(context, c)?
                .into_reply(|server| Reply::FileServer(Box::new(server))),
            Some(Kind::CreateExperiment(c)) => self
                .prepare_experiment(context, c)?
                .into_reply(Reply::Experiment),
            Some(Kind::CreateJob(c)) => self
                .prepare_job(context, c)?
                .into_reply(|job| Reply::Job(Box::new(job))),
            Some(Kind::CreateJobArray(c)) => self
                .prepare_job_array(context, c)?
                .into_reply(NewArray::into_reply),
            _ => {
                return Err(Refusal::new(
                    RefusalKind::InvalidArgument,
                    "validate_only",
                    "only the creation of a resource can be checked without being done",
                ));
            }
        })
    }
}
