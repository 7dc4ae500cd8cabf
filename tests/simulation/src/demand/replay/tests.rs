//! Replays of small traces, mostly before the first burst.

use proptest::prelude::*;

use super::*;
use crate::demand::bursts::MOST;
use crate::random::random;

const MIB: u64 = 1 << 20;

fn trace(seconds: u64, memory: TraceMemory, samples: Vec<Sample>) -> Trace {
    let resolution = Duration::from_secs(seconds);
    Trace { name: "vm".into(), samples: samples.into(), resolution, memory }
}

fn busy(percents: &[f64]) -> Trace {
    trace(
        300,
        TraceMemory::Derived,
        percents.iter().map(|percent| Sample::derived(*percent)).collect(),
    )
}

fn loads(trace: &Trace, seed: u64, end: u64) -> Vec<Load> {
    let mut replay = Replay::new(trace.clone(), random(seed, 0));
    std::iter::from_fn(|| replay.next_load())
        .take_while(|load| load.at <= Moment::from_secs(end))
        .collect()
}

/// A seed whose first burst is late enough for a look at the trace alone.
fn calm(until: u64) -> u64 {
    let late = |seed: &u64| Bursts::new(random(*seed, 0)).changes() > Moment::from_secs(until);
    (0..).find(late).unwrap()
}

/// The memory wanted at a second, in MiB.
fn mib(loads: &[Load], second: u64) -> f64 {
    let now = Moment::from_secs(second);
    let load = loads.iter().rfind(|load| load.at <= now).unwrap();
    load.memory_at(now).0 as f64 / MIB as f64
}

#[test]
fn derived_memory_rises_at_once_and_decays() {
    // Five minutes of four vCPUs, 3 GiB, and then none, 1 GiB.
    let loads = loads(&busy(&[100.0, 0.0, 0.0, 0.0, 0.0, 0.0]), calm(1500), 1500);
    assert_eq!(loads[0].memory, Bytes::from_gib(3));
    assert_eq!((loads[1].at, loads[1].memory), (Moment::from_secs(300), Bytes::from_gib(3)));
    assert_eq!(loads[1].cpu, MilliCpu::ZERO);
    for (second, wanted) in [
        (0, 3072.0),
        (299, 3072.0),
        (420, 1024.0 + 2048.0 * 0.818_731),
        (600, 1024.0 + 2048.0 * 0.606_531),
        (900, 1024.0 + 2048.0 * 0.367_879),
        (1500, 1024.0 + 2048.0 * 0.135_335),
    ] {
        let found = mib(&loads, second);
        assert!((found - wanted).abs() < 0.01, "{second}: {found} for {wanted}");
    }
    // Between the ends of a piece it is above the curve, and not by much.
    let found = mib(&loads, 360) - (1024.0 + 2048.0 * 0.904_837);
    assert!((0.0..0.005 * 2048.0).contains(&found), "{found}");
}

#[test]
fn new_use_lifts_memory_that_still_decays() {
    let loads = loads(&busy(&[100.0, 0.0, 50.0, 100.0]), calm(1190), 1190);
    // 1 GiB and 2 GiB times e^-0.5, which is above the 2 GiB of two vCPUs: it decays towards those.
    assert!((mib(&loads, 600) - 2266.2).abs() < 0.1, "{}", mib(&loads, 600));
    assert!((mib(&loads, 899) - (2048.0 + 218.2 * 0.607)).abs() < 0.5, "{}", mib(&loads, 899));
    assert!((mib(&loads, 900) - 3072.0).abs() < 0.01);
}

#[test]
fn recorded_memory_is_taken_as_it_is() {
    let sample = |percent, mib: u64| Sample::recorded(percent, (mib * MIB) as f64);
    let samples = vec![sample(1.0, 800), sample(1.0, 100), sample(2.0, 100), sample(2.0, 100)];
    let loads = loads(&trace(60, TraceMemory::Recorded, samples), calm(239), 239);
    let found: Vec<_> =
        loads.iter().map(|load| (load.at.0.as_secs(), load.cpu.0, load.memory.0 / MIB)).collect();
    // What does not change is not said again.
    assert_eq!(found, [(0, 40, 800), (60, 40, 100), (120, 80, 100)]);
    assert!(loads.iter().all(|load| load.memory_per_second == 0));
}

#[test]
fn a_trace_starts_again() {
    let trace = trace(
        60,
        TraceMemory::Recorded,
        vec![Sample::recorded(1.0, 0.0), Sample::recorded(2.0, 0.0)],
    );
    let cpus: Vec<_> = loads(&trace, calm(300), 300).iter().map(|load| load.cpu.0).collect();
    assert_eq!(cpus, [40, 80, 40, 80, 40, 80]);
}

#[test]
fn bursts_come_on_top_and_go() {
    let loads = loads(&busy(&[10.0]), 1, 100 * 3600);
    let base = Sample::derived(10.0);
    let changes = loads.len() - 1;
    // Two for each of about 600 bursts; the trace itself never changes.
    assert!((1000..1400).contains(&changes), "{changes}");
    for load in &loads {
        let burst = guest_units::Size::new(
            MilliCpu(load.cpu.0 - base.cpu.0),
            Bytes(load.memory.0 - base.memory.0),
        );
        assert!(burst.fits_in(MOST), "{load:?}");
    }
    assert!(loads.iter().any(|load| load.cpu > MilliCpu::from_cpus(3)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn loads_are_in_order_and_within_bounds(
        percents in prop::collection::vec(0.0..100.0_f64, 1..50),
        resolution in 1_u64..4000,
        seed: u64,
    ) {
        let samples = percents.iter().map(|percent| Sample::derived(*percent)).collect();
        let trace = trace(resolution, TraceMemory::Derived, samples);
        let loads = loads(&trace, seed, 20_000);
        prop_assert_eq!(loads[0].at, Moment::ZERO);
        for pair in loads.windows(2) {
            prop_assert!(pair[0].at < pair[1].at);
        }
        for load in loads {
            prop_assert!(load.cpu <= MilliCpu::from_cpus(4 + 3));
            prop_assert!(load.memory >= Bytes::from_gib(1) && load.memory <= Bytes::from_gib(3 + 2));
            // Use lifts memory at once; on its way it only falls.
            prop_assert!(load.memory_per_second <= 0);
        }
    }
}
