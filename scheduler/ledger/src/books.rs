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
    pub(crate) timer: Option<Moment>,
    /// The highest epoch that its object names.
    pub(crate) epoch: u64,
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
    /// What it takes on its node, as it is in the node's sum.
    pub(crate) counted: Amount,
    /// Something was done about it or its VM since its requests were last compared with its needs.
    pub(crate) stale: bool,
    pub(crate) timer: Option<Moment>,
}

impl PodSlot {
    pub(crate) fn new(id: PodId, book: PodBook) -> Self {
        Self { id, book, at: None, vm: None, counted: Amount::ZERO, stale: false, timer: None }
    }
}
