//! What is asked of the cluster: VM objects, and the agents of their nodes.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use controller_api::VirtualMachine;
use guest_units::Size;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;

use crate::config::Scope;
use crate::kubectl::Kubectl;

/// The agent's own command, inside its pod.
const AGENT: &str = "/usr/bin/autoscaler-agent";
/// Full name: a bare one could mean the virtual machines of another system.
const VMS: &str = "virtualmachines.vm.neon.tech";

/// The cluster, seen through kubectl.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cluster<'a> {
    pub(crate) kubectl: Kubectl<'a>,
    pub(crate) agent_namespace: &'a str,
}

/// A VM as its node's agent sees it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Live {
    pub(crate) namespace: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) desired: Option<Size>,
    #[serde(default)]
    pub(crate) permit: Option<Size>,
    #[serde(default)]
    pub(crate) plugged: Option<Size>,
    #[serde(default)]
    pub(crate) used: Option<Size>,
}

#[derive(Deserialize)]
struct List<T> {
    items: Vec<T>,
}

impl Cluster<'_> {
    /// One VM.
    pub(crate) fn vm(&self, name: &str, scope: &Scope) -> Result<VirtualMachine> {
        let mut call = vec!["get", VMS, name, "--output=json"];
        call.extend(scope.flags());
        let out = self.kubectl.output(&call).context(
            "read the VM (`kubectl get neonvm -A` lists all; `-n` names another namespace)",
        )?;
        serde_json::from_slice(&out).context("understand the VM object")
    }

    /// All VMs of a scope, by namespace and name.
    pub(crate) fn vms(&self, scope: &Scope) -> Result<Vec<VirtualMachine>> {
        let mut call = vec!["get", VMS, "--output=json"];
        call.extend(scope.flags());
        let out = self.kubectl.output(&call).context("list the VMs")?;
        let mut vms = serde_json::from_slice::<List<VirtualMachine>>(&out)
            .context("understand the VMs")?
            .items;
        vms.sort_by(|a, b| {
            let key =
                |vm: &VirtualMachine| (vm.metadata.namespace.clone(), vm.metadata.name.clone());
            key(a).cmp(&key(b))
        });
        Ok(vms)
    }

    /// Running agent pods, by node.
    pub(crate) fn agents(&self) -> Result<BTreeMap<String, String>> {
        let namespace = self.agent_namespace;
        let call = ["get", "pods", "--namespace", namespace, "--selector=name=autoscaler-agent"];
        let call =
            [&call[..], &["--field-selector=status.phase=Running", "--output=json"]].concat();
        let out = self.kubectl.output(&call).context("list the agents' pods")?;
        let pods = serde_json::from_slice::<List<Pod>>(&out).context("understand the pods")?.items;
        Ok(agents_by_node(pods))
    }

    /// The agent pod of a node.
    pub(crate) fn agent(&self, node: &str) -> Result<String> {
        let Some(pod) = self.agents()?.remove(node) else {
            bail!(
                "no agent runs on node {node}: see `kubectl get pods -n {} -l name=autoscaler-agent -o wide`",
                self.agent_namespace
            );
        };
        Ok(pod)
    }

    /// What an agent's command prints.
    pub(crate) fn ask_agent(&self, pod: &str, command: &[&str]) -> Result<Vec<u8>> {
        let namespace = self.agent_namespace;
        let call = ["exec", "--namespace", namespace, pod, "--", AGENT];
        let call = [&call[..], command].concat();
        let out = self.kubectl.output(&call);
        out.with_context(|| {
            format!(
                "ask the agent {pod} (needs the right to create pods/exec in namespace {namespace})"
            )
        })
    }

    /// All VMs of an agent's node.
    pub(crate) fn live(&self, pod: &str) -> Result<Vec<Live>> {
        let out = self.ask_agent(pod, &["top"])?;
        json_lines(&out).context("understand the agent's answer (is it of another version?)")
    }
}

fn agents_by_node(pods: Vec<Pod>) -> BTreeMap<String, String> {
    pods.into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter_map(|pod| Some((pod.spec?.node_name?, pod.metadata.name?)))
        .collect()
}

/// Reads one value of each line.
pub(crate) fn json_lines<T: for<'de> Deserialize<'de>>(text: &[u8]) -> serde_json::Result<Vec<T>> {
    serde_json::Deserializer::from_slice(text).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_agent_that_is_being_replaced_is_not_asked() {
        let pod = |name: &str, node: Option<&str>, gone: Option<&str>| {
            serde_json::from_value::<Pod>(json!({
                "metadata": { "name": name, "deletionTimestamp": gone },
                "spec": { "nodeName": node, "containers": [] },
            }))
            .unwrap()
        };
        let pods = vec![
            pod("old", Some("n1"), Some("2025-01-01T00:00:00Z")),
            pod("new", Some("n1"), None),
            pod("other", Some("n2"), None),
            pod("waiting", None, None),
        ];
        let agents: Vec<_> = agents_by_node(pods).into_iter().collect();
        let expected = [("n1", "new"), ("n2", "other")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(agents, expected);
    }

    #[test]
    fn an_agents_lines_are_read() {
        let text = br#"{"namespace":"default","name":"a","desired":{"vCPUs":"250m","mem":"1Gi"}}
            {"namespace":"default","name":"b","used":null,"something":"new"}"#;
        let lines: Vec<Live> = json_lines(text).unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].desired.unwrap().to_string(), "250m/1Gi");
        assert_eq!(lines[1].used, None);
        assert!(json_lines::<Live>(b"oops").is_err());
        assert!(json_lines::<Live>(b"").unwrap().is_empty());
    }
}
