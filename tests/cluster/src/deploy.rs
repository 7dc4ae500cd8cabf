//! The system on the cluster: its manifests, gathered from the parts that own them, applied and waited for.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cache::repo_root;
use crate::cluster::Cluster;
use crate::progress::Progress;

/// Where manifests are, in the order in which they are applied. The first holds what the others refer to.
const FOLDERS: &[&str] = &[
    "controller/api/crds",
    "controller/api/policies",
    "controller/operator/deploy",
    "scheduler/extender/deploy",
    "host/agent/deploy",
];
const DEFINITIONS: usize = 1;
/// The registry and the tag under which manifests name the images of this repository.
const LOCAL_REGISTRY: &str = "localhost/";
const LOCAL_TAG: &str = "local";
const ESTABLISHED: &str = "60s";
/// The smallest VM that can be.
const SAMPLE: &str = "controller/api/tests/samples/minimal.yaml";
const ADMITTED: Duration = Duration::from_secs(120);
const ROLL_OUT: Duration = Duration::from_secs(300);
/// The number of steps that loading and deploying show.
pub const STEPS: usize = 2;

/// All manifests as one stream of documents, with the images' registry and tag replaced.
pub fn render(registry: &str, tag: &str) -> Result<String> {
    Ok(rename_images(&render_folders(&repo_root()?, FOLDERS)?, registry, tag))
}

fn render_folders(root: &Path, folders: &[&str]) -> Result<String> {
    let mut text = String::new();
    for folder in folders {
        for (path, manifest) in manifests(&root.join(folder))? {
            let name = path.strip_prefix(root).unwrap_or(&path).display();
            text +=
                &format!("---\n# {name}\n{}\n", manifest.trim_start_matches("---\n").trim_end());
        }
    }
    Ok(text)
}

/// The manifests of a folder by name, those with a namespace first: nothing can be put into one that is not there.
/// A part without any manifest would be a system without that part.
fn manifests(dir: &Path) -> Result<Vec<(PathBuf, String)>> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let yaml = paths.filter(|path| path.extension().is_some_and(|end| end == "yaml"));
    let mut found = yaml
        .map(|path| {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("read the manifest {}", path.display()))?;
            Ok((path, text))
        })
        .collect::<Result<Vec<_>>>()?;
    ensure!(!found.is_empty(), "there is no manifest in {}", dir.display());
    let later = |text: &str| !text.lines().any(|line| line.trim_end() == "kind: Namespace");
    found.sort_by_cached_key(|(path, text)| (later(text), path.clone()));
    Ok(found)
}

/// Replaces `localhost/NAME:local` by `REGISTRY/NAME:TAG`.
fn rename_images(text: &str, registry: &str, tag: &str) -> String {
    let end = |rest: &str| {
        rest.find(|c: char| !c.is_ascii_alphanumeric() && !"-_./".contains(c)).unwrap_or(rest.len())
    };
    let mut parts = text.split(LOCAL_REGISTRY);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_at(end(part));
        let suffix = rest.strip_prefix(':').and_then(|rest| rest.strip_prefix(LOCAL_TAG));
        match suffix.filter(|rest| end(rest) == 0) {
            Some(rest) => out += &format!("{registry}/{name}:{tag}{rest}"),
            None => out += &format!("{LOCAL_REGISTRY}{part}"),
        }
    }
    out
}

/// Loads the system's images, as far as the nodes do not have them yet; says whether one was new.
pub fn load(cluster: &Cluster, progress: &Progress, images: &[(String, PathBuf)]) -> Result<bool> {
    progress.step("load images", |step| {
        let list = cluster.layout().loaded_images();
        let known = fs::read_to_string(&list).unwrap_or_default();
        // An archive's path holds its content key.
        let line = |(name, path): &(String, PathBuf)| format!("{name} {}", path.display());
        let fresh: Vec<PathBuf> = images
            .iter()
            .filter(|image| !known.lines().any(|known| known == line(image)))
            .map(|(_, path)| path.clone())
            .collect();
        if fresh.is_empty() {
            step.reused();
            return Ok(false);
        }
        cluster.load_images(&fresh, step.log())?;
        let lines: Vec<String> = images.iter().map(line).collect();
        fs::write(&list, lines.join("\n")).with_context(|| format!("write {}", list.display()))?;
        Ok(true)
    })
}

/// Applies all manifests and waits until the system runs. `renewed`: images changed under their names, so that
/// workloads which exist already must start anew.
pub fn deploy(cluster: &Cluster, progress: &Progress, renewed: bool) -> Result<()> {
    progress.step("deploy the system", |step| {
        let root = repo_root()?;
        let (definitions, rest) = FOLDERS.split_at(DEFINITIONS);
        step.say("applying the definitions");
        let applied = apply(cluster, &render_folders(&root, definitions)?)?;
        established(cluster, &applied)?;
        let before = workloads(cluster)?;
        step.say("applying the workloads");
        let applied = apply(cluster, &render_folders(&root, rest)?)?;
        let deployed: Vec<Workload> = applied.iter().filter_map(Workload::of).collect();
        for workload in &deployed {
            if renewed && before.contains(workload) {
                workload.rollout(cluster, &["restart"])?;
            }
        }
        for workload in &deployed {
            step.say(&format!("waiting for {}/{}", workload.namespace, workload.name));
            let timeout = format!("--timeout={}s", ROLL_OUT.as_secs());
            workload.rollout(cluster, &["status", &timeout])?;
        }
        step.say("waiting for VMs to be admitted");
        admitted(cluster, &root)
    })
}

