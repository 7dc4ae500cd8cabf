//! The books as a whole: what was seen, and whom it concerns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use guest_units::Moment;

use crate::books::{NodeSlot, PodSlot, VmSlot};
use crate::calls::Calls;
use crate::event::{Action, Actions, Answer, Event, ResizeResult, Ticket, Todo, Why};
use crate::facts::{NodeFacts, PodFacts, VmFacts};
use crate::moves::MoveBooks;
use crate::permit::{REFUSED_BY_API, REFUSED_BY_QUOTA};
use crate::pod::{PodBook, TRY_RENEWED, back_off};
use crate::settings::Settings;
use crate::slab::{NodeId, PodId, Slab, VmId};
use crate::standing::Standings;
use crate::timers::{Timers, Who};
use crate::vm::{VmBook, WishState};

/// Everything that is promised on every node. Only its owner changes it, by events.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    pub(crate) settings: Settings,
    pub(crate) epoch: Option<u64>,
    /// Since when.
    pub(crate) led_since: Moment,
    /// The last epoch in which this ledger led.
    pub(crate) led: Option<u64>,
    pub(crate) nodes: Slab<NodeId, NodeSlot>,
    pub(crate) standings: Standings,
    pub(crate) pods: Slab<PodId, PodSlot>,
    pub(crate) vms: Slab<VmId, VmSlot>,
    /// Pods that no scheduler can place.
    pub(crate) calls: Calls,
    pub(crate) moves: MoveBooks,
    pub(crate) listed: Listed,
    pub(crate) dirty_nodes: Vec<NodeId>,
    pub(crate) dirty_vms: Vec<VmId>,
    pub(crate) timers: Timers,
    /// How many VMs name an epoch as their highest.
    epochs: BTreeMap<u64, usize>,
    pub(crate) outbox: VecDeque<Todo>,
    last_id: u64,
    pub(crate) last_rank: u64,
}

/// Which kinds of objects are completely known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Listed {
    nodes: bool,
    pub(crate) pods: bool,
    vms: bool,
    pub(crate) migrations: bool,
}

impl Ledger {
    /// Empty books. Nothing grows on a node until all pods and VMs were listed.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Records what happened. Never fails, never blocks.
    pub fn handle(&mut self, event: Event, now: Moment) {
        let known = self.vms_known();
        match event {
            Event::Leader(epoch) => self.lead(epoch, now),
            Event::Node(facts) => self.see_node(facts),
            Event::NodeGone(name) => {
                self.nodes.find(&name).into_iter().for_each(|node| self.forget_node(node));
            }
            Event::NodesListed(names) => self.nodes_listed(&names),
            Event::Pod(facts) => self.see_pod(facts, None, false),
            Event::PodGone(uid) => {
                self.pods.find(&uid).into_iter().for_each(|pod| self.forget_pod(pod));
            }
            Event::PodsListed(uids) => self.pods_listed(&uids),
            Event::Vm(facts) => self.see_vm(facts),
            Event::VmGone(uid) => {
                self.vms.find(&uid).into_iter().for_each(|vm| self.forget_vm(vm, now));
            }
            Event::VmsListed(uids) => self.vms_listed(&uids, now),
            Event::Migration(facts) => self.see_migration(facts, now),
            Event::MigrationGone(uid) => self.forget_migration(&uid, now),
            Event::MigrationsListed(uids) => self.migrations_listed(&uids, now),
            Event::Asked(asked) => self.asked(asked, now),
            Event::Placing(facts) => {
                self.see_pod(facts, Some(now + self.settings.confirm_pod), true);
            }
            Event::PlacingFailed(uid) => {
                if let Some(pod) = self.pods.find(&uid) {
                    self.doubt_binding(pod);
                    self.look_up(pod, now);
                }
            }
            Event::LookedUp { uid, found } => self.looked_up(&uid, found, now),
            Event::Fenced { uid, number, found } => self.fenced(&uid, number, found, now),
            Event::Started(id) => self.started(id),
            Event::ResizeEnded { pod, number, result } => {
                self.resize_ended(&pod, number, result, now);
            }
            Event::ApproveEnded { vm, generation, written } => {
                self.approve_ended(&vm, generation, written, now);
            }
            Event::MigrateEnded { vm, name, made } => self.migrate_ended(&vm, &name, made, now),
            Event::Woke => self.woke(now),
        }
        if self.vms_known() != known {
            // Agents were refused until then.
            self.led_since = now;
        }
        self.settle(now);
    }

