//! A VirtualMachine as scenarios see it: its manifest, its size, its conditions.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use guest_units::{Bytes, MilliCpu, Size};
use serde_json::{Value, json};

use super::api::Api;
use super::space::{START, node_selector};
use crate::cluster::Cluster;

/// One memory slot of every VM here.
pub(super) const SLOT: u64 = 128 << 20;

/// How a VM's manifest differs from the others'. CPU and slots are YAML, so that fractions stay unquoted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape<'a> {
    pub(super) cpus: &'a str,
    pub(super) slots: &'a str,
    /// Whether an agent decides about its size.
    pub(super) scaled: bool,
    /// Value of the bounds annotation, if it has one.
    pub(super) bounds: &'a str,
    /// The only node it may run on, if there is one.
    pub(super) node: &'a str,
}

impl Default for Shape<'_> {
    fn default() -> Self {
        Self {
            cpus: "{min: 0.25, use: 0.25, max: 1.5}",
            slots: "{min: 4, use: 4, max: 20}",
            scaled: false,
            bounds: "",
            node: "",
        }
    }
}

impl Shape<'_> {
    /// The manifest as a user would write it.
    pub(super) fn manifest(&self, name: &str) -> String {
        let Self { cpus, slots, scaled, bounds, node } = self;
        let label =
            if *scaled { "  labels: {autoscaling.neon.tech/enabled: \"true\"}\n" } else { "" };
        let annotation = if bounds.is_empty() {
            String::new()
        } else {
            format!("  annotations: {{autoscaling.neon.tech/bounds: '{bounds}'}}\n")
        };
        let selector = node_selector(node);
        format!(
            r"---
apiVersion: vm.neon.tech/v1
kind: VirtualMachine
metadata:
  name: {name}
{label}{annotation}spec:
  schedulerName: autoscale-scheduler
  terminationGracePeriodSeconds: 30
{selector}  guest:
    cpus: {cpus}
    memorySlotSize: 128Mi
    memorySlots: {slots}
    rootDisk: {{image: localhost/vm-postgres:local, imagePullPolicy: Never}}
    ports: [{{name: postgres, port: 5432}}]
"
        )
    }
}

/// A size in thousandths of a CPU and memory slots.
pub(super) fn size(milli: u32, slots: u64) -> Size {
    Size { cpu: MilliCpu(milli), memory: Bytes(slots * SLOT) }
}

/// A VM of the cluster.
#[derive(Debug, Clone)]
pub(super) struct Vm {
    api: Api,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// What was read at one moment.
#[derive(Debug, Clone)]
pub(super) struct Seen(pub(super) Value);

impl Seen {
    pub(super) fn status(&self, field: &str) -> &str {
        self.0["status"][field].as_str().unwrap_or_default()
    }

    /// What the hypervisor shows.
    pub(super) fn plugged(&self) -> Result<Size> {
        let status = &self.0["status"];
        let read = || -> Result<Size> {
            Ok(Size {
                cpu: serde_json::from_value(status["cpus"].clone())?,
                memory: serde_json::from_value(status["memorySize"].clone())?,
            })
        };
        read().with_context(|| format!("read the size in {status}"))
    }

    /// What the specification asks for.
    pub(super) fn wanted(&self) -> Result<Size> {
        let guest = &self.0["spec"]["guest"];
        let slots = guest["memorySlots"]["use"].as_u64().context("read the slots in use")?;
        let cpu = serde_json::from_value(guest["cpus"]["use"].clone());
        Ok(Size { cpu: cpu.context("read the CPU in use")?, memory: Bytes(slots * SLOT) })
    }

    /// Status, reason and message of a condition; empty when it is not there.
    pub(super) fn condition(&self, kind: &str) -> (String, String, String) {
        let conditions = self.0["status"]["conditions"].as_array().into_iter().flatten();
        let found = conditions.into_iter().find(|condition| condition["type"] == kind);
        let text = |field| found.and_then(|it| it[field].as_str()).unwrap_or_default().to_owned();
        (text("status"), text("reason"), text("message"))
    }

