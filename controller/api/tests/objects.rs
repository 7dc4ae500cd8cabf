//! Manifests as users write them, and statuses as the operator writes them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use controller_api::annotations::{self, Approval, Bounds};
use controller_api::conditions::{self, NewCondition};
use controller_api::guest::PullPolicy;
use controller_api::names;
use controller_api::vm::{CpuScalingMode, RestartPolicy};
use controller_api::{
    ApprovalAge, Phase, VirtualMachine, VirtualMachineMigration, VirtualMachineStatus, validate,
};
use guest_units::{Bytes, MilliCpu, Size};
use serde_json::json;

const GIB: u64 = 1 << 30;

fn sample(name: &str) -> VirtualMachine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples").join(name);
    serde_yaml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn size(milli_cpu: u32, memory: u64) -> Size {
    Size { cpu: MilliCpu(milli_cpu), memory: Bytes(memory) }
}

#[test]
fn the_least_vm_has_the_reference_defaults() {
    let spec = sample("minimal.yaml").spec;
    assert_eq!((spec.qmp, spec.qmp_manual, spec.runner_port), (20183, 20184, 25183));
    assert_eq!(spec.termination_grace_period_seconds, 5);
    assert_eq!(spec.restart_policy, RestartPolicy::Always);
    assert!(spec.enable_acceleration && spec.enable_ssh && !spec.enable_network_monitoring);
    assert_eq!(spec.guest.memory_slot_size, Bytes(GIB));
    assert_eq!(spec.guest.root_disk.image_pull_policy, PullPolicy::IfNotPresent);
    assert_eq!(spec.overcommit_thousandths(), (1000, 1000));
    assert_eq!(validate(&spec), []);
}

#[test]
fn sizes_of_the_autoscaling_sample() {
    let vm = sample("autoscaling.yaml");
    assert_eq!(vm.min_size(), size(250, GIB));
    assert_eq!(vm.use_size(), size(500, GIB));
    assert_eq!(vm.max_size(), size(1250, 5 * GIB));
    assert_eq!(vm.base_memory(), Bytes(GIB));
    assert_eq!(vm.spec.overcommit_thousandths(), (1500, 1000));
    assert_eq!(vm.spec.cpu_scaling_mode, Some(CpuScalingMode::SysfsScaling));
    assert_eq!(vm.spec.service_links, Some(false));
    let revision = vm.spec.target_revision.as_ref().unwrap();
    assert_eq!((revision.revision.value, revision.revision.flags), (123, 456));
    assert!(annotations::is_autoscaled(&vm));
    assert_eq!(Bounds::of(&vm).unwrap(), Bounds { min: size(250, GIB), max: size(1000, 4 * GIB) });
    assert_eq!(validate(&vm.spec), []);
}

#[test]
fn the_disk_sample_reads_and_its_unsupported_parts_are_named() {
    let vm = sample("postgres16-disk-test.yaml");
    assert_eq!(vm.spec.disks.len(), 3);
    assert_eq!(vm.spec.tls.as_ref().unwrap().mount_path, "/var/tls");
    let problems = validate(&vm.spec);
    let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "spec.disks",
            "spec.extraNetwork.enable",
            "spec.tls",
            "spec.enableNetworkMonitoring",
            "spec.guest.rootDisk.size",
            "spec.guest.settings.swap"
        ]
    );
}

#[test]
fn samples_survive_a_round_trip() {
    for name in ["minimal.yaml", "autoscaling.yaml", "postgres16-disk-test.yaml"] {
        let vm = sample(name);
        let text = serde_json::to_string(&vm).unwrap();
        assert_eq!(serde_json::from_str::<VirtualMachine>(&text).unwrap(), vm, "{name}");
    }
    let cpus = json!(sample("autoscaling.yaml").spec.guest.cpus);
    assert_eq!(cpus, json!({ "min": "250m", "use": "500m", "max": "1250m" }));
    assert_eq!(json!(sample("minimal.yaml").spec.guest.cpus)["use"], json!(1));
}

#[test]
fn a_migration_has_the_reference_defaults() {
    let migration: VirtualMachineMigration = serde_json::from_value(json!({
        "apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachineMigration",
        "metadata": { "name": "m" }, "spec": { "vmName": "a" },
    }))
    .unwrap();
    let spec = migration.spec;
    assert!(spec.prevent_migration_to_same_host && spec.incremental && spec.auto_converge);
    assert!(!spec.allow_post_copy);
    assert_eq!((spec.completion_timeout, spec.max_bandwidth.0.as_str()), (3600, "1Gi"));
}

