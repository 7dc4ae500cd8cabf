//! The load: pgbench in the client's pod, what it prints while it runs, and its log of every transaction.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::CLIENT;
use super::feed::{Lines, kubectl};
use super::recording::{At, Load, LoadRun, Progress, Shared, Transaction};
use crate::cluster::Cluster;
use crate::interrupt;

/// Rows of the tables, in units of pgbench: 100,000 accounts each.
const SCALE: &str = "3";
const STEADY_CLIENTS: u32 = 2;
/// Transactions a second: far below what the smallest VM can do.
const STEADY_RATE: &str = "10";
/// The steady load keeps its connections to the end: a new one costs a small VM more than many look-ups. It is ended from
/// outside, this is only its longest time.
const STEADY_SECONDS: &str = "1800";
/// What the pod says after it was told to end a load.
const STOPPED: &str = "exit stopped";
const CPU_CLIENTS: u32 = 4;
const MEMORY_CLIENTS: u32 = 2;
const MEMORY_SCRIPT: &str = include_str!("../../demo/memory.sql");
/// A started line comes at once; a line of progress each second, unless the VM is starved.
const SILENCE: Duration = Duration::from_secs(90);
const INIT: Duration = Duration::from_secs(300);
const FETCH: Duration = Duration::from_secs(60);

/// What loads need to run.
#[derive(Debug, Clone)]
pub(super) struct Loads {
    pub(super) cluster: Cluster,
    pub(super) shared: Shared,
    pub(super) out: Arc<Path>,
}

impl Loads {
    /// Fills the tables and lays the script ready.
    pub(super) fn prepare(&self) -> Result<()> {
        let init = ["exec", CLIENT, "--", "pgbench", "-i", "-q", "-s", SCALE];
        self.cluster.kubectl_run(init).deadline(INIT).output().context("fill pgbench's tables")?;
        // Not as its input: the first of that is lost when the command starts before kubectl is attached to it.
        let write = "printf %s \"$0\" >/load/memory.sql";
        self.cluster
            .kubectl_run(["exec", CLIENT, "--", "sh", "-c", write, MEMORY_SCRIPT])
            .output()
            .context("lay the memory script ready")?;
        Ok(())
    }

    /// Look-ups as fast as they go.
    pub(super) fn cpu(&self, time: Duration) -> Result<()> {
        let what = format!("-S -T {}", time.as_secs());
        self.run("cpu", Load::Cpu, CPU_CLIENTS, &what, None)
    }

    /// Sorts in memory. The last ones end a little after the time.
    pub(super) fn memory(&self, time: Duration) -> Result<()> {
        let what = format!("-f /load/memory.sql -T {}", time.as_secs());
        self.run("memory", Load::Memory, MEMORY_CLIENTS, &what, None)
    }

    /// Starts the steady load; it ends soon after `stop` is set.
    pub(super) fn steady(&self, stop: &Arc<AtomicBool>) -> JoinHandle<Result<()>> {
        let (loads, stop) = (self.clone(), Arc::clone(stop));
        thread::spawn(move || {
            let what = format!("-S -R {STEADY_RATE} -T {STEADY_SECONDS}");
            loads.run("steady", Load::Steady, STEADY_CLIENTS, &what, Some(&stop))
        })
    }

