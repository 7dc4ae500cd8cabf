//! Keeps the pods' requests, and the approvals on VMs without an agent or without a pod, as the promises need them.

use std::time::Duration;

use guest_units::{Moment, Size};

use crate::amount::Amount;
use crate::books::PodSlot;
use crate::event::{Action, Why};
use crate::facts::{RunnerFacts, Seal};
use crate::give_way::Way;
use crate::headroom::Wanted;
use crate::ledger::Ledger;
use crate::pod::PodBook;
use crate::slab::{Key as _, NodeId, PodId, VmId};
use crate::vm::{VmBook, WishState, Writing};

/// An agent that has not asked since the lease was won is not waited for.
const SILENT_FOR: Duration = Duration::from_secs(60);
/// What is to be written for every VM is spread over this.
const SPREAD_MILLIS: u64 = 60_000;

/// So that the API server is not asked for everything at once.
pub(crate) fn spread(vm: VmId) -> Duration {
    // A prime: neighbours are far from each other.
    let place = u64::try_from(vm.place()).unwrap_or(u64::MAX);
    Duration::from_millis(place.wrapping_mul(7919) % SPREAD_MILLIS)
}

impl Ledger {
    /// What the main container of a VM's pod must request.
    pub(crate) fn needed(&self, pod: &PodSlot) -> Option<Amount> {
        let runner = pod.book.facts.runner()?;
        let book = self.vm_of(pod)?;
        let price = book.price(runner);
        if !self.is_primary(pod) {
            // It may be the one that comes next.
            return Some(price.cost(self.next_size(pod.vm?, book)));
        }
        let promised = price.cost(book.promise());
        Some(match book.wish.as_ref().map(|wish| wish.state) {
            Some(WishState::Growing { requests, .. } | WishState::Held { requests, .. }) => {
                promised.max(requests)
            }
            Some(WishState::Waiting) | None => promised,
        })
    }

    /// What may be plugged in the VM's next pod: what was approved, and with a move all that is plugged comes along.
    pub(crate) fn next_size(&self, vm: VmId, book: &VmBook) -> Size {
        if self.moves(vm) { book.promise() } else { book.approved() }
    }

    /// Orders the requests that a pod needs, if they are others than it has. Says whether it must wait until something changes
    /// on the node: for room, for the lease, for everything to be known.
    pub(crate) fn order_resize(&mut self, id: PodId, way: &Way, now: Moment) -> bool {
        if self.pods.get_mut(id).is_none_or(|slot| slot.book.pause_after_nothing(now)) {
            return false;
        }
        let Some(slot) = self.pods.get(id) else { return false };
        if !slot.book.may_be_ordered(now) {
            return false;
        }
        let (Some(node), Some(runner)) = (slot.at, slot.book.facts.runner()) else { return false };
        let Some(epoch) = self.epoch.filter(|_| self.node_complete(node)) else { return true };
        let Some(Wanted { requests, waits }) = self.requests(slot, (node, way), epoch, now) else {
            return false;
        };
        let spec = runner.spec;
        if requests == spec {
            return waits;
        }
        // Growth beyond the node would only be deferred, and count as used until it is taken back.
        if !self.may_grow(slot, node, requests) {
            return true;
        }
        let grows = self.needed(slot).is_some_and(|needed| !needed.fits_in(spec));
        let why = match (requests.fits_in(spec), way.most(id).is_some()) {
            _ if grows => Why::Grow,
            (false, _) => Why::Lease,
            (true, true) => Why::GiveWay,
            (true, false) => Why::Return,
        };
        let refused = self.lease_refused(slot).is_some();
        let (reference, number) = (slot.book.reference(), self.last_rank + 1);
        let version = slot.book.facts.version;
        self.last_rank = number;
        if let Some(pod) = self.pods.get_mut(id) {
            pod.book.ordered(requests, number);
            if refused {
                pod.book.lease_refused(now);
            }
        }
        self.push(Action::Resize { pod: reference, version, epoch, number, requests }, why);
        waits
    }

    /// What the main container of a VM's present pod should request.
    fn requests(
        &self,
        slot: &PodSlot,
        place: (NodeId, &Way),
        epoch: u64,
        now: Moment,
    ) -> Option<Wanted> {
        if let Some(leasing) = self.leasing(slot) {
            return Some(self.with_lease(slot, &leasing, place, now));
        }
        let (pod, runner) = (&slot.book, slot.book.facts.runner()?);
        let mut requests = self.needed(slot).filter(|_| self.is_primary(slot))?;
        let book = self.vm_of(slot);
        if book.is_none_or(|book| book.inherits(epoch) || book.boots_in(&pod.facts.name)) {
            // What is plugged, or may be, is not known: what kubelet has allocated is known to suffice.
            requests = requests.max(runner.spec.min(runner.allocated.unwrap_or(runner.spec)));
        }
        Some(Wanted { requests, waits: false })
    }

