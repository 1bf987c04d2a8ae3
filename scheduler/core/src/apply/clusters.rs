//! Clusters: create, scale, delete. Nodes come from the pool by placement's plan, and go back to it when nothing of the
//! cluster is left on them; a cluster never vanishes while it holds a node.

use trainyard_proto::store::v1::{CreateCluster, Delete, TerminateCause, UpdateCluster};
use trainyard_proto::v1::{
    Cluster, DeleteClusterResponse, NodeDeallocationOption, ProvisioningState,
};
use trainyard_shared::names::ClusterName;

use super::{Applied, Context, Prepared, check_etag, incomplete, parse};
use crate::outcome::{Change, Refusal, Reply};
use crate::quota::most_nodes;
use crate::state::State;
use crate::{class, resolve, scale};

/// Jobs that the answer to a forced deletion names.
const NAMED_JOBS: usize = 100;

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
            return reply.map(|made| Prepared::Made(Box::new(made)));
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
        cluster.sequence = context.index;
        cluster.node_class = self
            .declared_class(&cluster.vm_size)
            .map_or_else(|| cluster.vm_size.clone(), |c| class::id(c).to_owned());
        if let Some(setup) = cluster
            .node_setup
            .as_mut()
            .and_then(|s| s.setup_task.as_mut())
        {
            setup.std_out_err_path_suffix = format!("{name}/{}", cluster.uid);
        }
        let initial = scale::auto(&cluster).map_or(0, |auto| auto.initial_node_count);
        cluster.target_node_count = scale::first_goal(&cluster, initial);
        Ok(Prepared::New(Box::new(cluster)))
    }

    pub(super) fn create_cluster(
        &mut self,
        context: &mut Context,
        command: &CreateCluster,
    ) -> Applied {
        let cluster = match self.prepare_cluster(context, command)? {
            Prepared::Made(reply) => return Ok(*reply),
            Prepared::New(cluster) => cluster,
        };
        let name = cluster.name.clone();
        self.requests
            .remember(&command.request_id, &name, &cluster.uid);
        self.clusters.insert(name.clone(), (*cluster).clone());
        self.settle_cluster(context, &name);
        Ok(Reply::Cluster(
            self.cluster(&name).map_or(cluster, Box::new),
        ))
    }

    /// Changes the scale settings; from manual to auto-scale and back at any time.
    pub(super) fn update_cluster(
        &mut self,
        context: &mut Context,
        command: &UpdateCluster,
    ) -> Applied {
        let wanted = command
            .cluster
            .as_ref()
            .ok_or_else(|| incomplete("cluster"))?;
        let name = &wanted.name;
        let current = self
            .clusters
            .get(name)
            .ok_or_else(|| Refusal::not_found(name))?;
        check_etag(name, &wanted.etag, &current.etag)?;
        if scale::is_deleting(current) {
            return Err(Refusal::precondition(
                name,
                format!("{name} is being deleted; wait until it is gone and create it anew"),
            ));
        }
        let paths = command.update_mask.as_ref().map(|m| m.paths.as_slice());
        let known = |path: &String| path == "scale_settings" || path.starts_with("scale_settings.");
        if let Some(path) = paths.unwrap_or_default().iter().find(|p| !known(p)) {
            return Err(Refusal::invalid_field(
                name,
                "update_mask",
                format!("{path} of a cluster cannot be changed; scale_settings can"),
            ));
        }
        let changed = Cluster {
            scale_settings: wanted.scale_settings,
            ..current.clone()
        };
        self.admit_nodes(name, most_nodes(current), most_nodes(&changed))?;
        let held = u32::try_from(self.staying(name).count()).unwrap_or(u32::MAX);
        let goal = scale::first_goal(&changed, held);
        if let Some(cluster) = self.clusters.get_mut(name) {
            cluster.scale_settings = changed.scale_settings;
            cluster.target_node_count = goal;
            cluster.follows_jobs = true;
            cluster.etag = context.etag();
        }
        self.settle_cluster(context, name);
        Ok(self
            .cluster(name)
            .map_or(Reply::None, |c| Reply::Cluster(Box::new(c))))
    }

    /// Refused while jobs have not ended, unless forced: then queued jobs fail, running ones are ended, and the cluster is
    /// `deleting` until its nodes are free. A repeat is without effect.
    pub(super) fn delete_cluster(&mut self, context: &mut Context, command: &Delete) -> Applied {
        let name = &command.name;
        let current = self
            .clusters
            .get(name)
            .ok_or_else(|| Refusal::not_found(name))?;
        check_etag(name, &command.etag, &current.etag)?;
        if let Some(jobs) = self.indexes.unfinished.get(name)
            && let Some(first) = jobs.first()
            && !command.force
            && !scale::is_deleting(current)
        {
            return Err(Refusal::precondition(
                name,
                format!(
                    "{} jobs on {name} have not ended, {first} among them; terminate them or wait for them first, or force \
                     the deletion, which ends them",
                    jobs.len()
                ),
            ));
        }
        let response = self.begin_cluster_deletion(context, name);
        Ok(Reply::ClusterDeleted(response))
    }

    /// Ends the jobs of a cluster and lets its nodes go; it vanishes with the last of both.
    pub(super) fn begin_cluster_deletion(
        &mut self,
        context: &mut Context,
        name: &str,
    ) -> DeleteClusterResponse {
        let mut response = DeleteClusterResponse::default();
        let Some(cluster) = self.clusters.get_mut(name) else {
            return response;
        };
        cluster.set_provisioning_state(ProvisioningState::Deleting);
        cluster.etag = context.etag();
        let jobs: Vec<String> = self
            .indexes
            .unfinished
            .get(name)
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        for job in jobs {
            let runs = self.indexes.live.contains(&job);
            if !self.end_job(context, &job, TerminateCause::ClusterDeleted) {
                continue;
            }
            if runs {
                response.terminated_running_jobs += 1;
            } else {
                response.failed_queued_jobs += 1;
            }
            if response.jobs.len() < NAMED_JOBS {
                response.jobs.push(job);
            }
        }
        let nodes: Vec<String> = self
            .indexes
            .cluster_nodes
            .get(name)
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        for node in nodes {
            self.begin_leaving(context, &node, NodeDeallocationOption::Waitforjobcompletion);
        }
        self.settle_cluster(context, name);
        response
    }

    /// To be called after any change of the cluster's goal or nodes: notes when it becomes steady or begins to change, and
    /// takes away one that was only waiting for its nodes and jobs to go.
    pub(super) fn settle_cluster(&mut self, context: &mut Context, name: &str) {
        let Some(cluster) = self.clusters.get(name) else {
            return;
        };
        if scale::is_deleting(cluster)
            && !self.indexes.cluster_nodes.contains_key(name)
            && !self.indexes.unfinished.contains_key(name)
        {
            self.clusters.remove(name);
        } else {
            let state = self.allocation_state(cluster);
            if let Some(cluster) = self.clusters.get_mut(name)
                && cluster.allocation_state() != state
            {
                cluster.set_allocation_state(state);
                cluster.allocation_state_transition_time = Some(context.now);
                cluster.etag = context.etag();
            }
        }
        context.changed(Change::Cluster(name.to_owned()));
        context.changed(Change::Placement);
    }
}
