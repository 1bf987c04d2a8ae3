//! Managed file servers: directories of our nodes, exported by their agents.
//!
//! What a node exports follows from the state alone ([`State::exports_of`]); what a file server is follows from its
//! node's last words ([`State::settle_exports`]), so that it becomes usable, fails and comes back by itself. Directories
//! are never deleted.

use std::collections::{BTreeMap, BTreeSet};

use trainyard_proto::v1::{
    BatchAiError, DataDisks, Export, ExportStatus, FileServer, ManagedFileServer, MountSettings,
    NameValuePair, Node, NodeState, ProvisioningState, file_server,
};
use trainyard_shared::names::NodeName;

use crate::outcome::{Change, Refusal};
use crate::state::{State, workspace_of};

/// TCP port of NFS.
pub(crate) const NFS_PORT: u32 = 2049;

/// What a file server is by its node's words.
#[derive(Debug, Clone, PartialEq)]
struct Standing {
    state: ProvisioningState,
    mount_settings: Option<MountSettings>,
    errors: Vec<BatchAiError>,
    /// Bytes and free bytes; `None`: nothing new is known.
    capacity: Option<(u64, u64)>,
}

impl State {
    /// Everything that `node` (a resource name) shall export now.
    pub fn exports_of(&self, node: &str) -> Vec<Export> {
        let names = self.indexes.exports.get(node);
        names
            .into_iter()
            .flatten()
            .filter_map(|name| {
                let server = self.file_servers.get(name)?;
                let managed = managed(server)?;
                Some(Export {
                    file_server: name.clone(),
                    uid: server.uid.clone(),
                    directory: managed.directory.clone(),
                    clients: self.clients_of(workspace_of(name), node),
                    min_capacity_bytes: min_capacity(managed.data_disks.as_ref()),
                })
            })
            .collect()
    }

    /// Addresses of the nodes of the workspace's clusters, and of the exporting node.
    fn clients_of(&self, workspace: &str, node: &str) -> Vec<String> {
        let prefix = format!("{workspace}/clusters/");
        let mut addresses: BTreeSet<String> = self
            .indexes
            .cluster_nodes
            .range(prefix.clone()..)
            .take_while(|(cluster, _)| cluster.starts_with(&prefix))
            .flat_map(|(_, nodes)| nodes)
            .chain(std::iter::once(&node.to_owned()))
            .filter_map(|name| address(self.nodes.get(name)?))
            .map(str::to_owned)
            .collect();
        addresses.remove("");
        addresses.into_iter().collect()
    }

    /// Fills in the node of a managed file server: the one it names, or the best there is.
    pub(crate) fn choose_exporter(
        &self,
        name: &str,
        managed: &ManagedFileServer,
    ) -> Result<String, Refusal> {
        let wrong = |message: String| Refusal::invalid_field(name, "managed.node", message);
        if managed.node.is_empty() {
            return self.best_exporter(name, &managed.vm_size);
        }
        let full = if managed.node.contains('/') {
            managed.node.clone()
        } else {
            format!("nodes/{}", managed.node)
        };
        let full: NodeName = full
            .parse()
            .map_err(|e: trainyard_shared::names::NameError| wrong(e.to_string()))?;
        let node = self.nodes.get(full.as_str()).ok_or_else(|| {
            wrong(format!(
                "{full} does not exist; trainyard node list shows what does"
            ))
        })?;
        if !can_export(node) {
            return Err(wrong(format!(
                "{full} cannot export directories: install nfs-ganesha there and enable [file_server] in the \
                 configuration of its agent"
            )));
        }
        if !self.is_exporter_class(node, &managed.vm_size) {
            return Err(wrong(format!(
                "{full} is of class {}, and vmSize asks for {}",
                node.node_class, managed.vm_size
            )));
        }
        Ok(full.to_string())
    }

