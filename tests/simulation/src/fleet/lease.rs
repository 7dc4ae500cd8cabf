//! Who of two extenders may grant: the steps of `scheduler/extender/src/lease.rs`, against a Lease that the API server of the
//! model keeps. What is searched here is these rules, together with what the ledgers make of them.
//!
//! A fleet without a standby has one extender that always leads.

use std::time::Duration;

use guest_units::Moment;
use scheduler_ledger::Event;

use super::bug::Bug;
use super::fault::Kind;
use super::message::{Happening, Link, Message};
use super::object::Twin;
use super::world::World;

/// A lease that stands still so long is nobody's.
const DURATION: Duration = Duration::from_millis(3750);
/// A holder grants so long after the beginning of its last renewal.
const DEADLINE: Duration = Duration::from_millis(2500);
/// For a turn at the Lease.
const CALL_LIMIT: Duration = Duration::from_millis(1250);
/// A call that only the holder may make takes no longer.
pub(crate) const MARGIN: Duration = Duration::from_millis(1250);
const RENEW_EVERY: Duration = Duration::from_millis(500);
/// Who does not hold it looks at it so often.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// From a change of hands until whoever asks reaches the new holder: an endpoint has to become ready, and each node to hear of it.
const ROUTED: Duration = Duration::from_millis(400);
const FOR_EVER: Moment = Moment::from_secs(1 << 40);

/// A process that may hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    pod: u32,
    life: u32,
}

/// The object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    holder: Option<Holder>,
    /// Changes of hands: the epoch.
    pub(crate) changes: u64,
    version: u64,
}

impl Lease {
    /// Of the first extender, which has just begun.
    pub(crate) fn new() -> Self {
        Self { holder: Some(Holder { pod: 0, life: 1 }), changes: 1, version: 1 }
    }
}

#[derive(Debug, Clone, Copy)]
struct Held {
    epoch: u64,
    until: Moment,
}

/// What an extender's process knows of the Lease.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Candidate {
    /// The pod that it runs in.
    pod: u32,
    /// Counts its turns, and the pauses between them.
    turn: u64,
    began: Moment,
    /// What the ledger was told.
    mine: Option<u64>,
    held: Option<Held>,
    /// Version of the Lease of another, and since when it stands still.
    other: Option<(u64, Moment)>,
}

impl Candidate {
    /// Of the extender with this number.
    pub(crate) fn new(twin: Twin, alone: bool) -> Self {
        let mut candidate = Self { pod: twin, ..Self::default() };
        if twin == 0 {
            let until = if alone { FOR_EVER } else { Moment(DEADLINE) };
            (candidate.mine, candidate.held) = (Some(1), Some(Held { epoch: 1, until }));
        }
        candidate
    }

    /// Of the process that comes next, in the same pod or in another one.
    pub(crate) fn next(self, other_pod: bool) -> Self {
        let pod = if other_pod { self.pod + 2 } else { self.pod };
        Self { pod, turn: self.turn + 1, ..Self::default() }
    }

    /// The epoch that the ledger leads in, as far as this process knows.
    pub(crate) fn mine(&self) -> Option<u64> {
        self.mine
    }

    /// The process is to stop: it holds nothing any more, and takes no turn.
    pub(crate) fn ends(&mut self) {
        (self.held, self.turn) = (None, self.turn + 1);
    }
}

impl World {
    /// Whether an extender holds the lease in this epoch, by its own clock: the last look before anything is signed or sent.
    pub(crate) fn holds(&self, twin: Twin, epoch: u64) -> bool {
        let extender = &self.extenders[twin as usize];
        extender.believes || self.held(twin).is_some_and(|held| held.epoch == epoch)
    }

    fn held(&self, twin: Twin) -> Option<Held> {
        let outstays = self.bug == Some(Bug::ExtenderOutstaysLease);
        let held = self.extenders[twin as usize].candidate.held;
        held.filter(|held| self.now < held.until || outstays)
    }

