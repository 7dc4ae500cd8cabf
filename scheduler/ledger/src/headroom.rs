//! Leases of headroom: what a VM's pod requests beyond its promise, so that the next step of growth needs no word of kubelet.
//!
//! ```text
//! requests   0 ----------- needed -------- half -------- full -------------- most ---->
//!              the promise        refilled       nothing is ordered           returned,
//!                                 up to full     (grown: less, shrunk: more)  down to full
//! ```
//!
//! Nothing is written down about leases: they are what the pod requests beyond its promise, so they survive whoever gave
//! them. What is not known to be free of use (a VM that boots, or that obeys an earlier ledger) is no lease.

use guest_units::{Bytes, MilliCpu, Moment, Size};

use crate::amount::Amount;
use crate::books::PodSlot;
use crate::facts::RunnerFacts;
use crate::give_way::Way;
use crate::ledger::Ledger;
use crate::settings::Lease;
use crate::slab::{NodeId, VmId};
use crate::vm::{VmBook, WishState};

/// Leases of CPU that a node has no room for in full are a multiple of this.
const CPU_STEP_MILLIS: u32 = 10;

/// What a pod should request, and whether it would request more if the node had more to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) requests: Amount,
    pub(crate) waits: bool,
}

/// A pod that can have a lease, with the requests that divide it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leasing<'a> {
    book: &'a VmBook,
    runner: &'a RunnerFacts,
    lease: &'a Lease,
    /// What the promise and a growth under way take.
    pub(crate) needed: Amount,
    /// What is, or will be once all orders have ended.
    pub(crate) going: Amount,
}

impl<'a> Leasing<'a> {
    /// Whether its requests do not cover what it needs yet.
    pub(crate) fn grows(&self) -> bool {
        !self.needed.fits_in(self.runner.spec)
    }

    /// The lease that it has, or will have once all orders have ended.
    pub(crate) fn leased(&self) -> Amount {
        self.runner.total(self.going).saturating_sub(self.runner.total(self.needed))
    }

    /// Requests with so many steps of growth.
    fn with(&self, steps: u32) -> Amount {
        let mut base = self.book.promise();
        if let Some(WishState::Growing { target, .. }) = self.book.wish.as_ref().map(|it| it.state)
        {
            base = base.max(target);
        }
        let size = (0..steps).fold(base, |size, _| self.book.step(size, self.lease));
        self.book.price(self.runner).cost(size).max(self.needed)
    }

    /// Thousandths of a whole lease that it has, in the resource where that is less.
    pub(crate) fn share(&self) -> u64 {
        let (full, have) = (self.with(1).saturating_sub(self.needed), self.leased());
        let part = |have: u64, full: u64| match full {
            0 => 1000,
            _ => have.saturating_mul(1000) / full,
        };
        part(have.cpu_millis, full.cpu_millis).min(part(have.memory_bytes, full.memory_bytes))
    }

    /// Requests within a limit that back a size of whole steps; at least `least`.
    pub(crate) fn within(&self, limit: Amount, least: Amount) -> Amount {
        let price = self.book.price(self.runner);
        let fits = price.affordable(limit);
        let size = Size {
            cpu: MilliCpu(fits.cpu.0 / CPU_STEP_MILLIS * CPU_STEP_MILLIS),
            memory: self.book.whole_slots(fits.memory),
        };
        price.cost(size).min(limit).max(least)
    }
}

impl VmBook {
    /// The next step of growth.
    fn step(&self, base: Size, lease: &Lease) -> Size {
        let Lease { cpu_percent, memory_percent, least, .. } = lease;
        let part = |of: u64, percent: u32| of.saturating_mul(percent.into()) / 100;
        let cpu = part(base.cpu.0.into(), *cpu_percent).max(least.cpu.0.into());
        let cpu = u32::try_from(cpu.saturating_add(base.cpu.0.into())).unwrap_or(u32::MAX);
        let slot = self.facts.slot.0.max(1);
        let memory = part(base.memory.0, *memory_percent).max(least.memory.0);
        let memory = memory.div_ceil(slot).saturating_mul(slot).saturating_add(base.memory.0);
        Size { cpu: MilliCpu(cpu), memory: Bytes(memory) }.min(self.facts.max).max(base)
    }
}

impl Ledger {
    /// The pod as one that can have a lease: its VM is known, stays, and uses nothing that is not known.
    pub(crate) fn leasing<'a>(&'a self, pod: &'a PodSlot) -> Option<Leasing<'a>> {
        let (lease, epoch) = (self.settings.lease.as_ref()?, self.epoch?);
        let (book, runner) = (self.vm_of(pod)?, pod.book.facts.runner()?);
        let known = !book.inherits(epoch) && !book.boots_in(&pod.book.facts.name);
        if !known || book.facts.deleting || !self.is_primary(pod) {
            return None;
        }
        let needed = self.needed(pod)?;
        Some(Leasing { book, runner, lease, needed, going: pod.book.going().max(needed) })
    }

