//! Sweeps: what jobs come out of which parameters, and which sweeps are refused.

#![allow(clippy::unwrap_used)] // tests

use trainyard_proto::v1::{
    CustomToolkitSettings, EnvironmentVariable, JobSpec, OutputDirectory, ParameterSweep,
    SweepMode, SweepParameter,
};
use trainyard_shared::sweep::{self, Values};

fn values(name: &str, values: &[&str]) -> SweepParameter {
    SweepParameter {
        name: name.into(),
        values: values.iter().map(|&v| v.into()).collect(),
        ..Default::default()
    }
}

fn range(name: &str, start: f64, end: f64, count: u32) -> SweepParameter {
    SweepParameter {
        name: name.into(),
        start: Some(start),
        end: Some(end),
        count,
        ..Default::default()
    }
}

fn sweep_of(mode: SweepMode, parameters: Vec<SweepParameter>) -> ParameterSweep {
    ParameterSweep {
        mode: mode.into(),
        parameters,
        ..Default::default()
    }
}

fn rows(sweep: &ParameterSweep) -> Vec<String> {
    let jobs = sweep::expand(sweep).unwrap();
    assert_eq!(Ok(jobs.len()), sweep::size(sweep).map(|n| n as usize));
    jobs.iter()
        .map(|job| job.values().cloned().collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn a_grid_combines_every_value_the_last_parameter_fastest() {
    let sweep = sweep_of(
        SweepMode::Unspecified,
        vec![values("A", &["x", "y"]), values("B", &["1", "2", "3"])],
    );
    assert_eq!(rows(&sweep), ["x 1", "x 2", "x 3", "y 1", "y 2", "y 3"]);
}

#[test]
fn a_list_takes_values_together() {
    let sweep = sweep_of(
        SweepMode::List,
        vec![values("A", &["x", "y"]), range("B", 0.0, 1.0, 2)],
    );
    assert_eq!(rows(&sweep), ["x 0", "y 1"]);
    let uneven = sweep_of(
        SweepMode::List,
        vec![values("A", &["x", "y"]), values("B", &["1"])],
    );
    let wrong = sweep::expand(&uneven).unwrap_err();
    assert_eq!(wrong[0].field, "parameters[1]");
    assert!(
        wrong[0]
            .message
            .contains("has 1 values and the first parameter has 2")
    );
}

#[test]
fn ranges_are_divided_evenly_or_evenly_in_the_logarithm() {
    let linear = sweep_of(SweepMode::Grid, vec![range("A", 0.0, 1.0, 5)]);
    assert_eq!(rows(&linear), ["0", "0.25", "0.5", "0.75", "1"]);
    let integers = SweepParameter {
        decimals: Some(0),
        ..range("A", 10.0, -10.0, 3)
    };
    assert_eq!(
        rows(&sweep_of(SweepMode::Grid, vec![integers])),
        ["10", "0", "-10"]
    );
    let logarithmic = SweepParameter {
        logarithmic: true,
        ..range("A", 0.0001, 1.0, 5)
    };
    assert_eq!(
        rows(&sweep_of(SweepMode::Grid, vec![logarithmic])),
        ["0.0001", "0.001", "0.01", "0.1", "1"]
    );
    let thirds = SweepParameter {
        decimals: Some(2),
        ..range("A", -0.001, 1.0, 4)
    };
    let refused = sweep::size(&sweep_of(SweepMode::Grid, vec![thirds])).unwrap_err();
    assert_eq!(refused[0].field, "parameters[0].decimals");
}

#[test]
fn random_draws_depend_on_the_seed_alone() {
    let mut sweep = sweep_of(
        SweepMode::Random,
        vec![
            values("CHOICE", &["a", "b", "c"]),
            range("EVEN", 5.0, 6.0, 0),
            SweepParameter {
                logarithmic: true,
                decimals: Some(9),
                ..range("LOG", 0.000_001, 1.0, 0)
            },
        ],
    );
    sweep.samples = 1000;
    let first = sweep::expand(&sweep).unwrap();
    assert_eq!(first, sweep::expand(&sweep).unwrap());
    for job in &first {
        let even: f64 = job["EVEN"].parse().unwrap();
        let log: f64 = job["LOG"].parse().unwrap();
        assert!(
            (5.0..=6.0).contains(&even) && (0.000_001..=1.0).contains(&log),
            "{job:?}"
        );
    }
    let small = first
        .iter()
        .filter(|j| j["LOG"].parse::<f64>().unwrap() < 0.001)
        .count();
    assert!(
        (400..600).contains(&small),
        "half of the draws lie below the middle: {small}"
    );
    for choice in ["a", "b", "c"] {
        let times = first.iter().filter(|j| j["CHOICE"] == choice).count();
        assert!((250..420).contains(&times), "{choice}: {times}");
    }
    sweep.seed = 1;
    assert_ne!(first, sweep::expand(&sweep).unwrap());
    // Written once and never changed: the log of a cluster may be replayed by any later version.
    sweep.samples = 2;
    sweep.seed = 42;
    assert_eq!(
        rows(&sweep),
        ["c 5.15991 0.000046947", "b 5.03803 0.161945341"]
    );
}

#[test]
fn what_makes_no_sense_is_refused_with_its_field() {
    let good = values("A", &["1"]);
    let mut cases: Vec<(&str, ParameterSweep)> = vec![
        ("parameters", sweep_of(SweepMode::Grid, vec![])),
        (
            "parameters[0].name",
            sweep_of(SweepMode::Grid, vec![values("a", &["1"])]),
        ),
        (
            "parameters[0].name",
            sweep_of(SweepMode::Grid, vec![values("1A", &["1"])]),
        ),
        (
            "parameters[1].name",
            sweep_of(SweepMode::Grid, vec![good.clone(), good.clone()]),
        ),
        (
            "parameters[0].values",
            sweep_of(SweepMode::Grid, vec![values("A", &[])]),
        ),
        (
            "parameters[0].values",
            sweep_of(SweepMode::Grid, vec![values("A", &["a\0b"])]),
        ),
        (
            "parameters[0].count",
            sweep_of(SweepMode::Grid, vec![range("A", 0.0, 1.0, 1)]),
        ),
        (
            "parameters[0].count",
            sweep_of(SweepMode::Grid, vec![range("A", 0.0, 1.0, 10_001)]),
        ),
        (
            "parameters[0].end",
            sweep_of(SweepMode::Grid, vec![range("A", 0.0, f64::NAN, 2)]),
        ),
        ("samples", sweep_of(SweepMode::Random, vec![good.clone()])),
        (
            "parameters",
            sweep_of(
                SweepMode::Grid,
                vec![range("A", 0.0, 1.0, 101), range("B", 0.0, 1.0, 100)],
            ),
        ),
    ];
    let mut both = good.clone();
    both.start = Some(1.0);
    cases.push((
        "parameters[0].values",
        sweep_of(SweepMode::Grid, vec![both]),
    ));
    let mut half = range("A", 0.0, 1.0, 2);
    half.end = None;
    cases.push(("parameters[0].end", sweep_of(SweepMode::Grid, vec![half])));
    let mut below = range("A", 0.0, 1.0, 2);
    below.logarithmic = true;
    cases.push((
        "parameters[0].start",
        sweep_of(SweepMode::Grid, vec![below]),
    ));
    let mut sampled = sweep_of(SweepMode::Grid, vec![good.clone()]);
    sampled.samples = 3;
    cases.push(("samples", sampled));
    let mut seeded = sweep_of(SweepMode::List, vec![good]);
    seeded.seed = 3;
    cases.push(("seed", seeded));
    for (field, sweep) in cases {
        let wrong = sweep::expand(&sweep).unwrap_err();
        assert_eq!(wrong[0].field, field, "{wrong:?}");
        assert_eq!(sweep::size(&sweep), Err(wrong));
    }
}

#[test]
fn the_values_of_all_jobs_together_are_bounded() {
    let long = "x".repeat(4096);
    let many: Vec<&str> = vec![long.as_str(); 10_000];
    let sweep = sweep_of(SweepMode::Grid, vec![values("A", &many)]);
    let wrong = sweep::expand(&sweep).unwrap_err();
    assert!(wrong[0].message.contains("bytes"), "{wrong:?}");
}

#[test]
fn values_reach_every_text_of_the_job_and_its_variables() {
    let template = JobSpec {
        custom_toolkit_settings: Some(CustomToolkitSettings {
            command_line: "train --lr ${PARAM_LR} --out $AZ_BATCHAI_OUTPUT_M/$PARAM_LR".into(),
        }),
        output_directories: vec![OutputDirectory {
            id: "M".into(),
            path_prefix: "/out".into(),
            path_suffix: "lr-$PARAM_LR".into(),
        }],
        environment_variables: vec![EnvironmentVariable {
            name: "NOTE".into(),
            value: "$PARAM_OTHER".into(),
        }],
        node_count: 3,
        ..Default::default()
    };
    let job = sweep::apply(&template, &Values::from([("LR".into(), "0.1".into())])).unwrap();
    assert_eq!(
        job.custom_toolkit_settings.unwrap().command_line,
        "train --lr 0.1 --out $AZ_BATCHAI_OUTPUT_M/0.1"
    );
    assert_eq!(job.output_directories[0].path_suffix, "lr-0.1");
    assert_eq!(job.node_count, 3);
    let variables: Vec<(&str, &str)> = job
        .environment_variables
        .iter()
        .map(|v| (v.name.as_str(), v.value.as_str()))
        .collect();
    assert_eq!(variables, [("NOTE", "$PARAM_OTHER"), ("PARAM_LR", "0.1")]);
}

#[test]
fn a_job_that_its_values_blow_up_is_refused() {
    let template = JobSpec {
        custom_toolkit_settings: Some(CustomToolkitSettings {
            command_line: "$PARAM_A".repeat(10_000),
        }),
        ..Default::default()
    };
    let values = Values::from([("A".into(), "x".repeat(4096))]);
    let wrong = sweep::apply(&template, &values).unwrap_err();
    assert!(wrong.message.contains("use shorter values"), "{wrong}");
}
