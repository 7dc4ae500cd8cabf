//! What a runner pod asks of its node: a function of the VM's specification.
//!
//! Requests follow what the VM is meant to use, divided by its overcommit, plus what QEMU itself needs; the
//! scheduler's extender resizes them later. Limits never change: memory is the VM's maximum plus overhead,
//! because the kernel kills QEMU beyond it; CPU is a loose backstop, because the guest enforces fractions itself.

use std::collections::BTreeMap;

use controller_api::{VirtualMachineSpec, names};
use guest_units::{Bytes, MilliCpu};
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use scheduler_ledger::{Amount, Price};

/// The CPU limit is this much above the VM's maximum.
const CPU_SLACK: MilliCpu = MilliCpu(1000);

type Quantities = BTreeMap<String, Quantity>;

/// Requests and limits of the runner container.
pub(crate) fn runner(spec: &VirtualMachineSpec, kvm: bool) -> ResourceRequirements {
    let (users_requests, users_limits) = match &spec.pod_resources {
        Some(resources) => (resources.requests.clone(), resources.limits.clone()),
        None => (None, None),
    };
    let (users_requests, users_limits) =
        (users_requests.unwrap_or_default(), users_limits.unwrap_or_default());
    let (wanted, max) = (spec.use_size(), spec.max_size());
    let (cpu_overcommit_thousandths, memory_overcommit_thousandths) = spec.overcommit_thousandths();
    // The ledger's own price: it resizes the pod later.
    let price = Price {
        cpu_overcommit_thousandths,
        memory_overcommit_thousandths,
        floor: Amount {
            cpu_millis: user_cpu(&users_requests),
            memory_bytes: user_memory(&users_requests),
        },
        ..Price::default()
    };
    let Amount { cpu_millis: cpu, memory_bytes: memory } = price.cost(wanted);
    let cpu_limit = u64::from(max.cpu.whole_up()) * 1000 + u64::from(CPU_SLACK.0);
    let cpu_limit = cpu_limit.max(user_cpu(&users_limits)).max(cpu);
    let memory_limit = max.memory.0.saturating_add(price.overhead.memory_bytes);
    let memory_limit = memory_limit.max(user_memory(&users_limits)).max(memory);

    let mut requests = users_requests;
    set(&mut requests, "cpu", format!("{cpu}m"));
    set(&mut requests, "memory", memory.to_string());
    let mut limits = users_limits;
    set(&mut limits, "cpu", format!("{cpu_limit}m"));
    set(&mut limits, "memory", memory_limit.to_string());
    set(&mut limits, names::RESOURCE_TUN, "1".to_owned());
    if kvm {
        set(&mut limits, names::RESOURCE_KVM, "1".to_owned());
    }
    ResourceRequirements { claims: None, limits: Some(limits), requests: Some(requests) }
}

/// Requests and limits of the init container that sets up the network.
pub(crate) fn net() -> ResourceRequirements {
    let mut limits = Quantities::new();
    set(&mut limits, "memory", "64Mi".to_owned());
    set(&mut limits, names::RESOURCE_TUN, "1".to_owned());
    let mut requests = Quantities::new();
    set(&mut requests, "cpu", "10m".to_owned());
    set(&mut requests, "memory", "16Mi".to_owned());
    ResourceRequirements { claims: None, limits: Some(limits), requests: Some(requests) }
}

fn user_cpu(quantities: &Quantities) -> u64 {
    let cpu: Option<MilliCpu> = quantities.get("cpu").and_then(|quantity| quantity.0.parse().ok());
    u64::from(cpu.unwrap_or_default().0)
}

fn user_memory(quantities: &Quantities) -> u64 {
    let memory: Option<Bytes> =
        quantities.get("memory").and_then(|quantity| quantity.0.parse().ok());
    memory.unwrap_or_default().0
}

fn set(quantities: &mut Quantities, name: &str, value: String) {
    quantities.insert(name.to_owned(), Quantity(value));
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shape(extra: &Value, kvm: bool) -> (String, String, String, String, bool) {
        let mut spec = json!({
            "guest": {
                "cpus": {"min": "250m", "max": "2500m", "use": 1},
                "memorySlots": {"min": 1, "max": 4, "use": 2},
                "rootDisk": {"image": "image"},
            }
        });
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let spec = serde_json::from_value(spec).unwrap();
        let resources = runner(&spec, kvm);
        let (requests, limits) = (resources.requests.unwrap(), resources.limits.unwrap());
        assert_eq!(limits["neonvm/tun"].0, "1");
        (
            requests["cpu"].0.clone(),
            requests["memory"].0.clone(),
            limits["cpu"].0.clone(),
            limits["memory"].0.clone(),
            limits.contains_key("neonvm/kvm"),
        )
    }

    fn mib(mib: u64) -> String {
        (mib << 20).to_string()
    }

    #[test]
    fn requests_follow_use_and_limits_the_maximum() {
        let expected = ("1100m".into(), mib(2048 + 256), "4000m".into(), mib(4096 + 256), false);
        assert_eq!(shape(&json!({}), false), expected);
        assert!(shape(&json!({}), true).4);
    }

    #[test]
    fn overcommit_divides_and_rounds_up() {
        let overcommit = json!({"overcommit": {"cpu": "3", "memory": "2"}});
        let (cpu, memory, _, memory_limit, _) = shape(&overcommit, false);
        assert_eq!((cpu.as_str(), memory), ("434m", mib(1024 + 256)));
        assert_eq!(memory_limit, mib(4096 + 256), "limits are not divided");
    }

    #[test]
    fn pod_resources_are_lower_bounds() {
        let larger = json!({"podResources": {
            "requests": {"cpu": "2", "memory": "8Gi", "ephemeral-storage": "1Gi"},
            "limits": {"memory": "1Gi"},
        }});
        let expected = ("2000m".into(), mib(8192), "4000m".into(), mib(8192), false);
        assert_eq!(shape(&larger, false), expected);
    }
}
