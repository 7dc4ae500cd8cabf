//! A small cluster around a ledger: an API server, kubelets, hypervisors and agents that do what they are told.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test file uses a part of it"
)]

pub mod leasing;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use guest_units::{Bytes, MilliCpu, Moment, Size};
use scheduler_ledger::{
    Action, Amount, Answer, Asked, DEFAULT_OVERHEAD, Event, Ledger, MigrationFacts, NodeFacts,
    Notice, Pending, PodFacts, PodKind, Price, ResizeResult, RunnerFacts, Seal, Settings, Ticket,
    VmFacts,
};
use scheduler_protocol::{ObjectRef, Outcome};

pub const MIB: u64 = 1 << 20;

/// CPU in thousandths, memory in GiB.
pub fn size(cpu: u32, gib: u64) -> Size {
    Size { cpu: MilliCpu(cpu), memory: Bytes::from_gib(gib) }
}

pub fn amount(cpu_millis: u64, mib: u64) -> Amount {
    Amount { cpu_millis, memory_bytes: mib * MIB }
}

/// Two nodes, and a small VM on one of them.
pub fn world() -> World {
    let mut world = World::new(&[node("n1", 8000, 16), node("n2", 8000, 16)]);
    world.running("a", "n1", size(1000, 2));
    world
}

/// What a permit says.
pub fn permit(done: &Done) -> (Outcome, Seal, &str) {
    match done {
        Done::Answer(_, Answer::Permit { outcome, seal, reason, .. }) => (*outcome, *seal, reason),
        other => panic!("not a permit: {other:?}"),
    }
}

/// What a VM of this size requests.
pub fn cost(size: Size) -> Amount {
    Amount::from(size) + DEFAULT_OVERHEAD
}

pub fn node(name: &str, cpu_millis: u64, gib: u64) -> NodeFacts {
    let allocatable = amount(cpu_millis, gib * 1024);
    NodeFacts { name: name.into(), allocatable, ..NodeFacts::default() }
}

pub fn ordinary(name: &str, node: &str, requests: Amount) -> PodFacts {
    PodFacts {
        uid: name.into(),
        namespace: "d".into(),
        name: name.into(),
        node: Some(node.into()),
        finished: false,
        unplaced: None,
        version: 0,
        kind: PodKind::Ordinary { requests },
    }
}

pub fn vm(name: &str, wanted: Size) -> VmFacts {
    VmFacts {
        uid: format!("vm-{name}"),
        namespace: "d".into(),
        name: name.into(),
        min: size(250, 1),
        max: size(16_000, 64),
        wanted,
        slot: Bytes::from_gib(1),
        floor: Amount::ZERO,
        autoscaled: true,
        visible: None,
        obeyed: None,
        plugged: None,
        pod_name: Some(format!("{name}-pod")),
        deleting: false,
        movable: None,
    }
}

/// The pod of a VM, allocated as requested.
pub fn runner(vm: &str, node: Option<&str>, requests: Amount) -> PodFacts {
    PodFacts {
        uid: format!("pod-{vm}"),
        namespace: "d".into(),
        name: format!("{vm}-pod"),
        node: node.map(str::to_owned),
        finished: false,
        unplaced: None,
        version: 0,
        kind: PodKind::Runner(RunnerFacts {
            vm_uid: format!("vm-{vm}"),
            spec: requests,
            allocated: Some(requests),
            beside: Amount::ZERO,
            init_peak: Amount::ZERO,
            generation: 1,
            observed: 1,
            pending: None,
            price: Price::default(),
            created: 0,
        }),
    }
}

pub fn reference(uid: &str, name: &str) -> ObjectRef {
    ObjectRef { namespace: "d".into(), name: name.into(), uid: uid.into() }
}

/// What the shell of the ledger was told to do, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    Answer(u64, Answer),
    Resize(String, u64, Amount),
    Approve(String, Seal),
    LookUp(String),
    Fence(String, u64),
    /// The VM, where it goes, and the name of the migration.
    Migrate(String, String, String),
    EndMigration(String),
    Denied(String, String),
    Served(String, Size),
}

