//! Integrals over the same stretches of time for all VMs: whole numbers that are cut where a bucket ends, so that the buckets
//! together have exactly what the quality has as one sum, whatever the order in which VMs were added.

use guest_units::Moment;

use crate::held::Kills;
use crate::line::nanos;
use crate::quality::{Part, Stretch};

/// One resource within one bucket. Lines have halves, hence the doubles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// Twice demand × nanoseconds.
    pub demanded2: u128,
    /// Size × nanoseconds.
    pub sized: u128,
    /// Nanoseconds with more demand than supply.
    pub short: u128,
    /// Changes of the size.
    pub resizes: u64,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.demanded2 += other.demanded2;
        self.sized += other.sized;
        self.short += other.short;
        self.resizes += other.resizes;
    }
}

/// What was within one bucket of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket {
    /// Nanoseconds of all VMs together.
    pub lived: u128,
    /// In thousandths of a CPU.
    pub cpu: Sums,
    /// In bytes; the demand is what workloads wish for.
    pub memory: Sums,
    /// Twice the bytes that workloads held × nanoseconds.
    pub held2: u128,
    /// OOM kills.
    pub kills: u64,
}

impl Bucket {
    pub(super) fn add(&mut self, other: &Self) {
        self.lived += other.lived;
        self.cpu.add(&other.cpu);
        self.memory.add(&other.memory);
        self.held2 += other.held2;
        self.kills += other.kills;
    }
}

/// Changes of a VM's two sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Changes {
    pub(super) cpu: bool,
    pub(super) memory: bool,
}

/// Buckets of the same width from the origin on; the last takes all that comes later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    width: u64,
    /// Until when anything was added.
    until: u64,
    all: Vec<Bucket>,
}

impl Buckets {
    /// So many until the end.
    pub(super) fn new(end: Moment, count: usize) -> Self {
        let count = count.max(1);
        let width = nanos(end).div_ceil(count as u64).max(1);
        Self { width, until: 0, all: vec![Bucket::default(); count] }
    }

    /// In the order of time as far as it went, each with the nanoseconds since the origin at which it begins and ends.
    pub fn spans(&self) -> impl Iterator<Item = (u64, u64, &Bucket)> {
        let last = self.all.len() - 1;
        (0_u64..).zip(&self.all).enumerate().map_while(move |(index, (number, bucket))| {
            let from = number.saturating_mul(self.width);
            let next = from.saturating_add(self.width);
            let to = if index == last { self.until } else { next.min(self.until) };
            (from < to).then_some((from, to, bucket))
        })
    }

    /// All in one.
    #[must_use]
    pub fn total(&self) -> Bucket {
        let mut total = Bucket::default();
        for bucket in &self.all {
            total.add(bucket);
        }
        total
    }

    /// Adds those of another part of the fleet, with the same widths.
    pub(super) fn merge(&mut self, other: &Self) {
        self.until = self.until.max(other.until);
        for (bucket, other) in self.all.iter_mut().zip(&other.all) {
            bucket.add(other);
        }
    }

    fn number(&self, at: u64) -> usize {
        usize::try_from(at / self.width).unwrap_or(usize::MAX).min(self.all.len() - 1)
    }

    pub(super) fn killed(&mut self, at: u64, Kills(kills): Kills) {
        let number = self.number(at);
        self.all[number].kills += u64::from(kills);
    }

    /// Adds a stretch of one VM.
    pub(super) fn advance(&mut self, from: u64, to: u64, stretch: &Stretch, changes: Changes) {
        let (cpu, memory) = stretch.parts(from, to);
        let held = (stretch.memory_held.from.0, stretch.memory_held.to.0);
        self.until = self.until.max(to);
        let first = self.number(from);
        self.all[first].cpu.resizes += u64::from(changes.cpu);
        self.all[first].memory.resizes += u64::from(changes.memory);
        for number in first..=self.number(to - 1) {
            let begin = (number as u64).saturating_mul(self.width).max(from);
            let last = number + 1 == self.all.len();
            let end =
                if last { to } else { (number as u64 + 1).saturating_mul(self.width).min(to) };
            let bucket = &mut self.all[number];
            bucket.lived += u128::from(end - begin);
            sum(&mut bucket.cpu, &cpu, begin, end);
            sum(&mut bucket.memory, &memory, begin, end);
            bucket.held2 += between(held, (from, to), begin, end);
        }
    }
}

