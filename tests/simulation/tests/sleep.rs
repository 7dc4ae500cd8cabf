//! Not looking at what does not change changes nothing. When exactly a guest looks is chance, and where a demand lies just at
//! the edge of a size, chance decides; so two fleets that are looked at all the time, at other moments, are the control: one
//! that sleeps differs from them hardly more than they do from each other, and costs the same to half a percent.

use std::time::Duration;

use guest_units::{Bytes, Moment, Size};
use host_scaling::Limits;
use scheduler_ledger::Amount;
use tests_simulation::demand::{Archetype, Demand};
use tests_simulation::fleet::{Doze, Settings, World};
use tests_simulation::run::{Brain, machine};

const HOURS: u64 = 3;
struct Seen {
    sizes: Vec<(Moment, Size)>,
    kills: u32,
    events: u64,
    vcpu_hours: f64,
    gib_hours: f64,
}

fn run(brain: Brain, archetype: Archetype, seed: u64, sleep: bool, phase: u64) -> Seen {
    let settings = Settings {
        seed: phase,
        policy: brain.policy(),
        doze: if sleep { Doze::Exact } else { Doze::Never },
        sleep,
        gives_up: None,
        detector: brain == Brain::Reference,
        measure: true,
        checks: false,
        standby: false,
        trace: Some(0),
        record: None,
    };
    let machine = machine(8, Bytes::from_mib(128));
    let end = Moment::from_secs(HOURS * 3600);
    let room = Amount { cpu_millis: 1_000_000, memory_bytes: 1 << 45 };
    let mut world = World::new(settings, &[room]);
    let limits = Limits { min: machine.min, max: machine.max, slot: machine.slot };
    let loads = machine.capped(Demand::of_archetype(archetype, machine.max, seed, 0, end));
    world.add_running(limits, machine.min, 0, Box::new(loads));
    world.begin();
    world.run(end);
    let events = world.events();
    let report = world.quality().report(None);
    let vm = &world.machines()[0];
    Seen {
        sizes: vm.sizes.clone().unwrap_or_default(),
        kills: vm.kills,
        events,
        vcpu_hours: report.vcpu_hours,
        gib_hours: report.gib_hours,
    }
}

/// For how much of the time the two had different sizes.
fn apart(one: &Seen, other: &Seen) -> Duration {
    let mut moments: Vec<Moment> =
        [one, other].iter().flat_map(|it| &it.sizes).map(|it| it.0).collect();
    moments.sort();
    moments.push(Moment::from_secs(HOURS * 3600));
    let at = |seen: &Seen, now: Moment| {
        let before = seen.sizes.partition_point(|(at, _)| *at <= now);
        before.checked_sub(1).map(|index| seen.sizes[index].1)
    };
    let spans = moments.windows(2).filter(|two| at(one, two[0]) != at(other, two[0]));
    spans.map(|two| two[1].since(two[0])).sum()
}

#[test]
fn a_vm_that_sleeps_is_scaled_like_one_that_does_not() {
    scaled_alike(Brain::Headroom);
}

#[test]
fn so_is_one_with_the_detector() {
    scaled_alike(Brain::Reference);
}

fn scaled_alike(brain: Brain) {
    // Share of the time with other sizes; kills more or less, a VM; share of the vCPU-hours and of the GiB-hours more or less.
    for archetype in Archetype::all() {
        let (mut slept, mut control) = ([0.0; 4], [0.0; 4]);
        let (mut awake_events, mut asleep_events) = (0, 0);
        let (mut awake_kills, mut asleep_kills) = (0, 0);
        for seed in 0..4 {
            let awake = run(brain, *archetype, seed, false, 1);
            let other = run(brain, *archetype, seed, false, 2);
            let asleep = run(brain, *archetype, seed, true, 3);
            for (sums, it) in [(&mut slept, &asleep), (&mut control, &other)] {
                let apart = apart(&awake, it).as_secs_f64() / (3600.0 * HOURS as f64);
                let of = |one: f64, other: f64| (one - other).abs() / one;
                let kills = f64::from(awake.kills.abs_diff(it.kills));
                let costs =
                    [of(awake.vcpu_hours, it.vcpu_hours), of(awake.gib_hours, it.gib_hours)];
                for (sum, value) in sums.iter_mut().zip([apart, kills, costs[0], costs[1]]) {
                    *sum += value / 4.0;
                }
            }
            awake_events += awake.events;
            asleep_events += asleep.events;
            awake_kills += awake.kills;
            asleep_kills += asleep.kills;
        }
        eprintln!(
            "{brain:?} {archetype}: {asleep_events} of {awake_events} events, {slept:.4?}, control {control:.4?}"
        );
        eprintln!("  kills: {awake_kills} awake, {asleep_kills} asleep");
        // Whether a burst kills is chance: the sums may differ by three standard deviations.
        let spread = f64::from(awake_kills + asleep_kills).sqrt();
        assert!(f64::from(awake_kills.abs_diff(asleep_kills)) <= 3.0 * spread, "{archetype}");
        for (index, least) in [(0, 0.01), (2, 0.005), (3, 0.005)] {
            let (slept, control) = (slept[index], control[index]);
            assert!(slept <= 3.0 * control + least, "{archetype}, number {index}: {slept}");
        }
    }
}
