//! The largest value of a sliding window, over a bounded number of entries.
//!
//! Growth follows the peak and shrinking never goes below it: so what triggered growth within the calm
//! spell can never be undone within it, and a constant demand never causes a reversal.

use std::collections::VecDeque;
use std::time::Duration;

use guest_units::Moment;

/// Largest value within the last `span`. Entries have strictly falling values: one entry is kept for each
/// distinct value at most, and values lie on a grid below the bounds' maximum.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peak {
    entries: VecDeque<(Moment, u64)>,
}

impl Peak {
    /// Records `value`; forgets what is older than `span`.
    pub(crate) fn push(&mut self, value: u64, now: Moment, span: Duration) {
        while self.entries.front().is_some_and(|(at, _)| *at + span <= now) {
            self.entries.pop_front();
        }
        while self.entries.back().is_some_and(|(_, older)| *older <= value) {
            self.entries.pop_back();
        }
        self.entries.push_back((now, value));
    }

    /// The largest value within `span` before `now`, and when it leaves the window.
    pub(crate) fn largest(&self, now: Moment, span: Duration) -> Option<(u64, Moment)> {
        self.entries.iter().map(|(at, value)| (*value, *at + span)).find(|(_, until)| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPAN: Duration = Duration::from_secs(10);

    fn second(second: u64) -> Moment {
        Moment(Duration::from_secs(second))
    }

    #[test]
    fn a_value_counts_until_the_span_is_over() {
        let mut peak = Peak::default();
        peak.push(5, second(0), SPAN);
        peak.push(3, second(4), SPAN);
        assert_eq!(peak.largest(second(9), SPAN), Some((5, second(10))));
        assert_eq!(peak.largest(second(10), SPAN), Some((3, second(14))));
        assert_eq!(peak.largest(second(14), SPAN), None);
    }

    proptest! {
        #[test]
        fn the_peak_is_what_a_full_list_would_say(
            values in prop::collection::vec((0u64..4, 0u64..50), 1..80),
        ) {
            let mut peak = Peak::default();
            let mut all = Vec::new();
            let mut clock = 0;
            for (pause, value) in values {
                clock += pause;
                peak.push(value, second(clock), SPAN);
                all.push((clock, value));
                let expected =
                    all.iter().filter(|(at, _)| at + 10 > clock).map(|(_, value)| *value).max();
                prop_assert_eq!(peak.largest(second(clock), SPAN).map(|(value, _)| value), expected);
                prop_assert!(peak.entries.len() <= 50);
            }
        }
    }
}
