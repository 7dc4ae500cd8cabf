//! The API server and the kubelets: objects change, whoever watches is told, pods are admitted, resized and ended.

use std::time::Duration;

use guest_units::Size;
use scheduler_ledger::{Amount, Pending, ResizeResult};

use super::bug::Bug;
use super::message::{Happening, Link, Message, Watcher};
use super::object::{NodeId, Owner, Pod, PodId, VmId, cost};
use super::runner::Runner;
use super::world::World;

/// Kubelet needs this for a resize; it looks at a pod once in a while, and at once when it changes.
const KUBELET: Duration = Duration::from_millis(45);
/// From a bound pod to a VM that serves.
const BOOT: Duration = Duration::from_secs(3);
/// From the end of a pod to its object's.
const FAREWELL: Duration = Duration::from_millis(400);
/// A scheduler that never asks us sees changes after so long.
const OTHERS_LAG: Duration = Duration::from_millis(60);

impl World {
    /// A VM has changed.
    pub(crate) fn vm_changed(&mut self, vm: VmId) {
        self.version += 1;
        let machine = &mut self.vms[vm as usize];
        machine.object.version = self.version;
        let (object, before) = (machine.object, machine.agent_node());
        let mut watchers = vec![Watcher::Operator];
        watchers.extend((0..self.twin_count()).map(Watcher::Extender));
        watchers.extend(object.node.map(Watcher::Agent));
        watchers.extend(before.filter(|node| Some(*node) != object.node).map(Watcher::Agent));
        for watcher in watchers {
            let life = self.watch_life(watcher);
            let (object, since) = (Box::new(object), self.now);
            self.show(watcher, Message::VmSeen { watcher, life, vm, object, since });
        }
        self.judge_vm(vm);
    }

    /// A pod has changed.
    pub(crate) fn pod_changed(&mut self, pod: PodId) {
        self.version += 1;
        self.pods[pod as usize].version = self.version;
        let object = self.pods[pod as usize];
        let operator = matches!(object.owner, Owner::Vm(_)).then_some(Watcher::Operator);
        let extenders = (0..self.twin_count()).map(Watcher::Extender);
        for watcher in operator.into_iter().chain(extenders) {
            let life = self.watch_life(watcher);
            let (object, since) = (Box::new(object), self.now);
            self.show(watcher, Message::PodSeen { watcher, life, pod, object, since });
        }
        if let Some(node) = object.node {
            self.judge_node(node);
        }
        self.judge_backing(pod);
    }

    /// Whoever watches and starts anew is told everything.
    pub(crate) fn relist(&mut self, watcher: Watcher) {
        let all: Vec<VmId> = (0..self.vm_count()).collect();
        match watcher {
            Watcher::Extender(twin) => self.extender_lists(twin),
            Watcher::Operator => {
                if !self.operator.up {
                    return;
                }
                for vm in all {
                    let object = self.vms[vm as usize].object;
                    self.operator_sees(vm, &object);
                    self.operator_looks_for_pod(vm);
                }
            }
            Watcher::Agent(node) => {
                for vm in all {
                    let object = self.vms[vm as usize].object;
                    if object.node == Some(node) || self.vms[vm as usize].agent_node() == Some(node)
                    {
                        self.agent_sees(node, vm, &object);
                    }
                }
            }
        }
    }

