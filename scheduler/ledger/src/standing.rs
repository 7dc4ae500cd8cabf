//! What a placement looks at of each node, in one row that stays in the processor's cache.
//!
//! The books of a node are several cache lines; of ten thousand nodes, a question about all of them would wait for memory
//! most of the time. `audit.rs` compares with the books.

use std::collections::BTreeMap;

use crate::amount::Amount;
use crate::slab::{Key as _, NodeId};

/// A known node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// What pods may request in total.
    pub(crate) allocatable: Amount,
    /// What they take.
    pub(crate) reserved: Amount,
    /// What of it is leased, and gives way.
    pub(crate) leased: Amount,
    /// How many VMs' pods are among them.
    pub(crate) vms: usize,
    /// A scale-in is about to remove it.
    pub(crate) leaving: bool,
}

/// All nodes by number, and the largest of what they have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standings {
    nodes: Vec<Option<Standing>>,
    /// How many nodes have so much: the largest is known without a search, also when the largest node goes.
    cpu_millis: BTreeMap<u64, usize>,
    memory_bytes: BTreeMap<u64, usize>,
}

impl Standings {
    /// None: the node is not known.
    pub(crate) fn get(&self, node: NodeId) -> Option<Standing> {
        self.nodes.get(node.place()).copied().flatten()
    }

    pub(crate) fn set(&mut self, node: NodeId, new: Option<Standing>) {
        if self.nodes.len() <= node.place() {
            self.nodes.resize(node.place() + 1, None);
        }
        let Some(slot) = self.nodes.get_mut(node.place()) else { return };
        let old = std::mem::replace(slot, new).map(|it| it.allocatable);
        let new = new.map(|it| it.allocatable);
        if old == new {
            return;
        }
        if let Some(new) = new {
            *self.cpu_millis.entry(new.cpu_millis).or_default() += 1;
            *self.memory_bytes.entry(new.memory_bytes).or_default() += 1;
        }
        if let Some(old) = old {
            take(&mut self.cpu_millis, old.cpu_millis);
            take(&mut self.memory_bytes, old.memory_bytes);
        }
    }

    /// The most that any node has, per resource.
    pub(crate) fn largest(&self) -> Amount {
        let last = |counts: &BTreeMap<u64, usize>| counts.last_key_value().map_or(0, |it| *it.0);
        Amount { cpu_millis: last(&self.cpu_millis), memory_bytes: last(&self.memory_bytes) }
    }
}

fn take(counts: &mut BTreeMap<u64, usize>, value: u64) {
    if let Some(count) = counts.get_mut(&value) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(&value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_follows_nodes_that_come_change_and_go() {
        let mut standings = Standings::default();
        let has = |cpu_millis, memory_bytes| {
            let allocatable = Amount { cpu_millis, memory_bytes };
            let (reserved, leased) = (Amount::ZERO, Amount::ZERO);
            Some(Standing { allocatable, reserved, leased, vms: 0, leaving: false })
        };
        let largest = |standings: &Standings| {
            let Amount { cpu_millis, memory_bytes } = standings.largest();
            (cpu_millis, memory_bytes)
        };
        assert_eq!(largest(&standings), (0, 0));
        standings.set(NodeId::new(2), has(8, 1));
        standings.set(NodeId::new(0), has(4, 3));
        standings.set(NodeId::new(1), has(8, 2));
        assert_eq!(largest(&standings), (8, 3));
        standings.set(NodeId::new(2), None);
        assert_eq!(largest(&standings), (8, 3), "another one has as much");
        standings.set(NodeId::new(1), has(2, 2));
        assert_eq!(largest(&standings), (4, 3));
        assert_eq!((standings.get(NodeId::new(2)), standings.get(NodeId::new(9))), (None, None));
        assert_eq!(standings.get(NodeId::new(0)), has(4, 3));
    }
}
