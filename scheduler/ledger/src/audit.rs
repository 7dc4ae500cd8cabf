//! Whether the sums and sets that are kept are those that adding up gives, and whether looking at less loses anything.

use std::collections::BTreeSet;

use guest_units::Moment;

use crate::amount::Amount;
use crate::books::{Counts, NodeSlot, PodSlot, VmSlot};
use crate::ledger::Ledger;
use crate::slab::{NodeId, PodId, VmId};
use crate::standing::Standing;
use crate::timers::Who;

impl Ledger {
    /// Compares the books with what they are made of. For tests: it costs as much as it looks.
    ///
    /// # Errors
    /// What is not as it must be.
    pub fn audit(&self, now: Moment) -> Result<(), String> {
        for (node, name, slot) in self.nodes.iter() {
            let here = self.pods.iter().filter(|(.., pod)| pod.at == Some(node));
            let (mut sums, mut count, mut queue) = (NodeSlot::default(), 0, BTreeSet::new());
            for (_, _, pod) in here {
                sums.recount(Counts::default(), self.counted(pod));
                sums.tenants.extend(pod.vm.map(|_| pod.id));
                count += 1;
                let queued = |vm: VmId| Some((self.vms.get(vm)?.queued?, vm));
                queue.extend(pod.vm.and_then(queued));
            }
            for booked in self.booked_on(node) {
                sums.rebook(Amount::ZERO, booked);
            }
            let same = (slot.pods, &slot.queue, &slot.tenants) == (count, &queue, &sums.tenants)
                && (slot.reserved, slot.going, slot.leased, slot.booked)
                    == (sums.reserved, sums.going, sums.leased, sums.booked);
            ensure(same, || format!("node {name}: {slot:?} is {sums:?}, {count} pods, {queue:?}"))?;
            let standing = slot.facts.as_ref().map(|facts| Standing {
                allocatable: facts.allocatable,
                reserved: sums.reserved.amount(),
                leased: sums.leased.amount(),
                vms: sums.vms(),
                leaving: facts.leaving,
            });
            ensure(self.standings.get(node) == standing, || format!("node {name}: {standing:?}"))?;
            ensure(!slot.dirty && slot.is_used(), || format!("node {name}"))?;
        }
        let known = self.nodes.iter().filter_map(|(.., slot)| slot.facts.as_ref());
        let largest = known.map(|facts| facts.allocatable).fold(Amount::ZERO, Amount::max);
        ensure(self.standings.largest() == largest, || format!("largest is {largest}"))?;
        for (_, uid, slot) in self.pods.iter() {
            ensure(self.pod_is_right(slot), || format!("pod {uid}: {slot:?}"))?;
        }
        for (vm, uid, slot) in self.vms.iter() {
            ensure(self.vm_is_right(vm, slot), || format!("VM {uid}: {slot:?}"))?;
        }
        let pods = self.pods.iter().filter(|(.., slot)| slot.timer.is_some()).count();
        let vms = self.vms.iter().filter(|(.., slot)| slot.timer.is_some()).count();
        let others = self.calls.timers() + self.moves_are_right()?;
        ensure(self.timers.len() == pods + vms + others, || format!("{:?}", self.timers))?;
        self.calls_are_right()?;
        self.looking_at_all_is_the_same(now)
    }

    fn pod_is_right(&self, slot: &PodSlot) -> bool {
        let at: Option<NodeId> = slot.book.counts_on().and_then(|name| self.nodes.find(name));
        let owner = slot.book.facts.runner().and_then(|runner| self.vms.find(&runner.vm_uid));
        let counted = at.map(|_| self.counted(slot)).unwrap_or_default();
        let awake = slot.stale || slot.timer.is_some();
        let node = at.and_then(|at| self.nodes.get(at));
        (slot.at, slot.vm, slot.counts) == (at, owner, counted)
            && slot.at.is_some() == slot.book.counts_on().is_some()
            && slot.timer.is_none_or(|at| self.timers.contains(Who::Pod(slot.id), at))
            && node.is_none_or(|node| !awake || node.restless.contains(&slot.id))
    }

    fn vm_is_right(&self, vm: VmId, slot: &VmSlot) -> bool {
        let claim: BTreeSet<PodId> =
            self.pods.iter().filter(|(.., pod)| pod.vm == Some(vm)).map(|(id, ..)| id).collect();
        let wish = slot.book.as_ref().filter(|book| book.wish.is_some());
        slot.pods.iter().copied().collect::<BTreeSet<_>>() == claim
            && slot.pods.len() == claim.len()
            && slot.primary == self.choose(vm)
            && slot.queued == wish.map(|book| book.rank.unwrap_or(0))
            && !slot.dirty
            && (slot.book.is_some() || !claim.is_empty())
            && slot.timer.is_none_or(|at| self.timers.contains(Who::Vm(vm), at))
    }

    /// Settles every node and looks at everything: nothing may come of it, since whatever follows from what happened was done
    /// when it happened.
    fn looking_at_all_is_the_same(&self, now: Moment) -> Result<(), String> {
        let mut all = self.clone();
        for node in self.nodes.by_name(|_, _| true) {
            all.touch_node(node);
            if let Some(slot) = all.nodes.get_mut(node) {
                slot.changed = true;
            }
        }
        for pod in self.pods.by_name(|_, slot| slot.at.is_some()) {
            let Some(slot) = all.pods.get_mut(pod) else { continue };
            slot.stale = true;
            if let Some(node) = slot.at.and_then(|at| all.nodes.get_mut(at)) {
                node.restless.insert(pod);
            }
        }
        all.settle(now);
        let shown = |ledger: &Self| (ledger.next(now), ledger.timers.clone(), ledger.dump());
        let (little, all) = (shown(self), shown(&all));
        ensure(little == all, || {
            let (little, all) = (format!("{little:#?}"), format!("{all:#?}"));
            let lines = little.lines().zip(all.lines()).filter(|(one, other)| one != other);
            let lines: Vec<String> =
                lines.take(20).map(|(one, other)| format!("{one} becomes {other}")).collect();
            format!("looking at all is not the same: {lines:#?}")
        })
    }
}

fn ensure(holds: bool, text: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(text()) }
}
