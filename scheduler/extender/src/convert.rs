//! Objects of Kubernetes, reduced to what the ledger needs.

use controller_api::{VirtualMachine, VirtualMachineMigration, annotations, names};
use guest_units::MilliCpu;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource as _;
use scheduler_ledger::{
    Amount, ContainerNeeds, Demands, InitNeeds, Label, NodeFacts, Pending, PodFacts, PodKind,
    PodShape, Price, RunnerFacts, Taint, VmFacts,
};
use scheduler_protocol::extender::{ContainerView, PodView, Quantities};
use serde::Deserialize;

use crate::demands::{demands, toleration, unschedulable};
use crate::objects::{self, Container, ContainerStatus, Node, Pod, PodStatus, Resources};
use crate::quantity;
use crate::sign::Signer;

const SIDECAR: &str = "Always";
/// Effect of a taint that keeps no pod away.
const AVOIDED: &str = "PreferNoSchedule";
/// Key of the taint of a node that the cluster autoscaler is about to remove, with that effect.
const SCALE_IN: &str = "DeletionCandidateOfClusterAutoscaler";

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
    let mut all = node.spec.iter().flat_map(|spec| &spec.taints);
    Some(NodeFacts {
        name: node.metadata.name.clone()?,
        allocatable: allocatable.amount(),
        labels: labels.into(),
        taints: taints.collect(),
        leaving: all.any(|taint| taint.key == SCALE_IN),
    })
}

pub(crate) fn pod(pod: &Pod) -> Option<PodFacts> {
    let metadata = &pod.metadata;
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let owners = metadata.owner_references.iter().flatten();
    let vm = vm_of(owners.map(|owner| Owner {
        api_version: &owner.api_version,
        kind: &owner.kind,
        controller: owner.controller,
        uid: &owner.uid,
    }));
    let shape = shape(pod);
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let main = containers.enumerate().find(|(_, it)| it.name == names::RUNNER_CONTAINER);
    let kind = match (vm, main) {
        (Some(vm), Some((index, _))) => PodKind::Runner(runner(pod, &shape, index, vm.to_owned())),
        _ => PodKind::Ordinary { requests: ordinary_requests(pod, shape) },
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
            // One that is being deleted, and waits for its finalizers, is not placed any more.
            .filter(|_| metadata.deletion_timestamp.is_none())
            .filter(|_| status.is_some_and(unschedulable))
            .map(|spec| Box::new(demands(pod, spec))),
        version: metadata.resource_version.as_deref().and_then(|it| it.parse().ok()).unwrap_or(0),
        kind,
    })
}

/// By the rules of Kubernetes: what kubelet says that it can never give takes nothing.
fn ordinary_requests(pod: &Pod, mut shape: PodShape) -> Amount {
    let generation = unsigned(pod.metadata.generation);
    let pending = pod.status.as_ref().and_then(|status| pending(status, generation));
    if pending == Some(Pending::Infeasible) {
        let init = shape.init.iter_mut().map(|it| &mut it.needs);
        for needs in shape.containers.iter_mut().chain(init) {
            needs.spec = needs.allocated.unwrap_or(needs.spec);
        }
    }
    shape.requests()
}

/// An owner of an object.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) api_version: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) controller: Option<bool>,
    pub(crate) uid: &'a str,
}

impl Owner<'_> {
    /// Other groups may have a kind of the same name.
    pub(crate) fn is(&self, kind: &str) -> bool {
        let group = self.api_version.split_once('/').map_or("", |(group, _)| group);
        group == VirtualMachine::group(&()) && self.kind == kind
    }
}

/// The VM that a pod runs: the owner that manages the pod, or where a migration does so that makes it its target, the VM beside.
fn vm_of<'a>(owners: impl Iterator<Item = Owner<'a>> + Clone) -> Option<&'a str> {
    let manages = |owner: &Owner<'_>| owner.controller == Some(true);
    let migration = VirtualMachineMigration::kind(&());
    let target = owners.clone().any(|owner| owner.is(&migration) && manages(&owner));
    let mut vms = owners.filter(|owner| owner.is(&VirtualMachine::kind(&())));
    vms.find(|owner| target || manages(owner)).map(|owner| owner.uid)
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
        created: created(&pod.metadata),
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

