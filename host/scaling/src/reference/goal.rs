//! The goal in compute units: the largest of what CPU, memory and cache ask for.

use guest_units::Bytes;
use serde::Serialize;

use super::config::ReferenceConfig;
use super::desired::ComputeUnit;

/// Bytes of a page of the cache.
const CACHE_PAGE_BYTES: f64 = 8192.0;
/// A working set ends where the cache's growth becomes so much steeper.
const STEEPER: f64 = 3.0;
/// The cache grows ahead by this share of the last step: half a minute.
const AHEAD: f64 = 0.5;

/// What the guest's system metrics say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SystemMetrics {
    /// Load average over a minute.
    pub load_average_1min: f64,
    /// Load average over five minutes.
    pub load_average_5min: f64,
    /// Memory in use without page cache, the kernel's own included.
    pub memory_usage: Bytes,
    /// Page cache.
    pub memory_cached: Bytes,
}

/// What the cache's metrics say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CacheMetrics<'a> {
    /// Pages that were used within the last minute, the last two minutes, and so on.
    pub working_set_pages: &'a [f64],
}

/// What the windows show.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkingSet {
    /// The plateau before the growth becomes steeper, in pages.
    pub estimate_pages: f64,
    /// With what it will grow by until the next look, in pages.
    pub projected_pages: f64,
}

/// The parts of a goal, in compute units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Components {
    /// From the load averages; rounded before it counts.
    pub cpu: f64,
    /// From the memory in use, alone and with the cache's working set.
    pub memory: f64,
    /// From the cache's working set: 0 without enough windows, none where its metrics are off or missing.
    pub cache: Option<f64>,
}

/// A goal and how it came about. The default is what follows from nothing: nothing, and incomplete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Goal {
    /// Whole compute units.
    pub units: u32,
    /// Its parts.
    pub components: Components,
    /// What the cache's windows showed.
    pub working_set: Option<WorkingSet>,
    /// All metrics were there that are expected.
    pub complete: bool,
}

/// The goal for these metrics. Without system metrics it is nothing, and incomplete.
#[must_use]
pub fn goal(
    config: &ReferenceConfig,
    unit: ComputeUnit,
    system: Option<&SystemMetrics>,
    cache: Option<CacheMetrics<'_>>,
) -> Goal {
    // Windows from before the metrics were switched off are no reason for anything.
    let cache = cache.filter(|_| config.enable_lfc_metrics);
    let looked_at = cache.map(|cache| working_set(config, cache.working_set_pages));
    goal_with(config, unit, system, looked_at)
}

/// The goal, where the windows were looked at already: `None` where there are none, or none that count.
pub(super) fn goal_with(
    config: &ReferenceConfig,
    unit: ComputeUnit,
    system: Option<&SystemMetrics>,
    looked_at: Option<Option<WorkingSet>>,
) -> Goal {
    let working_set = looked_at.flatten();
    let memory_unit = unit.memory.0 as f64;
    let projected_bytes = working_set.map(|set| set.projected_pages * CACHE_PAGE_BYTES);
    let mut components = Components {
        cache: looked_at
            .map(|_| projected_bytes.unwrap_or(0.0) / config.lfc_to_memory_ratio / memory_unit),
        ..Components::default()
    };
    if let Some(system) = system {
        components.cpu = cpu(config, unit, system);
        let usage = system.memory_usage.0 as f64;
        components.memory = (usage / config.memory_usage_fraction_target).round() / memory_unit;
        if let Some(bytes) = projected_bytes {
            let total = bytes.min(system.memory_cached.0 as f64) + usage;
            let with_cache = total / config.memory_total_fraction_target / memory_unit;
            components.memory = components.memory.max(with_cache);
        }
    }
    let largest =
        components.cpu.round().max(components.memory).max(components.cache.unwrap_or_default());
    let complete = system.is_some() && (looked_at.is_some() || !config.enable_lfc_metrics);
    Goal { units: whole(largest.ceil()), components, working_set, complete }
}

