//! Random operations around a ledger, against what is really true outside of it.
//!
//! The world here loses, delays and repeats: answers may never be used, used late, or after the ledger began again. What
//! must hold after each step, whatever happened:
//! - every size that could still be plugged is backed by what kubelet has allocated (so rule "never overcommit" follows);
//! - no hypervisor has more than its approval or its minimum;
//! - the ledger never promises more than a node has, and forgets nothing that it has promised.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use guest_units::{MilliCpu, Size};
use proptest::prelude::*;
use scheduler_ledger::{Amount, Answer, Event, PodKind, ResizeResult, Seal};
use scheduler_protocol::RefusalCode;
use support::{Done, World, allocated, amount, cost, node, ordinary, runner, size, vm};

const VMS: usize = 3;
const NODES: [&str; 2] = ["n1", "n2"];

#[derive(Debug, Clone)]
enum Op {
    Ask {
        vm: usize,
        cpu: u32,
        gib: u64,
        least: u32,
        stale: bool,
    },
    /// The agent writes the answer it was given last, if it still can.
    Patch {
        vm: usize,
    },
    /// The agent loses the answer.
    Lose {
        vm: usize,
    },
    /// The API server takes the oldest order, or refuses it, or takes it and the answer is lost.
    Api {
        outcome: u8,
    },
    Kubelet {
        vm: usize,
    },
    /// The hypervisor moves towards the object's use.
    Plug {
        vm: usize,
        part: u8,
    },
    Use {
        vm: usize,
        cpu: u32,
        gib: u64,
    },
    /// Another scheduler places a pod where the API server shows room.
    Place {
        node: usize,
        cpu: u64,
        gib: u64,
    },
    Remove {
        index: usize,
    },
    Pass {
        ms: u64,
    },
    Restart,
    Lease {
        lost: bool,
    },
    /// The watch repeats itself.
    Repeat {
        vm: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let vm = 0..VMS;
    prop_oneof![
        6 => (vm.clone(), 1_u32..24, 1_u64..8, 1_u32..24, prop::bool::weighted(0.1)).prop_map(
            |(vm, cpu, gib, least, stale)| Op::Ask { vm, cpu: cpu * 250, gib, least: least * 250, stale }
        ),
        4 => vm.clone().prop_map(|vm| Op::Patch { vm }),
        1 => vm.clone().prop_map(|vm| Op::Lose { vm }),
        6 => (0_u8..10).prop_map(|outcome| Op::Api { outcome }),
        6 => vm.clone().prop_map(|vm| Op::Kubelet { vm }),
        4 => (vm.clone(), 0_u8..3).prop_map(|(vm, part)| Op::Plug { vm, part }),
        2 => (vm.clone(), 1_u32..24, 1_u64..8).prop_map(|(vm, cpu, gib)| Op::Use { vm, cpu: cpu * 250, gib }),
        3 => (0..NODES.len(), 0_u64..4, 0_u64..4).prop_map(
            |(node, cpu, gib)| Op::Place { node, cpu: cpu * 500, gib }
        ),
        2 => (0_usize..8).prop_map(|index| Op::Remove { index }),
        3 => (1_u64..3000).prop_map(|ms| Op::Pass { ms }),
        1 => Just(Op::Restart),
        1 => any::<bool>().prop_map(|lost| Op::Lease { lost }),
        1 => vm.prop_map(|vm| Op::Repeat { vm }),
    ]
}

/// The world with everything that is on its way.
struct Run {
    world: World,
    epoch: u64,
    /// Orders sent and not yet with the API server.
    orders: Vec<Done>,
    /// Approvals that the extender is writing.
    writes: Vec<(String, Seal)>,
    /// Approvals that agents hold, by VM.
    held: BTreeMap<String, Vec<Seal>>,
    open: BTreeMap<u64, u64>,
    generations: [u64; VMS],
    pods: u32,
}

fn name(vm: usize) -> String {
    format!("v{vm}")
}

impl Run {
    fn new() -> Self {
        let mut world = World::new(&[node("n1", 6000, 12), node("n2", 4000, 8)]);
        for index in 0..VMS {
            let mut facts = vm(&name(index), size(1000, 1));
            facts.autoscaled = index != 2;
            facts.max = size(6000, 8);
            facts.plugged = Some(facts.min);
            world.vm(facts);
            let node = NODES[index % NODES.len()];
            world.pod(runner(&name(index), Some(node), cost(size(1000, 1))));
        }
        let mut run = Self {
            world,
            epoch: 1,
            orders: Vec::new(),
            writes: Vec::new(),
            held: BTreeMap::new(),
            open: BTreeMap::new(),
            generations: [0; VMS],
            pods: 0,
        };
        run.collect();
        run
    }

