//! Objects as the watches read them: what `convert` looks at. Everything else in them, which is nearly all, is skipped while it is
//! read, and never takes memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher as _};

use controller_api::{VirtualMachine, VirtualMachineSpec, VirtualMachineStatus};
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use scheduler_ledger::Amount;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::quantity;

/// A node.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = "v1::Node")]
pub(crate) struct Node {
    #[serde(deserialize_with = "identity")]
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: Option<NodeSpec>,
    pub(crate) status: Option<NodeStatus>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct NodeSpec {
    #[serde(default)]
    pub(crate) taints: Vec<Taint>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Taint {
    pub(crate) key: String,
    pub(crate) value: Option<String>,
    pub(crate) effect: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct NodeStatus {
    pub(crate) allocatable: Option<Quantities>,
}

/// A pod.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = "v1::Pod")]
pub(crate) struct Pod {
    #[serde(deserialize_with = "identity")]
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: Option<PodSpec>,
    pub(crate) status: Option<PodStatus>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec {
    pub(crate) node_name: Option<String>,
    #[serde(default)]
    pub(crate) containers: Vec<Container>,
    #[serde(default)]
    pub(crate) init_containers: Vec<Container>,
    pub(crate) overhead: Option<Quantities>,
    pub(crate) resources: Option<Resources>,
    pub(crate) scheduler_name: Option<String>,
    #[serde(default)]
    pub(crate) node_selector: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) tolerations: Vec<Toleration>,
    #[serde(default)]
    pub(crate) affinity: Affinity,
    #[serde(default)]
    pub(crate) topology_spread_constraints: Digest,
    #[serde(default)]
    pub(crate) resource_claims: Digest,
    #[serde(default)]
    pub(crate) volumes: Vec<Volume>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Toleration {
    pub(crate) key: Option<String>,
    pub(crate) operator: Option<String>,
    pub(crate) value: Option<String>,
    pub(crate) effect: Option<String>,
}

/// Whether a volume may tie a pod to a node. To which, its name would not tell: each pod of a StatefulSet has others.
#[derive(Debug, Clone, Deserialize, Hash)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Volume {
    #[serde(default, deserialize_with = "present")]
    persistent_volume_claim: bool,
    #[serde(default, deserialize_with = "present")]
    ephemeral: bool,
    #[serde(default, deserialize_with = "present")]
    csi: bool,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

#[derive(Debug, Clone, Deserialize, Hash)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Port {
    host_port: Option<u16>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) resources: Option<Resources>,
    pub(crate) restart_policy: Option<String>,
    #[serde(default)]
    pub(crate) ports: Vec<Port>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Resources {
    pub(crate) requests: Option<Quantities>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodStatus {
    pub(crate) phase: Option<String>,
    pub(crate) observed_generation: Option<i64>,
    #[serde(default)]
    pub(crate) conditions: Vec<PodCondition>,
    #[serde(default)]
    pub(crate) container_statuses: Vec<ContainerStatus>,
    #[serde(default)]
    pub(crate) init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodCondition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) reason: Option<String>,
    pub(crate) observed_generation: Option<i64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerStatus {
    pub(crate) name: String,
    pub(crate) allocated_resources: Option<Quantities>,
}

/// CPU in thousandths and memory in bytes of a map of quantities, where it has them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Quantities {
    pub(crate) cpu_millis: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
    /// All others.
    pub(crate) others: Digest,
}

impl Quantities {
    /// What is absent is nothing.
    pub(crate) fn amount(self) -> Amount {
        let Self { cpu_millis, memory_bytes, .. } = self;
        Amount { cpu_millis: cpu_millis.unwrap_or(0), memory_bytes: memory_bytes.unwrap_or(0) }
    }
}

impl<'de> Deserialize<'de> for Quantities {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Quantities;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of quantities")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Quantities, A::Error> {
                let (mut read, mut others) = (Quantities::default(), DefaultHasher::new());
                while let Some(Text(name)) = map.next_key()? {
                    let Text(value) = map.next_value()?;
                    match &*name {
                        "cpu" => read.cpu_millis = Some(quantity::cpu(&value)),
                        "memory" => read.memory_bytes = Some(quantity::memory(&value)),
                        _ => (name, value).hash(&mut others),
                    }
                }
                read.others = Digest(others.finish());
                Ok(read)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A text that is borrowed where it can be.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Anything, by a hash of it: only whether two are equal is of interest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Digest(u64);

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(|value| Self::of(&value))
    }
}

impl Digest {
    fn of(value: &Value) -> Self {
        let mut hasher = DefaultHasher::new();
        value.to_string().hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The affinity of a pod.
#[derive(Debug, Clone, Default)]
pub(crate) struct Affinity {
    /// Of all of it.
    pub(crate) digest: Digest,
    /// What a node must have, where there is no alternative to it.
    pub(crate) term: Option<v1::NodeSelectorTerm>,
}

impl<'de> Deserialize<'de> for Affinity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const TERMS: &str =
            "/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
        let mut all = Value::deserialize(deserializer)?;
        let digest = Digest::of(&all);
        let term = match all.pointer_mut(TERMS).map(Value::take) {
            // One that cannot be read is known by the digest, like alternatives.
            Some(Value::Array(terms)) if terms.len() == 1 => {
                terms.into_iter().next().and_then(|term| Deserialize::deserialize(term).ok())
            }
            _ => None,
        };
        Ok(Self { digest, term })
    }
}

/// A VM, as far as it can be read: a single one that cannot must not hide the others.
#[derive(Debug, Clone, Resource)]
#[resource(inherit = "VirtualMachine")]
pub(crate) struct Vm {
    pub(crate) metadata: ObjectMeta,
    /// Or why not.
    pub(crate) read: Result<Box<VirtualMachine>, String>,
}

impl<'de> Deserialize<'de> for Vm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Parts {
            #[serde(deserialize_with = "identity")]
            metadata: ObjectMeta,
            #[serde(default)]
            spec: Value,
            #[serde(default)]
            status: Value,
        }
        let Parts { metadata, spec, status } = Parts::deserialize(deserializer)?;
        let read = || {
            let spec = VirtualMachineSpec::deserialize(&spec)?;
            let status = Option::<VirtualMachineStatus>::deserialize(&status)?;
            let vm = VirtualMachine { metadata: metadata.clone(), spec, status };
            Ok::<_, serde_json::Error>(Box::new(vm))
        };
        let read = read().map_err(|err| err.to_string());
        Ok(Self { metadata, read })
    }
}

