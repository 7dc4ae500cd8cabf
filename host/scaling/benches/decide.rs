//! The cost of one sample and one look at what to do: both policies, while nothing changes and with new metrics.
//!
//! Run with `cargo bench -p host-scaling`. Budgets: 0.3 µs when nothing changes, 1 µs with metrics of the cache.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use guest_units::{Bytes, MilliCpu, Moment, Size};
use host_scaling::reference::{CacheWindows, ComputeUnit, ReferenceConfig};
use host_scaling::{Event, Limits, Policy, Sample, Scaler, SystemSample, VmView};

fn sample(load_milli: u32) -> Sample {
    let little = Size { cpu: MilliCpu(10), memory: Bytes::from_mib(100) };
    let system = SystemSample {
        load1_milli: load_milli,
        load5_milli: 50,
        memory_usage: Bytes::from_mib(400),
        memory_cached: Bytes::from_mib(100),
    };
    Sample { demand: little, used: little, system: Some(system) }
}

fn windows(shift: u32) -> Box<CacheWindows> {
    Box::new(CacheWindows::new((0..60).map(|minute| 1000 * minute + shift)))
}

/// A VM at rest: nothing is in flight, nothing is due for some seconds.
fn at_rest(policy: Policy) -> Scaler {
    let unit = ComputeUnit::SHIPPED;
    let limits = Limits { min: unit.times(1), max: unit.times(4), slot: Bytes::from_mib(256) };
    let mut scaler = Scaler::new(limits, policy, 1);
    let has = unit.times(1);
    let now = Moment::from_millis(0);
    scaler.handle(Event::Vm(VmView { spec: has, approved: Some(has), plugged: has }), now);
    scaler.handle(Event::GuestConnected, now);
    scaler.handle(Event::Sample(sample(60)), now);
    for (action, _) in scaler.next(now).start {
        scaler.handle(Event::Started(action), now);
        let generation = action.generation();
        let answer = Event::PermitAnswered { generation, permit: has, reason: String::new() };
        scaler.handle(answer, now);
        scaler.handle(Event::GuestTold { generation }, now);
    }
    scaler
}

fn decide(criterion: &mut Criterion) {
    let unit = ComputeUnit::SHIPPED;
    let cache = ReferenceConfig { enable_lfc_metrics: true, ..ReferenceConfig::default() };
    let now = Moment(Duration::from_secs(1));
    for (name, policy) in [
        ("headroom", Policy::default()),
        ("reference", Policy::reference(ReferenceConfig::default(), unit)),
        ("reference with cache", Policy::reference(cache, unit)),
    ] {
        let mut group = criterion.benchmark_group(name);
        let mut scaler = at_rest(policy);
        scaler.handle(Event::Cache(windows(0)), now);
        group.bench_function("nothing changes", |bencher| {
            bencher.iter(|| {
                scaler.handle(Event::Sample(black_box(sample(60))), now);
                black_box(scaler.next(now))
            });
        });
        let mut load = 0;
        group.bench_function("metrics change", |bencher| {
            bencher.iter(|| {
                load = (load + 1) % 50;
                scaler.handle(Event::Sample(black_box(sample(load))), now);
                black_box(scaler.next(now))
            });
        });
        let mut shift = 0;
        group.bench_function("windows change", |bencher| {
            bencher.iter_batched(
                || {
                    shift += 1;
                    windows(shift)
                },
                |windows| {
                    scaler.handle(Event::Cache(black_box(windows)), now);
                    black_box(scaler.next(now))
                },
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, decide);
criterion_main!(benches);
