//! How well a VM was scaled: numbers that grow with time, kept in a fixed few bytes, for a fleet has a million VMs.
//!
//! Time passes in stretches in which sizes stay and memory moves along straight lines; each stretch is integrated exactly (in
//! whole bytes and nanoseconds, with `u128` sums). `d` is the demand, `s` what there is for it (the size; for memory without
//! what the kernel takes), `u` what is used of the size. Each metric is one of CPU and one of memory:
//!
//! | metric | definition | source |
//! |---|---|---|
//! | short, share of time | time with `d > s` over all time | under-provisioning timeshare, elasticity metrics of the SPEC RG Cloud group (Herbst et al.) |
//! | short, depth | ∫(d − s) over ∫d, both while `d > s` | under-provisioning accuracy of the same set, normalised by demand; as a ratio of integrals, so that it does not depend on how time is cut |
//! | short, worst | largest `(d − s) / d` | – |
//! | slack | ∫(size − u) over ∫size | relative slack, Google Autopilot (Rzadca et al.), a ratio of means |
//! | time to adequate | from the moment at which `d > s` begins until `s` reaches `d`; percentiles are of those that ended so | elasticity: time to adapt (Herbst et al.) |
//! | never adequate | times at which `d` fell before `s` reached it | – |
//! | resizes, reversals | changes of the size, where the steps of one shrink count once; those against the direction of the change before, within [`REVERSAL`] of it | jitter and instability (Herbst et al.) |
//!
//! and for both together: OOM kills (Autopilot counts them too; per million VM-hours only from [`KILLS_FOR_A_RATE`] on, for
//! fewer say nothing about a rate), CU-hours (a compute unit is 0.25 vCPU and 1 GiB; a VM has as many at any moment as the
//! larger of the two needs, and fractions count), the share of scale-ups served in place: a scale-up begins when more is
//! wanted than is permitted, and counts as served if the answer to its first request grants all that was asked for, so that the
//! node had room at once; the share of permitted growths that did not have to wait for kubelet, and how often a VM's pod was resized.
//!
//! A shortage below one byte is none. Demand above what the largest size can hold is cut off before a run, for all policies
//! alike (`baseline::Machine::capped`): nobody could serve it.

mod axis;
mod fleet;
mod histogram;
mod report;
mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

use guest_units::{Bytes, MilliCpu, Moment, Size};

pub use self::fleet::{FleetAxisReport, FleetQuality, FleetReport, Percentiles};
pub use self::report::{AxisReport, VmReport};
pub use self::table::table;

pub(crate) use self::axis::Part;

use self::axis::Axis;
use crate::held::Kills;
use crate::line::nanos;

/// A change of the size in the other direction counts as a reversal within this time.
pub const REVERSAL: Duration = Duration::from_secs(300);

/// A shrink that goes on within this is the same one: hypervisors take memory in steps.
const STEP_OF_A_SHRINK: Duration = Duration::from_millis(50);

/// Waits longer than those that are told apart.
pub(crate) const BEYOND: &str = "> 13 min";

/// Whether a wait in milliseconds is one of those.
pub(crate) fn is_beyond(wait: Option<u64>) -> bool {
    wait.is_some_and(|wait| wait > histogram::LONGEST_WAIT)
}

/// So many kills make a rate per million VM-hours.
pub const KILLS_FOR_A_RATE: u64 = 10;

/// CPU of a compute unit; its memory is 1 GiB.
const UNIT_CPU: u128 = 250;
/// Compute units are counted in this part: bytes of memory of one.
const UNIT: u128 = 1 << 30;

/// Memory at both ends of a stretch; between them a straight line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// When the stretch begins.
    pub from: Bytes,
    /// When it ends, before what happens then.
    pub to: Bytes,
}

impl Ends {
    /// The same at both.
    #[must_use]
    pub const fn steady(bytes: Bytes) -> Self {
        Self { from: bytes, to: bytes }
    }
}

/// What holds for a stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// CPU that the workload would use.
    pub cpu_wished: MilliCpu,
    /// Memory that it would hold.
    pub memory_wished: Ends,
    /// Memory that it holds.
    pub memory_held: Ends,
    /// What the VM has: plugged, not promised.
    pub size: Size,
    /// What of the size's memory is for the workload.
    pub available: Bytes,
}

