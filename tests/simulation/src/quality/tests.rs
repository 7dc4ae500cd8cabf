//! Each metric against values worked out by hand.

use proptest::prelude::*;

use super::*;

const GIB: Bytes = Bytes::from_gib(1);

fn gib(gib: u64) -> Bytes {
    Bytes::from_gib(gib)
}

/// Steady: a wish of CPU and memory, all held that fits, in a VM whose kernel takes 1 GiB.
fn steady(cpu: u32, wish: u64, size_cpu: u32, size: u64) -> Stretch {
    let available = gib(size).saturating_sub(GIB);
    Stretch {
        cpu_wished: MilliCpu(cpu),
        memory_wished: Ends::steady(gib(wish)),
        memory_held: Ends::steady(gib(wish).min(available)),
        size: Size::new(MilliCpu(size_cpu), gib(size)),
        available,
    }
}

fn run(stretches: &[(u64, Stretch)]) -> Quality {
    let mut quality = Quality::new(Moment::ZERO);
    for (until, stretch) in stretches {
        quality.advance(Moment::from_secs(*until), stretch);
    }
    quality
}

fn close(value: impl Into<Option<f64>>, expected: f64) {
    let value = value.into().unwrap();
    assert!((value - expected).abs() < 1e-6, "{value} is not {expected}");
}

#[test]
fn a_million_of_them_are_small() {
    assert!(size_of::<Quality>() <= 512, "{}", size_of::<Quality>());
}

#[test]
fn shortage_and_slack() {
    // An hour that fits, then half an hour short of half the CPU and a quarter of the memory.
    let report = run(&[(3600, steady(500, 2, 1000, 4)), (5400, steady(2000, 4, 1000, 4))]).report();
    close(report.vm_hours, 1.5);
    close(report.cpu.short_share_of_time, 1.0 / 3.0);
    close(report.cpu.short_depth_share_of_demand, 0.5);
    close(report.cpu.short_worst_share_of_demand, 0.5);
    close(report.cpu.slack_share_of_size, 0.5 * 2.0 / 3.0);
    close(report.memory.short_share_of_time, 1.0 / 3.0);
    close(report.memory.short_depth_share_of_demand, 0.25);
    // The kernel's part is used: 3 of 4 GiB for an hour, then all.
    close(report.memory.slack_share_of_size, 0.25 * 2.0 / 3.0);
    // 1 vCPU is four units, and so are 4 GiB.
    close(report.cu_hours, 6.0);
    close(report.vcpu_hours, 1.5);
    close(report.gib_hours, 6.0);
}

#[test]
fn the_larger_need_makes_the_units() {
    close(run(&[(3600, steady(0, 0, 1000, 2))]).cu_hours(), 4.0);
    close(run(&[(3600, steady(0, 0, 250, 3))]).cu_hours(), 3.0);
    close(run(&[(1800, steady(0, 0, 100, 0))]).cu_hours(), 0.2);
}

#[test]
fn a_ramp_is_integrated() {
    // Wish and held from 0 to 8 GiB; 4 GiB fit: short in the second half, by 2 of 6 GiB in the mean.
    let ramp = Stretch {
        memory_wished: Ends { from: gib(0), to: gib(8) },
        memory_held: Ends { from: gib(0), to: gib(4) },
        ..steady(0, 0, 1000, 5)
    };
    let quality = run(&[(1000, ramp)]);
    let report = quality.report().memory;
    close(report.short_share_of_time, 0.5);
    close(report.short_depth_share_of_demand, 1.0 / 3.0);
    close(report.short_worst_share_of_demand, 0.5);
    // Held 2 and the kernel's 1 of 5 GiB.
    close(report.slack_share_of_size, 0.4);
    assert_eq!(report.never_adequate, 1, "still waits");
    let mut served = quality;
    served.advance(Moment::from_secs(1600), &steady(0, 8, 1000, 9));
    let report = served.report().memory;
    assert_eq!(report.never_adequate, 0);
    // 500 s since demand passed the size, in the bucket that ends at 524 s.
    assert_eq!(report.time_to_adequate_p99_milliseconds, Some(524_287));
}

#[test]
fn demand_is_served_or_falls() {
    let quality = run(&[
        (10, steady(500, 0, 1000, 4)),
        (13, steady(2000, 0, 1000, 4)), // waits
        (14, steady(2000, 0, 1500, 4)), // in part
        (20, steady(2000, 0, 2000, 4)), // served after 4 s
        (25, steady(3000, 0, 2000, 4)), // waits
        (30, steady(1000, 0, 2000, 4)), // fell
        (35, steady(3000, 0, 2000, 4)), // waits
        (40, steady(1000, 0, 3000, 4)), // served after 5 s, though it falls then
    ]);
    let report = quality.report().cpu;
    assert_eq!(report.time_to_adequate_p50_milliseconds, Some(4095));
    assert_eq!(report.time_to_adequate_p99_milliseconds, Some(6143));
    assert_eq!(report.never_adequate, 1);
    close(report.short_share_of_time, 14.0 / 40.0);
}

#[test]
fn a_size_that_shrinks_under_demand_makes_it_wait_as_well() {
    let report = run(&[(10, steady(500, 0, 1000, 4)), (20, steady(500, 0, 250, 4))]).report().cpu;
    assert_eq!(report.never_adequate, 1);
}

