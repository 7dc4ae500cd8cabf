//! What a VM costs its agent: the size of its brain, and no allocation while nothing changes.

use std::mem::size_of;
use std::time::Duration;

use guest_units::{Bytes, MilliCpu, Moment, Size};
use host_scaling::reference::{CacheWindows, ComputeUnit, ReferenceConfig};
use host_scaling::{Event, Limits, Policy, Sample, Scaler, SystemSample, VmView};

/// A VM that has come to rest, and the moment.
fn at_rest(policy: Policy) -> (Scaler, Moment) {
    let unit = ComputeUnit::SHIPPED;
    let limits = Limits { min: unit.times(1), max: unit.times(4), slot: Bytes::from_mib(256) };
    let mut scaler = Scaler::new(limits, policy, 1);
    let has = unit.times(1);
    let view = VmView { spec: has, approved: Some(has), plugged: has };
    let mut now = Moment(Duration::from_secs(1));
    scaler.handle(Event::Vm(view), now);
    scaler.handle(Event::GuestConnected, now);
    scaler.handle(Event::Sample(sample()), now);
    for _ in 0..10 {
        for (action, _) in scaler.next(now).start {
            scaler.handle(Event::Started(action), now);
            let generation = action.generation();
            scaler.handle(
                Event::PermitAnswered { generation, permit: has, reason: String::new() },
                now,
            );
            scaler.handle(Event::Patched { generation }, now);
            scaler.handle(Event::GuestTold { generation }, now);
        }
        now += Duration::from_millis(100);
    }
    (scaler, now)
}

fn sample() -> Sample {
    let little = Size { cpu: MilliCpu(10), memory: Bytes::from_mib(100) };
    let system = SystemSample {
        load1_milli: 60,
        load5_milli: 50,
        memory_usage: Bytes::from_mib(400),
        memory_cached: Bytes::from_mib(100),
    };
    Sample { demand: little, used: little, system: Some(system) }
}

fn policies() -> [(&'static str, Policy); 3] {
    let cache = ReferenceConfig { enable_lfc_metrics: true, ..ReferenceConfig::default() };
    let unit = ComputeUnit::SHIPPED;
    [
        ("headroom", Policy::default()),
        ("reference", Policy::reference(ReferenceConfig::default(), unit)),
        ("reference with cache", Policy::reference(cache, unit)),
    ]
}

#[test]
fn a_brain_is_small() {
    // Policy and windows lie elsewhere: configuration, and 60 numbers where the cache's metrics are on. Neither grows.
    let (brain, windows) = (size_of::<Scaler>(), size_of::<CacheWindows>());
    assert!(brain <= 1024, "{brain} bytes");
    assert!(windows <= 256, "{windows} bytes");
    assert!(size_of::<Event>() <= 96, "{} bytes for each event", size_of::<Event>());
}

#[test]
fn nothing_is_allocated_while_nothing_changes() {
    for (name, policy) in policies() {
        let (mut scaler, mut now) = at_rest(policy);
        scaler.handle(Event::Cache(Box::new(CacheWindows::new(0..60))), now);
        assert!(scaler.next(now).start.is_empty(), "{name} is not at rest");
        let info = allocation_counter::measure(|| {
            for _ in 0..100 {
                now += Duration::from_millis(10);
                scaler.handle(Event::Sample(sample()), now);
                assert!(scaler.next(now).start.is_empty());
            }
        });
        assert_eq!(info.count_total, 0, "{name}: {info:?}");
    }
}

#[test]
fn a_change_of_the_metrics_allocates_nothing_either() {
    for (name, policy) in policies().into_iter().skip(1) {
        let (mut scaler, now) = at_rest(policy);
        let windows: Vec<_> = (0..10).map(|n| Box::new(CacheWindows::new(n..n + 60))).collect();
        let info = allocation_counter::measure(|| {
            for (load, windows) in (50u32..).zip(windows) {
                let mut sample = sample();
                if let Some(system) = &mut sample.system {
                    system.load1_milli = load;
                }
                scaler.handle(Event::Sample(sample), now);
                scaler.handle(Event::Cache(windows), now);
            }
        });
        assert_eq!(info.count_total, 0, "{name}: {info:?}");
    }
}
