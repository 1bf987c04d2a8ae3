//! Who a task runs as and how all of its processes are found again: users, credentials and cgroup v2 groups.
//!
//! Must never move a process of somebody else, nor change a group that Trainyard did not make: the base group is a
//! directory of our own, and only empty groups below it are removed.

use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, User, getgrouplist, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;

/// Name of the directory that holds the groups of tasks.
const BASE_GROUP: &str = "trainyard.tasks";

/// What a process drops to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

impl Credentials {
    /// Those of this process.
    #[must_use]
    pub fn own() -> Self {
        let groups = nix::unistd::getgroups().unwrap_or_default();
        Self {
            uid: Uid::effective().as_raw(),
            gid: Gid::effective().as_raw(),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
        }
    }

    /// Drops to this user for good, if this process is root. To be called while the process has one thread.
    ///
    /// # Errors
    /// The kernel refuses; the process must then end.
    pub fn assume(&self) -> nix::Result<()> {
        if !Uid::effective().is_root() {
            return Ok(());
        }
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setgroups(&groups)?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)
    }

    /// Whether a process of this user may do anything on the host.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }
}

/// The user of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskUser {
    /// Login name; the number where there is none.
    pub name: String,
    /// Home directory, if it exists.
    pub home: Option<PathBuf>,
    /// Ids.
    pub credentials: Credentials,
}

impl TaskUser {
    /// The user that tasks run as.
    ///
    /// An agent that is not root can only run tasks as itself. One that is root takes `task_user`; without a name it
    /// takes `trainyard` if the host has that user, else `nobody`.
    ///
    /// # Errors
    /// The user does not exist, or the agent may not become it.
    pub fn resolve(task_user: Option<&str>) -> Result<Self, ConfineError> {
        if !Uid::effective().is_root() {
            let own = Self::own()?;
            return match task_user {
                Some(name) if name != own.name => Err(ConfineError::NotRoot {
                    wanted: name.to_owned(),
                    own: own.name,
                }),
                _ => Ok(own),
            };
        }
        match task_user {
            Some(name) => Self::named(name)?.ok_or_else(|| ConfineError::NoUser(name.to_owned())),
            None => match Self::named("trainyard")? {
                Some(user) => Ok(user),
                None => Self::named("nobody")?
                    .ok_or_else(|| ConfineError::NoUser("trainyard".to_owned())),
            },
        }
    }

    /// The users besides the default one that a cluster may choose for its tasks.
    ///
    /// # Errors
    /// One does not exist, the agent may not become it, or it is root: tasks run as root only where the workspace
    /// allows it.
    pub fn resolve_further(task_users: &[String]) -> Result<Vec<Self>, ConfineError> {
        task_users
            .iter()
            .map(|name| {
                let user = Self::resolve(Some(name))?;
                if user.credentials.is_root() && Uid::effective().is_root() {
                    return Err(ConfineError::Root(name.clone()));
                }
                Ok(user)
            })
            .collect()
    }

    /// Root if the agent is root, else the agent's own user: for jobs of workspaces that allow root.
    ///
    /// # Errors
    /// The user database cannot be read.
    pub fn root_or_self() -> Result<Self, ConfineError> {
        Self::own()
    }

    fn own() -> Result<Self, ConfineError> {
        let uid = Uid::effective();
        let entry = User::from_uid(uid).map_err(ConfineError::Database)?;
        Ok(Self {
            name: entry
                .as_ref()
                .map_or_else(|| uid.to_string(), |user| user.name.clone()),
            home: entry.map(|user| user.dir).filter(|home| home.is_dir()),
            credentials: Credentials::own(),
        })
    }

    fn named(name: &str) -> Result<Option<Self>, ConfineError> {
        let Some(user) = User::from_name(name).map_err(ConfineError::Database)? else {
            return Ok(None);
        };
        let c_name =
            std::ffi::CString::new(name).map_err(|_| ConfineError::NoUser(name.to_owned()))?;
        let groups = getgrouplist(&c_name, user.gid).map_err(ConfineError::Database)?;
        Ok(Some(Self {
            name: user.name,
            home: Some(user.dir).filter(|home| home.is_dir()),
            credentials: Credentials {
                uid: user.uid.as_raw(),
                gid: user.gid.as_raw(),
                groups: groups.into_iter().map(Gid::as_raw).collect(),
            },
        }))
    }
}

