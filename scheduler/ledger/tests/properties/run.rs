//! One run: the ledger, and what is really true around it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::Model;
use crate::support::{Done, World, allocated, amount, cost, node, reference, size, vm};
use crate::{Op, Step};
use guest_units::{MilliCpu, Size};
use scheduler_ledger::{
    Amount, Answer, Asked, Event, Lease, Moves, NodeFacts, PodFacts, PodKind, Seal, Settings,
    Ticket, VmFacts,
};

mod cluster;
mod moves;
mod operator;

pub(crate) const VMS: usize = 3;
/// The VM that has no agent.
const ALONE: usize = 1;
pub(crate) const NODES: [&str; 2] = ["n1", "n2"];
/// In thousandths: low, so that much is moved.
pub(crate) const WATERMARK: u32 = 400;

/// What is true of a VM besides its object: the operator's mind, the orders under way, the hypervisor.
#[derive(Debug, Default)]
struct Truth {
    /// Newest approval that the operator has seen.
    gate: Option<(u64, u64)>,
    /// Orders on their way to the hypervisor, oldest first. They apply what was approved when they were sent.
    flights: Vec<Size>,
    /// The operator sent all of them itself: it knows how large they are.
    own_flights: bool,
    /// A status that is yet to be written.
    report: Option<VmFacts>,
    /// What QEMU has; none: it does not run.
    real: Option<Size>,
    /// What its pod boots with.
    boot: Size,
    /// Every approval that its object ever showed: users may put it back.
    ever: Vec<Seal>,
    /// Approvals that the agent holds.
    held: Vec<Seal>,
    /// The object as the ledger saw it last, and before the operator's last word.
    seen: Option<VmFacts>,
    before: Option<VmFacts>,
    /// Number of the present pod.
    pod: u32,
    /// Number of the newest pod.
    pods: u32,
    /// Numbers of the pod that it moves to, and of the one that it has left.
    target: Option<u32>,
    source: Option<u32>,
    /// Newest request.
    generation: u64,
}

/// The world with everything that is on its way.
pub(crate) struct Run {
    pub(crate) world: World,
    epoch: u64,
    truths: Vec<Truth>,
    /// Orders sent and not yet with the API server.
    pub(crate) orders: Vec<Done>,
    /// Resizes of unknown end: pod, version, requests, until when they may arrive.
    late: Vec<(String, u64, Amount)>,
    /// Approvals that the extender is writing.
    writes: Vec<(String, Seal)>,
    /// Pods that the API server is asked for.
    questions: Vec<String>,
    /// Fences on their way to the API server.
    fences: Vec<(String, u64)>,
    /// Migrations that are to be made or deleted.
    moves: Vec<Done>,
    /// Number of migrations that there ever were.
    migrations: u32,
    /// Nobody takes room that is booked.
    polite: bool,
    open: BTreeMap<u64, (usize, u64)>,
    others: u32,
    model: Model,
    /// What the present ledger was not told yet.
    unlisted: Vec<List>,
}

/// One list of the API server.
type List = fn(&mut World);
const LISTS: [List; 4] =
    [World::list_nodes, World::list_pods, World::list_vms, World::list_migrations];

fn small() -> [NodeFacts; 2] {
    [node("n1", 6000, 12), node("n2", 4000, 8)]
}

fn large() -> [NodeFacts; 2] {
    [node("n1", 9000, 18), node("n2", 8000, 16)]
}

fn settings(lease: Option<Lease>) -> Settings {
    let moves = Some(Moves { watermark_thousandths: WATERMARK });
    Settings { lease, moves, ..Settings::default() }
}

fn name(vm: usize) -> String {
    format!("v{vm}")
}

fn vm_uid(vm: usize) -> String {
    format!("vm-v{vm}")
}

fn index(uid: &str) -> usize {
    uid["vm-v".len()..].parse().expect("the uid of a VM")
}

impl Run {
    pub(crate) fn new() -> Self {
        Self::on(World::new(&small()))
    }

    pub(crate) fn leased() -> Self {
        Self::on(World::leased(&small()))
    }

