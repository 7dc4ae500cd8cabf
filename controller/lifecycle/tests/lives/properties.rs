//! Random lives of a VM. The world itself checks the gate, the minimum, unused generations, that a pod is
//! only made after its name was stored and when no other may live, that the hypervisor is never asked for more
//! than the approvals from the obeyed one on, that equal questions get equal answers and that all comes to rest.

use crate::world::{GIB, World, desired, size};
use controller_lifecycle::{Approved, Ending, Event, Phase, PodState, Restart, Settings, What};
use guest_units::Bytes;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Want {
        milli: u32,
        gib: u64,
    },
    Approve {
        milli: u32,
        gib: u64,
    },
    /// An old approval is written back.
    Replay(usize),
    LoseApproval,
    Policy(u8),
    PodReady,
    PodEnds {
        well: bool,
    },
    PodVanishes,
    /// Somebody deletes the pod.
    PodGoes,
    /// Pods that go have ended.
    PodsEnd,
    Done,
    Partial {
        gib: u64,
    },
    Veto {
        gib: u64,
    },
    Fail,
    Lose,
    /// A lost order reaches the runner after all.
    LateArrives(usize),
    LateEnds(usize),
    StaleOutcome {
        generation: u64,
        gib: u64,
    },
    RunnerLost,
    RunnerSpeaks,
    /// An answer of the runner that takes long.
    RunnerIsAsked,
    RunnerIsHeard,
    Later(u64),
    NewLeader,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u32..5000, 0u64..10).prop_map(|(milli, gib)| Step::Want { milli, gib }),
        4 => (0u32..5000, 0u64..10).prop_map(|(milli, gib)| Step::Approve { milli, gib }),
        2 => (0usize..50).prop_map(Step::Replay),
        1 => Just(Step::LoseApproval),
        1 => (0u8..3).prop_map(Step::Policy),
        3 => Just(Step::PodReady),
        1 => any::<bool>().prop_map(|well| Step::PodEnds { well }),
        1 => Just(Step::PodVanishes),
        1 => Just(Step::PodGoes),
        1 => Just(Step::PodsEnd),
        4 => Just(Step::Done),
        2 => (0u64..10).prop_map(|gib| Step::Partial { gib }),
        2 => (0u64..10).prop_map(|gib| Step::Veto { gib }),
        1 => Just(Step::Fail),
        3 => Just(Step::Lose),
        3 => (0usize..5).prop_map(Step::LateArrives),
        3 => (0usize..5).prop_map(Step::LateEnds),
        1 => (0u64..50, 0u64..10).prop_map(|(generation, gib)| Step::StaleOutcome { generation, gib }),
        1 => Just(Step::RunnerLost),
        2 => Just(Step::RunnerSpeaks),
        1 => Just(Step::RunnerIsAsked),
        1 => Just(Step::RunnerIsHeard),
        4 => (0u64..100).prop_map(Step::Later),
        2 => Just(Step::NewLeader),
    ]
}

