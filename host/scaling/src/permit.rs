//! The request machine towards the scheduler: at most one request in flight.
//!
//! ```text
//!   idle --want != permit, or statement due--> asking --answer--> idle (permit adopted)
//!                                                 |----failed---> pause --> idle
//! ```
//! A denied wish is repeated after a pause; meanwhile what is held is still stated, and what is gone is
//! still returned. A wish to grow that failed is repeated soon, everything else after a longer pause.

use guest_units::{Moment, Size};

use crate::action::{Action, Why};
use crate::policy::Retries;

#[derive(Debug, Clone, Copy)]
struct Asking {
    generation: u64,
    want: Size,
}

/// The sizes that a request is made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) goal: Size,
    /// What the VM has or may get by what was already written.
    pub(crate) held: Size,
}

/// How an answer was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Stale,
    /// Less than the VM has, or more than was asked for: not adopted.
    Invalid,
    Granted,
    Partial,
    Denied,
}

/// What the scheduler allows, and the request in flight.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Permit {
    size: Option<Size>,
    /// Generation of the answer that `size` came with.
    answered: Option<u64>,
    asking: Option<Asking>,
    /// Growth is not asked for before this.
    grow_not_before: Option<Moment>,
    /// Nothing else is asked before this.
    not_before: Option<Moment>,
    /// Failures in a row.
    failures: u32,
    /// `None`: state at once.
    statement_at: Option<Moment>,
    /// The answer's approval must still be written.
    unwritten: bool,
    /// Newest request whose approval may have been issued without arriving here: a later one must supersede it
    /// in the object. At first whatever a predecessor asked.
    lost: u64,
    /// Newest answer whose approval was written.
    written: Option<u64>,
}

impl Permit {
    pub(crate) fn size(&self) -> Option<Size> {
        self.size
    }

    /// The scheduler has answered since this brain was made.
    pub(crate) fn answered(&self) -> bool {
        self.answered.is_some()
    }

    /// The answer that `size` came with.
    pub(crate) fn generation(&self) -> Option<u64> {
        self.answered
    }

    /// What a patch may use now: a request that gives something back binds already.
    pub(crate) fn usable(&self) -> Option<Size> {
        let size = self.size?;
        Some(self.asking.map_or(size, |asking| size.min(asking.want)))
    }

    /// The answer whose approval must be written with the next patch.
    pub(crate) fn unwritten(&self) -> Option<u64> {
        self.answered.filter(|_| self.unwritten)
    }

    /// Until the first answer the permit is what the object shows.
    pub(crate) fn seen(&mut self, approved: Option<Size>) {
        if self.answered.is_none() {
            self.size = approved;
        }
    }

    pub(crate) fn started(&mut self, generation: u64, want: Size, now: Moment, retries: &Retries) {
        self.asking = Some(Asking { generation, want });
        self.statement_at = Some(now + retries.permit_every);
    }

    pub(crate) fn answer(
        &mut self,
        generation: u64,
        permit: Size,
        held: Size,
        approved: Option<Size>,
        (now, retries): (Moment, &Retries),
    ) -> Answer {
        let Some(asking) = self.asking.filter(|asking| asking.generation == generation) else {
            return Answer::Stale;
        };
        if !permit.fits_in(asking.want) || !held.fits_in(permit) {
            self.fail(generation, now, retries);
            return Answer::Invalid;
        }
        self.asking = None;
        let before = self.size.replace(permit);
        self.answered = Some(generation);
        self.not_before = None;
        self.failures = 0;
        self.unwritten |= self.written <= Some(self.lost) || approved != Some(permit);
        if permit == asking.want {
            self.grow_not_before = None;
            return Answer::Granted;
        }
        self.grow_not_before = Some(now + retries.permit_denied);
        if before.is_some_and(|before| permit.fits_in(before)) {
            Answer::Denied
        } else {
            Answer::Partial
        }
    }

    /// Whether the failure belongs to the request in flight.
    pub(crate) fn failed(&mut self, generation: u64, now: Moment, retries: &Retries) -> bool {
        if self.asking.is_none_or(|asking| asking.generation != generation) {
            return false;
        }
        self.fail(generation, now, retries);
        true
    }

    fn fail(&mut self, generation: u64, now: Moment, retries: &Retries) {
        // The scheduler may have taken what was given back, and nobody has heard of it: it is not relied on any more.
        if let Some(asking) = self.asking.take() {
            self.size = self.size.map(|size| size.min(asking.want));
        }
        self.lost = generation;
        // Whatever was stated was not heard: it is due again.
        self.statement_at = None;
        self.not_before = Some(now + retries.permit_failed);
        let doubled = retries.growth_failed.saturating_mul(1 << self.failures.min(16));
        let pause = doubled.min(retries.growth_failed_longest);
        self.grow_not_before = self.grow_not_before.max(Some(now + pause));
        self.failures = self.failures.saturating_add(1);
    }

    /// The approval of this answer is in the object.
    pub(crate) fn written(&mut self, generation: u64) {
        if self.answered == Some(generation) {
            self.unwritten = false;
            self.written = Some(generation);
        }
    }

    /// The request to start now, if any. `gone`: what is above `held` is really gone.
    pub(crate) fn next(
        &self,
        generation: u64,
        Wanted { goal, held }: Wanted,
        gone: bool,
        now: Moment,
    ) -> Option<(Action, Why)> {
        let passed = |at: Option<Moment>| at.is_none_or(|at| at <= now);
        if self.asking.is_some() {
            return None;
        }
        let may_grow = passed(self.grow_not_before);
        let full = goal.max(held);
        let ask = |want, why| {
            Some((Action::AskPermit { generation, want, least: held, current: held }, why))
        };
        let permit = self.size.unwrap_or(held);
        if may_grow && !full.fits_in(permit) {
            return ask(full, Why::Grow);
        }
        if !passed(self.not_before) {
            return None;
        }
        let kept = full.min(permit).max(held);
        if gone && self.answered() && kept != permit {
            return ask(kept, Why::Return);
        }
        if passed(self.statement_at) {
            let want = if may_grow { full } else { kept };
            return ask(want, Why::Statement);
        }
        None
    }

    pub(crate) fn wakes(&self) -> [Option<Moment>; 3] {
        [self.grow_not_before, self.not_before, self.statement_at]
    }
}
