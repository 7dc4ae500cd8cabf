//! What a demonstration saw: plain data with wall-clock times, filled while it runs, judged and drawn when it is over.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use guest_units::Size;
use serde::Deserialize;

/// A moment by the machine's clock, in seconds since 1970. All parts of the local cluster share that clock.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub(crate) struct At(pub(crate) f64);

impl At {
    pub(crate) fn now() -> Self {
        Self(SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64())
    }

    /// Seconds from `earlier` to this.
    pub(crate) fn since(self, earlier: Self) -> f64 {
        self.0 - earlier.0
    }

    /// Reads an RFC 3339 time.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let time: jiff::Timestamp = text.parse().ok()?;
        Some(Self(time.as_duration().as_secs_f64()))
    }

    /// As RFC 3339 in UTC, to the millisecond.
    pub(crate) fn rfc3339(self) -> String {
        let time = jiff::SignedDuration::try_from_secs_f64(self.0)
            .ok()
            .and_then(|since| jiff::Timestamp::from_duration(since).ok())
            .and_then(|time| time.round(jiff::Unit::Millisecond).ok());
        time.map_or_else(String::new, |time| format!("{time:.3}"))
    }
}

/// What the load is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Load {
    /// A few look-ups a second, all the time; its latency is what a user feels.
    Steady,
    /// Look-ups as fast as they go.
    Cpu,
    /// Sorts in memory.
    Memory,
}

impl Load {
    pub(crate) const ALL: [Self; 3] = [Self::Steady, Self::Cpu, Self::Memory];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }
}

/// A part of the demonstration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Light,
    CpuHeavy,
    MemoryHeavy,
    LightAgain,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Light => "light",
            Self::CpuHeavy => "CPU-heavy",
            Self::MemoryHeavy => "memory-heavy",
            Self::LightAgain => "light again",
        })
    }
}

/// A stage and its time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Phase {
    pub(crate) stage: Stage,
    pub(crate) begun: At,
    pub(crate) ended: Option<At>,
}

/// One run of pgbench.
#[derive(Debug, Clone)]
pub(crate) struct LoadRun {
    pub(crate) load: Load,
    pub(crate) clients: u32,
    pub(crate) begun: At,
    pub(crate) ended: Option<At>,
    /// What pgbench says at its end; nothing when it never said so.
    pub(crate) failed: Option<u64>,
    /// What went wrong with the run itself.
    pub(crate) trouble: Option<String>,
}

/// A line of pgbench's progress.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Progress {
    pub(crate) at: At,
    pub(crate) load: Load,
    pub(crate) tps: f64,
    pub(crate) latency_ms: f64,
    pub(crate) failed: u64,
}

/// A transaction, as pgbench's own log has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Transaction {
    /// When it ended.
    pub(crate) at: At,
    pub(crate) load: Load,
    pub(crate) latency_ms: f64,
}

/// The VM object, seen once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VmSample {
    pub(crate) at: At,
    pub(crate) phase: String,
    pub(crate) min: Size,
    pub(crate) max: Size,
    /// What the agent wrote.
    pub(crate) spec: Size,
    /// What the hypervisor shows.
    pub(crate) plugged: Option<Size>,
    /// What the scheduler signed.
    pub(crate) approved: Option<Size>,
    pub(crate) node: Option<String>,
    pub(crate) pod: Option<String>,
    pub(crate) restarts: u64,
}

/// The agent's view of the VM, seen once.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub(crate) struct TopSample {
    #[serde(skip)]
    pub(crate) at: At,
    pub(crate) desired: Size,
    pub(crate) permit: Size,
    pub(crate) plugged: Size,
    pub(crate) used: Size,
}

/// CPU and memory of many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) struct Amount {
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
}

/// A node in the scheduler's books.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NodeBooks {
    pub(crate) name: String,
    pub(crate) allocatable: Amount,
    pub(crate) reserved: Amount,
    pub(crate) promised: Amount,
}

/// The scheduler's books, seen once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LedgerSample {
    pub(crate) at: At,
    pub(crate) nodes: Vec<NodeBooks>,
    /// What is promised to the VM, and what the books show as plugged.
    pub(crate) vm: Option<(Size, Option<Size>)>,
}

/// A decision, as the agent tells it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    pub(crate) at: At,
    pub(crate) from: Size,
    pub(crate) to: Size,
    pub(crate) rule: String,
    pub(crate) outcome: String,
    pub(crate) attempts: u64,
    /// What it was decided from, in words.
    pub(crate) inputs: String,
}

