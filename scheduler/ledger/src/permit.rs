//! From a request to its answer.
//!
//! ```text
//!              nothing grows, or backed already
//!   asked ----------------------------------------------------> answered, approval given
//!     | room                                                       ^
//!     +------> Growing: requests ordered -- kubelet allocated -----+
//!     |           |  refused, given up: ordered back, answered
//!     |           |  room taken by another before it was ordered: Waiting
//!     |           +- slow: answered, then Held for the next request
//!     | no room, or less than leases can make
//!     +------> Waiting: tried again whenever something on the node changes; answered after `hold`
//! ```
//!
//! Requests of one node are served in the order in which their VMs began to be short of something. Whoever cannot
//! be helped does not block those behind.

use guest_units::{Moment, Size};
use scheduler_protocol::{Outcome, RefusalCode};

use crate::backing::spread;
use crate::event::{Action, Answer, Asked, Notice, Ticket, Why};
use crate::facts::PodFacts;
use crate::ledger::Ledger;
use crate::pod::back_off;
use crate::settings::Settings;
use crate::slab::{NodeId, VmId};
use crate::vm::{Wish, WishState, grows};

impl Ledger {
    /// Takes in a request, or refuses it.
    pub(crate) fn asked(&mut self, asked: Asked, now: Moment) {
        let id = match self.admit(&asked) {
            Ok(id) => id,
            Err(answer) => {
                self.answer(asked.ticket, answer, Why::Refused);
                return;
            }
        };
        let Asked { ticket, pod, generation, want, least, current, .. } = asked;
        let rank = self.last_rank + 1;
        let book = self.vms.get_mut(id).and_then(|slot| slot.book.as_mut());
        let Some(book) = book else { return };
        book.newest_request = Some((pod.uid, generation));
        let (want, least) = (book.clamp(want), book.clamp(least));
        let wish = Wish {
            own: false,
            ticket: Some(ticket),
            generation,
            want,
            least,
            // What it gives back it relies on no more.
            current: current.min(want),
            since: now,
            not_before: now,
            failures: 0,
            state: WishState::Waiting,
            refused: None,
            reason: String::new(),
        };
        if book.rank.is_none() && grows(want, book.permit()) {
            book.rank = Some(rank);
            self.last_rank = rank;
        }
        let replaced = book.wish.replace(wish).and_then(|old| old.ticket);
        if let Some(old) = replaced {
            let answer = Answer::Refused {
                code: RefusalCode::Stale,
                message: "a newer request took its place".to_owned(),
                newest: Some(generation),
            };
            self.answer(old, answer, Why::Superseded);
        }
        if !self.served_at_once(id, now) {
            self.touch_vm(id);
        }
    }

    /// Whether the request is the business of its sender, and new.
    fn admit(&self, asked: &Asked) -> Result<VmId, Answer> {
        let refuse = |code, message: &str| {
            Err(Answer::Refused { code, message: message.to_owned(), newest: None })
        };
        if self.epoch.is_none() {
            return refuse(RefusalCode::NotReady, "this replica does not hold the lease");
        }
        if !self.vms_known() {
            return refuse(RefusalCode::NotReady, "pods and VMs are not completely known yet");
        }
        let id = self.vms.find(&asked.vm.uid);
        let vm = id.and_then(|id| Some((id, self.book(id)?)));
        let vm = vm.filter(|(_, vm)| {
            (&vm.facts.namespace, &vm.facts.name) == (&asked.vm.namespace, &asked.vm.name)
        });
        let Some((id, vm)) = vm else { return refuse(RefusalCode::Unknown, "no such VM") };
        let pod = self.primary(id).map(|slot| &slot.book).filter(|pod| {
            let PodFacts { namespace, name, uid, .. } = &pod.facts;
            (namespace, name, uid) == (&asked.pod.namespace, &asked.pod.name, &asked.pod.uid)
        });
        let Some(pod) = pod else {
            return refuse(RefusalCode::Unknown, "not the present pod of the VM");
        };
        if pod.counts_on() != Some(asked.caller_node.as_str()) {
            return refuse(RefusalCode::Forbidden, "the pod is on another node than the caller");
        }
        if !vm.facts.autoscaled {
            return refuse(RefusalCode::Forbidden, "the VM is not autoscaled");
        }
        match &vm.newest_request {
            Some((uid, newest)) if *uid == asked.pod.uid && *newest > asked.generation => {
                Err(Answer::Refused {
                    code: RefusalCode::Stale,
                    message: "a newer request was seen".to_owned(),
                    newest: Some(*newest),
                })
            }
            _ => Ok(id),
        }
    }

