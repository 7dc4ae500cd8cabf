//! The extender: the shell of the ledger, and kube-scheduler beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use guest_units::{Moment, Size};
use scheduler_ledger::{
    Action, Answer, Asked, Event, Ledger, PodFacts, PodKind, Seal, Settings, Ticket, Why,
};
use scheduler_protocol::ObjectRef;

use super::bug::Bug;
use super::message::{Happening, Link, Message, Watcher};
use super::object::{
    NAMESPACE, NodeId, Owner, Pod, PodId, VmId, VmObject, cost, node_name, number, pod_name,
    vm_name,
};
use super::world::World;

/// kube-scheduler tries a pod again after so long.
const SCHEDULE_AGAIN: Duration = Duration::from_secs(1);
/// A request is answered within [`Settings::hold`] and [`Settings::resize_limit`], and some time to do it in.
pub(crate) const ANSWERED_WITHIN: Duration = Duration::from_secs(4);

/// A request that is open.
#[derive(Debug, Clone, Copy)]
struct Open {
    vm: VmId,
    life: u32,
    generation: u64,
    /// Nobody waits for the answer.
    echo: bool,
    since: Moment,
}

/// The extender's process.
pub(crate) struct Extender {
    pub(crate) up: bool,
    /// Counts its processes.
    pub(crate) life: u32,
    /// Of its lease.
    pub(crate) epoch: u64,
    pub(crate) ledger: Ledger,
    open: BTreeMap<u64, Open>,
    tickets: u64,
    wake: Option<Moment>,
    /// Pods that wait for a node.
    pub(crate) waiting: Vec<PodId>,
}

impl Extender {
    pub(crate) fn new() -> Self {
        Self {
            up: true,
            life: 1,
            epoch: 1,
            ledger: Ledger::new(Settings::default()),
            open: BTreeMap::new(),
            tickets: 0,
            wake: None,
            waiting: Vec::new(),
        }
    }
}

fn reference(name: String) -> ObjectRef {
    ObjectRef { namespace: NAMESPACE.to_owned(), uid: name.clone(), name }
}

