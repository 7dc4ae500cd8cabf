//! The controller's metrics, under the names that dashboards know.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// How one effect ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByOutcome {
    /// `success`, `conflict` or `failure`.
    pub(crate) outcome: &'static str,
}

/// Which VMs are failing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByFailure {
    /// `virtualmachine`.
    pub(crate) controller: &'static str,
    /// `conflict` or `failure`.
    pub(crate) outcome: &'static str,
    /// Always `true`: nothing that fails is given up.
    pub(crate) actively_retried: &'static str,
}

/// What an order was about and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByOrder {
    /// `cpu` or `memory`.
    pub(crate) resource: &'static str,
    /// Its end.
    pub(crate) result: &'static str,
}

/// All metrics.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) failing: Family<ByFailure, Gauge>,
    pub(crate) reconciles: Family<ByOutcome, Histogram>,
    pub(crate) created_to_runner: Histogram,
    pub(crate) runner_to_running: Histogram,
    pub(crate) created_to_running: Histogram,
    /// A gauge, because the encoder would append `_total` to a counter's name, and dashboards know this one.
    pub(crate) restarts: Gauge,
    pub(crate) orders: Family<ByOrder, Counter>,
    pub(crate) vms: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            failing: Family::default(),
            reconciles: Family::new_with_constructor(reconcile_histogram),
            created_to_runner: reconcile_histogram(),
            runner_to_running: start_histogram(),
            created_to_running: start_histogram(),
            restarts: Gauge::default(),
            orders: Family::default(),
            vms: Gauge::default(),
        };
        registry.register(
            "reconcile_failing_objects",
            "Objects whose last write failed",
            metrics.failing.clone(),
        );
        registry.register(
            "reconcile_duration_seconds",
            "Duration of one write to the API server",
            metrics.reconciles.clone(),
        );
        registry.register(
            "vm_creation_to_runner_creation_duration_seconds",
            "From the creation of a VM to that of its first pod",
            metrics.created_to_runner.clone(),
        );
        registry.register(
            "vm_runner_creation_to_vm_running_duration_seconds",
            "From the creation of a pod until its VM runs",
            metrics.runner_to_running.clone(),
        );
        registry.register(
            "vm_creation_to_vm_running_duration_seconds",
            "From the creation of a VM until it runs for the first time",
            metrics.created_to_running.clone(),
        );
        registry.register(
            "vm_restarts_count",
            "Pods replaced by the restart policy",
            metrics.restarts.clone(),
        );
        registry.register("vm_orders", "Orders to runners by their end", metrics.orders.clone());
        registry.register("vms_current", "VirtualMachines known", metrics.vms.clone());
        metrics
    }

    /// One write ended.
    pub(crate) fn reconciled(&self, outcome: &'static str, seconds: f64) {
        self.reconciles.get_or_create(&ByOutcome { outcome }).observe(seconds);
    }

    /// A VM began (+1) or ceased (-1) to fail.
    pub(crate) fn failing(&self, outcome: &'static str, change: i64) {
        let label = ByFailure { controller: "virtualmachine", outcome, actively_retried: "true" };
        self.failing.get_or_create(&label).inc_by(change);
    }
}

fn reconcile_histogram() -> Histogram {
    Histogram::new([
        0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8,
        0.9, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0,
        15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0,
    ])
}

fn start_histogram() -> Histogram {
    Histogram::new([
        1.0, 5.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0,
        120.0, 140.0, 160.0, 200.0, 300.0,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_dashboards_know() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.reconciled("success", 0.01);
        metrics.failing("failure", 1);
        metrics.restarts.inc();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for name in [
            "reconcile_failing_objects{controller=\"virtualmachine\",outcome=\"failure\",actively_retried=\"true\"} 1",
            "reconcile_duration_seconds_count{outcome=\"success\"} 1",
            "vm_creation_to_runner_creation_duration_seconds_count",
            "vm_runner_creation_to_vm_running_duration_seconds_count",
            "vm_creation_to_vm_running_duration_seconds_count",
            "vm_restarts_count 1",
        ] {
            assert!(text.contains(name), "{name} is missing in\n{text}");
        }
    }
}
