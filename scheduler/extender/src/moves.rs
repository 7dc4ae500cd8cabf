//! Migrations: how they look at the API server, and how they are made and ended.

use controller_api::migration::MigrationPhase;
use controller_api::{VirtualMachine, VirtualMachineMigration, VirtualMachineMigrationSpec, names};
use guest_units::Chain;
use k8s_openapi::api::core::v1::{
    NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource as _;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use scheduler_ledger::{Event, MigrationFacts, Why};
use scheduler_protocol::ObjectRef;

use crate::convert::Owner;
use crate::effects::{CallError, Effects};
use crate::metrics::Operation;

/// The field of a node that only that node has.
const NODE_NAME: &str = "metadata.name";

/// A migration whose VM is known: until the operator has looked at one that a user made, nothing begins.
pub(crate) fn facts(migration: &VirtualMachineMigration) -> Option<MigrationFacts> {
    let metadata = &migration.metadata;
    let mut owners = metadata.owner_references.iter().flatten().map(|owner| Owner {
        api_version: &owner.api_version,
        kind: &owner.kind,
        controller: owner.controller,
        uid: &owner.uid,
    });
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(names::LABEL_BY_SCHEDULER));
    let phase = migration.status.as_ref().map(|status| status.phase);
    Some(MigrationFacts {
        uid: metadata.uid.clone()?,
        namespace: metadata.namespace.clone()?,
        name: metadata.name.clone()?,
        vm_uid: owners.find(|owner| owner.is(&VirtualMachine::kind(&())))?.uid.to_owned(),
        ours: label.is_some_and(|value| value == "true"),
        to: migration.spec.node_affinity.as_ref().and_then(only_node),
        ended: match phase {
            Some(MigrationPhase::Succeeded) => Some(true),
            Some(MigrationPhase::Failed) => Some(false),
            _ => None,
        },
    })
}

/// The node that an affinity leaves, if it is one of [`affinity`].
fn only_node(affinity: &NodeAffinity) -> Option<String> {
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let [term] = &required.node_selector_terms[..] else { return None };
    named_node(term).map(str::to_owned)
}

/// The node that a term of an affinity names, if it names one and no other.
pub(crate) fn named_node(term: &NodeSelectorTerm) -> Option<&str> {
    let [field] = &term.match_fields.as_deref()? else { return None };
    only_value(field).filter(|_| field.key == NODE_NAME)
}

/// The value that is demanded, if it is one and no other.
pub(crate) fn only_value(demand: &NodeSelectorRequirement) -> Option<&str> {
    let [value] = &demand.values.as_deref()? else { return None };
    (demand.operator == "In").then_some(value)
}

fn affinity(node: &str) -> NodeAffinity {
    let field = NodeSelectorRequirement {
        key: NODE_NAME.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![field]), match_expressions: None };
    let required = NodeSelector { node_selector_terms: vec![term] };
    NodeAffinity {
        required_during_scheduling_ignored_during_execution: Some(required),
        preferred_during_scheduling_ignored_during_execution: None,
    }
}

/// A move that the ledger orders.
pub(crate) struct MoveOrder {
    pub(crate) vm: ObjectRef,
    pub(crate) pod: ObjectRef,
    pub(crate) to: String,
    pub(crate) name: String,
    pub(crate) epoch: u64,
}

