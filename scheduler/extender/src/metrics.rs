//! What is counted. Names are the reference's where it has one.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use scheduler_ledger::{Amount, NodeLevel};
use scheduler_protocol::Outcome;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMethod {
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCode {
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCodeAndNode {
    code: &'static str,
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOperation {
    op: &'static str,
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByNode {
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByNodeAndField {
    node: String,
    field: &'static str,
}

/// A call of the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Approve,
    Bind,
    EndMigration,
    Event,
    Fence,
    GetPod,
    Migrate,
    NoteRequested,
    Resize,
}

impl Operation {
    /// Its name, and the kind of object that it is about.
    fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::Approve => ("approve", "VirtualMachine"),
            Self::Bind => ("bind", "Pod"),
            Self::EndMigration => ("end_migration", "VirtualMachineMigration"),
            Self::Event => ("event", "Event"),
            Self::Fence => ("fence", "Pod"),
            Self::GetPod => ("get_pod", "Pod"),
            Self::Migrate => ("migrate", "VirtualMachineMigration"),
            Self::NoteRequested => ("note_requested", "VirtualMachine"),
            Self::Resize => ("resize", "Pod"),
        }
    }
}

type Level = Family<ByNodeAndField, Gauge<f64, AtomicU64>>;
type Times = Family<ByOutcome, Histogram, fn() -> Histogram>;

/// Handed to everyone who counts.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    extension_calls: Family<ByMethod, Counter>,
    extension_call_fails: Family<ByMethod, Counter>,
    resource_requests: Family<ByCode, Counter>,
    resource_requests_results: Family<ByCodeAndNode, Counter>,
    permit_decisions: Family<ByReason, Counter>,
    permit_duration: Times,
    k8s_ops: Family<ByOperation, Counter>,
    node_cpu: Level,
    node_mem: Level,
    waiting: Family<ByNode, Gauge>,
    /// Nodes with results: what is not counted any more is forgotten with the node.
    answered: Arc<Mutex<BTreeSet<String>>>,
    leader: Gauge,
    epoch: Gauge<u64, AtomicU64>,
}

fn permit_times() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0])
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let this = Self {
            extension_calls: Family::default(),
            extension_call_fails: Family::default(),
            resource_requests: Family::default(),
            resource_requests_results: Family::default(),
            permit_decisions: Family::default(),
            permit_duration: Family::new_with_constructor(permit_times),
            k8s_ops: Family::default(),
            node_cpu: Family::default(),
            node_mem: Family::default(),
            waiting: Family::default(),
            answered: Arc::default(),
            leader: Gauge::default(),
            epoch: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("autoscaling_plugin");
        registry.register(
            "extension_calls",
            "Calls of kube-scheduler",
            this.extension_calls.clone(),
        );
        registry.register(
            "extension_call_fails",
            "Calls of kube-scheduler that were refused or failed",
            this.extension_call_fails.clone(),
        );
        registry.register(
            "resource_requests",
            "Permit requests by status of the answer",
            this.resource_requests.clone(),
        );
        registry.register(
            "resource_requests_results",
            "Permit answers by outcome and node",
            this.resource_requests_results.clone(),
        );
        registry.register(
            "permit_decisions",
            "Permit answers by reason: growths within a lease are already_backed, others kubelet_allocated",
            this.permit_decisions.clone(),
        );
        registry.register_with_unit(
            "permit_duration",
            "Time from a permit request to its answer",
            Unit::Seconds,
            this.permit_duration.clone(),
        );
        registry.register("k8s_ops", "Calls of the API server", this.k8s_ops.clone());
        registry.register(
            "node_cpu_resources_current",
            "CPU of a node, in CPUs",
            this.node_cpu.clone(),
        );
        registry.register(
            "node_mem_resources_current",
            "Memory of a node, in bytes",
            this.node_mem.clone(),
        );
        registry.register(
            "growths_waiting",
            "Growths that were not begun yet, by node: they wait for room, or for what their pod has to be known",
            this.waiting.clone(),
        );
        registry.register("leader", "1 while this process leads", this.leader.clone());
        registry.register(
            "lease_epoch",
            "Epoch of the lease while this process leads, otherwise 0",
            this.epoch.clone(),
        );
        this
    }

    pub(crate) fn extension_call(&self, method: &'static str, outcome: &'static str) {
        let labels = ByMethod { method };
        self.extension_calls.get_or_create(&labels).inc();
        if outcome != "success" {
            self.extension_call_fails.get_or_create(&labels).inc();
        }
    }

    pub(crate) fn request(&self, code: u16) {
        self.resource_requests.get_or_create(&ByCode { code }).inc();
    }

    pub(crate) fn decided(
        &self,
        outcome: Outcome,
        reason: &'static str,
        node: &str,
        took: Duration,
    ) {
        let outcome = outcome.label();
        let labels = ByCodeAndNode { code: outcome, node: node.to_owned() };
        self.resource_requests_results.get_or_create(&labels).inc();
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        if !answered.contains(node) {
            answered.insert(node.to_owned());
        }
        drop(answered);
        self.permit_decisions.get_or_create(&ByReason { reason }).inc();
        self.permit_duration.get_or_create(&ByOutcome { outcome }).observe(took.as_secs_f64());
    }

    pub(crate) fn operation(&self, operation: Operation, outcome: &'static str) {
        let (op, kind) = operation.labels();
        self.k8s_ops.get_or_create(&ByOperation { op, kind, outcome }).inc();
    }

    /// None: another leads, or nobody.
    pub(crate) fn leads(&self, epoch: Option<u64>) {
        self.leader.set(epoch.is_some().into());
        self.epoch.set(epoch.unwrap_or(0));
    }

    /// Levels of all nodes; those of nodes that are gone vanish.
    pub(crate) fn nodes(&self, levels: &[(String, NodeLevel)], watermark: f64) {
        let known: BTreeSet<&str> = levels.iter().map(|(name, _)| name.as_str()).collect();
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.retain(|node| {
            let stays = known.contains(node.as_str());
            for outcome in Outcome::ALL.iter().filter(|_| !stays) {
                let labels = ByCodeAndNode { code: outcome.label(), node: node.clone() };
                self.resource_requests_results.remove(&labels);
            }
            stays
        });
        drop(answered);
        self.node_cpu.clear();
        self.node_mem.clear();
        self.waiting.clear();
        for (name, node) in levels {
            self.level(name, "Total", node.allocatable, 1.0);
            self.level(name, "Watermark", node.allocatable, watermark);
            self.level(name, "Reserved", node.reserved, 1.0);
            self.level(name, "Leased", node.leased, 1.0);
            self.level(name, "Committed", node.promised, 1.0);
            self.level(name, "Migrating", node.migrating, 1.0);
            self.level(name, "Plugged", node.plugged, 1.0);
            self.waiting.get_or_create(&ByNode { node: name.clone() }).set(node.waiting.into());
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a floating-point number")]
    fn level(&self, node: &str, field: &'static str, amount: Amount, factor: f64) {
        let labels = ByNodeAndField { node: node.to_owned(), field };
        let cpus = amount.cpu_millis as f64 / 1000.0;
        self.node_cpu.get_or_create(&labels).set(cpus * factor);
        self.node_mem.get_or_create(&labels).set(amount.memory_bytes as f64 * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use scheduler_ledger::{Event, Ledger, NodeFacts, Settings};

    fn levels(ledger: &Ledger) -> Vec<(String, NodeLevel)> {
        let names = ledger.node_names().into_iter();
        names.filter_map(|name| ledger.level(&name).map(|level| (name, level))).collect()
    }

    #[test]
    fn names_are_the_references_and_nodes_vanish() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.decided(Outcome::Granted, "kubelet_allocated", "n1", Duration::from_millis(60));
        metrics.request(200);
        metrics.extension_call("filter", "error");
        let mut ledger = Ledger::new(Settings::default());
        let allocatable = Amount { cpu_millis: 1500, memory_bytes: 1 << 30 };
        let now = guest_units::Moment::ZERO;
        ledger.handle(
            Event::Node(NodeFacts { name: "n1".into(), allocatable, ..NodeFacts::default() }),
            now,
        );
        metrics.nodes(&levels(&ledger), 0.9);
        metrics.operation(Operation::Resize, "success");
        metrics.leads(Some(7));
        let text = |registry: &Registry| {
            let mut text = String::new();
            encode(&mut text, registry).unwrap();
            text
        };
        let shown = text(&registry);
        for line in [
            "autoscaling_plugin_node_cpu_resources_current{node=\"n1\",field=\"Total\"} 1.5",
            "autoscaling_plugin_node_mem_resources_current{node=\"n1\",field=\"Leased\"} 0.0",
            "autoscaling_plugin_node_cpu_resources_current{node=\"n1\",field=\"Migrating\"} 0.0",
            "autoscaling_plugin_growths_waiting{node=\"n1\"} 0",
            "autoscaling_plugin_leader 1",
            "autoscaling_plugin_lease_epoch 7",
            "autoscaling_plugin_k8s_ops_total{op=\"resize\",kind=\"Pod\",outcome=\"success\"} 1",
            "autoscaling_plugin_permit_decisions_total{reason=\"kubelet_allocated\"} 1",
            "autoscaling_plugin_resource_requests_total{code=\"200\"} 1",
            "autoscaling_plugin_extension_call_fails_total{method=\"filter\"} 1",
            "autoscaling_plugin_resource_requests_results_total{code=\"granted\",node=\"n1\"} 1",
            "autoscaling_plugin_permit_duration_seconds_count{outcome=\"granted\"} 1",
        ] {
            assert!(shown.contains(line), "{line} in\n{shown}");
        }
        ledger.handle(Event::NodeGone("n1".into()), now);
        metrics.nodes(&levels(&ledger), 0.9);
        metrics.leads(None);
        let shown = text(&registry);
        assert!(!shown.contains("n1"), "{shown}");
        assert!(shown.contains("autoscaling_plugin_leader 0"), "{shown}");
    }
}
