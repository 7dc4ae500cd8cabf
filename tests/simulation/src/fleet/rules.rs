//! The rules that always hold, checked after every event against what is really true in this world.
//!
//! | rule | what is checked, and when |
//! |---|---|
//! | 1 | a VM, and whatever it may still become by any approval that counts or any order under way, costs no more than kubelet has allocated to its pod; all pods of a node fit. After each change of a size, pod or approval; at rest the scheduler's books are what they are made of |
//! | 2 | no step takes what the guest uses; the agent writes no shrink that the guest did not agree to; no kill by a shrink |
//! | 3 | the approvals of a VM are numbered upwards, across restarts, and no number has two sizes |
//! | 4 | no growth above the maximum, nothing below the minimum |
//! | 5 | the operator numbers its orders upwards; no runner starts an order that is older than another one it has seen; no agent relies on an approval that was overtaken |
//! | 6 | at most one hypervisor runs a VM (there are no migrations yet), but where the end of the old pod was asked for and its operator does not wait for that |
//! | 7 | each permit request and each of the agent's is over in time; no brain starts actions without end |
//! | 8 | nobody deletes the pod of a VM that runs and is wanted; no pod ends but by a fault |
//! | 9 | a minute after the last fault all sizes are as the brain wants them and the workload needs them, or the reason why not is on record, and true ([`super::rest`]); an ordinary pod that would fit on a node without leases is placed |
//! | 10 | no request, however much a guest wants, is above the maximum of the spec, or what is plugged or approved; a guest causes no more than so many requests |

use std::time::Duration;

use guest_units::{Bytes, Moment, Size};
use host_scaling::{Action, Limits};
use scheduler_ledger::{Amount, Seal};

use super::guest::Manner;
use super::object::{NodeId, Owner, PodId, VmId, cost, for_workload, node_name};
use super::operator::at_most_one_pod;
use super::runner::Kind;
use super::world::World;
use crate::held::Kills;

/// The agent gives up a request itself after some seconds.
const AGENT_PATIENCE: Duration = Duration::from_secs(12);
/// A pod that would fit without leases waits no longer than this.
const PLACED_WITHIN: Duration = Duration::from_secs(20);
/// So long after a fault all may still be as the fault left it.
const AFTERMATH: Duration = Duration::from_secs(60);
/// Requests that a VM's agent may make in [`RATE_SPAN`].
const MOST_REQUESTS: u32 = 150;
const RATE_SPAN: Duration = Duration::from_secs(30);

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Number of the rule.
    pub rule: u8,
    /// The VM concerned.
    pub vm: u32,
    /// When.
    pub at: Moment,
    /// How.
    pub text: String,
}

/// What is remembered of a VM in order to check it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Watched {
    /// The newest approval that was given.
    newest: Option<Seal>,
    /// A request that the agent waits for.
    open: Option<(u64, Moment)>,
    /// What the guest last agreed to, by a planned question.
    agreed: Option<(Bytes, Moment)>,
    /// A fault ends this pod.
    may_end: Option<PodId>,
    /// The newest order of each resource that was sent.
    sent: [(u64, u64); 2],
    requests: u32,
    requests_since: Moment,
}

impl World {
    /// Notes the first violation; the run ends with it.
    pub(crate) fn broken(&mut self, rule: u8, vm: VmId, text: String) {
        if self.checks && self.violation.is_none() {
            self.violation = Some(Violation { rule, vm, at: self.now, text });
        }
    }

    pub(crate) fn judge_node(&mut self, node: NodeId) {
        if !self.checks {
            return;
        }
        let used: Amount = self.nodes[node as usize]
            .pods
            .iter()
            .map(|pod| {
                let object = &self.pods[*pod as usize];
                object.held().max(self.plugged_in(*pod).map_or(Amount::ZERO, cost))
            })
            .sum();
        let room = self.nodes[node as usize].allocatable;
        if !used.fits_in(room) {
            self.broken(1, 0, format!("n{node} has {room}, and {used} is in use"));
        }
    }

    fn plugged_in(&self, pod: PodId) -> Option<Size> {
        let Owner::Vm(vm) = self.pods[pod as usize].owner else { return None };
        let runner = self.vms[vm as usize].runner.as_ref();
        runner.filter(|runner| runner.pod == pod).map(|runner| runner.size())
    }