/// What is not said is as the kind has it unless a user says otherwise.
fn object(order: &MoveOrder) -> VirtualMachineMigration {
    let MoveOrder { vm, to, name, .. } = order;
    let owner = OwnerReference {
        api_version: VirtualMachine::api_version(&()).into_owned(),
        kind: VirtualMachine::kind(&()).into_owned(),
        name: vm.name.clone(),
        uid: vm.uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let label = (names::LABEL_BY_SCHEDULER.to_owned(), "true".to_owned());
    let metadata = ObjectMeta {
        name: Some(name.clone()),
        namespace: Some(vm.namespace.clone()),
        labels: Some([label].into()),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    let spec = VirtualMachineMigrationSpec {
        vm_name: vm.name.clone(),
        node_selector: std::collections::BTreeMap::new(),
        node_affinity: Some(affinity(to)),
        prevent_migration_to_same_host: true,
        completion_timeout: 3600,
        incremental: true,
        allow_post_copy: false,
        auto_converge: true,
        max_bandwidth: Quantity("1Gi".to_owned()),
    };
    VirtualMachineMigration { metadata, spec, status: None }
}

impl Effects {
    /// Makes a migration.
    pub(crate) fn migrate(&self, order: MoveOrder, why: Why) {
        let this = self.clone();
        let _task = self.tasks.spawn(async move {
            let MoveOrder { vm, pod, to, name, epoch } = &order;
            let api: Api<VirtualMachineMigration> =
                Api::namespaced(this.client.clone(), &vm.namespace);
            let (parameters, object) = (PostParams::default(), object(&order));
            let call = async { Ok(api.create(&parameters, &object).await?) };
            let made = match this.fenced(*epoch, Operation::Migrate, call).await {
                Ok(_) => Some(true),
                Err(err) => {
                    tracing::warn!(
                        vm = vm.name, namespace = vm.namespace, error = %Chain(&err),
                        "migration not made"
                    );
                    let refused = matches!(err.status(), Some(400..=499));
                    (refused || matches!(err, CallError::NotHeld)).then_some(false)
                }
            };
            tracing::info!(
                vm = vm.name,
                namespace = vm.namespace,
                pod = pod.name,
                to,
                name,
                why = why.label(),
                made = made == Some(true),
                "migration ordered"
            );
            let (vm, name) = (vm.uid.clone(), name.clone());
            let _ = this.core.tell(Event::MigrateEnded { vm, name, made }).await;
        });
    }

    /// Deletes a migration, and no later one of its name. What comes of it the watch shows.
    pub(crate) fn end_migration(&self, migration: ObjectRef, epoch: u64, why: Why) {
        let this = self.clone();
        let _task = self.tasks.spawn(async move {
            let ObjectRef { namespace, name, uid } = migration;
            let api: Api<VirtualMachineMigration> =
                Api::namespaced(this.client.clone(), &namespace);
            let preconditions = Some(Preconditions { uid: Some(uid), resource_version: None });
            let parameters = DeleteParams { preconditions, ..DeleteParams::default() };
            let call = async { Ok(api.delete(&name, &parameters).await?) };
            let deleted = this.fenced(epoch, Operation::EndMigration, call).await;
            match deleted {
                Ok(_) => tracing::info!(name, namespace, why = why.label(), "migration deleted"),
                Err(err) => tracing::warn!(
                    name, namespace, error = %Chain(&err), "migration not deleted"
                ),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn order() -> MoveOrder {
        let named = |name: &str| ObjectRef {
            namespace: "d".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
        };
        let (to, name) = ("n2".to_owned(), "schedplugin-pg-x-1-7".to_owned());
        MoveOrder { vm: named("pg"), pod: named("pg-x"), to, name, epoch: 1 }
    }

    #[test]
    fn what_is_made_is_known_again() {
        let mut made = object(&order());
        made.metadata.uid = Some("m1".to_owned());
        let expected = MigrationFacts {
            uid: "m1".to_owned(),
            namespace: "d".to_owned(),
            name: "schedplugin-pg-x-1-7".to_owned(),
            vm_uid: "uid-pg".to_owned(),
            ours: true,
            to: Some("n2".to_owned()),
            ended: None,
        };
        assert_eq!(facts(&made), Some(expected));
        let least = json!({"metadata": {"name": "m"}, "spec": {"vmName": "pg"}});
        let least: VirtualMachineMigration = serde_json::from_value(least).unwrap();
        let node_affinity = made.spec.node_affinity.clone();
        assert_eq!(made.spec, VirtualMachineMigrationSpec { node_affinity, ..least.spec });
    }

    #[test]
    fn a_users_migration_is_known_by_its_owner_and_ends_with_its_phase() {
        let migration = |phase: &str, kind: &str| {
            let value = json!({
                "metadata": {"name": "m", "namespace": "d", "uid": "m1", "ownerReferences": [
                    {"apiVersion": "vm.neon.tech/v1", "kind": kind, "name": "pg", "uid": "u1"}
                ]},
                "spec": {"vmName": "pg", "nodeAffinity": {}},
                "status": {"phase": phase}
            });
            facts(&serde_json::from_value(value).unwrap())
        };
        assert_eq!(migration("Running", "Other"), None);
        let table = [
            ("", None),
            ("Pending", None),
            ("Running", None),
            ("Succeeded", Some(true)),
            ("Failed", Some(false)),
        ];
        for (phase, ended) in table {
            let facts = migration(phase, "VirtualMachine").unwrap();
            assert_eq!((facts.ours, facts.to, facts.ended), (false, None, ended), "{phase}");
        }
    }
}
