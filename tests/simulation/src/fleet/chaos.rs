//! Faults as they begin and end, parts that die and start again, and what comes and goes without any fault.

use std::time::Duration;

use guest_units::{Bytes, MilliCpu, Moment, Size};
use host_scaling::{Limits, Sample};
use rand::RngExt as _;
use scheduler_ledger::Amount;

use super::fault::{Extent, Family, Fault, Kind, Whom, plan};
use super::guest::Manner;
use super::message::{Happening, Link, Part, Watcher};
use super::object::{NodeId, Owner, PodId, Twin, VmId};
use super::runner::Trouble;
use super::world::{Machine, World};
use crate::random::random;

/// Part of the seed.
const PLAN: u64 = 4;
/// Pods of a silent node are asked to go after so long.
const EVICT_AFTER: Duration = Duration::from_secs(40);
/// A process that does not answer for so long is ended by its kubelet.
const LIVENESS: Duration = Duration::from_secs(40);
/// A process that is to stop is ended when it has not done so.
const GRACE: Duration = Duration::from_secs(5);

impl Machine {
    /// What the guest says instead of what its policy found.
    pub(crate) fn pretend(&self, sample: Sample, now: Moment) -> Sample {
        match self.guest.manner {
            Manner::Lying(by) => {
                let turn = u64::try_from(now.0.as_millis()).unwrap_or(0) ^ by;
                let demand = match turn % 4 {
                    0 => Size::new(MilliCpu::ZERO, Bytes::ZERO),
                    1 => Size::new(MilliCpu(u32::MAX), Bytes(u64::MAX)),
                    2 => Size::new(MilliCpu(1), Bytes(u64::MAX)),
                    _ => sample.demand,
                };
                Sample { demand, ..sample }
            }
            _ if self.old => Sample { system: None, ..sample },
            _ => sample,
        }
    }
}

impl World {
    /// Draws the plan of faults for so many VMs, and tells when they begin. Of it only those in `only` happen, if given.
    pub fn plan_faults(
        &mut self,
        (until, vms): (Duration, u32),
        family: Option<Family>,
        only: Option<&[usize]>,
    ) -> Vec<Moment> {
        let (nodes, twins) = (self.node_count(), self.twin_count());
        let extent = Extent { nodes, vms, twins, until, family };
        let all = plan(&mut random(self.settings.seed, PLAN), extent);
        let moments = all.iter().map(|fault| fault.at).collect();
        let kept = |index: &usize| only.is_none_or(|only| only.contains(index));
        self.plan = all
            .into_iter()
            .enumerate()
            .filter(|(index, _)| kept(index))
            .map(|(_, fault)| fault)
            .collect();
        self.churns_until = Moment(until);
        moments
    }

