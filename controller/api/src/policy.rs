//! Admission policies, evaluated by the API server itself: there is no webhook whose absence could
//! stop anything.
//!
//! What a CRD's own rules cannot say is here: numbers that are turned into quantities before the
//! schema sees them, rules on changes with an escape hatch, warnings, and who may write what.

use serde_json::{Value, json};

use crate::names;
use crate::{GROUP, VERSION, update, validation};

mod approvals;
mod runner;

/// A file of policies.
pub(crate) struct File {
    pub(crate) name: &'static str,
    /// What the file is for.
    pub(crate) heading: &'static str,
    pub(crate) objects: Vec<Value>,
}

/// All files.
pub(crate) fn all() -> Vec<File> {
    vec![
        File {
            name: "fractions",
            heading: "Unquoted fractions (cpus.use: 0.25) become quantities (250m) before the schema is checked.",
            objects: fractions(),
        },
        File {
            name: "update-rules",
            heading: "What may not change once a VM exists. Objects listed in the ConfigMap are let through:\n\
                      comma-separated `name` (in namespace default) or `namespace/name`.",
            objects: update_rules(),
        },
        File {
            name: "rules",
            heading: "Rules on the shape of a VM that are too costly for the schema.",
            objects: rules(),
        },
        File {
            name: "warnings",
            heading: "Fields that are written but not acted on.",
            objects: warnings(),
        },
        File {
            name: "agent",
            heading: "What an autoscaler-agent may change: sizes of the VMs of its own node, nothing else.",
            objects: agent(),
        },
        File {
            name: "status",
            heading: "Only the controller writes what a VM is.",
            objects: status(),
        },
        File {
            name: "resize",
            heading: "Only the scheduler's extender resizes runner pods: it keeps the ledger.",
            objects: runner::resize(),
        },
        File { name: "runner-identity", heading: runner::IDENTITY, objects: runner::identity() },
        File { name: "approvals", heading: approvals::HEADING, objects: approvals::policies() },
        File {
            name: "leader",
            heading: "The scheduler's extender leads clients to itself, and changes no other Service's endpoints.",
            objects: leader(),
        },
        File {
            name: "migrations",
            heading: "Live migration is not supported yet.",
            objects: migrations(),
        },
    ]
}

/// Which requests a policy sees.
fn requests(group: &str, version: &str, resources: &[&str], operations: &[&str]) -> Value {
    json!({
        "resourceRules": [{
            "apiGroups": [group],
            "apiVersions": [version],
            "operations": operations,
            "resources": resources,
        }],
    })
}

fn vms(operations: &[&str]) -> Value {
    requests(GROUP, VERSION, &["virtualmachines"], operations)
}

fn validating(name: &str, spec: Value) -> Value {
    policy("ValidatingAdmissionPolicy", name, spec)
}

fn policy(kind: &str, name: &str, mut spec: Value) -> Value {
    if let Some(spec) = spec.as_object_mut() {
        spec.insert("failurePolicy".to_owned(), json!("Fail"));
    }
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": kind,
        "metadata": { "name": name },
        "spec": spec,
    })
}

fn binding(name: &str, action: &str) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": { "name": name },
        "spec": { "policyName": name, "validationActions": [action] },
    })
}

