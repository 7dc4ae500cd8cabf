//! What the user wrote ([`Args`]) and what it means ([`Config`]).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use controller_api::names;
use controller_api::vm::CpuScalingMode;

/// Makes VirtualMachine objects real.
#[derive(Debug, clap::Parser)]
#[command(name = "vm-controller", version)]
pub(crate) struct Args {
    /// Address of the metrics endpoint, `[HOST]:PORT`.
    #[arg(long, default_value = ":8080")]
    metrics_bind_address: String,
    /// Address of the health endpoint, `[HOST]:PORT`.
    #[arg(long, default_value = ":8081")]
    health_probe_bind_address: String,
    /// Wait for the leadership before doing anything; without it, it is taken at once.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    leader_elect: String,
    /// How long a silent leader stays the leader.
    #[arg(long, default_value = "15s")]
    leader_election_lease_duration: String,
    /// How long a leader that cannot renew goes on.
    #[arg(long, default_value = "10s")]
    leader_election_renew_deadline: String,
    /// How often the leadership is renewed or tried for.
    #[arg(long, default_value = "2s")]
    leader_election_retry_period: String,
    /// Writes to the API server at the same time.
    #[arg(long, default_value = "128")]
    concurrency_limit: String,
    /// How the CPUs of a VM come and go if its specification does not say: QmpScaling or SysfsScaling.
    #[arg(long, default_value = "QmpScaling")]
    default_cpu_scaling_mode: String,
    /// A replacement waits until the old pod is really gone.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    at_most_one_pod: String,
    /// What `enableAcceleration` asks for: `auto` (KVM if any node has it), `required` or `off`.
    #[arg(long, default_value = "auto")]
    acceleration: String,
    /// Seconds that a stop may take.
    #[arg(long, default_value = "10")]
    grace_seconds: String,
    /// Namespace of the controller.
    #[arg(long, env = "POD_NAMESPACE", default_value = names::SYSTEM_NAMESPACE)]
    namespace: String,
    /// Name of this process among the candidates for leadership.
    #[arg(long, env = "HOSTNAME", default_value = "vm-controller")]
    identity: String,
    /// Image of the runner.
    #[arg(long, env = "VM_RUNNER_IMAGE", default_value = "")]
    runner_image: String,
}

/// What `enableAcceleration` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acceleration {
    /// KVM if any node has it.
    Auto,
    /// KVM, or the VM waits.
    Required,
    /// Nothing.
    Off,
}

/// How the leadership is kept.
#[derive(Debug, Clone)]
pub(crate) struct Leadership {
    pub(crate) wait: bool,
    pub(crate) lease: Duration,
    pub(crate) renew_deadline: Duration,
    pub(crate) retry: Duration,
}

/// The configuration, in range, nothing parsed later.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) metrics: SocketAddr,
    pub(crate) health: SocketAddr,
    pub(crate) leadership: Leadership,
    pub(crate) concurrency: usize,
    pub(crate) cpu_scaling: CpuScalingMode,
    pub(crate) at_most_one_pod: bool,
    pub(crate) acceleration: Acceleration,
    pub(crate) grace: Duration,
    pub(crate) namespace: String,
    pub(crate) identity: String,
    pub(crate) runner_image: String,
}

/// Everything that is wrong, one line each.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<String>);

impl Problems {
    pub(crate) fn of(problem: String) -> Self {
        Self(vec![problem])
    }

    fn note<T>(&mut self, flag: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|problem| self.0.push(format!("{flag}: {problem}"))).ok()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| writeln!(f, "{}", problem.trim_end()))
    }
}

impl TryFrom<Args> for Config {
    type Error = Problems;

    fn try_from(args: Args) -> Result<Self, Problems> {
        let Args {
            metrics_bind_address,
            health_probe_bind_address,
            leader_elect,
            leader_election_lease_duration,
            leader_election_renew_deadline,
            leader_election_retry_period,
            concurrency_limit,
            default_cpu_scaling_mode,
            at_most_one_pod,
            acceleration,
            grace_seconds,
            namespace,
            identity,
            runner_image,
        } = args;
        let mut problems = Problems::default();
        let metrics = problems.note("--metrics-bind-address", address(&metrics_bind_address));
        let health =
            problems.note("--health-probe-bind-address", address(&health_probe_bind_address));
        let leadership = leadership(
            &mut problems,
            &leader_elect,
            &leader_election_lease_duration,
            &leader_election_renew_deadline,
            &leader_election_retry_period,
        );
        let concurrency = problems.note("--concurrency-limit", count(&concurrency_limit));
        let cpu_scaling =
            problems.note("--default-cpu-scaling-mode", scaling_mode(&default_cpu_scaling_mode));
        let at_most_one_pod = problems.note("--at-most-one-pod", boolean(&at_most_one_pod));
        let acceleration = problems.note("--acceleration", accelerate(&acceleration));
        let grace = problems.note("--grace-seconds", seconds(&grace_seconds));
        for (flag, value) in [("--namespace", &namespace), ("--identity", &identity)] {
            if value.is_empty() {
                problems.0.push(format!("{flag}: must not be empty"));
            }
        }
        if runner_image.is_empty() {
            problems.0.push("VM_RUNNER_IMAGE: must be set".into());
        }
        let whole = || {
            Some(Self {
                metrics: metrics?,
                health: health?,
                leadership: leadership?,
                concurrency: concurrency?,
                cpu_scaling: cpu_scaling?,
                at_most_one_pod: at_most_one_pod?,
                acceleration: acceleration?,
                grace: grace?,
                namespace,
                identity,
                runner_image,
            })
        };
        match whole() {
            Some(config) if problems.0.is_empty() => Ok(config),
            _ => Err(problems),
        }
    }
}