    /// The plan.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.plan
    }

    /// A deliberate bug, for tests.
    pub fn with_bug(&mut self, bug: super::Bug) {
        self.bug = Some(bug);
    }

    /// All must be at rest by then.
    pub fn rest_at(&mut self, at: Moment) {
        self.queue.push(at, Happening::Rest);
    }

    /// A fault begins or ends.
    pub(crate) fn fault(&mut self, index: usize, begins: bool) {
        let Fault { at, lasts, kind } = self.plan[index];
        let kind = self.resolved(kind);
        if self.settings.trace.is_some() {
            let word = if begins { "begins" } else { "ends" };
            self.note(&format!("fault {index} {word}: {kind:?}"));
        }
        if begins {
            self.faults.active.push((index, kind));
        } else {
            self.faults.active.retain(|(active, _)| *active != index);
            self.faults.ended = self.now;
        }
        match kind {
            Kind::Crash(part) if begins => self.crash_for(part, lasts),
            Kind::CrashAt(part, way) => self.faults.trap = begins.then_some((way, part)),
            Kind::NodeLoss(node) if begins => self.crash_for(Part::Node(node), lasts),
            Kind::NodeCut(node) if begins => {
                self.queue.push(self.now + EVICT_AFTER, Happening::Evict(node));
                self.node_changed(node);
            }
            Kind::NodeCut(node) => self.node_is_back(node),
            Kind::StaleWatch(watcher) if begins => {
                self.watches.entry(watcher).or_default().stalled = at + lasts;
            }
            Kind::Relist(watcher) if begins => self.watch_breaks(watcher),
            Kind::Partial(vm) => self.trouble(vm, |it| it.partial = begins),
            Kind::Busy(vm) => self.trouble(vm, |it| it.busy = begins),
            Kind::Silent(vm) => self.behave(vm, begins, Manner::Silent),
            Kind::Lying(vm) => {
                let by = u64::try_from(at.0.as_millis()).unwrap_or(0);
                self.behave(vm, begins, Manner::Lying(by));
            }
            Kind::Flooding(vm) => self.behave(vm, begins, Manner::Flooding),
            Kind::Clock(node) if begins => {
                let back = at.0.as_millis().is_multiple_of(2);
                let jump = i64::try_from(lasts.as_millis()).unwrap_or(0) * 1000;
                self.nodes[node as usize].clock_ms += if back { -jump } else { jump };
                self.crash(Part::Agent(node));
            }
            Kind::Skew(vm) => {
                self.vms[vm as usize].old = begins;
                self.crash(Part::Monitor(vm));
            }
            Kind::Pause(whom) if begins => {
                let lasts = lasts.min(LIVENESS);
                self.extenders_of(whom).for_each(|twin| self.hold_up(twin, lasts));
            }
            Kind::Stop(whom) if begins => {
                let lasts = lasts.clamp(GRACE, LIVENESS);
                for twin in self.extenders_of(whom) {
                    self.stop(twin, lasts);
                }
            }
            Kind::StaleRoute(place) => {
                let leader = self.leader();
                let other = (leader + 1) % self.twin_count();
                self.routes[place].0 = if begins { other } else { leader };
            }
            _ => {}
        }
    }

    /// Whom a fault concerns is decided when it begins.
    fn resolved(&self, kind: Kind) -> Kind {
        let leader = self.leader();
        let resolved = |whom| match whom {
            Whom::Leader => Whom::Only(leader),
            Whom::Standby => Whom::Only((leader + 1) % self.twin_count()),
            whom => whom,
        };
        match kind {
            Kind::ExtenderCut(whom) => Kind::ExtenderCut(resolved(whom)),
            Kind::Pause(whom) => Kind::Pause(resolved(whom)),
            Kind::Stop(whom) => Kind::Stop(resolved(whom)),
            kind => kind,
        }
    }

    fn extenders_of(&self, whom: Whom) -> impl Iterator<Item = Twin> + use<> {
        (0..self.twin_count()).filter(move |twin| whom.is(*twin))
    }

    /// An extender stops in good order, and starts in another pod.
    fn stop(&mut self, twin: Twin, lasts: Duration) {
        let extender = &self.extenders[twin as usize];
        if extender.up && !extender.stopping {
            self.extender_stops(twin);
            self.queue.push(self.now + lasts, Happening::Restart(Part::Extender(twin)));
        }
    }

    fn trouble(&mut self, vm: VmId, change: impl FnOnce(&mut Trouble)) {
        if let Some(runner) = &mut self.vms[vm as usize].runner {
            change(&mut runner.trouble);
        }
    }

    fn behave(&mut self, vm: VmId, begins: bool, manner: Manner) {
        let manner = if begins { manner } else { Manner::Honest };
        self.vms[vm as usize].guest.manner = manner;
        self.vms[vm as usize].guest.changed(self.now);
        self.rouse(vm);
        self.look_soon(vm);
    }

    /// A part dies, and starts again as soon as such a part does.
    pub(crate) fn crash(&mut self, part: Part) {
        let soon = self.faults.millis(0..3_000);
        self.crash_for(part, soon);
    }

    fn crash_for(&mut self, part: Part, lasts: Duration) {
        if self.settings.trace.is_some() {
            self.note(&format!("{part:?} dies"));
        }
        let at_least = match part {
            Part::Agent(node) => {
                if !self.nodes[node as usize].agent_up {
                    return;
                }
                self.agent_dies(node);
                Duration::from_secs(1)
            }
            Part::Operator if self.operator.up => {
                self.operator_dies();
                Duration::from_secs(2)
            }
            Part::Extender(twin) if self.extenders[twin as usize].up => {
                self.extender_dies(twin);
                // In the same pod, which still has the lease.
                Duration::from_millis(500)
            }
            Part::Monitor(vm) if self.vms[vm as usize].guest.monitor => {
                self.vms[vm as usize].guest.monitor = false;
                self.disconnect(vm);
                Duration::from_millis(300)
            }
            Part::Runner(vm) => {
                if let Some(pod) = self.vms[vm as usize].runner.as_ref().map(|runner| runner.pod) {
                    self.may_end(pod);
                    self.pod_fails(pod);
                }
                return;
            }
            Part::Node(node) if self.nodes[node as usize].up => {
                self.node_dies(node);
                self.queue.push(self.now + EVICT_AFTER, Happening::Evict(node));
                Duration::from_secs(20)
            }
            _ => return,
        };
        self.queue.push(self.now + lasts.max(at_least), Happening::Restart(part));
    }

    /// A part starts again.
    pub(crate) fn restart(&mut self, part: Part) {
        if self.settings.trace.is_some() {
            self.note(&format!("{part:?} starts"));
        }
        match part {
            Part::Agent(node) => {
                let at = &self.nodes[node as usize];
                if at.up && !at.agent_up {
                    self.when_reached(part, |world| world.agent_starts(node));
                }
            }
            Part::Operator => self.operator_starts(),
            Part::Extender(twin) => {
                let extender = &self.extenders[twin as usize];
                if extender.up && !extender.stopping {
                    return;
                }
                if extender.up {
                    self.extender_dies(twin);
                }
                self.when_reached(part, |world| world.extender_starts(twin));
            }
            Part::Monitor(vm) => {
                let now = self.now;
                let guest = &mut self.vms[vm as usize].guest;
                guest.monitor = true;
                guest.restart_monitor(now);
                self.look_soon(vm);
            }
            Part::Runner(_) => {}
            Part::Node(node) => self.when_reached(part, |world| world.node_starts(node)),
            Part::AgentWatch(_) | Part::OperatorWatch | Part::ExtenderWatch(_) => {
                self.watch_again(part);
            }
        }
    }

    /// What starts needs the API server, and tries again until it reaches it.
    fn when_reached(&mut self, part: Part, start: impl FnOnce(&mut Self)) {
        let watcher = match part {
            Part::Agent(node) | Part::Node(node) => Watcher::Agent(node),
            Part::Extender(twin) => Watcher::Extender(twin),
            _ => return,
        };
        if self.faults.cut(Link::Watch(watcher)) {
            self.queue.push(self.now + Duration::from_secs(1), Happening::Restart(part));
        } else {
            start(self);
        }
    }

    fn watch_again(&mut self, part: Part) {
        let watcher = match part {
            Part::AgentWatch(node) => Watcher::Agent(node),
            Part::OperatorWatch => Watcher::Operator,
            Part::ExtenderWatch(twin) => Watcher::Extender(twin),
            _ => return,
        };
        if self.faults.cut(Link::Watch(watcher)) {
            self.queue.push(self.now + Duration::from_secs(1), Happening::Restart(part));
            return;
        }
        self.watches.entry(watcher).or_default().broken = false;
        let up = match watcher {
            Watcher::Agent(node) => self.nodes[node as usize].agent_up,
            Watcher::Operator => self.operator.up,
            Watcher::Extender(twin) => self.extenders[twin as usize].up,
        };
        let forgets =
            part == Part::OperatorWatch && self.bug == Some(super::Bug::OperatorForgetsRelist);
        if forgets {
            self.watches.entry(watcher).or_default().stalled = Moment::from_secs(1 << 30);
        } else if up {
            self.relist(watcher);
        }
    }

    /// Somebody writes a size into the spec of a VM, as users and their tools do.
    fn edit(&mut self) {
        let vm = self.churn.random_range(0..self.vm_count());
        let object = &mut self.vms[vm as usize].object;
        let Limits { min, max, slot } = object.limits;
        let slots = (max.memory.0 - min.memory.0) / slot.0;
        let memory = min.memory.0 + slot.0 * self.churn.random_range(0..=slots);
        let cpu = self.churn.random_range(min.cpu.0..=max.cpu.0);
        object.spec = Size::new(MilliCpu(cpu), Bytes(memory));
        self.vm_changed(vm);
    }

    /// Somebody sets other bounds for the agent in the annotation of a VM, or takes them away.
    fn bound(&mut self) {
        let vm = self.churn.random_range(0..self.vm_count());
        let Limits { min, max, slot } = self.vms[vm as usize].object.limits;
        let slots = (max.memory.0 - min.memory.0) / slot.0;
        let mut end = |low: Size| {
            let below = low.memory.0.saturating_sub(min.memory.0) / slot.0;
            let memory = min.memory.0 + slot.0 * self.churn.random_range(below..=slots);
            let cpu = self.churn.random_range(low.cpu.0..=max.cpu.0);
            Size::new(MilliCpu(cpu), Bytes(memory))
        };
        let lowest = end(min).min(Size::new(MilliCpu(1000), Bytes::from_gib(2)));
        let bounds = Limits { min: lowest, max: end(lowest), slot };
        let bounded = self.churn.random_bool(0.6);
        let object = &mut self.vms[vm as usize].object;
        object.bounds = if bounded { bounds } else { object.limits };
        self.vm_changed(vm);
    }

    /// Ordinary pods come and go; now and then the spec of a VM is edited.
    pub(crate) fn churn(&mut self) {
        let pause = self.churn.random_range(2_000..60_000);
        let next = self.now + Duration::from_millis(pause);
        if next < self.churns_until {
            self.queue.push(next, Happening::Churn);
        }
        if self.churn.random_bool(0.2) {
            self.edit();
            return;
        }
        if self.churn.random_bool(0.1) {
            self.bound();
            return;
        }
        let node = self.churn.random_range(0..self.node_count());
        let others: Vec<u32> = self.nodes[node as usize]
            .pods
            .iter()
            .chain(&self.waiting)
            .copied()
            .filter(|pod| self.pods[*pod as usize].owner == Owner::Nobody)
            .collect();
        if !others.is_empty() && self.churn.random_bool(0.5) {
            let index = self.churn.random_range(0..others.len());
            self.delete_pod(others[index]);
            return;
        }
        let requests = Amount {
            cpu_millis: self.churn.random_range(50..2_000),
            memory_bytes: self.churn.random_range(64..3_072) << 20,
        };
        let room = self.nodes[node as usize].allocatable;
        let ready = self.is_ready(node);
        let pod = self.new_pod(Owner::Nobody, requests);
        self.pods[pod as usize].created = true;
        if ready && (self.counted_late(node) + requests).fits_in(room) {
            self.bind_ordinary(pod, node);
        } else {
            self.pod_changed(pod);
            self.wait_for_node(pod);
        }
    }

    /// A scheduler that never asks us places a pod.
    pub(crate) fn bind_ordinary(&mut self, pod: PodId, node: NodeId) {
        let object = &mut self.pods[pod as usize];
        (object.node, object.unschedulable) = (Some(node), false);
        self.nodes[node as usize].pods.push(pod);
        self.pod_changed(pod);
        let late = self.draw_span(Duration::from_millis(80));
        self.queue.push(self.now + late, Happening::Kubelet(pod));
    }
}
