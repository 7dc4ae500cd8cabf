//! The runners, with QEMU and what the guest's keeper does for them: one order a resource at a time, a newer one overtakes;
//! nothing is taken from a guest without its consent, asked for immediately before; orders of earlier leaders are refused.
//!
//! Plug and unplug take as long as measured for virtio-mem: 40 ms for a growth of up to 2 GiB, some 30 ms for each 256 MiB that
//! go, 5 ms for a quota of the CPU and 40 ms where a CPU comes or goes.

use std::time::Duration;

use controller_lifecycle::{Ending, Plugged, What};
use guest_policy::Verdict;
use guest_units::{Bytes, Moment, Size};

use super::bug::Bug;
use super::guest::Manner;
use super::message::{Happening, Link, Message, Shown};
use super::object::{PodId, VmId};
use super::world::World;

/// A shrink goes in steps, and the guest is asked again before each.
const STEP: Bytes = Bytes::from_mib(256);
const STEP_TAKES: Duration = Duration::from_millis(30);
const GROWTH_TAKES: Duration = Duration::from_millis(40);
const QUOTA_TAKES: Duration = Duration::from_millis(5);
const CPU_TAKES: Duration = Duration::from_millis(40);
/// A shrink without progress for this long is accepted as it is.
const STUCK: Duration = Duration::from_secs(3);
/// No answer from the guest's keeper for so long is none.
const CONSENT_LIMIT: Duration = Duration::from_secs(2);

/// Which resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Cpu,
    Memory,
}

#[derive(Debug, Clone, Copy)]
struct Order {
    epoch: u64,
    generation: u64,
    what: What,
    /// Counts steps, so that those of an overtaken order are void.
    step: u64,
    /// The size that the next step brings.
    next: u64,
    since: Moment,
}

/// How the hypervisor or the guest fails.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Trouble {
    /// No block can be freed.
    pub(crate) busy: bool,
    /// Only so many steps succeed.
    pub(crate) partial: bool,
}

/// A runner and its QEMU.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) pod: PodId,
    pub(crate) plugged: Plugged,
    revision: u64,
    /// Everything before it is refused.
    fence: (u64, u64),
    newest: [(u64, u64); 2],
    lanes: [Option<Order>; 2],
    steps: u64,
    /// The operator's long poll: its epoch, and the first order that it may still give.
    waiting: Option<(u64, u64)>,
    pub(crate) trouble: Trouble,
}

impl Kind {
    pub(crate) fn of(what: What) -> Self {
        match what {
            What::Cpu(_) => Self::Cpu,
            What::Memory(_) => Self::Memory,
        }
    }

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Cpu => 0,
            Self::Memory => 1,
        }
    }
}

impl Runner {
    pub(crate) fn new(pod: PodId, size: Size) -> Self {
        let Size { cpu, memory } = size;
        Self {
            pod,
            plugged: Plugged { vcpus: cpu.whole_up(), cpu, memory },
            revision: 1,
            fence: (0, 0),
            newest: [(0, 0); 2],
            lanes: [None; 2],
            steps: 0,
            waiting: None,
            trouble: Trouble::default(),
        }
    }

    pub(crate) fn size(&self) -> Size {
        Size { cpu: self.plugged.cpu, memory: self.plugged.memory }
    }

    pub(crate) fn busy(&self) -> bool {
        self.lanes.iter().any(Option::is_some)
    }

    fn shown(&self) -> Shown {
        Shown {
            revision: self.revision,
            plugged: self.plugged,
            busy: self.busy(),
            newest_epoch: self.fence.0,
            guest: true,
        }
    }

    /// The largest size that an order under way may bring.
    pub(crate) fn may_reach(&self) -> Size {
        let mut most = self.size();
        for order in self.lanes.iter().flatten() {
            match order.what {
                What::Cpu(cpu) => most.cpu = most.cpu.max(cpu),
                What::Memory(memory) => most.memory = most.memory.max(memory),
            }
        }
        most
    }
}

impl World {
    fn runner(&mut self, vm: VmId, pod: PodId) -> Option<&mut Runner> {
        let runner = self.vms[vm as usize].runner.as_deref_mut();
        runner.filter(|runner| runner.pod == pod)
    }

    /// The operator looks at a runner: at once if it knows another state, else when that changes.
    pub(crate) fn runner_is_asked(
        &mut self,
        (vm, pod): (VmId, PodId),
        epoch: u64,
        first: u64,
        known: Option<u64>,
    ) {
        let Some(runner) = self.runner(vm, pod) else {
            self.look_fails(vm, pod, epoch);
            return;
        };
        runner.fence = runner.fence.max((epoch, first));
        if known == Some(runner.revision) {
            runner.waiting = Some((epoch, first));
        } else {
            let shown = runner.shown();
            let link = Link::Runner(self.node_of(pod));
            self.send(link, Message::Looked { vm, pod, epoch, first, shown });
        }
    }

