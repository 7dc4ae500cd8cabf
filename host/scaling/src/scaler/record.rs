//! Makes the record of a decision: from what, to what, why, and what else was considered.

use guest_units::{Bytes, Moment, Size};

use super::Scaler;
use super::judgement::{Judgement, Reasons, size};
use super::reference::Reason;
use crate::decision::{Alternative, Decision, Inputs, Outcome, ReferenceInputs};
use crate::goal::Rule;
use crate::policy::{Reference, Rules};
use crate::reference::SystemMetrics;

impl Scaler {
    pub(super) fn record(
        &mut self,
        generation: u64,
        to: Option<Size>,
        outcome: Outcome,
        now: Moment,
    ) {
        let Some(judgement) = self.judge(now) else { return };
        let inputs = self.inputs(judgement.base, now);
        let to = to.unwrap_or(judgement.goal);
        self.ring.open(Decision {
            at: now,
            generation,
            from: judgement.base,
            to,
            rule: judgement.reasons.to_string(),
            alternatives: self.alternatives(&judgement, &inputs, to),
            inputs,
            outcome,
            attempts: 1,
        });
    }

    fn inputs(&self, base: Size, now: Moment) -> Inputs {
        let (mut cpu_peak, mut memory_peak, mut reference) = (None, None, None);
        match &self.policy.rules {
            Rules::Headroom(numbers) => {
                cpu_peak = self.cpu_peak.largest(now, numbers.cpu_calm);
                memory_peak = self.memory_peak.largest(now, numbers.memory_calm);
            }
            Rules::Reference(rules) => {
                reference = Some(Box::new(self.reference_inputs(rules, base, now)));
            }
        }
        Inputs {
            demand: self.guest.said().map(|said| said.demand),
            cpu_peak: cpu_peak.map(|(peak, _)| size(peak, 0).cpu),
            memory_peak: memory_peak.map(|(peak, _)| Bytes(peak)),
            min: self.limits.min,
            max: self.limits.max,
            plugged: self.vm.view().map(|view| view.plugged),
            permit: self.permit.size(),
            veto: self.guest.veto(now),
            guest_live: self.guest.live(now, self.silence()),
            reference,
        }
    }

    fn reference_inputs(&self, rules: &Reference, base: Size, now: Moment) -> ReferenceInputs {
        let system = self.reference.system();
        let metrics = system.map(SystemMetrics::from);
        ReferenceInputs {
            load1: metrics.map(|metrics| metrics.load_average_1min),
            load5: metrics.map(|metrics| metrics.load_average_5min),
            memory_usage: system.map(|system| system.memory_usage),
            memory_cached: system.map(|system| system.memory_cached),
            goal: self.reference.goal(),
            requested: self.reference.requested(now),
            denied: self.denied(base, now),
            unit: rules.unit,
            config: rules.config,
        }
    }

    /// What else was considered: staying, and where it would go without steps and bounds.
    fn alternatives(&self, judgement: &Judgement, inputs: &Inputs, to: Size) -> Vec<Alternative> {
        match (judgement.reasons, &self.policy.rules) {
            (Reasons::Headroom { cpu, memory }, _) => by_peak(judgement, [cpu, memory], inputs, to),
            (Reasons::Reference(reason), rules) => by_unit(judgement, reason, rules, to),
        }
    }
}

fn by_unit(judgement: &Judgement, reason: Reason, rules: &Rules, to: Size) -> Vec<Alternative> {
    let because = if judgement.base.fits_in(judgement.desired) {
        "the goal is above it"
    } else {
        "the goal is below it"
    };
    let mut found = vec![Alternative { size: judgement.base, because }];
    if judgement.desired != to {
        let because = if reason.stepped {
            "shrinking goes by one compute unit"
        } else {
            "without a guest nothing shrinks"
        };
        found.push(Alternative { size: judgement.desired, because });
    }
    if let Rules::Reference(rules) = rules {
        let size = rules.unit.times(reason.units());
        if size != to && size != judgement.desired {
            let because = "bounds, an ask, a denial or missing metrics stand against it";
            found.push(Alternative { size, because });
        }
    }
    found
}

fn by_peak(judgement: &Judgement, rules: [Rule; 2], inputs: &Inputs, to: Size) -> Vec<Alternative> {
    let mut found = Vec::new();
    let because = if rules.contains(&Rule::Grow) {
        "demand and reserve are above it"
    } else if rules.contains(&Rule::StepDown) {
        "the demand was lower for a whole calm spell"
    } else {
        "it is outside the bounds"
    };
    found.push(Alternative { size: judgement.base, because });
    let peak = Size {
        cpu: inputs.cpu_peak.unwrap_or(judgement.base.cpu),
        memory: inputs.memory_peak.unwrap_or(judgement.base.memory),
    };
    if peak != to && peak != judgement.base {
        let because = if !peak.fits_in(inputs.max) {
            "above the maximum"
        } else if rules.contains(&Rule::Veto) {
            "the guest refuses to go that low"
        } else if rules.contains(&Rule::StepDown) {
            "shrinking goes in steps"
        } else {
            "one resource waits for its calm spell or is bounded"
        };
        found.push(Alternative { size: peak, because });
    }
    found
}
