//! Clusters: create, delete. Nodes come from the pool by placement's plan and go back to it here.

use trainyard_proto::store::v1::{CreateCluster, Delete};
use trainyard_proto::v1::{Cluster, ProvisioningState};
use trainyard_shared::names::ClusterName;

use super::{Applied, Context, Prepared, check_etag, incomplete, parse};
use crate::outcome::{Change, Refusal, Reply};
use crate::quota::most_nodes;
use crate::resolve;
use crate::state::State;

impl State {
    /// The checking half of [`State::create_cluster`]; changes nothing.
    pub(super) fn prepare_cluster(
        &self,
        context: &Context,
        command: &CreateCluster,
    ) -> Result<Prepared<Cluster>, Refusal> {
        let wanted = command
            .cluster
            .as_ref()
            .ok_or_else(|| incomplete("cluster"))?;
        let parsed = parse::<ClusterName>(&wanted.name)?;
        let name = parsed.to_string();
        let find = |s: &Self, n: &str| {
            s.cluster(n)
                .map(|c| (c.uid.clone(), Reply::Cluster(Box::new(c))))
        };
        if let Some(reply) = self.replay(&command.request_id, &name, find) {
            return reply.map(Prepared::Made);
        }
        self.parent_workspace(&parsed.workspace())?;
        if self.clusters.contains_key(&name) {
            return Err(Refusal::already_exists(&name));
        }
        let mounts = wanted
            .node_setup
            .as_ref()
            .and_then(|s| s.mount_volumes.as_ref());
        let workspace = self.workspaces.get(&parsed.workspace().to_string());
        if let Some((mounts, workspace)) = mounts.zip(workspace) {
            resolve::volumes(self, workspace, mounts, "nodeSetup.mountVolumes")
                .map_err(|violations| Refusal::invalid(&name, violations))?;
        }
        self.admit_cluster(&name, most_nodes(wanted))?;
        let mut cluster = wanted.clone();
        cluster.creation_time = Some(context.now);
        cluster.allocation_state_transition_time = Some(context.now);
        cluster.set_provisioning_state(ProvisioningState::Succeeded);
        cluster.etag = context.etag();
        Ok(Prepared::New(Box::new(cluster)))
    }

    pub(super) fn create_cluster(
        &mut self,
        context: &mut Context,
        command: &CreateCluster,
    ) -> Applied {
        let cluster = match self.prepare_cluster(context, command)? {
            Prepared::Made(reply) => return Ok(reply),
            Prepared::New(cluster) => cluster,
        };
        let name = cluster.name.clone();
        self.requests
            .remember(&command.request_id, &name, &cluster.uid);
        self.clusters.insert(name.clone(), (*cluster).clone());
        context.changed(Change::Cluster(name.clone()));
        context.changed(Change::Placement);
        Ok(Reply::Cluster(
            self.cluster(&name).map_or(cluster, Box::new),
        ))
    }

    pub(super) fn delete_cluster(&mut self, context: &mut Context, command: &Delete) -> Applied {
        let name = &command.name;
        let current = self
            .clusters
            .get(name)
            .ok_or_else(|| Refusal::not_found(name))?;
        check_etag(name, &command.etag, &current.etag)?;
        if let Some(jobs) = self.indexes.unfinished.get(name)
            && let Some(first) = jobs.first()
        {
            return Err(Refusal::precondition(
                name,
                format!(
                    "{} jobs on {name} have not ended, {first} among them; terminate them or wait for them first",
                    jobs.len()
                ),
            ));
        }
        let nodes: Vec<String> = self
            .indexes
            .cluster_nodes
            .get(name)
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        self.clusters.remove(name);
        for node in nodes {
            self.move_node(&node, "");
            context.changed(Change::Node(node));
        }
        context.changed(Change::Cluster(name.clone()));
        context.changed(Change::Placement);
        Ok(Reply::None)
    }
}
