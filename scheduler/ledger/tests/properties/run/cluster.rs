//! API server, kubelet and kube-scheduler, with what goes wrong on the way to them.

use scheduler_ledger::{Amount, Event, PodFacts, PodKind, ResizeResult};

use super::{NODES, Run, index, shown, starts};
use crate::support::{Done, allocated, ordinary};

impl Run {
    pub(super) fn api(&mut self, outcome: u8) {
        if let Some(uid) = self.questions.pop() {
            self.world.look_up(&uid);
        }
        if let Some((uid, number)) = self.fences.pop() {
            match outcome {
                0 => {}
                // It was done, but nobody said so.
                1 => self.world.touch(&uid),
                _ => self.world.fenced(&uid, number),
            }
        }
        if !self.writes.is_empty() {
            let (uid, seal) = self.writes.remove(0);
            let facts = self.object(index(&uid));
            let newer = facts.visible.is_none_or(|visible| visible.place() < seal.place());
            let written = newer && outcome != 0;
            if written {
                facts.visible = Some(seal);
                self.truths[index(&uid)].ever.push(seal);
            }
            let generation = seal.generation;
            self.world.tell(Event::ApproveEnded { vm: uid, generation, written });
        }
        self.api_moves(outcome);
        if self.orders.is_empty() {
            return;
        }
        let Done::Resize(uid, number, requests) = self.orders.remove(0) else { return };
        let version = self.world.versions[&number];
        let ended = |result| Event::ResizeEnded { pod: uid.clone(), number, result };
        let Some(pod) = self.world.pods.get(&uid) else {
            self.world.tell(ended(ResizeResult::Refused));
            return;
        };
        if pod.version != version {
            self.world.look_up(&uid);
            self.world.tell(ended(ResizeResult::Raced));
            return;
        }
        match outcome {
            0 => self.world.tell(ended(ResizeResult::Refused)),
            1 => {
                // It was done, but nobody said so.
                self.set_requests(&uid, requests);
                self.world.tell(ended(ResizeResult::Unknown));
            }
            2 | 3 => {
                self.late.push((uid.clone(), version, requests));
                self.world.tell(ended(ResizeResult::Unknown));
            }
            4 => self.world.tell(ended(ResizeResult::NotDone)),
            _ => self.world.accept(&uid, number, requests),
        }
    }

    pub(crate) fn arrive_late(&mut self) {
        if self.late.is_empty() {
            return;
        }
        let (uid, version, requests) = self.late.remove(0);
        let same = self.world.pods.get(&uid).is_some_and(|pod| pod.version == version);
        if same {
            self.set_requests(&uid, requests);
        }
    }

    pub(super) fn set_requests(&mut self, uid: &str, requests: Amount) {
        let mut pod = self.world.pods[uid].clone();
        if let PodKind::Runner(runner) = &mut pod.kind
            && runner.spec != requests
        {
            (runner.spec, runner.pending) = (requests, None);
            runner.generation += 1;
            self.world.change(pod);
        }
    }

    /// Starts a pod that is bound, or acts on its newest spec.
    pub(crate) fn kubelet(&mut self, vm: usize) {
        let Some(pod) = self.pod(vm).cloned().filter(|pod| pod.node.is_some()) else { return };
        if starts(&pod) {
            if !self.has_room(&pod) {
                // Another scheduler was faster: kubelet refuses the pod.
                self.end(vm);
                return;
            }
            self.truths[vm].real = Some(self.truths[vm].boot);
        }
        self.world.kubelet(&pod.uid);
    }

    /// Whether kubelet has room for a pod that is bound to its node.
    pub(super) fn has_room(&self, pod: &PodFacts) -> bool {
        let Some(node) = pod.node.as_deref() else { return false };
        let others = self.world.pods.values();
        let others = others.filter(|other| other.uid != pod.uid && !starts(other));
        let used: Amount = others.map(|other| allocated(other, node)).sum();
        (used + shown(pod, node)).fits_in(self.world.nodes[node].allocatable)
    }

    pub(super) fn bind(&mut self, vm: usize, node: usize, outcome: u8) {
        if let Some(pod) = self.pod(vm).cloned() {
            self.bind_pod(pod, node, outcome);
        }
    }

    pub(super) fn bind_pod(&mut self, mut pod: PodFacts, node: usize, outcome: u8) {
        if pod.node.is_some() {
            return;
        }
        let Ok((placed, _)) = self.world.ledger.may_bind(&pod.uid, NODES[node]) else { return };
        self.world.tell(Event::Placing(placed));
        pod.node = Some(NODES[node].into());
        match outcome {
            0 => self.world.tell(Event::PlacingFailed(pod.uid)),
            // Nobody knows how it ended.
            1 => {}
            2 => self.world.change(pod),
            // It was bound, and only the answer says otherwise.
            3 => {
                let uid = pod.uid.clone();
                self.world.change(pod);
                self.world.tell(Event::PlacingFailed(uid));
            }
            _ => self.world.pod(pod),
        }
    }

    /// kube-scheduler counts the larger of spec and allocation.
    pub(super) fn place(&mut self, node: &str, requests: Amount) {
        let used: Amount = self.world.pods.values().map(|pod| shown(pod, node)).sum();
        let booked = if self.polite { self.booked(node) } else { Amount::ZERO };
        let room = self.world.nodes[node].allocatable.saturating_sub(booked);
        if (used + requests).fits_in(room) {
            self.others += 1;
            self.world.pod(ordinary(&format!("o-{}", self.others), node, requests));
        }
    }
}
