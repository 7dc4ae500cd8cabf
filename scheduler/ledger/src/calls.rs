//! Pods that no scheduler can place: they call for room, and leases give way where one of them would fit then.
//!
//! Pods that demand the same of a node are of one class, and what came of one holds for the others. A class tries some nodes
//! at a time, so that few that can never be placed do not take the leases of a whole fleet:
//!
//! ```text
//!   tried -- room for one of them --> has room since -- for `patience`, and none has come --> rests, long
//!     | ^                                |                 (affinity, volumes)                  two others are tried
//!     | |                                +-- one has come: forgotten                            |
//!     | +---------------------------------------------------------------------------------------+
//!     +-- none would fit, or no room for `patience`: rests, shortly
//! ```
//!
//! Where all nodes rest and one comes that needs something else than those who wait, the node whose rest ends first is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use guest_units::Moment;

use crate::amount::Amount;
use crate::demands::Demands;
use crate::facts::PodFacts;
use crate::ledger::Ledger;
use crate::slab::{NodeId, PodId, VmId};
use crate::timers::Who;

/// A rest is so many times as long as the patience, and twice as long after each further one in vain.
const REST: u32 = 20;
/// No more doublings than this: what kept the pods away may have gone, and then leases are all that does.
const DOUBLINGS: u32 = 3;
/// A node where none would fit, or where leases did not give way, is not looked at before.
const SHORT_REST: Duration = Duration::from_secs(5);
/// Nodes that a class tries at a time, to begin with, beside one for each of its pods.
const AT_ONCE: usize = 8;
/// More pods of a class than this are not looked at together.
const MOST_CALLERS: usize = 64;
/// No more nodes than this are tried at a time since others were tried in vain.
const WIDEST: usize = 128;

/// Everybody who calls for room.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls {
    pods: BTreeMap<PodId, Call>,
    classes: BTreeMap<u64, Class>,
    /// Which classes try a node.
    tried: BTreeSet<(NodeId, u64)>,
    /// Classes that may have stopped trying a node, and look for others.
    pub(crate) look: BTreeSet<u64>,
}

/// A pod that waits for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    class: u64,
    /// Who calls first is served first.
    rank: u64,
    need: Amount,
}

/// Pods that demand the same of a node.
#[derive(Debug, Clone)]
struct Class {
    demands: Demands,
    callers: BTreeMap<u64, Amount>,
    /// How many of them need so much CPU and memory.
    needs: BTreeMap<(u64, u64), usize>,
    tries: BTreeMap<NodeId, Try>,
    /// Number of tries that do not rest.
    tried: usize,
    /// Each node that was tried in vain has two others tried.
    wider: usize,
    /// Somebody has come since nodes were looked for, or who alone needed so much has gone, perhaps long before it was heard of.
    fresh: bool,
    timer: Option<Moment>,
}

impl Class {
    fn new(demands: Demands) -> Self {
        let (callers, needs, tries) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { demands, callers, needs, tries, tried: 0, wider: 0, fresh: false, timer: None }
    }

    /// Says whether it is the first that needs so much.
    fn add(&mut self, rank: u64, need: Amount) -> bool {
        self.callers.insert(rank, need);
        let alike = self.needs.entry((need.cpu_millis, need.memory_bytes)).or_default();
        *alike += 1;
        *alike == 1
    }

    /// Says whether it was the last that needs so much.
    fn remove(&mut self, rank: u64) -> bool {
        let Some(need) = self.callers.remove(&rank) else { return false };
        let key = (need.cpu_millis, need.memory_bytes);
        let Some(alike) = self.needs.get_mut(&key) else { return false };
        *alike -= 1;
        *alike == 0 && self.needs.remove(&key).is_some()
    }

    /// All was tried in vain, by what is known of others: one node is tried again.
    fn tries_again(&self) -> bool {
        self.fresh && self.tried == 0
    }

    /// How many more nodes it would try.
    fn hungry(&self) -> usize {
        let most = match self.callers.len().min(MOST_CALLERS) {
            0 => 0,
            _ if self.demands.node.is_some() => 1,
            callers => AT_ONCE + callers + self.wider.min(WIDEST),
        };
        most.saturating_sub(self.tried)
    }

    fn fits(&self, room: Amount) -> bool {
        let mut needs = self.needs.keys();
        needs.any(|(cpu_millis, memory_bytes)| {
            Amount { cpu_millis: *cpu_millis, memory_bytes: *memory_bytes }.fits_in(room)
        })
    }
}

