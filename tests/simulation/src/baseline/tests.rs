//! The baselines against values worked out by hand, against their definitions, and against each other.

use std::time::Duration;

use guest_units::MilliCpu;
use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const HOUR: Moment = Moment::from_secs(3600);

fn load(millis: u64, cpu: u32, mib: u64, mib_per_second: i64) -> Load {
    let memory_per_second = mib_per_second * (1 << 20);
    let (at, memory) = (Moment::from_millis(millis), Bytes::from_mib(mib));
    Load { at, cpu: MilliCpu(cpu), memory, memory_per_second }
}

/// 0.25 to 4 CPUs, 1 to 16 GiB in steps of 1 GiB; changes take no time.
fn instant() -> Machine {
    Machine {
        max: Size::new(MilliCpu(4000), Bytes::from_gib(16)),
        slot: Bytes::from_gib(1),
        plug: Duration::ZERO,
        unplug: Duration::ZERO,
        ..Machine::default()
    }
}

fn quality(baseline: Baseline, loads: &[Load], machine: &Machine, end: Moment) -> Quality {
    run(baseline, loads.iter().copied(), machine, Touch::default(), end)
}

#[test]
fn the_kernel_takes_its_part() {
    let machine = instant();
    assert_eq!(machine.available(Bytes::from_gib(15)), Bytes::from_mib(15 * 1024 - 64 - 256));
    assert_eq!(machine.available(Bytes::from_mib(10)), Bytes::ZERO);
    let most = machine.available(Bytes::from_gib(2));
    assert_eq!(machine.memory_for(Bytes::ZERO), Bytes::from_gib(1));
    assert_eq!(machine.memory_for(most), Bytes::from_gib(2));
    assert_eq!(machine.memory_for(Bytes(most.0 + 1)), Bytes::from_gib(3));
    assert_eq!(machine.memory_for(Bytes::from_gib(99)), Bytes::from_gib(16));
    assert_eq!(machine.cpu_for(MilliCpu(1001)), MilliCpu(1250));
    assert_eq!(machine.cpu_for(MilliCpu(9000)), MilliCpu(4000));
    assert_eq!(machine.cpu_for(MilliCpu::ZERO), MilliCpu(250));
}

#[test]
fn demand_beyond_the_largest_size_is_cut_off() {
    let machine = instant();
    let most = machine.available(machine.max.memory);
    let loads = [load(0, 9000, 0, 1024), load(20_000, 100, 20_480, -1024), load(30_000, 0, 0, 0)];
    let capped: Vec<_> = machine.capped(loads.into_iter()).collect();
    assert_eq!(capped.len(), 5);
    assert_eq!((capped[0].cpu, capped[0].memory_per_second), (MilliCpu(4000), 1 << 30));
    assert_eq!((capped[1].memory, capped[1].memory_per_second), (most, 0));
    assert_eq!((capped[2].memory, capped[2].cpu), (most, MilliCpu(100)));
    assert_eq!(capped[3].memory_per_second, -(1 << 30));
    assert_eq!(capped[4], loads[2]);
    for pair in capped.windows(2) {
        assert!(pair[0].at <= pair[1].at);
        let end = pair[0].memory_at(pair[1].at);
        assert!(pair[0].memory.max(end).0 <= most.0 + 1, "{pair:?}");
    }
}

#[test]
fn static_is_p99_5_and_a_fifth() {
    let machine = instant();
    // Ten seconds of 3600 are less than 0.5 %, so that they do not count.
    let short =
        [load(0, 1000, 2048, 0), load(1_000_000, 4000, 9000, 0), load(1_010_000, 1000, 2048, 0)];
    let quality_of = |loads: &[Load]| quality(Baseline::Static, loads, &machine, HOUR);
    let report = quality_of(&short).report();
    // 1.2 CPUs; 2.4 GiB and the kernel's part.
    assert!((report.vcpu_hours - 1.25).abs() < 1e-9);
    assert!((report.gib_hours - 3.0).abs() < 1e-9);
    assert!((report.cu_hours - 5.0).abs() < 1e-9);
    assert!((report.cpu.short_share_of_time.unwrap() - 10.0 / 3600.0).abs() < 1e-9);
    assert_eq!((report.cpu.never_adequate, report.memory.never_adequate), (1, 1));
    // It needs about 0.2 s to touch the last of what there is, then is down for 5 s, rises for 0.7 s, and again.
    assert_eq!(report.oom_kills, 2);
    let long =
        [load(0, 1000, 2048, 0), load(1_000_000, 3000, 9000, 0), load(1_020_000, 1000, 2048, 0)];
    let report = quality_of(&long).report();
    assert!((report.vcpu_hours - 3.75).abs() < 1e-9);
    assert!((report.gib_hours - 11.0).abs() < 1e-9, "{}", report.gib_hours);
    assert_eq!(report.oom_kills, 0);
}

#[test]
fn the_oracle_is_there_before_and_stays_until_after() {
    let (plug, unplug) = (Duration::from_millis(45), Duration::from_millis(100));
    let machine = Machine { plug, unplug, ..instant() };
    let loads = [load(0, 200, 0, 0), load(10_000, 2000, 8192, 0), load(20_000, 0, 0, 0)];
    let quality = quality(Baseline::Oracle, &loads, &machine, Moment::from_secs(30));
    let report = quality.report();
    let high = 10.145;
    // 8 GiB and the kernel's part are 9 GiB; the other size is 0.25 CPU and 1 GiB.
    let expected = (9.0 * high + (30.0 - high)) / 3600.0;
    assert!((report.gib_hours - expected).abs() < 1e-12);
    assert!((report.vcpu_hours - (2.0 * high + 0.25 * (30.0 - high)) / 3600.0).abs() < 1e-12);
    assert!((report.cu_hours - expected).abs() < 1e-12);
    assert!(quality.never_short());
    assert_eq!((report.memory.resizes_per_vm_hour.unwrap() / 120.0).round(), 2.0);
}