    /// VMs leave nodes that are above a low watermark.
    pub(crate) fn moving() -> Self {
        Self { polite: true, ..Self::on(World::with(settings(None), &large())) }
    }

    pub(crate) fn moving_and_leased() -> Self {
        let lease = Settings::default().lease;
        Self::on(World::with(settings(lease), &large()))
    }

    fn on(world: World) -> Self {
        let mut run = Self {
            world,
            epoch: 1,
            truths: Vec::new(),
            orders: Vec::new(),
            late: Vec::new(),
            writes: Vec::new(),
            questions: Vec::new(),
            fences: Vec::new(),
            moves: Vec::new(),
            migrations: 0,
            polite: false,
            open: BTreeMap::new(),
            others: 0,
            model: Model::default(),
            unlisted: Vec::new(),
        };
        // From its first event on.
        run.world.listens = true;
        run.world.relist(1);
        for index in 0..VMS {
            let mut facts = vm(&name(index), size(1000, 1));
            facts.autoscaled = index != ALONE;
            facts.max = size(6000, 8);
            facts.movable = Some(Box::default());
            facts.pod_name = None;
            run.world.vm(facts);
            run.truths.push(Truth::default());
            run.start(index);
            run.bind(index, index % NODES.len(), 5);
            run.kubelet(index);
        }
        // From here on every VM has an approval. A first one that is lost with the ledger that gave it is not found out.
        for _ in 0..VMS {
            run.collect();
            run.api(5);
        }
        for vm in 0..VMS {
            run.observe(vm, false);
            run.report(vm);
            run.see(vm);
        }
        run.collect();
        run
    }

    fn object(&mut self, vm: usize) -> &mut VmFacts {
        self.world.vms.get_mut(&vm_uid(vm)).expect("VMs stay")
    }

    fn pod_uid(&self, vm: usize) -> String {
        format!("pod-v{vm}-{}", self.truths[vm].pod)
    }

    fn pod(&self, vm: usize) -> Option<&PodFacts> {
        self.world.pods.get(&self.pod_uid(vm))
    }

    /// Starts what is to be done: it is now on its way.
    pub(crate) fn collect(&mut self) {
        for done in self.world.take_with_fences() {
            match done {
                Done::Answer(ticket, answer) => {
                    let (vm, asked) =
                        self.open.remove(&ticket).expect("each request is answered once");
                    if let Answer::Permit { seal, generation, .. } = answer {
                        assert_eq!(asked, generation);
                        self.truths[vm].held.push(seal);
                    }
                }
                Done::Resize(..) => self.orders.push(done),
                Done::Approve(vm, seal) => self.writes.push((vm, seal)),
                Done::LookUp(uid) => self.questions.push(uid),
                Done::Fence(uid, number) => self.fences.push((uid, number)),
                Done::Migrate(..) | Done::EndMigration(_) => self.moves.push(done),
                Done::Denied(_, reason) => assert!(!reason.is_empty()),
                Done::Served(..) => {}
            }
        }
    }

