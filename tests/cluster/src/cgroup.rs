//! The nodes' control groups: one below the root of every hierarchy, so that two kubelets share one machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::layout::{Layout, Node};
use crate::process::Process;

const ROOT: &str = "/sys/fs/cgroup";
/// A group whose processes were killed is busy until the kernel has taken them apart.
const REMOVAL: Duration = Duration::from_secs(20);

/// The roots of all hierarchies: one with cgroup v2, one per controller with v1.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.procs").exists() {
        return Ok(vec![root.into()]);
    }
    let entries = fs::read_dir(root).with_context(|| format!("list {ROOT}"))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.filter(|path| path.join("cgroup.procs").exists()).collect())
}

/// Makes a node's groups.
pub fn make(node: &Node) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(node.cgroup());
        fs::create_dir_all(&group).with_context(|| format!("make {}", group.display()))?;
        if hierarchy == Path::new(ROOT) {
            delegate(&hierarchy)?;
            delegate(&group)?;
        }
        // With v1 a cpuset group is unusable until both are set.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (from, to) = (hierarchy.join(file), group.join(file));
            if from.exists() {
                let value = fs::read_to_string(&from)
                    .with_context(|| format!("read {}", from.display()))?;
                fs::write(&to, value).with_context(|| format!("write {}", to.display()))?;
            }
        }
    }
    Ok(())
}

/// Lets the groups below use every controller there is (cgroup v2).
fn delegate(group: &Path) -> Result<()> {
    let list = group.join("cgroup.controllers");
    let controllers =
        fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    let words: Vec<String> =
        controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    let control = group.join("cgroup.subtree_control");
    fs::write(&control, words.join(" ")).with_context(|| format!("write {}", control.display()))
}

/// The nodes' groups that exist.
pub fn groups(layout: &Layout) -> Result<Vec<PathBuf>> {
    let nodes = layout.nodes();
    let all = hierarchies()?;
    let groups = all.iter().flat_map(|root| nodes.iter().map(|node| root.join(node.cgroup())));
    Ok(groups.filter(|group| group.is_dir()).collect())
}

/// All processes inside the nodes' groups: those of containers.
pub fn processes(layout: &Layout) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for group in groups(layout)? {
        for dir in tree(&group) {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            let pids = text.lines().filter_map(|line| line.parse().ok());
            // A pid of 0 is a process of another pid namespace that this one cannot name.
            found.extend(pids.filter(|pid| *pid > 0).filter_map(Process::of));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// A group and all groups below it, deepest first.
fn tree(group: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // A group that vanishes while it is read has nothing below it any more.
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(tree(&entry.path()));
        }
    }
    found.push(group.into());
    found
}

/// Removes the nodes' groups, once no process is left in them.
pub fn remove(layout: &Layout) -> Result<()> {
    let begun = Instant::now();
    for group in groups(layout)? {
        for dir in tree(&group) {
            remove_one(&dir, begun)?;
        }
    }
    Ok(())
}

fn remove_one(group: &Path, begun: Instant) -> Result<()> {
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(err) if begun.elapsed() > REMOVAL => {
                return Err(err).with_context(|| format!("remove {}", group.display()));
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}
