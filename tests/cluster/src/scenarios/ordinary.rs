//! Pods that are not VMs': they take room on a node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::books::{Books, check_node};
use super::space::Space;

const SOON: Duration = Duration::from_secs(30);

/// Leaves so much of the CPU of a node.
pub(super) fn fill(space: &Space, node: &str, left_milli: u64) -> Result<()> {
    let free = Books::read(&space.cluster)?.free_cpu(node)?;
    let filler = free
        .checked_sub(left_milli)
        .with_context(|| format!("{node} has only {free}m of CPU free at first"))?;
    let name = format!("filler-{node}");
    create(space, node, &name, filler)?;
    wait(space, node, &name)
}

/// Makes one for a node that takes so much of its CPU, tied to it as those of a DaemonSet are.
pub(super) fn create(space: &Space, node: &str, name: &str, milli: u64) -> Result<()> {
    let here = json!({"key": "metadata.name", "operator": "In", "values": [node]});
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchFields": [here]}]
            }}},
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "c",
                "image": "localhost/busybox:local",
                "imagePullPolicy": "Never",
                "command": ["sleep", "1000000"],
                "resources": {"requests": {"cpu": format!("{milli}m")}},
            }],
        },
    });
    let answer = space.api.post(&format!("/api/v1/namespaces/{}/pods", space.name()), &pod)?;
    ensure!(answer.status == 201, "the pod {name} was refused: {}", answer.message());
    Ok(())
}

fn path(space: &Space, name: &str) -> String {
    format!("/api/v1/namespaces/{}/pods/{name}", space.name())
}

pub(super) fn see(space: &Space, name: &str) -> Result<Value> {
    space.api.get(&path(space, name))
}

pub(super) fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

/// Whether kubelet refused the pod for want of room.
pub(super) fn turned_away(pod: &Value) -> bool {
    pod["status"]["reason"].as_str().is_some_and(|reason| reason.starts_with("OutOf"))
}

/// Waits until it runs, with the node's books checked all the while.
pub(super) fn wait(space: &Space, node: &str, name: &str) -> Result<()> {
    space.cluster.wait_until(&format!("the pod {name} runs"), SOON, || {
        check_node(&space.api, node)?;
        let pod = see(space, name)?;
        ensure!(
            !turned_away(&pod),
            "{name} was turned away, though there is room: {}",
            pod["status"]
        );
        Ok(phase(&pod) == "Running")
    })
}

pub(super) fn remove(space: &Space, name: &str) -> Result<()> {
    let path = path(space, name);
    space.api.delete(&path)?;
    space.cluster.wait_until(&format!("the pod {name} is gone"), SOON, || {
        Ok(space.api.find(&path)?.is_none())
    })
}
