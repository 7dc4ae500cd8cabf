//! The extenders: each the shell of a ledger. One leads, the other one watches as well and waits for the lease (`lease.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use guest_units::{Moment, Size};
use scheduler_ledger::{
    Action, Answer, Asked, Event, Ledger, PodFacts, PodKind, ResizeResult, Seal, Settings, Ticket,
    Why,
};
use scheduler_protocol::{ObjectRef, RefusalCode};

use super::bug::Bug;
use super::lease::Candidate;
use super::message::{Happening, Link, Message};
use super::object::{
    NAMESPACE, NodeId, Owner, Pod, PodId, Twin, VmId, VmObject, cost, node_name, number, pod_name,
    vm_name,
};
use super::process::call;
use super::world::World;

/// A request is answered within [`Settings::hold`] and [`Settings::resize_limit`], and some time to do it in.
pub(crate) const ANSWERED_WITHIN: Duration = Duration::from_secs(4);

/// A request that is open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    pub(super) vm: VmId,
    pub(super) life: u32,
    pub(super) generation: u64,
    /// Nobody waits for the answer.
    pub(super) echo: bool,
    pub(super) since: Moment,
}

/// An extender's process.
pub(crate) struct Extender {
    pub(crate) up: bool,
    /// Of all processes the one that this is.
    pub(crate) life: u32,
    /// It is not the first one.
    pub(super) again: bool,
    pub(crate) candidate: Candidate,
    pub(crate) ledger: Ledger,
    pub(super) open: BTreeMap<u64, Open>,
    pub(super) tickets: u64,
    pub(super) wake: Option<Moment>,
    /// Calls under way that only the holder of the lease may make.
    pub(super) calls: BTreeSet<(u8, u32, u64)>,
    /// It is to stop, and gives the lease back when its calls have ended.
    pub(crate) stopping: bool,
    /// It is held up until then: nothing of it moves.
    pub(super) held_up: Moment,
    /// It is held up for so long from the next message on, which it has made and not yet sent.
    pub(super) holds_up: Option<Duration>,
    /// Of a deliberate bug: it takes itself for the leader.
    pub(crate) believes: bool,
}

impl Extender {
    /// With this number; alone, or one of two.
    pub(crate) fn new(twin: Twin, alone: bool) -> Self {
        Self {
            up: true,
            life: twin + 1,
            again: false,
            candidate: Candidate::new(twin, alone),
            ledger: Ledger::new(Settings::default()),
            open: BTreeMap::new(),
            tickets: 0,
            wake: None,
            calls: BTreeSet::new(),
            stopping: false,
            held_up: Moment::ZERO,
            holds_up: None,
            believes: false,
        }
    }

    /// Whoever asks it now is answered.
    pub(crate) fn answers(&self, now: Moment) -> bool {
        self.up && self.held_up <= now
    }
}

fn reference(name: String) -> ObjectRef {
    ObjectRef { namespace: NAMESPACE.to_owned(), uid: name.clone(), name }
}

impl World {
    /// The books are written anew from what the API server lists.
    pub(crate) fn extender_lists(&mut self, twin: Twin) {
        let extender = &mut self.extenders[twin as usize];
        let forgets = self.bug == Some(Bug::ExtenderForgetsPods) && extender.again;
        let deaf = self.bug == Some(Bug::ExtenderKeepsLeases);
        let now = self.now;
        let (ledger, mine) = (&mut extender.ledger, extender.candidate.mine());
        ledger.handle(Event::Leader(mine), now);
        for (node, at) in (0_u32..).zip(&self.nodes) {
            let ready = at.up && !self.faults.is_cut_off(node);
            ledger.handle(Event::Node(at.facts(node, ready)), now);
        }
        let names = (0..self.nodes.len()).map(|node| format!("n{node}")).collect();
        ledger.handle(Event::NodesListed(names), now);
        let mut uids = BTreeSet::new();
        for (pod, object) in (0_u32..).zip(&self.pods) {
            if !object.gone && object.created && !(forgets && pod % 3 == 0) {
                uids.insert(pod_name(pod));
                let facts = object.facts(pod);
                let unplaced = facts.unplaced.filter(|_| !deaf);
                ledger.handle(Event::Pod(PodFacts { unplaced, ..facts }), now);
            }
        }
        ledger.handle(Event::PodsListed(uids), now);
        let mut uids = BTreeSet::new();
        for (vm, machine) in (0_u32..).zip(&self.vms) {
            uids.insert(vm_name(vm));
            ledger.handle(Event::Vm(machine.object.facts(vm)), now);
        }
        ledger.handle(Event::VmsListed(uids), now);
        self.run_ledger(twin);
    }