/// The API server's admission policies know of a definition only some seconds after it is established: until then whoever
/// makes a VM is turned away.
fn admitted(cluster: &Cluster, root: &Path) -> Result<()> {
    let sample = root.join(SAMPLE);
    let manifest = fs::read_to_string(&sample)
        .with_context(|| format!("read the manifest {}", sample.display()))?;
    cluster.wait_until("a VM would be admitted", ADMITTED, || {
        let create = cluster.kubectl_run(["create", "--dry-run=server", "-f", "-"]);
        create.input(manifest.as_str()).deadline(Duration::from_secs(20)).output().map(|_| true)
    })
}

/// Applies manifests on the server's side and returns the objects.
fn apply(cluster: &Cluster, manifests: &str) -> Result<Vec<Value>> {
    let text = cluster
        .kubectl_run(["apply", "--server-side", "--force-conflicts", "-o", "json", "-f", "-"])
        .input(manifests)
        .deadline(Duration::from_secs(120))
        .output()?;
    objects(&text)
}

/// The objects of kubectl's answer: one, or a list.
fn objects(text: &str) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        let mut value = value.context("read the applied objects")?;
        match value["items"].take() {
            Value::Array(items) => found.extend(items),
            _ => found.push(value),
        }
    }
    Ok(found)
}

fn established(cluster: &Cluster, definitions: &[Value]) -> Result<()> {
    let names: Vec<String> = definitions
        .iter()
        .filter(|object| object["kind"] == "CustomResourceDefinition")
        .filter_map(|object| Some(format!("crd/{}", object["metadata"]["name"].as_str()?)))
        .collect();
    if names.is_empty() {
        bail!("{} defines no resource", FOLDERS[0]);
    }
    cluster
        .kubectl_run(["wait", "--for=condition=Established", "--timeout", ESTABLISHED])
        .args(names)
        .deadline(Duration::from_secs(90))
        .status()
}

/// Something that is rolled out.
#[derive(Debug, PartialEq, Eq)]
struct Workload {
    kind: String,
    namespace: String,
    name: String,
}

impl Workload {
    fn of(object: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let kind = text(&object["kind"])?;
        let rolled = ["Deployment", "DaemonSet", "StatefulSet"].contains(&kind.as_str());
        let meta = &object["metadata"];
        rolled.then_some(())?;
        Some(Self { kind, namespace: text(&meta["namespace"])?, name: text(&meta["name"])? })
    }

    fn rollout(&self, cluster: &Cluster, words: &[&str]) -> Result<()> {
        cluster
            .kubectl_run(["-n", &self.namespace, "rollout"])
            .args(words)
            .arg(format!("{}/{}", self.kind, self.name))
            .deadline(ROLL_OUT + Duration::from_secs(30))
            .status()
            .with_context(|| format!("roll out {} in {}", self.name, self.namespace))
    }
}

fn workloads(cluster: &Cluster) -> Result<Vec<Workload>> {
    let all = cluster.kubectl_json(["get", "deployments,daemonsets,statefulsets", "-A"])?;
    Ok(all["items"].as_array().into_iter().flatten().filter_map(Workload::of).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_repositorys_images_are_renamed() {
        let cases = [
            ("image: localhost/neonvm-runner:local\n", "image: r.example/x/neonvm-runner:v2\n"),
            (
                "\"localhost/a:local\", \"localhost/b:local\"",
                "\"r.example/x/a:v2\", \"r.example/x/b:v2\"",
            ),
            ("localhost/a:locality", "localhost/a:locality"),
            ("localhost/a:other", "localhost/a:other"),
            ("elsewhere/a:local", "elsewhere/a:local"),
            ("localhost/a", "localhost/a"),
        ];
        for (text, wanted) in cases {
            assert_eq!(rename_images(text, "r.example/x", "v2"), wanted);
        }
    }

    #[test]
    fn folders_are_rendered_in_order_as_documents_of_their_own() {
        let root = std::env::temp_dir().join(format!("neonvm-render-{}", std::process::id()));
        for (folder, file, text) in [
            ("b", "1.yaml", "---\nkind: B\n"),
            ("a", "2.yaml", "kind: Namespace"),
            ("a", "1.yaml", "kind: A1"),
        ] {
            fs::create_dir_all(root.join(folder)).unwrap();
            fs::write(root.join(folder).join(file), text).unwrap();
        }
        let text = render_folders(&root, &["a", "b"]).unwrap();
        let wanted = "---\n# a/2.yaml\nkind: Namespace\n---\n# a/1.yaml\nkind: A1\n---\n# b/1.yaml\nkind: B\n";
        assert_eq!(text, wanted);
        fs::create_dir(root.join("empty")).unwrap();
        assert!(render_folders(&root, &["empty"]).is_err());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn an_answer_is_a_list_or_single_objects() {
        let list = r#"{"kind":"List","items":[{"kind":"A"},{"kind":"B"}]}"#;
        assert_eq!(objects(list).unwrap(), [json!({"kind": "A"}), json!({"kind": "B"})]);
        assert_eq!(objects("{\"kind\":\"A\"}\n{\"kind\":\"B\"}").unwrap().len(), 2);
    }

    #[test]
    fn only_what_rolls_out_is_waited_for() {
        let meta = json!({"namespace": "ns", "name": "x"});
        assert!(Workload::of(&json!({"kind": "Deployment", "metadata": meta})).is_some());
        assert!(Workload::of(&json!({"kind": "Service", "metadata": meta})).is_none());
    }
}
