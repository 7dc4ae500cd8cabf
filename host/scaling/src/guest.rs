//! The request machine towards the guest: one question or notice in flight, one direction at a time.
//!
//! ```text
//!   idle --shrink planned--> asking --fine--> agreed (for a moment; used by the next patch)
//!                               |----veto--> veto binds for some seconds, pause
//!   idle --plugged changed--> telling --told--> idle
//!   any  --failed, lost-----> pause, nothing agreed
//! ```

use std::time::Duration;

use guest_units::{Moment, Size};

use crate::event::Sample;
use crate::policy::Retries;
use crate::reference::Denied;

#[derive(Debug, Clone, Copy)]
enum Busy {
    Asking { generation: u64, from: Size, to: Size },
    Telling { generation: u64, plugged: Size },
}

/// What the guest said last, without what is kept elsewhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said {
    pub(crate) demand: Size,
    pub(crate) used: Size,
}

#[derive(Debug, Clone, Copy)]
struct Until {
    size: Size,
    until: Moment,
}

/// What is known of the guest, and the request in flight.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Guest {
    connected: bool,
    last: Option<(Said, Moment)>,
    /// Start of the unbroken spell in which the guest was heard.
    heard_since: Option<Moment>,
    busy: Option<Busy>,
    agreed: Option<Until>,
    veto: Option<Until>,
    /// The question that was vetoed; it counts as long as the veto.
    denied: Option<Denied>,
    told: Option<Size>,
    not_before: Option<Moment>,
}

impl Guest {
    pub(crate) fn connected(&mut self) {
        let Self { veto, denied, .. } = *self;
        *self = Self { connected: true, veto, denied, ..Self::default() };
    }

    pub(crate) fn lost(&mut self) {
        self.connected = false;
        self.heard_since = None;
        self.busy = None;
        self.agreed = None;
        self.told = None;
    }

    pub(crate) fn heard(&mut self, sample: Sample, now: Moment, silence: Duration) {
        if !self.live(now, silence) || self.heard_since.is_none() {
            self.heard_since = Some(now);
        }
        let Sample { demand, used, system: _ } = sample;
        self.last = Some((Said { demand, used }, now));
    }

    /// Connected and heard lately.
    pub(crate) fn live(&self, now: Moment, silence: Duration) -> bool {
        self.connected && self.last.is_some_and(|(_, at)| at + silence > now)
    }

    /// Every spell in which the guest was heard starts anew.
    pub(crate) fn forget_spell(&mut self) {
        self.heard_since = None;
    }

    pub(crate) fn heard_since(&self) -> Option<Moment> {
        self.heard_since
    }

    pub(crate) fn said(&self) -> Option<Said> {
        self.last.map(|(said, _)| said)
    }

    /// No request may be started now.
    pub(crate) fn occupied(&self, now: Moment) -> bool {
        !self.connected || self.busy.is_some() || self.not_before.is_some_and(|at| at > now)
    }

    /// A request is in flight: no shrink is written meanwhile.
    pub(crate) fn in_flight(&self) -> bool {
        self.busy.is_some()
    }

    pub(crate) fn agreed(&self, now: Moment) -> Option<Size> {
        self.agreed.filter(|agreed| agreed.until > now).map(|agreed| agreed.size)
    }

    pub(crate) fn drop_agreement(&mut self) {
        self.agreed = None;
    }

    pub(crate) fn veto(&self, now: Moment) -> Option<Size> {
        self.veto.filter(|veto| veto.until > now).map(|veto| veto.size)
    }

    /// The question whose veto still binds.
    pub(crate) fn denied(&self, now: Moment) -> Option<Denied> {
        self.denied.filter(|_| self.veto(now).is_some())
    }

    /// What the guest was told to have.
    pub(crate) fn told(&self) -> Option<Size> {
        self.told
    }

    /// The guest does not know this size yet.
    pub(crate) fn must_hear(&self, plugged: Size) -> bool {
        self.told != Some(plugged)
    }

    pub(crate) fn asking(&mut self, generation: u64, from: Size, to: Size) {
        self.agreed = None;
        self.busy = Some(Busy::Asking { generation, from, to });
    }

    pub(crate) fn telling(&mut self, generation: u64, plugged: Size) {
        self.busy = Some(Busy::Telling { generation, plugged });
    }

    /// Whether the answer belongs to the question in flight.
    pub(crate) fn fine(&mut self, generation: u64, now: Moment, retries: &Retries) -> bool {
        let Some((_, to)) = self.question(generation) else { return false };
        self.busy = None;
        self.agreed = Some(Until { size: to, until: now + retries.agreement_valid });
        true
    }

    /// Whether the answer belongs to the question in flight.
    pub(crate) fn vetoed(
        &mut self,
        generation: u64,
        least: Size,
        now: Moment,
        retries: &Retries,
    ) -> bool {
        let Some((from, to)) = self.question(generation) else { return false };
        self.busy = None;
        self.denied = Some(Denied { target: to, current: from });
        self.veto = Some(Until { size: least, until: now + retries.veto_valid });
        self.not_before = Some(now + retries.veto_pause);
        true
    }

    pub(crate) fn was_told(&mut self, generation: u64) {
        if let Some(Busy::Telling { generation: asked, plugged }) = self.busy
            && asked == generation
        {
            self.busy = None;
            self.told = Some(plugged);
        }
    }

    /// Whether the failure belongs to the request in flight.
    pub(crate) fn failed(&mut self, generation: u64, now: Moment, retries: &Retries) -> bool {
        let ours = matches!(self.busy,
            Some(Busy::Asking { generation: asked, .. } | Busy::Telling { generation: asked, .. })
                if asked == generation);
        if ours {
            self.busy = None;
            self.not_before = Some(now + retries.guest_failed);
        }
        ours
    }

    pub(crate) fn wakes(&self) -> [Option<Moment>; 3] {
        [self.agreed.map(|a| a.until), self.veto.map(|v| v.until), self.not_before]
    }

    /// The question in flight with this generation: from what, to what.
    fn question(&self, generation: u64) -> Option<(Size, Size)> {
        match self.busy {
            Some(Busy::Asking { generation: asked, from, to }) if asked == generation => {
                Some((from, to))
            }
            _ => None,
        }
    }
}
