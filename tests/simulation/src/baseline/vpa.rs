//! Sizes as the Kubernetes Vertical Pod Autoscaler recommends them, with its default settings where it has some.
//!
//! Once a minute it looks at what is used (never more than the size gives):
//! - CPU: the mean of the last minute goes into a decaying histogram;
//! - memory: the largest amount seen in a window of 24 h goes into another; a larger one takes the place of the one before;
//! - an OOM kill counts as an amount of memory: what was there and a fifth more, at least 100 MiB more;
//! - the target is the upper end of the bucket of P90 and 15 % more, on the machine's grid and between its bounds.
//!
//! A resource is resized in place when its target is more than [`TOLERANCE_PERCENT`] away from its size (the updater's
//! threshold), after an OOM kill by any difference. A change takes the machine's time to plug or unplug; memory is never
//! made smaller than what is held then, as the node's agent refuses to. It begins with the target for the first load.

use std::time::Duration;

use guest_units::{Bytes, MilliCpu, Size};

use super::{Machine, Seen, Sizes};
use crate::line::nanos;
use crate::load::Load;

/// A target closer than this to the size is left alone.
const TOLERANCE_PERCENT: u64 = 10;
const MARGIN_PERCENT: u64 = 115;
const TARGET: f64 = 0.9;
const LOOK: u64 = 60_000_000_000;
const WINDOW: u64 = 24 * 60 * LOOK;
const HALF_LIFE: Duration = Duration::from_secs(24 * 3600);
const BUMP: Bytes = Bytes::from_mib(100);

/// A histogram whose samples count half as much after each half-life. Its buckets grow: each is 5 % wider than the one before.
#[derive(Debug, Clone)]
pub struct Decaying {
    first: f64,
    half_life: f64,
    /// The time at which a sample has its own weight, in seconds; moved on before weights grow too large.
    reference: f64,
    weights: Vec<f64>,
}

impl Decaying {
    const RATIO: f64 = 1.05;
    /// A bucket with less is empty.
    const EMPTY: f64 = 1e-4;
    /// Half-lives after which the reference moves on.
    const MOST: f64 = 100.0;

    /// Of CPU in cores: the first bucket has 0.01 cores, the last one begins at 1,000 or above.
    #[must_use]
    pub fn of_cores() -> Self {
        Self::new(0.01, 1000.0, HALF_LIFE)
    }

    /// Of memory in bytes: the first bucket has 10 MB, the last one begins at 1 TB or above.
    #[must_use]
    pub fn of_bytes() -> Self {
        Self::new(1e7, 1e12, HALF_LIFE)
    }

    fn new(first: f64, most: f64, half_life: Duration) -> Self {
        let half_life = half_life.as_secs_f64();
        let mut histogram = Self { first, half_life, reference: 0.0, weights: Vec::new() };
        let buckets = index(histogram.place(most).ceil()) + 1;
        histogram.weights.resize(buckets, 0.0);
        histogram
    }

    /// Counts a value with a weight, at a time since the beginning.
    pub fn add(&mut self, value: f64, weight: f64, at: Duration) {
        let weight = weight * self.decay(at);
        let bucket = self.bucket(value);
        self.weights[bucket] += weight;
    }

    /// Takes back a value that was counted with this weight and time.
    pub fn subtract(&mut self, value: f64, weight: f64, at: Duration) {
        let weight = weight * self.decay(at);
        let bucket = self.bucket(value);
        let rest = self.weights[bucket] - weight;
        self.weights[bucket] = if rest < Self::EMPTY { 0.0 } else { rest };
    }

    /// The upper end of the bucket below which a share of the weight lies; 0 without samples.
    #[must_use]
    pub fn percentile(&self, share: f64) -> f64 {
        let Some(last) = self.weights.iter().rposition(|weight| *weight >= Self::EMPTY) else {
            return 0.0;
        };
        let threshold = share * self.weights.iter().sum::<f64>();
        let mut sum = 0.0;
        let found = self.weights[..last].iter().position(|weight| {
            sum += weight;
            sum >= threshold
        });
        // The last bucket has no upper end.
        self.start((found.unwrap_or(last) + 1).min(self.weights.len() - 1))
    }

    /// Where a bucket begins.
    fn start(&self, bucket: usize) -> f64 {
        self.first * (Self::RATIO.powf(bucket as f64) - 1.0) / (Self::RATIO - 1.0)
    }

    /// The inverse of `start`.
    fn place(&self, value: f64) -> f64 {
        (value * (Self::RATIO - 1.0) / self.first + 1.0).ln() / Self::RATIO.ln()
    }

    fn bucket(&self, value: f64) -> usize {
        if value < self.first {
            return 0;
        }
        index(self.place(value)).min(self.weights.len() - 1)
    }

