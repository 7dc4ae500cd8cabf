//! A VirtualMachine as a pod: pure, so that the whole pod can be seen in a test.
//!
//! The init container `net` makes the network device with NET_ADMIN alone and exits; the main container runs
//! QEMU without root, without any capability, on a read-only root. No port of QEMU's monitor is on the network.

use std::collections::BTreeMap;

use controller_api::guest::Protocol;
use controller_api::vm::CpuScalingMode;
use controller_api::{VirtualMachine, annotations, names};
use guest_units::MilliCpu;
use host_protocol::{
    CpuScaling, DISKS_DIR, EnvVar, GuestPort, NET_CONTAINER_NAME, ORDERS_PORT, RUN_DIR,
    RUNNER_PORT, RUNNER_UID, RunnerSpec, SPEC_ENV, TLS_DIR, Transport,
};
use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource as _, ResourceExt as _};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};

use crate::certs::runner_secret;
use crate::resources;

/// Where the VM's image is mounted.
const IMAGE_DIR: &str = "/vm/image";
/// Names of pods leave room for a host name's 63 characters.
const NAME_PREFIX: usize = 58;
const NAME_SUFFIX: usize = 5;
/// No vowels, no look-alikes.
const NAME_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// A database must not wait five minutes for a lost node.
const NODE_FAILURE_SECONDS: i64 = 30;
const PRIORITY_CLASS: &str = "neonvm-runner";
/// Labels that the API server puts on pods; they are left alone.
const FOREIGN_LABELS: &str = "topology.kubernetes.io/";

/// What is the same for all pods.
#[derive(Debug, Clone)]
pub(crate) struct PodSettings {
    pub(crate) runner_image: String,
    pub(crate) cpu_scaling: CpuScalingMode,
    /// Ask for hardware virtualisation where the VM wants it.
    pub(crate) kvm: bool,
}

/// A fresh name for a pod of this VM.
pub(crate) fn fresh_name(vm: &str) -> String {
    let mut name: String = format!("{vm}-").chars().take(NAME_PREFIX).collect();
    let random = SystemRandom::new();
    let end = name.len() + NAME_SUFFIX;
    while name.len() < end {
        let mut byte = [0u8];
        // Without randomness the name would be refused as taken, and another one tried.
        let _filled = random.fill(&mut byte);
        // 243 = 9 x 27: every letter is as likely as any other.
        if byte[0] < 243 {
            name.push(char::from(NAME_ALPHABET[usize::from(byte[0]) % NAME_ALPHABET.len()]));
        }
    }
    name
}

