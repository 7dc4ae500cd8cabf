//! What kubelet has really given to one pod.
//!
//! Between the order of a resize and kubelet's word, several amounts may be true. For the node, the largest of them counts;
//! for a promise, the smallest.

use guest_units::Moment;
use scheduler_protocol::ObjectRef;

use crate::amount::Amount;
use crate::facts::{PodFacts, PodKind, RunnerFacts};

/// An order to resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) requests: Amount,
    pub(crate) number: u64,
    /// Version of the pod that it changes: no other is changed.
    version: u64,
    /// Generation of the spec that has it, once the API server answered.
    pub(crate) accepted: Option<u64>,
}

impl Order {
    fn awaits(&self, number: u64) -> bool {
        self.number == number && self.accepted.is_none()
    }
}

/// Orders whose end is unknown: they may still arrive, so nothing more is backed until the pod has another version than theirs.
#[derive(Debug, Clone, Copy)]
struct Maybe {
    most: Amount,
    version: u64,
}

/// A change of the pod that makes it another version, and no more: whatever was ordered before is in it, or comes to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fence {
    /// The first one that has no answer yet: that to any since will do.
    pub(crate) first: u64,
    pub(crate) tries: u32,
    /// Ordered again then.
    pub(crate) again: Moment,
}

/// The books of one pod.
#[derive(Debug, Clone)]
pub(crate) struct PodBook {
    pub(crate) facts: PodFacts,
    /// Kubelet has allocated at least this, for certain.
    backed: Amount,
    pub(crate) order: Option<Order>,
    maybe: Option<Maybe>,
    pub(crate) not_before: Moment,
    pub(crate) failures: u32,
    /// An order was accepted, and the pod has other requests all the same: somebody changes them, as an admission webhook may.
    not_applied: bool,
    /// No lease is ordered before: kubelet or the API server has refused one.
    pub(crate) no_lease_before: Moment,
    lease_refusals: u32,
    /// Orders, one after the other, that met another version.
    races: u32,
    /// Bound by us or looked up, and not yet seen so by the watch: the API server is asked then.
    pub(crate) unconfirmed: Option<Moment>,
    /// The API server is being asked whether it is bound.
    pub(crate) looking: bool,
    /// Another leader may have ordered something for it that this ledger has not heard of: it backs nothing before it is fenced.
    pub(crate) doubted: bool,
    pub(crate) fence: Option<Fence>,
}

impl PodBook {
    pub(crate) fn new(facts: PodFacts) -> Self {
        let backed = facts.runner().map_or(Amount::ZERO, |runner| match runner.allocated {
            Some(allocated) if runner.observed >= runner.generation => allocated.min(runner.spec),
            // Kubelet may have done meanwhile what was ordered in between.
            Some(_) => Amount::ZERO,
            // Kubelet admits a pod with the requests that it was created with, or not at all.
            None if runner.generation <= 1 => runner.spec,
            // They were changed since, and kubelet has not said what it made of that.
            None => Amount::ZERO,
        });
        Self {
            facts,
            backed,
            order: None,
            maybe: None,
            not_before: Moment::default(),
            failures: 0,
            not_applied: false,
            no_lease_before: Moment::default(),
            lease_refusals: 0,
            races: 0,
            unconfirmed: None,
            looking: false,
            doubted: false,
            fence: None,
        }
    }

