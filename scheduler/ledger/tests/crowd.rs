//! Many VMs that want the same room: what the ledger keeps instead of adding up must be what adding up gives, and looking only at
//! what has changed must come to the same as looking at everything. `World::tell` checks both after each event.

mod support;

use std::time::Duration;

use guest_units::Size;
use proptest::option::of;
use proptest::prelude::*;
use scheduler_ledger::{
    Answer, Demands, Event, MigrationFacts, Moves, PodFacts, ResizeResult, Seal, Settings,
};
use support::{Done, World, amount, cost, node, ordinary, runner, size, vm};

/// VMs without an agent are those at the end.
const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "x", "y"];
const NODES: [&str; 2] = ["n1", "n2"];

#[derive(Debug, Clone)]
enum Op {
    Ask {
        vm: usize,
        cpu: u32,
        gib: u64,
        least: u32,
    },
    Spec {
        vm: usize,
        cpu: u32,
        gib: u64,
    },
    Patch {
        vm: usize,
    },
    /// The oldest order ends: taken, refused, of unknown end, of another version, without the lease.
    Api {
        outcome: u8,
    },
    Kubelet {
        vm: usize,
    },
    Other {
        index: u32,
        node: usize,
        cpu: u64,
    },
    Remove {
        index: u32,
    },
    /// A pod that some scheduler could not place, or is yet to look at.
    Pending {
        index: u32,
        cpu: u64,
        gib: u64,
        unschedulable: bool,
    },
    Lose {
        vm: usize,
    },
    Bind {
        vm: usize,
        node: usize,
    },
    LookUp {
        vm: usize,
    },
    /// A second pod of a VM, which may be the next one or a stranger's.
    Twin {
        vm: usize,
        node: usize,
        stranger: bool,
    },
    VmGone {
        vm: usize,
    },
    Node {
        node: usize,
        cpu: u64,
    },
    NodeGone {
        node: usize,
    },
    Lease {
        held: bool,
    },
    /// A migration as the watch shows it, or that it is gone.
    Migration {
        index: u32,
        vm: usize,
        to: Option<usize>,
        ended: Option<bool>,
        gone: bool,
    },
    Relist,
    Pass {
        ms: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let vm = 0..NAMES.len();
    let node = 0..NODES.len();
    prop_oneof![
        12 => (vm.clone(), 1_u32..16, 1_u64..6, 1_u32..16).prop_map(|(vm, cpu, gib, least)| {
            Op::Ask { vm, cpu: cpu * 250, gib, least: least.min(cpu) * 250 }
        }),
        4 => (vm.clone(), 1_u32..16, 1_u64..6).prop_map(|(vm, cpu, gib)| {
            Op::Spec { vm, cpu: cpu * 250, gib }
        }),
        8 => vm.clone().prop_map(|vm| Op::Patch { vm }),
        12 => (0_u8..10).prop_map(|outcome| Op::Api { outcome }),
        10 => vm.clone().prop_map(|vm| Op::Kubelet { vm }),
        4 => (0_u32..4, node.clone(), 1_u64..6).prop_map(|(index, node, cpu)| {
            Op::Other { index, node, cpu: cpu * 500 }
        }),
        4 => (0_u32..4).prop_map(|index| Op::Remove { index }),
        4 => (0_u32..4, 1_u64..16, 0_u64..8, prop::bool::weighted(0.8)).prop_map(
            |(index, cpu, gib, unschedulable)| Op::Pending { index, cpu: cpu * 500, gib, unschedulable }
        ),
        1 => vm.clone().prop_map(|vm| Op::Lose { vm }),
        3 => (vm.clone(), node.clone()).prop_map(|(vm, node)| Op::Bind { vm, node }),
        1 => vm.clone().prop_map(|vm| Op::LookUp { vm }),
        1 => (vm.clone(), node.clone(), any::<bool>()).prop_map(|(vm, node, stranger)| {
            Op::Twin { vm, node, stranger }
        }),
        1 => vm.prop_map(|vm| Op::VmGone { vm }),
        1 => (node.clone(), 6_u64..16).prop_map(|(node, cpu)| Op::Node { node, cpu: cpu * 1000 }),
        1 => node.clone().prop_map(|node| Op::NodeGone { node }),
        3 => (0_u32..3, 0..NAMES.len(), of(node), prop::option::weighted(0.3, any::<bool>()), prop::bool::weighted(0.3))
            .prop_map(|(index, vm, to, ended, gone)| Op::Migration { index, vm, to, ended, gone }),
        1 => any::<bool>().prop_map(|held| Op::Lease { held }),
        1 => Just(Op::Relist),
        6 => (1_u64..2000).prop_map(|ms| Op::Pass { ms }),
        1 => (30_u64..700).prop_map(|seconds| Op::Pass { ms: seconds * 1000 }),
    ]
}

struct Crowd {
    world: World,
    orders: Vec<Done>,
    permits: Vec<(u64, usize)>,
    seals: Vec<Option<Seal>>,
    generation: u64,
}

impl Crowd {
    fn new(leased: bool, moves: bool) -> Self {
        let default = Settings::default();
        let settings = Settings {
            lease: default.lease.clone().filter(|_| leased),
            // Low, so that much is moved.
            moves: moves.then_some(Moves { watermark_thousandths: 400 }),
            ..default
        };
        let mut world =
            World::with(settings, &[node(NODES[0], 10_000, 20), node(NODES[1], 8000, 16)]);
        for (index, name) in NAMES.iter().enumerate() {
            world.vm(facts(index));
            world.pod(runner(name, Some(NODES[usize::from(index == 0)]), cost(size(500, 1))));
        }
        let seals = vec![None; NAMES.len()];
        Self { world, orders: Vec::new(), permits: Vec::new(), seals, generation: 0 }
    }