#[test]
fn a_status_survives_a_round_trip() {
    let mut status = VirtualMachineStatus {
        phase: Phase::Scaling,
        restart_count: 2,
        pod_name: Some("a-bcdfg".into()),
        pod_ip: Some("10.0.0.1".into()),
        node: Some("n1".into()),
        cpus: Some(MilliCpu(250)),
        memory_size: Some(Bytes(3 * GIB)),
        approval: Some(ApprovalAge { epoch: 4, generation: 10 }),
        ..VirtualMachineStatus::default()
    };
    let now = "2025-09-23T10:11:12Z".parse().unwrap();
    let new = NewCondition {
        kind: "Available",
        status: "True",
        reason: "Reconciling",
        message: "",
        observed_generation: Some(3),
    };
    conditions::set(&mut status.conditions, new, now);
    let value = json!(status);
    assert_eq!(value["podIP"], "10.0.0.1");
    assert_eq!(value["memorySize"], "3Gi");
    assert_eq!(value["cpus"], "250m");
    assert_eq!(value["approval"], json!({"epoch": 4, "generation": 10}));
    assert_eq!(value["conditions"][0]["lastTransitionTime"], "2025-09-23T10:11:12Z");
    assert_eq!(serde_json::from_value::<VirtualMachineStatus>(value).unwrap(), status);
    assert_eq!(status.plugged(), Some(size(250, 3 * GIB)));
    let empty: VirtualMachineStatus = serde_json::from_value(json!({})).unwrap();
    assert_eq!((empty.phase, empty.plugged()), (Phase::Unset, None));
}

#[test]
fn phases_are_written_as_the_reference_writes_them() {
    let phases = [
        (Phase::Unset, "", false),
        (Phase::Pending, "Pending", false),
        (Phase::Running, "Running", true),
        (Phase::Succeeded, "Succeeded", false),
        (Phase::Failed, "Failed", false),
        (Phase::PreMigrating, "PreMigrating", true),
        (Phase::Migrating, "Migrating", true),
        (Phase::Scaling, "Scaling", true),
    ];
    for (phase, text, alive) in phases {
        assert_eq!(json!(phase), json!(text));
        assert_eq!((phase.as_str(), phase.is_alive()), (text, alive));
    }
}

#[test]
fn a_transition_time_moves_only_with_the_status() {
    let mut all = Vec::new();
    let (first, later) = ("2025-01-01T00:00:00Z", "2025-01-02T00:00:00Z");
    let mut set = |status, message, now: &str| {
        let new = NewCondition {
            kind: "Degraded",
            status,
            reason: "Why",
            message,
            observed_generation: None,
        };
        let changed = conditions::set(&mut all, new, now.parse().unwrap());
        (changed, all[0].last_transition_time.0.to_string())
    };
    assert_eq!(set("True", "a", first), (true, first.into()));
    assert_eq!(set("True", "a", later), (false, first.into()));
    assert_eq!(set("True", "b", later), (true, first.into()));
    assert_eq!(set("False", "b", later), (true, later.into()));
    assert!(!conditions::holds(&all, "Degraded"));
    assert_eq!(conditions::find(&all, "Degraded").unwrap().status, "False");
}

#[test]
fn an_approval_survives_its_annotations() {
    let approval = Approval::signed("uid-1", size(1500, 2 * GIB), 7, 42, |bytes| {
        assert_eq!(bytes, b"neonvm-approval-v1|uid-1|1500|2147483648|7|42");
        vec![1, 2, 255]
    });
    assert_eq!(approval.signature_bytes().unwrap(), [1, 2, 255]);
    assert_eq!(approval.age(), (7, 42));
    let annotations = approval.to_annotations();
    assert_eq!(
        annotations[names::ANNOTATION_APPROVED],
        json!({ "vCPUs": "1500m", "mem": "2Gi" }).to_string()
    );
    assert_eq!(Approval::from_annotations(&annotations).unwrap(), Some(approval));
}

#[test]
fn half_an_approval_is_none() {
    assert_eq!(Approval::from_annotations(&BTreeMap::new()).unwrap(), None);
    let whole = Approval::signed("u", size(1, 1), 1, 1, <[u8]>::to_vec).to_annotations();
    for key in [names::ANNOTATION_APPROVED, names::ANNOTATION_APPROVED_PROOF] {
        let mut half = whole.clone();
        half.remove(key);
        assert!(Approval::from_annotations(&half).is_err());
        half.insert(key.to_owned(), "{".to_owned());
        assert!(Approval::from_annotations(&half).is_err());
    }
}