fn apply(world: &mut World, step: &Step) {
    let in_flight = !world.sent.is_empty();
    match *step {
        Step::Want { milli, gib } => {
            world.want(|desired| desired.wanted = size(milli, gib));
        }
        Step::Approve { milli, gib } => world.approve(size(milli, gib)),
        Step::Replay(index) => world.replay(index),
        Step::LoseApproval => {
            world.want(|desired| desired.approved = Approved::Missing("lost".into()));
        }
        Step::Policy(policy) => world.want(|desired| {
            desired.restart =
                [Restart::Always, Restart::OnFailure, Restart::Never][usize::from(policy)];
        }),
        Step::PodReady if world.pod().is_some_and(|pod| pod.state == PodState::Pending) => {
            world.pod_ready();
        }
        Step::PodEnds { well: true } => world.pod_becomes(PodState::Succeeded),
        Step::PodEnds { well: false } => world.pod_becomes(PodState::Failed("crash".into())),
        Step::PodVanishes => {
            if let Some(name) = world.vm.pod_name().map(str::to_owned) {
                world.kill_pod(&name);
            }
        }
        Step::PodGoes => world.pod_goes(),
        Step::PodsEnd => world.pods_end(),
        Step::Done if in_flight => {
            world.order_ends(Ending::Done);
        }
        Step::Partial { gib } if in_flight => {
            if let What::Memory(to) = world.sent[0].what {
                let (low, high) = (world.plugged.memory.min(to), world.plugged.memory.max(to));
                world.plugged.memory = Bytes(gib * GIB).clamp(low, high);
            }
            world.order_ends(Ending::Partial("stuck".into()));
        }
        Step::Veto { gib } if in_flight => {
            let least = match world.sent[0].what {
                What::Cpu(_) => gib * 500,
                What::Memory(_) => gib * GIB,
            };
            world.order_ends(Ending::Vetoed { least, reason: "busy".into() });
        }
        Step::Fail if in_flight => {
            world.order_ends(Ending::Failed("no".into()));
        }
        Step::Lose if in_flight => world.order_gets_lost(),
        Step::LateArrives(index) => world.late_arrives(index),
        Step::LateEnds(index) => world.late_ends(index),
        Step::StaleOutcome { generation, gib }
            if world.sent.iter().all(|sent| sent.generation != generation) =>
        {
            let before = world.status.clone();
            let mut plugged = world.plugged;
            plugged.memory = Bytes(gib * GIB);
            let (revision, ending) = (1000, Ending::Done);
            world.tell(Event::OrderEnded { generation, revision, plugged, ending });
            assert_eq!(world.status, before, "a stale outcome changed something");
        }
        Step::RunnerLost => world.tell(Event::RunnerLost),
        Step::RunnerSpeaks if world.pod().is_some() => world.runner_says(),
        Step::Later(seconds) => {
            world.later(seconds);
            // The executor has its own, shorter deadline: it never forgets an order for so long.
            if seconds >= 10 {
                while !world.sent.is_empty() {
                    world.order_ends(Ending::Failed("deadline".into()));
                }
            }
        }
        Step::RunnerIsAsked if world.pod().is_some() => world.runner_is_asked(),
        Step::RunnerIsHeard if world.pod().is_some() => world.runner_is_heard(),
        Step::NewLeader => world.operator_restarts(world.settings),
        _ => {}
    }
    assert!(
        world.status.phase != Phase::Scaling || !world.sent.is_empty(),
        "scaling without an order"
    );
}

impl World {
    /// A VM whose pods take their time to end.
    fn random(at_most_one_pod: bool) -> Self {
        let mut world = Self::new(desired());
        world.pods_linger = true;
        world.operator_restarts(Settings { at_most_one_pod });
        world
    }
}

/// Faults stop: the pod comes up, the runner answers, every order is carried out.
fn calm(world: &mut World) {
    world.late.clear();
    for _ in 0..200 {
        world.pods_end();
        if world.pod().is_some_and(|pod| !matches!(pod.state, PodState::Running { ready: true })) {
            world.pod_ready();
        }
        if world.pod().is_some() {
            world.runner_says();
        }
        while !world.sent.is_empty() {
            world.order_ends(Ending::Done);
        }
        world.later(1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_happens_calm_brings_the_desired_size(
        steps in prop::collection::vec(step(), 0..60),
        at_most_one_pod in any::<bool>(),
    ) {
        let mut world = World::random(at_most_one_pod);
        for step in steps {
            apply(&mut world, &step);
        }
        world.want(|desired| {
            desired.restart = Restart::Always;
            desired.wanted = size(1250, 3);
        });
        world.approve(size(1250, 3));
        calm(&mut world);
        prop_assert_eq!(world.status.phase, Phase::Running);
        prop_assert_eq!(world.status.size, Some(size(1250, 3)));
        prop_assert!(world.status.settled);
        let newest = world.approvals.last().map(|(age, _)| *age);
        prop_assert_eq!(world.status.obeyed, newest, "the room of older ones is never given away");
    }

    #[test]
    fn whatever_happens_deletion_ends_with_nothing(
        steps in prop::collection::vec(step(), 0..60),
        at_most_one_pod in any::<bool>(),
    ) {
        let mut world = World::random(at_most_one_pod);
        for step in steps {
            apply(&mut world, &step);
        }
        world.want(|desired| desired.deleting = true);
        for _ in 0..20 {
            world.later(10);
            world.sent.clear();
            world.pods_end();
        }
        prop_assert!(world.pods.is_empty());
        let created = world.created;
        world.later(1000);
        prop_assert_eq!(world.created, created);
        prop_assert!(world.vm.next(world.now).start.is_empty());
    }
}
