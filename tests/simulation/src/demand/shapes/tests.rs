//! What each archetype is said to be like, on many VMs.

use guest_units::MilliCpu;

use super::*;
use crate::random::random;

const REFERENCE: Size = Size::new(MilliCpu::from_cpus(4), Bytes::from_gib(16));

fn loads(archetype: Archetype, vm: u64, hours: u64) -> Vec<Load> {
    let mut generator = Generator::new(archetype, REFERENCE, random(1, vm));
    let end = Moment::from_secs(hours * 3600);
    std::iter::from_fn(|| generator.next_load()).take_while(|load| load.at <= end).collect()
}

/// All loads of some VMs with the seconds that each lasts.
fn lasting(archetype: Archetype, vms: u64, hours: u64) -> Vec<(Load, f64)> {
    let pairs = |vm| {
        let loads = loads(archetype, vm, hours);
        let lasts = |pair: &[Load]| (pair[0], pair[1].at.since(pair[0].at).as_secs_f64());
        loads.windows(2).map(lasts).collect::<Vec<_>>()
    };
    (0..vms).flat_map(pairs).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

#[test]
fn idle_hardly_ever_changes() {
    let found = lasting(Archetype::Idle, 200, 240);
    let visits = found.iter().filter(|(load, _)| load.cpu > MilliCpu(10));
    let (count, most) = visits.fold((0_u32, 0.0_f64), |(n, most), (_, s)| (n + 1, most.max(*s)));
    // Two a day: 20 in ten days of each.
    let each = f64::from(count) / 200.0;
    assert!((18.5..21.5).contains(&each), "{each}");
    assert!(most <= 60.0, "{most}");
    assert!(found.iter().all(|(load, _)| load.cpu <= MilliCpu(200)));
    assert!(found.iter().all(|(load, _)| load.memory <= Bytes::from_mib(656)));
}

#[test]
fn idle_to_zero_is_left_alone_for_long() {
    let found = lasting(Archetype::IdleToZero, 50, 100);
    let quiet = || found.iter().filter(|(load, _)| load.cpu <= MilliCpu(10));
    assert!(quiet().all(|(_, seconds)| *seconds >= 360.0));
    let minutes = mean(quiet().map(|(_, seconds)| seconds / 60.0));
    assert!((38.0..42.0).contains(&minutes), "{minutes}");
    let visits = || found.iter().filter(|(load, _)| load.cpu > MilliCpu(10));
    assert!(visits().all(|(_, seconds)| (30.0..=300.0).contains(seconds)));
    assert!(visits().all(|(load, _)| load.memory_per_second > 0));
}

#[test]
fn a_diurnal_day_has_a_peak_and_a_night() {
    for vm in 0..20 {
        let loads = loads(Archetype::Diurnal, vm, 7 * 24);
        let day = |day: u64| {
            let of_day = loads.iter().filter(move |load| load.at.0.as_secs() / 86400 == day);
            of_day.map(|load| load.cpu.0).max().unwrap()
        };
        let mut peaks: Vec<_> = (0..7).map(day).collect();
        peaks.sort_unstable();
        assert!(peaks[1] * 2 < peaks[2], "two quiet days: {peaks:?}");
        assert!(peaks[2] > 1500, "{peaks:?}");
        let least = loads.iter().map(|load| load.cpu.0).min().unwrap();
        assert!(least < 400, "{least}");
        // Memory never jumps: it goes on where it was, but for what rounding leaves.
        for pair in loads.windows(2) {
            let jump = pair[0].memory_at(pair[1].at).0.abs_diff(pair[1].memory.0);
            assert!(jump < 4 << 10, "{jump}");
        }
    }
}

#[test]
fn cron_runs_on_the_clock() {
    for vm in 0..40 {
        let loads = loads(Archetype::CronSpikes, vm, 48);
        let runs: Vec<_> = loads.iter().filter(|load| load.cpu > MilliCpu(2000)).collect();
        for pair in runs.windows(2) {
            let minutes = pair[1].at.since(pair[0].at).as_secs_f64() / 60.0;
            let near = [5.0, 10.0, 15.0, 30.0, 60.0].iter().any(|m| (minutes - m).abs() < 0.04);
            assert!(near, "{minutes}");
        }
        assert!(runs.len() >= 47, "{}", runs.len());
    }
}

#[test]
fn steady_oltp_stays_near_its_level() {
    for vm in 0..20 {
        let loads = loads(Archetype::SteadyOltp, vm, 48);
        let level = mean(loads.iter().map(|load| f64::from(load.cpu.0)));
        assert!((950.0..2450.0).contains(&level), "{level}");
        let off = mean(loads.iter().map(|load| (f64::from(load.cpu.0) / level - 1.0).powi(2)));
        assert!((0.007..0.013).contains(&off), "{off}");
    }
}

#[test]
fn analytic_queries_rise_over_minutes() {
    let found = lasting(Archetype::AnalyticRamps, 50, 50);
    let rising: Vec<_> = found.iter().filter(|(load, _)| load.memory_per_second > 0).collect();
    for (load, seconds) in &rising {
        assert!((60.0..=600.0).contains(seconds), "{seconds}");
        assert!(load.cpu >= MilliCpu::ONE);
        assert!(load.memory_per_second < 256 << 20, "{}", load.memory_per_second);
    }
    let every = 50.0 * 50.0 * 60.0 / f64::from(u32::try_from(rising.len()).unwrap());
    // Twenty quiet minutes, five and a half of a query, half a minute of holding.
    assert!((24.5..27.5).contains(&every), "{every}");
}

#[test]
fn a_few_bursts_take_everything() {
    let found = lasting(Archetype::HeavyTailedBursts, 50, 200);
    let bursts: Vec<_> = found.iter().filter(|(load, _)| load.cpu > MilliCpu(320)).collect();
    let full = bursts.iter().filter(|(load, _)| load.cpu == REFERENCE.cpu).count();
    let part = f64::from(u32::try_from(full).unwrap())
        / f64::from(u32::try_from(found.len() / 2).unwrap());
    // Twenty times the smallest, less what is used anyway: about one in 85.
    assert!((0.008..0.016).contains(&part), "{part}");
    assert!(bursts.iter().all(|(_, seconds)| *seconds <= 600.0));
    assert!(bursts.iter().any(|(_, seconds)| *seconds > 100.0));
}

#[test]
fn memory_ramps_are_fast_but_not_faster_than_memory() {
    let found = lasting(Archetype::MemoryRamps, 50, 50);
    let rising: Vec<_> = found.iter().filter(|(load, _)| load.memory_per_second > 0).collect();
    let rates: Vec<_> = rising.iter().map(|(load, _)| load.memory_per_second).collect();
    assert!(rates.iter().all(|rate| *rate <= 4 << 30), "{:?}", rates.iter().max());
    assert!(rates.iter().any(|rate| *rate > 3 << 30));
    assert!(rates.iter().any(|rate| *rate < 80 << 20));
    for (load, seconds) in rising {
        let reached = load.memory_at(load.at + span(*seconds));
        assert!(reached > Bytes::from_gib(6) && reached < REFERENCE.memory, "{reached}");
    }
}