/// The reference by which a VM owns its pod and the pod's Secret.
///
/// There is no finalizer on the VM: the owner references release everything that there is to release.
pub(crate) fn owner(vm: &VirtualMachine) -> OwnerReference {
    OwnerReference {
        api_version: VirtualMachine::api_version(&()).into_owned(),
        kind: VirtualMachine::kind(&()).into_owned(),
        name: vm.name_any(),
        uid: vm.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The CPU to boot with: what the VM is meant to use, since its pod's requests were placed with that and the binding
/// approved it; a start at a fraction of a CPU takes several times as long. Memory boots at its minimum.
fn boot_cpu(vm: &VirtualMachine, mode: CpuScalingMode) -> MilliCpu {
    let wanted = vm.use_size().cpu;
    match mode {
        CpuScalingMode::SysfsScaling => wanted,
        // More vCPUs than QEMU starts with are plugged later.
        CpuScalingMode::QmpScaling => wanted.min(MilliCpu::from_cpus(vm.min_size().cpu.whole_up())),
    }
}

/// The VM as its runner is told.
pub(crate) fn runner_spec(vm: &VirtualMachine, pod: &str, settings: &PodSettings) -> RunnerSpec {
    let guest = &vm.spec.guest;
    let (min, max) = (vm.min_size(), vm.max_size());
    let mode = vm.spec.cpu_scaling_mode.unwrap_or(settings.cpu_scaling);
    RunnerSpec {
        name: vm.name_any(),
        namespace: vm.namespace().unwrap_or_default(),
        uid: vm.uid().unwrap_or_default(),
        pod_name: pod.to_owned(),
        hostname: vm.name_any().replace('.', "-").chars().take(63).collect(),
        cpu_min: min.cpu,
        cpu_max: max.cpu,
        cpu_boot: boot_cpu(vm, mode),
        memory_min: min.memory,
        memory_max: max.memory,
        cpu_scaling: match mode {
            CpuScalingMode::QmpScaling => CpuScaling::QmpScaling,
            CpuScalingMode::SysfsScaling => CpuScaling::SysfsScaling,
        },
        acceleration: wants_kvm(vm, settings),
        ports: guest
            .ports
            .iter()
            .map(|port| GuestPort {
                port: port.port,
                protocol: match port.protocol {
                    Protocol::Tcp => Transport::Tcp,
                    Protocol::Udp => Transport::Udp,
                },
            })
            .collect(),
        env: guest
            .env
            .iter()
            .map(|var| EnvVar { name: var.name.clone(), value: var.value.clone() })
            .collect(),
        command: guest.command.clone(),
        args: guest.args.clone(),
        sysctl: guest.settings.as_ref().map(|settings| settings.sysctl.clone()).unwrap_or_default(),
        append_kernel_cmdline: guest.append_kernel_cmdline.clone().unwrap_or_default(),
    }
}

/// The pod of this VM.
pub(crate) fn build(
    vm: &VirtualMachine,
    name: &str,
    settings: &PodSettings,
) -> Result<Pod, serde_json::Error> {
    let spec = &vm.spec;
    let pod = json!({
        "metadata": {
            "name": name,
            "namespace": vm.namespace(),
            "labels": annotations::pod_labels(vm),
            "annotations": annotations::pod_annotations(vm),
            "ownerReferences": [owner(vm)],
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": spec.service_links,
            "terminationGracePeriodSeconds": spec.termination_grace_period_seconds,
            "nodeSelector": spec.node_selector,
            "affinity": affinity(spec.affinity.clone(), architecture(vm)),
            "tolerations": tolerations(spec.tolerations.clone()),
            "schedulerName": spec.scheduler_name,
            "serviceAccountName": spec.service_account_name,
            "imagePullSecrets": spec.image_pull_secrets,
            "priorityClassName": PRIORITY_CLASS,
            "securityContext": {"fsGroup": RUNNER_UID},
            "initContainers": [net_container(vm, name, settings)],
            "containers": [runner_container(vm, name, settings)],
            "volumes": [
                {"name": "run", "emptyDir": {}},
                {"name": "disks", "emptyDir": {}},
                {"name": "vm", "image": {
                    "reference": spec.guest.root_disk.image,
                    "pullPolicy": spec.guest.root_disk.image_pull_policy.as_str(),
                }},
                {"name": "tls", "secret": {"secretName": runner_secret(name), "defaultMode": 0o440}},
            ],
        },
    });
    serde_json::from_value(pod)
}

fn net_container(vm: &VirtualMachine, pod: &str, settings: &PodSettings) -> Value {
    json!({
        "name": NET_CONTAINER_NAME,
        "image": image(vm, settings),
        "imagePullPolicy": "IfNotPresent",
        "args": ["net"],
        "env": env(vm, pod, settings),
        "resources": resources::net(),
        "securityContext": {
            "runAsUser": 0,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "seccompProfile": {"type": "RuntimeDefault"},
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
        },
    })
}

fn runner_container(vm: &VirtualMachine, pod: &str, settings: &PodSettings) -> Value {
    json!({
        "name": names::RUNNER_CONTAINER,
        "image": image(vm, settings),
        "imagePullPolicy": "IfNotPresent",
        "args": ["run"],
        "env": env(vm, pod, settings),
        "ports": ports(vm),
        "resources": resources::runner(&vm.spec, wants_kvm(vm, settings)),
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": RUNNER_PORT},
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": 3,
        },
        "securityContext": {
            "runAsUser": RUNNER_UID,
            "runAsGroup": RUNNER_UID,
            "runAsNonRoot": true,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "seccompProfile": {"type": "RuntimeDefault"},
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "run", "mountPath": RUN_DIR},
            {"name": "disks", "mountPath": DISKS_DIR},
            {"name": "vm", "mountPath": IMAGE_DIR, "readOnly": true},
            {"name": "tls", "mountPath": TLS_DIR, "readOnly": true},
        ],
    })
}

fn image<'a>(vm: &'a VirtualMachine, settings: &'a PodSettings) -> &'a str {
    vm.spec.runner_image.as_deref().unwrap_or(&settings.runner_image)
}

fn wants_kvm(vm: &VirtualMachine, settings: &PodSettings) -> bool {
    vm.spec.enable_acceleration && settings.kvm
}

