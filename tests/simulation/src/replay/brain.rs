//! Brings a brain into the state that a record tells, and asks it what to do.

use std::time::Duration;

use guest_units::{Bytes, MilliCpu, Moment, Size};
use host_scaling::reference::{ComputeUnit, ReferenceConfig};
use host_scaling::{Action, Event, Limits, Policy, Rules, Sample, Scaler, VmView};
use jiff::Timestamp;

use super::record::{Inputs, Record};
use super::{Again, Step};
use crate::policy::PolicyName;

/// Nothing is told of what was before this.
const BACK: Duration = Duration::from_secs(30);
/// Between two samples.
const EVERY: Duration = Duration::from_secs(1);
/// The first record is so long after the origin: whatever happened before has room.
const BEFORE: Duration = Duration::from_secs(600);
/// Actions of the brain itself have a higher generation than those that brought it into its state.
const OURS: u64 = 1000;
/// So many rounds of actions at one moment are enough for every counterparty.
const ROUNDS: u32 = 8;

/// A record's time on a brain's clock.
pub(super) fn moment(at: Timestamp, first: Timestamp) -> Moment {
    let since = Duration::try_from(at.duration_since(first)).unwrap_or_default();
    Moment(BEFORE) + since
}

/// What the records so far tell of the time between them.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// The last time that the guest was not live.
    silent: Option<Moment>,
    cpu_step: Option<Moment>,
    memory_step: Option<Moment>,
    /// What the guest needed from then on.
    demands: Vec<(Moment, Size)>,
}

impl Past {
    pub(super) fn add(&mut self, record: &Record, now: Moment) {
        let inputs = &record.inputs;
        if !inputs.guest_live {
            self.silent = Some(now);
        }
        if record.outcome == "done" || record.outcome.starts_with("written") {
            let smaller = |to: u64, from: u64, step: Option<Moment>| {
                if to < from { Some(now) } else { step }
            };
            let (from, to) = (record.from, record.to);
            self.cpu_step = smaller(to.cpu.0.into(), from.cpu.0.into(), self.cpu_step);
            self.memory_step = smaller(to.memory.0, from.memory.0, self.memory_step);
        }
        self.demands.extend(inputs.demand.map(|demand| (now, demand)));
    }

    fn demand_at(&self, at: Moment) -> Option<Size> {
        self.demands.iter().rev().find(|(since, _)| *since <= at).map(|(_, demand)| *demand)
    }
}

/// What the policy decides in the record's place; `None` if the record does not have what it decides on.
pub(super) fn decide(
    record: &Record,
    policy: PolicyName,
    slot: Bytes,
    past: &Past,
    now: Moment,
) -> Option<Again> {
    let (config, unit) = match (policy, &record.inputs.reference) {
        (PolicyName::Reference, Some(reference)) => (reference.config, reference.unit),
        (PolicyName::Reference, None) => return None,
        (PolicyName::Headroom, _) => (ReferenceConfig::default(), ComputeUnit::SHIPPED),
    };
    let policy = policy.policy(config, unit);
    let mut brain = Brain::new(record, policy, slot, now);
    brain.steps(past);
    brain.guest_speaks(past);
    brain.guest_refuses();
    brain.outcome(record)
}

struct Brain<'a> {
    scaler: Scaler,
    policy: Policy,
    record: &'a Record,
    inputs: &'a Inputs,
    view: VmView,
    generation: u64,
    now: Moment,
}

impl<'a> Brain<'a> {
    fn new(record: &'a Record, policy: Policy, slot: Bytes, now: Moment) -> Self {
        let inputs = &record.inputs;
        // Needs were bounded when they were told, maybe by other bounds.
        let unbounded = Size { cpu: MilliCpu(u32::MAX), memory: Bytes(u64::MAX) };
        let scaler = Scaler::new(Limits { min: inputs.min, max: unbounded, slot }, policy, 1);
        let view = VmView { spec: record.from, approved: inputs.permit, plugged: inputs.plugged };
        let mut brain = Self { scaler, policy, record, inputs, view, generation: 1, now };
        let early = brain.earlier(BACK * 2);
        brain.scaler.handle(Event::Vm(view), early);
        brain.scaler.handle(Event::GuestConnected, early);
        brain.asked_lately(early);
        brain.tell(view.plugged, early);
        brain.peaks();
        brain
            .scaler
            .handle(Event::Limits(Limits { min: inputs.min, max: inputs.max, slot }), early);
        brain
    }

    fn earlier(&self, span: Duration) -> Moment {
        self.now.earlier(span)
    }

    fn start(&mut self, at: Moment, action: impl FnOnce(u64) -> Action) -> u64 {
        let generation = self.generation;
        self.generation += 1;
        self.scaler.handle(Event::Started(action(generation)), at);
        generation
    }

    fn tell(&mut self, plugged: Size, at: Moment) {
        let generation = self.start(at, |generation| Action::TellGuest { generation, plugged });
        self.scaler.handle(Event::GuestTold { generation }, at);
    }

    /// The guest asked the reference for more than it knew to have.
    fn asked_lately(&mut self, early: Moment) {
        let requested = self.inputs.reference.as_ref().and_then(|reference| reference.requested);
        let (Some(base), Rules::Reference(_)) = (requested, &self.policy.rules) else { return };
        self.scaler.handle(Event::Vm(VmView { plugged: base, ..self.view }), early);
        self.tell(base, early);
        let want = base.saturating_add(Size { cpu: MilliCpu::ZERO, memory: Bytes(1) });
        self.scaler.handle(Event::Asked(want), self.now);
        self.scaler.handle(Event::Vm(self.view), early);
    }

