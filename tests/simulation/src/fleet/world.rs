//! The world: everything there is, and one event after the other.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use controller_lifecycle::{Phase, Status};
use guest_units::{Bytes, Moment, Size};
use host_scaling::{Limits, Policy, Rules};
use scheduler_ledger::{Amount, Seal};

use super::agent::Agent;
use super::bug::Bug;
use super::extender::Extender;
use super::fault::{Fault, Faults};
use super::guest::{Doze, Guest, Loads, Manner};
use super::lease::Lease;
use super::message::{Happening, Link, Message, Watcher};
use super::object::{
    Node, NodeId, Owner, Pod, PodId, Twin, VmId, VmObject, cost, node_name, pod_name,
};
use super::operator::{Life, Operator};
use super::queue::Queue;
use super::rest::says;
use super::rules::{Violation, Watched};
use super::runner::Runner;
use crate::held::Kills;
use crate::quality::{FleetQuality, Permits, Quality};
use crate::random::{Random, random};
use crate::report::{Plan, Recorder, Recording};

/// Parts of the seed.
const LATENCIES: u64 = 1;
const CHANCE: u64 = 2;
const CHURN: u64 = 3;
/// Lines of the event trace that are kept.
pub(crate) const TRACE: usize = 20_000;
/// A sleeping guest is awake again so long before its workload changes: longer than any spell that the host's brain waits for.
const WAKE_BEFORE: Duration = Duration::from_secs(40);
/// The shortest time between two looks.
const TICK: Duration = Duration::from_nanos(1);
/// An agent whose request has failed makes another within this, and no veto binds for longer.
const TRIES_WITHIN: Duration = Duration::from_secs(5);
/// Awake for so long at least before it may sleep.
const AWAKE: Duration = Duration::from_secs(45);

/// Both, where it need not be the same as for one that never sleeps. Awake for longer than the longest calm spell: asleep, a guest
/// counts as silent, and nothing shrinks.
const COARSELY: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(22));

/// How the world is made.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of everything random.
    pub seed: u64,
    /// Of the agents.
    pub policy: Policy,
    /// How often guests look at what does not change.
    pub doze: Doze,
    /// VMs at which nothing changes are not looked at, until shortly before their workload changes.
    pub sleep: bool,
    /// In the guests is the reference's detector in place of the shipped policy.
    pub detector: bool,
    /// Some supervisors do not restart a workload for ever.
    pub gives_up: Option<GivesUp>,
    /// The quality of scaling is measured.
    pub measure: bool,
    /// How it goes over time is recorded, where the quality is measured.
    pub record: Option<Plan>,
    /// The rules are checked after every event.
    pub checks: bool,
    /// A second extender stands by, and takes over when the first does not renew its lease.
    pub standby: bool,
    /// The messages about this VM are kept as lines of text, and its sizes.
    pub trace: Option<u32>,
}

/// When a supervisor stops restarting a workload that is killed again and again.
#[derive(Debug, Clone, Copy)]
pub struct GivesUp {
    /// Of one load.
    pub kills: u32,
    /// Never from then on.
    pub until: Moment,
    /// Of so many VMs one does not.
    pub but_one_of: u32,
    /// What the workload does with from then on.
    pub memory: Bytes,
}

/// A VM with all that serves it.
pub struct Machine {
    pub(crate) object: VmObject,
    pub(crate) status: Box<Status>,
    /// Counts what was written to it.
    pub(crate) status_version: u64,
    pub(crate) guest: Box<Guest>,
    pub(crate) agent: Option<Box<Agent>>,
    pub(crate) life: Option<Box<Life>>,
    pub(crate) runner: Option<Box<Runner>>,
    /// Counts connections between agent and guest, and their ends.
    pub(crate) connection: u32,
    pub(crate) seals: Vec<Seal>,
    pub(crate) watched: Watched,
    pub(crate) load_wake: Option<Moment>,
    pub(crate) vsock_at: [Moment; 2],
    /// Its monitor is of the version before.
    pub(crate) old: bool,
    /// Growths that were wanted, and those that the node had room for at once.
    pub(crate) scale_ups: (u32, u32),
    pub(crate) permits: Permits,
    /// OOM kills.
    pub kills: u32,
    /// Sizes with their moments, where they are recorded.
    pub sizes: Option<Vec<(Moment, Size)>>,
}

