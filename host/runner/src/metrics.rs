//! What the runner counts, in the text format of Prometheus.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use host_protocol::{GuestLink, RunnerState};

/// Seconds that an order takes.
const BUCKETS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// An order and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OrderLabels {
    pub(crate) resource: &'static str,
    pub(crate) result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

/// All metrics; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    orders: Family<OrderLabels, Counter>,
    order_time: Histogram,
    refused_connections: Family<ByReason, Counter>,
    vsock_restarts: Counter,
    keeper_connections: Counter,
    guest_connected: Gauge,
    vcpus: Gauge,
    memory: Gauge,
}

impl Metrics {
    /// Registers all metrics.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            orders: Family::default(),
            order_time: Histogram::new(BUCKETS),
            refused_connections: Family::default(),
            vsock_restarts: Counter::default(),
            keeper_connections: Counter::default(),
            guest_connected: Gauge::default(),
            vcpus: Gauge::default(),
            memory: Gauge::default(),
        };
        let to = registry.sub_registry_with_prefix("runner");
        to.register("orders", "Orders by resource and result", metrics.orders.clone());
        to.register_with_unit(
            "order_duration",
            "Time from an order to its outcome",
            Unit::Seconds,
            metrics.order_time.clone(),
        );
        to.register(
            "refused_connections",
            "Connections for orders that were refused, by reason",
            metrics.refused_connections.clone(),
        );
        to.register(
            "vsock_restarts",
            "Restarts of the vsock back end",
            metrics.vsock_restarts.clone(),
        );
        to.register(
            "keeper_connections",
            "Connections made to the guest's keeper",
            metrics.keeper_connections.clone(),
        );
        to.register(
            "guest_connected",
            "1 while the guest's keeper is connected",
            metrics.guest_connected.clone(),
        );
        to.register("plugged_vcpus", "vCPUs that exist in QEMU", metrics.vcpus.clone());
        to.register_with_unit(
            "plugged_memory",
            "Memory that is plugged, base included",
            Unit::Bytes,
            metrics.memory.clone(),
        );
        metrics
    }

    /// An order ended.
    pub(crate) fn order(&self, labels: OrderLabels, took: Duration) {
        self.orders.get_or_create(&labels).inc();
        self.order_time.observe(took.as_secs_f64());
    }

    /// A connection for orders was refused.
    pub(crate) fn refused_connection(&self, reason: &'static str) {
        self.refused_connections.get_or_create(&ByReason { reason }).inc();
    }

    /// The vsock back end was started again.
    pub(crate) fn vsock_restarted(&self) {
        self.vsock_restarts.inc();
    }

    /// The keeper was connected.
    pub(crate) fn keeper_connected(&self) {
        self.keeper_connections.inc();
    }

    /// The text of all metrics, with the VM as it is now.
    pub(crate) fn text(&self, registry: &Registry, state: &RunnerState) -> String {
        self.guest_connected.set((state.guest == GuestLink::Connected).into());
        self.vcpus.set(state.plugged.vcpus.into());
        self.memory.set(i64::try_from(state.plugged.memory.0).unwrap_or(i64::MAX));
        let mut text = String::new();
        let _infallible = encode(&mut text, registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::State;

    #[test]
    fn names_and_units() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.order(OrderLabels { resource: "cpu", result: "done" }, Duration::from_millis(30));
        metrics.refused_connection("tls");
        metrics.vsock_restarted();
        metrics.keeper_connected();
        let text = metrics.text(&registry, &State::new(None).get());
        for line in [
            "runner_orders_total{resource=\"cpu\",result=\"done\"} 1",
            "runner_order_duration_seconds_bucket{le=\"0.05\"} 1",
            "runner_refused_connections_total{reason=\"tls\"} 1",
            "runner_vsock_restarts_total 1",
            "runner_keeper_connections_total 1",
            "runner_guest_connected 0",
            "runner_plugged_vcpus 0",
            "runner_plugged_memory_bytes 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
