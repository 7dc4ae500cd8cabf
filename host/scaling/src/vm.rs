//! The request machine towards the VM object: what it shows, and the patch in flight.

use std::time::Duration;

use guest_units::{Moment, Size};

use crate::event::VmView;
use crate::policy::Retries;

#[derive(Debug, Clone, Copy)]
struct Patching {
    generation: u64,
    size: Size,
    approval: Option<(u64, Size)>,
}

/// So many lost races in a row are no coincidence: the next one waits like a failure.
const MAX_RACES: u32 = 5;

/// What the VM object shows, and the patch in flight.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Vm {
    view: Option<VmView>,
    patching: Option<Patching>,
    not_before: Option<Moment>,
    races: u32,
    plugged_changed_at: Option<Moment>,
    cpu_step_at: Option<Moment>,
    memory_step_at: Option<Moment>,
    undone_at: Option<Moment>,
}

impl Vm {
    pub(crate) fn view(&self) -> Option<VmView> {
        self.view
    }

    pub(crate) fn seen(&mut self, view: VmView, now: Moment) {
        if self.view.is_none_or(|before| before.plugged != view.plugged) {
            self.plugged_changed_at = Some(now);
        }
        self.view = Some(view);
    }

    /// A patch may be started now.
    pub(crate) fn may_patch(&self, now: Moment) -> bool {
        self.patching.is_none() && self.not_before.is_none_or(|at| at <= now)
    }

    /// What the patch in flight may make of the VM.
    pub(crate) fn in_flight(&self) -> Option<Size> {
        self.patching.map(|patching| patching.size)
    }

    /// Nothing was plugged or unplugged for a while.
    pub(crate) fn quiet(&self, now: Moment, retries: &Retries) -> bool {
        self.plugged_changed_at.is_none_or(|at| at + retries.return_settle <= now)
    }

    /// What is plugged stays so: it is what the spec says, or does not come nearer to it, and no step down was ordered of
    /// which nothing was seen yet.
    pub(crate) fn at_rest(&self, now: Moment, retries: &Retries) -> bool {
        let seen = |at: Moment| self.plugged_changed_at.is_some_and(|changed| changed > at);
        let over = |at: Moment| seen(at) || at + retries.return_settle <= now;
        let reached = self.view.is_some_and(|view| view.plugged == view.spec);
        let mut steps = [self.cpu_step_at, self.memory_step_at].into_iter().flatten();
        steps.all(over) && (reached || self.quiet(now, retries))
    }

    /// A step down is on its way; it comes in pieces.
    pub(crate) fn shrinks(&self, now: Moment, retries: &Retries) -> bool {
        let over = self.view.is_some_and(|view| !view.plugged.fits_in(view.spec));
        over && !self.quiet(now, retries)
    }

    /// A growth was undone before it was seen plugged: it may come yet.
    pub(crate) fn may_come(&self, now: Moment, retries: &Retries) -> bool {
        self.undone_at.is_some_and(|at| at + retries.return_settle > now)
    }

    /// The last step down of CPU and memory is complete, or took too long to wait for, and the pause is over.
    pub(crate) fn settled(&self, now: Moment, step_pause: Duration) -> (bool, bool) {
        let Some(view) = self.view else { return (false, false) };
        let settled = |step: Option<Moment>, complete: bool| {
            step.is_none_or(|at| {
                let pauses = if complete { 1 } else { 4 };
                at + step_pause.saturating_mul(pauses) <= now
            })
        };
        (
            settled(self.cpu_step_at, view.plugged.cpu <= view.spec.cpu),
            settled(self.memory_step_at, view.plugged.memory <= view.spec.memory),
        )
    }

    pub(crate) fn started(
        &mut self,
        generation: u64,
        size: Size,
        approval: Option<(u64, Size)>,
        now: Moment,
    ) {
        if let Some(view) = self.view {
            if size.cpu < view.spec.cpu {
                self.cpu_step_at = Some(now);
            }
            if size.memory < view.spec.memory {
                self.memory_step_at = Some(now);
            }
            let coming = size.max(view.plugged);
            if coming.cpu < view.spec.cpu || coming.memory < view.spec.memory {
                self.undone_at = Some(now);
            }
        }
        self.patching = Some(Patching { generation, size, approval });
    }

    /// The generation of the permit whose approval is now written, if the patch was ours.
    pub(crate) fn patched(&mut self, generation: u64) -> Option<Option<u64>> {
        let patching = self.patching.filter(|patching| patching.generation == generation)?;
        self.patching = None;
        self.not_before = None;
        self.races = 0;
        if let Some(view) = &mut self.view {
            view.spec = patching.size;
            if let Some((_, size)) = patching.approval {
                view.approved = Some(size);
            }
        }
        Some(patching.approval.map(|(permit, _)| permit))
    }

    /// Whether the failure belongs to the patch in flight.
    pub(crate) fn failed(
        &mut self,
        generation: u64,
        raced: bool,
        now: Moment,
        retries: &Retries,
    ) -> bool {
        if self.patching.is_none_or(|patching| patching.generation != generation) {
            return false;
        }
        self.patching = None;
        self.races = if raced && self.races < MAX_RACES { self.races + 1 } else { 0 };
        let pause = if self.races > 0 { retries.patch_raced } else { retries.patch_failed };
        self.not_before = Some(now + pause);
        true
    }

    pub(crate) fn wakes(&self, retries: &Retries) -> [Option<Moment>; 5] {
        let settled = |at: Option<Moment>| at.map(|at| at + retries.return_settle);
        [
            self.not_before,
            settled(self.plugged_changed_at),
            settled(self.cpu_step_at),
            settled(self.memory_step_at),
            settled(self.undone_at),
        ]
    }

    /// When the pauses between steps down end.
    pub(crate) fn step_wakes(&self, pause: Duration) -> [Option<Moment>; 4] {
        let late = pause.saturating_mul(4);
        [
            self.cpu_step_at.map(|at| at + pause),
            self.memory_step_at.map(|at| at + pause),
            self.cpu_step_at.map(|at| at + late),
            self.memory_step_at.map(|at| at + late),
        ]
    }
}
