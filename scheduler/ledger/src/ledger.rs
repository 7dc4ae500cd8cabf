//! The books as a whole: what was seen, and whom it concerns.

use std::collections::{BTreeMap, BTreeSet};

use guest_units::Moment;

use crate::amount::Amount;
use crate::event::{Action, Actions, Answer, Event, ResizeResult, Ticket, Todo, Why};
use crate::facts::{NodeFacts, PodFacts, VmFacts};
use crate::pod::{PodBook, TRY_AGAIN, TRY_RENEWED, back_off};
use crate::settings::Settings;
use crate::vm::{VmBook, WishState};

/// Everything that is promised on every node. Only its owner changes it, by events.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    pub(crate) settings: Settings,
    pub(crate) epoch: Option<u64>,
    pub(crate) nodes: BTreeMap<String, NodeFacts>,
    pub(crate) pods: BTreeMap<String, PodBook>,
    pub(crate) vms: BTreeMap<String, VmBook>,
    /// Uids of the pods that count on a node, whether the node is known or not.
    pub(crate) on_node: BTreeMap<String, BTreeSet<String>>,
    /// Uids of the pods that claim to run a VM, by its uid: see [`Self::vm_of`].
    pub(crate) pods_of: BTreeMap<String, BTreeSet<String>>,
    pub(crate) listed: Listed,
    dirty_nodes: BTreeSet<String>,
    dirty_vms: BTreeSet<String>,
    /// When to look at a VM or a pod again, by uid.
    pub(crate) timers: BTreeMap<String, Moment>,
    outbox: Vec<Todo>,
    last_id: u64,
    pub(crate) last_rank: u64,
}

/// Which kinds of objects are completely known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Listed {
    nodes: bool,
    pub(crate) pods: bool,
    vms: bool,
}

impl Ledger {
    /// Empty books. Nothing grows on a node until all pods and VMs were listed.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Records what happened. Never fails, never blocks.
    pub fn handle(&mut self, event: Event, now: Moment) {
        match event {
            Event::Leader(epoch) => self.lead(epoch),
            Event::Node(facts) => self.see_node(facts),
            Event::NodeGone(name) => self.forget_node(&name),
            Event::NodesListed(names) => self.nodes_listed(&names),
            Event::Pod(facts) => self.see_pod(facts, None),
            Event::PodGone(uid) => self.forget_pod(&uid),
            Event::PodsListed(uids) => self.pods_listed(&uids),
            Event::Vm(facts) => self.see_vm(facts),
            Event::VmGone(uid) => self.forget_vm(&uid),
            Event::VmsListed(uids) => self.vms_listed(&uids),
            Event::Asked(asked) => self.asked(asked, now),
            Event::Placing(facts) => {
                self.see_pod(facts, Some(now + self.settings.confirm_pod));
            }
            Event::PlacingFailed(uid) => self.look_up(&uid, now),
            Event::LookedUp { uid, found } => self.looked_up(&uid, found, now),
            Event::Started(id) => self.outbox.retain(|todo| todo.id != id),
            Event::ResizeEnded { pod, number, result } => {
                self.resize_ended(&pod, number, result, now);
            }
            Event::ApproveEnded { vm, generation, written } => {
                self.approve_ended(&vm, generation, written, now);
            }
            Event::Woke => self.woke(now),
        }
        self.settle(now);
    }

    /// Says what to do next. Same state, same answer; safe to call at any time.
    #[must_use]
    pub fn next(&self, _now: Moment) -> Actions {
        Actions { start: self.outbox.clone(), wake_at: self.timers.values().min().copied() }
    }

    /// The highest epoch of any approval seen: a ledger with a lower one cannot approve anything.
    #[must_use]
    pub fn newest_epoch_seen(&self) -> u64 {
        let visible = self.vms.values().filter_map(|vm| vm.facts.visible);
        let obeyed = self.vms.values().filter_map(|vm| vm.facts.obeyed);
        visible.map(|seal| seal.epoch).chain(obeyed.map(|place| place.0)).max().unwrap_or(0)
    }

