//! The reference's detector of memory pressure, as the control that comparisons need: what a guest would have asked for,
//! and when, without prediction.
//!
//! ```text
//!   every 100 ms: non-reclaimable memory --> mean of the last 5 --> at least 85 % of what is usable? --> ask
//!                                                                        at most once a second
//! ```
//! A shrink is denied where the mean and 100 MiB do not fit below 85 % of what would be usable. Nothing else plays a part:
//! no growth rate, no pressure, no page cache, no CPU.

use std::collections::VecDeque;
use std::time::Duration;

use guest_units::{Bytes, Moment};

const POLL: Duration = Duration::from_millis(100);
const SAMPLES: usize = 5;
const ASK_PAUSE: Duration = Duration::from_secs(1);
const THRESHOLD_PERCENT: u64 = 85;
/// What the kernel is taken to keep of what the VM is said to have.
const KERNEL: Bytes = Bytes::from_mib(100);
/// What must stay below the threshold after a shrink.
const MARGIN: Bytes = Bytes::from_mib(100);
/// Older samples are no answer to a question.
const STALE: Duration = Duration::from_secs(5);

/// The detector.
#[derive(Debug, Clone)]
pub struct Detector {
    usable: Bytes,
    samples: VecDeque<Bytes>,
    sampled_at: Option<Moment>,
    asked_at: Option<Moment>,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DetectorAction {
    /// Read the non-reclaimable memory of the workload.
    Sample,
    /// Ask the host for more.
    Ask,
}

/// The answer to a shrink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DetectorAnswer {
    /// It may be made.
    Fine,
    /// It may not.
    Denied,
    /// Nothing was measured lately.
    Unknown,
}

impl Detector {
    /// A detector in a machine of which the kernel manages `total`.
    #[must_use]
    pub fn new(total: Bytes) -> Self {
        Self { usable: total, samples: VecDeque::new(), sampled_at: None, asked_at: None }
    }

    /// The host says what the VM has.
    pub fn told(&mut self, memory: Bytes) {
        self.usable = memory.saturating_sub(KERNEL);
    }

    /// The non-reclaimable memory was read.
    pub fn sampled(&mut self, non_reclaimable: Bytes, now: Moment) {
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(non_reclaimable);
        self.sampled_at = Some(now);
    }

    /// The host was asked.
    pub fn asked(&mut self, now: Moment) {
        self.asked_at = Some(now);
    }

    /// What is due, and when to look again if nothing is.
    #[must_use]
    pub fn next(&self, now: Moment) -> (Option<DetectorAction>, Moment) {
        let sample_at = self.sampled_at.map_or(now, |at| at + POLL);
        if sample_at <= now {
            return (Some(DetectorAction::Sample), now);
        }
        let rested = self.asked_at.is_none_or(|at| at + ASK_PAUSE <= now);
        let pressed = self.mean().is_some_and(|mean| mean >= threshold(self.usable));
        ((rested && pressed).then_some(DetectorAction::Ask), sample_at)
    }

    /// Whether the VM may be made this small.
    #[must_use]
    pub fn may_shrink(&self, memory: Bytes, now: Moment) -> DetectorAnswer {
        let fresh = self.sampled_at.is_some_and(|at| now.since(at) <= STALE);
        let Some(mean) = self.mean().filter(|_| fresh) else { return DetectorAnswer::Unknown };
        let fits = mean.saturating_add(MARGIN) <= threshold(memory.saturating_sub(KERNEL));
        if fits && self.samples.len() > 1 { DetectorAnswer::Fine } else { DetectorAnswer::Denied }
    }

    fn mean(&self) -> Option<Bytes> {
        let count = u64::try_from(self.samples.len()).ok().filter(|count| *count > 0)?;
        let sum = self.samples.iter().fold(Bytes::ZERO, |sum, sample| sum.saturating_add(*sample));
        Some(sum.times(1, count))
    }
}

fn threshold(usable: Bytes) -> Bytes {
    usable.times(THRESHOLD_PERCENT, 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(mib: u64) -> Bytes {
        Bytes::from_mib(mib)
    }

    /// Runs for so long with what `used` says; returns when it asked, in milliseconds.
    fn run(
        detector: &mut Detector,
        from_ms: u64,
        to_ms: u64,
        used: impl Fn(u64) -> Bytes,
    ) -> Vec<u64> {
        let mut asks = Vec::new();
        for ms in (from_ms..to_ms).step_by(10) {
            let now = Moment::from_millis(ms);
            while let (Some(action), _) = detector.next(now) {
                match action {
                    DetectorAction::Sample => detector.sampled(used(ms), now),
                    DetectorAction::Ask => {
                        detector.asked(now);
                        asks.push(ms);
                    }
                }
            }
        }
        asks
    }

    #[test]
    fn it_asks_at_85_percent_and_once_a_second() {
        let mut detector = Detector::new(mib(1000));
        assert_eq!(run(&mut detector, 0, 2000, |_| mib(849)), Vec::<u64>::new());
        let mut detector = Detector::new(mib(1000));
        assert_eq!(run(&mut detector, 0, 2500, |_| mib(850)), [0, 1000, 2000]);
    }

    #[test]
    fn a_step_is_seen_only_when_the_mean_has_followed() {
        let mut detector = Detector::new(mib(1000));
        let asks = run(&mut detector, 0, 1200, |ms| if ms < 500 { mib(100) } else { mib(1000) });
        assert_eq!(asks, [900], "400 ms after it was there");
    }

    #[test]
    fn what_the_host_says_moves_the_threshold() {
        let mut detector = Detector::new(mib(1000));
        run(&mut detector, 0, 500, |_| mib(900));
        detector.told(mib(2100));
        assert_eq!(run(&mut detector, 500, 3000, |_| mib(1699)), Vec::<u64>::new());
        assert_eq!(run(&mut detector, 3000, 4000, |_| mib(1700)).len(), 1);
    }

    #[test]
    fn a_shrink_needs_fresh_samples_and_a_margin() {
        let mut detector = Detector::new(mib(4000));
        let at = Moment::from_millis;
        assert_eq!(detector.may_shrink(mib(1100), at(0)), DetectorAnswer::Unknown);
        detector.sampled(mib(750), at(0));
        assert_eq!(detector.may_shrink(mib(1100), at(10)), DetectorAnswer::Denied, "one sample");
        detector.sampled(mib(750), at(100));
        assert_eq!(detector.may_shrink(mib(1100), at(110)), DetectorAnswer::Fine);
        assert_eq!(detector.may_shrink(mib(1099), at(110)), DetectorAnswer::Denied);
        assert_eq!(detector.may_shrink(mib(1100), at(5101)), DetectorAnswer::Unknown);
    }
}
