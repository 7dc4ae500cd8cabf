//! The short bursts that are laid over traces.

use guest_units::{Bytes, MilliCpu, Moment, Size};

use super::draw::{between, bytes, exponential, milli, pareto, span};
use crate::random::Random;

/// Seconds from one burst to the next, on average.
const EVERY: f64 = 600.0;
/// How long one is, in seconds.
const LENGTH: (f64, f64) = (5.0, 60.0);
/// The smallest burst.
const LEAST: Size = Size::new(MilliCpu(250), Bytes::from_mib(128));
/// The most that bursts add.
pub(super) const MOST: Size = Size::new(MilliCpu::from_cpus(3), Bytes::from_gib(2));

/// A Poisson process of bursts, at some moment.
#[derive(Debug, Clone)]
pub(super) struct Bursts {
    random: Random,
    /// When the next one begins.
    next: Moment,
    /// Those that last, each with its end; hardly ever more than one.
    active: Vec<(Moment, Size)>,
}

impl Bursts {
    pub(super) fn new(mut random: Random) -> Self {
        let next = Moment::ZERO + span(exponential(&mut random, EVERY));
        Self { random, next, active: Vec::new() }
    }

    /// When one begins or ends next.
    pub(super) fn changes(&self) -> Moment {
        self.active.iter().map(|(until, _)| *until).fold(self.next, Moment::min)
    }

    /// Goes on to a moment that is not before the last.
    pub(super) fn advance(&mut self, now: Moment) {
        self.active.retain(|(until, _)| *until > now);
        while self.next <= now {
            let begins = self.next;
            let until = begins + span(between(&mut self.random, LENGTH.0, LENGTH.1));
            let size = height(pareto(&mut self.random));
            if until > now {
                self.active.push((until, size));
            }
            self.next = begins + span(exponential(&mut self.random, EVERY));
            if self.next == begins {
                // The end of time.
                break;
            }
        }
    }

    /// What they add now.
    pub(super) fn size(&self) -> Size {
        self.active.iter().fold(Size::ZERO, |sum, (_, size)| sum.saturating_add(*size)).min(MOST)
    }
}

/// The size of a burst for a draw from 1 up.
fn height(draw: f64) -> Size {
    #[expect(clippy::cast_precision_loss, reason = "128 MiB is exact")]
    let memory = LEAST.memory.0 as f64;
    let size = Size::new(milli(f64::from(LEAST.cpu.0) * draw), bytes(memory * draw)).min(MOST);
    // The last digits of a power may differ between machines.
    Size::new(size.cpu, size.memory.round_down(Bytes::from_kib(1)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::random::random;

    /// Every burst until the end: when it began, how long it was, how high.
    fn bursts(seed: u64, end: Moment) -> Vec<(Moment, Duration, Size)> {
        let mut bursts = Bursts::new(random(seed, 0));
        let mut found = Vec::new();
        while bursts.next <= end {
            let begins = bursts.next;
            bursts.active.clear();
            bursts.advance(begins);
            let (until, size) = bursts.active[0];
            found.push((begins, until.since(begins), size));
        }
        found
    }

    #[test]
    fn six_an_hour_begin() {
        for seed in 1..=5 {
            let found = bursts(seed, Moment::from_secs(1000 * 3600));
            // Four deviations of a Poisson count of 6000.
            assert!((5690..6310).contains(&found.len()), "{}", found.len());
            // The number in an hour varies as much as it is large: a Poisson process, no clock.
            let mut hours = vec![0.0_f64; 1001];
            for (begins, ..) in &found {
                hours[usize::try_from(begins.0.as_secs() / 3600).unwrap()] += 1.0;
            }
            let variance = hours.iter().map(|count| (count - 6.0).powi(2)).sum::<f64>() / 1000.0;
            assert!((4.8..7.2).contains(&variance), "{variance}");
        }
    }

    #[test]
    fn heights_are_pareto_and_capped() {
        let found: Vec<_> =
            (1..=5).flat_map(|seed| bursts(seed, Moment::from_secs(1000 * 3600))).collect();
        let part = |wanted: &dyn Fn(Size) -> bool| {
            let count = found.iter().filter(|(_, _, size)| wanted(*size)).count();
            f64::from(u32::try_from(count).unwrap())
                / f64::from(u32::try_from(found.len()).unwrap())
        };
        for (_, length, size) in &found {
            assert!(LEAST.fits_in(*size) && size.fits_in(MOST), "{size}");
            assert!((5..=60).contains(&length.as_secs()), "{length:?}");
        }
        // Of 30000: above a vCPU in 4^-1.5, capped in 12^-1.5 and 16^-1.5.
        assert!((part(&|size| size.cpu > MilliCpu::ONE) - 0.125).abs() < 0.01);
        assert!((part(&|size| size.cpu == MOST.cpu) - 0.024).abs() < 0.004);
        assert!((part(&|size| size.memory == MOST.memory) - 0.0156).abs() < 0.004);
    }

    #[test]
    fn cpu_and_memory_share_the_draw() {
        assert_eq!(height(1.0), LEAST);
        assert_eq!(height(4.0), Size::new(MilliCpu::ONE, Bytes::from_mib(512)));
        assert_eq!(height(14.0), Size::new(MOST.cpu, Bytes::from_mib(14 * 128)));
        assert_eq!(height(f64::INFINITY), MOST);
    }

    #[test]
    fn overlapping_bursts_add_up_to_the_cap() {
        let mut bursts = Bursts::new(random(1, 0));
        let end = bursts.changes();
        bursts.active = vec![(end, height(4.0)), (end, height(2.0))];
        assert_eq!(bursts.size(), Size::new(MilliCpu(1500), Bytes::from_mib(768)));
        bursts.active.push((end, MOST));
        assert_eq!(bursts.size(), MOST);
        assert_eq!(bursts.changes(), end);
        // Those end, and the next begins.
        bursts.advance(end);
        assert_eq!(bursts.active.len(), 1);
        assert!(bursts.changes() > end);
    }
}
