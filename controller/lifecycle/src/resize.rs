//! One resource of one VM: which total to order next, and what to make of the answer.
//!
//! CPU (milli-vCPU) and memory (bytes) are two of these, independent of each other.

use std::time::Duration;

use guest_units::Moment;

use crate::backoff::Backoff;
use crate::event::Ending;

/// An order without an answer after this long counts as lost. The runner answers within 10 s.
const ORDER_DEADLINE: Duration = Duration::from_secs(15);

/// A shrink that was vetoed or only partly done is tried again after 5 s, then less often.
const SHRINK_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// Any other failure is tried again soon.
const FAILURE_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Why the resource is not as wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The guest refused to give back so much.
    ShrinkVetoed(String),
    /// The guest gave back only a part.
    PartialUnplug(String),
    /// Only a part could be added.
    PartialPlug(String),
    /// The order was not carried out.
    OrderFailed(String),
}

/// An order on its way.
#[derive(Debug, Clone)]
struct Flight {
    generation: u64,
    from: u64,
    to: u64,
    deadline: Moment,
}

/// Orders that got no answer, or none that says how they end.
#[derive(Debug, Clone, Copy)]
struct Lost {
    /// The largest of their totals.
    to: u64,
    /// The newest of them.
    generation: u64,
}

/// The bounds within which a total is chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) min: u64,
    pub(crate) max: u64,
    pub(crate) wanted: u64,
    /// `None`: nothing is approved.
    pub(crate) approved: Option<u64>,
    /// Totals are multiples of this above `min`.
    pub(crate) step: u64,
}

impl Bounds {
    fn wanted(self) -> u64 {
        self.wanted.clamp(self.min, self.max)
    }

    /// What the VM may have without taking anything that is not promised to it. The minimum is backed since the
    /// pod was made.
    fn backed(self) -> u64 {
        self.approved.unwrap_or(0).max(self.min)
    }

    /// The total to reach from `plugged`.
    pub(crate) fn goal(self, plugged: u64) -> u64 {
        let wanted = self.wanted();
        if wanted > plugged {
            // The gate. Never below what is plugged: a missing approval must not shrink a VM.
            wanted.min(self.backed()).max(plugged)
        } else {
            wanted
        }
    }
}

/// What to do about a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// An order is in flight until then at the latest.
    Busy { until: Moment },
    /// As wanted.
    Settled,
    /// More is wanted than approved, and all that is approved is plugged.
    WaitsForApproval,
    /// An order without an answer may still run, and after it this total might be a growth that is not approved.
    /// A look at the runner will tell.
    Uncertain,
    /// After a setback; try again then.
    Pausing { until: Moment },
    /// Order this total.
    Order { total: u64 },
}

/// The state of one resource.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resource {
    flight: Option<Flight>,
    lost: Option<Lost>,
    /// The goal of the last setback: a new goal does not wait for the old one's pause.
    setback_goal: Option<u64>,
    /// While the pause lasts, the guest is not asked to go below this.
    floor: Option<u64>,
    pause: Backoff,
    problem: Option<Problem>,
}

impl Resource {
    pub(crate) fn decide(&self, plugged: u64, bounds: Bounds, now: Moment) -> Decision {
        if let Some(flight) = self.flight(now) {
            // A growth that nobody wants any more: the runner drops it for a newer order. How far it has come is not
            // known, so only the wish counts, and only if it is backed.
            let wish = bounds.wanted();
            let overtakes = flight.to > flight.from && wish < flight.to;
            let waits = self.pause.pending(now).is_some() || wish > bounds.backed();
            return if overtakes && !waits {
                Decision::Order { total: wish }
            } else {
                Decision::Busy { until: flight.deadline }
            };
        }
        let goal = bounds.goal(plugged);
        if goal == plugged {
            let all = plugged >= bounds.wanted();
            return if all { Decision::Settled } else { Decision::WaitsForApproval };
        }
        let pausing = self.pause.pending(now).filter(|_| self.setback_goal == Some(goal));
        let total = match (pausing, self.floor) {
            (Some(until), Some(floor)) => {
                let floor = round_up(floor, bounds.min, bounds.step).max(goal);
                if floor >= plugged {
                    return Decision::Pausing { until };
                }
                floor
            }
            (Some(until), None) => return Decision::Pausing { until },
            (None, _) => goal,
        };
        if self.lost.is_some() && total > bounds.backed() {
            Decision::Uncertain
        } else {
            Decision::Order { total }
        }
    }

