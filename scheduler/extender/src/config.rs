//! Flags and the policy file: what was written, and what it means.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use guest_units::Size;
use scheduler_ledger::{Lease, Moves, Scoring, Settings};
use scheduler_protocol::{MAX_CPU, MAX_MEMORY};
use serde::Deserialize;

/// What the user wrote.
#[derive(Debug, clap::Parser)]
#[command(name = "autoscale-scheduler", version, about = "Permits growth of VMs, and places them")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Subcommand>,
    /// Address of kube-scheduler's calls and the agents' permits (TLS).
    #[arg(long, env = "SCHEDULER_LISTEN", default_value = "0.0.0.0:10299")]
    listen: String,
    /// Address of /metrics (plain).
    #[arg(long, env = "SCHEDULER_METRICS_LISTEN", default_value = "0.0.0.0:9100")]
    metrics_listen: String,
    /// Address of /healthz and /readyz (plain).
    #[arg(long, env = "SCHEDULER_HEALTH_LISTEN", default_value = "0.0.0.0:9101")]
    health_listen: String,
    /// Policy file, JSON.
    #[arg(
        long,
        env = "SCHEDULER_CONFIG",
        default_value = "/etc/autoscale-scheduler/config/config.json"
    )]
    config: PathBuf,
    /// Folder with the server certificate: tls.crt, tls.key.
    #[arg(long, default_value = "/etc/autoscale-scheduler/tls")]
    tls_dir: PathBuf,
    /// Certificate authority of kube-scheduler's client certificate.
    #[arg(long, default_value = "/etc/autoscale-scheduler/ca/ca.crt")]
    ca_file: PathBuf,
    /// Key that signs approvals: Ed25519, PKCS#8.
    #[arg(long, default_value = "/etc/autoscale-scheduler/signing/key.pk8")]
    signing_key: PathBuf,
    /// Unix socket for `dump`.
    #[arg(
        long,
        env = "SCHEDULER_ADMIN_SOCKET",
        default_value = "/run/autoscale-scheduler/admin.sock",
        global = true
    )]
    pub(crate) admin_socket: PathBuf,
    /// Namespace of the lease.
    #[arg(long, env = "SCHEDULER_NAMESPACE", default_value = "kube-system")]
    namespace: String,
    /// Name of this pod, for the lease and for events.
    #[arg(long, env = "POD_NAME", default_value = "autoscale-scheduler")]
    pod_name: String,
    /// Address of this pod, at which agents and kube-scheduler reach whoever leads.
    #[arg(long, env = "POD_IP")]
    pod_ip: Option<IpAddr>,
    /// Node of this pod.
    #[arg(long, env = "NODE_NAME")]
    node_name: Option<String>,
    /// Seconds that a stop may take.
    #[arg(long, env = "SCHEDULER_GRACE_SECONDS", default_value_t = 5.0)]
    grace_seconds: f64,
}

/// What to do instead of running.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Subcommand {
    /// Prints the books of the running extender as JSON.
    Dump,
}

/// What it means.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) metrics_listen: SocketAddr,
    pub(crate) health_listen: SocketAddr,
    pub(crate) policy: Policy,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
    pub(crate) signing_key: PathBuf,
    pub(crate) admin_socket: PathBuf,
    pub(crate) namespace: String,
    pub(crate) pod_name: String,
    pub(crate) pod_ip: IpAddr,
    pub(crate) node_name: Option<String>,
    pub(crate) grace: Duration,
}

/// The policy file in its meaning.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Policy {
    /// Fraction of a node above which it is full for the metrics; and where VMs are moved, above which they leave it.
    pub(crate) watermark: f64,
    /// VMs with this scheduler are asked for by agents.
    pub(crate) scheduler_name: String,
    /// How long a call of the API server may take.
    pub(crate) call_limit: Duration,
    pub(crate) settings: Settings,
}