    /// What a sample of that time weighs, against one of the reference: younger ones more, which is the same as older ones
    /// less.
    fn decay(&mut self, at: Duration) -> f64 {
        let lives = (at.as_secs_f64() - self.reference) / self.half_life;
        if lives <= Self::MOST {
            return lives.exp2();
        }
        let moved = lives.round();
        self.reference += moved * self.half_life;
        for weight in &mut self.weights {
            *weight *= (-moved).exp2();
        }
        (lives - moved).exp2()
    }
}

/// A change on its way: when it is there, and what is there then.
type Change<T> = Option<(u64, T)>;

pub(super) struct Vpa<'a> {
    machine: &'a Machine,
    cpu: Decaying,
    memory: Decaying,
    looked: u64,
    cpu_time: u128,
    kills: u32,
    window_end: u64,
    /// Largest memory of the window, and the largest that follows from a kill.
    used_peak: u64,
    oom_peak: u64,
    start: Option<Size>,
    cpu_change: Change<MilliCpu>,
    memory_change: Change<Bytes>,
}

impl<'a> Vpa<'a> {
    pub(super) fn new(machine: &'a Machine, first: &Load) -> Self {
        let start = Size::new(
            machine.cpu_for(with_margin_cpu(first.cpu)),
            machine.memory_for(with_margin(first.memory)),
        );
        let now = nanos(first.at);
        Self {
            machine,
            cpu: Decaying::of_cores(),
            memory: Decaying::of_bytes(),
            looked: now,
            cpu_time: 0,
            kills: 0,
            window_end: now,
            used_peak: 0,
            oom_peak: 0,
            start: Some(start),
            cpu_change: None,
            memory_change: None,
        }
    }

    fn look(&mut self, now: u64, seen: &Seen) {
        let killed = seen.kills > self.kills;
        let span = u128::from((now - self.looked).max(1));
        let mean = (seen.cpu_time - self.cpu_time) as f64 / span as f64 / 1000.0;
        (self.looked, self.cpu_time, self.kills) = (now, seen.cpu_time, seen.kills);
        self.cpu.add(mean, 0.1, Duration::from_nanos(now));
        self.memory_sample(now, seen.held.0, false);
        if killed {
            let had = self.machine.available(seen.size.memory).0.max(self.used_peak);
            let needed = Bytes(had).saturating_add(BUMP).max(Bytes(had).times(12, 10));
            self.memory_sample(now, needed.0, true);
        }
        self.resize(now, seen.size, killed);
    }

    /// One peak counts for each window: a larger one replaces it.
    fn memory_sample(&mut self, now: u64, bytes: u64, oom: bool) {
        let peak = self.used_peak.max(self.oom_peak);
        if now >= self.window_end {
            let windows = (now - self.window_end) / WINDOW + 1;
            self.window_end = self.window_end.saturating_add(windows.saturating_mul(WINDOW));
            (self.used_peak, self.oom_peak) = (0, 0);
        } else if bytes > peak {
            self.memory.subtract(peak as f64, 1.0, Duration::from_nanos(self.window_end));
        } else {
            return;
        }
        self.memory.add(bytes as f64, 1.0, Duration::from_nanos(self.window_end));
        if oom {
            self.oom_peak = bytes;
        } else {
            self.used_peak = bytes;
        }
    }

    fn resize(&mut self, now: u64, size: Size, at_once: bool) {
        let machine = self.machine;
        let cores = whole(self.cpu.percentile(TARGET) * 1000.0);
        let cores = MilliCpu(u32::try_from(cores).unwrap_or(u32::MAX));
        let cpu = machine.cpu_for(with_margin_cpu(cores));
        let bytes = Bytes(whole(self.memory.percentile(TARGET)));
        let memory = machine.memory_for(with_margin(bytes));
        if self.cpu_change.is_none() && far(cpu.0.into(), size.cpu.0.into(), false) {
            self.cpu_change = Some((self.there(now, cpu > size.cpu), cpu));
        }
        if self.memory_change.is_none() && far(memory.0, size.memory.0, at_once) {
            self.memory_change = Some((self.there(now, memory > size.memory), memory));
        }
    }