    pub(crate) fn extender_sees(&mut self, twin: Twin, vm: VmId, object: &VmObject) {
        let leads = twin == self.leader();
        if self.bug == Some(Bug::ExtenderShrinksEarly)
            && leads
            && let (Some(pod), Some(plugged)) = (object.pod, object.plugged)
            && !plugged.fits_in(object.spec)
        {
            let (life, requests) = (u32::MAX, cost(object.spec));
            let message = Message::Resize { pod, life, version: 0, number: 0, requests };
            self.send(Link::ExtenderApi(twin), message);
        }
        self.tell_ledger(twin, Event::Vm(object.facts(vm)));
    }

    pub(crate) fn extender_sees_pod(&mut self, twin: Twin, pod: PodId, object: &Pod) {
        let believes = self.bug == Some(Bug::ExtenderBelievesOrders);
        let event = if object.gone {
            Event::PodGone(pod_name(pod))
        } else {
            let mut facts = object.facts(pod);
            facts.unplaced.take_if(|_| self.bug == Some(Bug::ExtenderKeepsLeases));
            if let PodKind::Runner(runner) = &mut facts.kind
                && believes
            {
                runner.allocated = runner.allocated.map(|_| runner.spec);
                (runner.observed, runner.pending) = (runner.generation, None);
            }
            Event::Pod(facts)
        };
        self.tell_ledger(twin, event);
    }

    pub(crate) fn tell_ledger(&mut self, twin: Twin, event: Event) {
        let extender = &mut self.extenders[twin as usize];
        if extender.up {
            extender.ledger.handle(event, self.now);
            self.run_ledger(twin);
        }
    }

    /// Whether a node is heard of has changed.
    pub(crate) fn node_changed(&mut self, node: NodeId) {
        for twin in 0..self.extenders.len() {
            let twin = Twin::try_from(twin).unwrap_or_default();
            self.queue.push(self.now, Happening::NodeSeen(twin, node));
        }
    }

    pub(crate) fn node_seen(&mut self, twin: Twin, node: NodeId) {
        let facts = self.nodes[node as usize].facts(node, self.is_ready(node));
        self.tell_ledger(twin, Event::Node(facts));
    }

    pub(crate) fn ledger_wakes(&mut self, twin: Twin) {
        let extender = &mut self.extenders[twin as usize];
        // Whoever was held up wakes late.
        if extender.wake.is_some_and(|at| at <= self.now) {
            extender.wake = None;
            self.tell_ledger(twin, Event::Woke);
        }
    }

    /// Starts what the ledger names.
    fn run_ledger(&mut self, twin: Twin) {
        let now = self.now;
        for _ in 0..256 {
            let extender = &mut self.extenders[twin as usize];
            let actions = extender.ledger.next(now);
            if actions.start.is_empty() {
                if actions.wake_at != extender.wake {
                    extender.wake = actions.wake_at;
                    if let Some(at) = actions.wake_at {
                        self.queue.push(at.max(now), Happening::Ledger(twin));
                    }
                }
                return;
            }
            for todo in actions.start {
                self.extenders[twin as usize].ledger.handle(Event::Started(todo.id), now);
                self.do_for_ledger(twin, todo.action, todo.why);
            }
        }
        self.broken(7, 0, "the ledger starts actions without end".to_owned());
    }

