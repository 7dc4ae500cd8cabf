//! A small world around one machine: an API server, pods, and runners that do as the test says. It holds the
//! machine to what is promised, at every step.

use std::collections::BTreeMap;
use std::time::Duration;

use controller_lifecycle::{
    Action, Age, Approved, Desired, Ending, Event, Notice, Plugged, Pod, PodFacts, PodState,
    Restart, Settings, Status, Stored, Vm, What,
};
use guest_units::{Bytes, MilliCpu, Moment, Size};

pub(crate) const GIB: u64 = 1 << 30;
/// A pod whose deletion was asked for so long ago may be replaced while it still lives.
const GRACE: Duration = Duration::from_secs(5);

pub(crate) fn size(milli: u32, gib: u64) -> Size {
    Size { cpu: MilliCpu(milli), memory: Bytes(gib * GIB) }
}

pub(crate) fn desired() -> Desired {
    Desired {
        min: size(250, 1),
        wanted: size(250, 1),
        max: size(4000, 8),
        slot: Bytes(GIB),
        restart: Restart::Always,
        deleting: false,
        approved: Approved::Size { size: size(250, 1), age: (1, 0) },
        revision: None,
        invalid: None,
    }
}

/// An order on its way to the runner, or at work there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) generation: u64,
    pub(crate) what: What,
    epoch: u64,
    /// The runner has taken it.
    taken: bool,
}

/// What a look at the runner showed.
#[derive(Debug, Clone, Copy)]
struct Look {
    first: u64,
    revision: u64,
    plugged: Plugged,
    busy: bool,
}

/// The runner's side of the gate.
#[derive(Debug, Default)]
struct Gate {
    /// Everything before it is refused.
    fence: (u64, u64),
    cpu: (u64, u64),
    memory: (u64, u64),
}

impl Gate {
    fn newest(&self, what: What) -> (u64, u64) {
        match what {
            What::Cpu(_) => self.cpu,
            What::Memory(_) => self.memory,
        }
    }
}

pub(crate) struct World {
    pub(crate) vm: Vm,
    pub(crate) now: Moment,
    pub(crate) desired: Desired,
    pub(crate) pods: BTreeMap<String, PodFacts>,
    pub(crate) status: Status,
    pub(crate) plugged: Plugged,
    /// Orders whose answers the machine can still get.
    pub(crate) sent: Vec<Sent>,
    /// Orders that nobody waits for any more, oldest first.
    pub(crate) late: Vec<Sent>,
    pub(crate) notices: Vec<Notice>,
    pub(crate) log: Vec<Action>,
    pub(crate) created: usize,
    /// Every approval that there ever was.
    pub(crate) approvals: Vec<(Age, Size)>,
    /// Deleted pods take their time to end.
    pub(crate) pods_linger: bool,
    pub(crate) settings: Settings,
    names: usize,
    epoch: u64,
    gate: Gate,
    revision: u64,
    /// An answer of the runner that has not arrived yet.
    look: Option<Look>,
    /// The newest approval that this machine was shown.
    shown: Option<Age>,
}

impl World {
    pub(crate) fn new(desired: Desired) -> Self {
        let mut world = Self {
            vm: Vm::new(Stored::default(), Settings::default()),
            now: Moment(Duration::ZERO),
            desired: desired.clone(),
            pods: BTreeMap::new(),
            status: Status::default(),
            plugged: Plugged { vcpus: 0, cpu: MilliCpu(0), memory: Bytes(0) },
            sent: Vec::new(),
            late: Vec::new(),
            notices: Vec::new(),
            log: Vec::new(),
            created: 0,
            approvals: vec![((1, 0), size(250, 1))],
            pods_linger: false,
            settings: Settings::default(),
            names: 0,
            epoch: 1,
            gate: Gate::default(),
            revision: 1,
            look: None,
            shown: None,
        };
        world.show(desired);
        world
    }

    /// A VM that runs at its minimum.
    pub(crate) fn running(desired: Desired) -> Self {
        let mut world = Self::new(desired);
        world.pod_ready();
        world
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.vm.handle(event, self.now);
        self.settle();
    }

    fn show(&mut self, desired: Desired) {
        if let Approved::Size { age, .. } = desired.approved {
            self.shown = self.shown.max(Some(age));
        }
        self.tell(Event::Desired(desired));
    }

    pub(crate) fn want(&mut self, change: impl FnOnce(&mut Desired)) {
        change(&mut self.desired);
        self.show(self.desired.clone());
    }

