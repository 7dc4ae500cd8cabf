//! The cost of what the ledger is told and asked most: a request that changes nothing, a VM that grows, a pod that is placed.
//!
//! Run with `cargo bench -p scheduler-ledger`. Budgets, for a node of 100 VMs: 2 µs for a request that changes nothing, 20 µs for
//! a whole growth; beside 49 VMs that wait for room that is not there, 100 µs.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use guest_units::{Bytes, MilliCpu, Moment, Size};
use scheduler_ledger::{
    Action, Actions, Amount, Asked, DEFAULT_OVERHEAD, Event, Ledger, NodeFacts, PodFacts, PodKind,
    Price, ResizeResult, RunnerFacts, Seal, Settings, Ticket, VmFacts,
};
use scheduler_protocol::ObjectRef;

const NODE: Amount = Amount { cpu_millis: 400_000, memory_bytes: 800 << 30 };

fn size(cpu: u32, gib: u64) -> Size {
    Size { cpu: MilliCpu(cpu), memory: Bytes::from_gib(gib) }
}

fn vm(index: usize, seal: Seal) -> VmFacts {
    VmFacts {
        uid: format!("f7b3c1de-vm-{index}"),
        namespace: "databases".into(),
        name: format!("postgres-{index}"),
        min: size(250, 1),
        max: size(16_000, 64),
        wanted: seal.size,
        slot: Bytes::from_gib(1),
        floor: Amount::ZERO,
        autoscaled: true,
        visible: Some(seal),
        obeyed: Some(seal.place()),
        plugged: Some(seal.size),
        pod_name: Some(format!("postgres-{index}-pod")),
        deleting: false,
    }
}

fn pod(index: usize, node: usize, generation: u64, requests: Amount) -> PodFacts {
    PodFacts {
        uid: format!("f7b3c1de-pod-{index}"),
        namespace: "databases".into(),
        name: format!("postgres-{index}-pod"),
        node: Some(format!("node-{node}")),
        finished: false,
        unschedulable: false,
        version: generation,
        kind: PodKind::Runner(RunnerFacts {
            vm_uid: format!("f7b3c1de-vm-{index}"),
            spec: requests,
            allocated: Some(requests),
            beside: Amount::ZERO,
            init_peak: Amount::ZERO,
            generation,
            observed: generation,
            pending: None,
            price: Price::default(),
        }),
    }
}

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
        let now = Moment::from_secs(100);
        let mut ledger = Ledger::new(Settings::default());
        let last = Seal { epoch: 1, generation: 1, size: size(1000, 2) };
        ledger.handle(Event::Leader(Some(1)), now);
        let name = |node| format!("node-{node}");
        for node in 0..nodes {
            let facts = NodeFacts { name: name(node), allocatable: NODE };
            ledger.handle(Event::Node(facts), now);
            for index in node * vms..(node + 1) * vms {
                ledger.handle(Event::Vm(vm(index, last)), now);
                let requests = Amount::from(last.size) + DEFAULT_OVERHEAD;
                ledger.handle(Event::Pod(pod(index, node, 1, requests)), now);
            }
        }
        ledger.handle(Event::NodesListed((0..nodes).map(name).collect()), now);
        let all = 0..nodes * vms;
        let uids = all.clone().map(|index| format!("f7b3c1de-pod-{index}")).collect();
        ledger.handle(Event::PodsListed(uids), now);
        let uids = all.map(|index| format!("f7b3c1de-vm-{index}")).collect();
        ledger.handle(Event::VmsListed(uids), now);
        Self { ledger, now, request: 0, generation: 1, last }
    }

    fn ask(&mut self, index: usize, want: Size, least: Size) {
        self.request += 1;
        let reference =
            |uid: String, name: String| ObjectRef { namespace: "databases".into(), name, uid };
        let asked = Asked {
            ticket: Ticket(self.request),
            caller_node: "node-0".into(),
            vm: reference(format!("f7b3c1de-vm-{index}"), format!("postgres-{index}")),
            pod: reference(format!("f7b3c1de-pod-{index}"), format!("postgres-{index}-pod")),
            generation: self.request,
            want,
            least,
        };
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
        let Some(Action::Resize { number, requests, .. }) = actions.first().map(|it| &it.action)
        else {
            panic!("nothing is ordered: {actions:?}")
        };
        self.generation += 1;
        let (number, generation) = (*number, self.generation);
        let result = ResizeResult::Accepted { generation };
        let uid = format!("f7b3c1de-pod-{index}");
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
        bencher.iter(|| {
            desk.ask(50, size(1000, 2), size(1000, 2));
            black_box(desk.act());
        });
    });
    let mut desk = Desk::new(1, 100);
    criterion.bench_function("grown and shrunk, node of 100", |bencher| {
        bencher.iter(|| desk.grow_and_shrink());
    });
    let mut waiting = Desk::new(1, 100);
    let kind = PodKind::Ordinary { requests: Amount { cpu_millis: 280_000, memory_bytes: 0 } };
    let other = PodFacts { uid: "other".into(), kind, ..pod(0, 0, 1, NODE) };
    waiting.ledger.handle(Event::Pod(other), waiting.now);
    // No time passes: all of them go on waiting for the 15 CPUs that are not there.
    for index in 0..49 {
        waiting.ask(index, size(16_000, 2), size(16_000, 2));
    }
    assert_eq!(waiting.act().start, []);
    criterion.bench_function("grown and shrunk, node of 100, 49 wait", |bencher| {
        bencher.iter(|| waiting.grow_and_shrink());
    });
    let desk = Desk::new(500, 100);
    let names: Vec<String> = (0..500).map(|node| format!("node-{node}")).collect();
    let new =
        PodFacts { uid: "new".into(), node: None, ..pod(0, 0, 1, NODE.min(DEFAULT_OVERHEAD)) };
    criterion.bench_function("filter and prioritize, 500 nodes of 100", |bencher| {
        bencher.iter(|| {
            let placement = desk.ledger.filter(black_box(&new), &names).expect("it leads");
            black_box(desk.ledger.prioritize(&new, &placement.nodes));
        });
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