    /// One run of pgbench, from its start to the fetching of its log. That transactions failed is
    /// recorded, not an error; a run that broke is both.
    fn run(
        &self,
        name: &str,
        load: Load,
        clients: u32,
        what: &str,
        stop: Option<&AtomicBool>,
    ) -> Result<()> {
        let bench = format!(
            "pgbench -n -c {clients} -j 1 --progress=1 --progress-timestamp \
             -l --log-prefix=/load/{name} {what} 2>&1"
        );
        let script = match stop {
            None => format!("echo started; {bench}; echo \"exit $?\""),
            // The end of the input ends the load, too: it does not outlive the demonstration.
            Some(_) => format!(
                "echo started; {bench} & read -r _; kill $!; wait $! 2>/dev/null; echo {STOPPED}"
            ),
        };
        let command = kubectl(&self.cluster, &["exec", "-i", CLIENT, "--", "sh", "-c", &script]);
        let mut lines = Lines::start(command).with_context(|| format!("start the load {name}"))?;
        let first = lines.next(SILENCE).with_context(|| format!("start the load {name}"))?;
        ensure!(first.as_deref() == Some("started"), "the load {name} did not start: {first:?}");
        let index = self.begin(load, clients);
        let said = self.follow(&mut lines, load, index, stop);
        let text = said.unwrap_or_else(|err| format!("error: {err:#}\n"));
        interrupt::check()?;
        let path = self.out.join(format!("pgbench-{name}.log"));
        fs::write(&path, &text).with_context(|| format!("write {}", path.display()))?;
        let transactions = self.fetch(name, load)?;
        let end = outcome(&text, stop.is_some());
        let mut recording = self.shared.lock();
        recording.transactions.extend(transactions);
        match end {
            Ok(failed) => recording.runs[index].failed = Some(failed),
            Err(err) => {
                recording.runs[index].trouble = Some(format!("{name}: {err:#}"));
                return Err(err).with_context(|| format!("run the load {name}"));
            }
        }
        Ok(())
    }

    /// Writes down that a run has begun; returns where.
    fn begin(&self, load: Load, clients: u32) -> usize {
        let begun = At::now();
        let run = LoadRun { load, clients, begun, ended: None, failed: None, trouble: None };
        let mut recording = self.shared.lock();
        recording.runs.push(run);
        recording.runs.len() - 1
    }

    /// Reads what pgbench says until it ends; returns all of it.
    fn follow(
        &self,
        lines: &mut Lines,
        load: Load,
        index: usize,
        stop: Option<&AtomicBool>,
    ) -> Result<String> {
        let mut text = String::new();
        let mut told = false;
        while let Some(line) = lines.next(SILENCE)? {
            let progress = progress(&line, load);
            let mut recording = self.shared.lock();
            recording.progress.extend(progress);
            // Counted as ended when the last client is gone, not when its log is fetched.
            recording.runs[index].ended = Some(At::now());
            drop(recording);
            let _infallible = writeln!(text, "{line}");
            if !told && stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                lines.tell("stop")?;
                told = true;
            }
        }
        Ok(text)
    }

    fn fetch(&self, name: &str, load: Load) -> Result<Vec<Transaction>> {
        let script = format!("cat /load/{name}.* && rm /load/{name}.*");
        let text = self
            .cluster
            .kubectl_run(["exec", CLIENT, "--", "sh", "-c", &script])
            .deadline(FETCH)
            .output()
            .with_context(|| format!("fetch the transactions of {name}"))?;
        Ok(text.lines().filter_map(|line| transaction(line, load)).collect())
    }
}

/// Reads `progress: 1764000000.123 s, 99.0 tps, lat 10.012 ms stddev 1.2, 0 failed`, with or without a lag at its end.
fn progress(line: &str, load: Load) -> Option<Progress> {
    let rest = line.strip_prefix("progress: ")?;
    let mut parts = rest.split(", ");
    let at = parts.next()?.strip_suffix(" s")?.parse().ok()?;
    let tps = parts.next()?.strip_suffix(" tps")?.parse().ok()?;
    let latency: f64 =
        parts.next()?.strip_prefix("lat ")?.split_whitespace().next()?.parse().ok()?;
    let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
    // Without any transaction there is no mean.
    let latency_ms = if latency.is_finite() { latency } else { 0.0 };
    Some(Progress { at: At(at), load, tps, latency_ms, failed })
}

/// Reads a line of pgbench's log: client, number, microseconds, script, seconds, microseconds, perhaps a lag.
fn transaction(line: &str, load: Load) -> Option<Transaction> {
    let mut words = line.split_whitespace().skip(2);
    let micros: f64 = words.next()?.parse().ok()?;
    let (seconds, fraction): (f64, f64) =
        (words.nth(1)?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Transaction { at: At(seconds + fraction / 1e6), load, latency_ms: micros / 1000.0 })
}