    /// A new approval, newer than every other.
    pub(crate) fn approve(&mut self, size: Size) {
        let age = (1, u64::try_from(self.approvals.len()).expect("few approvals"));
        self.approvals.push((age, size));
        self.want(|desired| desired.approved = Approved::Size { size, age });
    }

    /// Somebody writes an old approval back.
    pub(crate) fn replay(&mut self, index: usize) {
        let (age, size) = self.approvals[index % self.approvals.len()];
        self.want(|desired| desired.approved = Approved::Size { size, age });
    }

    pub(crate) fn later(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.tell(Event::Woke);
    }

    pub(crate) fn pod(&self) -> Option<&PodFacts> {
        self.pods.get(self.vm.pod_name()?)
    }

    pub(crate) fn observe(&mut self) {
        let pod = self.pod().cloned().map_or(Pod::Absent, Pod::Present);
        self.tell(Event::PodObserved(pod));
    }

    pub(crate) fn pod_becomes(&mut self, state: PodState) {
        if let Some(name) = self.vm.pod_name().map(str::to_owned)
            && let Some(pod) = self.pods.get_mut(&name)
        {
            pod.state = state;
            (pod.node, pod.ip) = (Some("n1".into()), Some("10.0.0.1".into()));
        }
        self.observe();
    }

    /// No node takes the pod.
    pub(crate) fn pod_waits(&mut self, why: &str) {
        if let Some(name) = self.vm.pod_name().map(str::to_owned)
            && let Some(pod) = self.pods.get_mut(&name)
        {
            pod.unschedulable = Some(why.to_owned());
        }
        self.observe();
    }

    pub(crate) fn pod_ready(&mut self) {
        self.forget_runner();
        self.pod_becomes(PodState::Running { ready: true });
        self.runner_says();
    }

    /// Another pod has another hypervisor, which boots at the minimum.
    fn forget_runner(&mut self) {
        let Size { cpu, memory } = self.desired.min;
        self.plugged = Plugged { vcpus: 1, cpu, memory };
        (self.sent, self.late) = (Vec::new(), Vec::new());
        (self.gate, self.revision, self.look) = (Gate::default(), 1, None);
    }

    /// The machine asks the runner, which thereby learns of its leadership; the answer is on its way.
    pub(crate) fn runner_is_asked(&mut self) {
        let first = self.vm.first_order(self.now);
        self.gate.fence = self.gate.fence.max((self.epoch, first));
        let busy = self.sent.iter().chain(&self.late).any(|order| order.taken);
        self.look = Some(Look { first, revision: self.revision, plugged: self.plugged, busy });
    }

    /// The answer to the last question arrives, perhaps long after.
    pub(crate) fn runner_is_heard(&mut self) {
        let Some(Look { first, revision, plugged, busy }) = self.look.take() else { return };
        self.tell(Event::RunnerObserved { first, revision, plugged, guest: true, busy });
    }

    pub(crate) fn runner_says(&mut self) {
        self.runner_is_asked();
        self.runner_is_heard();
    }

    /// Whether the runner would take this order.
    fn is_fresh(&self, order: Sent) -> bool {
        (order.epoch, order.generation) >= self.gate.newest(order.what).max(self.gate.fence)
    }

    fn takes(&mut self, order: Sent) -> bool {
        let fresh = self.is_fresh(order);
        if fresh {
            let age = (order.epoch, order.generation);
            self.gate.fence = self.gate.fence.max((order.epoch, 0));
            match order.what {
                What::Cpu(_) => self.gate.cpu = age,
                What::Memory(_) => self.gate.memory = age,
            }
        }
        fresh
    }

    /// An order that nobody waits for reaches the runner, or is refused there.
    pub(crate) fn late_arrives(&mut self, index: usize) {
        if self.late.is_empty() {
            return;
        }
        let index = index % self.late.len();
        if !self.late[index].taken && !self.takes(self.late[index]) {
            self.late.remove(index);
        } else {
            self.late[index].taken = true;
        }
        self.revision += 1;
    }

    /// An order that nobody waits for is carried out.
    pub(crate) fn late_ends(&mut self, index: usize) {
        let Some(order) = self.late.get(index).copied().filter(|order| order.taken) else { return };
        self.late.remove(index);
        self.carry_out(order.what);
    }

    fn carry_out(&mut self, what: What) {
        self.hold_to_promise(what);
        match what {
            What::Cpu(cpu) => {
                self.plugged.cpu = cpu;
                self.plugged.vcpus = cpu.0.div_ceil(1000);
            }
            What::Memory(memory) => self.plugged.memory = memory,
        }
        self.revision += 1;
    }