/// What came of a class's tries on one node.
#[derive(Debug, Clone, Copy, Default)]
struct Try {
    /// It has room for one of the class since.
    room_since: Option<Moment>,
    /// How long it had room before that.
    had_room: Duration,
    /// It has been tried without room since.
    waits_since: Option<Moment>,
    /// It is not tried before.
    rests_until: Option<Moment>,
    /// It rests since it was tried in vain.
    long: bool,
    /// How often it had room for as long as one may wait for a pod.
    in_vain: u32,
}

impl Try {
    /// When the node has had room for long enough, or has been waited for, or has rested.
    fn due(&self, patience: Duration) -> Option<Moment> {
        let room = self.room_since.map(|since| since + patience.saturating_sub(self.had_room));
        self.rests_until.or(room).or(self.waits_since.map(|since| since + patience))
    }

    fn rest(&mut self, pause: Duration, now: Moment) {
        (self.rests_until, self.waits_since) = (Some(now + pause), None);
    }

    /// Ends its rest. How wide its class looks is how many nodes rest.
    fn wake(&mut self, wider: &mut usize) -> bool {
        *wider -= usize::from(std::mem::take(&mut self.long)).min(*wider);
        self.rests_until.take().is_some()
    }

    fn in_vain(self, patience: Duration, now: Moment) -> Self {
        let rest = patience.saturating_mul(REST << self.in_vain.min(DOUBLINGS));
        let in_vain = self.in_vain.saturating_add(1);
        Self { rests_until: Some(now + rest), in_vain, long: true, ..Self::default() }
    }

    fn has_room(&mut self, room: bool, now: Moment) {
        match (self.room_since, room) {
            (None, true) => (self.room_since, self.waits_since) = (Some(now), None),
            (Some(since), false) => {
                self.had_room = self.had_room.saturating_add(now.since(since));
                (self.room_since, self.waits_since) = (None, Some(now));
            }
            (None, false) => self.waits_since = self.waits_since.or(Some(now)),
            (Some(_), true) => {}
        }
    }
}

impl PodFacts {
    /// Whether a scheduler has looked for a node in vain.
    fn calls(&self) -> Option<&Demands> {
        let waits = self.node.is_none() && !self.finished;
        self.unplaced.as_deref().filter(|_| waits)
    }
}

impl Calls {
    pub(crate) fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// The classes that try a node.
    pub(crate) fn trying(&self, node: NodeId) -> Vec<u64> {
        self.tried.range((node, 0)..=(node, u64::MAX)).map(|(_, id)| *id).collect()
    }

    /// The pods that call on a node and could come if it had so much room, first come first served: their classes and needs.
    pub(crate) fn on(&self, node: NodeId, room: Amount) -> Vec<(u64, Amount)> {
        let mut callers = Vec::new();
        for (_, id) in self.tried.range((node, 0)..=(node, u64::MAX)) {
            let Some(class) = self.classes.get(id) else { continue };
            let fit = class.callers.iter().filter(|(_, need)| need.fits_in(room));
            let first = fit.take(MOST_CALLERS);
            callers.extend(first.map(|(rank, need)| (*rank, *id, *need)));
        }
        callers.sort_unstable_by_key(|(rank, ..)| *rank);
        callers.into_iter().map(|(_, class, need)| (class, need)).collect()
    }

    /// Whether leases of a node give way to the pod, or will as soon as it is known to wait.
    pub(crate) fn may_get(&self, pod: Option<PodId>, node: NodeId) -> bool {
        let call = pod.and_then(|pod| self.pods.get(&pod));
        call.is_none_or(|call| self.tried.contains(&(node, call.class)))
    }

    fn start(&mut self, id: u64, node: NodeId) {
        let Some(class) = self.classes.get_mut(&id) else { return };
        class.tries.entry(node).or_default();
        if self.tried.insert((node, id)) {
            class.tried += 1;
        }
    }

    fn stop(&mut self, id: u64, node: NodeId) {
        if self.tried.remove(&(node, id))
            && let Some(class) = self.classes.get_mut(&id)
        {
            class.tried -= 1;
            self.look.insert(id);
        }
    }

    /// How many timers there are.
    pub(crate) fn timers(&self) -> usize {
        self.classes.values().filter(|class| class.timer.is_some()).count()
    }
}

