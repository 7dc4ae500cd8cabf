//! The order of events: bring up, apply, load, watch, judge, report, take away.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::feed::{Feed, Lines, kubectl};
use super::live::Live;
use super::load::Loads;
use super::recording::{At, Recording, Shared, Stage};
use super::session::Session;
use super::{CLIENT, VM, checks, logs, report, sql_words, watch};
use crate::cache::{Cache, repo_root};
use crate::cluster::{Cluster, wait_until};
use crate::options::NodeSize;
use crate::progress::Progress;
use crate::{down, interrupt, system, tools, up};

const VM_MANIFEST: &str = include_str!("../../demo/vm.yaml");
const CLIENT_MANIFEST: &str = include_str!("../../demo/client.yaml");
const LIGHT: Duration = Duration::from_secs(15);
/// The light stage lasts longer while a busy machine makes the VM larger than it needs to be.
const LIGHT_LONGEST: Duration = Duration::from_secs(60);
const CPU_HEAVY: Duration = Duration::from_secs(45);
const MEMORY_HEAVY: Duration = Duration::from_secs(40);
/// By then the VM is back at its minimum, or is shown not to be.
const BACK: Duration = Duration::from_secs(120);
/// The charts show a little of the calm after it.
const CALM: Duration = Duration::from_secs(5);
/// Filling the tables and opening connections are load, too; before the first stage the VM comes to rest.
const SETTLE: Duration = Duration::from_secs(120);
const FIRST_SQL: Duration = Duration::from_secs(180);
const GONE: Duration = Duration::from_secs(90);

/// What a user chose.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Takes the cluster away at the end.
    pub down: bool,
    /// Uses the cluster and the system on it as they are: nothing is built or deployed.
    pub as_is: bool,
}

/// How the demonstration ended.
#[derive(Debug)]
pub struct Ending {
    /// Whether all checks passed.
    pub passed: bool,
    /// Where the report is.
    pub report: PathBuf,
}

/// Runs the demonstration; whatever happens, its VM is taken away again.
pub fn run(options: Options) -> Result<Ending> {
    tools::need_root()?;
    let cache = Cache::open()?;
    let cluster = if options.as_is {
        Cluster::open()?
    } else {
        let progress = Progress::new(&cache, up::STEPS);
        system::up(&cache, &progress, NodeSize::default())?
    };
    let out = repo_root()?.join("target/demo");
    fs::create_dir_all(&out).with_context(|| format!("make the folder {}", out.display()))?;
    let result = on_cluster(&cluster, &out);
    // The way out must not be stopped by the signal that led to it.
    interrupt::forget();
    say("taking the VM away");
    let gone = clear(&cluster).context("take the demonstration's VM away");
    if options.down {
        down::down(cluster.layout()).context("take the cluster away")?;
        say("the cluster is down");
    } else {
        say("the cluster is left up; to take it down: cargo cluster down");
    }
    let ending = result?;
    gone?;
    Ok(ending)
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody reads any more when the output is closed.
    let _closed = writeln!(out, "{line}");
}

/// Removes what the demonstration makes, also that of an earlier run.
fn clear(cluster: &Cluster) -> Result<()> {
    let what = [format!("neonvm/{VM}"), format!("service/{VM}"), format!("pod/{CLIENT}")];
    cluster
        .kubectl_run(["delete", "--ignore-not-found", "--wait", "--timeout=80s"])
        .args(what)
        .deadline(GONE)
        .output()
        .map(drop)
}

fn on_cluster(cluster: &Cluster, out: &Path) -> Result<Ending> {
    clear(cluster).context("remove what an earlier demonstration left")?;
    let shared = Shared::default();
    say("starting the client's pod");
    cluster.apply(CLIENT_MANIFEST).context("make the client's pod")?;
    cluster
        .kubectl_run(["wait", "--for=condition=Ready", "--timeout=120s"])
        .arg(format!("pod/{CLIENT}"))
        .deadline(Duration::from_secs(130))
        .output()
        .context("wait for the client's pod")?;
    let question = FirstSql::prepare(cluster)?;
    say("kubectl apply -f tests/cluster/demo/vm.yaml");
    shared.lock().applied = Some(At::now());
    cluster.apply(VM_MANIFEST).context("apply the VM")?;
    question.answer(cluster)?;
    let answered = At::now();
    let feeds = [
        watch::vm(cluster, &shared),
        watch::top(cluster, &shared),
        watch::decisions(cluster, &shared),
        watch::ledger(cluster, &shared),
    ];
    let took = {
        let mut recording = shared.lock();
        recording.first_sql = Some(answered);
        recording.applied.map_or(0.0, |applied| answered.since(applied))
    };
    say(&format!("first SQL answer through the Service after {took:.1} s"));
    let loads = Loads { cluster: cluster.clone(), shared: shared.clone(), out: Arc::from(out) };
    say("filling pgbench's tables");
    loads.prepare()?;
    let worked = under_load(&loads, &shared);
    gather(cluster, &shared, out, feeds)?;
    let ending = judge(&shared.lock(), out)?;
    worked?;
    Ok(ending)
}

/// A shell in the client's pod that asks Postgres as soon as it is told to, again and again until there is an answer. It
/// waits for that word: an exec costs more than the answer, and a Service without a pod refuses only once a second.
struct FirstSql(Lines);

