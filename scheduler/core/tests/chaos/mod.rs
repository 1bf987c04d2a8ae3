//! Turns numbers into commands of every kind, over a small set of names.

#![allow(unreachable_pub, missing_docs)]

use std::collections::BTreeSet;

use proptest::prelude::*;
use prost_types::{Duration, FieldMask, Timestamp};
use trainyard_core::{COMMAND_FORMAT, State, placement};
use trainyard_proto::store::v1::{self as store, Command, command::Kind};
use trainyard_proto::v1::*;

/// One step of a history: what to do, and numbers that say with what.
#[derive(Debug, Clone)]
pub struct Step {
    kind: u8,
    a: u8,
    b: u8,
    c: u8,
    d: u8,
}

impl Arbitrary for Step {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        (0u8..100, any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>())
            .prop_map(|(kind, a, b, c, d)| Self { kind, a, b, c, d })
            .boxed()
    }
}

/// Where every history begins: a workspace with an experiment, a cluster of two nodes, and three nodes.
pub fn prelude() -> Vec<Step> {
    let step = |kind, a, b, c, d| Step { kind, a, b, c, d };
    vec![
        step(0, 1, 0, 0, 200),
        step(6, 1, 0, 1, 200),
        step(12, 1, 0, 2, 31),
        step(41, 1, 200, 0, 200),
        step(41, 2, 200, 0, 200),
        step(41, 3, 200, 0, 200),
    ]
}

/// A state and the log that made it.
#[derive(Debug, Default)]
pub struct Chaos {
    pub state: State,
    pub log: Vec<Command>,
    /// Whether the last command is a plan of the state as it is.
    pub is_fresh_plan: bool,
    now: i64,
    stale: store::ApplyPlan,
}

fn workspace(n: u8) -> String {
    // The first is used most, so that things meet.
    format!("workspaces/w{}", u8::from(n.is_multiple_of(16)))
}

fn experiment(n: u8, m: u8) -> String {
    format!("{}/experiments/e{}", workspace(n), u8::from(m % 8 == 7))
}

fn cluster(n: u8, m: u8) -> String {
    format!("{}/clusters/{}", workspace(n), cluster_id(m))
}

fn cluster_id(m: u8) -> &'static str {
    match m % 8 {
        6 => "c1",
        7 => "c2",
        _ => "c0",
    }
}

fn server(n: u8, m: u8) -> String {
    format!("{}/fileServers/f{}", workspace(n), m % 2)
}

fn job(n: u8, m: u8) -> String {
    format!("{}/jobs/j{}", experiment(n, m), m % 5)
}

fn node(n: u8) -> String {
    format!("n{}", n % 4)
}

fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask {
        paths: paths.iter().map(|p| (*p).to_owned()).collect(),
    })
}

impl Chaos {
    /// The command of a step; `None`: there is nothing to do.
    pub fn command(&mut self, step: &Step) -> Option<Command> {
        self.now += match step.d {
            0..4 => 40_000,
            4..20 => 400,
            20..24 => -3,
            _ => 1,
        };
        self.is_fresh_plan = false;
        let kind = self.kind(step)?;
        Some(Command {
            format: COMMAND_FORMAT,
            time: Some(Timestamp {
                seconds: 1_000_000 + self.now,
                nanos: i32::from(step.d),
            }),
            kind,
        })
    }