fn fractions() -> Vec<Value> {
    let name = "neonvm-virtualmachine-fractions";
    let fields = [
        ("spec.guest", "cpus", "min"),
        ("spec.guest", "cpus", "max"),
        ("spec.guest", "cpus", "use"),
        ("spec", "overcommit", "cpu"),
        ("spec", "overcommit", "memory"),
    ];
    // There is no ceil: adding 0.999 before the cut rounds up whatever is finer than a thousandth.
    let mutations: Vec<Value> = fields
        .iter()
        .map(|(above, parent, field)| {
            let value = format!("object.{above}.{parent}.{field}");
            let path = format!("/{}/{parent}/{field}", above.replace('.', "/"));
            let there = format!("has(object.{above}.{parent}) && has({value})");
            let patch = format!(
                "JSONPatch{{op: 'replace', path: '{path}', \
                 value: string(int({value} * 1000.0 + 0.999)) + 'm'}}"
            );
            json!({
                "patchType": "JSONPatch",
                "jsonPatch": {
                    "expression": format!("{there} && type({value}) == double ? [{patch}] : []"),
                },
            })
        })
        .collect();
    vec![
        policy(
            "MutatingAdmissionPolicy",
            name,
            json!({
                "matchConstraints": vms(&["CREATE", "UPDATE"]),
                "matchConditions": [{
                    "name": "has-a-spec",
                    "expression": "has(object.spec) && has(object.spec.guest)",
                }],
                "mutations": mutations,
                "reinvocationPolicy": "Never",
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

fn update_rules() -> Vec<Value> {
    let name = "neonvm-virtualmachine-update-rules";
    let key = names::SKIP_UPDATE_VALIDATION_KEY;
    let validations: Vec<Value> = update::RULES
        .iter()
        .map(|rule| {
            json!({
                "expression": format!("variables.skipped || ({})", rule.cel),
                "message": format!("{}: {}", rule.field, rule.message),
                "reason": "Invalid",
            })
        })
        .collect();
    let skipped = format!(
        "has(params.data) && '{key}' in params.data \
         && params.data['{key}'].split(',').exists(it, it.trim() == variables.full \
         || (oldObject.metadata.namespace == 'default' && it.trim() == oldObject.metadata.name))"
    );
    vec![
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": names::SYSTEM_NAMESPACE },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": names::SKIP_UPDATE_VALIDATION,
                "namespace": names::SYSTEM_NAMESPACE,
            },
            "data": { key: "" },
        }),
        validating(
            name,
            json!({
                "paramKind": { "apiVersion": "v1", "kind": "ConfigMap" },
                "matchConstraints": vms(&["UPDATE"]),
                "matchConditions": [
                    { "name": "spec-changes", "expression": "object.spec != oldObject.spec" },
                    // It has a policy of its own, which needs no ConfigMap: scaling must go on without it.
                    {
                        "name": "not-the-agent",
                        "expression": format!("request.userInfo.username != '{}'", names::USER_AGENT),
                    },
                ],
                "variables": [
                    {
                        "name": "full",
                        "expression": "oldObject.metadata.namespace + '/' + oldObject.metadata.name",
                    },
                    { "name": "skipped", "expression": skipped },
                ],
                "validations": validations,
            }),
        ),
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": { "name": name },
            "spec": {
                "policyName": name,
                "validationActions": ["Deny"],
                "paramRef": {
                    "name": names::SKIP_UPDATE_VALIDATION,
                    "namespace": names::SYSTEM_NAMESPACE,
                    "parameterNotFoundAction": "Deny",
                },
            },
        }),
    ]
}

fn rules() -> Vec<Value> {
    let name = "neonvm-virtualmachine-rules";
    let validations: Vec<Value> = validation::rules()
        .filter(|rule| rule.at == validation::POLICY)
        .map(|rule| {
            json!({
                "expression": rule.cel,
                "message": format!("{}: {}", rule.field, rule.message),
                "reason": "Invalid",
            })
        })
        .collect();
    let spec = json!({
        "matchConstraints": vms(&["CREATE", "UPDATE"]),
        "validations": validations,
    });
    vec![validating(name, spec), binding(name, "Deny")]
}

fn warnings() -> Vec<Value> {
    let name = "neonvm-virtualmachine-warnings";
    let validations: Vec<Value> = validation::rules()
        .filter_map(|rule| Some((rule, rule.warn_when?)))
        .map(|(rule, when)| {
            json!({
                "expression": format!("!({when})"),
                "message": format!("{}: not acted on yet ({})", rule.field, rule.message),
            })
        })
        .collect();
    // Only on creation: a warning on every change of size would be noise.
    let spec = json!({ "matchConstraints": vms(&["CREATE"]), "validations": validations });
    vec![validating(name, spec), binding(name, "Warn")]
}

