//! Pauses that double up to a limit.

use std::time::Duration;

use guest_units::Moment;

/// Counts failures in a row and says when to try again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backoff {
    failures: u32,
    until: Option<Moment>,
}

impl Backoff {
    /// Another failure: pause for `first`, doubled for each failure before, at most `longest`.
    pub(crate) fn fail(&mut self, now: Moment, first: Duration, longest: Duration) {
        let pause = first.saturating_mul(2u32.saturating_pow(self.failures.min(16))).min(longest);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + pause);
    }

    /// Success: the next failure pauses shortly again.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// The end of the pause, if it is still ahead.
    pub(crate) fn pending(&self, now: Moment) -> Option<Moment> {
        self.until.filter(|until| *until > now)
    }

    /// Failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_start_over() {
        let mut backoff = Backoff::default();
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(3));
        let mut pauses = Vec::new();
        for _ in 0..40 {
            let now = Moment(Duration::from_secs(100));
            backoff.fail(now, first, longest);
            pauses.push(backoff.pending(now).unwrap().0.as_secs() - 100);
        }
        assert_eq!(pauses[..4], [1, 2, 3, 3]);
        assert_eq!(pauses[39], 3);
        backoff.reset();
        assert_eq!(backoff.pending(Moment(Duration::ZERO)), None);
        assert_eq!(backoff.failures(), 0);
    }
}
