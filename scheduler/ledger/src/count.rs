//! Keeps the sums and sets that are known without adding up, and notes what is to be looked at.
//!
//! A *touched* pod or VM is looked at when its node is settled; so are wishes and orders that wait for room, when what is
//! reserved on the node has changed. Everything else stays as it is.

use crate::amount::Amount;
use crate::books::{Counts, NodeSlot, PodSlot, VmSlot};
use crate::facts::{NodeFacts, PodKind};
use crate::ledger::Ledger;
use crate::slab::{NodeId, PodId, VmId};
use crate::standing::Standing;

impl Ledger {
    /// After what a node has or what is reserved there has changed.
    pub(crate) fn restand(&mut self, node: NodeId) {
        let standing = self.nodes.get(node).and_then(|slot| {
            let (reserved, leased) = (slot.reserved.amount(), slot.leased.amount());
            let NodeFacts { allocatable, leaving, .. } = slot.facts.as_ref()?;
            let (allocatable, leaving) = (*allocatable, *leaving);
            Some(Standing { allocatable, reserved, leased, vms: slot.vms(), leaving })
        });
        self.standings.set(node, standing);
    }

    pub(crate) fn touch_node(&mut self, node: NodeId) {
        if let Some(slot) = self.nodes.get_mut(node)
            && !std::mem::replace(&mut slot.dirty, true)
        {
            self.dirty_nodes.push(node);
        }
    }

    /// Everybody is looked at: who leads has changed, or what is completely known.
    pub(crate) fn touch_all(&mut self) {
        for node in self.nodes.by_name(|_, _| true) {
            if let Some(slot) = self.nodes.get_mut(node) {
                slot.changed = true;
            }
            self.touch_node(node);
        }
        for vm in self.vms.by_name(|_, slot| slot.book.is_some()) {
            self.touch_vm(vm);
        }
    }

    /// What another pod of the VM must request may depend on this one: all of them are looked at.
    pub(crate) fn touch_pod(&mut self, pod: PodId) {
        self.touch_one(pod);
        if let Some(vm) = self.pods.get(pod).and_then(|slot| slot.vm) {
            self.touch_vm(vm);
        }
    }

    pub(crate) fn touch_vm(&mut self, vm: VmId) {
        let Some(slot) = self.vms.get_mut(vm) else { return };
        if !std::mem::replace(&mut slot.dirty, true) {
            self.dirty_vms.push(vm);
        }
        self.each_pod(vm, |ledger, pod| ledger.touch_one(pod));
    }

    fn touch_one(&mut self, pod: PodId) {
        let Some(slot) = self.pods.get_mut(pod) else { return };
        slot.stale = true;
        match (slot.at, &slot.book.facts.node) {
            (Some(node), _) => {
                if let Some(slot) = self.nodes.get_mut(node) {
                    slot.restless.insert(pod);
                }
                self.touch_node(node);
            }
            (None, Some(name)) => {
                if let Some(node) = self.nodes.find(name) {
                    self.touch_node(node);
                }
            }
            (None, None) => {}
        }
        self.note_call(pod);
    }

    /// Something was done about a VM while a node was settled: it and its pods are looked at once more, wherever they are.
    pub(crate) fn more_to_do(&mut self, vm: VmId) {
        let Some(slot) = self.vms.get_mut(vm) else { return };
        slot.unsettled = true;
        self.each_pod(vm, |ledger, pod| {
            let Some(slot) = ledger.pods.get_mut(pod) else { return };
            slot.stale = true;
            let Some(at) = slot.at else { return };
            if let Some(node) = ledger.nodes.get_mut(at) {
                node.restless.insert(pod);
            }
            ledger.touch_node(at);
        });
    }

    pub(crate) fn each_pod(&mut self, vm: VmId, mut act: impl FnMut(&mut Self, PodId)) {
        let mut index = 0;
        while let Some(pod) = self.vms.get(vm).and_then(|slot| slot.pods.get(index)).copied() {
            act(self, pod);
            index += 1;
        }
    }

    /// Puts a pod where its facts say that it belongs.
    pub(crate) fn link_pod(&mut self, pod: PodId) {
        let Some(slot) = self.pods.get_mut(pod) else { return };
        let node = slot.book.counts_on();
        slot.at = node.map(|name| self.nodes.find_or_insert(name, |_| NodeSlot::default()));
        let owner = slot.book.facts.runner().map(|runner| runner.vm_uid.as_str());
        slot.vm = owner.map(|uid| self.vms.find_or_insert(uid, |_| VmSlot::default()));
        let (at, vm, rests) = (slot.at, slot.vm, slot.timer.is_none());
        let queued = vm.and_then(|vm| self.vms.get(vm)?.queued);
        if let Some(node) = at.and_then(|at| self.nodes.get_mut(at)) {
            node.pods += 1;
            node.queue.extend(queued.zip(vm));
            if vm.is_some() {
                node.tenants.insert(pod);
            }
            if !rests {
                node.restless.insert(pod);
            }
        }
        if let Some(vm) = vm {
            if let Some(slot) = self.vms.get_mut(vm) {
                slot.pods.push(pod);
            }
            self.reselect(vm);
        }
        self.recount_pod(pod);
        at.into_iter().for_each(|node| self.restand(node));
    }