    /// Takes over what was seen.
    pub(crate) fn see(&mut self, mut facts: PodFacts) {
        // The price stays that of the pod's beginning: its requests were found room for at that price.
        let price = self.facts.runner().map(|runner| runner.price);
        // Another version of the pod is there: an order for the old one is either in it, or comes to nothing.
        if self.maybe.is_some_and(|maybe| maybe.version != 0 && facts.version > maybe.version) {
            self.maybe = None;
        }
        if let PodKind::Runner(runner) = &mut facts.kind {
            runner.price = price.unwrap_or(runner.price);
            // Until the container has started, kubelet does not say; a change meanwhile backs nothing more.
            let allocated = runner.allocated.unwrap_or(self.backed);
            let certain = allocated.min(runner.spec);
            let caught_up = self.order.is_none_or(|order| {
                order.accepted.is_some_and(|generation| runner.generation >= generation)
            });
            if let Some(order) = self.order.take_if(|_| caught_up) {
                let applied = order.requests == runner.spec;
                self.failures = if applied { 0 } else { self.failures.saturating_add(1) };
                self.not_applied = !applied;
            }
            // While kubelet has not acted on the newest spec, its word may be about an older one.
            let settled = runner.observed >= runner.generation
                && self.order.is_none()
                && self.maybe.is_none();
            self.backed = if settled { certain } else { self.backed.min(certain) };
        }
        self.facts = facts;
        if !self.is_uncertain(true) {
            // Whose leases give way is decided by who may be ordered.
            self.fence = None;
        }
    }

    /// Whether it takes anything on a node.
    pub(crate) fn counts_on(&self) -> Option<&str> {
        self.facts.node.as_deref().filter(|_| !self.facts.finished)
    }

    pub(crate) fn reference(&self) -> ObjectRef {
        ObjectRef {
            namespace: self.facts.namespace.clone(),
            name: self.facts.name.clone(),
            uid: self.facts.uid.clone(),
        }
    }

    /// Kubelet has allocated at least this, for certain.
    pub(crate) fn backed(&self) -> Amount {
        if self.doubted { Amount::ZERO } else { self.backed }
    }

    /// Another led until now, or may have: nothing is known for certain, and what was ordered may come to anything.
    pub(crate) fn doubt(&mut self) {
        self.doubted = self.facts.runner().is_some();
        self.fence = None;
        if let Some(order) = self.order.take() {
            self.may_arrive(order);
        }
    }

    /// Whether it must be fenced for what it backs to be known: for a wish, or to know what came of an order.
    pub(crate) fn is_uncertain(&self, wanted: bool) -> bool {
        (self.doubted && wanted) || self.maybe.is_some()
    }

    /// It is another version by now, and known as it is.
    pub(crate) fn fenced(&mut self) {
        (self.doubted, self.maybe, self.fence) = (false, None, None);
        if self.facts.runner().is_some_and(|runner| runner.observed < runner.generation) {
            // What was ordered in between, and kubelet may have done meanwhile, was not seen.
            self.backed = Amount::ZERO;
        }
        self.see(self.facts.clone());
    }

    fn may_arrive(&mut self, order: Order) {
        if order.version != 0 && self.facts.version > order.version {
            // It is in what is known, or came to nothing.
            return self.see(self.facts.clone());
        }
        let other = self.maybe.map_or(Amount::ZERO, |maybe| maybe.most);
        self.maybe = Some(Maybe { most: order.requests.max(other), version: order.version });
    }

    /// All that a wish for the VM depends on.
    pub(crate) fn state(&self) -> (Amount, Amount, Option<Order>) {
        (self.backed(), self.may_have(), self.order)
    }

    /// The most that the main container may have, whatever comes of orders under way.
    pub(crate) fn may_have(&self) -> Amount {
        let Some(runner) = self.facts.runner() else { return Amount::ZERO };
        let mut most = runner.counted();
        if let Some(order) = self.order {
            most = most.max(order.requests);
        }
        if let Some(maybe) = self.maybe {
            most = most.max(maybe.most);
        }
        most
    }

    /// What the main container will request once all orders have ended.
    pub(crate) fn going(&self) -> Amount {
        let spec = self.facts.runner().map_or(Amount::ZERO, |runner| runner.spec);
        self.order.map_or(spec, |order| order.requests)
    }

    /// Whether kubelet has acted on the newest spec, and given what it asks for.
    pub(crate) fn settled(&self) -> bool {
        self.facts.runner().is_some_and(|runner| {
            runner.observed >= runner.generation && runner.allocated == Some(runner.spec)
        })
    }

    /// Whether nothing stands against an order now.
    pub(crate) fn may_be_ordered(&self, now: Moment) -> bool {
        self.order.is_none()
            && self.fence.is_none()
            && self.not_before <= now
            && self.unconfirmed.is_none()
    }

