//! A naive model of the ledger: it remembers everything that one ledger was told and has said, and adds up from the beginning
//! each time it is asked. It has no sums, no queues and nothing that is taken away again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use guest_units::{Moment, Size};
use scheduler_ledger::{
    Action, Amount, Answer, Asked, Event, MigrationFacts, NodeDump, PodFacts, PodKind,
    ResizeResult, RunnerFacts, Seal, VmFacts,
};
use scheduler_protocol::RefusalCode;

use crate::run::WATERMARK;
use crate::support::{Heard, World, cost};

/// Every request has its answer after that: the time to wait for room, and the time that kubelet has.
const LONGEST: Duration = Duration::from_millis(500 + 1400);
/// A migration that was ordered is seen within this, or given up.
const UNSEEN: Duration = Duration::from_secs(60);

type Place = (u64, u64);

/// How an order to resize stands. One of unknown end may arrive as long as the pod has the version that it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Accepted(u64),
    Unknown,
    Nothing,
}

#[derive(Debug)]
struct Order {
    pod: String,
    version: u64,
    requests: Amount,
    end: End,
}

/// What one ledger knows.
#[derive(Debug, Default)]
struct Memory {
    leads: Option<u64>,
    listed: BTreeSet<&'static str>,
    /// The newest copy of each pod.
    pods: BTreeMap<String, PodFacts>,
    /// Pods that the API server is asked for.
    looking: BTreeSet<String>,
    /// The last epoch in which it led.
    led: Option<u64>,
    /// All copies of each VM, in their order.
    vms: BTreeMap<String, Vec<VmFacts>>,
    orders: BTreeMap<u64, Order>,
    asked: BTreeMap<u64, (Asked, Moment)>,
    /// Requests that came before, by VM's pod.
    generations: BTreeMap<String, Vec<u64>>,
    stale: BTreeSet<u64>,
    /// The newest copy of each migration.
    migrations: BTreeMap<String, MigrationFacts>,
    /// Migrations that were ordered and not seen, by VM: name, destination, since when.
    moves: BTreeMap<String, (String, String, Moment)>,
    /// Approvals that this ledger has given.
    given: BTreeMap<String, Vec<Seal>>,
}

/// The model of all ledgers of one run.
#[derive(Debug, Default)]
pub(crate) struct Model {
    now: Memory,
    /// Every approval that any ledger ever gave, by VM.
    ever: BTreeMap<(String, Place), Size>,
    /// Actions that were seen waiting: they wait until they are started.
    seen: BTreeSet<u64>,
}

impl Model {
    /// Takes in what has happened since the last time.
    pub(crate) fn hear(&mut self, world: &mut World) {
        // What waits came of the event before it.
        let mut since = world.now;
        for heard in std::mem::take(&mut world.heard) {
            match heard {
                Heard::Fills(node, taken) => {
                    let Amount { cpu_millis, memory_bytes } = world.nodes[&node].allocatable;
                    let part = |all: u64| all * u64::from(WATERMARK) / 1000;
                    let (cpu_millis, memory_bytes) = (part(cpu_millis), part(memory_bytes));
                    let watermark = Amount { cpu_millis, memory_bytes };
                    assert!(taken.fits_in(watermark), "rule 1: a move fills {node} to {taken}");
                }
                Heard::Begins => (self.now, self.seen) = <(Memory, BTreeSet<u64>)>::default(),
                Heard::Event(event, at) => {
                    since = at;
                    self.event(event, at);
                }
                Heard::Waits(id, action) => {
                    if self.seen.insert(id) {
                        self.action(action, since);
                    }
                }
            }
        }
    }

