//! Moves of VMs to other nodes: what is ordered, what the API server has, and the room that is booked for it.
//!
//! ```text
//!   picked (`pick.rs`): room booked on the destination, the migration ordered
//!     | seen                         +-- refused, or not seen in time
//!     v                              v
//!   under way -- ended, or gone --> rests: longer after each that came to nothing --> may be picked again
//!     | ^                                  (what has ended is deleted after that)
//!     | +-- the target is bound: it counts itself, and nothing is booked any more
//!     +---- no target in time: it is deleted, which ends it
//! ```
//!
//! Nothing is written down: what this scheduler ordered is known by a label, and where the target must come to is in the object.
//! So whoever leads next books the same room again when it sees the migrations, and decides nothing before it has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use guest_units::Moment;
use scheduler_protocol::ObjectRef;

use crate::amount::Amount;
use crate::event::{Action, Why};
use crate::facts::MigrationFacts;
use crate::ledger::Ledger;
use crate::pick::Heat;
use crate::slab::{NodeId, VmId};
use crate::timers::Who;

/// A VM that was moved stays for so long: all its memory was copied, and what made the node hot may have come along with it. What
/// the object says about it is deleted after that, so that another leader knows.
const COOL_DOWN: Duration = Duration::from_secs(600);
/// After a move that came to nothing; doubled each time.
pub(crate) const RETRY: Duration = Duration::from_secs(60);
/// No more doublings than this: half an hour.
const DOUBLINGS: u32 = 5;
/// A migration that was ordered is seen within this, or given up: a call of the API server and a watch take seconds.
const UNSEEN: Duration = Duration::from_secs(60);
/// The target is on its node within this, or the room is of use to others: it takes as long as a pod and its image.
const TARGET_LIMIT: Duration = Duration::from_secs(300);
/// Between two attempts at deleting a migration.
const DELETE_AGAIN: Duration = Duration::from_secs(30);

/// Everything about moves.
#[derive(Debug, Clone, Default)]
pub(crate) struct MoveBooks {
    /// By the VM's uid.
    pub(crate) vms: BTreeMap<String, MoveBook>,
    /// Which VM a migration is of, both by uid.
    objects: BTreeMap<String, String>,
    /// Nodes above their watermark.
    pub(crate) hot: BTreeMap<NodeId, Heat>,
    timer: Option<Moment>,
}

/// One VM that moves, or has moved lately.
#[derive(Debug, Clone, Default)]
pub(crate) struct MoveBook {
    order: Option<Order>,
    /// By uid.
    objects: BTreeMap<String, Object>,
    /// What the target will take where it is to come to.
    pub(crate) booked: Option<(NodeId, Amount)>,
    /// Moves that came to nothing since one that did not.
    failures: u32,
    rests_until: Option<Moment>,
}

/// A migration that is ordered and not seen yet.
#[derive(Debug, Clone)]
struct Order {
    name: String,
    to: String,
    until: Moment,
}

/// A migration that the API server has.
#[derive(Debug, Clone)]
struct Object {
    facts: MigrationFacts,
    /// When it is deleted.
    end_at: Option<Moment>,
}

impl MoveBook {
    /// Where the VM, which is of that namespace, is to come to. None: it does not move; or it does, and nobody says where to.
    fn under_way(&self, namespace: &str) -> Option<Option<&str>> {
        if let Some(order) = &self.order {
            return Some(Some(&order.to));
        }
        let open = |it: &&MigrationFacts| it.ended.is_none() && it.namespace == namespace;
        let mut open = self.objects.values().map(|it| &it.facts).filter(open).peekable();
        open.peek()?;
        Some(open.find_map(|it| it.to.as_deref()))
    }

    fn rest(&mut self, well: bool, now: Moment) {
        self.failures = if well { 0 } else { self.failures.saturating_add(1) };
        let doublings = self.failures.saturating_sub(1).min(DOUBLINGS);
        let rest = if well { COOL_DOWN } else { RETRY.saturating_mul(1 << doublings) };
        self.rests_until = Some(now + rest);
    }

    /// When those of ours are deleted: after they have ended, or when their target has not come in time.
    pub(crate) fn set_ends(&mut self, bound: bool, now: Moment) {
        for object in self.objects.values_mut().filter(|object| object.facts.ours) {
            let span = if object.facts.ended.is_some() { COOL_DOWN } else { TARGET_LIMIT };
            let waits = object.facts.ended.is_some() || !bound;
            object.end_at = waits.then(|| object.end_at.unwrap_or(now + span));
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.order.is_none()
            && self.objects.is_empty()
            && self.booked.is_none()
            && self.rests_until.is_none()
    }
}

impl Ledger {
    pub(crate) fn see_migration(&mut self, facts: MigrationFacts, now: Moment) {
        if self.settings.moves.is_none() {
            return;
        }
        let (uid, vm) = (facts.uid.clone(), facts.vm_uid.clone());
        if self.moves.objects.get(&uid).is_some_and(|other| *other != vm) {
            self.forget_migration(&uid, now);
        }
        let means = self.means(&facts);
        self.moves.objects.insert(uid.clone(), vm.clone());
        let book = self.moves.vms.entry(vm.clone()).or_default();
        book.order.take_if(|order| facts.ours && order.name == facts.name);
        let known = book.objects.get(&uid);
        if known.is_some_and(|known| known.facts == facts) {
            return;
        }
        let ended = facts.ended.filter(|_| known.is_none_or(|known| known.facts.ended.is_none()));
        let end_at = known.filter(|_| ended.is_none()).and_then(|known| known.end_at);
        book.objects.insert(uid, Object { facts, end_at });
        if let Some(well) = ended.filter(|_| means) {
            book.rest(well, now);
        }
        self.move_changed(&vm, now);
    }

