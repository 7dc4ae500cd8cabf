//! What the agent reads from a VM object: is it ours to scale, in which range, and what does it have.
//!
//! A VM is ours when its label enables autoscaling, it is alive on this node with a pod and an address, its
//! scheduler is the configured one, and the hypervisor's sizes are known. Wrong bounds or configuration make it
//! invalid: not scaled until they are corrected, and said so in an Event.

use controller_api::{Approval, Bounds, Phase, VirtualMachine, annotations, names};
use guest_units::{Bytes, Size};
use host_scaling::{Limits, Policy};

use crate::config::FileConfig;

/// Smallest and largest CPU that autoscaling accepts, in thousandths.
const CPU_RANGE: std::ops::RangeInclusive<u32> = 50..=512_000;

/// Namespace and name of a VM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct VmKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl VmKey {
    pub(crate) fn of(metadata: &kube::core::ObjectMeta) -> Self {
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }
}

/// What a VM object says about its scaling.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Seen {
    Ours(Box<VmView>),
    NotOurs,
    /// It would be ours, but cannot be scaled as it stands.
    Invalid(String),
}

/// The parts of a VM object that scaling needs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VmView {
    pub(crate) key: VmKey,
    pub(crate) uid: String,
    pub(crate) pod_name: String,
    pub(crate) limits: Limits,
    pub(crate) policy: Policy,
    pub(crate) spec: Size,
    pub(crate) plugged: Size,
    pub(crate) approved: Option<Size>,
    /// The proof annotation as it stands: what the next patch tests.
    pub(crate) proof: Option<String>,
    pub(crate) has_annotations: bool,
    pub(crate) resource_version: Option<u64>,
    /// Counts the writes of the spec: the next patch tests it.
    pub(crate) generation: Option<i64>,
    /// The highest revision that the object names.
    pub(crate) revision: i64,
    /// Has an endpoint's id.
    pub(crate) is_endpoint: bool,
}

impl VmView {
    /// For the brain.
    pub(crate) fn for_scaler(&self) -> host_scaling::VmView {
        host_scaling::VmView { spec: self.spec, approved: self.approved, plugged: self.plugged }
    }

    /// Older than `other`, as far as that can be told.
    pub(crate) fn is_older_than(&self, other: &Self) -> bool {
        matches!((self.resource_version, other.resource_version), (Some(a), Some(b)) if a < b)
    }

    pub(crate) fn slots(&self, memory: Bytes) -> u64 {
        memory.0.div_ceil(self.limits.slot.0.max(1))
    }
}

/// Looks at a VM object.
pub(crate) fn look(vm: &VirtualMachine, node: &str, config: &FileConfig) -> Seen {
    let Some(status) = &vm.status else { return Seen::NotOurs };
    let alive = status.phase.is_alive() && status.phase != Phase::Migrating;
    let ours = annotations::is_autoscaled(vm)
        && alive
        && status.node.as_deref() == Some(node)
        && status.pod_ip.is_some()
        && vm.metadata.deletion_timestamp.is_none()
        && vm.spec.scheduler_name.as_deref() == Some(config.scheduler.name.as_str());
    let (Some(pod_name), Some(plugged), Some(uid)) =
        (&status.pod_name, status.plugged(), &vm.metadata.uid)
    else {
        return Seen::NotOurs;
    };
    if !ours {
        return Seen::NotOurs;
    }
    let annotations = vm.metadata.annotations.as_ref();
    let (policy, limits) = match (config.policies.of(annotations), limits(vm)) {
        (Ok(policy), Ok(limits)) => (policy, limits),
        (Err(reason), _) | (_, Err(reason)) => return Seen::Invalid(reason),
    };
    let approval = annotations.and_then(|all| Approval::from_annotations(all).ok().flatten());
    let revisions = [vm.spec.target_revision.as_ref(), status.current_revision.as_ref()];
    let label = |key| vm.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(key));
    Seen::Ours(Box::new(VmView {
        key: VmKey::of(&vm.metadata),
        uid: uid.clone(),
        pod_name: pod_name.clone(),
        limits,
        policy,
        spec: vm.use_size(),
        plugged,
        approved: approval.map(|approval| approval.size),
        proof: annotations.and_then(|all| all.get(names::ANNOTATION_APPROVED_PROOF)).cloned(),
        has_annotations: annotations.is_some_and(|all| !all.is_empty()),
        resource_version: vm.metadata.resource_version.as_ref().and_then(|it| it.parse().ok()),
        generation: vm.metadata.generation,
        revision: revisions.into_iter().flatten().map(|it| it.revision.value).max().unwrap_or(0),
        is_endpoint: label(names::LABEL_ENDPOINT_ID),
    }))
}

