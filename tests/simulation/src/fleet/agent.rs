//! The agents: the shell of the host's brain, as the DaemonSet has it. One task a VM, one request a counterparty, every one
//! with a deadline.

use std::time::Duration;

use guest_policy::Verdict;
use guest_units::{Moment, Size};
use host_scaling::{Action, Event, Overview, Sample, Scaler};
use scheduler_ledger::{Amount, Seal};

use super::bug::Bug;
use super::guest::Manner;
use super::message::{Happening, Link, Message, Watcher};
use super::object::{NodeId, VmId, VmObject};
use super::world::World;

/// Between two attempts to connect.
const RECONNECT: Duration = Duration::from_millis(300);
/// A guest that does not answer for so long does not answer.
const GUEST_LIMIT: Duration = Duration::from_secs(2);
/// The wall clock at the beginning, in milliseconds.
const WALL_MS: i64 = 1_700_000_000_000;
/// Of a guest's asks no more are taken than one in this time.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// The agent's task for a VM.
pub(crate) struct Agent {
    pub(crate) scaler: Scaler,
    pub(crate) node: NodeId,
    /// Of the agent's process.
    pub(crate) life: u32,
    pub(super) asking: Option<u64>,
    patching: Option<u64>,
    talking: Option<u64>,
    /// What the last request wanted, and what was needed on the node then.
    wanted: (Size, Amount),
    /// The last answer that gave less than was wanted.
    pub(super) denied: Option<Denied>,
    /// Another size was written last.
    pub(super) written_at: Option<Moment>,
    approval: Option<(u64, Seal)>,
    /// The object as it was seen last.
    pub(crate) seen: VmObject,
    pub(crate) connected: bool,
    wake: Option<Moment>,
    asked_at: Option<Moment>,
    /// It wants more than it is permitted.
    short: bool,
    /// The first ask of that growth, and what was asked for.
    first: Option<(u64, Size)>,
    /// Of a deliberate bug.
    shut_out: bool,
    /// The most that its guest has said to need, for a deliberate bug.
    peak: Size,
}

/// What is wanted fits into the permit: a growth is over, whether it was served or the wish fell.
fn is_permitted(overview: &Overview) -> bool {
    overview.permit.is_some_and(|permit| overview.desired.fits_in(permit))
}

/// An answer of the scheduler that gave less than was wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Denied {
    pub(super) at: Moment,
    pub(super) wanted: Size,
    pub(super) permit: Size,
    /// The most that was needed on the node, when it was asked or answered.
    pub(super) needed: Amount,
}

impl Agent {
    /// It waits for an answer of the scheduler, the API server or the guest.
    pub(super) fn is_busy(&self) -> bool {
        self.asking.or(self.patching).or(self.talking).is_some()
    }
}

/// A VM that the agent of `node` serves.
fn is_ours(object: &VmObject, node: NodeId) -> bool {
    object.node == Some(node) && object.plugged.is_some()
}

impl World {
    /// An agent sees a VM.
    pub(crate) fn agent_sees(&mut self, node: NodeId, vm: VmId, object: &VmObject) {
        if !self.nodes[node as usize].agent_up {
            return;
        }
        let ours = is_ours(object, node);
        let serves = self.vms[vm as usize].agent.as_ref();
        let known = serves.is_some_and(|agent| agent.node == node);
        // A machine has one agent here: one that follows late does not take the place of whoever serves it by now.
        let late = serves.is_some_and(|agent| agent.seen.version > object.version);
        match (ours, known) {
            (true, false) if late => {}
            (true, false) => self.adopt(node, vm, object),
            (false, true) => {
                let seen = self.vms[vm as usize].agent.as_ref().map_or(0, |it| it.seen.version);
                if object.version >= seen {
                    self.disconnect(vm);
                    self.vms[vm as usize].agent = None;
                }
            }
            (true, true) => self.agent_looks(vm, object),
            (false, false) => {}
        }
    }

