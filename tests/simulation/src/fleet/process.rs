//! The processes of the extenders: they send, are held up, stop in good order or die, and start again.

use std::time::Duration;

use guest_units::Moment;
use scheduler_ledger::ResizeResult;

use super::extender::{Extender, Open};
use super::lease::MARGIN;
use super::message::{Happening, Link, Message, Watcher};
use super::object::{Twin, VmId};
use super::post::PERMIT_LIMIT;
use super::queue::Turn;
use super::world::World;

/// Calls of this kind are bindings, of the pod whose number follows.
const BINDING: u8 = 2;

/// What tells a call that only the holder of the lease may make from others.
pub(super) fn call(message: &Message) -> Option<(u8, u32, u64)> {
    match *message {
        Message::Resize { pod, number, .. } | Message::Resized { pod, number, .. } => {
            Some((0, pod, number))
        }
        Message::Approve { vm, seal, .. } => Some((1, vm, seal.generation)),
        Message::Approved { vm, generation, .. } => Some((1, vm, generation)),
        Message::Bind { pod, .. } | Message::Bound { pod, .. } => Some((BINDING, pod, 0)),
        Message::Fence { pod, number, .. }
        | Message::Fenced { pod, number, .. }
        | Message::FenceFailed { pod, number, .. } => Some((3, pod, number)),
        _ => None,
    }
}

/// The call has failed: nothing was sent.
fn not_held(message: &Message) -> Option<Message> {
    Some(match *message {
        Message::Resize { pod, life, number, .. } => {
            Message::Resized { pod, life, number, result: ResizeResult::NotDone }
        }
        Message::Approve { vm, life, seal } => {
            Message::Approved { vm, life, generation: seal.generation, written: false }
        }
        Message::Bind { pod, life, .. } => Message::Bound { pod, life, done: false },
        Message::Fence { pod, number, .. } => Message::FenceFailed { pod, number },
        _ => return None,
    })
}

/// The extender that a message is for.
fn addressee(link: Link, message: &Message) -> Option<Twin> {
    match (link, message) {
        (_, Message::Permit { twin, .. }) => Some(*twin),
        (Link::Watch(Watcher::Extender(twin)), _) => Some(twin),
        (
            Link::ExtenderApi(twin),
            Message::Resized { .. }
            | Message::Approved { .. }
            | Message::Fenced { .. }
            | Message::FenceFailed { .. }
            | Message::LookedUp { .. }
            | Message::Bound { .. },
        )
        | (
            Link::Lease(twin),
            Message::LeaseShown { .. } | Message::LeaseWritten { .. } | Message::LeaseFailed { .. },
        ) => Some(twin),
        _ => None,
    }
}

impl World {
    /// An extender sends a message; one that is held up has not sent it yet.
    pub(crate) fn say(&mut self, twin: Twin, link: Link, message: Message) {
        if let Some(lasts) = self.extenders[twin as usize].holds_up.take() {
            self.stands_still(twin, lasts);
        }
        let late = self.extenders[twin as usize].held_up.since(self.now);
        self.send_after(late, link, message);
    }

    /// A call that only the holder of the lease may make.
    pub(crate) fn call(&mut self, twin: Twin, epoch: u64, message: Message) {
        let link = Link::ExtenderApi(twin);
        if self.holds(twin, epoch) {
            self.extenders[twin as usize].calls.extend(call(&message));
            self.say(twin, link, message);
        } else if let Some(failed) = not_held(&message) {
            self.queue.push(self.now, Happening::Deliver(link, Box::new(failed)));
        }
    }

    /// A call has ended, in whatever way. A process that is to stop has waited for that.
    pub(crate) fn call_ended(&mut self, twin: Twin, ended: (u8, u32, u64)) {
        let extender = &mut self.extenders[twin as usize];
        if extender.calls.remove(&ended) && extender.stopping && extender.calls.is_empty() {
            self.lease_given_back(twin);
        }
    }

    /// An extender is asked to stop: it grants nothing any more, and gives the lease back when its calls have ended.
    pub(crate) fn extender_stops(&mut self, twin: Twin) {
        let extender = &mut self.extenders[twin as usize];
        extender.stopping = true;
        extender.candidate.ends();
        if extender.calls.is_empty() {
            self.lease_given_back(twin);
        } else {
            let until = self.now + MARGIN;
            self.queue.push(until, Happening::Farewell(twin, extender.life));
        }
    }

