//! Metrics about the agent, with the reference's names. Label values come from fixed texts only.

use std::fmt::Write as _;
use std::time::Duration;

use guest_units::Size;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

const MIB: u64 = 1 << 20;

/// Which way a size goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    Inc,
    Dec,
    Both,
    None,
}

impl Direction {
    pub(crate) fn of(from: Size, to: Size) -> Self {
        let up = to.cpu > from.cpu || to.memory > from.memory;
        let down = to.cpu < from.cpu || to.memory < from.memory;
        match (up, down) {
            (true, true) => Self::Both,
            (true, false) => Self::Inc,
            (false, true) => Self::Dec,
            (false, false) => Self::None,
        }
    }
}

impl EncodeLabelValue for Direction {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(match self {
            Self::Inc => "inc",
            Self::Dec => "dec",
            Self::Both => "both",
            Self::None => "none",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByCode {
    pub(crate) code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByEndpointAndCode {
    pub(crate) endpoint: &'static str,
    pub(crate) code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByResult {
    pub(crate) result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByDirection {
    pub(crate) direction: Direction,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByState {
    pub(crate) is_endpoint: &'static str,
    pub(crate) state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByWhy {
    pub(crate) why: &'static str,
}

/// A pair of counters for the CPU and memory by which requests change a size.
#[derive(Debug, Default, Clone)]
pub(crate) struct Changes {
    cpu: Family<ByDirection, Counter<f64, std::sync::atomic::AtomicU64>>,
    mem: Family<ByDirection, Counter>,
}

impl Changes {
    pub(crate) fn count(&self, from: Size, to: Size) {
        let direction =
            |up: bool| ByDirection { direction: if up { Direction::Inc } else { Direction::Dec } };
        if from.cpu != to.cpu {
            let cpus = f64::from(from.cpu.0.abs_diff(to.cpu.0)) / 1000.0;
            self.cpu.get_or_create(&direction(to.cpu > from.cpu)).inc_by(cpus);
        }
        if from.memory != to.memory {
            let mib = from.memory.0.abs_diff(to.memory.0) / MIB;
            self.mem.get_or_create(&direction(to.memory > from.memory)).inc_by(mib);
        }
    }
}

type Latency = Family<ByDirection, Histogram, fn() -> Histogram>;

/// All metrics about the agent.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) permits: Family<ByCode, Counter>,
    pub(crate) permit_requested: Changes,
    pub(crate) permit_accepted: Changes,
    pub(crate) full_denials: Family<ByDirection, Counter>,
    pub(crate) partial_approvals: Family<ByDirection, Counter>,
    pub(crate) guest_outbound: Family<ByEndpointAndCode, Counter>,
    pub(crate) guest_inbound: Family<ByEndpointAndCode, Counter>,
    pub(crate) guest_requested: Changes,
    pub(crate) guest_approved: Changes,
    pub(crate) patches: Family<ByResult, Counter>,
    pub(crate) patch_requested: Changes,
    pub(crate) runners: Family<ByState, Gauge>,
    pub(crate) runner_starts: Counter,
    pub(crate) runner_panics: Counter,
    pub(crate) next_actions: Counter,
    pub(crate) actions: Family<ByWhy, Counter>,
    pub(crate) scaling_latency: Latency,
    pub(crate) permit_latency: Latency,
    pub(crate) guest_latency: Latency,
    pub(crate) patch_latency: Latency,
    pub(crate) watch_events: Counter,
    pub(crate) watch_errors: Counter,
}

fn latency() -> Histogram {
    let fine = [0.005, 0.01, 0.025, 0.05];
    let tenths = (2..=10).map(|n| f64::from(n) * 0.05);
    let rest = [
        0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0,
        9.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0,
    ];
    Histogram::new(fine.into_iter().chain(tenths).chain(rest))
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let by_direction = || Latency::new_with_constructor(latency as fn() -> Histogram);
        let metrics = Self {
            permits: Family::default(),
            permit_requested: Changes::default(),
            permit_accepted: Changes::default(),
            full_denials: Family::default(),
            partial_approvals: Family::default(),
            guest_outbound: Family::default(),
            guest_inbound: Family::default(),
            guest_requested: Changes::default(),
            guest_approved: Changes::default(),
            patches: Family::default(),
            patch_requested: Changes::default(),
            runners: Family::default(),
            runner_starts: Counter::default(),
            runner_panics: Counter::default(),
            next_actions: Counter::default(),
            actions: Family::default(),
            scaling_latency: by_direction(),
            permit_latency: by_direction(),
            guest_latency: by_direction(),
            patch_latency: by_direction(),
            watch_events: Counter::default(),
            watch_errors: Counter::default(),
        };
        metrics.register_in(registry.sub_registry_with_prefix("autoscaling_agent"));
        metrics
    }

    fn register_in(&self, to: &mut Registry) {
        let changes = |to: &mut Registry, prefix: &str, mem: &str, what: &str, of: &Changes| {
            let mut name = String::new();
            let _infallible = write!(name, "{prefix}_cpu_change");
            to.register(name, format!("CPU {what}, in vCPUs"), of.cpu.clone());
            to.register(
                format!("{prefix}_{mem}"),
                format!("Memory {what}, in MiB"),
                of.mem.clone(),
            );
        };
        to.register("scheduler_plugin_requests", "Permit requests by code", self.permits.clone());
        let requested = &self.permit_requested;
        changes(
            to,
            "scheduler_plugin_requested",
            "mem_change",
            "asked of the scheduler",
            requested,
        );
        let accepted = &self.permit_accepted;
        changes(
            to,
            "scheduler_plugin_accepted",
            "mem_change",
            "granted by the scheduler",
            accepted,
        );
        to.register("scaling_full_denials", "Permits denied", self.full_denials.clone());
        to.register(
            "scaling_partial_approvals",
            "Permits granted in part",
            self.partial_approvals.clone(),
        );
        to.register("monitor_outbound_requests", "Requests to guests", self.guest_outbound.clone());
        to.register("monitor_inbound_requests", "Messages of guests", self.guest_inbound.clone());
        let asked = &self.guest_requested;
        changes(to, "monitor_requested", "mem_change", "asked of guests", asked);
        let agreed = &self.guest_approved;
        changes(to, "monitor_approved", "mem_change", "agreed by guests", agreed);
        to.register("neonvm_outbound_requests", "Patches of VM objects", self.patches.clone());
        let patched = &self.patch_requested;
        changes(to, "neonvm_requested", "mem_changed", "written into VM objects", patched);
        to.register("runners_current", "VMs by state", self.runners.clone());
        to.register("runner_thread_panics", "Tasks of VMs that died", self.runner_panics.clone());
        to.register("runner_starts", "VMs that became ours", self.runner_starts.clone());
        to.register(
            "runner_next_actions",
            "Times that a VM's brain was asked",
            self.next_actions.clone(),
        );
        to.register("actions", "Actions by their reason", self.actions.clone());
        let seconds = prometheus_client::registry::Unit::Seconds;
        for (name, help, latency) in [
            ("scaling_latency", "From decision to plugged", &self.scaling_latency),
            ("plugin_latency", "Permit requests", &self.permit_latency),
            ("monitor_latency", "Questions to guests", &self.guest_latency),
            ("neonvm_latency", "Patches of VM objects", &self.patch_latency),
        ] {
            to.register_with_unit(name, help, seconds.clone(), latency.clone());
        }
        to.register(
            "watch_events",
            "Objects received from the API server",
            self.watch_events.clone(),
        );
        to.register("watch_errors", "Failures of watches", self.watch_errors.clone());
    }

    pub(crate) fn observe(latency: &Latency, from: Size, to: Size, took: Duration) {
        let direction = Direction::of(from, to);
        latency.get_or_create(&ByDirection { direction }).observe(took.as_secs_f64());
    }

    /// Counts what is there now: what is gone is not shown any more.
    pub(crate) fn set_runners(&self, states: impl Iterator<Item = (bool, bool)>) {
        self.runners.clear();
        for (is_endpoint, stuck) in states {
            let is_endpoint = if is_endpoint { "true" } else { "false" };
            let state = if stuck { "stuck" } else { "ok" };
            self.runners.get_or_create(&ByState { is_endpoint, state }).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use guest_units::{Bytes, MilliCpu};

    use super::*;

    #[test]
    fn names_are_the_references() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let small = Size { cpu: MilliCpu(250), memory: Bytes(1 << 30) };
        let large = Size { cpu: MilliCpu(1000), memory: Bytes(3 << 30) };
        metrics.permit_requested.count(small, large);
        metrics.patch_requested.count(large, small);
        Metrics::observe(&metrics.permit_latency, small, large, Duration::from_millis(20));
        metrics.set_runners([(true, false), (false, true)].into_iter());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "autoscaling_agent_scheduler_plugin_requested_cpu_change_total{direction=\"inc\"} 0.75",
            "autoscaling_agent_scheduler_plugin_requested_mem_change_total{direction=\"inc\"} 2048",
            "autoscaling_agent_neonvm_requested_mem_changed_total{direction=\"dec\"} 2048",
            "autoscaling_agent_runners_current{is_endpoint=\"true\",state=\"ok\"} 1",
            "autoscaling_agent_plugin_latency_seconds_count{direction=\"inc\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
