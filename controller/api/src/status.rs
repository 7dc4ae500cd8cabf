//! `VirtualMachine.status`: written by the operator alone, from what the hypervisor shows.

use guest_units::{Bytes, MilliCpu, Size};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;
use crate::vm::RevisionWithTime;

/// What a VM is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineStatus {
    /// `Available` and `Degraded`, and the state of a resize.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Where the VM is in its life.
    #[serde(default)]
    pub phase: Phase,
    /// Pods that the restart policy replaced.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub restart_count: i32,
    /// Present runner pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// Address of the present runner pod.
    #[serde(default, rename = "podIP", skip_serializing_if = "Option::is_none")]
    pub pod_ip: Option<String>,
    /// Node of the present runner pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Address on the overlay network.
    #[serde(default, rename = "extraNetIP", skip_serializing_if = "Option::is_none")]
    pub extra_net_ip: Option<String>,
    /// Mask of that address, in dotted form.
    #[serde(default, rename = "extraNetMask", skip_serializing_if = "Option::is_none")]
    pub extra_net_mask: Option<String>,
    /// The smaller of the CPUs present and the quota that the guest confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::cpu")]
    pub cpus: Option<MilliCpu>,
    /// Memory that the hypervisor shows as plugged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bytes")]
    pub memory_size: Option<Bytes>,
    /// Name of the Secret with the SSH keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_secret_name: Option<String>,
    /// Name of the Secret with the guest's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_secret_name: Option<String>,
    /// The revision that the VM has reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_revision: Option<RevisionWithTime>,
    /// Age of the newest approval that the operator obeys: nothing older is in flight or will ever be acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalAge>,
}

/// Which of two approvals of one VM is newer.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalAge {
    /// Term of the extender that issued it.
    pub epoch: u64,
    /// Counts up within a term.
    pub generation: u64,
}

impl VirtualMachineStatus {
    /// The size that the hypervisor shows, once both halves of it are known.
    #[must_use]
    pub fn plugged(&self) -> Option<Size> {
        Some(Size { cpu: self.cpus?, memory: self.memory_size? })
    }
}

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Nothing has happened yet.
    #[default]
    #[serde(rename = "")]
    Unset,
    /// Waiting for its pod.
    Pending,
    /// Serving, at its size.
    Running,
    /// The VM ended well.
    Succeeded,
    /// The VM ended badly, or its pod is gone.
    Failed,
    /// A migration target is being prepared.
    PreMigrating,
    /// A migration is under way.
    Migrating,
    /// Serving, while its size changes.
    Scaling,
}

impl Phase {
    /// Whether the guest runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::PreMigrating | Self::Migrating | Self::Scaling)
    }

    /// As in the object.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unset => "",
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::PreMigrating => "PreMigrating",
            Self::Migrating => "Migrating",
            Self::Scaling => "Scaling",
        }
    }
}