impl Ledger {
    /// After anything was heard of a pod: whether it calls for room.
    pub(crate) fn note_call(&mut self, pod: PodId) {
        let leases = self.settings.lease.is_some();
        let facts = self.pod(pod).filter(|_| leases).map(|book| &book.facts);
        let calls = |facts: &&PodFacts| facts.calls().is_some() && self.may_come(facts);
        let demands = facts.filter(calls).and_then(PodFacts::calls);
        let old = self.calls.pods.get(&pod).copied();
        if demands.is_none() && old.is_none() {
            return;
        }
        let new = facts.zip(demands).map(|(facts, it)| (it.class, self.placement_need(facts)));
        if old.map(|old| (old.class, old.need)) == new {
            return;
        }
        let (demands, at) = (demands.cloned(), facts.and_then(|facts| facts.node.clone()));
        if let Some(old) = old {
            self.calls.pods.remove(&pod);
            let at = at.and_then(|at| self.nodes.find(&at));
            self.calls_no_more(old, at);
        }
        let Some(((id, need), demands)) = new.zip(demands) else { return };
        self.last_rank += 1;
        let call = Call { class: id, rank: self.last_rank, need };
        self.calls.pods.insert(pod, call);
        let class = self.calls.classes.entry(id).or_insert_with(|| Class::new(demands));
        // Where it looked for nodes in vain already, one that needs as much as another finds none either.
        let sated = class.hungry() == 0;
        if class.add(call.rank, need) || sated {
            class.fresh = true;
            self.calls.look.insert(id);
        }
        self.touch_tried(id);
    }

    /// After anything was heard of a VM: whether its pod may come by now.
    pub(crate) fn note_calls_of(&mut self, vm: VmId) {
        self.each_pod(vm, Self::note_call);
    }

    /// Room is of no use to a pod that would not be bound.
    fn may_come(&self, pod: &PodFacts) -> bool {
        pod.runner().is_none_or(|runner| self.may_begin(pod, runner).is_ok())
    }

    /// A pod has come to a node, or waits no more.
    fn calls_no_more(&mut self, call: Call, at: Option<NodeId>) {
        let Call { class: id, rank, .. } = call;
        self.touch_tried(id);
        if let Some(node) = at {
            self.calls.stop(id, node);
        }
        let Some(class) = self.calls.classes.get_mut(&id) else { return };
        if class.remove(rank) && !class.callers.is_empty() {
            class.fresh = true;
            self.calls.look.insert(id);
        }
        if let Some(node) = at {
            class.tries.remove(&node);
            class.wider = 0;
        }
        if class.callers.is_empty() {
            for node in class.tries.keys() {
                self.calls.tried.remove(&(*node, id));
            }
            class.tried = 0;
            // Another one like them may come: what is known of the nodes is remembered as long as they rest.
            class.tries.retain(|_, at| at.rests_until.is_some());
        }
        self.set_class_timer(id);
    }

    /// The nodes that a class tries are looked at.
    fn touch_tried(&mut self, id: u64) {
        let tries = self.calls.classes.get(&id).map(|class| &class.tries);
        let tried = tries.into_iter().flatten().filter(|(_, at)| at.rests_until.is_none());
        tried.map(|(node, _)| *node).collect::<Vec<_>>().into_iter().for_each(|node| {
            self.touch_node(node);
        });
    }

    /// Classes that stopped trying a node look for others.
    pub(crate) fn look_for_nodes(&mut self) {
        while let Some(id) = self.calls.look.pop_first() {
            self.try_more(id);
        }
    }

    /// Tries further nodes, first those where the leases have to give least. For one that comes when all were tried in vain, the
    /// first to have rested is tried once more: what kept others away need not keep it, or may have been seen too late.
    fn try_more(&mut self, id: u64) {
        let Some(class) = self.calls.classes.get(&id).filter(|_| self.epoch.is_some()) else {
            return;
        };
        let (hungry, again) = (class.hungry(), class.tries_again());
        let Some(need) = class.callers.values().next().filter(|_| hungry > 0) else { return };
        let nodes = self.could_try(id, |at| at.rests_until.is_none());
        let gives = |node| (need.saturating_sub(self.free(node)), node);
        let mut nodes: Vec<(Amount, NodeId)> = nodes.map(gives).collect();
        nodes.sort_by_key(|(gives, node)| {
            (gives.memory_bytes, gives.cpu_millis, self.nodes.name(*node))
        });
        let mut nodes: Vec<NodeId> = nodes.into_iter().take(hungry).map(|(_, at)| at).collect();
        if nodes.is_empty() && again {
            nodes.extend(self.first_to_have_rested(id));
        }
        if let Some(class) = self.calls.classes.get_mut(&id) {
            class.fresh &= nodes.is_empty();
        }
        for node in nodes {
            self.calls.start(id, node);
            self.touch_node(node);
        }
    }