    /// The most that the scheduler keeps room for: every approval from the obeyed one on, and the minimum.
    fn promised(&self) -> Size {
        let counted = self.approvals.iter().filter(|(age, _)| Some(*age) >= self.status.obeyed);
        counted.fold(self.desired.min, |most, (_, size)| Size {
            cpu: most.cpu.max(size.cpu),
            memory: most.memory.max(size.memory),
        })
    }

    /// The hypervisor is never asked to grow to more than is promised.
    fn hold_to_promise(&self, what: What) {
        let promised = self.promised();
        let fine = match what {
            What::Cpu(cpu) => cpu <= self.plugged.cpu.max(promised.cpu),
            What::Memory(memory) => memory <= self.plugged.memory.max(promised.memory),
        };
        let obeyed = self.status.obeyed;
        assert!(fine, "{what:?} with {:?}, {promised:?} promised from {obeyed:?}", self.plugged);
    }

    /// The oldest order ends so; with `Done` the hypervisor shows what was ordered.
    pub(crate) fn order_ends(&mut self, ending: Ending) -> Sent {
        let order = self.sent.remove(0);
        let ending = if !order.taken && !self.takes(order) {
            Ending::Stale { newest: self.gate.newest(order.what).1 }
        } else {
            self.lane_is_free(order);
            ending
        };
        if ending == Ending::Done {
            self.carry_out(order.what);
        }
        self.revision += 1;
        self.tell(Event::OrderEnded {
            generation: order.generation,
            revision: self.revision,
            plugged: self.plugged,
            ending,
        });
        order
    }

    /// One order per resource runs at a time: what was taken earlier ends before.
    fn lane_is_free(&mut self, order: Sent) {
        let same = |what| std::mem::discriminant(&what) == std::mem::discriminant(&order.what);
        while let Some(index) =
            self.late.iter().position(|earlier| earlier.taken && same(earlier.what))
        {
            self.late_ends(index);
        }
    }

    /// Nobody waits for the oldest order any more; it may still reach the runner, or run there.
    pub(crate) fn order_gets_lost(&mut self) {
        let order = self.sent.remove(0);
        self.late.push(order);
        let reason = "timeout".to_owned();
        self.tell(Event::OrderFailed { generation: order.generation, reason });
    }

    pub(crate) fn kill_pod(&mut self, name: &str) {
        self.pods.remove(name);
        self.forget_runner();
        self.observe();
    }

    /// Somebody asks for the end of the pod.
    pub(crate) fn pod_goes(&mut self) {
        let now = self.now;
        if let Some(name) = self.vm.pod_name().map(str::to_owned)
            && let Some(pod) = self.pods.get_mut(&name)
        {
            pod.terminating_since.get_or_insert(now);
        }
        self.observe();
    }

    /// Every pod whose deletion was asked for has ended.
    pub(crate) fn pods_end(&mut self) {
        self.pods.retain(|_, pod| pod.terminating_since.is_none());
        if self.pod().is_none() {
            self.forget_runner();
        }
        self.observe();
    }

    /// A new leader: only what is stored is left. Orders of the old one may still be under way.
    pub(crate) fn operator_restarts(&mut self, settings: Settings) {
        let stored = Stored {
            phase: self.status.phase,
            pod: self.status.pod.clone(),
            restarts: self.status.restarts,
            size: self.status.size,
            revision: self.status.revision,
            obeyed: self.status.obeyed,
        };
        self.vm = Vm::new(stored, settings);
        self.settings = settings;
        self.late.append(&mut self.sent);
        self.epoch += 1;
        (self.look, self.shown) = (None, self.status.obeyed);
        self.show(self.desired.clone());
        self.observe();
    }