    fn best_exporter(&self, name: &str, class: &str) -> Result<String, Refusal> {
        let fitting = || {
            self.nodes
                .values()
                .filter(|node| self.is_exporter_class(node, class))
        };
        let ready = || fitting().filter(|node| node.state() == NodeState::Ready);
        let exports = |node: &Node| {
            self.indexes
                .exports
                .get(&node.name)
                .map_or(0, BTreeSet::len)
        };
        ready()
            .filter(|node| can_export(node))
            .min_by_key(|node| (exports(node), &node.name))
            .map(|node| node.name.clone())
            .ok_or_else(|| {
                let of_class = if class.is_empty() {
                    String::new()
                } else {
                    format!(" of class {class}")
                };
                Refusal::precondition(
                    name,
                    format!(
                        "no node can export a directory now: of {} nodes{of_class} {} are ready, and none of these can \
                         export; install nfs-ganesha on one and enable [file_server] in the configuration of its agent",
                        fitting().count(),
                        ready().count(),
                    ),
                )
            })
    }

    fn is_exporter_class(&self, node: &Node, class: &str) -> bool {
        self.is_of_class(node, class)
    }

    /// Whether these words about its exports are news.
    pub(crate) fn exports_differ(&self, node: &str, exports: &[ExportStatus]) -> bool {
        self.nodes
            .get(node)
            .is_some_and(|known| known.exports != in_order(exports))
    }

