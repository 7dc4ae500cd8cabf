//! The state of both resources at one moment, from which every action follows.

use guest_units::{Bytes, MilliCpu, Moment, Size};

use super::Scaler;
use crate::event::Limits;
use crate::goal::{Axis, Rule, Verdict, judge};

/// The state of both resources at one moment, from which every action follows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judgement {
    pub(super) base: Size,
    pub(super) held: Size,
    pub(super) goal: Size,
    pub(super) cpu: Rule,
    pub(super) memory: Rule,
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
        let (base, held) = (self.base()?, self.held()?);
        let numbers = &self.policy.headroom;
        let live = self.guest.live(now, numbers);
        let (cpu_settled, memory_settled) = self.vm.settled(now, numbers);
        let calm = |spell| self.guest.heard_since().is_some_and(|at| at + spell <= now);
        let veto = self.guest.veto(now);
        let Limits { min, max, slot } = self.limits;
        let cpu = judge(Axis {
            grid: u64::from(numbers.cpu_grid.0),
            base: u64::from(base.cpu.0),
            peak: self.cpu_peak.largest(now, numbers.cpu_calm).map(|(peak, _)| peak),
            veto: veto.map(|veto| u64::from(veto.cpu.0)),
            min: u64::from(min.cpu.0),
            max: u64::from(max.cpu.0),
            live,
            calm: calm(numbers.cpu_calm),
            settled: cpu_settled,
        });
        let memory = judge(Axis {
            grid: slot.0,
            base: base.memory.0,
            peak: self.memory_peak.largest(now, numbers.memory_calm).map(|(peak, _)| peak),
            veto: veto.map(|veto| veto.memory.0),
            min: min.memory.0,
            max: max.memory.0,
            live,
            calm: calm(numbers.memory_calm),
            settled: memory_settled,
        });
        Some(Judgement {
            base,
            held,
            goal: size_of(cpu, memory),
            cpu: cpu.rule,
            memory: memory.rule,
        })
    }
}

fn size_of(cpu: Verdict, memory: Verdict) -> Size {
    size(cpu.goal, memory.goal)
}

pub(super) fn size(cpu: u64, memory: u64) -> Size {
    Size { cpu: MilliCpu(u32::try_from(cpu).unwrap_or(u32::MAX)), memory: Bytes(memory) }
}