fn leadership(
    problems: &mut Problems,
    wait: &str,
    lease: &str,
    renew_deadline: &str,
    retry: &str,
) -> Option<Leadership> {
    let wait = problems.note("--leader-elect", boolean(wait));
    let lease = problems.note("--leader-election-lease-duration", duration(lease));
    let renew_deadline =
        problems.note("--leader-election-renew-deadline", duration(renew_deadline));
    let retry = problems.note("--leader-election-retry-period", duration(retry));
    let (wait, lease, renew_deadline, retry) = (wait?, lease?, renew_deadline?, retry?);
    if !(retry < renew_deadline && renew_deadline < lease) {
        let order = "retry period < renew deadline < lease duration must hold";
        problems.0.push(format!("--leader-election-*: {order}"));
        return None;
    }
    Some(Leadership { wait, lease, renew_deadline, retry })
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().map_err(|err| format!("{port:?} is not a port: {err}"))?;
        return Ok(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
    }
    text.parse().map_err(|err| format!("{text:?} is not an address: {err}"))
}

fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=10_000).contains(&count) => Ok(count),
        _ => Err(format!("{text:?} is not a number between 1 and 10000")),
    }
}

fn scaling_mode(text: &str) -> Result<CpuScalingMode, String> {
    match text {
        "QmpScaling" => Ok(CpuScalingMode::QmpScaling),
        "SysfsScaling" => Ok(CpuScalingMode::SysfsScaling),
        _ => Err(format!("{text:?} is neither QmpScaling nor SysfsScaling")),
    }
}

fn accelerate(text: &str) -> Result<Acceleration, String> {
    match text {
        "auto" => Ok(Acceleration::Auto),
        "required" => Ok(Acceleration::Required),
        "off" => Ok(Acceleration::Off),
        _ => Err(format!("{text:?} is none of auto, required, off")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{text:?} is not a number of seconds between 1 and 3600")),
    }
}

/// `90s`, `1m30s`, `500ms`: at least a millisecond, at most a day.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 15s or 1m30s");
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let count: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(wrong()),
        };
        total = total.saturating_add(unit.saturating_mul(count));
        rest = &rest[letters..];
    }
    if total.is_zero() || total > Duration::from_secs(86_400) {
        return Err(format!("{text:?} is not between 1ms and 24h"));
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn parse(args: &[&str]) -> Result<Config, String> {
        let image = args.iter().any(|arg| arg.starts_with("--runner-image"));
        let image = (!image).then_some(&"--runner-image=runner");
        let args = ["vm-controller"].iter().chain(image).chain(args);
        let args = Args::try_parse_from(args).map_err(|err| err.to_string())?;
        Config::try_from(args).map_err(|problems| problems.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_reference() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.metrics.port(), 8080);
        assert_eq!(config.health.port(), 8081);
        assert!(!config.leadership.wait);
        assert_eq!(config.leadership.lease, Duration::from_secs(15));
        assert_eq!(config.cpu_scaling, CpuScalingMode::QmpScaling);
        assert_eq!(config.acceleration, Acceleration::Auto);
        assert_eq!(config.namespace, "neonvm-system");
    }

    #[test]
    fn flags_are_read_as_the_reference_writes_them() {
        let config = parse(&[
            "--leader-elect",
            "--leader-election-lease-duration=60s",
            "--leader-election-renew-deadline=45s",
            "--concurrency-limit=128",
            "--metrics-bind-address=127.0.0.1:1",
            "--at-most-one-pod=true",
        ])
        .unwrap();
        assert!(config.leadership.wait && config.at_most_one_pod);
        assert_eq!(config.leadership.renew_deadline, Duration::from_secs(45));
        assert_eq!(config.metrics, "127.0.0.1:1".parse().unwrap());
    }

    #[test]
    fn all_problems_are_named_at_once() {
        let problems = parse(&[
            "--metrics-bind-address=nowhere",
            "--leader-election-lease-duration=5s",
            "--concurrency-limit=0",
            "--default-cpu-scaling-mode=",
            "--acceleration=warp",
            "--grace-seconds=0",
            "--runner-image=",
        ])
        .unwrap_err();
        for part in [
            "--metrics-bind-address",
            "--leader-election-*",
            "--concurrency-limit",
            "--default-cpu-scaling-mode",
            "--acceleration",
            "--grace-seconds",
            "VM_RUNNER_IMAGE",
        ] {
            assert!(problems.contains(part), "{part} is missing in {problems}");
        }
        assert!(parse(&["--no-such-flag"]).is_err());
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("15s", Some(15_000)),
            ("1m30s", Some(90_000)),
            ("500ms", Some(500)),
            ("1h", Some(3_600_000)),
            ("", None),
            ("0s", None),
            ("5", None),
            ("s", None),
            ("5x", None),
            ("99h", None),
        ] {
            let millis = duration(text).ok().map(|duration| duration.as_millis());
            assert_eq!(millis, expected, "{text}");
        }
    }
}
