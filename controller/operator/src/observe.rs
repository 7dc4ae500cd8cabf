//! What the API server shows, as the brain's events. Pure but for the clock that is handed in.

use std::time::Instant;

use controller_api::vm::RestartPolicy;
use controller_api::{VirtualMachine, names, validate};
use controller_lifecycle::{Approved, Desired, PodFacts, PodState, Restart};
use guest_units::Moment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use crate::index::Snapshot;
use crate::pod::{PodSettings, runner_spec};

/// The time of one VM's machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    pub(crate) fn now(self) -> Moment {
        Moment(self.origin.elapsed())
    }

    pub(crate) fn instant(self, moment: Moment) -> Instant {
        self.origin + moment.0
    }
}

/// What the VM object asks for.
pub(crate) fn desired(vm: &VirtualMachine, approved: Approved, settings: &PodSettings) -> Desired {
    let spec = &vm.spec;
    Desired {
        min: vm.min_size(),
        wanted: vm.use_size(),
        max: vm.max_size(),
        slot: spec.guest.memory_slot_size,
        restart: match spec.restart_policy {
            RestartPolicy::Always => Restart::Always,
            RestartPolicy::OnFailure => Restart::OnFailure,
            RestartPolicy::Never => Restart::Never,
        },
        deleting: vm.metadata.deletion_timestamp.is_some(),
        approved,
        revision: spec
            .target_revision
            .as_ref()
            .map(|target| (target.revision.value, target.revision.flags)),
        invalid: invalid(vm, settings),
    }
}

fn invalid(vm: &VirtualMachine, settings: &PodSettings) -> Option<String> {
    let spec = validate(&vm.spec);
    let spec = spec.iter().map(|problem| format!("{}: {}", problem.field, problem.message));
    // The pod's name is not chosen yet; any name will do.
    let runner = runner_spec(vm, "pod", settings).problems();
    let problems: Vec<String> = spec.chain(runner.iter().map(ToString::to_string)).collect();
    if problems.is_empty() { None } else { Some(problems.join("; ")) }
}

/// What others say is cut to this.
const SENTENCE_CHARS: usize = 500;

/// How a pod is doing.
pub(crate) fn facts(pod: &Pod, now: Moment, wall: Timestamp) -> PodFacts {
    let status = pod.status.as_ref();
    let text = |value: Option<&String>| value.filter(|text| !text.is_empty()).cloned();
    PodFacts {
        name: pod.name_any(),
        state: state(pod),
        terminating_since: terminating_since(pod, now, wall),
        unschedulable: unschedulable(pod),
        node: text(pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref())),
        ip: text(status.and_then(|status| status.pod_ip.as_ref())),
    }
}

fn state(pod: &Pod) -> PodState {
    let status = pod.status.as_ref();
    match status.and_then(|status| status.phase.as_deref()) {
        Some("Running") => {
            let containers = status.and_then(|status| status.container_statuses.as_ref());
            let runner =
                containers.and_then(|all| all.iter().find(|it| it.name == names::RUNNER_CONTAINER));
            PodState::Running { ready: runner.is_some_and(|runner| runner.ready) }
        }
        Some("Succeeded") => PodState::Succeeded,
        Some("Failed") => PodState::Failed(failure(pod)),
        _ => PodState::Pending,
    }
}

/// Why no node takes the pod, as its scheduler says.
fn unschedulable(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    })?;
    let why = condition.message.as_deref().unwrap_or("no node can take the pod");
    Some(why.chars().take(SENTENCE_CHARS).collect())
}

/// Why a pod failed, in a sentence.
fn failure(pod: &Pod) -> String {
    let Some(status) = &pod.status else { return "the pod failed".to_owned() };
    let containers =
        status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let ended = containers
        .filter_map(|container| Some((container, container.state.as_ref()?.terminated.as_ref()?)))
        .find(|(_, terminated)| terminated.exit_code != 0);
    let text = if let Some((container, terminated)) = ended {
        let reason = terminated.reason.as_deref().unwrap_or("Error");
        format!(
            "container {} ended with exit code {}: {reason}",
            container.name, terminated.exit_code
        )
    } else {
        let reason = status.reason.as_deref().unwrap_or("Failed");
        format!("the pod failed: {reason} {}", status.message.as_deref().unwrap_or_default())
    };
    text.trim_end().chars().take(SENTENCE_CHARS).collect()
}

/// The deletion was asked for the grace period before the time that the object shows.
fn terminating_since(pod: &Pod, now: Moment, wall: Timestamp) -> Option<Moment> {
    let deadline = pod.metadata.deletion_timestamp.as_ref()?.0;
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0).max(0);
    let passed = wall.as_millisecond() - (deadline.as_millisecond() - grace.saturating_mul(1000));
    let passed = u64::try_from(passed).unwrap_or(0);
    Some(now.earlier(std::time::Duration::from_millis(passed)))
}

