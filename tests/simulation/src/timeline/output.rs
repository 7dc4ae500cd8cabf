//! What a brain did, as a line of a timeline's output.

use guest_units::Size;
use host_scaling::{Action, Why};
use serde::{Deserialize, Serialize};

/// A size, in plain numbers.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Amount {
    cpu_milli: u32,
    memory_bytes: u64,
}

impl From<Size> for Amount {
    fn from(size: Size) -> Self {
        Self { cpu_milli: size.cpu.0, memory_bytes: size.memory.0 }
    }
}

impl From<Amount> for Size {
    fn from(amount: Amount) -> Self {
        use guest_units::{Bytes, MilliCpu};
        Self::new(MilliCpu(amount.cpu_milli), Bytes(amount.memory_bytes))
    }
}

/// A line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer {
    pub(super) at_ms: u64,
    /// Of the input; none when nobody but the brain itself had anything to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) line: Option<u64>,
    pub(super) event: &'static str,
    pub(super) actions: Vec<Act>,
    pub(super) wake_at_ms: Option<u64>,
    pub(super) desired: Option<Amount>,
    pub(super) permit: Option<Amount>,
}

/// An action and its reason.
#[derive(Debug, Serialize)]
#[serde(tag = "action", rename_all = "camelCase")]
pub(super) enum Act {
    AskPermit {
        why: &'static str,
        generation: u64,
        want: Amount,
        least: Amount,
        current: Amount,
    },
    PatchVm {
        why: &'static str,
        generation: u64,
        from: Amount,
        size: Amount,
        approval: Option<u64>,
    },
    AskGuest {
        why: &'static str,
        generation: u64,
        from: Amount,
        to: Amount,
    },
    TellGuest {
        why: &'static str,
        generation: u64,
        plugged: Amount,
    },
}

impl Act {
    pub(super) fn new(action: Action, why: Why) -> Self {
        let why = why.label();
        match action {
            Action::AskPermit { generation, want, least, current } => {
                let (want, least, current) = (want.into(), least.into(), current.into());
                Self::AskPermit { why, generation, want, least, current }
            }
            Action::PatchVm { generation, from, size, approval } => {
                Self::PatchVm { why, generation, from: from.into(), size: size.into(), approval }
            }
            Action::AskGuest { generation, from, to } => {
                Self::AskGuest { why, generation, from: from.into(), to: to.into() }
            }
            Action::TellGuest { generation, plugged } => {
                Self::TellGuest { why, generation, plugged: plugged.into() }
            }
        }
    }
}