fn env(vm: &VirtualMachine, pod: &str, settings: &PodSettings) -> Value {
    json!([
        {"name": "K8S_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": SPEC_ENV, "value": json!(runner_spec(vm, pod, settings)).to_string()},
    ])
}

fn ports(vm: &VirtualMachine) -> Vec<Value> {
    let mut ports = vec![
        json!({"name": "runner", "containerPort": RUNNER_PORT, "protocol": "TCP"}),
        json!({"name": "orders", "containerPort": ORDERS_PORT, "protocol": "TCP"}),
    ];
    ports.extend(vm.spec.guest.ports.iter().map(|port| {
        json!({"name": port.name, "containerPort": port.port, "protocol": port.protocol.as_str()})
    }));
    ports
}

fn architecture(vm: &VirtualMachine) -> Option<String> {
    let architecture = vm.spec.target_architecture.map(|architecture| json!(architecture));
    architecture.and_then(|text| text.as_str().map(str::to_owned))
}

/// The user's affinity, where every node term also demands the operating system (and the architecture): terms
/// are alternatives, so one more term would let the pod around the user's own.
fn affinity(users: Option<Affinity>, architecture: Option<String>) -> Affinity {
    let mut demands = vec![requirement("kubernetes.io/os", "linux")];
    demands
        .extend(architecture.map(|architecture| requirement("kubernetes.io/arch", &architecture)));
    let mut affinity = users.unwrap_or_default();
    let node = affinity.node_affinity.get_or_insert_default();
    let selector = node
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector { node_selector_terms: Vec::new() });
    let terms = &mut selector.node_selector_terms;
    if terms.is_empty() {
        terms.push(NodeSelectorTerm { match_expressions: Some(demands), match_fields: None });
        return affinity;
    }
    for term in terms {
        // A term without any demand matches no node, and must not begin to match some.
        let empty = |list: &Option<Vec<_>>| list.as_ref().is_none_or(Vec::is_empty);
        if !(empty(&term.match_expressions) && empty(&term.match_fields)) {
            term.match_expressions.get_or_insert_default().extend(demands.iter().cloned());
        }
    }
    affinity
}

fn requirement(key: &str, value: &str) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: key.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![value.to_owned()]),
    }
}

/// The user's tolerations, and short ones of lost nodes unless the user has said otherwise.
fn tolerations(mut tolerations: Vec<Toleration>) -> Vec<Toleration> {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let said = tolerations.iter().any(|toleration| {
            toleration.key.as_deref() == Some(key)
                && toleration.effect.as_deref().is_none_or(|effect| effect == "NoExecute")
        });
        if !said {
            tolerations.push(Toleration {
                key: Some(key.to_owned()),
                operator: Some("Exists".to_owned()),
                effect: Some("NoExecute".to_owned()),
                toleration_seconds: Some(NODE_FAILURE_SECONDS),
                value: None,
            });
        }
    }
    tolerations
}

/// The merge patch that makes the pod's labels and annotations those of its VM; `None` if they are.
pub(crate) fn metadata_patch(vm: &VirtualMachine, pod: &Pod) -> Option<Value> {
    let none = BTreeMap::new();
    let labels = changes(
        pod.metadata.labels.as_ref().unwrap_or(&none),
        &annotations::pod_labels(vm),
        |key| key.starts_with(FOREIGN_LABELS),
    );
    let annotations = changes(
        pod.metadata.annotations.as_ref().unwrap_or(&none),
        &annotations::pod_annotations(vm),
        // The price of a pod is the one that it was placed at.
        |key| names::FOREIGN_ANNOTATIONS.contains(&key) || key == names::ANNOTATION_OVERCOMMIT,
    );
    if labels.is_empty() && annotations.is_empty() {
        return None;
    }
    Some(json!({"metadata": {"labels": labels, "annotations": annotations}}))
}

fn changes(
    have: &BTreeMap<String, String>,
    want: &BTreeMap<String, String>,
    foreign: impl Fn(&str) -> bool,
) -> BTreeMap<String, Option<String>> {
    let gone = have.keys().filter(|key| !want.contains_key(*key) && !foreign(key));
    let new = want.iter().filter(|(key, value)| have.get(*key) != Some(value) && !foreign(key));
    gone.map(|key| (key.clone(), None))
        .chain(new.map(|(key, value)| (key.clone(), Some(value.clone()))))
        .collect()
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