    pub(crate) fn started(&mut self, generation: u64, from: u64, to: u64, now: Moment) {
        // What is overtaken may have come further than anybody has seen: to take some of it back is a shrink.
        let from = self.flight(now).map_or(from, |overtaken| overtaken.to.max(from));
        self.give_up();
        self.flight = Some(Flight { generation, from, to, deadline: now + ORDER_DEADLINE });
    }

    /// Nothing more is heard of the order in flight, but it may still run.
    fn give_up(&mut self) {
        let Some(Flight { to, generation, .. }) = self.flight.take() else { return };
        let before = self.lost.map_or(to, |lost| lost.to);
        self.lost = Some(Lost { to: before.max(to), generation });
    }

    /// The runner was seen idle after it had refused all orders before `first`: none of these has any effect any more.
    pub(crate) fn idle(&mut self, first: u64) {
        self.lost.take_if(|lost| lost.generation < first);
        self.flight.take_if(|flight| flight.generation < first);
    }

    /// The order that is still waited for.
    pub(crate) fn awaited(&self, now: Moment) -> Option<u64> {
        self.flight(now).map(|flight| flight.generation)
    }

    /// Whether an order of a larger total may be under way.
    pub(crate) fn may_exceed(&self, size: u64) -> bool {
        let flight = self.flight.as_ref().map(|flight| flight.to);
        let lost = self.lost.map(|lost| lost.to);
        flight.max(lost).is_some_and(|to| to > size)
    }

    /// An answer. Returns false, and changes nothing, if it is not the answer to the order in flight.
    pub(crate) fn ended(
        &mut self,
        generation: u64,
        reached: u64,
        ending: &Ending,
        goal: u64,
        now: Moment,
    ) -> bool {
        let Some(flight) = self.flight.take_if(|flight| flight.generation == generation) else {
            return false;
        };
        let shrink = flight.to < flight.from;
        if matches!(ending, Ending::Done | Ending::Partial(_) | Ending::Vetoed { .. }) {
            self.lost = None; // it had its turn after all earlier ones
        }
        match ending {
            Ending::Done if reached == flight.to => {
                // The veto of a larger step stands until its pause is over.
                if self.pause.pending(now).is_none() || flight.to == goal {
                    *self = Self::default();
                }
            }
            Ending::Done => {
                self.setback(goal, shrink, now);
                self.problem =
                    Some(partial(shrink, "the hypervisor shows another size than ordered"));
            }
            Ending::Partial(reason) => {
                self.setback(goal, shrink, now);
                self.problem = Some(partial(shrink, reason));
            }
            Ending::Vetoed { least, reason } => {
                self.setback(goal, true, now);
                // A floor that was vetoed itself must rise, or it would be ordered again at once.
                self.floor = Some((*least).max(flight.to.saturating_add(1)));
                self.problem = Some(Problem::ShrinkVetoed(reason.clone()));
            }
            Ending::Stale { .. } => {}
            Ending::Failed(reason) => self.failed(goal, reason, now),
        }
        true
    }

    /// The order in flight got no answer that says how it ends. Returns false if it is another one.
    pub(crate) fn lost(&mut self, generation: u64, reason: &str, goal: u64, now: Moment) -> bool {
        let known = self.flight.as_ref().is_some_and(|flight| flight.generation == generation);
        if known {
            self.give_up();
            self.failed(goal, reason, now);
        }
        known
    }

    /// Another pod: nothing of the old one counts.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn problem(&self) -> Option<&Problem> {
        self.problem.as_ref()
    }

    fn flight(&self, now: Moment) -> Option<&Flight> {
        self.flight.as_ref().filter(|flight| now < flight.deadline)
    }

    fn failed(&mut self, goal: u64, reason: &str, now: Moment) {
        self.begin_setback(goal);
        self.pause.fail(now, FAILURE_PAUSE.0, FAILURE_PAUSE.1);
        self.problem = Some(Problem::OrderFailed(reason.to_owned()));
    }

    fn setback(&mut self, goal: u64, shrink: bool, now: Moment) {
        self.begin_setback(goal);
        let (first, longest) = if shrink { SHRINK_PAUSE } else { FAILURE_PAUSE };
        self.pause.fail(now, first, longest);
    }

    fn begin_setback(&mut self, goal: u64) {
        if self.setback_goal != Some(goal) {
            self.pause.reset();
        }
        self.setback_goal = Some(goal);
        self.floor = None;
    }
}

