//! The objects of a synthetic cluster, as an API server would send them.

use controller_api::{Approval, VirtualMachine};
use guest_units::{Bytes, MilliCpu, Size};
use ring::signature::Ed25519KeyPair;
use serde_json::{Value, json};

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Node,
    Pod,
    Vm,
}

impl Kind {
    /// By the path of its list.
    pub(crate) fn of(path: &str) -> Option<Self> {
        match path.rsplit('/').next()? {
            "nodes" => Some(Self::Node),
            "pods" => Some(Self::Pod),
            "virtualmachines" => Some(Self::Vm),
            _ => None,
        }
    }

    const fn list(self) -> (&'static str, &'static str) {
        match self {
            Self::Node => ("v1", "NodeList"),
            Self::Pod => ("v1", "PodList"),
            Self::Vm => ("vm.neon.tech/v1", "VirtualMachineList"),
        }
    }
}

/// All objects, each as JSON.
pub(crate) struct Cluster {
    nodes: Vec<Box<str>>,
    pods: Vec<Box<str>>,
    vms: Vec<Box<str>>,
}

const SIZE: Size = Size { cpu: MilliCpu(1000), memory: Bytes(4 << 30) };

impl Cluster {
    /// VMs with their runner pods, spread evenly, and ordinary pods beside them.
    pub(crate) fn new(nodes: usize, vms: usize, ordinary: usize, key: &Ed25519KeyPair) -> Self {
        let text = |object: Value| object.to_string().into_boxed_str();
        let runners = (0..vms).map(|index| text(runner(index, index % nodes)));
        let others = (0..ordinary).map(|index| text(pod(index, index % nodes)));
        Self {
            nodes: (0..nodes).map(|index| text(node(index))).collect(),
            pods: runners.chain(others).collect(),
            vms: (0..vms).map(|index| text(vm(index, index % nodes, key))).collect(),
        }
    }

    fn of(&self, kind: Kind) -> &[Box<str>] {
        match kind {
            Kind::Node => &self.nodes,
            Kind::Pod => &self.pods,
            Kind::Vm => &self.vms,
        }
    }

    /// Of all objects.
    pub(crate) fn bytes(&self) -> usize {
        [&self.nodes, &self.pods, &self.vms].into_iter().flatten().map(|text| text.len()).sum()
    }

    /// Objects from one on, and whether more follow.
    pub(crate) fn page(
        &self,
        kind: Kind,
        from: usize,
        limit: usize,
        version: usize,
    ) -> (String, bool) {
        let all = self.of(kind);
        let from = from.min(all.len());
        let until = from.saturating_add(limit).min(all.len());
        let (more, items) = (until < all.len(), &all[from..until]);
        let (api, name) = kind.list();
        let next = if more { format!(r#","continue":"{until}""#) } else { String::new() };
        let text = format!(
            r#"{{"kind":"{name}","apiVersion":"{api}","metadata":{{"resourceVersion":"{}"{next}}},"items":[{}]}}"#,
            version + 1,
            items.join(",")
        );
        (text, more)
    }
}

/// What the API server notes of who wrote which field: a third of most objects.
fn managed_fields(manager: &str, fields: usize) -> Value {
    let mut spec = serde_json::Map::new();
    for index in 0..fields {
        spec.insert(format!("f:someFieldOfTheSpecification{index}"), json!({"f:value": {}}));
    }
    json!([{
        "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": spec},
        "manager": manager, "operation": "Update", "time": "2026-01-01T00:00:00Z"
    }])
}

fn node(index: usize) -> Value {
    let image = |image: usize| {
        let name = format!("registry.example/some/component/with/a/long/name-{image}");
        json!({"names": [format!("{name}@sha256:{image:064x}"), format!("{name}:v1.{image}.0")], "sizeBytes": 123_456_789})
    };
    let condition = |kind: &str| {
        json!({
            "type": kind, "status": "False", "reason": "KubeletHasNoPressure", "message": "kubelet has no pressure",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"
        })
    };
    json!({
        "metadata": {
            "name": format!("node-{index}"), "uid": format!("00000000-0000-4000-8000-{index:012x}"),
            "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"kubernetes.io/hostname": format!("node-{index}"), "topology.kubernetes.io/zone": "zone-a", "kubernetes.io/arch": "amd64"},
            "managedFields": managed_fields("kubelet", 30),
        },
        "spec": {"podCIDR": "10.0.0.0/24", "providerID": format!("provider:///zone-a/i-{index:016x}")},
        "status": {
            "allocatable": {"cpu": "127", "memory": "520Gi", "pods": "110", "ephemeral-storage": "100Gi"},
            "capacity": {"cpu": "128", "memory": "527Gi", "pods": "110", "ephemeral-storage": "120Gi"},
            "conditions": (["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].map(condition)),
            "images": (0..50).map(image).collect::<Vec<_>>(),
            "nodeInfo": {
                "architecture": "amd64", "bootID": "b", "containerRuntimeVersion": "containerd://2.1.0", "kernelVersion": "6.12.0",
                "kubeProxyVersion": "", "kubeletVersion": "v1.36.0", "machineID": "m", "operatingSystem": "linux", "osImage": "Linux", "systemUUID": "s"
            },
        },
    })
}

fn container(name: &str, cpu: &str, memory: &str) -> Value {
    let mount = |index: usize| json!({"name": format!("volume-{index}"), "mountPath": format!("/var/run/some/path/{index}")});
    let variable = |index: usize| json!({"name": format!("SOME_VARIABLE_{index}"), "value": format!("value-{index}")});
    json!({
        "name": name, "image": "registry.example/some/image:v1.2.3", "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/some-command"], "args": ["--one=1", "--two=2", "--three=3"],
        "env": (0..8).map(variable).collect::<Vec<_>>(), "volumeMounts": (0..6).map(mount).collect::<Vec<_>>(),
        "resources": {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": "20Gi"}},
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 25183}, "periodSeconds": 5},
    })
}

fn container_status(name: &str, cpu: &str, memory: &str) -> Value {
    json!({
        "name": name, "image": "registry.example/some/image:v1.2.3", "ready": true, "restartCount": 0, "started": true,
        "imageID": format!("registry.example/some/image@sha256:{:064x}", 7), "containerID": format!("containerd://{:064x}", 8),
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "lastState": {},
        "allocatedResources": {"cpu": cpu, "memory": memory},
        "resources": {"requests": {"cpu": cpu, "memory": memory}},
    })
}

fn any_pod(
    name: &str,
    uid: &str,
    node: usize,
    container_name: &str,
    (cpu, memory): (&str, &str),
) -> Value {
    let volume = |index: usize| json!({"name": format!("volume-{index}"), "emptyDir": {}});
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1});
    json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": uid, "resourceVersion": "1", "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "something", "pod-template-hash": "5d4f8c7b9", "team": "databases"},
            "managedFields": managed_fields("kubelet", 40),
        },
        "spec": {
            "nodeName": format!("node-{node}"), "serviceAccountName": "default", "restartPolicy": "Never", "dnsPolicy": "ClusterFirst",
            "schedulerName": "autoscale-scheduler", "enableServiceLinks": false, "terminationGracePeriodSeconds": 30,
            "containers": [container(container_name, cpu, memory)],
            "volumes": (0..6).map(volume).collect::<Vec<_>>(),
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            ],
        },
        "status": {
            "phase": "Running", "hostIP": "10.1.0.1", "podIP": "10.2.0.1", "podIPs": [{"ip": "10.2.0.1"}], "qosClass": "Burstable",
            "observedGeneration": 1, "startTime": "2026-01-01T00:00:00Z",
            "conditions": (["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition)),
            "containerStatuses": [container_status(container_name, cpu, memory)],
        },
    })
}

