//! From `-w`, `-e` and `-n` to typed resource names. `-n` also takes a full resource name, as `-o name` prints it; then the
//! other two are not needed. Pure.

use std::str::FromStr;

use trainyard_shared::names::{
    ClusterName, ExperimentName, FileServerName, JobName, NameError, NodeName, WorkspaceName,
};

use crate::args::{ExperimentArg, WorkspaceArg};
use crate::error::Error;

/// Stands for any workspace or experiment in the parent of a list.
const ANY: &str = "-";

fn bad_name(error: &NameError) -> Error {
    Error::usage(error.to_string())
}

/// `given` is a full name, or the last segment for `make`.
fn full_or<N>(given: &str, make: impl FnOnce() -> Result<N, Error>) -> Result<N, Error>
where
    N: FromStr<Err = NameError>,
{
    if given.contains('/') {
        given.parse().map_err(|error| bad_name(&error))
    } else {
        make()
    }
}

/// The workspace of that name.
pub(crate) fn workspace_name(name: &str) -> Result<WorkspaceName, Error> {
    full_or(name, || {
        WorkspaceName::new(name).map_err(|error| bad_name(&error))
    })
}

/// The workspace that `-w` names; required.
pub(crate) fn workspace(arg: &WorkspaceArg) -> Result<WorkspaceName, Error> {
    let Some(name) = &arg.workspace else {
        return Err(Error::usage(
            "which workspace? Pass `-w WORKSPACE` (or set TRAINYARD_WORKSPACE), or the full resource name as `-n`",
        ));
    };
    workspace_name(name)
}

/// The experiment that `-w -e` name; required.
pub(crate) fn experiment(arg: &ExperimentArg) -> Result<ExperimentName, Error> {
    let Some(name) = &arg.experiment else {
        return Err(Error::usage(
            "which experiment? Pass `-e EXPERIMENT` (or set TRAINYARD_EXPERIMENT), or the full resource name as `-n`",
        ));
    };
    experiment_name(&arg.workspace, name)
}

/// The experiment of that name.
pub(crate) fn experiment_name(arg: &WorkspaceArg, name: &str) -> Result<ExperimentName, Error> {
    full_or(name, || {
        ExperimentName::new(&workspace(arg)?, name).map_err(|error| bad_name(&error))
    })
}

/// The cluster of that name.
pub(crate) fn cluster_name(arg: &WorkspaceArg, name: &str) -> Result<ClusterName, Error> {
    full_or(name, || {
        ClusterName::new(&workspace(arg)?, name).map_err(|error| bad_name(&error))
    })
}

/// The file server of that name.
pub(crate) fn file_server_name(arg: &WorkspaceArg, name: &str) -> Result<FileServerName, Error> {
    full_or(name, || {
        FileServerName::new(&workspace(arg)?, name).map_err(|error| bad_name(&error))
    })
}

/// The job of that name.
pub(crate) fn job_name(arg: &ExperimentArg, name: &str) -> Result<JobName, Error> {
    full_or(name, || {
        JobName::new(&experiment(arg)?, name).map_err(|error| bad_name(&error))
    })
}

/// The node of that name.
pub(crate) fn node_name(name: &str) -> Result<NodeName, Error> {
    full_or(name, || {
        NodeName::new(name).map_err(|error| bad_name(&error))
    })
}

/// The parent of a list: the workspace of `-w`, or any.
pub(crate) fn any_workspace(arg: &WorkspaceArg) -> Result<String, Error> {
    match arg.workspace.as_deref() {
        None | Some(ANY) => Ok(format!("workspaces/{ANY}")),
        Some(name) => Ok(workspace_name(name)?.to_string()),
    }
}

/// The parent of a list of jobs: the experiment of `-w -e`, or any of them.
pub(crate) fn any_experiment(arg: &ExperimentArg) -> Result<String, Error> {
    match arg.experiment.as_deref() {
        None | Some(ANY) => Ok(format!(
            "{}/experiments/{ANY}",
            any_workspace(&arg.workspace)?
        )),
        Some(name) => Ok(experiment_name(&arg.workspace, name)?.to_string()),
    }
}

/// Whether a parent stands for several.
pub(crate) fn is_any(parent: &str) -> bool {
    parent.split('/').any(|segment| segment == ANY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arg(workspace: Option<&str>, experiment: Option<&str>) -> ExperimentArg {
        ExperimentArg {
            workspace: WorkspaceArg {
                workspace: workspace.map(Into::into),
            },
            experiment: experiment.map(Into::into),
        }
    }

    #[test]
    fn ids_and_full_names_mean_the_same() {
        let full = "workspaces/w/experiments/e/jobs/j";
        assert_eq!(
            job_name(&arg(Some("w"), Some("e")), "j")
                .unwrap()
                .to_string(),
            full
        );
        assert_eq!(job_name(&arg(None, None), full).unwrap().to_string(), full);
        let with_full_experiment = arg(None, Some("workspaces/w/experiments/e"));
        assert_eq!(
            job_name(&with_full_experiment, "j").unwrap().to_string(),
            full
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = job_name(&arg(Some("w"), None), "j").unwrap_err();
        assert!(error.to_string().contains("`-e EXPERIMENT`"), "{error}");
        assert_eq!(error.exit_status(), 2);
        assert!(
            job_name(&arg(None, Some("e")), "j")
                .unwrap_err()
                .to_string()
                .contains("`-w WORKSPACE`")
        );
    }

    #[test]
    fn lists_reach_over_all_when_nothing_is_named() {
        assert_eq!(
            any_experiment(&arg(None, None)).unwrap(),
            "workspaces/-/experiments/-"
        );
        assert_eq!(
            any_experiment(&arg(Some("w"), None)).unwrap(),
            "workspaces/w/experiments/-"
        );
        assert_eq!(
            any_experiment(&arg(Some("w"), Some("e"))).unwrap(),
            "workspaces/w/experiments/e"
        );
        assert!(any_experiment(&arg(None, Some("e"))).is_err());
    }

    #[test]
    fn a_bad_id_is_wrong_usage() {
        assert_eq!(workspace_name("a b").unwrap_err().exit_status(), 2);
    }
}
