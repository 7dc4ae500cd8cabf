//! `spec.disks`: disks besides the root disk. The shape and its rules are complete; mounting them
//! is not supported yet, so that the rules of `validation` refuse a VM that lists one.

use k8s_openapi::api::core::v1::{ConfigMapVolumeSource, SecretVolumeSource};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// Names that the pod uses itself.
pub const RESERVED_DISK_NAMES: [&str; 9] = [
    "virtualmachineimages",
    "rootdisk",
    "runtime",
    "swapdisk",
    "sysfscgroup",
    "ssh-privatekey",
    "ssh-publickey",
    "ssh-authorized-keys",
    "tls",
];

/// A disk, or a directory, of the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Unique among the VM's disks.
    #[schemars(length(min = 1, max = 32))]
    pub name: String,
    /// Absolute path in the guest, unique among the VM's disks.
    #[schemars(length(min = 1, max = 255))]
    pub mount_path: String,
    /// Mount read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Keep the files of a configMap or secret in sync in the running guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<bool>,
    /// An empty file system that lives as long as the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_disk: Option<EmptyDisk>,
    /// The files of a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapVolumeSource>,
    /// The files of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretVolumeSource>,
    /// Memory of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tmpfs: Option<Tmpfs>,
}

/// An empty file system that lives as long as the pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDisk {
    /// Size of the file system.
    #[schemars(schema_with = "schema::quantity")]
    pub size: Quantity,
    /// Mount with discard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<bool>,
    /// Mount with project quotas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_quotas: Option<bool>,
}

/// A file system in the guest's memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tmpfs {
    /// Size of the file system.
    #[schemars(schema_with = "schema::quantity")]
    pub size: Quantity,
}

impl Disk {
    /// How many sources are set; one is meant, none makes a plain directory.
    #[must_use]
    pub fn sources(&self) -> usize {
        usize::from(self.empty_disk.is_some())
            + usize::from(self.config_map.is_some())
            + usize::from(self.secret.is_some())
            + usize::from(self.tmpfs.is_some())
    }
}