    fn event(&mut self, event: Event, at: Moment) {
        let memory = &mut self.now;
        match event {
            Event::Leader(epoch) => {
                if memory.leads != epoch {
                    memory.moves.clear();
                }
                memory.leads = epoch;
                if epoch.is_some() && memory.led != epoch {
                    memory.led = epoch;
                    for order in memory.orders.values_mut() {
                        if matches!(order.end, End::Open | End::Accepted(_)) {
                            order.end = End::Unknown;
                        }
                    }
                }
            }
            Event::MigrationsListed(_) => drop(memory.listed.insert("migrations")),
            Event::Migration(facts) => {
                let order = memory.moves.get(&facts.vm_uid);
                if order.is_some_and(|(name, ..)| *name == facts.name) {
                    memory.moves.remove(&facts.vm_uid);
                }
                memory.migrations.insert(facts.uid.clone(), facts);
            }
            Event::MigrationGone(uid) => drop(memory.migrations.remove(&uid)),
            Event::MigrateEnded { vm, name, made } => {
                let order = memory.moves.get(&vm).filter(|_| made == Some(false));
                if order.is_some_and(|(ordered, ..)| *ordered == name) {
                    memory.moves.remove(&vm);
                }
            }
            Event::NodesListed(_) => drop(memory.listed.insert("nodes")),
            Event::PodsListed(_) => drop(memory.listed.insert("pods")),
            Event::VmsListed(_) => drop(memory.listed.insert("VMs")),
            Event::Pod(pod) | Event::Placing(pod) => memory.see(pod, false),
            Event::LookedUp { uid, found: Some(pod) } => {
                let asked = memory.looking.contains(&uid);
                memory.see(pod, asked);
            }
            // Another version: an order for the one before is in it, or comes to nothing.
            Event::Fenced { found: Some(pod), .. } => memory.see(pod, false),
            Event::PodGone(uid)
            | Event::LookedUp { uid, found: None }
            | Event::Fenced { uid, found: None, .. } => {
                memory.pods.remove(&uid);
            }
            Event::Vm(vm) => memory.vms.entry(vm.uid.clone()).or_default().push(vm),
            Event::Asked(asked) => memory.ask(asked, at),
            Event::ResizeEnded { number, result, .. } => {
                let order = memory.orders.get_mut(&number).expect("only what was ordered ends");
                if order.end == End::Open {
                    order.end = match result {
                        ResizeResult::Accepted { generation } => End::Accepted(generation),
                        ResizeResult::Unknown => End::Unknown,
                        _ => End::Nothing,
                    };
                }
            }
            _ => {}
        }
    }

    fn action(&mut self, action: Action, now: Moment) {
        match action {
            Action::Answer { ticket, answer } => {
                let asked = self.now.asked.remove(&ticket.0);
                let (asked, _) = asked.expect("rule 7: each request is answered once");
                match answer {
                    Answer::Permit { seal, generation, .. } => {
                        let stale = self.now.stale.contains(&ticket.0);
                        assert!(!stale, "rule 5: a stale request is answered: {asked:?}");
                        assert_eq!(generation, asked.generation);
                        self.gives(&asked.vm.uid, seal);
                    }
                    Answer::Refused { code: RefusalCode::Stale, .. } => {}
                    Answer::Refused { code, .. } => {
                        assert_ne!(code, RefusalCode::Internal);
                        // Nobody's request says nothing about later ones.
                        let before = self.now.generations.entry(asked.pod.uid).or_default();
                        before.retain(|before| *before != asked.generation);
                    }
                }
            }
            Action::Approve { vm, seal } => self.gives(&vm.uid, seal),
            Action::Resize { pod, version, epoch, number, requests } => {
                assert_eq!(Some(epoch), self.now.leads, "rule 5: an order of the present leader");
                assert!(self.now.complete(), "rule 3: an order before everything is known");
                let order = Order { pod: pod.uid, version, requests, end: End::Open };
                self.now.orders.insert(number, order);
            }
            Action::Migrate { vm, pod, to, name, epoch } => {
                assert_eq!(Some(epoch), self.now.leads, "rule 5: an order of the present leader");
                assert!(self.now.complete(), "rule 3: an order before everything is known");
                assert!(self.now.listed.contains("migrations"), "rule 3: {name} may be a second");
                assert_eq!(self.now.moves_to(&vm.uid, now), None, "rule 6: {name} is a second");
                assert!(!self.now.on(&to).any(|it| it.uid == pod.uid), "{name} goes nowhere");
                self.now.moves.insert(vm.uid, (name, to, now));
            }
            Action::EndMigration { migration, epoch } => {
                assert_eq!(Some(epoch), self.now.leads, "rule 5: an order of the present leader");
                let known = self.now.migrations.get(&migration.uid);
                assert!(known.is_some_and(|it| it.ours), "{migration:?} is somebody else's");
            }
            Action::Fence { epoch, .. } => {
                assert_eq!(Some(epoch), self.now.leads, "rule 5: a fence of the present leader");
            }
            Action::LookUp { pod } => drop(self.now.looking.insert(pod.uid)),
            Action::Notice { .. } => {}
        }
    }

