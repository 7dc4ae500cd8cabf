//! The search for faults: a seed is an hour of a small fleet in which much goes wrong, and no rule may be broken.

use std::fmt::Write as _;
use std::time::Duration;

use clap::ValueEnum;
use guest_units::{Bytes, MilliCpu, Moment, Size};
use host_scaling::Limits;
use rand::RngExt as _;
use scheduler_ledger::Amount;

use crate::fleet::{Bug, Doze, Family, GivesUp, Loads, Settings, Violation, World};
use crate::load::Load;
use crate::random::random;
use crate::run::Brain;

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
/// A minute later, and sometimes after that, all must be at rest. The last time leaves half a minute to what is on its way.
const REST: [u64; 3] = [3150, 3400, 3569];
/// A demand that fits nowhere is killed, restarted and polled at the policy's fastest pace. If that went on for ever it would take
/// most of the time, and show nothing that its first half minute does not. Some do go on, and at the end all.
const GIVES_UP: GivesUp =
    GivesUp { kills: 5, until: Moment(LOADS_UNTIL), but_one_of: 10, memory: Bytes::from_mib(100) };
/// Of a trace so many lines are shown from the first fault on, and so many before the rule is broken.
const FIRST_LINES: usize = 60;
const LAST_LINES: usize = 30;
const LINE_CHARS: usize = 500;
/// Part of the seed.
const LOADS: u64 = 100;

/// What a seed is run with.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// The seed.
    pub seed: u64,
    /// Whose rules the agents go by; the guests are ours.
    pub brain: Brain,
    /// A deliberate bug.
    pub bug: Option<Bug>,
    /// All faults are of this family.
    pub family: Option<Family>,
    /// Of the planned faults only these, by number.
    pub only: Option<Vec<usize>>,
    /// Keep a trace of what concerns this VM.
    pub trace: Option<u32>,
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

/// A workload that jumps some times in the hour, mostly around faults, and stays as it is in the end.
fn loads(seed: u64, vm: u32, faults: &[Moment]) -> Loads {
    let mut random = random(seed, LOADS + u64::from(vm));
    let mut moments = vec![Duration::ZERO];
    for _ in 0..random.random_range(2..9) {
        let about = faults.get(random.random_range(0..faults.len().max(1)));
        let at = match about.filter(|_| random.random_bool(0.7)) {
            Some(Moment(fault)) => *fault + Duration::from_millis(random.random_range(0..30_000)),
            None => Duration::from_millis(random.random_range(1_000..3_000_000)),
        };
        moments.push(at.saturating_sub(Duration::from_secs(5)).max(Duration::from_millis(1)));
    }
    moments.sort();
    moments.dedup();
    moments.retain(|at| *at < LOADS_UNTIL);
    let loads: Vec<Load> = moments
        .into_iter()
        .map(|at| {
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
            let memory = Bytes::from_mib(mib);
            Load { at: Moment(at), cpu: MilliCpu(cpu), memory, memory_per_second: 0 }
        })
        .collect();
    Box::new(loads.into_iter())
}

/// The world of a seed, ready to run.
fn world(run: &Run) -> World {
    let settings = Settings {
        seed: run.seed,
        policy: run.brain.policy(),
        doze: Doze::Coarse,
        sleep: true,
        detector: false,
        gives_up: Some(GIVES_UP),
        measure: false,
        record: None,
        checks: true,
        standby: true,
        trace: run.trace,
    };
    let room = Amount { cpu_millis: 8_000, memory_bytes: 16 << 30 };
    let mut world = World::new(settings, &[room; NODES as usize]);
    let faults = world.plan_faults((FAULTS_UNTIL, VMS), run.family, run.only.as_deref());
    for vm in 0..VMS {
        world.add_running(limits(), limits().min, vm % NODES, loads(run.seed, vm, &faults));
    }
    if let Some(bug) = run.bug {
        world.with_bug(bug);
    }
    for at in REST {
        world.rest_at(Moment::from_secs(at));
    }
    world
}

/// How many faults a seed's plan has.
#[must_use]
pub fn planned(run: &Run) -> usize {
    world(&Run { only: None, ..run.clone() }).faults().len()
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
        let again = search(&Run { only: Some(fewer.clone()), trace: None, ..run.clone() });
        if again.violation.is_some_and(|violation| violation.rule == rule) {
            kept = fewer;
        } else {
            index += 1;
        }
    }
    kept
}

/// As the command line has it.
fn name<T: ValueEnum>(value: Option<T>) -> Option<String> {
    value?.to_possible_value().map(|it| it.get_name().to_owned())
}

/// What to tell about a broken rule: one line that repeats it, the faults that it takes, and what happened before.
#[must_use]
pub fn explain(run: &Run, violation: &Violation) -> String {
    let kept = shrink(run, violation.rule);
    let found = search(&Run { only: Some(kept.clone()), trace: Some(violation.vm), ..run.clone() });
    let numbers: Vec<String> = kept.iter().map(ToString::to_string).collect();
    let seed = run.seed;
    let mut text = format!(
        "rule {} is broken: repeat with: simulate faults --seeds {seed}..{} --only {}",
        violation.rule,
        seed + 1,
        if numbers.is_empty() { "none".to_owned() } else { numbers.join(",") },
    );
    let brain = Some(run.brain).filter(|brain| *brain != Brain::default());
    for (option, value) in
        [("policy", name(brain)), ("kind", name(run.family)), ("bug", name(run.bug))]
    {
        if let Some(value) = value {
            let _written = write!(text, " --{option} {value}");
        }
    }
    text.push('\n');
    let shown = found.violation.as_ref().unwrap_or(violation);
    let _written = writeln!(text, "VM v{}, at {:?}: {}", shown.vm, shown.at.0, shown.text);
    for fault in &found.faults {
        let _written = writeln!(text, "  fault: {fault}");
    }
    let lines = &found.trace;
    let begins = lines.iter().position(|line| line.contains(" fault ")).unwrap_or_default();
    let lines = &lines[begins.max(lines.len().saturating_sub(4000))..];
    for (index, line) in lines.iter().enumerate() {
        if index == FIRST_LINES && lines.len() > FIRST_LINES + LAST_LINES {
            let _written = writeln!(text, "  ...");
        }
        if index < FIRST_LINES || index + LAST_LINES >= lines.len() {
            let short: String = line.chars().take(LINE_CHARS).collect();
            let _written = writeln!(text, "  {short}");
        }
    }
    text
}
