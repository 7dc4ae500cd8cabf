//! Messages on their way: how long they take, what becomes of them, where they arrive, and what a sender hears if they do not.

use std::time::Duration;

use guest_units::Moment;
use rand_distr::{Distribution as _, StandardNormal};
use scheduler_ledger::ResizeResult;

use super::bug::Bug;
use super::fault::{Fate, Way};
use super::lease::MARGIN;
use super::message::{Happening, Link, Message, Watcher};
use super::object::Owner;
use super::world::World;

/// Spread of latencies: of the logarithm.
const SPREAD: f64 = 0.45;
/// No latency is more than so many times the median.
const WORST: f64 = 12.0;

/// Deadlines of requests, as the shells have them.
pub(super) const PERMIT_LIMIT: Duration = Duration::from_secs(2);
const API_LIMIT: Duration = Duration::from_secs(5);
const ORDER_LIMIT: Duration = Duration::from_secs(13);
const FENCED_LIMIT: Duration = MARGIN;
const LOOK_LIMIT: Duration = Duration::from_secs(5);
const GUEST_LIMIT: Duration = Duration::from_secs(2);
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// After so long a message arrives that nobody waits for any more.
const VERY_LATE: Duration = Duration::from_secs(30);

/// The median, measured on the local cluster and by the notes on vsock and virtio-mem.
fn median(link: Link) -> Duration {
    Duration::from_micros(match link.way() {
        Way::Vsock => 150,
        Way::Permit => 1500,
        Way::AgentApi | Way::OperatorApi | Way::ExtenderApi | Way::Lease => 6000,
        Way::Watch => 5000,
        Way::Runner => 2000,
    })
}

impl World {
    /// How long a message takes.
    pub(crate) fn hop(&mut self, link: Link) -> Duration {
        self.draw_span(median(link))
    }

    pub(crate) fn draw_span(&mut self, median: Duration) -> Duration {
        let normal: f64 = StandardNormal.sample(&mut self.latencies);
        median.mul_f64((normal * SPREAD).exp().min(WORST))
    }

    /// Sends a message.
    pub(crate) fn send(&mut self, link: Link, message: Message) {
        self.send_after(Duration::ZERO, link, message);
    }

    /// Sends a message whose sender is held up so long before it gets to that.
    pub(crate) fn send_after(&mut self, late: Duration, link: Link, message: Message) {
        let mut takes = late + self.hop(link);
        match self.faults.fate(link) {
            Fate::Arrives => {}
            Fate::Late(by) => takes += by,
            Fate::Twice(by) => {
                if let Some(echo) = echo(&message) {
                    let at = self.now + takes + by;
                    self.queue.push(at, Happening::Deliver(link, Box::new(echo)));
                }
            }
            Fate::Lost => {
                self.lost(link, message, true);
                return;
            }
        }
        let mut at = self.now + takes;
        if link.way() == Way::Vsock {
            // A stream: nothing overtakes.
            if let Some((vm, direction)) = stream(&message) {
                let last = &mut self.vms[vm as usize].vsock_at[direction];
                at = at.max(*last);
                *last = at;
            }
        }
        if let Some((limit, failure)) =
            failure(&message, self.now).filter(|(limit, _)| takes > *limit)
        {
            self.fail(link, limit, failure);
        }
        self.queue.push(at, Happening::Deliver(link, Box::new(message)));
    }

    fn fail(&mut self, link: Link, limit: Duration, failure: Message) {
        self.queue.push(self.now + limit, Happening::Deliver(link, Box::new(failure)));
    }

    /// A message that does not arrive: whoever waits for it, or for what it would have led to, hears of it in time.
    fn lost(&mut self, link: Link, message: Message, may_be_late: bool) {
        match (link, &message) {
            (Link::Vsock(_), _) => {
                if let Some((vm, _)) = stream(&message) {
                    self.queue.push(self.now + GUEST_LIMIT / 4, Happening::Break(vm));
                }
            }
            (Link::Watch(watcher), _) => self.watch_breaks(watcher),
            _ => {
                if let Some((limit, failure)) = failure(&message, self.now) {
                    self.fail(link, limit, failure);
                }
                // What nobody waits for any more may still arrive.
                let late = late(message).filter(|_| may_be_late);
                if let Some(message) = late.filter(|_| self.faults.either()) {
                    // Nothing bounds how late a resize may be.
                    let very = matches!(message, Message::Resize { .. }) && self.faults.either();
                    let after = if very { VERY_LATE } else { API_LIMIT.mul_f64(0.9) };
                    self.fail(link, after, message);
                }
            }
        }
    }