    /// A request to the API server.
    pub(crate) fn api_hears(&mut self, link: Link, message: Message) {
        match message {
            Message::Patch { vm, life, pod, generation, from, size, seal } => {
                let answer = self.patched((vm, life, pod), generation, (from, size), seal);
                self.send(link, answer);
            }
            Message::WriteStatus { vm, epoch, over, status } => {
                // What a leader before sent, or what was given up, comes late: it must not undo what came after.
                let machine = &mut self.vms[vm as usize];
                let raced = machine.status_version != over || self.faults.conflict();
                if !raced {
                    machine.status_version += 1;
                    machine.object.take(&status);
                    // What was overtaken counts no more.
                    machine.seals.retain(|seal| Some(seal.place()) >= machine.object.obeyed);
                    machine.status = status.clone();
                    self.vm_changed(vm);
                }
                let version = Some(self.vms[vm as usize].status_version);
                let status = (!raced).then_some(status);
                self.send(link, Message::StatusWritten { vm, epoch, version, status });
            }
            Message::CreatePod { vm, pod, epoch } => {
                let done = !self.faults.conflict();
                let object = &mut self.pods[pod as usize];
                if done && !object.created && !object.gone {
                    object.created = true;
                    self.pod_changed(pod);
                    self.wait_for_node(pod);
                }
                self.send(link, Message::PodCreated { vm, epoch, done });
            }
            Message::DeletePod { vm, pod, epoch } => {
                self.judge_delete(vm, pod);
                self.delete_pod(pod);
                self.send(link, Message::PodDeleted { vm, pod, epoch, done: true });
            }
            Message::Resize { pod, life, version, number, requests } => {
                let result = self.resize_pod(pod, version, requests);
                self.send(link, Message::Resized { pod, life, number, result });
            }
            Message::Approve { vm, life, seal } => {
                let object = &mut self.vms[vm as usize].object;
                let newer = object.approved.is_none_or(|old| old.place() < seal.place())
                    || self.bug == Some(Bug::ApiTakesLateWrites);
                let written = newer && !self.faults.conflict();
                if written {
                    object.approved = Some(seal);
                    self.vm_changed(vm);
                }
                let generation = seal.generation;
                self.send(link, Message::Approved { vm, life, generation, written });
            }
            Message::Fence { pod, life, number } => {
                let there = |pod: &&Pod| !pod.gone && pod.created;
                let reads = self.bug == Some(Bug::FencesOnlyRead);
                if self.pods.get(pod as usize).filter(there).is_some() && !reads {
                    self.pod_changed(pod);
                }
                let found = self.pods.get(pod as usize).filter(there).copied().map(Box::new);
                self.send(link, Message::Fenced { pod, life, number, found });
            }
            Message::LookUp { pod, life } => {
                let found = self.pods.get(pod as usize).filter(|pod| !pod.gone && pod.created);
                let found = found.copied().map(Box::new);
                self.send(link, Message::LookedUp { pod, life, found });
            }
            Message::Bind { pod, node, life } => {
                let object = &mut self.pods[pod as usize];
                let done = !object.gone
                    && object.node.is_none()
                    && object.terminating_since.is_none()
                    && !self.faults.conflict();
                if done {
                    (object.node, object.unschedulable) = (Some(node), false);
                    self.nodes[node as usize].pods.push(pod);
                    self.pod_changed(pod);
                    self.queue.push(self.now + KUBELET, Happening::Kubelet(pod));
                }
                self.send(link, Message::Bound { pod, life, done });
            }
            Message::LeaseRead { .. } | Message::LeaseWrite { .. } => {
                self.lease_at_api(link, &message);
            }
            _ => {}
        }
    }

    /// A JSON patch that tests what it replaces.
    fn patched(
        &mut self,
        (vm, life, pod): (VmId, u32, PodId),
        generation: u64,
        (from, size): (Size, Size),
        seal: Option<scheduler_ledger::Seal>,
    ) -> Message {
        let object = &mut self.vms[vm as usize].object;
        let stale =
            seal.is_some_and(|seal| object.approved.is_some_and(|old| old.place() > seal.place()));
        let fits = object.pod == Some(pod) && object.spec == from && !stale;
        if !fits || self.faults.conflict() {
            let seen = Some(Box::new(*object));
            return Message::PatchFailed { vm, life, generation, raced: true, seen };
        }
        object.spec = size;
        if seal.is_some() {
            object.approved = seal;
        }
        self.vm_changed(vm);
        let seen = Box::new(self.vms[vm as usize].object);
        Message::Patched { vm, life, generation, seen }
    }

    fn resize_pod(&mut self, pod: PodId, version: u64, to: Amount) -> ResizeResult {
        let now = self.now;
        let Some(object) = self.pods.get_mut(pod as usize).filter(|pod| !pod.gone) else {
            return ResizeResult::Refused;
        };
        let checks = self.bug != Some(Bug::ApiTakesLateWrites);
        if checks && version != 0 && object.version != version {
            return ResizeResult::Raced;
        }
        if object.spec != to {
            (object.spec, object.pending, object.spec_changed) = (to, None, now);
            object.generation += 1;
            self.pod_changed(pod);
            self.kubelet_looks_at(pod);
        }
        ResizeResult::Accepted { generation: self.pods[pod as usize].generation }
    }

