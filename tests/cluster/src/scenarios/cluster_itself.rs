//! Scenarios that need the cluster alone: it is a real one, it mends, and it leaves nothing behind.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Needs, Scenario};
use crate::cluster::Cluster;
use crate::down;

/// The name of the scenario that takes the cluster away.
pub(super) const DOWN: &str = "down leaves nothing behind";

/// The first and the last scenarios of a run.
pub(super) fn scenarios() -> [Vec<Scenario>; 2] {
    let scenario = |name, run| Scenario {
        name,
        needs: Needs::Cluster,
        deadline: Duration::from_secs(300),
        run,
    };
    [
        vec![
            scenario("pods reach each other and a Service across nodes", reach),
            scenario("a pod is resized in place", resize),
            scenario(
                "a kubelet that was killed starts again and its pods live on",
                kubelet_returns,
            ),
        ],
        vec![scenario(DOWN, taken_away)],
    ]
}

const POD_START: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);

/// A namespace that is removed with all that is in it, however the scenario ends.
struct Namespace<'a> {
    cluster: &'a Cluster,
    name: &'static str,
}

impl<'a> Namespace<'a> {
    fn new(cluster: &'a Cluster, name: &'static str) -> Result<Self> {
        cluster
            .kubectl(["delete", "namespace", name, "--ignore-not-found"])
            .context("remove the last run's namespace")?;
        cluster.kubectl(["create", "namespace", name])?;
        cluster.wait_until("the namespace has its identity", SOON, || {
            Ok(cluster.kubectl_run(["-n", name, "get", "serviceaccount", "default"]).succeeds())
        })?;
        Ok(Self { cluster, name })
    }

    fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.cluster.kubectl(["-n", self.name].iter().chain(words))
    }

    fn json(&self, words: &[&str]) -> Result<Value> {
        self.cluster.kubectl_json(["-n", self.name].iter().chain(words))
    }

    fn apply(&self, manifest: &str) -> Result<()> {
        let run = self.cluster.kubectl_run(["-n", self.name, "apply", "-f", "-"]);
        run.input(manifest).output().map(drop)
    }

    fn ready(&self, pods: &[&str]) -> Result<()> {
        let timeout = format!("--timeout={}s", POD_START.as_secs());
        self.cluster
            .kubectl_run(["-n", self.name, "wait", "--for=condition=Ready", &timeout])
            .args(pods.iter().map(|pod| format!("pod/{pod}")))
            .deadline(POD_START + SOON)
            .output()
            .map(drop)
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // The next run removes it when this fails.
        let _best_effort = self.kubectl(&["delete", "namespace", self.name, "--wait=false"]);
    }
}

/// A pod on a node that runs a command of the shell.
fn pod(name: &str, node: &str, command: &str, resources: &str) -> String {
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: localhost/busybox:local
    imagePullPolicy: Never
    command: [sh, -c, "{command}"]
    resources: {resources}
"#
    )
}

const SERVER: &str = "mkdir -p /www; hostname > /www/index.html; exec httpd -f -p 8080 -h /www";
const SLEEP: &str = "exec sleep 1000000";

fn reach(cluster: &Cluster) -> Result<()> {
    let space = Namespace::new(cluster, "scenario-reach")?;
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
                   spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}\n";
    let pods = pod("server", "n1", SERVER, "{}") + &pod("client", "n2", SLEEP, "{}");
    space.apply(&(pods + service))?;
    space.ready(&["server", "client"])?;
    let server = space.json(&["get", "pod", "server"])?;
    let address = server["status"]["podIP"].as_str().context("the server has an address")?;
    for url in [format!("http://{address}:8080/"), "http://web/".to_owned()] {
        // The first look-ups may come before kube-proxy and DNS know the Service.
        cluster.wait_until(&format!("{url} answers on the other node"), SOON, || {
            let words = ["exec", "client", "--", "wget", "-qO-", &url];
            Ok(space.kubectl(&words)?.trim() == "server")
        })?;
    }
    Ok(())
}

fn resize(cluster: &Cluster) -> Result<()> {
    const BEFORE: &str =
        "{requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 200m, memory: 128Mi}}";
    const AFTER: &str = r#"{"spec":{"containers":[{"name":"c","resources":
        {"requests":{"cpu":"150m","memory":"96Mi"},"limits":{"cpu":"300m","memory":"192Mi"}}}]}}"#;
    let space = Namespace::new(cluster, "scenario-resize")?;
    space.apply(&pod("grows", "n1", SLEEP, BEFORE))?;
    space.ready(&["grows"])?;
    space.kubectl(&["patch", "pod", "grows", "--subresource", "resize", "-p", AFTER])?;
    cluster.wait_until("the kubelet has allocated what was asked", SOON, || {
        let pod = space.json(&["get", "pod", "grows"])?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["restartCount"] == 0, "the container was restarted");
        let (allocated, actual) = (&status["allocatedResources"], &status["resources"]["limits"]);
        Ok(allocated["cpu"] == "150m"
            && allocated["memory"] == "96Mi"
            && actual["cpu"] == "300m"
            && actual["memory"] == "192Mi")
    })
}

fn kubelet_returns(cluster: &Cluster) -> Result<()> {
    let space = Namespace::new(cluster, "scenario-kubelet")?;
    space.apply(&pod("stays", "n2", SLEEP, "{}"))?;
    space.ready(&["stays"])?;
    let container = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    let before = container(&space.json(&["get", "pod", "stays"])?);
    cluster.kill("n2/kubelet")?;
    if cluster.complaint().is_none() {
        bail!("nobody noticed that a kubelet is gone");
    }
    cluster.restart("n2/kubelet")?;
    cluster.wait_until("the node serves its pods again", SOON, || {
        Ok(space.kubectl(&["exec", "stays", "--", "true"]).is_ok() && cluster.complaint().is_none())
    })?;
    let after = container(&space.json(&["get", "pod", "stays"])?);
    ensure!(before == after, "the pod's container was replaced: {before} by {after}");
    Ok(())
}

fn taken_away(cluster: &Cluster) -> Result<()> {
    let layout = cluster.layout();
    ensure!(!down::leftovers(layout)?.is_empty(), "a running cluster shows nothing of itself");
    down::down(layout)?;
    let left = down::leftovers(layout)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
