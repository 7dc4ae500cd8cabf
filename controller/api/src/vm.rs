//! `VirtualMachine`: a Postgres server in a virtual machine in a pod.
//!
//! Sizes are read through [`VirtualMachineSpec::min_size`], [`VirtualMachineSpec::use_size`] and
//! [`VirtualMachineSpec::max_size`]: nobody else multiplies slots with slot sizes.

use std::collections::BTreeMap;

use guest_units::{Bytes, MilliCpu, Size};
use k8s_openapi::api::core::v1::{
    Affinity, LocalObjectReference, ResourceRequirements, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::guest::Guest;
use crate::schema;
use crate::status::VirtualMachineStatus;

/// Default of `qmp`.
pub const DEFAULT_QMP_PORT: u16 = 20183;
/// Default of `qmpManual`.
pub const DEFAULT_QMP_MANUAL_PORT: u16 = 20184;
/// Default of `runnerPort`: plain, read-only `/ready` and `/metrics`.
pub const DEFAULT_RUNNER_PORT: u16 = 25183;

/// What a VM should be.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "vm.neon.tech",
    version = "v1",
    kind = "VirtualMachine",
    plural = "virtualmachines",
    singular = "neonvm",
    namespaced,
    status = "VirtualMachineStatus",
    derive = "PartialEq",
    doc = "A Postgres server in a virtual machine in a pod",
    printcolumn = r#"{"name":"Cpus","type":"string","jsonPath":".status.cpus"}"#,
    printcolumn = r#"{"name":"Memory","type":"string","jsonPath":".status.memorySize"}"#,
    printcolumn = r#"{"name":"Pod","type":"string","jsonPath":".status.podName"}"#,
    printcolumn = r#"{"name":"ExtraIP","type":"string","jsonPath":".status.extraNetIP"}"#,
    printcolumn = r#"{"name":"Status","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Restarts","type":"string","jsonPath":".status.restartCount"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".status.node","priority":1}"#,
    printcolumn = r#"{"name":"Image","type":"string","jsonPath":".spec.guest.rootDisk.image","priority":1}"#,
    printcolumn = r#"{"name":"CPUScalingMode","type":"string","jsonPath":".spec.cpuScalingMode","priority":1}"#,
    printcolumn = r#"{"name":"TargetArchitecture","type":"string","jsonPath":".spec.targetArchitecture","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineSpec {
    /// Port of the QEMU monitor. Only the default is supported: the monitor is not on the network.
    #[serde(default = "default_qmp")]
    #[schemars(range(min = 1, max = 65535))]
    pub qmp: u16,
    /// Second QEMU monitor, for people. Only the default is supported: it listens on the pod's loopback.
    #[serde(default = "default_qmp_manual")]
    #[schemars(range(min = 1, max = 65535))]
    pub qmp_manual: u16,
    /// Port of the runner's readiness and metrics. Only the default is supported.
    #[serde(default = "default_runner_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub runner_port: u16,
    /// Time that a stop may take; copied to the pod.
    #[serde(default = "default_grace")]
    #[schemars(range(min = 0))]
    pub termination_grace_period_seconds: i64,
    /// Copied to the pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Copied to the pod; the operating system and architecture are added to each term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Copied to the pod; tolerations of short node failures are added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Copied to the pod. Only VMs whose scheduler name is the agent's are autoscaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler_name: Option<String>,
    /// Copied to the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// Requests and limits of the runner container, as lower bounds of what the VM's size needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_resources: Option<ResourceRequirements>,
    /// When a new pod replaces an ended one. The pod itself is never restarted.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// Copied to the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Architecture of the guest and of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_architecture: Option<CpuArchitecture>,
    /// The machine inside.
    pub guest: Guest,
    /// Containers to run before the VM. Not supported yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::free_objects")]
    pub extra_init_containers: Vec<serde_json::Value>,
    /// Shell script to run before the VM. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_script: Option<String>,
    /// Disks besides the root disk. Not supported yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub disks: Vec<Disk>,
    /// Second network interface on the cluster-wide overlay. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_network: Option<ExtraNetwork>,
    /// The pod's enableServiceLinks.
    #[serde(default, rename = "service_links", skip_serializing_if = "Option::is_none")]
    pub service_links: Option<bool>,
    /// Use hardware virtualisation where there is any.
    #[serde(default = "yes")]
    pub enable_acceleration: bool,
    /// Image of the runner, instead of the controller's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner_image: Option<String>,
    /// Make a key pair for SSH into the guest. Not acted on yet.
    #[serde(default = "yes", rename = "enableSSH")]
    pub enable_ssh: bool,
    /// A certificate inside the guest. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// What the VM's size is divided by to get its cost on a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit: Option<Overcommit>,
    /// Opaque marker that appears in the status once the VM is as the spec wants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_revision: Option<RevisionWithTime>,
    /// How CPUs are added; the controller stores its default here if unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_scaling_mode: Option<CpuScalingMode>,
    /// Counters of internet traffic. Not supported yet.
    #[serde(default)]
    pub enable_network_monitoring: bool,
}

