//! `VirtualMachineMigration`: one live migration of one VM. The kind is complete, so that clients
//! and roles can be installed; creating one is refused until migration is supported.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::NodeAffinity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// What should move, and how. Never changes.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "vm.neon.tech",
    version = "v1",
    kind = "VirtualMachineMigration",
    plural = "virtualmachinemigrations",
    singular = "neonvmm",
    namespaced,
    status = "VirtualMachineMigrationStatus",
    derive = "PartialEq",
    doc = "One live migration of one VM",
    printcolumn = r#"{"name":"VM","type":"string","jsonPath":".spec.vmName"}"#,
    printcolumn = r#"{"name":"Source","type":"string","jsonPath":".status.sourcePodName"}"#,
    printcolumn = r#"{"name":"SourceIP","type":"string","jsonPath":".status.sourcePodIP","priority":1}"#,
    printcolumn = r#"{"name":"Target","type":"string","jsonPath":".status.targetPodName"}"#,
    printcolumn = r#"{"name":"TargetIP","type":"string","jsonPath":".status.targetPodIP","priority":1}"#,
    printcolumn = r#"{"name":"Status","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineMigrationSpec {
    /// VM in the same namespace.
    #[schemars(length(min = 1))]
    pub vm_name: String,
    /// Nodes to move to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Nodes to move to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<NodeAffinity>,
    /// Another node than the present one.
    #[serde(default = "yes")]
    pub prevent_migration_to_same_host: bool,
    /// Seconds after which the migration is given up.
    #[serde(default = "default_timeout")]
    pub completion_timeout: i32,
    /// Copy only what changed of the disks.
    #[serde(default = "yes")]
    pub incremental: bool,
    /// Run the target before all memory has arrived.
    #[serde(default)]
    pub allow_post_copy: bool,
    /// Slow a guest down that writes faster than it can be copied.
    #[serde(default = "yes")]
    pub auto_converge: bool,
    /// Bytes a second.
    #[serde(default = "default_bandwidth")]
    #[schemars(schema_with = "schema::quantity")]
    pub max_bandwidth: Quantity,
}

/// How far a migration is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineMigrationStatus {
    /// `Available` and `Degraded`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Where the migration is.
    #[serde(default)]
    pub phase: MigrationPhase,
    /// Pod that the VM leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_pod_name: Option<String>,
    /// Pod that the VM moves to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_pod_name: Option<String>,
    /// Address of the source pod.
    #[serde(default, rename = "sourcePodIP", skip_serializing_if = "Option::is_none")]
    pub source_pod_ip: Option<String>,
    /// Address of the target pod.
    #[serde(default, rename = "targetPodIP", skip_serializing_if = "Option::is_none")]
    pub target_pod_ip: Option<String>,
    /// Node that the VM leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_node: Option<String>,
    /// Node that the VM moves to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_node: Option<String>,
    /// What the hypervisor reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<MigrationInfo>,
}

/// Where a migration is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum MigrationPhase {
    /// Nothing has happened yet.
    #[default]
    #[serde(rename = "")]
    Unset,
    /// The target is being prepared.
    Pending,
    /// The transfer is under way.
    Running,
    /// The VM runs on the target.
    Succeeded,
    /// The VM stayed where it was.
    Failed,
}

/// What the hypervisor reports about a transfer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationInfo {
    /// The hypervisor's word for the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Duration so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_time_ms: Option<i64>,
    /// Duration of the preparation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup_time_ms: Option<i64>,
    /// How long the guest stood still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<i64>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram: Option<MigrationRam>,
    /// Compression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<MigrationCompression>,
}

/// Memory of a transfer, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MigrationRam {
    /// Sent.
    #[serde(default)]
    pub transferred: i64,
    /// Still to be sent.
    #[serde(default)]
    pub remaining: i64,
    /// All of it.
    #[serde(default)]
    pub total: i64,
}

/// Compression of a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationCompression {
    /// Bytes after compression.
    #[serde(default)]
    pub compressed_size: i64,
    /// Ratio, rounded.
    #[serde(default)]
    pub compression_rate: i64,
}

fn default_timeout() -> i32 {
    3600
}

fn default_bandwidth() -> Quantity {
    Quantity("1Gi".to_owned())
}

fn yes() -> bool {
    true
}
