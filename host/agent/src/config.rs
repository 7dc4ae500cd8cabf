//! From flags, environment and the configuration file to values that need no further parsing.
//!
//! All problems are reported at once; a wrong configuration ends the process with exit code 64.

mod file;
mod policy;
mod scaling;
mod section;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

pub(crate) use file::{FileConfig, Rate};

/// Where the running agent answers `why` and `top`.
pub(crate) const ADMIN_SOCKET: &str = "/run/autoscaler-agent/admin.sock";

/// Scales the VMs of one node.
#[derive(Debug, Parser)]
#[command(name = "autoscaler-agent", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// The configuration file (JSON).
    #[arg(long = "config", env = "CONFIG_PATH")]
    config_path: Option<PathBuf>,
    /// Name of this node.
    #[arg(long, env = "K8S_NODE_NAME")]
    node_name: Option<String>,
    /// Address of this pod: the metrics endpoints listen on it.
    #[arg(long, env = "K8S_POD_IP")]
    pod_ip: Option<String>,
    /// Folder of the kubelet.
    #[arg(long, default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// The node's /dev, read-only.
    #[arg(long, default_value = "/host/dev")]
    host_dev: PathBuf,
    /// The scheduler; by default the Service that the configuration file names.
    #[arg(long)]
    scheduler_url: Option<String>,
    /// Certificate of the authority that the scheduler's certificate must come from.
    #[arg(long, default_value = "/etc/neonvm-ca/ca.crt")]
    ca_file: PathBuf,
    /// Token to show to the scheduler; read again for each request.
    #[arg(long, default_value = "/var/run/secrets/autoscale-scheduler/token")]
    token_file: PathBuf,
    /// Where `why` and `top` are answered.
    #[arg(long, default_value = ADMIN_SOCKET, global = true)]
    pub(crate) admin_socket: PathBuf,
    /// Port of the metrics about the agent.
    #[arg(long, default_value_t = 9100)]
    metrics_port: u16,
    /// Port of the metrics about each VM.
    #[arg(long, default_value_t = 9101)]
    vm_metrics_port: u16,
    /// Seconds that a stop may take.
    #[arg(long, default_value_t = 5)]
    grace_seconds: u64,
}

/// Questions to the running agent.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// The last decisions about a VM, one JSON object a line.
    Why {
        /// Namespace of the VM.
        namespace: String,
        /// Name of the VM.
        name: String,
    },
    /// The VMs of this node, one JSON object a line.
    Top,
}

/// What everything means.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) node: String,
    pub(crate) kubelet_dir: PathBuf,
    pub(crate) host_dev: PathBuf,
    pub(crate) scheduler_url: SchedulerUrl,
    pub(crate) ca_file: PathBuf,
    pub(crate) token_file: PathBuf,
    pub(crate) admin_socket: PathBuf,
    pub(crate) metrics: SocketAddr,
    pub(crate) vm_metrics: SocketAddr,
    pub(crate) grace: std::time::Duration,
    pub(crate) file: FileConfig,
}

