//! Room for VMs that are to come to a node: it counts as taken before any pod takes it.
//!
//! ```text
//!   reserved on the source      [ source pod ............................ ] gone
//!   reserved on the destination [ booked ........ | target pod ............ the VM runs there ...
//!                               picked            bound                   switched
//! ```
//!
//! Both count in full until the source is gone. What is booked is what the VM is promised, which does not grow meanwhile.

use guest_units::Moment;

use crate::amount::Amount;
use crate::books::{NodeSlot, PodSlot};
use crate::facts::PodFacts;
use crate::ledger::Ledger;
use crate::moves::MoveBook;
use crate::slab::{NodeId, VmId};
use crate::vm::VmBook;

/// A target that is to come to a node.
struct Coming {
    to: String,
    takes: Amount,
    /// It is there, and counts itself.
    bound: bool,
}

impl Ledger {
    /// After anything was heard of a VM: what is booked is what its target will take.
    pub(crate) fn rebook_vm(&mut self, vm: VmId, now: Moment) {
        if self.move_book(vm).is_some() {
            let uid = self.vms.name(vm).to_owned();
            self.rebook(&uid, now);
        }
    }

    /// As [`Self::rebook_vm`], for one that need not be known.
    pub(crate) fn rebook(&mut self, uid: &str, now: Moment) {
        let coming = self.vms.find(uid).and_then(|vm| self.coming(vm));
        let bound = coming.as_ref().is_some_and(|coming| coming.bound);
        let new = coming.filter(|coming| !coming.bound).map(|Coming { to, takes, .. }| {
            (self.nodes.find_or_insert(&to, |_| NodeSlot::default()), takes)
        });
        let Some(book) = self.moves.vms.get_mut(uid) else { return };
        book.set_ends(bound, now);
        let old = std::mem::replace(&mut book.booked, new);
        if book.is_idle() {
            self.moves.vms.remove(uid);
        }
        if old == new {
            return;
        }
        if let Some((node, amount)) = old {
            self.rebook_on(node, amount, Amount::ZERO);
        }
        if let Some((node, amount)) = new {
            self.rebook_on(node, Amount::ZERO, amount);
        }
    }

    fn rebook_on(&mut self, node: NodeId, old: Amount, new: Amount) {
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.rebook(old, new);
        }
        self.restand(node);
        self.touch_node(node);
    }

    /// Whether a VM gets no more than it has: its target is made for that. So is a later pod of it that is bound already, whether the
    /// migration that it belongs to was seen or not.
    pub(crate) fn keeps_size(&self, vm: VmId) -> bool {
        if self.settings.moves.is_none() {
            return false;
        }
        let created = |pod: &PodSlot| pod.book.facts.runner().map_or(0, |runner| runner.created);
        let since = self.primary(vm).map_or(0, created);
        let next =
            |pod: &PodSlot| pod.at.is_some() && !self.is_primary(pod) && created(pod) >= since;
        self.moves(vm) || self.runners_of(vm).any(next)
    }

    /// What a target takes.
    fn coming(&self, vm: VmId) -> Option<Coming> {
        let (to, book, pod) = (self.moves_to(vm)?, self.book(vm)?, self.primary(vm)?);
        let bound = self.runners_of(vm).any(|pod| pod.book.counts_on() == Some(to));
        Some(Coming { to: to.to_owned(), takes: book.target(pod)?, bound })
    }

    /// What is booked for a pod that looks for a node, and where.
    pub(crate) fn booked_for(&self, pod: &PodFacts) -> Option<(NodeId, Amount)> {
        let book = self.moves.vms.get(&pod.runner()?.vm_uid)?;
        self.vm_of_facts(pod).and(book.booked)
    }

    /// For `audit.rs`: what is booked on a node.
    pub(crate) fn booked_on(&self, node: NodeId) -> impl Iterator<Item = Amount> {
        let booked = self.moves.vms.values().filter_map(|book| book.booked);
        booked.filter(move |(at, _)| *at == node).map(|(_, amount)| amount)
    }

    /// For `audit.rs`: whether what is booked is what the target will take.
    pub(crate) fn is_booked(&self, uid: &str, book: &MoveBook) -> bool {
        let coming = self.vms.find(uid).and_then(|vm| self.coming(vm));
        let coming = coming.filter(|coming| !coming.bound);
        let coming = coming.map(|it| (self.nodes.find(&it.to), it.takes));
        coming == book.booked.map(|(node, amount)| (Some(node), amount)) && !book.is_idle()
    }
}

impl VmBook {
    /// What the pod takes that the VM moves to: all that may be plugged comes along, a lease does not.
    pub(crate) fn target(&self, pod: &PodSlot) -> Option<Amount> {
        let runner = pod.book.facts.runner()?;
        Some(runner.total(self.price(runner).cost(self.promise())))
    }
}