    /// It waits no longer: another takes the lease when it has stood still.
    pub(crate) fn extender_leaves(&mut self, twin: Twin, life: u32) {
        let extender = &self.extenders[twin as usize];
        if extender.life == life && !extender.calls.is_empty() {
            self.extender_dies(twin);
        }
    }

    /// Nothing of an extender moves for a while: from now on, or from the next message on, which it has made and not sent.
    pub(crate) fn hold_up(&mut self, twin: Twin, lasts: Duration) {
        let at_once = self.faults.either();
        let extender = &mut self.extenders[twin as usize];
        if extender.up && at_once {
            self.stands_still(twin, lasts);
        } else if extender.up {
            extender.holds_up = Some(lasts);
        }
    }

    /// Whoever has asked it gives that up in time.
    fn stands_still(&mut self, twin: Twin, lasts: Duration) {
        let extender = &mut self.extenders[twin as usize];
        extender.held_up = extender.held_up.max(self.now + lasts);
        let open: Vec<Open> = extender.open.values().filter(|open| !open.echo).copied().collect();
        for Open { vm, life, generation, since, .. } in open {
            let failed = Message::PermitFailed { vm, life, generation, newest: None };
            self.give_up(vm, (since + PERMIT_LIMIT).max(self.now), failed);
        }
    }

    fn give_up(&mut self, vm: VmId, at: Moment, failed: Message) {
        let link = Link::Permit(self.vms[vm as usize].node_now());
        self.queue.push(at, Happening::Deliver(link, Box::new(failed)));
    }

    /// What happens to an extender that is held up happens when it goes on, in the order in which it was to happen. An agent does not wait for that.
    pub(crate) fn put_off(&mut self, until: Moment, turn: Turn, what: Happening) {
        if let Happening::Deliver(_, message) = &what
            && let Message::Permit { vm, life, generation, echo: false, .. } = **message
        {
            let failed = Message::PermitFailed { vm, life, generation, newest: None };
            self.give_up(vm, self.now + PERMIT_LIMIT, failed);
        }
        self.queue.put_off(until, turn, what);
    }

    /// Until when what happens to an extender that is held up has to wait.
    pub(crate) fn held_up(&self, what: &Happening) -> Option<Moment> {
        let now = self.now;
        if self.extenders.iter().all(|extender| extender.held_up <= now) {
            return None;
        }
        let twin = match what {
            Happening::Ledger(twin)
            | Happening::Lease(twin, _)
            | Happening::Farewell(twin, _)
            | Happening::NodeSeen(twin, _) => *twin,
            Happening::Deliver(link, message) => addressee(*link, message)?,
            _ => return None,
        };
        Some(self.extenders[twin as usize].held_up).filter(|until| *until > now)
    }

    pub(crate) fn extender_dies(&mut self, twin: Twin) {
        self.lives += 1;
        let life = self.lives;
        let extender = &mut self.extenders[twin as usize];
        let open = std::mem::take(&mut extender.open);
        let calls = std::mem::take(&mut extender.calls);
        let candidate = extender.candidate.next(extender.stopping);
        *extender =
            Extender { up: false, life, again: true, candidate, ..Extender::new(twin, false) };
        for Open { vm, life, generation, echo, .. } in open.into_values() {
            if !echo {
                let failed = Message::PermitFailed { vm, life, generation, newest: None };
                let link = Link::Permit(self.vms[vm as usize].node_now());
                let at = self.now + self.hop(link);
                self.give_up(vm, at, failed);
            }
        }
        // kube-scheduler, whose call has failed, knows nothing of a binding that was sent.
        for (_, pod, _) in calls.into_iter().filter(|call| call.0 == BINDING) {
            self.wait_for_node(pod);
        }
    }

    pub(crate) fn extender_starts(&mut self, twin: Twin) {
        self.extenders[twin as usize].up = true;
        self.watches.entry(Watcher::Extender(twin)).or_default().life += 1;
        self.relist(Watcher::Extender(twin));
        self.candidate_begins(twin);
    }
}
