//! The books of nodes, pods and VMs as they are linked to each other, with what is known without adding up.
//!
//! `audit.rs` says what each of the sums and sets must be.

use std::collections::BTreeSet;

use guest_units::Moment;

use crate::amount::{Amount, Sum};
use crate::facts::NodeFacts;
use crate::pod::PodBook;
use crate::slab::{NodeId, PodId, VmId};
use crate::vm::VmBook;

/// A node, or the name of one that pods are bound to.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeSlot {
    /// None: it is not known, or gone.
    pub(crate) facts: Option<NodeFacts>,
    /// Number of pods that count on it.
    pub(crate) pods: usize,
    /// What they take.
    pub(crate) reserved: Sum,
    /// What they will take once all orders have ended.
    pub(crate) going: Sum,
    /// Part of `going` that is leased.
    pub(crate) leased: Sum,
    /// Part of `reserved` and of `going` that no pod takes yet: VMs move here.
    pub(crate) booked: Sum,
    /// VMs' pods among them.
    pub(crate) tenants: BTreeSet<PodId>,
    /// Somebody waited for room when the pods were last looked at: no new leases.
    pub(crate) pressed: bool,
    /// VMs with a wish and a pod here, by their rank.
    pub(crate) queue: BTreeSet<(u64, VmId)>,
    /// Pods here that may have something to order or a timer: no other needs to be looked at.
    pub(crate) restless: BTreeSet<PodId>,
    /// What is reserved or allocatable is not what the wishes were last measured against.
    pub(crate) changed: bool,
    /// To be settled.
    pub(crate) dirty: bool,
}

/// A VM, or the uid of one that pods claim to run.
#[derive(Debug, Clone, Default)]
pub(crate) struct VmSlot {
    /// None: it is not known, or gone.
    pub(crate) book: Option<VmBook>,
    /// The pods that claim to run it, whether they are believed or not.
    pub(crate) pods: Vec<PodId>,
    /// The one that its promise counts for.
    pub(crate) primary: Option<PodId>,
    /// Its rank in the queues of its nodes, while it has a wish.
    pub(crate) queued: Option<u64>,
    /// Something was done about its wish, and more may follow from that.
    pub(crate) unsettled: bool,
    /// To be settled.
    pub(crate) dirty: bool,
    /// Being settled: something was done about it.
    pub(crate) fresh: bool,
    pub(crate) timer: Option<Moment>,
    /// The highest epoch that its object names.
    pub(crate) epoch: u64,
}

/// What a pod takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Whatever comes of everything that is under way.
    pub(crate) reserved: Amount,
    /// Once all orders have ended.
    pub(crate) going: Amount,
    /// Part of `going` that is leased.
    pub(crate) leased: Amount,
}

impl NodeSlot {
    /// A pod takes something else than before.
    pub(crate) fn recount(&mut self, old: Counts, new: Counts) {
        self.reserved.take(old.reserved);
        self.reserved.add(new.reserved);
        self.going.take(old.going);
        self.going.add(new.going);
        self.leased.take(old.leased);
        self.leased.add(new.leased);
        self.changed |= old != new;
    }

    /// Room is kept for VMs that move here, or not any more.
    pub(crate) fn rebook(&mut self, old: Amount, new: Amount) {
        for sum in [&mut self.reserved, &mut self.going, &mut self.booked] {
            sum.take(old);
            sum.add(new);
        }
        self.changed |= old != new;
    }

    /// How many VMs' pods there are, counting those that are to come as one.
    pub(crate) fn vms(&self) -> usize {
        self.tenants.len() + usize::from(self.booked != Sum::default())
    }

    /// Whether anything is known of it.
    pub(crate) fn is_used(&self) -> bool {
        self.facts.is_some() || self.pods > 0 || self.booked != Sum::default()
    }
}

/// A pod.
#[derive(Debug, Clone)]
pub(crate) struct PodSlot {
    pub(crate) id: PodId,
    pub(crate) book: PodBook,
    /// The node that it counts on.
    pub(crate) at: Option<NodeId>,
    /// The VM that it claims to run.
    pub(crate) vm: Option<VmId>,
    /// What it takes on its node, as it is in the node's sums.
    pub(crate) counts: Counts,
    /// Something was done about it or its VM since its requests were last compared with its needs.
    pub(crate) stale: bool,
    pub(crate) timer: Option<Moment>,
}

impl PodSlot {
    pub(crate) fn new(id: PodId, book: PodBook) -> Self {
        Self { id, book, at: None, vm: None, counts: Counts::default(), stale: false, timer: None }
    }
}
