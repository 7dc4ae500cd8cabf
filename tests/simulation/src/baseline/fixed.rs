//! One size for the whole run, as somebody who knows the demand would buy it.
//!
//! P99.5 over time (the level that demand does not exceed for 99.5 % of the time) and a fifth more, for each resource,
//! rounded up. Levels are counted in parts of a grid step, rounded up: 16 for memory, 25 for CPU.

use std::collections::BTreeMap;

use guest_units::{Bytes, MilliCpu, Moment, Size};

use super::Machine;
use crate::line::nanos;
use crate::load::Load;

/// The size.
pub(super) fn size(loads: impl Iterator<Item = Load>, machine: &Machine, end: Moment) -> Size {
    let mut cpu = Levels::new(u64::from(machine.cpu_grid.0) / 25);
    let mut memory = Levels::new(machine.slot.0 / 16);
    let mut loads = loads.peekable();
    while let Some(load) = loads.next() {
        // The bend of a line that was cut off may lie beyond the end.
        let until = loads.peek().map_or(end, |next| next.at.min(end));
        let span = nanos(until).saturating_sub(nanos(load.at));
        cpu.add((load.cpu.0.into(), load.cpu.0.into()), span);
        memory.add((load.memory_at(load.at).0, load.memory_at(until).0), span);
    }
    let cores = u32::try_from(with_reserve(cpu.percentile())).unwrap_or(u32::MAX);
    let bytes = Bytes(with_reserve(memory.percentile()));
    Size::new(machine.cpu_for(MilliCpu(cores)), machine.memory_for(bytes))
}

fn with_reserve(level: u64) -> u64 {
    Bytes(level).times(12, 10).0
}

/// How long demand was at which level.
struct Levels {
    step: u64,
    /// Nanoseconds by level in steps, rounded up.
    spans: BTreeMap<u64, u128>,
}

impl Levels {
    fn new(step: u64) -> Self {
        Self { step: step.max(1), spans: BTreeMap::new() }
    }

    /// Demand went along a straight line between two levels for so many nanoseconds.
    fn add(&mut self, (a, b): (u64, u64), span: u64) {
        let (low, high) = (a.min(b), a.max(b));
        let (first, last) = (low.div_ceil(self.step), high.div_ceil(self.step));
        let mut below = low;
        for level in first..=last {
            let top = level.saturating_mul(self.step).min(high);
            let share = if first == last {
                span.into()
            } else {
                u128::from(span) * u128::from(top - below) / u128::from(high - low)
            };
            *self.spans.entry(level).or_default() += share;
            below = top;
        }
    }

    /// The level that is not exceeded for 99.5 % of the time.
    fn percentile(&self) -> u64 {
        let total: u128 = self.spans.values().sum();
        let mut seen = 0;
        let found = self.spans.iter().find(|(_, span)| {
            seen += **span;
            seen * 1000 >= total * 995
        });
        found.map_or(0, |(level, _)| level.saturating_mul(self.step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_over_time() {
        let mut levels = Levels::new(10);
        levels.add((95, 95), 9949);
        levels.add((200, 200), 51);
        assert_eq!(levels.percentile(), 200);
        levels.add((95, 95), 1000);
        assert_eq!(levels.percentile(), 100);
        assert_eq!(Levels::new(10).percentile(), 0);
    }

    #[test]
    fn a_ramp_is_at_each_level_for_its_time() {
        let mut levels = Levels::new(10);
        levels.add((1000, 0), 1000);
        assert_eq!(levels.spans.values().sum::<u128>(), 1000);
        assert_eq!(levels.percentile(), 1000);
        levels.add((0, 0), 99_000);
        // Above 500 for 500 of 100,000.
        assert_eq!(levels.percentile(), 500);
    }
}
