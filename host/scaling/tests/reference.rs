//! The policy `reference` as a machine: what the reference does is done, and what it does wrong is not.

#![expect(clippy::unwrap_used, reason = "a failure to unwrap is a failed test")]

mod world;

use std::time::Duration;

use guest_units::{Bytes, Moment, Size};
use host_scaling::reference::{CacheWindows, Desired};
use host_scaling::{Action, Decision, Event, Policy, Rules, SystemSample, Why};
use proptest::prelude::*;
use world::reference::{NOTHING, UNIT, config, large, run, seconds, system, with_cache, world};
use world::{Behaviour, World, limits, size};

fn times(world: &World, from: usize, of: impl Fn(&Action, Why) -> bool) -> Vec<Duration> {
    world.log[from..].iter().filter(|(_, action, why)| of(action, *why)).map(|e| e.0.0).collect()
}

fn gaps(times: &[Duration]) -> Vec<Duration> {
    times.windows(2).map(|two| two[1] - two[0]).collect()
}

fn questions(world: &World) -> Vec<(Size, Size)> {
    let question = |(_, action, _): &(Moment, Action, Why)| match action {
        Action::AskGuest { from, to, .. } => Some((*from, *to)),
        _ => None,
    };
    world.log.iter().filter_map(question).collect()
}

fn windows() -> Event {
    let thousands = [
        0, 15, 30, 40, 50, 150, 175, 180, 185, 190, 250, 300, 350, 375, 400, 415, 425, 430, 435,
        435,
    ];
    Event::Cache(Box::new(CacheWindows::new(thousands.map(|thousands| thousands * 1000))))
}

#[test]
fn up_at_once_to_the_goal() {
    let mut world = world(config());
    run(&mut world, system(0, 0), 5);
    let start = world.now;
    world.system = system(300, 0);
    world.sample(NOTHING);
    world.until(start + Duration::from_millis(25));
    assert_eq!(world.view.spec, UNIT.times(2));
    world.system = system(9000, 0);
    world.sample(NOTHING);
    world.until(world.now + Duration::from_millis(25));
    assert_eq!(world.view.spec, UNIT.times(4), "not above the maximum");
}

#[test]
fn down_one_unit_for_each_agreement_and_without_a_calm_spell() {
    let mut world = large(config());
    run(&mut world, system(0, 0), 3);
    assert_eq!(world.view.plugged, UNIT.times(1));
    let steps: Vec<_> = (1..4).rev().map(|to| (UNIT.times(to + 1), UNIT.times(to))).collect();
    assert_eq!(questions(&world), steps);
}

#[test]
fn the_guest_is_asked_before_a_decrease_and_told_after_an_increase() {
    let mut world = world(config());
    run(&mut world, system(9000, 0), 5);
    let names: Vec<_> = world
        .log
        .iter()
        .filter_map(|(_, action, _)| match action {
            Action::PatchVm { from, size, .. } if from != size => Some(("patch", *size)),
            Action::TellGuest { plugged, .. } => Some(("told", *plugged)),
            Action::AskGuest { to, .. } => Some(("asked", *to)),
            _ => None,
        })
        .collect();
    assert_eq!(
        names,
        [("told", UNIT.times(1)), ("patch", UNIT.times(4)), ("told", UNIT.times(4))],
        "one notice, however many units"
    );
    let plugged_at = Duration::from_millis(300);
    let told = times(&world, 0, |action, _| matches!(action, Action::TellGuest { .. }));
    assert!(told[1] >= plugged_at, "only what the hypervisor shows: {told:?}");
    let before = world.log.len();
    run(&mut world, system(0, 0), 3);
    let asked = times(&world, before, |action, _| matches!(action, Action::AskGuest { .. }));
    let patched = times(
        &world,
        before,
        |action, _| matches!(action, Action::PatchVm { from, size, .. } if from != size),
    );
    assert_eq!((asked.len(), patched.len()), (3, 3));
    assert!(asked.iter().zip(&patched).all(|(asked, patched)| asked < patched));
}

#[test]
fn without_a_live_guest_nothing_becomes_smaller() {
    let mut world = large(config());
    world.sample(NOTHING);
    world.disconnect();
    world.system = system(0, 0);
    world.sample(NOTHING);
    world.until(world.now + seconds(300));
    world.set_limits(limits(UNIT.times(1), UNIT.times(2), 256));
    world.until(world.now + seconds(300));
    assert_eq!(world.view.plugged, UNIT.times(4), "not even for a lowered maximum");
    world.connect();
    run(&mut world, system(0, 0), 10);
    assert_eq!(world.view.plugged, UNIT.times(1));
}

