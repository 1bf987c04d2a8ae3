//! Typed resource names and the rules for their parts.
//!
//! A name is kept as one string, exactly as it travels in the protocol, so that names sort the way the stored
//! records do. This module must never look anything up: a well-formed name says nothing about existence.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

/// Longest id of a workspace, cluster, file server, experiment or job, in bytes.
pub const MAX_ID_LEN: usize = 64;
/// Longest id of a node, in bytes: the longest host name that DNS allows.
pub const MAX_NODE_ID_LEN: usize = 253;

/// Why a string is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A part of the name breaks the rule for ids.
    #[error("{kind} id {id:?}: {rule}")]
    Id {
        /// What is named: `job`.
        kind: &'static str,
        /// The offending id, shortened if it is very long.
        id: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// The name has another shape.
    #[error("{given:?} is not the name of a {kind}; write {pattern}")]
    Shape {
        /// What should be named: `job`.
        kind: &'static str,
        /// The offending name, shortened if it is very long.
        given: String,
        /// What the name looks like: `workspaces/WORKSPACE`.
        pattern: &'static str,
    },
}

const ID_RULE: &str = "use 1 to 64 letters (a-z, A-Z), digits, `-` and `_`";
const DASH_RULE: &str = "`-` alone stands for any; choose a longer id";
const NODE_ID_RULE: &str =
    "use 1 to 253 letters (a-z, A-Z), digits, `-`, `_` and `.`, not beginning with `.`";
const MEMBER_ID_RULE: &str = "use a whole number from 1, without leading zeros";

/// What an over-long input looks like in a message.
fn shorten(text: &str) -> String {
    const LIMIT: usize = 80;
    if text.chars().count() <= LIMIT {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(LIMIT).collect();
    short.push('…');
    short
}

fn id_error(kind: &'static str, id: &str, rule: &'static str) -> NameError {
    NameError::Id {
        kind,
        id: shorten(id),
        rule,
    }
}

/// Checks the id of a workspace, cluster, file server, experiment or job: 1 to 64 of `[A-Za-z0-9_-]`, and not `-`
/// alone, which stands for any in the parent of a list.
pub fn check_id(kind: &'static str, id: &str) -> Result<(), NameError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if id.is_empty() || id.len() > MAX_ID_LEN || !id.bytes().all(allowed) {
        return Err(id_error(kind, id, ID_RULE));
    }
    if id == "-" {
        return Err(id_error(kind, id, DASH_RULE));
    }
    Ok(())
}

/// Checks the id of a node: a host name, 1 to 253 of `[A-Za-z0-9_.-]`, not beginning with `.`.
pub fn check_node_id(id: &str) -> Result<(), NameError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if id.is_empty()
        || id.len() > MAX_NODE_ID_LEN
        || id.starts_with('.')
        || !id.bytes().all(allowed)
    {
        return Err(id_error("node", id, NODE_ID_RULE));
    }
    if id == "-" {
        return Err(id_error("node", id, DASH_RULE));
    }
    Ok(())
}

/// The parts of `name` if it is `KEY1/ID1/KEY2/ID2...` with just these keys.
fn split<'a, const N: usize>(name: &'a str, keys: [&str; N]) -> Option<[&'a str; N]> {
    let mut parts = name.split('/');
    let mut ids = [""; N];
    for (key, id) in keys.iter().zip(ids.iter_mut()) {
        if parts.next()? != *key {
            return None;
        }
        *id = parts.next()?;
    }
    parts.next().is_none().then_some(ids)
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $pattern:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            #[doc = concat!("What a name of this kind looks like: `", $pattern, "`.")]
            pub const PATTERN: &'static str = $pattern;

            /// The full resource name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            fn shape_error(given: &str) -> NameError {
                NameError::Shape { kind: $kind, given: shorten(given), pattern: $pattern }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        // Ord, Eq and Hash of the newtype are those of the string, as Borrow demands.
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl TryFrom<&str> for $type {
            type Error = NameError;

            fn try_from(name: &str) -> Result<Self, NameError> {
                name.parse()
            }
        }
    };
}