    pub(crate) fn refuse_unknown(&mut self, ticket: Ticket, message: &str) {
        let message = message.to_owned();
        let answer = Answer::Refused { code: RefusalCode::Unknown, message, newest: None };
        self.answer(ticket, answer, Why::Refused);
    }

    /// Without the lease nothing is decided: every open request ends.
    pub(crate) fn refuse_open_requests(&mut self) {
        for vm in self.vms.by_name(|_, slot| slot.book.is_some()) {
            let Some(book) = self.book_mut(vm) else { continue };
            book.writing = None;
            let Some(ticket) = book.wish.take().and_then(|wish| wish.ticket) else { continue };
            let message = "the lease was lost".to_owned();
            let answer = Answer::Refused { code: RefusalCode::NotReady, message, newest: None };
            self.answer(ticket, answer, Why::Refused);
        }
    }

    /// Finds out what a VM wants that nobody asks for.
    pub(crate) fn plan_vm(&mut self, vm: VmId, now: Moment) {
        let Some(epoch) = self.epoch.filter(|_| self.vms_known()) else { return };
        let placed = self.primary(vm).is_some();
        let rank = self.last_rank + 1;
        let renew = self.renew_at(vm).is_some_and(|at| at <= now);
        let Some(book) = self.book_mut(vm) else { return };
        if !placed {
            if let Some(ticket) = book.wish.take().and_then(|wish| wish.ticket) {
                self.refuse_unknown(ticket, "the VM has no pod");
            }
            if !self.resolve_doubts_of(vm, now) {
                self.return_approval(vm, epoch, now);
            }
            return;
        }
        if book.wish.as_ref().is_some_and(|wish| !wish.own) {
            return;
        }
        match (book.own_want(epoch, renew), &mut book.wish) {
            (None, wish) => {
                *wish = None;
                book.show_again(epoch, now);
            }
            (Some(want), Some(wish)) if wish.want == want => {}
            (Some(want), wish) => {
                *wish = Some(Wish {
                    own: true,
                    ticket: None,
                    generation: 0,
                    want,
                    least: book.facts.min,
                    current: book.facts.min,
                    since: now,
                    not_before: now,
                    failures: 0,
                    state: WishState::Waiting,
                    refused: None,
                    reason: String::new(),
                });
                if book.rank.is_none() {
                    book.rank = Some(rank);
                    self.last_rank = rank;
                }
            }
        }
    }

    pub(crate) fn step_growing(&mut self, vm: VmId, now: Moment) {
        let Some(pod) = self.primary(vm) else { return };
        let backed = pod.book.backed();
        let state = self.book(vm).and_then(|book| book.wish.as_ref()).map(|wish| wish.state);
        let growing = match state {
            Some(WishState::Growing { requests, .. }) => Some(requests),
            _ => None,
        };
        // What kubelet refuses together with a lease is tried without it.
        let refused = growing.is_some_and(|requests| pod.book.refuses(requests))
            && self.lease_refused(pod).is_none();
        // Not ordered yet, and somebody else has the room by now: what is left is found anew.
        let taken = growing
            .is_some_and(|requests| !pod.at.is_some_and(|node| self.may_grow(pod, node, requests)));
        let moves = self.keeps_size(vm);
        let Settings { keep_late, give_up, hold, resize_limit, .. } = self.settings;
        let Some(book) = self.book_mut(vm) else { return };
        let Some(wish) = book.wish.as_mut() else { return };
        match wish.state {
            WishState::Waiting => {}
            WishState::Held { until, .. } if until <= now => book.wish = None,
            WishState::Held { .. } => {}
            WishState::Growing { .. } if moves => wish.state = WishState::Waiting,
            WishState::Growing { target, requests, .. } if requests.fits_in(backed) => {
                if wish.own || wish.ticket.is_some() {
                    self.finish(vm, target, Why::KubeletAllocated, now);
                } else {
                    wish.state = WishState::Held { requests, until: now + keep_late };
                }
            }
            WishState::Growing { .. } if taken => wish.state = WishState::Waiting,
            WishState::Growing { since, .. } => {
                if wish.refused.is_some() || refused || since + give_up <= now {
                    self.revoke(vm, now);
                } else if wish.ticket.is_some() && wish.answer_by(since, hold, resize_limit) <= now
                {
                    wish.reason = "kubelet has not allocated it yet".to_owned();
                    self.answer_short(vm, Why::KubeletSlow);
                }
            }
        }
    }