/// How the processes of a task are kept together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confinement {
    /// One cgroup v2 group per task below `base`: the kernel kills all of it at once, whatever it forked.
    CgroupV2 {
        /// Directory of our own in the cgroup file system.
        base: PathBuf,
    },
    /// The shim is a subreaper and ends every descendant.
    ProcessGroup,
}

impl Confinement {
    /// What this host can do. A host whose cgroup v2 tree is there but not writable counts as having none.
    #[must_use]
    pub fn detect() -> Self {
        let (Ok(mounts), Ok(own)) = (
            std::fs::read_to_string("/proc/self/mountinfo"),
            std::fs::read_to_string("/proc/self/cgroup"),
        ) else {
            return Self::ProcessGroup;
        };
        let Some(base) = base_group(&mounts, &own) else {
            return Self::ProcessGroup;
        };
        if is_usable(&base) {
            Self::CgroupV2 { base }
        } else {
            Self::ProcessGroup
        }
    }

    /// As the inventory calls it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::CgroupV2 { .. } => "cgroup-v2",
            Self::ProcessGroup => "process-group",
        }
    }

    /// Group of one task; the shim makes and removes it.
    #[must_use]
    pub fn task_group(&self, layout: &Layout, task: &str) -> Option<PathBuf> {
        // With the node: several agents of one host (a trial cluster) share the base.
        self.group(&format!(
            "{}.{}-{}.{task}",
            layout.node, layout.uid, layout.attempt
        ))
    }

    /// Group of a name, which must be fit for a file name and unique on the host.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<PathBuf> {
        match self {
            Self::CgroupV2 { base } => Some(base.join(name)),
            Self::ProcessGroup => None,
        }
    }
}

/// The directory for our groups: below the agent's own group, which systemd delegates to it.
fn base_group(mountinfo: &str, own: &str) -> Option<PathBuf> {
    let mount = mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        if right.next()? != "cgroup2" {
            return None;
        }
        let mut left = left.split(' ');
        // A mount of a part of the tree (a container without its own namespace) hides the path of our own group.
        (left.nth(3)? == "/").then(|| left.next().map(str::to_owned))?
    })?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let group = Path::new(&mount).join(path.trim_start_matches('/'));
    Some(group.join(BASE_GROUP))
}

/// Proves with an empty group of our own that groups can be made and killed.
fn is_usable(base: &Path) -> bool {
    let probe = base.join("probe");
    let made = std::fs::create_dir_all(&probe).is_ok();
    let usable = made
        && probe.join("cgroup.kill").exists()
        && std::fs::write(probe.join("cgroup.kill"), "1").is_ok();
    if made {
        let _ = std::fs::remove_dir(&probe);
    }
    usable
}

/// A user that tasks cannot run as.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The host does not know it.
    #[error(
        "task_user: this host has no user `{0}`; create it (`useradd --system {0}`) or name another"
    )]
    NoUser(String),
    /// The agent cannot become it.
    #[error(
        "task_user: the agent runs as `{own}` and cannot start tasks as `{wanted}`; run it as root or drop task_user"
    )]
    NotRoot {
        /// As configured.
        wanted: String,
        /// The agent's.
        own: String,
    },
    /// Root is no user to choose.
    #[error(
        "task_users: `{0}` is root; tasks run as root only where the workspace allows it (allowRoot), so leave it out"
    )]
    Root(String),
    /// The user database cannot be read.
    #[error("cannot read the user database of this host: {0}")]
    Database(nix::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        31 30 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_base_lies_below_the_agents_own_group() {
        let own = "9:name=systemd:/x\n0::/system.slice/trainyard-agent.service\n";
        assert_eq!(
            base_group(HYBRID, own),
            Some(PathBuf::from(
                "/sys/fs/cgroup/unified/system.slice/trainyard-agent.service/trainyard.tasks"
            ))
        );
        assert_eq!(
            base_group(HYBRID, "0::/\n"),
            Some(PathBuf::from("/sys/fs/cgroup/unified/trainyard.tasks"))
        );
    }

    #[test]
    fn a_host_without_cgroup_v2_has_no_base() {
        assert_eq!(
            base_group(
                "30 24 0:26 / /sys/fs/cgroup rw - cgroup cgroup rw\n",
                "0::/\n"
            ),
            None
        );
        assert_eq!(base_group(HYBRID, "3:cpu:/\n"), None);
    }

    #[test]
    fn an_unknown_user_is_named() {
        if Uid::effective().is_root() {
            let error = TaskUser::resolve(Some("no-such-user-here")).unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains("useradd --system no-such-user-here"),
                "{error}"
            );
        }
    }
}