    /// Without a pod nothing is plugged: what was approved beyond the spec, beyond the pod that waits for its node, or by an
    /// earlier ledger must not have to be found on that node.
    pub(crate) fn return_approval(&mut self, vm: VmId, epoch: u64, now: Moment) {
        let waiting = self.runners_of(vm).filter(|pod| !pod.book.facts.finished);
        let waiting: Vec<RunnerFacts> =
            waiting.filter_map(|pod| pod.book.facts.runner().cloned()).collect();
        let Some(book) = self.book_mut(vm) else { return };
        book.rank = None;
        let newest = book.newest();
        if book.facts.deleting || (newest.is_none() && book.facts.obeyed.is_none()) {
            return;
        }
        let want = book.clamp(book.facts.wanted);
        let fits = waiting.iter().map(|runner| book.price(runner).affordable(runner.spec));
        let most = fits.fold(want, Size::min).max(book.facts.min);
        let size = newest.map_or(most, |newest| newest.size.min(most));
        // Also one that was given before: whoever was to write it may be gone.
        let seal = book.seal_for(epoch, size);
        book.write(seal, now);
    }

    /// When the approval of an earlier ledger is renewed: for an agent, if it has not asked for anything by then. None: it need not be.
    pub(crate) fn renew_at(&self, vm: VmId) -> Option<Moment> {
        let (epoch, book) = (self.epoch?, self.book(vm)?);
        let shown = book.facts.visible.is_some_and(|seal| seal.epoch == epoch);
        let old = book.newest().is_some() && !shown && book.writing.is_none();
        let at = match book.facts.autoscaled {
            true => self.led_since + SILENT_FOR + spread(vm),
            // Until then its lease gives way to nobody.
            false => self.led_since + spread(vm) / 4,
        };
        old.then_some(at)
    }

    /// Orders the approval to be written that waits for it.
    pub(crate) fn write_approval(&mut self, vm: VmId, now: Moment) {
        if self.epoch.is_none() {
            return;
        }
        let placed = self.primary(vm).is_some();
        let Some(book) = self.book_mut(vm) else { return };
        let newest = book.newest();
        let Some(writing) = book.writing.as_mut() else { return };
        if newest.is_some_and(|newest| newest.place() != writing.seal.place()) {
            // An agent was given a later one and writes that.
            book.writing = None;
            return;
        }
        if writing.in_flight || writing.not_before > now {
            return;
        }
        writing.in_flight = true;
        let seal = writing.seal;
        let why = match (placed, book.facts.autoscaled) {
            (false, _) => Why::NoPod,
            (true, false) => Why::SpecWants,
            (true, true) => Why::Renewed,
        };
        let vm = book.reference();
        self.push(Action::Approve { vm, seal }, why);
    }
}

impl VmBook {
    /// Has the newest approval written again where nobody else does: somebody has put an older one in its place.
    pub(crate) fn show_again(&mut self, epoch: u64, now: Moment) {
        let ours = |seal: &Seal| !self.facts.autoscaled && seal.epoch == epoch;
        if let Some(newest) = self.newest().filter(ours) {
            self.write(newest, now);
        }
    }

    /// An agent writes an approval when it changes the VM. One that changes nothing is written for it, so that what an earlier ledger
    /// may have given ends: until then what the pod requests beyond its promise is no lease.
    pub(crate) fn renew(&mut self, seal: Seal, at: Moment) {
        if self.inherits(seal.epoch) {
            self.write(seal, at);
        }
    }

    /// Has an approval written on the VM.
    pub(crate) fn write(&mut self, seal: Seal, now: Moment) {
        if self.facts.visible.is_some_and(|visible| visible.place() >= seal.place()) {
            return;
        }
        if self.writing.is_none_or(|writing| writing.seal.place() != seal.place()) {
            self.writing = Some(Writing { seal, in_flight: false, not_before: now, failures: 0 });
        }
    }
}

impl PodBook {
    /// Whether kubelet says that it cannot allocate requests which include these.
    pub(crate) fn refuses(&self, requests: Amount) -> bool {
        self.facts.runner().is_some_and(|runner| {
            runner.pending.is_some() && self.order.is_none() && requests.fits_in(runner.spec)
        })
    }
}