#[test]
fn a_guest_that_is_connected_and_silent_is_not_asked() {
    let mut world = large(config());
    world.until(world.now + seconds(31));
    world.set_limits(limits(UNIT.times(1), UNIT.times(2), 256));
    world.until(world.now + seconds(60));
    assert_eq!(questions(&world), []);
    run(&mut world, system(9000, 0), 5);
    assert_eq!(world.view.plugged, UNIT.times(2));
}

#[test]
fn without_all_metrics_nothing_becomes_smaller() {
    let mut world = large(with_cache());
    run(&mut world, system(0, 0), 60);
    assert_eq!(world.view.plugged, UNIT.times(4), "the cache's are missing");
    world.restart(false);
    run(&mut world, None, 60);
    assert_eq!(world.view.plugged, UNIT.times(4), "all are missing");
    run(&mut world, system(0, 0), 1);
    world.event(windows());
    run(&mut world, system(0, 0), 10);
    assert_eq!(world.view.plugged, UNIT.times(3), "what the cache needs");
}

#[test]
fn a_denial_holds_above_the_maximum() {
    let mut world = large(config());
    world.behaviour.veto = Some(size(1000, 4096));
    world.set_limits(limits(UNIT.times(1), UNIT.times(3), 256));
    run(&mut world, system(9000, 0), 60);
    assert_eq!(world.view.plugged, UNIT.times(4));
    assert_eq!(world.scaler.overview(world.now).unwrap().desired, UNIT.times(4));
    let asked = times(&world, 0, |action, _| matches!(action, Action::AskGuest { .. }));
    assert!(gaps(&asked).iter().all(|gap| *gap >= seconds(5)), "{asked:?}");
    world.behaviour.veto = None;
    run(&mut world, system(9000, 0), 10);
    assert_eq!(world.view.plugged, UNIT.times(3));
}

#[test]
fn a_denial_outlives_its_connection() {
    let mut world = large(config());
    world.behaviour.veto = Some(UNIT.times(4));
    run(&mut world, system(0, 0), 1);
    world.connect();
    run(&mut world, system(0, 0), 10);
    let asked = times(&world, 0, |action, _| matches!(action, Action::AskGuest { .. }));
    assert!(asked.len() == 3 && gaps(&asked).iter().all(|gap| *gap >= seconds(5)), "{asked:?}");
}

#[test]
fn permits_need_not_be_whole_units_and_cpu_and_memory_are_apart() {
    let mut world = world(config());
    world.behaviour.cap = Some(size(600, 1024 + 512));
    run(&mut world, system(9000, 0), 5);
    assert_eq!(world.view.plugged, size(600, 1024 + 512));
    world.behaviour.cap = Some(size(1000, 1024 + 512));
    run(&mut world, system(9000, 0), 5);
    assert_eq!(world.view.plugged, size(1000, 1024 + 512));
    world.behaviour.cap = None;
    run(&mut world, system(0, 0), 10);
    assert_eq!(world.view.plugged, UNIT.times(1));
    let first = questions(&world)[0];
    assert_eq!(first, (size(1000, 1536), size(750, 1024)), "one unit of each, within the bounds");
}

#[test]
fn what_the_guest_asks_for_counts_ten_seconds() {
    let mut world = world(config());
    run(&mut world, system(0, 0), 5);
    let asked = world.now;
    world.event(Event::Asked(size(250, 3000)));
    run(&mut world, system(0, 0), 9);
    assert_eq!(world.view.plugged, UNIT.times(2), "one unit more than it had, whatever it names");
    run(&mut world, system(0, 0), 3);
    assert_eq!(world.view.plugged, UNIT.times(1));
    let question = times(&world, 0, |action, _| matches!(action, Action::AskGuest { .. }))[0];
    assert_eq!(question - asked.0, seconds(10));
    world.event(Event::Asked(size(4000, 1024)));
    run(&mut world, system(0, 0), 2);
    assert_eq!(world.view.plugged, UNIT.times(1), "CPU is never asked for");
    world.event(Event::Asked(size(250, 3000)));
    world.disconnect();
    world.connect();
    assert_eq!(world.scaler.overview(world.now).unwrap().desired, UNIT.times(1), "another guest");
}

#[test]
fn an_ask_goes_beyond_what_the_guest_knew() {
    let mut world = world(config());
    run(&mut world, system(0, 0), 5);
    // The second unit is plugged, and the guest has not heard of it.
    world.system = system(300, 0);
    world.sample(NOTHING);
    world.until(world.now + Duration::from_millis(200));
    world.event(Event::Asked(size(250, 1500)));
    run(&mut world, system(300, 0), 5);
    assert_eq!(world.view.plugged, UNIT.times(2));
}

