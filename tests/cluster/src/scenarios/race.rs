//! Many permits for the room that is left: all of it is given away, and not a thousandth of a CPU more; what becomes free
//! comes to those that wait.

use std::net::SocketAddr;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_units::MilliCpu;
use serde_json::{Value, json};

use super::books::{Books, check_node};
use super::claims::{self, Claimant, Claims, FIRST, POD_MILLI, Word};
use super::space::Space;
use super::vm::Vm;
use super::{Needs, Scenario, figure, ordinary, scheduler};
use crate::cluster::Cluster;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "ten VMs share the last room exactly, and what becomes free comes to them at once",
        needs: Needs::System,
        deadline: Duration::from_secs(300),
        run: race,
    }]
}

const NODE: &str = "n1";
const CLAIMANTS: usize = 10;
/// Room for less than two of them.
const LEFT: u32 = 250;
const MORE: u32 = 150;
const SOON: Duration = Duration::from_secs(30);
/// The scheduler has seen what a VM wants by then.
const WAITS: Duration = Duration::from_millis(700);
const APPROVED: &str = "internal.autoscaling.neon.tech/resources-approved";
/// Pods that go away one after the other, and what each holds.
const GUESTS: u32 = 5;
const GUEST: u32 = 20;
/// Nobody asks again for a VM without an agent, so that it is served at all shows that it was remembered. Kubelet takes up to a
/// second for it, its round between two resizes of a pod, and more on a busy machine; the figure that is printed says how long.
const SERVED: Duration = Duration::from_secs(3);

fn race(cluster: &Cluster) -> Result<()> {
    let space = Space::new(cluster, "race")?;
    for guest in 0..GUESTS {
        create_guest(&space, &format!("guest-{guest}"))?;
    }
    for guest in 0..GUESTS {
        ordinary::wait(&space, NODE, &format!("guest-{guest}"))?;
    }
    let held = u64::try_from(CLAIMANTS + 1)? * POD_MILLI + u64::from(LEFT);
    ordinary::fill(&space, NODE, held)?;
    let claims = Claims::new(&space, NODE, CLAIMANTS)?;
    let vm = claims::without_agent(&space, NODE)?;
    let track = Track { space, claims };
    // Once for the race, and until kubelet has allocated what was ordered.
    cluster.wait_until("all that is left is given away", SOON, || {
        let given = track.given()?;
        ensure!(given <= LEFT, "{given}m were given of {LEFT}m");
        Ok(given == LEFT)
    })?;
    let mut took = Vec::new();
    for guest in 0..GUESTS {
        let want = FIRST + (guest + 1) * GUEST;
        took.push(track.served(&format!("guest-{guest}"), &vm, want).context("when room is free")?);
    }
    let given = track.given()?;
    ensure!(given == LEFT, "{given}m are given at the end, {LEFT}m were left");
    took.sort_unstable();
    figure(format!("room that a pod left was granted after {took:?}"));
    let median = took[took.len() / 2];
    ensure!(median <= SERVED, "room that a pod left was granted after {took:?}");
    Ok(())
}

/// Ends as soon as it is asked to, so that kubelet, and not who asked, says when its room is free.
fn create_guest(space: &Space, name: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": NODE,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 20,
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "c",
                "image": "localhost/busybox:local",
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done"],
                "resources": {"requests": {"cpu": format!("{GUEST}m")}},
            }],
        },
    });
    let answer = space.api.post(&format!("/api/v1/namespaces/{}/pods", space.name()), &pod)?;
    ensure!(answer.status == 201, "the pod {name} was refused: {}", answer.message());
    Ok(())
}

/// The place of the race.
struct Track {
    space: Space,
    claims: Claims,
}

impl Track {
    /// Everybody asks at the same moment: what each has beyond its first size.
    fn permits(&self) -> Result<Vec<u32>> {
        let leader = scheduler::address(&scheduler::leader(&self.space.api)?)?;
        thread::scope(|scope| {
            let ask = |one| self.ask(leader, one);
            let asked: Vec<_> =
                self.claims.all.iter().map(|one| scope.spawn(move || ask(one))).collect();
            asked.into_iter().map(joined).collect()
        })
    }

    fn ask(&self, leader: SocketAddr, claimant: &Claimant) -> Result<u32> {
        match self.claims.ask(leader, claimant, MilliCpu(FIRST + MORE))? {
            Word::Permit(cpu, _) => Ok(cpu.0.saturating_sub(FIRST)),
            Word::Away => bail!("{} is sent away", claimant.name),
        }
    }

    /// What all have together; neither the books nor the node are overdrawn.
    fn given(&self) -> Result<u32> {
        let permits = self.permits()?;
        Books::read(&self.space.cluster)?.check()?;
        check_node(&self.space.api, NODE)?;
        Ok(permits.iter().sum())
    }

    /// How long after a pod has ended, as the API server tells, the VM that has waited for its room is approved to have it.
    fn served(&self, guest: &str, vm: &Vm, want: u32) -> Result<Duration> {
        vm.patch(&json!({"spec": {"guest": {"cpus": {"use": format!("{want}m")}}}}))?;
        thread::sleep(WAITS);
        ensure!(approved(vm)? < MilliCpu(want), "there was room before {guest} ended");
        let over = self.ended(guest)?;
        while over.elapsed() < SOON {
            if approved(vm)? == MilliCpu(want) {
                return Ok(over.elapsed());
            }
        }
        bail!("nobody has the room of {guest}; the VM is {}", vm.see()?.0)
    }

    /// Ends a pod; when the API server first tells that it has ended.
    fn ended(&self, guest: &str) -> Result<Instant> {
        let path = format!("/api/v1/namespaces/{}/pods/{guest}", self.space.name());
        self.space.api.delete(&path)?;
        let begun = Instant::now();
        while begun.elapsed() < SOON {
            let pod = self.space.api.find(&path)?;
            if pod.is_none_or(|pod| ["Succeeded", "Failed"].contains(&ordinary::phase(&pod))) {
                return Ok(Instant::now());
            }
        }
        bail!("{guest} does not end")
    }
}

/// The CPU that the scheduler has approved.
fn approved(vm: &Vm) -> Result<MilliCpu> {
    let seen = vm.see()?;
    let text = seen.0["metadata"]["annotations"][APPROVED].as_str().unwrap_or("{}");
    let size: Value = serde_json::from_str(text).context("read the approval")?;
    let cpu: Option<MilliCpu> = serde_json::from_value(size["vCPUs"].clone()).ok();
    Ok(cpu.unwrap_or_default())
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("the thread broke"))?
}