    /// Says what to do next. Same state, same answer; safe to call at any time.
    #[must_use]
    pub fn next(&self, _now: Moment) -> Actions {
        Actions { start: self.outbox.iter().cloned().collect(), wake_at: self.timers.first() }
    }

    /// The highest epoch of any approval seen: a ledger with a lower one cannot approve anything.
    #[must_use]
    pub fn newest_epoch_seen(&self) -> u64 {
        self.epochs.last_key_value().map_or(0, |(epoch, _)| *epoch)
    }

    /// Whether nodes, pods and VMs were all listed, and migrations where they matter.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.listed.nodes && self.listed.pods && self.listed.vms && self.migrations_known()
    }

    pub(crate) fn node_complete(&self, node: NodeId) -> bool {
        self.vms_known() && self.migrations_known() && self.facts(node).is_some()
    }

    fn migrations_known(&self) -> bool {
        self.settings.moves.is_none() || self.listed.migrations
    }

    pub(crate) fn vms_known(&self) -> bool {
        self.listed.vms && self.listed.pods
    }

    pub(crate) fn push(&mut self, action: Action, why: Why) {
        self.last_id += 1;
        self.outbox.push_back(Todo { id: self.last_id, action, why });
    }

    pub(crate) fn answer(&mut self, ticket: Ticket, answer: Answer, why: Why) {
        self.push(Action::Answer { ticket, answer }, why);
    }

    /// Whoever acts starts with the first.
    fn started(&mut self, id: u64) {
        if self.outbox.front().is_some_and(|todo| todo.id == id) {
            self.outbox.pop_front();
        } else {
            self.outbox.retain(|todo| todo.id != id);
        }
    }

    fn lead(&mut self, epoch: Option<u64>, now: Moment) {
        if self.epoch == epoch {
            return;
        }
        (self.epoch, self.led_since) = (epoch, now);
        self.refuse_open_requests();
        if epoch.is_some() && self.led != epoch {
            // Somebody else may have led in between.
            self.doubt_pods();
            self.led = epoch;
        }
        self.forget_tries();
        self.forget_moves(now);
        self.touch_all();
    }

    fn see_node(&mut self, facts: NodeFacts) {
        let node = self.nodes.find_or_insert(&facts.name, |_| NodeSlot::default());
        let Some(slot) =
            self.nodes.get_mut(node).filter(|slot| slot.facts.as_ref() != Some(&facts))
        else {
            return;
        };
        slot.facts = Some(facts);
        slot.changed = true;
        self.restand(node);
        self.touch_node(node);
    }

    fn forget_node(&mut self, node: NodeId) {
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.facts = None;
            slot.changed = true;
        }
        self.restand(node);
        self.forget_tries_on(node);
        self.touch_node(node);
    }

    fn nodes_listed(&mut self, names: &BTreeSet<String>) {
        for node in self.nodes.by_name(|name, slot| slot.facts.is_some() && !names.contains(name)) {
            self.forget_node(node);
        }
        self.listed.nodes = true;
    }

    fn see_vm(&mut self, facts: VmFacts) {
        let vm = self.vms.find_or_insert(&facts.uid, |_| VmSlot::default());
        let Some(slot) = self.vms.get_mut(vm) else { return };
        match &mut slot.book {
            Some(book) if book.facts == facts => return,
            Some(book) => book.see(facts),
            book => *book = Some(VmBook::new(facts)),
        }
        self.count_epoch(vm);
        self.reselect(vm);
        self.touch_vm(vm);
    }

    fn forget_vm(&mut self, vm: VmId, now: Moment) {
        let book = self.vms.get_mut(vm).and_then(|slot| slot.book.take());
        if let Some(ticket) = book.and_then(|book| book.wish?.ticket) {
            self.refuse_unknown(ticket, "the VM is gone");
        }
        self.forget_moves_of(vm, now);
        self.set_vm_timer(vm, None);
        self.count_epoch(vm);
        self.reselect(vm);
        self.touch_vm(vm);
    }

    fn count_epoch(&mut self, vm: VmId) {
        let Some(slot) = self.vms.get_mut(vm) else { return };
        let facts = slot.book.as_ref().map(|book| &book.facts);
        let visible = facts.and_then(|facts| facts.visible).map_or(0, |seal| seal.epoch);
        let obeyed = facts.and_then(|facts| facts.obeyed).map_or(0, |place| place.0);
        let new = visible.max(obeyed);
        let old = std::mem::replace(&mut slot.epoch, new);
        if new == old {
            return;
        }
        // VMs that name no epoch, which is 0, are not counted.
        if new != 0 {
            *self.epochs.entry(new).or_default() += 1;
        }
        if let Some(count) = self.epochs.get_mut(&old) {
            *count -= 1;
            if *count == 0 {
                self.epochs.remove(&old);
            }
        }
    }

    fn vms_listed(&mut self, uids: &BTreeSet<String>, now: Moment) {
        for vm in self.vms.by_name(|uid, slot| slot.book.is_some() && !uids.contains(uid)) {
            self.forget_vm(vm, now);
        }
        if !std::mem::replace(&mut self.listed.vms, true) {
            self.touch_all();
        }
    }

    fn resize_ended(&mut self, uid: &str, number: u64, result: ResizeResult, now: Moment) {
        let Some(pod) = self.pods.find(uid) else { return };
        let for_lease = self.pods.get(pod).is_some_and(|slot| self.orders_lease(slot, number));
        let Some(slot) = self.pods.get_mut(pod) else { return };
        let (book, vm) = (&mut slot.book, slot.vm);
        let Some(order) = book.unanswered(number) else { return };
        match result {
            ResizeResult::Accepted { generation } => book.accepted(number, generation),
            // Without the lease it may be possible: that is tried at once, and nobody is told that there is no room.
            ResizeResult::Refused | ResizeResult::Quota if for_lease => {
                book.not_done(number, now);
                book.lease_refused(now);
            }
            ResizeResult::Refused | ResizeResult::Quota => book.failed(number, false, now),
            ResizeResult::Raced => book.raced(number, now),
            ResizeResult::NotDone => book.not_done(number, now + TRY_RENEWED),
            ResizeResult::Unknown => book.failed(number, true, now),
        }
        let refused = match result {
            ResizeResult::Refused => Some(REFUSED_BY_API),
            ResizeResult::Quota => Some(REFUSED_BY_QUOTA),
            _ => None,
        };
        if let Some(reason) = refused.filter(|_| !for_lease) {
            let book = vm.and_then(|vm| self.book_mut(vm));
            if let Some(wish) = book.and_then(|book| book.wish.as_mut()) {
                // A return, or a growth for an earlier wish, says nothing about this one.
                if matches!(wish.state, WishState::Growing { requests, .. }
                    if requests.fits_in(order.requests))
                {
                    wish.refused = Some(reason);
                }
            }
        }
        self.touch_pod(pod);
    }

    fn approve_ended(&mut self, uid: &str, generation: u64, written: bool, now: Moment) {
        let Some(vm) = self.vms.find(uid) else { return };
        let confirm_write = self.settings.confirm_write;
        let Some(book) = self.book_mut(vm) else { return };
        if let Some(writing) =
            book.writing.as_mut().filter(|writing| writing.seal.generation == generation)
        {
            writing.in_flight = false;
            writing.failures = if written { 0 } else { writing.failures.saturating_add(1) };
            // Written is not seen: it is repeated until the object shows it.
            let wait = if written { confirm_write } else { back_off(writing.failures) };
            writing.not_before = now + wait;
        }
        self.touch_vm(vm);
    }

    fn woke(&mut self, now: Moment) {
        let mut due = self.timers.due(now);
        due.sort_by(|one, other| self.uid(*one).cmp(self.uid(*other)));
        for who in due {
            match who {
                Who::Pod(pod) => {
                    self.fence(pod, now);
                    let unconfirmed = self.pod(pod).and_then(|book| book.unconfirmed);
                    if unconfirmed.is_some_and(|at| at <= now) {
                        self.look_up(pod, now);
                    }
                    let timer = self.pod(pod).and_then(|book| book.timer(now));
                    self.set_pod_timer(pod, timer);
                    self.touch_pod(pod);
                }
                Who::Vm(vm) => {
                    self.set_vm_timer(vm, None);
                    self.touch_vm(vm);
                }
                Who::Class(class) => self.class_is_due(class, now),
                Who::Moves => self.moves_due(now),
            }
        }
    }

    fn uid(&self, who: Who) -> &str {
        match who {
            Who::Pod(pod) => self.pods.name(pod),
            Who::Vm(vm) => self.vms.name(vm),
            Who::Class(_) | Who::Moves => "",
        }
    }

    pub(crate) fn set_pod_timer(&mut self, pod: PodId, at: Option<Moment>) {
        let Some(slot) = self.pods.get_mut(pod) else { return };
        self.timers.set(Who::Pod(pod), &mut slot.timer, at);
        if let Some(node) = slot.at.filter(|_| at.is_some()).and_then(|at| self.nodes.get_mut(at)) {
            node.restless.insert(pod);
        }
    }

    pub(crate) fn set_vm_timer(&mut self, vm: VmId, at: Option<Moment>) {
        if let Some(slot) = self.vms.get_mut(vm) {
            self.timers.set(Who::Vm(vm), &mut slot.timer, at);
        }
    }

    pub(crate) fn facts(&self, node: NodeId) -> Option<&NodeFacts> {
        self.nodes.get(node)?.facts.as_ref()
    }

    pub(crate) fn pod(&self, pod: PodId) -> Option<&PodBook> {
        self.pods.get(pod).map(|slot| &slot.book)
    }

    pub(crate) fn book(&self, vm: VmId) -> Option<&VmBook> {
        self.vms.get(vm)?.book.as_ref()
    }

    pub(crate) fn book_mut(&mut self, vm: VmId) -> Option<&mut VmBook> {
        self.vms.get_mut(vm)?.book.as_mut()
    }

    /// The VM that a pod runs. Whoever may make pods in some namespace can name any VM as the owner: only those of the same
    /// namespace are believed.
    pub(crate) fn vm_of(&self, pod: &PodSlot) -> Option<&VmBook> {
        let vm = self.book(pod.vm?)?;
        (vm.facts.namespace == pod.book.facts.namespace).then_some(vm)
    }

    /// As [`Self::vm_of`], for a pod that need not be in the books.
    pub(crate) fn vm_of_facts(&self, pod: &PodFacts) -> Option<(VmId, &VmBook)> {
        let id = self.vms.find(&pod.runner()?.vm_uid)?;
        let vm = self.book(id)?;
        (vm.facts.namespace == pod.namespace).then_some((id, vm))
    }

    /// The pods that run a VM.
    pub(crate) fn runners_of(&self, vm: VmId) -> impl Iterator<Item = &PodSlot> {
        let pods = self.vms.get(vm).map(|slot| slot.pods.iter()).into_iter().flatten();
        pods.filter_map(|pod| self.pods.get(*pod)).filter(|pod| self.vm_of(pod).is_some())
    }

    /// The bound pod that a VM's promise counts for: the one that the object names, where there is a choice.
    pub(crate) fn primary(&self, vm: VmId) -> Option<&PodSlot> {
        self.pods.get(self.vms.get(vm)?.primary?)
    }

    pub(crate) fn is_primary(&self, pod: &PodSlot) -> bool {
        let primary = pod.vm.and_then(|vm| self.vms.get(vm)?.primary);
        primary == Some(pod.id)
    }
}
