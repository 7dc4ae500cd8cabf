//! What is promised to one VM, and what it still wants.
//!
//! An approval that was given may be used until the operator says that it obeys a newer one: it may be shown late, be put
//! back by somebody, or be on its way to the hypervisor. What the hypervisor shows is in use whatever was approved. The
//! promise is the larger of all of these, per resource: it grows before the VM grows, and shrinks only when nothing can
//! use the difference any more.

use std::time::Duration;

use guest_units::{Bytes, MilliCpu, Moment, Size};
use scheduler_protocol::ObjectRef;

use crate::amount::{Amount, Price};
use crate::event::Ticket;
use crate::facts::{RunnerFacts, Seal, VmFacts};

/// More approvals than this that may still be used are merged.
const MAX_USABLE: usize = 32;
/// Partial grants of CPU are a multiple of this.
const CPU_STEP_MILLIS: u32 = 10;

/// A size that is wanted and not yet granted.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// Nobody asked: the spec wants it.
    pub(crate) own: bool,
    /// Where the answer goes, until it was answered.
    pub(crate) ticket: Option<Ticket>,
    /// Generation of the request.
    pub(crate) generation: u64,
    pub(crate) want: Size,
    pub(crate) least: Size,
    /// What its agent relies on.
    pub(crate) current: Size,
    pub(crate) since: Moment,
    /// Not tried again before.
    pub(crate) not_before: Moment,
    pub(crate) failures: u32,
    pub(crate) state: WishState,
    /// The API server refused the order, for this reason.
    pub(crate) refused: Option<&'static str>,
    /// Why nothing could be done about it last time.
    pub(crate) reason: String,
}

impl Wish {
    /// When a growth that began at `since` is answered, whatever has come of it: in all no later than if the wish had waited
    /// for room as long as one may.
    pub(crate) fn answer_by(&self, since: Moment, hold: Duration, limit: Duration) -> Moment {
        (since + limit).min(self.since + hold + limit)
    }
}

/// What is being done about a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WishState {
    /// There is no room.
    Waiting,
    /// The room is reserved; kubelet is to allocate it.
    Growing { target: Size, requests: Amount, since: Moment },
    /// Kubelet has allocated it after the request was answered: kept for a moment, for the next request.
    Held { requests: Amount, until: Moment },
}

/// An approval that is being written on the VM.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writing {
    pub(crate) seal: Seal,
    /// Started and not ended.
    pub(crate) in_flight: bool,
    pub(crate) not_before: Moment,
    pub(crate) failures: u32,
}

/// The books of one VM.
#[derive(Debug, Clone)]
pub(crate) struct VmBook {
    pub(crate) facts: VmFacts,
    /// Given or seen, and not older than the one that is obeyed: oldest first.
    usable: Vec<Seal>,
    /// Epoch and number of the last approval given.
    last: (u64, u64),
    /// Newest request: the pod and its generation.
    pub(crate) newest_request: Option<(String, u64)>,
    pub(crate) wish: Option<Wish>,
    /// Place in the queue, kept while the VM is short of something.
    pub(crate) rank: Option<u64>,
    /// The users were told that the VM is short of something.
    pub(crate) told_short: bool,
    pub(crate) writing: Option<Writing>,
}

impl VmBook {
    pub(crate) fn new(facts: VmFacts) -> Self {
        let mut book = Self {
            facts,
            usable: Vec::new(),
            last: (0, 0),
            newest_request: None,
            wish: None,
            rank: None,
            told_short: false,
            writing: None,
        };
        book.sort_out();
        book
    }

    /// Takes over what was seen.
    pub(crate) fn see(&mut self, mut facts: VmFacts) {
        let VmFacts { obeyed, plugged, pod_name, .. } = &mut self.facts;
        if facts.obeyed < *obeyed {
            // A status from before the operator's last word. That word holds, together with what was plugged then.
            facts.obeyed = *obeyed;
            (facts.plugged, facts.pod_name) = (*plugged, pod_name.take());
        }
        self.facts = facts;
        self.sort_out();
    }

    fn sort_out(&mut self) {
        if let Some(visible) = self.facts.visible {
            self.may_be_used(visible);
            if self.writing.is_some_and(|writing| writing.seal.place() <= visible.place()) {
                self.writing = None;
            }
        }
        let obeyed = self.facts.obeyed;
        self.usable.retain(|seal| Some(seal.place()) >= obeyed);
    }

    fn may_be_used(&mut self, seal: Seal) {
        if let Err(at) = self.usable.binary_search_by_key(&seal.place(), Seal::place) {
            self.usable.insert(at, seal);
        }
        if self.usable.len() > MAX_USABLE {
            // Whoever uses the older one is covered by the later one of both sizes.
            let oldest = self.usable.remove(0);
            if let Some(next) = self.usable.first_mut() {
                next.size = next.size.max(oldest.size);
            }
        }
    }

