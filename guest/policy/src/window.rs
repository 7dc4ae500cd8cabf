//! The last values of something, and what changed over a span of time.

use std::collections::VecDeque;
use std::time::Duration;

use guest_units::Moment;

/// Values that are at least `spacing` apart, at most `capacity` of them.
#[derive(Debug, Clone)]
pub(crate) struct Window<T> {
    values: VecDeque<(Moment, T)>,
    capacity: usize,
    spacing: Duration,
}

impl<T: Copy> Window<T> {
    pub(crate) fn new(capacity: usize, spacing: Duration) -> Self {
        Self { values: VecDeque::with_capacity(capacity), capacity, spacing }
    }

    /// Keeps the value, unless the last one is too close.
    pub(crate) fn push(&mut self, now: Moment, value: T) {
        if self.values.back().is_some_and(|(at, _)| now.since(*at) < self.spacing) {
            return;
        }
        if self.values.len() == self.capacity {
            self.values.pop_front();
        }
        self.values.push_back((now, value));
    }

    /// The newest value that is at least `span` old; without one the oldest. With its age, never 0.
    pub(crate) fn before(&self, now: Moment, span: Duration) -> Option<(Duration, T)> {
        let old_enough = self.values.partition_point(|(at, _)| now.since(*at) >= span);
        let (at, value) = self.values.get(old_enough.saturating_sub(1))?;
        let age = now.since(*at);
        (!age.is_zero()).then_some((age, *value))
    }

    /// All values, oldest first.
    pub(crate) fn values(&self) -> impl Iterator<Item = T> {
        self.values.iter().map(|(_, value)| *value)
    }

    pub(crate) fn clear(&mut self) {
        self.values.clear();
    }
}

/// A difference as a rate per second.
pub(crate) fn per_second(difference: u64, span: Duration) -> u64 {
    let micros = span.as_micros().max(1);
    // Nearly always narrow enough for the machine's own division.
    if let (Some(wide), Ok(micros)) = (difference.checked_mul(1_000_000), u64::try_from(micros)) {
        return wide / micros;
    }
    u64::try_from(u128::from(difference) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

/// Microseconds of a span as thousandths of it, at most all of it.
pub(crate) fn permille(usec: u64, span: Duration) -> u16 {
    let share = per_second(usec, span) / 1000;
    u16::try_from(share.min(1000)).unwrap_or(1000)
}

/// What is left of a value that fades linearly to nothing over `life`.
pub(crate) fn faded(value: u64, age: Duration, life: Duration) -> u64 {
    let left = life.saturating_sub(age).as_micros();
    let share = u128::from(value) * left / life.as_micros().max(1);
    u64::try_from(share).unwrap_or(u64::MAX)
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