    fn adopt(&mut self, node: NodeId, vm: VmId, object: &VmObject) {
        let wall = i64::try_from(self.now.0.as_millis()).unwrap_or(i64::MAX);
        let first = WALL_MS + wall + self.nodes[node as usize].clock_ms;
        let policy = self.settings.policy;
        let first = u64::try_from(first).unwrap_or(1);
        let mut limits = object.bounds;
        match self.bug {
            Some(Bug::AgentIgnoresMaximum) => limits.max = limits.max.saturating_add(limits.max),
            Some(Bug::AgentIgnoresMinimum) => limits.min.memory.0 /= 2,
            _ => {}
        }
        let mut scaler = Scaler::new(limits, policy, first);
        scaler.handle(Event::Vm(object.view()), self.now);
        self.vms[vm as usize].agent = Some(Box::new(Agent {
            scaler,
            node,
            life: self.nodes[node as usize].agent_life,
            asking: None,
            patching: None,
            talking: None,
            wanted: <(Size, Amount)>::default(),
            denied: None,
            written_at: None,
            approval: None,
            seen: *object,
            connected: false,
            wake: None,
            asked_at: None,
            short: false,
            first: None,
            shut_out: false,
            peak: Size::default(),
        }));
        self.rouse(vm);
        self.act(vm);
        let soon = self.now + self.hop(Link::Vsock(node));
        self.queue.push(soon, Happening::Connect(vm));
    }

    /// Another state of the object, unless it is older than what is known, or no longer ours: then the watch ends the task, and
    /// until then the view stays.
    fn agent_looks(&mut self, vm: VmId, object: &VmObject) {
        let now = self.now;
        let Some(agent) = &mut self.vms[vm as usize].agent else { return };
        if object.version >= agent.seen.version && is_ours(object, agent.node) {
            let before = std::mem::replace(&mut agent.seen, *object);
            if before.bounds != object.bounds {
                agent.scaler.handle(Event::Limits(object.bounds), now);
            }
            agent.scaler.handle(Event::Vm(object.view()), now);
            self.rouse(vm);
        }
        self.act(vm);
    }

    /// Gives the brain an event, and does what follows.
    pub(crate) fn tell_agent(&mut self, vm: VmId, event: Event) {
        let now = self.now;
        let Some(agent) = &mut self.vms[vm as usize].agent else { return };
        agent.scaler.handle(event, now);
        self.act(vm);
    }

    /// Starts what the brain names, and sees to it that it is asked again in time.
    pub(crate) fn act(&mut self, vm: VmId) {
        let now = self.now;
        for _ in 0..64 {
            let Some(agent) = &mut self.vms[vm as usize].agent else { return };
            let actions = agent.scaler.next(now);
            if agent.short && agent.scaler.overview(now).is_some_and(|it| is_permitted(&it)) {
                (agent.short, agent.first) = (false, None);
            }
            if actions.start.is_empty() {
                if actions.wake_at != agent.wake {
                    agent.wake = actions.wake_at;
                    if let Some(at) = actions.wake_at {
                        self.queue.push(at, Happening::Agent(vm));
                    }
                }
                self.judge_agent(vm);
                return;
            }
            for (action, _why) in actions.start {
                self.start(vm, action);
            }
        }
        self.broken(7, vm, "the host's brain starts actions without end".to_owned());
    }

    pub(crate) fn agent_wakes(&mut self, vm: VmId) {
        let now = self.now;
        let machine = &mut self.vms[vm as usize];
        if let Some(agent) = machine.agent.as_mut().filter(|agent| agent.wake == Some(now)) {
            agent.wake = None;
            if !machine.guest.asleep {
                self.act(vm);
            }
        }
    }