    /// Something to see for who watches, in the order in which it came about.
    pub(crate) fn show(&mut self, watcher: Watcher, message: Message) {
        if self.watches.get(&watcher).is_some_and(|watch| watch.broken) {
            return;
        }
        let link = Link::Watch(watcher);
        let takes = self.hop(link);
        let late = match self.faults.fate(link) {
            Fate::Arrives | Fate::Twice(_) => Duration::ZERO,
            Fate::Late(by) => by,
            Fate::Lost => {
                self.watch_breaks(watcher);
                return;
            }
        };
        let now = self.now;
        let watch = self.watches.entry(watcher).or_default();
        let at = (now + takes + late).max(watch.last).max(watch.stalled);
        watch.last = at;
        self.queue.push(at, Happening::Deliver(link, Box::new(message)));
    }

    /// What is under way does not arrive; a new list comes after a moment.
    pub(crate) fn watch_breaks(&mut self, watcher: Watcher) {
        let watch = self.watches.entry(watcher).or_default();
        if std::mem::replace(&mut watch.broken, true) {
            return;
        }
        watch.life += 1;
        let again = Happening::Restart(match watcher {
            Watcher::Agent(node) => super::message::Part::AgentWatch(node),
            Watcher::Operator => super::message::Part::OperatorWatch,
            Watcher::Extender(twin) => super::message::Part::ExtenderWatch(twin),
        });
        self.queue.push(self.now + ASK_AGAIN, again);
    }

    pub(crate) fn watch_life(&mut self, watcher: Watcher) -> u32 {
        self.watches.entry(watcher).or_default().life
    }

    /// A message arrives.
    pub(crate) fn deliver(&mut self, link: Link, message: Message) {
        if let Some(vm) = self.settings.trace
            && self.about(&message) == Some(vm)
            && !matches!(message, Message::Sample { .. })
        {
            self.note(&format!("{link:?}: {message:?}"));
        }
        let trap = self.faults.trap.take_if(|(way, _)| *way == link.way()).map(|(_, part)| part);
        let before = trap.is_some() && self.faults.either();
        if let Some(part) = trap.filter(|_| before) {
            self.crash(part);
        }
        self.arrive(link, message);
        if let Some(part) = trap.filter(|_| !before) {
            self.crash(part);
        }
    }

    fn arrive(&mut self, link: Link, message: Message) {
        match message {
            Message::Sample { .. } | Message::Ask { .. } | Message::Reply { .. } => {
                self.agent_hears_guest(message);
            }
            Message::Question { .. } | Message::Notice { .. } => self.guest_hears(&message),
            Message::Permit { .. } => self.extender_is_asked(&message),
            Message::PermitAnswer { .. }
            | Message::PermitFailed { .. }
            | Message::Patched { .. }
            | Message::PatchFailed { .. } => self.agent_hears(message),
            Message::Patch { .. }
            | Message::CreatePod { .. }
            | Message::DeletePod { .. }
            | Message::WriteStatus { .. }
            | Message::Resize { .. }
            | Message::Approve { .. }
            | Message::Fence { .. }
            | Message::LookUp { .. }
            | Message::Bind { .. }
            | Message::LeaseRead { .. }
            | Message::LeaseWrite { .. } => {
                if self.faults.cut(link) {
                    self.lost(link, message, false);
                } else {
                    self.api_hears(link, message);
                }
            }
            Message::VmSeen { watcher, life, vm, object, since } => {
                if life == self.watch_life(watcher) && !self.drops(since) {
                    match watcher {
                        Watcher::Agent(node) => self.agent_sees(node, vm, &object),
                        Watcher::Operator if self.operator.up => self.operator_sees(vm, &object),
                        Watcher::Operator => {}
                        Watcher::Extender(twin) => self.extender_sees(twin, vm, &object),
                    }
                }
            }
            Message::PodSeen { watcher, life, pod, object, since } => {
                if life == self.watch_life(watcher) && !self.drops(since) {
                    match watcher {
                        Watcher::Operator => self.operator_sees_pod(pod, &object),
                        Watcher::Extender(twin) => self.extender_sees_pod(twin, pod, &object),
                        Watcher::Agent(_) => {}
                    }
                }
            }
            Message::Order { vm, pod, epoch, generation, what } => {
                self.runner_is_ordered((vm, pod), epoch, generation, what);
            }
            Message::Look { vm, pod, epoch, first, known } => {
                self.runner_is_asked((vm, pod), epoch, first, known);
            }
            Message::OrderEnded { .. }
            | Message::OrderFailed { .. }
            | Message::Looked { .. }
            | Message::LookFailed { .. }
            | Message::PodDeleted { .. }
            | Message::PodCreated { .. }
            | Message::StatusWritten { .. } => self.operator_hears(message),
            Message::Resized { .. }
            | Message::Approved { .. }
            | Message::Fenced { .. }
            | Message::FenceFailed { .. }
            | Message::LookedUp { .. }
            | Message::Bound { .. } => {
                if let Link::ExtenderApi(twin) = link {
                    self.extender_hears(twin, message);
                }
            }
            Message::LeaseShown { .. }
            | Message::LeaseWritten { .. }
            | Message::LeaseFailed { .. } => {
                if let Link::Lease(twin) = link {
                    self.lease_heard(twin, &message);
                }
            }
        }
    }