impl Stretch {
    /// What it means for CPU and for memory, if it lasts from one nanosecond to another.
    pub(crate) fn parts(&self, from: u64, to: u64) -> (Part, Part) {
        let Self { cpu_wished, memory_wished, memory_held, size, available } = *self;
        let (wished, cores) = (u64::from(cpu_wished.0), u64::from(size.cpu.0));
        let used = wished.min(cores);
        let kernel = size.memory.saturating_sub(available);
        let taken = |held: Bytes| held.saturating_add(kernel).min(size.memory).0;
        let cpu = Part {
            from,
            to,
            demand: (wished, wished),
            supply: cores,
            used: (used, used),
            size: cores,
        };
        let memory = Part {
            from,
            to,
            demand: (memory_wished.from.0, memory_wished.to.0),
            supply: available.0,
            used: (taken(memory_held.from), taken(memory_held.to)),
            size: size.memory.0,
        };
        (cpu, memory)
    }
}

/// The quality of one VM's scaling from a moment on.
#[derive(Debug, Clone)]
pub struct Quality {
    now: u64,
    lived: u64,
    cpu: Axis,
    memory: Axis,
    /// Parts of compute units × nanoseconds.
    units: u128,
    kills: u32,
    wanted: u32,
    in_place: u32,
    permits: Permits,
}

/// How the growths of a VM were permitted, and what the API server was asked for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permits {
    /// Growths that were answered at once, by what kubelet had allocated.
    pub at_once: u32,
    /// Growths that waited for kubelet.
    pub by_resize: u32,
    /// Orders to resize the VM's pod, up or down.
    pub pod_resizes: u32,
}

impl Quality {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(start: Moment) -> Self {
        Self {
            now: nanos(start),
            lived: 0,
            cpu: Axis::new(),
            memory: Axis::new(),
            units: 0,
            kills: 0,
            wanted: 0,
            in_place: 0,
            permits: Permits::default(),
        }
    }

    /// From the last moment until `to` it was like this: memory bends nowhere between. What lasted no time is not seen.
    pub fn advance(&mut self, to: Moment, stretch: &Stretch) {
        let (from, to) = (self.now, nanos(to));
        let Some(span) = to.checked_sub(from).filter(|span| *span > 0) else { return };
        let (cpu, memory) = stretch.parts(from, to);
        self.cpu.advance(&cpu);
        self.memory.advance(&memory);
        let units = (u128::from(cpu.size) * UNIT / UNIT_CPU).max(u128::from(memory.size));
        self.units += units * u128::from(span);
        self.lived = self.lived.saturating_add(span);
        self.now = to;
    }

    /// The workload was killed so often.
    pub fn killed(&mut self, Kills(kills): Kills) {
        self.kills = self.kills.saturating_add(kills);
    }

    /// So many more scale-ups were wanted, and so many more that the node had room for at once.
    pub fn scale_ups(&mut self, wanted: u32, in_place: u32) {
        self.wanted = self.wanted.saturating_add(wanted);
        self.in_place = self.in_place.saturating_add(in_place);
    }

    /// So were its growths permitted, in all.
    pub fn permitted(&mut self, permits: Permits) {
        self.permits = permits;
    }

    /// Resizes so far, of CPU and of memory.
    pub(crate) fn resizes(&self) -> [u32; 2] {
        [self.cpu.resizes, self.memory.resizes]
    }

    /// OOM kills so far.
    #[must_use]
    pub fn kills(&self) -> u32 {
        self.kills
    }

    /// Whether demand was never above what there was.
    #[must_use]
    pub fn never_short(&self) -> bool {
        self.cpu.sums.short == 0 && self.memory.sums.short == 0
    }

    /// CU-hours so far.
    #[must_use]
    pub fn cu_hours(&self) -> f64 {
        report::hours(self.units) / UNIT as f64
    }

    /// The numbers so far.
    #[must_use]
    pub fn report(&self) -> VmReport {
        VmReport::of(self)
    }
}
