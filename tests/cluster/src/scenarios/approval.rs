//! The plug's gate: whatever a user writes, nothing is plugged that the scheduler has not approved.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::books::wait_balanced;
use super::space::Space;
use super::vm::{Shape, Vm, size};
use super::{Needs, Scenario, ordinary};
use crate::cluster::Cluster;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "nothing is plugged without the scheduler's approval",
        needs: Needs::System,
        deadline: Duration::from_secs(300),
        run: approval,
    }]
}

const SOON: Duration = Duration::from_secs(60);
const WATCHED: Duration = Duration::from_secs(5);
const REPLICAS: u32 = 2;
const NODE: &str = "n1";

/// The scheduler is away; it comes back however the scenario ends.
struct Away<'a>(&'a Space);

impl<'a> Away<'a> {
    fn new(space: &'a Space) -> Result<Self> {
        let away = Self(space);
        away.scale(0)?;
        space.cluster.wait_until("the scheduler is gone", SOON, || {
            let path =
                "/api/v1/namespaces/kube-system/pods?labelSelector=name%3Dautoscale-scheduler";
            Ok(super::api::items(space.api.get(path)?).is_empty())
        })?;
        Ok(away)
    }

    fn scale(&self, replicas: u32) -> Result<()> {
        let path = "/apis/apps/v1/namespaces/kube-system/deployments/autoscale-scheduler/scale";
        let answer = self.0.api.patch(path, &json!({"spec": {"replicas": replicas}}))?;
        ensure!(answer.status == 200, "scale the scheduler: {}", answer.message());
        Ok(())
    }

    fn end(self) -> Result<()> {
        self.scale(REPLICAS)?;
        let words = ["-n", "kube-system", "rollout", "status", "deployment/autoscale-scheduler"];
        self.0.cluster.kubectl_run(words).arg("--timeout=60s").deadline(SOON).status()
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        // Once more after `end`, it changes nothing.
        let _best_effort = self.scale(REPLICAS);
    }
}

fn approval(cluster: &Cluster) -> Result<()> {
    let (space, vm) = Space::with_vm(cluster, "approval", &Shape::default())?;
    let (small, large) = (size(250, 4), size(1000, 8));
    let away = Away::new(&space)?;
    vm.resize(large)?;
    cluster.wait_until("the VM says what it waits for", SOON, || {
        Ok(vm.see()?.condition("Resized").1 == "WaitingForApproval")
    })?;
    stays(&vm, small).context("without an approval")?;
    let forged = json!({"epoch": 1_000_000, "generation": 1, "signature": "AAAA"}).to_string();
    vm.patch(&json!({"metadata": {"annotations": {
        "internal.autoscaling.neon.tech/resources-approved": json!(large).to_string(),
        "internal.autoscaling.neon.tech/resources-approved-proof": forged,
    }}}))?;
    stays(&vm, small).context("with a forged approval")?;

    // Those whom it does not concern do not miss it.
    ordinary::create(&space, NODE, "bystander", 10)?;
    ordinary::wait(&space, NODE, "bystander").context("without the scheduler")?;
    ensure!(space.sql("select 40 + 2")? == "42", "the VM does not serve without the scheduler");

    away.end().context("bring the scheduler back")?;
    vm.wait_size(cluster, large, SOON).context("after the scheduler has returned")?;
    wait_balanced(cluster, &vm, SOON)
}

/// The size does not change, and the VM keeps saying why.
fn stays(vm: &Vm, size: guest_units::Size) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < WATCHED {
        let seen = vm.see()?;
        ensure!(seen.plugged()? == size, "it has {}", seen.plugged()?);
        let (status, reason, _) = seen.condition("Resized");
        ensure!(
            status == "False" && reason == "WaitingForApproval",
            "Resized is {status}, {reason}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
