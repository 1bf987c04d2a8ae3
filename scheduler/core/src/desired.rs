//! What a node's agent shall hold: the whole view, from the state alone (level-triggered).

use trainyard_proto::v1::{
    Assignment, Attempt, AttemptNode, AttemptPhase, Desired, Job, MountVolumes, NodeSetupOrder,
    Volume,
};
use trainyard_shared::names::JobName;

use crate::attempt::phase_of;
use crate::class;
use crate::resolve;
use crate::state::{State, cluster_of, node_is_involved};

/// Milliseconds between SIGTERM and SIGKILL when tasks are ended.
const STOP_GRACE_MS: u64 = 10_000;

impl State {
    /// Everything that `node` (a resource name) shall hold now.
    pub fn desired(&self, node: &str) -> Desired {
        let assignments = self
            .indexes
            .holdings
            .get(node)
            .into_iter()
            .flat_map(|held| held.keys())
            .filter_map(|job| self.assignment(node, self.jobs.open(job)?))
            .collect();
        Desired {
            revision: self.index,
            assignments,
            setup: self.setup_order(node),
            exports: self.exports_of(node),
        }
    }

    /// What the node is to be set up for. One that leaves keeps its mounts until its last attempt is gone.
    fn setup_order(&self, name: &str) -> Option<NodeSetupOrder> {
        let node = self.nodes.get(name)?;
        let status = node.setup.as_ref()?;
        if node.leaving && !self.is_busy(name) {
            return None;
        }
        let cluster = self.clusters.get(&node.cluster)?;
        let setup = cluster.node_setup.as_ref()?;
        let (parent, _) = cluster.name.split_once("/clusters/")?;
        let volumes = setup
            .mount_volumes
            .as_ref()
            .zip(self.workspaces.get(parent))
            .map(|(mounts, owner)| self.volumes_or_gaps(owner, mounts, "nodeSetup.mountVolumes"))
            .unwrap_or_default();
        Some(NodeSetupOrder {
            cluster: cluster.name.clone(),
            cluster_uid: cluster.uid.clone(),
            epoch: status.epoch,
            volumes,
            setup_task: setup.setup_task.clone(),
            path_segment: format!("{}/{}", cluster.name, cluster.uid),
        })
    }

    fn assignment(&self, node: &str, job: &Job) -> Option<Assignment> {
        let attempt = job.attempts.last()?;
        let position = attempt.nodes.iter().position(|n| n.node == node)?;
        let mine = &attempt.nodes[position];
        if !node_is_involved(attempt, phase_of(mine)) {
            return None;
        }
        let spec = job.spec.clone()?;
        let job_name: JobName = job.name.parse().ok()?;
        let workspace = self.workspaces.get(&job_name.workspace().to_string())?;
        let cluster = self.clusters.get(cluster_of(job));
        let cluster_mounts = cluster
            .and_then(|c| c.node_setup.as_ref())
            .and_then(|s| s.mount_volumes.as_ref());
        let cluster_workspace = cluster.and_then(|c| {
            let (parent, _) = c.name.split_once("/clusters/")?;
            self.workspaces.get(parent)
        });
        let cluster_volumes = cluster_mounts
            .zip(cluster_workspace)
            .map(|(mounts, owner)| self.volumes_or_gaps(owner, mounts, "nodeSetup.mountVolumes"))
            .unwrap_or_default();
        let job_volumes = spec
            .mount_volumes
            .as_ref()
            .map(|mounts| self.volumes_or_gaps(workspace, mounts, "mountVolumes"))
            .unwrap_or_default();
        Some(Assignment {
            job: job.name.clone(),
            uid: job.uid.clone(),
            attempt: attempt.number,
            epoch: attempt.epoch,
            phase: attempt.phase.max(AttemptPhase::Prepare as i32),
            nodes: attempt.nodes.iter().map(without_status).collect(),
            node_index: u32::try_from(position).ok()?,
            path_segment: job.job_output_directory_path_segment.clone(),
            cluster_volumes,
            job_volumes,
            run_as_root: workspace.allow_root,
            rendezvous_port: rendezvous_port(attempt),
            cluster: cluster_of(job).to_owned(),
            stop_grace_ms: STOP_GRACE_MS,
            task_user: cluster.map_or_else(String::new, |c| class::user_of(c).to_owned()),
            spec: Some(spec),
        })
    }

    /// Bindings were complete when the job was created. Should one have gone since, the node gets a volume without a
    /// source, and fails the attempt with the name of the mount instead of running without its data.
    fn volumes_or_gaps(
        &self,
        workspace: &trainyard_proto::v1::Workspace,
        mounts: &MountVolumes,
        prefix: &str,
    ) -> Vec<Volume> {
        resolve::volumes(self, workspace, mounts, prefix).unwrap_or_else(|violations| {
            violations
                .into_iter()
                .map(|v| Volume {
                    relative_mount_path: v.field,
                    source: None,
                })
                .collect()
        })
    }
}

/// The port of the master, once every node is past the barrier.
fn rendezvous_port(attempt: &Attempt) -> u32 {
    if attempt.phase() != AttemptPhase::Run {
        return 0;
    }
    attempt
        .nodes
        .first()
        .and_then(|n| n.status.as_ref())
        .map_or(0, |s| s.rendezvous_port)
}

fn without_status(node: &AttemptNode) -> AttemptNode {
    AttemptNode {
        status: None,
        ..node.clone()
    }
}
