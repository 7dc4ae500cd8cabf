//! What an earlier leader has given, and this ledger may not have heard of.
//!
//! ```text
//!   leads --a VM wants something--> asks for its pod --> heard --+-- an order of its own is accepted --> certain
//!                                                                +-- asked again after MAYBE_FOR ------> certain
//! ```
//! Before its pod was heard of, a VM gets no answer. After that it gets what it says that it relies on, and growth by an order: orders
//! of the earlier leader for the version of the pod that is known may still arrive, and one of ours makes that another version.

use guest_units::{Moment, Size};
use scheduler_protocol::RefusalCode;

use crate::books::PodSlot;
use crate::event::{Answer, Why};
use crate::ledger::Ledger;
use crate::slab::VmId;
use crate::vm::{WishState, grows};

impl Ledger {
    /// Another may have led until now.
    pub(crate) fn doubt_pods(&mut self, now: Moment) {
        for slot in self.pods.values_mut() {
            slot.book.doubt(now);
        }
    }

    /// A VM wants something: its pod is asked for first, where what it backs is in doubt.
    pub(crate) fn resolve_doubt(&mut self, vm: VmId, now: Moment) {
        let wants = self.book(vm).is_some_and(|book| book.wish.is_some());
        let Some(pod) = self.primary(vm).map(|slot| slot.id).filter(|_| wants) else { return };
        let Some(slot) = self.pods.get_mut(pod) else { return };
        if slot.book.is_question(now) {
            slot.book.unconfirmed = Some(now);
            self.look_up(pod, now);
        }
    }

    /// Whether an earlier leader may have taken from the VM what this ledger takes for its permit: its pod was not heard of yet, or
    /// does not back what the VM was approved for as far as is known. Then a later approval was not heard of yet.
    pub(crate) fn outdated(&self, vm: VmId) -> bool {
        let (Some(book), Some(pod), Some(epoch)) = (self.book(vm), self.primary(vm), self.epoch)
        else {
            return false;
        };
        let seal = book.newest().filter(|seal| seal.epoch != epoch);
        let shown = seal.zip(pod.book.facts.runner()).is_none_or(|(seal, runner)| {
            book.price(runner).cost(seal.size).fits_in(pod.book.shown())
        });
        pod.book.unheard() || !shown
    }

    /// Whether a VM may be told that it has so much without an order.
    pub(crate) fn is_certain(&self, vm: VmId, size: Size) -> bool {
        let current = self.book(vm).and_then(|book| book.wish.as_ref()).map(|wish| wish.current);
        !self.primary(vm).is_some_and(|pod| pod.book.doubted())
            || current.is_some_and(|current| size.fits_in(current))
    }

    /// Whether a VM waits for what its pod has already, for no other reason than that an order of an earlier leader may arrive: one of
    /// ours makes the pod another version, which that does not meet.
    pub(crate) fn must_change(&self, pod: &PodSlot, now: Moment) -> bool {
        let wish = self.vm_of(pod).and_then(|book| book.wish.as_ref());
        pod.book.doubted()
            && !pod.book.unheard()
            && pod.book.no_lease_before <= now
            && wish.is_some_and(|wish| matches!(wish.state, WishState::Growing { .. }))
    }

    /// The agent relies on more than is known to be approved: another ledger has approved it, if the pod has it.
    pub(crate) fn adopt(&mut self, vm: VmId) {
        let (Some(book), Some(pod), Some(epoch)) = (self.book(vm), self.primary(vm), self.epoch)
        else {
            return;
        };
        let (Some(wish), Some(runner)) = (&book.wish, pod.book.facts.runner()) else { return };
        let size = book.permit().max(wish.current);
        let cost = book.price(runner).cost(book.promise().max(size));
        if grows(size, book.permit())
            && cost.fits_in(pod.book.shown())
            && let Some(book) = self.book_mut(vm)
        {
            book.issue(epoch, size);
        }
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
