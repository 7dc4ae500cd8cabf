//! Who may write the approval that opens the plug's gate.

use serde_json::{Value, json};

use super::{policy, vms};
use crate::names;

/// Heading of the file.
pub(super) const HEADING: &str = "The scheduler's approval of a VM's size is written by agents and the scheduler's extender alone.\n\
     What others write to it is not refused but undone, so that an exported manifest can be applied again:\n\
     a change leaves it as it was, and a new VM begins without one.";

/// The policy and its binding.
pub(super) fn policies() -> Vec<Value> {
    let name = "neonvm-virtualmachine-approvals";
    let annotations = |object: &str| format!("{object}.metadata.annotations");
    let (new, old) = (annotations("object"), annotations("oldObject"));
    let old_has_any = format!("request.operation == 'UPDATE' && has({old})");
    // Members can be put back only where there is a map to put them into.
    let map = format!(
        "({old_has_any} && !has({new}) \
         ? [JSONPatch{{op: 'add', path: '/metadata/annotations', value: {{}}}}] : [])"
    );
    let mut patches = vec![map];
    for key in [names::ANNOTATION_APPROVED, names::ANNOTATION_APPROVED_PROOF] {
        let path = format!("/metadata/annotations/{}", key.replace('/', "~1"));
        let there = format!("has({new}) && '{key}' in {new}");
        let was = format!("{old_has_any} && '{key}' in {old}");
        patches.push(format!(
            "({was} && !({there} && {new}['{key}'] == {old}['{key}']) \
             ? [JSONPatch{{op: 'add', path: '{path}', value: {old}['{key}']}}] : [])"
        ));
        patches.push(format!(
            "({there} && !({was}) ? [JSONPatch{{op: 'remove', path: '{path}'}}] : [])"
        ));
    }
    let writers =
        [names::USER_AGENT, names::USER_EXTENDER].map(|user| format!("'{user}'")).join(", ");
    vec![
        policy(
            "MutatingAdmissionPolicy",
            name,
            json!({
                "matchConstraints": vms(&["CREATE", "UPDATE"]),
                "matchConditions": [{
                    "name": "is-somebody-else",
                    "expression": format!("!(request.userInfo.username in [{writers}])"),
                }],
                "mutations": [{
                    "patchType": "JSONPatch",
                    "jsonPatch": { "expression": patches.join(" + ") },
                }],
                "reinvocationPolicy": "IfNeeded",
            }),
        ),
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingAdmissionPolicyBinding",
            "metadata": { "name": name },
            "spec": { "policyName": name },
        }),
    ]
}
