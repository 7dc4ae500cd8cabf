//! The decision machine of one VM: events are recorded by `handle`, `next` names what to do.

mod headroom;
mod judgement;
mod record;
mod reference;

use std::time::Duration;

use guest_units::{Moment, Size};

use self::judgement::{Judgement, size};
use crate::action::{Action, Actions, Why};
use crate::decision::{Decision, Outcome, Ring, bounded_reason};
use crate::event::{Event, Limits, Sample, VmView};
use crate::guest::Guest;
use crate::peak::Peak;
use crate::permit::{Answer, Permit, Wanted};
use crate::policy::{Policy, Rules};
use crate::reference::State;
use crate::vm::Vm;

/// What a list of VMs shows of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overview {
    /// The goal; what the way down still leads to, where it goes in steps of compute units.
    pub desired: Size,
    /// What the scheduler allows.
    pub permit: Option<Size>,
    /// What the hypervisor shows.
    pub plugged: Size,
    /// What the guest uses, as it says.
    pub used: Option<Size>,
}

/// The brain of one VM.
#[derive(Debug, Clone)]
pub struct Scaler {
    limits: Limits,
    /// Configuration, not state: replaced as a whole.
    policy: Box<Policy>,
    generation: u64,
    cpu_peak: Peak,
    memory_peak: Peak,
    reference: State,
    guest: Guest,
    permit: Permit,
    vm: Vm,
    ring: Ring,
}

impl Scaler {
    /// A brain whose first action carries `first_generation`: above every generation of its predecessors.
    #[must_use]
    pub fn new(limits: Limits, policy: Policy, first_generation: u64) -> Self {
        Self {
            limits,
            policy: Box::new(policy),
            generation: first_generation,
            cpu_peak: Peak::default(),
            memory_peak: Peak::default(),
            reference: State::default(),
            guest: Guest::default(),
            permit: Permit::default(),
            vm: Vm::default(),
            ring: Ring::default(),
        }
    }

    /// Records what happened. Never fails, never blocks.
    pub fn handle(&mut self, event: Event, now: Moment) {
        let retries = self.policy.retries;
        match event {
            Event::Limits(limits) => self.limits = limits,
            Event::Policy(policy) => self.policy(policy),
            Event::Vm(view) => {
                self.vm.seen(view, now);
                self.permit.seen(view.approved);
                if view.plugged == view.spec {
                    self.ring.plugged();
                }
            }
            Event::Sample(sample) => self.sample(sample, now),
            Event::Cache(windows) => self.reference.cached(windows, &self.policy.rules),
            Event::Asked(want) => self.asked(want, now),
            Event::Started(action) => self.started(action, now),
            Event::PermitAnswered { generation, permit, reason } => {
                self.permit_answered(generation, permit, &reason, now);
            }
            Event::PermitFailed { generation } => {
                if self.permit.failed(generation, now, &retries) {
                    self.ring.update(generation, Outcome::Failed("the scheduler did not answer"));
                }
            }
            Event::Newest(newest) => {
                self.generation = self.generation.max(newest.saturating_add(1));
            }
            Event::Patched { generation } => {
                if let Some(Some(permit)) = self.vm.patched(generation) {
                    self.permit.written(permit);
                }
                if self.vm.view().is_some_and(|view| view.plugged == view.spec) {
                    self.ring.plugged();
                }
            }
            Event::PatchFailed { generation, raced } => {
                if self.vm.failed(generation, raced, now, &retries) {
                    self.ring.unwritten();
                }
            }
            Event::GuestFine { generation } => {
                if self.guest.fine(generation, now, &retries) {
                    self.ring.update(generation, Outcome::Agreed);
                }
            }
            Event::GuestVeto { generation, least } => {
                if self.guest.vetoed(generation, least, now, &retries) {
                    self.ring.update(generation, Outcome::Vetoed { least });
                }
            }
            Event::GuestTold { generation } => self.guest.was_told(generation),
            Event::GuestFailed { generation } => {
                if self.guest.failed(generation, now, &retries) {
                    self.ring.update(generation, Outcome::Failed("the guest did not answer"));
                }
            }
            Event::GuestConnected => self.guest.connected(),
            Event::GuestLost => {
                self.guest.lost();
                self.reference.lost(&self.policy.rules);
            }
        }
    }

    /// Says what to do next. Same state and `now`, same answer; safe to call at any time.
    #[must_use]
    pub fn next(&self, now: Moment) -> Actions {
        let Some(judgement) = self.judge(now) else { return Actions::default() };
        let mut start = Vec::new();
        let mut generation = self.generation;
        let mut push = |found: Option<(Action, Why)>| {
            if let Some(found) = found {
                start.push(found);
                generation += 1;
            }
            generation
        };
        let next = push(self.next_permit(self.generation, &judgement, now));
        let asks_less = next != self.generation && self.returns(next - 1, &judgement, now);
        let patch = if asks_less { None } else { self.next_patch(next, &judgement, now) };
        let shrinks = matches!(patch, Some((_, Why::GuestAgreed)));
        let next = push(patch);
        if !shrinks {
            push(self.next_guest(next, &judgement, now));
        }
        Actions { start, wake_at: self.wake_at(now) }
    }

