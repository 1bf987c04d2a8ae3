//! The variables of an attempt on its node.

use std::path::Path;

use trainyard_proto::v1::Assignment;

use super::paths::last_segment;
use super::{Facts, Layout};
use crate::environment::{Environment, add_user_variables, visible_devices};

impl Layout {
    /// Variables that need nothing but the roots and the allocation.
    pub(super) fn base_environment(&self, assignment: &Assignment, facts: &Facts) -> Environment {
        let address = |index: usize| {
            assignment
                .nodes
                .get(index)
                .map(|node| node.address.clone())
                .unwrap_or_default()
        };
        let addresses: Vec<&str> = assignment
            .nodes
            .iter()
            .map(|node| node.address.as_str())
            .collect();
        let gpus = assignment
            .nodes
            .get(self.node_index)
            .map(|node| node.gpus.clone())
            .unwrap_or_default();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let home = self.user.home.as_deref().unwrap_or(&self.job_root);

        let mut variables: Vec<(&str, String)> = vec![
            ("PATH", facts.path.clone()),
            ("HOME", text(home)),
            ("USER", self.user.name.clone()),
            ("LOGNAME", self.user.name.clone()),
            ("SHELL", "/bin/bash".to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
            ("AZ_BATCHAI_MOUNT_ROOT", text(&self.mount_root)),
            ("AZ_BATCHAI_JOB_MOUNT_ROOT", text(&self.job_mounts)),
            ("AZ_BATCHAI_JOB_TEMP", text(&self.job_root)),
            // In Batch AI the directory above, shared by all jobs of the node; recipes use it as scratch of their own.
            ("AZ_BATCHAI_JOB_TEMP_DIR", text(&self.job_root)),
            ("AZ_BATCHAI_JOB_WORK_DIR", text(&self.job_root)),
            ("AZ_BATCHAI_SHARED_JOB_TEMP", text(&self.shared_temp)),
            ("AZ_BATCHAI_MPI_HOST_FILE", text(&self.hostfile)),
            ("AZ_BATCHAI_NUM_GPUS", gpus.len().to_string()),
            ("AZ_BATCHAI_NUM_GPUS_PER_NODE", gpus.len().to_string()),
            ("AZ_BATCHAI_GPU_COUNT", gpus.len().to_string()),
            (
                "AZ_BATCHAI_CLUSTER_NAME",
                last_segment(&assignment.cluster).to_owned(),
            ),
            ("AZ_BATCHAI_NODE_IP", address(self.node_index)),
            ("AZ_BATCHAI_MPI_MASTER_NODE", address(0)),
            ("AZ_BATCHAI_JOB_MASTER_NODE_IP", address(0)),
            (
                "AZ_BATCHAI_IS_CURRENT_NODE_MASTER",
                (self.node_index == 0).to_string(),
            ),
            ("AZ_BATCH_HOST_LIST", addresses.join(",")),
            ("AZ_BATCH_NODE_LIST", addresses.join(";")),
            ("TRAINYARD_JOB", assignment.job.clone()),
            ("TRAINYARD_ATTEMPT", assignment.attempt.to_string()),
            ("TRAINYARD_NODE", self.node.clone()),
        ];
        if let Some(temp) = &self.temp {
            variables.push(("TMPDIR", text(temp)));
        }
        if let Some(interface) = &facts.interface {
            variables.push(("GLOO_SOCKET_IFNAME", interface.clone()));
            variables.push(("NCCL_SOCKET_IFNAME", interface.clone()));
        }
        if !gpus.is_empty() {
            // The indexes are NVML's, which counts by bus; CUDA counts by speed unless told so.
            variables.push(("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()));
            variables.push(("CUDA_VISIBLE_DEVICES", visible_devices(&gpus)));
        }
        variables
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    pub(super) fn add_user_variables(&self, environment: &mut Environment) {
        let held = (!self.whole_node)
            .then(|| environment.get("CUDA_VISIBLE_DEVICES").cloned())
            .flatten();
        let variables = self
            .user_variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        add_user_variables(environment, variables);
        if let Some(held) = held {
            // Other jobs hold the node's other GPUs.
            environment.insert("CUDA_VISIBLE_DEVICES".to_owned(), held);
        }
    }

    /// Environment of a task: `extra` are the variables of this task alone; the user's variables see them.
    #[must_use]
    pub fn task_environment(&self, extra: &[(&str, String)]) -> Environment {
        let mut environment = self.environment.clone();
        environment.extend(
            extra
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone())),
        );
        self.add_user_variables(&mut environment);
        environment
    }
}
