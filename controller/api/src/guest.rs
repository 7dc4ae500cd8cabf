//! `spec.guest`: the machine inside.

use guest_units::{Bytes, MilliCpu};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// Memory grows and shrinks by a multiple of this: the block size of virtio-mem.
pub const MEMORY_BLOCK: Bytes = Bytes(8 << 20);

/// The machine inside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Guest {
    /// Container image that holds `/vmlinuz`. Not supported yet: the runner's kernel is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_image: Option<String>,
    /// The guest's memory_hotplug.auto_movable_ratio. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memhp_auto_movable_ratio: Option<String>,
    /// Appended to the kernel command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append_kernel_cmdline: Option<String>,
    /// Bounds and present size of the CPU.
    pub cpus: Cpus,
    /// Size of one memory slot, a multiple of 8Mi.
    #[serde(default = "default_slot_size")]
    #[schemars(schema_with = "schema::bytes")]
    pub memory_slot_size: Bytes,
    /// Bounds and present size of the memory, in slots.
    pub memory_slots: MemorySlots,
    /// The disk that the VM boots from.
    pub root_disk: RootDisk,
    /// Replaces the image's entry point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Replaces the image's arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment of the workload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub env: Vec<EnvVar>,
    /// Ports of the guest that are reachable at the pod's address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ports: Vec<Port>,
    /// Kernel settings and swap. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<GuestSettings>,
}

/// Bounds and present size of the CPU. Fractions are enforced inside the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cpus {
    /// Smallest size.
    #[schemars(schema_with = "schema::cpu")]
    pub min: MilliCpu,
    /// Largest size.
    #[schemars(schema_with = "schema::cpu")]
    pub max: MilliCpu,
    /// Present size.
    #[schemars(schema_with = "schema::cpu")]
    pub r#use: MilliCpu,
}

/// Bounds and present size of the memory, in slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemorySlots {
    /// Smallest size.
    #[schemars(range(min = 1, max = 512))]
    pub min: u32,
    /// Largest size.
    #[schemars(range(min = 1, max = 512))]
    pub max: u32,
    /// Present size.
    #[schemars(range(min = 1, max = 512))]
    pub r#use: u32,
}

/// The disk that a VM boots from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RootDisk {
    /// Container image that holds `/disk.qcow2`.
    pub image: String,
    /// Grow the disk to this size. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub size: Option<Quantity>,
    /// When the image is pulled.
    #[serde(default)]
    pub image_pull_policy: PullPolicy,
    /// Not supported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub execute: Vec<String>,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// Before each start.
    Always,
    /// Never.
    Never,
    /// If the node does not have it.
    #[default]
    IfNotPresent,
}

impl PullPolicy {
    /// As in a pod.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::Never => "Never",
            Self::IfNotPresent => "IfNotPresent",
        }
    }
}

/// A variable in the workload's environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EnvVar {
    /// Name.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// Value.
    #[serde(default)]
    pub value: String,
}

/// A port of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Port {
    /// Name of the pod's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub name: Option<String>,
    /// Number, the same in guest and pod.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// TCP or UDP.
    #[serde(default)]
    pub protocol: Protocol,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As in a pod.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// Kernel settings and swap.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GuestSettings {
    /// Lines of sysctl.conf.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sysctl: Vec<String>,
    /// Size of a swap disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub swap: Option<Quantity>,
}

impl Guest {
    /// Memory of so many slots.
    #[must_use]
    pub fn memory(&self, slots: u32) -> Bytes {
        Bytes(self.memory_slot_size.0.saturating_mul(u64::from(slots)))
    }
}

fn default_slot_size() -> Bytes {
    Bytes(1 << 30)
}
