//! Makes the record of a decision: from what, to what, why, and what else was considered.

use guest_units::{Bytes, Moment, Size};

use super::Scaler;
use super::judgement::{Judgement, size};
use crate::decision::{Alternative, Decision, Inputs, Outcome};
use crate::goal::Rule;

impl Scaler {
    pub(super) fn record(
        &mut self,
        generation: u64,
        to: Option<Size>,
        outcome: Outcome,
        now: Moment,
    ) {
        let Some(judgement) = self.judge(now) else { return };
        let numbers = &self.policy.headroom;
        let cpu_peak = self.cpu_peak.largest(now, numbers.cpu_calm);
        let memory_peak = self.memory_peak.largest(now, numbers.memory_calm);
        let inputs = Inputs {
            demand: self.guest.sample().map(|sample| sample.demand),
            cpu_peak: cpu_peak.map(|(peak, _)| size(peak, 0).cpu),
            memory_peak: memory_peak.map(|(peak, _)| Bytes(peak)),
            min: self.limits.min,
            max: self.limits.max,
            plugged: self.vm.view().map(|view| view.plugged),
            permit: self.permit.size(),
            veto: self.guest.veto(now),
            guest_live: self.guest.live(now, numbers),
        };
        let to = to.unwrap_or(judgement.goal);
        self.ring.open(Decision {
            at: now,
            generation,
            from: judgement.base,
            to,
            rule: format!("cpu {}, memory {}", judgement.cpu.label(), judgement.memory.label()),
            inputs,
            alternatives: alternatives(&judgement, &inputs, to),
            outcome,
            attempts: 1,
        });
    }
}

/// What else was considered: staying, and what the peak alone would say.
fn alternatives(judgement: &Judgement, inputs: &Inputs, to: Size) -> Vec<Alternative> {
    let mut found = Vec::new();
    let rules = [judgement.cpu, judgement.memory];
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