    /// An approval is given: nobody ever gave another size under its number, and its number is larger than all before it.
    fn gives(&mut self, vm: &str, seal: Seal) {
        let known = self.now.seals(vm).any(|known| known == seal);
        if known {
            return;
        }
        assert_eq!(Some(seal.epoch), self.now.leads, "rule 5: {vm} gets {seal:?}");
        assert!(self.now.complete(), "rule 3: {vm} gets {seal:?} before everything is known");
        let newest = self.now.seals(vm).map(|seal| seal.place()).max().max(self.now.obeyed(vm));
        assert!(Some(seal.place()) > newest, "rule 5: {vm} gets {seal:?} after {newest:?}");
        let twin = self.ever.insert((vm.to_owned(), seal.place()), seal.size);
        assert!(
            twin.is_none_or(|size| size == seal.size),
            "rule 3: {seal:?} was given as {twin:?}"
        );
        self.now.given.entry(vm.to_owned()).or_default().push(seal);
    }

    /// Compares the books with what adding up gives.
    pub(crate) fn check(&self, world: &World) {
        let (memory, dump, now) = (&self.now, world.ledger.dump(), world.now);
        let complete = memory.listed.len() == 4
            || memory.complete() && memory.listed.contains("nodes") && !world.moves();
        assert_eq!((dump.epoch, dump.complete), (memory.leads, complete));
        for (name, node) in &dump.nodes {
            let is_here = |pod: &&PodFacts| pod.node.as_deref() == Some(name) && !pod.finished;
            let ordinary = |pod: &PodFacts| match &pod.kind {
                PodKind::Ordinary { requests } => *requests,
                PodKind::Runner(_) => Amount::ZERO,
            };
            let others: Amount = memory.pods.values().filter(is_here).map(ordinary).sum();
            assert_eq!(node.ordinary, others, "{name}: what ordinary pods take");
            let promised: Amount = node.vms.values().map(|vm| vm.promise.into()).sum();
            assert_eq!(node.promised, promised, "{name}: what is promised");
            let runners: Amount = {
                let here = node.vms.values().filter_map(|vm| {
                    let is = |pod: &&PodFacts| Some(&pod.name) == vm.pod.as_ref();
                    Some((vm, memory.pods.values().find(is).filter(|pod| runner(pod).is_some())?))
                });
                here.map(|(vm, pod)| memory.may_have(pod).max(cost(vm.promise))).sum()
            };
            let booked: Amount = dump
                .nodes
                .values()
                .flat_map(|node| node.vms.values())
                .filter(|_| world.moves())
                .filter(|vm| memory.moves_to(&vm.uid, now) == Some(Some(name)))
                .filter(|vm| !memory.on(name).any(|pod| runs(pod, &vm.uid)))
                .map(|vm| cost(vm.promise))
                .sum();
            assert_eq!(node.booked, booked, "{name}: what is booked");
            let others = others + booked + memory.of_moves(name, node, now);
            let taken = others + runners;
            assert!(taken.fits_in(node.reserved), "{name}: {} hold {taken}", node.reserved);
            let grows = node.vms.values().any(|vm| matches!(vm.wish, Some("growing" | "held")));
            // Before everything is known, pods of VMs that are not known hold what they request.
            let more = grows || !memory.complete() || node.reserved.fits_in(taken);
            assert!(more, "{name}: {} hold {taken}", node.reserved);
            let leased: Amount = node.vms.values().map(|vm| vm.leased).sum();
            assert_eq!(node.leased, leased, "{name}: what is leased");
        }
        let placed = dump.nodes.values().flat_map(|node| node.vms.values());
        for vm in placed.chain(dump.unplaced.values()) {
            let (promise, told) = (memory.promise(&vm.uid), memory.permit(&vm.uid));
            assert!(promise.fits_in(vm.promise), "rule 3: {} has {promise}: {vm:?}", vm.uid);
            assert!(vm.promise.fits_in(promise), "rule 1: {} has {promise}: {vm:?}", vm.uid);
            assert_eq!(vm.permit, told, "{vm:?}");
        }
        for (asked, since) in memory.asked.values() {
            assert!(now <= *since + LONGEST, "rule 7: no answer to {asked:?}");
        }
    }
}

impl Memory {
    fn complete(&self) -> bool {
        self.listed.contains("pods") && self.listed.contains("VMs")
    }

    /// A pod never loses its node, unless the API server was asked.
    fn see(&mut self, pod: PodFacts, asked: bool) {
        let known = self.pods.get(&pod.uid);
        let late = known.is_some_and(|known| {
            let early = known.node.is_some() && pod.node.is_none() && !pod.finished;
            known.version > pod.version || (early && !asked)
        });
        if !late {
            self.looking.remove(&pod.uid);
            self.pods.insert(pod.uid.clone(), pod);
        }
    }

    fn ask(&mut self, asked: Asked, at: Moment) {
        let ticket = asked.ticket.0;
        let before = self.generations.entry(asked.pod.uid.clone()).or_default();
        if before.iter().any(|before| *before > asked.generation) {
            self.stale.insert(ticket);
        } else if self.leads.is_some()
            && self.listed.contains("pods")
            && self.listed.contains("VMs")
        {
            before.push(asked.generation);
        }
        self.asked.insert(ticket, (asked, at));
    }

