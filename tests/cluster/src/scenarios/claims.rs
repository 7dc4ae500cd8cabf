//! VMs without a guest whose agent the scenario plays: real pods, and permits asked for as often as it likes, of the replica
//! that it likes.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use guest_units::{MilliCpu, Size};
use serde_json::{Value, json};

use super::api::{Api, items};
use super::crash::agent_of;
use super::https::{Answer, Request, Tls};
use super::space::Space;
use super::vm::{SLOT, Vm, size};

/// CPU of each at first, in thousandths.
pub(super) const FIRST: u32 = 10;
/// What the pod of each requests at first: the overhead of QEMU, and the CPU.
pub(super) const POD_MILLI: u64 = 110;
const STARTED: Duration = Duration::from_secs(120);
/// The name in the extender's certificate.
const SERVER: &str = "autoscale-scheduler.kube-system.svc";
const AGENT: &str = "autoscaler-agent";

/// One VM, and its pod.
#[derive(Debug)]
pub(super) struct Claimant {
    pub(super) name: String,
    vm: Value,
    pod: Value,
    generation: AtomicU64,
}

/// The claimants of a node, and the token of its agent.
#[derive(Debug)]
pub(super) struct Claims {
    pub(super) all: Vec<Claimant>,
    tls: Tls,
    token: String,
}

/// A replica's word on a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// The VM may have so much CPU, by the holder of this epoch.
    Permit(MilliCpu, u64),
    /// This replica cannot decide, or is away.
    Away,
}

impl Claims {
    /// So many VMs on a node, once their pods run.
    pub(super) fn new(space: &Space, node: &str, count: usize) -> Result<Self> {
        space.apply(&manifest("claimant", node, count, SCALED))?;
        let mut pods = Vec::new();
        space.cluster.wait_until("the claimants' pods run", STARTED, || {
            pods = space.api.pods(space.name(), "vm.neon.tech/name")?;
            let mine = |name: &str| name.starts_with("claimant-");
            pods.retain(|pod| {
                let name = pod["metadata"]["labels"]["vm.neon.tech/name"].as_str();
                pod["spec"]["nodeName"] == node && name.is_some_and(mine)
            });
            let running = pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
            ensure!(running == count, "{running} of {count} run");
            Ok(true)
        })?;
        let path = format!("/apis/vm.neon.tech/v1/namespaces/{}/virtualmachines", space.name());
        let vms = items(space.api.get(&path)?);
        let all = pods.iter().map(|pod| Claimant::new(pod, &vms)).collect::<Result<_>>()?;
        let agent = agent_of(space, node)?;
        let token = space.api.token("kube-system", AGENT, Some(SCHEDULER), Some(&agent))?;
        Ok(Self { all, tls: Tls::trusting(&authority(&space.api)?)?, token })
    }

    /// Asks for so much CPU, or as much of it as there is.
    pub(super) fn ask(&self, of: SocketAddr, claimant: &Claimant, want: MilliCpu) -> Result<Word> {
        let answer = self.send(of, claimant, want);
        let Ok(answer) = answer else { return Ok(Word::Away) };
        match answer.status {
            200 => {
                let answer = answer.json();
                let permit: Size = serde_json::from_value(answer["permit"].clone())
                    .with_context(|| format!("read the permit in {answer}"))?;
                let epoch = answer["epoch"].as_u64().context("an answer has an epoch")?;
                Ok(Word::Permit(permit.cpu, epoch))
            }
            503 => Ok(Word::Away),
            // The node's agent has asked for the same VM in between.
            409 => {
                let newest = answer.json()["newest"].as_u64().context("the newest generation")?;
                claimant.generation.fetch_max(newest, Ordering::Relaxed);
                Ok(Word::Away)
            }
            status => anyhow::bail!("{} is answered {status}: {}", claimant.name, answer.message()),
        }
    }

    fn send(&self, of: SocketAddr, claimant: &Claimant, want: MilliCpu) -> Result<Answer> {
        let first = size(FIRST, 1);
        let body = json!({
            "version": 1,
            "vm": claimant.vm,
            "pod": claimant.pod,
            "generation": claimant.generation.fetch_add(1, Ordering::Relaxed) + 1,
            "want": Size { cpu: want, ..first },
            "least": first,
            "current": first,
        });
        let body = body.to_string();
        let request = Request {
            method: "POST",
            path: "/v1/permit",
            content_type: "application/json",
            token: Some(&self.token),
            body: &body,
        };
        self.tls.send(of, SERVER, request)
    }
}

const SCHEDULER: &str = "autoscale-scheduler";

impl Claimant {
    fn new(pod: &Value, vms: &[Value]) -> Result<Self> {
        let name = pod["metadata"]["labels"]["vm.neon.tech/name"].as_str();
        let name = name.context("the pod is a VM's")?.to_owned();
        let mut vms = vms.iter().filter(|vm| vm["metadata"]["name"] == name);
        let vm = vms.next().with_context(|| format!("find the VM {name}"))?;
        let now = SystemTime::UNIX_EPOCH.elapsed().context("read the clock")?;
        let now = u64::try_from(now.as_millis()).context("count milliseconds")?;
        Ok(Self { vm: reference(vm), pod: reference(pod), name, generation: AtomicU64::new(now) })
    }
}

/// An object, exactly.
pub(super) fn reference(object: &Value) -> Value {
    let meta = &object["metadata"];
    json!({"namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]})
}

/// The authority of the system's own certificates.
pub(super) fn authority(api: &Api) -> Result<String> {
    let map = api.get("/api/v1/namespaces/kube-system/configmaps/neonvm-ca")?;
    map["data"]["ca.crt"].as_str().map(str::to_owned).context("find the authority's certificate")
}

/// A VM like theirs that no agent serves: its size is what its specification says.
pub(super) fn without_agent(space: &Space, node: &str) -> Result<Vm> {
    space.apply(&manifest("quiet", node, 1, ""))?;
    let vm = Vm::new(&space.api, space.name(), &format!("quiet-{node}-00"));
    space.cluster.wait_until("the VM without an agent has a pod that runs", STARTED, || {
        let pod = space.api.get(&vm.pod_path()?)?;
        Ok(pod["status"]["phase"] == "Running")
    })?;
    Ok(vm)
}

/// The label of a VM that has an agent.
const SCALED: &str = "\n  labels: {autoscaling.neon.tech/enabled: \"true\"}";

fn manifest(kind: &str, node: &str, count: usize, label: &str) -> String {
    let slot = SLOT >> 20;
    (0..count).fold(String::new(), |mut text, index| {
        let _infallible = write!(
            text,
            r"---
apiVersion: vm.neon.tech/v1
kind: VirtualMachine
metadata:
  name: {kind}-{node}-{index:02}{label}
spec:
  schedulerName: autoscale-scheduler
  runnerImage: localhost/idle-runner:local
  terminationGracePeriodSeconds: 0
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  guest:
    cpus: {{min: {FIRST}m, use: {FIRST}m, max: 2}}
    memorySlotSize: {slot}Mi
    memorySlots: {{min: 1, use: 1, max: 1}}
    rootDisk: {{image: localhost/busybox:local, imagePullPolicy: Never}}
"
        );
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_yaml() {
        for document in manifest("a", "n1", 2, SCALED).split("---\n").skip(1) {
            let value: Value = serde_yaml::from_str(document).unwrap();
            assert_eq!(value["spec"]["guest"]["cpus"]["use"], "10m");
            assert_eq!(value["metadata"]["labels"]["autoscaling.neon.tech/enabled"], "true");
        }
    }
}
