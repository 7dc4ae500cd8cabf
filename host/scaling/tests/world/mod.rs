//! A small world around a `Scaler`: virtual time, a scheduler, an API server with an operator behind it, and
//! a guest, each of which answers after a moment. It checks the invariants at every action.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod reference;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use guest_units::{Bytes, MilliCpu, Moment, Size};
use host_scaling::{Action, Event, Limits, Policy, Sample, Scaler, SystemSample, VmView, Why};

/// Answers arrive after this.
const ANSWER: Duration = Duration::from_millis(10);
/// The operator and QEMU need this for a plug.
const PLUG: Duration = Duration::from_millis(300);
/// QEMU is done so long before the object shows it.
const SHOWN_AFTER: Duration = Duration::from_millis(200);
/// The operator tries a partial unplug again after this.
const REPLUG: Duration = Duration::from_secs(5);
/// The guest's word holds for so long.
const AGREEMENT: Duration = Duration::from_secs(2);

pub(crate) fn size(cpu_milli: u32, memory_mib: u64) -> Size {
    Size { cpu: MilliCpu(cpu_milli), memory: Bytes(memory_mib << 20) }
}

pub(crate) fn limits(min: Size, max: Size, slot_mib: u64) -> Limits {
    Limits { min, max, slot: Bytes(slot_mib << 20) }
}

/// How the next requests end.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Behaviour {
    /// The scheduler grants no more than this.
    pub(crate) cap: Option<Size>,
    /// The guest accepts nothing below this.
    pub(crate) veto: Option<Size>,
    pub(crate) permit_fails: bool,
    /// Failed permits were issued: only the answer is lost.
    pub(crate) permit_lost: bool,
    pub(crate) patch_fails: bool,
    /// Failed patches are lost races.
    pub(crate) patch_races: bool,
    pub(crate) guest_fails: bool,
    /// An unplug stops at this much memory.
    pub(crate) unplug_stops: Option<Bytes>,
    /// Memory is unplugged, and shown so, in pieces of this.
    pub(crate) pieces: Option<Bytes>,
}

pub(crate) struct World {
    pub(crate) scaler: Scaler,
    pub(crate) limits: Limits,
    pub(crate) policy: Policy,
    /// Comes with every sample.
    pub(crate) system: Option<SystemSample>,
    pub(crate) behaviour: Behaviour,
    pub(crate) now: Moment,
    pub(crate) view: VmView,
    pub(crate) log: Vec<(Moment, Action, Why)>,
    /// What the brain may rely on.
    permit: Size,
    /// The scheduler's newest approval: its number and size.
    issued: (u64, Size),
    /// The approvals that answers carry, by their requests' generations.
    answers: HashMap<u64, (u64, Size)>,
    /// Number of the approval that the object shows.
    shown: u64,
    pending: Vec<(Moment, Event)>,
    /// The operator's orders: each has its size from when it was given.
    plugs: VecDeque<(Moment, Size)>,
    asking: Option<u64>,
    patching: Option<(u64, Size, Option<u64>)>,
    talking: Option<u64>,
    /// What the guest is about to agree to.
    nods: Option<Size>,
    agreed: Option<(Size, Moment)>,
    connected: bool,
}

impl World {
    pub(crate) fn new(limits: Limits) -> Self {
        Self::with(limits, Policy::default())
    }

    pub(crate) fn with(limits: Limits, policy: Policy) -> Self {
        let view = VmView { spec: limits.min, approved: Some(limits.min), plugged: limits.min };
        let mut world = Self {
            scaler: Scaler::new(limits, policy, 100),
            limits,
            policy,
            system: None,
            behaviour: Behaviour::default(),
            now: Moment(Duration::ZERO),
            view,
            log: Vec::new(),
            permit: limits.min,
            issued: (1, limits.min),
            answers: HashMap::new(),
            shown: 1,
            pending: Vec::new(),
            plugs: VecDeque::new(),
            asking: None,
            patching: None,
            talking: None,
            nods: None,
            agreed: None,
            connected: false,
        };
        world.event(Event::Vm(view));
        world.connect();
        world
    }

    pub(crate) fn connect(&mut self) {
        if self.connected {
            self.disconnect();
        }
        self.connected = true;
        self.event(Event::GuestConnected);
    }

    pub(crate) fn disconnect(&mut self) {
        self.connected = false;
        self.talking = None;
        self.agreed = None;
        self.event(Event::GuestLost);
    }

