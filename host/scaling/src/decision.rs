//! Why a VM has its size: one record for each decision, kept in a bounded ring, serialisable.

use std::collections::VecDeque;
use std::fmt;

use guest_units::{Bytes, MilliCpu, Moment, Size};
use serde::{Serialize, Serializer};

use crate::reference::{ComputeUnit, Denied, Goal, ReferenceConfig, Requested};

/// Records kept for each VM.
const RING: usize = 256;
/// Records that may still change: one for each counterparty, and some room.
const RECENT: usize = 4;
/// Longest text taken over from a counterparty.
const REASON_CHARS: usize = 256;

/// The numbers a decision was made from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inputs {
    /// The guest's last demand.
    pub demand: Option<Size>,
    /// Largest CPU need within the calm spell.
    pub cpu_peak: Option<MilliCpu>,
    /// Largest memory need within the calm spell.
    pub memory_peak: Option<Bytes>,
    /// Lower bound.
    pub min: Size,
    /// Upper bound.
    pub max: Size,
    /// What the hypervisor shows.
    pub plugged: Option<Size>,
    /// What the scheduler allows.
    pub permit: Option<Size>,
    /// A veto that still binds.
    pub veto: Option<Size>,
    /// The guest is connected and heard.
    pub guest_live: bool,
    /// What the policy `reference` adds; `None` under another policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<Box<ReferenceInputs>>,
}

/// What the policy `reference` decided from: with the bounds above and the size before, enough to decide again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReferenceInputs {
    /// Load average over a minute.
    pub load1: Option<f64>,
    /// Load average over five minutes.
    pub load5: Option<f64>,
    /// Memory in use, as the reference counts it.
    pub memory_usage: Option<Bytes>,
    /// Page cache.
    pub memory_cached: Option<Bytes>,
    /// The goal, its parts in compute units, and what the cache's windows showed.
    pub goal: Goal,
    /// What the guest asked for lately.
    pub requested: Option<Requested>,
    /// What the guest denied lately.
    pub denied: Option<Denied>,
    /// The step of sizes.
    pub unit: ComputeUnit,
    /// Numbers of the goal.
    pub config: ReferenceConfig,
}

/// Another size that was considered, and why it was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Alternative {
    /// The size.
    pub size: Size,
    /// Why not.
    pub because: &'static str,
}

/// How a decision ended, or how far it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The scheduler is asked.
    AskingScheduler,
    /// The guest is asked.
    AskingGuest,
    /// The guest agreed; the spec is written next.
    Agreed,
    /// The scheduler granted all; the spec is written next.
    Granted,
    /// The scheduler granted a part.
    Partial {
        /// What it granted.
        permit: Size,
        /// Its words.
        reason: String,
    },
    /// The scheduler granted nothing.
    Denied {
        /// Its words.
        reason: String,
    },
    /// The guest refused.
    Vetoed {
        /// The smallest size it accepts.
        least: Size,
    },
    /// The spec is written; the hypervisor has not shown it yet.
    Written,
    /// The hypervisor shows the size.
    Done,
    /// A request failed and is repeated.
    Failed(&'static str),
    /// Overtaken by a newer decision.
    Overtaken,
}

impl Outcome {
    /// A counterparty has said no, or not all of it.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Partial { .. } | Self::Denied { .. } | Self::Vetoed { .. })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AskingScheduler => f.write_str("asking the scheduler"),
            Self::AskingGuest => f.write_str("asking the guest"),
            Self::Agreed => f.write_str("the guest agreed"),
            Self::Granted => f.write_str("granted"),
            Self::Partial { permit, reason } => {
                write!(f, "partly granted: {} vCPU, {} memory: {reason}", permit.cpu, permit.memory)
            }
            Self::Denied { reason } => write!(f, "denied: {reason}"),
            Self::Vetoed { least } => write!(
                f,
                "vetoed by the guest: at least {} vCPU, {} memory",
                least.cpu, least.memory
            ),
            Self::Written => f.write_str("written, being plugged"),
            Self::Done => f.write_str("done"),
            Self::Failed(what) => write!(f, "failed: {what}"),
            Self::Overtaken => f.write_str("overtaken by a newer decision"),
        }
    }
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Text of a counterparty, bounded and without control characters.
pub(crate) fn bounded_reason(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS).collect()
}

/// One decision to change the size.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// When; the shell turns it into wall time.
    #[serde(skip)]
    pub at: Moment,
    /// Of the first action it caused.
    pub generation: u64,
    /// The size before.
    pub from: Size,
    /// The size aimed at.
    pub to: Size,
    /// The rules that decided, for each resource.
    pub rule: String,
    /// What it was decided from.
    pub inputs: Inputs,
    /// What else was considered.
    pub alternatives: Vec<Alternative>,
    /// How it ended.
    pub outcome: Outcome,
    /// How often it was tried: equal decisions in a row share one record.
    pub attempts: u32,
}

/// The last decisions of one VM.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ring {
    records: VecDeque<Decision>,
}

impl Ring {
    /// Adds a record; an equal decision in a row only counts up.
    pub(crate) fn open(&mut self, decision: Decision) {
        if let Some(last) = self.records.back_mut() {
            if (last.from, last.to, &last.rule) == (decision.from, decision.to, &decision.rule)
                && last.outcome != Outcome::Done
            {
                last.attempts = last.attempts.saturating_add(1);
                last.generation = decision.generation;
                last.inputs = decision.inputs;
                // Why it is not so stays on record while the same is tried again.
                if !last.outcome.is_refusal() {
                    last.outcome = decision.outcome;
                }
                return;
            }
            if matches!(last.outcome, Outcome::Agreed | Outcome::Granted | Outcome::Failed(_)) {
                last.outcome = Outcome::Overtaken;
            }
        }
        if self.records.len() == RING {
            self.records.pop_front();
        }
        self.records.push_back(decision);
    }

    /// Updates the record whose last action has this generation.
    pub(crate) fn update(&mut self, generation: u64, outcome: Outcome) {
        if let Some(record) = self.records.iter_mut().rev().find(|r| r.generation == generation) {
            record.outcome = outcome;
        }
    }

    /// A patch starts: what was agreed or granted is being written. Whether there was such a record.
    pub(crate) fn written(&mut self) -> bool {
        let mut found = false;
        for record in self.records.iter_mut().rev().take(RECENT) {
            match record.outcome {
                Outcome::Written => record.outcome = Outcome::Overtaken,
                Outcome::Agreed | Outcome::Granted => {
                    record.outcome = Outcome::Written;
                    found = true;
                }
                Outcome::Partial { .. } if !found => return true,
                _ => {}
            }
        }
        found
    }

    /// The patch failed: it is tried again.
    pub(crate) fn unwritten(&mut self) {
        for record in self.records.iter_mut().rev().take(RECENT) {
            if record.outcome == Outcome::Written {
                record.outcome = Outcome::Failed("the VM object was not written");
            }
        }
    }

    /// The hypervisor shows what the spec says.
    pub(crate) fn plugged(&mut self) {
        for record in self.records.iter_mut().rev().take(RECENT) {
            if record.outcome == Outcome::Written {
                record.outcome = Outcome::Done;
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Decision> {
        self.records.iter()
    }
}
