//! From the goal to the desired size: what was asked for or denied lately, present use, and the bounds.

use guest_units::{Bytes, MilliCpu, Size};
use serde::Serialize;

use super::goal::Goal;

/// The step of sizes, CPU and memory together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ComputeUnit {
    /// CPU of one unit; not zero.
    pub cpu: MilliCpu,
    /// Memory of one unit; not zero.
    pub memory: Bytes,
}

/// The guest asked for more, and that still counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Requested {
    /// What the guest knew to have when it asked.
    pub base: Size,
    /// It asked for CPU.
    pub cpu: bool,
    /// It asked for memory.
    pub memory: bool,
}

/// The guest denied a smaller size, and that still counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Denied {
    /// The size that it denied.
    pub target: Size,
    /// What it knew to have then.
    pub current: Size,
}

/// Everything that the desired size depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Desired {
    /// From the metrics.
    pub goal: Goal,
    /// The step of sizes.
    pub unit: ComputeUnit,
    /// The present size.
    pub current: Size,
    /// Smallest size.
    pub min: Size,
    /// Largest size.
    pub max: Size,
    /// What was asked for lately.
    pub requested: Option<Requested>,
    /// What was denied lately.
    pub denied: Option<Denied>,
}

impl ComputeUnit {
    /// What the reference ships.
    pub const SHIPPED: Self = Self { cpu: MilliCpu(250), memory: Bytes::from_gib(1) };

    /// So many units.
    #[must_use]
    pub fn times(self, units: u32) -> Size {
        let memory = self.memory.0.saturating_mul(units.into());
        Size { cpu: self.cpu.saturating_mul(units), memory: Bytes(memory) }
    }

    /// CPU of one unit, in cores.
    pub(super) fn cpu_cores(self) -> f64 {
        f64::from(self.cpu.0) / 1000.0
    }

    /// The fewest units whose CPU is more than this.
    fn above_cpu(self, cpu: MilliCpu) -> u32 {
        (cpu.0 / self.cpu.0.max(1)).saturating_add(1)
    }

    /// The fewest units whose memory is more than this.
    fn above_memory(self, memory: Bytes) -> u32 {
        u32::try_from(memory.0 / self.memory.0.max(1)).unwrap_or(u32::MAX).saturating_add(1)
    }
}

impl Desired {
    /// The size. Above the maximum only where a denial holds: rather a little too much than a database that is killed.
    #[must_use]
    pub fn size(&self) -> Size {
        let Self { goal, unit, current, min, max, requested, denied } = *self;
        let mut units = goal.units;
        if let Some(Requested { base, cpu, memory }) = requested {
            let for_cpu = if cpu { unit.above_cpu(base.cpu) } else { 0 };
            let for_memory = if memory { unit.above_memory(base.memory) } else { 0 };
            units = units.max(for_cpu).max(for_memory);
        }
        if let Some(Denied { target, .. }) = denied {
            units = units.max(unit.above_cpu(target.cpu)).max(unit.above_memory(target.memory));
        }
        let mut size = unit.times(units);
        if !goal.complete {
            size = size.max(current);
        }
        size = size.max(min).min(max);
        if let Some(Denied { target, current }) = denied {
            let above = Size {
                cpu: unit.times(unit.above_cpu(target.cpu)).cpu,
                memory: unit.times(unit.above_memory(target.memory)).memory,
            };
            size = size.max(current.min(above));
        }
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{ReferenceConfig, SystemMetrics, goal};

    fn size(cpu_milli: u32, gib: u64) -> Size {
        Size { cpu: MilliCpu(cpu_milli), memory: Bytes::from_gib(gib) }
    }

    /// The notes' own examples: targets of a half, between one and four units.
    fn desired(load: f64, current: Size) -> Desired {
        let config = ReferenceConfig {
            load_average_fraction_target: 0.5,
            memory_usage_fraction_target: 0.5,
            ..ReferenceConfig::default()
        };
        let metrics = SystemMetrics {
            load_average_1min: load,
            load_average_5min: 0.0,
            memory_usage: Bytes::ZERO,
            memory_cached: Bytes::ZERO,
        };
        let unit = ComputeUnit::SHIPPED;
        Desired {
            goal: goal(&config, unit, Some(&metrics), None),
            unit,
            current,
            min: unit.times(1),
            max: unit.times(4),
            requested: None,
            denied: None,
        }
    }

    #[test]
    fn the_goal_in_units() {
        assert_eq!(desired(0.3, size(250, 1)).size(), size(500, 2));
        assert_eq!(desired(0.0, size(250, 1)).size(), size(250, 1), "not below the minimum");
        assert_eq!(desired(9.0, size(250, 1)).size(), size(1000, 4), "not above the maximum");
    }

    #[test]
    fn what_was_denied_is_not_tried_again() {
        let denied = Some(Denied { target: size(250, 1), current: size(250, 2) });
        let desired = Desired { denied, ..desired(0.0, size(250, 2)) };
        assert_eq!(desired.size(), size(500, 2));
    }

    #[test]
    fn a_denial_holds_above_the_maximum() {
        let denied = Some(Denied { target: size(1000, 4), current: size(1000, 5) });
        let desired = Desired { denied, ..desired(0.0, size(1000, 5)) };
        assert_eq!(desired.size(), size(1000, 5));
    }

    #[test]
    fn without_all_metrics_nothing_becomes_smaller() {
        let mut desired = desired(0.3, size(750, 5));
        desired.goal.complete = false;
        assert_eq!(desired.size(), size(750, 4));
    }

    #[test]
    fn what_was_asked_for_is_more_than_there_was() {
        let requested = Some(Requested { base: size(250, 1), cpu: false, memory: true });
        assert_eq!(Desired { requested, ..desired(0.0, size(250, 1)) }.size(), size(500, 2));
        let requested = Some(Requested { base: size(500, 1), cpu: true, memory: false });
        assert_eq!(Desired { requested, ..desired(0.0, size(500, 1)) }.size(), size(750, 3));
    }

    #[test]
    fn absurd_sizes_saturate() {
        let unit = ComputeUnit { cpu: MilliCpu(1), memory: Bytes::from_mib(1) };
        let denied = Some(Denied {
            target: Size { cpu: MilliCpu(u32::MAX), memory: Bytes(u64::MAX) },
            current: size(250, 1),
        });
        let desired = Desired { unit, denied, ..desired(0.0, size(250, 1)) };
        assert_eq!(desired.size(), size(1000, 4));
    }
}
