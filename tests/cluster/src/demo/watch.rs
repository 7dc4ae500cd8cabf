//! What is watched while the load runs: the VM object, the agent's sizes and decisions, the scheduler's books.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use guest_units::{Bytes, MilliCpu, Size};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::feed::{Feed, kubectl};
use super::logs::decision;
use super::recording::{Amount, At, LedgerSample, NodeBooks, Shared, TopSample, VmSample};
use super::{KEY, NAMESPACE, VM};
use crate::cluster::Cluster;

const TOP_EVERY: Duration = Duration::from_millis(500);
pub(super) const DECISIONS_EVERY: Duration = Duration::from_secs(5);
const LEDGER_EVERY: Duration = Duration::from_secs(1);
const APPROVED: &str = "internal.autoscaling.neon.tech/resources-approved";

/// Follows the VM object; every change is seen when it happens.
pub(super) fn vm(cluster: &Cluster, shared: &Shared) -> Feed {
    let (cluster, shared) = (cluster.clone(), shared.clone());
    let command = move || {
        Ok(kubectl(&cluster, &["get", "neonvm", VM, "-n", NAMESPACE, "-o", "json", "--watch"]))
    };
    Feed::start(command, None, move |at, object| {
        if let Some(sample) = vm_sample(at, object) {
            shared.lock().vm.push(sample);
        }
    })
}

/// Asks the agent of the VM's node for the sizes, again and again.
pub(super) fn top(cluster: &Cluster, shared: &Shared) -> Feed {
    let command = agent_loop(cluster, shared, "autoscaler-agent top".to_owned());
    let shared = shared.clone();
    Feed::start(command, Some(TOP_EVERY), move |at, line| {
        if let Some(sample) = top_sample(at, line) {
            shared.lock().top.push(sample);
        }
    })
}

/// Asks it for its decisions. All the time: it keeps them in memory, and it may be replaced by a newer one.
pub(super) fn decisions(cluster: &Cluster, shared: &Shared) -> Feed {
    let command = agent_loop(cluster, shared, format!("autoscaler-agent why {NAMESPACE} {VM}"));
    let shared = shared.clone();
    Feed::start(command, Some(DECISIONS_EVERY), move |_, line| {
        if let Some(decision) = decision(line) {
            shared.lock().decided(decision);
        }
    })
}

/// One exec for all questions to the agent: each new one would cost as much as the VM itself.
fn agent_loop(
    cluster: &Cluster,
    shared: &Shared,
    ask: String,
) -> impl Fn() -> Result<Command> + Send + 'static {
    let (cluster, shared) = (cluster.clone(), shared.clone());
    move || {
        let node = shared.lock().newest().and_then(|vm| vm.node.clone());
        let pod = agent(&cluster, &node.context("the VM is on no node yet")?)?;
        let script = format!("while read -r _; do {ask}; done");
        Ok(kubectl(&cluster, &["exec", "-i", "-n", "kube-system", &pod, "--", "sh", "-c", &script]))
    }
}

/// Its Lease, too.
const SCHEDULER: &str = "autoscale-scheduler";

/// Looks into the scheduler's books each second.
pub(super) fn ledger(cluster: &Cluster, shared: &Shared) -> Feed {
    let (cluster, shared) = (cluster.clone(), shared.clone());
    let command = move || {
        let ask = "while read -r _; do autoscale-scheduler dump; done";
        let lease = cluster.kubectl_json(["get", "lease", "-n", "kube-system", SCHEDULER])?;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        let (pod, _) = holder.rsplit_once('_').context("nobody leads the scheduler")?;
        let words =
            ["exec", "-i", "-n", "kube-system", pod, "-c", "extender", "--", "sh", "-c", ask];
        Ok(kubectl(&cluster, &words))
    };
    Feed::start(command, Some(LEDGER_EVERY), move |at, dump| {
        if let Some(sample) = ledger_sample(at, dump) {
            shared.lock().ledger.push(sample);
        }
    })
}

/// The agent's pod on this node.
fn agent(cluster: &Cluster, node: &str) -> Result<String> {
    let field = format!("--field-selector=spec.nodeName={node}");
    let words = ["get", "pods", "-n", "kube-system", "-l", "name=autoscaler-agent", &field];
    let pods = cluster.kubectl_json(words)?;
    let name = pods["items"][0]["metadata"]["name"].as_str();
    name.map(str::to_owned).with_context(|| format!("no agent runs on {node}"))
}

fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}

