//! How a VM ends: a guest whose hypervisor dies is replaced, a VM that is deleted shuts its database down first.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::space::{Background, START, Space};
use super::victim;
use super::vm::Shape;
use super::{Needs, Scenario};
use crate::cluster::Cluster;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "a VM whose QEMU dies is replaced, and one that is deleted shuts down cleanly",
        needs: Needs::System,
        deadline: Duration::from_secs(300),
        run: ends,
    }]
}

const SHUTDOWN: Duration = Duration::from_secs(60);

fn ends(cluster: &Cluster) -> Result<()> {
    let (space, vm) = Space::with_vm(cluster, "ends", &Shape::default())?;
    let first = vm.see()?.status("podName").to_owned();
    let pod = space.api.get(&vm.pod_path()?)?;

    let failed = {
        let run = space.kubectl_run(&[
            "wait",
            "--for=jsonpath={.status.phase}=Failed",
            &format!("pod/{first}"),
            "--timeout=30s",
        ]);
        Background::new(move || run.output())
    };
    // The one who waits must be there before it happens.
    std::thread::sleep(Duration::from_secs(1));
    victim::kill(&pod, "neonvm-runner", "qemu-system-x86_64")?;
    failed.join().context("the pod ends as Failed")?;
    cluster.wait_until("another pod has replaced the first", START, || {
        let seen = vm.see()?;
        let running = seen.status("phase") == "Running" && seen.restarts() == 1;
        if running && seen.status("podName") != first {
            return Ok(true);
        }
        bail!("its status is {}", seen.0["status"]);
    })?;
    space.wait_for_sql()?;
    clean_shutdown(&space)
}

fn clean_shutdown(space: &Space) -> Result<()> {
    let vm = space.vm();
    let second = vm.see()?.status("podName").to_owned();
    let console = {
        let words = ["logs", "--follow", &second, "-c", "neonvm-runner"];
        let run = space.kubectl_run(&words).deadline(START);
        Background::new(move || run.output_whatever_the_end())
    };
    std::thread::sleep(Duration::from_secs(1));
    space.kubectl_run(&["delete", "neonvm", &vm.name]).deadline(SHUTDOWN).output()?;
    let text = console.join()?;
    for mark in [
        "received fast shutdown request",
        "database system is shut down",
        "neonvm: workload stopped",
        "neonvm: power off",
    ] {
        ensure!(text.contains(mark), "the console does not say {mark:?}:\n{}", last_lines(&text));
    }
    let path = format!("/api/v1/namespaces/{}/pods/{second}", vm.namespace);
    space.cluster.wait_until("the pod is gone", SHUTDOWN, || Ok(space.api.find(&path)?.is_none()))
}

fn last_lines(text: &str) -> String {
    crate::command::last_lines(text, 20)
}
