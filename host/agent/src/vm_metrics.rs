//! Metrics about each VM of the node, made anew at every scrape from the objects that are there: a VM that left
//! leaves no series behind.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use controller_api::{Bounds, VirtualMachine, annotations, names};
use guest_units::Size;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::view::VmKey;

type Float = Gauge<f64, std::sync::atomic::AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfVm {
    vm_namespace: String,
    vm_name: String,
    endpoint_id: String,
    project_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfValue {
    vm_namespace: String,
    vm_name: String,
    endpoint_id: String,
    project_id: String,
    value: &'static str,
}

#[derive(Debug, Clone, PartialEq)]
struct Vm {
    labels: OfVm,
    sizes: Vec<(&'static str, Size)>,
    restarts: i32,
}

/// What is known of the VMs of this node.
#[derive(Debug, Default)]
pub(crate) struct VmMetrics {
    vms: Mutex<BTreeMap<VmKey, Vm>>,
}

impl VmMetrics {
    pub(crate) fn seen(&self, vm: &VirtualMachine) {
        let key = VmKey::of(&vm.metadata);
        let vm = describe(vm);
        self.vms.lock().unwrap_or_else(PoisonError::into_inner).insert(key, vm);
    }

    pub(crate) fn gone(&self, key: &VmKey) {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    pub(crate) fn retain(&self, is_there: impl Fn(&VmKey) -> bool) {
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        vms.retain(|key, _| is_there(key));
    }

    /// A registry with one set of series for each VM.
    pub(crate) fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        let cores = Family::<OfValue, Float>::default();
        let memory = Family::<OfValue, Float>::default();
        let restarts = Family::<OfVm, Gauge>::default();
        registry.register("autoscaling_vm_cpu_cores", "CPU of VMs", cores.clone());
        let help = "Memory of VMs";
        registry.register_with_unit("autoscaling_vm_memory", help, Unit::Bytes, memory.clone());
        registry.register("autoscaling_vm_restart_count", "Restarts of VMs", restarts.clone());
        for vm in self.vms.lock().unwrap_or_else(PoisonError::into_inner).values() {
            restarts.get_or_create(&vm.labels).set(i64::from(vm.restarts));
            for (value, size) in &vm.sizes {
                let OfVm { vm_namespace, vm_name, endpoint_id, project_id } = vm.labels.clone();
                let labels = OfValue { vm_namespace, vm_name, endpoint_id, project_id, value };
                cores.get_or_create(&labels).set(f64::from(size.cpu.0) / 1000.0);
                memory.get_or_create(&labels).set(as_float(size.memory.0));
            }
        }
        registry
    }
}

fn describe(vm: &VirtualMachine) -> Vm {
    let VmKey { namespace, name } = VmKey::of(&vm.metadata);
    let labels = vm.metadata.labels.as_ref();
    let label = |key| labels.and_then(|all| all.get(key)).cloned().unwrap_or_default();
    let mut sizes =
        vec![("spec_min", vm.min_size()), ("spec_use", vm.use_size()), ("spec_max", vm.max_size())];
    if annotations::is_autoscaled(vm)
        && let Ok(Bounds { min, max }) = Bounds::of(vm)
    {
        sizes.extend([("autoscaling_min", min), ("autoscaling_max", max)]);
    }
    let status = vm.status.as_ref();
    sizes.extend(status.and_then(|status| status.plugged()).map(|size| ("status_use", size)));
    Vm {
        labels: OfVm {
            vm_namespace: namespace,
            vm_name: name,
            endpoint_id: label(names::LABEL_ENDPOINT_ID),
            project_id: label(names::LABEL_PROJECT_ID),
        },
        sizes,
        restarts: status.map_or(0, |status| status.restart_count),
    }
}

/// Exact up to 2^53 bytes, which no VM has.
fn as_float(bytes: u64) -> f64 {
    let high = u32::try_from(bytes >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(bytes & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_has_its_series_until_it_is_gone() {
        let metrics = VmMetrics::default();
        let vm: VirtualMachine = serde_json::from_value(crate::view::tests::object()).unwrap();
        metrics.seen(&vm);
        let text = |metrics: &VmMetrics| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &metrics.registry()).unwrap();
            text
        };
        let labels = "vm_namespace=\"default\",vm_name=\"pg\",endpoint_id=\"\",project_id=\"\"";
        let shown = text(&metrics);
        for line in [
            format!("autoscaling_vm_cpu_cores{{{labels},value=\"spec_min\"}} 0.25"),
            format!("autoscaling_vm_memory_bytes{{{labels},value=\"status_use\"}} 2147483648"),
            format!("autoscaling_vm_restart_count{{{labels}}} 0"),
        ] {
            assert!(shown.contains(&line), "{line} is not in\n{shown}");
        }
        metrics.retain(|key| *key == VmKey::of(&vm.metadata));
        assert!(text(&metrics).contains("pg"));
        metrics.gone(&VmKey::of(&vm.metadata));
        assert!(!text(&metrics).contains("pg"));
        metrics.seen(&vm);
        metrics.retain(|_| false);
        assert!(!text(&metrics).contains("pg"), "it went while nobody watched");
    }
}