/// The longer load average while both are close to each other, the shorter when they are not.
fn cpu(config: &ReferenceConfig, unit: ComputeUnit, system: &SystemMetrics) -> f64 {
    let SystemMetrics { load_average_1min: short, load_average_5min: long, .. } = *system;
    let difference = (short - long).abs();
    let stable = config.cpu_stable_zone_ratio * long;
    let mixed = stable + config.cpu_mixed_zone_ratio * long;
    let weight = if difference <= stable {
        0.0
    } else if difference >= mixed {
        1.0
    } else {
        (difference - stable) / (mixed - stable + 1e-6)
    };
    let load = weight * short + (1.0 - weight) * long;
    load / config.load_average_fraction_target / unit.cpu_cores()
}

/// The size of the working set; none from fewer windows than it takes to compare.
pub(super) fn working_set(config: &ReferenceConfig, windows: &[f64]) -> Option<WorkingSet> {
    let reach = (config.lfc_window_size_minutes as usize).checked_sub(1)?;
    let offset = (config.lfc_min_wait_before_downscale_minutes as usize).checked_sub(1)?;
    if windows.len() < offset + reach + 1 || offset < reach {
        return None;
    }
    let last = windows.last().copied()?;
    let plateau = |at: &usize| {
        let ahead = (windows[at + reach] - windows[*at]).max(0.0);
        let behind = (windows[*at] - windows[at - reach]).max(0.0);
        ahead > STEEPER * behind
    };
    let found = (offset..windows.len() - reach).find(plateau);
    let estimate = match found {
        Some(at) if !config.lfc_use_largest_window => windows[at],
        _ => last,
    };
    let beyond = windows.iter().skip(offset).position(|pages| *pages > estimate);
    let kept = beyond.map_or(windows, |at| &windows[..offset + at]);
    let steps = kept.windows(2).map(|two| {
        let next = two[0].max(two[1]);
        next + (next - two[0]) * AHEAD
    });
    let projected = steps.fold(windows[0], f64::max);
    Some(WorkingSet { estimate_pages: estimate, projected_pages: projected })
}

