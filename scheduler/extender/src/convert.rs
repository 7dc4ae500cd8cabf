//! Objects of Kubernetes, reduced to what the ledger needs.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use controller_api::{VirtualMachine, annotations, names};
use guest_units::MilliCpu;
use kube::Resource as _;
use scheduler_ledger::{
    Amount, ContainerNeeds, Demands, InitNeeds, Label, NodeFacts, Pending, PodFacts, PodKind,
    PodShape, Price, RunnerFacts, Taint, Toleration, VmFacts,
};
use scheduler_protocol::extender::{ContainerView, PodView, Quantities};
use serde::Deserialize;

use crate::objects::{self, Container, ContainerStatus, Node, Pod, PodSpec, PodStatus, Resources};
use crate::quantity;
use crate::sign::Signer;

const SIDECAR: &str = "Always";
/// Effect of a taint that keeps no pod away.
const AVOIDED: &str = "PreferNoSchedule";

pub(crate) fn node(node: &Node) -> Option<NodeFacts> {
    let allocatable = node.status.as_ref()?.allocatable?;
    let labels = node.metadata.labels.iter().flatten();
    let mut labels: Vec<Label> = labels.map(|(key, value)| Label::new(key, value)).collect();
    labels.sort_unstable();
    let taints = node.spec.iter().flat_map(|spec| &spec.taints);
    let taints = taints.filter(|taint| taint.effect != AVOIDED).map(|taint| Taint {
        key: taint.key.clone(),
        value: taint.value.clone().unwrap_or_default(),
        effect: taint.effect.clone(),
    });
    Some(NodeFacts {
        name: node.metadata.name.clone()?,
        allocatable: allocatable.amount(),
        labels: labels.into(),
        taints: taints.collect(),
    })
}

pub(crate) fn pod(pod: &Pod) -> Option<PodFacts> {
    let metadata = &pod.metadata;
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let owner = metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| is_vm(&owner.api_version, &owner.kind, owner.controller));
    let shape = shape(pod);
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let main = containers.enumerate().find(|(_, it)| it.name == names::RUNNER_CONTAINER);
    let kind = match (owner, main) {
        (Some(owner), Some((index, _))) => {
            PodKind::Runner(runner(pod, &shape, index, owner.uid.clone()))
        }
        _ => PodKind::Ordinary { requests: shape.requests() },
    };
    Some(PodFacts {
        uid: metadata.uid.clone()?,
        namespace: metadata.namespace.clone()?,
        name: metadata.name.clone()?,
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        unplaced: pod
            .spec
            .as_ref()
            .filter(|_| status.is_some_and(unschedulable))
            .map(|spec| Box::new(demands(pod, spec))),
        version: metadata.resource_version.as_deref().and_then(|it| it.parse().ok()).unwrap_or(0),
        kind,
    })
}

/// Whether a scheduler, whichever, has looked for a node in vain. A pod that no scheduler may look at yet has another reason.
fn unschedulable(status: &PodStatus) -> bool {
    status.conditions.iter().any(|condition| {
        condition.kind == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    })
}

/// What an unplaced pod demands of a node beside CPU and memory.
fn demands(pod: &Pod, spec: &PodSpec) -> Demands {
    let tolerations = spec.tolerations.iter().map(|it| Toleration {
        key: it.key.clone().filter(|key| !key.is_empty()),
        value: (it.operator.as_deref() != Some("Exists"))
            .then(|| it.value.clone().unwrap_or_default()),
        effect: it.effect.clone().filter(|effect| !effect.is_empty()),
    });
    let labels = spec.node_selector.iter().map(|(key, value)| Label::new(key, value));
    let (labels, tolerations): (Vec<_>, Vec<_>) = (labels.collect(), tolerations.collect());
    let mut class = DefaultHasher::new();
    (&pod.metadata.namespace, &spec.scheduler_name, &labels, &tolerations).hash(&mut class);
    (spec.affinity, spec.topology_spread_constraints, spec.resource_claims).hash(&mut class);
    spec.volumes.hash(&mut class);
    for container in spec.containers.iter().chain(&spec.init_containers) {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests);
        (requests.map(|requests| requests.others), &container.ports).hash(&mut class);
    }
    Demands { class: class.finish(), labels, tolerations }
}

/// Whether an owner is the VM that a pod runs: other groups may have a kind of the same name, and only one owner manages the pod.
fn is_vm(api_version: &str, kind: &str, controller: Option<bool>) -> bool {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    controller == Some(true)
        && group == VirtualMachine::group(&())
        && kind == VirtualMachine::kind(&())
}