    /// The extender that leads; if none does, the one that did last.
    pub(crate) fn leader(&self) -> Twin {
        let named = self.lease.holder.map_or(0, |holder| holder.pod % 2);
        (0..self.twin_count()).find(|twin| self.held(*twin).is_some()).unwrap_or(named)
    }

    /// Whether anybody grants.
    pub(crate) fn is_led(&self) -> bool {
        self.extenders[self.leader() as usize].candidate.mine.is_some()
    }

    fn holder(&self, twin: Twin) -> Holder {
        let extender = &self.extenders[twin as usize];
        Holder { pod: extender.candidate.pod, life: extender.life }
    }

    /// A process begins to want the lease.
    pub(crate) fn candidate_begins(&mut self, twin: Twin) {
        if self.settings.standby {
            let turn = self.extenders[twin as usize].candidate.turn;
            self.queue.push(self.now, Happening::Lease(twin, turn));
        } else if self.extenders[twin as usize].candidate.mine.is_none() {
            self.lease.changes += 1;
            let epoch = self.lease.changes;
            let held = Some(Held { epoch, until: FOR_EVER });
            self.extenders[twin as usize].candidate.held = held;
            self.lease_noted(twin, Some(epoch));
        }
    }

    /// The pause between two turns is over.
    pub(crate) fn lease_is_due(&mut self, twin: Twin, turn: u64) {
        let extender = &self.extenders[twin as usize];
        if extender.up && extender.candidate.turn == turn {
            self.lease_turn(twin);
        }
    }

    /// Begins a turn: the Lease is read.
    pub(crate) fn lease_turn(&mut self, twin: Twin) {
        let now = self.now;
        let extender = &mut self.extenders[twin as usize];
        let (life, candidate) = (extender.life, &mut extender.candidate);
        (candidate.turn, candidate.began) = (candidate.turn + 1, now);
        let (turn, until) = (candidate.turn, now + CALL_LIMIT);
        self.say(twin, Link::Lease(twin), Message::LeaseRead { life, turn, until });
    }

    /// The API server's part.
    pub(crate) fn lease_at_api(&mut self, link: Link, message: &Message) {
        match *message {
            Message::LeaseRead { life, turn, until } => {
                let lease = self.lease;
                self.send(link, Message::LeaseShown { life, turn, until, lease });
            }
            Message::LeaseWrite { life, turn, until, lease } => {
                let written = lease.version == self.lease.version && !self.faults.conflict();
                if written {
                    self.lease = Lease { version: lease.version + 1, ..lease };
                }
                let epoch = written.then_some(lease.changes);
                self.send(link, Message::LeaseWritten { life, turn, until, epoch });
            }
            _ => {}
        }
    }

    /// An answer of the API server about the Lease.
    pub(crate) fn lease_heard(&mut self, twin: Twin, message: &Message) {
        let (Message::LeaseShown { life, turn, .. }
        | Message::LeaseWritten { life, turn, .. }
        | Message::LeaseFailed { life, turn }) = *message
        else {
            return;
        };
        let extender = &self.extenders[twin as usize];
        if extender.life != life || extender.candidate.turn != turn {
            return;
        }
        if extender.stopping {
            self.lease_released(twin, message);
            return;
        }
        match *message {
            Message::LeaseShown { until, lease, .. } => self.lease_shown(twin, until, lease),
            Message::LeaseWritten { epoch: Some(epoch), .. } => {
                let candidate = &mut self.extenders[twin as usize].candidate;
                let until = candidate.began + DEADLINE;
                candidate.held = Some(Held { epoch, until });
                self.lease_turn_ends(twin, Some(epoch));
            }
            _ => {
                let mine = self.extenders[twin as usize].candidate.mine;
                let kept = mine.filter(|_| self.held(twin).is_some());
                self.lease_turn_ends(twin, kept);
            }
        }
    }

