//! Arrays of jobs: all or none, the same array for a repeated request, the same jobs on every member.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

mod world;

use std::collections::BTreeSet;

use trainyard_core::{Refusal, RefusalKind, Reply, State, filter};
use trainyard_proto::store::v1 as store;
use trainyard_proto::store::v1::command::Kind;
use trainyard_proto::v1::*;
use world::{E, World, job, spec};

fn sweep(values: &[&str]) -> ParameterSweep {
    ParameterSweep {
        parameters: vec![SweepParameter {
            name: "LR".into(),
            values: values.iter().map(|&v| v.into()).collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn command(id: &str, uid: &str, spec: JobSpec, sweep: ParameterSweep, request_id: &str) -> Kind {
    Kind::CreateJobArray(store::CreateJobArray {
        job: Some(Job {
            name: job(id),
            uid: uid.into(),
            user: "ann".into(),
            spec: Some(spec),
            ..Default::default()
        }),
        sweep: Some(sweep),
        request_id: request_id.into(),
    })
}

fn template() -> JobSpec {
    JobSpec {
        custom_toolkit_settings: Some(CustomToolkitSettings {
            command_line: "train --lr $PARAM_LR".into(),
        }),
        ..spec(1)
    }
}

fn create(w: &mut World, kind: Kind) -> Result<CreateJobArrayResponse, Refusal> {
    w.apply(kind).reply.map(|reply| match reply {
        Reply::JobArray(array) => array,
        other => panic!("{other:?}"),
    })
}

#[test]
fn one_create_makes_jobs_that_run_in_order_of_their_index() {
    let mut w = World::new(1, 0);
    let array = create(
        &mut w,
        command("a", "uid-a", template(), sweep(&["0.1", "0.2", "0.3"]), ""),
    )
    .unwrap();
    assert_eq!((array.uid.as_str(), array.size), ("uid-a", 3));
    assert_eq!(array.jobs, [job("a-0"), job("a-1"), job("a-2")]);
    let mut uids = BTreeSet::new();
    for (index, lr) in (0..).zip(["0.1", "0.2", "0.3"]) {
        let j = w.job(&format!("a-{index}"));
        let member = j.array.unwrap();
        assert_eq!(
            (member.uid.as_str(), member.index, member.size),
            ("uid-a", index, 3)
        );
        let made = j.spec.unwrap();
        let variable = &made.environment_variables[0];
        assert_eq!(
            (variable.name.as_str(), variable.value.as_str()),
            ("PARAM_LR", lr)
        );
        let line = made.custom_toolkit_settings.unwrap().command_line;
        assert_eq!(line, format!("train --lr {lr}"));
        assert_eq!(j.user, "ann");
        assert!(j.job_output_directory_path_segment.ends_with(&j.uid));
        uids.insert(j.uid);
    }
    assert_eq!(uids.len(), 3);
    w.check();
    for index in 0..3 {
        let id = format!("a-{index}");
        w.run(&id, 0);
        assert_eq!(w.execution(&id), ExecutionState::Succeeded);
    }
}

#[test]
fn an_array_is_made_wholly_or_not_at_all() {
    let mut w = World::new(1, 0);
    w.submit("a-1", 1);
    let refusal = create(
        &mut w,
        command("a", "u", template(), sweep(&["1", "2"]), ""),
    )
    .unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::AlreadyExists);
    assert_eq!(refusal.resource, job("a-1"));
    let nowhere = JobSpec {
        cluster: Some(ResourceId {
            id: "$PARAM_LR".into(),
        }),
        ..template()
    };
    // The second job names a cluster that does not exist.
    let refusal = create(&mut w, command("b", "u", nowhere, sweep(&["c", "d"]), "")).unwrap_err();
    assert_eq!(refusal.violations[0].field, "cluster.id");
    let bad_path = JobSpec {
        std_out_err_path_prefix: "$PARAM_LR".into(),
        ..template()
    };
    let refusal = create(
        &mut w,
        command("b", "u", bad_path, sweep(&["/logs", "logs"]), ""),
    )
    .unwrap_err();
    assert_eq!(refusal.violations[0].field, "stdOutErrPathPrefix");
    assert!(refusal.message.contains(&job("b-1")), "{}", refusal.message);
    let own = JobSpec {
        environment_variables: vec![EnvironmentVariable {
            name: "PARAM_LR".into(),
            value: "1".into(),
        }],
        ..template()
    };
    let refusal = create(&mut w, command("b", "u", own, sweep(&["1"]), "")).unwrap_err();
    assert!(
        refusal.violations[0]
            .field
            .starts_with("environmentVariables"),
        "{}",
        refusal.message
    );
    let long = "x".repeat(63);
    let refusal = create(&mut w, command(&long, "u", template(), sweep(&["1"]), "")).unwrap_err();
    assert!(refusal.message.contains("NAME-0"), "{}", refusal.message);
    let refusal = create(&mut w, command("b", "u", template(), sweep(&[]), "")).unwrap_err();
    assert_eq!(
        refusal.violations[0].field,
        "parameterSweep.parameters[0].values"
    );
    assert_eq!(
        w.state.jobs(E, "", 10).len(),
        1,
        "none of them made anything"
    );
    w.check();
}

#[test]
fn the_jobs_of_an_array_are_bounded_in_number_and_size() {
    let mut w = World::new(1, 0);
    let many = ParameterSweep {
        mode: SweepMode::Random.into(),
        samples: 10_001,
        ..sweep(&["1"])
    };
    let refusal = create(&mut w, command("a", "u", template(), many, "")).unwrap_err();
    assert_eq!(refusal.violations[0].field, "parameterSweep.samples");
    let large = JobSpec {
        custom_toolkit_settings: Some(CustomToolkitSettings {
            command_line: "x".repeat(120 << 10),
        }),
        ..spec(1)
    };
    let heavy = ParameterSweep {
        mode: SweepMode::Random.into(),
        samples: 1_000,
        ..sweep(&["1"])
    };
    let refusal = create(&mut w, command("a", "u", large, heavy, "")).unwrap_err();
    assert!(
        refusal.message.contains("bytes together"),
        "{}",
        refusal.message
    );
    assert!(w.state.jobs(E, "", 10).is_empty());
}

#[test]
fn a_repeated_request_returns_the_same_array() {
    let mut w = World::new(1, 0);
    let again = |uid: &str| command("a", uid, template(), sweep(&["1", "2", "3"]), "request-1");
    let first = create(&mut w, again("uid-1")).unwrap();
    assert_eq!(create(&mut w, again("uid-2")).unwrap(), first);
    w.state = State::from_snapshot(&w.state.to_snapshot()).unwrap();
    w.delete(&job("a-0")).unwrap();
    assert_eq!(
        create(&mut w, again("uid-3")).unwrap(),
        first,
        "while a job of it is left"
    );
    assert_eq!(w.state.jobs(E, "", 10).len(), 2);
    for id in ["a-1", "a-2"] {
        w.delete(&job(id)).unwrap();
    }
    let refusal = create(&mut w, again("uid-4")).unwrap_err();
    assert_eq!(
        refusal.kind,
        RefusalKind::Aborted,
        "it was deleted since, and is not made anew"
    );
}

#[test]
fn a_dry_run_says_what_a_create_would_and_makes_nothing() {
    let mut w = World::new(1, 0);
    let before = w.state.to_snapshot();
    let check = |w: &World, kind: Kind| {
        w.state.check(&store::Command {
            format: 1,
            time: None,
            kind: Some(kind),
        })
    };
    let wanted = command("a", "u", template(), sweep(&["1", "2"]), "");
    let Ok(Reply::JobArray(array)) = check(&w, wanted.clone()) else {
        panic!()
    };
    assert_eq!(array.jobs, [job("a-0"), job("a-1")]);
    let refused = command("a", "u", template(), sweep(&[]), "");
    let refusal = check(&w, refused.clone()).unwrap_err();
    assert_eq!(w.state.to_snapshot(), before);
    assert_eq!(w.apply(refused).reply.unwrap_err(), refusal);
    assert_eq!(w.apply(wanted).reply, Ok(Reply::JobArray(array)));
    let refusal = check(&w, Kind::Sweep(store::Sweep { limit: 1 })).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::InvalidArgument);
}

#[test]
fn a_dry_run_of_every_create_agrees_with_the_create() {
    let mut w = World::new(1, 0);
    let name = |kind: &str, id: &str| format!("workspaces/w/{kind}/{id}");
    let kinds = [
        Kind::CreateWorkspace(store::CreateWorkspace {
            workspace: Some(Workspace {
                name: "workspaces/v".into(),
                ..Default::default()
            }),
            request_id: String::new(),
        }),
        Kind::CreateExperiment(store::CreateExperiment {
            experiment: Some(Experiment {
                name: name("experiments", "f"),
                ..Default::default()
            }),
            request_id: String::new(),
        }),
        Kind::CreateCluster(store::CreateCluster {
            cluster: Some(Cluster {
                name: name("clusters", "d"),
                scale_settings: Some(ScaleSettings {
                    manual: Some(ManualScaleSettings::default()),
                    auto_scale: None,
                }),
                ..Default::default()
            }),
            request_id: String::new(),
        }),
        Kind::CreateFileServer(store::CreateFileServer {
            file_server: Some(FileServer {
                name: name("fileServers", "f"),
                kind: Some(file_server::Kind::External(ExternalFileServer {
                    address: "10.0.0.9".into(),
                    export: "/e".into(),
                    ..Default::default()
                })),
                ..Default::default()
            }),
            request_id: String::new(),
        }),
        Kind::CreateJob(store::CreateJob {
            job: Some(Job {
                name: job("j"),
                spec: Some(spec(1)),
                ..Default::default()
            }),
            request_id: String::new(),
        }),
    ];
    for kind in kinds {
        let command = store::Command {
            format: 1,
            time: None,
            kind: Some(kind.clone()),
        };
        let before = w.state.to_snapshot();
        w.state.check(&command).unwrap();
        assert_eq!(w.state.to_snapshot(), before);
        w.ok(kind);
        let again = w.state.check(&command).map_err(|refusal| refusal.kind);
        assert!(
            matches!(
                again,
                Ok(Reply::Experiment(_)) | Err(RefusalKind::AlreadyExists)
            ),
            "{again:?}"
        );
    }
}

#[test]
fn the_jobs_that_match_are_terminated_and_no_others() {
    let mut w = World::new(1, 0);
    create(
        &mut w,
        command("a", "uid-a", template(), sweep(&["1", "2", "3"]), ""),
    )
    .unwrap();
    w.submit("single", 1);
    w.run("a-0", 0);
    w.plan();
    w.report("n1", "a-1", AttemptNodePhase::Running);
    let filter = filter::Filter::parse(filter::Kind::Job, r#"array = "uid-a""#).unwrap();
    let found = w.state.terminable(E, &filter, 10);
    let names: Vec<&str> = found.iter().map(|j| j.name.as_str()).collect();
    assert_eq!(names, [job("a-1"), job("a-2")]);
    assert_eq!(w.state.terminable(E, &filter, 1).len(), 1);
    assert!(
        w.state
            .terminable("workspaces/w/experiments/f", &filter, 10)
            .is_empty()
    );
    let mut jobs = found;
    jobs.push(store::TerminateJob {
        name: job("single"),
        uid: "of another".into(),
        ..Default::default()
    });
    jobs.push(store::TerminateJob {
        name: job("a-0"),
        ..Default::default()
    });
    let command = Kind::TerminateJobs(store::TerminateJobs { jobs });
    assert_eq!(w.ok(command).0, Reply::Count(2));
    assert_eq!(w.execution("a-0"), ExecutionState::Succeeded);
    assert_eq!(w.execution("a-1"), ExecutionState::Terminating);
    assert_eq!(w.execution("a-2"), ExecutionState::Failed);
    assert_eq!(w.execution("single"), ExecutionState::Queued);
    assert!(
        w.state.terminable(E, &filter, 10).is_empty(),
        "they have been told"
    );
    w.check();
}
