//! The operator: the shell of the lifecycle brain. It sees objects through its watch, follows the runners by long polls and
//! orders from them; a new process knows what the status says, and leads with the next epoch.

use std::time::Duration;

use controller_lifecycle::{
    Action, Approved, Desired, Ending, Event, Phase, Plugged, Pod as PodEvent, PodFacts, PodState,
    Restart, Settings, Stored, Vm, What,
};
use guest_units::{Bytes, Moment};

use super::bug::Bug;
use super::message::{Happening, Link, Message, Shown, Watcher};
use super::object::{Owner, Pod, PodId, VmId, VmObject, cost, node_name, number, pod_name};
use super::runner::Kind;
use super::world::World;

/// Between two attempts to reach a runner.
const POLL_AGAIN: Duration = Duration::from_millis(500);

/// The operator's process.
#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) up: bool,
    /// Of its lease; counts its processes.
    pub(crate) epoch: u64,
}

/// The operator's task for a VM.
pub(crate) struct Life {
    pub(crate) vm: Vm,
    seen: VmObject,
    /// The stored status that this process knows.
    kept: u64,
    wake: Option<Moment>,
    /// The pod whose runner is followed.
    polled: Option<PodId>,
    known: Option<u64>,
    /// The last total of memory that was ordered, and what a deliberate bug makes of it.
    ordered: Option<Bytes>,
    believed: Option<Bytes>,
}

/// Whether the operator waits with another pod of this VM until the old one is gone. It is one setting for all; here half of them
/// have it.
pub(crate) fn at_most_one_pod(vm: VmId) -> bool {
    !vm.is_multiple_of(2)
}

fn desired(object: &VmObject, ungated: bool) -> Desired {
    let approved = match object.approved {
        _ if ungated => Approved::Size { size: object.limits.max, age: (u64::MAX, 0) },
        Some(seal) => Approved::Size { size: seal.size, age: seal.place() },
        None => Approved::Missing("there is no approval".to_owned()),
    };
    Desired {
        min: object.limits.min,
        wanted: object.spec,
        max: object.limits.max,
        slot: object.limits.slot,
        restart: Restart::Always,
        deleting: false,
        approved,
        revision: None,
        invalid: None,
    }
}

fn facts(number: PodId, pod: &Pod) -> PodFacts {
    let state = if pod.failed {
        PodState::Failed("the pod has ended".to_owned())
    } else if pod.ready || pod.allocated.is_some() {
        PodState::Running { ready: pod.ready }
    } else {
        PodState::Pending
    };
    PodFacts {
        name: pod_name(number),
        state,
        terminating_since: pod.terminating_since,
        unschedulable: None,
        node: pod.node.map(node_name),
        ip: pod.node.map(|_| "10.0.0.1".to_owned()),
    }
}

impl World {
    /// The operator sees a VM.
    pub(crate) fn operator_sees(&mut self, vm: VmId, object: &VmObject) {
        let now = self.now;
        let ungated = self.bug == Some(Bug::OperatorIgnoresGate);
        let machine = &mut self.vms[vm as usize];
        if machine.life.is_none() {
            let status = &machine.status;
            let forgets = self.bug == Some(Bug::OperatorForgetsPods) && self.operator.epoch > 1;
            let stored = Stored {
                phase: if forgets { Phase::Pending } else { status.phase },
                pod: status.pod.clone().filter(|_| !forgets),
                restarts: status.restarts,
                size: status.size,
                revision: status.revision,
                obeyed: status.obeyed,
            };
            let at_most_one_pod =
                at_most_one_pod(vm) && self.bug != Some(Bug::OperatorAllowsTwoPods);
            let settings = Settings { at_most_one_pod };
            let life = Life {
                vm: Vm::new(stored, settings),
                seen: *object,
                kept: machine.status_version,
                wake: None,
                polled: None,
                known: None,
                ordered: None,
                believed: None,
            };
            machine.life = Some(Box::new(life));
        }
        let Some(life) = &mut machine.life else { return };
        if object.version < life.seen.version {
            return;
        }
        life.seen = *object;
        life.vm.handle(Event::Desired(desired(object, ungated)), now);
        self.live(vm);
    }

    /// The operator sees a pod.
    pub(crate) fn operator_sees_pod(&mut self, number: PodId, pod: &Pod) {
        let Owner::Vm(vm) = pod.owner else { return };
        let ended = pod.failed || pod.terminating_since.is_some() || pod.gone;
        if ended && self.bug == Some(Bug::OperatorIgnoresPodEnds) {
            return;
        }
        let event = if pod.gone { PodEvent::Absent } else { PodEvent::Present(facts(number, pod)) };
        let Some(life) = &self.vms[vm as usize].life else { return };
        if life.vm.pod_name() == Some(pod_name(number).as_str()) {
            self.tell_life(vm, Event::PodObserved(event));
        } else if !ended && self.bug != Some(Bug::OperatorForgetsPods) {
            self.tell_life(vm, Event::Strays(vec![pod_name(number)]));
        }
        self.follow(vm);
    }