    /// What was needed lately, its reserve included.
    fn peaks(&mut self) {
        let (cpu, memory) = (self.inputs.cpu_peak, self.inputs.memory_peak);
        if matches!(self.policy.rules, Rules::Headroom(_)) && (cpu.is_some() || memory.is_some()) {
            let want = Size { cpu: cpu.unwrap_or_default(), memory: memory.unwrap_or_default() };
            self.scaler.handle(Event::Asked(want), self.now);
        }
    }

    /// The last steps down. That a step was made is what counts, not how large it was.
    fn steps(&mut self, past: &Past) {
        let Rules::Headroom(numbers) = self.policy.rules else { return };
        let rules = self.record.rules();
        let pause = numbers.step_pause;
        let when = |rule: Option<&str>, past: Option<Moment>| match rule {
            Some("wait-step") => {
                let lately = self.earlier(EVERY.min(pause / 2));
                past.filter(|at| *at + pause > self.now).or(Some(lately))
            }
            Some("step-down") => None,
            _ => past,
        };
        let cpu = when(rules.map(|(cpu, _)| cpu), past.cpu_step);
        let memory = when(rules.map(|(_, memory)| memory), past.memory_step);
        let spec = self.view.spec;
        let less_cpu = Size { cpu: MilliCpu(spec.cpu.0.saturating_sub(1)), ..spec };
        let less_memory = Size { memory: Bytes(spec.memory.0.saturating_sub(1)), ..spec };
        for (at, size) in [(cpu, less_cpu), (memory, less_memory)] {
            let Some(at) = at else { continue };
            let generation = self.start(at, |generation| Action::PatchVm {
                generation,
                from: spec,
                size,
                approval: None,
            });
            self.scaler.handle(Event::Patched { generation }, at);
            self.scaler.handle(Event::Vm(self.view), at);
        }
    }

    fn guest_speaks(&mut self, past: &Past) {
        let told = self.inputs.demand.unwrap_or_default();
        // The peaks that a record of `headroom` tells hold all that counts: samples only say that the guest is there.
        let peaks = self.inputs.reference.is_none();
        if !self.inputs.guest_live {
            if self.inputs.demand.is_some() && !peaks {
                self.sample(told, self.earlier(self.silence()));
            }
            return;
        }
        let mut at = self.earlier(self.heard_for(past));
        while at < self.now {
            let demand = if peaks { Size::ZERO } else { past.demand_at(at).unwrap_or(told) };
            self.sample(demand, at);
            at += EVERY;
        }
        self.sample(if peaks { Size::ZERO } else { told }, self.now);
    }

    fn sample(&mut self, demand: Size, at: Moment) {
        let reference = self.inputs.reference.as_ref();
        if let Some(windows) = reference.and_then(|reference| reference.windows) {
            self.scaler.handle(Event::Cache(Box::new(windows)), at);
        }
        let system = reference.and_then(|reference| reference.system);
        self.scaler.handle(Event::Sample(Sample { demand, used: demand, system }), at);
    }

    /// How long the guest has been heard without a pause.
    fn heard_for(&self, past: &Past) -> Duration {
        let known = past.silent.map_or(BACK, |at| self.now.since(at).min(BACK));
        let (Rules::Headroom(numbers), Some((cpu, memory))) =
            (self.policy.rules, self.record.rules())
        else {
            return known;
        };
        let (mut least, mut most) = (Duration::ZERO, BACK);
        for (rule, calm) in [(cpu, numbers.cpu_calm), (memory, numbers.memory_calm)] {
            match rule {
                "wait-calm" => most = most.min(calm.saturating_sub(EVERY)),
                "step-down" | "wait-step" => least = least.max(calm),
                _ => {}
            }
        }
        known.min(most).max(least)
    }

    fn silence(&self) -> Duration {
        match self.policy.rules {
            Rules::Headroom(numbers) => numbers.silence,
            Rules::Reference(reference) => reference.silence,
        }
    }

    /// A veto that binds, of a question that was put just long enough ago for another one.
    fn guest_refuses(&mut self) {
        let Some(least) = self.inputs.veto else { return };
        let at = self.earlier(self.policy.retries.veto_pause);
        let denied = self.inputs.reference.as_ref().and_then(|reference| reference.denied);
        let (from, to) =
            denied.map_or((self.view.plugged, least), |denied| (denied.current, denied.target));
        let generation = self.start(at, |generation| Action::AskGuest { generation, from, to });
        self.scaler.handle(Event::GuestVeto { generation, least }, at);
    }

    /// Lets the brain do what it would do, and compares the decisions that it records.
    fn outcome(mut self, record: &Record) -> Option<Again> {
        self.scaler.handle(Event::Newest(OURS), self.now);
        let desired = self.scaler.overview(self.now)?.desired;
        for _ in 0..ROUNDS {
            for (action, _why) in self.scaler.next(self.now).start {
                self.scaler.handle(Event::Started(action), self.now);
            }
        }
        let is_same = |step: &Step| {
            (step.from, step.to, &step.rule) == (record.from, record.to, &record.rule)
        };
        let own = self.scaler.decisions().filter(|decision| decision.generation > OURS);
        let steps: Vec<_> = own
            .map(|made| Step { from: made.from, to: made.to, rule: made.rule.clone() })
            .collect();
        // Of two at once the record is about one.
        let chosen = steps.iter().find(|step| is_same(step)).or(steps.first()).cloned();
        let same = match &chosen {
            Some(step) => is_same(step),
            None => record.from == record.to && desired == record.to,
        };
        Some(Again { desired, decision: chosen, same })
    }
}
