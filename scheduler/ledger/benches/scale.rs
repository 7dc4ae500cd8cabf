//! What the ledger costs in a large fleet, in one table: 10,000 nodes with 30 VMs each.
//!
//! Run with `cargo bench -p scheduler-ledger --bench scale`. Beside each figure stands a control that was measured in turns with
//! it: what the same keys cost in a hash map of the standard library. Each line is measured in five rounds, and shows the median
//! of the rounds and their spread. Times are of the wall; `cpu` is the same without what other processes took of the core.
//! Figures and wishes are in ARCHITECTURE.md, "What it costs".

#![expect(clippy::disallowed_methods, reason = "a bench has a clock, and reads its own size")]
#![expect(clippy::print_stdout, reason = "a table for whoever runs it")]

mod fleet;

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use fleet::{NODE, NOW};
use guest_units::Size;
use rustix::time::{ClockId, clock_gettime};
use scheduler_ledger::{
    Action, Amount, Answer, Asked, Event, Ledger, NodeFacts, PodFacts, PodKind, Seal, Settings,
    Todo, VmFacts, Why,
};

const NODES: usize = 10_000;
const VMS_PER_NODE: usize = 30;
const ROUNDS: usize = 5;
/// Pods that are placed in a round.
const PODS: usize = 400;
/// Requests that are made before they are timed.
const CHUNK: usize = 64;
/// Nodes that are added in a round.
const ADDED: usize = 200;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|it| it == part);
    if ["place", "nodes", "lead"].into_iter().any(wants) {
        let before = resident_bytes();
        let started = Instant::now();
        let mut ledger = fleet::ledger(Settings::default(), NODES, VMS_PER_NODE, full, |index| {
            fleet::vm(index, seal(index))
        });
        let loaded = started.elapsed();
        let per_vm = resident_bytes().saturating_sub(before) / (NODES * VMS_PER_NODE);
        println!("{NODES} nodes, {} VMs: loaded in {loaded:.1?}", NODES * VMS_PER_NODE);
        println!("{per_vm} B for each VM, its pod, and its part of the node");
        if wants("place") {
            place(&ledger);
        }
        if wants("lead") {
            lead(&mut ledger);
        }
        if wants("nodes") {
            add_nodes(&mut ledger, NODES);
        }
    }
    if wants("nodes") {
        for nodes in [1_000, 100] {
            let vm = |index| fleet::vm(index, seal(index));
            add_nodes(
                &mut fleet::ledger(Settings::default(), nodes, VMS_PER_NODE, full, vm),
                nodes,
            );
        }
    }
    if wants("permits") {
        for nodes in [NODES, 100] {
            permits(nodes);
        }
    }
}

/// Nodes of four sizes with room for a few more VMs.
fn full(index: usize) -> NodeFacts {
    let eighths = 8 - (index % 4) as u64;
    let allocatable = Amount { cpu_millis: 10_000 * eighths, memory_bytes: eighths * (20 << 30) };
    NodeFacts { name: fleet::node_name(index), allocatable, ..NodeFacts::default() }
}

/// What the VMs have, of several sizes.
fn seal(index: usize) -> Seal {
    let cpu = [500, 1000, 1000, 1500][index % 4];
    Seal { epoch: 1, generation: 1, size: fleet::size(cpu, 2) }
}

/// Filter and prioritize over all nodes, as kube-scheduler asks: the second with the names that the first has left.
fn place(ledger: &Ledger) {
    let names: Vec<String> = (0..NODES).map(fleet::node_name).collect();
    let map: HashMap<String, (Amount, Amount)> =
        names.iter().map(|name| (name.clone(), (NODE, Amount::ZERO))).collect();
    let (mut ours, mut control) = (Spread::default(), Spread::default());
    for _ in 0..ROUNDS {
        let (mut one, mut other) = (Vec::new(), Vec::new());
        for index in 0..PODS {
            let pod = newcomer(index);
            one.push(timed(|| {
                let placement =
                    ledger.filter(&pod, names.iter().map(String::as_str)).expect("it leads");
                let kept = names.iter().zip(&placement.short).filter(|(_, short)| short.is_none());
                let kept: Vec<&str> = kept.map(|(name, _)| name.as_str()).collect();
                black_box((ledger.prioritize(&pod, kept.iter().copied()), placement.reasons()));
            }));
            other.push(timed(|| {
                let look = |name: &String| map.get(name).map(|it| it.0.saturating_sub(it.1));
                black_box(names.iter().filter_map(look).fold(Amount::ZERO, Amount::max));
                black_box(names.iter().filter_map(look).fold(Amount::ZERO, Amount::max));
            }));
        }
        ours.add(&mut one);
        control.add(&mut other);
    }
    ours.print(&format!("filter + prioritize, {NODES} nodes"));
    control.print("  control: each name looked up twice in a HashMap");
}

