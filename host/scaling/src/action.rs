//! What to do. An action says everything, so that the shell makes no choice.

use guest_units::{Moment, Size};

/// What to do. Sizes are totals, never differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask the scheduler for a permit; also tells it what is gone.
    AskPermit {
        /// Newer than every earlier action.
        generation: u64,
        /// What the VM should be allowed to have.
        want: Size,
        /// Less than this is no answer: the VM has it, or may get it by what was already written.
        least: Size,
        /// What the VM has, or may get by what was already written: the scheduler counts it as approved.
        current: Size,
    },
    /// Write `size` into the VM's spec.
    PatchVm {
        /// Newer than every earlier action.
        generation: u64,
        /// The spec's size before.
        from: Size,
        /// The spec's new size.
        size: Size,
        /// Write the approval that the permit of this generation brought, too.
        approval: Option<u64>,
    },
    /// Ask the guest whether it can do with less.
    AskGuest {
        /// Newer than every earlier action.
        generation: u64,
        /// What it has.
        from: Size,
        /// What it would have.
        to: Size,
    },
    /// Tell the guest what is plugged.
    TellGuest {
        /// Newer than every earlier action.
        generation: u64,
        /// What the hypervisor shows.
        plugged: Size,
    },
}

impl Action {
    /// The generation that the answer must carry.
    #[must_use]
    pub fn generation(&self) -> u64 {
        match *self {
            Self::AskPermit { generation, .. }
            | Self::PatchVm { generation, .. }
            | Self::AskGuest { generation, .. }
            | Self::TellGuest { generation, .. } => generation,
        }
    }
}

/// Why: log field and metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The goal is above the permit.
    Grow,
    /// The hypervisor shows that something is gone.
    Return,
    /// The scheduler hears from every VM regularly.
    Statement,
    /// The spec follows the goal upwards.
    PermitUnused,
    /// The guest agreed to a smaller size.
    GuestAgreed,
    /// Growth that is not plugged yet is not wanted any more.
    GrowthUndone,
    /// Only the approval changed.
    Approval,
    /// The spec asks for what neither permit nor hypervisor has.
    SpecBeyondPermit,
    /// The guest is asked before a shrink.
    PlanShrink,
    /// The plugged size changed.
    Plugged,
}

impl Why {
    /// Fixed text for logs and metric labels.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Grow => "grow",
            Self::Return => "return",
            Self::Statement => "statement",
            Self::PermitUnused => "permit_unused",
            Self::GuestAgreed => "guest_agreed",
            Self::GrowthUndone => "growth_undone",
            Self::Approval => "approval",
            Self::SpecBeyondPermit => "spec_beyond_permit",
            Self::PlanShrink => "plan_shrink",
            Self::Plugged => "plugged",
        }
    }
}

/// What to do now, and when to ask again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actions {
    /// Start these; report `Started` before each.
    pub start: Vec<(Action, Why)>,
    /// Call `next` again then. `None`: only an event can change the answer.
    pub wake_at: Option<Moment>,
}
