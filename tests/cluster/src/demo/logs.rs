//! What the system's parts say: their logs, fetched when the load is over, as the events a time line is built from; and the
//! agent's decisions.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use guest_units::{Bytes, Size};
use serde_json::Value;

use super::recording::{At, Decision};
use super::{NAMESPACE, VM};
use crate::cluster::Cluster;

const LIMIT: Duration = Duration::from_secs(60);

/// Who wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Agent,
    Scheduler,
    Controller,
    Runner,
}

impl Part {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Scheduler => "scheduler",
            Self::Controller => "controller",
            Self::Runner => "runner",
        }
    }

    /// Whose logs these are, as kubectl selects them.
    fn selector(self, pod: &str) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Agent => &["-n", "kube-system", "-l", "name=autoscaler-agent"],
            Self::Scheduler => {
                &["-n", "kube-system", "-l", "name=autoscale-scheduler", "-c", "extender"]
            }
            Self::Controller => &["-n", "neonvm-system", "-l", "control-plane=controller"],
            Self::Runner => &["-n", NAMESPACE, pod, "-c", "neonvm-runner"],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The guest's word that a request for a permit was decided from: a sample, or an ask.
    Demanded,
    PermitAsked,
    PermitDecided,
    PermitAnswered,
    VmPatched,
    OrderSent,
    PlugStarted,
    PlugDone,
    OrderDone,
    GuestConfirmed,
}

impl Kind {
    /// All that have a line of their own.
    const LOGGED: [(Self, &'static str); 9] = [
        (Self::PermitAsked, "permit asked"),
        (Self::PermitDecided, "permit decided"),
        (Self::PermitAnswered, "permit answered"),
        (Self::VmPatched, "vm patched"),
        (Self::OrderSent, "order sent"),
        (Self::PlugStarted, "plug started"),
        (Self::PlugDone, "plug done"),
        (Self::OrderDone, "order done"),
        (Self::GuestConfirmed, "guest confirmed"),
    ];

    fn of(message: &str) -> Option<Self> {
        Self::LOGGED.iter().find(|(_, text)| *text == message).map(|(kind, _)| *kind)
    }

    /// The message in the log.
    pub(crate) fn message(self) -> &'static str {
        Self::LOGGED
            .iter()
            .find(|(kind, _)| *kind == self)
            .map_or("guest demanded", |(_, text)| text)
    }
}

/// One line of a log that tells of the VM's size.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) at: At,
    pub(crate) part: Part,
    pub(crate) kind: Kind,
    pub(crate) generation: u64,
    /// The memory that it is about, where it is about memory.
    pub(crate) memory: Option<Bytes>,
}

/// Fetches all logs since a moment, keeps them in the folder, and returns the VM's events in the order of time.
pub(super) fn collect(cluster: &Cluster, pod: &str, since: At, out: &Path) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    for part in [Part::Agent, Part::Scheduler, Part::Controller, Part::Runner] {
        let text = cluster
            .kubectl_run(["logs", "--tail=-1", "--max-log-requests=20"])
            .arg(format!("--since-time={}", since.rfc3339()))
            .args(part.selector(pod))
            .deadline(LIMIT)
            .output()
            .with_context(|| format!("fetch the log of the {}", part.name()))?;
        let path = out.join(format!("{}.log", part.name()));
        fs::write(&path, &text).with_context(|| format!("write {}", path.display()))?;
        let told = text.lines().filter_map(|line| event(part, line));
        events.extend(told.flat_map(|(event, demand)| demand.into_iter().chain([event])));
    }
    events.sort_by(|a, b| a.at.0.total_cmp(&b.at.0));
    Ok(events)
}

/// Reads a line, with the demand that it says it was decided from; nothing when it is not one of the events of our VM.
fn event(part: Part, line: &str) -> Option<(Event, Option<Event>)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = &line["fields"];
    let kind = Kind::of(fields["message"].as_str()?)?;
    if fields["vm"] != VM || fields["namespace"] != NAMESPACE {
        return None;
    }
    let at = At::parse(line["timestamp"].as_str()?)?;
    let generation = fields["generation"].as_u64().unwrap_or_default();
    let event = Event { at, part, kind, generation, memory: memory(kind, fields) };
    let demand = fields["demand_age_ms"].as_f64().map(|age_ms| Event {
        at: At(at.0 - age_ms / 1000.0),
        kind: Kind::Demanded,
        ..event.clone()
    });
    Some((event, demand))
}