/// A pod without a node, of many sizes: on some nodes there is room for it.
fn newcomer(index: usize) -> PodFacts {
    let gib = 4 + (index % 61) as u64;
    let requests = Amount { cpu_millis: 500 * gib, memory_bytes: gib << 30 };
    let kind = PodKind::Ordinary { requests };
    PodFacts { uid: format!("new-{index}"), node: None, kind, ..fleet::pod(0, 0, 1, NODE) }
}

/// The lease goes and comes: nobody is answered meanwhile. The renewals do not wait for it.
fn lead(ledger: &mut Ledger) {
    let mut spreads = [Spread::default(), Spread::default(), Spread::default()];
    for round in 0..ROUNDS as u64 {
        let took = [
            timed(|| ledger.handle(Event::Leader(None), NOW)),
            timed(|| ledger.handle(Event::Leader(Some(2 + round)), NOW)),
            timed(|| ledger.clone()),
        ];
        assert!(ledger.next(NOW).start.is_empty(), "nobody wants anything");
        spreads.iter_mut().zip(took).for_each(|(spread, took)| spread.add(&mut [took]));
    }
    let names = ["the lease goes", "another epoch begins", "  control: all of it copied"];
    spreads.iter().zip(names).for_each(|(spread, name)| spread.print(name));
}

fn add_nodes(ledger: &mut Ledger, known: usize) {
    let mut map: HashMap<String, Amount> =
        (0..known).map(|index| (fleet::node_name(index), NODE)).collect();
    let (mut ours, mut control) = (Spread::default(), Spread::default());
    for _ in 0..ROUNDS {
        let (mut one, mut other) = (Vec::new(), Vec::new());
        for index in known..known + ADDED {
            let event = Event::Node(full(index));
            one.push(timed(|| ledger.handle(event, NOW)));
            let name = fleet::node_name(index);
            other.push(timed(|| map.insert(name, NODE)));
        }
        for index in known..known + ADDED {
            ledger.handle(Event::NodeGone(fleet::node_name(index)), NOW);
            map.remove(&fleet::node_name(index));
        }
        ours.add(&mut one);
        control.add(&mut other);
    }
    ours.print(&format!("a node is added to {known}"));
    control.print("  control: inserted into a HashMap");
}

/// Requests for which nothing has to be done: the same again, and less and more within what the pod requests anyway.
fn permits(nodes: usize) {
    let vms = nodes * VMS_PER_NODE;
    // The floor keeps the requests where they are, the lease on top of the largest size included: so what is given back may be
    // asked for again, and nothing is ordered.
    let floor = Amount { cpu_millis: 3100, memory_bytes: (6 << 30) + (256 << 20) };
    let vm = |index, seal: Seal| VmFacts { floor, ..fleet::vm(index, seal) };
    let first = Seal { epoch: 1, generation: 1, size: fleet::size(1000, 2) };
    let node = |index| NodeFacts {
        name: fleet::node_name(index),
        allocatable: NODE,
        ..NodeFacts::default()
    };
    let mut ledger =
        fleet::ledger(Settings::default(), nodes, VMS_PER_NODE, node, |index| vm(index, first));
    assert!(ledger.next(NOW).start.is_empty(), "the fleet is at rest");
    let mut map: HashMap<String, Size> =
        (0..vms).map(|index| (fleet::vm_uid(index), first.size)).collect();
    let sizes = [first.size, fleet::size(750, 1), fleet::size(2000, 4)];
    let kinds = ["the same again", "less", "more"];
    let reasons = [Why::Repeated, Why::NothingGrows, Why::AlreadyBacked];
    // Steps through all of them far from one another: 7,919 is a prime.
    let order = || (0..vms.min(60_000)).map(|step| step * 7919 % vms);
    let mut spreads = [Spread::default(), Spread::default(), Spread::default(), Spread::default()];
    let mut number = 1;
    for _ in 0..ROUNDS {
        for (kind, (want, why)) in sizes.into_iter().zip(reasons).enumerate() {
            number += 1;
            let (mut took, mut control) = <(Times, Times)>::default();
            let indexes: Vec<usize> = order().collect();
            // A request has just been read when the ledger hears of it: it is in the cache, and so are the control's keys.
            for some in indexes.chunks(CHUNK) {
                let asked =
                    |index: &usize| fleet::asked(*index, *index / VMS_PER_NODE, number, want);
                let all: Vec<Asked> = some.iter().map(asked).collect();
                let keys: Vec<String> = some.iter().map(|index| fleet::vm_uid(*index)).collect();
                took = took.and(timed(|| {
                    for asked in all {
                        black_box(ask(&mut ledger, asked, why));
                    }
                }));
                control = control.and(timed(|| {
                    for key in &keys {
                        map.get_mut(key).into_iter().for_each(|size| *size = want);
                    }
                }));
            }
            spreads[kind].each(took, indexes.len());
            spreads[3].each(control, indexes.len());
        }
        // The agent gives back what was more, the operator obeys, and all is as it was.
        number += 1;
        for index in order() {
            let asked = fleet::asked(index, index / VMS_PER_NODE, number, first.size);
            let seal = ask(&mut ledger, asked, Why::NothingGrows);
            ledger.handle(Event::Vm(vm(index, seal)), NOW);
        }
        assert!(ledger.next(NOW).start.is_empty(), "the fleet is at rest");
    }
    for (name, spread) in kinds.iter().zip(&spreads) {
        spread.print_rate(&format!("permits, {vms} VMs: {name}"));
    }
    spreads[3].print_rate("  control: looked up and set in a HashMap");
}