#[test]
fn timers_are_the_references() {
    let policy = Policy::reference(config(), UNIT);
    let Rules::Reference(rules) = policy.rules else { panic!("{policy:?}") };
    assert_eq!((rules.requested_valid, policy.retries.veto_valid), (seconds(10), seconds(5)));

    let mut world = world(config());
    run(&mut world, system(0, 0), 100);
    let statements = times(&world, 0, |_, why| why == Why::Statement);
    assert!(statements.len() >= 6 && gaps(&statements).iter().all(|gap| *gap == seconds(15)));

    world.behaviour = Behaviour { permit_fails: true, ..Behaviour::default() };
    let before = world.log.len();
    run(&mut world, system(300, 0), 30);
    let asked = times(&world, before, |action, _| matches!(action, Action::AskPermit { .. }));
    let pause = seconds(3) + Duration::from_millis(10);
    assert!(asked.len() >= 9 && gaps(&asked).iter().all(|gap| *gap == pause), "{asked:?}");

    world.behaviour = Behaviour { cap: Some(UNIT.times(1)), ..Behaviour::default() };
    run(&mut world, system(300, 0), 5);
    let before = world.log.len();
    run(&mut world, system(300, 0), 12);
    let asked = times(&world, before, |_, why| why == Why::Grow);
    let pause = seconds(2) + Duration::from_millis(10);
    assert!(asked.len() >= 5 && gaps(&asked).iter().all(|gap| *gap == pause), "{asked:?}");

    world.behaviour = Behaviour { patch_fails: true, ..Behaviour::default() };
    run(&mut world, system(300, 0), 3);
    let before = world.log.len();
    run(&mut world, system(300, 0), 30);
    let patched = times(&world, before, |action, _| matches!(action, Action::PatchVm { .. }));
    let pause = seconds(5) + Duration::from_millis(10);
    assert!(patched.len() >= 5 && gaps(&patched).iter().all(|gap| *gap == pause), "{patched:?}");

    let mut world = large(config());
    world.behaviour.guest_fails = true;
    run(&mut world, system(0, 0), 30);
    let asked = times(&world, 0, |action, _| matches!(action, Action::AskGuest { .. }));
    let pause = seconds(3) + Duration::from_millis(10);
    assert!(asked.len() >= 9 && gaps(&asked).iter().all(|gap| *gap == pause), "{asked:?}");
}

#[test]
fn the_working_set_of_the_cache_counts_until_its_metrics_are_off() {
    let mut world = world(with_cache());
    run(&mut world, system(0, 0), 2);
    world.event(windows());
    run(&mut world, system(0, 0), 2);
    assert_eq!(world.view.plugged, UNIT.times(3));
    world.set_policy(Policy::reference(config(), UNIT));
    assert_eq!(world.scaler.overview(world.now).unwrap().desired, UNIT.times(1), "dropped at once");
    world.set_policy(Policy::reference(with_cache(), UNIT));
    run(&mut world, system(0, 0), 1);
    let rule = world.scaler.decisions().last().unwrap();
    assert_eq!(world.scaler.overview(world.now).unwrap().desired, world.view.spec, "{rule:?}");
}

#[test]
fn the_policy_changes_while_the_vm_runs() {
    let mut world = world(config());
    run(&mut world, system(9000, 0), 5);
    world.set_policy(Policy::default());
    let changed = world.now;
    world.run(seconds(60), Some(size(100, 300)));
    assert_eq!(world.view.plugged, UNIT.times(1));
    let first = world.log.iter().find(|(_, action, _)| matches!(action, Action::AskGuest { .. }));
    assert!(first.unwrap().0.since(changed) >= seconds(14), "its calm spell began with it");
    world.system = system(9000, 0);
    world.run(seconds(5), Some(size(100, 300)));
    assert_eq!(world.view.plugged, UNIT.times(1));
    world.set_policy(Policy::reference(config(), UNIT));
    world.run(seconds(5), Some(size(100, 300)));
    assert_eq!(world.view.plugged, UNIT.times(4));
}

#[test]
fn one_direction_at_a_time() {
    let mut world = large(config());
    world.system = system(0, 0);
    world.sample(NOTHING);
    // The step down is written, and not made yet: a load comes back, and another connection.
    world.until(world.now + Duration::from_millis(100));
    assert!(world.view.spec == UNIT.times(3) && world.view.plugged == UNIT.times(4));
    let before = world.log.len();
    world.connect();
    world.system = system(700, 0);
    world.sample(NOTHING);
    world.until(world.now + Duration::from_millis(150));
    let told = times(&world, before, |action, _| matches!(action, Action::TellGuest { .. }));
    assert!(told.is_empty(), "nothing is told while the shrink is in flight");
    run(&mut world, system(700, 0), 10);
    assert_eq!(world.view.plugged, UNIT.times(4));
}