impl Machine {
    pub(crate) fn pod_now(&self) -> PodId {
        self.object.pod.unwrap_or_default()
    }

    pub(crate) fn node_now(&self) -> NodeId {
        self.agent_node().or(self.object.node).unwrap_or_default()
    }

    pub(crate) fn agent_node(&self) -> Option<NodeId> {
        self.agent.as_ref().map(|agent| agent.node)
    }
}

/// A watch of the API server.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Watch {
    pub(crate) life: u32,
    pub(crate) last: Moment,
    pub(crate) stalled: Moment,
    /// It shows nothing until there is a new list.
    pub(crate) broken: bool,
}

/// Everything there is.
pub struct World {
    pub(crate) settings: Settings,
    recorder: Option<Recorder>,
    pub(crate) now: Moment,
    pub(crate) queue: Queue<Happening>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) vms: Vec<Machine>,
    /// One, or the leader and its standby.
    pub(crate) extenders: Vec<Extender>,
    /// Counts their processes.
    pub(crate) lives: u32,
    pub(crate) lease: Lease,
    /// Whom the agents of the nodes reach, and kube-scheduler at last, and of which epoch they have heard.
    pub(crate) routes: Vec<(Twin, u64)>,
    /// Pods that wait for a node.
    pub(crate) waiting: Vec<PodId>,
    pub(crate) operator: Operator,
    pub(crate) watches: BTreeMap<Watcher, Watch>,
    pub(crate) version: u64,
    pub(crate) latencies: Random,
    pub(crate) churn: Random,
    pub(crate) faults: Faults,
    pub(crate) plan: Vec<Fault>,
    pub(crate) bug: Option<Bug>,
    pub(crate) checks: bool,
    pub(crate) violation: Option<Violation>,
    pub(crate) trace: VecDeque<String>,
    pub(crate) events: u64,
    /// Until when ordinary pods come and go, and specs are edited.
    pub(crate) churns_until: Moment,
}

impl World {
    /// Nodes without VMs.
    #[must_use]
    pub fn new(settings: Settings, nodes: &[Amount]) -> Self {
        let seed = settings.seed;
        let twins = if settings.standby { 2 } else { 1 };
        Self {
            recorder: settings.record.map(Recorder::new),
            checks: settings.checks,
            now: Moment::ZERO,
            queue: Queue::new(),
            nodes: nodes.iter().map(|room| Node::new(*room)).collect(),
            pods: Vec::new(),
            vms: Vec::new(),
            extenders: (0..twins).map(|twin| Extender::new(twin, twins == 1)).collect(),
            lives: twins,
            lease: Lease::new(),
            routes: vec![(0, 0); nodes.len() + 1],
            waiting: Vec::new(),
            operator: Operator { up: true, epoch: 1 },
            watches: BTreeMap::new(),
            version: 0,
            latencies: random(seed, LATENCIES),
            churn: random(seed, CHURN),
            faults: Faults::new(random(seed, CHANCE)),
            plan: Vec::new(),
            bug: None,
            violation: None,
            trace: VecDeque::new(),
            events: 0,
            churns_until: Moment::ZERO,
            settings,
        }
    }

    /// Adds a VM that runs on a node already, at this size.
    pub fn add_running(&mut self, limits: Limits, size: Size, node: u32, loads: Loads) -> u32 {
        let vm = self.vm_count();
        let pod = self.new_pod(Owner::Vm(vm), cost(size));
        let object = &mut self.pods[pod as usize];
        object.allocated = Some(object.spec);
        (object.node, object.created, object.ready) = (Some(node), true, true);
        self.version += 1;
        object.version = self.version;
        self.nodes[node as usize].pods.push(pod);
        let seal = Seal { epoch: 1, generation: 1, size };
        let status = Status {
            phase: Phase::Running,
            pod: Some(pod_name(pod)),
            node: Some(node_name(node)),
            size: Some(size),
            obeyed: Some(seal.place()),
            ..Status::default()
        };
        let mut machine = self.machine(limits, size, loads);
        machine.object.spec = size;
        machine.object.take(&status);
        machine.object.approved = Some(seal);
        machine.seals = vec![seal];
        machine.status = Box::new(status);
        machine.runner = Some(Box::new(Runner::new(pod, size)));
        self.vms.push(machine);
        vm
    }

