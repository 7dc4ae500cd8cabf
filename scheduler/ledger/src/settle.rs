//! After each event: everything that follows from it, and nothing else.
//!
//! Looking at a wish or a pod again changes nothing unless something that it depends on has changed: the VM and its pods,
//! what is reserved or allocatable on the node, the time. So only these are looked at; `audit.rs` compares with looking at
//! everything.

use guest_units::Moment;

use crate::books::PodSlot;
use crate::event::Ticket;
use crate::ledger::Ledger;
use crate::slab::{NodeId, PodId, VmId};
use crate::vm::WishState;

/// Each round looks at what the one before has touched. Few are ever needed; what is left after so many waits for the next event.
const MOST_ROUNDS: usize = 16;

/// What of a VM tells whether a step did anything.
#[derive(PartialEq)]
struct Mark {
    wish: Option<(WishState, Option<Ticket>, u32, Moment)>,
    newest: Option<(u64, u64)>,
    writing: Option<(u64, u64)>,
}

impl Ledger {
    pub(crate) fn settle(&mut self, now: Moment) {
        self.settle_all(now);
        self.set_moves_timer();
    }

    fn settle_all(&mut self, now: Moment) {
        // What is done may make more possible, here or on another node: all is looked at until nothing comes of it.
        for _ in 0..MOST_ROUNDS {
            self.look_for_nodes();
            if self.dirty_vms.is_empty() && self.dirty_nodes.is_empty() {
                return;
            }
            self.settle_once(now);
        }
    }

    fn settle_once(&mut self, now: Moment) {
        // The order decides who gets which rank: it is that of the names.
        let mut vms = std::mem::take(&mut self.dirty_vms);
        self.vms.sort(&mut vms);
        let mut nodes = std::mem::take(&mut self.dirty_nodes);
        self.nodes.sort(&mut nodes);
        // Whatever is touched from here on is looked at in the next round.
        for vm in &vms {
            if let Some(slot) = self.vms.get_mut(*vm) {
                (slot.dirty, slot.fresh) = (false, true);
            }
        }
        for node in &nodes {
            if let Some(slot) = self.nodes.get_mut(*node) {
                slot.dirty = false;
            }
        }
        for vm in &vms {
            self.plan_vm(*vm, now);
            self.note_calls_of(*vm);
            self.recount_vm(*vm);
            self.rebook_vm(*vm, now);
        }
        let mut looked = vms.clone();
        for node in &nodes {
            let changed = self.settle_wishes(*node, now, &mut looked);
            self.settle_pods(*node, changed, now);
            self.note_heat(*node, now);
            // Wishes are measured against what the orders have left.
            if self.nodes.get(*node).is_some_and(|slot| slot.changed) {
                self.touch_node(*node);
            }
        }
        self.vms.sort(&mut looked);
        looked.dedup();
        for vm in looked {
            self.note_calls_of(vm);
            self.write_approval(vm, now);
            let timer = self.vm_timer(vm, now);
            self.set_vm_timer(vm, timer);
        }
        self.clean(vms, nodes);
    }

    /// Nothing is left to do; names that stand for nothing any more are dropped.
    fn clean(&mut self, mut vms: Vec<VmId>, mut nodes: Vec<NodeId>) {
        for vm in vms.drain(..) {
            let Some(slot) = self.vms.get_mut(vm) else { continue };
            slot.fresh = false;
            if slot.book.is_none() && slot.pods.is_empty() && !slot.dirty {
                self.vms.remove(vm);
            }
        }
        for node in nodes.drain(..) {
            let Some(slot) = self.nodes.get(node) else { continue };
            if !slot.is_used() && !slot.dirty {
                self.nodes.remove(node);
                self.forget_tries_on(node);
            }
        }
        // Their memory serves the next event.
        if self.dirty_vms.is_empty() {
            self.dirty_vms = vms;
        }
        if self.dirty_nodes.is_empty() {
            self.dirty_nodes = nodes;
        }
    }