fn partial(shrink: bool, reason: &str) -> Problem {
    if shrink {
        Problem::PartialUnplug(reason.to_owned())
    } else {
        Problem::PartialPlug(reason.to_owned())
    }
}

/// The smallest `min + k * step` that is not below `value`.
fn round_up(value: u64, min: u64, step: u64) -> u64 {
    let step = step.max(1);
    let above = value.saturating_sub(min);
    min.saturating_add(above.div_ceil(step).saturating_mul(step))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    fn bounds(wanted: u64, approved: Option<u64>) -> Bounds {
        Bounds { min: GIB, max: 8 * GIB, wanted, approved, step: GIB }
    }

    #[test]
    fn decisions() {
        let order = |total| Decision::Order { total };
        for (name, plugged, wanted, approved, expected) in [
            ("as wanted", 2, 2, Some(2), Decision::Settled),
            ("growth is limited by the approval", 1, 4, Some(3), order(3 * GIB)),
            ("growth is limited by the wish", 1, 2, Some(8), order(2 * GIB)),
            ("growth is limited by the maximum", 1, 9, Some(9), order(8 * GIB)),
            ("no approval, no growth", 1, 4, None, Decision::WaitsForApproval),
            ("the minimum needs no approval", 0, 4, None, order(GIB)),
            (
                "an approval below what is plugged does not shrink",
                3,
                4,
                Some(2),
                Decision::WaitsForApproval,
            ),
            ("shrinking needs no approval", 3, 2, None, order(2 * GIB)),
            ("never below the minimum", 3, 0, None, order(GIB)),
            ("above the maximum it shrinks", 9, 9, Some(9), order(8 * GIB)),
        ] {
            let bounds = bounds(wanted * GIB, approved.map(|gib: u64| gib * GIB));
            let decided = Resource::default().decide(plugged * GIB, bounds, at(0));
            assert_eq!(decided, expected, "{name}");
        }
    }

    #[test]
    fn a_smaller_goal_overtakes_a_growth_once() {
        let mut memory = Resource::default();
        memory.started(1, GIB, 8 * GIB, at(0));
        let smaller = bounds(2 * GIB, Some(2 * GIB));
        assert_eq!(memory.decide(3 * GIB, smaller, at(1)), Decision::Order { total: 2 * GIB });
        memory.started(2, 3 * GIB, 2 * GIB, at(1));
        assert_eq!(memory.decide(3 * GIB, smaller, at(1)), Decision::Busy { until: at(16) });
        assert!(memory.may_exceed(2 * GIB), "the first one may still run");
        assert!(!memory.ended(1, 3 * GIB, &Ending::Partial("overtaken".into()), 2 * GIB, at(2)));
        assert!(memory.ended(2, 2 * GIB, &Ending::Done, 2 * GIB, at(3)));
        assert!(!memory.may_exceed(2 * GIB));

        let mut memory = Resource::default();
        memory.started(1, GIB, 4 * GIB, at(0));
        let larger = bounds(8 * GIB, Some(8 * GIB));
        assert_eq!(memory.decide(3 * GIB, larger, at(1)), Decision::Busy { until: at(15) });
        let unapproved = bounds(3 * GIB, Some(2 * GIB));
        assert!(matches!(memory.decide(3 * GIB, unapproved, at(1)), Decision::Busy { .. }));
    }

    #[test]
    fn only_a_smaller_wish_overtakes_and_then_it_is_a_shrink() {
        let mut memory = Resource::default();
        memory.started(1, GIB, 8 * GIB, at(0));
        // Nothing has been seen of the growth yet, and the approval is gone.
        for (wanted, approved) in [(8, None), (4, None), (4, Some(2))] {
            let bounds = bounds(wanted * GIB, approved.map(|gib: u64| gib * GIB));
            let decided = memory.decide(GIB, bounds, at(1));
            assert!(matches!(decided, Decision::Busy { .. }), "{wanted} {approved:?}: {decided:?}");
        }
        let smaller = bounds(4 * GIB, Some(8 * GIB));
        assert_eq!(memory.decide(GIB, smaller, at(1)), Decision::Order { total: 4 * GIB });
        memory.started(2, GIB, 4 * GIB, at(1));
        assert!(memory.ended(2, 6 * GIB, &Ending::Partial("stuck".into()), 4 * GIB, at(2)));
        assert!(matches!(memory.problem(), Some(Problem::PartialUnplug(_))));
        assert_eq!(memory.decide(6 * GIB, smaller, at(2)), Decision::Pausing { until: at(7) });
    }

    #[test]
    fn a_veto_is_met_as_far_as_the_guest_goes_then_retried_later() {
        let mut memory = Resource::default();
        let bounds = bounds(GIB, None);
        memory.started(1, 6 * GIB, GIB, at(0));
        let veto = |least| Ending::Vetoed { least, reason: "cache".into() };
        assert!(memory.ended(1, 6 * GIB, &veto(3 * GIB + 5), GIB, at(1)));
        assert_eq!(memory.decide(6 * GIB, bounds, at(1)), Decision::Order { total: 4 * GIB });
        memory.started(2, 6 * GIB, 4 * GIB, at(1));
        assert!(memory.ended(2, 4 * GIB, &Ending::Done, GIB, at(2)));
        assert_eq!(memory.decide(4 * GIB, bounds, at(2)), Decision::Pausing { until: at(6) });
        assert!(matches!(memory.problem(), Some(Problem::ShrinkVetoed(_))));
        assert_eq!(memory.decide(4 * GIB, bounds, at(6)), Decision::Order { total: GIB });
    }

    #[test]
    fn a_guest_that_vetoes_its_own_floor_is_not_asked_in_a_loop() {
        let mut memory = Resource::default();
        let bounds = bounds(GIB, None);
        let (mut total, mut orders) = (GIB, 0);
        loop {
            orders += 1;
            memory.started(orders, 6 * GIB, total, at(0));
            let veto = Ending::Vetoed { least: GIB, reason: String::new() };
            assert!(memory.ended(orders, 6 * GIB, &veto, GIB, at(0)));
            match memory.decide(6 * GIB, bounds, at(0)) {
                Decision::Order { total: next } => total = next,
                other => break assert!(matches!(other, Decision::Pausing { .. })),
            }
            assert!(orders < 6);
        }
    }

    #[test]
    fn a_new_goal_does_not_wait_for_the_old_ones_pause() {
        let mut memory = Resource::default();
        memory.started(1, 4 * GIB, GIB, at(0));
        assert!(memory.ended(1, 3 * GIB, &Ending::Partial("stuck".into()), GIB, at(1)));
        assert!(matches!(
            memory.decide(3 * GIB, bounds(GIB, None), at(1)),
            Decision::Pausing { .. }
        ));
        let grown = memory.decide(3 * GIB, bounds(4 * GIB, Some(4 * GIB)), at(1));
        assert_eq!(grown, Decision::Order { total: 4 * GIB });
    }

    #[test]
    fn a_lost_order_does_not_hold_up_the_next_and_its_late_answer_is_ignored() {
        let mut memory = Resource::default();
        let bounds = bounds(2 * GIB, Some(2 * GIB));
        memory.started(1, GIB, 2 * GIB, at(0));
        assert!(matches!(memory.decide(GIB, bounds, at(14)), Decision::Busy { .. }));
        assert_eq!(memory.decide(GIB, bounds, at(15)), Decision::Order { total: 2 * GIB });
        memory.started(2, GIB, 2 * GIB, at(15));
        assert!(!memory.ended(1, GIB, &Ending::Failed("late".into()), 2 * GIB, at(16)));
        assert!(!memory.lost(1, "late", 2 * GIB, at(16)));
        assert_eq!(memory.problem(), None);
    }

    #[test]
    fn totals_stay_on_the_grid() {
        assert_eq!(round_up(0, 10, 4), 10);
        assert_eq!(round_up(10, 10, 4), 10);
        assert_eq!(round_up(11, 10, 4), 14);
        assert_eq!(round_up(u64::MAX, 10, 4), u64::MAX);
        assert_eq!(round_up(11, 10, 0), 11);
    }
}