/// What of the metadata is looked at, or needed for watching.
fn identity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Identity {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        generation: Option<i64>,
        annotations: Option<BTreeMap<String, String>>,
        labels: Option<BTreeMap<String, String>>,
        owner_references: Option<Vec<OwnerReference>>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
    }
    let read = Identity::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: read.name,
        namespace: read.namespace,
        uid: read.uid,
        resource_version: read.resource_version,
        generation: read.generation,
        annotations: read.annotations,
        labels: read.labels,
        owner_references: read.owner_references,
        creation_timestamp: read.creation_timestamp,
        deletion_timestamp: read.deletion_timestamp,
        ..ObjectMeta::default()
    })
}

#[cfg(test)]
mod tests {
    use kube::core::{ObjectList, WatchEvent};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_vm_that_cannot_be_read_hides_no_other() {
        let good = crate::sign::tests::vm("u1");
        let bad = json!({
            "metadata": {"name": "b", "uid": "u2", "managedFields": [{"manager": "m"}]}, "spec": {"guest": 7}
        });
        let list = json!({"apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachineList", "metadata": {}, "items": [bad, good]});
        let list: ObjectList<Vm> = serde_json::from_str(&list.to_string()).unwrap();
        let [bad, good] = &list.items[..] else { panic!("{list:?}") };
        assert_eq!(bad.metadata.uid.as_deref(), Some("u2"));
        assert!(bad.read.as_ref().unwrap_err().contains("invalid type"), "{bad:?}");
        assert_eq!(good.read.as_ref().unwrap().metadata.uid.as_deref(), Some("u1"));
        let event = json!({"type": "MODIFIED", "object": crate::sign::tests::vm("u3")});
        let WatchEvent::Modified(vm) =
            serde_json::from_str::<WatchEvent<Vm>>(&event.to_string()).unwrap()
        else {
            panic!("{event}")
        };
        assert_eq!(vm.read.unwrap().metadata.uid.as_deref(), Some("u3"));
    }
}
