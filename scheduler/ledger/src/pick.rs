//! Who is moved, and where to.
//!
//! ```text
//!   cool -- above the watermark --> hot -- still so after a while --> looked at, again and again while it is hot
//!     ^                              |                                  | one VM after another is picked
//!     +------ below it, counting who is about to leave -----------------+ until it would be below
//! ```
//!
//! The oldest pods go first, so that the same VM is not moved again and again. A VM goes where a pod of it would be placed best,
//! without making that node hot; where there is no such node it stays, and the dump says so.

use std::cmp::Reverse;
use std::time::Duration;

use guest_units::Moment;

use crate::amount::Amount;
use crate::books::PodSlot;
use crate::facts::NodeFacts;
use crate::ledger::Ledger;
use crate::moves::Movers;
use crate::slab::{NodeId, PodId, VmId};
use crate::vm::WishState;

/// A node is above its watermark for so long before anybody leaves: what is under way there has ended by then, and most peaks.
const HOT_FOR: Duration = Duration::from_secs(30);
/// Between two looks at a node that is hot.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// VMs that leave a node at a time: each copies its memory at up to 1 GiB/s, and one alone would be waited for when it does not get on.
const MOST_FROM: usize = 2;
/// VMs that come to a node at a time, by the same reckoning.
const MOST_TO: usize = 2;

/// A node above its watermark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heat {
    pub(crate) look_at: Moment,
    pub(crate) state: HeatState,
}

/// What is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeatState {
    /// It may pass.
    New,
    /// As many as may move at a time do.
    Leaving,
    /// Nobody there may be moved now, who is not moving.
    Nobody,
    /// Who may be moved has no room anywhere.
    NoDestination,
}

impl HeatState {
    /// Fixed text for the dump.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Leaving => "leaving",
            Self::Nobody => "nobody_may_move",
            Self::NoDestination => "no_destination",
        }
    }
}

impl Ledger {
    /// After the pods of a node were settled: whether it is above its watermark now.
    pub(crate) fn note_heat(&mut self, node: NodeId, now: Moment) {
        if self.is_hot(node) {
            let new = Heat { look_at: now + HOT_FOR, state: HeatState::New };
            self.moves.hot.entry(node).or_insert(new);
        } else {
            self.moves.hot.remove(&node);
        }
    }

    /// Whether more stays on a node than its watermark. Without the lease, or before everything is known, nobody is moved.
    pub(crate) fn is_hot(&self, node: NodeId) -> bool {
        let leads = self.settings.moves.is_some() && self.epoch.is_some();
        leads && self.node_complete(node) && self.excess(node) != Amount::ZERO
    }

    /// The watermark of what a node has.
    fn watermark(&self, allocatable: Amount) -> Amount {
        let of = |all: u64| {
            let part = self.settings.moves.map_or(1000, |moves| moves.watermark_thousandths);
            let below = u128::from(all) * u128::from(part.min(1000)) / 1000;
            u64::try_from(below).unwrap_or(all)
        };
        let Amount { cpu_millis, memory_bytes } = allocatable;
        Amount { cpu_millis: of(cpu_millis), memory_bytes: of(memory_bytes) }
    }

    /// What of a node is above its watermark once all orders have ended and everybody has left who is about to. Leases do not
    /// count: they give way first.
    fn excess(&self, node: NodeId) -> Amount {
        let (Some(slot), Some(facts)) = (self.nodes.get(node), self.facts(node)) else {
            return Amount::ZERO;
        };
        let most = self.watermark(facts.allocatable);
        let stays = slot.going.amount().saturating_sub(slot.leased.amount());
        if stays.fits_in(most) {
            return Amount::ZERO;
        }
        let leaves = slot.tenants.iter().filter_map(|pod| self.pods.get(*pod));
        let leaves = leaves.filter(|pod| self.leaves(pod));
        let leaves: Amount =
            leaves.map(|pod| pod.counts.going.saturating_sub(pod.counts.leased)).sum();
        stays.saturating_sub(leaves).saturating_sub(most)
    }

    /// Whether a pod's VM moves to another node.
    fn leaves(&self, pod: &PodSlot) -> bool {
        let Some(vm) = pod.vm.filter(|vm| self.vm_of(pod).is_some() && self.moves(*vm)) else {
            return false;
        };
        match self.moves_to(vm) {
            Some(to) => self.nodes.find(to) != pod.at,
            None => self.is_primary(pod),
        }
    }