    /// What was accepted and not done is not ordered again at once. Says whether it was.
    pub(crate) fn pause_after_nothing(&mut self, now: Moment) -> bool {
        let pause = std::mem::take(&mut self.not_applied);
        if pause {
            self.not_before = self.not_before.max(now + back_off(self.failures));
        }
        pause
    }

    /// A lease was refused: the next one is tried after a while, later each time.
    pub(crate) fn lease_refused(&mut self, now: Moment) {
        let again = now < self.no_lease_before + LEASE_AGAIN_LONGEST;
        self.lease_refusals = if again { self.lease_refusals.saturating_add(1) } else { 1 };
        let pause = LEASE_AGAIN.saturating_mul(1 << self.lease_refusals.min(7));
        self.no_lease_before = now + pause.min(LEASE_AGAIN_LONGEST);
    }

    /// Notes an order before it is sent.
    pub(crate) fn ordered(&mut self, requests: Amount, number: u64) {
        self.backed = self.backed.min(requests);
        self.order = Some(Order { requests, number, version: self.facts.version, accepted: None });
    }

    /// The API server has it. The pod that shows it may have been seen already.
    pub(crate) fn accepted(&mut self, number: u64, generation: u64) {
        if let Some(order) = self.order.as_mut().filter(|order| order.awaits(number)) {
            order.accepted = Some(generation);
            self.races = 0;
            // The order changed the version that is known, and no other.
            self.doubted = false;
            self.see(self.facts.clone());
        }
    }

    /// The order did not go through; `unknown`: as far as is known.
    pub(crate) fn failed(&mut self, number: u64, unknown: bool, now: Moment) {
        let Some(order) = self.take_unanswered(number) else { return };
        if unknown {
            self.may_arrive(order);
        } else {
            // What it would have taken is still there.
            self.see(self.facts.clone());
        }
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + back_off(self.failures);
    }

    /// The order was not sent, or nothing was done: it may be tried again.
    pub(crate) fn not_done(&mut self, number: u64, again: Moment) {
        if self.take_unanswered(number).is_some() {
            self.not_before = again;
            self.see(self.facts.clone());
        }
    }

    /// The order met another version of the pod. Whose change that is shows only in that version: if the order came twice, its own.
    /// It may also be no such conflict: API servers say the same of a quota that many change at once, and admission webhooks as they like.
    pub(crate) fn raced(&mut self, number: u64, now: Moment) {
        if let Some(order) = self.take_unanswered(number) {
            self.not_before = now + TRY_AGAIN * (1 << self.races.min(8));
            self.races = self.races.saturating_add(1);
            self.may_arrive(order);
        }
    }

    /// The order that an answer is about. An order has one answer: none that comes after it counts.
    pub(crate) fn unanswered(&self, number: u64) -> Option<Order> {
        self.order.filter(|order| order.awaits(number))
    }

    fn take_unanswered(&mut self, number: u64) -> Option<Order> {
        self.order.take_if(|order| order.awaits(number))
    }

    /// When to look again.
    pub(crate) fn timer(&self, now: Moment) -> Option<Moment> {
        let retry = Some(self.not_before).filter(|at| *at > now);
        let lease = Some(self.no_lease_before).filter(|at| *at > now);
        let fence = self.fence.map(|fence| fence.again);
        [retry, lease, fence, self.unconfirmed].into_iter().flatten().min()
    }
}

/// Between two attempts at a lease that was refused, to begin with; doubled each time.
const LEASE_AGAIN: std::time::Duration = std::time::Duration::from_secs(5);
/// The longest time between them.
const LEASE_AGAIN_LONGEST: std::time::Duration = std::time::Duration::from_secs(600);
/// Between two attempts at an order that met another version of the pod, to begin with; doubled each time, up to 5 s: a growth may wait behind a lease that meets it.
const TRY_AGAIN: std::time::Duration = std::time::Duration::from_millis(20);
/// Between two attempts without the lease: meanwhile it is renewed, or known to be lost.
pub(crate) const TRY_RENEWED: std::time::Duration = std::time::Duration::from_secs(1);