name_type!(
    /// `workspaces/WORKSPACE`.
    WorkspaceName, "workspace", "workspaces/WORKSPACE"
);
name_type!(
    /// `workspaces/WORKSPACE/clusters/CLUSTER`.
    ClusterName, "cluster", "workspaces/WORKSPACE/clusters/CLUSTER"
);
name_type!(
    /// `workspaces/WORKSPACE/fileServers/FILE_SERVER`.
    FileServerName, "file server", "workspaces/WORKSPACE/fileServers/FILE_SERVER"
);
name_type!(
    /// `workspaces/WORKSPACE/experiments/EXPERIMENT`.
    ExperimentName, "experiment", "workspaces/WORKSPACE/experiments/EXPERIMENT"
);
name_type!(
    /// `workspaces/WORKSPACE/experiments/EXPERIMENT/jobs/JOB`.
    JobName, "job", "workspaces/WORKSPACE/experiments/EXPERIMENT/jobs/JOB"
);
name_type!(
    /// `nodes/NODE`. A node belongs to no workspace.
    NodeName, "node", "nodes/NODE"
);
name_type!(
    /// `nodeClasses/CLASS`. A class belongs to no workspace.
    NodeClassName, "node class", "nodeClasses/CLASS"
);
name_type!(
    /// `workspaces/WORKSPACE/quota`, or `quota` for the whole group.
    QuotaName, "quota", "workspaces/WORKSPACE/quota, or quota for all"
);
name_type!(
    /// `members/ID`, a scheduler of the replication group.
    MemberName, "member", "members/ID"
);

impl WorkspaceName {
    /// The workspace of that id.
    pub fn new(id: &str) -> Result<Self, NameError> {
        check_id("workspace", id)?;
        Ok(Self(format!("workspaces/{id}")))
    }

    /// The last segment.
    #[must_use]
    pub fn id(&self) -> &str {
        last_segment(&self.0)
    }
}

impl FromStr for WorkspaceName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let [id] = split(name, ["workspaces"]).ok_or_else(|| Self::shape_error(name))?;
        Self::new(id)
    }
}

macro_rules! child_of_workspace {
    ($type:ident, $kind:literal, $collection:literal) => {
        impl $type {
            #[doc = concat!("The ", $kind, " of that id in `workspace`.")]
            pub fn new(workspace: &WorkspaceName, id: &str) -> Result<Self, NameError> {
                check_id($kind, id)?;
                Ok(Self(format!(concat!("{}/", $collection, "/{}"), workspace, id)))
            }

            #[doc = concat!("What a reference inside `workspace` means: the bare id of a ", $kind, " there, a full ")]
            /// resource name, or the resource id of an Azure subscription, of which the part from `workspaces/` counts.
            pub fn resolve(workspace: &WorkspaceName, reference: &str) -> Result<Self, NameError> {
                if reference.contains('/') {
                    strip_azure(reference).parse()
                } else {
                    Self::new(workspace, reference)
                }
            }

            /// The last segment.
            #[must_use]
            pub fn id(&self) -> &str {
                last_segment(&self.0)
            }

            /// The workspace that holds it.
            #[must_use]
            pub fn workspace(&self) -> WorkspaceName {
                WorkspaceName(first_segments(&self.0, 2).to_owned())
            }

            /// The resource that holds it: the workspace.
            #[must_use]
            pub fn parent(&self) -> WorkspaceName {
                self.workspace()
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                let [workspace, id] = split(name, ["workspaces", $collection])
                    .ok_or_else(|| Self::shape_error(name))?;
                Self::new(&WorkspaceName::new(workspace)?, id)
            }
        }
    };
}

child_of_workspace!(ClusterName, "cluster", "clusters");
child_of_workspace!(FileServerName, "file server", "fileServers");
child_of_workspace!(ExperimentName, "experiment", "experiments");

impl JobName {
    /// The job of that id in `experiment`.
    pub fn new(experiment: &ExperimentName, id: &str) -> Result<Self, NameError> {
        check_id("job", id)?;
        Ok(Self(format!("{experiment}/jobs/{id}")))
    }

    /// What a reference inside `experiment` means: a resource name, or the bare id of a job of that experiment.
    pub fn resolve(experiment: &ExperimentName, reference: &str) -> Result<Self, NameError> {
        if reference.contains('/') {
            reference.parse()
        } else {
            Self::new(experiment, reference)
        }
    }

    /// The last segment.
    #[must_use]
    pub fn id(&self) -> &str {
        last_segment(&self.0)
    }