    pub(crate) fn unlink_pod(&mut self, pod: PodId) {
        let Some(slot) = self.pods.get_mut(pod) else { return };
        let (at, vm) = (slot.at.take(), slot.vm.take());
        let counts = std::mem::take(&mut slot.counts);
        if let Some(slot) = vm.and_then(|vm| self.vms.get_mut(vm)) {
            slot.pods.retain(|other| *other != pod);
        }
        if let Some(node) = at.and_then(|at| self.nodes.get_mut(at)) {
            node.pods -= 1;
            node.restless.remove(&pod);
            node.tenants.remove(&pod);
            node.recount(counts, Counts::default());
        }
        at.into_iter().for_each(|node| self.restand(node));
        let Some(vm) = vm else { return };
        let twin = self.vms.get(vm).is_some_and(|slot| {
            slot.pods.iter().any(|pod| self.pods.get(*pod).is_some_and(|pod| pod.at == at))
        });
        let queued = self.vms.get(vm).and_then(|slot| slot.queued);
        if let (Some(node), Some(rank), false) =
            (at.and_then(|at| self.nodes.get_mut(at)), queued, twin)
        {
            node.queue.remove(&(rank, vm));
        }
        self.reselect(vm);
    }

    pub(crate) fn reselect(&mut self, vm: VmId) {
        let best = self.choose(vm);
        if let Some(slot) = self.vms.get_mut(vm) {
            slot.primary = best;
        }
    }

    /// The pod that a VM's promise counts for.
    pub(crate) fn choose(&self, vm: VmId) -> Option<PodId> {
        let named = self.book(vm).and_then(|book| book.facts.pod_name.as_deref());
        let live = self.runners_of(vm).filter(|pod| pod.at.is_some());
        let best = live.max_by_key(|pod| {
            let facts = &pod.book.facts;
            (Some(facts.name.as_str()) == named, facts.uid.as_str())
        });
        best.map(|pod| pod.id)
    }

    /// What a pod takes on its node, whatever comes of everything that is under way.
    pub(crate) fn counted(&self, pod: &PodSlot) -> Counts {
        match &pod.book.facts.kind {
            PodKind::Ordinary { requests } => {
                Counts { reserved: *requests, going: *requests, leased: Amount::ZERO }
            }
            PodKind::Runner(runner) => {
                let needed = self.needed(pod).unwrap_or(Amount::ZERO);
                Counts {
                    reserved: runner.total(pod.book.may_have().max(needed)),
                    going: runner.total(pod.book.going().max(needed)),
                    leased: self.leasing(pod).map_or(Amount::ZERO, |leasing| leasing.leased()),
                }
            }
        }
    }

    pub(crate) fn recount_pod(&mut self, pod: PodId) {
        let Some((at, new)) =
            self.pods.get(pod).and_then(|slot| Some((slot.at?, self.counted(slot))))
        else {
            return;
        };
        let Some(slot) = self.pods.get_mut(pod).filter(|slot| slot.counts != new) else { return };
        let old = std::mem::replace(&mut slot.counts, new);
        if let Some(node) = self.nodes.get_mut(at) {
            node.recount(old, new);
        }
        self.restand(at);
    }

    /// After anything was done to a VM: what its pods take, and its place in the queues.
    pub(crate) fn recount_vm(&mut self, vm: VmId) {
        self.each_pod(vm, Self::recount_pod);
        let wish = |slot: &VmSlot| {
            let book = slot.book.as_ref().filter(|book| book.wish.is_some())?;
            Some(book.rank.unwrap_or(0))
        };
        let Some(slot) = self.vms.get_mut(vm) else { return };
        let new = wish(slot);
        let old = std::mem::replace(&mut slot.queued, new);
        if old == new {
            return;
        }
        self.each_pod(vm, |ledger, pod| {
            let at = ledger.pods.get(pod).and_then(|slot| slot.at);
            let Some(node) = at.and_then(|at| ledger.nodes.get_mut(at)) else { return };
            if let Some(old) = old {
                node.queue.remove(&(old, vm));
            }
            node.queue.extend(new.map(|rank| (rank, vm)));
        });
    }

    /// What all pods of a node take, but for one.
    pub(crate) fn reserved_without(&self, node: NodeId, pod: Option<PodId>) -> Amount {
        self.reserved_but_for(node, pod, &[])
    }

    /// What all pods of a node take, but for one and some others.
    pub(crate) fn reserved_but_for(
        &self,
        node: NodeId,
        pod: Option<PodId>,
        others: &[PodId],
    ) -> Amount {
        let Some(slot) = self.nodes.get(node) else { return Amount::ZERO };
        let mut sum = slot.reserved;
        let mut take = |pod: PodId| {
            if let Some(pod) = self.pods.get(pod).filter(|pod| pod.at == Some(node)) {
                sum.take(pod.counts.reserved);
            }
        };
        pod.into_iter().for_each(&mut take);
        for (index, other) in others.iter().enumerate() {
            // Whoever is named twice is counted once.
            if Some(*other) != pod && !others[..index].contains(other) {
                take(*other);
            }
        }
        sum.amount()
    }
}
