//! Where a scenario's VM lives: a namespace of its own with one VM, a Service in front of it and a client beside it.

use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::api::{Api, items};
use super::vm::{Shape, Vm};
use crate::cluster::Cluster;
use crate::command::Run;

/// A busy machine takes its time.
pub(super) const START: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
/// Every namespace of a scenario begins with it, and the VM in it is called like the namespace.
const PREFIX: &str = "e2e-";

/// A namespace that goes away with all that is in it, however the scenario ends.
pub(super) struct Space {
    pub(super) cluster: Cluster,
    pub(super) api: Api,
    name: String,
}

impl Space {
    /// An empty namespace, once the VMs of earlier scenarios are gone: their room and their CPU are needed.
    pub(super) fn new(cluster: &Cluster, name: &str) -> Result<Self> {
        let space = Self {
            cluster: cluster.clone(),
            api: Api::admin(cluster)?,
            name: format!("{PREFIX}{name}"),
        };
        let path = format!("/api/v1/namespaces/{}", space.name);
        space.api.delete(&path)?;
        cluster.wait_until("the last run's namespace is gone", SOON, || {
            Ok(space.api.find(&path)?.is_none())
        })?;
        cluster.wait_until("earlier scenarios' VMs are gone", SOON, || {
            let pods = items(space.api.get("/api/v1/pods?labelSelector=vm.neon.tech%2Fname")?);
            let ours = |pod: &Value| {
                pod["metadata"]["namespace"].as_str().is_some_and(|name| name.starts_with(PREFIX))
            };
            Ok(!pods.iter().any(ours))
        })?;
        cluster.kubectl(["create", "namespace", &space.name])?;
        cluster.wait_until("the namespace has its identity", SOON, || {
            let path = format!("/api/v1/namespaces/{}/serviceaccounts/default", space.name);
            Ok(space.api.find(&path)?.is_some())
        })?;
        Ok(space)
    }

    /// A namespace with a running VM that answers to SQL.
    pub(super) fn with_vm(cluster: &Cluster, name: &str, shape: &Shape<'_>) -> Result<(Self, Vm)> {
        let space = Self::new(cluster, name)?;
        let vm = space.start_vm(shape)?;
        Ok((space, vm))
    }

    /// Applies VM, Service and client as a user would, and waits until SQL is answered through the Service.
    pub(super) fn start_vm(&self, shape: &Shape<'_>) -> Result<Vm> {
        self.apply(&(shape.manifest(&self.name) + &service(&self.name) + &client(shape.node)))?;
        let vm = self.vm();
        vm.wait_running(&self.cluster)?;
        self.wait_for_sql()?;
        Ok(vm)
    }

    /// The namespace's VM.
    pub(super) fn vm(&self) -> Vm {
        Vm::new(&self.api, &self.name, &self.name)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn apply(&self, manifest: &str) -> Result<()> {
        self.kubectl_run(&["apply", "-f", "-"]).input(manifest).output().map(drop)
    }

    pub(super) fn kubectl_run(&self, words: &[&str]) -> Run {
        self.cluster.kubectl_run(["-n", &self.name].iter().chain(words))
    }

    pub(super) fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.kubectl_run(words).deadline(SOON).output()
    }

    /// Waits until the database answers through the Service.
    pub(super) fn wait_for_sql(&self) -> Result<()> {
        self.cluster.wait_until("SQL is answered through the Service", START, || {
            Ok(self.sql("select 40 + 2")? == "42")
        })
    }

    /// Asks the database as its superuser; one line per row, no headings.
    pub(super) fn sql(&self, query: &str) -> Result<String> {
        let host = format!("host={} user=postgres dbname=postgres connect_timeout=5", self.name);
        let words = ["exec", "client", "--", "psql", "-AtXq", "-v", "ON_ERROR_STOP=1", &host, "-c"];
        let run = self.kubectl_run(&words).arg(query).deadline(Duration::from_secs(30));
        run.output().map(|text| text.trim().to_owned())
    }

