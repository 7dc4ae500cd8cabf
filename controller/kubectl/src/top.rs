//! `kubectl vm top`: sizes of VMs, every second: what is wanted, allowed, really there, and used.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal as _, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use controller_api::{Approval, VirtualMachine};

use crate::cluster::{Cluster, Live};
use crate::config::Scope;
use crate::table::{align, clean, size};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Agents are looked up again after so many looks, or when one did not answer.
const AGENTS_EVERY: u32 = 15;
/// Cursor home, and the rest of the screen empty: no flicker, and the scroll-back stays clean.
const REDRAW: &str = "\x1b[H\x1b[J";
/// An empty screen to start with.
const CLEAR: &str = "\x1b[2J";

pub(crate) fn run(
    cluster: &Cluster<'_>,
    name: Option<&str>,
    scope: &Scope,
    once: bool,
    out: &mut impl Write,
) -> Result<()> {
    let redraw = !once && io::stdout().is_terminal();
    if redraw {
        write!(out, "{CLEAR}")?;
    }
    let mut agents = BTreeMap::new();
    for look in 0_u32.. {
        let start = Instant::now();
        let vms = match name {
            Some(name) => vec![cluster.vm(name, scope)?],
            None => cluster.vms(scope)?,
        };
        let mut remarks = Vec::new();
        if look % AGENTS_EVERY == 0 || agents.is_empty() {
            match cluster.agents() {
                Ok(found) => agents = found,
                Err(error) => remarks.push(format!("{error:#}")),
            }
        }
        let (live, mut silent) = ask_all(cluster, &vms, &agents);
        if !silent.is_empty() {
            agents.clear(); // an agent may have been replaced
        }
        remarks.append(&mut silent);
        let text = render(&vms, &live, &remarks, *scope == Scope::All);
        write!(out, "{}{text}", if redraw { REDRAW } else { "" })?;
        out.flush()?;
        if once {
            break;
        }
        if !redraw {
            writeln!(out)?;
        }
        thread::sleep(PERIOD.saturating_sub(start.elapsed()));
    }
    Ok(())
}

type LiveVms = BTreeMap<(String, String), Live>;

/// Asks the agents of all nodes that have VMs, at the same time. What could not be learnt is said.
fn ask_all(
    cluster: &Cluster<'_>,
    vms: &[VirtualMachine],
    agents: &BTreeMap<String, String>,
) -> (LiveVms, Vec<String>) {
    let nodes: BTreeSet<&str> = vms.iter().filter_map(node_of).collect();
    let answers = thread::scope(|threads| {
        let asked: Vec<_> = nodes
            .into_iter()
            .map(|node| {
                let pod = agents.get(node);
                (node, pod.map(|pod| threads.spawn(move || cluster.live(pod))))
            })
            .collect();
        asked
            .into_iter()
            .map(|(node, answer)| (node, answer.map(thread::ScopedJoinHandle::join)))
            .collect::<Vec<_>>()
    });
    let (mut live, mut remarks) = (LiveVms::new(), Vec::new());
    for (node, answer) in answers {
        match answer {
            Some(Ok(Ok(vms))) => {
                live.extend(
                    vms.into_iter().map(|vm| ((vm.namespace.clone(), vm.name.clone()), vm)),
                );
            }
            Some(Ok(Err(error))) => remarks.push(format!("node {node}: {error:#}")),
            Some(Err(_)) => remarks.push(format!("node {node}: asking its agent failed")),
            None => remarks.push(format!("node {node}: no agent runs there")),
        }
    }
    (live, remarks)
}

fn node_of(vm: &VirtualMachine) -> Option<&str> {
    vm.status.as_ref()?.node.as_deref().filter(|node| !node.is_empty())
}