    fn start(&mut self, vm: VmId, action: Action) {
        let now = self.now;
        let Some(agent) = &mut self.vms[vm as usize].agent else { return };
        agent.scaler.handle(Event::Started(action), now);
        let (node, life) = (agent.node, agent.life);
        let (connection, pod) = (self.vms[vm as usize].connection, self.vms[vm as usize].pod_now());
        self.judge_action(vm, action);
        let Some(agent) = &mut self.vms[vm as usize].agent else { return };
        match action {
            Action::AskPermit { generation, want, least, current } => {
                let needed = self.needed_if_checked(node);
                let Some(agent) = &mut self.vms[vm as usize].agent else { return };
                (agent.asking, agent.wanted) = (Some(generation), (want, needed));
                let permit = agent.scaler.overview(now).and_then(|overview| overview.permit);
                let grows = permit.is_some_and(|permit| !want.fits_in(permit));
                let begins = grows && !std::mem::replace(&mut agent.short, grows);
                if begins {
                    agent.first = Some((generation, want));
                }
                let pod = agent.seen.pod.unwrap_or(pod);
                let (echo, twin) = (false, self.routes[node as usize].0);
                let message =
                    Message::Permit { vm, life, pod, generation, want, least, current, echo, twin };
                self.vms[vm as usize].scale_ups.0 += u32::from(begins);
                self.opened(vm, generation);
                self.send(Link::Permit(node), message);
            }
            Action::PatchVm { generation, from, size, approval } => {
                agent.patching = Some(generation);
                if from != size {
                    agent.written_at = Some(now);
                }
                let seal = agent.approval.filter(|(found, _)| Some(*found) == approval);
                let pod = agent.seen.pod.unwrap_or(pod);
                let message = if seal.is_none() && approval.is_some() {
                    Message::PatchFailed { vm, life, generation, raced: false, seen: None }
                } else {
                    let seal = seal.map(|(_, seal)| seal);
                    Message::Patch { vm, life, pod, generation, from, size, seal }
                };
                self.send(Link::AgentApi(node), message);
            }
            Action::AskGuest { generation, from, to } => {
                agent.talking = Some(generation);
                let message = Message::Question { vm, connection, generation, from, to };
                self.send(Link::Vsock(node), message);
            }
            Action::TellGuest { generation, plugged } => {
                agent.talking = Some(generation);
                let message = Message::Notice { vm, connection, generation, plugged };
                self.send(Link::Vsock(node), message);
            }
        }
    }

    /// An answer for the agent's task of a VM; none for one that is gone.
    pub(crate) fn agent_hears(&mut self, message: Message) {
        let now = self.now;
        match message {
            Message::PermitAnswer { vm, life, generation, seal, reason } => {
                self.closed(vm, generation);
                let Some(agent) = self.task(vm, life) else { return };
                if agent.asking != Some(generation) {
                    return;
                }
                agent.asking = None;
                let node = agent.node;
                if !self.is_newest(node, vm, seal.epoch) {
                    self.tell_agent(vm, Event::PermitFailed { generation });
                    return;
                }
                let needed = self.needed_if_checked(node);
                let Some(agent) = self.task(vm, life) else { return };
                let first = agent.first.take_if(|(asked, _)| *asked == generation);
                let served = first.is_some_and(|(_, want)| want.fits_in(seal.size));
                let permit = seal.size;
                agent.scaler.handle(Event::PermitAnswered { generation, permit, reason }, now);
                let (wanted, before) = agent.wanted;
                if !wanted.fits_in(permit) {
                    let needed = needed.max(before);
                    agent.denied = Some(Denied { at: now, wanted, permit, needed });
                }
                if agent.scaler.permit_generation() == Some(generation) {
                    agent.approval = Some((generation, seal));
                }
                self.vms[vm as usize].scale_ups.1 += u32::from(served);
                self.judge_permit(vm);
                self.act(vm);
            }
            Message::PermitFailed { vm, life, generation, newest } => {
                self.closed(vm, generation);
                let hints = self.bug != Some(Bug::AgentIgnoresNewest);
                let Some(agent) = self.task(vm, life) else { return };
                if agent.asking != Some(generation) {
                    return;
                }
                agent.asking = None;
                if let Some(newest) = newest.filter(|_| hints) {
                    agent.scaler.handle(Event::Newest(newest), now);
                }
                self.tell_agent(vm, Event::PermitFailed { generation });
            }
            Message::Patched { vm, life, generation, seen } => {
                let Some(agent) = self.task(vm, life) else { return };
                if agent.patching != Some(generation) {
                    return;
                }
                agent.patching = None;
                agent.scaler.handle(Event::Patched { generation }, now);
                self.agent_looks(vm, &seen);
            }
            Message::PatchFailed { vm, life, generation, raced, seen } => {
                let trusts = self.bug == Some(Bug::AgentTrustsPatches);
                let Some(agent) = self.task(vm, life) else { return };
                if agent.patching != Some(generation) {
                    return;
                }
                agent.patching = None;
                if trusts {
                    agent.scaler.handle(Event::Patched { generation }, now);
                    self.act(vm);
                    return;
                }
                agent.scaler.handle(Event::PatchFailed { generation, raced }, now);
                if let Some(seen) = seen {
                    self.agent_looks(vm, &seen);
                } else {
                    self.act(vm);
                }
            }
            _ => {}
        }
    }