    pub(crate) fn reference(&self) -> ObjectRef {
        ObjectRef {
            namespace: self.facts.namespace.clone(),
            name: self.facts.name.clone(),
            uid: self.facts.uid.clone(),
        }
    }

    /// The last approval, whether the object shows it yet or not.
    pub(crate) fn newest(&self) -> Option<Seal> {
        self.usable.last().copied()
    }

    /// What the VM may have now: a VM that was never approved has what it boots with.
    pub(crate) fn permit(&self) -> Size {
        self.newest().map_or(self.facts.min, |seal| seal.size)
    }

    /// The most that any approval may still be used for.
    pub(crate) fn approved(&self) -> Size {
        self.usable.iter().map(|seal| seal.size).fold(self.facts.min, Size::max)
    }

    /// Everything that may be plugged, now or by an approval that may still be used.
    pub(crate) fn promise(&self) -> Size {
        self.approved().max(self.facts.plugged.unwrap_or(self.facts.min))
    }

    /// Whether an approval of an earlier ledger, that this one may never have seen, may still be used.
    pub(crate) fn inherits(&self, epoch: u64) -> bool {
        self.facts.obeyed.is_none_or(|(obeyed, _)| obeyed != epoch)
    }

    /// Whether it is not known yet what is plugged in this pod: a VM boots with what its pod was made for.
    pub(crate) fn boots_in(&self, pod_name: &str) -> bool {
        self.facts.plugged.is_none() || self.facts.pod_name.as_deref() != Some(pod_name)
    }

    /// Within what the VM can be.
    pub(crate) fn clamp(&self, size: Size) -> Size {
        size.max(self.facts.min).min(self.facts.max)
    }

    /// Gives the next approval. Numbers start again with each epoch; a process that gets the lease again which nobody had
    /// meanwhile goes on with the same epoch, and with its numbers.
    pub(crate) fn issue(&mut self, epoch: u64, size: Size) -> Seal {
        let given = if self.last.0 == epoch { self.last.1 } else { 0 };
        let seen =
            [self.newest().map(|seal| seal.place()), self.facts.obeyed].into_iter().flatten();
        let seen = seen.filter(|place| place.0 == epoch).map(|place| place.1).max().unwrap_or(0);
        let generation = given.max(seen) + 1;
        self.last = (epoch, generation);
        let seal = Seal { epoch, generation, size };
        self.may_be_used(seal);
        seal
    }

    /// The approval of a size: the last one, if it is that.
    pub(crate) fn seal_for(&mut self, epoch: u64, size: Size) -> Seal {
        match self.newest() {
            Some(seal) if seal.epoch == epoch && seal.size == size => seal,
            _ => self.issue(epoch, size),
        }
    }

    /// What the spec wants for a VM that nobody asks for: one without an agent, or one that was never approved. `renew`: what it has is
    /// approved anew, which ends what earlier ledgers may have given.
    pub(crate) fn own_want(&self, epoch: u64, renew: bool) -> Option<Size> {
        if self.facts.deleting {
            return None;
        }
        let want = self.clamp(self.facts.wanted);
        match self.newest() {
            None => Some(want),
            Some(seal) if self.facts.autoscaled => renew.then_some(seal.size),
            Some(seal) if seal.size == want && seal.epoch == epoch => None,
            Some(seal) if seal.size == want && self.facts.visible == Some(seal) && !renew => None,
            Some(_) => Some(want),
        }
    }

    /// What a size costs in a pod.
    pub(crate) fn price(&self, pod: &RunnerFacts) -> Price {
        Price { floor: self.facts.floor, ..pod.price }
    }

    /// How much of `want` the VM can have where `affordable` is the most that fits, per resource.
    pub(crate) fn reachable(&self, want: Size, least: Size, affordable: Size) -> Size {
        let now = self.permit();
        let cpu = if want.cpu <= now.cpu || want.cpu <= affordable.cpu {
            want.cpu
        } else {
            let part = MilliCpu(affordable.cpu.0 / CPU_STEP_MILLIS * CPU_STEP_MILLIS);
            if part > now.cpu && part >= least.cpu { part } else { now.cpu }
        };
        let memory = if want.memory <= now.memory || want.memory <= affordable.memory {
            want.memory
        } else {
            let part = self.whole_slots(affordable.memory);
            if part > now.memory && part >= least.memory { part } else { now.memory }
        };
        Size { cpu, memory }
    }

    pub(crate) fn whole_slots(&self, memory: Bytes) -> Bytes {
        let (min, slot) = (self.facts.min.memory.0, self.facts.slot.0.max(1));
        let above = memory.0.saturating_sub(min) / slot * slot;
        Bytes(min.saturating_add(above))
    }
}

