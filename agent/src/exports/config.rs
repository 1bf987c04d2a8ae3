//! The configuration of nfs-ganesha. Pure.
//!
//! NFS version 4 alone, so that one port is all it needs. An export is closed but for the addresses it names. A file that
//! ganesha cannot read would end every export at its next look, so nothing of doubtful form may come in here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Highest number of an export that is given out; ganesha has 16 bits for it.
const ID_MAX: u16 = 60_000;

/// A directory to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Served {
    /// Number; stands in the file handles of clients.
    pub(super) id: u16,
    /// UUID of the file server.
    pub(super) uid: String,
    /// Directory, without links.
    pub(super) path: PathBuf,
    /// Who may mount it.
    pub(super) clients: BTreeSet<IpAddr>,
}

/// Whether a path can stand in the configuration.
pub(super) fn is_plain(path: &Path) -> bool {
    path.to_str().is_some_and(|text| {
        !text.is_empty() && !text.contains(|c: char| c.is_control() || c == '"' || c == '\\')
    })
}

/// The part that a running server does not read again.
pub(super) fn head(bind: Option<IpAddr>, port: u16, recovery: &Path) -> String {
    let bind = bind.map_or_else(|| "0.0.0.0".to_owned(), |address| address.to_string());
    format!(
        "# Written by trainyard-agent; changes are lost.\n\
         NFS_CORE_PARAM {{\n  Bind_addr = {bind};\n  NFS_Port = {port};\n  Protocols = 4;\n  Enable_NLM = false;\n  \
         Enable_RQUOTA = false;\n  Enable_UDP = false;\n}}\n\
         NFSV4 {{\n  Only_Numeric_Owners = true;\n  Grace_Period = 30;\n  Lease_Lifetime = 20;\n  RecoveryBackend = fs;\n  \
         RecoveryRoot = \"{}\";\n}}\n\
         LOG {{\n  Default_Log_Level = WARN;\n  COMPONENTS {{ CONFIG = EVENT; }}\n}}\n",
        recovery.display()
    )
}

/// The exports.
pub(super) fn exports(served: &[Served]) -> String {
    let mut text = String::new();
    for export in served {
        let clients: Vec<String> = export.clients.iter().map(IpAddr::to_string).collect();
        let _ = write!(
            text,
            "EXPORT {{\n  Export_Id = {};\n  Path = \"{}\";\n  Pseudo = \"{}\";\n  Access_Type = NONE;\n  \
             Squash = No_Root_Squash;\n  SecType = sys;\n  Protocols = 4;\n  Transports = TCP;\n  FSAL {{ Name = VFS; }}\n",
            export.id,
            export.path.display(),
            pseudo(&export.uid),
        );
        if !clients.is_empty() {
            let _ = writeln!(
                text,
                "  CLIENT {{ Clients = {}; Access_Type = RW; Protocols = 4; }}",
                clients.join(", ")
            );
        }
        text.push_str("}\n");
    }
    text
}

/// The path that clients mount.
pub(super) fn pseudo(uid: &str) -> String {
    format!("/{uid}")
}

/// Numbers of exports, which must stay the same across restarts: they are in the clients' file handles.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ids {
    last: u16,
    by_uid: BTreeMap<String, u16>,
}

impl Ids {
    /// Forgets those that are not wanted and numbers the new ones.
    pub(super) fn assign<'a>(&mut self, uids: impl IntoIterator<Item = &'a str>) {
        let wanted: BTreeSet<&str> = uids.into_iter().collect();
        self.by_uid.retain(|uid, _| wanted.contains(uid.as_str()));
        for uid in wanted {
            if self.by_uid.contains_key(uid) || self.by_uid.len() >= usize::from(ID_MAX) {
                continue;
            }
            // Not the lowest free one: a client may still hold handles of an export that is gone.
            loop {
                self.last = self.last % ID_MAX + 1;
                if !self.by_uid.values().any(|id| *id == self.last) {
                    break;
                }
            }
            self.by_uid.insert(uid.to_owned(), self.last);
        }
    }

    pub(super) fn get(&self, uid: &str) -> Option<u16> {
        self.by_uid.get(uid).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_is_open_to_its_clients_alone() {
        let served = |clients: &[&str]| Served {
            id: 3,
            uid: "u-1".to_owned(),
            path: "/srv/a b".into(),
            clients: clients.iter().map(|c| c.parse().unwrap()).collect(),
        };
        let text = exports(&[served(&["10.0.0.2", "10.0.0.1"])]);
        assert!(text.contains("Access_Type = NONE;"), "{text}");
        assert!(text.contains("Path = \"/srv/a b\";"), "{text}");
        assert!(text.contains("Pseudo = \"/u-1\";"), "{text}");
        let client = "CLIENT { Clients = 10.0.0.1, 10.0.0.2; Access_Type = RW; Protocols = 4; }";
        assert!(text.contains(client), "{text}");
        assert!(!exports(&[served(&[])]).contains("CLIENT"));
    }

    #[test]
    fn nothing_of_doubtful_form_comes_in() {
        for path in ["", "/a\"b", "/a\nb", "/a\\b"] {
            assert!(!is_plain(Path::new(path)), "{path:?}");
        }
        assert!(is_plain(Path::new("/srv/my data/ü")));
    }

    #[test]
    fn numbers_stay_and_are_not_given_out_again_soon() {
        let mut ids = Ids::default();
        ids.assign(["a", "b"]);
        let (a, b) = (ids.get("a").unwrap(), ids.get("b").unwrap());
        ids.assign(["b", "c"]);
        assert_eq!(ids.get("a"), None);
        assert_eq!(ids.get("b"), Some(b));
        let c = ids.get("c").unwrap();
        assert!(c != a && c != b);
        ids.last = ID_MAX;
        ids.assign(["b", "c", "d"]);
        assert_eq!(ids.get("d"), Some(1));
    }
}
