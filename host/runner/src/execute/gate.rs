//! Refuses orders from the past.
//!
//! CPU and memory are ordered independently and may overtake each other on their way, so each resource
//! has its own newest generation. The same order may come twice, because its answer may get lost.
//!
//! Above all is the fence: whoever looks says which order is the first that may still come. A new leader looks before it
//! orders anything, and a leader that has given an order up looks before it counts on that. From then on earlier orders
//! are refused however long they were on their way, also those that are already here and wait for their turn.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use host_protocol::{Generation, Order, Resource};

#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// Everything before it is refused.
    fence: Generation,
    newest: BTreeMap<Resource, Order>,
}

impl Gate {
    /// Takes an order, or tells the newest generation that it is behind of.
    pub(super) fn admit(&self, order: Order) -> Result<(), Generation> {
        let mut seen = self.seen();
        let resource = order.what.resource();
        if let Some(newest) = seen.newest.get(&resource).copied() {
            let twice = order.generation == newest.generation && order.what != newest.what;
            if order.generation < newest.generation || twice {
                return Err(newest.generation);
            }
        }
        if order.generation < seen.fence {
            return Err(seen.fence);
        }
        seen.fence = seen.fence.max(Generation { counter: 0, ..order.generation });
        seen.newest.insert(resource, order);
        Ok(())
    }

    /// Refuses every order before `first` from now on.
    pub(super) fn fence(&self, first: Generation) {
        let mut seen = self.seen();
        seen.fence = seen.fence.max(first);
    }

    /// The generation that has overtaken an admitted order.
    pub(super) fn newer_than(&self, order: Order) -> Option<Generation> {
        let seen = self.seen();
        let newest = seen.newest.get(&order.what.resource()).map(|order| order.generation);
        newest.max(Some(seen.fence)).filter(|newest| *newest > order.generation)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use guest_units::{Bytes, MilliCpu};
    use host_protocol::What;

    use super::*;

    fn order(epoch: u64, counter: u64, what: What) -> Order {
        Order { generation: Generation { epoch, counter }, what }
    }

    fn cpu(epoch: u64, counter: u64) -> Order {
        order(epoch, counter, What::SetCpu(MilliCpu(1000)))
    }

    fn memory(epoch: u64, counter: u64) -> Order {
        order(epoch, counter, What::SetMemory(Bytes(1 << 30)))
    }

    #[test]
    fn orders_in_sequence() {
        for (orders, admitted) in [
            (vec![cpu(1, 1), cpu(1, 2)], vec![true, true]),
            (vec![cpu(1, 2), cpu(1, 1)], vec![true, false]),
            (vec![cpu(1, 2), cpu(1, 2)], vec![true, true]), // the answer got lost
            (vec![cpu(1, 2), order(1, 2, What::SetCpu(MilliCpu(9)))], vec![true, false]),
            (vec![cpu(1, 2), memory(1, 1), memory(1, 3), cpu(1, 2)], vec![true; 4]),
            (vec![cpu(2, 1), memory(1, 9)], vec![true, false]), // an old leader
            (vec![cpu(1, 9), cpu(2, 0), cpu(1, 10)], vec![true, true, false]),
            (vec![order(1, 5, What::PowerDown), order(1, 4, What::PowerDown)], vec![true, false]),
        ] {
            let gate = Gate::default();
            let found: Vec<bool> = orders.iter().map(|order| gate.admit(*order).is_ok()).collect();
            assert_eq!(found, admitted, "{orders:?}");
        }
    }

    #[test]
    fn a_newer_order_overtakes_only_its_own_resource() {
        let gate = Gate::default();
        for order in [cpu(1, 1), memory(1, 2), cpu(1, 3)] {
            gate.admit(order).unwrap();
        }
        assert_eq!(gate.newer_than(cpu(1, 1)), Some(Generation { epoch: 1, counter: 3 }));
        assert_eq!(gate.newer_than(memory(1, 2)), None);
    }

    #[test]
    fn an_order_of_an_old_leader_learns_of_the_new_one() {
        let gate = Gate::default();
        gate.admit(cpu(2, 7)).unwrap();
        assert_eq!(gate.admit(memory(1, 9)), Err(Generation { epoch: 2, counter: 0 }));
    }

    #[test]
    fn a_leader_that_has_looked_ends_what_earlier_ones_ordered() {
        let gate = Gate::default();
        gate.admit(memory(1, 9)).unwrap();
        let fenced = Generation { epoch: 2, counter: 1 };
        gate.fence(fenced);
        assert_eq!(gate.newer_than(memory(1, 9)), Some(fenced), "what waits or runs");
        assert_eq!(gate.admit(cpu(1, 10)), Err(fenced), "what comes late");
        gate.fence(Generation { epoch: 1, counter: 12 });
        assert!(gate.admit(cpu(1, 12)).is_err(), "an old leader lifts nothing");
        gate.admit(cpu(2, 1)).unwrap();
        assert_eq!(gate.newer_than(cpu(2, 1)), None);
    }

    #[test]
    fn what_a_leader_has_given_up_is_refused_however_late_it_comes() {
        let gate = Gate::default();
        gate.admit(memory(1, 3)).unwrap();
        let first = Generation { epoch: 1, counter: 6 };
        gate.fence(first);
        assert_eq!(gate.newer_than(memory(1, 3)), Some(first), "what waits or runs");
        assert_eq!(gate.admit(memory(1, 4)), Err(first), "sent long ago");
        assert_eq!(gate.admit(cpu(1, 5)), Err(first), "a resource that was never ordered");
        gate.admit(cpu(1, 6)).unwrap();
        assert_eq!(gate.newer_than(cpu(1, 6)), None, "what is still waited for");
    }
}
