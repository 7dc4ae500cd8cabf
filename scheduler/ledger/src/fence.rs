//! What another leader has ordered or given, and this ledger may not have heard of.
//!
//! ```text
//!   takes the lease, or hears of a pod that another has bound --> doubted: backs nothing
//!     | a VM wants something                                         |
//!     +--> a fence is ordered --the API server shows the pod--> certain
//! ```
//! Watches lag, and an order that was given up may be delivered late. A fence changes nothing of a pod but its version, and its answer
//! is the pod: every earlier order is in it, or was for a version that is no more. So no clock has to tell what can still arrive. The same
//! ends the doubt about an order of this ledger whose end is not known.

use std::time::Duration;

use guest_units::Moment;
use scheduler_protocol::RefusalCode;

use crate::books::PodSlot;
use crate::event::{Action, Answer, Why};
use crate::facts::PodFacts;
use crate::ledger::Ledger;
use crate::pod::Fence;
use crate::slab::{PodId, VmId};
use crate::vm::grows;

/// Between two fences, when the first has no answer: a call has ended by then. Doubled each time, up to eightfold.
const AGAIN: Duration = Duration::from_millis(1500);

impl Ledger {
    /// Another may have led until now.
    pub(crate) fn doubt_pods(&mut self) {
        for slot in self.pods.values_mut() {
            slot.book.doubt();
        }
    }

    /// A binding failed: another leader may have made one.
    pub(crate) fn doubt_binding(&mut self, pod: PodId) {
        if let Some(slot) = self.pods.get_mut(pod) {
            slot.book.doubt();
            self.touch_pod(pod);
        }
    }

    /// Orders the fence that a pod needs, unless one is under way.
    pub(crate) fn fence(&mut self, pod: PodId, now: Moment) {
        let Some(slot) = self.pods.get(pod) else { return };
        if slot.book.fence.is_none() && !slot.book.is_uncertain(true) {
            return;
        }
        let vm = slot.vm.filter(|vm| self.primary(*vm).is_none_or(|primary| primary.id == pod));
        // Of a VM without a pod that runs it is wanted, too, what its pods are.
        let wanted = vm.and_then(|vm| Some((self.book(vm)?, self.primary(vm))));
        let urgent = wanted.is_some_and(|(book, pod)| {
            pod.is_none() || book.wish.as_ref().is_some_and(|it| grows(it.want, book.permit()))
        });
        let wanted = wanted.is_some_and(|(book, pod)| book.wish.is_some() || pod.is_none());
        let (epoch, number) = (self.epoch, self.last_rank + 1);
        let Some(slot) = self.pods.get_mut(pod) else { return };
        let book = &mut slot.book;
        let under_way = book.fence.is_some_and(|fence| fence.again > now);
        if under_way && epoch.is_some() && book.is_uncertain(true) {
            return;
        }
        let Some(epoch) = epoch.filter(|_| book.is_uncertain(wanted)) else {
            book.fence = None;
            return;
        };
        let (first, tries) = book.fence.map_or((number, 0), |fence| (fence.first, fence.tries + 1));
        let again = now + AGAIN * (1 << tries.min(3));
        book.fence = Some(Fence { first, tries, again });
        let (pod_reference, timer) = (book.reference(), book.timer(now));
        self.last_rank = number;
        let pod_fence = Action::Fence { pod: pod_reference, epoch, number, urgent };
        self.push(pod_fence, Why::Unconfirmed);
        self.set_pod_timer(pod, timer);
    }

    /// A pod was fenced, and is so now.
    pub(crate) fn fenced(&mut self, uid: &str, number: u64, found: Option<PodFacts>, now: Moment) {
        let Some(pod) = self.pods.find(uid) else { return };
        let Some(facts) = found else {
            self.forget_pod(pod);
            return;
        };
        let unconfirmed = self.pod(pod).and_then(|book| book.unconfirmed);
        self.see_pod(facts, unconfirmed, false);
        let Some(slot) = self.pods.get_mut(pod) else { return };
        // Ordered in this epoch, and nothing was ordered for the pod since.
        if slot.book.fence.is_none_or(|it| number < it.first) {
            return;
        }
        slot.book.fenced();
        let timer = slot.book.timer(now);
        self.set_pod_timer(pod, timer);
        self.recount_pod(pod);
        self.touch_pod(pod);
    }

    /// Fences the pods of a VM that is not placed, as far as is known: one of them may be bound by now. Says whether any is in doubt.
    pub(crate) fn resolve_doubts_of(&mut self, vm: VmId, now: Moment) -> bool {
        let doubted = |pod: &&PodSlot| pod.book.doubted && !pod.book.facts.finished;
        let pods: Vec<_> = self.runners_of(vm).filter(doubted).map(|pod| pod.id).collect();
        pods.iter().for_each(|pod| self.fence(*pod, now));
        !pods.is_empty()
    }

    /// Whether another leader may have taken from the VM what this ledger takes for its permit: its pod is in doubt, or does not back
    /// what the VM was approved for as far as is known. Then a later approval was not heard of yet.
    pub(crate) fn outdated(&self, vm: VmId) -> bool {
        let (Some(book), Some(pod), Some(epoch)) = (self.book(vm), self.primary(vm), self.epoch)
        else {
            return false;
        };
        let seal = book.newest().filter(|seal| seal.epoch != epoch);
        let backed = seal.zip(pod.book.facts.runner()).is_none_or(|(seal, runner)| {
            book.price(runner).cost(seal.size).fits_in(pod.book.backed())
        });
        pod.book.doubted || !backed
    }

    /// Where the agent relies on more than is known to be approved, another leader has approved it, if the pod has it. Says whether
    /// what the agent relies on is approved now; if not, there is something that was not heard of yet.
    pub(crate) fn adopt(&mut self, vm: VmId) -> bool {
        let (Some(book), Some(pod), Some(epoch)) = (self.book(vm), self.primary(vm), self.epoch)
        else {
            return true;
        };
        let (Some(wish), Some(runner)) = (&book.wish, pod.book.facts.runner()) else { return true };
        let size = book.permit().max(wish.current);
        if !book.inherits(epoch) || !grows(size, book.permit()) {
            return true;
        }
        let backed = book.price(runner).cost(book.promise().max(size)).fits_in(pod.book.backed());
        if let Some(book) = self.book_mut(vm).filter(|_| backed) {
            book.issue(epoch, size);
        }
        backed
    }

    /// A request that cannot be answered from what is known.
    pub(crate) fn refuse_outdated(&mut self, vm: VmId) {
        let Some(wish) = self.book_mut(vm).and_then(|book| book.wish.take()) else { return };
        let Some(ticket) = wish.ticket else { return };
        let message = "what an earlier leader has given is not known yet".to_owned();
        let answer = Answer::Refused { code: RefusalCode::NotReady, message, newest: None };
        self.answer(ticket, answer, Why::Incomplete);
    }
}
