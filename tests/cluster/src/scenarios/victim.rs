//! Killing what runs in a container, from outside: the first process of a pod ignores signals from within.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::api::Api;
use crate::cluster::Cluster;
use crate::process::{Process, command_name};

const RETURN: Duration = Duration::from_secs(60);

/// Kills a program of a pod's container without a warning; says how often the container had been restarted before.
pub(super) fn kill(pod: &Value, container: &str, program: &str) -> Result<i64> {
    let status = container_status(pod, container)?;
    let id = status["containerID"].as_str().and_then(|id| id.rsplit('/').next());
    let id = id.context("the container has an id")?;
    let victims: Vec<Process> = processes(id)?
        .into_iter()
        // The kernel cuts names.
        .filter(|process| command_name(*process) == program[..program.len().min(15)])
        .collect();
    ensure!(!victims.is_empty(), "no {program} runs in the container {container}");
    for victim in victims {
        victim.signal(Signal::KILL)?;
    }
    Ok(status["restartCount"].as_i64().unwrap_or(0))
}

/// Kills the program of a pod of the control plane and waits until the container is ready again.
pub(super) fn kill_and_await(
    cluster: &Cluster,
    api: &Api,
    pod: &Value,
    container: &str,
    program: &str,
) -> Result<()> {
    let before = kill(pod, container, program)?;
    let meta = &pod["metadata"];
    let text = |field: &str| meta[field].as_str().context("a pod has a name").map(str::to_owned);
    let path = format!("/api/v1/namespaces/{}/pods/{}", text("namespace")?, text("name")?);
    cluster.wait_until(&format!("{program} runs again"), RETURN, || {
        let pod = api.get(&path)?;
        let status = container_status(&pod, container)?;
        Ok(status["ready"] == true && status["restartCount"].as_i64() > Some(before))
    })
}

/// A pod's process that runs this program, if there is one now.
pub(super) fn running(pod: &Value, program: &str) -> Result<Option<Process>> {
    let uid = pod["metadata"]["uid"].as_str().context("the pod has a uid")?;
    // The kernel cuts names.
    let named = |process: &Process| command_name(*process) == program[..program.len().min(15)];
    Ok(processes(uid)?.into_iter().find(named))
}

fn container_status<'a>(pod: &'a Value, container: &str) -> Result<&'a Value> {
    let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    let mut found = statuses.into_iter().filter(|status| status["name"] == container);
    found.next().with_context(|| format!("the pod has a container {container}"))
}

/// The processes whose control group is named after the container, or after its pod.
fn processes(id: &str) -> Result<Vec<Process>> {
    let entries = fs::read_dir("/proc").context("list /proc")?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let inside = |pid: &i32| {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.contains(id)
    };
    Ok(pids.filter(inside).filter_map(Process::of).collect())
}
