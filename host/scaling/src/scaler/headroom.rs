//! The goal of the policy `headroom`: what was needed within the calm spell, judged for each resource.

use guest_units::{Moment, Size};

use super::Scaler;
use super::judgement::{Judgement, Reasons, size};
use crate::event::Limits;
use crate::goal::{Axis, judge, need, round_up};
use crate::policy::Headroom;

impl Scaler {
    /// A measured demand, with its reserve.
    pub(super) fn measured(&mut self, numbers: &Headroom, demand: Size, now: Moment) {
        let cpu = need(
            u64::from(demand.cpu.0),
            numbers.cpu_headroom_percent,
            u64::from(numbers.cpu_headroom_min.0),
            u64::from(numbers.cpu_grid.0),
        );
        let memory = need(
            demand.memory.0,
            numbers.memory_reserve_percent,
            numbers.memory_reserve_min.0,
            self.limits.slot.0,
        );
        self.needs(numbers, (cpu, memory), now);
    }

    /// An urgent wish brings its own reserve; it counts like a measured need for one calm spell.
    pub(super) fn urgent(&mut self, numbers: &Headroom, want: Size, now: Moment) {
        let cpu = round_up(u64::from(want.cpu.0), u64::from(numbers.cpu_grid.0));
        let memory = round_up(want.memory.0, self.limits.slot.0);
        self.needs(numbers, (cpu, memory), now);
    }

    /// Claims are bounded before they are kept, which also bounds the number of distinct values.
    fn needs(&mut self, numbers: &Headroom, (cpu, memory): (u64, u64), now: Moment) {
        let Limits { max, slot, .. } = self.limits;
        let cpu_cap = round_up(u64::from(max.cpu.0), u64::from(numbers.cpu_grid.0));
        let memory_cap = round_up(max.memory.0, slot.0);
        self.cpu_peak.push(cpu.min(cpu_cap), now, numbers.cpu_calm);
        self.memory_peak.push(memory.min(memory_cap), now, numbers.memory_calm);
    }

    pub(super) fn judge_headroom(
        &self,
        numbers: &Headroom,
        (base, held): (Size, Size),
        now: Moment,
    ) -> Judgement {
        let live = self.guest.live(now, numbers.silence);
        let (cpu_settled, memory_settled) = self.vm.settled(now, numbers.step_pause);
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
        let goal = size(cpu.goal, memory.goal);
        let reasons = Reasons::Headroom { cpu: cpu.rule, memory: memory.rule };
        Judgement { base, held, goal, desired: goal, reasons }
    }

    pub(super) fn headroom_wake(&self, numbers: &Headroom, now: Moment) -> Option<Moment> {
        let spell = |span| self.guest.heard_since().map(|at| at + span);
        [
            self.cpu_peak.largest(now, numbers.cpu_calm).map(|(_, until)| until),
            self.memory_peak.largest(now, numbers.memory_calm).map(|(_, until)| until),
            spell(numbers.cpu_calm),
            spell(numbers.memory_calm),
        ]
        .into_iter()
        .chain(self.vm.step_wakes(numbers.step_pause))
        .flatten()
        .filter(|at| *at > now)
        .min()
    }
}
