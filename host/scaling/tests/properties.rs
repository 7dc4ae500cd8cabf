//! Properties that hold for every run; the world checks the invariants of single actions.

#![expect(clippy::unwrap_used, reason = "a failure to unwrap is a failed test")]

mod world;

use std::time::Duration;

use guest_units::{Bytes, Moment, Size};
use host_scaling::{Action, Event, Outcome, Why};
use proptest::prelude::*;
use world::{Behaviour, World, limits, size};

#[derive(Debug, Clone)]
enum Step {
    Run { seconds: u64, demand: Option<Size> },
    Asks(Size),
    Behave(Behaviour),
    Disconnect,
    Connect,
    Max(Size),
    Stale(u64),
    Restart { lands: bool },
}

fn any_size() -> impl Strategy<Value = Size> {
    (0u32..40, 0u64..40).prop_map(|(cpu, memory)| size(cpu * 125, memory * 256))
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    (
        prop::option::of(any_size()),
        prop::option::of(any_size()),
        (prop::bool::weighted(0.2), any::<bool>()),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
        (prop::option::weighted(0.2, 4u64..32), prop::option::weighted(0.3, 1u64..4)),
    )
        .prop_map(
            |(
                cap,
                veto,
                (permit_fails, permit_lost),
                patch_fails,
                guest_fails,
                (stops, pieces),
            )| Behaviour {
                cap,
                veto,
                permit_fails,
                permit_lost,
                patch_fails,
                guest_fails,
                patch_races: permit_fails,
                unplug_stops: stops.map(|stops| Bytes(stops << 28)),
                pieces: pieces.map(|pieces| Bytes(pieces << 28)),
            },
        )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u64..40, prop::option::weighted(0.9, any_size()))
            .prop_map(|(seconds, demand)| Step::Run { seconds, demand }),
        2 => any_size().prop_map(Step::Asks),
        2 => behaviour().prop_map(Step::Behave),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Connect),
        1 => (4u32..20, 4u64..32).prop_map(|(cpu, memory)| Step::Max(size(cpu * 250, memory * 256))),
        1 => (0u64..120).prop_map(Step::Stale),
        2 => any::<bool>().prop_map(|lands| Step::Restart { lands }),
    ]
}

fn world() -> World {
    World::new(limits(size(250, 1024), size(4000, 8192), 256))
}

