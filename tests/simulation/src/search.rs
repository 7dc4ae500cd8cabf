//! The search for faults: a seed is an hour of a small fleet in which much goes wrong, and no rule may be broken.

use std::fmt::Write as _;
use std::time::Duration;

use guest_units::{Bytes, MilliCpu, Moment, Size};
use host_scaling::{Limits, Policy};
use rand::RngExt as _;
use scheduler_ledger::Amount;

use crate::fleet::{Bug, Doze, Loads, Settings, Violation, World};
use crate::load::Load;
use crate::random::random;

/// Nodes of a seed.
pub const NODES: u32 = 3;
/// VMs of a seed.
pub const VMS: u32 = 20;
/// A seed lasts so long.
pub const LASTS: Duration = Duration::from_secs(3600);
/// Faults begin before this, and last five minutes at most.
const FAULTS_UNTIL: Duration = Duration::from_secs(2700);
/// Workloads stay as they are from then on.
const LOADS_UNTIL: Duration = Duration::from_secs(3060);
/// A minute later, and sometimes after that, all must be at rest.
const REST: [u64; 3] = [3150, 3400, 3599];
/// Part of the seed.
const LOADS: u64 = 100;

/// What a seed is run with.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// The seed.
    pub seed: u64,
    /// A deliberate bug.
    pub bug: Option<Bug>,
    /// Of the planned faults only these, by number.
    pub only: Option<Vec<usize>>,
    /// Keep a trace of events.
    pub trace: bool,
}

/// What a seed led to.
#[derive(Debug, Clone)]
pub struct Found {
    /// The rule that was broken.
    pub violation: Option<Violation>,
    /// Faults of the plan, with their numbers.
    pub faults: Vec<String>,
    /// The last events.
    pub trace: Vec<String>,
    /// Events in all.
    pub events: u64,
}

fn limits() -> Limits {
    Limits {
        min: Size::new(MilliCpu(250), Bytes::from_gib(1)),
        max: Size::new(MilliCpu(4000), Bytes::from_gib(8)),
        slot: Bytes::from_mib(128),
    }
}

/// A workload that jumps about, and stays as it is in the end.
fn loads(seed: u64, vm: u32) -> Loads {
    let mut random = random(seed, LOADS + u64::from(vm));
    let mut at = Duration::ZERO;
    let mut first = true;
    Box::new(std::iter::from_fn(move || {
        if !std::mem::take(&mut first) {
            let pause: f64 = random.random_range(0.0..1.0);
            at += Duration::from_secs_f64(2.0 + 400.0 * pause * pause * pause);
        }
        let cpu = match random.random_range(0..4) {
            0 => random.random_range(0..20),
            1 => random.random_range(20..300),
            2 => random.random_range(300..1200),
            _ => random.random_range(300..3500),
        };
        let mib = match random.random_range(0..16) {
            0..8 => random.random_range(50..400),
            8..15 => random.random_range(400..1800),
            _ => random.random_range(1800..7000),
        };
        (at < LOADS_UNTIL).then_some(Load {
            at: Moment(at),
            cpu: MilliCpu(cpu),
            memory: Bytes::from_mib(mib),
            memory_per_second: 0,
        })
    }))
}

/// The world of a seed, ready to run.
fn world(run: &Run) -> World {
    let settings = Settings {
        seed: run.seed,
        policy: Policy::default(),
        doze: Doze::Coarse,
        sleep: false,
        steady_latencies: false,
        detector: false,
        measure: false,
        checks: true,
        trace: run.trace,
    };
    let room = Amount { cpu_millis: 8_000, memory_bytes: 16 << 30 };
    let mut world = World::new(settings, &[room; NODES as usize]);
    for vm in 0..VMS {
        world.add_running(limits(), vm % NODES, loads(run.seed, vm));
    }
    world.plan_faults(FAULTS_UNTIL, run.only.as_deref());
    if let Some(bug) = run.bug {
        world.with_bug(bug);
    }
    for at in REST {
        world.rest_at(Moment::from_secs(at));
    }
    world
}

/// Runs a seed.
#[must_use]
pub fn search(run: &Run) -> Found {
    let mut world = world(run);
    world.begin();
    world.run(Moment(LASTS));
    let faults = world.faults().iter().map(|fault| format!("{fault:?}")).collect();
    Found {
        violation: world.violation().cloned(),
        faults,
        trace: world.trace_lines(),
        events: world.events(),
    }
}

/// The fewest faults of a seed's plan that break the same rule.
#[must_use]
pub fn shrink(run: &Run, rule: u8) -> Vec<usize> {
    let count = world(run).faults().len();
    let mut kept: Vec<usize> = run.only.clone().unwrap_or_else(|| (0..count).collect());
    let mut index = 0;
    while index < kept.len() {
        let mut fewer = kept.clone();
        fewer.remove(index);
        let again = search(&Run { only: Some(fewer.clone()), trace: false, ..run.clone() });
        if again.violation.is_some_and(|violation| violation.rule == rule) {
            kept = fewer;
        } else {
            index += 1;
        }
    }
    kept
}

/// What to tell about a broken rule: one line that repeats it, the faults that it takes, and what happened before.
#[must_use]
pub fn explain(run: &Run, violation: &Violation) -> String {
    let kept = shrink(run, violation.rule);
    let found = search(&Run { only: Some(kept.clone()), trace: true, ..run.clone() });
    let numbers: Vec<String> = kept.iter().map(ToString::to_string).collect();
    let seed = run.seed;
    let mut text = format!(
        "rule {} is broken: repeat with: simulate faults --seeds {seed}..{} --only {}\n",
        violation.rule,
        seed + 1,
        if numbers.is_empty() { "none".to_owned() } else { numbers.join(",") },
    );
    let shown = found.violation.as_ref().unwrap_or(violation);
    let _written = writeln!(text, "VM v{}, at {:?}: {}", shown.vm, shown.at.0, shown.text);
    for fault in &found.faults {
        let _written = writeln!(text, "  fault: {fault}");
    }
    let about = [format!("vm: {},", shown.vm), format!("VM v{}", shown.vm), "fault ".to_owned()];
    let lines: Vec<&String> = found
        .trace
        .iter()
        .filter(|line| about.iter().any(|it| line.contains(it.as_str())))
        .filter(|line| !line.contains("Sample {"))
        .collect();
    for line in lines.iter().skip(lines.len().saturating_sub(60)) {
        let short: String = line.chars().take(400).collect();
        let _written = writeln!(text, "  {short}");
    }
    text
}