    /// Starts what is to be done: it is now on its way.
    fn collect(&mut self) {
        for done in self.world.take() {
            match done {
                Done::Answer(ticket, answer) => {
                    let asked = self.open.remove(&ticket).expect("each request is answered once");
                    if let Answer::Permit { seal, generation, .. } = answer {
                        assert_eq!(asked % 1_000_000, generation);
                        let vm = format!("vm-v{}", asked / 1_000_000);
                        self.held.entry(vm).or_default().push(seal);
                    }
                }
                Done::Resize(..) => self.orders.push(done),
                Done::Approve(vm, seal) => self.writes.push((vm, seal)),
                Done::Denied(_, reason) => assert!(!reason.is_empty()),
                Done::Served(..) => {}
            }
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Ask { vm, cpu, gib, least, stale } => self.ask(vm, cpu, gib, least, stale),
            Op::Patch { vm } => self.patch(vm),
            Op::Lose { vm } => {
                self.held.remove(&format!("vm-v{vm}"));
            }
            Op::Api { outcome } => self.api(outcome),
            Op::Kubelet { vm } => self.world.kubelet(&format!("pod-v{vm}")),
            Op::Plug { vm, part } => self.plug(vm, part),
            Op::Use { vm, cpu, gib } => {
                let mut facts = self.world.vms[&format!("vm-v{vm}")].clone();
                facts.wanted = size(cpu, gib).max(facts.min).min(facts.max);
                self.world.vm(facts);
            }
            Op::Place { node, cpu, gib } => self.place(NODES[node], amount(cpu, gib * 1024)),
            Op::Remove { index } => {
                let others: Vec<String> =
                    self.world.pods.keys().filter(|uid| uid.starts_with("o-")).cloned().collect();
                if let Some(uid) = others.get(index) {
                    self.world.pods.remove(uid);
                    self.world.tell(Event::PodGone(uid.clone()));
                }
            }
            Op::Pass { ms } => self.world.pass(Duration::from_millis(ms)),
            Op::Restart => self.restart(),
            Op::Lease { lost } => {
                if !lost {
                    self.epoch += 1;
                }
                let epoch = (!lost).then_some(self.epoch);
                self.world.tell(Event::Leader(epoch));
            }
            Op::Repeat { vm } => {
                let (pod, facts) = (
                    self.world.pods[&format!("pod-v{vm}")].clone(),
                    self.world.vms[&format!("vm-v{vm}")].clone(),
                );
                self.world.pod(pod);
                self.world.vm(facts);
            }
        }
        self.collect();
    }

    fn ask(&mut self, vm: usize, cpu: u32, gib: u64, least: u32, stale: bool) {
        if vm == 2 {
            return;
        }
        let generation = if stale {
            self.generations[vm].saturating_sub(1)
        } else {
            self.generations[vm] += 1;
            self.generations[vm]
        };
        let caller = NODES[vm % NODES.len()];
        let want = size(cpu, gib);
        let least = Size { cpu: MilliCpu(least.min(cpu)), memory: want.memory };
        let ticket = self.world.ask_from(caller, &name(vm), generation, want, least);
        let index = u64::try_from(vm).expect("small");
        self.open.insert(ticket, index * 1_000_000 + generation);
    }

    /// A JSON patch that tests the proof: an older approval never replaces a newer one.
    fn patch(&mut self, vm: usize) {
        let uid = format!("vm-v{vm}");
        let Some(seal) = self.held.get_mut(&uid).and_then(Vec::pop) else { return };
        let mut facts = self.world.vms[&uid].clone();
        if facts.visible.is_none_or(|visible| visible.place() < seal.place()) {
            facts.visible = Some(seal);
            facts.wanted = seal.size;
            self.world.vm(facts);
        }
    }

    fn api(&mut self, outcome: u8) {
        if !self.writes.is_empty() {
            let (uid, seal) = self.writes.remove(0);
            let mut facts = self.world.vms[&uid].clone();
            let newer = facts.visible.is_none_or(|visible| visible.place() < seal.place());
            let done = newer && outcome != 0;
            if done {
                facts.visible = Some(seal);
                self.world.vm(facts);
            }
            let generation = seal.generation;
            self.world.tell(Event::ApproveEnded { vm: uid, generation, written: done });
        }
        if self.orders.is_empty() {
            return;
        }
        let Done::Resize(uid, number, requests) = self.orders.remove(0) else { return };
        match outcome {
            0 => self.world.tell(Event::ResizeEnded {
                pod: uid,
                number,
                result: ResizeResult::Refused,
            }),
            1 => {
                // It was done, but nobody said so.
                let mut pod = self.world.pods[&uid].clone();
                if let PodKind::Runner(runner) = &mut pod.kind {
                    (runner.spec, runner.pending) = (requests, None);
                    runner.generation += 1;
                }
                self.world.tell(Event::ResizeEnded {
                    pod: uid,
                    number,
                    result: ResizeResult::Unknown,
                });
                self.world.pod(pod);
            }
            _ => self.world.accept(&uid, number, requests),
        }
    }