/// A step of growth by more than tenfold is a mistake.
const MOST_PERCENT: u32 = 1000;

/// The policy file as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PolicyFile {
    watermark: f64,
    scoring: ScoringFile,
    scheduler_name: String,
    #[serde(rename = "k8sCRUDTimeoutSeconds")]
    call_limit_seconds: f64,
    /// Not in the reference's file: without it leases are as [`Lease::default`] has them.
    #[serde(default)]
    lease: LeaseFile,
    /// Not in the reference's file: VMs are moved away from nodes above the watermark. Off as long as migrations are refused.
    #[serde(default)]
    moves: bool,
}

/// Leases of headroom. What is not written is as [`Lease`] says, where each field is explained.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LeaseFile {
    enabled: bool,
    cpu_percent: u32,
    memory_percent: u32,
    least: Size,
    keep_free_percent: u32,
    patience_seconds: f64,
}

impl Default for LeaseFile {
    fn default() -> Self {
        let Lease { cpu_percent, memory_percent, least, keep_free_percent, patience } =
            Lease::default();
        let patience_seconds = patience.as_secs_f64();
        let enabled = true;
        Self { enabled, cpu_percent, memory_percent, least, keep_free_percent, patience_seconds }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ScoringFile {
    min_usage_score: f64,
    max_usage_score: f64,
    score_peak: f64,
    randomize: bool,
    /// Ours: the reference's file has none.
    #[serde(default)]
    seed: u64,
    /// Ours as well: nodes that a scale-in would remove are filled last.
    #[serde(default)]
    scale_in: bool,
}

/// Everything that is wrong, one line each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Problems(Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl Problems {
    fn address(&mut self, flag: &str, text: &str) -> Option<SocketAddr> {
        text.parse().map_err(|err| self.0.push(format!("{flag} {text}: {err}"))).ok()
    }

    fn seconds(&mut self, name: &str, seconds: f64) -> Option<Duration> {
        let span = Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|span| (Duration::from_millis(1)..=Duration::from_secs(3600)).contains(span));
        if span.is_none() {
            self.0.push(format!("{name} {seconds}: must be above 0 and at most 3600"));
        }
        span
    }

    fn fraction(&mut self, name: &str, value: f64) {
        if !(0.0..=1.0).contains(&value) {
            self.0.push(format!("{name} {value}: must be from 0 to 1"));
        }
    }

    fn at_most(&mut self, name: &str, value: u32, most: u32) {
        if value > most {
            self.0.push(format!("{name} {value}: must be at most {most}"));
        }
    }

    fn lease(&mut self, file: LeaseFile) -> Option<Lease> {
        let LeaseFile {
            enabled,
            cpu_percent,
            memory_percent,
            least,
            keep_free_percent,
            patience_seconds,
        } = file;
        self.at_most("lease.cpuPercent", cpu_percent, MOST_PERCENT);
        self.at_most("lease.memoryPercent", memory_percent, MOST_PERCENT);
        self.at_most("lease.keepFreePercent", keep_free_percent, 100);
        if least.cpu > MAX_CPU || least.memory > MAX_MEMORY {
            self.0.push(format!("lease.least {least}: is larger than any machine"));
        }
        let patience = self.seconds("lease.patienceSeconds", patience_seconds)?;
        let lease = Lease { cpu_percent, memory_percent, least, keep_free_percent, patience };
        enabled.then_some(lease)
    }