#[test]
fn bounds_are_refused_when_they_cannot_be() {
    let slot = Bytes(GIB);
    let bounds = |min_cpu: &str, min_mem: &str, max_cpu: &str, max_mem: &str| {
        let text = format!(
            r#"{{"min":{{"cpu":{min_cpu},"mem":{min_mem}}},"max":{{"cpu":{max_cpu},"mem":{max_mem}}}}}"#
        );
        Bounds::parse(&text, slot)
    };
    let good = bounds("0.25", "\"1Gi\"", "\"1\"", "5368709120").unwrap();
    assert_eq!(good, Bounds { min: size(250, GIB), max: size(1000, 5 * GIB) });
    for (bad, why) in [
        (bounds("0", "\"1Gi\"", "1", "\"2Gi\""), "zero cpu"),
        (bounds("1", "0", "1", "\"2Gi\""), "zero memory"),
        (bounds("1", "\"1Gi\"", "1", "\"1500Mi\""), "not a multiple"),
        (bounds("2", "\"1Gi\"", "1", "\"1Gi\""), "min above max"),
        (bounds("1", "\"2Gi\"", "1", "\"1Gi\""), "min above max"),
        (bounds("-1", "\"2Gi\"", "1", "\"1Gi\""), "negative"),
        (Bounds::parse("{}", slot), "nothing"),
        (Bounds::parse("[", slot), "no JSON"),
    ] {
        assert!(bad.is_err(), "{why}");
    }
}

#[test]
fn bounds_are_cut_to_the_spec() {
    let mut vm = sample("autoscaling.yaml");
    let wide = r#"{"min":{"cpu":"100m","mem":"1Gi"},"max":{"cpu":8,"mem":"64Gi"}}"#;
    let annotations = vm.metadata.annotations.as_mut().unwrap();
    annotations.insert(names::ANNOTATION_BOUNDS.to_owned(), wide.to_owned());
    assert_eq!(Bounds::of(&vm).unwrap(), Bounds { min: vm.min_size(), max: vm.max_size() });
    vm.metadata.annotations = None;
    assert_eq!(Bounds::of(&vm).unwrap(), Bounds { min: vm.min_size(), max: vm.max_size() });
}

#[test]
fn a_pod_carries_what_its_vm_says() {
    let mut vm = sample("autoscaling.yaml");
    let annotations = vm.metadata.annotations.as_mut().unwrap();
    annotations.insert(names::ANNOTATION_LAST_APPLIED.to_owned(), "{}".to_owned());
    annotations.insert("internal.neon.tech/overhead".to_owned(), "{}".to_owned());
    let pod = annotations::pod_annotations(&vm);
    assert!(pod.keys().all(|key| !key.starts_with(names::INTERNAL_PREFIX)), "not a user's to say");
    assert!(!pod.contains_key(names::ANNOTATION_LAST_APPLIED));
    assert!(pod.contains_key(names::ANNOTATION_BOUNDS));
    assert_eq!(pod[names::ANNOTATION_DEFAULT_CONTAINER], "neonvm-runner");
    let json = |key: &str| serde_json::from_str::<serde_json::Value>(&pod[key]).unwrap();
    assert_eq!(json(names::ANNOTATION_USAGE), json!({ "cpu": "500m", "memory": "1Gi" }));
    assert_eq!(
        json(names::ANNOTATION_RESOURCES),
        json!({
            "cpus": { "min": "250m", "max": "1250m", "use": "500m" },
            "memorySlots": { "min": 1, "max": 5, "use": 1 },
            "memorySlotSize": "1Gi",
        })
    );
    assert_eq!(json(names::ANNOTATION_OVERCOMMIT)["memory"], "1");

    let labels = annotations::pod_labels(&vm);
    assert_eq!(labels[names::LABEL_VM_NAME], "example");
    assert_eq!(labels[names::LABEL_APP], "NeonVM");
    assert_eq!(labels[names::LABEL_AUTOSCALING_ENABLED], "true");

    vm.spec.overcommit = None;
    assert!(!annotations::pod_annotations(&vm).contains_key(names::ANNOTATION_OVERCOMMIT));
}