    pub(crate) fn forget_migration(&mut self, uid: &str, now: Moment) {
        let Some(vm) = self.moves.objects.remove(uid) else { return };
        let book = self.moves.vms.get_mut(&vm);
        let facts = book.and_then(|book| book.objects.remove(uid)).map(|object| object.facts);
        let open = facts.is_some_and(|facts| facts.ended.is_none() && self.means(&facts));
        if let Some(book) = self.moves.vms.get_mut(&vm).filter(|_| open) {
            book.rest(false, now);
        }
        self.move_changed(&vm, now);
    }

    /// Whoever may make migrations in some namespace can name any VM as their owner: only those of the same one say anything.
    fn means(&self, facts: &MigrationFacts) -> bool {
        let vm = self.vms.find(&facts.vm_uid).and_then(|vm| self.book(vm));
        vm.is_none_or(|vm| vm.facts.namespace == facts.namespace)
    }

    pub(crate) fn migrations_listed(&mut self, uids: &BTreeSet<String>, now: Moment) {
        if self.settings.moves.is_none() {
            return;
        }
        let gone = self.moves.objects.keys().filter(|uid| !uids.contains(*uid)).cloned();
        for uid in gone.collect::<Vec<_>>() {
            self.forget_migration(&uid, now);
        }
        if !std::mem::replace(&mut self.listed.migrations, true) {
            self.touch_all();
        }
    }

    /// Books the room and orders the migration.
    pub(crate) fn order_move(&mut self, vm: VmId, to: NodeId, now: Moment) {
        let (Some(epoch), Some(book), Some(pod)) = (self.epoch, self.book(vm), self.primary(vm))
        else {
            return;
        };
        let (vm, pod) = (book.reference(), pod.book.reference());
        let (number, to) = (self.last_rank + 1, self.nodes.name(to).to_owned());
        self.last_rank = number;
        // One name for each order: an object that was left over never stands for a new one.
        let name = format!("schedplugin-{}-{epoch}-{number}", pod.name);
        let order = Order { name: name.clone(), to: to.clone(), until: now + UNSEEN };
        self.moves.vms.entry(vm.uid.clone()).or_default().order = Some(order);
        self.move_changed(&vm.uid, now);
        self.push(Action::Migrate { vm, pod, to, name, epoch }, Why::Hot);
    }

    pub(crate) fn migrate_ended(&mut self, vm: &str, name: &str, made: Option<bool>, now: Moment) {
        if made != Some(false) {
            // The watch shows it, or it is given up.
            return;
        }
        let book = self.moves.vms.get_mut(vm);
        let order = book.and_then(|book| book.order.take_if(|order| order.name == name));
        if order.is_some() {
            self.move_failed(vm, now);
        }
    }

    /// An order came to nothing.
    fn move_failed(&mut self, vm: &str, now: Moment) {
        if let Some(book) = self.moves.vms.get_mut(vm) {
            book.rest(false, now);
        }
        // Whatever refuses one is likely to refuse the next from there.
        let from = self.vms.find(vm).and_then(|vm| self.primary(vm)?.at);
        if let Some(heat) = from.and_then(|node| self.moves.hot.get_mut(&node)) {
            heat.look_at = heat.look_at.max(now + RETRY);
        }
        self.move_changed(vm, now);
    }

    /// Who leads has changed: what was ordered and not seen comes to nothing, or is seen.
    pub(crate) fn forget_moves(&mut self, now: Moment) {
        self.moves.hot.clear();
        for vm in self.moves.vms.keys().cloned().collect::<Vec<_>>() {
            let Some(book) = self.moves.vms.get_mut(&vm) else { continue };
            (book.order, book.failures, book.rests_until) = (None, 0, None);
            for object in book.objects.values_mut() {
                object.end_at = None;
                if object.facts.ended.is_some() {
                    book.rests_until = Some(now + COOL_DOWN);
                }
            }
            self.move_changed(&vm, now);
        }
    }

    /// A VM is gone; its migrations may still be there.
    pub(crate) fn forget_moves_of(&mut self, vm: VmId, now: Moment) {
        let uid = self.vms.name(vm).to_owned();
        let Some(book) = self.moves.vms.get_mut(&uid) else { return };
        (book.order, book.failures, book.rests_until) = (None, 0, None);
        self.move_changed(&uid, now);
    }

    fn move_changed(&mut self, uid: &str, now: Moment) {
        if let Some(vm) = self.vms.find(uid) {
            self.touch_vm(vm);
        }
        self.rebook(uid, now);
    }