    /// Applies an operation, and looks whether all is well.
    pub(crate) fn step(&mut self, op: &Op) {
        let before = self.overbooked();
        self.apply(op);
        self.check();
        let forgets = matches!(
            op,
            Op::Calm { .. }
                | Op::Restart { .. }
                | Op::List
                | Op::Lease { .. }
                | Op::Regain
                | Op::Move { .. }
        );
        if self.polite && !forgets {
            for (node, more) in self.overbooked() {
                let had = before.get(&node).copied().unwrap_or_default();
                let fits = more.fits_in(had) || self.faster(&node);
                assert!(fits, "{node}: {more} of what is booked are given away");
            }
        }
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        match *op {
            Op::Ask { vm, cpu, gib, least, stale } => self.ask(vm, cpu, gib, least, stale),
            Op::Grant { vm, cpu, gib } => self.grant(vm, cpu, gib),
            Op::Work => self.work(),
            Op::Sync { vm } => {
                self.observe(vm, true);
                self.report(vm);
                self.see(vm);
            }
            Op::Patch { vm } => self.patch(vm),
            Op::Lose { vm } => self.truths[vm].held.clear(),
            Op::PutBack { vm, index } => {
                let ever = &self.truths[vm].ever;
                let seal = ever.get(index % ever.len().max(1)).copied();
                self.object(vm).visible = seal;
            }
            Op::Api { outcome } => self.api(outcome),
            Op::Late => self.arrive_late(),
            Op::Kubelet { vm } => self.kubelet(vm),
            Op::Order { vm } => self.order(vm),
            Op::Land { vm, part } => self.land(vm, part),
            Op::Observe { vm, running } => self.observe(vm, running),
            Op::Report { vm } => self.report(vm),
            Op::Operator => {
                for vm in 0..VMS {
                    let gate = self.object(vm).obeyed;
                    let truth = &mut self.truths[vm];
                    (truth.gate, truth.own_flights, truth.report) = (gate, false, None);
                }
            }
            Op::See { vm } => self.see(vm),
            Op::SeeLate { vm } => {
                let Truth { seen, before, .. } = &self.truths[vm];
                let told = seen.as_ref().and_then(|facts| facts.obeyed);
                if let Some(before) = before.clone().filter(|facts| facts.obeyed < told) {
                    self.world.tell(Event::Vm(before));
                }
            }
            Op::Use { vm, cpu, gib } => self.spec(vm, cpu, gib),
            Op::End { vm } => self.end(vm),
            Op::Start { vm } => self.start(vm),
            Op::Bind { vm, node, outcome } => self.bind(vm, node, outcome),
            Op::Place { node, cpu, gib } => self.place(NODES[node], amount(cpu, gib * 1024)),
            Op::Remove { index } => {
                self.remove_other(index);
            }
            Op::Pass { ms } => self.world.pass(Duration::from_millis(ms)),
            Op::Restart { order } => self.restart(order),
            Op::List => self.list(),
            Op::Calm { large } => self.calm(large),
            Op::Move { vm, step } => self.move_on(vm, step),
            Op::Regain => self.world.tell(Event::Leader(Some(self.epoch))),
            Op::Lease { lost } => {
                if !lost {
                    self.epoch += 1;
                }
                let epoch = (!lost).then_some(self.epoch);
                self.world.tell(Event::Leader(epoch));
            }
        }
        self.collect();
    }

    /// An ordinary pod goes. Says whether there is one of that number.
    fn remove_other(&mut self, index: usize) -> bool {
        let mut others = self.world.pods.keys().filter(|uid| uid.starts_with("o-"));
        let Some(uid) = others.nth(index).cloned() else { return false };
        self.remove_pod(&uid);
        true
    }

    pub(crate) fn ask(&mut self, vm: usize, cpu: u32, gib: u64, least: u32, stale: bool) {
        let Some(pod) = self.pod(vm).cloned().filter(|_| vm != ALONE) else { return };
        let truth = &mut self.truths[vm];
        let generation = if stale {
            truth.generation.saturating_sub(1)
        } else {
            truth.generation += 1;
            truth.generation
        };
        let want = size(cpu, gib);
        let ticket = self.world.ticket();
        self.open.insert(ticket, (vm, generation));
        self.world.tell(Event::Asked(Asked {
            ticket: Ticket(ticket),
            caller_node: pod.node.unwrap_or_default(),
            vm: reference(&vm_uid(vm), &name(vm)),
            pod: reference(&pod.uid, &pod.name),
            generation,
            want,
            least: Size { cpu: MilliCpu(least.min(cpu)), memory: want.memory },
            current: Size::default(),
        }));
    }

    fn spec(&mut self, vm: usize, cpu: u32, gib: u64) {
        let facts = self.object(vm);
        facts.wanted = size(cpu, gib).max(facts.min).min(facts.max);
    }

    fn grant(&mut self, vm: usize, cpu: u32, gib: u64) {
        if vm == ALONE {
            self.spec(vm, cpu, gib);
            self.see(vm);
        } else {
            self.ask(vm, cpu, gib, cpu, false);
        }
        self.work();
        self.patch(vm);
        self.order(vm);
        self.see(vm);
    }