pub struct World {
    pub ledger: Ledger,
    pub now: Moment,
    pub pods: BTreeMap<String, PodFacts>,
    pub vms: BTreeMap<String, VmFacts>,
    pub nodes: BTreeMap<String, NodeFacts>,
    pub migrations: BTreeMap<String, MigrationFacts>,
    version: u64,
    /// Versions of the pods that orders are for, by number.
    pub versions: BTreeMap<u64, u64>,
    next_ticket: u64,
    settings: Settings,
    /// Whether everything is noted in `heard`.
    pub listens: bool,
    pub heard: Vec<Heard>,
    /// Looking at everything again after each event is what costs most.
    pub audits: bool,
}

/// What a ledger was told, and what it wants done since.
#[derive(Debug, Clone)]
pub enum Heard {
    /// The books are empty.
    Begins,
    Event(Event, Moment),
    /// An action waits, by its number.
    Waits(u64, Action),
    /// So much of a node is taken, leases aside, when somebody is about to move there.
    Fills(String, Amount),
}

impl World {
    /// A ledger that knows everything, holds the lease of leadership and gives none of headroom.
    pub fn new(nodes: &[NodeFacts]) -> Self {
        Self::with(Settings { lease: None, ..Settings::default() }, nodes)
    }

    /// The same with leases of headroom, as they are unless configured otherwise.
    pub fn leased(nodes: &[NodeFacts]) -> Self {
        Self::with(Settings::default(), nodes)
    }

    pub fn with(settings: Settings, nodes: &[NodeFacts]) -> Self {
        let nodes = nodes.iter().map(|node| (node.name.clone(), node.clone())).collect();
        let mut world = Self {
            ledger: Ledger::new(settings.clone()),
            settings,
            now: Moment::from_secs(100),
            pods: BTreeMap::new(),
            vms: BTreeMap::new(),
            nodes,
            migrations: BTreeMap::new(),
            version: 0,
            versions: BTreeMap::new(),
            next_ticket: 0,
            listens: false,
            heard: Vec::new(),
            audits: true,
        };
        world.relist(1);
        world
    }

    /// Begins again with empty books.
    pub fn relist(&mut self, epoch: u64) {
        self.begin(epoch);
        self.list_nodes();
        self.list_pods();
        self.list_vms();
        self.list_migrations();
    }

    /// Another ledger leads, and knows nothing.
    pub fn begin(&mut self, epoch: u64) {
        self.ledger = Ledger::new(self.settings.clone());
        if self.listens {
            self.heard.push(Heard::Begins);
        }
        self.tell(Event::Leader(Some(epoch)));
    }

    pub fn list_nodes(&mut self) {
        for node in self.nodes.values().cloned().collect::<Vec<_>>() {
            self.tell(Event::Node(node));
        }
        self.tell(Event::NodesListed(self.nodes.keys().cloned().collect()));
    }

    pub fn list_pods(&mut self) {
        for pod in self.pods.values().cloned().collect::<Vec<_>>() {
            self.tell(Event::Pod(pod));
        }
        self.tell(Event::PodsListed(self.pods.keys().cloned().collect()));
    }

    pub fn list_vms(&mut self) {
        for vm in self.vms.values().cloned().collect::<Vec<_>>() {
            self.tell(Event::Vm(vm));
        }
        self.tell(Event::VmsListed(self.vms.keys().cloned().collect()));
    }

    pub fn list_migrations(&mut self) {
        for migration in self.migrations.values().cloned().collect::<Vec<_>>() {
            self.tell(Event::Migration(migration));
        }
        self.tell(Event::MigrationsListed(self.migrations.keys().cloned().collect()));
    }

    pub fn tell(&mut self, event: Event) {
        if self.listens {
            self.heard.push(Heard::Event(event.clone(), self.now));
        }
        self.ledger.handle(event, self.now);
        if self.listens {
            for todo in self.ledger.next(self.now).start {
                if let Action::Migrate { to, .. } = &todo.action {
                    let level = self.ledger.level(to).expect("a known node");
                    let taken = level.reserved.saturating_sub(level.leased);
                    self.heard.push(Heard::Fills(to.clone(), taken));
                }
                self.heard.push(Heard::Waits(todo.id, todo.action));
            }
        }
        if self.audits {
            self.ledger.audit(self.now).expect("kept sums and sets are right");
        }
    }