    /// Starts what is to be done.
    fn collect(&mut self) {
        for done in self.world.take() {
            match done {
                Done::Answer(ticket, Answer::Permit { seal, .. }) => {
                    let asked = self.permits.iter().find(|(open, _)| *open == ticket);
                    if let Some((_, vm)) = asked {
                        self.seals[*vm] = Some(seal);
                    }
                }
                Done::Approve(uid, seal) => {
                    let index = NAMES.iter().position(|name| uid == format!("vm-{name}"));
                    self.seals[index.expect("a VM of these")] = Some(seal);
                    let (vm, generation) = (uid, seal.generation);
                    self.world.tell(Event::ApproveEnded { vm, generation, written: true });
                }
                Done::Resize(..) => self.orders.push(done),
                Done::Migrate(vm, _, name) => {
                    let made = [Some(true), Some(false), None][name.len() % 3];
                    self.world.tell(Event::MigrateEnded { vm, name, made });
                }
                _ => {}
            }
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Ask { vm, cpu, gib, least } => {
                self.generation += 1;
                let least = size(least, 1);
                let at = self.pod(vm).and_then(|pod| pod.node).unwrap_or_default();
                let want = size(cpu, gib);
                let ticket = self.world.ask_from(&at, NAMES[vm], self.generation, want, least);
                self.permits.push((ticket, vm));
            }
            Op::Spec { vm, cpu, gib } => {
                let known = self.world.vms.get(&uid(vm)).cloned();
                let wanted = size(cpu, gib);
                self.world.vm(scheduler_ledger::VmFacts { wanted, ..known.unwrap_or(facts(vm)) });
            }
            Op::Patch { vm } => {
                let seal = self.seals[vm].filter(|_| self.world.vms.contains_key(&uid(vm)));
                if let Some(seal) = seal {
                    self.world.patch(NAMES[vm], seal);
                }
            }
            Op::Api { outcome } => self.api(outcome),
            Op::Kubelet { vm } => {
                if let Some(pod) = self.pod(vm).filter(|pod| pod.node.is_some()) {
                    self.world.kubelet(&pod.uid);
                }
            }
            Op::Other { index, node, cpu } => {
                self.world.pod(ordinary(&format!("o-{index}"), NODES[node], amount(cpu, 512)));
            }
            Op::Remove { index } => self.remove(format!("o-{index}")),
            Op::Pending { index, cpu, gib, unschedulable } => {
                // A pod never loses its node: this is another one.
                self.remove(format!("o-{index}"));
                let pod = ordinary(&format!("o-{index}"), "", amount(cpu, gib * 1024));
                let demands = Demands { class: u64::from(index % 2), ..Demands::default() };
                let unplaced = unschedulable.then(|| Box::new(demands));
                self.world.pod(PodFacts { node: None, unplaced, ..pod });
            }
            Op::Lose { vm } => self.remove(format!("pod-{}", NAMES[vm])),
            Op::Bind { vm, node } => self.bind(vm, NODES[node]),
            Op::LookUp { vm } => self.world.look_up(&format!("pod-{}", NAMES[vm])),
            Op::Twin { vm, node, stranger } => {
                let mut twin = runner(NAMES[vm], Some(NODES[node]), cost(size(250, 1)));
                (twin.uid, twin.name) = (format!("twin-{vm}"), format!("twin-{vm}"));
                twin.namespace = if stranger { "foreign" } else { "d" }.into();
                self.world.pod(twin);
            }
            Op::VmGone { vm } => {
                self.world.vms.remove(&uid(vm));
                self.world.tell(Event::VmGone(uid(vm)));
            }
            Op::Node { node: index, cpu } => {
                let facts = node(NODES[index], cpu, 20);
                self.world.nodes.insert(facts.name.clone(), facts.clone());
                self.world.tell(Event::Node(facts));
            }
            Op::NodeGone { node } => self.world.tell(Event::NodeGone(NODES[node].into())),
            Op::Lease { held } => self.world.tell(Event::Leader(held.then_some(1))),
            Op::Relist => {
                let pods = self.world.pods.keys().cloned().collect();
                self.world.tell(Event::PodsListed(pods));
                let vms = self.world.vms.keys().cloned().collect();
                self.world.tell(Event::VmsListed(vms));
                let nodes = self.world.nodes.keys().cloned().collect();
                self.world.tell(Event::NodesListed(nodes));
                let migrations = self.world.migrations.keys().cloned().collect();
                self.world.tell(Event::MigrationsListed(migrations));
            }
            Op::Migration { index, gone: true, .. } => {
                self.world.migration_gone(&format!("m-{index}"));
            }
            Op::Migration { index, vm, to, ended, .. } => {
                let name = format!("m-{index}");
                self.world.migration(MigrationFacts {
                    uid: name.clone(),
                    namespace: "d".into(),
                    name,
                    vm_uid: uid(vm),
                    ours: to.is_some(),
                    to: to.map(|node| NODES[node].into()),
                    ended,
                });
            }
            Op::Pass { ms } => self.world.pass(Duration::from_millis(ms)),
        }
        self.collect();
    }