    fn kind(&mut self, s: &Step) -> Option<Option<Kind>> {
        let (a, b, c, d) = (s.a, s.b, s.c, s.d);
        let uid = format!("uid-{}", self.log.len());
        let request_id = if d.is_multiple_of(12) {
            format!("r{}", c % 8)
        } else {
            String::new()
        };
        let delete = |name: String| store::Delete {
            name,
            etag: if d == 7 {
                "1".to_owned()
            } else {
                String::new()
            },
            force: c.is_multiple_of(2),
        };
        Some(Some(match s.kind {
            0..5 => Kind::CreateWorkspace(store::CreateWorkspace {
                workspace: Some(Workspace {
                    name: workspace(a),
                    uid,
                    ..Workspace::default()
                }),
                request_id,
            }),
            5 => Kind::UpdateWorkspace(store::UpdateWorkspace {
                workspace: Some(Workspace {
                    name: workspace(a),
                    allow_root: b.is_multiple_of(2),
                    retention: Some(RetentionPolicy {
                        max_age: Some(Duration {
                            seconds: b.into(),
                            nanos: 0,
                        }),
                        max_finished_jobs: u32::from(c % 3),
                    }),
                    storage_bindings: vec![StorageBinding {
                        share: "s".to_owned(),
                        target: Some(storage_binding::Target::FileServer(FileServerDirectory {
                            file_server: "f0".to_owned(),
                            directory: String::new(),
                        })),
                    }],
                    ..Workspace::default()
                }),
                update_mask: mask(match d % 3 {
                    0 => &["retention", "allow_root"],
                    1 => &["storage_bindings"],
                    _ => &["tags"],
                }),
            }),
            6 if c.is_multiple_of(12) => Kind::DeleteWorkspace(delete(workspace(a))),
            6..11 => Kind::CreateExperiment(store::CreateExperiment {
                experiment: Some(Experiment {
                    name: experiment(a, b),
                    uid,
                    ..Experiment::default()
                }),
                request_id: String::new(),
            }),
            11 => Kind::DeleteExperiment(delete(experiment(a, b))),
            12..17 => Kind::CreateCluster(store::CreateCluster {
                cluster: Some(new_cluster(s, uid)),
                request_id,
            }),
            17 => Kind::UpdateCluster(store::UpdateCluster {
                cluster: Some(Cluster {
                    name: cluster(a, b),
                    scale_settings: Some(scale(c, d)),
                    ..Cluster::default()
                }),
                update_mask: mask(&["scale_settings"]),
            }),
            18 => Kind::DeleteCluster(delete(cluster(a, b))),
            19..22 => Kind::CreateFileServer(store::CreateFileServer {
                file_server: Some(new_server(s, uid)),
                request_id,
            }),
            22 => Kind::DeleteFileServer(delete(server(a, b))),
            23..33 => Kind::CreateJob(store::CreateJob {
                job: Some(Job {
                    name: job(a, b),
                    uid,
                    spec: Some(spec(s)),
                    user: format!("user{}", d % 2),
                    ..Job::default()
                }),
                request_id,
            }),
            33 => Kind::CreateJobArray(store::CreateJobArray {
                job: Some(Job {
                    name: format!("{}/jobs/array", experiment(a, b)),
                    uid,
                    spec: Some(spec(s)),
                    ..Job::default()
                }),
                sweep: Some(ParameterSweep {
                    parameters: vec![SweepParameter {
                        name: "X".to_owned(),
                        values: (0..c % 4).map(|n| n.to_string()).collect(),
                        ..SweepParameter::default()
                    }],
                    max_running_jobs: u32::from(d % 3),
                    ..ParameterSweep::default()
                }),
                request_id,
            }),
            34 => Kind::TerminateJob(store::TerminateJob {
                name: job(a, b),
                cause: i32::from(c % 7),
                uid: String::new(),
            }),
            35 => Kind::TerminateJobs(store::TerminateJobs {
                jobs: self
                    .jobs()
                    .iter()
                    .filter(|j| j.sequence.is_multiple_of(2))
                    .map(|j| store::TerminateJob {
                        name: j.name.clone(),
                        uid: j.uid.clone(),
                        ..store::TerminateJob::default()
                    })
                    .collect(),
            }),
            36 => Kind::DeleteJob(delete(job(a, b))),
            37 => Kind::RemoveJobs(store::RemoveJobs {
                jobs: self
                    .jobs()
                    .iter()
                    .skip(usize::from(a % 3))
                    .map(|j| store::JobReference {
                        name: j.name.clone(),
                        uid: j.uid.clone(),
                    })
                    .collect(),
            }),
            38..41 => Kind::Sweep(store::Sweep {
                limit: u32::from(a % 4),
            }),
            41..50 => Kind::RegisterNode(store::RegisterNode {
                hello: Some(self.hello(s)),
            }),
            50..68 => self.report(s)?,
            68 | 69 => Kind::MarkNodesLost(store::MarkNodesLost {
                nodes: vec![store::LostNode {
                    node: format!("nodes/{}", node(a)),
                    session_epoch: self
                        .state
                        .node(&format!("nodes/{}", node(a)))?
                        .session_epoch
                        - u64::from(b < 20),
                }],
            }),
            70 => Kind::DeleteNode(delete(format!("nodes/{}", node(a)))),
            71..88 => {
                let unresponsive: BTreeSet<String> = (a < 30)
                    .then(|| format!("nodes/{}", node(b)))
                    .into_iter()
                    .collect();
                let now = Timestamp {
                    seconds: 1_000_000 + self.now,
                    nanos: i32::from(d),
                };
                let plan = placement::plan(&self.state, &unresponsive, &now);
                if placement::is_empty(&plan) {
                    return None;
                }
                self.is_fresh_plan = true;
                self.stale.clone_from(&plan);
                Kind::ApplyPlan(plan)
            }
            88 => Kind::ApplyPlan(self.stale.clone()),
            89 => Kind::ApplyPlan(self.wild_plan(s)),
            90 | 91 => Kind::UpdateQuota(store::UpdateQuota {
                quota: Some(Quota {
                    name: if a.is_multiple_of(3) {
                        "quota".to_owned()
                    } else {
                        format!("{}/quota", workspace(a))
                    },
                    clusters: Some(u32::from(b % 4)),
                    nodes: (b.is_multiple_of(2)).then(|| u32::from(c % 9)),
                    gpus: (b.is_multiple_of(3)).then(|| u32::from(c % 9)),
                    running_jobs: (b.is_multiple_of(5)).then(|| u32::from(c % 3)),
                    queued_jobs: Some(u32::from(c % 16)),
                    gpu_hours: (b.is_multiple_of(7)).then(|| f64::from(c) / 10.0),
                    gpu_hours_period: None,
                    etag: String::new(),
                }),
                update_mask: mask(match d % 4 {
                    0 => &["clusters", "queued_jobs"],
                    1 => &["nodes", "gpus"],
                    2 => &["running_jobs", "gpu_hours"],
                    _ => &["nonsense"],
                }),
            }),
            92 => Kind::CreateNodeClass(store::CreateNodeClass {
                node_class: Some(NodeClass {
                    name: format!("nodeClasses/k{}", a % 2),
                    aliases: vec![format!("ALIAS_{}", b % 2)],
                    r#match: Some(NodeClassMatch {
                        gpu_count: Some(u32::from(c % 3) * 2),
                        ..NodeClassMatch::default()
                    }),
                    ..NodeClass::default()
                }),
                request_id,
            }),
            93 => Kind::DeleteNodeClass(delete(format!("nodeClasses/k{}", a % 2))),
            94 => Kind::RetryNode(store::RetryNode {
                name: format!("nodes/{}", node(a)),
            }),
            95 | 96 => Kind::SetPower(store::SetPower {
                node: format!("nodes/{}", node(a)),
                state: i32::from(b % 7),
                from: i32::from(c % 7),
                reason: "because".to_owned(),
            }),
            97 => Kind::DropUsage(store::DropUsage {
                before: Some(Timestamp {
                    seconds: 1_000_000 + self.now - i64::from(a),
                    nanos: 0,
                }),
            }),
            98 => return Some(None),
            _ => hollow(a),
        }))
    }

    fn jobs(&self) -> Vec<Job> {
        self.state
            .jobs("workspaces/-/experiments/-", "", usize::MAX)
    }

    /// What the agent of a node would say by now; now and then it is wrong, or of the past.
    fn observed(&self, node: &str, s: &Step) -> Observed {
        let desired = self.state.desired(&format!("nodes/{node}"));
        let honest = s.b > 40;
        let attempts = desired
            .assignments
            .iter()
            .filter(|_| s.b > 10)
            .map(|order| {
                let stopping = order.phase() == AttemptPhase::Stop;
                let phase = match (stopping && honest, s.c % 8) {
                    (true, _) | (_, 6) => AttemptNodePhase::Cleaned,
                    (_, 0) => AttemptNodePhase::Preparing,
                    (_, 1) => AttemptNodePhase::Prepared,
                    (_, 2) => AttemptNodePhase::Failed,
                    (_, 3) => AttemptNodePhase::Running,
                    _ => AttemptNodePhase::Exited,
                };
                ObservedAttempt {
                    job: order.job.clone(),
                    uid: order.uid.clone(),
                    attempt: order.attempt,
                    epoch: order.epoch - u64::from(s.b < 20),
                    status: Some(AttemptNodeStatus {
                        phase: phase.into(),
                        exit_code: (phase == AttemptNodePhase::Exited)
                            .then(|| i32::from(s.d.is_multiple_of(3))),
                        ..AttemptNodeStatus::default()
                    }),
                }
            })
            .collect();
        let setup = desired.setup.as_ref().map(|order| ObservedSetup {
            cluster: order.cluster.clone(),
            cluster_uid: order.cluster_uid.clone(),
            status: Some(NodeSetupStatus {
                epoch: order.epoch - u64::from(s.b < 30),
                phase: if honest { 2 } else { i32::from(s.c % 5) },
                boot_id: format!("boot-{}", s.d % 2),
                ..NodeSetupStatus::default()
            }),
        });
        let exports = desired
            .exports
            .iter()
            .map(|order| ExportStatus {
                file_server: order.file_server.clone(),
                uid: order.uid.clone(),
                ready: !s.c.is_multiple_of(4),
                export: format!("/{}", order.uid),
                port: 2049,
                capacity_bytes: u64::from(s.d) * 1000,
                errors: (s.c.is_multiple_of(4) && s.d > 99)
                    .then(BatchAiError::default)
                    .into_iter()
                    .collect(),
                ..ExportStatus::default()
            })
            .collect();
        Observed {
            sequence: 1,
            attempts,
            setup,
            exports,
        }
    }

    fn hello(&self, s: &Step) -> Hello {
        let node = node(s.a);
        Hello {
            inventory: Some(Inventory {
                address: format!("10.0.0.{}", s.a % 4),
                cpus: 8,
                gpus: (0..u32::from(s.a % 4) * 2)
                    .map(|index| Gpu {
                        index,
                        ..Gpu::default()
                    })
                    .collect(),
                can_export: true,
                task_users: vec!["alice".to_owned()],
                mac: "02:00:00:00:00:01".to_owned(),
                ..Inventory::default()
            }),
            boot_id: format!("boot-{}", u8::from(s.d < 40)),
            node_class: "reported".to_owned(),
            node_class_is_set: s.a.is_multiple_of(2),
            observed: Some(self.observed(&node, s)),
            node,
            ..Hello::default()
        }
    }

    fn report(&self, s: &Step) -> Option<Kind> {
        let name = format!("nodes/{}", node(s.a));
        let known = self.state.node(&name)?;
        let observed = self.observed(&node(s.a), s);
        Some(Kind::ReportAttempts(store::ReportAttempts {
            node: name,
            session_epoch: known.session_epoch - u64::from(s.b < 5),
            attempts: observed.attempts,
            setup: observed.setup,
            exports: observed.exports,
        }))
    }

    /// A plan that placement would never make.
    fn wild_plan(&self, s: &Step) -> store::ApplyPlan {
        let jobs = self.jobs();
        let starts = jobs
            .iter()
            .map(|j| store::Start {
                job: j.name.clone(),
                uid: j.uid.clone(),
                nodes: vec![store::StartNode {
                    node: format!("nodes/{}", node(s.b)),
                    gpus: (0..u32::from(s.c % 4)).collect(),
                    whole_node: s.d.is_multiple_of(2),
                }],
            })
            .collect();
        store::ApplyPlan {
            assignments: (0..4)
                .map(|n| store::NodeAssignment {
                    node: format!("nodes/{}", node(n)),
                    cluster: cluster(s.a, s.b),
                })
                .collect(),
            starts,
            releases: vec![store::NodeRelease {
                node: format!("nodes/{}", node(s.c)),
                cluster: cluster(s.a, s.b),
                option: i32::from(s.d % 5),
                cause: i32::from(s.d % 4),
            }],
            targets: vec![store::ClusterTarget {
                cluster: cluster(s.b, s.c),
                target: u32::from(s.d % 6),
            }],
        }
    }
}