impl FirstSql {
    fn prepare(cluster: &Cluster) -> Result<Self> {
        let script = format!(
            "read go; until psql {} -c 'SELECT 1' 2>/dev/null; do sleep 0.1; done",
            sql_words().join(" ")
        );
        let words = ["exec", "-i", CLIENT, "--", "sh", "-c", &script];
        Lines::start(kubectl(cluster, &words)).context("open a shell in the client's pod").map(Self)
    }

    /// Waits as a user would: until the VM says that it serves, then for the answer.
    fn answer(mut self, cluster: &Cluster) -> Result<()> {
        let limit = format!("--timeout={}s", FIRST_SQL.as_secs());
        cluster
            .kubectl_run(["wait", "--for=condition=Available", &limit])
            .arg(format!("neonvm/{VM}"))
            .deadline(FIRST_SQL + Duration::from_secs(10))
            .output()
            .context("wait for the VM to serve")?;
        self.0.tell("go").context("tell the client's shell")?;
        self.0.next(FIRST_SQL).context("wait for the first SQL answer").map(drop)
    }
}

fn settle(shared: &Shared) -> Result<()> {
    say("waiting for the VM to come to rest");
    if !at_minimum(shared, SETTLE)? {
        say("it did not come to rest; going on");
    }
    Ok(())
}

/// Waits for the minimum; says whether it came.
fn at_minimum(shared: &Shared, limit: Duration) -> Result<bool> {
    let waited =
        wait_until("the VM is at its minimum", limit, || Ok(shared.lock().is_at_minimum()));
    interrupt::check()?;
    Ok(waited.is_ok())
}

/// The stages, with a session that stays open and a steady load that runs all the time.
fn under_load(loads: &Loads, shared: &Shared) -> Result<()> {
    let mut session = Session::open(&loads.cluster)?;
    let before = session.identity().context("ask who answers, before the load")?;
    shared.lock().before = Some(before);
    let stop = Arc::new(AtomicBool::new(false));
    let steady = loads.steady(&stop);
    let staged = settle(shared).and_then(|()| {
        shared.lock().enter(Stage::Light, At::now());
        let _live = Live::start(shared);
        let staged = stages(loads, shared, &mut session);
        shared.lock().leave(At::now());
        staged
    });
    stop.store(true, Ordering::Relaxed);
    let steady = steady.join().unwrap_or_else(|_| Err(anyhow!("the steady load's thread broke")));
    staged?;
    steady.context("keep the steady load up")?;
    let after = session.identity().context("ask who answers, after the load")?;
    shared.lock().after = Some(after);
    Ok(())
}

fn stages(loads: &Loads, shared: &Shared, session: &mut Session) -> Result<()> {
    pause(LIGHT)?;
    let _a_busy_machine_begins_with_a_larger_vm =
        at_minimum(shared, LIGHT_LONGEST.saturating_sub(LIGHT))?;
    shared.lock().enter(Stage::CpuHeavy, At::now());
    loads.cpu(CPU_HEAVY)?;
    session.ask("SELECT 1;").context("use the long session between the stages")?;
    shared.lock().enter(Stage::MemoryHeavy, At::now());
    loads.memory(MEMORY_HEAVY)?;
    session.ask("SELECT 1;").context("use the long session between the stages")?;
    shared.lock().enter(Stage::LightAgain, At::now());
    // When it does not come back, the checks say how far it came.
    if at_minimum(shared, BACK)? { pause(CALM) } else { Ok(()) }
}

fn pause(time: Duration) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        interrupt::check()?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Fetches what is only to be had afterwards. When the demonstration was stopped, there is nothing to judge.
fn gather(cluster: &Cluster, shared: &Shared, out: &Path, feeds: [Feed; 4]) -> Result<()> {
    interrupt::check()?;
    // The last decisions are told with the next question.
    pause(watch::DECISIONS_EVERY + Duration::from_secs(1))?;
    drop(feeds);
    let (since, pod) = {
        let recording = shared.lock();
        let pod = recording.newest().and_then(|vm| vm.pod.clone());
        (recording.applied.unwrap_or_default(), pod.context("the VM was never seen in a pod")?)
    };
    say("reading the logs of the system's parts");
    let events = logs::collect(cluster, &pod, since, out)?;
    shared.lock().events = events;
    Ok(())
}

/// Writes the report and says the verdict.
fn judge(recording: &Recording, out: &Path) -> Result<Ending> {
    let checks = checks::checks(recording);
    let figures = checks::figures(recording);
    let path = out.join("report.html");
    fs::write(&path, report::page(recording, &checks, &figures))
        .with_context(|| format!("write {}", path.display()))?;
    say("");
    for check in &checks {
        let word = if check.passed { "passed" } else { "FAILED" };
        say(&format!("{word}  {}: {}", check.what, check.seen));
    }
    say("");
    for figure in &figures {
        let value = figure.seconds.map_or_else(|| "not seen".to_owned(), report::seconds);
        let target = match (figure.target, figure.met()) {
            (Some(target), Some(true)) => format!(" (target {target:.0} s)"),
            (Some(target), _) => format!(" (target {target:.0} s, missed)"),
            _ => String::new(),
        };
        say(&format!("{value:>9}  {}{target}", figure.what));
    }
    say(&format!("\nreport: {}", path.display()));
    Ok(Ending { passed: checks.iter().all(|check| check.passed), report: path })
}
