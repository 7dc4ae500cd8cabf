//! Requests that need nothing from anybody: most of them.

use guest_units::Moment;

use crate::amount::Amount;
use crate::ledger::Ledger;
use crate::slab::{NodeId, PodId, VmId};
use crate::vm::{VmBook, grows};

impl Ledger {
    /// Answers the new wish of a VM for which nothing has to be done, before anybody looks at its node. Says whether nothing
    /// follows from the answer: nobody's requests, orders or room depend on which of the sizes that the pod backs anyway is
    /// the permit.
    pub(crate) fn served_at_once(&mut self, vm: VmId, now: Moment) -> bool {
        let Some((node, pod, needed)) = self.needs_nothing(vm) else { return false };
        // What is leased depends on the promise, also where the requests do not.
        let promise = self.book(vm).map(VmBook::promise);
        self.step_waiting(vm, node, now);
        let ended = |book: &VmBook| book.wish.is_none() && book.writing.is_none();
        self.book(vm).is_some_and(ended)
            && self.book(vm).map(VmBook::promise) == promise
            && self.pods.get(pod).and_then(|pod| self.needed(pod)) == needed
    }

    /// Whether the wish can be answered with what the pod's requests back already. If so: its node, the pod, and what that
    /// must request so far.
    fn needs_nothing(&self, vm: VmId) -> Option<(NodeId, PodId, Option<Amount>)> {
        // Whoever waits, or is looked at anyway, keeps its turn.
        let slot = self.vms.get(vm).filter(|slot| !slot.dirty && slot.queued.is_none())?;
        // Another pod of the VM needs requests of its own.
        let [only] = slot.pods[..] else { return None };
        let book = slot.book.as_ref().filter(|book| book.writing.is_none())?;
        let permit = book.newest()?.size;
        let want = book.wish.as_ref()?.want;
        let pod = self.pods.get(slot.primary?)?;
        let node = pod.at?;
        if grows(want, permit) {
            let cost = book.price(pod.book.facts.runner()?).cost(book.promise().max(want));
            if !cost.fits_in(pod.book.backed()) || !self.node_complete(node) || self.keeps_size(vm)
            {
                return None;
            }
        }
        Some((node, only, self.needed(pod)))
    }
}