/// Reads the VM object.
fn vm_sample(at: At, object: &Value) -> Option<VmSample> {
    let (guest, status) = (&object["spec"]["guest"], &object["status"]);
    let slot: Bytes = read(&guest["memorySlotSize"])?;
    let size = |which: &str| -> Option<Size> {
        let slots = guest["memorySlots"][which].as_u64()?;
        let cpu: MilliCpu = read(&guest["cpus"][which])?;
        Some(Size::new(cpu, Bytes(slot.0.checked_mul(slots)?)))
    };
    let plugged = || -> Option<Size> {
        Some(Size::new(read(&status["cpus"])?, read(&status["memorySize"])?))
    };
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let approved = object["metadata"]["annotations"][APPROVED].as_str();
    Some(VmSample {
        at,
        phase: text(&status["phase"]).unwrap_or_default(),
        min: size("min")?,
        max: size("max")?,
        spec: size("use")?,
        plugged: plugged(),
        approved: approved.and_then(|text| serde_json::from_str(text).ok()),
        node: text(&status["node"]),
        pod: text(&status["podName"]),
        restarts: status["restartCount"].as_u64().unwrap_or_default(),
    })
}

/// Reads a line of `autoscaler-agent top`; lines of other VMs are not ours.
fn top_sample(at: At, line: &Value) -> Option<TopSample> {
    if line["namespace"] != NAMESPACE || line["name"] != VM {
        return None;
    }
    Some(TopSample { at, ..read(line)? })
}

/// Reads `autoscale-scheduler dump`.
fn ledger_sample(at: At, dump: &Value) -> Option<LedgerSample> {
    let mut vm = None;
    let mut nodes = Vec::new();
    for (name, node) in dump["nodes"].as_object()? {
        let amount = |field: &str| read::<Amount>(&node[field]);
        nodes.push(NodeBooks {
            name: name.clone(),
            allocatable: amount("allocatable")?,
            reserved: amount("reserved")?,
            promised: amount("promised")?,
        });
        let ours = &node["vms"][KEY];
        if let Some(promise) = read(&ours["promise"]) {
            vm = Some((promise, read(&ours["plugged"])));
        }
    }
    Some(LedgerSample { at, nodes, vm })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn size(milli: u32, mib: u64) -> Size {
        Size::new(MilliCpu(milli), Bytes::from_mib(mib))
    }

    #[test]
    fn the_object_is_read_with_and_without_a_status() {
        let mut object = json!({
            "metadata": {"annotations": {APPROVED: r#"{"vCPUs":"500m","mem":"1Gi"}"#}},
            "spec": {"guest": {
                "cpus": {"min": "250m", "use": "500m", "max": "1500m"},
                "memorySlotSize": "128Mi",
                "memorySlots": {"min": 4, "use": 8, "max": 20},
            }},
            "status": {"phase": "Running", "cpus": "250m", "memorySize": "512Mi", "node": "n1", "podName": "demo-abc"},
        });
        let sample = vm_sample(At(1.0), &object).unwrap();
        assert_eq!((sample.min, sample.max), (size(250, 512), size(1500, 2560)));
        assert_eq!((sample.spec, sample.plugged), (size(500, 1024), Some(size(250, 512))));
        assert_eq!((sample.approved, sample.node.as_deref()), (Some(size(500, 1024)), Some("n1")));
        object["status"].take();
        let sample = vm_sample(At(1.0), &object).unwrap();
        assert_eq!((sample.plugged, sample.pod), (None, None));
        assert_eq!(vm_sample(At(1.0), &json!({"kind": "Status"})), None);
    }

    #[test]
    fn only_our_line_of_top_counts() {
        let it = json!({"vCPUs": "250m", "mem": "512Mi"});
        let mut line = json!({"namespace": "default", "name": "demo", "desired": it, "permit": it, "plugged": it, "used": {"vCPUs": 0, "mem": 0}});
        let sample = top_sample(At(2.0), &line).unwrap();
        assert_eq!((sample.at, sample.desired, sample.used), (At(2.0), size(250, 512), Size::ZERO));
        line["name"] = json!("other");
        assert_eq!(top_sample(At(2.0), &line), None);
    }

    #[test]
    fn the_books_are_read() {
        let amount = json!({"cpu_millis": 2000, "memory_bytes": 4096});
        let dump = json!({"epoch": 3, "complete": true, "nodes": {
            "n1": {"allocatable": amount, "reserved": amount, "promised": amount,
                   "vms": {KEY: {"promise": {"vCPUs": "250m", "mem": "512Mi"}, "plugged": null}}},
            "n2": {"allocatable": amount, "reserved": amount, "promised": amount, "vms": {}},
        }});
        let sample = ledger_sample(At(3.0), &dump).unwrap();
        assert_eq!(sample.nodes.len(), 2);
        assert_eq!(sample.nodes[0].allocatable.cpu_millis, 2000);
        assert_eq!(sample.vm, Some((size(250, 512), None)));
        assert_eq!(ledger_sample(At(3.0), &json!({})), None);
    }
}
