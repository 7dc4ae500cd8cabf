//! The cluster's processes: started apart from this tool, remembered by pid and start time, found again by a mark, and
//! never confused with a process that merely got the same pid.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};
use serde::{Deserialize, Serialize};

use crate::layout::{Layout, MARK, Node};

/// How to start a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// `etcd`, `n1/kubelet`.
    pub name: String,
    /// The words of its command line.
    pub command: Vec<String>,
    /// Additions to its environment.
    pub env: Vec<(String, String)>,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Component {
    /// A component of the control plane, in the root namespaces.
    pub fn new(layout: &Layout, name: &str, program: &Path, args: Vec<String>) -> Self {
        let mut command = vec![program.to_string_lossy().into_owned()];
        command.extend(args);
        Self { name: name.into(), command, env: Vec::new(), log: layout.log(name) }
    }

    /// A component inside a node's namespaces.
    pub fn on_node(
        layout: &Layout,
        node: &Node,
        name: &str,
        program: &Path,
        args: Vec<String>,
    ) -> Self {
        let mut component = Self::new(layout, &node.component(name), program, args);
        let mut command = enter(node);
        command.append(&mut component.command);
        component.command = command;
        component
    }

    /// Adds a variable to the component's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
}

/// The words in front of a command that is to run inside a node; the program takes their place, so the pid stays.
pub fn enter(node: &Node) -> Vec<String> {
    vec![
        "nsenter".into(),
        format!("--net={}", node.network_namespace().display()),
        format!("--mount={}", node.mount_namespace().display()),
    ]
}

/// A process that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What was started.
    pub component: Component,
    /// Its process.
    pub process: Process,
}

/// One process of this machine's present boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// The process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started_ticks: u64,
}

impl Process {
    /// The process that has this pid now; none when there is none, or it has ended and was not collected yet.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, started_ticks) = parse_stat(&stat)?;
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, started_ticks })
    }

    /// Whether it still runs: the same pid and the same start.
    pub fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal to this very process; does nothing when it is gone.
    pub fn signal(self, signal: Signal) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let sending = || format!("send a signal to process {}", self.pid);
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(err) => return Err(err).with_context(sending),
        };
        // From here on the handle cannot come to mean another process; does it mean ours?
        if !self.alive() {
            return Ok(());
        }
        match pidfd_send_signal(&handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(err) => return Err(err).with_context(sending),
        }
        Ok(())
    }

    /// Collects the process when it is a child of this one that ended; otherwise does nothing.
    pub fn collect(self) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _not_our_child = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }

    /// How long it has been running.
    pub fn age(self) -> Option<Duration> {
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
        let ticks = rustix::param::clock_ticks_per_second();
        let started = Duration::from_millis(self.started_ticks * 1000 / ticks.max(1));
        Duration::try_from_secs_f64(uptime).ok()?.checked_sub(started)
    }
}

/// State and start time of `/proc/PID/stat`; the name before them may hold blanks and brackets.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Starts a component in a session of its own and remembers it.
pub fn start(layout: &Layout, component: &Component) -> Result<Process> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&component.log)
        .with_context(|| format!("open the log {}", component.log.display()))?;
    let errors = log.try_clone().context("share the log file")?;
    // setsid: what stays in this tool's session dies with its terminal.
    let mut child = Command::new("setsid")
        .args(&component.command)
        .envs(component.env.iter().map(|(name, value)| (name, value)))
        .env(MARK, layout.state())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("start {}", component.name))?;
    let pid = i32::try_from(child.id()).context("a pid fits an i32")?;
    let Some(process) = Process::of(pid) else {
        let _collected = child.wait();
        bail!("{} ended at once; its log: {}", component.name, component.log.display());
    };
    let record = Record { component: component.clone(), process };
    remember(layout, &record)?;
    Ok(process)
}

fn remember(layout: &Layout, record: &Record) -> Result<()> {
    let path = layout.processes();
    let mut line = serde_json::to_string(record).context("write down a process")?;
    line.push('\n');
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

/// The newest process of every component, by name.
pub fn records(layout: &Layout) -> Result<BTreeMap<String, Record>> {
    let path = layout.processes();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(err) => return Err(err).with_context(|| format!("read {}", path.display())),
    };
    // A last line that a crash cut short is no reason to fail: its process carries the mark.
    let records = text.lines().filter_map(|line| serde_json::from_str::<Record>(line).ok());
    Ok(records.map(|record| (record.component.name.clone(), record)).collect())
}

/// Fails when a component has ended, naming it, with the end of its log.
pub fn check_all(layout: &Layout) -> Result<()> {
    for (name, record) in records(layout)? {
        if !record.process.alive() {
            bail!("{name} has ended; its log: {}", record.component.log.display());
        }
    }
    Ok(())
}

/// The variable by which a process of the cluster is found again, whatever became of who started it.
#[must_use]
pub fn mark(layout: &Layout) -> (&'static str, String) {
    (MARK, layout.state().display().to_string())
}

/// All processes that carry the cluster's mark: its components and what these started, containers excepted, and commands
/// of this tool that outlived it.
pub fn marked(layout: &Layout) -> Result<Vec<Process>> {
    let (name, value) = mark(layout);
    let mark = format!("{name}={value}");
    let mut found = Vec::new();
    for pid in pids()? {
        let Some(process) = Process::of(pid) else { continue };
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let ours = environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes());
        if ours && process.alive() {
            found.push(process);
        }
    }
    Ok(found)
}

fn pids() -> Result<Vec<i32>> {
    let entries = fs::read_dir("/proc").context("list /proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// The program's name of a process.
pub fn command_name(process: Process) -> String {
    let name = fs::read_to_string(format!("/proc/{}/comm", process.pid)).unwrap_or_default();
    name.trim().to_owned()
}

/// Kills a component and waits until it is gone.
pub fn kill(layout: &Layout, name: &str, signal: Signal) -> Result<()> {
    let records = records(layout)?;
    let record = records.get(name).with_context(|| format!("there is no component {name}"))?;
    record.process.signal(signal)?;
    let begun = Instant::now();
    while record.process.alive() {
        ensure!(begun.elapsed() < Duration::from_secs(30), "{name} does not end");
        thread::sleep(Duration::from_millis(10));
    }
    record.process.collect();
    Ok(())
}

/// Starts a component again that has ended, exactly as it was started before.
pub fn restart(layout: &Layout, name: &str) -> Result<Process> {
    let records = records(layout)?;
    let record = records.get(name).with_context(|| format!("there is no component {name}"))?;
    ensure!(!record.process.alive(), "{name} is still running");
    record.process.collect();
    start(layout, &record.component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_start_are_read_past_a_name_with_brackets() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 1";
        assert_eq!(parse_stat(stat), Some(('S', 98765)));
        assert_eq!(parse_stat("12 (short) S 1"), None);
    }

    #[test]
    fn a_process_is_told_apart_from_another_with_its_pid() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        let earlier = Process { started_ticks: process.started_ticks + 1, ..process };
        earlier.signal(Signal::KILL).unwrap();
        assert!(process.alive() && !earlier.alive());
        assert!(process.age().unwrap() < Duration::from_secs(60));
        process.signal(Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(!process.alive());
        process.signal(Signal::KILL).unwrap();
    }
}
