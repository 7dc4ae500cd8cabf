//! What holds for every demand.

use std::iter::Peekable;
use std::time::Duration;

use guest_units::{Bytes, MilliCpu};
use proptest::prelude::*;

use super::*;

fn archetypes() -> impl Strategy<Value = Archetype> {
    prop::sample::select(Archetype::all())
}

#[test]
fn a_million_fit_into_memory() {
    assert!(size_of::<Peekable<Demand>>() <= 200, "{}", size_of::<Peekable<Demand>>());
}

#[test]
fn a_demand_begins_and_ends_at_0() {
    let max = Size::new(MilliCpu::ONE, Bytes::from_gib(1));
    for archetype in Archetype::all() {
        let mut demand = Demand::of_archetype(*archetype, max, 1, 0, Moment::ZERO);
        assert_eq!(demand.next().map(|load| load.at), Some(Moment::ZERO));
        assert_eq!(demand.next(), None);
        assert_eq!(demand.next(), None);
    }
}

#[test]
fn every_vm_and_every_seed_differs() {
    let max = Size::new(MilliCpu::from_cpus(4), Bytes::from_gib(16));
    let end = Moment::from_secs(3600);
    for archetype in Archetype::all() {
        let loads =
            |seed, vm| Demand::of_archetype(*archetype, max, seed, vm, end).collect::<Vec<_>>();
        assert_eq!(loads(1, 1), loads(1, 1));
        assert_ne!(loads(1, 1), loads(1, 2));
        assert_ne!(loads(1, 1), loads(2, 1));
    }
}

#[test]
fn bursts_over_a_trace_follow_from_the_seed() {
    let samples: Vec<_> = [5.0, 80.0, 20.0].map(Sample::derived).into();
    let trace = Trace {
        name: "vm".into(),
        samples: samples.into(),
        resolution: Duration::from_secs(300),
        memory: TraceMemory::Derived,
    };
    let end = Moment::from_secs(6 * 3600);
    let loads = |seed| Demand::of_trace(&trace, seed, 0, end).collect::<Vec<_>>();
    for seed in 1..=5 {
        assert_eq!(loads(seed), loads(seed));
        assert_ne!(loads(seed), loads(seed + 1));
        assert!(loads(seed).last().is_some_and(|load| load.at <= end));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn loads_are_in_order_and_within_bounds(
        archetype in archetypes(),
        cpu in 0_u32..128_000,
        memory in 0_u64..2 << 40,
        seed: u64,
        vm: u64,
    ) {
        let max = Size::new(MilliCpu(cpu), Bytes(memory));
        let end = Moment::from_secs(2 * 24 * 3600);
        let demand = Demand::of_archetype(archetype, max, seed, vm, end);
        let loads: Vec<_> = demand.clone().take(500).collect();
        prop_assert_eq!(loads[0].at, Moment::ZERO);
        for pair in loads.windows(2) {
            prop_assert!(pair[0].at < pair[1].at);
            prop_assert!(pair[0].memory_at(pair[1].at) <= max.memory);
        }
        for load in &loads {
            prop_assert!(load.at <= end && load.cpu <= max.cpu && load.memory <= max.memory);
            if archetype == Archetype::MemoryRamps && max.memory >= Bytes::from_gib(1) {
                // Amounts are in whole KiB, which may make a short ramp a little steeper.
                prop_assert!(load.memory_per_second <= (4 << 30) + (1 << 20));
            }
        }
        prop_assert!(demand.take(500).eq(loads));
    }
}