fn created(metadata: &ObjectMeta) -> u64 {
    let at = metadata.creation_timestamp.as_ref().map(|at| at.0.as_second());
    unsigned(at)
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
    let vm = vm_of(metadata.owner_references.iter().map(|owner| Owner {
        api_version: &owner.api_version,
        kind: &owner.kind,
        controller: owner.controller,
        uid: &owner.uid,
    }));
    let main = spec.containers.iter().position(|it| it.name == names::RUNNER_CONTAINER);
    let overcommit =
        metadata.annotations.as_ref().and_then(|all| all.get(names::ANNOTATION_OVERCOMMIT));
    let kind = match (vm, main) {
        (Some(vm), Some(main)) => {
            let (beside, init_peak) = shape.around(main);
            PodKind::Runner(RunnerFacts {
                vm_uid: vm.to_owned(),
                spec: shape.containers[main].spec,
                allocated: None,
                beside,
                init_peak,
                generation: 0,
                observed: 0,
                pending: None,
                price: price(overcommit.map(std::borrow::Cow::as_ref)),
                created: 0,
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
        movable: movable(vm),
    })
}

/// What a node must have for a VM to be moved there, as far as the ledger judges that: affinity is left to kube-scheduler, which
/// places the target. None: its user does not let the scheduler move it.
fn movable(vm: &VirtualMachine) -> Option<Box<Demands>> {
    let labels = vm.metadata.labels.as_ref()?;
    let set = |label| labels.get(label).is_some_and(|value| value == "true");
    if !set(names::LABEL_MOVABLE) && !set(names::LABEL_MOVABLE_FOR_TESTS) {
        return None;
    }
    let labels = vm.spec.node_selector.iter().map(|(key, value)| Label::new(key, value));
    let tolerations = vm.spec.tolerations.iter().map(|it| {
        toleration(it.key.as_ref(), it.operator.as_ref(), it.value.as_ref(), it.effect.as_ref())
    });
    let (labels, tolerations) = (labels.collect(), tolerations.collect());
    Some(Box::new(Demands { labels, tolerations, ..Demands::default() }))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn runner_json() -> serde_json::Value {
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
    fn the_target_of_a_migration_is_a_pod_of_its_vm() {
        let mut value = runner_json();
        value["metadata"]["creationTimestamp"] = json!("1970-01-01T01:00:00Z");
        value["metadata"]["ownerReferences"] = json!([
            {"apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachine", "name": "pg", "uid": "u1"},
            {"apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachineMigration", "name": "m", "uid": "m1", "controller": true}
        ]);
        assert_eq!((facts(&value).vm_uid.as_str(), facts(&value).created), ("u1", 3600));
        let text = value.to_string();
        let view: PodView<'_> = serde_json::from_str(&text).unwrap();
        assert!(pod_view(&view).runner().is_some());
    }

    #[test]
    fn a_vm_moves_only_where_its_user_says_so_and_it_is_let_in() {
        let signer = crate::sign::tests::signer("movable");
        let mut object = crate::sign::tests::vm("u1");
        let read = |object: &VirtualMachine| vm(object, "s", &signer).unwrap().movable;
        assert_eq!(read(&object), None);
        object.spec.node_selector = [("disk".to_owned(), "ssd".to_owned())].into();
        for label in [names::LABEL_MOVABLE, names::LABEL_MOVABLE_FOR_TESTS] {
            for (value, movable) in [("true", true), ("false", false)] {
                object.metadata.labels = Some([(label.to_owned(), value.to_owned())].into());
                let labels = vec![Label::new("disk", "ssd")];
                let demands = Demands { labels, ..Demands::default() };
                assert_eq!(read(&object), movable.then(|| Box::new(demands)));
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
    fn what_an_ordinary_pod_can_never_get_takes_nothing() {
        let requests = |reason: &str, generation: i64| {
            let value = json!({
                "metadata": {"name": "p", "namespace": "d", "uid": "u", "generation": generation},
                "spec": {"nodeName": "n1", "containers":
                    [{"name": "c", "resources": {"requests": {"cpu": "900", "memory": "1Gi"}}}]},
                "status": {
                    "conditions": [{"type": "PodResizePending", "status": "True", "reason": reason,
                        "observedGeneration": 2}],
                    "containerStatuses": [{"name": "c",
                        "allocatedResources": {"cpu": "2", "memory": "4Gi"}}]
                }
            });
            match pod(&serde_json::from_str(&value.to_string()).unwrap()).unwrap().kind {
                PodKind::Ordinary { requests } => requests,
                PodKind::Runner(_) => panic!("a runner"),
            }
        };
        let amount = |cpu_millis, gib: u64| Amount { cpu_millis, memory_bytes: gib << 30 };
        assert_eq!(requests("Infeasible", 2), amount(2000, 4));
        assert_eq!(requests("Deferred", 2), amount(900_000, 4), "it may come to that");
        assert_eq!(requests("Infeasible", 3), amount(900_000, 4), "said of an older resize");
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
        let read = |value: &serde_json::Value| {
            node(&serde_json::from_str(&value.to_string()).unwrap()).unwrap()
        };
        let facts = read(&value);
        let mut candidate = value.clone();
        candidate["spec"]["taints"][1]["key"] = json!("DeletionCandidateOfClusterAutoscaler");
        assert_eq!((facts.leaving, read(&candidate).leaving), (false, true));
        assert!(facts.labels.contains(&Label::new("disk", "ssd")) && facts.labels.is_sorted());
        let cordon = "node.kubernetes.io/unschedulable".to_owned();
        let (value, effect) = (String::new(), "NoSchedule".to_owned());
        assert_eq!(*facts.taints, [Taint { key: cordon, value, effect }]);
    }
}
