//! `kubectl vm why NAME`: the decisions about a VM's size, from the agent of its node.

use std::io::Write;

use anyhow::{Context as _, Result, bail};
use controller_api::{VirtualMachine, annotations, names};
use guest_units::Size;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::cluster::{Cluster, json_lines};
use crate::config::Scope;
use crate::table::{align, clean, size};

/// One decision, as the agent tells it. Unknown fields are for `--json`.
#[derive(Debug, Deserialize)]
struct Decision {
    at: String,
    from: Size,
    to: Size,
    rule: String,
    #[serde(default)]
    inputs: Map<String, Value>,
    #[serde(default)]
    alternatives: Vec<Value>,
    outcome: String,
    #[serde(default)]
    attempts: u32,
}

pub(crate) fn run(
    cluster: &Cluster<'_>,
    name: &str,
    scope: &Scope,
    json: bool,
    out: &mut impl Write,
) -> Result<()> {
    let vm = cluster.vm(name, scope)?;
    let namespace = vm.metadata.namespace.as_deref().unwrap_or("default");
    let node = node_of(&vm)?;
    let agent = cluster.agent(node)?;
    let answer = cluster.ask_agent(&agent, &["why", namespace, name])?;
    if json {
        return out.write_all(&answer).context("write");
    }
    let decisions: Vec<Decision> =
        json_lines(&answer).context("understand the agent's answer (is it of another version?)")?;
    if decisions.is_empty() {
        writeln!(
            out,
            "No decision yet: the VM has had the size it needs since the agent on {node} started."
        )?;
    }
    for line in lines(&decisions) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// The node whose agent decides.
fn node_of(vm: &VirtualMachine) -> Result<&str> {
    let name = vm.metadata.name.as_deref().unwrap_or_default();
    if !annotations::is_autoscaled(vm) {
        bail!(
            "VM {name} is not autoscaled, so nothing decides about its size: `kubectl label neonvm {name} {}=true` changes that",
            names::LABEL_AUTOSCALING_ENABLED
        );
    }
    let status = vm.status.as_ref();
    match status.and_then(|status| status.node.as_deref()).filter(|node| !node.is_empty()) {
        Some(node) => Ok(node),
        None => bail!(
            "VM {name} is on no node (phase {:?}), and decisions are made on its node: `kubectl describe neonvm {name}` shows what it waits for",
            status.map(|status| status.phase).unwrap_or_default().as_str()
        ),
    }
}

/// A line for each decision, with what it was decided from below it.
fn lines(decisions: &[Decision]) -> Vec<String> {
    if decisions.is_empty() {
        return Vec::new();
    }
    let titles = ["TIME", "FROM", "TO", "RULE", "OUTCOME"].map(str::to_owned).to_vec();
    let rows = std::iter::once(titles).chain(decisions.iter().map(row)).collect::<Vec<_>>();
    let mut aligned = align(&rows).into_iter();
    let mut lines: Vec<String> = aligned.next().into_iter().collect();
    for (line, decision) in aligned.zip(decisions) {
        lines.push(line);
        if !decision.inputs.is_empty() {
            let inputs: Vec<String> = decision
                .inputs
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| format!("{}={}", clean(name), text(value)))
                .collect();
            lines.push(format!("    from     {}", inputs.join("  ")));
        }
        lines.extend(decision.alternatives.iter().map(|it| format!("    not      {}", text(it))));
    }
    lines
}

fn row(decision: &Decision) -> Vec<String> {
    let Decision { at, from, to, rule, inputs: _, alternatives: _, outcome, attempts } = decision;
    let tries = if *attempts > 1 { format!(" (tried {attempts} times)") } else { String::new() };
    vec![clean(at), size(Some(*from)), size(Some(*to)), clean(rule), clean(outcome) + &tries]
}

/// A value as people write it: sizes short, `{size, because}` as a sentence.
fn text(value: &Value) -> String {
    if let Ok(it) = serde_json::from_value::<Size>(value.clone()) {
        return size(Some(it));
    }
    match value {
        Value::String(text) => clean(text),
        Value::Object(map) => match (map.get("size"), map.get("because")) {
            (Some(size), Some(because)) if map.len() == 2 => {
                format!("{}: {}", text(size), text(because))
            }
            _ => {
                let fields =
                    map.iter().map(|(name, value)| format!("{}={}", clean(name), text(value)));
                fields.collect::<Vec<_>>().join(" ")
            }
        },
        other => clean(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vm(labels: &Value, status: &Value) -> VirtualMachine {
        serde_json::from_value(json!({
            "apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachine",
            "metadata": { "name": "db", "labels": labels },
            "spec": { "guest": {
                "cpus": { "min": 1, "max": 1, "use": 1 },
                "memorySlots": { "min": 1, "max": 1, "use": 1 },
                "rootDisk": { "image": "i" },
            } },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn the_node_decides_and_its_absence_is_explained() {
        let enabled = json!({ "autoscaling.neon.tech/enabled": "true" });
        assert_eq!(node_of(&vm(&enabled, &json!({ "node": "n1" }))).unwrap(), "n1");
        let waiting = vm(&enabled, &json!({ "phase": "Pending" }));
        assert!(node_of(&waiting).unwrap_err().to_string().contains("phase \"Pending\""));
        let plain = vm(&json!({}), &json!({ "node": "n1" }));
        assert!(node_of(&plain).unwrap_err().to_string().contains("not autoscaled"));
    }

    #[test]
    fn a_decision_is_told_in_full() {
        let answer = br#"
            {"at":"2025-09-23T10:11:12.345Z","from":{"vCPUs":"250m","mem":"1Gi"},"to":{"vCPUs":1,"mem":"3Gi"},
             "rule":"cpu: demand, memory: ask","inputs":{"demand":{"vCPUs":"900m","mem":"2500Mi"},"guestLive":true,"veto":null},
             "alternatives":[{"size":{"vCPUs":2,"mem":"3Gi"},"because":"above the bounds"},"wait"],
             "outcome":"done","generation":7}
            {"at":"2025-09-23T10:12:00.000Z","from":{"vCPUs":1,"mem":"3Gi"},"to":{"vCPUs":1,"mem":"2Gi"},
             "rule":"calm","outcome":"vetoed\u001b[0m","attempts":3}"#;
        let decisions: Vec<Decision> = json_lines(answer).unwrap();
        assert_eq!(
            lines(&decisions),
            [
                "TIME                      FROM      TO     RULE                      OUTCOME",
                "2025-09-23T10:11:12.345Z  250m/1Gi  1/3Gi  cpu: demand, memory: ask  done",
                "    from     demand=900m/2500Mi  guestLive=true",
                "    not      2/3Gi: above the bounds",
                "    not      wait",
                "2025-09-23T10:12:00.000Z  1/3Gi     1/2Gi  calm                      vetoed [0m (tried 3 times)",
            ]
        );
    }

    #[test]
    fn nothing_is_no_table() {
        assert!(lines(&[]).is_empty());
    }
}
