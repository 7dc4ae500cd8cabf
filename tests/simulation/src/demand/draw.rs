//! The few distributions that demands are drawn from.

use std::time::Duration;

use guest_units::{Bytes, MilliCpu};
use rand::RngExt as _;
use rand_distr::{Distribution as _, Exp1, OpenClosed01, StandardNormal};

use crate::random::Random;

/// How heavy the tails are: the mean exists, the variance does not.
pub(super) const ALPHA: f64 = 1.5;

/// Uniform from `low` to below `high`, where `low` is below `high`.
pub(super) fn between(random: &mut Random, low: f64, high: f64) -> f64 {
    low + (high - low) * random.random::<f64>()
}

/// One of them, each as likely; 0 when there is none.
pub(super) fn one_of(random: &mut Random, of: &[f64]) -> f64 {
    let index = random.random_range(0..of.len().max(1));
    of.get(index).copied().unwrap_or_default()
}

/// Uniform in its logarithm: each doubling is as likely as any other.
pub(super) fn between_scales(random: &mut Random, low: f64, high: f64) -> f64 {
    between(random, low.ln(), high.ln()).exp()
}

/// The time to the next event of a Poisson process.
pub(super) fn exponential(random: &mut Random, mean: f64) -> f64 {
    let unit: f64 = Exp1.sample(random);
    mean * unit
}

/// Mean 0, deviation 1.
pub(super) fn normal(random: &mut Random) -> f64 {
    StandardNormal.sample(random)
}

/// Pareto with exponent [`ALPHA`] from 1 up: above `x` with a probability of `x` to the power of minus alpha.
pub(super) fn pareto(random: &mut Random) -> f64 {
    let unit: f64 = OpenClosed01.sample(random);
    unit.powf(-1.0 / ALPHA)
}

/// Whole milliseconds, at least one: time must go on, and shorter ones mean nothing to anybody.
pub(super) fn span(seconds: f64) -> Duration {
    Duration::from_millis(whole(seconds * 1000.0).max(1))
}

/// The nearest number of thousandths.
pub(super) fn milli(thousandths: f64) -> MilliCpu {
    MilliCpu(u32::try_from(whole(thousandths)).unwrap_or(u32::MAX))
}

/// The nearest number of bytes.
pub(super) fn bytes(amount: f64) -> Bytes {
    Bytes(whole(amount))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates at 0 and at the largest number"
)]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

/// How memory changes with each second when it goes from one amount to another within a span: rounded towards 0, so that it
/// never goes further.
pub(super) fn slope(from: Bytes, to: Bytes, span: Duration) -> i64 {
    let change = i128::from(to.0) - i128::from(from.0);
    let nanos = i128::try_from(span.as_nanos()).unwrap_or(i128::MAX).max(1);
    i64::try_from(change.saturating_mul(1_000_000_000) / nanos).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::random;

    #[test]
    fn distributions_have_their_means() {
        let random = &mut random(1, 0);
        let draws = 20_000;
        let mut mean = |draw: fn(&mut Random) -> f64| {
            (0..draws).map(|_| draw(random)).sum::<f64>() / f64::from(draws)
        };
        assert!((mean(|random| between(random, 2.0, 4.0)) - 3.0).abs() < 0.02);
        assert!((mean(|random| exponential(random, 10.0)) - 10.0).abs() < 0.3);
        assert!(mean(normal).abs() < 0.03);
        // Above 8 in one of 8^1.5 = 22.6 cases.
        let above = mean(|random| if pareto(random) > 8.0 { 1.0 } else { 0.0 });
        assert!((above - 0.0442).abs() < 0.005, "{above}");
        assert!(mean(|random| if pareto(random) < 1.0 { 1.0 } else { 0.0 }) <= 0.0);
    }

    #[test]
    fn rounding_never_wraps() {
        assert_eq!(bytes(-1.0), Bytes::ZERO);
        assert_eq!(bytes(f64::INFINITY), Bytes(u64::MAX));
        assert_eq!(milli(1e300), MilliCpu(u32::MAX));
        assert_eq!(span(0.0), Duration::from_millis(1));
        assert_eq!(slope(Bytes(0), Bytes(10), Duration::from_secs(4)), 2);
        assert_eq!(slope(Bytes(10), Bytes(0), Duration::from_secs(4)), -2);
        assert_eq!(slope(Bytes(0), Bytes(1), Duration::ZERO), 1_000_000_000);
    }
}
