//! The policy `reference`: what is written and not plugged yet, and what is plugged and going.

#![expect(clippy::unwrap_used, reason = "a failure to unwrap is a failed test")]

mod world;

use std::time::Duration;

use guest_units::{Bytes, Size};
use host_scaling::{Action, Event, Why};
use world::World;
use world::reference::{NOTHING, UNIT, config, large, run, seconds, system, world};

/// A load comes and goes: what it takes was permitted and written meanwhile, but not plugged. Says where the log was when it went.
fn wants_for_a_moment(world: &mut World) -> usize {
    let plugged = world.view.plugged;
    world.system = system(9000, 0);
    world.sample(NOTHING);
    world.until(world.now + Duration::from_millis(50));
    assert!(world.view.spec == UNIT.times(4) && world.view.plugged == plugged);
    let before = world.log.len();
    world.system = system(0, 0);
    world.sample(NOTHING);
    before
}

#[test]
fn the_scheduler_hears_of_what_is_in_flight() {
    let mut world = world(config());
    run(&mut world, system(300, 0), 1);
    world.behaviour.guest_fails = true;
    // The growth is undone, and given back when nothing of it can come any more.
    let before = wants_for_a_moment(&mut world);
    let undone = world.now;
    world.until(world.now + Duration::from_millis(100));
    assert_eq!(world.view.spec, UNIT.times(2));
    assert_eq!(world.scaler.overview(world.now).unwrap().permit, Some(UNIT.times(4)));
    run(&mut world, system(0, 0), 40);
    for (at, action, _) in &world.log[before..] {
        if let Action::AskPermit { want, .. } = action {
            let over = at.since(undone) >= seconds(2);
            assert!(over || *want == UNIT.times(4), "it may be plugged yet: {at:?}");
            assert!(UNIT.times(2).fits_in(*want), "that is plugged: {at:?}");
        }
    }
    assert_eq!((world.view.plugged, world.view.approved), (UNIT.times(2), Some(UNIT.times(2))));
    world.behaviour.guest_fails = false;
    run(&mut world, system(0, 0), 15);
    assert_eq!((world.view.plugged, world.view.approved), (UNIT.times(1), Some(UNIT.times(1))));
}

#[test]
fn a_growth_that_is_not_plugged_is_undone_at_once_and_without_a_question() {
    let mut world = world(config());
    run(&mut world, system(0, 0), 5);
    let before = wants_for_a_moment(&mut world);
    let patches: Vec<_> = world.log[before..]
        .iter()
        .map(|(_, action, why)| match action {
            Action::PatchVm { from, size, .. } => (*from, *size, *why),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(patches, [(UNIT.times(4), UNIT.times(1), Why::GrowthUndone)]);
    run(&mut world, system(0, 0), 10);
    assert_eq!((world.view.plugged, world.view.approved), (UNIT.times(1), Some(UNIT.times(1))));
}

#[test]
fn a_step_down_that_comes_in_pieces_is_one_step() {
    let mut world = large(config());
    world.behaviour.pieces = Some(Bytes::from_mib(256));
    let before = world.log.len();
    run(&mut world, system(0, 0), 30);
    let patches: Vec<_> = world.log[before..]
        .iter()
        .filter_map(|(_, action, _)| match action {
            Action::PatchVm { from, size, .. } if from != size => Some(*size),
            _ => None,
        })
        .collect();
    assert_eq!(patches, [3, 2, 1].map(|units| UNIT.times(units)));
    assert_eq!(world.view.plugged, UNIT.times(1));
}

#[test]
fn what_the_guest_asks_for_counts_from_what_it_agreed_to() {
    let mut world = large(config());
    world.system = system(300, 0);
    world.sample(NOTHING);
    world.until(world.now + Duration::from_millis(50));
    let (spec, plugged) = (world.view.spec, world.view.plugged);
    assert!(spec.memory < plugged.memory, "a step down is on its way: {spec:?} {plugged:?}");
    world.event(Event::Asked(Size { cpu: spec.cpu, memory: spec.memory.saturating_add(Bytes(1)) }));
    let desired = world.scaler.overview(world.now).unwrap().desired;
    assert_eq!(desired.memory, spec.memory.saturating_add(UNIT.memory), "one unit more than that");
}
