//! One resource of one VM: integrals, waits, changes of the size.

use super::histogram::Waits;
use super::{REVERSAL, STEP_OF_A_SHRINK};

/// A stretch, seen by one resource: demand and use at its two ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) demand: (u64, u64),
    pub(crate) supply: u64,
    pub(crate) used: (u64, u64),
    pub(crate) size: u64,
}

impl Part {
    /// When it is short: one time, for a line crosses a level at most once.
    pub(crate) fn short(&self) -> Option<(u64, u64)> {
        let short = shortage(self);
        let rises = self.demand.1 > self.supply;
        let since = if rises { self.to - short } else { self.from };
        (short > 0).then_some((since, since + short))
    }
}

/// Sums over time; those of a fleet are the sums of its VMs'. Lines have halves, hence the doubles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sums {
    /// Size × nanoseconds.
    pub(super) sized: u128,
    /// Twice use × nanoseconds.
    pub(super) used2: u128,
    /// Nanoseconds with more demand than supply.
    pub(super) short: u128,
    /// Twice demand × those nanoseconds.
    pub(super) demanded2: u128,
    /// Twice the missing part × those nanoseconds.
    pub(super) missing2: u128,
}

impl Sums {
    pub(super) fn add(&mut self, other: &Self) {
        self.sized += other.sized;
        self.used2 += other.used2;
        self.short += other.short;
        self.demanded2 += other.demanded2;
        self.missing2 += other.missing2;
    }
}

/// The latest change of a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    at: u64,
    up: bool,
}

/// One resource of one VM.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub(super) sums: Sums,
    /// Times until the supply was adequate.
    pub(super) waits: Waits,
    /// Demands that fell before they were served.
    pub(super) never: u32,
    pub(super) resizes: u32,
    pub(super) reversals: u32,
    /// Largest missing part, in millionths of the demand.
    pub(super) worst: u32,
    /// Since when it has been short; `u64::MAX`: it is not.
    since: u64,
    /// At the end of the last stretch.
    demand: u64,
    /// `u64::MAX`: none yet.
    size: u64,
    change: Option<Change>,
}

impl Axis {
    pub(super) fn new() -> Self {
        Self {
            sums: Sums::default(),
            waits: Waits::default(),
            never: 0,
            resizes: 0,
            reversals: 0,
            worst: 0,
            since: u64::MAX,
            demand: 0,
            size: u64::MAX,
            change: None,
        }
    }

    /// Demands that were never served: those that fell, and the one that still waits.
    pub(super) fn never_adequate(&self) -> u32 {
        self.never.saturating_add(u32::from(self.since != u64::MAX))
    }

    pub(super) fn advance(&mut self, part: &Part) {
        self.resized(part);
        let span = u128::from(part.to - part.from);
        self.sums.sized += u128::from(part.size) * span;
        self.sums.used2 += double_mean(part.used) * span;
        self.begins(part);
        let short = shortage(part);
        if short > 0 {
            self.missed(part, u128::from(short));
            if self.since == u64::MAX {
                self.since = part.to - short;
            }
        }
        if part.demand.1 <= part.supply {
            self.fell();
        }
        self.demand = part.demand.1;
    }

    /// What the beginning of a stretch means for a demand that waits.
    fn begins(&mut self, part: &Part) {
        if self.since != u64::MAX && part.supply >= self.demand {
            self.waits.add(part.from.saturating_sub(self.since));
            self.since = u64::MAX;
        }
        if part.demand.0 <= part.supply {
            self.fell();
        }
    }

    fn fell(&mut self) {
        if self.since != u64::MAX {
            self.never = self.never.saturating_add(1);
            self.since = u64::MAX;
        }
    }

    fn missed(&mut self, part: &Part, short: u128) {
        let (high, low) = (part.demand.0.max(part.demand.1), part.demand.0.min(part.demand.1));
        let ends = (high, low.max(part.supply.saturating_add(1)));
        self.sums.short += short;
        self.sums.demanded2 += double_mean(ends) * short;
        self.sums.missing2 += (double_mean(ends) - 2 * u128::from(part.supply)) * short;
        let worst = u128::from(high - part.supply) * 1_000_000 / u128::from(high);
        self.worst = self.worst.max(u32::try_from(worst).unwrap_or(u32::MAX));
    }

    fn resized(&mut self, part: &Part) {
        let before = std::mem::replace(&mut self.size, part.size);
        if before == part.size || before == u64::MAX {
            return;
        }
        let change = Change { at: part.from, up: part.size > before };
        let last = self.change.replace(change);
        // Memory is taken step by step: that is one change.
        let goes_on = !change.up
            && last.is_some_and(|last| {
                !last.up && u128::from(change.at - last.at) <= STEP_OF_A_SHRINK.as_nanos()
            });
        let turned = last.is_some_and(|last| {
            last.up != change.up && u128::from(change.at - last.at) <= REVERSAL.as_nanos()
        });
        self.resizes = self.resizes.saturating_add(u32::from(!goes_on));
        self.reversals = self.reversals.saturating_add(u32::from(turned));
    }
}

fn double_mean((a, b): (u64, u64)) -> u128 {
    u128::from(a) + u128::from(b)
}

/// Nanoseconds of a stretch with at least one byte (or one millicore) missing: a line crosses that level at most once.
fn shortage(part: &Part) -> u64 {
    let (high, low) = (part.demand.0.max(part.demand.1), part.demand.0.min(part.demand.1));
    let span = part.to - part.from;
    if high <= part.supply {
        return 0;
    }
    if low > part.supply {
        return span;
    }
    let above = u128::from(high - part.supply - 1);
    let short = u128::from(span) * above / u128::from(high - low);
    u64::try_from(short).unwrap_or(span)
}
