//! What happened outside.

use guest_units::{Bytes, Size};

use crate::action::Action;
use crate::policy::Policy;
use crate::reference::{CacheWindows, SystemMetrics};

/// The range a VM may be scaled in, and the step of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Smallest size.
    pub min: Size,
    /// Largest size.
    pub max: Size,
    /// Memory comes in multiples of this.
    pub slot: Bytes,
}

/// What the VM object shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmView {
    /// The size that the spec asks for.
    pub spec: Size,
    /// The size that the scheduler approved, as written in the object.
    pub approved: Option<Size>,
    /// What the hypervisor shows to be plugged.
    pub plugged: Size,
}

/// One measurement of the guest. Claims: the brain clamps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// What the guest needs, without any reserve.
    pub demand: Size,
    /// What it uses; shown, never decided on.
    pub used: Size,
    /// What the policy `reference` decides on; `None` from a guest that does not say it.
    pub system: Option<SystemSample>,
}

/// The system metrics of the policy `reference`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemSample {
    /// Load average over a minute, in thousandths: exact, since the kernel names hundredths.
    pub load1_milli: u32,
    /// Load average over five minutes, in thousandths.
    pub load5_milli: u32,
    /// Memory in use: total - available + [`SystemSample::KERNEL`].
    pub memory_usage: Bytes,
    /// Page cache.
    pub memory_cached: Bytes,
}

impl SystemSample {
    /// What the kernel is taken to use beside what it manages.
    pub const KERNEL: Bytes = Bytes::from_mib(100);

    /// Memory in use as the reference counts it.
    #[must_use]
    pub fn usage(total: Bytes, available: Bytes) -> Bytes {
        total.saturating_sub(available).saturating_add(Self::KERNEL)
    }
}

impl From<SystemSample> for SystemMetrics {
    fn from(sample: SystemSample) -> Self {
        Self {
            load_average_1min: f64::from(sample.load1_milli) / 1000.0,
            load_average_5min: f64::from(sample.load5_milli) / 1000.0,
            memory_usage: sample.memory_usage,
            memory_cached: sample.memory_cached,
        }
    }
}

/// What happened outside. Answers carry the generation of their action; others are stale and ignored.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The bounds changed.
    Limits(Limits),
    /// The policy or its numbers changed. Sizes and requests in flight stay as they are.
    Policy(Box<Policy>),
    /// The VM object was seen.
    Vm(VmView),
    /// The guest measured.
    Sample(Sample),
    /// The cache measured its working set; only the policy `reference` wants to know, while its configuration enables it.
    Cache(Box<CacheWindows>),
    /// The guest needs this size at once.
    Asked(Size),
    /// The shell starts this action; `next` no longer names it.
    Started(Action),
    /// The scheduler answered. `reason` tells why it is less than wanted.
    PermitAnswered {
        /// Of the request.
        generation: u64,
        /// What the VM may have from now on.
        permit: Size,
        /// The scheduler's words; empty when all was granted.
        reason: String,
    },
    /// The scheduler did not answer, or its answer was refused.
    PermitFailed {
        /// Of the request.
        generation: u64,
    },
    /// A counterparty has seen this generation: the next action must be newer.
    Newest(u64),
    /// The API server took the patch.
    Patched {
        /// Of the patch.
        generation: u64,
    },
    /// The API server did not take the patch.
    PatchFailed {
        /// Of the patch.
        generation: u64,
        /// Another writer was faster: the object was read again, so a new patch may follow soon.
        raced: bool,
    },
    /// The guest agrees to the shrink.
    GuestFine {
        /// Of the question.
        generation: u64,
    },
    /// The guest refuses to go below `least`.
    GuestVeto {
        /// Of the question.
        generation: u64,
        /// The smallest size it accepts.
        least: Size,
    },
    /// The guest heard what is plugged.
    GuestTold {
        /// Of the notice.
        generation: u64,
    },
    /// The guest did not answer.
    GuestFailed {
        /// Of the question or notice.
        generation: u64,
    },
    /// The connection to the guest stands.
    GuestConnected,
    /// The connection to the guest broke; requests over it end in `GuestFailed` as well.
    GuestLost,
}