/// How a run ended: the number of failed transactions, or why it is worth nothing. One that was stopped from outside has no
/// summary; its lines of progress count what failed.
fn outcome(text: &str, stopped: bool) -> Result<u64> {
    let complaint = text
        .lines()
        .find(|line| ["error:", "fatal:", "aborted"].iter().any(|word| line.contains(word)));
    if let Some(complaint) = complaint {
        bail!("pgbench complained: {complaint}");
    }
    let last = text.lines().rev().find(|line| !line.is_empty()).unwrap_or_default();
    let wanted = if stopped { STOPPED } else { "exit 0" };
    ensure!(last == wanted, "pgbench ended badly: {last:?}");
    if stopped {
        let mut counts = text.lines().filter_map(|line| progress(line, Load::Steady)).peekable();
        ensure!(counts.peek().is_some(), "pgbench never said how it went");
        return Ok(counts.map(|it| it.failed).sum());
    }
    let counted = text
        .lines()
        .find_map(|line| line.strip_prefix("number of failed transactions: "))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    counted.ok_or_else(|| anyhow!("pgbench did not count its failed transactions"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = "\
progress: 1764000001.500 s, 20.0 tps, lat 4.250 ms stddev 0.900, 0 failed, lag 0.120 ms
transaction type: <builtin: select only>
number of transactions actually processed: 300
number of failed transactions: 0 (0.000%)
tps = 20.01 (without initial connection time)
exit 0
";

    #[test]
    fn progress_with_and_without_a_lag() {
        let plain = "progress: 1764000000.123 s, 99.5 tps, lat 10.012 ms stddev 1.234, 3 failed";
        let read = progress(plain, Load::Cpu).unwrap();
        let wanted = Progress {
            at: At(1_764_000_000.123),
            load: Load::Cpu,
            tps: 99.5,
            latency_ms: 10.012,
            failed: 3,
        };
        assert_eq!(read, wanted);
        let lagged = progress(SUMMARY.lines().next().unwrap(), Load::Steady).unwrap();
        assert_eq!((lagged.tps, lagged.latency_ms, lagged.failed), (20.0, 4.25, 0));
        let idle = "progress: 1764000000.1 s, 0.0 tps, lat -nan ms stddev -nan, 0 failed";
        assert_eq!(progress(idle, Load::Memory).unwrap().latency_ms, 0.0);
        for other in ["tps = 20.01", "progress: x s, 1 tps", ""] {
            assert_eq!(progress(other, Load::Cpu), None, "{other}");
        }
    }

    #[test]
    fn transactions_are_read_and_failed_ones_left_out() {
        let read = transaction("1 7 2500 0 1764000000 250000 90", Load::Steady).unwrap();
        assert_eq!(read.latency_ms, 2.5);
        assert_eq!(read.at, At(1_764_000_000.25));
        assert!(transaction("0 8 failed 0 1764000000 250000", Load::Steady).is_none());
        assert!(transaction("0 8", Load::Steady).is_none());
    }

    #[test]
    fn a_good_end_counts_failures_and_a_bad_one_says_why() {
        assert_eq!(outcome(SUMMARY, false).unwrap(), 0);
        let some = SUMMARY.replace("transactions: 0 (", "transactions: 12 (");
        assert_eq!(outcome(&some, false).unwrap(), 12);
        let broken = format!("pgbench: error: client 1 aborted in command 0\n{SUMMARY}");
        assert!(outcome(&broken, false).unwrap_err().to_string().contains("client 1 aborted"));
        assert!(outcome(&SUMMARY.replace("exit 0", "exit 2"), false).is_err());
        assert!(outcome("exit 0\n", false).is_err());
        assert!(outcome("", false).is_err());
    }

    #[test]
    fn a_load_that_was_stopped_is_judged_by_its_progress() {
        let line = SUMMARY.lines().next().unwrap();
        let text = format!("{line}\n{}\n{STOPPED}\n", line.replace("0 failed", "2 failed"));
        assert_eq!(outcome(&text, true).unwrap(), 2);
        assert!(outcome(&format!("{STOPPED}\n"), true).is_err());
        assert!(outcome(&text, false).is_err());
        assert!(outcome(&text.replace(STOPPED, ""), true).is_err());
    }
}