#[test]
fn resizes_and_reversals() {
    let sizes = [1000, 2000, 2000, 1000, 2000, 3000, 2000];
    let ends = [600, 800, 900, 1201, 1502, 1503, 1603];
    let stretches: Vec<_> =
        ends.iter().zip(sizes).map(|(end, cpu)| (*end, steady(0, 0, cpu, 4))).collect();
    let quality = run(&stretches);
    // Up at 600, down at 900 (after 300 s: counts), up at 1201 (after 301 s: does not), up at 1502, down at 1503.
    let hours = 1603.0 / 3600.0;
    close(quality.report().cpu.resizes_per_vm_hour, 5.0 / hours);
    close(quality.report().cpu.reversals_per_vm_hour, 2.0 / hours);
    close(quality.report().memory.resizes_per_vm_hour, 0.0);
}

#[test]
fn the_steps_of_one_shrink_are_one_resize() {
    let mut quality = Quality::new(Moment::ZERO);
    for (millis, gib) in [(1000, 4), (1030, 3), (2000, 2), (2030, 1), (2060, 2), (2090, 3)] {
        quality.advance(Moment::from_millis(millis), &steady(0, 0, 1000, gib));
    }
    // To 2 GiB in two steps, to 1 GiB after a second, and up twice.
    close(quality.report().memory.resizes_per_vm_hour, 4.0 / (2.09 / 3600.0));
}

#[test]
fn kills_make_a_rate_only_when_there_are_some() {
    let mut quality = run(&[(3600, steady(0, 0, 250, 1))]);
    quality.killed(Kills(9));
    quality.scale_ups(4, 3);
    quality.permitted(Permits { at_once: 1, by_resize: 3, pod_resizes: 5 });
    let mut fleet = FleetQuality::default();
    fleet.add(&quality);
    let report = fleet.report(None);
    assert_eq!((report.oom_kills, report.oom_kills_per_million_vm_hours), (9, None));
    close(report.in_place_share_of_scale_ups, 0.75);
    close(report.at_once_share_of_growths, 0.25);
    close(report.pod_resizes_per_vm_hour, 5.0);
    quality.killed(Kills(2));
    fleet.add(&quality);
    close(fleet.report(None).oom_kills_per_million_vm_hours, 10e6);
}

#[test]
fn fleets_have_percentiles_ratios_and_a_table() {
    let mut fleet = FleetQuality::default();
    for vm in 0..100_u32 {
        // Every VM has another slack: 0 % to 99 %.
        fleet.add(&run(&[(3600, steady(1000 - 10 * vm, 0, 1000, 1))]));
    }
    let mut oracle = FleetQuality::default();
    oracle.add(&run(&[(3600, steady(0, 0, 1000, 1))]));
    let report = fleet.report(Some(&oracle));
    let slack = report.per_vm["cpu_slack_share_of_size"];
    assert!((slack.p50 - 0.49).abs() < 0.005 && (slack.p99 - 0.98).abs() < 0.01, "{slack:?}");
    close(report.cu_hours_ratio_to_oracle, 100.0);
    close(report.cpu.slack_share_of_size, 0.495);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["vms"], 100);
    assert!(json["per_vm"]["cu_hours"]["p99"].as_f64().unwrap() >= 4.0);

    let text = table(&[("static", report), ("oracle", oracle.report(None))]);
    let lines: Vec<_> = text.lines().collect();
    let header: Vec<_> = lines[0].split_whitespace().collect();
    assert_eq!(header, ["number", "static", "oracle"]);
    assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
    let row = |name: &str| {
        let line = lines.iter().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("vms"), ["100", "1"]);
    assert_eq!(row("cu_hours_ratio_to_oracle"), ["100.00", "-"]);
}

proptest! {
    #[test]
    fn cutting_time_and_merging_fleets_change_nothing(
        stretches in prop::collection::vec((1u64..1000, 0u32..4000, 0u64..16, 1u32..16, 1u64..16), 1..10),
        parts in prop::collection::vec(0usize..3, 10),
    ) {
        let (mut whole, mut cut) = (Quality::new(Moment::ZERO), Quality::new(Moment::ZERO));
        let (mut fleets, mut one) = (vec![FleetQuality::default(); 3], FleetQuality::default());
        let mut now = 0;
        for ((seconds, cpu, wish, size_cpu, size), part) in stretches.into_iter().zip(parts) {
            let stretch = steady(cpu, wish, size_cpu * 250, size);
            cut.advance(Moment::from_secs(now) + Duration::from_nanos(1), &stretch);
            cut.advance(Moment::from_millis(now * 1000 + seconds * 500), &stretch);
            now += seconds;
            whole.advance(Moment::from_secs(now), &stretch);
            cut.advance(Moment::from_secs(now), &stretch);
            fleets[part].add(&whole);
            one.add(&whole);
        }
        prop_assert_eq!(whole.report(), cut.report());
        for order in [[0, 1, 2], [2, 0, 1]] {
            let mut sum = FleetQuality::default();
            order.iter().for_each(|part| sum.merge(&fleets[*part]));
            prop_assert_eq!(&sum, &one);
        }
    }
}