    /// Nodes that may be good for a class, and where one of it would fit if leases gave way.
    fn could_try(&self, id: u64, may: fn(&Try) -> bool) -> impl Iterator<Item = NodeId> {
        let named = self.calls.classes.get(&id).and_then(|class| class.demands.node.as_ref());
        let named = named.map(|name| self.nodes.find(name));
        let all = named.is_none().then(|| self.nodes.iter().map(|(node, ..)| node));
        let nodes = named.flatten().into_iter().chain(all.into_iter().flatten());
        nodes.filter(move |node| self.may_try(id, *node, self.free_or_leased(*node), may))
    }

    /// Of the nodes that were tried in vain the one whose rest ends first: it rests no more.
    fn first_to_have_rested(&mut self, id: u64) -> Option<NodeId> {
        let class = self.calls.classes.get(&id)?;
        let rested = |node| Some((class.tries.get(&node)?.rests_until?, node));
        let (_, node) = self.could_try(id, |at| at.long).filter_map(rested).min()?;
        self.wake(id, node);
        Some(node)
    }

    /// Whether a node may be good for a class, as far as its name, labels and taints tell.
    pub(crate) fn suits(&self, id: u64, node: NodeId) -> bool {
        let class = self.calls.classes.get(&id).zip(self.facts(node));
        class.is_some_and(|(class, facts)| {
            let named = class.demands.node.as_deref();
            named.is_none_or(|name| name == self.nodes.name(node))
                && class.demands.met_by(&facts.labels, &facts.taints)
        })
    }

    /// Whether a class could try a node that has so much room, by what came of it there.
    fn may_try(&self, id: u64, node: NodeId, room: Amount, may: fn(&Try) -> bool) -> bool {
        let Some(class) = self.calls.classes.get(&id) else { return false };
        class.fits(room)
            && !self.calls.tried.contains(&(node, id))
            && class.tries.get(&node).is_none_or(may)
            && self.suits(id, node)
    }

    /// A node has so much room now: classes that look for nodes try it.
    pub(crate) fn try_here(&mut self, node: NodeId, room: Amount) {
        let hungry = self.calls.classes.iter().filter(|(_, class)| class.hungry() > 0);
        let may = |(id, class): &(&u64, &Class)| {
            let rested: fn(&Try) -> bool = if class.tries_again() {
                |at| at.rests_until.is_none() || at.long
            } else {
                |at| at.rests_until.is_none()
            };
            self.may_try(**id, node, room, rested)
        };
        let hungry: Vec<u64> = hungry.filter(may).map(|(id, _)| *id).collect();
        for id in hungry {
            self.wake(id, node);
            self.calls.start(id, node);
        }
    }

    /// A node rests no more, if it did.
    fn wake(&mut self, id: u64, node: NodeId) {
        let Some(class) = self.calls.classes.get_mut(&id) else { return };
        let Some(at) = class.tries.get_mut(&node) else { return };
        if at.wake(&mut class.wider) {
            class.fresh = false;
            self.set_class_timer(id);
        }
    }

    /// Whoever leads from now on has not seen what room there was.
    pub(crate) fn forget_tries(&mut self) {
        self.calls.tried.clear();
        for (id, class) in &mut self.calls.classes {
            class.tries.clear();
            (class.tried, class.wider) = (0, 0);
            self.timers.set(Who::Class(*id), &mut class.timer, None);
        }
        self.calls.classes.retain(|_, class| !class.callers.is_empty());
        self.calls.look = self.calls.classes.keys().copied().collect();
    }

    /// A node is gone, or its number will stand for another one.
    pub(crate) fn forget_tries_on(&mut self, node: NodeId) {
        for id in self.calls.classes.keys().copied().collect::<Vec<_>>() {
            self.calls.stop(id, node);
            if let Some(class) = self.calls.classes.get_mut(&id) {
                class.tries.remove(&node);
            }
            self.set_class_timer(id);
        }
    }

    /// Whether one of a class would fit on the node without leases, and has room by now. From then on it is expected.
    pub(crate) fn note_room(
        &mut self,
        id: u64,
        node: NodeId,
        (fits, room): (bool, bool),
        now: Moment,
    ) {
        let patience = self.patience();
        let Some(class) = self.calls.classes.get_mut(&id) else { return };
        let Some(at) = class.tries.get_mut(&node) else { return };
        let before = at.due(patience);
        at.has_room(fits && room, now);
        if !fits {
            at.rest(SHORT_REST, now);
        }
        let after = at.due(patience);
        let first = after.is_some() && class.timer.is_none_or(|timer| after < Some(timer));
        let was_first = before.is_some() && before == class.timer;
        if first {
            self.timers.set(Who::Class(id), &mut class.timer, after);
        }
        if !fits {
            self.calls.stop(id, node);
        }
        // A class may try very many nodes: all are looked at only when this one was the next.
        if was_first && !first && after != before {
            self.set_class_timer(id);
        }
    }