#[test]
fn vpa_follows_what_is_used() {
    let machine = Machine { slot: Bytes::from_mib(128), ..Machine::default() };
    // Ten hours of 3 CPUs and 6 GiB for a VM that began with 1 CPU and 2 GiB.
    let loads = [load(0, 1000, 2048, 0), load(1_000, 3000, 6144, 0)];
    let quality = quality(Baseline::Vpa, &loads, &machine, Moment::from_secs(36_000));
    let report = quality.report();
    assert!(report.oom_kills > 0, "memory is not there in time");
    assert!(report.oom_kills < 100, "but it is after some looks: {}", report.oom_kills);
    assert!(report.memory.time_to_adequate_p50_milliseconds.unwrap() > 60_000);
    // 115 % of the end of a bucket that is 5 % wide.
    let cpu = report.vcpu_hours / 10.0;
    assert!((3.0..4.0).contains(&cpu), "{cpu}");
    let memory = report.gib_hours / 10.0;
    assert!((6.5..9.0).contains(&memory), "{memory}");
}

#[test]
fn no_demand_has_no_quality() {
    for baseline in Baseline::ALL {
        let quality = quality(baseline, &[], &Machine::default(), HOUR);
        assert!(quality.report().vm_hours.abs() < 1e-12);
        assert!(!baseline.name().is_empty());
    }
}

/// Times are whole milliseconds, levels are not whole slots.
fn loads() -> impl Strategy<Value = Vec<Load>> {
    let one = (1u64..200_000, 0u32..5000, 0u64..20_000, prop_oneof![Just(0), -900i64..900]);
    prop::collection::vec(one, 1..12).prop_map(|steps| {
        let mut at = 0;
        let next = |(millis, cpu, mib, slope)| {
            at += millis;
            load(at, cpu, mib, slope)
        };
        steps.into_iter().map(next).collect()
    })
}

fn machines() -> impl Strategy<Value = Machine> {
    let sizes = (0u64..2000, 0u64..5000, prop_oneof![Just(128u64), Just(1024)], 0u64..700);
    sizes.prop_map(|(plug, unplug, slot, odd)| Machine {
        plug: Duration::from_millis(plug),
        unplug: Duration::from_millis(unplug),
        slot: Bytes::from_mib(slot),
        // A lower bound that is not on the grid.
        min: Size::new(MilliCpu(250), Bytes(1024 * MIB + odd * 12_345)),
        ..instant()
    })
}

proptest! {
    #[test]
    fn memory_is_the_smallest_that_holds(machine in machines(), held in 0u64..15 << 30) {
        let memory = machine.memory_for(Bytes(held));
        prop_assert!(machine.available(memory) >= Bytes(held));
        prop_assert!(memory == machine.min.memory || memory.0.is_multiple_of(machine.slot.0));
        if let Some(below) = machine.memory_below(memory) {
            prop_assert!(machine.available(below) < Bytes(held));
        }
    }

    #[test]
    fn the_oracle_is_never_short(loads in loads(), machine in machines()) {
        let quality = quality(Baseline::Oracle, &loads, &machine, HOUR);
        prop_assert!(quality.never_short(), "{:?}", quality.report());
        prop_assert_eq!(quality.kills(), 0);
    }

    #[test]
    fn the_oracle_is_what_it_is_defined_as(loads in loads(), machine in machines(), looks in prop::collection::vec(0u64..3_000_000, 50)) {
        let capped: Vec<_> = machine.capped(loads.iter().copied()).collect();
        let mut oracle = oracle::oracle(capped.iter().copied(), &machine);
        let seen = Seen { size: Size::ZERO, held: Bytes::ZERO, cpu_time: 0, kills: 0 };
        let mut looks: Vec<_> = looks.into_iter().map(|at| nanos(loads[0].at) + at * 1_000_003).collect();
        looks.sort_unstable();
        for look in looks {
            while let Some(at) = oracle.next().filter(|at| *at <= look) {
                let _size = oracle.at(at, &seen);
                prop_assert!(oracle.next().is_none_or(|next| next > at));
            }
            let size = oracle.at(look, &seen);
            let (from, to) = (moment(look).earlier(machine.unplug), moment(look) + machine.plug);
            let mut expected = machine.min;
            for (index, load) in capped.iter().enumerate() {
                let until = capped.get(index + 1).map_or(Moment(Duration::MAX), |next| next.at);
                // What was until `from` is given back by now.
                if until <= from || load.at > to {
                    continue;
                }
                let last = moment(nanos(until.min(to + Duration::from_nanos(1))) - 1);
                let peak = load.memory_at(load.at.max(from)).max(load.memory_at(last));
                let needed = Size::new(machine.cpu_for(load.cpu), machine.memory_for(peak));
                expected = expected.max(needed);
            }
            prop_assert_eq!(size, expected);
        }
    }

    #[test]
    fn nobody_is_cheaper_than_the_oracle_and_never_short(loads in loads(), machine in machines()) {
        let instant = Machine { plug: Duration::ZERO, unplug: Duration::ZERO, ..machine };
        for (baseline, machine) in
            [(Baseline::Static, machine), (Baseline::Static, instant), (Baseline::Vpa, instant)]
        {
            let other = quality(baseline, &loads, &machine, HOUR);
            let oracle = quality(Baseline::Oracle, &loads, &machine, HOUR);
            if other.never_short() {
                prop_assert_eq!(other.kills(), 0);
                prop_assert!(other.cu_hours() >= oracle.cu_hours());
            }
        }
    }
}
