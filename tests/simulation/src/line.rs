//! Straight lines of bytes over time, in whole nanoseconds: where they are, and when they pass a level or each other.
//!
//! One place for the arithmetic, so that everything that looks at a demand sees it pass a level at the same nanosecond.

use std::time::Duration;

use guest_units::Moment;

use crate::load::Load;

/// Nanoseconds of a second.
pub(crate) const SECOND: i128 = 1_000_000_000;

/// Nanoseconds since the origin; the largest number after 584 years.
pub(crate) fn nanos(at: Moment) -> u64 {
    u64::try_from(at.0.as_nanos()).unwrap_or(u64::MAX)
}

/// The moment so many nanoseconds after the origin.
pub(crate) const fn moment(nanos: u64) -> Moment {
    Moment(Duration::from_nanos(nanos))
}

/// `value` bytes at `at`, then `slope` more with each second, never below zero: the same numbers as
/// [`Load::memory_at`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    /// Nanoseconds since the origin.
    pub(crate) at: u64,
    /// Bytes then.
    pub(crate) value: u64,
    /// Bytes per second.
    pub(crate) slope: i64,
}

impl Line {
    /// The memory that a load wants.
    pub(crate) fn wished(load: &Load) -> Self {
        Self { at: nanos(load.at), value: load.memory.0, slope: load.memory_per_second }
    }

    /// Bytes at a time; those of `at` before it.
    pub(crate) fn value_at(&self, now: u64) -> u64 {
        let change = i128::from(self.slope) * i128::from(now.saturating_sub(self.at)) / SECOND;
        u64::try_from(i128::from(self.value).saturating_add(change).max(0)).unwrap_or(u64::MAX)
    }

    /// The first nanosecond with more than `level` bytes.
    pub(crate) fn first_above(&self, level: u64) -> Option<u64> {
        if self.value > level {
            return Some(self.at);
        }
        let more = i128::from(level) + 1 - i128::from(self.value);
        self.after(more, i128::from(self.slope))
    }

    /// The first nanosecond with at most `level` bytes.
    pub(crate) fn first_at_most(&self, level: u64) -> Option<u64> {
        if self.value <= level {
            return Some(self.at);
        }
        let less = i128::from(self.value) - i128::from(level);
        self.after(less, -i128::from(self.slope))
    }

    /// The first nanosecond, not before its own start, at which this line, the steeper one, is not below `other`.
    /// `None`: it is not the steeper one.
    pub(crate) fn reaches(&self, other: &Self) -> Option<u64> {
        let since = i128::from(self.at) - i128::from(other.at);
        let gap = (i128::from(other.value) - i128::from(self.value)) * SECOND
            + i128::from(other.slope) * since;
        let closing = i128::from(self.slope) - i128::from(other.slope);
        (closing > 0).then(|| self.later(divide_up(gap.max(0), closing)))
    }

    fn after(&self, bytes: i128, per_second: i128) -> Option<u64> {
        (per_second > 0).then(|| self.later(divide_up(bytes * SECOND, per_second)))
    }

    fn later(&self, span: i128) -> u64 {
        self.at.saturating_add(u64::try_from(span).unwrap_or(u64::MAX))
    }
}

/// Both above zero.
fn divide_up(value: i128, by: i128) -> i128 {
    (value + by - 1) / by
}

#[cfg(test)]
mod tests {
    use guest_units::{Bytes, MilliCpu};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_reach_each_other() {
        let wish = Line { at: 0, value: 100, slope: 10 };
        let chase = Line { at: 2_000_000_000, value: 0, slope: 70 };
        // 120 bytes behind, 60 bytes closer with each second.
        assert_eq!(chase.reaches(&wish), Some(4_000_000_000));
        assert_eq!(Line { slope: 10, ..chase }.reaches(&wish), None);
        assert_eq!(Line { value: 500, ..chase }.reaches(&wish), Some(chase.at));
    }

    proptest! {
        #[test]
        fn a_level_is_passed_at_the_first_nanosecond(
            at in 0u64..1 << 50, value in 0u64..1 << 40, slope in -(1i64 << 34)..1 << 34,
            level in 0u64..1 << 40, later in 0u64..1 << 45,
        ) {
            let line = Line { at, value, slope };
            let load = Load {
                at: moment(at), cpu: MilliCpu::ZERO, memory: Bytes(value), memory_per_second: slope,
            };
            prop_assert_eq!(line.value_at(at + later), load.memory_at(moment(at + later)).0);
            prop_assert_eq!(Line::wished(&load), line);
            for (first, holds) in [
                (line.first_above(level), (|value, level| value > level) as fn(u64, u64) -> bool),
                (line.first_at_most(level), |value, level| value <= level),
            ] {
                match first {
                    Some(first) => {
                        prop_assert!(holds(line.value_at(first), level));
                        prop_assert!(first == at || !holds(line.value_at(first - 1), level));
                    }
                    None => prop_assert!(!holds(line.value_at(at + later), level)),
                }
            }
        }
    }
}
