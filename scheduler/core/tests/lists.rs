//! Lists: filters, orders, slices that leave nothing out, and what a finished job costs.

#![allow(clippy::unwrap_used)] // a test's helpers
#![allow(unsafe_code)] // an allocator that counts

mod world;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use trainyard_core::filter::{Filter, Kind, Order};
use trainyard_core::{ClustersQuery, JobsQuery, ListCursor, NodesQuery, State};
use trainyard_proto::store::v1 as store;
use trainyard_proto::v1::AttemptNodePhase::Cleaned;
use trainyard_proto::v1::{
    Attempt, AttemptNode, AttemptNodeStatus, AttemptPhase, AzureFileShareReference,
    ContainerSettings, EnvironmentVariable, ExecutionInfo, ExecutionState, ImageSourceRegistry,
    Job, JobPreparation, JobSpec, MountVolumes, OutputDirectory, PyTorchSettings, ResourceId,
};
use world::{E, World};

thread_local! {
    static ALLOCATED: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is done by the system's allocator; the counter is the thread's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATED.try_with(|n| n.set(n.get() + rounded(layout.size())));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let _ = ALLOCATED.try_with(|n| n.set(n.get() - rounded(layout.size())));
        unsafe { System.dealloc(block, layout) }
    }
}

/// What a block costs with the allocator's own header.
fn rounded(size: usize) -> isize {
    isize::try_from((size + 8).next_multiple_of(16)).unwrap()
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn all(state: &State, query: &JobsQuery, limit: usize, budget: usize) -> Vec<String> {
    let mut names = Vec::new();
    let mut after = ListCursor::default();
    loop {
        let slice = state.list_jobs(query, &after, limit, budget);
        assert!(slice.items.len() <= limit);
        names.extend(
            slice
                .items
                .iter()
                .map(|job| job.name.rsplit('/').next().unwrap().to_owned()),
        );
        match slice.next {
            Some(next) => {
                assert_ne!(next, after, "a list must move");
                after = next;
            }
            None => return names,
        }
    }
}

fn query(filter: &str, order: &str) -> JobsQuery {
    JobsQuery {
        parent: "workspaces/-/experiments/-".to_owned(),
        filter: Filter::parse(Kind::Job, filter).unwrap(),
        order: Order::parse(Kind::Job, order).unwrap(),
    }
}

/// Jobs b, c, a in this order: b runs on two nodes, c failed, a waits.
fn three() -> World {
    let mut w = World::new(3, 2);
    w.submit("b", 2);
    w.submit("c", 1);
    w.plan();
    let node = w.nodes_of("c")[0].clone();
    w.exit(&node, "c", 3);
    w.report(&node, "c", Cleaned);
    w.submit_priority("a", 3, trainyard_proto::v1::SchedulingPriority::High);
    w
}

#[test]
fn orders_and_slices_leave_nothing_out() {
    let w = three();
    for (order, expected) in [
        ("", ["a", "b", "c"]),
        ("name desc", ["c", "b", "a"]),
        ("creation_time", ["b", "c", "a"]),
        ("creation_time desc", ["a", "c", "b"]),
    ] {
        for (limit, budget) in [(10, 10), (1, 10), (2, 1), (1, 0)] {
            let found = all(&w.state, &query("", order), limit, budget);
            assert_eq!(found, expected, "{order} {limit} {budget}");
        }
    }
    for (parent, count) in [
        (E, 3),
        ("workspaces/w/experiments/-", 3),
        ("workspaces/-/experiments/e", 3),
        ("workspaces/-/experiments/x", 0),
        ("workspaces/v/experiments/-", 0),
    ] {
        for order in ["name desc", "creation_time"] {
            let query = JobsQuery {
                parent: parent.to_owned(),
                ..query("", order)
            };
            assert_eq!(all(&w.state, &query, 2, 2).len(), count, "{parent}");
        }
    }
}

#[test]
fn a_filter_is_applied_before_the_limit_and_within_the_budget() {
    let w = three();
    let slice = w
        .state
        .list_jobs(&query("state = failed", ""), &ListCursor::default(), 1, 2);
    assert!(
        slice.items.is_empty() && slice.next.is_some(),
        "looked at a and b"
    );
    let rest = w
        .state
        .list_jobs(&query("state = failed", ""), &slice.next.unwrap(), 1, 2);
    assert_eq!((rest.items.len(), rest.next), (1, None));
}

#[test]
fn jobs_are_found_by_every_field() {
    let w = three();
    for (filter, expected) in [
        ("state = running", "b"),
        ("state != running AND node_count >= 3", "a"),
        ("exit_code = 3", "c"),
        ("exit_code != 3", "ab"),
        ("exit_code > 0", "c"),
        ("priority=high", "a"),
        ("priority = Normal", "bc"),
        ("name = a", "a"),
        ("name = \"workspaces/w/experiments/e/jobs/b\"", "b"),
        ("name:w/experiments", "abc"),
        ("name > a AND name <= b", "b"),
        ("cluster = c", "abc"),
        ("cluster = \"workspaces/w/clusters/c\"", "abc"),
        ("cluster = d", ""),
        ("tool_type = custom AND tool_type != x", "abc"),
        ("user = \"\"", "abc"),
        ("array = x", ""),
        ("creation_time >= 1970-01-01T00:00:00Z", "abc"),
        ("creation_time < \"1970-01-01T00:00:00Z\"", ""),
        ("name = \"a\\\"b\"", ""),
    ] {
        assert_eq!(
            all(&w.state, &query(filter, ""), 9, 9).concat(),
            expected,
            "{filter}"
        );
    }
}

#[test]
fn nodes_and_clusters_are_filtered_and_ordered_too() {
    let w = three();
    let nodes = |filter: &str, order: &str| {
        let query = NodesQuery {
            filter: Filter::parse(Kind::Node, filter).unwrap(),
            order: Order::parse(Kind::Node, order).unwrap(),
        };
        let slice = w.state.list_nodes(&query, &ListCursor::default(), 9, 9);
        slice
            .items
            .iter()
            .map(|n| n.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(nodes("", "name desc"), ["nodes/n3", "nodes/n2", "nodes/n1"]);
    assert_eq!(
        nodes("name = n2 AND state = ready AND cluster = c", ""),
        ["nodes/n2"]
    );
    assert!(nodes("cluster = \"\"", "").is_empty());
    let clusters = |filter: &str| {
        let query = ClustersQuery {
            parent: "workspaces/w".to_owned(),
            filter: Filter::parse(Kind::Cluster, filter).unwrap(),
            order: Order::default(),
        };
        let slice = w.state.list_clusters(&query, &ListCursor::default(), 9, 9);
        slice.items.len()
    };
    assert_eq!(clusters("allocation_state = steady"), 1);
    assert_eq!(clusters("allocation_state = resizing"), 0);
    assert_eq!(
        clusters("provisioning_state = succeeded AND vm_size = \"\""),
        1
    );
}

#[test]
fn what_is_wrong_is_said_with_its_position() {
    for (kind, filter, position, word) in [
        (Kind::Job, "nonsense = 1", 1, "one of name, state"),
        (Kind::Job, "state", 6, "comparison"),
        (Kind::Job, "state = ", 9, "value"),
        (Kind::Job, "state = dancing", 9, "queued"),
        (Kind::Job, "state < running", 7, "= and !="),
        (Kind::Job, "name = a OR name = b", 10, "AND"),
        (Kind::Job, "name = a AND", 13, "field"),
        (Kind::Job, "node_count = many", 14, "number"),
        (Kind::Job, "creation_time > soon", 17, "2031"),
        (Kind::Job, "name = \"a", 8, "end"),
        (Kind::Job, "näme = a", 1, "näme"),
        (Kind::Node, "user = a", 1, "power_state"),
        (Kind::Cluster, "state = a", 1, "allocation_state"),
    ] {
        let error = Filter::parse(kind, filter).unwrap_err();
        assert_eq!(error.position, position, "{filter}: {error}");
        assert!(error.message.contains(word), "{filter}: {error}");
    }
    let many = vec!["name = a"; 33].join(" AND ");
    assert!(Filter::parse(Kind::Job, &many).is_err());
    assert!(Filter::parse(Kind::Job, &"x".repeat(5000)).is_err());
    for (kind, order) in [
        (Kind::Node, "creation_time"),
        (Kind::Job, "name sideways"),
        (Kind::Job, "name desc, user"),
        (Kind::Job, "user"),
    ] {
        assert!(Order::parse(kind, order).is_err(), "{order}");
    }
}

/// A job as long as that of the PyTorch recipe, with its end.
fn finished(i: u32) -> Job {
    let name = format!("{E}/jobs/pytorch-distributed-{i:05}");
    let share = |path: &str| AzureFileShareReference {
        account_name: "batchaisamples".to_owned(),
        azure_file_url: "https://batchaisamples.file.core.windows.net/batchaishare".to_owned(),
        relative_mount_path: path.to_owned(),
        ..AzureFileShareReference::default()
    };
    let time = |s: i64| {
        Some(prost_types::Timestamp {
            seconds: 1_900_000_000 + i64::from(i) + s,
            nanos: 123_456_789,
        })
    };
    let uid = format!("0b9e5c52-7c1f-4a53-9a3e-{i:012}");
    Job {
        job_output_directory_path_segment: format!("{name}/{uid}"),
        name,
        uid,
        spec: Some(JobSpec {
            cluster: Some(ResourceId {
                id: "workspaces/w/clusters/c".to_owned(),
            }),
            node_count: 2,
            mount_volumes: Some(MountVolumes {
                azure_file_shares: vec![share("afs"), share("logs")],
                ..MountVolumes::default()
            }),
            container_settings: Some(ContainerSettings {
                image_source_registry: Some(ImageSourceRegistry {
                    image: "batchaitraining/pytorch:openmpi-gloo".to_owned(),
                    ..ImageSourceRegistry::default()
                }),
                ..ContainerSettings::default()
            }),
            py_torch_settings: Some(PyTorchSettings {
                python_script_file_path:
                    "$AZ_BATCHAI_JOB_MOUNT_ROOT/afs/pytorch_samples/mnist_trainer.py".to_owned(),
                command_line_args: "--epochs 10 --data $AZ_BATCHAI_JOB_MOUNT_ROOT/afs/data".to_owned(),
                communication_backend: "gloo".to_owned(),
                ..PyTorchSettings::default()
            }),
            job_preparation: Some(JobPreparation {
                command_line: "apt update; apt install mpi-default-dev mpi-default-bin -y; pip install horovod"
                    .to_owned(),
            }),
            std_out_err_path_prefix: "$AZ_BATCHAI_JOB_MOUNT_ROOT/afs".to_owned(),
            output_directories: vec![OutputDirectory {
                id: "MODEL".to_owned(),
                path_prefix: "$AZ_BATCHAI_JOB_MOUNT_ROOT/afs".to_owned(),
                path_suffix: "models".to_owned(),
            }],
            environment_variables: vec![EnvironmentVariable {
                name: "NCCL_DEBUG".to_owned(),
                value: "INFO".to_owned(),
            }],
            ..JobSpec::default()
        }),
        creation_time: time(0),
        execution_state: ExecutionState::Succeeded.into(),
        execution_state_transition_time: time(900),
        execution_info: Some(ExecutionInfo {
            start_time: time(10),
            end_time: time(900),
            exit_code: Some(0),
            errors: vec![],
        }),
        tool_type: "pytorch".to_owned(),
        attempts: vec![Attempt {
            number: 1,
            epoch: u64::from(i),
            start_time: time(10),
            end_time: time(900),
            phase: AttemptPhase::Ended.into(),
            exit_code: Some(0),
            nodes: (0..2)
                .map(|n| AttemptNode {
                    node: format!("nodes/gpu-host-{n:02}"),
                    address: format!("192.168.10.1{n}"),
                    gpus: (0..4).collect(),
                    whole_node: true,
                    status: Some(AttemptNodeStatus {
                        phase: Cleaned.into(),
                        exit_code: Some(0),
                        files: vec![
                            format!("execution-gpu-host-{n:02}.log"),
                            format!("stdout-{n}.txt"),
                            format!("stderr-{n}.txt"),
                        ],
                        rendezvous_port: 43_210,
                        ..AttemptNodeStatus::default()
                    }),
                })
                .collect(),
            ..Attempt::default()
        }],
        etag: format!("{}", 100_000 + i),
        sequence: u64::from(i) + 1,
        user: "researcher".to_owned(),
        ..Job::default()
    }
}

/// All in all: its bytes, its share of every index, the remembered request id and the record of its usage.
#[test]
fn a_finished_job_costs_less_than_two_kib() {
    const JOBS: u32 = 10_000;
    let bytes = {
        let snapshot = store::Snapshot {
            format: 1,
            jobs: (0..JOBS).map(finished).collect(),
            requests: (0..JOBS)
                .map(|i| {
                    let job = finished(i);
                    store::RequestRecord {
                        request_id: format!("5d8f2c11-2222-4bbb-8888-{i:012}"),
                        name: job.name,
                        uid: job.uid,
                    }
                })
                .collect(),
            usage: (0..JOBS)
                .map(|i| {
                    let job = finished(i);
                    store::UsageRecord {
                        job: job.name,
                        user: job.user,
                        start_time: job.attempts[0].start_time,
                        end_time: job.attempts[0].end_time,
                        gpus: 8,
                        milli_nodes: 2000,
                    }
                })
                .collect(),
            ..store::Snapshot::default()
        };
        prost::Message::encode_to_vec(&snapshot)
    };
    let before = ALLOCATED.get();
    let state = State::from_snapshot(&bytes).unwrap();
    let each = (ALLOCATED.get() - before) / isize::try_from(JOBS).unwrap();
    assert!(each < 2048, "{each} bytes");
    assert!(each > 500, "{each} bytes are too few to be true");
    assert_eq!(
        state.job(&finished(7).name).as_deref(),
        Some(&finished(7)),
        "nothing is lost"
    );
}