    fn work(&mut self) {
        for _ in 0..2 {
            self.collect();
            for _ in 0..VMS {
                self.api(5);
            }
            for vm in 0..VMS {
                self.kubelet(vm);
            }
        }
        self.collect();
    }

    /// A JSON patch that tests the proof.
    pub(crate) fn patch(&mut self, vm: usize) {
        let Some(seal) = self.truths[vm].held.pop() else { return };
        let facts = self.object(vm);
        if facts.visible.is_none_or(|visible| visible.place() < seal.place()) {
            facts.visible = Some(seal);
            facts.wanted = seal.size;
            self.truths[vm].ever.push(seal);
        }
    }

    pub(crate) fn see(&mut self, vm: usize) {
        let facts = self.object(vm).clone();
        let truth = &mut self.truths[vm];
        let obeyed = truth.seen.as_ref().map(|seen| seen.obeyed);
        if obeyed.is_some_and(|obeyed| obeyed != facts.obeyed) {
            truth.before = truth.seen.take();
        }
        truth.seen = Some(facts.clone());
        self.world.tell(Event::Vm(facts));
        for pod in self.pods_of(vm) {
            self.world.tell(Event::Pod(pod));
        }
    }

    fn end(&mut self, vm: usize) {
        self.fail_move(vm);
        let uid = self.pod_uid(vm);
        if self.world.pods.remove(&uid).is_some() {
            let truth = &mut self.truths[vm];
            (truth.real, truth.report) = (None, None);
            truth.flights.clear();
            self.world.tell(Event::PodGone(uid));
        }
    }

    /// The process dies: what was on its way to the API server is lost or late, what agents hold is neither.
    fn restart(&mut self, order: usize) {
        for order in self.orders.drain(..) {
            let Done::Resize(uid, number, requests) = order else { continue };
            self.late.push((uid, self.world.versions[&number], requests));
        }
        self.writes.clear();
        self.questions.clear();
        self.fences.clear();
        self.moves.clear();
        self.open.clear();
        // The next one has shown nobody anything yet.
        for truth in &mut self.truths {
            (truth.seen, truth.before) = (None, None);
        }
        self.epoch += 1;
        self.world.begin(self.epoch);
        self.unlisted = LISTS.to_vec();
        self.unlisted.rotate_left(order % LISTS.len());
        if order >= LISTS.len() {
            self.list_all();
        }
    }

    /// The next list has come.
    fn list(&mut self) {
        if let Some(list) = self.unlisted.pop() {
            list(&mut self.world);
        }
    }

    fn list_all(&mut self) {
        while !self.unlisted.is_empty() {
            self.list();
        }
    }

    /// Compares with the model.
    fn check_model(&mut self) {
        self.model.hear(&mut self.world);
        self.model.check(&self.world);
    }

    pub(crate) fn check(&mut self) {
        self.check_model();
        for (index, truth) in self.truths.iter().enumerate() {
            let Some(real) = truth.real else { continue };
            let flights = truth.flights.iter().copied();
            let possible = flights.chain([real]).fold(self.not_older(index), Size::max);
            let backed = backed(self.pod(index).expect("what runs has a pod"));
            assert!(
                cost(possible).fits_in(backed),
                "v{index} could plug {possible}, kubelet gave {backed}"
            );
        }
        for node in NODES {
            let plugged = |pod: &PodFacts| match &pod.kind {
                PodKind::Runner(runner)
                    if pod.node.as_deref() == Some(node) && !self.was_left(pod) =>
                {
                    self.truths[index(&runner.vm_uid)].real.map_or(Amount::ZERO, cost)
                }
                _ => Amount::ZERO,
            };
            let pods = self.world.pods.values().filter(|pod| !starts(pod));
            let used: Amount = pods.map(|pod| allocated(pod, node).max(plugged(pod))).sum();
            let room = self.world.nodes[node].allocatable;
            assert!(used.fits_in(room), "{node} is overcommitted: {used}");
        }
        for (name, node) in self.world.ledger.dump().nodes {
            let promised: Amount = node.vms.values().map(|vm| cost(vm.promise)).sum();
            assert!(
                (promised + node.ordinary).fits_in(node.allocatable) || self.faster(&name),
                "{name} is promised away"
            );
        }
    }