    pub fn moves(&self) -> bool {
        self.settings.moves.is_some()
    }

    /// A pod changes. What stays as it was keeps its version.
    pub fn change(&mut self, mut pod: PodFacts) {
        if let Some(old) = self.pods.get(&pod.uid) {
            pod.version = old.version;
        }
        if self.pods.get(&pod.uid) != Some(&pod) {
            self.version += 1;
            pod.version = self.version;
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    /// A pod changes, and the watch shows it.
    pub fn pod(&mut self, pod: PodFacts) {
        let uid = pod.uid.clone();
        self.change(pod);
        let pod = self.pods[&uid].clone();
        self.tell(Event::Pod(pod));
    }

    pub fn vm(&mut self, vm: VmFacts) {
        self.vms.insert(vm.uid.clone(), vm.clone());
        self.tell(Event::Vm(vm));
    }

    /// A migration changes, and the watch shows it.
    pub fn migration(&mut self, migration: MigrationFacts) {
        self.migrations.insert(migration.uid.clone(), migration.clone());
        self.tell(Event::Migration(migration));
    }

    pub fn migration_gone(&mut self, uid: &str) {
        self.migrations.remove(uid);
        self.tell(Event::MigrationGone(uid.into()));
    }

    /// A VM that runs at a size, approved and backed.
    pub fn running(&mut self, name: &str, node: &str, at: Size) {
        let mut facts = vm(name, at);
        facts.plugged = Some(at);
        facts.visible = Some(Seal { epoch: 1, generation: 1, size: at });
        facts.obeyed = Some((1, 1));
        self.vm(facts);
        self.pod(runner(name, Some(node), cost(at)));
        assert_eq!(self.take(), []);
    }

    pub fn ask(&mut self, name: &str, generation: u64, want: Size, least: Size) -> u64 {
        self.ask_from("n1", name, generation, want, least)
    }

    pub fn ask_from(
        &mut self,
        caller: &str,
        name: &str,
        generation: u64,
        want: Size,
        least: Size,
    ) -> u64 {
        self.request(Asked { caller_node: caller.into(), ..asked(name, generation, want, least) })
    }

    /// VM `a` asks, and says what it has.
    pub fn ask_having(&mut self, generation: u64, want: Size, current: Size) -> u64 {
        self.request(Asked { current, ..asked("a", generation, want, current) })
    }

    fn request(&mut self, asked: Asked) -> u64 {
        let ticket = self.ticket();
        self.tell(Event::Asked(Asked { ticket: Ticket(ticket), ..asked }));
        ticket
    }

    /// The next one.
    pub fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Lets time pass, waking the ledger when it wants to be.
    pub fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        let mut woken = 0;
        while let Some(at) = self.ledger.next(self.now).wake_at.filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.tell(Event::Woke);
            woken += 1;
            assert!(woken < 1000, "woken without end: {:#?}", self.ledger);
        }
        self.now = end;
    }

    /// Starts everything that is to be done. Fences are carried out at once.
    pub fn take(&mut self) -> Vec<Done> {
        let mut all = Vec::new();
        loop {
            let done = self.take_with_fences();
            if done.is_empty() {
                return all;
            }
            for done in done {
                match done {
                    Done::Fence(uid, number) => self.fenced(&uid, number),
                    done => all.push(done),
                }
            }
        }
    }

