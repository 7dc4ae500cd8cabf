//! What may be done to runner pods, and by whom. A runner pod is known by its owner or by its label: either alone
//! could be taken off.

use serde_json::{Value, json};

use super::{binding, only, requests, validating};
use crate::{GROUP, names};

/// Heading of the file.
pub(super) const IDENTITY: &str = "Only the controller makes runner pods. One stays the pod of its VM, at the price that it was made with: the controller finds its pods by\n\
     their label, and the scheduler's ledger counts them by it.";

/// On the object as it was before the request.
fn is_runner_pod() -> Value {
    let label = names::LABEL_VM_NAME;
    json!([{
        "name": "is-a-runner-pod",
        "expression": format!(
            "(has(oldObject.metadata.labels) && '{label}' in oldObject.metadata.labels) || {}",
            owned("oldObject")
        ),
    }])
}

fn owners(object: &str) -> String {
    format!(
        "(has({object}.metadata.ownerReferences) ? {object}.metadata.ownerReferences : [])\
         .filter(o, o.kind == 'VirtualMachine' && o.apiVersion.startsWith('{GROUP}/'))"
    )
}

fn owned(object: &str) -> String {
    format!("{}.size() > 0", owners(object))
}

pub(super) fn resize() -> Vec<Value> {
    let name = "neonvm-runner-resize";
    let spec = json!({
        "matchConstraints": requests("", "v1", &["pods/resize"], &["UPDATE"]),
        "matchConditions": is_runner_pod(),
        "validations": [only(
            names::USER_EXTENDER,
            "only the scheduler's extender may resize the pod of a VM",
        )],
    });
    vec![validating(name, spec), binding(name, "Deny")]
}

/// Whoever could make a pod that a VM seems to own could have the ledger count it as the VM's.
fn maker() -> [Value; 2] {
    let name = "neonvm-runner-maker";
    let before = format!("oldObject == null || !({})", owned("oldObject"));
    let spec = json!({
        "matchConstraints": requests("", "v1", &["pods"], &["CREATE", "UPDATE"]),
        "matchConditions": [{
            "name": "becomes-a-runner-pod",
            "expression": format!("{} && ({before})", owned("object")),
        }],
        "validations": [only(names::USER_CONTROLLER, "only the controller makes the pod of a VM")],
    });
    [validating(name, spec), binding(name, "Deny")]
}

pub(super) fn identity() -> Vec<Value> {
    let name = "neonvm-runner-identity";
    let same = |part: &str, key: &str| {
        let value = |object: &str| format!("{object}.metadata.?{part}[?'{key}']");
        format!("{} == {}", value("object"), value("oldObject"))
    };
    let uids = |object: &str| format!("{}.map(o, o.uid)", owners(object));
    let by = |users: &[&str]| {
        let users: Vec<String> = users.iter().map(|user| format!("'{user}'")).collect();
        format!("request.userInfo.username in [{}]", users.join(", "))
    };
    let controller = names::USER_CONTROLLER;
    let [collector, manager] = names::USERS_GARBAGE_COLLECTOR;
    let rule = |condition: String, users: &[&str], message: &str| {
        json!({
            "expression": format!("{condition} || {}", by(users)),
            "message": message,
            "reason": "Forbidden",
        })
    };
    let label = names::LABEL_VM_NAME;
    let spec = json!({
        "matchConstraints": requests("", "v1", &["pods"], &["UPDATE"]),
        "matchConditions": is_runner_pod(),
        "validations": [
            rule(
                same("labels", label),
                &[controller],
                &format!("only the controller may change label {label} of the pod of a VM"),
            ),
            rule(
                same("annotations", names::ANNOTATION_OVERCOMMIT),
                &[controller],
                &format!(
                    "only the controller may change annotation {} of the pod of a VM",
                    names::ANNOTATION_OVERCOMMIT
                ),
            ),
            rule(
                format!("{} == {}", uids("object"), uids("oldObject")),
                &[controller, collector, manager],
                "only the controller may take the pod of a VM from its owner",
            ),
        ],
    });
    let [policy, bound] = maker();
    vec![validating(name, spec), binding(name, "Deny"), policy, bound]
}