/// Whether `size` is larger than `than` in any resource.
pub(crate) fn grows(size: Size, than: Size) -> bool {
    size.cpu > than.cpu || size.memory > than.memory
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(cpu: u32, gib: u64) -> Size {
        Size { cpu: MilliCpu(cpu), memory: Bytes(gib << 30) }
    }

    fn book() -> VmBook {
        VmBook::new(VmFacts {
            uid: "u".into(),
            namespace: "d".into(),
            name: "v".into(),
            min: size(250, 1),
            max: size(8000, 16),
            wanted: size(1000, 2),
            slot: Bytes(1 << 30),
            floor: Amount::ZERO,
            autoscaled: true,
            visible: None,
            obeyed: None,
            plugged: None,
            pod_name: None,
            deleting: false,
            movable: None,
        })
    }

    fn see(book: &mut VmBook, visible: Seal, obeyed: Seal, plugged: Size) {
        let facts = VmFacts {
            visible: Some(visible),
            obeyed: Some(obeyed.place()),
            plugged: Some(plugged),
            ..book.facts.clone()
        };
        book.see(facts);
    }

    #[test]
    fn a_promise_shrinks_only_when_the_operator_obeys_and_the_hypervisor_agrees() {
        let mut book = book();
        assert_eq!(book.promise(), size(250, 1));
        let large = book.issue(1, size(4000, 8));
        assert_eq!(book.promise(), size(4000, 8));
        see(&mut book, large, large, size(4000, 8));
        let small = book.issue(1, size(1000, 2));
        assert_eq!(book.promise(), size(4000, 8), "the object still shows the large one");
        see(&mut book, small, large, size(1000, 2));
        assert_eq!(
            book.promise(),
            size(4000, 8),
            "shown, but an order for the large one may be in flight"
        );
        see(&mut book, small, small, size(1000, 8));
        assert_eq!(book.promise(), size(1000, 8), "memory is not gone yet");
        see(&mut book, small, small, size(1000, 2));
        assert_eq!(book.promise(), size(1000, 2));
    }

    #[test]
    fn what_is_put_back_counts_only_if_the_operator_may_obey_it() {
        let mut book = book();
        let first = book.issue(1, size(4000, 8));
        let second = book.issue(1, size(1000, 2));
        see(&mut book, first, first, size(1000, 2));
        see(&mut book, second, first, size(1000, 2));
        see(&mut book, first, first, size(1000, 2));
        assert_eq!((book.permit(), book.promise()), (size(1000, 2), size(4000, 8)));
        see(&mut book, second, second, size(1000, 2));
        assert_eq!(book.promise(), size(1000, 2));
        // A copy of the object from before that, or the old approval put back: both are of no effect.
        see(&mut book, first, first, size(1000, 2));
        assert_eq!((book.permit(), book.promise()), (size(1000, 2), size(1000, 2)));
        assert_eq!(book.facts.obeyed, Some(second.place()));
    }

    #[test]
    fn unused_approvals_all_count_even_when_merged() {
        let mut book = book();
        book.issue(1, size(8000, 1));
        for _ in 0..100 {
            book.issue(1, size(1000, 2));
        }
        assert!(book.usable.len() <= MAX_USABLE);
        assert_eq!(book.promise(), size(8000, 2));
        assert_eq!(book.permit(), size(1000, 2));
    }

    #[test]
    fn numbers_grow_within_an_epoch_and_across() {
        let mut book = book();
        let visible = Seal { epoch: 3, generation: 70, size: size(1000, 2) };
        see(&mut book, visible, visible, size(1000, 2));
        let seal = book.issue(4, size(1000, 2));
        assert!(seal.place() > visible.place());
        assert!(book.issue(4, size(1000, 3)).place() > seal.place());
        let mut twin = self::book();
        let visible = Seal { epoch: 4, generation: 9, size: size(1000, 2) };
        see(&mut twin, visible, visible, size(1000, 2));
        assert!(twin.issue(4, size(1000, 2)).place() > visible.place());
        twin.facts.obeyed = Some((4, 99));
        assert_eq!(twin.issue(4, size(1000, 3)).place(), (4, 100));
    }

    #[test]
    fn parts_are_whole_slots_and_respect_the_least() {
        let mut book = book();
        book.issue(1, size(1000, 2));
        let half = Size { cpu: MilliCpu(1555), memory: Bytes((7 << 30) / 2) };
        assert_eq!(
            book.reachable(size(4000, 8), size(1000, 2), half),
            Size { cpu: MilliCpu(1550), memory: Bytes(3 << 30) }
        );
        assert_eq!(book.reachable(size(4000, 8), size(2000, 4), half), size(1000, 2));
        assert_eq!(
            book.reachable(size(500, 8), size(500, 2), size(0, 2)),
            size(500, 2),
            "a shrink needs no room"
        );
        assert_eq!(book.reachable(size(1500, 3), size(1000, 1), half), size(1500, 3));
    }
}
