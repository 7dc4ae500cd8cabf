//! The last room of a node, wanted by a growing VM and by an ordinary pod at the same moment: only one of them gets it.
//!
//! Nobody but kubelet sees both wishes. Where kube-scheduler binds the pod in the milliseconds before it hears of the
//! growth, kubelet turns the pod away and whoever owns it makes another: that pod has lost, and nothing is overcommitted.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::books::{Books, Overdraft, check_node};
use super::space::Space;
use super::vm::{Shape, Vm, size};
use super::{Needs, Scenario, ordinary};
use crate::cluster::Cluster;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "an ordinary pod and a growing VM never share the last room",
        needs: Needs::System,
        deadline: Duration::from_secs(300),
        run: room,
    }]
}

/// What is left on the node for the two.
const LEFT: u64 = 600;
const POD_WANTS: u64 = 400;
const VM_SMALL: u32 = 250;
const VM_LARGE: u32 = 750;
const SOON: Duration = Duration::from_secs(30);
const WATCHED: Duration = Duration::from_secs(5);

/// The place of the race.
struct Track {
    space: Space,
    vm: Vm,
    node: String,
}

fn room(cluster: &Cluster) -> Result<()> {
    let node = Books::read(cluster)?.roomiest()?;
    let shape = Shape { node: &node, ..Shape::default() };
    let (space, vm) = Space::with_vm(cluster, "room", &shape)?;
    let track = Track { space, vm, node };
    ordinary::fill(&track.space, &track.node, LEFT)?;
    // Who is first differs; who gets it does not matter.
    for (vm_later, pod_later) in [(0, 0), (40, 0), (0, 40)] {
        race(&track, vm_later, pod_later)
            .with_context(|| format!("VM after {vm_later} ms, pod after {pod_later} ms"))?;
    }
    Ok(())
}

fn race(track: &Track, vm_later_ms: u64, pod_later_ms: u64) -> Result<()> {
    let Track { space, vm, node } = track;
    let cluster = &space.cluster;
    thread::scope(|scope| {
        let growing = scope.spawn(|| {
            thread::sleep(Duration::from_millis(vm_later_ms));
            vm.resize(size(VM_LARGE, 4))
        });
        thread::sleep(Duration::from_millis(pod_later_ms));
        ordinary::create(&track.space, &track.node, "rival", POD_WANTS)?;
        growing.join().map_err(|_| anyhow::anyhow!("the thread broke"))?
    })?;
    watch(track)?;
    let mut pod_won = false;
    cluster.wait_until("one of the two has the room", SOON, || {
        pod_won = ordinary::phase(&ordinary::see(&track.space, "rival")?) == "Running";
        let vm_won = vm.see()?.plugged()? == size(VM_LARGE, 4);
        ensure!(!(pod_won && vm_won), "both have it");
        check_node(&space.api, node)?;
        Ok(pod_won || vm_won)
    })?;
    // The loser gets it as soon as it is free.
    if pod_won {
        ordinary::remove(&track.space, "rival")?;
        vm.wait_size(cluster, size(VM_LARGE, 4), SOON).context("after the pod has gone")?;
        vm.resize(size(VM_SMALL, 4))?;
    } else {
        if ordinary::turned_away(&ordinary::see(&track.space, "rival")?) {
            ordinary::remove(&track.space, "rival")?;
            ordinary::create(&track.space, &track.node, "rival", POD_WANTS)?;
        }
        vm.resize(size(VM_SMALL, 4))?;
        ordinary::wait(&track.space, &track.node, "rival").context("after the VM has shrunk")?;
        ordinary::remove(&track.space, "rival")?;
    }
    vm.wait_size(cluster, size(VM_SMALL, 4), SOON)?;
    cluster.wait_until("the VM's room is given back", SOON, || {
        let free = Books::read(cluster)?.free_cpu(node)?;
        if free >= LEFT {
            return Ok(true);
        }
        bail!("only {free}m are free");
    })
}

/// Looks at the node as often as possible while the two compete. What kubelet has given never exceeds the node.
fn watch(track: &Track) -> Result<()> {
    let begun = Instant::now();
    let mut overdraft = Overdraft::default();
    while begun.elapsed() < WATCHED || overdraft.is_open() {
        check_node(&track.space.api, &track.node)?;
        overdraft.look(&track.space.cluster)?;
    }
    Ok(())
}