    /// The workspace that holds the experiment.
    #[must_use]
    pub fn workspace(&self) -> WorkspaceName {
        WorkspaceName(first_segments(&self.0, 2).to_owned())
    }

    /// The experiment that holds the job.
    #[must_use]
    pub fn experiment(&self) -> ExperimentName {
        ExperimentName(first_segments(&self.0, 4).to_owned())
    }

    /// The resource that holds the job: the experiment.
    #[must_use]
    pub fn parent(&self) -> ExperimentName {
        self.experiment()
    }
}

impl FromStr for JobName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let [workspace, experiment, id] = split(name, ["workspaces", "experiments", "jobs"])
            .ok_or_else(|| Self::shape_error(name))?;
        Self::new(
            &ExperimentName::new(&WorkspaceName::new(workspace)?, experiment)?,
            id,
        )
    }
}

impl NodeName {
    /// The node of that id.
    pub fn new(id: &str) -> Result<Self, NameError> {
        check_node_id(id)?;
        Ok(Self(format!("nodes/{id}")))
    }

    /// The last segment.
    #[must_use]
    pub fn id(&self) -> &str {
        last_segment(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let [id] = split(name, ["nodes"]).ok_or_else(|| Self::shape_error(name))?;
        Self::new(id)
    }
}

impl NodeClassName {
    /// The class of that id.
    pub fn new(id: &str) -> Result<Self, NameError> {
        check_id("node class", id)?;
        Ok(Self(format!("nodeClasses/{id}")))
    }

    /// The last segment.
    #[must_use]
    pub fn id(&self) -> &str {
        last_segment(&self.0)
    }
}

impl FromStr for NodeClassName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let [id] = split(name, ["nodeClasses"]).ok_or_else(|| Self::shape_error(name))?;
        Self::new(id)
    }
}

impl QuotaName {
    /// The limits of the whole group.
    #[must_use]
    pub fn total() -> Self {
        Self("quota".to_owned())
    }

    /// The limits of a workspace.
    #[must_use]
    pub fn of(workspace: &WorkspaceName) -> Self {
        Self(format!("{workspace}/quota"))
    }

    /// The workspace that is limited; `None`: the whole group.
    #[must_use]
    pub fn workspace(&self) -> Option<WorkspaceName> {
        self.0
            .strip_suffix("/quota")
            .map(|workspace| WorkspaceName(workspace.to_owned()))
    }
}

impl FromStr for QuotaName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        if name == "quota" {
            return Ok(Self::total());
        }
        let workspace = name
            .strip_suffix("/quota")
            .ok_or_else(|| Self::shape_error(name))?;
        Ok(Self::of(
            &workspace.parse().map_err(|_| Self::shape_error(name))?,
        ))
    }
}

impl MemberName {
    /// The member of that number, which counts from 1.
    pub fn new(id: u64) -> Result<Self, NameError> {
        if id == 0 {
            return Err(id_error("member", "0", MEMBER_ID_RULE));
        }
        Ok(Self(format!("members/{id}")))
    }

    /// The number of the member in the replication group.
    #[must_use]
    pub fn id(&self) -> u64 {
        // The constructors take a number and nothing else.
        last_segment(&self.0).parse().unwrap_or_default()
    }
}

impl FromStr for MemberName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let [id] = split(name, ["members"]).ok_or_else(|| Self::shape_error(name))?;
        let canonical = id.bytes().all(|b| b.is_ascii_digit()) && !id.starts_with('0');
        match id.parse() {
            Ok(number) if canonical => Self::new(number),
            _ => Err(id_error("member", id, MEMBER_ID_RULE)),
        }
    }
}

/// What stands behind the last `/`.
fn last_segment(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, id)| id)
}

/// The first `count` segments of a name that has at least that many.
fn first_segments(name: &str, count: usize) -> &str {
    name.match_indices('/')
        .nth(count - 1)
        .map_or(name, |(end, _)| &name[..end])
}

