//! Leases give way: to a growth that lacks room, to pods that no scheduler can place, and to pods that are about to come.
//!
//! What is claimed on a node is compared with what will be free once all orders have ended. What is missing is taken from
//! leases, and from no more of them than it takes. Room counts as free only when kubelet says so; until then who waits waits.

use std::collections::BTreeMap;

use guest_units::{Moment, Size};

use crate::amount::Amount;
use crate::books::NodeSlot;
use crate::ledger::Ledger;
use crate::slab::{NodeId, PodId, VmId};
use crate::vm::{WishState, grows};

/// What the leases of a node are to do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Way {
    /// Somebody waits for room: no new leases.
    pub(crate) pressed: bool,
    /// Pods whose leases give way, with the most that each may request.
    takes: Vec<(PodId, Amount)>,
}

impl Way {
    pub(crate) fn most(&self, pod: PodId) -> Option<Amount> {
        self.takes.iter().find(|(taken, _)| *taken == pod).map(|(_, most)| *most)
    }

    pub(crate) fn pods(&self) -> impl Iterator<Item = PodId> {
        self.takes.iter().map(|(pod, _)| *pod)
    }
}

/// What is claimed on a node.
#[derive(Debug, Default)]
struct Claims {
    sum: Amount,
    /// What is free or leased, and not claimed yet.
    left: Amount,
    /// Pods that claim, with what they are to have: their own leases are not taken below that.
    own: Vec<(PodId, Amount)>,
}

impl Claims {
    /// `own`: what a claimer uses up of its own lease, and nobody else can have.
    fn add(&mut self, more: Amount, own: Amount) {
        self.sum = self.sum + more;
        self.left = self.left.saturating_sub(more + own);
    }
}

/// What a wish comes to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Obtainable {
    pub(crate) target: Size,
    pod: PodId,
    requests: Amount,
    /// What is missing in its pod.
    more: Amount,
    /// What it takes of its pod's lease.
    own: Amount,
}

impl Ledger {
    /// Who claims room on a node, and what the leases there do about it.
    pub(crate) fn way(&mut self, node: NodeId, now: Moment) -> Way {
        let idle = |slot: &NodeSlot| slot.leased.amount() == Amount::ZERO && slot.queue.is_empty();
        let idle = self.nodes.get(node).is_none_or(idle);
        let leads = self.settings.lease.is_some() && self.epoch.is_some();
        if !leads || !self.node_complete(node) || (idle && self.calls.is_empty()) {
            return Way::default();
        }
        let mut claims = Claims { left: self.free_or_leased(node), ..Claims::default() };
        self.claims_of_wishes(node, now, &mut claims);
        self.claims_of_calls(node, now, &mut claims);
        let pressed = claims.sum != Amount::ZERO;
        let missing = self.missing(node, claims.sum);
        let takes = if missing == Amount::ZERO {
            Vec::new()
        } else {
            self.takes(node, missing, &claims.own, now)
        };
        Way { pressed, takes }
    }

    /// What will be free once all orders have ended, and what could be if there were no leases.
    pub(crate) fn free_or_leased(&self, node: NodeId) -> Amount {
        let (Some(slot), Some(facts)) = (self.nodes.get(node), self.facts(node)) else {
            return Amount::ZERO;
        };
        (facts.allocatable + slot.leased.amount()).saturating_sub(slot.going.amount())
    }

    /// What is missing for what is claimed, and for the pods that are about to come: when less than half of their room is
    /// left, leases make all of it.
    fn missing(&self, node: NodeId, claimed: Amount) -> Amount {
        let (Some(slot), Some(facts)) = (self.nodes.get(node), self.facts(node)) else {
            return Amount::ZERO;
        };
        let (taken, all, keep) =
            (slot.going.amount() + claimed, facts.allocatable, self.kept_free(node));
        let part = |taken: u64, all: u64, keep: u64| {
            let least = if all.saturating_sub(taken) < keep / 2 { keep } else { 0 };
            taken.saturating_add(least).saturating_sub(all)
        };
        Amount {
            cpu_millis: part(taken.cpu_millis, all.cpu_millis, keep.cpu_millis),
            memory_bytes: part(taken.memory_bytes, all.memory_bytes, keep.memory_bytes),
        }
    }

    fn claims_of_wishes(&self, node: NodeId, now: Moment, claims: &mut Claims) {
        let Some(slot) = self.nodes.get(node) else { return };
        let mut queue: Vec<(u64, VmId)> = slot.queue.iter().copied().collect();
        queue.sort_by(|one, other| {
            (one.0, self.vms.name(one.1)).cmp(&(other.0, self.vms.name(other.1)))
        });
        for (_, vm) in queue {
            if let Some(wish) = self.obtainable_with(vm, node, claims.left, now) {
                claims.add(wish.more, wish.own);
                claims.own.push((wish.pod, wish.requests));
            }
        }
    }