    /// Whether nodes, pods and VMs were all listed.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.listed.nodes && self.listed.pods && self.listed.vms
    }

    pub(crate) fn node_complete(&self, node: &str) -> bool {
        self.listed.pods && self.listed.vms && self.nodes.contains_key(node)
    }

    pub(crate) fn vms_known(&self) -> bool {
        self.listed.vms && self.listed.pods
    }

    pub(crate) fn push(&mut self, action: Action, why: Why) {
        self.last_id += 1;
        self.outbox.push(Todo { id: self.last_id, action, why });
    }

    pub(crate) fn answer(&mut self, ticket: Ticket, answer: Answer, why: Why) {
        self.push(Action::Answer { ticket, answer }, why);
    }

    fn lead(&mut self, epoch: Option<u64>) {
        if self.epoch == epoch {
            return;
        }
        self.epoch = epoch;
        if epoch.is_none() {
            self.refuse_open_requests();
        }
        self.touch_all();
    }

    pub(crate) fn touch_all(&mut self) {
        self.dirty_nodes.extend(self.nodes.keys().cloned());
        for uid in self.vms.keys().cloned().collect::<Vec<_>>() {
            self.touch_vm(&uid);
        }
    }

    pub(crate) fn touch_pod(&mut self, uid: &str) {
        let Some(pod) = self.pods.get(uid) else { return };
        self.dirty_nodes.extend(pod.facts.node.clone());
        // What another pod of the VM must request may depend on this one.
        if let Some(vm) = pod.facts.runner().map(|runner| runner.vm_uid.clone()) {
            self.touch_vm(&vm);
        }
    }

    pub(crate) fn touch_vm(&mut self, uid: &str) {
        self.dirty_vms.insert(uid.to_owned());
        let pods = self.pods_of.get(uid).into_iter().flatten();
        let nodes = pods.filter_map(|pod| self.pods.get(pod)?.facts.node.clone());
        self.dirty_nodes.extend(nodes);
    }

    fn see_node(&mut self, facts: NodeFacts) {
        if self.nodes.get(&facts.name) == Some(&facts) {
            return;
        }
        self.dirty_nodes.insert(facts.name.clone());
        self.nodes.insert(facts.name.clone(), facts);
    }

    fn forget_node(&mut self, name: &str) {
        self.nodes.remove(name);
        self.dirty_nodes.insert(name.to_owned());
    }

    fn nodes_listed(&mut self, names: &BTreeSet<String>) {
        let gone: Vec<String> =
            self.nodes.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            self.forget_node(&name);
        }
        self.listed.nodes = true;
    }

    fn see_vm(&mut self, facts: VmFacts) {
        let uid = facts.uid.clone();
        match self.vms.get_mut(&uid) {
            Some(book) if book.facts == facts => return,
            Some(book) => book.see(facts),
            None => {
                self.vms.insert(uid.clone(), VmBook::new(facts));
            }
        }
        self.touch_vm(&uid);
    }

    fn forget_vm(&mut self, uid: &str) {
        self.touch_vm(uid);
        if let Some(ticket) = self.vms.remove(uid).and_then(|book| book.wish?.ticket) {
            self.refuse_unknown(ticket, "the VM is gone");
        }
        self.timers.remove(uid);
    }

    fn vms_listed(&mut self, uids: &BTreeSet<String>) {
        let gone: Vec<String> =
            self.vms.keys().filter(|uid| !uids.contains(*uid)).cloned().collect();
        for uid in gone {
            self.forget_vm(&uid);
        }
        if !std::mem::replace(&mut self.listed.vms, true) {
            self.touch_all();
        }
    }

    fn resize_ended(&mut self, uid: &str, number: u64, result: ResizeResult, now: Moment) {
        let Some(book) = self.pods.get_mut(uid) else { return };
        let order = book.order.filter(|order| order.number == number);
        match result {
            ResizeResult::Accepted { generation } => book.accepted(number, generation),
            ResizeResult::Refused => book.failed(number, false, now),
            ResizeResult::NotDone => book.not_done(number, now + TRY_AGAIN),
            ResizeResult::NotHeld => book.not_done(number, now + TRY_RENEWED),
            ResizeResult::Unknown => book.failed(number, true, now),
        }
        if let Some(order) = order.filter(|_| result == ResizeResult::Refused) {
            let vm = book.facts.runner().and_then(|runner| self.vms.get_mut(&runner.vm_uid));
            if let Some(wish) = vm.and_then(|vm| vm.wish.as_mut()) {
                // A return, or a growth for an earlier wish, says nothing about this one.
                wish.refused |= matches!(wish.state, WishState::Growing { requests, .. }
                    if requests.fits_in(order.requests));
            }
        }
        self.touch_pod(uid);
    }

    fn approve_ended(&mut self, uid: &str, generation: u64, written: bool, now: Moment) {
        let Some(book) = self.vms.get_mut(uid) else { return };
        if let Some(writing) =
            book.writing.as_mut().filter(|writing| writing.seal.generation == generation)
        {
            writing.in_flight = false;
            writing.failures = if written { 0 } else { writing.failures.saturating_add(1) };
            // Written is not seen: it is repeated until the object shows it.
            let wait =
                if written { self.settings.confirm_write } else { back_off(writing.failures) };
            writing.not_before = now + wait;
        }
        self.touch_vm(uid);
    }

    fn woke(&mut self, now: Moment) {
        let due: Vec<String> =
            self.timers.iter().filter(|(_, at)| **at <= now).map(|(uid, _)| uid.clone()).collect();
        for uid in due {
            self.timers.remove(&uid);
            let unconfirmed = self.pods.get(&uid).and_then(|pod| pod.unconfirmed);
            if unconfirmed.is_some_and(|at| at <= now) {
                self.look_up(&uid, now);
            }
            if self.vms.contains_key(&uid) {
                self.touch_vm(&uid);
            }
            self.touch_pod(&uid);
        }
    }

    fn settle(&mut self, now: Moment) {
        let vms = std::mem::take(&mut self.dirty_vms);
        for uid in &vms {
            self.plan_vm(uid, now);
        }
        let mut nodes = std::mem::take(&mut self.dirty_nodes);
        let mut touched = vms;
        while let Some(node) = nodes.pop_first() {
            touched.extend(self.settle_node(&node, now));
            for uid in self.on_node.get(&node).cloned().unwrap_or_default() {
                self.order_resize(&uid, now);
                let timer = self.pods.get_mut(&uid).and_then(|pod| pod.age(now));
                self.set_timer(uid, timer);
            }
            nodes.append(&mut self.dirty_nodes);
        }
        for uid in touched {
            self.write_approval(&uid, now);
            let timer = self.vm_timer(&uid, now);
            self.set_timer(uid, timer);
        }
        self.dirty_vms.clear();
    }

    pub(crate) fn set_timer(&mut self, uid: String, at: Option<Moment>) {
        match at {
            Some(at) => self.timers.insert(uid, at),
            None => self.timers.remove(&uid),
        };
    }

    /// The VM that a pod runs. Whoever may make pods in some namespace can name any VM as the owner: only those of the same
    /// namespace are believed.
    pub(crate) fn vm_of(&self, pod: &PodFacts) -> Option<&VmBook> {
        let vm = self.vms.get(&pod.runner()?.vm_uid)?;
        (vm.facts.namespace == pod.namespace).then_some(vm)
    }

    /// The pods that run a VM.
    pub(crate) fn runners_of(&self, vm_uid: &str) -> impl Iterator<Item = &PodBook> {
        let pods = self.pods_of.get(vm_uid).into_iter().flatten();
        pods.filter_map(|uid| self.pods.get(uid)).filter(|pod| self.vm_of(&pod.facts).is_some())
    }

    /// The bound pod that a VM's promise counts for: the one that the object names, where there is a choice.
    pub(crate) fn primary(&self, vm_uid: &str) -> Option<&PodBook> {
        let named = self.vms.get(vm_uid).and_then(|vm| vm.facts.pod_name.as_deref());
        let live = self.runners_of(vm_uid).filter(|pod| pod.counts_on().is_some());
        live.max_by_key(|pod| (Some(pod.facts.name.as_str()) == named, pod.facts.uid.as_str()))
    }

    pub(crate) fn is_primary(&self, pod: &PodBook) -> bool {
        let primary = pod.facts.runner().and_then(|runner| self.primary(&runner.vm_uid));
        primary.is_some_and(|primary| primary.facts.uid == pod.facts.uid)
    }

    /// What a pod takes on its node, whatever comes of everything that is under way.
    pub(crate) fn counted(&self, pod: &PodBook) -> Amount {
        match &pod.facts.kind {
            crate::facts::PodKind::Ordinary { requests } => *requests,
            crate::facts::PodKind::Runner(runner) => {
                runner.total(pod.may_have().max(self.needed(pod).unwrap_or(Amount::ZERO)))
            }
        }
    }

    /// What all pods of a node take.
    pub(crate) fn reserved(&self, node: &str) -> Amount {
        let pods = self.on_node.get(node).into_iter().flatten();
        pods.filter_map(|uid| self.pods.get(uid)).map(|pod| self.counted(pod)).sum()
    }
}
