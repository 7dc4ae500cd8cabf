//! A point in time without a clock.

use std::ops::{Add, AddAssign};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point in time: how long after an origin that the caller chose. Moments of different origins
/// must not be mixed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Moment(pub Duration);

impl Moment {
    /// The origin itself.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// So many milliseconds after the origin.
    #[inline]
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// So many seconds after the origin.
    #[inline]
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// This much earlier; the origin when that lies before it.
    #[inline]
    #[must_use]
    pub const fn earlier(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }

    /// The time that has passed since `earlier`; zero when that is later.
    #[inline]
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    /// This much later; the last moment when that does not fit.
    #[inline]
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

impl AddAssign<Duration> for Moment {
    #[inline]
    fn add_assign(&mut self, span: Duration) {
        *self = *self + span;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_wraps() {
        assert_eq!(Moment::ZERO.earlier(Duration::from_secs(1)), Moment::ZERO);
        assert_eq!(Moment::ZERO.since(Moment::from_secs(1)), Duration::ZERO);
        assert_eq!(Moment(Duration::MAX) + Duration::from_secs(1), Moment(Duration::MAX));
    }

    proptest! {
        #[test]
        fn since_undoes_add(at in 0u64..u64::MAX / 2, span in 0u64..u64::MAX / 2) {
            let (at, span) = (Moment::from_millis(at), Duration::from_millis(span));
            prop_assert_eq!((at + span).since(at), span);
            prop_assert!(at + span >= at);
        }
    }
}
