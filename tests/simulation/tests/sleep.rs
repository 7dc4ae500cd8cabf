//! Not looking at what does not change changes nothing: the same sizes, at the same times but for some seconds, the same kills
//! and the same costs.

use std::time::Duration;

use guest_units::{Bytes, Moment, Size};
use host_scaling::{Limits, Policy};
use scheduler_ledger::Amount;
use tests_simulation::demand::{Archetype, Demand};
use tests_simulation::fleet::{Doze, Settings, World};
use tests_simulation::run::machine;

const HOURS: u64 = 8;
/// A calm spell begins with another sample, so that a step down comes some seconds earlier or later.
const MOST_APART: f64 = 0.03;

struct Seen {
    sizes: Vec<(Moment, Size)>,
    kills: u32,
    events: u64,
    vcpu_hours: f64,
    gib_hours: f64,
}

fn run(archetype: Archetype, seed: u64, sleep: bool) -> Seen {
    let settings = Settings {
        seed,
        policy: Policy::default(),
        doze: if sleep { Doze::Exact } else { Doze::Never },
        sleep,
        steady_latencies: true,
        detector: false,
        measure: true,
        checks: false,
        trace: Some(0),
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
    let mut moments: Vec<Moment> = [one, other].iter().flat_map(|it| &it.sizes).map(|it| it.0).collect();
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
    for archetype in Archetype::all() {
        let (mut differs, mut awake_events, mut asleep_events) = (Duration::ZERO, 0, 0);
        for seed in 0..3 {
            let (awake, asleep) = (run(*archetype, seed, false), run(*archetype, seed, true));
            differs += apart(&awake, &asleep);
            assert_eq!(awake.kills, asleep.kills, "{archetype} {seed}");
            let close = |one: f64, other: f64| (one - other).abs() <= one * 0.005;
            assert!(close(awake.vcpu_hours, asleep.vcpu_hours), "{archetype} {seed}");
            assert!(close(awake.gib_hours, asleep.gib_hours), "{archetype} {seed}");
            awake_events += awake.events;
            asleep_events += asleep.events;
        }
        let share = differs.as_secs_f64() / (3.0 * 3600.0 * HOURS as f64);
        println!("{archetype}: other sizes {:.2} % of the time, {asleep_events} of {awake_events} events", share * 100.0);
        assert!(share <= MOST_APART, "{archetype}: {share}");
    }
}