    /// Kubelet will not give it: the order is taken back, since others count it as used.
    fn revoke(&mut self, vm: VmId, now: Moment) {
        let Some(book) = self.book_mut(vm) else { return };
        let Some(wish) = book.wish.as_mut() else { return };
        wish.state = WishState::Waiting;
        let reason = wish.refused.take().unwrap_or(REFUSED_BY_KUBELET);
        wish.failures = wish.failures.saturating_add(1);
        wish.not_before = now + back_off(wish.failures);
        reason.clone_into(&mut wish.reason);
        if !wish.own {
            let target = shrunk(wish.want, book.permit());
            self.finish(vm, target, Why::KubeletRefused, now);
        }
    }

    pub(crate) fn step_waiting(&mut self, vm: VmId, node: NodeId, now: Moment) {
        let Some(book) = self.book(vm) else { return };
        let Some(wish) = book.wish.as_ref().filter(|wish| wish.state == WishState::Waiting) else {
            return;
        };
        let (own, due) = (wish.own, wish.since + self.settings.hold <= now);
        if self.outdated(vm) || !self.adopt(vm) {
            if due && !own {
                self.refuse_outdated(vm);
            }
            return;
        }
        let Some(book) = self.book(vm) else { return };
        let Some(wish) = book.wish.as_ref() else { return };
        let permit = book.permit();
        if !grows(wish.want, permit) {
            let same = book.newest().is_some_and(|seal| seal.size == wish.want);
            let why = if same { Why::Repeated } else { Why::NothingGrows };
            self.finish(vm, wish.want, why, now);
            return;
        }
        let Some(pod) = self.primary(vm).filter(|pod| pod.at == Some(node)) else {
            return;
        };
        let Some(price) = pod.book.facts.runner().map(|runner| book.price(runner)) else { return };
        // A target has the size with which its move began.
        let moves = self.keeps_size(vm);
        let target = if wish.not_before > now || moves {
            permit
        } else if self.node_complete(node) {
            let affordable = price.affordable(self.room_for(pod, node).max(pod.book.backed()));
            book.reachable(wish.want, wish.least, affordable)
        } else {
            permit
        };
        // What leases can make room for, and are not given too long for, is waited for.
        let patience =
            if grows(target, permit) { self.settings.hold } else { self.settings.resize_limit };
        let better = (wish.since + patience > now)
            .then(|| self.obtainable(vm, node, now))
            .flatten()
            .is_some_and(|better| grows(better.target, target));
        if better {
            return;
        }
        let requests = price.cost(book.promise().max(target));
        if grows(target, permit) && requests.fits_in(pod.book.backed()) {
            self.finish(vm, target, Why::AlreadyBacked, now);
            return;
        }
        // There may be room for the growth and none for what it comes on top of: that would be taken back at once.
        if grows(target, permit) && self.may_grow(pod, node, requests) {
            self.set_state(vm, WishState::Growing { target, requests, since: now });
            return;
        }
        let reason = self.shortage(vm, node, pod, wish.want, permit);
        if let Some(wish) = self.book_mut(vm).and_then(|book| book.wish.as_mut()) {
            wish.reason = reason;
        }
        let complete = self.node_complete(node);
        let why = match (complete, moves) {
            (_, true) => Why::Moves,
            (true, false) => Why::NoRoom,
            (false, false) => Why::Incomplete,
        };
        if own {
            self.wait_openly(vm, now);
        } else if due {
            let target =
                self.book(vm).and_then(|book| Some(shrunk(book.wish.as_ref()?.want, permit)));
            self.finish(vm, target.unwrap_or(permit), why, now);
        }
    }

    fn set_state(&mut self, vm: VmId, state: WishState) {
        if let Some(wish) = self.book_mut(vm).and_then(|book| book.wish.as_mut()) {
            wish.state = state;
        }
    }

    /// A wish of the spec waits as long as it must; what it gives back is given back at once.
    fn wait_openly(&mut self, vm: VmId, now: Moment) {
        let Some(epoch) = self.epoch else { return };
        let Some(book) = self.book_mut(vm) else { return };
        let Some(wish) = &book.wish else { return };
        let target = shrunk(wish.want, book.permit());
        let reason = wish.reason.clone();
        // An approval of this epoch ends what earlier ledgers may have given, also when nothing changes; it is written until
        // the object shows it.
        let seal = book.seal_for(epoch, target);
        book.write(seal, now);
        self.tell_short(vm, reason);
    }