    /// Of a deliberate bug.
    fn drops(&self, since: Moment) -> bool {
        let late = self.now.since(since) > Duration::from_secs(3);
        late && self.bug == Some(Bug::WatchersDropWhatIsLate)
    }

    /// Which VM a message is about.
    fn about(&self, message: &Message) -> Option<u32> {
        let of_pod = |pod: u32| match self.pods.get(pod as usize)?.owner {
            Owner::Vm(vm) => Some(vm),
            Owner::Nobody => None,
        };
        match *message {
            Message::Sample { vm, .. }
            | Message::Ask { vm, .. }
            | Message::Question { vm, .. }
            | Message::Notice { vm, .. }
            | Message::Reply { vm, .. }
            | Message::Permit { vm, .. }
            | Message::PermitAnswer { vm, .. }
            | Message::PermitFailed { vm, .. }
            | Message::Patch { vm, .. }
            | Message::Patched { vm, .. }
            | Message::PatchFailed { vm, .. }
            | Message::VmSeen { vm, .. }
            | Message::Order { vm, .. }
            | Message::OrderEnded { vm, .. }
            | Message::OrderFailed { vm, .. }
            | Message::Look { vm, .. }
            | Message::Looked { vm, .. }
            | Message::LookFailed { vm, .. }
            | Message::CreatePod { vm, .. }
            | Message::DeletePod { vm, .. }
            | Message::PodDeleted { vm, .. }
            | Message::PodCreated { vm, .. }
            | Message::WriteStatus { vm, .. }
            | Message::StatusWritten { vm, .. }
            | Message::Approve { vm, .. }
            | Message::Approved { vm, .. } => Some(vm),
            Message::PodSeen { pod, .. }
            | Message::Resize { pod, .. }
            | Message::Resized { pod, .. }
            | Message::Fence { pod, .. }
            | Message::Fenced { pod, .. }
            | Message::FenceFailed { pod, .. }
            | Message::LookUp { pod, .. }
            | Message::LookedUp { pod, .. }
            | Message::Bind { pod, .. }
            | Message::Bound { pod, .. } => of_pod(pod),
            Message::LeaseRead { .. }
            | Message::LeaseShown { .. }
            | Message::LeaseWrite { .. }
            | Message::LeaseWritten { .. }
            | Message::LeaseFailed { .. } => None,
        }
    }

    /// A line of the trace.
    pub(crate) fn note(&mut self, line: &str) {
        if self.trace.len() >= super::world::TRACE {
            self.trace.pop_front();
        }
        let Moment(at) = self.now;
        self.trace.push_back(format!("{:>12.6} {line}", at.as_secs_f64()));
    }
}

/// The VM and the direction of a message between guest and agent.
fn stream(message: &Message) -> Option<(u32, usize)> {
    match message {
        Message::Sample { vm, .. } | Message::Ask { vm, .. } | Message::Reply { vm, .. } => {
            Some((*vm, 0))
        }
        Message::Question { vm, .. } | Message::Notice { vm, .. } => Some((*vm, 1)),
        _ => None,
    }
}

