//! A small world for scenarios: one workspace, its clusters and nodes, and a log that is applied as it is written.

#![allow(dead_code, unreachable_pub, missing_docs)] // each test file uses its own part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::collections::BTreeSet;

use prost_types::Timestamp;
use trainyard_core::{Change, Outcome, Refusal, Reply, State, placement};
use trainyard_proto::store::v1 as store;
use trainyard_proto::store::v1::command::Kind;
use trainyard_proto::v1::*;

pub const W: &str = "workspaces/w";
pub const E: &str = "workspaces/w/experiments/e";
pub const C: &str = "workspaces/w/clusters/c";

#[derive(Default)]
pub struct World {
    pub state: State,
    pub log: Vec<store::Command>,
    pub now: i64,
    pub unresponsive: BTreeSet<String>,
}

impl World {
    /// A workspace `w` with an experiment `e` and a cluster `c` of `nodes` nodes with `gpus` GPUs each.
    pub fn new(nodes: u32, gpus: u32) -> Self {
        let mut world = Self::default();
        world.ok(Kind::CreateWorkspace(store::CreateWorkspace {
            workspace: Some(Workspace {
                name: W.into(),
                uid: "uid-w".into(),
                ..Default::default()
            }),
            request_id: String::new(),
        }));
        world.ok(Kind::CreateExperiment(store::CreateExperiment {
            experiment: Some(Experiment {
                name: E.into(),
                uid: "uid-e".into(),
                ..Default::default()
            }),
            request_id: String::new(),
        }));
        world.cluster(C, nodes).expect("cluster");
        for i in 1..=nodes {
            world.hello(&format!("n{i}"), gpus, "boot-1", vec![]);
        }
        world.plan();
        world
    }

    /// The present time.
    pub fn time(&self) -> Timestamp {
        Timestamp {
            seconds: self.now,
            nanos: 0,
        }
    }

    pub fn apply(&mut self, kind: Kind) -> Outcome {
        let command = store::Command {
            format: 1,
            time: Some(Timestamp {
                seconds: self.now,
                nanos: 0,
            }),
            kind: Some(kind),
        };
        self.log.push(command.clone());
        self.now += 1;
        self.state.apply(self.log.len() as u64, &command)
    }

    pub fn ok(&mut self, kind: Kind) -> (Reply, Vec<Change>) {
        let outcome = self.apply(kind);
        (outcome.reply.expect("accepted"), outcome.changes)
    }

    pub fn cluster(&mut self, name: &str, target: u32) -> Result<Reply, Refusal> {
        self.apply(Kind::CreateCluster(store::CreateCluster {
            cluster: Some(Cluster {
                name: name.into(),
                uid: format!("uid-{name}"),
                scale_settings: Some(ScaleSettings {
                    manual: Some(ManualScaleSettings {
                        target_node_count: target,
                        ..Default::default()
                    }),
                    auto_scale: None,
                }),
                ..Default::default()
            }),
            request_id: String::new(),
        }))
        .reply
    }