fn runner(pod: &Pod, shape: &PodShape, main: usize, vm_uid: String) -> RunnerFacts {
    let (beside, init_peak) = shape.around(main);
    let needs = shape.containers[main];
    let generation = unsigned(pod.metadata.generation);
    // A kubelet that does not tell is taken at its word.
    let observed = pod.status.as_ref().and_then(|status| status.observed_generation);
    let overcommit =
        pod.metadata.annotations.as_ref().and_then(|all| all.get(names::ANNOTATION_OVERCOMMIT));
    RunnerFacts {
        vm_uid,
        spec: needs.spec,
        allocated: needs.allocated,
        beside,
        init_peak,
        generation,
        observed: observed.map_or(generation, |observed| unsigned(Some(observed))),
        pending: pod.status.as_ref().and_then(|status| pending(status, generation)),
        price: price(overcommit.map(String::as_str)),
    }
}

/// The divisors of a runner pod's cost, as the operator wrote them when it made the pod.
#[derive(Deserialize, Default)]
struct Overcommit {
    cpu: Option<MilliCpu>,
    memory: Option<MilliCpu>,
}

/// What a size costs in a runner pod. Without readable divisors it costs all of itself.
fn price(overcommit: Option<&str>) -> Price {
    let Overcommit { cpu, memory } =
        overcommit.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let thousandths = |divisor: Option<MilliCpu>| divisor.map_or(1000, |it| it.0.max(1));
    Price {
        cpu_overcommit_thousandths: thousandths(cpu),
        memory_overcommit_thousandths: thousandths(memory),
        ..Price::default()
    }
}

fn unsigned(value: Option<i64>) -> u64 {
    value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0)
}

/// Kubelet's refusal of the newest spec; one of an older spec says nothing.
fn pending(status: &PodStatus, generation: u64) -> Option<Pending> {
    let condition = status.conditions.iter().find(|condition| {
        condition.kind == "PodResizePending"
            && condition.status == "True"
            && condition.observed_generation.is_none_or(|seen| unsigned(Some(seen)) >= generation)
    })?;
    match condition.reason.as_deref() {
        Some("Infeasible") => Some(Pending::Infeasible),
        _ => Some(Pending::Deferred),
    }
}

fn shape(pod: &Pod) -> PodShape {
    let Some(spec) = pod.spec.as_ref() else { return PodShape::default() };
    let status = pod.status.as_ref();
    let running = status.map_or(&[][..], |status| &status.container_statuses);
    let init = status.map_or(&[][..], |status| &status.init_container_statuses);
    let requested =
        |resources: Option<&Resources>| resources.and_then(|resources| resources.requests);
    let needs = |container: &Container, states: &[ContainerStatus]| {
        let state = states.iter().find(|state| state.name == container.name);
        let requests = requested(container.resources.as_ref());
        ContainerNeeds {
            spec: requests.map_or(Amount::ZERO, objects::Quantities::amount),
            allocated: state.and_then(|state| Some(state.allocated_resources?.amount())),
        }
    };
    let whole = requested(spec.resources.as_ref());
    PodShape {
        containers: spec.containers.iter().map(|it| needs(it, running)).collect(),
        init: spec
            .init_containers
            .iter()
            .map(|it| InitNeeds {
                needs: needs(it, init),
                sidecar: it.restart_policy.as_deref() == Some(SIDECAR),
            })
            .collect(),
        overhead: spec.overhead.map_or(Amount::ZERO, objects::Quantities::amount),
        pod_cpu_millis: whole.and_then(|whole| whole.cpu_millis),
        pod_memory_bytes: whole.and_then(|whole| whole.memory_bytes),
    }
}

