//! The configuration file: the reference's fields, plus `scaling.policy` and `scaling.headroom`.
//!
//! Unknown fields are refused. A field whose part does not exist here is checked, and refused where it asks for
//! something (clients for billing and scaling events).

use std::time::Duration;

use host_scaling::reference::ComputeUnit;
use host_scaling::{Headroom, Reference, Retries};
use serde_json::Value;

use super::Problems;
use super::policy::{Name, Policies};
use super::scaling::{defaults, headroom};
use super::section::Section;

/// What the file means.
#[derive(Debug, Clone)]
pub(crate) struct FileConfig {
    pub(crate) policies: Policies,
    /// How often the state of all VMs is looked at.
    pub(crate) refresh: Duration,
    pub(crate) guest: Guest,
    pub(crate) scheduler: Scheduler,
    pub(crate) vm: Vm,
}

/// The guest's side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guest {
    /// Vsock port of the guest's scaler.
    pub(crate) port: u32,
    pub(crate) response_timeout: Duration,
    pub(crate) connection_timeout: Duration,
    /// A VM whose guest was not heard for this long is stuck.
    pub(crate) unhealthy_after: Duration,
    /// The same at the start.
    pub(crate) startup_grace: Duration,
    /// More failures than this in the interval: stuck.
    pub(crate) failures: Rate,
}

/// The scheduler's side.
#[derive(Debug, Clone)]
pub(crate) struct Scheduler {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) request_timeout: Duration,
    pub(crate) failures: Rate,
}

/// The VM object's side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vm {
    pub(crate) request_timeout: Duration,
    pub(crate) failures: Rate,
}

/// A number of failures in an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) interval: Duration,
    pub(crate) threshold: u64,
}

impl FileConfig {
    /// Reads the file; all problems at once.
    pub(crate) fn parse(text: &str) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let value = match serde_json::from_str::<Value>(text) {
            Ok(value) => value,
            Err(err) => {
                problems.push(format!("the configuration file is not JSON: {err}"));
                return Err(problems);
            }
        };
        let mut root = Section::root(value, &mut problems);
        let config = Self::take(&mut root, &mut problems);
        root.end(&mut problems);
        if problems.0.is_empty() { Ok(config) } else { Err(problems) }
    }

    fn take(root: &mut Section, problems: &mut Problems) -> Self {
        let mut retries = Retries::default();
        let refresh = root.seconds("refereshStateIntervalSeconds", problems);
        let (default, headroom, mut reference) =
            scaling(root.section("scaling", problems), problems);
        billing(root.section("billing", problems), problems);
        scaling_events(root.section("scalingEvents", problems), problems);
        let guest =
            monitor(root.section("monitor", problems), (&mut retries, &mut reference), problems);
        metrics(root.section("metrics", problems), problems);
        let scheduler = scheduler(root.section("scheduler", problems), &mut retries, problems);
        let vm = neonvm(root.section("neonvm", problems), &mut retries, problems);
        if let Some(mut dump) = root.optional("dumpState", problems) {
            // The state is asked for by the subcommands instead: there is no listener for it.
            dump.port("port", problems);
            dump.seconds("timeoutSeconds", problems);
            dump.end(problems);
        }
        let policies = Policies { default, headroom, reference, retries };
        Self { policies, refresh, guest, scheduler, vm }
    }
}

fn scaling(mut section: Section, problems: &mut Problems) -> (Name, Headroom, Reference) {
    let mut part = section.section("computeUnit", problems);
    let (cpu, memory) = (part.cpu("vCPUs", problems), part.bytes("mem", problems));
    for (key, zero) in
        [("vCPUs", cpu.is_none_or(|cpu| cpu.0 == 0)), ("mem", memory.is_none_or(|mem| mem.0 == 0))]
    {
        if zero {
            problems.push(format!("{} must be there and above zero", part.name(key)));
        }
    }
    part.end(problems);
    let unit = match (cpu, memory) {
        (Some(cpu), Some(memory)) => ComputeUnit { cpu, memory },
        _ => ComputeUnit::SHIPPED,
    };
    let config = defaults(section.section("defaultConfig", problems), problems);
    let name = section.take("policy").map(|value| match value.as_str().and_then(Name::of) {
        Some(name) => name,
        None => {
            problems.push(format!("scaling.policy: {value} is not {}", Name::ALL));
            Name::default()
        }
    });
    let numbers = section.optional("headroom", problems);
    let headroom = headroom(numbers, problems);
    section.end(problems);
    (name.unwrap_or_default(), headroom, Reference { config, unit, ..Reference::default() })
}