    fn there(&self, now: u64, grows: bool) -> u64 {
        let span = if grows { self.machine.plug } else { self.machine.unplug };
        now.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Sizes for Vpa<'_> {
    fn next(&self) -> Option<u64> {
        let cpu = self.cpu_change.map(|(at, _)| at);
        let memory = self.memory_change.map(|(at, _)| at);
        [Some(self.looked.saturating_add(LOOK)), cpu, memory].into_iter().flatten().min()
    }

    fn at(&mut self, now: u64, seen: &Seen) -> Size {
        if let Some(start) = self.start.take() {
            return start;
        }
        if now >= self.looked.saturating_add(LOOK) {
            self.look(now, seen);
        }
        let mut size = seen.size;
        if let Some((_, cpu)) = self.cpu_change.take_if(|(at, _)| *at <= now) {
            size.cpu = cpu;
        }
        if let Some((_, memory)) = self.memory_change.take_if(|(at, _)| *at <= now) {
            size.memory = memory.max(self.machine.memory_for(seen.held));
        }
        size
    }
}

fn far(target: u64, size: u64, at_once: bool) -> bool {
    let percent = if at_once { 0 } else { TOLERANCE_PERCENT };
    u128::from(target.abs_diff(size)) * 100 > u128::from(size) * u128::from(percent)
}

fn with_margin(bytes: Bytes) -> Bytes {
    bytes.times(MARGIN_PERCENT, 100)
}

fn with_margin_cpu(cpu: MilliCpu) -> MilliCpu {
    cpu.times_up(115, 100)
}

/// Rounded up.
fn whole(value: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and is not below 0"
    )]
    let whole = value.ceil() as u64;
    whole
}

/// Rounded down.
fn index(value: f64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and is not below 0"
    )]
    let index = value as usize;
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn buckets_grow() {
        let cores = Decaying::of_cores();
        // 0.01 × (1.05^n − 1) / 0.05 is first above 1,000 for n = 175.
        assert_eq!((cores.weights.len(), Decaying::of_bytes().weights.len()), (176, 176));
        assert!((cores.start(1) - 0.01).abs() < 1e-12);
        assert!((cores.start(2) - 0.0205).abs() < 1e-12);
        assert!((cores.start(3) - 0.031_525).abs() < 1e-12);
        for (value, bucket) in [(0.0, 0), (0.0099, 0), (0.011, 1), (0.021, 2), (1e9, 175)] {
            assert_eq!(cores.bucket(value), bucket, "{value}");
        }
    }

    #[test]
    fn a_day_halves_a_weight() {
        let mut cores = Decaying::of_cores();
        cores.add(0.005, 1.0, Duration::ZERO);
        cores.add(0.015, 1.0, DAY);
        // The older sample has a third of the weight.
        assert!((cores.percentile(0.33) - cores.start(1)).abs() < 1e-12);
        assert!((cores.percentile(0.34) - cores.start(2)).abs() < 1e-12);
        cores.add(0.025, 1.0, DAY * 200);
        assert!((cores.percentile(0.01) - cores.start(3)).abs() < 1e-12, "long ago");
        assert!(cores.weights.iter().all(|weight| weight.is_finite()));
    }

    #[test]
    fn p90_of_a_simple_series() {
        let mut cores = Decaying::of_cores();
        assert!(cores.percentile(0.9).abs() < 1e-12, "no samples");
        for minute in 0..100 {
            let value = if minute % 20 == 0 { 4.0 } else { 1.0 };
            cores.add(value, 0.1, Duration::from_secs(60 * minute));
        }
        // A twentieth is above: the end of the bucket of 1 core, which is 36.
        assert!((cores.percentile(0.9) - cores.start(37)).abs() < 1e-12);
        assert!((cores.start(37) - 1.016).abs() < 0.001, "{}", cores.start(37));
        assert!(cores.percentile(0.96) > 4.0);
        cores.subtract(1.0, 1e9, Duration::ZERO);
        assert!(cores.percentile(0.5) > 4.0);
    }

    #[test]
    fn a_window_has_one_peak() {
        let machine = Machine::default();
        let mut vpa = Vpa::new(
            &machine,
            &Load {
                at: guest_units::Moment::ZERO,
                cpu: MilliCpu(100),
                memory: Bytes::ZERO,
                memory_per_second: 0,
            },
        );
        let total =
            |vpa: &Vpa<'_>| vpa.memory.weights.iter().filter(|weight| **weight > 0.0).count();
        for (minute, mib) in [100, 300, 200].into_iter().enumerate() {
            vpa.memory_sample(minute as u64 * LOOK, mib << 20, false);
            assert_eq!(total(&vpa), 1);
        }
        assert_eq!(vpa.used_peak, 300 << 20);
        vpa.memory_sample(3 * LOOK, 400 << 20, true);
        assert_eq!((total(&vpa), vpa.used_peak, vpa.oom_peak), (1, 300 << 20, 400 << 20));
        vpa.memory_sample(WINDOW, 100 << 20, false);
        assert_eq!((total(&vpa), vpa.used_peak, vpa.oom_peak), (2, 100 << 20, 0));
    }
}