    pub(crate) fn judge_vm(&mut self, vm: VmId) {
        if !self.checks {
            return;
        }
        let Some(runner) = &self.vms[vm as usize].runner else { return };
        let pod = self.pods[runner.pod as usize];
        let possible = runner.may_reach().max(self.approved(vm));
        let backed = pod.allocated.unwrap_or(Amount::ZERO);
        if !cost(possible).fits_in(backed) {
            let text = format!("{possible:?} may be plugged, kubelet has allocated {backed}");
            self.broken(1, vm, text);
        }
        if let Some(node) = pod.node {
            self.judge_node(node);
        }
    }

    /// What backs a pod has changed.
    pub(crate) fn judge_backing(&mut self, pod: PodId) {
        if let Owner::Vm(vm) = self.pods[pod as usize].owner
            && self.plugged_in(pod).is_some()
        {
            self.judge_vm(vm);
        }
    }

    /// Of the agent's brain: nothing is open for ever.
    pub(crate) fn judge_agent(&mut self, vm: VmId) {
        let Some((generation, since)) = self.vms[vm as usize].watched.open else { return };
        if since + AGENT_PATIENCE <= self.now {
            self.broken(7, vm, format!("the agent waits for request {generation} without end"));
        }
    }

    pub(crate) fn opened(&mut self, vm: VmId, generation: u64) {
        let now = self.now;
        let watched = &mut self.vms[vm as usize].watched;
        watched.open = Some((generation, now));
    }

    pub(crate) fn closed(&mut self, vm: VmId, generation: u64) {
        let watched = &mut self.vms[vm as usize].watched;
        watched.open = watched.open.filter(|(open, _)| *open != generation);
    }

    pub(crate) fn forget_open_of(&mut self, node: NodeId) {
        for vm in self.vms_on(node) {
            self.vms[vm as usize].watched.open = None;
        }
    }

    /// Of the agent's brain, before it is carried out.
    pub(crate) fn judge_action(&mut self, vm: VmId, action: Action) {
        if !self.checks {
            return;
        }
        let now = self.now;
        let machine = &self.vms[vm as usize];
        let seen = machine.agent.as_ref().map_or(&machine.object, |agent| &agent.seen);
        let Limits { min, max, .. } = seen.bounds;
        match action {
            Action::AskGuest { .. } => self.vms[vm as usize].watched.agreed = None,
            Action::PatchVm { from, size, .. } => {
                if !size.fits_in(max.max(from)) {
                    self.broken(4, vm, format!("{size:?} is written, the maximum is {max:?}"));
                    return;
                }
                // What is below it may have no room to grow.
                let runs = machine.runner.as_ref().map(|runner| runner.size());
                // Of a runner that has just ended the agent sees the last that was shown.
                let has = runs.or(seen.plugged).unwrap_or(from);
                if !min.min(from).min(has).fits_in(size) {
                    self.broken(4, vm, format!("{size:?} is written, the minimum is {min:?}"));
                    return;
                }
                let plugged = machine.runner.as_ref().map(|runner| runner.size());
                // What was never approved is not there to be taken.
                let approved = machine.object.approved.map_or(from.memory, |seal| seal.size.memory);
                // Nor is what the agent cannot have seen: before that is taken, the runner asks the guest.
                let known = seen.plugged.map_or(from.memory, |plugged| plugged.memory);
                let takes = size.memory < from.memory.min(approved).min(known)
                    && plugged.is_some_and(|plugged| size.memory < plugged.memory);
                let agreed =
                    machine.watched.agreed.filter(|(_, at)| now.since(*at) < AGENT_PATIENCE);
                if takes && agreed.is_none_or(|(least, _)| least > size.memory) {
                    self.broken(
                        2,
                        vm,
                        format!("{size:?} is written, the guest agreed to {agreed:?}"),
                    );
                }
            }
            Action::AskPermit { .. } | Action::TellGuest { .. } => {}
        }
    }

    /// The guest has answered a planned question.
    pub(crate) fn agreed(&mut self, vm: VmId, to: Bytes) {
        self.vms[vm as usize].watched.agreed = Some((to, self.now));
    }

