//! The cost of what the ledger is told and asked most: a request that changes nothing, a VM that grows, a pod that is placed.
//!
//! Run with `cargo bench -p scheduler-ledger --bench ledger`; what a large fleet costs is measured by `--bench scale`. Budgets, for a node of 100 VMs: 2 µs for a request that changes nothing, 20 µs for
//! a whole growth; beside 49 VMs that wait for room that is not there, 100 µs.

#![expect(clippy::disallowed_methods, reason = "a bench has a clock")]

mod fleet;

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use fleet::{NODE, NOW, pod, size, vm};
use guest_units::{Moment, Size};
use scheduler_ledger::{
    Action, Actions, Amount, Asked, DEFAULT_OVERHEAD, Event, Ledger, NodeFacts, PodFacts, PodKind,
    ResizeResult, Seal, Settings, Todo,
};

/// A ledger and the shell around it.
struct Desk {
    ledger: Ledger,
    now: Moment,
    request: u64,
    generation: u64,
    last: Seal,
}

impl Desk {
    /// VMs of one CPU and two GiB, so many on each node.
    fn new(nodes: usize, vms: usize) -> Self {
        let last = Seal { epoch: 1, generation: 1, size: size(1000, 2) };
        // Every growth waits for kubelet.
        let settings = Settings { lease: None, ..Settings::default() };
        let ledger = fleet::ledger(settings, nodes, vms, node, |index| vm(index, last));
        Self { ledger, now: NOW, request: 0, generation: 1, last }
    }

    fn ask(&mut self, index: usize, want: Size, least: Size) {
        self.request += 1;
        let asked = Asked { least, ..fleet::asked(index, 0, self.request, want) };
        self.ledger.handle(Event::Asked(asked), self.now);
    }

    fn act(&mut self) -> Actions {
        let actions = self.ledger.next(self.now);
        for todo in &actions.start {
            self.ledger.handle(Event::Started(todo.id), self.now);
        }
        actions
    }

    /// Asks, orders, hears that the API server accepted and that kubelet allocated, answers; then the VM's object follows.
    fn resize_to(&mut self, index: usize, want: Size) {
        self.ask(index, want, want);
        let mut actions = self.act().start;
        self.last.size = want;
        // What was given back returns after the object shows it.
        if !matches!(actions[..], [ref todo] if matches!(todo.action, Action::Resize { .. })) {
            self.last.generation += 1;
            self.ledger.handle(Event::Vm(vm(index, self.last)), self.now);
            actions = self.act().start;
        }
        self.ordered(index, &actions);
    }

    /// A request that waited is served.
    fn grows(&mut self, index: usize, want: Size) {
        self.last.size = want;
        let actions = self.act().start;
        self.ordered(index, &actions);
    }

    fn ordered(&mut self, index: usize, actions: &[Todo]) {
        let Some(Action::Resize { number, requests, .. }) = actions.first().map(|it| &it.action)
        else {
            panic!("nothing is ordered: {actions:?}")
        };
        self.generation += 1;
        let (number, generation) = (*number, self.generation);
        let result = ResizeResult::Accepted { generation };
        let uid = fleet::pod_uid(index);
        self.ledger.handle(Event::ResizeEnded { pod: uid, number, result }, self.now);
        self.ledger.handle(Event::Pod(pod(index, 0, generation, *requests)), self.now);
        if self.act().start.iter().any(|todo| matches!(todo.action, Action::Answer { .. })) {
            self.last.generation += 1;
            self.ledger.handle(Event::Vm(vm(index, self.last)), self.now);
        }
    }

    fn grow_and_shrink(&mut self) {
        self.resize_to(50, size(2000, 4));
        self.resize_to(50, size(1000, 2));
    }
}

fn bench(criterion: &mut Criterion) {
    let mut desk = Desk::new(1, 100);
    criterion.bench_function("a request that changes nothing, node of 100", |bencher| {
        let mut number = 0;
        let ask = || {
            number += 1;
            fleet::asked(50, 0, number, size(1000, 2))
        };
        let answer = |asked| {
            desk.ledger.handle(Event::Asked(asked), desk.now);
            black_box(desk.act());
        };
        bencher.iter_batched(ask, answer, BatchSize::SmallInput);
    });
    let mut desk = Desk::new(1, 100);
    criterion.bench_function("grown and shrunk, node of 100", |bencher| {
        bencher.iter(|| desk.grow_and_shrink());
    });
    let mut waiting = Desk::new(1, 100);
    waiting.ledger.handle(Event::Pod(other()), waiting.now);
    // No time passes: all of them go on waiting for the 15 CPUs that are not there.
    for index in 0..49 {
        waiting.ask(index, size(16_000, 2), size(16_000, 2));
    }
    assert_eq!(waiting.act().start, []);
    criterion.bench_function("grown and shrunk, node of 100, 49 wait", |bencher| {
        bencher.iter(|| waiting.grow_and_shrink());
    });
    freed(criterion);
    place(criterion);
}

/// A pod that leaves 10 CPUs of a node of 100.
fn other() -> PodFacts {
    let kind = PodKind::Ordinary { requests: Amount { cpu_millis: 280_000, memory_bytes: 0 } };
    PodFacts { uid: "other".into(), kind, ..pod(0, 0, 1, NODE) }
}

/// From the moment that room is seen to be free: the order for a request that waits, and after kubelet's word its answer.
fn freed(criterion: &mut Criterion) {
    let mut desk = Desk::new(1, 100);
    let (small, large) = (size(1000, 2), size(16_000, 2));
    criterion.bench_function("room is freed for one that waits, node of 100", |bencher| {
        bencher.iter_custom(|times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                desk.ledger.handle(Event::Pod(other()), desk.now);
                desk.ask(50, large, large);
                assert_eq!(desk.act().start, []);
                let started = Instant::now();
                desk.ledger.handle(Event::PodGone("other".into()), desk.now);
                desk.grows(50, large);
                took += started.elapsed();
                desk.resize_to(50, small);
            }
            took
        });
    });
}

/// As kube-scheduler asks by default, and when it is told to look at all nodes.
fn place(criterion: &mut Criterion) {
    for (nodes, vms) in [(500, 100), (10_000, 10)] {
        let desk = Desk::new(nodes, vms);
        let names: Vec<String> = (0..nodes).map(fleet::node_name).collect();
        let requests = NODE.min(DEFAULT_OVERHEAD);
        let new = PodFacts { uid: "new".into(), node: None, ..pod(0, 0, 1, requests) };
        let map: HashMap<&str, Amount> = names.iter().map(|name| (name.as_str(), NODE)).collect();
        criterion.bench_function(&format!("filter and prioritize, {nodes} nodes"), |bencher| {
            bencher.iter(|| {
                let names = || names.iter().map(String::as_str);
                let placement = desk.ledger.filter(black_box(&new), names()).expect("it leads");
                assert!(placement.short.iter().all(Option::is_none));
                black_box(desk.ledger.prioritize(&new, names()));
            });
        });
        criterion.bench_function(
            &format!("control: {nodes} names in a HashMap, twice"),
            |bencher| {
                bencher.iter(|| {
                    for name in names.iter().chain(&names) {
                        black_box(map.get(name.as_str()));
                    }
                });
            },
        );
    }
}

/// All nodes are alike.
fn node(index: usize) -> NodeFacts {
    NodeFacts { name: fleet::node_name(index), allocatable: NODE, ..NodeFacts::default() }
}

criterion_group!(benches, bench);
criterion_main!(benches);