/// What must be the same before and after.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Identity {
    /// `pg_postmaster_start_time()`.
    pub(crate) postmaster_start: String,
    /// `pg_backend_pid()` of the session that stays open.
    pub(crate) backend_pid: String,
}

/// Everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recording {
    pub(crate) applied: Option<At>,
    pub(crate) first_sql: Option<At>,
    pub(crate) phases: Vec<Phase>,
    pub(crate) runs: Vec<LoadRun>,
    pub(crate) progress: Vec<Progress>,
    pub(crate) transactions: Vec<Transaction>,
    pub(crate) vm: Vec<VmSample>,
    pub(crate) top: Vec<TopSample>,
    pub(crate) ledger: Vec<LedgerSample>,
    pub(crate) events: Vec<super::logs::Event>,
    pub(crate) decisions: Vec<Decision>,
    pub(crate) before: Option<Identity>,
    pub(crate) after: Option<Identity>,
}

impl Recording {
    /// The zero of every chart.
    pub(crate) fn origin(&self) -> At {
        self.phases.first().map_or_else(At::default, |phase| phase.begun)
    }

    pub(crate) fn phase(&self, stage: Stage) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.stage == stage)
    }

    /// The newest state of the VM object.
    pub(crate) fn newest(&self) -> Option<&VmSample> {
        self.vm.last()
    }

    /// Smallest and largest size of the VM.
    pub(crate) fn bounds(&self) -> Option<(Size, Size)> {
        self.newest().map(|vm| (vm.min, vm.max))
    }

    /// Whether the VM shows its smallest size, wholly plugged off.
    pub(crate) fn is_at_minimum(&self) -> bool {
        self.newest().is_some_and(|vm| vm.plugged == Some(vm.min) && vm.spec == vm.min)
    }

    /// Adds a decision, or what became of one that is known.
    pub(crate) fn decided(&mut self, decision: Decision) {
        let same = |it: &&mut Decision| {
            (it.at, it.from, it.to) == (decision.at, decision.from, decision.to)
        };
        match self.decisions.iter_mut().rev().find(same) {
            Some(known) => *known = decision,
            None => self.decisions.push(decision),
        }
    }

    /// Begins a stage and ends the one before.
    pub(crate) fn enter(&mut self, stage: Stage, now: At) {
        self.leave(now);
        self.phases.push(Phase { stage, begun: now, ended: None });
    }

    /// Ends the present stage.
    pub(crate) fn leave(&mut self, now: At) {
        if let Some(phase) = self.phases.last_mut() {
            phase.ended.get_or_insert(now);
        }
    }
}

/// The recording while it is made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<Recording>>);

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Recording> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        let at = At::parse("2026-11-24T01:46:57.123456Z").unwrap();
        assert_eq!(at.rfc3339(), "2026-11-24T01:46:57.123Z");
        let later = At::parse("2026-11-24T01:46:57.223456Z").unwrap();
        assert!((later.since(at) - 0.1).abs() < 1e-6);
        assert!(At::parse("yesterday").is_none());
    }

    #[test]
    fn a_decision_is_kept_once_with_its_last_outcome() {
        let decision = |at, outcome: &str| Decision {
            at: At(at),
            from: Size::ZERO,
            to: Size::ZERO,
            rule: String::new(),
            outcome: outcome.to_owned(),
            attempts: 1,
            inputs: String::new(),
        };
        let mut recording = Recording::default();
        for (at, outcome) in [(1.0, "granted"), (2.0, "granted"), (1.0, "done")] {
            recording.decided(decision(at, outcome));
        }
        assert_eq!(recording.decisions, [decision(1.0, "done"), decision(2.0, "granted")]);
    }

    #[test]
    fn a_stage_ends_when_the_next_begins() {
        let mut recording = Recording::default();
        recording.enter(Stage::Light, At(10.0));
        recording.enter(Stage::CpuHeavy, At(25.0));
        recording.leave(At(70.0));
        recording.leave(At(71.0));
        let ended: Vec<_> = recording.phases.iter().map(|phase| phase.ended).collect();
        assert_eq!(ended, [Some(At(25.0)), Some(At(70.0))]);
        assert_eq!(recording.origin(), At(10.0));
        assert!(recording.phase(Stage::MemoryHeavy).is_none());
    }
}