    /// The last decisions, oldest first.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.ring.iter()
    }

    /// Of the answer whose permit holds: its approval is the one that patches will name.
    #[must_use]
    pub fn permit_generation(&self) -> Option<u64> {
        self.permit.generation()
    }

    /// What a list of VMs shows; `None` until the VM object was seen.
    #[must_use]
    pub fn overview(&self, now: Moment) -> Option<Overview> {
        let judgement = self.judge(now)?;
        Some(Overview {
            desired: judgement.desired,
            permit: self.permit.size(),
            plugged: self.vm.view()?.plugged,
            used: self.guest.said().map(|said| said.used),
        })
    }

    fn sample(&mut self, sample: Sample, now: Moment) {
        self.guest.heard(sample, now, self.silence());
        self.reference.measured(sample.system, &self.policy.rules);
        if let Rules::Headroom(numbers) = self.policy.rules {
            self.measured(&numbers, sample.demand, now);
        }
    }

    fn asked(&mut self, want: Size, now: Moment) {
        match self.policy.rules {
            Rules::Headroom(numbers) => self.urgent(&numbers, want, now),
            Rules::Reference(rules) => {
                let view = self.vm.view();
                // What it knew to have when it asked: it may not know yet, or know already what is still going, or is about to.
                let known = [
                    self.guest.told(),
                    view.map(|view| view.plugged),
                    view.map(|view| view.spec),
                    self.vm.in_flight(),
                ];
                let base = known.into_iter().flatten().reduce(Size::min).unwrap_or_default();
                self.reference.asked(want, base, &rules, now);
            }
        }
    }

    /// Another policy knows nothing of what the one before observed: its calm spell starts now.
    fn policy(&mut self, policy: Box<Policy>) {
        let same =
            std::mem::discriminant(&self.policy.rules) == std::mem::discriminant(&policy.rules);
        if !same {
            (self.cpu_peak, self.memory_peak) = (Peak::default(), Peak::default());
            self.guest.forget_spell();
        }
        self.policy = policy;
        self.reference.changed(&self.policy.rules);
    }

    /// How long a guest may be silent and still count as heard.
    fn silence(&self) -> Duration {
        match &self.policy.rules {
            Rules::Headroom(numbers) => numbers.silence,
            Rules::Reference(rules) => rules.silence,
        }
    }

    fn started(&mut self, action: Action, now: Moment) {
        if action.generation() < self.generation {
            return; // a repeated report
        }
        match action {
            Action::AskPermit { generation, want, .. } => {
                let known = self.permit.size().or(self.base());
                if known.is_some_and(|known| !want.fits_in(known)) {
                    self.record(generation, None, Outcome::AskingScheduler, now);
                }
                self.permit.started(generation, want, now, &self.policy.retries);
            }
            Action::PatchVm { generation, from, size, approval } => {
                if from != size && !self.ring.written() {
                    self.record(generation, Some(size), Outcome::Written, now);
                }
                let approval = approval.and_then(|permit| Some((permit, self.permit.size()?)));
                self.guest.drop_agreement();
                self.vm.started(generation, size, approval, now);
            }
            Action::AskGuest { generation, from, to } => {
                self.record(generation, Some(to), Outcome::AskingGuest, now);
                self.guest.asking(generation, from, to);
            }
            Action::TellGuest { generation, plugged } => self.guest.telling(generation, plugged),
        }
        self.generation = action.generation().saturating_add(1);
    }

    fn permit_answered(&mut self, generation: u64, permit: Size, reason: &str, now: Moment) {
        let Some(held) = self.held() else { return };
        let approved = self.vm.view().and_then(|view| view.approved);
        let retries = self.policy.retries;
        let reason = bounded_reason(reason);
        let answer = self.permit.answer(generation, permit, held, approved, (now, &retries));
        let outcome = match answer {
            Answer::Stale => return,
            Answer::Invalid => Outcome::Failed("the scheduler's answer does not fit the request"),
            Answer::Granted => Outcome::Granted,
            Answer::Partial => Outcome::Partial { permit, reason },
            Answer::Denied => Outcome::Denied { reason },
        };
        self.ring.update(generation, outcome);
    }

    fn next_permit(
        &self,
        generation: u64,
        judgement: &Judgement,
        now: Moment,
    ) -> Option<(Action, Why)> {
        let view = self.vm.view()?;
        let retries = &self.policy.retries;
        let gone = !self.vm.may_come(now, retries)
            && (view.plugged.fits_in(view.spec) || self.vm.quiet(now, retries));
        let wanted = Wanted { goal: judgement.goal, held: judgement.held };
        self.permit.next(generation, wanted, gone, now)
    }

    /// The request that is about to start asks for less than the permit: no patch beside it.
    fn returns(&self, generation: u64, judgement: &Judgement, now: Moment) -> bool {
        match (self.next_permit(generation, judgement, now), self.permit.size()) {
            (Some((Action::AskPermit { want, .. }, _)), Some(permit)) => !permit.fits_in(want),
            _ => false,
        }
    }

    fn next_patch(
        &self,
        generation: u64,
        judgement: &Judgement,
        now: Moment,
    ) -> Option<(Action, Why)> {
        let view = self.vm.view()?;
        if !self.vm.may_patch(now) {
            return None;
        }
        let approval = self.permit.unwritten();
        let (size, why) = self.target(view, judgement, now);
        if size == view.spec && approval.is_none() {
            return None;
        }
        Some((Action::PatchVm { generation, from: view.spec, size, approval }, why))
    }

    /// The spec's next size. Growth stays within the permit; what the VM has shrinks by agreement only.
    fn target(&self, view: VmView, judgement: &Judgement, now: Moment) -> (Size, Why) {
        let (Judgement { goal, held, .. }, VmView { spec, plugged, .. }) = (*judgement, view);
        let usable = self.permit.usable();
        let agreed = self.guest.agreed(now).filter(|_| !self.guest.in_flight());
        let mut why = Why::Approval;
        let mut field =
            |[spec, goal, held, plugged]: [u64; 4], usable: Option<u64>, agreed: Option<u64>| {
                if goal > spec {
                    let grown = goal.min(usable.unwrap_or(0)).max(spec);
                    if grown > spec {
                        why = Why::PermitUnused;
                    }
                    return grown;
                }
                if goal == spec {
                    return spec;
                }
                if held > goal {
                    // What is not plugged yet needs no guest; of what is, only that goes to which it agreed.
                    let least = agreed.map_or(plugged, |agreed| agreed.min(plugged));
                    let shrunk = goal.max(least).min(spec);
                    if shrunk < spec {
                        why = if shrunk < plugged { Why::GuestAgreed } else { Why::GrowthUndone };
                    }
                    return shrunk;
                }
                if !self.permit.answered() {
                    return spec;
                }
                why = Why::SpecBeyondPermit;
                goal.min(usable.unwrap_or(0)).max(held)
            };
        let cpu = field(
            [spec, goal, held, plugged].map(|size| u64::from(size.cpu.0)),
            usable.map(|usable| u64::from(usable.cpu.0)),
            agreed.map(|agreed| u64::from(agreed.cpu.0)),
        );
        let memory = field(
            [spec, goal, held, plugged].map(|size| size.memory.0),
            usable.map(|usable| usable.memory.0),
            agreed.map(|agreed| agreed.memory.0),
        );
        (size(cpu, memory), why)
    }

    /// Tells the guest what is plugged, then asks it about the next shrink.
    fn next_guest(
        &self,
        generation: u64,
        judgement: &Judgement,
        now: Moment,
    ) -> Option<(Action, Why)> {
        let view = self.vm.view()?;
        if self.guest.occupied(now) {
            return None;
        }
        if self.vm.at_rest(now, &self.policy.retries) && self.guest.must_hear(view.plugged) {
            let tell = Action::TellGuest { generation, plugged: view.plugged };
            return Some((tell, Why::Plugged));
        }
        // Growth that is not plugged is none of its business.
        let (goal, VmView { spec, plugged, .. }) = (judgement.goal, view);
        let shrinks_cpu = goal.cpu < spec.cpu && goal.cpu < plugged.cpu;
        let shrinks_memory = goal.memory < spec.memory && goal.memory < plugged.memory;
        let planned = self.guest.agreed(now).is_some() || !self.vm.may_patch(now);
        if planned || !(shrinks_cpu || shrinks_memory) {
            return None;
        }
        // What was agreed before and is still going is not asked again, but is part of the answer; what the guest refuses to give
        // is not, for that must not keep what it can give.
        let refused = self.guest.veto(now).unwrap_or_default();
        let going = plugged.min(spec.max(refused));
        let to = Size {
            cpu: if shrinks_cpu { goal.cpu } else { going.cpu },
            memory: if shrinks_memory { goal.memory } else { going.memory },
        };
        Some((Action::AskGuest { generation, from: plugged, to }, Why::PlanShrink))
    }

    fn wake_at(&self, now: Moment) -> Option<Moment> {
        let of_rules = match &self.policy.rules {
            Rules::Headroom(numbers) => self.headroom_wake(numbers, now),
            Rules::Reference(_) => self.reference.wake().filter(|at| *at > now),
        };
        self.permit
            .wakes()
            .into_iter()
            .chain(self.guest.wakes())
            .chain(self.vm.wakes(&self.policy.retries))
            .chain([of_rules])
            .flatten()
            .filter(|at| *at > now)
            .min()
    }
}