    /// Performs everything but orders at once, until nothing is left to do.
    fn settle(&mut self) {
        for _round in 0..100 {
            let actions = self.vm.next(self.now);
            assert_eq!(actions, self.vm.next(self.now), "the same question got another answer");
            if let Some(at) = actions.wake_at {
                assert!(at > self.now, "wants to be woken in the past");
            }
            if actions.start.is_empty() {
                return;
            }
            for (action, _why) in actions.start {
                self.vm.handle(Event::Started(action.clone()), self.now);
                self.log.push(action.clone());
                self.perform(action);
            }
        }
        panic!("does not come to rest: {:?}", &self.log[self.log.len() - 5..]);
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::NamePod => {
                self.names += 1;
                let name = format!("vm-{}", self.names);
                self.vm.handle(Event::PodNamed(name), self.now);
            }
            Action::CreatePod(name) => self.create(name),
            Action::DeletePod { name, .. } => {
                let ended =
                    |pod: &PodFacts| matches!(pod.state, PodState::Succeeded | PodState::Failed(_));
                match self.pods.get_mut(&name) {
                    Some(pod) if self.pods_linger && !ended(pod) => {
                        pod.terminating_since.get_or_insert(self.now);
                    }
                    _ => drop(self.pods.remove(&name)),
                }
                if self.pod().is_none() {
                    self.forget_runner();
                }
                self.vm.handle(Event::PodDeleted(name), self.now);
                let pod = self.pod().cloned().map_or(Pod::Absent, Pod::Present);
                self.vm.handle(Event::PodObserved(pod), self.now);
            }
            Action::ForgetPod { .. } => self.forget_runner(),
            Action::Order { generation, what } => self.order(generation, what),
            Action::WriteStatus(status) => self.store(status),
            Action::Tell(notice) => self.notices.push(notice),
        }
    }

    fn create(&mut self, name: String) {
        assert_eq!(self.status.pod.as_ref(), Some(&name), "created before its name was stored");
        assert!(!self.pods.contains_key(&name), "created twice");
        for (other, pod) in &self.pods {
            let ended = matches!(pod.state, PodState::Succeeded | PodState::Failed(_));
            let asked_long_ago =
                pod.terminating_since.is_some_and(|since| self.now.since(since) >= GRACE);
            let may_be_two = !self.settings.at_most_one_pod && (ended || asked_long_ago);
            assert!(may_be_two, "{name} is created while {other} may live: {pod:?}");
        }
        self.created += 1;
        let pod = PodFacts {
            name: name.clone(),
            state: PodState::Pending,
            terminating_since: None,
            unschedulable: None,
            node: None,
            ip: None,
        };
        self.pods.insert(name, pod.clone());
        self.vm.handle(Event::PodObserved(Pod::Present(pod)), self.now);
    }

    fn store(&mut self, status: Status) {
        assert!(status.obeyed >= self.status.obeyed, "an older approval is obeyed again");
        self.status = status.clone();
        // Whatever may still be carried out, and whatever is plugged, has its room from now on.
        let orders: Vec<Sent> = self.sent.iter().chain(&self.late).copied().collect();
        for order in orders.iter().filter(|order| order.taken || self.is_fresh(**order)) {
            self.hold_to_promise(order.what);
        }
        if let (Some(known), true) = (status.size, self.pod().is_some()) {
            let Size { cpu, memory } = self.promised();
            let Plugged { cpu: has_cpu, memory: has_memory, .. } = self.plugged;
            assert!(has_cpu <= cpu.max(known.cpu), "{has_cpu} in {status:?}");
            assert!(has_memory <= memory.max(known.memory), "{has_memory} in {status:?}");
        }
        self.vm.handle(Event::StatusWritten(status), self.now);
    }

    fn order(&mut self, generation: u64, what: What) {
        // What was written back does not count.
        let approved = match self.desired.approved {
            Approved::Size { size, age } if Some(age) >= self.shown => size,
            _ => Size { cpu: MilliCpu(0), memory: Bytes(0) },
        };
        let (total, plugged, gate, min) = match what {
            What::Cpu(to) => (
                u64::from(to.0),
                u64::from(self.plugged.cpu.0),
                u64::from(self.desired.wanted.cpu.0.min(approved.cpu.0)),
                u64::from(self.desired.min.cpu.0),
            ),
            What::Memory(to) => (
                to.0,
                self.plugged.memory.0,
                self.desired.wanted.memory.0.min(approved.memory.0),
                self.desired.min.memory.0,
            ),
        };
        assert!(total <= plugged || total <= gate.max(min), "{what:?} goes past the gate");
        assert!(total >= min, "{what:?} goes below the minimum");
        assert!(
            !self.sent.iter().any(|sent| sent.generation == generation),
            "a generation was used twice"
        );
        // What was sent before for the same resource has been given up by the machine.
        let same =
            |sent: &Sent| std::mem::discriminant(&sent.what) == std::mem::discriminant(&what);
        let (given_up, rest) = self.sent.drain(..).partition(same);
        self.sent = rest;
        let given_up: Vec<Sent> = given_up;
        self.late.extend(given_up);
        self.sent.push(Sent { generation, what, epoch: self.epoch, taken: false });
    }
}
