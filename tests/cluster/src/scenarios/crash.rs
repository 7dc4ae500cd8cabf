//! Agent, extender and controller die without a warning while a VM is under load: it goes on, and the books stay right.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest_units::MilliCpu;
use serde_json::Value;

use super::books::wait_balanced;
use super::scheduler;
use super::space::Space;
use super::victim::kill_and_await;
use super::vm::{SLOT, Shape, size};
use super::{Needs, Scenario};
use crate::cluster::Cluster;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "a VM under load survives the death of agent, extender and controller",
        needs: Needs::System,
        deadline: Duration::from_secs(480),
        run: crash,
    }]
}

const UP: Duration = Duration::from_secs(60);
const DOWN: Duration = Duration::from_secs(180);
/// Half of the least that is kept in reserve.
const LEFT_MIB: u64 = 64;
const CONTROLLER_LEASE: &str =
    "/apis/coordination.k8s.io/v1/namespaces/neonvm-system/leases/a3b22509.neon.tech";

fn crash(cluster: &Cluster) -> Result<()> {
    let shape = Shape { scaled: true, ..Shape::default() };
    let (space, vm) = Space::with_vm(cluster, "crash", &shape)?;
    let postmaster = space.sql("select pg_postmaster_start_time()")?;
    let load = space.pgbench(4, 60);

    let agent = agent_of(&space, vm.see()?.status("node"))?;
    kill_and_await(cluster, &space.api, &agent, "autoscaler-agent", "autoscaler-agent")?;
    vm.wait_plugged(cluster, "a grown CPU", UP, |plugged| plugged.cpu >= MilliCpu(750))
        .context("after the agent's death")?;

    let extender = scheduler::leader(&space.api)?;
    kill_and_await(cluster, &space.api, &extender, "extender", "autoscale-scheduler")?;
    // More than the VM has left beyond its reserve, however much Postgres has touched so far, yet less than would fill it before
    // it grows.
    let most_mib =
        (space.guest_value("/proc/meminfo", "MemAvailable")? >> 10).saturating_sub(LEFT_MIB);
    space.start_in_guest(&format!(
        "neon-test allocate-loop {} {most_mib}",
        most_mib.saturating_sub(40)
    ))?;
    vm.wait_plugged(cluster, "grown memory", UP, |plugged| plugged.memory.0 > 4 * SLOT)
        .context("after the extender's death")?;

    kill_and_await(cluster, &space.api, &leader(&space)?, "manager", "vm-controller")?;
    space.start_in_guest("pkill allocate-loop")?;
    load.join().context("the load during all this")?;

    vm.wait_size(cluster, size(250, 4), DOWN).context("after the controller's death")?;
    wait_balanced(cluster, &vm, DOWN)?;
    let after = space.sql("select pg_postmaster_start_time()")?;
    ensure!(after == postmaster, "Postgres was restarted");
    ensure!(vm.see()?.restarts() == 0, "the VM was restarted");
    Ok(())
}

/// The agent of a node.
pub(super) fn agent_of(space: &Space, node: &str) -> Result<Value> {
    let mut agents = space.api.pods("kube-system", "name=autoscaler-agent")?;
    agents.retain(|pod| pod["spec"]["nodeName"] == node);
    one(agents)
}

/// The replica of the controller that leads.
fn leader(space: &Space) -> Result<Value> {
    let lease = space.api.get(CONTROLLER_LEASE)?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    let mut pods = space.api.pods("neonvm-system", "control-plane=controller")?;
    pods.retain(|pod| {
        pod["metadata"]["name"].as_str().is_some_and(|name| holder.starts_with(name))
    });
    one(pods).with_context(|| format!("find the leader {holder:?}"))
}

pub(super) fn one(pods: Vec<Value>) -> Result<Value> {
    let names: Vec<_> = pods.iter().map(|pod| pod["metadata"]["name"].clone()).collect();
    ensure!(pods.len() == 1, "expected one pod, found {names:?}");
    pods.into_iter().next().context("there is one pod")
}
