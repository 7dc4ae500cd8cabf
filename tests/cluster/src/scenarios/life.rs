//! A VM's life as a user sees it: it comes, says what it is, and goes without a trace.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::books::Books;
use super::space::Space;
use super::vm::{Shape, size};
use super::{Needs, Scenario};
use crate::cluster::Cluster;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "a VM serves, says what it is, and leaves nothing behind",
        needs: Needs::System,
        deadline: Duration::from_secs(300),
        run: life,
    }]
}

const GONE: Duration = Duration::from_secs(45);
/// Everything of a namespace that a VM could leave there; events are a record and stay.
const KINDS: &str = "pods,secrets,configmaps,services,endpointslices,leases,\
                     persistentvolumeclaims,virtualmachines,virtualmachinemigrations";

fn life(cluster: &Cluster) -> Result<()> {
    let shape = Shape::default();
    let (space, vm) = Space::with_vm(cluster, "life", &shape)?;
    check_status(&space)?;
    check_columns(&space)?;
    let mut expected = everything(&space)?;
    expected.retain(|name| {
        !name.contains(&format!("/{}-", vm.name)) && !name.starts_with("virtualmachine")
    });
    // The Service outlives the VM, and with it the list of its addresses.
    expected.extend(endpoint_slices(&space)?);

    space.kubectl(&["delete", "neonvm", &vm.name, "--timeout=30s"])?;
    cluster.wait_until("nothing of the VM is left in its namespace", GONE, || {
        let left = everything(&space)?;
        let unexpected: Vec<_> = left.difference(&expected).collect();
        ensure!(unexpected.is_empty(), "still there: {unexpected:?}");
        Ok(true)
    })?;
    cluster.wait_until("nothing of the VM is left in the books", GONE, || {
        Ok(!Books::read(cluster)?.knows(&vm))
    })
}

fn check_status(space: &Space) -> Result<()> {
    let vm = space.vm();
    let seen = vm.see()?;
    ensure!(seen.plugged()? == size(250, 4), "its size is {}", seen.plugged()?);
    ensure!(seen.restarts() == 0, "it was restarted {} times", seen.restarts());
    let pod = space.api.get(&vm.pod_path()?)?;
    for (field, expected) in [
        ("node", &pod["spec"]["nodeName"]),
        ("podIP", &pod["status"]["podIP"]),
        ("podName", &pod["metadata"]["name"]),
    ] {
        ensure!(
            *expected == seen.status(field) && !seen.status(field).is_empty(),
            "{field} is {:?} in the status and {expected} in the pod",
            seen.status(field)
        );
    }
    for (kind, expected) in [("Available", "True"), ("Degraded", "False"), ("Resized", "True")] {
        let (status, reason, message) = seen.condition(kind);
        ensure!(status == expected, "{kind} is {status}: {reason} {message}");
    }
    ensure!(pod["metadata"]["labels"]["vm.neon.tech/name"] == vm.name.as_str(), "no name label");
    let container = &pod["spec"]["containers"][0];
    ensure!(container["name"] == "neonvm-runner", "the container is {}", container["name"]);
    Ok(())
}

/// What `kubectl get` shows.
fn check_columns(space: &Space) -> Result<()> {
    let vm = space.vm();
    let table = space.kubectl(&["get", "neonvm", &vm.name])?;
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let heads = ["NAME", "CPUS", "MEMORY", "POD", "EXTRAIP", "STATUS", "RESTARTS", "AGE"];
    let first = rows.next().unwrap_or_default();
    ensure!(first == heads, "the columns are {first:?}");
    let row = rows.next().unwrap_or_default();
    let seen = vm.see()?;
    // The second address is empty, so one cell less.
    let cells = [&vm.name, "250m", "512Mi", seen.status("podName"), "Running", "0"];
    ensure!(row.starts_with(&cells), "the row is {row:?}, not {cells:?}");
    let wide = space.kubectl(&["get", "virtualmachines", &vm.name, "-o", "wide"])?;
    for cell in ["NODE", "IMAGE", seen.status("node"), "localhost/vm-postgres:local"] {
        ensure!(wide.contains(cell), "the wide table lacks {cell}:\n{wide}");
    }
    Ok(())
}

fn everything(space: &Space) -> Result<BTreeSet<String>> {
    names(space, KINDS)
}

fn endpoint_slices(space: &Space) -> Result<BTreeSet<String>> {
    names(space, "endpointslices")
}

fn names(space: &Space, kinds: &str) -> Result<BTreeSet<String>> {
    let text = space.kubectl(&["get", kinds, "-o", "name"])?;
    Ok(text.lines().map(str::to_owned).collect())
}