fn billing(mut section: Section, problems: &mut Problems) {
    section.text("cpuMetricName", problems);
    section.text("activeTimeMetricName", problems);
    section.count("collectEverySeconds", problems);
    section.count("accumulateEverySeconds", problems);
    clients(&mut section, &["http", "s3", "azureBlob"], problems);
    section.end(problems);
}

fn scaling_events(mut section: Section, problems: &mut Problems) {
    section.nonzero_float("cuMultiplier", problems);
    section.nonzero_float("rereportThreshold", problems);
    section.text("regionName", problems);
    clients(&mut section, &["s3", "azureBlob"], problems);
    section.end(problems);
}

/// Nothing is sent in this release: a client that somebody configured would wait for ever.
fn clients(section: &mut Section, known: &[&str], problems: &mut Problems) {
    let Some(mut clients) = section.optional("clients", problems) else { return };
    for kind in known {
        if clients.take(kind).is_some() {
            problems.push(format!(
                "{}: sending events is not in this release; remove it",
                clients.name(kind)
            ));
        }
    }
    clients.end(problems);
}

fn monitor(
    mut section: Section,
    (retries, reference): (&mut Retries, &mut Reference),
    problems: &mut Problems,
) -> Guest {
    let port = u32::from(section.port("serverPort", problems));
    let response_timeout = section.seconds("responseTimeoutSeconds", problems);
    let connection_timeout = section.seconds("connectionTimeoutSeconds", problems);
    section.seconds("connectionRetryMinWaitSeconds", problems);
    let unhealthy_after = section.seconds("unhealthyAfterSilenceDurationSeconds", problems);
    let startup_grace = section.seconds("unhealthyStartupGracePeriodSeconds", problems);
    reference.silence = section.seconds("maxHealthCheckSequentialFailuresSeconds", problems);
    retries.veto_valid = section.seconds("retryDeniedDownscaleSeconds", problems);
    reference.requested_valid = section.seconds("requestedUpscaleValidSeconds", problems);
    retries.guest_failed = section.seconds("retryFailedRequestSeconds", problems);
    let failures = rate(&mut section, problems);
    section.end(problems);
    Guest { port, response_timeout, connection_timeout, unhealthy_after, startup_grace, failures }
}

fn metrics(mut section: Section, problems: &mut Problems) {
    for kind in ["system", "lfc"] {
        let mut part = section.section(kind, problems);
        part.port("port", problems);
        part.count("requestTimeoutSeconds", problems);
        part.count("secondsBetweenRequests", problems);
        part.end(problems);
    }
    section.end(problems);
}

fn scheduler(mut section: Section, retries: &mut Retries, problems: &mut Problems) -> Scheduler {
    let name = section.text("schedulerName", problems);
    let request_timeout = section.seconds("requestTimeoutSeconds", problems);
    retries.permit_every = section.seconds("requestAtLeastEverySeconds", problems);
    retries.permit_failed = section.seconds("retryFailedRequestSeconds", problems);
    retries.permit_denied = section.seconds("retryDeniedUpscaleSeconds", problems);
    let port = section.port("requestPort", problems);
    let failures = rate(&mut section, problems);
    section.end(problems);
    Scheduler { name, port, request_timeout, failures }
}

fn neonvm(mut section: Section, retries: &mut Retries, problems: &mut Problems) -> Vm {
    let request_timeout = section.seconds("requestTimeoutSeconds", problems);
    retries.patch_failed = section.seconds("retryFailedRequestSeconds", problems);
    let failures = rate(&mut section, problems);
    section.end(problems);
    Vm { request_timeout, failures }
}

