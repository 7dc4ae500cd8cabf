//! The operator and the hypervisor behind it: approvals obeyed, orders sent and carried out, what the status says.

use guest_units::Size;
use scheduler_ledger::{Amount, PodKind, RunnerFacts, Seal, VmFacts};

use super::{Run, Truth, name, vm_uid};
use crate::support::{cost, runner};

impl Run {
    /// What the object approves, judged by the operator.
    pub(super) fn approval(&mut self, vm: usize) -> Option<Seal> {
        let VmFacts { visible, obeyed, .. } = *self.object(vm);
        let truth = &mut self.truths[vm];
        let seal = visible.filter(|seal| Some(seal.place()) >= truth.gate.max(obeyed))?;
        truth.gate = Some(seal.place());
        Some(seal)
    }

    pub(crate) fn order(&mut self, vm: usize) {
        let Some(seal) = self.approval(vm) else { return };
        let facts = self.object(vm);
        let goal = facts.wanted.min(seal.size).max(facts.min);
        let truth = &mut self.truths[vm];
        if truth.real.is_some() && truth.flights.len() < 3 {
            // Nobody orders before having looked.
            if truth.own_flights {
                truth.flights.push(goal);
            }
        }
    }

    pub(crate) fn land(&mut self, vm: usize, part: u8) {
        let (before, limit) = (self.truths[vm].real, self.not_older(vm));
        let Some(before) = before.filter(|_| !self.truths[vm].flights.is_empty()) else { return };
        let goal = self.truths[vm].flights.remove(0);
        let after = match part {
            0 | 1 => goal,
            2 => Size { cpu: goal.cpu, memory: before.memory },
            // A guest that gives nothing back.
            _ => goal.max(before),
        };
        assert!(after.fits_in(limit.max(before)), "v{vm} grows to {after}, approved is {limit}");
        self.truths[vm].real = Some(after);
    }

    /// The largest approval that is not older than the one the operator obeys, as its object says.
    pub(super) fn not_older(&self, vm: usize) -> Size {
        let facts = &self.world.vms[&vm_uid(vm)];
        let written = self.writes.iter().filter(|(uid, _)| *uid == facts.uid).map(|(_, seal)| seal);
        let Truth { ever, held, .. } = &self.truths[vm];
        let all = ever.iter().chain(held).chain(written);
        let usable = all.filter(|seal| Some(seal.place()) >= facts.obeyed);
        usable.map(|seal| seal.size).fold(facts.min, Size::max)
    }

    /// What the operator will write: an approval is obeyed when nothing larger is under way.
    pub(super) fn observe(&mut self, vm: usize, running: bool) {
        let seal = self.approval(vm);
        let mut report = self.object(vm).clone();
        let truth = &mut self.truths[vm];
        if !truth.own_flights && !running {
            // Orders of the operator before that have not arrived: the runner refuses them from now on.
            truth.flights.clear();
        }
        truth.own_flights |= truth.flights.is_empty();
        let fits = |seal: &Seal| {
            truth.own_flights && truth.flights.iter().all(|flight| flight.fits_in(seal.size))
        };
        if let Some(seal) = seal.filter(|seal| truth.real.is_none() || fits(seal)) {
            report.obeyed = Some(seal.place());
        }
        report.plugged = truth.real;
        truth.report = Some(report);
    }

    pub(super) fn report(&mut self, vm: usize) {
        if let Some(report) = self.truths[vm].report.take() {
            let facts = self.object(vm);
            (facts.plugged, facts.obeyed) = (report.plugged, report.obeyed);
        }
    }

    /// The operator names the next pod in the status, then makes it for what the spec wants.
    pub(super) fn start(&mut self, vm: usize) {
        if self.pod(vm).is_some() {
            return;
        }
        let seal = self.approval(vm);
        let truth = &mut self.truths[vm];
        truth.pods += 1;
        truth.pod = truth.pods;
        truth.held.clear();
        truth.own_flights = true;
        let (number, pod) = (truth.pod, format!("v{vm}-pod-{}", truth.pod));
        let facts = self.object(vm);
        (facts.pod_name, facts.plugged) = (Some(pod.clone()), None);
        facts.obeyed = seal.map_or(facts.obeyed, |seal| Some(seal.place()));
        let wanted = facts.wanted;
        self.truths[vm].boot = Size { cpu: wanted.cpu, ..facts.min };
        self.make_pod(vm, number, cost(wanted));
    }
    pub(super) fn make_pod(&mut self, vm: usize, number: u32, requests: Amount) {
        let mut pod = runner(&name(vm), None, requests);
        (pod.uid, pod.name) = (format!("pod-v{vm}-{number}"), format!("v{vm}-pod-{number}"));
        if let PodKind::Runner(RunnerFacts { allocated, created, .. }) = &mut pod.kind {
            (*allocated, *created) = (None, number.into());
        }
        self.world.pod(pod);
    }
}