#[test]
fn no_shrink_begins_while_a_notice_is_in_flight() {
    let mut world = world(config());
    run(&mut world, system(300, 0), 1);
    let told = world.log.iter().rposition(|(_, a, _)| matches!(a, Action::TellGuest { .. }));
    let (at, notice, _) = world.log[told.unwrap()];
    let mut scaler = world.scaler.clone();
    // Back to the moment in which the notice is on its way.
    let again = Action::TellGuest { generation: 9999, plugged: UNIT.times(2) };
    scaler.handle(Event::Started(again), world.now);
    let sample = host_scaling::Sample { demand: NOTHING, used: NOTHING, system: system(0, 0) };
    scaler.handle(Event::Sample(sample), world.now);
    assert!(scaler.next(world.now).start.is_empty(), "{at:?} {notice:?}");
    scaler.handle(Event::GuestTold { generation: 9999 }, world.now);
    let start = scaler.next(world.now).start;
    assert!(matches!(start[..], [(Action::AskGuest { .. }, Why::PlanShrink)]), "{start:?}");
}

/// Decides again from a record alone.
fn replayed(decision: &Decision) -> Size {
    let inputs = &decision.inputs;
    let reference = inputs.reference.as_ref().unwrap();
    Desired {
        goal: reference.goal,
        unit: reference.unit,
        current: decision.from,
        min: inputs.min,
        max: inputs.max,
        requested: reference.requested,
        denied: reference.denied,
    }
    .size()
}

#[test]
fn a_record_holds_what_it_was_decided_from() {
    let mut world = world(with_cache());
    run(&mut world, system(0, 400), 1);
    world.event(windows());
    run(&mut world, system(300, 400), 5);
    let decisions: Vec<_> = world.scaler.decisions().collect();
    let last = decisions.last().unwrap();
    assert_eq!((last.from, last.to), (UNIT.times(1), UNIT.times(3)));
    assert_eq!(replayed(last), last.to);
    assert_eq!(last.rule, "goal 3 by cache");
    let line = serde_json::to_value(last).unwrap();
    let reference = &line["inputs"]["reference"];
    assert_eq!(reference["goal"]["workingSet"]["estimatePages"], 190_000.0);
    assert_eq!(reference["goal"]["units"], 3);
    assert_eq!(reference["memoryUsage"], "400Mi");
    assert_eq!(reference["load1"], 0.0);
    world.behaviour.veto = Some(UNIT.times(3));
    world.set_policy(Policy::reference(config(), UNIT));
    run(&mut world, system(0, 0), 20);
    let last = world.scaler.decisions().last().unwrap();
    assert_eq!(last.rule, "goal 0 by cpu, bounds, one unit down");
    assert!(last.attempts > 2 && replayed(last) == UNIT.times(1), "{last:?}");
    let headroom = World::new(world.limits);
    assert!(headroom.scaler.decisions().all(|it| it.inputs.reference.is_none()));
}

#[derive(Debug, Clone)]
enum Step {
    Run { seconds: u64, system: Option<SystemSample> },
    Asks(Size),
    Cache(Vec<u32>),
    Behave(Behaviour),
    Connect { disconnect: bool },
    Max(u32),
    Restart { lands: bool },
    Policy { reference: bool, cache: bool },
}

fn any_system() -> impl Strategy<Value = SystemSample> {
    (0u32..5000, 0u32..5000, 0u64..9000, 0u64..9000).prop_map(|(short, long, usage, cached)| {
        SystemSample {
            load1_milli: short,
            load5_milli: long,
            memory_usage: Bytes::from_mib(usage),
            memory_cached: Bytes::from_mib(cached),
        }
    })
}

