//! The ledger as the extender tells it, and what must always hold of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_units::{Bytes, MilliCpu, Size};
use serde::Deserialize;
use serde_json::Value;

use super::api::{Api, items};
use super::scheduler;
use super::vm::Vm;
use crate::cluster::Cluster;

/// Kubelet has decided by then.
const UNDER_WAY: Duration = Duration::from_secs(3);

/// CPU and memory, summed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Amount {
    pub(super) cpu_millis: u64,
    pub(super) memory_bytes: u64,
}

impl Amount {
    fn fits_in(self, room: Self) -> bool {
        self.cpu_millis <= room.cpu_millis && self.memory_bytes <= room.memory_bytes
    }

    fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis + other.cpu_millis,
            memory_bytes: self.memory_bytes + other.memory_bytes,
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.max(other.cpu_millis),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
        }
    }
}

/// The books at one moment.
#[derive(Debug, Clone)]
pub(super) struct Books(Value);

impl Books {
    /// Asks the extender that leads.
    pub(super) fn read(cluster: &Cluster) -> Result<Self> {
        let leader = scheduler::leader_name(&Api::admin(cluster)?)?;
        let words = ["-n", "kube-system", "exec", &leader, "-c", "extender", "--"];
        let dump = ["/usr/bin/autoscale-scheduler", "dump"];
        let run = cluster.kubectl_run(words.iter().chain(&dump));
        let text = run.deadline(Duration::from_secs(20)).output()?;
        serde_json::from_str(&text).map(Self).context("read the scheduler's books")
    }

    /// What is promised to a VM that has its place.
    pub(super) fn promise(&self, vm: &Vm) -> Option<Size> {
        self.promise_of(&full_name(vm))
    }

    fn promise_of(&self, name: &str) -> Option<Size> {
        let nodes = self.0["nodes"].as_object()?;
        let book = nodes.values().find_map(|node| node["vms"].get(name))?;
        serde_json::from_value(book["promise"].clone()).ok()
    }

    /// Whether the VM is in the books at all.
    pub(super) fn knows(&self, vm: &Vm) -> bool {
        self.promise(vm).is_some() || self.0["unplaced"].get(full_name(vm)).is_some()
    }

    /// CPU of a node that nobody holds, in thousandths: leases give way.
    pub(super) fn free_cpu(&self, node: &str) -> Result<u64> {
        let (allocatable, reserved) = self.node(node)?;
        let held = reserved.cpu_millis.saturating_sub(self.amount(node, "leased")?.cpu_millis);
        Ok(allocatable.cpu_millis.saturating_sub(held))
    }

    /// The node with the most free CPU.
    pub(super) fn roomiest(&self) -> Result<String> {
        let names = self.0["nodes"].as_object().context("the books list nodes")?.keys();
        let free = names.map(|name| Ok((self.free_cpu(name)?, name.clone())));
        let largest = free.collect::<Result<Vec<_>>>()?.into_iter().max();
        Ok(largest.context("the books know a node")?.1)
    }

    fn node(&self, name: &str) -> Result<(Amount, Amount)> {
        Ok((self.amount(name, "allocatable")?, self.amount(name, "reserved")?))
    }

    fn amount(&self, node: &str, field: &str) -> Result<Amount> {
        serde_json::from_value(self.0["nodes"][node][field].clone())
            .with_context(|| format!("read {field} of node {node}"))
    }

    /// No node has given away more than it has.
    pub(super) fn check(&self) -> Result<()> {
        for name in self.0["nodes"].as_object().into_iter().flatten().map(|(name, _)| name) {
            let (allocatable, reserved) = self.node(name)?;
            ensure!(
                reserved.fits_in(allocatable),
                "the books of {name} are overdrawn: {reserved:?} of {allocatable:?}"
            );
        }
        Ok(())
    }
}

/// The books hold both a wish and a pod for the moment in which they are under way, until kubelet turns one of them away.
#[derive(Debug, Default)]
pub(super) struct Overdraft {
    since: Option<Instant>,
}

impl Overdraft {
    /// Looks at the books once more: they are not overdrawn for long.
    pub(super) fn look(&mut self, cluster: &Cluster) -> Result<()> {
        let Err(err) = Books::read(cluster)?.check() else {
            self.since = None;
            return Ok(());
        };
        let since = *self.since.get_or_insert_with(Instant::now);
        ensure!(since.elapsed() < UNDER_WAY, "for {UNDER_WAY:?}, {err:#}");
        Ok(())
    }

    pub(super) fn is_open(&self) -> bool {
        self.since.is_some()
    }
}

fn full_name(vm: &Vm) -> String {
    format!("{}/{}", vm.namespace, vm.name)
}