fn memory(kind: Kind, fields: &Value) -> Option<Bytes> {
    let about_memory = fields["resource"].is_null() || fields["resource"] == "memory";
    if !about_memory {
        return None;
    }
    let value = match kind {
        Kind::Demanded | Kind::PermitAsked => &fields["want_memory"],
        Kind::PermitAnswered => &fields["permit_memory"],
        Kind::PermitDecided => {
            let (_, memory) = fields["permit"].as_str()?.split_once('/')?;
            return memory.parse().ok();
        }
        Kind::VmPatched | Kind::OrderDone => &fields["memory"],
        Kind::OrderSent => &fields["wanted"],
        Kind::PlugStarted => &fields["to"],
        Kind::PlugDone => &fields["reached"],
        Kind::GuestConfirmed => &fields["plugged_memory"],
    };
    match value {
        Value::Number(bytes) => bytes.as_u64().map(Bytes),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// Reads a line of `autoscaler-agent why`.
pub(super) fn decision(line: &Value) -> Option<Decision> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let size = |value: &Value| serde_json::from_value::<Size>(value.clone()).ok();
    Some(Decision {
        at: At::parse(line["at"].as_str()?)?,
        from: size(&line["from"])?,
        to: size(&line["to"])?,
        rule: text(&line["rule"])?,
        outcome: text(&line["outcome"]).unwrap_or_default(),
        attempts: line["attempts"].as_u64().unwrap_or(1),
        inputs: inputs(&line["inputs"]),
    })
}

/// What differs from one decision to the next, in words.
fn inputs(inputs: &Value) -> String {
    let size = |name: &str| serde_json::from_value::<Size>(inputs[name].clone()).ok();
    let mut words = Vec::new();
    for (name, label) in [("demand", "demand"), ("permit", "permit"), ("veto", "veto")] {
        if let Some(size) = size(name) {
            words.push(format!("{label} {}", super::shown(size)));
        }
    }
    if let Ok(peak) = serde_json::from_value::<Bytes>(inputs["memoryPeak"].clone()) {
        words.push(format!("memory peak {}", super::memory(peak)));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use guest_units::MilliCpu;
    use serde_json::json;

    use super::*;

    fn line(fields: &Value) -> String {
        json!({"timestamp": "2026-11-24T02:00:00.500000Z", "level": "INFO", "target": "x", "fields": fields})
            .to_string()
    }

    #[test]
    fn each_part_names_its_memory_in_its_own_way() {
        let gib = 1_u64 << 30;
        let cases = [
            (Part::Agent, "permit asked", json!({"want_memory": gib})),
            (Part::Scheduler, "permit decided", json!({"permit": "250m/1Gi"})),
            (Part::Agent, "permit answered", json!({"permit_memory": gib})),
            (Part::Agent, "vm patched", json!({"memory": gib})),
            (Part::Controller, "order sent", json!({"resource": "memory", "wanted": "1Gi"})),
            (Part::Runner, "plug started", json!({"resource": "memory", "to": gib, "from": 1})),
            (Part::Runner, "plug done", json!({"resource": "memory", "reached": gib})),
            (Part::Controller, "order done", json!({"resource": "memory", "memory": "1Gi"})),
            (Part::Agent, "guest confirmed", json!({"plugged_memory": gib})),
        ];
        for (part, message, mut fields) in cases {
            fields["message"] = json!(message);
            fields["vm"] = json!("demo");
            fields["namespace"] = json!("default");
            fields["generation"] = json!(7);
            let (event, demand) = event(part, &line(&fields)).unwrap();
            assert_eq!(demand, None);
            assert_eq!(event.kind.message(), message);
            assert_eq!((event.memory, event.generation), (Some(Bytes(gib)), 7), "{message}");
        }
    }

    #[test]
    fn a_permit_is_asked_for_because_of_a_demand() {
        let fields = json!({"message": "permit asked", "vm": "demo", "namespace": "default",
            "generation": 7, "want_memory": 4096, "demand_age_ms": 250});
        let (asked, demand) = event(Part::Agent, &line(&fields)).unwrap();
        let demand = demand.unwrap();
        assert_eq!((demand.kind, demand.generation), (Kind::Demanded, 7));
        assert!((asked.at.since(demand.at) - 0.25).abs() < 1e-6);
    }

    #[test]
    fn other_lines_are_no_events() {
        let of = |vm: &str, message: &str| {
            line(&json!({"message": message, "vm": vm, "namespace": "default", "generation": 1}))
        };
        assert!(event(Part::Agent, &of("demo", "vm patched")).is_some());
        assert!(event(Part::Agent, &of("other", "vm patched")).is_none());
        assert!(event(Part::Agent, &of("demo", "guest vetoed")).is_none());
        assert!(event(Part::Agent, "thread panicked").is_none());
        let cpu = json!({"message": "plug done", "vm": "demo", "namespace": "default", "resource": "cpu", "reached": 500});
        assert_eq!(event(Part::Runner, &line(&cpu)).unwrap().0.memory, None);
    }

    #[test]
    fn decisions_are_read_with_their_reason() {
        let text = r#"{"at":"2026-11-24T02:00:00.5Z","from":{"vCPUs":"250m","mem":"512Mi"},"to":{"vCPUs":1,"mem":"512Mi"},"rule":"grow","inputs":{"demand":{"vCPUs":"700m","mem":"300Mi"},"veto":null},"outcome":"done","attempts":2}"#;
        let decision = super::decision(&serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!((decision.from.cpu, decision.to.cpu), (MilliCpu(250), MilliCpu(1000)));
        assert_eq!(decision.inputs, "demand 0.70 vCPU / 300 MiB");
        assert_eq!((decision.outcome.as_str(), decision.attempts), ("done", 2));
        assert!(super::decision(&json!({"error": "unknown"})).is_none());
    }
}