    /// A process that has just started looks for the pod that the status names.
    pub(crate) fn operator_looks_for_pod(&mut self, vm: VmId) {
        let Some(life) = &self.vms[vm as usize].life else { return };
        let Some(number) = life.vm.pod_name().and_then(number) else { return };
        let pod = self.pods.get(number as usize).filter(|pod| pod.created && !pod.gone);
        let event = pod.map_or(PodEvent::Absent, |pod| PodEvent::Present(facts(number, pod)));
        self.tell_life(vm, Event::PodObserved(event));
        self.follow(vm);
    }

    pub(crate) fn tell_life(&mut self, vm: VmId, event: Event) {
        let now = self.now;
        let Some(life) = &mut self.vms[vm as usize].life else { return };
        life.vm.handle(event, now);
        self.live(vm);
    }

    pub(crate) fn life_wakes(&mut self, vm: VmId) {
        let now = self.now;
        if let Some(life) = &mut self.vms[vm as usize].life
            && life.wake == Some(now)
        {
            life.wake = None;
            self.tell_life(vm, Event::Woke);
        }
    }

    /// Starts what the brain names.
    fn live(&mut self, vm: VmId) {
        let now = self.now;
        for _ in 0..64 {
            let Some(life) = &mut self.vms[vm as usize].life else { return };
            let actions = life.vm.next(now);
            if actions.start.is_empty() {
                if actions.wake_at != life.wake {
                    life.wake = actions.wake_at;
                    if let Some(at) = actions.wake_at {
                        self.queue.push(at, Happening::Life(vm));
                    }
                }
                return;
            }
            for (action, _why) in actions.start {
                let Some(life) = &mut self.vms[vm as usize].life else { return };
                life.vm.handle(Event::Started(action.clone()), now);
                self.carry_out(vm, action);
            }
        }
        self.broken(7, vm, "the operator's brain starts actions without end".to_owned());
    }

    fn carry_out(&mut self, vm: VmId, action: Action) {
        let (now, epoch) = (self.now, self.operator.epoch);
        match action {
            Action::NamePod => {
                let seen = self.vms[vm as usize].object;
                let pod = self.new_pod(Owner::Vm(vm), cost(seen.spec.max(seen.limits.min)));
                if let Some(life) = &mut self.vms[vm as usize].life {
                    life.vm.handle(Event::PodNamed(pod_name(pod)), now);
                }
            }
            Action::CreatePod(name) => {
                let pod = number(&name).unwrap_or_default();
                self.send(Link::OperatorApi, Message::CreatePod { vm, pod, epoch });
            }
            Action::DeletePod { name, .. } => {
                let pod = number(&name).unwrap_or_default();
                self.send(Link::OperatorApi, Message::DeletePod { vm, pod, epoch });
            }
            Action::ForgetPod { .. } | Action::Tell(_) => {}
            Action::Order { generation, what } => {
                let Some(life) = &mut self.vms[vm as usize].life else { return };
                if let What::Memory(total) = what {
                    (life.ordered, life.believed) = (Some(total), None);
                }
                let Some(pod) = life.vm.pod_name().and_then(number) else { return };
                let repeats = self.bug == Some(Bug::OperatorRepeatsNumbers);
                let generation = if repeats { generation / 2 } else { generation };
                self.judge_sent(vm, Kind::of(what), (epoch, generation));
                let link = Link::Runner(self.node_of(pod));
                self.send(link, Message::Order { vm, pod, epoch, generation, what });
            }
            Action::WriteStatus(status) => {
                let Some(life) = &self.vms[vm as usize].life else { return };
                let (over, status) = (life.kept, Box::new(status));
                self.send(Link::OperatorApi, Message::WriteStatus { vm, epoch, over, status });
            }
        }
    }

    /// Follows the runner of the VM's pod.
    fn follow(&mut self, vm: VmId) {
        let Some(life) = &mut self.vms[vm as usize].life else { return };
        let pod = life.vm.pod_name().and_then(number);
        let ready = pod.filter(|pod| self.pods.get(*pod as usize).is_some_and(|pod| pod.ready));
        let forgets = self.bug == Some(Bug::OperatorForgetsRunners) && self.operator.epoch > 1;
        if life.polled == ready || forgets {
            return;
        }
        (life.polled, life.known) = (ready, None);
        self.poll(vm);
    }

