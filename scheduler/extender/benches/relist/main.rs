//! How long a cold start takes, and how much memory it needs, in a cluster as large as Kubernetes allows.
//!
//! ```text
//! cargo bench -p scheduler-extender --bench relist [-- NODES VMS ORDINARY_PODS]
//! ```
//!
//! A synthetic API server of this process lists nodes, pods and VMs over HTTP, in pages, with everything that real ones carry.
//! One after the other start the real extender, and a control in a process of its own that keeps the same objects whole, as a
//! client's cache would. Each is timed from its start until it knows everything, and its memory is read from the kernel then: as it
//! is, and at its peak. Then all watches break, and the extender lists everything once more. (The control does not: it would hold
//! everything twice.)

mod objects;
mod server;
mod whole;

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use objects::Cluster;

/// Kubernetes' own limits are 5,000 nodes and 150,000 pods.
const DEFAULT: [usize; 3] = [5_000, 100_000, 50_000];
const ROUNDS: usize = 3;
/// Kinds of objects that are listed.
const KINDS: usize = 3;
const SETTLES: Duration = Duration::from_secs(2);
/// Where either process says whether it is complete.
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 19_101);
const WHOLE_ADDRESS: &str = "RELIST_ADDRESS";
const LIMIT: Duration = Duration::from_secs(180);
/// Set for the control.
const WHOLE: &str = "RELIST_WHOLE";
const POLICY: &str = r#"{"watermark": 0.9, "schedulerName": "autoscale-scheduler", "k8sCRUDTimeoutSeconds": 1,
    "scoring": {"minUsageScore": 0.5, "maxUsageScore": 0, "scorePeak": 0.8, "randomize": false}}"#;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if std::env::var_os(WHOLE).is_some() {
        let address = std::env::var(WHOLE_ADDRESS).context("no address")?;
        return runtime.block_on(whole::hold(&address));
    }
    let numbers: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let [nodes, vms, ordinary] = <[usize; 3]>::try_from(numbers).unwrap_or(DEFAULT);
    runtime.block_on(run(nodes, vms, ordinary))
}

async fn run(nodes: usize, vms: usize, ordinary: usize) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("relist-{}", std::process::id()));
    fs::create_dir_all(&folder).context("make a folder")?;
    let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
        .map_err(|_| anyhow::anyhow!("no randomness"))?;
    let signing = Ed25519KeyPair::from_pkcs8(key.as_ref())
        .map_err(|err| anyhow::anyhow!("the new key: {err}"))?;
    let cluster = Cluster::new(nodes, vms, ordinary, &signing);
    let bytes = cluster.bytes();
    let server = server::Server::start(cluster).await?;
    files(&folder, key.as_ref(), server.address)?;
    let mut out = io::stdout();
    writeln!(
        out,
        "{nodes} nodes, {} pods, {vms} VMs: {} MiB of JSON\n\n\
         | process | complete after, s | memory then, MiB | peak, MiB | a pod, B | after a relist, MiB | peak, MiB |\n\
         |---|---|---|---|---|---|---|",
        vms + ordinary,
        bytes >> 20
    )?;
    for _ in 0..ROUNDS {
        for who in [Who::Extender, Who::Whole] {
            let row = measure(who, &folder, &server).await?;
            let a_pod = row.memory_kib * 1024 / (vms + ordinary).max(1) as u64;
            writeln!(
                out,
                "| {} | {:.1} | {} | {} | {a_pod} | {} | {} |",
                who.name(),
                row.complete.as_secs_f64(),
                row.memory_kib / 1024,
                row.peak_kib / 1024,
                row.again_kib.map_or("–".to_owned(), |(now, _)| (now / 1024).to_string()),
                row.again_kib.map_or("–".to_owned(), |(_, peak)| (peak / 1024).to_string()),
            )?;
        }
    }
    writeln!(out, "\nwrites that nobody expected: {}", server.writes())?;
    fs::remove_dir_all(&folder).context("remove the folder")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Extender,
    Whole,
}