    fn tell_short(&mut self, vm: VmId, reason: String) {
        let Some(book) = self.book_mut(vm) else { return };
        if !std::mem::replace(&mut book.told_short, true) {
            let vm = book.reference();
            self.push(Action::Notice { vm, notice: Notice::Denied { reason } }, Why::NoRoom);
        }
    }

    /// Ends a wish with what the VM gets.
    fn finish(&mut self, vm: VmId, size: Size, why: Why, now: Moment) {
        let Some(epoch) = self.epoch else { return };
        let (renews, confirm_write) = (self.settings.lease.is_some(), self.settings.confirm_write);
        let Some(book) = self.book_mut(vm) else { return };
        let Some(wish) = book.wish.take() else { return };
        if !wish.own && wish.ticket.is_none() {
            // It was answered before: its agent would not be told of an approval. What is backed by now it has when it asks again.
            return;
        }
        let before = book.permit();
        let seal = book.seal_for(epoch, size);
        let all = !grows(wish.want, size);
        if !wish.own && renews {
            book.renew(seal, now + confirm_write + spread(vm));
        }
        let (own, reason) = (wish.own, wish.reason.clone());
        let reason = if all { String::new() } else { reason };
        if own {
            book.write(seal, now);
        }
        if let Some(ticket) = wish.ticket {
            let outcome = outcome(all, before, size);
            let reason =
                if all || !reason.is_empty() { reason.clone() } else { PARTIAL.to_owned() };
            let leased = self.at_hand(vm, size);
            let answer =
                Answer::Permit { generation: wish.generation, outcome, seal, leased, reason };
            self.answer(ticket, answer, why);
        }
        if !all {
            if own {
                self.set_wish(vm, Wish { state: WishState::Waiting, not_before: now, ..wish });
            }
            self.tell_short(vm, if reason.is_empty() { PARTIAL.to_owned() } else { reason });
            return;
        }
        let Some(book) = self.book_mut(vm) else { return };
        book.rank = None;
        if std::mem::take(&mut book.told_short) {
            let (vm, notice) = (book.reference(), Notice::Served { size });
            self.push(Action::Notice { vm, notice }, why);
        }
    }

    fn set_wish(&mut self, vm: VmId, wish: Wish) {
        if let Some(book) = self.book_mut(vm) {
            book.wish = Some(wish);
        }
    }

    /// Answers with the present permit, while the wish goes on.
    fn answer_short(&mut self, vm: VmId, why: Why) {
        let Some(epoch) = self.epoch else { return };
        let Some(book) = self.book_mut(vm) else { return };
        let permit = book.permit();
        let seal = book.seal_for(epoch, permit);
        let Some(wish) = book.wish.as_mut() else { return };
        let Some(ticket) = wish.ticket.take() else { return };
        let (generation, reason) = (wish.generation, wish.reason.clone());
        let (outcome, leased) = (Outcome::Denied, self.at_hand(vm, permit));
        let answer = Answer::Permit { generation, outcome, seal, leased, reason: reason.clone() };
        self.answer(ticket, answer, why);
        self.tell_short(vm, reason);
    }
}

pub(crate) const REFUSED_BY_API: &str = "the API server refused to resize the pod";
pub(crate) const REFUSED_BY_QUOTA: &str =
    "a ResourceQuota of the namespace has no room for the larger pod";
const REFUSED_BY_KUBELET: &str = "kubelet has no room on the node for the larger pod now";
const PARTIAL: &str = "the node has no room for all of it";

/// What is wanted less is given back, what is wanted more is not given.
fn shrunk(want: Size, permit: Size) -> Size {
    want.min(permit)
}

fn outcome(all: bool, before: Size, after: Size) -> Outcome {
    if all {
        Outcome::Granted
    } else if after == before {
        Outcome::Denied
    } else {
        Outcome::Partial
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_units::{Bytes, MilliCpu};

    #[test]
    fn outcomes() {
        let size = |cpu, memory| Size { cpu: MilliCpu(cpu), memory: Bytes(memory) };
        assert_eq!(outcome(true, size(1, 1), size(2, 2)), Outcome::Granted);
        assert_eq!(outcome(false, size(1, 1), size(2, 1)), Outcome::Partial);
        assert_eq!(outcome(false, size(1, 1), size(1, 1)), Outcome::Denied);
        assert_eq!(shrunk(size(4, 1), size(2, 2)), size(2, 1));
    }
}
