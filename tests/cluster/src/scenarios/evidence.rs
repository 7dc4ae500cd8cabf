//! What is kept of a scenario that failed: the objects, the events, the logs of pods and components.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cache::Cache;
use crate::cluster::Cluster;
use crate::up::copy_logs;

const OBJECTS: &[(&str, &[&str])] = &[
    ("nodes.txt", &["describe", "nodes"]),
    ("pods.txt", &["get", "pods", "-A", "-o", "wide"]),
    ("pods-described.txt", &["describe", "pods", "-A"]),
    ("pods.yaml", &["get", "pods", "-A", "-o", "yaml"]),
    ("events.txt", &["get", "events", "-A", "--sort-by=.metadata.creationTimestamp"]),
    ("vms.yaml", &["get", "virtualmachines", "-A", "-o", "yaml"]),
];

/// Collects what can be had; returns the folder. What cannot be had is said there, and never hides the failure itself.
pub(super) fn collect(cache: &Cache, cluster: &Cluster, scenario: &str) -> PathBuf {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let name: String =
        scenario.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let dir = cache.root().join("failures").join(format!("{now}-{name}"));
    if let Err(err) = collect_into(cluster, &dir) {
        eprintln!("  the evidence in {} is not complete: {err:#}", dir.display());
    }
    dir
}

fn collect_into(cluster: &Cluster, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let components = copy_logs(&cluster.layout().logs(), &dir.join("components"));
    for (file, words) in OBJECTS {
        put(dir, file, &ask(cluster, *words))?;
    }
    let pods = cluster.kubectl_json(["get", "pods", "-A"])?;
    for (namespace, pod) in names(&pods) {
        for (end, previous) in [("log", false), ("previous.log", true)] {
            let words = ["-n", &namespace, "logs", &pod, "--all-containers", "--prefix"];
            let text = ask(cluster, words.iter().chain(previous.then_some(&"--previous")));
            put(dir, &format!("{namespace}-{pod}.{end}"), &text)?;
        }
    }
    components
}

fn ask<'a>(cluster: &Cluster, words: impl IntoIterator<Item = &'a &'a str>) -> String {
    let run = cluster.kubectl_run(words).deadline(Duration::from_secs(30));
    run.output().unwrap_or_else(|err| format!("{err:#}\n"))
}

fn put(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

fn names(pods: &Value) -> Vec<(String, String)> {
    let items = pods["items"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let name =
        |pod: &Value| Some((text(&pod["metadata"]["namespace"])?, text(&pod["metadata"]["name"])?));
    items.filter_map(name).collect()
}
