//! `IPPool`: which addresses of a range of the overlay network are taken, and by whom.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A range of addresses and who has which.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "vm.neon.tech",
    version = "v1",
    kind = "IPPool",
    plural = "ippools",
    singular = "ippool",
    namespaced,
    derive = "PartialEq",
    doc = "Addresses of a range of the overlay network"
)]
pub struct IPPoolSpec {
    /// The range, as `10.100.0.0/16`.
    pub range: String,
    /// Taken addresses, by their decimal offset from the range's network address.
    pub allocations: BTreeMap<String, IPAllocation>,
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IPAllocation {
    /// The VM, as `namespace/name`.
    pub id: String,
    /// Not used.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub podref: String,
}
