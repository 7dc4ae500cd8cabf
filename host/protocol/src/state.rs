//! What the runner tells about its VM.

use serde::{Deserialize, Serialize};

use crate::order::{Generation, Plugged};

/// The runner's state; its revision changes whenever anything else in it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunnerState {
    /// Changes with every change; give it back as `known` to wait for the next one.
    pub revision: u64,
    /// What QEMU and the keeper show.
    pub plugged: Plugged,
    /// The connection to the guest's keeper.
    pub guest: GuestLink,
    /// The VM's life.
    pub vm: VmState,
    /// The newest generation seen, of an order or of whoever looked: orders of earlier epochs are refused.
    pub newest: Generation,
    /// Some order still runs or is unsettled, whoever gave it.
    pub busy: bool,
    /// How many vCPUs can still be added before the VM must restart; absent when there is no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_additions_left: Option<u32>,
}

/// The connection to the guest's keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GuestLink {
    /// Nobody answers yet, or no longer.
    Waiting,
    /// The keeper answers.
    Connected,
}

/// The VM's life as QEMU shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VmState {
    /// QEMU does not answer yet.
    Starting,
    /// QEMU runs the guest.
    Running,
    /// The guest was asked to stop, or stops by itself.
    Stopping,
}