    /// Takes over what the agent says of its exports. Returns whether it is news.
    pub(crate) fn take_exports(&mut self, node: &str, exports: &[ExportStatus]) -> bool {
        let exports = in_order(exports);
        match self.nodes.get_mut(node) {
            Some(known) if known.exports != exports => {
                known.exports = exports;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Brings managed file servers up to date with nodes that changed, and says which nodes must hear of it. To be called
    /// once an entry has been applied, with its changes.
    pub(crate) fn settle_exports(
        &mut self,
        changes: &BTreeSet<Change>,
        now: &prost_types::Timestamp,
    ) -> Vec<Change> {
        let mut found = Vec::new();
        if self.indexes.exports.is_empty() {
            return found;
        }
        let mut mounters: BTreeSet<String> = BTreeSet::new();
        let mut exporters: BTreeSet<String> = BTreeSet::new();
        for change in changes {
            match change {
                Change::Cluster(name) => {
                    exporters.insert(workspace_of(name).to_owned());
                }
                Change::Node(name) => {
                    if let Some(node) = self.nodes.get(name)
                        && !node.cluster.is_empty()
                    {
                        exporters.insert(workspace_of(&node.cluster).to_owned());
                    }
                    let servers = self.indexes.exports.get(name).cloned();
                    for server in servers.into_iter().flatten() {
                        if self.settle_file_server(&server, now) {
                            mounters.insert(workspace_of(&server).to_owned());
                            found.push(Change::FileServer(server));
                        }
                    }
                }
                _ => {}
            }
        }
        for (node, servers) in &self.indexes.exports {
            if servers.iter().any(|s| exporters.contains(workspace_of(s))) {
                found.push(Change::Desired(node.clone()));
            }
        }
        for (cluster, nodes) in &self.indexes.cluster_nodes {
            if mounters.contains(workspace_of(cluster)) {
                found.extend(nodes.iter().cloned().map(Change::Desired));
            }
        }
        found
    }

    /// Returns whether anything changed.
    fn settle_file_server(&mut self, name: &str, now: &prost_types::Timestamp) -> bool {
        let Some(server) = self.file_servers.get(name) else {
            return false;
        };
        let Some(managed) = managed(server) else {
            return false;
        };
        let standing = standing(server, &managed.node, self.nodes.get(&managed.node));
        let index = self.index;
        let Some(server) = self.file_servers.get_mut(name) else {
            return false;
        };
        let capacity = standing
            .capacity
            .unwrap_or((server.capacity_bytes, server.free_bytes));
        let same = server.provisioning_state() == standing.state
            && server.mount_settings == standing.mount_settings
            && server.errors == standing.errors
            && (server.capacity_bytes, server.free_bytes) == capacity;
        // One that is being deleted stays so.
        if same || server.provisioning_state() == ProvisioningState::Deleting {
            return false;
        }
        if server.provisioning_state() != standing.state {
            server.set_provisioning_state(standing.state);
            server.provisioning_state_transition_time = Some(*now);
        }
        server.mount_settings = standing.mount_settings;
        server.errors = standing.errors;
        (server.capacity_bytes, server.free_bytes) = capacity;
        server.etag = index.to_string();
        true
    }

    /// Enters a file server into the index of exports, or takes it out.
    pub(crate) fn index_export(&mut self, name: &str, present: bool) {
        let Some(node) = self
            .file_servers
            .get(name)
            .and_then(managed)
            .map(|managed| managed.node.clone())
        else {
            return;
        };
        let exports: &mut BTreeMap<String, BTreeSet<String>> = &mut self.indexes.exports;
        if present {
            exports.entry(node).or_default().insert(name.to_owned());
        } else if let Some(names) = exports.get_mut(&node) {
            names.remove(name);
            if names.is_empty() {
                exports.remove(&node);
            }
        }
    }
}

/// The managed file server's own settings; `None` for an external one.
pub(crate) fn managed(server: &FileServer) -> Option<&ManagedFileServer> {
    match server.kind.as_ref()? {
        file_server::Kind::Managed(managed) => Some(managed),
        file_server::Kind::External(_) => None,
    }
}

/// Mount settings of a file server that exists already.
pub(crate) fn external_settings(
    external: &trainyard_proto::v1::ExternalFileServer,
) -> MountSettings {
    let port = external
        .mount_options
        .split(',')
        .find_map(|option| option.trim().strip_prefix("port="))
        .and_then(|port| port.parse().ok())
        .unwrap_or(NFS_PORT);
    MountSettings {
        mount_point: external.export.clone(),
        file_server_public_ip: external.address.clone(),
        file_server_internal_ip: external.address.clone(),
        port,
    }
}

fn standing(server: &FileServer, node_name: &str, node: Option<&Node>) -> Standing {
    let failed = |errors| Standing {
        state: ProvisioningState::Failed,
        mount_settings: None,
        errors,
        capacity: None,
    };
    let lost = |message: String| {
        failed(vec![BatchAiError {
            code: "NodeLost".to_owned(),
            message,
            details: vec![NameValuePair {
                name: "node".to_owned(),
                value: node_name.to_owned(),
            }],
        }])
    };
    let Some(node) = node else {
        return lost(format!(
            "{node_name} is gone; start its agent again, or delete the file server"
        ));
    };
    if node.state() == NodeState::Lost {
        return lost(format!(
            "{node_name} is lost; the file server comes back with it"
        ));
    }
    let said = node
        .exports
        .iter()
        .find(|e| e.file_server == server.name && e.uid == server.uid);
    let Some(said) = said else {
        return Standing {
            state: ProvisioningState::Updating,
            mount_settings: None,
            errors: Vec::new(),
            capacity: None,
        };
    };
    let capacity = (said.capacity_bytes > 0).then_some((said.capacity_bytes, said.free_bytes));
    if !said.ready {
        let state = if said.errors.is_empty() {
            ProvisioningState::Updating
        } else {
            ProvisioningState::Failed
        };
        return Standing {
            state,
            mount_settings: None,
            errors: said.errors.clone(),
            capacity,
        };
    }
    let address = address(node).unwrap_or_default().to_owned();
    Standing {
        state: ProvisioningState::Succeeded,
        mount_settings: Some(MountSettings {
            mount_point: said.export.clone(),
            file_server_public_ip: address.clone(),
            file_server_internal_ip: address,
            port: said.port,
        }),
        errors: said.errors.clone(),
        capacity,
    }
}

fn min_capacity(disks: Option<&DataDisks>) -> u64 {
    disks.map_or(0, |d| {
        u64::from(d.disk_size_in_gb) * u64::from(d.disk_count.max(1)) * 1_000_000_000
    })
}

fn can_export(node: &Node) -> bool {
    node.inventory.as_ref().is_some_and(|i| i.can_export)
}

fn address(node: &Node) -> Option<&str> {
    node.inventory.as_ref().map(|i| i.address.as_str())
}

fn in_order(exports: &[ExportStatus]) -> Vec<ExportStatus> {
    let mut exports = exports.to_vec();
    exports.sort_by(|a, b| (&a.file_server, &a.uid).cmp(&(&b.file_server, &b.uid)));
    exports
}
