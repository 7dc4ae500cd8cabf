//! One term of leadership: its epoch, and how long it lasts for certain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shared by all who act in it.
#[derive(Debug, Clone)]
pub(crate) struct Term {
    /// The first half of every order's generation.
    pub(crate) epoch: u64,
    until: Arc<Mutex<Instant>>,
    /// The newest epoch that a runner has told of.
    seen: Arc<AtomicU64>,
}

impl Term {
    /// A term that was asked for at `asked` and lasts for `length` from then on, if it is not renewed.
    pub(crate) fn new(epoch: u64, asked: Instant, length: Duration) -> Self {
        Self { epoch, until: Arc::new(Mutex::new(asked + length)), seen: Arc::default() }
    }

    /// The renewal that was asked for at `asked` was answered.
    pub(crate) fn renewed(&self, asked: Instant, length: Duration) {
        *self.until() = asked + length;
    }

    /// Whether nobody else can lead yet. A process that was stopped for a while learns it here first.
    pub(crate) fn holds(&self) -> bool {
        self.left() > Duration::ZERO
    }

    /// How long it lasts without another renewal.
    pub(crate) fn left(&self) -> Duration {
        self.until().saturating_duration_since(Instant::now())
    }

    /// It is over now: nothing more may be begun.
    pub(crate) fn end(&self) {
        *self.until() = Instant::now();
    }

    /// A runner obeys this epoch. One that no Lease could count to is ignored.
    pub(crate) fn saw(&self, epoch: u64) {
        if i32::try_from(epoch).is_ok_and(|epoch| epoch < i32::MAX) {
            self.seen.fetch_max(epoch, Ordering::Relaxed);
        }
    }

    /// The epoch that runners obey instead of this term's, if they do: the Lease was lost and counts again from an
    /// earlier number.
    pub(crate) fn outrun_by(&self) -> Option<u64> {
        Some(self.seen.load(Ordering::Relaxed)).filter(|seen| *seen > self.epoch)
    }

    fn until(&self) -> MutexGuard<'_, Instant> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_counts_from_the_question_and_ends_by_itself() {
        let minute = Duration::from_secs(60);
        let now = Instant::now();
        let term = Term::new(3, now - minute, Duration::from_secs(10));
        assert!(!term.holds(), "the answer took too long");
        term.clone().renewed(now, minute);
        assert!(term.holds() && term.left() <= minute);
        term.end();
        assert!(!term.holds());
    }

    #[test]
    fn a_newer_epoch_is_remembered() {
        let term = Term::new(3, Instant::now(), Duration::ZERO);
        term.saw(3);
        assert_eq!(term.outrun_by(), None);
        term.saw(9);
        term.saw(5);
        term.saw(u64::MAX);
        assert_eq!(term.clone().outrun_by(), Some(9));
    }
}
