//! Bringing the cluster up: reused when it is healthy, made anew when it is not, taken away again when it fails half-way.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

use crate::artifacts::go;
use crate::cache::Cache;
use crate::cluster::{Cluster, Facts, is_ready, on_all_nodes, wait_until};
use crate::layout::Layout;
use crate::options::NodeSize;
use crate::progress::Progress;
use crate::{control_plane, down, interrupt, network, node, pki, process, small_images, tools};

/// The cluster's DNS.
const DNS_MANIFEST: &str = include_str!("coredns.yaml");
/// The number of steps that `up` shows.
pub const STEPS: usize = 6;

const API_START: Duration = Duration::from_secs(180);
const NODES_START: Duration = Duration::from_secs(180);
const DNS_START: Duration = Duration::from_secs(180);

/// Brings the cluster up, or finds it up.
pub fn up(cache: &Cache, progress: &Progress, size: NodeSize) -> Result<Cluster> {
    tools::need_root()?;
    let layout = Layout::from_env()?;
    tools::ensure_packages(progress, "the cluster", tools::CLUSTER)?;
    let binaries = go::ensure(cache, progress)?;
    let images = small_images::ensure(cache, progress, &binaries)?;
    let _lock = cache.lock("cluster")?;
    let cluster = match healthy(&layout, progress, &binaries, size)? {
        Some(cluster) => cluster,
        None => {
            let archives: Vec<PathBuf> = images.into_iter().map(|(_, path)| path).collect();
            make(&layout, progress, &binaries, size, &archives)
                .map_err(|err| give_up(cache, &layout, progress, err))?
        }
    };
    cluster.offer("kubectl", &cluster.program("kubectl"))?;
    Ok(cluster)
}

/// The cluster that is up, when it can serve as it is; otherwise makes room for a new one.
fn healthy(
    layout: &Layout,
    progress: &Progress,
    binaries: &Path,
    size: NodeSize,
) -> Result<Option<Cluster>> {
    let complaint = match Facts::read(layout)? {
        None if down::leftovers(layout)?.is_empty() => return Ok(None),
        None => "it was not started completely".to_owned(),
        Some(facts) if !facts.complete => "it was not started completely".to_owned(),
        Some(facts) if facts.binaries != binaries => "it runs older programs".to_owned(),
        Some(facts) => {
            let cluster = Cluster::new(layout, &facts);
            match cluster.complaint() {
                None => {
                    let same = size == NodeSize::default() || size == facts.size;
                    ensure!(
                        same,
                        "a cluster with nodes of another size is up; first: cargo cluster down"
                    );
                    progress.note("the cluster is up and healthy");
                    return Ok(Some(cluster));
                }
                Some(complaint) => complaint,
            }
        }
    };
    progress.note(&format!("the last cluster is of no use: {}", complaint.trim_end()));
    progress.expect_more(1);
    progress.step("clean up", |_| down::down(layout))?;
    Ok(None)
}

fn make(
    layout: &Layout,
    progress: &Progress,
    binaries: &Path,
    size: NodeSize,
    archives: &[PathBuf],
) -> Result<Cluster> {
    let facts = Facts { binaries: binaries.into(), size, complete: false };
    let cluster = Cluster::new(layout, &facts);
    let (first, others) = archives.split_at(small_images::FIRST.min(archives.len()));
    progress.step("control plane and container runtimes", |step| {
        make_folders(layout)?;
        facts.write(layout)?;
        pki::write(layout)?;
        network::up(layout)?;
        control_plane::start_api(layout, binaries)?;
        side_by_side(
            || {
                on_all_nodes(layout, |node| node::prepare(layout, node, binaries))?;
                cluster.load_images(first, step.log())
            },
            || {
                wait_for_api(&cluster)?;
                control_plane::start_controllers(layout, binaries)
            },
        )
    })?;
    progress.step("nodes", |_| {
        on_all_nodes(layout, |node| node::join(layout, node, binaries, size))?;
        cluster.apply(DNS_MANIFEST)?;
        wait_for_nodes(&cluster)
    })?;
    progress.step("cluster DNS and other images", |step| {
        side_by_side(|| cluster.load_images(others, step.log()), || wait_for_dns(&cluster))
    })?;
    let facts = Facts { complete: true, ..facts };
    facts.write(layout)?;
    Ok(Cluster::new(layout, &facts))
}

