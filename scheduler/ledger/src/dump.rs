//! The books as they stand, for people, tests and metrics.

use std::collections::BTreeMap;

use guest_units::Size;
use serde::Serialize;

use crate::amount::Amount;
use crate::books::NodeSlot;
use crate::ledger::Ledger;
use crate::slab::{NodeId, VmId};
use crate::vm::{VmBook, WishState};

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dump {
    /// Epoch of the lease, if it is held.
    pub epoch: Option<u64>,
    /// Whether nodes, pods and VMs were all listed.
    pub complete: bool,
    /// By name.
    pub nodes: BTreeMap<String, NodeDump>,
    /// VMs without a bound pod, by `namespace/name`.
    pub unplaced: BTreeMap<String, VmDump>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeDump {
    /// What pods may request in total.
    pub allocatable: Amount,
    /// What is taken: requests, and promises that exceed them.
    pub reserved: Amount,
    /// Part of `reserved` that is not VMs'.
    pub ordinary: Amount,
    /// Part of `reserved` that is leased: given back when somebody else needs it.
    pub leased: Amount,
    /// Part of `reserved` that no pod takes yet: VMs move here.
    pub booked: Amount,
    /// Why VMs still are here that should not, where the node is above its watermark.
    pub hot: Option<&'static str>,
    /// Sum of the promises, before overcommit and overhead.
    pub promised: Amount,
    /// Sum of what the hypervisors show.
    pub plugged: Amount,
    /// By `namespace/name`.
    pub vms: BTreeMap<String, VmDump>,
}

/// Sums of a node, as in [`NodeDump`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeLevel {
    /// What pods may request in total.
    pub allocatable: Amount,
    /// What is taken.
    pub reserved: Amount,
    /// Part of it that is leased.
    pub leased: Amount,
    /// Sum of the promises.
    pub promised: Amount,
    /// Sum of what the hypervisors show.
    pub plugged: Amount,
    /// Part of the promises that is VMs' that move to another node.
    pub migrating: Amount,
    /// VMs that wait for room to grow.
    pub waiting: u32,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmDump {
    /// Identity.
    pub uid: String,
    /// Name of the bound pod.
    pub pod: Option<String>,
    /// What may be plugged, whatever is under way.
    pub promise: Size,
    /// The last approval.
    pub permit: Size,
    /// What the hypervisor shows.
    pub plugged: Option<Size>,
    /// What is wanted and not granted.
    pub wants: Option<Size>,
    /// What is done about it: `waiting`, `growing` or `held`.
    pub wish: Option<&'static str>,
    /// What kubelet has allocated for certain.
    pub backed: Option<Amount>,
    /// Requests in the pod's spec.
    pub requests: Option<Amount>,
    /// Part of the requests, once all orders have ended, that is leased.
    pub leased: Amount,
    /// What the VM would get at once if it asked.
    pub at_hand: Size,
    /// Whether it moves to another node.
    pub moves: bool,
    /// Where to, if that is said.
    pub moves_to: Option<String>,
}

impl Ledger {
    /// Epoch of the lease, if it is held.
    #[must_use]
    pub const fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// Names of all nodes.
    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        let known = self.nodes.iter().filter(|(.., slot)| slot.facts.is_some());
        known.map(|(_, name, _)| name.to_owned()).collect()
    }

    /// The sums of one node: whoever needs those of all looks at some at a time, and keeps no request waiting.
    #[must_use]
    pub fn level(&self, node: &str) -> Option<NodeLevel> {
        self.level_of(self.nodes.get(self.nodes.find(node)?)?)
    }

    fn level_of(&self, slot: &NodeSlot) -> Option<NodeLevel> {
        let (mut promised, mut plugged) = (Amount::ZERO, Amount::ZERO);
        let (mut migrating, mut waiting) = (Amount::ZERO, 0);
        let pods = slot.tenants.iter().filter_map(|pod| self.pods.get(*pod));
        for pod in pods.filter(|pod| self.is_primary(pod)) {
            let Some((vm, book)) = self.vm_of_facts(&pod.book.facts) else { continue };
            let promise = book.promise().into();
            promised = promised + promise;
            plugged = plugged + book.facts.plugged.map_or(Amount::ZERO, Amount::from);
            if self.moves(vm) {
                migrating = migrating + promise;
            }
            let wish = book.wish.as_ref();
            waiting += u32::from(wish.is_some_and(|wish| wish.state == WishState::Waiting));
        }
        Some(NodeLevel {
            allocatable: slot.facts.as_ref()?.allocatable,
            reserved: slot.reserved.amount(),
            leased: slot.leased.amount(),
            promised,
            plugged,
            migrating,
            waiting,
        })
    }

    /// The books as they stand.
    #[must_use]
    pub fn dump(&self) -> Dump {
        let ordinary = self.ordinary();
        let mut nodes: BTreeMap<String, NodeDump> = self
            .nodes
            .iter()
            .filter_map(|(id, name, node)| {
                let NodeLevel { allocatable, reserved, leased, promised, plugged, .. } =
                    self.level_of(node)?;
                let ordinary = ordinary.get(&id).copied().unwrap_or_default();
                let empty = NodeDump {
                    allocatable,
                    reserved,
                    ordinary,
                    leased,
                    booked: node.booked.amount(),
                    hot: self.moves.hot.get(&id).map(|heat| heat.state.label()),
                    promised,
                    plugged,
                    vms: BTreeMap::new(),
                };
                Some((name.to_owned(), empty))
            })
            .collect();
        let mut unplaced = BTreeMap::new();
        for id in self.vms.by_name(|_, slot| slot.book.is_some()) {
            let Some(book) = self.book(id) else { continue };
            let name = format!("{}/{}", book.facts.namespace, book.facts.name);
            let vm = self.dump_vm(id, book);
            let node = self.primary(id).and_then(|pod| nodes.get_mut(pod.book.counts_on()?));
            match node {
                Some(node) => node.vms.insert(name, vm),
                None => unplaced.insert(name, vm),
            };
        }
        Dump { epoch: self.epoch, complete: self.complete(), nodes, unplaced }
    }

    /// What pods that are not VMs' take, on each node.
    fn ordinary(&self) -> BTreeMap<NodeId, Amount> {
        let mut sums = BTreeMap::<NodeId, Amount>::new();
        for (_, _, pod) in self.pods.iter() {
            if let Some(node) = pod.at.filter(|_| pod.book.facts.runner().is_none()) {
                let sum = sums.entry(node).or_default();
                *sum = *sum + pod.counts.reserved;
            }
        }
        sums
    }

    fn dump_vm(&self, vm: VmId, book: &VmBook) -> VmDump {
        let leased = self.primary(vm).map_or(Amount::ZERO, |slot| slot.counts.leased);
        let pod = self.primary(vm).map(|slot| &slot.book);
        let wish = book.wish.as_ref();
        VmDump {
            uid: book.facts.uid.clone(),
            pod: pod.map(|pod| pod.facts.name.clone()),
            promise: book.promise(),
            permit: book.permit(),
            plugged: book.facts.plugged,
            wants: wish.map(|wish| wish.want),
            wish: wish.map(|wish| match wish.state {
                WishState::Waiting => "waiting",
                WishState::Growing { .. } => "growing",
                WishState::Held { .. } => "held",
            }),
            backed: pod.map(crate::pod::PodBook::backed),
            requests: pod.and_then(|pod| Some(pod.facts.runner()?.spec)),
            leased,
            at_hand: self.at_hand(vm, book.permit()),
            moves: self.moves(vm),
            moves_to: self.moves_to(vm).map(str::to_owned),
        }
    }
}