    fn machine(&self, limits: Limits, size: Size, loads: Loads) -> Machine {
        let sizes = (self.settings.trace == Some(self.vm_count())).then(Vec::new);
        let mut guest = Guest::new(loads, size, self.settings.detector);
        if self.settings.measure {
            guest.quality = Some(Box::new(Quality::new(self.now)));
            let tap = self.recorder.as_ref().map(|it| it.tap(self.vm_count(), self.now));
            guest.tap = tap.map(Box::new);
        }
        Machine {
            object: VmObject::new(limits),
            status: Box::default(),
            status_version: 0,
            guest: Box::new(guest),
            agent: None,
            life: None,
            runner: None,
            connection: 0,
            seals: Vec::new(),
            watched: Watched::default(),
            load_wake: None,
            vsock_at: [Moment::ZERO; 2],
            old: false,
            scale_ups: (0, 0),
            permits: Permits::default(),
            kills: 0,
            sizes,
        }
    }

    /// All parts start: they list what there is.
    pub fn begin(&mut self) {
        for twin in 0..self.twin_count() {
            self.extender_lists(twin);
            self.candidate_begins(twin);
        }
        self.relist(Watcher::Operator);
        for node in 0..self.node_count() {
            self.relist(Watcher::Agent(node));
        }
        for vm in 0..self.vm_count() {
            self.workload_changed(vm);
            self.look_soon(vm);
        }
        for index in 0..self.plan.len() {
            let Fault { at, lasts, .. } = self.plan[index];
            self.queue.push(at, Happening::Fault(index, true));
            self.queue.push(at + lasts, Happening::Fault(index, false));
        }
        if self.churns_until > self.now {
            self.queue.push(Moment::from_secs(10), Happening::Churn);
        }
    }

    /// Lets time pass, or until a rule is broken.
    pub fn run(&mut self, until: Moment) {
        while self.violation.is_none() {
            let Some((at, turn, what)) = self.queue.pop(until) else {
                self.now = until;
                return;
            };
            self.now = at;
            self.events += 1;
            match self.held_up(&what) {
                Some(until) => self.put_off(until, turn, what),
                None => self.happen(what),
            }
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Deliver(link, message) => self.deliver(link, *message),
            Happening::Guest(vm, look) => self.look(vm, look),
            Happening::Load(vm) => self.work(vm),
            Happening::Agent(vm) => self.agent_wakes(vm),
            Happening::Connect(vm) => self.connect(vm),
            Happening::Break(vm) => self.disconnect(vm),
            Happening::Life(vm) => self.life_wakes(vm),
            Happening::Poll(vm, pod) => self.poll_again(vm, pod),
            Happening::Ledger(twin) => self.ledger_wakes(twin),
            Happening::Lease(twin, turn) => self.lease_is_due(twin, turn),
            Happening::Route(place, twin, epoch) => self.routed(place, twin, epoch),
            Happening::Farewell(twin, life) => self.extender_leaves(twin, life),
            Happening::Lane(vm, pod, kind, step) => self.lane_moves(vm, pod, kind, step),
            Happening::Kubelet(pod) => self.kubelet(pod),
            Happening::Schedule => self.schedule(),
            Happening::Evict(node) => self.evict(node),
            Happening::NodeSeen(twin, node) => self.node_seen(twin, node),
            Happening::Fault(index, begins) => self.fault(index, begins),
            Happening::Churn => self.churn(),
            Happening::Rest => self.judge_rest(),
            Happening::RestOf(vm, since) => self.judge_rest_of(vm, since),
            Happening::Restart(part) => self.restart(part),
        }
    }