/// Adds what of a part lies between two moments.
fn sum(sums: &mut Sums, part: &Part, begin: u64, end: u64) {
    sums.demanded2 += between(part.demand, (part.from, part.to), begin, end);
    sums.sized += u128::from(part.size) * u128::from(end - begin);
    if let Some((since, until)) = part.short() {
        sums.short += u128::from(until.min(end).saturating_sub(since.max(begin)));
    }
}

/// Twice the integral of a straight line between two moments. It is the difference of two integrals from the line's start, so
/// that the pieces of a line have exactly the sum of the whole, however they are rounded.
fn between(ends: (u64, u64), (from, to): (u64, u64), begin: u64, end: u64) -> u128 {
    let until = |at: u64| {
        let (passed, span) = (u128::from(at - from), u128::from(to - from));
        let bent = u128::from(ends.0.abs_diff(ends.1)) * (passed * passed / span);
        let straight = 2 * u128::from(ends.0) * passed;
        if ends.1 >= ends.0 { straight + bent } else { straight - bent }
    };
    until(end) - until(begin)
}

#[cfg(test)]
mod tests {
    use guest_units::{Bytes, MilliCpu, Size};
    use proptest::prelude::*;

    use super::*;
    use crate::quality::Ends;

    proptest! {
        #[test]
        fn pieces_have_the_sum_of_the_whole(
            a in 0u64..1 << 40, b in 0u64..1 << 40, from in 0u64..1000, span in 1u64..1 << 50,
            cuts in (0u64..1000, 0u64..1000),
        ) {
            let to = from + span;
            let cut = |share: u64| from + span / 1000 * share + span % 1000 * share / 1000;
            let (low, high) = (cut(cuts.0.min(cuts.1)), cut(cuts.0.max(cuts.1)));
            let piece = |begin, end| between((a, b), (from, to), begin, end);
            let sum = piece(from, low) + piece(low, high) + piece(high, to);
            prop_assert_eq!(sum, (u128::from(a) + u128::from(b)) * u128::from(span));
        }
    }

    #[test]
    fn a_stretch_is_cut_where_buckets_end() {
        let mut buckets = Buckets::new(Moment(std::time::Duration::from_nanos(800)), 4);
        let rising = Ends { from: Bytes(0), to: Bytes(200) };
        let stretch = Stretch {
            cpu_wished: MilliCpu(300),
            memory_wished: rising,
            memory_held: Ends::steady(Bytes(7)),
            size: Size::new(MilliCpu(200), Bytes(150)),
            available: Bytes(99),
        };
        buckets.advance(100, 500, &stretch, Changes { cpu: true, memory: false });
        let of = |value: fn(&Bucket) -> u128| buckets.all.iter().map(value).collect::<Vec<_>>();
        assert_eq!(of(|it| it.lived), [100, 200, 100, 0]);
        // Above 99 bytes from nanosecond 300 on.
        assert_eq!(of(|it| it.memory.short), [0, 100, 100, 0]);
        assert_eq!(of(|it| it.memory.demanded2), [5_000, 40_000, 35_000, 0]);
        assert_eq!(of(|it| it.cpu.resizes.into()), [1, 0, 0, 0]);
        let spans: Vec<_> = buckets.spans().map(|(from, to, _)| (from, to)).collect();
        assert_eq!(spans, [(0, 200), (200, 400), (400, 500)]);
        let total = buckets.total();
        assert_eq!((total.cpu.short, total.cpu.sized, total.held2), (400, 80_000, 5_600));
    }
}
