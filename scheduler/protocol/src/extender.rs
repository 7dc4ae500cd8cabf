//! What kube-scheduler asks its extender, with Go's field names.
//!
//! The configuration says `nodeCacheCapable`, so requests carry node names only. Of a pod, only what the ledger needs is
//! read: whole pods are large, and their types change with every release of Kubernetes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

/// A longer body is refused unread: names of 100,000 nodes fit.
pub const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;
/// Name in kube-scheduler's client certificate: nobody else may place.
pub const KUBE_SCHEDULER_SAN: &str = "kube-scheduler.neonvm.internal";
/// The best score.
pub const MAX_SCORE: i64 = 10;

/// Body of filter and prioritize.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExtenderArgs<'a> {
    /// The pod to place.
    #[serde(borrow)]
    pub pod: PodView<'a>,
    /// The nodes that are left. Absent: the configuration lacks `nodeCacheCapable`.
    #[serde(borrow, default)]
    pub node_names: Option<Vec<NodeName<'a>>>,
}

/// Name of a node, as it stands in the body: there may be ten thousand.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct NodeName<'a>(#[serde(borrow)] Cow<'a, str>);

impl NodeName<'_> {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The part of a pod that decides how much of a node it takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct PodView<'a> {
    /// Names, labels, owners.
    #[serde(borrow)]
    pub metadata: MetadataView<'a>,
    /// Containers.
    #[serde(borrow, default)]
    pub spec: PodSpecView<'a>,
}

/// The part of an object's metadata that is needed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetadataView<'a> {
    /// Name.
    #[serde(borrow, default)]
    pub name: Cow<'a, str>,
    /// Namespace.
    #[serde(borrow, default)]
    pub namespace: Cow<'a, str>,
    /// Identity.
    #[serde(borrow, default)]
    pub uid: Cow<'a, str>,
    /// Labels.
    #[serde(borrow, default)]
    pub labels: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
    /// Annotations.
    #[serde(borrow, default)]
    pub annotations: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
    /// Owners.
    #[serde(borrow, default)]
    pub owner_references: Vec<OwnerView<'a>>,
}

/// An owner of an object.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerView<'a> {
    /// Group and version of the owner.
    #[serde(borrow, default)]
    pub api_version: Cow<'a, str>,
    /// Kind of the owner.
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    /// Name of the owner.
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    /// Identity of the owner.
    #[serde(borrow)]
    pub uid: Cow<'a, str>,
    /// It manages the object. An object has one such owner at most.
    #[serde(default)]
    pub controller: Option<bool>,
}

/// The part of a pod's spec that is needed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpecView<'a> {
    /// Containers.
    #[serde(borrow, default)]
    pub containers: Vec<ContainerView<'a>>,
    /// Init containers; those with `restartPolicy: Always` run beside the containers.
    #[serde(borrow, default)]
    pub init_containers: Vec<ContainerView<'a>>,
    /// What the pod needs beside its containers.
    #[serde(borrow, default)]
    pub overhead: Option<Quantities<'a>>,
    /// Requests of the pod as a whole.
    #[serde(borrow, default)]
    pub resources: Option<ResourcesView<'a>>,
}

/// The part of a container that is needed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerView<'a> {
    /// Name.
    #[serde(borrow, default)]
    pub name: Cow<'a, str>,
    /// `Always` for a sidecar.
    #[serde(borrow, default)]
    pub restart_policy: Option<Cow<'a, str>>,
    /// Requests.
    #[serde(borrow, default)]
    pub resources: Option<ResourcesView<'a>>,
}

/// Requests and limits; the limits do not matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct ResourcesView<'a> {
    /// Requests.
    #[serde(borrow, default)]
    pub requests: Option<Quantities<'a>>,
}

/// CPU and memory as Kubernetes writes them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Quantities<'a> {
    /// CPU.
    #[serde(borrow, default)]
    pub cpu: Option<Cow<'a, str>>,
    /// Memory.
    #[serde(borrow, default)]
    pub memory: Option<Cow<'a, str>>,
}

/// Answer to filter, written from what the question and the ledger hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct FilterResult<'a> {
    /// The nodes that are left.
    pub node_names: Vec<&'a str>,
    /// The nodes that are not, with the reason that users see. Each node is named once.
    #[serde(serialize_with = "as_map")]
    pub failed_nodes: Vec<(&'a str, &'a str)>,
    /// A fault: the pod is tried again later.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub error: &'a str,
}

fn as_map<S: Serializer>(pairs: &[(&str, &str)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().copied())
}

/// One entry of the answer to prioritize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostPriority<'a> {
    /// The node.
    pub host: &'a str,
    /// 0 to [`MAX_SCORE`].
    pub score: i64,
}

/// Body of preempt.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PreemptionArgs<'a> {
    /// The pod to place.
    #[serde(borrow)]
    pub pod: PodView<'a>,
    /// The pods that would be evicted, per node.
    #[serde(default)]
    pub node_name_to_meta_victims: Option<BTreeMap<String, MetaVictims>>,
}

/// The pods that would be evicted on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaVictims {
    /// The pods.
    #[serde(rename = "Pods", default)]
    pub pods: Option<Vec<MetaPod>>,
    /// How many disruption budgets would be violated.
    #[serde(rename = "NumPDBViolations", default)]
    pub num_pdb_violations: i64,
}

/// A pod by its identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaPod {
    /// Identity.
    #[serde(rename = "UID")]
    pub uid: String,
}

/// Answer to preempt: the nodes where the eviction is of use and allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PreemptionResult {
    /// The pods to evict, per node.
    pub node_name_to_meta_victims: BTreeMap<String, MetaVictims>,
}

/// Body of bind.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BindingArgs {
    /// Name of the pod.
    #[serde(rename = "PodName")]
    pub pod_name: String,
    /// Namespace of the pod.
    #[serde(rename = "PodNamespace")]
    pub pod_namespace: String,
    /// Identity of the pod.
    #[serde(rename = "PodUID")]
    pub pod_uid: String,
    /// Where it goes.
    #[serde(rename = "Node")]
    pub node: String,
}

/// Answer to bind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct BindingResult {
    /// Empty when the pod is bound.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}