    fn lease_shown(&mut self, twin: Twin, until: Moment, seen: Lease) {
        let me = self.holder(twin);
        let newest = self.extenders[twin as usize].ledger.newest_epoch_seen();
        let changes = if seen.holder == Some(me) {
            if newest > seen.changes { newest.saturating_add(1) } else { seen.changes }
        } else if !self.may_take(twin, seen) {
            self.lease_turn_ends(twin, None);
            return;
        } else if self.bug == Some(Bug::ExtenderKeepsEpoch) {
            seen.changes.max(newest)
        } else {
            seen.changes.max(newest).saturating_add(1)
        };
        let extender = &self.extenders[twin as usize];
        let (life, turn) = (extender.life, extender.candidate.turn);
        let lease = Lease { holder: Some(me), changes, ..seen };
        self.say(twin, Link::Lease(twin), Message::LeaseWrite { life, turn, until, lease });
    }

    /// Whether the holder is gone: it said so, it ran in this very pod, or the lease stands still.
    fn may_take(&mut self, twin: Twin, seen: Lease) -> bool {
        let now = self.now;
        let candidate = &mut self.extenders[twin as usize].candidate;
        match seen.holder {
            None => return self.bug != Some(Bug::ExtenderIgnoresRelease),
            Some(holder) if holder.pod == candidate.pod => return true,
            Some(_) => {}
        }
        match candidate.other {
            Some((version, since)) if version == seen.version => now.since(since) > DURATION,
            _ => {
                candidate.other = Some((seen.version, now));
                false
            }
        }
    }

    fn lease_turn_ends(&mut self, twin: Twin, epoch: Option<u64>) {
        self.lease_noted(twin, epoch);
        let pause = if epoch.is_some() { RENEW_EVERY } else { LOOK_EVERY };
        let candidate = &mut self.extenders[twin as usize].candidate;
        candidate.turn += 1;
        let turn = candidate.turn;
        self.queue.push(self.now + pause, Happening::Lease(twin, turn));
    }

    /// Makes a change known to the ledger, and to those who ask.
    fn lease_noted(&mut self, twin: Twin, epoch: Option<u64>) {
        let candidate = &mut self.extenders[twin as usize].candidate;
        if candidate.mine == epoch {
            return;
        }
        candidate.mine = epoch;
        if epoch.is_none() {
            candidate.held = None;
        }
        if self.settings.trace.is_some() {
            self.note(&format!("extender {twin} leads in epoch {epoch:?}"));
        }
        self.tell_ledger(twin, Event::Leader(epoch));
        let Some(epoch) = epoch else { return };
        for place in 0..self.routes.len() {
            let late = self.draw_span(ROUTED);
            self.queue.push(self.now + late, Happening::Route(place, twin, epoch));
        }
        // Approvals of the epoch before are replaced: guests that sleep are looked at again.
        for vm in 0..self.vm_count() {
            if self.vms[vm as usize].guest.asleep {
                self.look_soon(vm);
            }
        }
    }

    /// Whoever asks from there hears of the new holder, unless that is overtaken: versions of an object are seen in their order.
    pub(crate) fn routed(&mut self, place: usize, twin: Twin, epoch: u64) {
        let stale = self.faults.active.iter();
        let stale = stale.filter(|(_, kind)| *kind == Kind::StaleRoute(place)).count() > 0;
        let led = self.extenders[twin as usize].candidate.mine.is_some();
        if !stale && led && epoch >= self.routes[place].1 {
            self.routes[place] = (twin, epoch);
        }
    }

    /// A process that is to stop has waited for its calls: the next one may begin at once.
    pub(crate) fn lease_given_back(&mut self, twin: Twin) {
        if self.extenders[twin as usize].candidate.mine.is_some() {
            self.lease_turn(twin);
        } else {
            self.extender_dies(twin);
        }
    }

    fn lease_released(&mut self, twin: Twin, message: &Message) {
        let me = self.holder(twin);
        match *message {
            Message::LeaseShown { life, turn, until, lease } if lease.holder == Some(me) => {
                let lease = Lease { holder: None, ..lease };
                self.say(twin, Link::Lease(twin), Message::LeaseWrite { life, turn, until, lease });
            }
            _ => self.extender_dies(twin),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_stops_before_another_begins() {
        assert!(DEADLINE + CALL_LIMIT <= DURATION && DEADLINE + MARGIN <= DURATION);
    }
}