fn scale(c: u8, d: u8) -> ScaleSettings {
    if c.is_multiple_of(3) {
        ScaleSettings {
            manual: None,
            auto_scale: Some(AutoScaleSettings {
                minimum_node_count: u32::from(d % 2),
                maximum_node_count: u32::from(d % 4),
                initial_node_count: u32::from(d % 3),
                node_idle_time_before_scale_down: None,
            }),
        }
    } else {
        ScaleSettings {
            manual: Some(ManualScaleSettings {
                target_node_count: u32::from(c % 4),
                node_deallocation_option: i32::from(d % 4),
            }),
            auto_scale: None,
        }
    }
}

fn mounts(relative: &str) -> MountVolumes {
    MountVolumes {
        file_servers: vec![FileServerReference {
            file_server: Some(ResourceId {
                id: "f0".to_owned(),
            }),
            relative_mount_path: relative.to_owned(),
            ..FileServerReference::default()
        }],
        ..MountVolumes::default()
    }
}

fn new_cluster(s: &Step, uid: String) -> Cluster {
    Cluster {
        name: cluster(s.a, s.b),
        uid,
        vm_size: match s.d % 8 {
            0 => "k0".to_owned(),
            1 => "ALIAS_1".to_owned(),
            _ => String::new(),
        },
        vm_priority: i32::from(s.b % 3),
        scale_settings: Some(scale(s.c, s.d)),
        node_setup: (s.d.is_multiple_of(3)).then(|| NodeSetup {
            setup_task: Some(SetupTask {
                command_line: "true".to_owned(),
                std_out_err_path_prefix: "/logs".to_owned(),
                ..SetupTask::default()
            }),
            mount_volumes: (s.d.is_multiple_of(2)).then(|| mounts("m")),
            ..NodeSetup::default()
        }),
        user_account_settings: (s.d == 99).then(|| UserAccountSettings {
            admin_user_name: "bob".to_owned(),
            ..UserAccountSettings::default()
        }),
        ..Cluster::default()
    }
}