    pub fn hello(
        &mut self,
        node: &str,
        gpus: u32,
        boot: &str,
        observed: Vec<ObservedAttempt>,
    ) -> Node {
        let hello = Hello {
            node: node.into(),
            inventory: Some(Inventory {
                address: format!("10.0.0.{}", &node[1..]),
                cpus: 8,
                gpus: (0..gpus)
                    .map(|index| Gpu {
                        index,
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            }),
            agent_address: format!("{node}:7000"),
            boot_id: boot.into(),
            node_class: format!("gpu{gpus}"),
            observed: Some(Observed {
                sequence: 0,
                attempts: observed,
                ..Observed::default()
            }),
            ..Default::default()
        };
        match self
            .ok(Kind::RegisterNode(store::RegisterNode {
                hello: Some(hello),
            }))
            .0
        {
            Reply::Node(node) => *node,
            other => panic!("{other:?}"),
        }
    }

    pub fn try_job(&mut self, id: &str, spec: JobSpec, request_id: &str) -> Result<Reply, Refusal> {
        let uid = format!("uid-{id}-{}", self.log.len());
        self.apply(Kind::CreateJob(store::CreateJob {
            job: Some(Job {
                name: job(id),
                uid,
                spec: Some(spec),
                ..Default::default()
            }),
            request_id: request_id.into(),
        }))
        .reply
    }

    /// Queues a job of whole nodes.
    pub fn submit(&mut self, id: &str, nodes: u32) -> String {
        self.try_job(id, spec(nodes), "").expect("job accepted");
        job(id)
    }

    pub fn submit_gpus(&mut self, id: &str, nodes: u32, gpus: u32) -> String {
        let spec = JobSpec {
            resources_per_node: Some(ResourcesPerNode { gpus }),
            ..spec(nodes)
        };
        self.try_job(id, spec, "").expect("job accepted");
        job(id)
    }

    pub fn submit_priority(
        &mut self,
        id: &str,
        nodes: u32,
        priority: SchedulingPriority,
    ) -> String {
        let spec = JobSpec {
            scheduling_priority: priority.into(),
            ..spec(nodes)
        };
        self.try_job(id, spec, "").expect("job accepted");
        job(id)
    }

    /// Plans and applies until nothing is left to do, as the leader's loop does.
    pub fn plan(&mut self) {
        loop {
            let plan = placement::plan(&self.state, &self.unresponsive, &self.time());
            if placement::is_empty(&plan) {
                return;
            }
            let before = self.state.to_snapshot();
            self.ok(Kind::ApplyPlan(plan));
            assert_ne!(
                before,
                self.state.to_snapshot(),
                "a plan that changes nothing would be planned for ever"
            );
            self.check();
        }
    }

    /// Sweeps as the leader's loop does, at most `limit` resources at a time, until nothing more can be done now.
    pub fn sweep(&mut self, limit: u32) {
        while self.state.sweep_due() {
            let (reply, changes) = self.ok(Kind::Sweep(store::Sweep { limit }));
            let Reply::Count(steps) = reply else {
                panic!("{reply:?}");
            };
            assert!((1..=u64::from(limit)).contains(&steps), "{steps} steps");
            assert!(!changes.is_empty(), "progress wakes the loop");
        }
        self.check();
    }

    pub fn experiment(&mut self, name: &str) -> Result<Reply, Refusal> {
        self.apply(Kind::CreateExperiment(store::CreateExperiment {
            experiment: Some(Experiment {
                name: name.into(),
                uid: format!("uid-{name}"),
                ..Default::default()
            }),
            request_id: String::new(),
        }))
        .reply
    }

    /// Runs a job of one node to its end with this exit code.
    pub fn run(&mut self, id: &str, code: i32) {
        self.plan();
        let node = self.nodes_of(id).remove(0);
        self.report(&node, id, AttemptNodePhase::Running);
        self.exit(&node, id, code);
        self.report(&node, id, AttemptNodePhase::Cleaned);
    }

    /// Code of the first error of an ended job.
    pub fn error_code(&self, id: &str) -> String {
        let info = self.job(id).execution_info.unwrap_or_default();
        info.errors
            .first()
            .map(|e| e.code.clone())
            .unwrap_or_default()
    }

    pub fn job(&self, id: &str) -> Job {
        self.state
            .job(&job(id))
            .unwrap_or_else(|| panic!("no job {id}"))
            .into_owned()
    }

    pub fn execution(&self, id: &str) -> ExecutionState {
        self.job(id).execution_state()
    }

    pub fn attempt(&self, id: &str) -> Attempt {
        self.job(id).attempts.last().expect("attempt").clone()
    }

    /// Nodes of the latest attempt, by last segment.
    pub fn nodes_of(&self, id: &str) -> Vec<String> {
        self.attempt(id)
            .nodes
            .iter()
            .map(|n| n.node.trim_start_matches("nodes/").to_owned())
            .collect()
    }

    pub fn observed(&self, id: &str, status: AttemptNodeStatus) -> ObservedAttempt {
        let j = self.job(id);
        let a = self.attempt(id);
        ObservedAttempt {
            job: j.name.clone(),
            uid: j.uid.clone(),
            attempt: a.number,
            epoch: a.epoch,
            status: Some(status),
        }
    }

    pub fn report_raw(&mut self, node: &str, attempts: Vec<ObservedAttempt>) {
        let name = format!("nodes/{node}");
        let session_epoch = self.state.node(&name).expect("node").session_epoch;
        self.ok(Kind::ReportAttempts(store::ReportAttempts {
            node: name,
            session_epoch,
            attempts,
            ..store::ReportAttempts::default()
        }));
        self.check();
    }

    /// One node reports one phase of a job's latest attempt.
    pub fn report(&mut self, node: &str, id: &str, phase: AttemptNodePhase) {
        self.report_status(node, id, status(phase));
    }

    pub fn report_status(&mut self, node: &str, id: &str, status: AttemptNodeStatus) {
        let observed = self.observed(id, status);
        self.report_raw(node, vec![observed]);
    }

    pub fn exit(&mut self, node: &str, id: &str, code: i32) {
        self.report_status(
            node,
            id,
            AttemptNodeStatus {
                exit_code: Some(code),
                ..status(AttemptNodePhase::Exited)
            },
        );
    }

    pub fn terminate(&mut self, id: &str) {
        self.ok(Kind::TerminateJob(store::TerminateJob {
            name: job(id),
            ..Default::default()
        }));
        self.check();
    }

    pub fn lose(&mut self, node: &str) {
        let name = format!("nodes/{node}");
        let session_epoch = self.state.node(&name).expect("node").session_epoch;
        self.ok(Kind::MarkNodesLost(store::MarkNodesLost {
            nodes: vec![store::LostNode {
                node: name,
                session_epoch,
            }],
        }));
        self.check();
    }

    pub fn delete(&mut self, name: &str) -> Result<Reply, Refusal> {
        let delete = store::Delete {
            name: name.into(),
            etag: String::new(),
            ..store::Delete::default()
        };
        let kind = match name.split('/').rev().nth(1).expect("collection") {
            "workspaces" => Kind::DeleteWorkspace(delete),
            "clusters" => Kind::DeleteCluster(delete),
            "fileServers" => Kind::DeleteFileServer(delete),
            "experiments" => Kind::DeleteExperiment(delete),
            "jobs" => Kind::DeleteJob(delete),
            "nodes" => Kind::DeleteNode(delete),
            other => panic!("{other}"),
        };
        self.apply(kind).reply
    }

    /// What the agent of `node` is told about a job; `None`: it shall not hold it.
    pub fn desired_phase(&self, node: &str, id: &str) -> Option<AttemptPhase> {
        let name = job(id);
        self.state
            .desired(&format!("nodes/{node}"))
            .assignments
            .iter()
            .find(|a| a.job == name)
            .map(Assignment::phase)
    }

    pub fn explain(&self, id: &str) -> JobExplanation {
        self.state
            .explain(&job(id), &self.unresponsive, &self.time())
            .expect("job")
    }

    /// No child without its parent, whatever was deleted.
    pub fn check_parents(&self) {
        let workspace = |name: &str| {
            let parent = name.split('/').take(2).collect::<Vec<_>>().join("/");
            assert!(
                self.state.workspace(&parent).is_some(),
                "{name} has no workspace"
            );
        };
        for experiment in self.state.experiments("workspaces/-", "", usize::MAX) {
            workspace(&experiment.name);
        }
        for cluster in self.state.clusters("workspaces/-", "", usize::MAX) {
            workspace(&cluster.name);
        }
        for server in self.state.file_servers("workspaces/-", "", usize::MAX) {
            workspace(&server.name);
        }
        for job in self
            .state
            .jobs("workspaces/-/experiments/-", "", usize::MAX)
        {
            let (experiment, _) = job.name.split_once("/jobs/").expect("a job's name");
            assert!(
                self.state.experiment(experiment).is_some(),
                "{} has no experiment",
                job.name
            );
            workspace(&job.name);
        }
    }

    /// What must hold in every state.
    pub fn check(&self) {
        self.check_parents();
        let bytes = self.state.to_snapshot();
        let copy = State::from_snapshot(&bytes).expect("readable");
        assert_eq!(
            copy.to_snapshot(),
            bytes,
            "a snapshot must give itself again"
        );
        assert_eq!(copy, self.state, "indexes must follow from the resources");
        for node in self.state.nodes("", usize::MAX) {
            let mut taken = BTreeSet::new();
            let mut whole = 0;
            let held = self
                .state
                .jobs("workspaces/-/experiments/-", "", usize::MAX);
            for attempt in held.iter().filter_map(|j| j.attempts.last()) {
                if attempt.phase() == AttemptPhase::Ended {
                    continue;
                }
                for part in attempt.nodes.iter().filter(|n| n.node == node.name) {
                    let phase = part
                        .status
                        .as_ref()
                        .map_or(AttemptNodePhase::Unspecified, |s| s.phase());
                    if matches!(phase, AttemptNodePhase::Cleaned | AttemptNodePhase::Lost) {
                        continue;
                    }
                    whole += u32::from(part.whole_node);
                    for gpu in &part.gpus {
                        assert!(
                            taken.insert(*gpu),
                            "GPU {gpu} of {} is held twice",
                            node.name
                        );
                    }
                }
            }
            assert!(whole <= 1, "{} is wholly held {whole} times", node.name);
        }
    }
}

pub fn job(id: &str) -> String {
    format!("{E}/jobs/{id}")
}

pub fn status(phase: AttemptNodePhase) -> AttemptNodeStatus {
    AttemptNodeStatus {
        phase: phase.into(),
        ..Default::default()
    }
}

pub fn spec(nodes: u32) -> JobSpec {
    JobSpec {
        cluster: Some(ResourceId { id: "c".into() }),
        node_count: nodes,
        std_out_err_path_prefix: "/logs".into(),
        custom_toolkit_settings: Some(CustomToolkitSettings {
            command_line: "true".into(),
        }),
        ..Default::default()
    }
}