/// When a new pod replaces an ended one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestartPolicy {
    /// Whatever the end was.
    #[default]
    Always,
    /// Only after a failure.
    OnFailure,
    /// Never.
    Never,
}

/// Architecture of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CpuArchitecture {
    /// x86-64.
    Amd64,
    /// 64-bit Arm. Not supported yet.
    Arm64,
}

/// How CPUs are added to a running guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CpuScalingMode {
    /// QEMU hot-plugs and unplugs CPUs.
    QmpScaling,
    /// All CPUs are present; the guest puts them on and off line.
    SysfsScaling,
}

/// A second network interface on the cluster-wide overlay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExtraNetwork {
    /// Whether the VM gets one.
    #[serde(default)]
    pub enable: bool,
    /// Name of the pod's interface.
    #[serde(default = "default_interface")]
    pub interface: String,
    /// Network definition, `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multus_network: Option<String>,
}

/// A certificate from cert-manager inside the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Name of a ClusterIssuer.
    pub certificate_issuer: String,
    /// Requested validity, as `24h` or `90m`.
    #[schemars(regex(pattern = r"^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$"))]
    pub expire_after: String,
    /// How long before expiry the certificate is renewed.
    #[schemars(regex(pattern = r"^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$"))]
    pub renew_before: String,
    /// Common name and only DNS name.
    pub server_name: String,
    /// Directory in the guest that receives `tls.crt` and `tls.key`.
    #[serde(default = "default_tls_path")]
    pub mount_path: String,
}

/// What the VM's size is divided by to get its cost on a node; 1 where unset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Overcommit {
    /// Divisor of the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub cpu: Option<Quantity>,
    /// Divisor of the memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub memory: Option<Quantity>,
}

/// Opaque marker of a state of the spec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// Usually counts up.
    pub value: i64,
    /// Free for the writer.
    pub flags: u64,
}

/// A revision and when it was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionWithTime {
    /// The marker.
    pub revision: Revision,
    /// When it was written.
    pub updated_at: Time,
}

impl VirtualMachineSpec {
    /// A VM boots with this much memory; only what is above it can be unplugged.
    #[must_use]
    pub fn base_memory(&self) -> Bytes {
        self.guest.memory(self.guest.memory_slots.min)
    }

    /// The smallest size.
    #[must_use]
    pub fn min_size(&self) -> Size {
        Size { cpu: self.guest.cpus.min, memory: self.base_memory() }
    }

    /// The largest size.
    #[must_use]
    pub fn max_size(&self) -> Size {
        Size { cpu: self.guest.cpus.max, memory: self.guest.memory(self.guest.memory_slots.max) }
    }

    /// The size that the VM should have now.
    #[must_use]
    pub fn use_size(&self) -> Size {
        Size {
            cpu: self.guest.cpus.r#use,
            memory: self.guest.memory(self.guest.memory_slots.r#use),
        }
    }

    /// Divisors of CPU and memory in thousandths; 1000 where unset. Zero never comes back.
    #[must_use]
    pub fn overcommit_thousandths(&self) -> (u32, u32) {
        let divisor = |quantity: Option<&Quantity>| {
            quantity.and_then(thousandths).filter(|divisor| *divisor > 0).unwrap_or(1000)
        };
        let overcommit = self.overcommit.as_ref();
        (
            divisor(overcommit.and_then(|it| it.cpu.as_ref())),
            divisor(overcommit.and_then(|it| it.memory.as_ref())),
        )
    }
}

impl VirtualMachine {
    /// See [`VirtualMachineSpec::base_memory`].
    #[must_use]
    pub fn base_memory(&self) -> Bytes {
        self.spec.base_memory()
    }

    /// See [`VirtualMachineSpec::min_size`].
    #[must_use]
    pub fn min_size(&self) -> Size {
        self.spec.min_size()
    }

    /// See [`VirtualMachineSpec::max_size`].
    #[must_use]
    pub fn max_size(&self) -> Size {
        self.spec.max_size()
    }

    /// See [`VirtualMachineSpec::use_size`].
    #[must_use]
    pub fn use_size(&self) -> Size {
        self.spec.use_size()
    }
}

/// A non-negative quantity in thousandths, rounded up; `None` if it is not one.
pub(crate) fn thousandths(quantity: &Quantity) -> Option<u32> {
    let text = serde_json::Value::String(quantity.0.clone());
    serde_json::from_value::<MilliCpu>(text).ok().map(|value| value.0)
}

fn default_qmp() -> u16 {
    DEFAULT_QMP_PORT
}

fn default_qmp_manual() -> u16 {
    DEFAULT_QMP_MANUAL_PORT
}

fn default_runner_port() -> u16 {
    DEFAULT_RUNNER_PORT
}

fn default_grace() -> i64 {
    5
}

fn default_interface() -> String {
    "net1".to_owned()
}

fn default_tls_path() -> String {
    "/var/tls".to_owned()
}

fn yes() -> bool {
    true
}