fn limits(vm: &VirtualMachine) -> Result<Limits, String> {
    let Bounds { min, max } = Bounds::of(vm).map_err(|err| guest_units::Chain(&err).to_string())?;
    for (name, size) in [("minimum", min), ("maximum", max)] {
        if !CPU_RANGE.contains(&size.cpu.0) {
            return Err(format!("the {name} of {} vCPU is not between 0.05 and 512", size.cpu));
        }
    }
    if !min.fits_in(max) {
        return Err("the minimum is above the maximum".to_owned());
    }
    Ok(Limits { min, max, slot: vm.spec.guest.memory_slot_size })
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn object() -> Value {
        json!({
            "apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachine",
            "metadata": {
                "name": "pg", "namespace": "default", "uid": "u-1", "resourceVersion": "100",
                "generation": 5,
                "labels": {"autoscaling.neon.tech/enabled": "true"},
            },
            "spec": {
                "schedulerName": "autoscale-scheduler",
                "targetRevision": {"revision": {"value": 7, "flags": 0}, "updatedAt": "2026-01-01T00:00:00Z"},
                "guest": {
                    "cpus": {"min": "250m", "max": 4, "use": 1},
                    "memorySlotSize": "128Mi",
                    "memorySlots": {"min": 8, "max": 64, "use": 16},
                    "rootDisk": {"image": "pg"},
                },
            },
            "status": {
                "phase": "Running", "podName": "pg-abcde", "podIP": "10.0.0.2", "node": "n1",
                "cpus": 1, "memorySize": "2Gi",
            },
        })
    }

    pub(crate) fn seen(value: Value) -> Seen {
        let vm = serde_json::from_value(value).unwrap();
        look(&vm, "n1", &crate::config::shipped())
    }

    pub(crate) fn view(value: Value) -> VmView {
        match seen(value) {
            Seen::Ours(view) => *view,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_vm_of_this_node_is_ours() {
        let view = view(object());
        assert_eq!(view.key, VmKey { namespace: "default".into(), name: "pg".into() });
        assert_eq!((view.spec.cpu.0, view.spec.memory), (1000, Bytes(2 << 30)));
        assert_eq!((view.limits.min.cpu.0, view.limits.max.memory), (250, Bytes(8 << 30)));
        assert_eq!((view.revision, view.resource_version), (7, Some(100)));
        assert_eq!(view.generation, Some(5));
        assert_eq!(view.slots(Bytes(3 << 30)), 24);
    }

    #[test]
    fn other_vms_are_left_alone() {
        type Change = fn(&mut Value);
        let table: [(&str, Change); 9] = [
            ("label", |v| v["metadata"]["labels"] = json!({})),
            ("other node", |v| v["status"]["node"] = "n2".into()),
            ("no address", |v| drop(v["status"].as_object_mut().unwrap().remove("podIP"))),
            ("no pod", |v| drop(v["status"].as_object_mut().unwrap().remove("podName"))),
            ("migrating", |v| v["status"]["phase"] = "Migrating".into()),
            ("over", |v| v["status"]["phase"] = "Failed".into()),
            ("other scheduler", |v| v["spec"]["schedulerName"] = "default-scheduler".into()),
            ("sizes unknown", |v| drop(v["status"].as_object_mut().unwrap().remove("cpus"))),
            ("being deleted", |v| {
                v["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }),
        ];
        for (name, change) in table {
            let mut value = object();
            change(&mut value);
            assert_eq!(seen(value), Seen::NotOurs, "{name}");
        }
    }

    #[test]
    fn wrong_annotations_are_named() {
        let table = [
            (
                "autoscaling.neon.tech/bounds",
                "{",
                "read annotation autoscaling.neon.tech/bounds: EOF",
            ),
            (
                "autoscaling.neon.tech/bounds",
                r#"{"min":{"cpu":1,"mem":"1Gi"},"max":{"cpu":0,"mem":"2Gi"}}"#,
                "annotation autoscaling.neon.tech/bounds: max.cpu must be above zero",
            ),
            (
                "autoscaling.neon.tech/bounds",
                r#"{"min":{"cpu":-1,"mem":"1Gi"},"max":{"cpu":2,"mem":"2Gi"}}"#,
                "read annotation autoscaling.neon.tech/bounds: ",
            ),
            (
                "autoscaling.neon.tech/config",
                r#"{"loadAverageFractionTarget": 3}"#,
                "annotation autoscaling.neon.tech/config: loadAverageFractionTarget: 3",
            ),
            (
                "autoscaling.neon.tech/policy",
                "magic",
                "annotation autoscaling.neon.tech/policy: \"magic\" is not \"headroom\"",
            ),
        ];
        for (key, text, expected) in table {
            let mut value = object();
            value["metadata"]["annotations"] = json!({ key: text });
            match seen(value) {
                Seen::Invalid(reason) => assert!(reason.starts_with(expected), "{reason}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn bounds_replace_the_range_within_the_spec() {
        let mut value = object();
        value["metadata"]["annotations"] = json!({
            "autoscaling.neon.tech/bounds":
                r#"{"min":{"cpu":"500m","mem":"1Gi"},"max":{"cpu":2,"mem":"4Gi"}}"#,
        });
        let view = view(value);
        assert_eq!((view.limits.min.cpu.0, view.limits.max.cpu.0), (500, 2000));
        assert_eq!(view.limits.max.memory, Bytes(4 << 30));
    }
}