    pub(super) fn restarts(&self) -> i64 {
        self.0["status"]["restartCount"].as_i64().unwrap_or(0)
    }
}

impl Vm {
    pub(super) fn new(api: &Api, namespace: &str, name: &str) -> Self {
        Self { api: api.clone(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The object's path at the API server.
    pub(super) fn path(&self) -> String {
        let Self { namespace, name, .. } = self;
        format!("/apis/vm.neon.tech/v1/namespaces/{namespace}/virtualmachines/{name}")
    }

    pub(super) fn see(&self) -> Result<Seen> {
        self.api.get(&self.path()).map(Seen)
    }

    /// The path of its present pod.
    pub(super) fn pod_path(&self) -> Result<String> {
        let seen = self.see()?;
        let pod = seen.status("podName");
        ensure!(!pod.is_empty(), "{} has no pod", self.name);
        Ok(format!("/api/v1/namespaces/{}/pods/{pod}", self.namespace))
    }

    /// Merges changes into the object, which must be accepted.
    pub(super) fn patch(&self, changes: &Value) -> Result<()> {
        let answer = self.api.patch(&self.path(), changes)?;
        ensure!(answer.status == 200, "the patch was refused: {}", answer.message());
        Ok(())
    }

    /// Asks for a size by hand.
    pub(super) fn resize(&self, size: Size) -> Result<()> {
        let slots = size.memory.0 / SLOT;
        let guest = json!({"cpus": {"use": size.cpu}, "memorySlots": {"use": slots}});
        self.patch(&json!({"spec": {"guest": guest}}))
    }

    pub(super) fn wait_running(&self, cluster: &Cluster) -> Result<()> {
        cluster.wait_until(&format!("{} is Running", self.name), START, || {
            let seen = self.see()?;
            if seen.status("phase") == "Running" && seen.condition("Available").0 == "True" {
                return Ok(true);
            }
            bail!("its status is {}", seen.0["status"]);
        })
    }

    /// Waits until the hypervisor shows what the condition asks for.
    pub(super) fn wait_plugged(
        &self,
        cluster: &Cluster,
        what: &str,
        limit: Duration,
        mut holds: impl FnMut(Size) -> bool,
    ) -> Result<Size> {
        let mut last = Size::default();
        cluster.wait_until(&format!("{} has {what}", self.name), limit, || {
            let seen = self.see()?;
            last = seen.plugged()?;
            if holds(last) {
                return Ok(true);
            }
            bail!("it has {last}; its conditions are {}", seen.0["status"]["conditions"]);
        })?;
        Ok(last)
    }

    /// Waits for exactly this size.
    pub(super) fn wait_size(&self, cluster: &Cluster, size: Size, limit: Duration) -> Result<()> {
        self.wait_plugged(cluster, &size.to_string(), limit, |plugged| plugged == size).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_yaml_with_unquoted_fractions() {
        let shape =
            Shape { scaled: true, bounds: r#"{"min": {}}"#, node: "n1", ..Shape::default() };
        let text = shape.manifest("a");
        let value: Value = serde_yaml::from_str(text.trim_start_matches("---\n")).unwrap();
        assert_eq!(value["spec"]["guest"]["cpus"]["min"], 0.25);
        assert_eq!(value["spec"]["nodeSelector"]["kubernetes.io/hostname"], "n1");
        assert_eq!(value["metadata"]["labels"]["autoscaling.neon.tech/enabled"], "true");
        let plain = Shape::default().manifest("b");
        let value: Value = serde_yaml::from_str(plain.trim_start_matches("---\n")).unwrap();
        assert_eq!(value["metadata"], json!({"name": "b"}));
    }

    #[test]
    fn an_object_is_read() {
        let seen = Seen(json!({
            "spec": {"guest": {"cpus": {"use": "500m"}, "memorySlots": {"use": 5}}},
            "status": {
                "cpus": "250m",
                "memorySize": "512Mi",
                "restartCount": 2,
                "conditions": [{"type": "Resized", "status": "False", "reason": "R", "message": "m"}],
            },
        }));
        assert_eq!(seen.plugged().unwrap(), size(250, 4));
        assert_eq!(seen.wanted().unwrap(), size(500, 5));
        assert_eq!(seen.condition("Resized"), ("False".into(), "R".into(), "m".into()));
        assert_eq!(seen.condition("Other").0, "");
        assert_eq!(seen.restarts(), 2);
        assert!(Seen(json!({})).plugged().is_err());
    }
}
