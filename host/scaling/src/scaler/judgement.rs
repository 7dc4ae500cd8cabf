//! The state of both resources at one moment, from which every action follows.

use std::fmt;

use guest_units::{Bytes, MilliCpu, Moment, Size};

use super::Scaler;
use super::reference::Reason;
use crate::goal::Rule;
use crate::policy::Rules;

/// The state of both resources at one moment, from which every action follows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judgement {
    /// The size that counts as the present one.
    pub(super) base: Size,
    /// What the VM has or may get.
    pub(super) held: Size,
    /// Where the next step leads.
    pub(super) goal: Size,
    /// Where all steps lead.
    pub(super) desired: Size,
    pub(super) reasons: Reasons,
}

/// What decided.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reasons {
    Headroom { cpu: Rule, memory: Rule },
    Reference(Reason),
}

impl fmt::Display for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Headroom { cpu, memory } => {
                write!(f, "cpu {}, memory {}", cpu.label(), memory.label())
            }
            Self::Reference(reason) => reason.fmt(f),
        }
    }
}

impl Scaler {
    /// What the VM has, or may get by what was already written: `max(plugged, min(spec, permit))` and the
    /// patch in flight.
    pub(super) fn held(&self) -> Option<Size> {
        let view = self.vm.view()?;
        let allowed = self.permit.size().map_or(view.plugged, |permit| view.spec.min(permit));
        let held = view.plugged.max(allowed);
        Some(self.vm.in_flight().map_or(held, |size| held.max(size)))
    }

    /// The size that counts as the present one: the spec, as far as permit or hypervisor back it.
    pub(super) fn base(&self) -> Option<Size> {
        let view = self.vm.view()?;
        if !self.permit.answered() {
            return Some(view.spec);
        }
        let backed = self.permit.size().map_or(view.plugged, |permit| view.plugged.max(permit));
        Some(view.spec.min(backed))
    }

    pub(super) fn judge(&self, now: Moment) -> Option<Judgement> {
        let sizes = (self.base()?, self.held()?);
        Some(match &self.policy.rules {
            Rules::Headroom(numbers) => self.judge_headroom(numbers, sizes, now),
            Rules::Reference(rules) => self.judge_reference(rules, sizes, now),
        })
    }
}

pub(super) fn size(cpu: u64, memory: u64) -> Size {
    Size { cpu: MilliCpu(u32::try_from(cpu).unwrap_or(u32::MAX)), memory: Bytes(memory) }
}