fn pod(index: usize, node: usize) -> Value {
    let uid = format!("00000000-0000-4000-9000-{index:012x}");
    any_pod(&format!("ordinary-{index}-5d4f8c7b9-x2x4z"), &uid, node, "main", ("250m", "512Mi"))
}

fn runner(index: usize, node: usize) -> Value {
    let uid = format!("00000000-0000-4000-a000-{index:012x}");
    let mut pod = any_pod(
        &format!("database-{index}-x2x4z"),
        &uid,
        node,
        "neonvm-runner",
        ("1100m", "4352Mi"),
    );
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachine", "name": format!("database-{index}"),
        "uid": vm_uid(index), "controller": true, "blockOwnerDeletion": true,
    }]);
    pod
}

fn vm_uid(index: usize) -> String {
    format!("00000000-0000-4000-b000-{index:012x}")
}

fn vm(index: usize, node: usize, key: &Ed25519KeyPair) -> Value {
    let uid = vm_uid(index);
    let approval = Approval::signed(&uid, SIZE, 1, 1, |bytes| key.sign(bytes).as_ref().to_vec());
    let mut annotations = json!(approval.to_annotations());
    annotations["autoscaling.neon.tech/bounds"] =
        json!(r#"{"min":{"cpu":"250m","mem":"1Gi"},"max":{"cpu":8,"mem":"32Gi"}}"#);
    let (api, kind) = (<VirtualMachine as kube::Resource>::api_version(&()), "VirtualMachine");
    json!({
        "apiVersion": api, "kind": kind,
        "metadata": {
            "name": format!("database-{index}"), "namespace": "default", "uid": uid, "resourceVersion": "1", "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations,
            "labels": {"autoscaling.neon.tech/enabled": "true", "team": "databases"},
            "managedFields": managed_fields("neonvm-controller", 30),
        },
        "spec": {
            "schedulerName": "autoscale-scheduler",
            "guest": {
                "cpus": {"min": "250m", "use": 1, "max": 8},
                "memorySlotSize": "1Gi", "memorySlots": {"min": 1, "use": 4, "max": 32},
                "rootDisk": {"image": "registry.example/databases/postgres:17", "size": "20Gi"},
                "ports": [{"name": "postgres", "port": 5432}],
                "settings": {"sysctl": ["vm.overcommit_memory=2"]},
            },
            "disks": [{"name": "cache", "mountPath": "/cache", "emptyDisk": {"size": "10Gi"}}],
        },
        "status": {
            "phase": "Running", "podName": format!("database-{index}-x2x4z"), "podIP": "10.2.0.1", "node": format!("node-{node}"),
            "cpus": 1, "memorySize": "4Gi", "restartCount": 0, "approval": {"epoch": 1, "generation": 1},
            "conditions": [{
                "type": "Available", "status": "True", "reason": "Running", "message": "The VM runs", "lastTransitionTime": "2026-01-01T00:00:00Z"
            }],
        },
    })
}