    /// Starts a command of the guest's shell as the database's user and does not wait for its end.
    pub(super) fn start_in_guest(&self, command: &str) -> Result<()> {
        // `cat` takes the row: Postgres fails with a broken pipe where the shell ends before the row was written.
        let quoted =
            format!("cat >/dev/null; setsid sh -c \"{command}\" >/dev/null 2>&1 </dev/null &");
        self.sql(&format!("copy (select 1) to program '{quoted}'")).map(drop)
    }

    /// A counter or size of a file such as `/proc/meminfo`; sizes in KiB.
    pub(super) fn guest_value(&self, file: &str, name: &str) -> Result<u64> {
        let text = self.sql(&format!("select pg_read_file('{file}')"))?;
        find_value(&text, name).with_context(|| format!("find {name} in the guest's {file}"))
    }

    /// Runs pgbench with work for the CPU alone; joining says whether every transaction and connection was fine.
    pub(super) fn pgbench(&self, clients: u32, seconds: u64) -> Background {
        let script = format!(
            "echo 'select sum(g) from generate_series(1, 20000) g;' >/tmp/load.sql && \
             exec pgbench -n -f /tmp/load.sql -c {clients} -j 1 -T {seconds} \
             'host={} user=postgres dbname=postgres'",
            self.name
        );
        let words = ["exec", "client", "--", "sh", "-c", &script];
        let run = self.kubectl_run(&words).deadline(Duration::from_secs(seconds + 60));
        Background(std::thread::spawn(move || {
            let text = run.output()?;
            ensure!(
                text.contains("number of failed transactions: 0 "),
                "pgbench tells of failures:\n{text}"
            );
            Ok(text)
        }))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // The next run removes it when this fails.
        let _best_effort = self.api.delete(&format!("/api/v1/namespaces/{}", self.name));
    }
}

/// A command beside the scenario.
pub(super) struct Background(JoinHandle<Result<String>>);

impl Background {
    pub(super) fn new(work: impl FnOnce() -> Result<String> + Send + 'static) -> Self {
        Self(std::thread::spawn(work))
    }

    /// Whether it has ended.
    pub(super) fn ended(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for its end; what it printed.
    pub(super) fn join(self) -> Result<String> {
        self.0.join().map_err(|_| anyhow!("the thread beside the scenario broke"))?
    }
}

fn service(vm: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {vm}}}\n\
         spec: {{selector: {{vm.neon.tech/name: {vm}}}, ports: [{{port: 5432}}]}}\n"
    )
}

/// A pod with psql and pgbench; on the VM's node, if that is given.
fn client(node: &str) -> String {
    let selector = node_selector(node);
    format!(
        r"---
apiVersion: v1
kind: Pod
metadata: {{name: client}}
spec:
  terminationGracePeriodSeconds: 0
  enableServiceLinks: false
  automountServiceAccountToken: false
{selector}  containers:
  - name: client
    image: localhost/client:local
    imagePullPolicy: Never
    command: [sh, -c, exec sleep 1000000]
    volumeMounts: [{{name: tmp, mountPath: /tmp}}]
  volumes: [{{name: tmp, emptyDir: {{}}}}]
"
    )
}

/// A line of a pod's or VM's specification, or nothing.
pub(super) fn node_selector(node: &str) -> String {
    if node.is_empty() {
        return String::new();
    }
    format!("  nodeSelector: {{kubernetes.io/hostname: {node}}}\n")
}

/// The number behind a name at the start of a line: `MemTotal:  123 kB`, `oom_kill 0`.
fn find_value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?;
        let rest = rest.strip_prefix(':').unwrap_or(rest);
        rest.starts_with(char::is_whitespace).then_some(())?;
        rest.split_whitespace().next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_name() {
        let text = "oom_kills 7\nMemTotal:      500 kB\noom_kill 3\n";
        assert_eq!(find_value(text, "MemTotal"), Some(500));
        assert_eq!(find_value(text, "oom_kill"), Some(3));
        assert_eq!(find_value(text, "Mem"), None);
    }

    #[test]
    fn manifests_are_yaml() {
        for text in [service("a"), client(""), client("n1")] {
            for document in text.split("---\n").skip(1) {
                let value: Value = serde_yaml::from_str(document).unwrap();
                assert!(value["spec"].is_object(), "{document}");
            }
        }
    }
}