    /// The agent dies with everything it had in flight, and another one starts. `lands`: the API server had
    /// taken the patch; the scheduler has issued what it was asked for.
    pub(crate) fn restart(&mut self, lands: bool) {
        for (_, event) in std::mem::take(&mut self.pending) {
            if lands && matches!(event, Event::Patched { .. }) {
                self.written();
            }
        }
        (self.asking, self.patching, self.talking, self.agreed) = (None, None, None, None);
        self.permit = self.view.approved.unwrap();
        let first = self.log.last().map_or(100, |(_, action, _)| action.generation()) + 1;
        self.scaler = Scaler::new(self.limits, self.policy, first);
        self.event(Event::Vm(self.view));
        if self.connected {
            self.event(Event::GuestConnected);
        }
    }

    /// The object shows the newest approval that was issued: nothing larger is promised any more.
    pub(crate) fn approval_is_newest(&self) -> bool {
        self.shown == self.issued.0 && self.view.approved == Some(self.issued.1)
    }

    pub(crate) fn sample(&mut self, demand: Size) {
        self.event(Event::Sample(Sample { demand, used: demand, system: self.system }));
    }

    /// What the guest has: the object shows it later.
    pub(crate) fn real(&self) -> Size {
        let done = |(at, _): &&(Moment, Size)| at.since(self.now) <= SHOWN_AFTER;
        self.plugs.front().filter(done).map_or(self.view.plugged, |(_, size)| *size)
    }

    /// Nothing is in flight.
    pub(crate) fn idle(&self) -> bool {
        self.pending.is_empty() && self.scaler.next(self.now).start.is_empty()
    }

    /// Runs for `span`, with a sample of `demand` each second.
    pub(crate) fn run(&mut self, span: Duration, demand: Option<Size>) {
        let end = self.now.0 + span;
        while self.now.0 < end {
            if let Some(demand) = demand.filter(|_| self.connected) {
                self.sample(demand);
            }
            self.until(Moment((self.now.0 + Duration::from_secs(1)).min(end)));
        }
    }