    /// A wish as it arrives at the extender.
    pub(crate) fn judge_wish(&mut self, vm: VmId, want: Size) {
        let machine = &self.vms[vm as usize];
        let max = machine.object.limits.max;
        // What it has, it may ask for again.
        let has = machine.runner.as_ref().map_or(max, |runner| runner.size());
        if !want.fits_in(max.max(has).max(self.approved(vm))) {
            self.broken(10, vm, format!("{want:?} is asked for, the maximum is {max:?}"));
        }
        let now = self.now;
        let watched = &mut self.vms[vm as usize].watched;
        if now.since(watched.requests_since) > RATE_SPAN {
            (watched.requests, watched.requests_since) = (0, now);
        }
        watched.requests += 1;
        if watched.requests > MOST_REQUESTS {
            self.broken(10, vm, format!("more than {MOST_REQUESTS} requests within {RATE_SPAN:?}"));
        }
    }

    pub(crate) fn judge_seal(&mut self, vm: VmId, seal: Seal) {
        let watched = &mut self.vms[vm as usize].watched;
        let before = watched.newest.replace(seal);
        if let Some(before) = before
            && (seal.place() < before.place()
                || (seal.place() == before.place() && seal.size != before.size))
        {
            self.broken(3, vm, format!("{seal:?} is given after {before:?}"));
        }
    }

    /// The operator sends an order: their numbers go up, for that is what runners go by.
    pub(crate) fn judge_sent(&mut self, vm: VmId, kind: Kind, age: (u64, u64)) {
        let sent = &mut self.vms[vm as usize].watched.sent[kind.index()];
        let before = std::mem::replace(sent, age);
        if age <= before {
            self.broken(5, vm, format!("order {age:?} is sent after {before:?}"));
        }
    }

    /// A runner carries out an order. To refuse it is up to the model of the runner, so that this looks at the model alone.
    pub(crate) fn judge_order(&mut self, vm: VmId, age: (u64, u64), newest: (u64, u64)) {
        if age < newest {
            self.broken(5, vm, format!("order {age:?} is carried out after {newest:?}"));
        }
    }

    /// An agent takes an answer, although its process has had one of a later epoch.
    pub(crate) fn judge_epoch(&mut self, vm: VmId, epoch: u64, newest: u64) {
        if epoch < newest {
            self.broken(5, vm, format!("an answer of epoch {epoch} is taken after {newest}"));
        }
    }

    /// The agent relies on no approval that counts no more.
    pub(crate) fn judge_permit(&mut self, vm: VmId) {
        if !self.checks {
            return;
        }
        let agent = self.vms[vm as usize].agent.as_ref();
        let permit = agent.and_then(|agent| agent.scaler.overview(self.now)?.permit);
        let most = self.approved(vm);
        if let Some(permit) = permit.filter(|permit| !permit.fits_in(most)) {
            self.broken(5, vm, format!("the agent relies on {permit:?}, {most:?} is approved"));
        }
    }

    /// A step takes memory down to this.
    pub(crate) fn judge_shrink(&mut self, vm: VmId, to: Bytes) {
        if !self.checks {
            return;
        }
        let guest = &self.vms[vm as usize].guest;
        let uses = guest.held.at(self.now);
        if guest.manner == Manner::Honest && for_workload(to) < uses {
            self.broken(2, vm, format!("{to} is left to a guest whose workload holds {uses}"));
        }
    }

    pub(crate) fn judge_size(&mut self, vm: VmId, before: Size, size: Size, kills: Kills) {
        if !self.checks {
            return;
        }
        let machine = &self.vms[vm as usize];
        let limits = machine.object.limits;
        let shrinks = size.memory < before.memory;
        if shrinks && kills.0 > 0 && machine.guest.manner == Manner::Honest {
            self.broken(2, vm, format!("the workload is killed by the shrink to {size:?}"));
        } else if !size.fits_in(limits.max.max(before)) {
            self.broken(4, vm, format!("{size:?} is plugged, the maximum is {:?}", limits.max));
        } else if !limits.min.fits_in(size) {
            self.broken(4, vm, format!("{size:?} is plugged, the minimum is {:?}", limits.min));
        }
        self.judge_vm(vm);
    }