    fn kubelet_looks_at(&mut self, pod: PodId) {
        let late = self.draw_span(KUBELET);
        self.queue.push(self.now + late, Happening::Kubelet(pod));
    }

    /// Deletion is asked for.
    pub(crate) fn delete_pod(&mut self, pod: PodId) {
        let now = self.now;
        let object = &mut self.pods[pod as usize];
        if object.gone || object.terminating_since.is_some() {
            return;
        }
        object.terminating_since = Some(now);
        if object.node.is_none() || object.failed {
            self.forget_pod(pod);
            return;
        }
        self.pod_changed(pod);
        self.queue.push(now + FAREWELL, Happening::Kubelet(pod));
    }

    /// The object is gone, and all that ran in it.
    pub(crate) fn forget_pod(&mut self, pod: PodId) {
        let object = &mut self.pods[pod as usize];
        if object.gone {
            return;
        }
        object.gone = true;
        let node = object.node;
        self.stop_pod(pod);
        self.pod_changed(pod);
        if let Some(node) = node {
            self.nodes[node as usize].pods.retain(|other| *other != pod);
            self.room_on(node);
        }
    }

    /// QEMU ends.
    pub(crate) fn stop_pod(&mut self, pod: PodId) {
        let Owner::Vm(vm) = self.pods[pod as usize].owner else { return };
        if self.vms[vm as usize].runner.as_ref().is_some_and(|runner| runner.pod == pod) {
            self.judge_end(vm, pod);
            self.vms[vm as usize].runner = None;
            self.disconnect(vm);
        }
    }

    /// A pod ends by itself.
    pub(crate) fn pod_fails(&mut self, pod: PodId) {
        let object = &mut self.pods[pod as usize];
        if object.failed || object.gone {
            return;
        }
        (object.failed, object.ready) = (true, false);
        let node = object.node;
        self.stop_pod(pod);
        self.pod_changed(pod);
        if let Some(node) = node {
            self.room_on(node);
        }
    }

    /// Room has come free: kubelet looks again at what it deferred.
    fn room_on(&mut self, node: NodeId) {
        let deferred: Vec<PodId> = self.nodes[node as usize]
            .pods
            .iter()
            .copied()
            .filter(|pod| self.pods[*pod as usize].pending.is_some())
            .collect();
        for pod in deferred {
            self.kubelet_looks_at(pod);
        }
    }

    /// Kubelet looks at a pod of its node.
    pub(crate) fn kubelet(&mut self, pod: PodId) {
        let object = self.pods[pod as usize];
        let Some(node) = object.node.filter(|node| self.is_ready(*node)) else { return };
        if object.gone {
            return;
        }
        if object.terminating_since.is_some() {
            self.forget_pod(pod);
        } else if object.failed {
            // It has ended, and nobody wants it gone yet.
        } else if object.allocated.is_none() {
            self.admit(pod, node, &object);
        } else if !object.ready && matches!(object.owner, Owner::Vm(_)) {
            self.boot(pod, node, &object);
        } else if object.observed != object.generation || object.pending.is_some() {
            self.allocate(pod, node, &object);
        }
    }

    fn held_on(&self, node: NodeId, without: PodId) -> Amount {
        let pods = self.nodes[node as usize].pods.iter();
        pods.filter(|pod| **pod != without).map(|pod| self.pods[*pod as usize].held()).sum()
    }

    /// What kube-scheduler counts on a node.
    pub(crate) fn counted_on(&self, node: NodeId) -> Amount {
        let pods = self.nodes[node as usize].pods.iter();
        pods.map(|pod| self.pods[*pod as usize].counted()).sum()
    }

    /// The same as another scheduler sees it: it has not heard of the last changes.
    pub(crate) fn counted_late(&self, node: NodeId) -> Amount {
        let late = |pod: &PodId| {
            let pod = &self.pods[*pod as usize];
            let fresh = pod.spec_changed + OTHERS_LAG > self.now && pod.allocated.is_some();
            if fresh { pod.held() } else { pod.counted() }
        };
        self.nodes[node as usize].pods.iter().map(late).sum()
    }