    /// Whether a pod on the node is bound and kubelet has not admitted it: another scheduler may have taken its room.
    fn faster(&self, node: &str) -> bool {
        self.world.pods.values().any(|pod| pod.node.as_deref() == Some(node) && starts(pod))
            || (0..VMS).any(|vm| self.pod(vm).is_some_and(|pod| pod.node.is_none()))
    }

    /// Nothing goes wrong for a while: one VM becomes large, the others small, all others have gone, and a node may be hot for
    /// long enough.
    fn calm(&mut self, large: usize) {
        self.lead();
        while self.remove_other(0) {}
        for vm in 0..VMS {
            for step in [Step::Badly, Step::SourceGone, Step::Seen] {
                self.move_on(vm, step);
            }
        }
        for round in 0..6 {
            for vm in 0..VMS {
                self.start(vm);
                self.bind(vm, vm % NODES.len(), 5);
                if round == 2 {
                    self.grant(vm, if vm == large { 3000 } else { 500 }, 1);
                }
                self.work();
                self.patch(vm);
                self.observe(vm, false);
                self.report(vm);
                self.order(vm);
                self.land(vm, 0);
                self.see(vm);
            }
        }
        self.world.pass(Duration::from_secs(31));
    }

    /// Everything is known, and the lease is held. With the same epoch: nothing may depend on another ledger's coming.
    fn lead(&mut self) {
        self.list_all();
        self.world.tell(Event::Leader(Some(self.epoch)));
    }

    /// When faults stop, every request ends and everything settles.
    pub(crate) fn settle(&mut self) {
        self.lead();
        for round in 0..160 {
            self.collect();
            self.world.pass(Duration::from_millis(500));
            self.collect();
            for _ in 0..VMS * 2 {
                self.api(5);
                self.collect();
            }
            for vm in 0..VMS {
                self.start(vm);
                self.bind(vm, round % NODES.len(), 5);
                self.kubelet(vm);
                self.finish_moves(vm);
                self.patch(vm);
                self.observe(vm, false);
                self.report(vm);
                self.order(vm);
                self.land(vm, 0);
                self.see(vm);
            }
            self.check();
        }
        assert!(self.open.is_empty(), "requests without an end: {:?}", self.open);
        assert!(self.orders.len() <= VMS, "the ledger does not come to rest: {:?}", self.orders);
        for vm in 0..VMS {
            let pod = self.pod(vm).expect("what the ledger places, kubelet admits");
            let short = self.world.ledger.filter(pod, NODES).expect("the lease is held").short;
            let full = short.iter().all(Option::is_some);
            assert!(pod.node.is_some() || full, "v{vm} has room on one of {NODES:?}: {short:?}");
        }
        let alone = self.object(ALONE).clone();
        if self.pod(ALONE).is_some_and(|pod| pod.node.is_some()) {
            let newest = self.truths[ALONE].ever.iter().map(Seal::place).max();
            assert_eq!(alone.visible.map(|seal| seal.place()), newest, "the newest is shown");
            assert_eq!(alone.obeyed, newest, "and obeyed");
        }
    }
}

/// Whether kubelet has yet to admit a pod.
fn starts(pod: &PodFacts) -> bool {
    matches!(&pod.kind, PodKind::Runner(runner) if runner.allocated.is_none())
}

fn backed(pod: &PodFacts) -> Amount {
    match &pod.kind {
        PodKind::Runner(runner) => runner.allocated.unwrap_or_default(),
        PodKind::Ordinary { requests } => *requests,
    }
}

fn shown(pod: &PodFacts, node: &str) -> Amount {
    let given = allocated(pod, node);
    match &pod.kind {
        PodKind::Runner(runner) if pod.node.as_deref() == Some(node) => {
            runner.total(runner.spec).max(given)
        }
        _ => given,
    }
}