/// A stale message changes nothing but what is shown.
fn stale(world: &mut World, generation: u64) {
    let now = world.now;
    let mut other = world.scaler.clone();
    for event in [
        Event::PermitAnswered { generation, permit: size(4000, 8192), reason: String::new() },
        Event::PermitFailed { generation },
        Event::Patched { generation },
        Event::PatchFailed { generation, raced: true },
        Event::GuestFine { generation },
        Event::GuestVeto { generation, least: size(4000, 8192) },
        Event::GuestTold { generation },
        Event::GuestFailed { generation },
    ] {
        other.handle(event, now);
    }
    assert_eq!(format!("{other:?}"), format!("{:?}", world.scaler));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_and_faults_that_stop_leave_no_trace(
        steps in prop::collection::vec(step(), 1..25),
        demand in any_size(),
    ) {
        let mut world = world();
        for step in steps {
            match step {
                Step::Run { seconds, demand } => world.run(Duration::from_secs(seconds), demand),
                Step::Asks(want) => world.event(Event::Asked(want)),
                Step::Behave(behaviour) => world.behaviour = behaviour,
                Step::Disconnect => world.disconnect(),
                Step::Connect => world.connect(),
                Step::Restart { lands } => world.restart(lands),
                Step::Max(max) => world.set_limits(limits(size(250, 1024), max, 256)),
                // Nothing is in flight: whatever carries an old number is stale.
                Step::Stale(old) => {
                    world.until(Moment(world.now.0 + Duration::from_millis(50)));
                    let newest = world.log.last().map_or(100, |(_, action, _)| action.generation());
                    if world.idle() {
                        stale(&mut world, newest.saturating_sub(old));
                    }
                }
            }
        }
        world.behaviour = Behaviour::default();
        world.connect();
        world.run(Duration::from_secs(120), Some(demand));
        let settled = world.view;
        prop_assert_eq!(settled.plugged, settled.spec);
        prop_assert_eq!(settled.approved, Some(settled.spec), "what is gone is returned");
        prop_assert!(world.approval_is_newest(), "an approval was issued and never superseded");
        let fits = demand.fits_in(settled.spec);
        prop_assert!(fits || settled.spec.cpu == world.limits.max.cpu
            || settled.spec.memory == world.limits.max.memory);
        // At rest: only statements follow.
        let before = world.log.len();
        world.run(Duration::from_secs(60), Some(demand));
        for (at, action, why) in &world.log[before..] {
            prop_assert!(*why == Why::Statement, "not at rest: {:?} {:?} {:?}", at, action, why);
        }
    }

    #[test]
    fn no_reversal_for_a_constant_demand(first in any_size(), then in any_size()) {
        let mut world = world();
        world.run(Duration::from_secs(60), Some(first));
        let before = world.log.len();
        world.run(Duration::from_secs(120), Some(then));
        let mut cpu = Vec::new();
        let mut memory = Vec::new();
        for (_, action, _) in &world.log[before..] {
            if let Action::PatchVm { from, size, .. } = action {
                cpu.push(size.cpu.cmp(&from.cpu));
                memory.push(size.memory.cmp(&from.memory));
            }
        }
        for mut directions in [cpu, memory] {
            directions.retain(|direction| direction.is_ne());
            directions.dedup();
            prop_assert!(directions.len() <= 1, "{:?}", directions);
        }
    }

    #[test]
    fn a_noisy_demand_never_shrinks_within_its_calm_spell(
        demands in prop::collection::vec(any_size(), 20..80),
    ) {
        let mut world = world();
        let mut grown_at = Duration::ZERO;
        let mut seen = 0;
        for demand in demands {
            world.run(Duration::from_secs(1), Some(demand));
            for (at, action, _) in &world.log[seen..] {
                if let Action::PatchVm { from, size, .. } = action {
                    if size.cpu > from.cpu {
                        grown_at = at.0;
                    }
                    let spell = Duration::from_secs(14);
                    prop_assert!(size.cpu >= from.cpu || at.0 - grown_at >= spell);
                }
            }
            seen = world.log.len();
        }
    }
}

#[test]
fn back_at_the_minimum_within_90_seconds_for_six_to_one() {
    for slot in [128, 256, 1024] {
        let mut world = World::new(limits(size(250, 1024), size(1500, 6144), slot));
        world.run(Duration::from_secs(30), Some(size(2000, 6000)));
        assert_eq!(world.view.plugged, size(1500, 6144));
        let ended = world.now.0;
        while world.view.plugged != size(250, 1024) || world.view.approved != Some(size(250, 1024))
        {
            world.run(Duration::from_secs(1), Some(size(20, 300)));
            assert!(world.now.0 - ended < Duration::from_secs(90), "slot {slot}: {:?}", world.view);
        }
    }
}

#[test]
fn an_approval_that_died_with_its_agent_is_superseded() {
    let mut world = world();
    world.run(Duration::from_secs(5), Some(size(100, 300)));
    world.event(Event::Asked(size(2000, 4096)));
    world.restart(false);
    world.run(Duration::from_secs(2), Some(size(100, 300)));
    assert_eq!(world.view.approved, Some(size(250, 1024)));
    assert!(world.approval_is_newest(), "the larger one still counts as promised");
}

#[test]
fn an_older_answer_does_not_supersede_a_lost_one() {
    let mut world = world();
    world.sample(size(2000, 300));
    // The first answer is being written while the next one gets lost.
    world.behaviour = Behaviour { permit_fails: true, permit_lost: true, ..Behaviour::default() };
    world.until(Moment(Duration::from_millis(25)));
    assert!(!world.approval_is_newest());
    world.behaviour = Behaviour::default();
    world.set_limits(limits(size(250, 1024), size(250, 1024), 256));
    world.run(Duration::from_secs(20), Some(size(100, 300)));
    assert!(world.approval_is_newest(), "{:?}", world.view);
}