    fn look_fails(&mut self, vm: VmId, pod: PodId, epoch: u64) {
        let link = Link::Runner(self.node_of(pod));
        let message = Box::new(Message::LookFailed { vm, pod, epoch });
        let at = self.now + self.hop(link);
        self.queue.push(at, Happening::Deliver(link, message));
    }

    /// The state has changed: whoever waits for that is told.
    fn runner_changes(&mut self, vm: VmId, pod: PodId) {
        let Some(runner) = self.runner(vm, pod) else { return };
        runner.revision += 1;
        let shown = runner.shown();
        if let Some((epoch, first)) = runner.waiting.take() {
            let link = Link::Runner(self.node_of(pod));
            self.send(link, Message::Looked { vm, pod, epoch, first, shown });
        }
    }

    /// An order arrives.
    pub(crate) fn runner_is_ordered(
        &mut self,
        (vm, pod): (VmId, PodId),
        epoch: u64,
        generation: u64,
        what: What,
    ) {
        let obeys_all = self.bug == Some(Bug::RunnerTakesOldOrders);
        let ends = self.bug == Some(Bug::RunnerEndsWhenOrdersAreStale);
        let now = self.now;
        let kind = Kind::of(what);
        let Some(runner) = self.runner(vm, pod) else { return };
        let age = (epoch, generation);
        let newest = runner.newest[kind.index()];
        let known = runner.lanes[kind.index()].is_some_and(|it| (it.epoch, it.generation) == age);
        let stale = age < newest.max(runner.fence) || age == newest;
        if stale && !known && ends {
            self.pod_fails(pod);
            return;
        }
        if known || (stale && !obeys_all) {
            let (shown, newest) = (runner.shown(), newest.max(runner.fence).1);
            let ending = Ending::Stale { newest };
            let link = Link::Runner(self.node_of(pod));
            self.send(link, Message::OrderEnded { vm, pod, epoch, generation, shown, ending });
            return;
        }
        let fence = self.fence_of(vm, pod);
        self.judge_order(vm, age, newest.max(fence));
        let Some(runner) = self.runner(vm, pod) else { return };
        runner.fence = runner.fence.max((epoch, 0));
        runner.newest[kind.index()] = age;
        runner.steps += 1;
        let order = Order { epoch, generation, what, step: runner.steps, next: 0, since: now };
        let overtaken = runner.lanes[kind.index()].replace(order);
        if let Some(old) = overtaken {
            let ending = Ending::Partial("a newer order came".to_owned());
            self.end(vm, pod, (old.epoch, old.generation), ending);
        }
        self.runner_changes(vm, pod);
        self.judge_vm(vm);
        self.begin_step(vm, pod, kind);
    }

    fn fence_of(&mut self, vm: VmId, pod: PodId) -> (u64, u64) {
        self.runner(vm, pod).map_or((0, 0), |runner| runner.fence)
    }

    fn end(&mut self, vm: VmId, pod: PodId, (epoch, generation): (u64, u64), ending: Ending) {
        let Some(runner) = self.runner(vm, pod) else { return };
        let shown = runner.shown();
        let link = Link::Runner(self.node_of(pod));
        self.send(link, Message::OrderEnded { vm, pod, epoch, generation, shown, ending });
    }

    fn finish(&mut self, vm: VmId, pod: PodId, kind: Kind, ending: Ending) {
        let Some(runner) = self.runner(vm, pod) else { return };
        let Some(order) = runner.lanes[kind.index()].take() else { return };
        runner.revision += 1;
        self.end(vm, pod, (order.epoch, order.generation), ending);
        self.runner_changes(vm, pod);
    }

    /// The next step of the order of a lane, or its end.
    fn begin_step(&mut self, vm: VmId, pod: PodId, kind: Kind) {
        let Some(runner) = self.runner(vm, pod) else { return };
        let Some(order) = runner.lanes[kind.index()] else { return };
        let Plugged { vcpus, cpu, memory } = runner.plugged;
        match order.what {
            What::Cpu(to) if to == cpu => self.finish(vm, pod, kind, Ending::Done),
            What::Cpu(to) => {
                let takes = if to.whole_up() == vcpus { QUOTA_TAKES } else { CPU_TAKES };
                self.step_in(vm, pod, kind, u64::from(to.0), takes);
            }
            What::Memory(to) if to == memory => self.finish(vm, pod, kind, Ending::Done),
            What::Memory(to) if to > memory => {
                self.step_in(vm, pod, kind, to.0, GROWTH_TAKES);
            }
            What::Memory(to) => self.take_memory(vm, pod, memory, to),
        }
    }

