//! Orders to the runner and how they end.

use guest_units::{Bytes, MilliCpu};
use serde::{Deserialize, Serialize};

/// Orders time: later ones are greater. The epoch is the operator's leadership, the counter its own.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Rises with every change of leader.
    pub epoch: u64,
    /// Rises with every order of one epoch.
    pub counter: u64,
}

/// One order. Sizes are totals, never differences, so an order may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Newer than every earlier order for the same resource.
    pub generation: Generation,
    /// What is to be done.
    pub what: What,
}

/// What an order asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    /// CPU of the VM: vCPUs rounded up, the fraction as the workload's quota.
    SetCpu(MilliCpu),
    /// Memory of the VM, base included.
    SetMemory(Bytes),
    /// Shut the guest down cleanly.
    PowerDown,
}

/// What an order acts on. One order per resource runs at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// vCPUs and quota.
    Cpu,
    /// Memory.
    Memory,
    /// The VM's life.
    Power,
}

impl What {
    /// The resource this acts on.
    #[must_use]
    pub fn resource(self) -> Resource {
        match self {
            Self::SetCpu(_) => Resource::Cpu,
            Self::SetMemory(_) => Resource::Memory,
            Self::PowerDown => Resource::Power,
        }
    }
}

/// What the hypervisor shows to be plugged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plugged {
    /// vCPUs that exist in QEMU.
    pub vcpus: u32,
    /// The smallest of the vCPUs, the quota that the guest's keeper confirmed and the CPUs that are online. While
    /// the VM boots, the CPU that it is to boot with, if that is more.
    pub cpu: MilliCpu,
    /// Base memory and what virtio-mem has plugged.
    pub memory: Bytes,
}

/// How an order ended, and what is plugged now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The revision of the runner's state after the order.
    pub revision: u64,
    /// After the order.
    pub plugged: Plugged,
    /// How it ended.
    pub result: OrderResult,
}

/// How an order ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OrderResult {
    /// Everything asked is so now.
    Done,
    /// A part of it is so now. What is left of it is no longer tried and does not come later.
    Partial {
        /// Why not all.
        reason: String,
    },
    /// The guest refused the shrink; nothing was taken beyond what `plugged` shows.
    Vetoed {
        /// The smallest total that the guest would accept.
        least: Bytes,
        /// The guest's reason.
        reason: String,
    },
    /// The order was older than one already seen, and nothing was done.
    Stale {
        /// The newest generation seen for this resource.
        newest: Generation,
    },
    /// Nothing could be done.
    Failed {
        /// Why.
        reason: String,
    },
    /// The hypervisor did not confirm in time that nothing of the order is pending, so `plugged` is not its end. The runner
    /// goes on until it is over, and is busy as long.
    Unsettled {
        /// Why.
        reason: String,
    },
}

impl OrderResult {
    /// A fixed word for metrics and logs.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Partial { .. } => "partial",
            Self::Vetoed { .. } => "vetoed",
            Self::Stale { .. } => "stale",
            Self::Failed { .. } => "failed",
            Self::Unsettled { .. } => "unsettled",
        }
    }
}