    /// Serves the wishes on a node. Adds the VMs that were looked at; says whether what is reserved had changed before.
    fn settle_wishes(&mut self, node: NodeId, now: Moment, looked: &mut Vec<VmId>) -> bool {
        let Some(slot) = self.nodes.get_mut(node) else { return false };
        let changed = std::mem::take(&mut slot.changed);
        if self.epoch.is_none() || slot.queue.is_empty() {
            return changed;
        }
        let mut queue: Vec<(u64, VmId, bool)> =
            slot.queue.iter().map(|(rank, vm)| (*rank, *vm, changed)).collect();
        if matches!(queue[..], [_, (0, ..), ..]) {
            queue.sort_by(|one, other| {
                let name = |of: &(u64, VmId, bool)| (of.0, self.vms.name(of.1));
                name(one).cmp(&name(other))
            });
        }
        // What ends makes room for what waits.
        for (_, vm, look) in &mut queue {
            *look |= self.must_look(*vm, node, now);
            if *look {
                // What is done about a wish is done where the VM runs.
                let here = self.primary(*vm).is_none_or(|pod| pod.at == Some(node));
                if let Some(slot) = self.vms.get_mut(*vm).filter(|_| here) {
                    slot.unsettled = false;
                }
                self.step(*vm, |ledger, vm| ledger.step_growing(vm, now));
            }
        }
        for (_, vm, look) in &mut queue {
            *look |= self.must_look(*vm, node, now);
            if *look {
                self.step(*vm, |ledger, vm| ledger.step_waiting(vm, node, now));
            }
        }
        looked.extend(queue.iter().filter(|(.., look)| *look).map(|(_, vm, _)| *vm));
        changed
    }

    /// Whether anything that a wish depends on may have changed.
    fn must_look(&self, vm: VmId, node: NodeId, now: Moment) -> bool {
        let changed = |node| self.nodes.get(node).is_some_and(|slot| slot.changed);
        let Some(slot) = self.vms.get(vm) else { return false };
        slot.fresh
            || slot.unsettled
            || changed(node)
            || slot.timer.is_some_and(|at| at <= now)
            || self.primary(vm).and_then(|pod| pod.at).is_some_and(changed)
    }

    fn step(&mut self, vm: VmId, act: impl FnOnce(&mut Self, VmId)) {
        let before = self.mark(vm);
        act(self, vm);
        if self.mark(vm) != before {
            self.recount_vm(vm);
            self.more_to_do(vm);
        }
    }

    fn mark(&self, vm: VmId) -> Option<Mark> {
        let book = self.book(vm)?;
        let wish = book.wish.as_ref();
        Some(Mark {
            wish: wish.map(|wish| (wish.state, wish.ticket, wish.failures, wish.not_before)),
            newest: book.newest().map(|seal| seal.place()),
            writing: book.writing.map(|writing| writing.seal.place()),
        })
    }

    /// Orders what the pods of a node need, as far as that may have changed since the last time.
    fn settle_pods(&mut self, node: NodeId, changed: bool, now: Moment) {
        let way = self.way(node, now);
        let Some(slot) = self.nodes.get_mut(node) else { return };
        // Who waits for a lease may have one again.
        let changed = changed | (std::mem::replace(&mut slot.pressed, way.pressed) != way.pressed);
        slot.restless.extend(way.pods());
        if slot.restless.is_empty() {
            return;
        }
        let due = |slot: &PodSlot| {
            changed
                || slot.stale
                || slot.timer.is_some_and(|at| at <= now)
                || way.most(slot.id).is_some()
        };
        // What these change on the node, the others are looked at for in the next round.
        for pod in self.by_need(node, due) {
            self.fence(pod, now);
            let Some(slot) = self.pods.get_mut(pod) else { continue };
            slot.stale = false;
            let (vm, before) = (slot.vm, slot.book.state());
            let waits = self.order_resize(pod, &way, now);
            let Some(slot) = self.pods.get_mut(pod) else { continue };
            let timer = slot.book.timer(now);
            let same = before == slot.book.state();
            self.set_pod_timer(pod, timer);
            self.recount_pod(pod);
            if let Some(node) = self.nodes.get_mut(node).filter(|_| !waits && timer.is_none()) {
                node.restless.remove(&pod);
            }
            if let Some(vm) = vm.filter(|_| !same) {
                self.more_to_do(vm);
            }
        }
    }

    /// Those of the restless pods of a node that are due: first those that grow, then those with least of a lease.
    fn by_need(&self, node: NodeId, due: impl Fn(&PodSlot) -> bool) -> Vec<PodId> {
        let restless = self.nodes.get(node).into_iter().flat_map(|slot| slot.restless.iter());
        let mut pods: Vec<_> = restless
            .filter_map(|pod| self.pods.get(*pod))
            .filter(|pod| due(pod))
            .map(|pod| {
                let leasing = self.leasing(pod);
                let share = leasing.map_or(0, |it| if it.grows() { 0 } else { 1 + it.share() });
                (share, self.pods.name(pod.id), pod.id)
            })
            .collect();
        pods.sort_unstable();
        pods.into_iter().map(|(.., pod)| pod).collect()
    }
}
