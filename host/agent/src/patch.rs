//! Builds the one JSON patch that changes a VM's size: pure, from what was seen to a list of operations.
//!
//! It tests that the pod is still the one that the decision was made for, and that neither spec nor approval was
//! written since they were seen: a late or repeated patch does nothing.

use controller_api::names;
use guest_units::Size;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::view::VmView;

/// Flag of a revision: some resource grows.
const FLAG_UP: u64 = 1;
/// Flag of a revision: some resource shrinks.
const FLAG_DOWN: u64 = 2;

/// The patch that gives `view` the size, and the approval if there is a new one.
pub(crate) fn operations(
    view: &VmView,
    size: Size,
    approval: Option<&controller_api::Approval>,
    now: Timestamp,
) -> Vec<Value> {
    let mut operations = vec![test("/status/podName", &json!(view.pod_name))];
    operations.extend(unchanged(view));
    if size != view.spec {
        operations.extend(use_fields(view, size, now));
    }
    if let Some(approval) = approval {
        operations.extend(annotations(view, approval));
    }
    operations
}

/// Spec and approval are as they were seen. Where there is no approval yet, nothing at all may have changed: adding
/// the annotations would wipe others that appeared meanwhile.
fn unchanged(view: &VmView) -> Vec<Value> {
    let generation = view.generation.map(|it| test("/metadata/generation", &json!(it)));
    let approval = match (&view.proof, view.resource_version) {
        (Some(proof), _) => Some(test(&pointer(names::ANNOTATION_APPROVED_PROOF), &json!(proof))),
        (None, Some(version)) => {
            Some(test("/metadata/resourceVersion", &json!(version.to_string())))
        }
        (None, None) => None,
    };
    generation.into_iter().chain(approval).collect()
}

fn use_fields(view: &VmView, size: Size, now: Timestamp) -> Vec<Value> {
    let grows = size.cpu > view.spec.cpu || size.memory > view.spec.memory;
    let shrinks = size.cpu < view.spec.cpu || size.memory < view.spec.memory;
    let flags = if grows { FLAG_UP } else { 0 } | if shrinks { FLAG_DOWN } else { 0 };
    let mut fields = Vec::new();
    if size.cpu != view.spec.cpu {
        fields.push(add("/spec/guest/cpus/use", &json!(size.cpu)));
    }
    if size.memory != view.spec.memory {
        fields.push(add("/spec/guest/memorySlots/use", &json!(view.slots(size.memory))));
    }
    let revision = json!({
        "revision": { "value": view.revision.saturating_add(1), "flags": flags },
        "updatedAt": now,
    });
    fields.push(add("/spec/targetRevision", &revision));
    fields
}

fn annotations(view: &VmView, approval: &controller_api::Approval) -> Vec<Value> {
    let values = approval.to_annotations();
    if !view.has_annotations {
        return vec![add("/metadata/annotations", &json!(values))];
    }
    values.iter().map(|(key, value)| add(&pointer(key), &json!(value))).collect()
}

fn test(path: &str, value: &Value) -> Value {
    json!({ "op": "test", "path": path, "value": value })
}

/// `add` also replaces, `replace` would fail where nothing is.
fn add(path: &str, value: &Value) -> Value {
    json!({ "op": "add", "path": path, "value": value })
}

fn pointer(annotation: &str) -> String {
    let escaped = annotation.replace('~', "~0").replace('/', "~1");
    format!("/metadata/annotations/{escaped}")
}

#[cfg(test)]
mod tests {
    use controller_api::Approval;
    use guest_units::{Bytes, MilliCpu};

    use super::*;
    use crate::view::tests::{object, view};

    fn approval(size: Size) -> Approval {
        Approval { size, epoch: 3, generation: 9, signature: "c2ln".into() }
    }

    fn now() -> Timestamp {
        "2026-02-03T04:05:06Z".parse().unwrap()
    }

    #[test]
    fn growth_writes_use_and_approval_and_tests_what_was_seen() {
        let mut value = object();
        value["metadata"]["annotations"] = json!({
            "internal.autoscaling.neon.tech/resources-approved": r#"{"vCPUs":1,"mem":"2Gi"}"#,
            "internal.autoscaling.neon.tech/resources-approved-proof":
                r#"{"epoch":3,"generation":8,"signature":"b2xk"}"#,
        });
        let view = view(value);
        let size = Size { cpu: MilliCpu(2250), memory: Bytes(3 << 30) };
        let operations = operations(&view, size, Some(&approval(size)), now());
        let texts = approval(size).to_annotations();
        let proof =
            "/metadata/annotations/internal.autoscaling.neon.tech~1resources-approved-proof";
        assert_eq!(
            Value::Array(operations),
            json!([
                {"op": "test", "path": "/status/podName", "value": "pg-abcde"},
                {"op": "test", "path": "/metadata/generation", "value": 5},
                {"op": "test", "path": proof, "value": r#"{"epoch":3,"generation":8,"signature":"b2xk"}"#},
                {"op": "add", "path": "/spec/guest/cpus/use", "value": "2250m"},
                {"op": "add", "path": "/spec/guest/memorySlots/use", "value": 24},
                {"op": "add", "path": "/spec/targetRevision", "value": {
                    "revision": {"value": 8, "flags": 1}, "updatedAt": "2026-02-03T04:05:06Z"}},
                {"op": "add",
                 "path": "/metadata/annotations/internal.autoscaling.neon.tech~1resources-approved",
                 "value": texts[names::ANNOTATION_APPROVED]},
                {"op": "add", "path": proof, "value": texts[names::ANNOTATION_APPROVED_PROOF]},
            ])
        );
    }

    #[test]
    fn a_shrink_without_approval_touches_one_field_and_tests_both_writers() {
        let view = VmView { proof: Some("seen".into()), ..view(object()) };
        let size = Size { memory: Bytes(1 << 30), ..view.spec };
        let operations = operations(&view, size, None, now());
        let tested: Vec<_> = operations.iter().filter(|it| it["op"] == "test").collect();
        assert_eq!(tested.len(), 3);
        assert_eq!(
            (&tested[1]["path"], &tested[2]["value"]),
            (&json!("/metadata/generation"), &json!("seen"))
        );
        assert_eq!(operations.len(), 5);
        assert_eq!(operations[3]["path"], "/spec/guest/memorySlots/use");
        assert_eq!(operations[4]["value"]["revision"]["flags"], 2);
    }

    #[test]
    fn the_first_annotation_is_added_only_to_the_object_that_was_seen() {
        let view = view(object());
        let operations = operations(&view, view.spec, Some(&approval(view.spec)), now());
        let test = json!({"op": "test", "path": "/metadata/resourceVersion", "value": "100"});
        assert_eq!(operations[2], test);
        assert_eq!(operations[3]["path"], "/metadata/annotations");
        assert_eq!(operations.len(), 4, "use is not written when it does not change");
    }
}