    /// A pod becomes another version, and stays as it is.
    pub fn touch(&mut self, uid: &str) {
        self.version += 1;
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.version = self.version;
        }
    }

    /// The API server carries out a fence, and says so.
    pub fn fenced(&mut self, uid: &str, number: u64) {
        self.touch(uid);
        let found = self.pods.get(uid).cloned();
        self.tell(Event::Fenced { uid: uid.into(), number, found });
    }

    /// The same, and fences are left to the test.
    pub fn take_with_fences(&mut self) -> Vec<Done> {
        let actions = self.ledger.next(self.now);
        assert_eq!(actions, self.ledger.next(self.now), "asking changes nothing");
        let mut done = Vec::new();
        for todo in actions.start {
            self.tell(Event::Started(todo.id));
            done.push(match todo.action {
                Action::Answer { ticket, answer } => Done::Answer(ticket.0, answer),
                Action::Resize { pod, version, epoch: _, number, requests } => {
                    self.versions.insert(number, version);
                    Done::Resize(pod.uid, number, requests)
                }
                Action::Approve { vm, seal } => Done::Approve(vm.uid, seal),
                Action::LookUp { pod } => Done::LookUp(pod.uid),
                Action::Fence { pod, number, .. } => Done::Fence(pod.uid, number),
                Action::Migrate { vm, to, name, .. } => Done::Migrate(vm.uid, to, name),
                Action::EndMigration { migration, .. } => Done::EndMigration(migration.uid),
                Action::Notice { vm, notice: Notice::Denied { reason } } => {
                    Done::Denied(vm.uid, reason)
                }
                Action::Notice { vm, notice: Notice::Served { size } } => {
                    Done::Served(vm.uid, size)
                }
            });
        }
        done
    }

    /// The API server takes an order, and the watch shows it; kubelet has not acted.
    pub fn accept(&mut self, uid: &str, number: u64, requests: Amount) {
        let mut pod = self.pods[uid].clone();
        let PodKind::Runner(runner) = &mut pod.kind else { panic!("not a runner") };
        if runner.spec != requests {
            runner.spec = requests;
            runner.generation += 1;
            runner.pending = None;
        }
        let generation = runner.generation;
        self.tell(Event::ResizeEnded {
            pod: uid.into(),
            number,
            result: ResizeResult::Accepted { generation },
        });
        self.pod(pod);
    }

    /// Kubelet acts on the newest spec: allocates what fits on the node.
    pub fn kubelet(&mut self, uid: &str) {
        let mut pod = self.pods[uid].clone();
        let node = pod.node.clone().expect("a bound pod");
        let others: Amount = self
            .pods
            .values()
            .filter(|other| other.uid != uid)
            .map(|other| allocated(other, &node))
            .sum();
        let PodKind::Runner(runner) = &mut pod.kind else { panic!("not a runner") };
        let total = others + runner.total(runner.spec);
        runner.observed = runner.generation;
        if total.fits_in(self.nodes[&node].allocatable)
            || runner.spec.fits_in(runner.allocated.unwrap_or_default())
        {
            runner.allocated = Some(runner.spec);
            runner.pending = None;
        } else {
            runner.pending = Some(Pending::Deferred);
        }
        self.pod(pod);
    }

    /// An order and its whole way.
    pub fn resize(&mut self, done: &Done) {
        let Done::Resize(uid, number, requests) = done else { panic!("not a resize: {done:?}") };
        self.accept(uid, *number, *requests);
        self.kubelet(uid);
    }

    /// The agent writes the approval; the operator obeys it, and the hypervisor follows.
    pub fn patch(&mut self, name: &str, seal: Seal) {
        let mut vm = self.vms[&format!("vm-{name}")].clone();
        vm.visible = Some(seal);
        vm.wanted = seal.size;
        self.vm(vm.clone());
        vm.plugged = Some(seal.size);
        vm.obeyed = Some(seal.place());
        self.vm(vm);
    }

    /// The API server is asked for a pod, and shows it as it is.
    pub fn look_up(&mut self, uid: &str) {
        let found = self.pods.get(uid).cloned();
        self.tell(Event::LookedUp { uid: uid.into(), found });
    }
}

/// From the agent of the first node, which says nothing of what the VM has.
fn asked(name: &str, generation: u64, want: Size, least: Size) -> Asked {
    Asked {
        ticket: Ticket(0),
        caller_node: "n1".into(),
        vm: reference(&format!("vm-{name}"), name),
        pod: reference(&format!("pod-{name}"), &format!("{name}-pod")),
        generation,
        want,
        least,
        current: Size::default(),
    }
}

/// What kubelet counts for a pod on a node.
pub fn allocated(pod: &PodFacts, node: &str) -> Amount {
    if pod.node.as_deref() != Some(node) || pod.finished {
        return Amount::ZERO;
    }
    match &pod.kind {
        PodKind::Ordinary { requests } => *requests,
        PodKind::Runner(runner) => runner.total(runner.allocated.unwrap_or(runner.spec)),
    }
}

pub fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
