//! The goal of the policy `reference`: up at once, down by one compute unit for each agreement of the guest.

use std::fmt;

use guest_units::{Bytes, MilliCpu, Moment, Size};

use super::Scaler;
use super::judgement::{Judgement, Reasons};
use crate::event::Limits;
use crate::goal::round_up;
use crate::policy::Reference;
use crate::reference::{Denied, Desired, Goal};

/// What made a goal of the policy `reference` what it is. Its text leaves out what differs from one measurement to the
/// next, so that equal decisions are seen to be equal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Reason {
    goal: Goal,
    requested: bool,
    denied: bool,
    /// The bounds cut it.
    bounded: bool,
    /// The guest is not there to be asked.
    silent: bool,
    /// The rest follows after the guest has agreed to this.
    pub(super) stepped: bool,
}

impl Reason {
    /// What the metrics alone ask for, in compute units.
    pub(super) fn units(&self) -> u32 {
        self.goal.units
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { goal, requested, denied, bounded, silent, stepped } = *self;
        let parts = goal.components;
        let cache = parts.cache.unwrap_or_default();
        let largest = if parts.cpu.round() >= parts.memory.max(cache) {
            "cpu"
        } else if parts.memory >= cache {
            "memory"
        } else {
            "cache"
        };
        write!(f, "goal {} by {largest}", goal.units)?;
        for (applies, text) in [
            (!goal.complete, "metrics missing"),
            (requested, "asked for"),
            (denied, "denied lately"),
            (bounded, "bounds"),
            (silent, "silent"),
            (stepped, "one unit down"),
        ] {
            if applies {
                write!(f, ", {text}")?;
            }
        }
        Ok(())
    }
}

impl Scaler {
    /// The denial that still counts. It holds what there is, and brings back nothing that went since.
    pub(super) fn denied(&self, base: Size, now: Moment) -> Option<Denied> {
        let Denied { target, current } = self.guest.denied(now)?;
        Some(Denied { target, current: current.min(base) })
    }

    pub(super) fn judge_reference(
        &self,
        rules: &Reference,
        (base, held): (Size, Size),
        now: Moment,
    ) -> Judgement {
        let denied = self.denied(base, now);
        let wanted = self.reference.desired(rules, &self.limits, (base, denied), now);
        let unbounded = rules.unit.times(wanted.goal.units);
        // A denial holds, but takes nothing: in whole units it would lead above what the VM has wherever CPU and memory are
        // not the same number of them, only to be denied there again and again.
        let without = Desired { denied: None, ..wanted }.size();
        let size = without.max(wanted.size().min(base));
        let desired = on_slots(size, denied, &self.limits);
        let desired = match self.guest.veto(now) {
            Some(least) => desired.max(least.min(base)),
            None => desired,
        };
        let live = self.guest.live(now, rules.silence);
        let plugged = self.vm.view().map_or(held, |view| view.plugged);
        let may = live && !self.vm.shrinks(now, &self.policy.retries);
        let cpu = down(u64::from(desired.cpu.0), u64::from(base.cpu.0), may, || {
            u64::from(plugged.cpu.saturating_sub(rules.unit.cpu).0)
        });
        let step = rules.unit.memory.max(self.limits.slot);
        let memory = down(desired.memory.0, base.memory.0, may, || {
            round_up(plugged.memory.saturating_sub(step).0, self.limits.slot.0)
        });
        let goal = super::judgement::size(cpu, memory);
        let shrinks = !base.fits_in(desired);
        let reason = Reason {
            goal: wanted.goal,
            requested: wanted.requested.is_some(),
            denied: denied.is_some(),
            bounded: unbounded.max(self.limits.min).min(self.limits.max) != unbounded,
            silent: shrinks && !live,
            stepped: live && goal != desired,
        };
        Judgement { base, held, goal, desired, reasons: Reasons::Reference(reason) }
    }
}

/// The goal of one resource: not below the present size without a guest to ask or while it still shrinks, and then by one step.
fn down(desired: u64, base: u64, may: bool, step: impl FnOnce() -> u64) -> u64 {
    if desired >= base {
        desired
    } else if may {
        desired.max(step()).min(base)
    } else {
        base
    }
}

/// Memory comes in slots. Only a denial leads above the maximum.
fn on_slots(size: Size, denied: Option<Denied>, limits: &Limits) -> Size {
    let memory = Bytes(round_up(size.memory.0, limits.slot.0));
    let cap = if denied.is_some() { size.memory.max(limits.max.memory) } else { limits.max.memory };
    Size { cpu: MilliCpu(size.cpu.0), memory: memory.min(cap) }
}