    /// The guest's monitor looks at its counters.
    fn look(&mut self, vm: VmId, look: u32) {
        let now = self.now;
        if self.vms[vm as usize].guest.look != look {
            return;
        }
        let machine = &mut self.vms[vm as usize];
        let guest = &mut machine.guest;
        let stopped = machine.runner.is_none() || !guest.monitor;
        if stopped || guest.manner == Manner::Silent {
            self.rouse(vm);
            return;
        }
        guest.asleep = false;
        let mut said = guest.look(self.settings.doze, now);
        if self.bug == Some(Bug::GuestOverlooksMemory) {
            said.overlook_memory();
        }
        let sample = said.sample.map(|sample| machine.pretend(sample, now));
        let ask = match machine.guest.manner {
            Manner::Lying(by) if by % 3 == 0 => {
                Some(machine.guest.size.saturating_add(machine.guest.size))
            }
            Manner::Flooding => Some(machine.object.limits.max),
            _ => said.ask,
        };
        let (connection, link) = (machine.connection, Link::Vsock(machine.node_now()));
        let connected = machine.agent.as_ref().is_some_and(|agent| agent.connected);
        if connected && let Some(sample) = sample {
            self.send(link, Message::Sample { vm, connection, sample });
        }
        if connected && let Some(want) = ask {
            self.send(link, Message::Ask { vm, connection, want });
        }
        let mut wake = said.wake.unwrap_or(now + Duration::from_secs(1));
        if self.vms[vm as usize].guest.manner == Manner::Flooding {
            wake = wake.min(now + Duration::from_millis(20));
        }
        if let Some(until) = self.may_sleep(vm) {
            self.vms[vm as usize].guest.asleep = true;
            wake = until;
        }
        self.look_at(vm, wake.max(now + TICK));
    }

    /// Who serves the VM looks at it again, now that it may behave otherwise. What it slept through, the agent's brain is
    /// asked now; it has not heard the guest for as long as that slept, so that a calm spell begins anew.
    pub(crate) fn rouse(&mut self, vm: VmId) {
        let guest = &mut self.vms[vm as usize].guest;
        if std::mem::take(&mut guest.asleep) {
            guest.changed(self.now);
            self.look_soon(vm);
            self.act(vm);
        }
    }

    fn look_at(&mut self, vm: VmId, at: Moment) {
        let guest = &mut self.vms[vm as usize].guest;
        guest.look = guest.look.wrapping_add(1);
        let look = guest.look;
        self.queue.push(at, Happening::Guest(vm, look));
    }

    pub(crate) fn look_soon(&mut self, vm: VmId) {
        self.look_at(vm, self.now);
    }

    /// Until when nobody needs to look at the VM, if all that serves it is at rest.
    fn may_sleep(&self, vm: VmId) -> Option<Moment> {
        let machine = &self.vms[vm as usize];
        let until = machine.guest.changes_at(self.now);
        let coarse = self.settings.doze == Doze::Coarse;
        let (before, awake) = if coarse { COARSELY } else { (WAKE_BEFORE, AWAKE) };
        let until = until.map_or(self.now + Duration::from_secs(1 << 20), |at| at.earlier(before));
        let still = self.now.since(machine.guest.steady_since) >= awake;
        let creeps = machine.guest.held.per_second(self.now) != 0;
        if !self.settings.sleep || !still || creeps || until <= self.now + before {
            return None;
        }
        let (agent, runner) = (machine.agent.as_ref()?, machine.runner.as_ref()?);
        let overview = agent.scaler.overview(self.now)?;
        let plugged = runner.size();
        let next = agent.scaler.next(self.now);
        let (by_loads, soon, needs) = match self.settings.policy.rules {
            // A host that has not heard its guest for long enough desires what there is.
            Rules::Headroom(numbers) => (false, TRIES_WITHIN, says(machine, &numbers)?),
            // What a guest has asked for holds for longer than that.
            Rules::Reference(rules) => {
                (true, rules.requested_valid.max(TRIES_WITHIN), overview.desired)
            }
        };
        // What has failed is tried again sooner than that, and what is asked may fail.
        let calm = agent.asking.is_none() && next.wake_at.is_none_or(|at| at > self.now + soon);
        // Until it obeys an approval of this ledger, its agent repeats itself.
        let rests = machine.object.obeyed.is_some_and(|at| at.0 == self.lease.changes)
            && overview.desired == plugged
            && needs == plugged
            && overview.permit == Some(plugged)
            && machine.object.spec == plugged
            && machine.object.plugged == Some(plugged)
            && !runner.busy()
            && machine.guest.settled(by_loads, self.now)
            && next.start.is_empty()
            && calm;
        rests.then_some(until)
    }