/// Does two things at once; both come to their end.
fn side_by_side(
    one: impl FnOnce() -> Result<()> + Send,
    other: impl FnOnce() -> Result<()>,
) -> Result<()> {
    thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        one.join().unwrap_or_else(|_| bail!("a thread of the bring-up broke"))?;
        other
    })
}

/// Makes the cluster's folders. The state folder is a mount that no other namespace sees: only there can a mount
/// namespace be bound to a file.
fn make_folders(layout: &Layout) -> Result<()> {
    let logs = layout.logs();
    for dir in [layout.state(), layout.data(), &logs] {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let state = layout.state();
    mount_bind(state, state).with_context(|| format!("bind {} to itself", state.display()))?;
    mount_change(state, MountPropagationFlags::PRIVATE)
        .with_context(|| format!("make {} private", state.display()))
}

fn wait_for_api(cluster: &Cluster) -> Result<()> {
    let layout = cluster.layout();
    wait_until("etcd is healthy", API_START, || {
        process::check_all(layout)?;
        Ok(control_plane::etcd_healthy())
    })?;
    wait_until("the API server is ready", API_START, || {
        process::check_all(layout)?;
        Ok(control_plane::api_listens() && cluster.kubectl_run(["get", "--raw=/readyz"]).succeeds())
    })
}

fn wait_for_nodes(cluster: &Cluster) -> Result<()> {
    let layout = cluster.layout();
    wait_until("all nodes are Ready", NODES_START, || {
        process::check_all(layout)?;
        let nodes = cluster.kubectl_json(["get", "nodes"])?;
        Ok(layout.nodes().iter().all(|node| is_ready(&nodes, &node.name())))
    })
}

fn wait_for_dns(cluster: &Cluster) -> Result<()> {
    wait_until("pods can have an identity", DNS_START, || {
        Ok(cluster.kubectl_run(["-n", "default", "get", "serviceaccount", "default"]).succeeds())
    })?;
    cluster
        .kubectl_run(["-n", "kube-system", "rollout", "status", "deployment/coredns"])
        .arg(format!("--timeout={}s", DNS_START.as_secs()))
        .deadline(DNS_START + Duration::from_secs(10))
        .status()
        .context("wait for the cluster's DNS")
}

/// Keeps the logs of what failed, takes the rest away and passes the reason on.
fn give_up(
    cache: &Cache,
    layout: &Layout,
    progress: &Progress,
    err: anyhow::Error,
) -> anyhow::Error {
    // The clean-up runs commands, too, and a second signal still stops it.
    let stopped = interrupt::interrupted();
    interrupt::forget();
    let kept = cache.root().join("logs/failed-cluster");
    let copied = copy_logs(&layout.logs(), &kept);
    progress.note("taking the unfinished cluster away");
    let err = match down::down(layout) {
        Ok(()) if stopped => {
            return anyhow::anyhow!("stopped by a signal; the unfinished cluster is gone");
        }
        Ok(()) => err,
        Err(left) => err.context(format!("and the clean-up failed: {left:#}")),
    };
    match copied {
        Ok(()) => err.context(format!("bring the cluster up (its logs: {})", kept.display())),
        Err(_) => err.context("bring the cluster up"),
    }
}

/// Copies the components' logs into a folder, which they then fill alone.
pub fn copy_logs(from: &Path, to: &Path) -> Result<()> {
    let copy = || -> std::io::Result<()> {
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let path = entry?.path();
            if let Some(name) = path.file_name() {
                fs::copy(&path, to.join(name))?;
            }
        }
        Ok(())
    };
    copy().with_context(|| format!("copy the logs of {} to {}", from.display(), to.display()))
}
