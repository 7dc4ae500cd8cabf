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
    /// Generation of the spec that has it, once the API server answered.
    pub(crate) accepted: Option<u64>,
}

/// The books of one pod.
#[derive(Debug, Clone)]
pub(crate) struct PodBook {
    pub(crate) facts: PodFacts,
    /// Kubelet has allocated at least this, for certain.
    backed: Amount,
    pub(crate) order: Option<Order>,
    /// An order whose end is unknown may still arrive, until then.
    maybe: Option<(Amount, Moment)>,
    pub(crate) not_before: Moment,
    pub(crate) failures: u32,
    /// Bound by us and not yet seen so; forgotten then.
    pub(crate) tentative_until: Option<Moment>,
}

impl PodBook {
    pub(crate) fn new(facts: PodFacts) -> Self {
        let backed = facts.runner().map_or(Amount::ZERO, |runner| match runner.allocated {
            Some(allocated) => allocated.min(runner.spec),
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
            tentative_until: None,
        }
    }

    /// Takes over what was seen.
    pub(crate) fn see(&mut self, facts: PodFacts) {
        if let Some(runner) = facts.runner() {
            // Until the container has started, kubelet does not say; a change meanwhile backs nothing more.
            let allocated = runner.allocated.unwrap_or(self.backed);
            let certain = allocated.min(runner.spec);
            let caught_up = self.order.is_none_or(|order| {
                order.accepted.is_some_and(|generation| runner.generation >= generation)
            });
            if caught_up {
                self.order = None;
            }
            // While kubelet has not acted on the newest spec, its word may be about an older one.
            let settled = runner.observed >= runner.generation && self.order.is_none();
            self.backed = if settled { certain } else { self.backed.min(certain) };
        }
        self.facts = facts;
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
        self.backed
    }

    /// The most that the main container may have, whatever comes of orders under way.
    pub(crate) fn may_have(&self) -> Amount {
        let Some(runner) = self.facts.runner() else { return Amount::ZERO };
        let mut most = runner.spec.max(runner.allocated.unwrap_or(Amount::ZERO));
        if let Some(order) = self.order {
            most = most.max(order.requests);
        }
        if let Some((requests, _)) = self.maybe {
            most = most.max(requests);
        }
        most
    }

    /// Notes an order before it is sent.
    pub(crate) fn ordered(&mut self, requests: Amount, number: u64) {
        self.backed = self.backed.min(requests);
        self.order = Some(Order { requests, number, accepted: None });
    }

    /// The API server has it. The pod that shows it may have been seen already.
    pub(crate) fn accepted(&mut self, number: u64, generation: u64) {
        if let Some(order) = self.order.as_mut().filter(|order| order.number == number) {
            order.accepted = Some(generation);
            self.failures = 0;
            self.see(self.facts.clone());
        }
    }

    /// The order did not go through; `unknown`: as far as is known.
    pub(crate) fn failed(&mut self, number: u64, unknown: bool, now: Moment) {
        let Some(order) = self.order.filter(|order| order.number == number) else { return };
        if unknown {
            self.maybe = Some((order.requests, now + MAYBE_FOR));
        }
        self.order = None;
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + back_off(self.failures);
    }

    /// Forgets what has become impossible with time. Says when to look again.
    pub(crate) fn age(&mut self, now: Moment) -> Option<Moment> {
        if self.maybe.is_some_and(|(_, until)| until <= now) {
            self.maybe = None;
        }
        let maybe = self.maybe.map(|(_, until)| until);
        let retry = Some(self.not_before).filter(|at| *at > now);
        [maybe, retry, self.tentative_until].into_iter().flatten().min()
    }
}

/// A request to the API server that was given up may still arrive for so long.
const MAYBE_FOR: std::time::Duration = std::time::Duration::from_secs(5);

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
            kind: PodKind::Runner(RunnerFacts {
                vm_uid: "v".into(),
                spec: amount(spec),
                allocated: Some(amount(allocated)),
                beside: Amount::ZERO,
                init_peak: Amount::ZERO,
                generation,
                observed,
                pending: None,
                overhead: None,
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
    fn an_order_of_unknown_end_counts_for_a_while() {
        let second = std::time::Duration::from_secs(1);
        let mut pod = PodBook::new(facts(100, 100, 1, 1));
        pod.ordered(amount(300), 1);
        pod.failed(1, true, Moment(second));
        assert_eq!(pod.may_have(), amount(300));
        assert!(pod.age(Moment(second)).is_some());
        assert_eq!(pod.age(Moment(10 * second)), None);
        assert_eq!(pod.may_have(), amount(100));
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