    /// The workload changes, or what it holds bends.
    fn work(&mut self, vm: VmId) {
        let now = self.now;
        let machine = &mut self.vms[vm as usize];
        if machine.load_wake != Some(now) {
            return;
        }
        machine.load_wake = None;
        let kills = machine.guest.work(now);
        if let Some(GivesUp { kills, until, but_one_of, memory }) = self.settings.gives_up
            && machine.guest.kills_of_load >= kills
            && now < until
            && !vm.is_multiple_of(but_one_of)
        {
            machine.guest.give_up(memory, now);
        }
        self.killed(vm, kills);
        self.workload_changed(vm);
    }

    /// What a workload holds follows another line: see when it bends next.
    pub(crate) fn workload_changed(&mut self, vm: VmId) {
        let machine = &mut self.vms[vm as usize];
        let at = machine.guest.changes_at(self.now);
        if at != machine.load_wake {
            machine.load_wake = at;
            if let Some(at) = at {
                self.queue.push(at, Happening::Load(vm));
            }
        }
        if machine.guest.asleep {
            self.look_soon(vm);
        }
    }

    fn killed(&mut self, vm: VmId, kills: Kills) {
        let machine = &mut self.vms[vm as usize];
        machine.kills += kills.0;
        if let Some(quality) = &mut machine.guest.quality {
            quality.killed(kills);
        }
        if let Some(tap) = &mut machine.guest.tap {
            tap.killed(self.now, kills);
        }
    }

    /// The hypervisor has another size.
    pub(crate) fn resized(&mut self, vm: VmId, before: Size, size: Size, kills: Kills) {
        self.killed(vm, kills);
        let now = self.now;
        if let Some(sizes) = &mut self.vms[vm as usize].sizes {
            sizes.push((now, size));
        }
        self.judge_size(vm, before, size, kills);
    }

    /// Another hypervisor runs the VM.
    pub(crate) fn booted(&mut self, vm: VmId, _size: Size, kills: Kills) {
        self.killed(vm, kills);
        self.workload_changed(vm);
        self.judge_vm(vm);
    }

    pub(crate) fn new_pod(&mut self, owner: Owner, requests: Amount) -> PodId {
        let pod = u32::try_from(self.pods.len()).unwrap_or(u32::MAX);
        self.pods.push(Pod::new(owner, requests));
        pod
    }

    pub(crate) fn vm_count(&self) -> VmId {
        u32::try_from(self.vms.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn node_count(&self) -> NodeId {
        u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn twin_count(&self) -> Twin {
        u32::try_from(self.extenders.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn node_of(&self, pod: PodId) -> NodeId {
        self.pods.get(pod as usize).and_then(|pod| pod.node).unwrap_or_default()
    }

    /// VMs that the agent of a node serves.
    pub(crate) fn vms_on(&self, node: NodeId) -> Vec<VmId> {
        let serves = |(_, machine): &(u32, &Machine)| machine.agent_node() == Some(node);
        (0_u32..).zip(&self.vms).filter(serves).map(|(vm, _)| vm).collect()
    }

    /// How well the VMs were scaled until now, in their order.
    pub fn quality(&mut self) -> FleetQuality {
        let mut fleet = FleetQuality::default();
        for machine in &mut self.vms {
            if let Some(mut quality) = machine.guest.finish(self.now) {
                quality.scale_ups(machine.scale_ups.0, machine.scale_ups.1);
                quality.permitted(machine.permits);
                fleet.add(&quality);
            }
        }
        fleet
    }

    /// How it went until the quality was asked for, where that is recorded; once.
    pub fn recording(&mut self) -> Option<Recording> {
        let recorder = self.recorder.take()?;
        Some(recorder.finish(self.vms.iter_mut().filter_map(|machine| machine.guest.tap.take())))
    }

    /// The VMs.
    #[must_use]
    pub fn machines(&self) -> &[Machine] {
        &self.vms
    }

    /// The first rule that was broken.
    #[must_use]
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// The last lines of the trace.
    #[must_use]
    pub fn trace_lines(&self) -> Vec<String> {
        self.trace.iter().cloned().collect()
    }

    /// Events so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }
}