impl World {
    /// The books are written anew from what the API server lists.
    pub(crate) fn extender_lists(&mut self) {
        let forgets = self.bug == Some(Bug::ExtenderForgetsPods) && self.extender.life > 1;
        let deaf = self.bug == Some(Bug::ExtenderKeepsLeases);
        let now = self.now;
        let ledger = &mut self.extender.ledger;
        ledger.handle(Event::Leader(Some(self.extender.epoch)), now);
        for (node, at) in self.nodes.iter().enumerate() {
            let node = u32::try_from(node).unwrap_or(u32::MAX);
            ledger.handle(Event::Node(at.facts(node)), now);
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
        self.run_ledger();
    }

    pub(crate) fn extender_sees(&mut self, vm: VmId, object: &VmObject) {
        if self.bug == Some(Bug::ExtenderShrinksEarly)
            && let (Some(pod), Some(plugged)) = (object.pod, object.plugged)
            && !plugged.fits_in(object.spec)
        {
            let (life, requests) = (u32::MAX, cost(object.spec));
            let message = Message::Resize { pod, life, version: 0, number: 0, requests };
            self.send(Link::ExtenderApi, message);
        }
        self.tell_ledger(Event::Vm(object.facts(vm)));
    }

    pub(crate) fn extender_sees_pod(&mut self, pod: PodId, object: &Pod) {
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
        self.tell_ledger(event);
    }

    pub(crate) fn tell_ledger(&mut self, event: Event) {
        if self.extender.up {
            self.extender.ledger.handle(event, self.now);
            self.run_ledger();
        }
    }

    pub(crate) fn ledger_wakes(&mut self) {
        if self.extender.wake == Some(self.now) {
            self.extender.wake = None;
            self.tell_ledger(Event::Woke);
        }
    }

    /// Starts what the ledger names.
    fn run_ledger(&mut self) {
        let now = self.now;
        for _ in 0..256 {
            let actions = self.extender.ledger.next(now);
            if actions.start.is_empty() {
                if actions.wake_at != self.extender.wake {
                    self.extender.wake = actions.wake_at;
                    if let Some(at) = actions.wake_at {
                        self.queue.push(at.max(now), Happening::Ledger);
                    }
                }
                return;
            }
            for todo in actions.start {
                self.extender.ledger.handle(Event::Started(todo.id), now);
                self.do_for_ledger(todo.action, todo.why);
            }
        }
        self.broken(7, 0, "the ledger starts actions without end".to_owned());
    }

    fn do_for_ledger(&mut self, mut action: Action, why: Why) {
        let life = self.extender.life;
        if self.bug == Some(Bug::ExtenderRepeatsNumbers)
            && let Action::Answer { answer: Answer::Permit { seal, .. }, .. } = &mut action
        {
            seal.generation /= 2;
        }
        match action {
            Action::Answer { ticket, answer } => self.answer(ticket, answer, why),
            Action::Resize { pod, version, number: order, requests, .. } => {
                let Some(pod) = number(&pod.uid) else { return };
                if let Owner::Vm(vm) = self.pods[pod as usize].owner {
                    self.vms[vm as usize].permits.pod_resizes += 1;
                }
                let message = Message::Resize { pod, life, version, number: order, requests };
                self.send(Link::ExtenderApi, message);
            }
            Action::Approve { vm, seal } => {
                let Some(vm) = number(&vm.uid) else { return };
                self.issued(vm, seal);
                self.send(Link::ExtenderApi, Message::Approve { vm, life, seal });
            }
            Action::LookUp { pod } => {
                let Some(pod) = number(&pod.uid) else { return };
                self.send(Link::ExtenderApi, Message::LookUp { pod, life });
            }
            // Nobody is moved here: the settings say so.
            Action::Migrate { .. } | Action::EndMigration { .. } | Action::Notice { .. } => {}
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer, why: Why) {
        let Some(open) = self.extender.open.remove(&ticket.0) else { return };
        let Open { vm, life, generation, echo, .. } = open;
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
        self.send(link, message);
    }

    /// A permit is asked for.
    pub(crate) fn extender_is_asked(&mut self, message: &Message) {
        let Message::Permit { vm, life, pod, generation, want, least, echo } = *message else {
            return;
        };
        if !self.extender.up {
            let link = Link::Permit(self.vms[vm as usize].node_now());
            let failed = Message::PermitFailed { vm, life, generation, newest: None };
            let at = self.now + self.hop(link);
            self.queue.push(at, Happening::Deliver(link, Box::new(failed)));
            return;
        }
        self.judge_wish(vm, want);
        self.extender.tickets += 1;
        let ticket = self.extender.tickets;
        let drops = self.bug == Some(Bug::ExtenderDropsRequests) && !self.extender.open.is_empty();
        let open = Open { vm, life, generation, echo, since: self.now };
        self.extender.open.insert(ticket, open);
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
        };
        self.tell_ledger(Event::Asked(asked));
    }

    /// Every request ends in time.
    pub(crate) fn judge_open(&mut self) {
        let late = self.extender.open.values().find(|it| it.since + ANSWERED_WITHIN <= self.now);
        if let Some(late) = late.copied().filter(|_| self.extender.up) {
            let text = format!("request {} is open since {:?}", late.generation, late.since.0);
            self.broken(7, late.vm, text);
        }
    }

    /// Of the API server.
    pub(crate) fn extender_hears(&mut self, message: Message) {
        let ours = self.extender.life;
        match message {
            Message::Resized { pod, life, number, result } if life == ours => {
                if result == scheduler_ledger::ResizeResult::NotDone {
                    self.send(Link::ExtenderApi, Message::LookUp { pod, life });
                }
                self.tell_ledger(Event::ResizeEnded { pod: pod_name(pod), number, result });
            }
            Message::Approved { vm, life, generation, written } if life == ours => {
                self.tell_ledger(Event::ApproveEnded { vm: vm_name(vm), generation, written });
            }
            Message::LookedUp { pod, life, found } if life == ours => {
                let found: Option<PodFacts> = found.map(|found| found.facts(pod));
                self.tell_ledger(Event::LookedUp { uid: pod_name(pod), found });
            }
            Message::Bound { pod, life, done: false } if life == ours => {
                self.tell_ledger(Event::PlacingFailed(pod_name(pod)));
                self.wait_for_node(pod);
            }
            _ => {}
        }
    }

    /// A pod has no node.
    pub(crate) fn wait_for_node(&mut self, pod: PodId) {
        if self.extender.waiting.is_empty() {
            self.queue.push(self.now + Duration::from_millis(20), Happening::Schedule);
        }
        if !self.extender.waiting.contains(&pod) {
            self.extender.waiting.push(pod);
        }
    }

    /// kube-scheduler and others look for nodes for the pods that have none.
    pub(crate) fn schedule(&mut self) {
        let waiting = std::mem::take(&mut self.extender.waiting);
        for pod in waiting {
            let object = self.pods[pod as usize];
            if object.gone || object.node.is_some() || object.terminating_since.is_some() {
                continue;
            }
            if object.owner == Owner::Nobody {
                self.judge_wait(pod);
            }
            if !self.place(pod, &object) {
                self.extender.waiting.push(pod);
            }
        }
        if !self.extender.waiting.is_empty() {
            self.queue.push(self.now + SCHEDULE_AGAIN, Happening::Schedule);
        }
    }

    /// By kube-scheduler's own filter, then the extender's, then the score; then it is bound. Nobody asks the extender about
    /// ordinary pods.
    fn place(&mut self, pod: PodId, object: &Pod) -> bool {
        let counted = |node: NodeId| match object.owner {
            Owner::Vm(_) => self.counted_on(node),
            Owner::Nobody => self.counted_late(node),
        };
        let fits = |node: &NodeId| {
            let at = &self.nodes[*node as usize];
            self.is_ready(*node) && (counted(*node) + object.spec).fits_in(at.allocatable)
        };
        let nodes: Vec<NodeId> = (0..self.node_count()).filter(fits).collect();
        let Some(first) = nodes.first().copied() else {
            self.found_no_node(pod);
            return false;
        };
        if object.owner == Owner::Nobody {
            self.bind_ordinary(pod, first);
            return true;
        }
        let ledger = &self.extender.ledger;
        let uid = pod_name(pod);
        if !self.extender.up || !ledger.knows_pod(&uid) {
            return false;
        }
        let nodes: Vec<String> = nodes.into_iter().map(node_name).collect();
        let facts = object.facts(pod);
        let names = nodes.iter().map(String::as_str);
        let Ok(placement) = ledger.filter(&facts, names.clone()) else { return false };
        let kept = names.zip(placement.short).filter(|(_, short)| short.is_none());
        let kept: Vec<&str> = kept.map(|(name, _)| name).collect();
        let scores = ledger.prioritize(&facts, kept.iter().copied());
        let best = scores.iter().zip(&kept).max_by_key(|(score, _)| **score);
        let Some((_, name)) = best else {
            self.found_no_node(pod);
            return false;
        };
        let (name, node) = ((*name).to_owned(), number(name).unwrap_or_default());
        let Ok((placed, _epoch)) = ledger.may_bind(&uid, &name) else { return false };
        self.tell_ledger(Event::Placing(placed));
        let life = self.extender.life;
        self.send(Link::ExtenderApi, Message::Bind { pod, node, life });
        true
    }

    /// A scheduler says so in the pod's status, once.
    fn found_no_node(&mut self, pod: PodId) {
        if !std::mem::replace(&mut self.pods[pod as usize].unschedulable, true) {
            self.pod_changed(pod);
        }
    }

    pub(crate) fn extender_dies(&mut self) {
        self.extender.up = false;
        self.extender.life += 1;
        let open = std::mem::take(&mut self.extender.open);
        for Open { vm, life, generation, echo, .. } in open.into_values() {
            if !echo {
                let link = Link::Permit(self.vms[vm as usize].node_now());
                let failed = Message::PermitFailed { vm, life, generation, newest: None };
                let at = self.now + self.hop(link);
                self.queue.push(at, Happening::Deliver(link, Box::new(failed)));
            }
        }
    }

    pub(crate) fn extender_starts(&mut self) {
        self.extender.up = true;
        if self.bug != Some(Bug::ExtenderKeepsEpoch) {
            self.extender.epoch += 1;
        }
        self.extender.ledger = Ledger::new(Settings::default());
        self.extender.wake = None;
        self.relist(Watcher::Extender);
        for vm in 0..self.vm_count() {
            if self.vms[vm as usize].guest.asleep {
                self.look_soon(vm);
            }
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