    /// The pause before the next attempt is over.
    pub(crate) fn poll_again(&mut self, vm: VmId, pod: PodId) {
        let polled = self.vms[vm as usize].life.as_ref().and_then(|life| life.polled);
        if polled == Some(pod) {
            self.poll(vm);
        }
    }

    fn poll(&mut self, vm: VmId) {
        let (now, epoch) = (self.now, self.operator.epoch);
        let Some(life) = &self.vms[vm as usize].life else { return };
        let Some(pod) = life.polled else { return };
        let (first, known) = (life.vm.first_order(now), life.known);
        let link = Link::Runner(self.node_of(pod));
        self.send(link, Message::Look { vm, pod, epoch, first, known });
    }

    /// Of the API server or a runner. What an earlier process asked is of no interest.
    pub(crate) fn operator_hears(&mut self, message: Message) {
        let ours = self.operator.epoch;
        match message {
            Message::OrderEnded { vm, pod, epoch, generation, shown, ending }
                if epoch == ours && self.is_current(vm, pod) =>
            {
                let Shown { revision, plugged, .. } = shown;
                let (plugged, ending) = self.believed(vm, plugged, ending);
                let event = Event::OrderEnded { generation, revision, plugged, ending };
                self.tell_life(vm, event);
            }
            Message::OrderFailed { vm, pod, epoch, generation }
                if epoch == ours && self.is_current(vm, pod) =>
            {
                let reason = "no answer".to_owned();
                self.tell_life(vm, Event::OrderFailed { generation, reason });
            }
            Message::Looked { vm, pod, epoch, first, shown } if epoch == ours => {
                let Some(life) = &mut self.vms[vm as usize].life else { return };
                if life.polled != Some(pod) {
                    return;
                }
                life.known = Some(shown.revision);
                let Shown { revision, plugged, busy, newest_epoch, guest } = shown;
                let believed = self.vms[vm as usize].life.as_ref().and_then(|life| life.believed);
                let memory = believed.unwrap_or(plugged.memory);
                let plugged = Plugged { memory, ..plugged };
                if newest_epoch <= epoch {
                    let event = Event::RunnerObserved { first, revision, plugged, guest, busy };
                    self.tell_life(vm, event);
                }
                self.poll(vm);
            }
            Message::LookFailed { vm, pod, epoch } if epoch == ours => {
                let Some(life) = &mut self.vms[vm as usize].life else { return };
                if life.polled != Some(pod) {
                    return;
                }
                life.known = None;
                self.tell_life(vm, Event::RunnerLost);
                if self.bug == Some(Bug::OperatorKillsUnreachable) {
                    self.send(Link::OperatorApi, Message::DeletePod { vm, pod, epoch });
                }
                self.queue.push(self.now + POLL_AGAIN, Happening::Poll(vm, pod));
            }
            Message::PodDeleted { vm, pod, epoch, done } if epoch == ours => {
                let name = pod_name(pod);
                let deleted =
                    if done { Event::PodDeleted(name) } else { Event::DeleteFailed(name) };
                self.tell_life(vm, deleted);
            }
            Message::PodCreated { vm, epoch, done: false } if epoch == ours => {
                self.tell_life(vm, Event::CreateFailed("no answer".to_owned()));
                self.operator_looks_for_pod(vm);
            }
            Message::StatusWritten { vm, epoch, version, status } if epoch == ours => {
                if let Some(life) = &mut self.vms[vm as usize].life {
                    life.kept = life.kept.max(version.unwrap_or(0));
                }
                let event = status.map_or(Event::StatusFailed, |it| Event::StatusWritten(*it));
                self.tell_life(vm, event);
                self.follow(vm);
            }
            _ => {}
        }
    }

    /// The same, but for a deliberate bug.
    fn believed(&mut self, vm: VmId, plugged: Plugged, ending: Ending) -> (Plugged, Ending) {
        let believes = self.bug == Some(Bug::OperatorBelievesOrders);
        let life = self.vms[vm as usize].life.as_mut().filter(|_| believes);
        match (life, &ending) {
            (Some(life), Ending::Partial(_)) => {
                life.believed = life.ordered;
                let memory = life.ordered.unwrap_or(plugged.memory);
                (Plugged { memory, ..plugged }, Ending::Done)
            }
            _ => (plugged, ending),
        }
    }

    fn is_current(&self, vm: VmId, pod: PodId) -> bool {
        let life = self.vms[vm as usize].life.as_ref();
        life.is_some_and(|life| life.vm.pod_name().and_then(number) == Some(pod))
    }

    pub(crate) fn operator_dies(&mut self) {
        self.operator.up = false;
        self.operator.epoch += 1;
        for machine in &mut self.vms {
            machine.life = None;
        }
    }

    pub(crate) fn operator_starts(&mut self) {
        self.operator.up = true;
        self.relist(Watcher::Operator);
    }
}
