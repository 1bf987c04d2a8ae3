//! Random histories: whatever is done in whatever order, the invariants hold and the log replays to the same bytes.

#![allow(clippy::unwrap_used)] // a test's helpers

mod world;

use trainyard_core::State;
use trainyard_proto::v1::AttemptNodePhase::{
    self, Cleaned, Exited, Failed, Prepared, Preparing, Running,
};
use trainyard_proto::v1::{AttemptNodeStatus, ObservedAttempt, SchedulingPriority};
use world::{World, job, status};

const JOBS: u32 = 12;
const NODES: u32 = 4;

fn phase(rng: &mut fastrand::Rng) -> AttemptNodePhase {
    *rng.choice([Preparing, Prepared, Running, Exited, Failed, Cleaned].iter())
        .unwrap()
}

fn observed(w: &World, node: &str, rng: &mut fastrand::Rng) -> Vec<ObservedAttempt> {
    let mut kept = w.state.desired(&format!("nodes/{node}")).assignments;
    kept.retain(|_| rng.u8(..) > 40);
    kept.into_iter()
        .map(|a| ObservedAttempt {
            job: a.job,
            uid: a.uid,
            attempt: a.attempt,
            // Now and then one of the past.
            epoch: a.epoch - u64::from(rng.u8(..) < 20),
            status: Some(AttemptNodeStatus {
                exit_code: rng.bool().then(|| rng.i32(0..3)),
                rendezvous_port: rng.u32(0..2),
                ..status(phase(rng))
            }),
        })
        .collect()
}

fn step(w: &mut World, rng: &mut fastrand::Rng) {
    let id = format!("j{}", rng.u32(0..JOBS));
    let node = format!("n{}", rng.u32(1..=NODES));
    match rng.u32(0..20) {
        0..4 => {
            let mut spec = world::spec(rng.u32(0..4));
            if rng.bool() {
                spec.resources_per_node = Some(trainyard_proto::v1::ResourcesPerNode {
                    gpus: rng.u32(1..6),
                });
            }
            spec.set_scheduling_priority(
                *rng.choice(
                    [
                        SchedulingPriority::Low,
                        SchedulingPriority::Normal,
                        SchedulingPriority::High,
                    ]
                    .iter(),
                )
                .unwrap(),
            );
            let request = if rng.bool() {
                format!("r{}", rng.u32(0..30))
            } else {
                String::new()
            };
            let _ = w.try_job(&id, spec, &request);
        }
        4..9 => w.plan(),
        9..14 => {
            let report = observed(w, &node, rng);
            w.report_raw(&node, report);
        }
        14 => {
            if w.state.job(&job(&id)).is_some() {
                w.terminate(&id);
            }
        }
        15 => {
            let _ = w.delete(&job(&id));
        }
        16 => w.lose(&node),
        17 | 18 => {
            let report = observed(w, &node, rng);
            let boot = format!("boot-{}", rng.u8(0..2));
            w.hello(&node, 4, &boot, report);
        }
        _ => {
            if rng.bool() {
                w.unresponsive.insert(format!("nodes/{node}"));
            } else {
                w.unresponsive.clear();
            }
        }
    }
    w.check();
}

#[test]
fn random_histories_keep_the_invariants_and_replay_to_the_same_bytes() {
    for seed in 0..60 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut w = World::new(NODES, 4);
        for _ in 0..120 {
            step(&mut w, &mut rng);
        }
        let mut again = State::default();
        for (i, command) in w.log.iter().enumerate() {
            // A snapshot in the middle of the log must make no difference.
            if i == w.log.len() / 2 {
                again = State::from_snapshot(&again.to_snapshot()).unwrap();
            }
            again.apply(i as u64 + 1, command);
        }
        assert_eq!(again.to_snapshot(), w.state.to_snapshot(), "seed {seed}");
    }
}