/// The same message once more, sent by a client that repeats what it has got no answer to. Nobody waits for that answer.
fn echo(message: &Message) -> Option<Message> {
    match message {
        Message::Permit { vm, life, pod, generation, want, least, current, twin, .. } => {
            Some(Message::Permit {
                vm: *vm,
                life: *life,
                pod: *pod,
                generation: *generation,
                want: *want,
                least: *least,
                current: *current,
                echo: true,
                twin: *twin,
            })
        }
        Message::Order { .. }
        | Message::Patch { .. }
        | Message::Resize { .. }
        | Message::Approve { .. }
        | Message::OrderEnded { .. }
        | Message::PermitAnswer { .. }
        | Message::StatusWritten { .. } => Some(message.clone()),
        _ => None,
    }
}

/// The same message, if it is one that may still be carried out when nobody waits for it any more.
fn late(message: Message) -> Option<Message> {
    match message {
        Message::Resize { .. }
        | Message::Fence { .. }
        | Message::Order { .. }
        | Message::LeaseWrite { .. } => Some(message),
        // Answers to it have no number of their own: this one's is for nobody.
        Message::WriteStatus { vm, over, status, .. } => {
            Some(Message::WriteStatus { vm, epoch: 0, over, status })
        }
        _ => None,
    }
}

/// What the one who waits hears after how long, if the message does not arrive.
fn failure(message: &Message, now: Moment) -> Option<(Duration, Message)> {
    Some(match *message {
        Message::Permit { vm, life, generation, echo: false, .. }
        | Message::PermitAnswer { vm, life, generation, .. }
        | Message::PermitFailed { vm, life, generation, .. } => {
            (PERMIT_LIMIT, Message::PermitFailed { vm, life, generation, newest: None })
        }
        Message::Patch { vm, life, generation, .. }
        | Message::Patched { vm, life, generation, .. }
        | Message::PatchFailed { vm, life, generation, .. } => {
            let failed = Message::PatchFailed { vm, life, generation, raced: false, seen: None };
            (API_LIMIT, failed)
        }
        Message::Order { vm, pod, epoch, generation, .. }
        | Message::OrderEnded { vm, pod, epoch, generation, .. } => {
            (ORDER_LIMIT, Message::OrderFailed { vm, pod, epoch, generation })
        }
        Message::Look { vm, pod, epoch, .. } | Message::Looked { vm, pod, epoch, .. } => {
            (LOOK_LIMIT, Message::LookFailed { vm, pod, epoch })
        }
        Message::CreatePod { vm, epoch, .. } | Message::PodCreated { vm, epoch, .. } => {
            (API_LIMIT, Message::PodCreated { vm, epoch, done: false })
        }
        Message::DeletePod { vm, pod, epoch } | Message::PodDeleted { vm, pod, epoch, .. } => {
            (API_LIMIT, Message::PodDeleted { vm, pod, epoch, done: false })
        }
        Message::WriteStatus { vm, epoch, .. } | Message::StatusWritten { vm, epoch, .. } => {
            (API_LIMIT, Message::StatusWritten { vm, epoch, version: None, status: None })
        }
        Message::Resize { pod, life, number, .. } | Message::Resized { pod, life, number, .. } => {
            (FENCED_LIMIT, Message::Resized { pod, life, number, result: ResizeResult::Unknown })
        }
        Message::Approve { vm, life, seal } => {
            let generation = seal.generation;
            (FENCED_LIMIT, Message::Approved { vm, life, generation, written: false })
        }
        Message::Approved { vm, life, generation, .. } => {
            (FENCED_LIMIT, Message::Approved { vm, life, generation, written: false })
        }
        Message::Fence { pod, number, .. } | Message::Fenced { pod, number, .. } => {
            (FENCED_LIMIT, Message::FenceFailed { pod, number })
        }
        Message::Bind { pod, life, .. } | Message::Bound { pod, life, .. } => {
            (FENCED_LIMIT, Message::Bound { pod, life, done: false })
        }
        Message::LeaseRead { life, turn, until }
        | Message::LeaseShown { life, turn, until, .. }
        | Message::LeaseWrite { life, turn, until, .. }
        | Message::LeaseWritten { life, turn, until, .. } => {
            (until.since(now), Message::LeaseFailed { life, turn })
        }
        _ => return None,
    })
}