    /// The operator's last word: the highest approval that any status named.
    fn obeyed(&self, vm: &str) -> Option<Place> {
        self.vms.get(vm)?.iter().filter_map(|facts| facts.obeyed).max()
    }

    /// All approvals that were given or seen.
    fn seals(&self, vm: &str) -> impl Iterator<Item = Seal> {
        let seen = self.vms.get(vm).into_iter().flatten().filter_map(|facts| facts.visible);
        seen.chain(self.given.get(vm).into_iter().flatten().copied())
    }

    /// Those that are not older than the one that the operator obeys: they may still be used.
    fn usable(&self, vm: &str) -> impl Iterator<Item = Seal> {
        let obeyed = self.obeyed(vm);
        self.seals(vm).filter(move |seal| Some(seal.place()) >= obeyed)
    }

    /// The pods that are bound to a node.
    fn on(&self, node: &str) -> impl Iterator<Item = &PodFacts> {
        let here = move |pod: &&PodFacts| pod.node.as_deref() == Some(node) && !pod.finished;
        self.pods.values().filter(here)
    }

    /// Whether a VM moves, and where to.
    fn moves_to(&self, vm: &str, now: Moment) -> Option<Option<&str>> {
        let order = self.moves.get(vm).filter(|(.., since)| now < *since + UNSEEN);
        if let Some((_, to, _)) = order {
            return Some(Some(to));
        }
        let open = |it: &&MigrationFacts| it.vm_uid == vm && it.ended.is_none();
        let mut open = self.migrations.values().filter(open).peekable();
        open.peek()?;
        Some(open.find_map(|it| it.to.as_deref()))
    }

    /// What the pods take whose VMs run in another one: all that they have, and all that may come to be used there.
    fn of_moves(&self, name: &str, node: &NodeDump, now: Moment) -> Amount {
        let primary =
            |pod: &&PodFacts| node.vms.values().any(|vm| vm.pod.as_ref() == Some(&pod.name));
        let twins = self.on(name).filter(|pod| runner(pod).is_some() && !primary(pod));
        let takes = |pod: &PodFacts| {
            let vm = runner(pod).map_or("", |runner| &runner.vm_uid);
            let known = self.vms.contains_key(vm) && self.complete();
            let moves = self.moves_to(vm, now).is_some();
            let used = if !known {
                Size::default()
            } else if moves {
                self.promise(vm)
            } else {
                self.approved(vm)
            };
            self.may_have(pod).max(if known { cost(used) } else { Amount::ZERO })
        };
        twins.map(takes).sum()
    }

    fn approved(&self, vm: &str) -> Size {
        self.usable(vm).map(|seal| seal.size).fold(self.least(vm), Size::max)
    }

    fn permit(&self, vm: &str) -> Size {
        let newest = self.usable(vm).max_by_key(Seal::place);
        newest.map_or(self.least(vm), |seal| seal.size)
    }

    fn least(&self, vm: &str) -> Size {
        self.vms[vm].last().expect("a VM was seen").min
    }

    fn promise(&self, vm: &str) -> Size {
        let obeyed = self.obeyed(vm);
        let told = self.vms[vm].iter().rfind(|facts| facts.obeyed == obeyed);
        let plugged = told.and_then(|facts| facts.plugged).unwrap_or(self.least(vm));
        self.usable(vm).map(|seal| seal.size).fold(plugged.max(self.least(vm)), Size::max)
    }

    /// The most that a pod may have, whatever comes of what was ordered.
    fn may_have(&self, pod: &PodFacts) -> Amount {
        let Some(facts) = runner(pod) else { return Amount::ZERO };
        let orders = self.orders.values().filter(|order| order.pod == pod.uid);
        let counts = |order: &&Order| match order.end {
            End::Open => true,
            End::Accepted(generation) => facts.generation < generation,
            End::Unknown => order.version == pod.version,
            End::Nothing => false,
        };
        let shown = facts.spec.max(facts.allocated.unwrap_or_default());
        orders.filter(counts).map(|order| order.requests).fold(shown, Amount::max)
    }
}

fn runs(pod: &PodFacts, vm: &str) -> bool {
    runner(pod).is_some_and(|runner| runner.vm_uid == vm)
}

fn runner(pod: &PodFacts) -> Option<&RunnerFacts> {
    match &pod.kind {
        PodKind::Runner(runner) => Some(runner),
        PodKind::Ordinary { .. } => None,
    }
}
