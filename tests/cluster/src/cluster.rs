//! A running cluster, as scenarios and demonstrations use it: kubectl, images, components that can be killed and started.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::Run;
use crate::layout::{Layout, Node};
use crate::options::NodeSize;
use crate::process::Process;
use crate::{interrupt, node, process};

/// What is written down about a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Where its programs are; the folder's name is their content key.
    pub binaries: PathBuf,
    /// How large its nodes show themselves.
    pub size: NodeSize,
    /// Whether `up` came to its end.
    pub complete: bool,
}

impl Facts {
    /// What is written down; nothing when no cluster was ever begun.
    pub fn read(layout: &Layout) -> Result<Option<Self>> {
        let path = layout.facts();
        match fs::read(&path) {
            // A file that a crash cut short tells of a cluster that is not complete.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Writes it down.
    pub fn write(&self, layout: &Layout) -> Result<()> {
        let path = layout.facts();
        let bytes = serde_json::to_vec(self).context("write down the cluster")?;
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
    }
}

/// A cluster that is up.
#[derive(Debug, Clone)]
pub struct Cluster {
    layout: Layout,
    facts: Facts,
}

impl Cluster {
    /// The cluster of this machine; fails when there is none.
    pub fn open() -> Result<Self> {
        let layout = Layout::from_env()?;
        match Facts::read(&layout)? {
            Some(facts) if facts.complete => Ok(Self { layout, facts }),
            _ => bail!("no cluster is up; start one with: cargo cluster up"),
        }
    }

    pub(crate) fn new(layout: &Layout, facts: &Facts) -> Self {
        Self { layout: layout.clone(), facts: facts.clone() }
    }

    /// Where things are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How large the nodes show themselves.
    pub fn size(&self) -> NodeSize {
        self.facts.size
    }

    /// A program of the cluster.
    pub fn program(&self, name: &str) -> PathBuf {
        self.facts.binaries.join(name)
    }

    /// Puts a program among those for the cluster's users.
    pub fn offer(&self, name: &str, program: &Path) -> Result<()> {
        let folder = self.layout.programs();
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let link = folder.join(name);
        match fs::remove_file(&link) {
            Err(err) if err.kind() != ErrorKind::NotFound => {
                return Err(err).with_context(|| format!("remove {}", link.display()));
            }
            _ => {}
        }
        std::os::unix::fs::symlink(program, &link)
            .with_context(|| format!("make {}", link.display()))
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig()
    }

    /// A kubectl command, to be completed and run.
    pub fn kubectl_run<T: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = T>) -> Run {
        let (mark, ours) = process::mark(&self.layout);
        let kubectl = Run::new(self.program("kubectl")).env(mark, ours);
        kubectl.env("KUBECONFIG", self.kubeconfig()).args(args)
    }

    /// Runs kubectl and returns what it prints.
    pub fn kubectl<T: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = T>,
    ) -> Result<String> {
        self.kubectl_run(args).deadline(Duration::from_secs(180)).output()
    }

    /// Runs `kubectl … -o json` and returns the object or list.
    pub fn kubectl_json<T: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = T>,
    ) -> Result<Value> {
        let text = self.kubectl_run(args).args(["-o", "json"]).output()?;
        serde_json::from_str(&text).context("read kubectl's answer")
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        self.kubectl_run(["apply", "-f", "-"]).input(manifest).output().map(drop)
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<Node> {
        let nodes = self.layout.nodes();
        nodes
            .into_iter()
            .find(|node| node.name() == name)
            .with_context(|| format!("no node {name}"))
    }

    /// Imports image archives into all nodes, side by side.
    pub fn load_images(&self, archives: &[PathBuf], log: &Path) -> Result<()> {
        let archives = archives
            .iter()
            .map(|path| path.canonicalize().with_context(|| format!("find {}", path.display())))
            .collect::<Result<Vec<_>>>()?;
        on_all_nodes(&self.layout, |node| {
            archives.iter().try_for_each(|path| node::import(node, &self.facts.binaries, path, log))
        })
    }

    /// Kills a component (`kube-scheduler`, `n1/kubelet`) and waits until it is gone.
    pub fn kill(&self, component: &str) -> Result<()> {
        process::kill(&self.layout, component, Signal::KILL)
    }

    /// Starts a component again that was killed.
    pub fn restart(&self, component: &str) -> Result<Process> {
        process::restart(&self.layout, component)
    }

    /// Waits until a condition holds; its last word is part of the failure.
    pub fn wait_until(
        &self,
        what: &str,
        limit: Duration,
        condition: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        wait_until(what, limit, condition)
    }

    /// Why the cluster is not healthy; nothing when it is.
    pub fn complaint(&self) -> Option<String> {
        let check = || -> Result<()> {
            process::check_all(&self.layout)?;
            let ready =
                self.kubectl_run(["get", "--raw=/readyz"]).deadline(Duration::from_secs(20));
            ensure!(ready.output()?.trim() == "ok", "the API server is not ready");
            let nodes = self.kubectl_json(["get", "nodes"])?;
            for node in self.layout.nodes() {
                ensure!(is_ready(&nodes, &node.name()), "node {} is not Ready", node.name());
            }
            Ok(())
        };
        check().err().map(|err| format!("{err:#}"))
    }
}

/// Whether a list of nodes shows this one as Ready.
pub fn is_ready(nodes: &Value, name: &str) -> bool {
    let items = nodes["items"].as_array().into_iter().flatten();
    let mut conditions = items
        .filter(|node| node["metadata"]["name"] == name)
        .flat_map(|node| node["status"]["conditions"].as_array().into_iter().flatten());
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Does the same on all nodes at once.
pub(crate) fn on_all_nodes(
    layout: &Layout,
    work: impl Fn(&Node) -> Result<()> + Sync,
) -> Result<()> {
    let nodes = layout.nodes();
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = nodes.iter().map(|node| scope.spawn(move || work(node))).collect();
        let results: Vec<Result<()>> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a node's thread broke")))
            .collect();
        results.into_iter().collect()
    })
}

/// Waits until a condition holds. An error of the condition counts as "not yet" and is told when time is up.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let begun = Instant::now();
    loop {
        interrupt::check()?;
        let last = match condition() {
            Ok(true) => return Ok(()),
            Ok(false) => None,
            Err(err) => Some(err),
        };
        if begun.elapsed() > limit {
            let said = format!("waited {limit:?} in vain until {what}");
            return Err(match last {
                Some(err) => err.context(said),
                None => anyhow::anyhow!(said),
            });
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_named_node_counts_as_ready() {
        let ready = json!([{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "True"}]);
        let nodes = json!({"items": [
            {"metadata": {"name": "n1"}, "status": {"conditions": ready}},
            {"metadata": {"name": "n2"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}},
        ]});
        assert!(is_ready(&nodes, "n1"));
        assert!(!is_ready(&nodes, "n2"));
        assert!(!is_ready(&nodes, "n3"));
        assert!(!is_ready(&json!({}), "n1"));
    }

    #[test]
    fn waiting_ends_with_the_last_error() {
        let err = wait_until("it works", Duration::from_millis(1), || bail!("broken")).unwrap_err();
        assert!(format!("{err:#}").contains("it works: broken"), "{err:#}");
    }
}