    fn do_for_ledger(&mut self, twin: Twin, mut action: Action, why: Why) {
        let life = self.extenders[twin as usize].life;
        if self.bug == Some(Bug::ExtenderRepeatsNumbers)
            && let Action::Answer { answer: Answer::Permit { seal, .. }, .. } = &mut action
        {
            seal.generation /= 2;
        }
        match action {
            Action::Answer { ticket, answer } => self.answer(twin, ticket, answer, why),
            Action::Resize { pod, version, epoch, number: order, requests } => {
                let Some(pod) = number(&pod.uid) else { return };
                if let Owner::Vm(vm) = self.pods[pod as usize].owner {
                    self.vms[vm as usize].permits.pod_resizes += 1;
                }
                let message = Message::Resize { pod, life, version, number: order, requests };
                self.call(twin, epoch, message);
            }
            Action::Approve { vm, seal } => {
                let Some(vm) = number(&vm.uid) else { return };
                if self.holds(twin, seal.epoch) {
                    self.issued(vm, seal);
                }
                self.call(twin, seal.epoch, Message::Approve { vm, life, seal });
            }
            Action::Fence { pod, epoch, number: order, .. } => {
                let Some(pod) = number(&pod.uid) else { return };
                self.call(twin, epoch, Message::Fence { pod, life, number: order });
            }
            Action::LookUp { pod } => {
                let Some(pod) = number(&pod.uid) else { return };
                self.say(twin, Link::ExtenderApi(twin), Message::LookUp { pod, life });
            }
            // Nobody is moved here: the settings say so.
            Action::Migrate { .. } | Action::EndMigration { .. } | Action::Notice { .. } => {}
        }
    }

    /// The last step: nothing is signed when the lease has run out meanwhile.
    fn answer(&mut self, twin: Twin, ticket: Ticket, answer: Answer, why: Why) {
        let Some(open) = self.extenders[twin as usize].open.remove(&ticket.0) else { return };
        let Open { vm, life, generation, echo, .. } = open;
        let answer = match answer {
            Answer::Permit { seal, .. } if !self.holds(twin, seal.epoch) => {
                let message = "the lease was lost".to_owned();
                Answer::Refused { code: RefusalCode::NotReady, message, newest: None }
            }
            answer => answer,
        };
        if let Answer::Permit { seal, .. } = &answer {
            self.issued(vm, *seal);
            let permits = &mut self.vms[vm as usize].permits;
            permits.at_once += u32::from(why == Why::AlreadyBacked);
            permits.by_resize += u32::from(why == Why::KubeletAllocated);
        }
        if echo {
            return;
        }
        let link = Link::Permit(self.vms[vm as usize].node_now());
        let message = match answer {
            Answer::Permit { seal, reason, .. } => {
                Message::PermitAnswer { vm, life, generation, seal, reason }
            }
            Answer::Refused { newest, .. } => {
                Message::PermitFailed { vm, life, generation, newest }
            }
        };
        self.say(twin, link, message);
    }