fn agent() -> Vec<Value> {
    let name = "neonvm-agent-scope";
    let node = names::USER_EXTRA_NODE;
    let own = names::AGENT_ANNOTATIONS.map(|name| format!("'{name}'")).join(", ");
    // Everything in `new` is as in `old`, except below the keys that are named.
    let same_but = |new: &str, old: &str, except: &str| {
        format!(
            "{new}.all(k, k in [{except}] || (k in {old} && {new}[k] == {old}[k])) \
             && {old}.all(k, k in [{except}] || k in {new})"
        )
    };
    let same_bounds = |part: &str| {
        format!(
            "['min', 'max'].all(k, variables.spec.guest.{part}[k] == variables.oldSpec.guest.{part}[k])"
        )
    };
    let rules = [
        (
            format!(
                "has(request.userInfo.extra) && '{node}' in request.userInfo.extra \
                 && has(oldObject.status) && has(oldObject.status.node) && oldObject.status.node != '' \
                 && oldObject.status.node == request.userInfo.extra['{node}'][0]"
            ),
            "an agent may change only VMs of its own node",
        ),
        (
            same_but("variables.spec", "variables.oldSpec", "'guest', 'targetRevision'"),
            "an agent may change only sizes and targetRevision in a spec",
        ),
        (
            same_but("variables.spec.guest", "variables.oldSpec.guest", "'cpus', 'memorySlots'"),
            "an agent may change only sizes in spec.guest",
        ),
        (
            format!("{} && {}", same_bounds("cpus"), same_bounds("memorySlots")),
            "an agent may not change minimum or maximum",
        ),
        (
            same_but("variables.annotations", "variables.oldAnnotations", &own),
            "an agent may change only the approval among the annotations",
        ),
        (
            ["labels", "finalizers", "ownerReferences"]
                .map(|key| format!("object.metadata.?{key} == oldObject.metadata.?{key}"))
                .join(" && "),
            "an agent may not change labels, finalizers or owners",
        ),
    ];
    let mut validations = vec![json!({
        "expression": "request.operation == 'UPDATE'",
        "message": "an agent may only change VMs, not create or delete them",
        "reason": "Forbidden",
    })];
    validations.extend(rules.iter().map(|(rule, message)| {
        json!({
            "expression": format!("request.operation != 'UPDATE' || ({rule})"),
            "message": message,
            "reason": "Forbidden",
        })
    }));
    let annotations = |object: &str| {
        format!("has({object}.metadata.annotations) ? {object}.metadata.annotations : {{}}")
    };
    let spec = json!({
        "matchConstraints": vms(&["CREATE", "UPDATE", "DELETE"]),
        "matchConditions": [{
            "name": "is-an-agent",
            "expression": format!("request.userInfo.username == '{}'", names::USER_AGENT),
        }],
        "variables": [
            // Without their types: the rules go through their keys.
            { "name": "spec", "expression": "dyn(object.spec)" },
            { "name": "oldSpec", "expression": "dyn(oldObject.spec)" },
            { "name": "annotations", "expression": annotations("object") },
            { "name": "oldAnnotations", "expression": annotations("oldObject") },
        ],
        "validations": validations,
    });
    vec![validating(name, spec), binding(name, "Deny")]
}

fn status() -> Vec<Value> {
    let name = "neonvm-status-writer";
    let resources = ["virtualmachines/status", "virtualmachinemigrations/status"];
    let spec = json!({
        "matchConstraints": requests(GROUP, VERSION, &resources, &["CREATE", "UPDATE"]),
        "validations": [only(names::USER_CONTROLLER, "only the controller may write this status")],
    });
    vec![validating(name, spec), binding(name, "Deny")]
}

fn leader() -> Vec<Value> {
    let name = "neonvm-scheduler-leader";
    let (service, label) = (names::SCHEDULER_SERVICE, "kubernetes.io/service-name");
    let spec = json!({
        "matchConstraints":
            requests("discovery.k8s.io", "v1", &["endpointslices"], &["CREATE", "UPDATE"]),
        "matchConditions": [{
            "name": "is-the-extender",
            "expression": format!("request.userInfo.username == '{}'", names::USER_EXTENDER),
        }],
        "validations": [{
            "expression": format!(
                "object.metadata.name.startsWith('{service}-') \
                 && object.metadata.?labels[?'{label}'] == optional.of('{service}')"
            ),
            "message": "the scheduler's extender may only write the endpoints of its own Service",
            "reason": "Forbidden",
        }],
    });
    vec![validating(name, spec), binding(name, "Deny")]
}

fn migrations() -> Vec<Value> {
    let name = "neonvm-migrations-not-yet";
    let resources = ["virtualmachinemigrations"];
    let spec = json!({
        "matchConstraints": requests(GROUP, VERSION, &resources, &["CREATE"]),
        "validations": [{
            "expression": "false",
            "message": "live migration is not supported yet",
        }],
    });
    vec![validating(name, spec), binding(name, "Deny")]
}

fn only(user: &str, message: &str) -> Value {
    json!({
        "expression": format!("request.userInfo.username == '{user}'"),
        "message": message,
        "reason": "Forbidden",
    })
}