fn rate(section: &mut Section, problems: &mut Problems) -> Rate {
    let mut part = section.section("maxFailedRequestRate", problems);
    let interval = part.seconds("intervalSeconds", problems);
    let threshold = match part.whole("threshold", problems).map(u64::try_from) {
        Some(Ok(threshold)) => threshold,
        _ => {
            problems
                .push(format!("{} must be a whole number, zero or above", part.name("threshold")));
            0
        }
    };
    part.end(problems);
    Rate { interval, threshold }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const SHIPPED: &str = include_str!("../../deploy/config.json");

    pub(crate) fn shipped() -> FileConfig {
        FileConfig::parse(SHIPPED).unwrap()
    }

    fn changed(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut value = serde_json::from_str(SHIPPED).unwrap();
        change(&mut value);
        FileConfig::parse(&value.to_string()).err().map(|problems| problems.0).unwrap_or_default()
    }

    #[test]
    fn the_shipped_file_is_valid_and_means_what_it_says() {
        let config = shipped();
        assert_eq!(config.refresh, Duration::from_secs(5));
        let Policies { default, headroom, reference, retries } = config.policies;
        assert_eq!(retries.permit_denied, Duration::from_secs(2));
        assert_eq!(retries.patch_failed, Duration::from_secs(5));
        assert_eq!((default, headroom), (Name::Headroom, Headroom::default()));
        assert_eq!((reference, retries), (Reference::default(), Retries::default()));
        assert_eq!((config.guest.port, config.scheduler.port), (10301, 10299));
        assert_eq!(config.scheduler.request_timeout, Duration::from_secs(2));
        assert_eq!(config.vm.failures, Rate { interval: Duration::from_secs(120), threshold: 2 });
    }

    #[test]
    fn the_manifest_carries_the_shipped_file() {
        let manifest = include_str!("../../deploy/10-config.yaml");
        let embedded: String = manifest
            .split("config.json: |\n")
            .nth(1)
            .unwrap()
            .lines()
            .map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line)))
            .collect();
        assert_eq!(embedded.trim_end(), SHIPPED.trim_end());
    }

    #[test]
    fn every_problem_names_its_field() {
        type Change = fn(&mut Value);
        let table: [(&str, Change, &str); 10] = [
            (
                "unknown policy",
                |v| v["scaling"]["policy"] = "magic".into(),
                "scaling.policy: \"magic\" is not \"headroom\" or \"reference\"",
            ),
            ("unknown field", |v| v["monitor"]["color"] = 1.into(), "monitor.color is not known"),
            (
                "zero",
                |v| v["neonvm"]["requestTimeoutSeconds"] = 0.into(),
                "neonvm.requestTimeoutSeconds must not be zero",
            ),
            (
                "zero interval",
                |v| v["refereshStateIntervalSeconds"] = 0.into(),
                "refereshStateIntervalSeconds must not be zero",
            ),
            (
                "text for a number",
                |v| v["metrics"]["lfc"]["port"] = "x".into(),
                "metrics.lfc.port: \"x\" is not a whole number",
            ),
            (
                "port too large",
                |v| v["scheduler"]["requestPort"] = 70000.into(),
                "scheduler.requestPort: 70000 is not a port",
            ),
            (
                "empty name",
                |v| v["scheduler"]["schedulerName"] = "".into(),
                "scheduler.schedulerName must not be empty",
            ),
            (
                "a client",
                |v| v["billing"]["clients"] = serde_json::json!({"http": {"url": "u"}}),
                "billing.clients.http: sending events is not in this release; remove it",
            ),
            (
                "a headroom number",
                |v| v["scaling"]["headroom"] = serde_json::json!({"cpuCalmSeconds": 0}),
                "scaling.headroom.cpuCalmSeconds: 0 is not between 0 and 86400",
            ),
            (
                "a default",
                |v| v["scaling"]["defaultConfig"]["memoryTotalFractionTarget"] = 0.into(),
                "scaling.defaultConfig.memoryTotalFractionTarget: 0 is not above 0 and below 1",
            ),
        ];
        for (name, change, expected) in table {
            assert_eq!(changed(change), [expected], "{name}");
        }
    }

    #[test]
    fn a_file_of_an_existing_installation_means_the_references_policy() {
        let mut value: Value = serde_json::from_str(SHIPPED).unwrap();
        value["scaling"]["policy"] = "reference".into();
        value["scaling"]["computeUnit"] = serde_json::json!({"vCPUs": "500m", "mem": "2Gi"});
        value["scaling"]["defaultConfig"]["memoryUsageFractionTarget"] = 0.5.into();
        value["monitor"]["requestedUpscaleValidSeconds"] = 7.into();
        let named = FileConfig::parse(&value.to_string()).unwrap().policies;
        drop(value["scaling"].as_object_mut().unwrap().remove("policy"));
        let absent = FileConfig::parse(&value.to_string()).unwrap().policies;
        for Policies { default, reference, .. } in [named, absent] {
            assert_eq!(default, Name::Reference);
            assert_eq!(reference.unit.cpu.0, 500);
            assert!((reference.config.memory_usage_fraction_target - 0.5).abs() < 1e-9);
            assert_eq!(reference.requested_valid, Duration::from_secs(7));
        }
    }

    #[test]
    fn an_empty_file_lists_everything_at_once() {
        let problems = FileConfig::parse("{}").unwrap_err();
        assert!(problems.0.len() > 40, "{problems}");
        assert!(problems.0.iter().any(|it| it == "scheduler.requestPort is missing"), "{problems}");
        assert_eq!(FileConfig::parse("{").unwrap_err().0.len(), 1);
    }
}