    /// A permit is asked for.
    pub(crate) fn extender_is_asked(&mut self, message: &Message) {
        let Message::Permit { vm, life, pod, generation, want, least, current, echo, twin } =
            *message
        else {
            return;
        };
        if !self.extenders[twin as usize].up {
            let link = Link::Permit(self.vms[vm as usize].node_now());
            let failed = Message::PermitFailed { vm, life, generation, newest: None };
            let at = self.now + self.hop(link);
            self.queue.push(at, Happening::Deliver(link, Box::new(failed)));
            return;
        }
        self.judge_wish(vm, want);
        if self.bug == Some(Bug::StandbyGrants) && twin != self.leader() {
            self.extenders[twin as usize].believes = true;
            self.tell_ledger(twin, Event::Leader(Some(self.lease.changes)));
        }
        let extender = &mut self.extenders[twin as usize];
        extender.tickets += 1;
        let ticket = extender.tickets;
        let drops = self.bug == Some(Bug::ExtenderDropsRequests) && !extender.open.is_empty();
        let open = Open { vm, life, generation, echo, since: self.now };
        extender.open.insert(ticket, open);
        if drops {
            return;
        }
        let node = self.pods.get(pod as usize).and_then(|pod| pod.node);
        let mean = self.bug == Some(Bug::ExtenderGrantsNothing);
        let want = if mean { want.min(self.approved(vm)) } else { want };
        let asked = Asked {
            ticket: Ticket(ticket),
            caller_node: node.map(node_name).unwrap_or_default(),
            vm: reference(vm_name(vm)),
            pod: reference(pod_name(pod)),
            generation,
            want,
            least,
            current,
        };
        self.tell_ledger(twin, Event::Asked(asked));
    }

    /// Every request ends in time.
    pub(crate) fn judge_open(&mut self) {
        let answering = self.extenders.iter().filter(|extender| extender.answers(self.now));
        let mut open = answering.flat_map(|extender| extender.open.values());
        if let Some(late) = open.find(|it| it.since + ANSWERED_WITHIN <= self.now).copied() {
            let text = format!("request {} is open since {:?}", late.generation, late.since.0);
            self.broken(7, late.vm, text);
        }
    }

    /// Of the API server. What an earlier process asked is of no interest.
    pub(crate) fn extender_hears(&mut self, twin: Twin, message: Message) {
        let ours = self.extenders[twin as usize].life;
        let ended = call(&message);
        match message {
            Message::Resized { pod, life, number, result } if life == ours => {
                if result == ResizeResult::Raced {
                    self.say(twin, Link::ExtenderApi(twin), Message::LookUp { pod, life });
                }
                self.tell_ledger(twin, Event::ResizeEnded { pod: pod_name(pod), number, result });
            }
            Message::Approved { vm, life, generation, written } if life == ours => {
                let vm = vm_name(vm);
                self.tell_ledger(twin, Event::ApproveEnded { vm, generation, written });
            }
            Message::Fenced { pod, life, number, found } if life == ours => {
                let found: Option<PodFacts> = found.map(|found| found.facts(pod));
                self.tell_ledger(twin, Event::Fenced { uid: pod_name(pod), number, found });
            }
            Message::LookedUp { pod, life, found } if life == ours => {
                let found: Option<PodFacts> = found.map(|found| found.facts(pod));
                self.tell_ledger(twin, Event::LookedUp { uid: pod_name(pod), found });
            }
            Message::Bound { pod, life, done } if life == ours => {
                if !done {
                    self.tell_ledger(twin, Event::PlacingFailed(pod_name(pod)));
                    self.wait_for_node(pod);
                }
            }
            _ => return,
        }
        if let Some(ended) = ended {
            self.call_ended(twin, ended);
        }
    }

    /// An approval has left the ledger: it may be used from now on.
    fn issued(&mut self, vm: VmId, seal: Seal) {
        self.judge_seal(vm, seal);
        let machine = &mut self.vms[vm as usize];
        let obeyed = machine.object.obeyed;
        machine.seals.retain(|old| Some(old.place()) >= obeyed && old.place() != seal.place());
        machine.seals.push(seal);
        self.judge_vm(vm);
    }

    /// The most that may be plugged by any approval that counts.
    pub(crate) fn approved(&self, vm: VmId) -> Size {
        let machine = &self.vms[vm as usize];
        let obeyed = machine.object.obeyed;
        let counts = machine.seals.iter().filter(|seal| Some(seal.place()) >= obeyed);
        counts.map(|seal| seal.size).fold(machine.object.limits.min, Size::max)
    }
}