#[test]
fn a_wish_to_grow_is_heard_soon_after_the_scheduler_is_back() {
    let mut world = world();
    world.run(Duration::from_secs(5), Some(size(100, 300)));
    world.behaviour.permit_fails = true;
    world.sample(size(2000, 300));
    for outage in [300, 700, 30_000] {
        let start = world.now;
        world.until(start + Duration::from_millis(outage));
        let asked = world.log.iter().filter(|(at, _, why)| *at >= start && *why == Why::Grow);
        assert!(asked.count() as u64 <= 4 + outage / 2000, "not a flood");
    }
    world.behaviour.permit_fails = false;
    world.run(Duration::from_millis(2100), Some(size(2000, 300)));
    assert_eq!(world.view.approved, Some(size(2500, 1024)));
}

#[test]
fn a_statement_that_failed_is_repeated() {
    let mut world = world();
    world.run(Duration::from_secs(14), Some(size(100, 300)));
    world.behaviour.permit_fails = true;
    world.run(Duration::from_secs(2), Some(size(100, 300)));
    world.behaviour.permit_fails = false;
    let before = world.log.len();
    world.run(Duration::from_secs(3), Some(size(100, 300)));
    assert!(world.log[before..].iter().any(|(_, _, why)| *why == Why::Statement));
}

#[test]
fn growth_is_asked_and_written_without_waiting() {
    let mut world = world();
    world.run(Duration::from_secs(5), Some(size(100, 300)));
    let start = world.now.0;
    world.sample(size(1800, 2000));
    world.until(Moment(start + Duration::from_millis(25)));
    assert_eq!(world.view.spec, size(2250, 2304));
}

#[test]
fn a_silent_guest_is_never_shrunk() {
    let mut world = world();
    world.run(Duration::from_secs(10), Some(size(3000, 4000)));
    let large = world.view.plugged;
    world.run(Duration::from_secs(300), None);
    assert_eq!(world.view.plugged, large);
    world.disconnect();
    world.set_limits(limits(size(250, 1024), size(1000, 2048), 256));
    world.run(Duration::from_secs(300), None);
    assert_eq!(world.view.plugged, large, "not even for a lowered maximum");
}

#[test]
fn the_ring_is_bounded_and_equal_decisions_share_a_record() {
    let mut world = world();
    world.behaviour.cap = Some(size(250, 1024));
    world.run(Duration::from_secs(600), Some(size(2000, 300)));
    let records: Vec<_> = world.scaler.decisions().collect();
    assert!(records.len() <= 2, "{} records", records.len());
    assert!(records[records.len() - 1].attempts > 100);
    assert!(records[records.len() - 1].outcome.to_string().starts_with("denied: no room"));
    world.behaviour.cap = None;
    for round in 0..400 {
        let demand = if round % 2 == 0 { size(2000, 300) } else { size(20, 300) };
        world.run(Duration::from_secs(40), Some(demand));
    }
    assert!(world.scaler.decisions().count() <= 256);
}

#[test]
fn lost_races_are_repeated_at_once_but_not_without_end() {
    let mut world = world();
    world.run(Duration::from_secs(1), Some(size(100, 300)));
    world.behaviour.patch_fails = true;
    world.behaviour.patch_races = true;
    let before = world.log.len();
    world.run(Duration::from_secs(6), Some(size(2000, 300)));
    let patches = world.log[before..]
        .iter()
        .filter(|(_, action, _)| matches!(action, Action::PatchVm { .. }));
    let patches = patches.count();
    assert!((6..=12).contains(&patches), "{patches} patches");
    world.behaviour = Behaviour::default();
    world.run(Duration::from_secs(6), Some(size(2000, 300)));
    assert_eq!(world.view.plugged.cpu, size(2500, 0).cpu);
}

#[test]
fn a_refusal_stays_on_record_while_the_same_is_asked_again() {
    let mut world = World::new(limits(size(250, 1024), size(4000, 8192), 256));
    world.behaviour.cap = Some(size(250, 1024));
    world.run(Duration::from_secs(5), Some(size(2000, 512)));
    let asked = world.log.len();
    for step in 0..2000 {
        if step % 200 == 0 {
            world.sample(size(2000, 512));
        }
        world.until(world.now + Duration::from_millis(5));
        let last = world.scaler.decisions().last().expect("it is denied");
        assert!(matches!(last.outcome, Outcome::Denied { .. }), "{last:?}");
    }
    assert!(world.log.len() > asked + 2, "it has been asked again");
}
