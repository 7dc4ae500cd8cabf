//! A small world around one machine: an API server, pods and a runner that do as the test says.

use std::collections::BTreeMap;
use std::time::Duration;

use controller_lifecycle::{
    Action, Approved, Desired, Ending, Event, Notice, Plugged, Pod, PodFacts, PodState, Restart,
    Settings, Status, Stored, Vm, What,
};
use guest_units::{Bytes, MilliCpu, Moment, Size};

pub(crate) const GIB: u64 = 1 << 30;

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
        approved: Approved::Size(size(250, 1)),
        revision: None,
        invalid: None,
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) generation: u64,
    pub(crate) what: What,
}

pub(crate) struct World {
    pub(crate) vm: Vm,
    pub(crate) now: Moment,
    pub(crate) desired: Desired,
    pub(crate) pods: BTreeMap<String, PodFacts>,
    pub(crate) status: Status,
    pub(crate) plugged: Plugged,
    pub(crate) sent: Vec<Sent>,
    pub(crate) notices: Vec<Notice>,
    pub(crate) log: Vec<Action>,
    pub(crate) created: usize,
    names: usize,
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
            notices: Vec::new(),
            log: Vec::new(),
            created: 0,
            names: 0,
        };
        world.tell(Event::Desired(desired));
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

    pub(crate) fn want(&mut self, change: impl FnOnce(&mut Desired)) {
        change(&mut self.desired);
        self.tell(Event::Desired(self.desired.clone()));
    }

    pub(crate) fn later(&mut self, seconds: u64) {
        self.now = Moment(self.now.0 + Duration::from_secs(seconds));
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
        }
        self.observe();
    }

    pub(crate) fn pod_ready(&mut self) {
        self.pod_becomes(PodState::Running { ready: true });
        self.plugged =
            Plugged { vcpus: 1, cpu: self.desired.min.cpu, memory: self.desired.min.memory };
        self.runner_says();
    }

    pub(crate) fn runner_says(&mut self) {
        self.tell(Event::RunnerObserved { plugged: self.plugged, guest: true });
    }

    /// The oldest order ends so; with `Done` the hypervisor shows what was ordered.
    pub(crate) fn order_ends(&mut self, ending: Ending) -> Sent {
        let order = self.sent.remove(0);
        if ending == Ending::Done {
            match order.what {
                What::Cpu(cpu) => {
                    self.plugged.cpu = cpu;
                    self.plugged.vcpus = cpu.0.div_ceil(1000);
                }
                What::Memory(memory) => self.plugged.memory = memory,
            }
        }
        self.tell(Event::OrderEnded {
            generation: order.generation,
            plugged: self.plugged,
            ending,
        });
        order
    }

    pub(crate) fn kill_pod(&mut self, name: &str) {
        self.pods.remove(name);
        self.observe();
    }

    /// A new leader: only what is stored is left.
    pub(crate) fn operator_restarts(&mut self, settings: Settings) {
        let stored = Stored {
            phase: self.status.phase,
            pod: self.status.pod.clone(),
            restarts: self.status.restarts,
            size: self.status.size,
            revision: self.status.revision,
        };
        self.vm = Vm::new(stored, settings);
        self.sent.clear();
        self.vm.handle(Event::Desired(self.desired.clone()), self.now);
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
            Action::CreatePod(name) => {
                assert_eq!(
                    self.status.pod.as_ref(),
                    Some(&name),
                    "created before its name was stored"
                );
                assert!(!self.pods.contains_key(&name), "created twice");
                self.created += 1;
                let pod = PodFacts {
                    name: name.clone(),
                    state: PodState::Pending,
                    terminating_since: None,
                    node: Some("n1".into()),
                    ip: Some("10.0.0.1".into()),
                };
                self.pods.insert(name, pod.clone());
                self.vm.handle(Event::PodObserved(Pod::Present(pod)), self.now);
            }
            Action::DeletePod { name, .. } => {
                self.pods.remove(&name);
                self.vm.handle(Event::PodDeleted(name), self.now);
                let pod = self.pod().cloned().map_or(Pod::Absent, Pod::Present);
                self.vm.handle(Event::PodObserved(pod), self.now);
            }
            Action::ForgetPod { .. } => {}
            Action::Order { generation, what } => self.order(generation, what),
            Action::WriteStatus(status) => {
                self.status = status.clone();
                self.vm.handle(Event::StatusWritten(status), self.now);
            }
            Action::Tell(notice) => self.notices.push(notice),
        }
    }

    fn order(&mut self, generation: u64, what: What) {
        let approved = match self.desired.approved {
            Approved::Size(size) => size,
            Approved::Missing(_) => Size { cpu: MilliCpu(0), memory: Bytes(0) },
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
        self.sent
            .retain(|sent| std::mem::discriminant(&sent.what) != std::mem::discriminant(&what));
        self.sent.push(Sent { generation, what });
    }
}