    fn claims_of_calls(&mut self, node: NodeId, now: Moment, claims: &mut Claims) {
        if self.calls.is_empty() {
            return;
        }
        self.try_here(node, claims.left);
        let room = self.free(node);
        let trying = self.calls.trying(node);
        let mut found: BTreeMap<u64, (bool, bool)> =
            trying.into_iter().map(|class| (class, (false, false))).collect();
        for (class, need) in self.calls.on(node, claims.left) {
            if !self.suits(class, node) {
                continue;
            }
            let (fits, has_room) = found.entry(class).or_default();
            if need.fits_in(claims.left) {
                claims.add(need, Amount::ZERO);
                *fits = true;
                *has_room |= need.fits_in(room);
            }
        }
        for (class, found) in found {
            self.note_room(class, node, found, now);
        }
    }

    /// What kubelet has free for any pod.
    pub(crate) fn free(&self, node: NodeId) -> Amount {
        let allocatable = self.facts(node).map_or(Amount::ZERO, |facts| facts.allocatable);
        allocatable.saturating_sub(self.reserved_without(node, None))
    }

    /// What a wish that waits could come to with what is leased.
    pub(crate) fn obtainable(&self, vm: VmId, node: NodeId, now: Moment) -> Option<Obtainable> {
        self.settings.lease.as_ref()?;
        self.obtainable_with(vm, node, self.free_or_leased(node), now)
    }

    fn obtainable_with(
        &self,
        vm: VmId,
        node: NodeId,
        left: Amount,
        now: Moment,
    ) -> Option<Obtainable> {
        let book = self.book(vm)?;
        let wish = book.wish.as_ref()?;
        let rests = wish.not_before > now || self.keeps_size(vm);
        if wish.state != WishState::Waiting || rests || !self.node_complete(node) {
            return None;
        }
        let pod = self.primary(vm).filter(|pod| pod.at == Some(node))?;
        let price = book.price(pod.book.facts.runner()?);
        let needed = self.needed(pod)?;
        let (going, permit) = (pod.book.going().max(needed), book.permit());
        let left = left.saturating_sub(pod.counts.leased);
        let affordable = price.affordable((going + left).max(pod.book.backed()));
        let target = book.reachable(wish.want, wish.least, affordable);
        let requests = price.cost(book.promise().max(target));
        let more = requests.saturating_sub(going);
        let own = requests.min(going).saturating_sub(needed).min(pod.counts.leased);
        (grows(target, permit) && more.fits_in(left)).then_some(Obtainable {
            target,
            pod: pod.id,
            requests,
            more,
            own,
        })
    }

    /// The leases that give way: of whoever has most, until nothing is missing.
    fn takes(
        &self,
        node: NodeId,
        mut missing: Amount,
        own: &[(PodId, Amount)],
        now: Moment,
    ) -> Vec<(PodId, Amount)> {
        let Some(slot) = self.nodes.get(node) else { return Vec::new() };
        let by_memory = missing.cpu_millis == 0;
        let size = |of: Amount| if by_memory { of.memory_bytes } else { of.cpu_millis };
        let mut pods: Vec<_> = slot.tenants.iter().filter_map(|pod| self.pods.get(*pod)).collect();
        pods.retain(|pod| pod.counts.leased != Amount::ZERO && pod.book.may_be_ordered(now));
        pods.sort_by_key(|pod| {
            (std::cmp::Reverse(size(pod.counts.leased)), self.pods.name(pod.id))
        });
        let mut takes = Vec::new();
        for pod in pods {
            let Some(leasing) = self.leasing(pod) else { continue };
            let claims = own.iter().find(|(claims, _)| *claims == pod.id);
            let least = leasing.needed.max(claims.map_or(Amount::ZERO, |(_, least)| *least));
            let less = leasing.going.saturating_sub(least).min(missing);
            if less == Amount::ZERO {
                continue;
            }
            let kept = leasing.within(leasing.going.saturating_sub(less), least);
            // Nothing is taken of what is not missing.
            let most = Amount {
                cpu_millis: if less.cpu_millis > 0 {
                    kept.cpu_millis
                } else {
                    leasing.going.cpu_millis
                },
                memory_bytes: if less.memory_bytes > 0 {
                    kept.memory_bytes
                } else {
                    leasing.going.memory_bytes
                },
            };
            missing = missing.saturating_sub(leasing.going.saturating_sub(most));
            takes.push((pod.id, most));
        }
        takes
    }
}