    fn policy(&mut self, text: &str, path: &str) -> Option<Policy> {
        let file: PolicyFile =
            serde_json::from_str(text).map_err(|err| self.0.push(format!("{path}: {err}"))).ok()?;
        let before = self.0.len();
        let PolicyFile { watermark, scoring, scheduler_name, call_limit_seconds, lease, moves } =
            file;
        let ScoringFile { min_usage_score, max_usage_score, score_peak, randomize, seed, scale_in } =
            scoring;
        self.fraction("watermark", watermark);
        if watermark == 0.0 {
            self.0.push("watermark: must be above 0".to_owned());
        }
        self.fraction("scoring.minUsageScore", min_usage_score);
        self.fraction("scoring.maxUsageScore", max_usage_score);
        self.fraction("scoring.scorePeak", score_peak);
        if scheduler_name.is_empty() {
            self.0.push("schedulerName: must not be empty".to_owned());
        }
        let lease = self.lease(lease);
        let call_limit = self.seconds("k8sCRUDTimeoutSeconds", call_limit_seconds)?;
        let (empty, full, peak) = (min_usage_score, max_usage_score, score_peak);
        let scoring = Scoring { empty, full, peak, randomize, seed, scale_in };
        let moves = moves.then(|| Moves { watermark_thousandths: thousandths(watermark) });
        let settings = Settings { scoring, lease, moves, ..Settings::default() };
        (self.0.len() == before).then_some(Policy {
            watermark,
            scheduler_name,
            call_limit,
            settings,
        })
    }
}

/// Of a fraction that was found to be from 0 to 1.
fn thousandths(fraction: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0..=1000")]
    let thousandths = (fraction.clamp(0.0, 1.0) * 1000.0).round() as u32;
    thousandths
}

impl TryFrom<Args> for Config {
    type Error = Problems;