    /// An agent refuses answers of an older epoch than it has had one of.
    fn is_newest(&mut self, node: NodeId, vm: VmId, epoch: u64) -> bool {
        let takes = self.bug == Some(Bug::AgentTakesOldEpochs);
        let newest = &mut self.nodes[node as usize].newest_epoch;
        let before = *newest;
        *newest = before.max(epoch);
        if takes {
            self.judge_epoch(vm, epoch, before);
        }
        epoch >= before || takes
    }

    fn task(&mut self, vm: VmId, life: u32) -> Option<&mut Agent> {
        let agent = self.vms[vm as usize].agent.as_deref_mut();
        agent.filter(|agent| agent.life == life)
    }

    /// The sample, or, with a deliberate bug, the largest demand so far in its place.
    fn remembered(&mut self, vm: VmId, sample: Sample) -> Sample {
        let forgets = self.bug != Some(Bug::AgentForgetsNoPeak);
        let Some(agent) = self.vms[vm as usize].agent.as_mut().filter(|_| !forgets) else {
            return sample;
        };
        agent.peak = agent.peak.max(sample.demand);
        Sample { demand: agent.peak, ..sample }
    }

    /// Of a guest, over the connection that stands.
    pub(crate) fn agent_hears_guest(&mut self, message: Message) {
        let now = self.now;
        match message {
            Message::Sample { vm, connection, sample } if self.connected(vm, connection) => {
                let shuts_out = self.bug == Some(Bug::AgentShutsOutOldGuests);
                if let Some(agent) = self.vms[vm as usize].agent.as_mut().filter(|_| shuts_out) {
                    agent.shut_out |= sample.system.is_none();
                    if agent.shut_out {
                        return;
                    }
                }
                let sample = self.remembered(vm, sample);
                self.tell_agent(vm, Event::Sample(sample));
            }
            Message::Ask { vm, connection, want } if self.connected(vm, connection) => {
                let Some(agent) = &mut self.vms[vm as usize].agent else { return };
                if agent.shut_out {
                    return;
                }
                if self.bug == Some(Bug::AgentBelievesGuest) {
                    let (life, node) = (agent.life, agent.node);
                    let pod = agent.seen.pod.unwrap_or_default();
                    let (generation, least, current) = (u64::MAX / 2, want, want);
                    let (echo, twin) = (true, self.routes[node as usize].0);
                    let message = Message::Permit {
                        vm,
                        life,
                        pod,
                        generation,
                        want,
                        least,
                        current,
                        echo,
                        twin,
                    };
                    self.send(Link::Permit(node), message);
                    return;
                }
                let early = agent.asked_at.is_some_and(|at| now.since(at) < ASK_EVERY);
                if !early {
                    agent.asked_at = Some(now);
                    self.tell_agent(vm, Event::Asked(want));
                }
            }
            Message::Reply { vm, connection, event } if self.connected(vm, connection) => {
                let Some(agent) = &mut self.vms[vm as usize].agent else { return };
                let generation = match event {
                    Event::GuestFine { generation }
                    | Event::GuestVeto { generation, .. }
                    | Event::GuestTold { generation }
                    | Event::GuestFailed { generation } => generation,
                    _ => return,
                };
                if agent.talking != Some(generation) {
                    return;
                }
                agent.talking = None;
                let event = match event {
                    Event::GuestVeto { .. } if self.bug == Some(Bug::AgentForgetsVeto) => {
                        Event::GuestFine { generation }
                    }
                    Event::GuestFailed { .. }
                        if self.bug == Some(Bug::AgentTakesSilenceForConsent) =>
                    {
                        Event::GuestFine { generation }
                    }
                    event => event,
                };
                self.tell_agent(vm, event);
            }
            _ => {}
        }
    }

    fn connected(&self, vm: VmId, connection: u32) -> bool {
        let machine = &self.vms[vm as usize];
        machine.connection == connection
            && machine.agent.as_ref().is_some_and(|agent| agent.connected)
    }