/// Waits until the VM has what it asks for and exactly that is promised to it.
pub(super) fn wait_balanced(cluster: &Cluster, vm: &Vm, limit: Duration) -> Result<()> {
    cluster.wait_until("size, wish and promise are the same", limit, || {
        let seen = vm.see()?;
        let (plugged, wanted) = (seen.plugged()?, seen.wanted()?);
        let books = Books::read(cluster)?;
        books.check()?;
        let promise = books.promise(vm);
        if plugged == wanted && promise == Some(plugged) {
            return Ok(true);
        }
        bail!("plugged {plugged}, wanted {wanted}, promised {promise:?}");
    })
}

/// What the pods of a node hold, as its kubelet counts, is within what the node has.
pub(super) fn check_node(api: &Api, node: &str) -> Result<()> {
    let object = api.get(&format!("/api/v1/nodes/{node}"))?;
    let allocatable = amount(&object["status"]["allocatable"]);
    let pods = items(api.get(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}"))?);
    let mut held = Amount::default();
    for pod in &pods {
        if !["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or_default()) {
            held = held.plus(pod_holds(pod));
        }
    }
    ensure!(held.fits_in(allocatable), "{node} is overcommitted: {held:?} of {allocatable:?}");
    Ok(())
}

/// What kubelet has allocated to a pod. Nothing, where it has not taken the pod in: it may yet turn it away.
fn pod_holds(pod: &Value) -> Amount {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let statuses = list(&pod["status"]["containerStatuses"]);
    if statuses.is_empty() {
        return Amount::default();
    }
    let running = list(&pod["spec"]["containers"]).iter().fold(Amount::default(), |sum, it| {
        let status = statuses.iter().find(|status| status["name"] == it["name"]);
        let allocated = status.map(|status| &status["allocatedResources"]);
        let requested = &it["resources"]["requests"];
        sum.plus(amount(allocated.filter(|value| value.is_object()).unwrap_or(requested)))
    });
    let first = list(&pod["spec"]["initContainers"]);
    let first = first.iter().map(|it| amount(&it["resources"]["requests"]));
    first.fold(running, Amount::max)
}

/// Reads `{cpu, memory}` in Kubernetes quantities; what is absent is zero.
fn amount(quantities: &Value) -> Amount {
    let cpu: Option<MilliCpu> = serde_json::from_value(quantities["cpu"].clone()).ok();
    let memory: Option<Bytes> = serde_json::from_value(quantities["memory"].clone()).ok();
    Amount {
        cpu_millis: u64::from(cpu.unwrap_or_default().0),
        memory_bytes: memory.unwrap_or_default().0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(cpu: u64, mib: u64) -> Amount {
        Amount { cpu_millis: cpu, memory_bytes: mib << 20 }
    }

    #[test]
    fn a_pod_holds_what_is_allocated_or_what_it_asks_for() {
        let requests =
            |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}});
        let mut pod = json!({"spec": {
            "initContainers": [{"name": "i", "resources": requests("10m", "900Mi")}],
            "containers": [
                {"name": "a", "resources": requests("1", "64Mi")},
                {"name": "b", "resources": {}},
            ],
        }});
        assert_eq!(pod_holds(&pod), of(0, 0), "kubelet may turn it away");
        pod["status"] = json!({"containerStatuses": [{"name": "a"}]});
        assert_eq!(pod_holds(&pod), of(1000, 900));
        pod["status"] = json!({"containerStatuses": [
            {"name": "a", "allocatedResources": {"cpu": "250m", "memory": "1Gi"}},
        ]});
        assert_eq!(pod_holds(&pod), of(250, 1024));
    }

    #[test]
    fn overdrawn_books_are_noticed() {
        let books = |reserved: u64| {
            let of = |cpu: u64| json!({"cpu_millis": cpu, "memory_bytes": 1});
            let node =
                json!({"allocatable": of(1000), "reserved": of(reserved), "leased": of(100)});
            Books(json!({"nodes": {"n1": node}}))
        };
        assert!(books(1000).check().is_ok());
        assert!(books(1001).check().is_err());
        assert_eq!(books(300).free_cpu("n1").unwrap(), 800, "what is leased gives way");
        assert!(books(300).free_cpu("n2").is_err());
        assert_eq!(books(300).roomiest().unwrap(), "n1");
    }

    #[test]
    fn promises_are_found_by_namespace_and_name() {
        let promise = json!({"vCPUs": "250m", "mem": "512Mi"});
        let books = Books(json!({
            "nodes": {"n1": {"vms": {"a/b": {"promise": promise}}}},
            "unplaced": {"a/c": {}},
        }));
        let size = Size { cpu: MilliCpu(250), memory: Bytes(512 << 20) };
        assert_eq!(books.promise_of("a/b"), Some(size));
        assert_eq!(books.promise_of("a/c"), None);
        assert_eq!(books.promise_of("b"), None);
    }
}