    fn try_from(args: Args) -> Result<Self, Problems> {
        let Args {
            command: _,
            listen,
            metrics_listen,
            health_listen,
            config,
            tls_dir,
            ca_file,
            signing_key,
            admin_socket,
            namespace,
            pod_name,
            pod_ip,
            node_name,
            grace_seconds,
        } = args;
        let mut problems = Problems::default();
        let listen = problems.address("--listen", &listen);
        let metrics_listen = problems.address("--metrics-listen", &metrics_listen);
        let health_listen = problems.address("--health-listen", &health_listen);
        let grace = problems.seconds("--grace-seconds", grace_seconds);
        if pod_ip.is_none() {
            problems.0.push("--pod-ip: is not given, nor is POD_IP".to_owned());
        }
        let path = config.display().to_string();
        let policy = match std::fs::read_to_string(&config) {
            Ok(text) => problems.policy(&text, &path),
            Err(err) => {
                problems.0.push(format!("--config {path}: {err}"));
                None
            }
        };
        match (listen, metrics_listen, health_listen, grace, policy, pod_ip) {
            (
                Some(listen),
                Some(metrics_listen),
                Some(health_listen),
                Some(grace),
                Some(policy),
                Some(pod_ip),
            ) => Ok(Self {
                listen,
                metrics_listen,
                health_listen,
                policy,
                certificate: tls_dir.join("tls.crt"),
                key: tls_dir.join("tls.key"),
                ca: ca_file,
                signing_key,
                admin_socket,
                namespace,
                pod_name,
                pod_ip,
                node_name,
                grace,
            }),
            _ => Err(problems),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    const GOOD: &str = r#"{"watermark": 0.9, "schedulerName": "autoscale-scheduler", "k8sCRUDTimeoutSeconds": 1,
        "scoring": {"minUsageScore": 0.5, "maxUsageScore": 0, "scorePeak": 0.8, "randomize": false}}"#;

    fn policy(text: &str) -> (Option<Policy>, String) {
        let mut problems = Problems::default();
        let policy = problems.policy(text, "file");
        (policy, problems.to_string())
    }

    #[test]
    fn the_shipped_policy_is_read() {
        let (policy, problems) = policy(GOOD);
        assert_eq!(problems, "");
        assert_eq!(policy.unwrap().settings, Settings::default());
        let manifest = include_str!("../deploy/config.yaml");
        let from = manifest.find("config.json: |").unwrap();
        let block: String = manifest[from..]
            .lines()
            .skip(1)
            .take_while(|line| line.starts_with("    ") || line.is_empty())
            .collect();
        let (policy, problems) = self::policy(&block);
        assert_eq!(problems, "");
        assert!(policy.is_some());
    }

    #[test]
    fn wrong_policies_are_refused_with_the_field() {
        let table = [
            ("0.9", "0", "watermark: must be above 0"),
            ("0.8", "1.5", "scoring.scorePeak 1.5: must be from 0 to 1"),
            ("\"autoscale-scheduler\"", "\"\"", "schedulerName: must not be empty"),
            ("Seconds\": 1", "Seconds\": 0", "k8sCRUDTimeoutSeconds 0: must be above 0"),
            (
                "\"watermark\"",
                "\"reconcileWorkers\": 16, \"watermark\"",
                "unknown field `reconcileWorkers`",
            ),
        ];
        for (from, to, expected) in table {
            let (policy, problems) = policy(&GOOD.replace(from, to));
            assert!(policy.is_none() && problems.contains(expected), "{to}: {problems}");
        }
    }

    #[test]
    fn leases_are_tuned_and_disabled_field_by_field() {
        let lease = |object: &str| {
            let text = GOOD.replacen('{', &format!("{{\"lease\": {object}, "), 1);
            let (policy, problems) = policy(&text);
            policy.map(|policy| policy.settings.lease).ok_or(problems)
        };
        let default = Lease::default();
        assert_eq!(lease("{}"), Ok(Some(default.clone())));
        assert_eq!(lease(r#"{"enabled": false}"#), Ok(None));
        let tuned = r#"{"cpuPercent": 100, "memoryPercent": 0, "keepFreePercent": 20,
            "least": {"vCPUs": "500m", "mem": "2Gi"}, "patienceSeconds": 12.5}"#;
        let least =
            Size { cpu: guest_units::MilliCpu(500), memory: guest_units::Bytes::from_gib(2) };
        let patience = Duration::from_millis(12_500);
        let expected =
            Lease { cpu_percent: 100, memory_percent: 0, least, keep_free_percent: 20, patience };
        assert_eq!(lease(tuned), Ok(Some(expected)));
        let table = [
            (r#"{"cpuPercent": 1001}"#, "lease.cpuPercent 1001: must be at most 1000"),
            (r#"{"memoryPercent": 1001}"#, "lease.memoryPercent 1001: must be at most 1000"),
            (r#"{"keepFreePercent": 101}"#, "lease.keepFreePercent 101: must be at most 100"),
            (r#"{"patienceSeconds": 0}"#, "lease.patienceSeconds 0: must be above 0"),
            (r#"{"least": {"vCPUs": 9999, "mem": "1Gi"}}"#, "is larger than any machine"),
            (r#"{"cpuPercent": -1}"#, "invalid value"),
            (r#"{"percent": 1}"#, "unknown field `percent`"),
        ];
        for (object, expected) in table {
            let problems = lease(object).unwrap_err();
            assert!(problems.contains(expected), "{object}: {problems}");
            assert_eq!(problems.lines().count(), 1, "{problems}");
        }
    }

    #[test]
    fn vms_are_moved_only_where_the_file_says_so() {
        let moves = |text: &str| {
            let (policy, problems) = policy(&GOOD.replacen('{', text, 1));
            policy.map(|policy| policy.settings.moves).ok_or(problems)
        };
        assert_eq!((moves("{"), moves("{\"moves\": false, ")), (Ok(None), Ok(None)));
        let expected = Some(Moves { watermark_thousandths: 900 });
        assert_eq!(moves("{\"moves\": true, "), Ok(expected));
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let args = Args::parse_from([
            "x",
            "--listen",
            "nowhere",
            "--grace-seconds=-1",
            "--config",
            "/does/not/exist",
        ]);
        let problems = Config::try_from(args).unwrap_err().to_string();
        assert_eq!(problems.lines().count(), 4, "{problems}");
    }
}
