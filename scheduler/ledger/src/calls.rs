//! Pods that no scheduler can place: they call for room, and leases give way on every node where they would fit then.
//!
//! ```text
//! for each such pod and node:   called -- the node has room for it --> had room since
//!                                 ^                                       | for `patience`, and the pod has not come
//!                                 +---------- after a rest ----------------+  (taints, affinity, volumes): rests
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use guest_units::Moment;

use crate::amount::Amount;
use crate::facts::PodFacts;
use crate::ledger::Ledger;
use crate::slab::{NodeId, PodId};
use crate::timers::Who;

/// A rest is so many times as long as the patience, and twice as long after each further one in vain.
const REST: u32 = 20;
/// No more doublings than this: what kept the pod away may have gone, and then leases are all that does.
const DOUBLINGS: u32 = 3;

/// A pod that waits for a node.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Who calls first is served first.
    rank: u64,
    /// What it takes: another amount is another call.
    need: Amount,
    tries: BTreeMap<NodeId, Try>,
    pub(crate) timer: Option<Moment>,
}

/// What came of a call on one node.
#[derive(Debug, Clone, Copy, Default)]
struct Try {
    /// It has room since.
    room_since: Option<Moment>,
    /// How long it had room before that.
    had_room: Duration,
    /// It does not give way before.
    rests_until: Option<Moment>,
    rests: u32,
}

impl Try {
    /// When the node has had room for long enough, if it has room now, or has rested.
    fn due(&self, patience: Duration) -> Option<Moment> {
        let room = self.room_since.map(|since| since + patience.saturating_sub(self.had_room));
        [room, self.rests_until].into_iter().flatten().min()
    }

    /// Time has passed.
    fn age(&mut self, patience: Duration, now: Moment) {
        if self.due(patience).is_none_or(|at| at > now) {
            return;
        }
        let rest = patience.saturating_mul(REST << self.rests.min(DOUBLINGS));
        *self = match self.rests_until {
            Some(_) => Self { rests: self.rests, ..Self::default() },
            None => {
                let rests = self.rests.saturating_add(1);
                Self { rests_until: Some(now + rest), rests, ..Self::default() }
            }
        };
    }

    fn has_room(&mut self, room: bool, now: Moment) {
        match (self.room_since, room) {
            (None, true) => self.room_since = Some(now),
            (Some(since), false) => {
                self.had_room = self.had_room.saturating_add(now.since(since));
                self.room_since = None;
            }
            _ => {}
        }
    }
}

impl PodFacts {
    /// Whether a scheduler has looked for a node in vain.
    fn calls(&self) -> bool {
        self.unschedulable && self.node.is_none() && !self.finished
    }
}

impl Ledger {
    /// After anything was heard of a pod: whether it calls for room.
    pub(crate) fn note_call(&mut self, pod: PodId) {
        let calls =
            self.settings.lease.is_some() && self.pod(pod).is_some_and(|book| book.facts.calls());
        let need = self.pod(pod).filter(|_| calls).map(|book| self.placement_need(&book.facts));
        if need == self.calls.get(&pod).map(|call| call.need) {
            return;
        }
        if let Some(mut call) = self.calls.remove(&pod) {
            self.timers.set(Who::Call(pod), &mut call.timer, None);
            call.tries.into_keys().for_each(|node| self.touch_node(node));
        }
        let Some(need) = need else { return };
        self.last_rank += 1;
        let call = Call { rank: self.last_rank, need, tries: BTreeMap::new(), timer: None };
        self.calls.insert(pod, call);
        for node in self.nodes.by_name(|_, slot| slot.facts.is_some()) {
            if need.fits_in(self.free_or_leased(node)) {
                self.touch_node(node);
            }
        }
    }

    /// Whoever leads from now on has not seen what room there was.
    pub(crate) fn forget_tries(&mut self) {
        for (pod, call) in &mut self.calls {
            call.tries.clear();
            self.timers.set(Who::Call(*pod), &mut call.timer, None);
        }
    }

    /// The pods that call on a node, first come first served.
    pub(crate) fn callers(&mut self, node: NodeId, now: Moment) -> Vec<(PodId, Amount)> {
        let patience = self.patience();
        let mut callers = Vec::new();
        for (pod, call) in &mut self.calls {
            let mut rests = false;
            if let Some(at) = call.tries.get_mut(&node) {
                at.age(patience, now);
                rests = at.rests_until.is_some();
                let timer = earlier(call.timer, at.due(patience));
                self.timers.set(Who::Call(*pod), &mut call.timer, timer);
            }
            if !rests {
                callers.push((call.rank, *pod, call.need));
            }
        }
        callers.sort_unstable_by_key(|(rank, ..)| *rank);
        callers.into_iter().map(|(_, pod, need)| (pod, need)).collect()
    }

    /// Whether a pod that calls would fit on the node without leases, and has room by now. From then on it is expected.
    pub(crate) fn note_room(
        &mut self,
        pod: PodId,
        node: NodeId,
        fits: bool,
        room: bool,
        now: Moment,
    ) {
        let patience = self.patience();
        let Some(call) = self.calls.get_mut(&pod) else { return };
        if fits {
            call.tries.entry(node).or_default();
        }
        if let Some(at) = call.tries.get_mut(&node) {
            at.has_room(fits && room, now);
            let timer = earlier(call.timer, at.due(patience));
            self.timers.set(Who::Call(pod), &mut call.timer, timer);
        }
    }

    fn patience(&self) -> Duration {
        self.settings.lease.as_ref().map_or(Duration::ZERO, |lease| lease.patience)
    }

    /// A node may have had room for long enough, or have rested.
    pub(crate) fn call_is_due(&mut self, pod: PodId, now: Moment) {
        let patience = self.patience();
        let Some(call) = self.calls.get_mut(&pod) else { return };
        let moments = |(node, at): (&NodeId, &Try)| Some((at.due(patience)?, *node));
        let (due, later): (Vec<_>, Vec<_>) =
            call.tries.iter().filter_map(moments).partition(|(at, _)| *at <= now);
        let next = later.into_iter().map(|(at, _)| at).min();
        self.timers.set(Who::Call(pod), &mut call.timer, next);
        due.into_iter().for_each(|(_, node)| self.touch_node(node));
    }

    /// A node is gone, or its number will stand for another one.
    pub(crate) fn forget_calls_on(&mut self, node: NodeId) {
        for call in self.calls.values_mut() {
            call.tries.remove(&node);
        }
    }
}

fn earlier(one: Option<Moment>, other: Option<Moment>) -> Option<Moment> {
    one.into_iter().chain(other).min()
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
        at.age(patience, second(100));
        assert_eq!((at.rests_until, at.due(patience)), (None, None), "20 s are not enough");
        at.has_room(true, second(100));
        assert_eq!(at.due(patience), Some(second(110)));
        at.age(patience, second(110));
        assert_eq!(at.rests_until, Some(second(110 + 600)));
        at.age(patience, second(710));
        assert_eq!((at.rests_until, at.rests), (None, 1));
        at.has_room(true, second(710));
        at.age(patience, second(740));
        assert_eq!(at.rests_until, Some(second(740 + 1200)));
    }
}
