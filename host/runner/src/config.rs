//! From arguments and environment to what they mean; all problems are told at once.

use std::fmt;
use std::path::PathBuf;

use host_protocol::{
    DISK_IMAGE, DISKS_DIR, ORDERS_PORT, QMP_SOCKET, RUN_DIR, RUNNER_PORT, RunnerSpec, SERIAL_LOG,
    SPEC_ENV, TLS_DIR, VSOCK_NAME,
};

/// Longest path of a Unix socket.
const SOCKET_PATH_LIMIT: usize = 107;

/// Runs one virtual machine as the first process of its pod.
#[derive(Debug, clap::Parser)]
#[command(name = "vm-runner", version)]
pub(crate) struct Args {
    /// The VM as JSON.
    #[arg(long, env = SPEC_ENV, hide_env_values = true, global = true)]
    spec: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Prepares the pod's network and ends; needs NET_ADMIN.
    Net,
    /// Runs the VM until it ends.
    Run(RunArgs),
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Folder for sockets.
    #[arg(long, default_value = RUN_DIR)]
    run_dir: PathBuf,
    /// Folder for the VM's own disks.
    #[arg(long, default_value = DISKS_DIR)]
    disks_dir: PathBuf,
    /// Image of the root disk; it stays as it is.
    #[arg(long, default_value = DISK_IMAGE)]
    image: PathBuf,
    /// Kernel of the guest.
    #[arg(long, default_value = "/vm/kernel/vmlinux")]
    kernel: PathBuf,
    /// Folder of certificate, key and CA.
    #[arg(long, default_value = TLS_DIR)]
    tls_dir: PathBuf,
    /// Port of readiness and metrics.
    #[arg(long, default_value_t = RUNNER_PORT)]
    port: u16,
    /// Port of orders.
    #[arg(long, default_value_t = ORDERS_PORT)]
    orders_port: u16,
}

/// What to do.
#[derive(Debug)]
pub(crate) enum Config {
    Net(Box<RunnerSpec>),
    Run(Box<RunConfig>),
}

/// A VM and where its files are.
#[derive(Debug, Clone)]
pub(crate) struct RunConfig {
    pub(crate) spec: RunnerSpec,
    pub(crate) image: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) tls_dir: PathBuf,
    pub(crate) port: u16,
    pub(crate) orders_port: u16,
    pub(crate) root_disk: PathBuf,
    pub(crate) config_disk: PathBuf,
    pub(crate) qmp_socket: PathBuf,
    pub(crate) vsock: PathBuf,
    pub(crate) vsock_backend: PathBuf,
    pub(crate) serial_log: PathBuf,
}

/// Everything that is wrong, one line each.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.join("\n"))
    }
}

impl TryFrom<Args> for Config {
    type Error = Problems;

    fn try_from(args: Args) -> Result<Self, Problems> {
        let Args { spec, command } = args;
        let mut problems = Problems::default();
        let spec = problems.spec(spec.as_deref());
        let config = match command {
            Command::Net => spec.map(|spec| Self::Net(Box::new(spec))),
            Command::Run(args) => problems.run(spec, args),
        };
        match config {
            Some(config) if problems.0.is_empty() => Ok(config),
            _ => Err(problems),
        }
    }
}

impl Problems {
    fn spec(&mut self, text: Option<&str>) -> Option<RunnerSpec> {
        let Some(text) = text else {
            self.0.push(format!("{SPEC_ENV}: not set"));
            return None;
        };
        let spec: RunnerSpec = serde_json::from_str(text)
            .map_err(|err| self.0.push(format!("{SPEC_ENV}: {err}")))
            .ok()?;
        let found = spec.problems();
        self.0.extend(found.iter().map(|problem| format!("{SPEC_ENV}: {problem}")));
        Some(spec)
    }

    fn run(&mut self, spec: Option<RunnerSpec>, args: RunArgs) -> Option<Config> {
        let RunArgs { run_dir, disks_dir, image, kernel, tls_dir, port, orders_port } = args;
        for (flag, number) in [("--port", port), ("--orders-port", orders_port)] {
            if number == 0 {
                self.0.push(format!("{flag}: 0 is not a port"));
            }
        }
        if port == orders_port {
            self.0.push("--orders-port: must differ from --port".to_owned());
        }
        let [vsock, vsock_backend, qmp_socket] =
            [VSOCK_NAME, "vhu.sock", QMP_SOCKET].map(|name| run_dir.join(name));
        if qmp_socket.as_os_str().len() > SOCKET_PATH_LIMIT {
            self.0.push(format!("--run-dir: {} is too long for sockets", run_dir.display()));
        }
        Some(Config::Run(Box::new(RunConfig {
            spec: spec?,
            image,
            kernel,
            tls_dir,
            port,
            orders_port,
            root_disk: disks_dir.join("root.qcow2"),
            config_disk: disks_dir.join("config.tar"),
            qmp_socket,
            vsock,
            vsock_backend,
            serial_log: run_dir.join(SERIAL_LOG),
        })))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::testing::spec;

    fn config(words: &[&str], spec: Option<&str>) -> Result<Config, Problems> {
        let mut words: Vec<&str> = words.to_vec();
        words.insert(0, "vm-runner");
        let mut args = Args::parse_from(words);
        args.spec = spec.map(str::to_owned); // whatever the environment of the test says
        args.try_into()
    }

    fn json() -> String {
        serde_json::to_string(&spec()).unwrap()
    }

    #[test]
    fn the_vm_runs_where_the_pod_has_its_files() {
        assert!(Args::try_parse_from(["vm-runner"]).is_err(), "it must be said what to do");
        let Ok(Config::Run(found)) = config(&["run"], Some(&json())) else { panic!("not to run") };
        assert_eq!(found.spec, spec());
        assert_eq!(found.qmp_socket, PathBuf::from("/run/vm/qmp.sock"));
        assert_eq!(found.vsock, PathBuf::from("/run/vm/vs"));
        assert_eq!(found.root_disk, PathBuf::from("/disks/root.qcow2"));
        assert_eq!((found.port, found.orders_port), (25183, 20186));
        assert!(matches!(config(&["net"], Some(&json())), Ok(Config::Net(_))));
    }

    #[test]
    fn all_problems_at_once() {
        let mut wrong = spec();
        wrong.name = String::new();
        wrong.cpu_boot = guest_units::MilliCpu(9000);
        let wrong = serde_json::to_string(&wrong).unwrap();
        let long = format!("/{}", "x".repeat(120));
        for (words, spec, count, mentions) in [
            (vec!["run"], None, 1, "NEONVM_SPEC: not set"),
            (vec!["net"], Some("{}"), 1, "NEONVM_SPEC: missing field"),
            (vec!["net"], Some(wrong.as_str()), 2, "cpuBoot"),
            (
                vec!["run", "--port", "0", "--orders-port", "0", "--run-dir", &long],
                Some(wrong.as_str()),
                6,
                "--run-dir",
            ),
        ] {
            let problems = config(&words, spec).map(|_| ()).unwrap_err().to_string();
            assert_eq!(problems.lines().count(), count, "{problems}");
            assert!(problems.contains(mentions), "{problems}");
        }
    }
}