/// The whole table. What no agent tells comes from the VM object.
fn render(vms: &[VirtualMachine], live: &LiveVms, remarks: &[String], namespaces: bool) -> String {
    let titles = ["NAME", "NODE", "PHASE", "DESIRED", "PERMITTED", "PLUGGED", "USED"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    rows.extend(vms.iter().map(|vm| {
        let namespace = vm.metadata.namespace.clone().unwrap_or_default();
        let name = vm.metadata.name.clone().unwrap_or_default();
        row(vm, live.get(&(namespace, name)))
    }));
    if namespaces {
        let namespace = |vm: &VirtualMachine| vm.metadata.namespace.clone().unwrap_or_default();
        let column = std::iter::once("NAMESPACE".to_owned()).chain(vms.iter().map(namespace));
        for (row, namespace) in rows.iter_mut().zip(column) {
            row.insert(0, namespace);
        }
    }
    let mut lines = align(&rows);
    if vms.is_empty() {
        lines = vec!["No VMs here (-A shows those of all namespaces).".to_owned()];
    }
    lines.extend(remarks.iter().map(|remark| format!("! {}", clean(remark))));
    lines.join("\n") + "\n"
}

fn row(vm: &VirtualMachine, live: Option<&Live>) -> Vec<String> {
    let status = vm.status.clone().unwrap_or_default();
    let annotations = vm.metadata.annotations.clone().unwrap_or_default();
    let approved = Approval::from_annotations(&annotations).ok().flatten().map(|it| it.size);
    let desired = live.and_then(|live| live.desired).or(Some(vm.use_size()));
    let permitted = live.and_then(|live| live.permit).or(approved);
    let plugged = live.and_then(|live| live.plugged).or(status.plugged());
    let used = live.and_then(|live| live.used);
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let mut row = vec![
        vm.metadata.name.clone().unwrap_or_default(),
        dash(status.node.as_deref().unwrap_or_default()),
        dash(status.phase.as_str()),
    ];
    row.extend([desired, permitted, plugged, used].map(size));
    row
}

#[cfg(test)]
mod tests {
    use guest_units::{Bytes, MilliCpu, Size};
    use serde_json::json;

    use super::*;

    fn vm(namespace: &str, name: &str, phase: &str) -> VirtualMachine {
        serde_json::from_value(json!({
            "apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachine",
            "metadata": { "namespace": namespace, "name": name },
            "spec": { "guest": {
                "cpus": { "min": 0.25, "max": 2, "use": 0.5 },
                "memorySlots": { "min": 1, "max": 4, "use": 2 },
                "rootDisk": { "image": "i" },
            } },
            "status": if phase.is_empty() { json!({}) } else {
                json!({ "phase": phase, "node": "n1", "cpus": "250m", "memorySize": "1Gi" })
            },
        }))
        .unwrap()
    }

    fn size(milli_cpu: u32, gib: u64) -> Size {
        Size { cpu: MilliCpu(milli_cpu), memory: Bytes(gib << 30) }
    }

    #[test]
    fn the_agents_word_comes_before_the_objects() {
        let vms = [vm("a", "busy", "Running"), vm("b", "quiet", "Running"), vm("b", "new", "")];
        let busy = Live {
            namespace: "a".into(),
            name: "busy".into(),
            desired: Some(size(2000, 4)),
            permit: Some(size(1000, 3)),
            plugged: Some(size(1000, 3)),
            used: Some(size(900, 2)),
        };
        let live = LiveVms::from([(("a".to_owned(), "busy".to_owned()), busy)]);
        let text = render(&vms, &live, &["node n2: gone\u{7}".to_owned()], true);
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "NAMESPACE  NAME   NODE  PHASE    DESIRED   PERMITTED  PLUGGED   USED",
                "a          busy   n1    Running  2/4Gi     1/3Gi      1/3Gi     900m/2Gi",
                "b          quiet  n1    Running  500m/2Gi  -          250m/1Gi  -",
                "b          new    -     -        500m/2Gi  -          -         -",
                "! node n2: gone ",
            ]
        );
    }

    #[test]
    fn no_vms_are_said_to_be_none() {
        let text = render(&[], &LiveVms::new(), &[], false);
        assert_eq!(text, "No VMs here (-A shows those of all namespaces).\n");
    }
}
