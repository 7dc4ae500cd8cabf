//! `cargo cluster`: a local Kubernetes cluster with two nodes, and the system on it.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use guest_units::{Bytes, MilliCpu};
use tests_cluster::cache::Cache;
use tests_cluster::cli;
use tests_cluster::cluster::{Cluster, Facts};
use tests_cluster::layout::Layout;
use tests_cluster::options::NodeSize;
use tests_cluster::progress::Progress;
use tests_cluster::{artifacts, deploy, down, interrupt, process, small_images, system, tools, up};

/// Answers on standard output; a reader that has gone away is no error.
macro_rules! say {
    ($($arg:tt)*) => {{
        let _gone = writeln!(std::io::stdout(), $($arg)*);
    }};
}

/// A real Kubernetes cluster with two nodes on this machine, made from sources and Debian packages alone.
#[derive(Debug, Parser)]
#[command(name = "cargo cluster", bin_name = "cargo cluster")]
struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Brings the cluster up, building what is missing; a healthy one is left as it is.
    Up {
        /// Loads the images of this repository and deploys the system, too.
        #[arg(long)]
        system: bool,
        /// CPU that each node offers, such as 1500m [default: all of the machine's].
        #[arg(long)]
        cpu: Option<MilliCpu>,
        /// Memory that each node offers, such as 6Gi [default: all of the machine's].
        #[arg(long)]
        memory: Option<Bytes>,
    },
    /// Takes the cluster away and makes sure that nothing of it is left.
    Down,
    /// Shows components, nodes and pods.
    Status,
    /// Imports image archives (of docker or OCI) into both nodes.
    LoadImage {
        /// The archives.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Runs kubectl as the administrator.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// What kubectl is told.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Shows a component's log, or the components.
    Logs {
        /// Such as kube-apiserver or n1/kubelet.
        component: Option<String>,
        /// Keeps following it.
        #[arg(short, long)]
        follow: bool,
    },
    /// Builds parts into the cache without starting anything.
    Build {
        /// What to build [default: everything].
        what: Option<Part>,
    },
    /// Prints the system's manifests.
    Render {
        /// Where the nodes pull the images from.
        #[arg(long, default_value = "localhost")]
        registry: String,
        /// Tag of the images.
        #[arg(long, default_value = "local")]
        tag: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Kubernetes, its container runtime and the cluster's own images.
    Kubernetes,
    /// The VMs' kernel.
    Kernel,
    /// The images of this repository, with all that they are made of.
    System,
}

fn main() -> ExitCode {
    let args: Args = match cli::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    match interrupt::install().and_then(|()| run(args.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{err:#}");
            if interrupt::ever() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}

fn run(action: Action) -> Result<()> {
    match action {
        Action::Up { system, cpu, memory } => bring_up(system, NodeSize { cpu, memory }),
        Action::Down => take_down(),
        Action::Status => status(),
        Action::LoadImage { files } => load_image(&files),
        Action::Kubectl { args } => kubectl(&args),
        Action::Logs { component, follow } => logs(component.as_deref(), follow),
        Action::Build { what } => build(what),
        Action::Render { registry, tag } => {
            say!("{}", deploy::render(&registry, &tag)?.trim_end());
            Ok(())
        }
    }
}

fn bring_up(system: bool, size: NodeSize) -> Result<()> {
    tools::need_root()?;
    let cache = Cache::open()?;
    let progress = Progress::new(&cache, up::STEPS);
    let cluster = if system {
        system::up(&cache, &progress, size)?
    } else {
        up::up(&cache, &progress, size)?
    };
    progress.note(&format!("up after {:.1} s", progress.elapsed().as_secs_f64()));
    say!("export KUBECONFIG={}", cluster.kubeconfig().display());
    say!("export PATH={}:$PATH", cluster.layout().programs().display());
    Ok(())
}

fn take_down() -> Result<()> {
    tools::need_root()?;
    let cache = Cache::open()?;
    let _lock = cache.lock("cluster")?;
    let layout = Layout::from_env()?;
    if down::leftovers(&layout)?.is_empty() {
        say!("no cluster is up, and nothing of one is left");
        return Ok(());
    }
    let progress = Progress::new(&cache, 1);
    progress.step("cluster down", |_| down::down(&layout))?;
    say!(
        "down; nothing is left: no process, namespace, mount, loop device, cgroup, interface or folder"
    );
    Ok(())
}

fn status() -> Result<()> {
    let layout = Layout::from_env()?;
    match Facts::read(&layout)? {
        Some(facts) if facts.complete => {}
        _ if down::leftovers(&layout)?.is_empty() => {
            say!("no cluster is up; start one with: cargo cluster up");
            return Ok(());
        }
        _ => bail!(
            "remains of a cluster that is not complete; `cargo cluster up` or `down` clears them"
        ),
    }
    let cluster = Cluster::open()?;
    say!("KUBECONFIG={}\n", cluster.kubeconfig().display());
    say!("{:<26} {:>8}  UP FOR", "COMPONENT", "PID");
    for (name, record) in process::records(&layout)? {
        let alive = record.process.alive();
        let age = record.process.age().filter(|_| alive);
        let age = age.map_or_else(|| "DEAD".to_owned(), shown);
        say!("{name:<26} {:>8}  {age}", record.process.pid);
    }
    for what in [["nodes", "-o", "wide"], ["pods", "-A", "--sort-by=.metadata.namespace"]] {
        say!("\n{}", cluster.kubectl(["get"].iter().chain(&what))?.trim_end());
    }
    cluster.complaint().map_or(Ok(()), |complaint| bail!("not healthy: {complaint}"))
}

/// A duration for people: `3m07s`.
fn shown(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

fn load_image(files: &[PathBuf]) -> Result<()> {
    tools::need_root()?;
    let cluster = Cluster::open()?;
    let cache = Cache::open()?;
    let _lock = cache.lock("cluster")?;
    let progress = Progress::new(&cache, 1);
    progress.step("import images", |step| cluster.load_images(files, step.log()))
}

fn kubectl(args: &[String]) -> Result<()> {
    let cluster = Cluster::open()?;
    let program = cluster.program("kubectl");
    // kubectl looks for its plugins there, and they for it.
    let mut path = cluster.layout().programs().into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    // Takes this program's place: kubectl has the terminal and the signals to itself.
    let err = Command::new(&program)
        .args(args)
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("PATH", path)
        .exec();
    Err(err).with_context(|| format!("run {}", program.display()))
}

fn logs(component: Option<&str>, follow: bool) -> Result<()> {
    let cluster = Cluster::open()?;
    let records = process::records(cluster.layout())?;
    let Some(component) = component else {
        for (name, record) in records {
            say!("{name:<26} {}", record.component.log.display());
        }
        return Ok(());
    };
    let Some(record) = records.get(component) else {
        let names: Vec<&String> = records.keys().collect();
        bail!("no component is called {component}; there are {names:?}");
    };
    let mut tail = Command::new("tail");
    tail.args(["-n", if follow { "50" } else { "+1" }]);
    tail.args(follow.then_some("-F")).arg(&record.component.log);
    Err(tail.exec()).context("run tail")
}

fn build(what: Option<Part>) -> Result<()> {
    let cache = Cache::open()?;
    let progress = Progress::new(&cache, 2);
    if what.is_none_or(|part| part == Part::Kubernetes) {
        let binaries = artifacts::go::ensure(&cache, &progress)?;
        for (name, path) in small_images::ensure(&cache, &progress, &binaries)? {
            say!("{name} {}", path.display());
        }
    }
    if what == Some(Part::Kernel) {
        say!("{}", artifacts::kernel::ensure(&cache, &progress)?.display());
    }
    if what.is_none_or(|part| part == Part::System) {
        for (name, path) in artifacts::images::all(&progress)?.images {
            say!("{name} {}", path.display());
        }
    }
    Ok(())
}
