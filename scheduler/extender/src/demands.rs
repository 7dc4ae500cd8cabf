//! What a pod that waits for a node demands of it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use scheduler_ledger::{Demands, Label, Toleration};

use crate::moves::{named_node, only_value};
use crate::objects::{Pod, PodSpec, PodStatus};

/// Whether a scheduler, whichever, has looked for a node in vain. A pod that no scheduler may look at yet has another reason.
pub(crate) fn unschedulable(status: &PodStatus) -> bool {
    status.conditions.iter().any(|condition| {
        condition.kind == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    })
}

/// What an unplaced pod demands of a node beside CPU and memory.
pub(crate) fn demands(pod: &Pod, spec: &PodSpec) -> Demands {
    let tolerations = spec.tolerations.iter().map(|it| {
        toleration(it.key.as_ref(), it.operator.as_ref(), it.value.as_ref(), it.effect.as_ref())
    });
    let term = spec.affinity.term.as_ref();
    let expressions = term.and_then(|term| term.match_expressions.as_ref()).into_iter().flatten();
    let expressions = expressions.filter_map(|it| Some(Label::new(&it.key, only_value(it)?)));
    let labels = spec.node_selector.iter().map(|(key, value)| Label::new(key, value));
    let labels: Vec<_> = labels.chain(expressions).collect();
    let tolerations: Vec<_> = tolerations.collect();
    let mut class = DefaultHasher::new();
    (&pod.metadata.namespace, &spec.scheduler_name, &labels, &tolerations).hash(&mut class);
    (spec.affinity.digest, spec.topology_spread_constraints, spec.resource_claims).hash(&mut class);
    spec.volumes.hash(&mut class);
    for container in spec.containers.iter().chain(&spec.init_containers) {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests);
        (requests.map(|requests| requests.others), &container.ports).hash(&mut class);
    }
    let node = term.and_then(named_node).map(str::to_owned);
    Demands { class: class.finish(), node, labels, tolerations }
}

pub(crate) fn toleration(
    key: Option<&String>,
    operator: Option<&String>,
    value: Option<&String>,
    effect: Option<&String>,
) -> Toleration {
    let exists = operator.is_some_and(|operator| operator == "Exists");
    Toleration {
        key: key.filter(|key| !key.is_empty()).cloned(),
        value: (!exists).then(|| value.cloned().unwrap_or_default()),
        effect: effect.filter(|effect| !effect.is_empty()).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::convert::pod;
    use crate::convert::tests::runner_json;

    #[test]
    fn a_pod_that_no_scheduler_can_place_is_known_as_such() {
        let table = [
            ("PodScheduled", "False", "Unschedulable", true),
            ("PodScheduled", "False", "SchedulingGated", false),
            ("PodScheduled", "False", "SchedulerError", false),
            ("PodScheduled", "True", "Unschedulable", false),
            ("Ready", "False", "Unschedulable", false),
        ];
        for (type_, status, reason, expected) in table {
            let mut value = runner_json();
            value["spec"]["nodeName"] = json!(null);
            value["status"] = json!({"phase": "Pending", "conditions": [
                {"type": type_, "status": status, "reason": reason}
            ]});
            let object: Pod = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(
                pod(&object).unwrap().unplaced.is_some(),
                expected,
                "{type_} {status} {reason}"
            );
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            let object: Pod = serde_json::from_value(value).unwrap();
            assert_eq!(pod(&object).unwrap().unplaced, None, "it is being deleted");
        }
    }

    #[test]
    fn unplaced_pods_that_demand_the_same_are_of_one_class() {
        let class = |edit: &dyn Fn(&mut serde_json::Value)| {
            let mut value = json!({
                "metadata": {"name": "p", "namespace": "d", "uid": "u"},
                "spec": {
                    "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}],
                    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": ""}],
                    "nodeSelector": {"disk": "ssd"},
                    "volumes": [{"name": "token", "projected": {"sources": []}}]
                },
                "status": {"conditions":
                    [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}
            });
            edit(&mut value);
            let object: Pod = serde_json::from_str(&value.to_string()).unwrap();
            *pod(&object).unwrap().unplaced.unwrap()
        };
        let all = class(&|_| ());
        assert_eq!(all.labels, [Label::new("disk", "ssd")]);
        let (key, value, effect) = (Some("gpu".to_owned()), None, None);
        assert_eq!(all.tolerations, [Toleration { key, value, effect }]);
        let same: [&dyn Fn(&mut serde_json::Value); 3] = [
            &|it| it["metadata"]["uid"] = json!("u2"),
            &|it| it["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("7"),
            &|it| it["spec"]["volumes"][0]["name"] = json!("token-2"),
        ];
        for edit in same {
            assert_eq!(class(edit), all);
        }
        let other: [&dyn Fn(&mut serde_json::Value); 7] = [
            &|it| it["metadata"]["namespace"] = json!("e"),
            &|it| it["spec"]["nodeSelector"]["disk"] = json!("hdd"),
            &|it| it["spec"]["affinity"] = json!({"nodeAffinity": {}}),
            &|it| it["spec"]["schedulerName"] = json!("other"),
            &|it| it["spec"]["containers"][0]["ports"] = json!([{"hostPort": 80}]),
            &|it| it["spec"]["containers"][0]["resources"]["requests"]["gpu"] = json!("1"),
            &|it| it["spec"]["volumes"][0]["persistentVolumeClaim"] = json!({"claimName": "data"}),
        ];
        for edit in other {
            assert_ne!(class(edit).class, all.class);
        }
    }

    #[test]
    fn an_affinity_without_an_alternative_is_read() {
        let read = |terms: serde_json::Value| {
            let value = json!({
                "metadata": {"name": "p", "namespace": "d", "uid": "u"},
                "spec": {"containers": [], "affinity": {"nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}
                }}},
                "status": {"conditions":
                    [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}
            });
            let object: Pod = serde_json::from_str(&value.to_string()).unwrap();
            let demands = *pod(&object).unwrap().unplaced.unwrap();
            (demands.node, demands.labels)
        };
        let named = json!({"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": ["n1"]}
        ]});
        assert_eq!(read(json!([named])), (Some("n1".to_owned()), vec![]), "as of a DaemonSet");
        let labelled = json!({"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]},
            {"key": "zone", "operator": "In", "values": ["a", "b"]},
            {"key": "disk", "operator": "NotIn", "values": ["hdd"]},
            {"key": "gpu", "operator": "Exists"}
        ]});
        let host = Label::new("kubernetes.io/hostname", "n1");
        assert_eq!(read(json!([labelled])), (None, vec![host]));
        assert_eq!(read(json!([named, labelled])), (None, vec![]), "it may choose");
        let not = json!({"matchFields": [
            {"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}
        ]});
        assert_eq!(read(json!([not])), (None, vec![]));
        assert_eq!(read(json!([])), (None, vec![]));
        assert_eq!(read(json!("no list")), (None, vec![]));
    }
}