    fn pod(&self, vm: usize) -> Option<PodFacts> {
        self.world.pods.get(&format!("pod-{}", NAMES[vm])).cloned()
    }

    fn remove(&mut self, uid: String) {
        self.world.pods.remove(&uid);
        self.world.tell(Event::PodGone(uid));
    }

    fn api(&mut self, outcome: u8) {
        if self.orders.is_empty() {
            return;
        }
        let Done::Resize(pod, number, requests) = self.orders.remove(0) else { return };
        let result = match outcome {
            0 => ResizeResult::Refused,
            1 => ResizeResult::Unknown,
            2 => ResizeResult::Raced,
            3 => ResizeResult::NotDone,
            _ if self.world.pods.contains_key(&pod) => {
                return self.world.accept(&pod, number, requests);
            }
            _ => ResizeResult::Refused,
        };
        self.world.tell(Event::ResizeEnded { pod, number, result });
    }

    /// Makes the pod if there is none, and places it; the watch shows it at once or never.
    fn bind(&mut self, vm: usize, node: &str) {
        let Some(pod) = self.pod(vm) else {
            let pod = runner(NAMES[vm], None, cost(size(500, 1)));
            let unplaced = self.generation.is_multiple_of(2).then(Box::default);
            return self.world.pod(PodFacts { unplaced, ..pod });
        };
        if let Ok((placed, _)) = self.world.ledger.may_bind(&pod.uid, node) {
            self.world.tell(Event::Placing(placed.clone()));
            if vm.is_multiple_of(2) {
                self.world.pod(placed);
            } else {
                self.world.tell(Event::PlacingFailed(pod.uid));
            }
        }
    }
}

fn uid(vm: usize) -> String {
    format!("vm-{}", NAMES[vm])
}

fn facts(index: usize) -> scheduler_ledger::VmFacts {
    let mut facts = vm(NAMES[index], size(500, 1));
    facts.autoscaled = index < 5;
    facts.movable = (!index.is_multiple_of(3)).then(Box::default);
    (facts.max, facts.plugged) = (size(6000, 8), Some(Size::min(facts.min, size(250, 1))));
    facts
}

fn run(ops: &[Op], leased: bool, moves: bool) {
    let mut crowd = Crowd::new(leased, moves);
    crowd.collect();
    for op in ops {
        crowd.apply(op);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_is_what_adding_up_gives(ops in prop::collection::vec(op(), 1..200)) {
        run(&ops, false, false);
    }

    #[test]
    fn it_is_so_with_leases(ops in prop::collection::vec(op(), 1..200)) {
        run(&ops, true, false);
    }

    #[test]
    fn it_is_so_while_vms_move(ops in prop::collection::vec(op(), 1..200), leased: bool) {
        run(&ops, leased, true);
    }
}