/// 0.5 s, doubled with each failure, at most 30 s.
pub(crate) fn back_off(failures: u32) -> std::time::Duration {
    std::time::Duration::from_millis(
        (500_u64 << failures.clamp(1, 7).saturating_sub(1)).min(30_000),
    )
}

impl PodFacts {
    /// The part that only VMs' pods have.
    #[must_use]
    pub fn runner(&self) -> Option<&RunnerFacts> {
        match &self.kind {
            PodKind::Runner(runner) => Some(runner),
            PodKind::Ordinary { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(cpu_millis: u64) -> Amount {
        Amount { cpu_millis, memory_bytes: 0 }
    }

    fn facts(spec: u64, allocated: u64, generation: u64, observed: u64) -> PodFacts {
        PodFacts {
            uid: "p".into(),
            namespace: "d".into(),
            name: "p".into(),
            node: Some("n".into()),
            finished: false,
            unplaced: None,
            version: generation,
            kind: PodKind::Runner(RunnerFacts {
                vm_uid: "v".into(),
                spec: amount(spec),
                allocated: Some(amount(allocated)),
                beside: Amount::ZERO,
                init_peak: Amount::ZERO,
                generation,
                observed,
                pending: None,
                price: crate::amount::Price::default(),
                created: 0,
            }),
        }
    }

    #[test]
    fn growth_is_backed_only_when_kubelet_has_acted_on_it() {
        let mut pod = PodBook::new(facts(100, 100, 1, 1));
        pod.ordered(amount(300), 1);
        assert_eq!((pod.backed(), pod.may_have()), (amount(100), amount(300)));
        pod.accepted(1, 2);
        pod.see(facts(300, 100, 2, 1));
        assert_eq!((pod.backed(), pod.may_have()), (amount(100), amount(300)));
        pod.see(facts(300, 300, 2, 2));
        assert_eq!((pod.backed(), pod.may_have()), (amount(300), amount(300)));
    }

    #[test]
    fn an_allocation_from_before_a_shrink_backs_nothing() {
        let mut pod = PodBook::new(facts(300, 300, 1, 1));
        pod.ordered(amount(100), 1);
        assert_eq!((pod.backed(), pod.may_have()), (amount(100), amount(300)));
        pod.accepted(1, 2);
        pod.see(facts(100, 300, 2, 1));
        pod.ordered(amount(300), 2);
        pod.accepted(2, 3);
        // Kubelet's word is still that of the first generation.
        pod.see(facts(300, 300, 3, 1));
        assert_eq!(pod.backed(), amount(100));
        pod.see(facts(300, 100, 3, 2));
        assert_eq!(pod.backed(), amount(100));
    }

    #[test]
    fn before_the_start_only_the_first_requests_are_backed() {
        let silent = |spec, generation| {
            let mut facts = facts(spec, 0, generation, generation);
            let PodKind::Runner(runner) = &mut facts.kind else { panic!("not a runner") };
            runner.allocated = None;
            facts
        };
        let mut pod = PodBook::new(silent(100, 1));
        assert_eq!(pod.backed(), amount(100));
        pod.ordered(amount(300), 1);
        pod.accepted(1, 2);
        pod.see(silent(300, 2));
        assert_eq!(
            pod.backed(),
            amount(100),
            "kubelet may have admitted the pod before the change"
        );
        pod.see(facts(300, 300, 2, 2));
        assert_eq!(pod.backed(), amount(300));
        assert_eq!(PodBook::new(silent(300, 2)).backed(), amount(0));
    }

    #[test]
    fn an_order_of_unknown_end_counts_until_the_pod_is_fenced() {
        let second = std::time::Duration::from_secs(1);
        let mut pod = PodBook::new(facts(100, 100, 1, 1));
        pod.ordered(amount(300), 1);
        pod.failed(1, true, Moment(second));
        assert_eq!(pod.may_have(), amount(300));
        assert!(pod.is_uncertain(false));
        pod.fenced();
        assert_eq!(pod.may_have(), amount(100));
    }

    #[test]
    fn a_shrink_that_may_still_arrive_backs_nothing_more() {
        let second = std::time::Duration::from_secs(1);
        let mut pod = PodBook::new(facts(300, 300, 1, 1));
        pod.ordered(amount(100), 1);
        pod.failed(1, true, Moment(second));
        pod.see(facts(300, 300, 1, 1));
        assert_eq!((pod.backed(), pod.may_have()), (amount(100), amount(300)));
        pod.fenced();
        assert_eq!(pod.backed(), amount(300), "it cannot arrive any more");
        pod.ordered(amount(100), 2);
        pod.failed(2, true, Moment(10 * second));
        let mut touched = facts(300, 300, 1, 1);
        touched.version = 2;
        pod.see(touched);
        assert_eq!(pod.backed(), amount(300), "it was for the version before");
    }

    #[test]
    fn a_shrink_that_was_refused_takes_nothing() {
        let mut pod = PodBook::new(facts(300, 300, 1, 1));
        pod.ordered(amount(100), 1);
        pod.failed(1, false, Moment::default());
        assert_eq!((pod.backed(), pod.may_have()), (amount(300), amount(300)));
    }

    #[test]
    fn an_order_that_met_another_version_is_tried_again_at_once() {
        let mut pod = PodBook::new(facts(300, 300, 1, 1));
        pod.ordered(amount(100), 1);
        pod.raced(1, Moment::default());
        assert_eq!(
            (pod.backed(), pod.may_have()),
            (amount(100), amount(300)),
            "it may have come twice"
        );
        let mut touched = facts(300, 300, 1, 1);
        touched.version = 2;
        pod.see(touched);
        assert_eq!((pod.backed(), pod.order, pod.failures), (amount(300), None, 0));
        assert!(pod.not_before < Moment(std::time::Duration::from_millis(100)));
    }

    #[test]
    fn what_conflicts_again_and_again_is_tried_ever_more_seldom() {
        let mut pod = PodBook::new(facts(300, 300, 1, 1));
        let mut now = Moment::default();
        let mut pauses = Vec::new();
        for number in 1..=12 {
            pod.ordered(amount(100), number);
            pod.raced(number, now);
            pod.fenced();
            pauses.push(pod.not_before.since(now).as_millis());
            now = pod.not_before;
        }
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 5120, 5120, 5120]);
        pod.ordered(amount(100), 13);
        pod.accepted(13, 2);
        pod.see(facts(100, 100, 2, 2));
        pod.ordered(amount(300), 14);
        pod.raced(14, now);
        assert_eq!(pod.not_before.since(now).as_millis(), 20);
    }

    #[test]
    fn an_order_has_one_answer() {
        let mut pod = PodBook::new(facts(300, 300, 1, 1));
        pod.ordered(amount(100), 1);
        pod.accepted(1, 2);
        let later = Moment::default();
        pod.raced(1, later);
        pod.failed(1, false, later);
        pod.not_done(1, later);
        assert_eq!((pod.backed(), pod.may_have()), (amount(100), amount(300)));
    }

    #[test]
    fn the_price_is_that_of_the_beginning() {
        let mut pod = PodBook::new(facts(300, 300, 1, 1));
        let mut dearer = facts(300, 300, 1, 1);
        let PodKind::Runner(runner) = &mut dearer.kind else { panic!("not a runner") };
        runner.price.cpu_overcommit_thousandths = 100;
        pod.see(dearer);
        assert_eq!(pod.facts.runner().map(|it| it.price.cpu_overcommit_thousandths), Some(1000));
    }

    #[test]
    fn the_watch_may_be_faster_than_the_answer() {
        let mut pod = PodBook::new(facts(100, 100, 1, 1));
        pod.ordered(amount(300), 1);
        pod.see(facts(300, 300, 2, 2));
        assert_eq!(pod.backed(), amount(100), "whose generation this is, is not known yet");
        pod.accepted(1, 2);
        assert_eq!(pod.backed(), amount(300));
        pod.accepted(1, 2);
        assert_eq!(pod.order, None);
    }
}