/// Saturates: no goal is ever so large that it becomes small.
fn whole(units: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "casts from floats saturate"
    )]
    let whole = units as u32;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: ComputeUnit = ComputeUnit::SHIPPED;

    fn half() -> ReferenceConfig {
        ReferenceConfig {
            load_average_fraction_target: 0.5,
            memory_usage_fraction_target: 0.5,
            ..ReferenceConfig::default()
        }
    }

    fn loads(short: f64, long: f64) -> SystemMetrics {
        SystemMetrics {
            load_average_1min: short,
            load_average_5min: long,
            memory_usage: Bytes::ZERO,
            memory_cached: Bytes::ZERO,
        }
    }

    fn windows() -> Vec<f64> {
        [
            0, 15, 30, 40, 50, 150, 175, 180, 185, 190, 250, 300, 350, 375, 400, 415, 425, 430,
            435, 435,
        ]
        .iter()
        .map(|thousands| f64::from(*thousands) * 1000.0)
        .collect()
    }

    #[test]
    fn a_load_of_a_third_is_two_units() {
        let goal = goal(&half(), UNIT, Some(&loads(0.3, 0.0)), None);
        assert_eq!((goal.units, goal.complete), (2, true));
        assert!((goal.components.cpu - 2.4).abs() < 1e-9);
    }

    #[test]
    fn memory_counts_whole_and_cpu_rounded() {
        let usage = |mib| SystemMetrics { memory_usage: Bytes::from_mib(mib), ..loads(0.0, 0.0) };
        let units = |system| goal(&half(), UNIT, Some(&system), None).units;
        assert_eq!([units(usage(0)), units(usage(512)), units(usage(513))], [0, 1, 2]);
        let load = |load| units(loads(load, load));
        // 0.0625 / 0.5 / 0.25 is half a unit, and rounds up; the rest of a unit rounds down.
        assert_eq!([load(0.06), load(0.0625), load(0.18), load(0.19)], [0, 1, 1, 2]);
    }

    #[test]
    fn the_longer_load_counts_while_both_are_close() {
        let config =
            ReferenceConfig { cpu_stable_zone_ratio: 0.5, cpu_mixed_zone_ratio: 0.5, ..half() };
        let cpu = |short| goal(&config, UNIT, Some(&loads(short, 1.0)), None).components.cpu / 8.0;
        assert!((cpu(1.5) - 1.0).abs() < 1e-9);
        assert!((cpu(2.0) - 2.0).abs() < 1e-9);
        assert!((cpu(1.75) - 1.375).abs() < 1e-5);
        let shipped = |short, long| goal(&half(), UNIT, Some(&loads(short, long)), None).components;
        assert!((shipped(0.5, 8.0).cpu - 4.0).abs() < 1e-9, "the shorter with the shipped zeros");
    }

    #[test]
    fn the_working_set_is_the_plateau_before_growth_becomes_steeper() {
        let config = ReferenceConfig { enable_lfc_metrics: true, ..half() };
        let pages = windows();
        let cache = CacheMetrics { working_set_pages: &pages };
        let goal = goal(&config, UNIT, Some(&loads(0.0, 0.0)), Some(cache));
        assert_eq!(goal.units, 3);
        let expected = WorkingSet { estimate_pages: 190_000.0, projected_pages: 200_000.0 };
        assert_eq!(goal.working_set, Some(expected));
        let largest = ReferenceConfig { lfc_use_largest_window: true, ..config };
        let set = working_set(&largest, &pages).unwrap();
        assert!((set.estimate_pages - 435_000.0).abs() < 1.0);
        assert_eq!(working_set(&config, &pages[..8]), None, "fewer windows than are compared");
        let few = CacheMetrics { working_set_pages: &pages[..8] };
        let few = super::goal(&config, UNIT, Some(&loads(0.0, 0.0)), Some(few));
        assert_eq!((few.components.cache, few.working_set, few.complete), (Some(0.0), None, true));
        assert!(working_set(&config, &pages[..9]).is_some());
    }

    #[test]
    fn memory_in_use_and_cached_count_together_with_a_working_set() {
        let config = ReferenceConfig { enable_lfc_metrics: true, ..half() };
        let pages = windows();
        let cache = Some(CacheMetrics { working_set_pages: &pages });
        let memory = |cached| {
            let system = SystemMetrics {
                memory_usage: Bytes::from_gib(1),
                memory_cached: Bytes::from_gib(cached),
                ..loads(0.0, 0.0)
            };
            goal(&config, UNIT, Some(&system), cache).components.memory
        };
        assert!((memory(0) - 2.0).abs() < 1e-9, "in use alone");
        let projected = 200_000.0 * 8192.0 / f64::from(1 << 30);
        assert!((memory(64) - ((projected + 1.0) / 0.9)).abs() < 1e-9);
    }

    #[test]
    fn windows_count_only_while_they_are_enabled() {
        let pages = windows();
        let cache = Some(CacheMetrics { working_set_pages: &pages });
        let goal = goal(&half(), UNIT, Some(&loads(0.0, 0.0)), cache);
        assert_eq!((goal.units, goal.working_set, goal.complete), (0, None, true));
    }

    #[test]
    fn what_is_expected_and_missing_makes_a_goal_incomplete() {
        let config = ReferenceConfig { enable_lfc_metrics: true, ..half() };
        assert!(!goal(&config, UNIT, Some(&loads(0.3, 0.3)), None).complete);
        let none = goal(&half(), UNIT, None, None);
        assert_eq!((none.units, none.complete), (0, false));
    }

    #[test]
    fn absurd_metrics_saturate() {
        assert_eq!(goal(&half(), UNIT, Some(&loads(1e300, 0.0)), None).units, u32::MAX);
        let full = SystemMetrics { memory_usage: Bytes(u64::MAX), ..loads(0.0, 0.0) };
        assert_eq!(goal(&half(), UNIT, Some(&full), None).units, u32::MAX);
    }
}