/// The pod in a call of kube-scheduler: not bound, not started.
pub(crate) fn pod_view(view: &PodView<'_>) -> PodFacts {
    let PodView { metadata, spec } = view;
    let needs = |container: &ContainerView<'_>| {
        let requests = container.resources.as_ref().and_then(|it| it.requests.as_ref());
        ContainerNeeds { spec: view_amount(requests), allocated: None }
    };
    let whole = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let shape = PodShape {
        containers: spec.containers.iter().map(needs).collect(),
        init: spec
            .init_containers
            .iter()
            .map(|it| InitNeeds {
                needs: needs(it),
                sidecar: it.restart_policy.as_deref() == Some(SIDECAR),
            })
            .collect(),
        overhead: view_amount(spec.overhead.as_ref()),
        pod_cpu_millis: whole.and_then(|it| it.cpu.as_deref()).map(quantity::cpu),
        pod_memory_bytes: whole.and_then(|it| it.memory.as_deref()).map(quantity::memory),
    };
    let owner = metadata
        .owner_references
        .iter()
        .find(|owner| is_vm(&owner.api_version, &owner.kind, owner.controller));
    let main = spec.containers.iter().position(|it| it.name == names::RUNNER_CONTAINER);
    let overcommit =
        metadata.annotations.as_ref().and_then(|all| all.get(names::ANNOTATION_OVERCOMMIT));
    let kind = match (owner, main) {
        (Some(owner), Some(main)) => {
            let (beside, init_peak) = shape.around(main);
            PodKind::Runner(RunnerFacts {
                vm_uid: owner.uid.clone().into_owned(),
                spec: shape.containers[main].spec,
                allocated: None,
                beside,
                init_peak,
                generation: 0,
                observed: 0,
                pending: None,
                price: price(overcommit.map(std::borrow::Cow::as_ref)),
            })
        }
        _ => PodKind::Ordinary { requests: shape.requests() },
    };
    PodFacts {
        uid: metadata.uid.clone().into_owned(),
        namespace: metadata.namespace.clone().into_owned(),
        name: metadata.name.clone().into_owned(),
        node: None,
        finished: false,
        unplaced: None,
        version: 0,
        kind,
    }
}

fn view_amount(quantities: Option<&Quantities<'_>>) -> Amount {
    Amount {
        cpu_millis: quantities.and_then(|it| it.cpu.as_deref()).map_or(0, quantity::cpu),
        memory_bytes: quantities.and_then(|it| it.memory.as_deref()).map_or(0, quantity::memory),
    }
}

