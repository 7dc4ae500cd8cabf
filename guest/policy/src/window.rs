//! The last values of something, and what changed over a span of time.

use std::collections::VecDeque;
use std::time::Duration;

use guest_units::Moment;

/// Values that are at least `spacing` apart, at most `capacity` of them.
#[derive(Debug, Clone)]
pub(crate) struct Window<T> {
    /// When each value was, in nanoseconds: looked through on every reading, so kept close together.
    times_ns: VecDeque<u64>,
    values: VecDeque<T>,
    capacity: usize,
    spacing_ns: u64,
}

impl<T: Copy> Window<T> {
    pub(crate) fn new(capacity: usize, spacing: Duration) -> Self {
        Self {
            times_ns: VecDeque::with_capacity(capacity),
            values: VecDeque::with_capacity(capacity),
            capacity,
            spacing_ns: nanos(spacing),
        }
    }

    /// Keeps the value, unless the last one is too close.
    pub(crate) fn push(&mut self, now: Moment, value: T) {
        let now_ns = nanos(now.0);
        if self.times_ns.back().is_some_and(|at| now_ns.saturating_sub(*at) < self.spacing_ns) {
            return;
        }
        if self.values.len() == self.capacity {
            self.times_ns.pop_front();
            self.values.pop_front();
        }
        self.times_ns.push_back(now_ns);
        self.values.push_back(value);
    }

    /// The newest value that is at least `span` old; without one the oldest. With its age, never 0.
    pub(crate) fn before(&self, now: Moment, span: Duration) -> Option<(Duration, T)> {
        let (now_ns, span_ns) = (nanos(now.0), nanos(span));
        // From the newest on: readings come as regularly as they are looked for, so it is mostly as far as the last time.
        let old_enough = self.times_ns.iter().rposition(|at| now_ns.saturating_sub(*at) >= span_ns);
        let index = old_enough.unwrap_or(0);
        let (at, value) = (self.times_ns.get(index)?, self.values.get(index)?);
        let age = now_ns.saturating_sub(*at);
        (age > 0).then_some((Duration::from_nanos(age), *value))
    }

    /// All values, oldest first.
    pub(crate) fn values(&self) -> impl Iterator<Item = T> {
        self.values.iter().copied()
    }

    pub(crate) fn clear(&mut self) {
        self.times_ns.clear();
        self.values.clear();
    }
}

/// Wide enough for centuries.
fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// `value * part / whole`, rounded down. Nearly always narrow enough for the machine's own division.
pub(crate) fn share(value: u64, part: u64, whole: u64) -> u64 {
    let whole = whole.max(1);
    value.checked_mul(part).map_or_else(
        || {
            let wide = u128::from(value) * u128::from(part) / u128::from(whole);
            u64::try_from(wide).unwrap_or(u64::MAX)
        },
        |narrow| narrow / whole,
    )
}

/// Of a span.
pub(crate) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// A difference as a rate per second.
pub(crate) fn per_second(difference: u64, span: Duration) -> u64 {
    share(difference, 1_000_000, micros(span))
}

/// Microseconds of a span as thousandths of it, at most all of it.
pub(crate) fn permille(usec: u64, span: Duration) -> u16 {
    let share = per_second(usec, span) / 1000;
    u16::try_from(share.min(1000)).unwrap_or(1000)
}

/// What is left of a value that fades linearly to nothing over `life`.
pub(crate) fn faded(value: u64, age: Duration, life: Duration) -> u64 {
    share(value, micros(life.saturating_sub(age)), micros(life))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_finds_the_newest_that_is_old_enough() {
        let mut window = Window::new(3, Duration::from_millis(10));
        assert_eq!(window.before(Moment::ZERO, Duration::ZERO), None);
        for at in [0, 5, 10, 20, 30] {
            window.push(Moment::from_millis(at), at);
        }
        let now = Moment::from_millis(35);
        let find = |span| window.before(now, Duration::from_millis(span)).map(|(_, value)| value);
        assert_eq!(find(1), Some(30));
        assert_eq!(find(6), Some(20), "5 was too close to 0 to be kept");
        assert_eq!(find(1000), Some(10), "0 was pushed out");
        let same = window.before(Moment::from_millis(10), Duration::ZERO);
        assert_eq!(same, None, "no rate over no time");
    }

    #[test]
    fn rates_and_shares() {
        assert_eq!(per_second(10, Duration::from_millis(100)), 100);
        assert_eq!(per_second(u64::MAX, Duration::ZERO), u64::MAX);
        assert_eq!(permille(50_000, Duration::from_millis(100)), 500);
        assert_eq!(permille(500_000, Duration::from_millis(100)), 1000);
        assert_eq!(faded(100, Duration::from_secs(1), Duration::from_secs(4)), 75);
        assert_eq!(faded(100, Duration::from_secs(9), Duration::from_secs(4)), 0);
    }
}