/// Pods of the VM that are not its current one and that nobody deletes yet.
pub(crate) fn strays(snapshot: &Snapshot, current: Option<&str>) -> Vec<String> {
    let pods = snapshot.pods.iter();
    let strays = pods.filter(|(name, pod)| {
        Some(name.as_str()) != current && pod.metadata.deletion_timestamp.is_none()
    });
    strays.map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use controller_api::vm::CpuScalingMode;
    use serde_json::{Value, json};

    use super::*;

    const NOW: Moment = Moment(Duration::from_secs(1000));

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn seen(value: Value) -> PodFacts {
        facts(&pod(value), NOW, "2026-01-01T00:01:00Z".parse().unwrap())
    }

    #[test]
    fn pods_are_judged_by_phase_and_by_the_runners_readiness() {
        let running = |container: &str, ready: bool| {
            let statuses = json!([{
                "name": container, "ready": ready, "image": "", "imageID": "", "restartCount": 0,
            }]);
            seen(json!({"status": {"phase": "Running", "containerStatuses": statuses}})).state
        };
        assert_eq!(running("neonvm-runner", true), PodState::Running { ready: true });
        assert_eq!(running("neonvm-runner", false), PodState::Running { ready: false });
        assert_eq!(running("sidecar", true), PodState::Running { ready: false });
        assert_eq!(seen(json!({})).state, PodState::Pending);
        assert_eq!(seen(json!({"status": {"phase": "Succeeded"}})).state, PodState::Succeeded);
        let crashed = json!([{
            "name": "neonvm-runner", "ready": false, "image": "", "imageID": "", "restartCount": 0,
            "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        }]);
        let PodState::Failed(reason) =
            seen(json!({"status": {"phase": "Failed", "containerStatuses": crashed}})).state
        else {
            panic!("not failed");
        };
        assert_eq!(reason, "container neonvm-runner ended with exit code 137: OOMKilled");
        let evicted =
            json!({"status": {"phase": "Failed", "reason": "Evicted", "message": "disk"}});
        assert_eq!(seen(evicted).state, PodState::Failed("the pod failed: Evicted disk".into()));
    }

    #[test]
    fn the_deletion_was_asked_for_a_grace_period_before_its_time() {
        let facts = seen(json!({"metadata": {
            "deletionTimestamp": "2026-01-01T00:01:20Z", "deletionGracePeriodSeconds": 30,
        }}));
        assert_eq!(facts.terminating_since, Some(Moment(Duration::from_secs(990))));
        let future = seen(json!({"metadata": {
            "deletionTimestamp": "2026-01-01T00:02:00Z", "deletionGracePeriodSeconds": 30,
        }}));
        assert_eq!(future.terminating_since, Some(NOW), "clocks differ");
    }

    #[test]
    fn a_pod_that_no_node_takes_says_why_and_one_that_is_held_back_does_not() {
        let why = |reason: &str, status: &str| {
            let condition = json!({
                "type": "PodScheduled", "status": status, "reason": reason,
                "message": "0/2 nodes are available: 2 Insufficient cpu.",
            });
            seen(json!({"status": {"phase": "Pending", "conditions": [condition]}})).unschedulable
        };
        let said = "0/2 nodes are available: 2 Insufficient cpu.";
        assert_eq!(why("Unschedulable", "False").as_deref(), Some(said));
        assert_eq!(why("SchedulingGated", "False"), None);
        assert_eq!(why("Unschedulable", "True"), None);
        assert_eq!(seen(json!({"status": {"phase": "Pending"}})).unschedulable, None);
    }

    #[test]
    fn strays_are_other_pods_that_stay() {
        let mut snapshot = Snapshot::default();
        for (name, going) in [("current", false), ("old", false), ("going", true)] {
            let mut pod = Pod::default();
            if going {
                pod = self::pod(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
            }
            pod.metadata.name = Some(name.to_owned());
            snapshot.pods.insert(name.to_owned(), Arc::new(pod));
        }
        assert_eq!(strays(&snapshot, Some("current")), ["old"]);
    }

    #[test]
    fn problems_of_the_spec_name_the_field() {
        let vm: VirtualMachine = serde_json::from_value(json!({
            "apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachine",
            "metadata": {"name": "vm", "namespace": "default", "uid": "u"},
            "spec": {"guest": {
                "cpus": {"min": 2, "max": 1, "use": 2},
                "memorySlots": {"min": 1, "max": 2, "use": 1},
                "rootDisk": {"image": "image"},
            }},
        }))
        .unwrap();
        let settings = PodSettings {
            runner_image: "runner".into(),
            cpu_scaling: CpuScalingMode::QmpScaling,
            kvm: false,
        };
        let judged = desired(&vm, Approved::Missing(String::new()), &settings);
        assert!(judged.invalid.unwrap().contains("cpus"));
        assert_eq!(judged.revision, None);
        let mut good = vm.clone();
        good.spec.guest.cpus.max = good.spec.guest.cpus.min;
        assert_eq!(desired(&good, Approved::Missing(String::new()), &settings).invalid, None);
    }
}
