//! What the runner says: observations and the ends of orders.

use guest_units::{Moment, Size};

use crate::action::Notice;
use crate::event::{Ending, Plugged};
use crate::vm::{Base, Vm};

/// What the runner says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Runner {
    /// Counts its changes.
    pub(crate) revision: u64,
    pub(crate) plugged: Plugged,
    pub(crate) guest: bool,
}

impl Vm {
    /// The first order that may still come: the oldest that is waited for, else the next one. Earlier ones are answered or
    /// given up.
    #[must_use]
    pub fn first_order(&self, now: Moment) -> u64 {
        self.awaited(now).unwrap_or(self.generation.saturating_add(1))
    }

    /// The oldest order that is still waited for.
    pub(crate) fn awaited(&self, now: Moment) -> Option<u64> {
        [&self.cpu, &self.memory].into_iter().filter_map(|resource| resource.awaited(now)).min()
    }

    pub(crate) fn runner_observed(&mut self, runner: Runner, first: u64, busy: bool) {
        if self.runner_says(runner) && !busy {
            self.fenced = true;
            self.cpu.idle(first);
            self.memory.idle(first);
        }
    }

    /// Says whether this was news: answers of the runner may overtake each other on their way.
    fn runner_says(&mut self, runner: Runner) -> bool {
        let Runner { revision, plugged, .. } = runner;
        let old = self.runner.is_some_and(|known| revision < known.revision);
        let live = matches!(self.base, Base::Pending | Base::Running);
        if live && !old {
            self.runner = Some(runner);
            self.size = Some(Size { cpu: plugged.cpu, memory: plugged.memory });
        }
        live && !old
    }

    pub(crate) fn order_ended(
        &mut self,
        generation: u64,
        runner: Runner,
        ending: &Ending,
        now: Moment,
    ) {
        let (cpu_goal, memory_goal) = self.goals();
        let (plugged, before) = (runner.plugged, self.size);
        let known = self.cpu.ended(generation, u64::from(plugged.cpu.0), ending, cpu_goal, now)
            || self.memory.ended(generation, plugged.memory.0, ending, memory_goal, now);
        if !known {
            return;
        }
        if let Ending::Stale { newest } = ending {
            self.generation = self.generation.max(*newest);
        }
        self.runner_says(runner);
        if let (Some(from), Some(to)) = (before, self.size)
            && from != to
        {
            self.notice(Notice::Scaled { from, to });
        }
        match ending {
            Ending::Vetoed { reason, .. } => self.notice(Notice::ShrinkVetoed(reason.clone())),
            Ending::Partial(reason) => self.notice(Notice::Partial(reason.clone())),
            Ending::Done | Ending::Stale { .. } | Ending::Failed(_) => {}
        }
    }
}