    pub(crate) fn move_book(&self, vm: VmId) -> Option<&MoveBook> {
        if self.moves.vms.is_empty() { None } else { self.moves.vms.get(self.vms.name(vm)) }
    }

    /// Whether the VM moves, or is about to.
    pub(crate) fn moves(&self, vm: VmId) -> bool {
        self.move_book(vm)
            .zip(self.book(vm))
            .is_some_and(|(book, vm)| book.under_way(&vm.facts.namespace).is_some())
    }

    /// Where a VM that moves is to come to, if anybody has said.
    pub(crate) fn moves_to(&self, vm: VmId) -> Option<&str> {
        self.move_book(vm)?.under_way(&self.book(vm)?.facts.namespace)?
    }

    /// Whether a VM may be picked as far as earlier moves go.
    pub(crate) fn has_rested(&self, vm: VmId, now: Moment) -> bool {
        !self.moves(vm)
            && self.move_book(vm).and_then(|book| book.rests_until).is_none_or(|until| until <= now)
    }

    /// How many VMs leave each node, and how many come to each.
    pub(crate) fn movers(&self) -> Movers {
        let mut movers = Movers::default();
        for vm in self.moves.vms.keys().filter_map(|uid| self.vms.find(uid)) {
            if !self.moves(vm) {
                continue;
            }
            let to = self.moves_to(vm).and_then(|to| self.nodes.find(to));
            let from = self.primary(vm).and_then(|pod| pod.at).filter(|from| Some(*from) != to);
            from.into_iter().for_each(|node| *movers.from.entry(node).or_default() += 1);
            to.into_iter().for_each(|node| *movers.to.entry(node).or_default() += 1);
        }
        movers
    }

    /// What is due of all moves, and which nodes are to be looked at.
    pub(crate) fn moves_due(&mut self, now: Moment) {
        self.timers.set(Who::Moves, &mut self.moves.timer, None);
        let Some(epoch) = self.epoch.filter(|_| self.complete()) else { return };
        let (mut ends, mut lost) = (Vec::new(), Vec::new());
        for (vm, book) in &mut self.moves.vms {
            if book.order.take_if(|order| order.until <= now).is_some() {
                lost.push(vm.clone());
            }
            let due = |object: &&mut Object| object.end_at.is_some_and(|at| at <= now);
            for object in book.objects.values_mut().filter(due) {
                object.end_at = Some(now + DELETE_AGAIN);
                let MigrationFacts { uid, namespace, name, ended, .. } = object.facts.clone();
                let why = if ended.is_some() { Why::Ended } else { Why::NoTarget };
                ends.push((ObjectRef { namespace, name, uid }, why));
            }
        }
        for (migration, why) in ends {
            self.push(Action::EndMigration { migration, epoch }, why);
        }
        lost.iter().for_each(|vm| self.move_failed(vm, now));
        self.pick_where_due(now);
    }

    /// After everything was settled: when to look again.
    pub(crate) fn set_moves_timer(&mut self) {
        if self.settings.moves.is_none() {
            return;
        }
        let at = self.moves_timer();
        self.timers.set(Who::Moves, &mut self.moves.timer, at);
    }

    fn moves_timer(&self) -> Option<Moment> {
        self.epoch.filter(|_| self.complete())?;
        let vms = self.moves.vms.values();
        let orders = vms.clone().filter_map(|book| Some(book.order.as_ref()?.until));
        let ends = vms.flat_map(|book| book.objects.values()).filter_map(|object| object.end_at);
        let hot = self.moves.hot.values().map(|heat| heat.look_at);
        orders.chain(ends).chain(hot).min()
    }

    /// For `audit.rs`: whether what is kept about moves agrees with the books, and with itself.
    pub(crate) fn moves_are_right(&self) -> Result<usize, String> {
        let MoveBooks { vms, objects, hot, timer } = &self.moves;
        let kept = vms.values().map(|book| book.objects.len()).sum::<usize>() == objects.len();
        let of = |(uid, vm): (&String, &String)| {
            vms.get(vm).is_some_and(|book| book.objects.contains_key(uid))
        };
        let off = self.settings.moves.is_some() || vms.is_empty() && hot.is_empty();
        let timed = timer.is_none_or(|at| self.timers.contains(Who::Moves, at))
            && (*timer == self.moves_timer() || self.settings.moves.is_none());
        let hottest = |node: &NodeId| self.is_hot(*node) == hot.contains_key(node);
        let heat = self.nodes.iter().all(|(node, ..)| hottest(&node));
        let heat = heat && hot.keys().all(|node| self.nodes.get(*node).is_some());
        if kept
            && objects.iter().all(of)
            && vms.iter().all(|(uid, book)| self.is_booked(uid, book))
            && off
            && timed
            && heat
        {
            return Ok(usize::from(timer.is_some()));
        }
        Err(format!("{:?}", self.moves))
    }
}

/// VMs that move, by where they leave and where they come.
#[derive(Debug, Default)]
pub(crate) struct Movers {
    pub(crate) from: BTreeMap<NodeId, usize>,
    pub(crate) to: BTreeMap<NodeId, usize>,
}