    fn plug(&mut self, vm: usize, part: u8) {
        let mut facts = self.world.vms[&format!("vm-v{vm}")].clone();
        let approved = facts.visible.map_or(facts.min, |seal| seal.size);
        let goal = facts.wanted.min(approved).max(facts.min);
        let now = facts.plugged.unwrap_or(facts.min);
        facts.plugged = Some(match part {
            0 => goal,
            1 => Size { cpu: goal.cpu, memory: now.memory },
            _ => Size { cpu: now.cpu, memory: goal.memory },
        });
        self.world.vm(facts);
    }

    /// kube-scheduler counts the larger of spec and allocation.
    fn place(&mut self, node: &str, requests: Amount) {
        let used: Amount = self.world.pods.values().map(|pod| shown(pod, node)).sum();
        let room = self.world.nodes[node].allocatable;
        if (used + requests).fits_in(room) {
            self.pods += 1;
            self.world.pod(ordinary(&format!("o-{}", self.pods), node, requests));
        }
    }

    /// The process dies: what was on its way to the API server is lost, what agents hold is not.
    fn restart(&mut self) {
        self.orders.clear();
        self.writes.clear();
        self.open.clear();
        self.epoch += 1;
        self.world.relist(self.epoch);
    }

    /// What could be plugged, if everybody used what they hold.
    fn possible(&self, uid: &str) -> Size {
        let facts = &self.world.vms[uid];
        let visible = facts.visible.map(|seal| seal.place());
        let held = self.held.get(uid).into_iter().flatten();
        let written = self.writes.iter().filter(|(vm, _)| vm == uid).map(|(_, seal)| seal);
        let usable = held.chain(written).filter(|seal| visible.is_none_or(|it| it < seal.place()));
        usable
            .map(|seal| seal.size)
            .chain(facts.visible.map(|seal| seal.size))
            .chain(facts.plugged)
            .fold(facts.min, Size::max)
    }

    fn check(&self) {
        for node in NODES {
            let room = self.world.nodes[node].allocatable;
            let given: Amount = self.world.pods.values().map(|pod| allocated(pod, node)).sum();
            assert!(given.fits_in(room), "kubelet itself never overcommits {node}: {given}");
        }
        let dump = self.world.ledger.dump();
        for (index, vm) in self.world.vms.values().enumerate() {
            let uid = format!("vm-v{index}");
            let possible = self.possible(&uid);
            let PodKind::Runner(runner) = &self.world.pods[&format!("pod-v{index}")].kind else {
                panic!("not a runner")
            };
            let backed = runner.allocated.unwrap_or_default();
            assert!(
                cost(possible).fits_in(backed),
                "{} could plug {possible}, kubelet gave {backed}",
                vm.name
            );
            let approved = vm.visible.map_or(vm.min, |seal| seal.size);
            assert!(vm.visible.is_none_or(|seal| seal.size.fits_in(vm.max)));
            let _ = approved;
        }
        for (name, node) in dump.nodes {
            let promised: Amount = node.vms.values().map(|vm| cost(vm.promise)).sum();
            assert!(
                (promised + node.ordinary).fits_in(node.allocatable),
                "{name} is promised away"
            );
        }
    }

    /// When faults stop, every request ends and everything settles.
    fn settle(&mut self) {
        self.epoch += 1;
        self.world.tell(Event::Leader(Some(self.epoch)));
        for _ in 0..40 {
            self.collect();
            self.world.pass(Duration::from_millis(500));
            self.collect();
            for _ in 0..VMS * 2 {
                self.api(5);
                self.collect();
            }
            for vm in 0..VMS {
                self.world.kubelet(&format!("pod-v{vm}"));
                self.patch(vm);
                self.plug(vm, 0);
            }
            self.check();
        }
        assert!(self.open.is_empty(), "requests without an end: {:?}", self.open);
        assert!(self.orders.len() <= VMS, "the ledger does not come to rest: {:?}", self.orders);
    }
}

fn shown(pod: &scheduler_ledger::PodFacts, node: &str) -> Amount {
    let given = allocated(pod, node);
    match &pod.kind {
        PodKind::Runner(runner) if pod.node.as_deref() == Some(node) => {
            runner.total(runner.spec).max(given)
        }
        _ => given,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_promised_that_is_not_there(ops in prop::collection::vec(op(), 1..120)) {
        let mut run = Run::new();
        run.check();
        for op in &ops {
            run.apply(op);
            run.check();
        }
        run.settle();
    }
}

#[test]
fn a_stale_request_changes_nothing() {
    let mut run = Run::new();
    run.ask(0, 1000, 1, 1000, false);
    run.ask(0, 1000, 1, 1000, false);
    run.collect();
    let before = run.world.ledger.dump();
    let ticket = run.world.ask_from("n1", "v0", 1, size(6000, 8), size(250, 1));
    let done = run.world.take();
    assert!(matches!(
        &done[..],
        [Done::Answer(it, Answer::Refused { code: RefusalCode::Stale, .. })] if *it == ticket
    ));
    assert_eq!(run.world.ledger.dump(), before);
}