pub(crate) fn vm(vm: &VirtualMachine, scheduler_name: &str, signer: &Signer) -> Option<VmFacts> {
    let (spec, status) = (&vm.spec, vm.status.as_ref());
    let floor = spec.pod_resources.as_ref();
    // Agents serve the VMs of this scheduler only: for all others the extender approves.
    let ours = spec.scheduler_name.as_deref() == Some(scheduler_name);
    Some(VmFacts {
        uid: vm.metadata.uid.clone()?,
        namespace: vm.metadata.namespace.clone()?,
        name: vm.metadata.name.clone()?,
        min: spec.min_size(),
        max: spec.max_size(),
        wanted: spec.use_size(),
        slot: spec.guest.memory_slot_size,
        floor: quantity::amount(floor.and_then(|resources| resources.requests.as_ref())),
        autoscaled: ours && annotations::is_autoscaled(vm),
        visible: signer.visible(vm),
        obeyed: status.and_then(|it| it.approval).map(|age| (age.epoch, age.generation)),
        plugged: status.and_then(|status| status.plugged()),
        pod_name: status.and_then(|status| status.pod_name.clone()),
        deleting: vm.metadata.deletion_timestamp.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn runner_json() -> serde_json::Value {
        json!({
            "metadata": {
                "name": "pg-x", "namespace": "default", "uid": "p1", "generation": 3,
                "ownerReferences": [{"apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachine", "name": "pg", "uid": "u1", "controller": true}],
                "resourceVersion": "4711", "annotations": {"vm.neon.tech/overcommit": "{\"cpu\":\"2.5\"}"}
            },
            "spec": {
                "nodeName": "n1",
                "containers": [
                    {"name": "log", "resources": {"requests": {"cpu": "10m"}}},
                    {"name": "neonvm-runner", "resources": {"requests": {"cpu": "2100m", "memory": "4352Mi"}}}
                ],
                "initContainers": [{"name": "net", "resources": {"requests": {"memory": "16Mi"}}}]
            },
            "status": {
                "phase": "Running", "observedGeneration": 2,
                "conditions": [{"type": "PodResizePending", "status": "True", "reason": "Deferred", "observedGeneration": 2}],
                "containerStatuses": [{
                    "name": "neonvm-runner", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "allocatedResources": {"cpu": "1100m", "memory": "2304Mi"}
                }]
            }
        })
    }

    fn facts(value: &serde_json::Value) -> RunnerFacts {
        let object: Pod = serde_json::from_value(value.clone()).unwrap();
        match pod(&object).unwrap().kind {
            PodKind::Runner(runner) => runner,
            PodKind::Ordinary { .. } => panic!("not a runner"),
        }
    }

    #[test]
    fn a_runner_pod_shows_spec_and_allocation() {
        let mut value = runner_json();
        let runner = facts(&value);
        assert_eq!((runner.spec.cpu_millis, runner.allocated.unwrap().cpu_millis), (2100, 1100));
        assert_eq!((runner.generation, runner.observed), (3, 2));
        assert_eq!(runner.pending, None, "a refusal of an older spec");
        assert_eq!(runner.beside.cpu_millis, 10);
        let Price { cpu_overcommit_thousandths, memory_overcommit_thousandths, .. } = runner.price;
        assert_eq!((cpu_overcommit_thousandths, memory_overcommit_thousandths), (2500, 1000));
        value["status"]["conditions"][0]["observedGeneration"] = json!(3);
        assert_eq!(facts(&value).pending, Some(Pending::Deferred));
        value["status"]["conditions"][0]["reason"] = json!("Infeasible");
        assert_eq!(facts(&value).pending, Some(Pending::Infeasible));
    }

    #[test]
    fn the_overhead_is_nobodys_choice_and_the_price_is_the_pods() {
        let mut value = runner_json();
        value["metadata"]["annotations"] =
            json!({"internal.neon.tech/overhead": "{\"vCPUs\":\"0\",\"mem\":\"0\"}"});
        assert_eq!(facts(&value).price, Price::default());
        for nonsense in ["", "{", "{\"cpu\":\"much\"}", "[]"] {
            assert_eq!(price(Some(nonsense)), Price::default(), "{nonsense}");
        }
        assert_eq!(price(Some("{\"cpu\":\"0\"}")).cpu_overcommit_thousandths, 1);
    }

    #[test]
    fn the_version_of_a_pod_and_the_obeyed_approval_are_read() {
        let object: Pod = serde_json::from_value(runner_json()).unwrap();
        assert_eq!(pod(&object).unwrap().version, 4711);
        let signer = crate::sign::tests::signer("obeyed");
        let mut object = crate::sign::tests::vm("u1");
        assert_eq!(vm(&object, "s", &signer).unwrap().obeyed, None);
        object.status =
            serde_json::from_value(json!({"approval": {"epoch": 3, "generation": 7}})).unwrap();
        assert_eq!(vm(&object, "s", &signer).unwrap().obeyed, Some((3, 7)));
    }

    #[test]
    fn a_pod_of_a_vm_without_the_container_is_an_ordinary_one() {
        let mut value = runner_json();
        value["spec"]["containers"][1]["name"] = json!("other");
        let object: Pod = serde_json::from_value(value).unwrap();
        let facts = pod(&object).unwrap();
        assert!(
            matches!(facts.kind, PodKind::Ordinary { requests } if requests.cpu_millis == 2110)
        );
    }

    #[test]
    fn a_pod_whose_owner_only_looks_like_its_vm_is_an_ordinary_one() {
        for (key, value) in [
            ("apiVersion", json!("v1")),
            ("apiVersion", json!("vm.example.com/v1")),
            ("kind", json!("VirtualMachinePool")),
            ("controller", json!(false)),
            ("controller", json!(null)),
        ] {
            let mut pretender = runner_json();
            pretender["metadata"]["ownerReferences"][0][key] = value;
            let object: Pod = serde_json::from_value(pretender.clone()).unwrap();
            let text = pretender.to_string();
            let view: PodView<'_> = serde_json::from_str(&text).unwrap();
            for facts in [pod(&object).unwrap(), pod_view(&view)] {
                assert!(matches!(facts.kind, PodKind::Ordinary { .. }), "{pretender}");
            }
        }
    }

    #[test]
    fn a_finished_pod_is_known_as_such() {
        for (phase, finished) in [("Running", false), ("Succeeded", true), ("Failed", true)] {
            let mut value = runner_json();
            value["status"]["phase"] = json!(phase);
            let object: Pod = serde_json::from_value(value).unwrap();
            assert_eq!(pod(&object).unwrap().finished, finished);
        }
    }

    #[test]
    fn a_pod_that_no_scheduler_can_place_is_known_as_such() {
        let table = [
            ("PodScheduled", "False", "Unschedulable", true),
            ("PodScheduled", "False", "SchedulingGated", false),
            ("PodScheduled", "False", "SchedulerError", false),
            ("PodScheduled", "True", "Unschedulable", false),
            ("Ready", "False", "Unschedulable", false),
        ];
        for (type_, status, reason, expected) in table {
            let mut value = runner_json();
            value["spec"]["nodeName"] = json!(null);
            value["status"] = json!({"phase": "Pending", "conditions": [
                {"type": type_, "status": status, "reason": reason}
            ]});
            let object: Pod = serde_json::from_value(value).unwrap();
            assert_eq!(
                pod(&object).unwrap().unplaced.is_some(),
                expected,
                "{type_} {status} {reason}"
            );
        }
    }

    #[test]
    fn kube_schedulers_view_costs_the_same_as_the_object() {
        let mut value = runner_json();
        value["status"] = json!({});
        value["spec"]["nodeName"] = json!(null);
        let object: Pod = serde_json::from_value(value.clone()).unwrap();
        let text = value.to_string();
        let view: PodView<'_> = serde_json::from_str(&text).unwrap();
        let (PodKind::Runner(mut a), PodKind::Runner(b)) =
            (pod(&object).unwrap().kind, pod_view(&view).kind)
        else {
            panic!("not runners");
        };
        (a.generation, a.observed) = (0, 0);
        assert_eq!(a, b);
    }

    #[test]
    fn a_vm_is_autoscaled_only_with_our_scheduler() {
        let signer = crate::sign::tests::signer("convert");
        let mut object = crate::sign::tests::vm("u1");
        let facts = vm(&object, "autoscale-scheduler", &signer).unwrap();
        assert_eq!(
            facts.wanted,
            guest_units::Size { cpu: MilliCpu(1000), memory: guest_units::Bytes::from_gib(2) }
        );
        assert!(!facts.autoscaled);
        object.metadata.labels =
            Some([(names::LABEL_AUTOSCALING_ENABLED.to_owned(), "true".to_owned())].into());
        assert!(!vm(&object, "autoscale-scheduler", &signer).unwrap().autoscaled);
        object.spec.scheduler_name = Some("autoscale-scheduler".into());
        assert!(vm(&object, "autoscale-scheduler", &signer).unwrap().autoscaled);
    }

    #[test]
    fn unplaced_pods_that_demand_the_same_are_of_one_class() {
        let class = |edit: &dyn Fn(&mut serde_json::Value)| {
            let mut value = json!({
                "metadata": {"name": "p", "namespace": "d", "uid": "u"},
                "spec": {
                    "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}],
                    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": ""}],
                    "nodeSelector": {"disk": "ssd"},
                    "volumes": [{"name": "token", "projected": {"sources": []}}]
                },
                "status": {"conditions":
                    [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}
            });
            edit(&mut value);
            let object: Pod = serde_json::from_str(&value.to_string()).unwrap();
            *pod(&object).unwrap().unplaced.unwrap()
        };
        let all = class(&|_| ());
        assert_eq!(all.labels, [Label::new("disk", "ssd")]);
        let (key, value, effect) = (Some("gpu".to_owned()), None, None);
        assert_eq!(all.tolerations, [Toleration { key, value, effect }]);
        let same: [&dyn Fn(&mut serde_json::Value); 3] = [
            &|it| it["metadata"]["uid"] = json!("u2"),
            &|it| it["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("7"),
            &|it| it["spec"]["volumes"][0]["name"] = json!("token-2"),
        ];
        for edit in same {
            assert_eq!(class(edit), all);
        }
        let other: [&dyn Fn(&mut serde_json::Value); 7] = [
            &|it| it["metadata"]["namespace"] = json!("e"),
            &|it| it["spec"]["nodeSelector"]["disk"] = json!("hdd"),
            &|it| it["spec"]["affinity"] = json!({"nodeAffinity": {}}),
            &|it| it["spec"]["schedulerName"] = json!("other"),
            &|it| it["spec"]["containers"][0]["ports"] = json!([{"hostPort": 80}]),
            &|it| it["spec"]["containers"][0]["resources"]["requests"]["gpu"] = json!("1"),
            &|it| it["spec"]["volumes"][0]["persistentVolumeClaim"] = json!({"claimName": "data"}),
        ];
        for edit in other {
            assert_ne!(class(edit).class, all.class);
        }
    }

    #[test]
    fn labels_and_taints_of_nodes_are_read() {
        let value = json!({
            "metadata": {"name": "n1", "labels": {"zone": "a", "disk": "ssd"}},
            "spec": {"taints": [
                {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
                {"key": "slow", "value": "yes", "effect": "PreferNoSchedule"}
            ]},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi"}}
        });
        let facts = node(&serde_json::from_str(&value.to_string()).unwrap()).unwrap();
        assert!(facts.labels.contains(&Label::new("disk", "ssd")) && facts.labels.is_sorted());
        let cordon = "node.kubernetes.io/unschedulable".to_owned();
        let (value, effect) = (String::new(), "NoSchedule".to_owned());
        assert_eq!(*facts.taints, [Taint { key: cordon, value, effect }]);
    }
}