/// The relative resource name inside an Azure resource id
/// (`/subscriptions/S/resourceGroups/G/providers/Microsoft.BatchAI/workspaces/...`), or the name as it is.
fn strip_azure(name: &str) -> &str {
    const PROVIDER: &str = "/providers/microsoft.batchai/";
    // Azure compares these words without case. Lower-casing ASCII keeps the positions.
    match name.to_ascii_lowercase().find(PROVIDER) {
        Some(at) if name.starts_with('/') => &name[at + PROVIDER.len()..],
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_were_written() {
        let job: JobName = "workspaces/w/experiments/e-1/jobs/j_2".parse().unwrap();
        assert_eq!(job.to_string(), "workspaces/w/experiments/e-1/jobs/j_2");
        assert_eq!(job.id(), "j_2");
        assert_eq!(job.workspace().as_str(), "workspaces/w");
        assert_eq!(job.experiment().as_str(), "workspaces/w/experiments/e-1");
        assert_eq!(job.parent().id(), "e-1");
        assert_eq!(JobName::new(&job.experiment(), "j_2").unwrap(), job);

        let node: NodeName = "nodes/gpu-7.rack2.example.org".parse().unwrap();
        assert_eq!(node.id(), "gpu-7.rack2.example.org");
        let member: MemberName = "members/3".parse().unwrap();
        assert_eq!(member.id(), 3);
        let server: FileServerName = "workspaces/w/fileServers/nfs".parse().unwrap();
        assert_eq!((server.workspace().id(), server.id()), ("w", "nfs"));
    }

    #[test]
    fn a_quota_is_of_a_workspace_or_of_all() {
        let of: QuotaName = "workspaces/w/quota".parse().unwrap();
        assert_eq!(of.workspace().unwrap().id(), "w");
        let total: QuotaName = "quota".parse().unwrap();
        assert_eq!((total.workspace(), total), (None, QuotaName::total()));
        for bad in ["", "/quota", "workspaces/w", "workspaces/-/quota", "quotas"] {
            let error = bad.parse::<QuotaName>().unwrap_err().to_string();
            assert!(error.contains("or quota for all"), "{bad:?} gave {error:?}");
        }
        let class: NodeClassName = "nodeClasses/gpu-4".parse().unwrap();
        assert_eq!(class.id(), "gpu-4");
        assert!("nodeClasses/a b".parse::<NodeClassName>().is_err());
    }

    #[test]
    fn bad_names_say_the_rule() {
        let long = "x".repeat(65);
        for (name, rule) in [
            ("", "write workspaces/WORKSPACE"),
            ("w", "write workspaces/WORKSPACE"),
            ("workspaces/", ID_RULE),
            ("workspaces/a b", ID_RULE),
            ("workspaces/é", ID_RULE),
            ("workspaces/-", DASH_RULE),
            ("workspaces/w/", "write workspaces/WORKSPACE"),
            ("workspaces/w/clusters/c", "write workspaces/WORKSPACE"),
            (&format!("workspaces/{long}"), ID_RULE),
        ] {
            let error = name.parse::<WorkspaceName>().unwrap_err().to_string();
            assert!(error.contains(rule), "{name:?} gave {error:?}");
        }
        for name in ["nodes/..", "nodes/", "nodes/a/b", "nodes/-"] {
            assert!(name.parse::<NodeName>().is_err(), "{name}");
        }
        for name in [
            "members/0",
            "members/01",
            "members/-1",
            "members/+1",
            "members/x",
        ] {
            assert!(name.parse::<MemberName>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_reference_is_bare_full_or_from_azure() {
        let workspace = WorkspaceName::new("w").unwrap();
        for (reference, expected) in [
            ("c", "workspaces/w/clusters/c"),
            ("workspaces/other/clusters/c", "workspaces/other/clusters/c"),
            (
                "/subscriptions/s/resourceGroups/g/providers/Microsoft.BatchAI/workspaces/v/clusters/c",
                "workspaces/v/clusters/c",
            ),
        ] {
            let name = ClusterName::resolve(&workspace, reference).unwrap();
            assert_eq!(name.as_str(), expected);
        }
        assert!(ClusterName::resolve(&workspace, "workspaces/w/experiments/e").is_err());
    }

    #[test]
    fn names_sort_as_their_strings() {
        let mut names: Vec<JobName> = ["a-b/experiments/e", "a/experiments/e"]
            .iter()
            .map(|middle| format!("workspaces/{middle}/jobs/j").parse().unwrap())
            .collect();
        names.sort();
        assert_eq!(names[0].as_str(), "workspaces/a-b/experiments/e/jobs/j");
    }
}