fn any_size() -> impl Strategy<Value = Size> {
    (0u32..10, 0u64..40).prop_map(|(cpu, memory)| size(cpu * 125, memory * 256))
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    let flag = || prop::bool::weighted(0.2);
    (prop::option::of(any_size()), prop::option::of(any_size()), (flag(), flag(), flag(), flag()))
        .prop_map(|(cap, veto, (permit_fails, permit_lost, patch_fails, guest_fails))| Behaviour {
            cap,
            veto,
            permit_fails,
            permit_lost,
            patch_fails,
            guest_fails,
            ..Behaviour::default()
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u64..20, prop::option::weighted(0.9, any_system()))
            .prop_map(|(seconds, system)| Step::Run { seconds, system }),
        2 => any_size().prop_map(Step::Asks),
        1 => prop::collection::vec(0u32..2_000_000, 0..70).prop_map(Step::Cache),
        2 => behaviour().prop_map(Step::Behave),
        1 => any::<bool>().prop_map(|disconnect| Step::Connect { disconnect }),
        1 => (1u32..8).prop_map(Step::Max),
        1 => any::<bool>().prop_map(|lands| Step::Restart { lands }),
        1 => (prop::bool::weighted(0.8), any::<bool>())
            .prop_map(|(reference, cache)| Step::Policy { reference, cache }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_and_the_goal_is_reached_when_faults_stop(
        steps in prop::collection::vec(step(), 1..25),
        last in any_system(),
    ) {
        let mut world = world(config());
        for step in steps {
            match step {
                Step::Run { seconds, system } => run(&mut world, system, seconds),
                Step::Asks(want) => world.event(Event::Asked(want)),
                Step::Cache(pages) => world.event(Event::Cache(Box::new(CacheWindows::new(pages)))),
                Step::Behave(behaviour) => world.behaviour = behaviour,
                Step::Connect { disconnect: true } => world.disconnect(),
                Step::Connect { disconnect: false } => world.connect(),
                Step::Max(units) => {
                    world.set_limits(limits(UNIT.times(1), UNIT.times(units), 256));
                }
                Step::Restart { lands } => world.restart(lands),
                Step::Policy { reference, cache } => {
                    let config = if cache { with_cache() } else { config() };
                    world.set_policy(if reference {
                        Policy::reference(config, UNIT)
                    } else {
                        Policy::default()
                    });
                }
            }
        }
        world.behaviour = Behaviour::default();
        world.connect();
        world.set_policy(Policy::reference(config(), UNIT));
        run(&mut world, Some(last), 60);
        let desired = world.scaler.overview(world.now).unwrap().desired;
        prop_assert_eq!(world.view.plugged, desired);
        prop_assert_eq!(world.view.spec, desired);
        prop_assert_eq!(world.view.approved, Some(desired));
        prop_assert!(world.approval_is_newest());
        let before = world.log.len();
        run(&mut world, Some(last), 60);
        for (at, action, why) in &world.log[before..] {
            prop_assert!(*why == Why::Statement, "not at rest: {:?} {:?} {:?}", at, action, why);
        }
    }

    #[test]
    fn no_question_goes_further_than_one_unit(
        loads in prop::collection::vec(any_system(), 5..40),
    ) {
        let mut world = world(config());
        for system in loads {
            run(&mut world, Some(system), 3);
        }
        for (from, to) in questions(&world) {
            prop_assert!(to.cpu.0 + UNIT.cpu.0 >= from.cpu.0);
            prop_assert!(to.memory.0 + UNIT.memory.0 >= from.memory.0);
        }
    }
}

/// Runs with a guest that agrees to nothing below what it has, and tells the largest size.
fn largest_while_vetoed(world: &mut World, used_mib: u64) -> Size {
    let rest = world.view.plugged;
    world.behaviour.veto = Some(rest);
    world.system = system(0, used_mib);
    let mut largest = rest;
    (0..60).for_each(|_| {
        world.run(seconds(1), Some(NOTHING));
        largest = largest.max(world.view.plugged);
    });
    largest
}

#[test]
fn a_veto_never_grows_a_vm() {
    // The minimum is eight units of CPU, and one of memory.
    let bounds = limits(size(2000, 1024), size(8000, 32 * 1024), 256);
    let mut world = World::with(bounds, Policy::reference(config(), UNIT));
    run(&mut world, system(0, 3500), 20);
    assert_eq!(largest_while_vetoed(&mut world, 1000), size(2000, 7 * 1024));
    let bounds = limits(UNIT.times(1), UNIT.times(16), 256);
    let mut world = World::with(bounds, Policy::reference(config(), UNIT));
    world.behaviour.cap = Some(size(1900, 7 * 1024 + 512));
    run(&mut world, system(9000, 0), 5);
    world.behaviour.cap = None;
    assert_eq!(largest_while_vetoed(&mut world, 0), size(1900, 7 * 1024 + 512));
}

#[test]
fn levels_of_an_earlier_connection_do_not_count() {
    let mut world = large(config());
    world.behaviour.veto = Some(UNIT.times(4));
    run(&mut world, system(0, 0), 3);
    // The guest is of the version before now: it says no levels.
    world.connect();
    world.behaviour.veto = None;
    run(&mut world, None, 60);
    assert_eq!(world.view.plugged, UNIT.times(4));
}
