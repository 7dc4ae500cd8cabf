//! The JSON of every message, as written to the other side: a change here is a change of the contract.

use guest_units::{Bytes, MilliCpu};
use host_protocol::{
    CpuScaling, Generation, GuestLink, GuestPort, Order, OrderResult, Outcome, Plugged, RunnerSpec,
    RunnerState, Transport, VmState, What,
};
use serde_json::{Value, from_value, json, to_value};

const GIB: u64 = 1 << 30;

fn generation(epoch: u64, counter: u64) -> Generation {
    Generation { epoch, counter }
}

fn plugged() -> Plugged {
    Plugged { vcpus: 2, cpu: MilliCpu(1500), memory: Bytes(2 * GIB) }
}

#[test]
fn orders() {
    let cpu = What::SetCpu(MilliCpu(250));
    let memory = What::SetMemory(Bytes(GIB));
    for (what, wire) in [
        (cpu, json!({"setCpu": "250m"})),
        (memory, json!({"setMemory": "1Gi"})),
        (What::PowerDown, json!("powerDown")),
    ] {
        let order = Order { generation: generation(3, 7), what };
        let value = json!({"generation": {"epoch": 3, "counter": 7}, "what": wire});
        assert_eq!(to_value(order).unwrap(), value);
        assert_eq!(from_value::<Order>(value).unwrap(), order);
    }
}

#[test]
fn outcomes() {
    let reason = "why".to_owned();
    for (result, wire) in [
        (OrderResult::Done, json!("done")),
        (OrderResult::Partial { reason: reason.clone() }, json!({"partial": {"reason": "why"}})),
        (
            OrderResult::Vetoed { least: Bytes(GIB), reason: reason.clone() },
            json!({"vetoed": {"least": "1Gi", "reason": "why"}}),
        ),
        (
            OrderResult::Stale { newest: generation(1, 2) },
            json!({"stale": {"newest": {"epoch": 1, "counter": 2}}}),
        ),
        (OrderResult::Failed { reason: reason.clone() }, json!({"failed": {"reason": "why"}})),
        (OrderResult::Unsettled { reason }, json!({"unsettled": {"reason": "why"}})),
    ] {
        let outcome = Outcome { revision: 4, plugged: plugged(), result };
        let value = json!({"revision": 4, "plugged": {"vcpus": 2, "cpu": "1500m", "memory": "2Gi"}, "result": wire});
        assert_eq!(to_value(&outcome).unwrap(), value);
        assert_eq!(from_value::<Outcome>(value).unwrap(), outcome);
    }
}

#[test]
fn state() {
    let state = RunnerState {
        revision: 9,
        plugged: plugged(),
        guest: GuestLink::Connected,
        vm: VmState::Running,
        newest: generation(1, 2),
        busy: true,
        cpu_additions_left: Some(60),
    };
    let value = json!({
        "revision": 9, "plugged": {"vcpus": 2, "cpu": "1500m", "memory": "2Gi"},
        "guest": "connected", "vm": "running", "newest": {"epoch": 1, "counter": 2}, "busy": true, "cpuAdditionsLeft": 60,
    });
    assert_eq!(to_value(state).unwrap(), value);
    assert_eq!(from_value::<RunnerState>(value).unwrap(), state);
}

#[test]
fn malformed_orders_are_refused() {
    for value in [
        json!({}),
        json!({"generation": {"epoch": 1, "counter": 1}}),
        json!({"generation": {"epoch": 1}, "what": "powerDown"}),
        json!({"generation": {"epoch": -1, "counter": 1}, "what": "powerDown"}),
        json!({"generation": {"epoch": 1, "counter": 1}, "what": "explode"}),
        json!({"generation": {"epoch": 1, "counter": 1}, "what": {"setCpu": "-1"}}),
        json!({"generation": {"epoch": 1, "counter": 1}, "what": {"setMemory": "lots"}}),
        json!({"generation": {"epoch": 1, "counter": 1}, "what": "powerDown", "force": true}),
    ] {
        assert!(from_value::<Order>(value.clone()).is_err(), "{value}");
    }
}

#[test]
fn generations_order_by_epoch_first() {
    assert!(generation(2, 0) > generation(1, 99));
    assert!(generation(2, 1) > generation(2, 0));
}

fn spec() -> Value {
    json!({
        "name": "pg", "namespace": "default", "uid": "6f8e2c1a-0000-4000-8000-1234567890ab",
        "podName": "pg-x7k2p", "hostname": "pg-x7k2p", "cpuMin": "250m", "cpuMax": 2, "cpuBoot": "500m",
        "memoryMin": "1Gi", "memoryMax": "4Gi", "cpuScaling": "SysfsScaling",
        "ports": [{"port": 5432, "protocol": "TCP"}],
    })
}

#[test]
fn a_spec_with_its_defaults() {
    let parsed: RunnerSpec = from_value(spec()).unwrap();
    assert_eq!(parsed.problems(), []);
    assert_eq!(parsed.cpu_scaling, CpuScaling::SysfsScaling);
    assert_eq!(parsed.ports, [GuestPort { port: 5432, protocol: Transport::Tcp }]);
    assert!(
        !parsed.acceleration && parsed.env.is_empty() && parsed.append_kernel_cmdline.is_empty()
    );
    assert_eq!(from_value::<RunnerSpec>(to_value(&parsed).unwrap()).unwrap(), parsed);
}

#[test]
fn all_problems_at_once() {
    for (change, fields) in [
        (json!({"name": ""}), vec!["name"]),
        (json!({"hostname": "a b", "uid": "x,y"}), vec!["uid", "hostname"]),
        (json!({"cpuMin": 0}), vec!["cpuMin"]),
        (json!({"cpuBoot": 3}), vec!["cpuBoot"]),
        (json!({"memoryMin": 0}), vec!["memoryMin"]),
        (json!({"memoryMax": "512Mi"}), vec!["memoryMax"]),
        (json!({"memoryMax": "4097Mi"}), vec!["memoryMax"]),
        (json!({"ports": [{"port": 0, "protocol": "UDP"}]}), vec!["ports"]),
        (json!({"ports": [{"port": 25183, "protocol": "TCP"}]}), vec!["ports"]),
        (json!({"ports": [{"port": 25183, "protocol": "UDP"}]}), vec![]),
        (json!({"env": [{"name": "A B", "value": "x"}]}), vec!["env"]),
        (json!({"env": [{"name": "A", "value": "x\u{0}"}]}), vec!["env"]),
        (json!({"args": ["\u{0}"]}), vec!["args"]),
        (json!({"appendKernelCmdline": "a\nb"}), vec!["appendKernelCmdline"]),
    ] {
        let mut value = spec();
        for (key, changed) in change.as_object().unwrap() {
            value[key] = changed.clone();
        }
        let parsed: RunnerSpec = from_value(value).unwrap();
        let found: Vec<_> = parsed.problems().iter().map(|problem| problem.field).collect();
        assert_eq!(found, fields, "{change}");
    }
}
