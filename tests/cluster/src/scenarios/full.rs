//! More VMs than two nodes hold: as many run as there is room for, the others say what they wait for, and come in as soon
//! as there is room. The pods are real; nothing boots in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::api::items;
use super::books::{Books, check_node};
use super::space::Space;
use super::vm::Vm;
use super::{Needs, Scenario, ordinary};
use crate::cluster::Cluster;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "of more VMs than fit as many run as there is room for, and the others say why they wait",
        needs: Needs::System,
        deadline: Duration::from_secs(300),
        run: full,
    }]
}

const VMS: usize = 50;
/// What a VM's pod requests: the overhead of each, and the VM's own CPU divided by its overcommit.
const POD_MILLI: u64 = 105;
/// So many fit on a node of two CPUs beside the system: twenty overheads alone would fill it.
const HELD_BY_NODE: u32 = 15;
const HELD: usize = 30;
/// Less than one more VM needs.
const LEFT: u64 = POD_MILLI / 2;
const LEAVING: usize = 5;
/// Those that take the room of others. Two seconds on a machine that does nothing else, which the figure that is printed shows; who is
/// forgotten waits for half a minute.
const ENTRY: Duration = Duration::from_secs(5);
const PLACED: Duration = Duration::from_secs(30);
const STARTED: Duration = Duration::from_secs(120);
const WATCHED: Duration = Duration::from_secs(5);

fn full(cluster: &Cluster) -> Result<()> {
    let space = Space::new(cluster, "full")?;
    for node in cluster.layout().nodes() {
        let left = u64::from(HELD_BY_NODE) * POD_MILLI + LEFT;
        ordinary::fill(&space, &node.name(), left)?;
    }
    space.apply(&manifest())?;
    cluster.wait_until("every VM has a pod, and the nodes are full", PLACED, || {
        let pods = Pods::see(&space)?;
        if pods.bound().len() >= HELD && pods.0.len() == VMS {
            return Ok(true);
        }
        bail!("{} of {} pods have a node", pods.bound().len(), pods.0.len());
    })?;
    // Neither more nor fewer, however often kube-scheduler tries.
    let begun = Instant::now();
    while begun.elapsed() < WATCHED {
        holds_exactly(&space, cluster)?;
    }
    explained(&space)?;
    cluster.wait_until("the pods with a node run", STARTED, || {
        let pods = Pods::see(&space)?;
        let running = pods.0.values().filter(|pod| pod["status"]["phase"] == "Running").count();
        ensure!(running == HELD, "{running} run");
        Ok(true)
    })?;
    holds_exactly(&space, cluster)?;
    let before = Pods::see(&space)?.bound();
    let took = admitted(&space, &before)?;
    super::figure(format!(
        "the last of {LEAVING} came in {} ms after as many went",
        took.as_millis()
    ));
    ensure!(took <= ENTRY, "the last of {LEAVING} came in after {took:?}");
    holds_exactly(&space, cluster)?;
    told(&space)
}

fn manifest() -> String {
    (0..VMS).fold(String::new(), |mut text, index| {
        let _infallible = write!(
            text,
            r"---
apiVersion: vm.neon.tech/v1
kind: VirtualMachine
metadata: {{name: vm-{index:02}}}
spec:
  schedulerName: autoscale-scheduler
  runnerImage: localhost/idle-runner:local
  terminationGracePeriodSeconds: 0
  overcommit: {{cpu: 10}}
  guest:
    cpus: {{min: 0.05, use: 0.05, max: 0.05}}
    memorySlotSize: 128Mi
    memorySlots: {{min: 1, use: 1, max: 1}}
    rootDisk: {{image: localhost/busybox:local, imagePullPolicy: Never}}
"
        );
        text
    })
}

/// The runner pods by their VM.
struct Pods(BTreeMap<String, Value>);

impl Pods {
    fn see(space: &Space) -> Result<Self> {
        let pods = space.api.pods(space.name(), "vm.neon.tech/name")?;
        let name = |pod: &Value| {
            pod["metadata"]["labels"]["vm.neon.tech/name"].as_str().map(str::to_owned)
        };
        Ok(Self(pods.into_iter().filter_map(|pod| Some((name(&pod)?, pod))).collect()))
    }

    fn bound(&self) -> BTreeSet<String> {
        let bound = self.0.iter().filter(|(_, pod)| pod["spec"]["nodeName"].is_string());
        bound.map(|(name, _)| name.clone()).collect()
    }
}

fn holds_exactly(space: &Space, cluster: &Cluster) -> Result<()> {
    let bound = Pods::see(space)?.bound();
    ensure!(bound.len() == HELD, "{} VMs have a node, not {HELD}", bound.len());
    Books::read(cluster)?.check()?;
    for node in cluster.layout().nodes() {
        check_node(&space.api, &node.name())?;
    }
    Ok(())
}

/// Every VM that waits says so, and its pod says what is short.
fn explained(space: &Space) -> Result<()> {
    let path = format!(
        "/api/v1/namespaces/{}/events?fieldSelector=reason%3DFailedScheduling",
        space.name()
    );
    let events = items(space.api.get(&path)?);
    for (vm, pod) in &Pods::see(space)?.0 {
        if pod["spec"]["nodeName"].is_string() {
            continue;
        }
        ensure!(
            pod["status"]["phase"] == "Pending",
            "{vm} without a node is {}",
            pod["status"]["phase"]
        );
        let said = |event: &&Value| event["involvedObject"]["name"] == pod["metadata"]["name"];
        let event =
            events.iter().rfind(said).with_context(|| format!("nothing says why {vm} waits"))?;
        let why = event["message"].as_str().unwrap_or_default();
        ensure!(why.contains("Insufficient cpu"), "{vm} waits because of: {why}");
    }
    Ok(())
}

/// The VM itself tells it, too.
fn told(space: &Space) -> Result<()> {
    for (vm, _) in
        Pods::see(space)?.0.iter().filter(|(_, pod)| !pod["spec"]["nodeName"].is_string())
    {
        let seen = Vm::new(&space.api, space.name(), vm).see()?;
        let (truth, reason, told) = seen.condition("Available");
        ensure!(
            (truth.as_str(), reason.as_str()) == ("False", "Unschedulable")
                && told.contains("Insufficient cpu"),
            "{vm} itself says: {truth}, {reason}, {told}"
        );
    }
    Ok(())
}

/// Removes some VMs: how long after the first was asked to go the last that waited has a node.
fn admitted(space: &Space, before: &BTreeSet<String>) -> Result<Duration> {
    let asked = Instant::now();
    for vm in before.iter().take(LEAVING) {
        space.api.delete(&format!(
            "/apis/vm.neon.tech/v1/namespaces/{}/virtualmachines/{vm}",
            space.name()
        ))?;
    }
    let mut took = Duration::ZERO;
    space.cluster.wait_until("those that waited have come in", PLACED, || {
        let pods = Pods::see(space)?.bound();
        took = asked.elapsed();
        let new = pods.difference(before).count();
        ensure!(new <= LEAVING, "{new} VMs came in for {LEAVING}");
        Ok(new == LEAVING)
    })?;
    Ok(took)
}
