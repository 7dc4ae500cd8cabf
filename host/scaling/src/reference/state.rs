//! What a VM's goal is made of, and the goal: computed when something changes, not when it is looked at.

use guest_units::{Moment, Size};

use super::cache::CacheWindows;
use super::config::ReferenceConfig;
use super::desired::{Denied, Desired, Requested};
use super::goal::{Goal, SystemMetrics, WorkingSet, goal_with, working_set};
use crate::event::{Limits, SystemSample};
use crate::policy::{Reference, Rules};

/// What was heard of one VM, and what follows from it.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    system: Option<SystemSample>,
    windows: Option<Box<CacheWindows>>,
    /// What the windows show, where there are any.
    looked_at: Option<Option<WorkingSet>>,
    goal: Goal,
    requested: Option<(Requested, Moment)>,
}

impl State {
    /// The guest measured. Kept under every policy, so that a change of the policy finds it.
    pub(crate) fn measured(&mut self, sample: Option<SystemSample>, rules: &Rules) {
        // A guest that stops to say it leaves what it said.
        if sample.is_some() && sample != self.system {
            self.system = sample;
            self.update(rules);
        }
    }

    /// The cache measured. Windows that do not count are not kept either.
    pub(crate) fn cached(&mut self, windows: Box<CacheWindows>, rules: &Rules) {
        if counts(rules).is_some() && self.windows.as_ref() != Some(&windows) {
            self.windows = Some(windows);
            self.changed(rules);
        }
    }

    /// Policy or numbers are other ones.
    pub(crate) fn changed(&mut self, rules: &Rules) {
        self.looked_at = None;
        match (counts(rules), &self.windows) {
            (None, _) => self.windows = None,
            (Some(_), None) => {}
            (Some(config), Some(windows)) => {
                self.looked_at = Some(windows.as_floats(|pages| working_set(config, pages)));
            }
        }
        self.update(rules);
    }

    /// The guest asked for more memory than it knew to have. CPU is never asked for: loads say it.
    pub(crate) fn asked(&mut self, want: Size, base: Size, rules: &Reference, now: Moment) {
        if want.memory > base.memory {
            let until = now + rules.requested_valid;
            let requested = Requested { base, cpu: false, memory: true };
            self.requested = Some((requested, until));
        }
    }

    /// What was said and asked for was so over a connection that is gone: whoever comes back may say less.
    pub(crate) fn lost(&mut self, rules: &Rules) {
        (self.requested, self.system, self.windows, self.looked_at) = (None, None, None, None);
        self.update(rules);
    }

    pub(crate) fn system(&self) -> Option<SystemSample> {
        self.system
    }

    pub(crate) fn goal(&self) -> Goal {
        self.goal
    }

    /// What was asked for, while that counts.
    pub(crate) fn requested(&self, now: Moment) -> Option<Requested> {
        self.requested.filter(|(_, until)| *until > now).map(|(requested, _)| requested)
    }

    pub(crate) fn wake(&self) -> Option<Moment> {
        self.requested.map(|(_, until)| until)
    }

    /// Everything that the size follows from.
    pub(crate) fn desired(
        &self,
        rules: &Reference,
        limits: &Limits,
        (current, denied): (Size, Option<Denied>),
        now: Moment,
    ) -> Desired {
        Desired {
            goal: self.goal,
            unit: rules.unit,
            current,
            min: limits.min,
            max: limits.max,
            requested: self.requested(now),
            denied,
        }
    }

    fn update(&mut self, rules: &Rules) {
        let Rules::Reference(Reference { config, unit, .. }) = rules else { return };
        let system = self.system.map(SystemMetrics::from);
        self.goal = goal_with(config, *unit, system.as_ref(), self.looked_at);
    }
}

/// The numbers, where the cache's windows count.
fn counts(rules: &Rules) -> Option<&ReferenceConfig> {
    match rules {
        Rules::Reference(reference) if reference.config.enable_lfc_metrics => {
            Some(&reference.config)
        }
        _ => None,
    }
}