    /// Nodes that are hot for long enough, or still.
    pub(crate) fn pick_where_due(&mut self, now: Moment) {
        let due = self.moves.hot.iter().filter(|(_, heat)| heat.look_at <= now);
        let mut due: Vec<NodeId> = due.map(|(node, _)| *node).collect();
        self.nodes.sort(&mut due);
        for node in due {
            let state = self.pick_from(node, now);
            if let Some(heat) = self.moves.hot.get_mut(&node) {
                *heat = Heat { look_at: now + LOOK_EVERY, state };
            }
        }
    }

    /// Picks who leaves a node, until it would be below its watermark.
    fn pick_from(&mut self, node: NodeId, now: Moment) -> HeatState {
        let mut state = HeatState::Nobody;
        for (pod, vm) in self.candidates(node, now) {
            if self.excess(node) == Amount::ZERO {
                return HeatState::Leaving;
            }
            let movers = self.movers();
            if movers.from.get(&node).is_some_and(|leave| *leave >= MOST_FROM) {
                return HeatState::Leaving;
            }
            match self.destination(pod, vm, node, &movers) {
                Some(to) => self.order_move(vm, to, now),
                None => state = HeatState::NoDestination,
            }
        }
        let leave = self.movers().from.contains_key(&node);
        if leave && self.excess(node) == Amount::ZERO { HeatState::Leaving } else { state }
    }

    /// Who may leave a node, the oldest pods first.
    fn candidates(&self, node: NodeId, now: Moment) -> Vec<(PodId, VmId)> {
        let (Some(slot), Some(facts)) = (self.nodes.get(node), self.facts(node)) else {
            return Vec::new();
        };
        let most = self.watermark(facts.allocatable);
        let pods = slot.tenants.iter().filter_map(|pod| self.pods.get(*pod));
        let mut pods: Vec<(&PodSlot, VmId)> = pods
            .filter_map(|pod| Some((pod, pod.vm?)))
            .filter(|(pod, vm)| self.may_move(pod, *vm, most, now))
            .collect();
        pods.sort_by_key(|(pod, _)| {
            let created = pod.book.facts.runner().map_or(0, |runner| runner.created);
            (created, self.pods.name(pod.id))
        });
        pods.into_iter().map(|(pod, vm)| (pod.id, vm)).collect()
    }

    /// Whether a VM may be moved now: its user lets it, it runs, and nothing about its size is under way. One that has more than its
    /// spec wants, as a guest that gives nothing back, would not fit in a pod that is made by the spec.
    fn may_move(&self, pod: &PodSlot, vm: VmId, most: Amount, now: Moment) -> bool {
        let (Some(epoch), Some(book)) = (self.epoch, self.vm_of(pod)) else { return false };
        let grows = book.wish.as_ref().is_some_and(|wish| wish.state != WishState::Waiting);
        book.facts.movable.is_some()
            && !book.facts.deleting
            && !book.inherits(epoch)
            && !book.boots_in(&pod.book.facts.name)
            && !grows
            && book.promise().fits_in(book.clamp(book.facts.wanted))
            && self.is_primary(pod)
            && self.has_rested(vm, now)
            && book.target(pod).is_some_and(|takes| takes.fits_in(most))
    }

    /// The best node that has room for a VM below its watermark, and lets it in.
    fn destination(&self, pod: PodId, vm: VmId, from: NodeId, movers: &Movers) -> Option<NodeId> {
        let (book, slot) = (self.book(vm)?, self.pods.get(pod)?);
        let (demands, takes) = (book.facts.movable.as_deref()?, book.target(slot)?);
        let open = |node: NodeId, facts: &NodeFacts| {
            node != from
                && !facts.leaving
                && movers.to.get(&node).is_none_or(|come| *come < MOST_TO)
                && self.node_complete(node)
                && demands.met_by(&facts.labels, &facts.taints)
        };
        let largest = self.standings.largest();
        let scored = self.nodes.iter().filter_map(|(node, name, there)| {
            let (facts, standing) = (there.facts.as_ref()?, self.standings.get(node)?);
            let used = standing.reserved.saturating_sub(standing.leased) + takes;
            if !used.fits_in(self.watermark(facts.allocatable)) || !open(node, facts) {
                return None;
            }
            let uid = &slot.book.facts.uid;
            let empty = standing.vms == 0;
            let score = self.score((uid, name), used, standing, empty, largest);
            Some((Reverse(score), name, node))
        });
        scored.min().map(|(.., node)| node)
    }
}