    /// A question or notice arrives in the guest.
    pub(crate) fn guest_hears(&mut self, message: &Message) {
        let now = self.now;
        let (vm, connection, generation) = match *message {
            Message::Question { vm, connection, generation, .. }
            | Message::Notice { vm, connection, generation, .. } => (vm, connection, generation),
            _ => return,
        };
        let machine = &mut self.vms[vm as usize];
        if machine.connection != connection || machine.runner.is_none() {
            return;
        }
        if machine.guest.manner == Manner::Silent || !machine.guest.monitor {
            let late = Event::GuestFailed { generation };
            let message = Message::Reply { vm, connection, event: late };
            let link = Link::Vsock(machine.node_now());
            self.queue.push(now + GUEST_LIMIT, Happening::Deliver(link, Box::new(message)));
            return;
        }
        let event = match *message {
            Message::Question { from, to, .. } => match self.consent(vm, from, to) {
                Verdict::Fine => {
                    self.agreed(vm, to.memory);
                    Event::GuestFine { generation }
                }
                Verdict::Veto { least, .. } => Event::GuestVeto { generation, least },
            },
            Message::Notice { plugged, .. } => {
                self.vms[vm as usize].guest.told(plugged, now);
                self.look_soon(vm);
                Event::GuestTold { generation }
            }
            _ => return,
        };
        let link = Link::Vsock(self.vms[vm as usize].node_now());
        self.send(link, Message::Reply { vm, connection, event });
    }

    /// Whether the guest can do with less, by a fresh reading.
    pub(crate) fn consent(&mut self, vm: VmId, from: Size, to: Size) -> Verdict {
        let now = self.now;
        let guest = &mut self.vms[vm as usize].guest;
        if let Manner::Lying(by) = guest.manner {
            let least = Size { memory: from.memory, ..to };
            let reason = guest_policy::Unsafe::Reserve;
            return if by % 2 == 0 { Verdict::Fine } else { Verdict::Veto { least, reason } };
        }
        guest.may_shrink(from, to, now)
    }

    /// The connection between agent and guest is tried.
    pub(crate) fn connect(&mut self, vm: VmId) {
        let now = self.now;
        let machine = &self.vms[vm as usize];
        let Some(agent) = machine.agent.as_ref().filter(|agent| !agent.connected) else { return };
        let link = Link::Vsock(agent.node);
        let reachable = machine.runner.is_some() && machine.guest.monitor;
        if !reachable || self.faults.cut(link) {
            self.queue.push(now + RECONNECT, Happening::Connect(vm));
            return;
        }
        let machine = &mut self.vms[vm as usize];
        machine.connection += 1;
        machine.guest.connected(now);
        if let Some(agent) = &mut machine.agent {
            agent.connected = true;
        }
        self.look_soon(vm);
        self.tell_agent(vm, Event::GuestConnected);
    }

    /// The connection breaks: what was asked over it fails at once.
    pub(crate) fn disconnect(&mut self, vm: VmId) {
        let now = self.now;
        let machine = &mut self.vms[vm as usize];
        machine.connection += 1;
        let Some(agent) = machine.agent.as_mut().filter(|agent| agent.connected) else { return };
        agent.connected = false;
        self.rouse(vm);
        let Some(agent) = &mut self.vms[vm as usize].agent else { return };
        agent.scaler.handle(Event::GuestLost, now);
        if let Some(generation) = agent.talking.take() {
            agent.scaler.handle(Event::GuestFailed { generation }, now);
        }
        self.queue.push(now + RECONNECT, Happening::Connect(vm));
        self.act(vm);
    }

    /// The agent of a node dies with all it had in flight.
    pub(crate) fn agent_dies(&mut self, node: NodeId) {
        let at = &mut self.nodes[node as usize];
        at.agent_up = false;
        at.agent_life += 1;
        at.newest_epoch = 0;
        for vm in self.vms_on(node) {
            let machine = &mut self.vms[vm as usize];
            machine.agent = None;
            machine.connection += 1;
        }
        self.forget_open_of(node);
    }

    pub(crate) fn agent_starts(&mut self, node: NodeId) {
        self.nodes[node as usize].agent_up = true;
        self.relist(Watcher::Agent(node));
    }
}