fn new_server(s: &Step, uid: String) -> FileServer {
    FileServer {
        name: server(s.a, s.b),
        uid,
        kind: Some(if s.c.is_multiple_of(4) {
            file_server::Kind::External(ExternalFileServer {
                address: "filer".to_owned(),
                export: "/data".to_owned(),
                ..ExternalFileServer::default()
            })
        } else {
            file_server::Kind::Managed(ManagedFileServer {
                node: if s.c.is_multiple_of(2) {
                    node(s.d)
                } else {
                    String::new()
                },
                ..ManagedFileServer::default()
            })
        }),
        ..FileServer::default()
    }
}

fn spec(s: &Step) -> JobSpec {
    JobSpec {
        cluster: Some(ResourceId {
            id: cluster_id(s.c).to_owned(),
        }),
        node_count: u32::from(s.d % 7 / 2).max(1),
        scheduling_priority: i32::from(s.c % 4),
        std_out_err_path_prefix: "/logs".to_owned(),
        custom_toolkit_settings: Some(CustomToolkitSettings {
            command_line: "true".to_owned(),
        }),
        mount_volumes: (s.c > 230).then(|| mounts("d")),
        resources_per_node: (s.d.is_multiple_of(2)).then(|| ResourcesPerNode {
            gpus: u32::from(s.c % 4),
        }),
        constraints: (s.d.is_multiple_of(3)).then(|| JobConstraints {
            max_retry_count: u32::from(s.c % 3),
            ..JobConstraints::default()
        }),
        depends_on: (s.d > 200)
            .then(|| JobDependency {
                job: Some(ResourceId {
                    id: format!("j{}", s.c % 5),
                }),
                condition: i32::from(s.c % 3),
            })
            .into_iter()
            .collect(),
        ..JobSpec::default()
    }
}

/// A command that carries nothing.
fn hollow(n: u8) -> Kind {
    match n % 14 {
        0 => Kind::CreateWorkspace(store::CreateWorkspace::default()),
        1 => Kind::CreateCluster(store::CreateCluster::default()),
        2 => Kind::CreateJob(store::CreateJob::default()),
        3 => Kind::CreateJobArray(store::CreateJobArray::default()),
        4 => Kind::RegisterNode(store::RegisterNode::default()),
        5 => Kind::ReportAttempts(store::ReportAttempts::default()),
        6 => Kind::ApplyPlan(store::ApplyPlan::default()),
        7 => Kind::UpdateQuota(store::UpdateQuota::default()),
        8 => Kind::SetPower(store::SetPower::default()),
        9 => Kind::RetryNode(store::RetryNode::default()),
        10 => Kind::DropUsage(store::DropUsage::default()),
        11 => Kind::Sweep(store::Sweep::default()),
        12 => Kind::UpdateCluster(store::UpdateCluster::default()),
        _ => Kind::CreateNodeClass(store::CreateNodeClass::default()),
    }
}
