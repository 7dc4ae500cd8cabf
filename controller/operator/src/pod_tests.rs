//! Tests of the pod: one golden file with all of it, and the rules one by one.

use std::path::Path;

use super::*;

fn settings() -> PodSettings {
    PodSettings {
        runner_image: "runner:1".into(),
        cpu_scaling: CpuScalingMode::QmpScaling,
        kvm: true,
    }
}

fn vm(spec: &Value) -> VirtualMachine {
    let mut whole = json!({
        "apiVersion": "vm.neon.tech/v1",
        "kind": "VirtualMachine",
        "metadata": {
            "name": "postgres", "namespace": "default", "uid": "1b2c",
            "labels": {"app": "db", "autoscaling.neon.tech/enabled": "true"},
            "annotations": {
                "autoscaling.neon.tech/bounds": "{}",
                "kubectl.kubernetes.io/last-applied-configuration": "{}",
            },
        },
        "spec": {
            "guest": {
                "cpus": {"min": "250m", "max": 2, "use": "500m"},
                "memorySlots": {"min": 1, "max": 4, "use": 2},
                "memorySlotSize": "512Mi",
                "rootDisk": {"image": "vm-postgres:15"},
                "ports": [{"name": "postgres", "port": 5432}, {"port": 53, "protocol": "UDP"}],
                "env": [{"name": "PGDATA", "value": "/var/lib/pg data"}],
            },
        },
    });
    let target = whole["spec"].as_object_mut().unwrap();
    target.extend(spec.as_object().unwrap().clone());
    serde_json::from_value(whole).unwrap()
}

#[test]
fn the_whole_pod_is_as_in_the_golden_file() {
    let vm = vm(&json!({
        "schedulerName": "autoscale-scheduler",
        "service_links": false,
        "nodeSelector": {"disk": "fast"},
        "overcommit": {"cpu": "2"},
        "terminationGracePeriodSeconds": 30,
    }));
    let pod = build(&vm, "postgres-bcdfg", &settings()).unwrap();
    let text = format!("{}\n", serde_json::to_string_pretty(&pod).unwrap());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pod.json");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "run with UPDATE_EXPECT=1 if the change is meant");
}

#[test]
fn names_fit_a_host_name_and_avoid_vowels() {
    for vm in ["vm", &"x".repeat(57), &"x".repeat(58), &"x".repeat(253)] {
        let name = fresh_name(vm);
        let prefix: String = format!("{vm}-").chars().take(58).collect();
        let suffix = name.strip_prefix(&prefix).unwrap();
        assert_eq!(suffix.len(), 5);
        assert!(suffix.bytes().all(|byte| NAME_ALPHABET.contains(&byte)));
        assert!(name.len() <= 63);
    }
    assert_ne!(fresh_name("vm"), fresh_name("vm"));
}

#[test]
fn a_vm_boots_with_the_cpu_that_it_is_meant_to_use_and_the_least_memory() {
    let vm = vm(&json!({}));
    let spec = runner_spec(&vm, "postgres-bcdfg", &settings());
    assert_eq!(spec.cpu_boot, vm.use_size().cpu.min(MilliCpu::from_cpus(spec.cpu_min.whole_up())));
    assert!(spec.cpu_boot > spec.cpu_min);
    assert_eq!(spec.memory_min.0, 512 << 20);
    assert_eq!(spec.memory_max.0, 2 << 30);
    assert!(spec.acceleration);
    assert_eq!(spec.problems(), []);
}

#[test]
fn kvm_is_asked_for_only_where_the_vm_wants_it_and_some_node_has_it() {
    for (wants, has, expected) in [(true, true, true), (true, false, false), (false, true, false)] {
        let vm = vm(&json!({"enableAcceleration": wants}));
        let pod = build(&vm, "p", &PodSettings { kvm: has, ..settings() }).unwrap();
        let limits = pod.spec.unwrap().containers.remove(0).resources.unwrap().limits.unwrap();
        assert_eq!(limits.contains_key("neonvm/kvm"), expected, "{wants} {has}");
    }
}

#[test]
fn the_mode_of_the_spec_wins() {
    let vm = vm(&json!({"cpuScalingMode": "SysfsScaling"}));
    assert_eq!(runner_spec(&vm, "p", &settings()).cpu_scaling, CpuScaling::SysfsScaling);
}

#[test]
fn the_operating_system_is_demanded_in_every_node_term() {
    let users = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]},
        {},
    ]}}});
    let merged = affinity(Some(serde_json::from_value(users).unwrap()), Some("amd64".into()));
    let terms =
        merged.node_affinity.unwrap().required_during_scheduling_ignored_during_execution.unwrap();
    let keys: Vec<Vec<String>> = terms
        .node_selector_terms
        .into_iter()
        .map(|term| {
            term.match_expressions.unwrap_or_default().into_iter().map(|it| it.key).collect()
        })
        .collect();
    let (os, arch) = ("kubernetes.io/os", "kubernetes.io/arch");
    assert_eq!(keys, [vec!["zone", os, arch], vec![os, arch], vec![]]);
}

#[test]
fn lost_nodes_are_tolerated_shortly_unless_the_user_says_otherwise() {
    let added = tolerations(Vec::new());
    assert!(added.iter().all(|toleration| toleration.toleration_seconds == Some(30)));
    assert_eq!(added.len(), 2);
    let users = Toleration {
        key: Some("node.kubernetes.io/unreachable".into()),
        operator: Some("Exists".into()),
        toleration_seconds: Some(300),
        ..Toleration::default()
    };
    let merged = tolerations(vec![users.clone()]);
    assert_eq!(merged.len(), 2);
    assert_eq!(merged[0], users);
}

#[test]
fn the_pod_is_owned_by_its_vm() {
    let pod = build(&vm(&json!({})), "p", &settings()).unwrap();
    let owner = pod.metadata.owner_references.unwrap().remove(0);
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("VirtualMachine", "1b2c"));
    assert_eq!((owner.controller, owner.block_owner_deletion), (Some(true), Some(true)));
}

#[test]
fn metadata_follows_the_vm_and_leaves_the_network_alone() {
    let vm = vm(&json!({}));
    let mut pod = build(&vm, "p", &settings()).unwrap();
    assert_eq!(metadata_patch(&vm, &pod), None);
    let labels = pod.metadata.labels.as_mut().unwrap();
    labels.insert("stray".into(), "x".into());
    labels.insert("topology.kubernetes.io/zone".into(), "a".into());
    labels.remove("app");
    let annotations = pod.metadata.annotations.as_mut().unwrap();
    annotations.insert("k8s.v1.cni.cncf.io/network-status".into(), "[]".into());
    annotations.insert("vm.neon.tech/usage".into(), "old".into());
    annotations.insert("vm.neon.tech/overcommit".into(), "as it was made with".into());
    let patch = metadata_patch(&vm, &pod).unwrap();
    assert_eq!(patch["metadata"]["labels"], json!({"stray": null, "app": "db"}));
    let usage = r#"{"cpu":"500m","memory":"1Gi"}"#;
    assert_eq!(patch["metadata"]["annotations"], json!({"vm.neon.tech/usage": usage}));
}