/// Host and port of the scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SchedulerUrl {
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Everything that is wrong, one line each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Problems(pub(crate) Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl Problems {
    pub(crate) fn push(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    fn required<T>(&mut self, name: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.push(format!("{name} is required"));
        }
        value
    }
}

impl TryFrom<Args> for Config {
    type Error = Problems;

    fn try_from(args: Args) -> Result<Self, Problems> {
        let Args {
            command: _,
            config_path,
            node_name,
            pod_ip,
            kubelet_dir,
            host_dev,
            scheduler_url,
            ca_file,
            token_file,
            admin_socket,
            metrics_port,
            vm_metrics_port,
            grace_seconds,
        } = args;
        let mut problems = Problems::default();
        let node = problems.required("K8S_NODE_NAME", node_name.filter(|it| !it.is_empty()));
        let ip = problems.required("K8S_POD_IP", pod_ip).and_then(|ip| {
            ip.parse().map_err(|err| problems.push(format!("K8S_POD_IP {ip:?}: {err}"))).ok()
        });
        let file = problems
            .required("CONFIG_PATH", config_path)
            .and_then(|path| read_file(&path, &mut problems));
        let scheduler_url = match (&scheduler_url, &file) {
            (Some(url), _) => parse_url(url, &mut problems),
            (None, Some(file)) => Some(SchedulerUrl {
                host: format!("{}.kube-system.svc", file.scheduler.name),
                port: file.scheduler.port,
            }),
            (None, None) => None,
        };
        if metrics_port == vm_metrics_port {
            problems.push("--metrics-port and --vm-metrics-port are equal");
        }
        match (node, ip, file, scheduler_url) {
            (Some(node), Some(ip), Some(file), Some(scheduler_url)) if problems.0.is_empty() => {
                Ok(Self {
                    node,
                    kubelet_dir,
                    host_dev,
                    scheduler_url,
                    ca_file,
                    token_file,
                    admin_socket,
                    metrics: SocketAddr::new(ip, metrics_port),
                    vm_metrics: SocketAddr::new(ip, vm_metrics_port),
                    grace: std::time::Duration::from_secs(grace_seconds),
                    file,
                })
            }
            _ => Err(problems),
        }
    }
}

fn read_file(path: &Path, problems: &mut Problems) -> Option<FileConfig> {
    let text = std::fs::read_to_string(path)
        .map_err(|err| problems.push(format!("CONFIG_PATH {}: {err}", path.display())))
        .ok()?;
    FileConfig::parse(&text).map_err(|mut found| problems.0.append(&mut found.0)).ok()
}

fn parse_url(text: &str, problems: &mut Problems) -> Option<SchedulerUrl> {
    let parsed = text.parse::<http::Uri>().ok().and_then(|uri| {
        let host = uri.host()?.to_owned();
        let plain = uri.scheme_str() == Some("https") && matches!(uri.path(), "" | "/");
        plain.then_some(SchedulerUrl { host, port: uri.port_u16().unwrap_or(443) })
    });
    if parsed.is_none() {
        problems.push(format!("--scheduler-url {text:?} is not of the form https://HOST:PORT"));
    }
    parsed
}

/// The configuration that is shipped.
#[cfg(test)]
pub(crate) fn shipped() -> FileConfig {
    file::tests::shipped()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &[&str]) -> Result<Config, Problems> {
        let args = [&["autoscaler-agent"], extra].concat();
        Config::try_from(Args::try_parse_from(args).unwrap())
    }

    fn shipped(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("agent-config-{}-{name}", std::process::id()));
        std::fs::write(&path, file::tests::SHIPPED).unwrap();
        path
    }

    #[test]
    fn everything_that_is_missing_is_said_at_once() {
        let problems = parse(&["--scheduler-url", "http://plain"]).unwrap_err();
        assert_eq!(
            problems.0,
            [
                "K8S_NODE_NAME is required",
                "K8S_POD_IP is required",
                "CONFIG_PATH is required",
                "--scheduler-url \"http://plain\" is not of the form https://HOST:PORT",
            ]
        );
    }

    #[test]
    fn the_scheduler_is_the_service_that_the_file_names() {
        let path = shipped("service");
        let path_text = path.to_str().unwrap();
        let args = ["--config", path_text, "--node-name", "n1", "--pod-ip", "10.0.0.1"];
        let config = parse(&args).unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(config.scheduler_url.host, "autoscale-scheduler.kube-system.svc");
        assert_eq!(config.scheduler_url.port, 10299);
        assert_eq!(config.metrics.to_string(), "10.0.0.1:9100");
    }

    #[test]
    fn subcommands_need_no_configuration() {
        let args = Args::try_parse_from(["autoscaler-agent", "why", "default", "pg"]).unwrap();
        let why = Command::Why { namespace: "default".into(), name: "pg".into() };
        assert_eq!(args.command, Some(why));
    }
}