    fn step_in(&mut self, vm: VmId, pod: PodId, kind: Kind, next: u64, takes: Duration) {
        let now = self.now;
        let Some(runner) = self.runner(vm, pod) else { return };
        let Some(order) = &mut runner.lanes[kind.index()] else { return };
        order.next = next;
        let step = order.step;
        self.queue.push(now + takes, Happening::Lane(vm, pod, kind, step));
    }

    /// Takes memory from a guest, if it agrees.
    fn take_memory(&mut self, vm: VmId, pod: PodId, has: Bytes, to: Bytes) {
        let cpu = self.vms[vm as usize].guest.size.cpu;
        let next = has.saturating_sub(STEP).max(to);
        let size = |memory| Size { cpu, memory };
        if self.vms[vm as usize].guest.manner == Manner::Silent {
            self.step_in(vm, pod, Kind::Memory, has.0, CONSENT_LIMIT);
            return;
        }
        let verdict = self.consent(vm, size(has), size(next));
        let verdict = match verdict {
            Verdict::Veto { .. } if self.bug == Some(Bug::RunnerIgnoresVeto) => Verdict::Fine,
            verdict => verdict,
        };
        match verdict {
            Verdict::Fine => {
                self.judge_shrink(vm, next);
                let slow = self.bug == Some(Bug::RunnerActsLongAfterConsent);
                let takes = if slow { STEP_TAKES * 60 } else { STEP_TAKES };
                self.step_in(vm, pod, Kind::Memory, next.0, takes);
            }
            Verdict::Veto { least, reason } => {
                let reason = reason.text().to_owned();
                let ending = Ending::Vetoed { least: least.memory.0, reason };
                self.finish(vm, pod, Kind::Memory, ending);
            }
        }
    }

    /// A step of an order has taken its time.
    pub(crate) fn lane_moves(&mut self, vm: VmId, pod: PodId, kind: Kind, step: u64) {
        let now = self.now;
        let Some(runner) = self.runner(vm, pod) else { return };
        let Some(order) = runner.lanes[kind.index()].filter(|order| order.step == step) else {
            return;
        };
        let (mut size, trouble) = (runner.size(), runner.trouble);
        match order.what {
            What::Cpu(to) => size.cpu = to,
            What::Memory(to) => {
                let (has, mut next) = (size.memory, Bytes(order.next));
                if next < has {
                    // virtio-mem does not refuse what is in use: the guest's kernel kills for it.
                    let stuck = trouble.busy;
                    if stuck && now.since(order.since) >= STUCK {
                        let reason = "the guest could not free more".to_owned();
                        self.finish(vm, pod, kind, Ending::Partial(reason));
                        return;
                    }
                    if stuck {
                        self.step_in(vm, pod, kind, next.0, Duration::from_millis(500));
                        return;
                    }
                } else if next == has && to < has {
                    let reason = "the guest does not answer".to_owned();
                    self.finish(vm, pod, kind, Ending::Failed(reason));
                    return;
                } else if trouble.partial {
                    next = Bytes(has.0.midpoint(next.0)).round_down(Bytes::from_mib(2)).max(has);
                }
                size.memory = next;
            }
        }
        self.plug(vm, pod, size);
        if trouble.partial && matches!(order.what, What::Memory(to) if to > size.memory) {
            let reason = "the guest has plugged a part in time".to_owned();
            self.finish(vm, pod, kind, Ending::Partial(reason));
            return;
        }
        if trouble.partial && matches!(order.what, What::Memory(to) if to < size.memory) {
            let reason = "the guest could not free more".to_owned();
            self.finish(vm, pod, kind, Ending::Partial(reason));
            return;
        }
        if let Some(runner) = self.runner(vm, pod)
            && let Some(order) = &mut runner.lanes[kind.index()]
        {
            order.since = now;
        }
        self.begin_step(vm, pod, kind);
    }

    /// The hypervisor has another size.
    fn plug(&mut self, vm: VmId, pod: PodId, size: Size) {
        let now = self.now;
        let Some(runner) = self.runner(vm, pod) else { return };
        let before = runner.size();
        let Size { cpu, memory } = size;
        runner.plugged = Plugged { vcpus: cpu.whole_up(), cpu, memory };
        let kills = self.vms[vm as usize].guest.resize(size, now);
        self.resized(vm, before, size, kills);
        self.workload_changed(vm);
        self.runner_changes(vm, pod);
    }
}