/// The whole way of a request through the ledger: asked, answered, the answer taken.
fn ask(ledger: &mut Ledger, asked: Asked, why: Why) -> Seal {
    ledger.handle(Event::Asked(asked), NOW);
    let actions = ledger.next(NOW);
    let [Todo { id, action: Action::Answer { answer: Answer::Permit { seal, .. }, .. }, why: it }] =
        actions.start[..]
    else {
        panic!("{actions:?}")
    };
    assert_eq!(it, why);
    ledger.handle(Event::Started(id), NOW);
    seal
}

/// What one call took: of the wall, and of the processor.
fn timed<T>(act: impl FnOnce() -> T) -> Times {
    let cpu = || {
        let at = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(at.tv_sec.unsigned_abs(), u32::try_from(at.tv_nsec).unwrap_or(0))
    };
    let (started, cpu_before) = (Instant::now(), cpu());
    black_box(act());
    let cpu_after = cpu();
    Times { wall: started.elapsed(), cpu: cpu_after.saturating_sub(cpu_before) }
}

/// Of the wall, and of the processor.
#[derive(Clone, Copy, Default)]
struct Times {
    wall: Duration,
    cpu: Duration,
}

impl Times {
    fn and(self, other: Self) -> Self {
        Self { wall: self.wall + other.wall, cpu: self.cpu + other.cpu }
    }
}

/// The same measure over several rounds: p50 and p99 of the wall, p99 of the processor.
#[derive(Default, Clone)]
struct Spread([Vec<Duration>; 3]);

impl Spread {
    fn add(&mut self, samples: &mut [Times]) {
        let part = |samples: &[Times], percent: usize| {
            samples.get(samples.len() * percent / 100).copied().unwrap_or_default()
        };
        samples.sort_unstable_by_key(|sample| sample.wall);
        self.0[0].push(part(samples, 50).wall);
        self.0[1].push(part(samples, 99).wall);
        samples.sort_unstable_by_key(|sample| sample.cpu);
        self.0[2].push(part(samples, 99).cpu);
    }

    fn each(&mut self, took: Times, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.0[0].push(took.wall / count);
        self.0[2].push(took.cpu / count);
    }

    /// Median, lowest and highest of the rounds.
    fn of(&self, which: usize) -> (Duration, Duration, Duration) {
        let mut all = self.0[which].clone();
        all.sort_unstable();
        let at = |place: usize| all.get(place).copied().unwrap_or_default();
        (at(all.len() / 2), at(0), at(all.len().saturating_sub(1)))
    }

    fn print(&self, name: &str) {
        let text = |which| {
            let (median, lowest, highest) = self.of(which);
            format!("{median:>9.1?} ({lowest:.1?} to {highest:.1?})")
        };
        println!("{name:<50} p50 {}  p99 {}  p99 cpu {}", text(0), text(1), text(2));
    }

    fn print_rate(&self, name: &str) {
        let rate = |time: Duration| 1e-6 / time.as_secs_f64();
        let text = |which| {
            let (median, lowest, highest) = self.of(which);
            format!("{:.2} M/s ({:.2} to {:.2})", rate(median), rate(highest), rate(lowest))
        };
        println!("{name:<50} wall {}  cpu {}", text(0), text(2));
    }
}

/// What this process keeps in memory.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<usize>().ok());
    kib.unwrap_or_default() * 1024
}