    fn admit(&mut self, pod: PodId, node: NodeId, object: &Pod) {
        let room = self.nodes[node as usize].allocatable;
        if !(self.held_on(node, pod) + object.spec).fits_in(room) {
            self.pod_fails(pod);
            return;
        }
        let object = &mut self.pods[pod as usize];
        object.allocated = Some(object.spec);
        object.observed = object.generation;
        let ready = object.owner == Owner::Nobody;
        object.ready = ready;
        self.pod_changed(pod);
        if !ready {
            self.queue.push(self.now + BOOT, Happening::Kubelet(pod));
        }
    }

    /// The VM in the pod serves.
    fn boot(&mut self, pod: PodId, node: NodeId, object: &Pod) {
        let Owner::Vm(vm) = object.owner else { return };
        self.judge_boot(vm, pod);
        self.leave_behind(vm, node);
        let now = self.now;
        let size = self.vms[vm as usize].object.limits.min;
        debug_assert!(cost(size).fits_in(object.spec.max(object.held())));
        self.vms[vm as usize].runner = Some(Box::new(Runner::new(pod, size)));
        let kills = self.vms[vm as usize].guest.boot(size, now);
        self.booted(vm, size, kills);
        self.pods[pod as usize].ready = true;
        self.pod_changed(pod);
        self.look_soon(vm);
    }

    /// A VM that has been started anew: who serves it where nobody hears of it serves it no more.
    fn leave_behind(&mut self, vm: VmId, node: NodeId) {
        if self.vms[vm as usize].runner.is_some() {
            self.disconnect(vm);
            let agent = &mut self.vms[vm as usize].agent;
            *agent = agent.take().filter(|agent| agent.node == node);
        }
    }

    /// Kubelet acts on the newest spec.
    fn allocate(&mut self, pod: PodId, node: NodeId, object: &Pod) {
        let room = self.nodes[node as usize].allocatable;
        let total = self.held_on(node, pod) + object.spec;
        let before = object.allocated.unwrap_or_default();
        let given = total.fits_in(room) || object.spec.fits_in(before);
        let object = &mut self.pods[pod as usize];
        let pending = (!given).then_some(Pending::Deferred);
        if object.observed == object.generation && object.pending == pending {
            return;
        }
        (object.observed, object.pending) = (object.generation, pending);
        if given {
            object.allocated = Some(object.spec);
        }
        self.pod_changed(pod);
        if given {
            self.room_on(node);
        }
    }

    /// What runs on a node that is lost is lost; the node's pods are asked to go after a while.
    pub(crate) fn node_dies(&mut self, node: NodeId) {
        self.nodes[node as usize].up = false;
        self.node_changed(node);
        self.agent_dies(node);
        for pod in self.nodes[node as usize].pods.clone() {
            self.may_end(pod);
            self.stop_pod(pod);
        }
    }

    /// Its kubelet is heard of.
    pub(crate) fn is_ready(&self, node: NodeId) -> bool {
        self.nodes[node as usize].up && !self.faults.is_cut_off(node)
    }

    /// A node is no longer cut off: its kubelet sees to what has become of its pods meanwhile.
    pub(crate) fn node_is_back(&mut self, node: NodeId) {
        self.node_changed(node);
        for pod in self.nodes[node as usize].pods.clone() {
            self.kubelet_looks_at(pod);
        }
    }

    /// Nobody has heard of the node for too long.
    pub(crate) fn evict(&mut self, node: NodeId) {
        if self.is_ready(node) {
            return;
        }
        let now = self.now;
        for pod in self.nodes[node as usize].pods.clone() {
            if self.pods[pod as usize].terminating_since.is_none() {
                self.may_end(pod);
                self.pods[pod as usize].terminating_since = Some(now);
                self.pod_changed(pod);
            }
        }
    }

    /// The machine boots: nothing of what ran runs.
    pub(crate) fn node_starts(&mut self, node: NodeId) {
        self.nodes[node as usize].up = true;
        self.node_changed(node);
        for pod in self.nodes[node as usize].pods.clone() {
            if self.pods[pod as usize].terminating_since.is_some() {
                self.forget_pod(pod);
            } else if matches!(self.pods[pod as usize].owner, Owner::Vm(_)) {
                self.pod_fails(pod);
            }
        }
        self.agent_starts(node);
    }
}