impl Who {
    const fn name(self) -> &'static str {
        match self {
            Self::Extender => "extender",
            Self::Whole => "whole objects",
        }
    }
}

struct Row {
    complete: Duration,
    memory_kib: u64,
    peak_kib: u64,
    /// After a relist, and the peak of it.
    again_kib: Option<(u64, u64)>,
}

/// Ends the process when it goes out of scope.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

async fn measure(who: Who, folder: &Path, server: &server::Server) -> Result<Row> {
    let before = server.lists();
    let began = Instant::now();
    let mut command = match who {
        Who::Extender => extender(folder),
        Who::Whole => Command::new(std::env::current_exe().context("find this program")?),
    };
    let child = command
        .env("KUBECONFIG", folder.join("kubeconfig"))
        .env("RUST_LOG", "error")
        .env(WHOLE_ADDRESS, HEALTH.to_string())
        .env(if who == Who::Whole { WHOLE } else { "RELIST_EXTENDER" }, "1")
        .stdout(Stdio::null())
        .spawn()
        .context("start the process")?;
    let running = Running(child);
    let ready = async {
        while !answers_ok().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, ready).await.with_context(|| format!("{}: never complete", who.name()))?;
    let complete = began.elapsed();
    let pid = running.0.id();
    sleep(SETTLES).await;
    let (memory_kib, peak_kib) = memory(pid)?;
    let again_kib = match who {
        Who::Extender => Some(relist(pid, server, before + 2 * KINDS).await?),
        Who::Whole => None,
    };
    Ok(Row { complete, memory_kib, peak_kib, again_kib })
}

/// Breaks the watches and waits until so many kinds were listed to their end.
async fn relist(pid: u32, server: &server::Server, lists: usize) -> Result<(u64, u64)> {
    // The kernel counts the peak anew.
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset the peak")?;
    server.break_watches();
    let again = async {
        while server.lists() < lists {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, again).await.context("no second list")?;
    sleep(SETTLES).await;
    ensure!(answers_ok().await, "not complete any more");
    memory(pid)
}

fn extender(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_autoscale-scheduler"));
    let file = |name: &str| folder.join(name).display().to_string();
    command.args([
        "--listen=127.0.0.1:0".to_owned(),
        "--pod-ip=127.0.0.1".to_owned(),
        "--metrics-listen=127.0.0.1:0".to_owned(),
        format!("--health-listen={HEALTH}"),
        format!("--config={}", file("config.json")),
        format!("--tls-dir={}", folder.display()),
        format!("--ca-file={}", file("tls.crt")),
        format!("--signing-key={}", file("key.pk8")),
        format!("--admin-socket={}", file("admin.sock")),
    ]);
    command
}

fn files(folder: &Path, key: &[u8], server: SocketAddr) -> Result<()> {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).context("make a certificate")?;
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: \"http://{server}\"}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
    );
    let files = [
        ("kubeconfig", kubeconfig.into_bytes()),
        ("config.json", POLICY.as_bytes().to_vec()),
        ("key.pk8", key.to_vec()),
        ("tls.crt", cert.pem().into_bytes()),
        ("tls.key", signing_key.serialize_pem().into_bytes()),
    ];
    for (name, content) in files {
        fs::write(folder.join(name), content).with_context(|| format!("write {name}"))?;
    }
    Ok(())
}

/// Whether the process says that it knows everything.
async fn answers_ok() -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(HEALTH).await?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        io::Result::Ok(answer.starts_with("HTTP/1.1 200"))
    };
    matches!(timeout(Duration::from_secs(1), ask).await, Ok(Ok(true)))
}

/// Resident memory of a process: now, and its peak.
fn memory(pid: u32) -> Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the memory")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.with_context(|| format!("no {name} in the status"))
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}