    /// What a pod that can have a lease should request.
    pub(crate) fn with_lease(
        &self,
        pod: &PodSlot,
        leasing: &Leasing<'_>,
        (node, way): (NodeId, &Way),
        now: Moment,
    ) -> Wanted {
        let (needed, spec) = (leasing.needed, leasing.runner.spec);
        if let Some(requests) = self.lease_refused(pod) {
            return Wanted { requests, waits: true };
        }
        if let Some(most) = way.most(pod.id) {
            return Wanted { requests: spec.min(most).max(needed), waits: true };
        }
        if needed.fits_in(spec) && !pod.book.settled() {
            // Another order would only make what waits for this one wait longer.
            return Wanted { requests: spec, waits: true };
        }
        let (full, most) = (leasing.with(1), leasing.with(2));
        let rests = way.pressed || pod.book.no_lease_before > now;
        let room = if rests { needed } else { self.lease_room(pod, leasing, node) };
        let parts = [
            Part::of(needed.cpu_millis, spec.cpu_millis, full.cpu_millis)
                .decide(most.cpu_millis, room.cpu_millis),
            Part::of(needed.memory_bytes, spec.memory_bytes, full.memory_bytes)
                .decide(most.memory_bytes, room.memory_bytes),
        ];
        let [(cpu_millis, cpu), (memory_bytes, memory)] = parts;
        let waits = [cpu, memory].contains(&Verdict::Waits);
        let orders = [cpu, memory].contains(&Verdict::Orders);
        let requests = if orders { Amount { cpu_millis, memory_bytes } } else { spec };
        Wanted { requests, waits }
    }

    /// The most that a pod may request without taking what must stay free of leases.
    fn lease_room(&self, pod: &PodSlot, leasing: &Leasing<'_>, node: NodeId) -> Amount {
        let keep = self.kept_free(node);
        let room = self.room_for(pod, node).saturating_sub(keep);
        leasing.within(room, leasing.needed)
    }

    /// What of a node leases leave free.
    pub(crate) fn kept_free(&self, node: NodeId) -> Amount {
        let percent = self.settings.lease.as_ref().map_or(0, |lease| lease.keep_free_percent);
        let all = self.facts(node).map_or(Amount::ZERO, |facts| facts.allocatable);
        let part = |of: u64| of / 100 * u64::from(percent);
        Amount { cpu_millis: part(all.cpu_millis), memory_bytes: part(all.memory_bytes) }
    }

    /// Kubelet has no room for what includes a lease: the requests without it, which kubelet has not refused.
    pub(crate) fn lease_refused(&self, pod: &PodSlot) -> Option<Amount> {
        let leasing = self.leasing(pod)?;
        let spec = leasing.runner.spec;
        let without = spec.min(leasing.runner.allocated.unwrap_or(spec)).max(leasing.needed);
        let refused = leasing.runner.pending.is_some() && pod.book.order.is_none();
        (refused && without != spec && without.fits_in(spec)).then_some(without)
    }

    /// Whether the order is for more than the VM's promise and growth take, and than the pod has.
    pub(crate) fn orders_lease(&self, pod: &PodSlot, number: u64) -> bool {
        let order = pod.book.order.filter(|order| order.number == number);
        let leasing = order.and_then(|order| Some((order.requests, self.leasing(pod)?)));
        leasing.is_some_and(|(ordered, leasing)| {
            !ordered.fits_in(leasing.needed.max(leasing.runner.spec))
        })
    }

    /// What a VM with this permit could have at once, in total: kubelet has allocated it.
    pub(crate) fn at_hand(&self, vm: VmId, permit: Size) -> Size {
        let (Some(book), Some(pod)) = (self.book(vm), self.primary(vm)) else { return permit };
        let Some(runner) = pod.book.facts.runner() else { return permit };
        let whole = book.price(runner).affordable(pod.book.backed()).min(book.facts.max);
        Size { memory: book.whole_slots(whole.memory), ..whole }.max(permit)
    }
}

/// What is to be done about the lease of one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Stays,
    /// More would be ordered if there were room.
    Waits,
    Orders,
}

/// One resource of a pod's requests.
struct Part {
    needed: u64,
    have: u64,
    full: u64,
}

impl Part {
    fn of(needed: u64, have: u64, full: u64) -> Self {
        Self { needed, have, full }
    }

    /// What to request if anything is ordered, and whether that is for this resource. Few orders: a lease is refilled when
    /// half of it is used up and half of it is there to be had, and returned when it is more than two steps.
    fn decide(&self, most: u64, room: u64) -> (u64, Verdict) {
        let Self { needed, have, full } = *self;
        if have > most {
            return (full, Verdict::Orders);
        }
        let held = have.max(needed);
        let gets = held.max(full.min(room));
        let whole = full - full.min(needed);
        let half_used = whole > 0 && (held - needed).saturating_mul(2) <= whole;
        let verdict = if have < needed || (half_used && (gets - held).saturating_mul(2) >= whole) {
            Verdict::Orders
        } else if half_used {
            Verdict::Waits
        } else {
            Verdict::Stays
        };
        (gets, verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_ordered() {
        // Needed, have, most, room: what is requested. A whole lease is 100.
        let table = [
            ((100, 100, 300, 1000), (200, Verdict::Orders), "none"),
            ((100, 151, 300, 1000), (200, Verdict::Stays), "less than half is used up"),
            ((100, 150, 300, 1000), (200, Verdict::Orders), "half is used up"),
            ((100, 300, 300, 1000), (300, Verdict::Stays), "two steps are kept"),
            ((100, 301, 300, 1000), (200, Verdict::Orders), "more is returned"),
            ((100, 100, 300, 149), (149, Verdict::Waits), "less than half is to be had"),
            ((100, 100, 300, 150), (150, Verdict::Orders), "half is to be had"),
            ((100, 50, 300, 0), (100, Verdict::Orders), "growth needs no room for a lease"),
        ];
        for ((needed, have, most, room), expected, why) in table {
            let part = Part::of(needed, have, needed + 100);
            assert_eq!(part.decide(most, room), expected, "{why}");
        }
        let largest = Part::of(100, 100, 100);
        assert_eq!(largest.decide(100, 1000), (100, Verdict::Stays), "at its maximum");
    }
}
