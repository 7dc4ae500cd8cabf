//! Between the brain's status and the object's: what to start from, and what to store.

use controller_api::conditions::{self, NewCondition};
use controller_api::vm::{Revision, RevisionWithTime};
use controller_api::{ApprovalAge, Phase, VirtualMachine, VirtualMachineStatus};
use controller_lifecycle as lifecycle;
use controller_lifecycle::{Status, Stored};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// A status as it is stored, and a version of the object that has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Kept {
    pub(crate) status: VirtualMachineStatus,
    pub(crate) version: Option<String>,
}

impl Kept {
    pub(crate) fn of(vm: &VirtualMachine) -> Self {
        let version = vm.metadata.resource_version.clone();
        Self { status: vm.status.clone().unwrap_or_default(), version }
    }

    /// The newest version known to have this status: `seen` may be newer, or be from before it was written.
    pub(crate) fn newest_version(&self, seen: &VirtualMachine) -> Option<String> {
        let seen = Self::of(seen);
        // Versions are decimal numbers: the longer one is the larger.
        let place = |version: &Option<String>| version.clone().map(|text| (text.len(), text));
        if seen.status == self.status && place(&seen.version) > place(&self.version) {
            seen.version
        } else {
            self.version.clone()
        }
    }
}

/// What the brain starts from.
pub(crate) fn stored(status: &VirtualMachineStatus) -> Stored {
    Stored {
        phase: match status.phase {
            Phase::Unset => lifecycle::Phase::New,
            Phase::Pending => lifecycle::Phase::Pending,
            Phase::Running | Phase::PreMigrating | Phase::Migrating => lifecycle::Phase::Running,
            Phase::Scaling => lifecycle::Phase::Scaling,
            Phase::Succeeded => lifecycle::Phase::Succeeded,
            Phase::Failed => lifecycle::Phase::Failed,
        },
        pod: status.pod_name.clone().filter(|name| !name.is_empty()),
        restarts: u32::try_from(status.restart_count).unwrap_or(0),
        size: status.plugged(),
        revision: status
            .current_revision
            .as_ref()
            .map(|current| (current.revision.value, current.revision.flags)),
        obeyed: status.approval.map(|age| (age.epoch, age.generation)),
    }
}

/// The object's status after the brain's is stored; what the brain does not know stays as it is.
pub(crate) fn merged(
    old: &VirtualMachineStatus,
    new: &Status,
    generation: Option<i64>,
    now: Timestamp,
) -> VirtualMachineStatus {
    let mut status = old.clone();
    status.phase = phase(new.phase);
    status.pod_name = new.pod.clone();
    status.pod_ip = new.pod_ip.clone();
    status.node = new.node.clone();
    status.cpus = new.size.map(|size| size.cpu);
    status.memory_size = new.size.map(|size| size.memory);
    status.restart_count = i32::try_from(new.restarts).unwrap_or(i32::MAX);
    status.current_revision = revision(old, new, now);
    status.approval = new.obeyed.map(|(epoch, generation)| ApprovalAge { epoch, generation });
    for condition in &new.conditions {
        let truth = condition.truth.as_str();
        let kind = condition.kind.as_str();
        // The generation is taken over only with another change: alone it is not worth a write.
        let unchanged = conditions::find(&status.conditions, kind).filter(|old| {
            old.status == truth
                && old.reason == condition.reason
                && old.message == condition.message
        });
        let observed_generation = unchanged.map_or(generation, |old| old.observed_generation);
        let message = condition.message.as_str();
        let new = NewCondition {
            kind,
            status: truth,
            reason: condition.reason,
            message,
            observed_generation,
        };
        let _changed = conditions::set(&mut status.conditions, new, now);
    }
    status
}

fn phase(phase: lifecycle::Phase) -> Phase {
    match phase {
        lifecycle::Phase::New => Phase::Unset,
        lifecycle::Phase::Pending => Phase::Pending,
        lifecycle::Phase::Running => Phase::Running,
        lifecycle::Phase::Scaling => Phase::Scaling,
        lifecycle::Phase::Succeeded => Phase::Succeeded,
        lifecycle::Phase::Failed => Phase::Failed,
    }
}

fn revision(old: &VirtualMachineStatus, new: &Status, now: Timestamp) -> Option<RevisionWithTime> {
    let (value, flags) = new.revision?;
    let revision = Revision { value, flags };
    match &old.current_revision {
        Some(current) if current.revision == revision => Some(current.clone()),
        _ => Some(RevisionWithTime { revision, updated_at: Time(now) }),
    }
}

#[cfg(test)]
mod tests {
    use controller_lifecycle::{Condition, ConditionKind, Truth};
    use guest_units::{Bytes, MilliCpu, Size};
    use serde_json::json;

    use super::*;

    fn running() -> Status {
        Status {
            phase: lifecycle::Phase::Running,
            pod: Some("vm-abcde".into()),
            pod_ip: Some("10.0.0.1".into()),
            node: Some("n1".into()),
            size: Some(Size { cpu: MilliCpu(250), memory: Bytes(1 << 30) }),
            restarts: 2,
            conditions: vec![Condition {
                kind: ConditionKind::Available,
                truth: Truth::True,
                reason: "Running",
                message: "The VM runs".into(),
            }],
            settled: true,
            revision: Some((7, 1)),
            obeyed: Some((3, 9)),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_status_survives_the_way_through_the_object() {
        let object = merged(&VirtualMachineStatus::default(), &running(), Some(1), at(100));
        let back: VirtualMachineStatus = serde_json::from_value(json!(object)).unwrap();
        assert_eq!(back, object);
        let stored = stored(&back);
        assert_eq!(stored.pod.as_deref(), Some("vm-abcde"));
        assert_eq!((stored.restarts, stored.revision), (2, Some((7, 1))));
        assert_eq!(stored.size, running().size);
    }

    #[test]
    fn an_equal_status_is_not_written_and_times_move_only_with_changes() {
        let first = merged(&VirtualMachineStatus::default(), &running(), Some(1), at(100));
        let second = merged(&first, &running(), Some(2), at(200));
        assert_eq!(first, second);
        let mut stopped = running();
        stopped.conditions[0].truth = Truth::False;
        let third = merged(&first, &stopped, Some(2), at(300));
        assert_eq!(third.conditions[0].last_transition_time, Time(at(300)));
        assert_eq!(third.current_revision, first.current_revision);
    }

    #[test]
    fn what_vanished_is_not_in_the_object() {
        let first = merged(&VirtualMachineStatus::default(), &running(), None, at(100));
        let ended = Status { phase: lifecycle::Phase::Failed, restarts: 2, ..Status::default() };
        let object = json!(merged(&first, &ended, None, at(200)));
        for key in ["podName", "podIP", "node", "cpus", "memorySize"] {
            assert_eq!(object.get(key), None, "{key}");
        }
        assert_eq!(object["phase"], "Failed");
    }

    #[test]
    fn what_others_wrote_stays() {
        let mut old =
            VirtualMachineStatus { extra_net_ip: Some("10.1.0.1".into()), ..Default::default() };
        let foreign = NewCondition {
            kind: "Billed",
            status: "True",
            reason: "Yes",
            message: "",
            observed_generation: None,
        };
        conditions::set(&mut old.conditions, foreign, at(1));
        let new = merged(&old, &running(), None, at(2));
        assert_eq!(new.extra_net_ip, old.extra_net_ip);
        assert!(conditions::holds(&new.conditions, "Billed"));
    }
}