    fn patience(&self) -> Duration {
        self.settings.lease.as_ref().map_or(Duration::ZERO, |lease| lease.patience)
    }

    /// Nodes may have had room for long enough, or have rested.
    pub(crate) fn class_is_due(&mut self, id: u64, now: Moment) {
        let patience = self.patience();
        let Some(class) = self.calls.classes.get_mut(&id) else { return };
        let is_due = |at: &Try| at.due(patience).is_some_and(|due| due <= now);
        let mut rests = Vec::new();
        for (node, at) in class.tries.iter_mut().filter(|(_, at)| is_due(at)) {
            if at.wake(&mut class.wider) {
                continue;
            }
            if at.room_since.is_some() {
                *at = at.in_vain(patience, now);
                class.wider += 1;
            } else {
                // Leases do not give way there: kubelet is silent, or somebody refuses. Others are tried meanwhile. The
                // rest does not grow, since a node that cannot shrink anything for a while can do so at once after it.
                at.rest(SHORT_REST, now);
            }
            rests.push(*node);
        }
        if class.callers.is_empty() {
            class.tries.retain(|_, at| at.rests_until.is_some());
        }
        for node in rests {
            self.calls.stop(id, node);
            self.touch_node(node);
        }
        self.calls.look.insert(id);
        self.set_class_timer(id);
    }

    /// After anything was done about a class. One that stands for nothing any more is forgotten.
    fn set_class_timer(&mut self, id: u64) {
        let patience = self.patience();
        let Some(class) = self.calls.classes.get_mut(&id) else { return };
        let next = class.tries.values().filter_map(|at| at.due(patience)).min();
        self.timers.set(Who::Class(id), &mut class.timer, next);
        if class.callers.is_empty() && class.tries.is_empty() {
            self.calls.classes.remove(&id);
        }
    }

    /// For `audit.rs`: whether the calls are those of the pods, and agree with each other.
    pub(crate) fn calls_are_right(&self) -> Result<(), String> {
        let leases = self.settings.lease.is_some();
        let calls = |facts: &PodFacts| facts.calls().is_some() && self.may_come(facts);
        let pods = self.pods.iter().filter(|(.., slot)| leases && calls(&slot.book.facts));
        let all: BTreeSet<PodId> = pods.map(|(id, ..)| id).collect();
        let kept: BTreeSet<PodId> = self.calls.pods.keys().copied().collect();
        if kept != all {
            return Err(format!("{all:?} call, {:?} are kept", self.calls));
        }
        let callers: usize = self.calls.classes.values().map(|class| class.callers.len()).sum();
        let tried: usize = self.calls.classes.values().map(|class| class.tried).sum();
        let right = |(id, class): (&u64, &Class)| {
            let timed = class.timer.is_none_or(|at| self.timers.contains(Who::Class(*id), at));
            let tried = |node: &NodeId| self.calls.tried.contains(&(*node, *id));
            let count = class.tries.keys().filter(|node| tried(node)).count();
            let idle =
                class.tries.iter().all(|(node, at)| at.rests_until.is_none() || !tried(node));
            timed && idle && count == class.tried
        };
        let all = self.calls.classes.iter().all(right);
        if all && (callers, tried) == (kept.len(), self.calls.tried.len()) {
            return Ok(());
        }
        Err(format!("{:?}", self.calls))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_counts_as_long_as_it_is_there_and_rests_grow() {
        let patience = Duration::from_secs(30);
        let second = Moment::from_secs;
        let mut at = Try::default();
        at.has_room(true, second(0));
        at.has_room(false, second(20));
        assert_eq!(at.due(patience), Some(second(50)), "without room it is waited for once more");
        at.has_room(true, second(100));
        assert_eq!(at.due(patience), Some(second(110)));
        let mut at = at.in_vain(patience, second(110));
        assert_eq!((at.rests_until, at.due(patience)), (Some(second(710)), Some(second(710))));
        at.rests_until = None;
        at.has_room(true, second(710));
        let at = at.in_vain(patience, second(740));
        assert_eq!(at.rests_until, Some(second(740 + 1200)));
    }
}
