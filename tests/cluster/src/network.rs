//! The cluster's wire: a bridge in the root namespace and a cable to every node's network namespace, with routes to the pods.

use std::fmt::Write as _;
use std::fs::{self, File};

use anyhow::{Context, Result};

use crate::command::Run;
use crate::layout::{BRIDGE, HOST, Layout, Node};

/// What the nodes use and may not load from inside their namespaces.
const MODULES: &[&str] = &["bridge", "veth", "overlay", "nf_tables", "nf_conntrack", "tun"];

/// Makes the bridge, the nodes' network namespaces and everything between them.
pub fn up(layout: &Layout) -> Result<()> {
    // Built into many kernels; where one is really missing, the step that needs it says so.
    let _built_in = Run::new("modprobe").arg("-qa").args(MODULES).output();
    let nodes = layout.nodes();
    let root = format!(
        "link add {BRIDGE} type bridge\naddr add {HOST}/24 dev {BRIDGE}\nlink set {BRIDGE} up\n"
    );
    batch(&[], &root).with_context(|| format!("make the bridge {BRIDGE}"))?;
    for node in &nodes {
        namespace(node).with_context(|| format!("make the network of {}", node.name()))?;
        plug(node, &nodes).with_context(|| format!("connect {} to {BRIDGE}", node.name()))?;
    }
    Ok(())
}

fn namespace(node: &Node) -> Result<()> {
    fs::create_dir_all(node.state()).with_context(|| format!("make {}", node.state().display()))?;
    let file = node.network_namespace();
    File::create(&file).with_context(|| format!("make {}", file.display()))?;
    Run::new("unshare").arg(format!("--net={}", file.display())).arg("true").status()
}

fn plug(node: &Node, nodes: &[Node]) -> Result<()> {
    let (cable, file) = (node.cable(), node.network_namespace());
    let root = format!(
        "link add {cable} type veth peer name eth0 netns {file}\n\
         link set {cable} master {BRIDGE} up\n",
        file = file.display()
    );
    batch(&[], &root)?;
    let inside = [format!("--net={}", file.display())];
    batch(&inside, &node_commands(node, nodes))?;
    // The API server calls webhooks at their pods' addresses.
    let route = format!("route replace {} via {} dev {BRIDGE}\n", node.pods(), node.address());
    batch(&[], &route)?;
    Run::new("nsenter")
        .args(inside)
        .args(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        .status()
        .context("let the node forward packets")
}

fn node_commands(node: &Node, nodes: &[Node]) -> String {
    let mut commands = format!(
        "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {HOST}\n",
        node.address()
    );
    for other in nodes.iter().filter(|other| *other != node) {
        let _infallible = writeln!(commands, "route add {} via {}", other.pods(), other.address());
    }
    commands
}

/// Runs many `ip` commands in one process, optionally inside a namespace.
fn batch(namespace: &[String], commands: &str) -> Result<()> {
    let run = if namespace.is_empty() {
        Run::new("ip")
    } else {
        Run::new("nsenter").args(namespace).arg("ip")
    };
    run.args(["-batch", "-"]).input(commands).status()
}

/// The cluster's interfaces that exist in the root namespace.
pub fn interfaces(layout: &Layout) -> Vec<String> {
    let cables = layout.nodes().map(|node| node.cable());
    std::iter::once(BRIDGE.to_owned()).chain(cables).filter(|name| exists(name)).collect()
}

fn exists(interface: &str) -> bool {
    fs::symlink_metadata(format!("/sys/class/net/{interface}")).is_ok()
}

/// Removes the bridge and the cables; their routes and other ends go with them.
pub fn down(layout: &Layout) -> Result<()> {
    for name in interfaces(layout) {
        let removed = Run::new("ip").args(["link", "del", &name]).status();
        // A cable goes with its namespace, perhaps a moment before it is asked to.
        if exists(&name) {
            removed.with_context(|| format!("remove the interface {name}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_reaches_the_pods_of_the_others_by_their_addresses() {
        let nodes = Layout::from_env().unwrap().nodes();
        let commands = node_commands(&nodes[0], &nodes);
        assert!(commands.contains("route add 10.244.2.0/24 via 172.30.0.12\n"));
        assert!(!commands.contains("10.244.1.0/24"));
    }
}