    /// Lets time pass until `end`: answers arrive, the brain wakes.
    pub(crate) fn until(&mut self, end: Moment) {
        for _ in 0..100_000 {
            let wake = self.scaler.next(self.now).wake_at;
            let plug_at = self.plugs.front().map(|(at, _)| *at);
            let due = self.pending.iter().map(|(at, _)| *at).chain(wake).chain(plug_at).min();
            match due {
                Some(at) if at <= end => {
                    assert!(at > self.now, "time must advance: {at:?} at {:?}", self.now);
                    self.now = at;
                    self.arrive();
                }
                _ => {
                    self.now = end;
                    self.act();
                    return;
                }
            }
        }
        panic!("the brain is busy without end");
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.scaler.handle(event, self.now);
        self.act();
    }

    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.event(Event::Limits(limits));
    }

    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.event(Event::Policy(Box::new(policy)));
    }

    fn arrive(&mut self) {
        while let Some((_, target)) = self.plugs.pop_front_if(|(at, _)| *at <= self.now) {
            self.plug(target);
        }
        let now = self.now;
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(|(at, _)| *at <= now);
        self.pending = later;
        for (_, event) in due {
            self.deliver(event);
        }
        self.act();
    }

    fn deliver(&mut self, event: Event) {
        match &event {
            Event::PermitAnswered { generation, permit, .. } => {
                assert_eq!(self.asking.take(), Some(*generation));
                self.permit = *permit;
            }
            Event::PermitFailed { .. } => self.asking = None,
            Event::Patched { .. } => {
                self.written();
            }
            Event::PatchFailed { .. } => self.patching = None,
            Event::GuestFine { generation }
            | Event::GuestVeto { generation, .. }
            | Event::GuestTold { generation }
            | Event::GuestFailed { generation } => {
                if self.talking != Some(*generation) {
                    return; // of an earlier connection
                }
                self.talking = None;
                if matches!(event, Event::GuestFine { .. }) {
                    self.agreed = self.nods.map(|to| (to, self.now + AGREEMENT));
                }
            }
            _ => {}
        }
        self.scaler.handle(event, self.now);
    }

    /// The API server takes the patch; the operator orders at most what is approved.
    fn written(&mut self) {
        let (_, size, approval) = self.patching.take().unwrap();
        self.view.spec = size;
        if let Some(approval) = approval {
            let (number, size) = self.answers[&approval];
            (self.shown, self.view.approved) = (number, Some(size));
        }
        let target = size.min(self.view.approved.unwrap());
        self.plugs.push_back((self.now + PLUG, target));
    }

    fn plug(&mut self, wanted: Size) {
        let mut plugged = wanted;
        if let Some(floor) = self.behaviour.unplug_stops {
            plugged.memory = plugged.memory.max(floor.min(self.view.plugged.memory));
        }
        if let Some(piece) = self.behaviour.pieces {
            let least = self.view.plugged.memory.saturating_sub(piece);
            if plugged.memory < least {
                plugged.memory = least;
                self.plugs.push_front((self.now + SHOWN_AFTER, wanted));
            }
        }
        if plugged != wanted && self.plugs.is_empty() {
            self.plugs.push_back((self.now + REPLUG, wanted));
        }
        if plugged != self.view.plugged {
            self.view.plugged = plugged;
            self.scaler.handle(Event::Vm(self.view), self.now);
        }
    }

    fn act(&mut self) {
        for _ in 0..100 {
            let actions = self.scaler.next(self.now);
            assert_eq!(actions, self.scaler.next(self.now), "next twice is the same");
            if actions.start.is_empty() {
                return;
            }
            for (action, why) in actions.start {
                self.check(action);
                self.scaler.handle(Event::Started(action), self.now);
                self.log.push((self.now, action, why));
                let answer = self.answer(action);
                self.pending.push((self.now + ANSWER, answer));
            }
        }
        panic!("the brain starts actions without end");
    }

    fn answer(&mut self, action: Action) -> Event {
        let behaviour = self.behaviour;
        match action {
            Action::AskPermit { generation, .. }
                if behaviour.permit_fails && !behaviour.permit_lost =>
            {
                self.asking = Some(generation);
                Event::PermitFailed { generation }
            }
            Action::AskPermit { generation, want, least, .. } => {
                self.asking = Some(generation);
                let room = behaviour.cap.map_or(want, |cap| want.min(cap));
                let (number, issued) = self.issued;
                let permit = want.min(room.max(issued)).max(least.min(want));
                if permit != issued {
                    self.issued = (number + 1, permit);
                }
                self.answers.insert(generation, self.issued);
                if behaviour.permit_fails {
                    return Event::PermitFailed { generation };
                }
                let reason = if permit == want { "" } else { "no room" };
                Event::PermitAnswered { generation, permit, reason: reason.to_owned() }
            }
            Action::PatchVm { generation, size, approval, .. } => {
                self.patching = Some((generation, size, approval));
                self.agreed = None;
                if behaviour.patch_fails {
                    Event::PatchFailed { generation, raced: behaviour.patch_races }
                } else {
                    Event::Patched { generation }
                }
            }
            Action::AskGuest { generation, to, .. } => {
                self.talking = Some(generation);
                match behaviour.veto {
                    _ if behaviour.guest_fails => Event::GuestFailed { generation },
                    Some(least) if !least.fits_in(to) => Event::GuestVeto { generation, least },
                    _ => {
                        self.nods = Some(to);
                        Event::GuestFine { generation }
                    }
                }
            }
            Action::TellGuest { generation, .. } => {
                self.talking = Some(generation);
                if behaviour.guest_fails {
                    Event::GuestFailed { generation }
                } else {
                    Event::GuestTold { generation }
                }
            }
        }
    }

    fn check(&self, action: Action) {
        match action {
            Action::AskPermit { want, least, .. } => {
                assert!(self.asking.is_none(), "one permit request at a time");
                assert!(least.fits_in(want));
                assert!(self.view.plugged.fits_in(want), "what is plugged is never returned");
                assert!(want.fits_in(self.limits.max.max(least)), "above max: {action:?}");
            }
            Action::PatchVm { from, size, .. } => {
                assert!(self.patching.is_none(), "one patch at a time");
                assert_eq!(from, self.view.spec);
                assert!(size.fits_in(self.limits.max.max(from)), "above max: {action:?}");
                assert!(size.fits_in(self.permit.max(from)), "above the permit: {action:?}");
                let agreed = self.agreed.filter(|(_, until)| *until > self.now);
                let agreed = agreed.map(|(size, _)| size);
                let fine = |smaller: bool, agreed: bool| !smaller || agreed;
                assert!(
                    fine(
                        size.cpu < from.cpu && size.cpu < self.view.plugged.cpu,
                        agreed.is_some_and(|agreed| agreed.cpu <= size.cpu),
                    ) && fine(
                        size.memory < from.memory && size.memory < self.view.plugged.memory,
                        agreed.is_some_and(|agreed| agreed.memory <= size.memory),
                    ),
                    "shrinks without agreement: {action:?}, agreed {agreed:?}",
                );
            }
            Action::AskGuest { from, to, .. } => {
                assert!(self.connected && self.talking.is_none(), "one question at a time");
                assert!(to.fits_in(from) && to != from, "a question about a shrink: {action:?}");
            }
            Action::TellGuest { plugged, .. } => {
                assert!(self.connected && self.talking.is_none(), "one notice at a time");
                assert_eq!(plugged, self.view.plugged, "only what the hypervisor shows");
            }
        }
    }
}
