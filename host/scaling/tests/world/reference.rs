//! A world whose policy is `reference`, between one and four compute units.

use std::time::Duration;

use guest_units::{Bytes, MilliCpu, Size};
use host_scaling::reference::{ComputeUnit, ReferenceConfig};
use host_scaling::{Policy, SystemSample};

use super::{World, limits};

pub(crate) const NOTHING: Size = Size { cpu: MilliCpu(0), memory: Bytes(0) };
/// Whole units of the shipped compute unit.
pub(crate) const UNIT: ComputeUnit = ComputeUnit::SHIPPED;

pub(crate) fn config() -> ReferenceConfig {
    ReferenceConfig {
        load_average_fraction_target: 0.5,
        memory_usage_fraction_target: 0.5,
        ..ReferenceConfig::default()
    }
}

pub(crate) fn with_cache() -> ReferenceConfig {
    ReferenceConfig { enable_lfc_metrics: true, ..config() }
}

/// Between one and four units.
pub(crate) fn world(config: ReferenceConfig) -> World {
    World::with(limits(UNIT.times(1), UNIT.times(4), 256), Policy::reference(config, UNIT))
}

pub(crate) fn system(load_milli: u32, usage_mib: u64) -> Option<SystemSample> {
    Some(SystemSample {
        load1_milli: load_milli,
        load5_milli: load_milli,
        memory_usage: Bytes::from_mib(usage_mib),
        memory_cached: Bytes::ZERO,
    })
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Lets time pass with these metrics.
pub(crate) fn run(world: &mut World, system: Option<SystemSample>, span: u64) {
    world.system = system;
    world.run(seconds(span), Some(NOTHING));
}

/// A VM of four units that has come to rest.
pub(crate) fn large(config: ReferenceConfig) -> World {
    let mut world = world(config);
    run(&mut world, system(9000, 0), 5);
    assert_eq!(world.view.plugged, UNIT.times(4));
    world
}
