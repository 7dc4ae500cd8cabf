//! kube-scheduler, which asks an extender about the pods of VMs, and the schedulers that ask nobody.

use std::time::Duration;

use scheduler_ledger::Event;

use super::message::{Happening, Message};
use super::object::{NodeId, Owner, Pod, PodId, node_name, number, pod_name};
use super::world::World;

/// kube-scheduler tries a pod again after so long.
const SCHEDULE_AGAIN: Duration = Duration::from_secs(1);

impl World {
    /// A pod has no node.
    pub(crate) fn wait_for_node(&mut self, pod: PodId) {
        if self.waiting.is_empty() {
            self.queue.push(self.now + Duration::from_millis(20), Happening::Schedule);
        }
        if !self.waiting.contains(&pod) {
            self.waiting.push(pod);
        }
    }

    /// kube-scheduler and others look for nodes for the pods that have none.
    pub(crate) fn schedule(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        for pod in waiting {
            let object = self.pods[pod as usize];
            if object.gone || object.node.is_some() || object.terminating_since.is_some() {
                continue;
            }
            if object.owner == Owner::Nobody {
                self.judge_wait(pod);
            }
            if !self.place(pod, &object) {
                self.waiting.push(pod);
            }
        }
        if !self.waiting.is_empty() {
            self.queue.push(self.now + SCHEDULE_AGAIN, Happening::Schedule);
        }
    }

    /// By kube-scheduler's own filter, then the extender's, then the score; then it is bound. Nobody asks the extender about
    /// ordinary pods.
    fn place(&mut self, pod: PodId, object: &Pod) -> bool {
        let counted = |node: NodeId| match object.owner {
            Owner::Vm(_) => self.counted_on(node),
            Owner::Nobody => self.counted_late(node),
        };
        let fits = |node: &NodeId| {
            let at = &self.nodes[*node as usize];
            self.is_ready(*node) && (counted(*node) + object.spec).fits_in(at.allocatable)
        };
        let nodes: Vec<NodeId> = (0..self.node_count()).filter(fits).collect();
        let Some(first) = nodes.first().copied() else {
            self.found_no_node(pod);
            return false;
        };
        if object.owner == Owner::Nobody {
            self.bind_ordinary(pod, first);
            return true;
        }
        let twin = self.routes.last().map_or(0, |route| route.0);
        let extender = &self.extenders[twin as usize];
        let (ledger, uid) = (&extender.ledger, pod_name(pod));
        if !extender.answers(self.now) || !ledger.knows_pod(&uid) {
            return false;
        }
        let nodes: Vec<String> = nodes.into_iter().map(node_name).collect();
        let facts = object.facts(pod);
        let names = nodes.iter().map(String::as_str);
        let Ok(placement) = ledger.filter(&facts, names.clone()) else { return false };
        let kept = names.zip(placement.short).filter(|(_, short)| short.is_none());
        let kept: Vec<&str> = kept.map(|(name, _)| name).collect();
        let scores = ledger.prioritize(&facts, kept.iter().copied());
        let best = scores.iter().zip(&kept).max_by_key(|(score, _)| **score);
        let Some((_, name)) = best else {
            self.found_no_node(pod);
            return false;
        };
        let (name, node) = ((*name).to_owned(), number(name).unwrap_or_default());
        let Ok((placed, epoch)) = ledger.may_bind(&uid, &name) else { return false };
        let life = extender.life;
        self.tell_ledger(twin, Event::Placing(placed));
        self.call(twin, epoch, Message::Bind { pod, node, life });
        true
    }

    /// A scheduler says so in the pod's status, once.
    fn found_no_node(&mut self, pod: PodId) {
        if !std::mem::replace(&mut self.pods[pod as usize].unschedulable, true) {
            self.pod_changed(pod);
        }
    }
}