    /// A pod's VM boots.
    pub(crate) fn judge_boot(&mut self, vm: VmId, pod: PodId) {
        let other = self.vms[vm as usize].runner.as_ref().map(|runner| runner.pod);
        // By default a VM may start elsewhere while nobody hears of the node of its old pod, whose end was asked for.
        let other = other.filter(|other| {
            let asked = self.pods[*other as usize].terminating_since.is_some();
            *other != pod && (at_most_one_pod(vm) || !asked)
        });
        if let Some(other) = other {
            self.broken(6, vm, format!("it runs in p{other} and boots in p{pod}"));
        }
    }

    /// A fault ends this pod.
    pub(crate) fn may_end(&mut self, pod: PodId) {
        if let Owner::Vm(vm) = self.pods[pod as usize].owner {
            self.vms[vm as usize].watched.may_end = Some(pod);
        }
    }

    /// The VM in a pod stops.
    pub(crate) fn judge_end(&mut self, vm: VmId, pod: PodId) {
        let fault = self.vms[vm as usize].watched.may_end == Some(pod);
        if !fault && self.pods[pod as usize].terminating_since.is_none() {
            self.broken(8, vm, format!("p{pod} ends without any fault"));
        }
    }

    /// The operator deletes a pod.
    pub(crate) fn judge_delete(&mut self, vm: VmId, pod: PodId) {
        let machine = &self.vms[vm as usize];
        let object = &self.pods[pod as usize];
        let runs = machine.runner.as_ref().is_some_and(|runner| runner.pod == pod);
        let wanted = machine.object.pod == Some(pod);
        if runs && wanted && !object.failed && object.terminating_since.is_none() {
            self.broken(8, vm, format!("p{pod} is deleted while its VM runs"));
        }
    }

    /// An ordinary pod has no node: leases give way to it.
    pub(crate) fn judge_wait(&mut self, pod: PodId) {
        let calm = self.faults.active.is_empty() && self.now.since(self.faults.ended) > AFTERMATH;
        let spec = self.pods[pod as usize].spec;
        let fits = |node: &NodeId| {
            let at = &self.nodes[*node as usize];
            self.is_ready(*node) && (self.needed_on(*node) + spec).fits_in(at.allocatable)
        };
        let node = (0..self.node_count()).find(fits).filter(|_| calm);
        let now = self.now;
        let object = &mut self.pods[pod as usize];
        object.fits_since = node.map(|_| object.fits_since.unwrap_or(now));
        if let Some(node) = node
            && self.pods[pod as usize].fits_since.is_some_and(|since| since + PLACED_WITHIN <= now)
        {
            let leader = &self.extenders[self.leader() as usize];
            let books = leader.ledger.dump().nodes.remove(&node_name(node));
            let text =
                format!("p{pod} waits for {spec} that only leases take on n{node}: {books:?}");
            self.broken(9, self.holds_most(node), text);
        }
    }

    /// The VM whose pod takes most that it could give back.
    fn holds_most(&self, node: NodeId) -> VmId {
        let pods = self.nodes[node as usize].pods.iter();
        let most = pods.max_by_key(|pod| {
            let counted = self.pods[**pod as usize].counted();
            counted.saturating_sub(self.without_lease(**pod)).memory_bytes
        });
        match most.map(|pod| self.pods[*pod as usize].owner) {
            Some(Owner::Vm(vm)) => vm,
            _ => 0,
        }
    }

    /// What is taken on a node and cannot be given back.
    pub(super) fn needed_on(&self, node: NodeId) -> Amount {
        self.nodes[node as usize].pods.iter().map(|pod| self.without_lease(*pod)).sum()
    }

    pub(super) fn needed_if_checked(&self, node: NodeId) -> Amount {
        if self.checks { self.needed_on(node) } else { Amount::ZERO }
    }

    /// What a pod takes on its node that it cannot give back.
    fn without_lease(&self, pod: PodId) -> Amount {
        let object = &self.pods[pod as usize];
        let Owner::Vm(vm) = object.owner else { return object.counted() };
        let runner = self.vms[vm as usize].runner.as_ref().filter(|runner| runner.pod == pod);
        let Some(runner) = runner.filter(|_| object.ready) else { return object.counted() };
        cost(runner.may_reach().max(self.approved(vm))).min(object.counted())
    }
}
