//! What the VMs of a fleet want over time: generated archetypes and replayed traces.
//!
//! A [`Demand`] is a lazy sequence of loads. It is small, because a fleet has up to a million of them, and the same on every run:
//! its numbers follow from the seed, the number of the VM and what it imitates, whatever else is simulated.
//!
//! What the archetypes look like is told at [`Archetype`]; how real traces are read, at [`TraceFormat`]; how they become loads, at
//! [`Trace`].

mod archetype;
mod bursts;
mod draw;
mod problem;
mod read;
mod replay;
mod shapes;
mod trace;

use guest_units::{Moment, Size};

pub use archetype::{Archetype, UnknownArchetype};
pub use problem::{LineFault, TraceFault, TraceProblem, ValueFault};
pub use read::{TraceFormat, parse_traces, read_traces};
pub use trace::{Sample, Trace, TraceMemory};

use crate::load::Load;
use crate::random::random;
use replay::Replay;
use shapes::Generator;

/// The streams of random numbers here are not those that other parts draw from the same seed.
const ARCHETYPE_STREAM: u64 = 0x6172_6368_6574_7970;
const OVERLAY_STREAM: u64 = 0x6f76_6572_6c61_7973;

/// The loads of one VM: the first at 0, each later than the one before, none after the end.
///
/// A load holds until the next one, and the last one until the end.
#[derive(Debug, Clone)]
pub struct Demand {
    source: Source,
    end: Moment,
}

#[derive(Debug, Clone)]
enum Source {
    Generated(Generator),
    // Larger, and rarer: a fleet of a million is generated.
    Replayed(Box<Replay>),
}

impl Demand {
    /// The demand of VM number `vm` that behaves like `archetype` and is never larger than `max`.
    #[must_use]
    pub fn of_archetype(archetype: Archetype, max: Size, seed: u64, vm: u64, end: Moment) -> Self {
        let random = random(seed ^ ARCHETYPE_STREAM, vm);
        Self { source: Source::Generated(Generator::new(archetype, max, random)), end }
    }

    /// The demand of VM number `vm` that does what `trace` recorded, with bursts that `seed` and `vm` decide.
    ///
    /// A trace that is shorter than the simulation starts again. The size is the trace's, whatever the VM may have.
    #[must_use]
    pub fn of_trace(trace: &Trace, seed: u64, vm: u64, end: Moment) -> Self {
        let replay = Replay::new(trace.clone(), random(seed ^ OVERLAY_STREAM, vm));
        Self { source: Source::Replayed(Box::new(replay)), end }
    }
}

impl Iterator for Demand {
    type Item = Load;

    fn next(&mut self) -> Option<Load> {
        let load = match &mut self.source {
            Source::Generated(generator) => generator.next_load(),
            Source::Replayed(replay) => replay.next_load(),
        };
        load.filter(|load| load.at <= self.end)
    }
}

// Sources only move forward: after the first load behind the end there is none before it.
impl std::iter::FusedIterator for Demand {}

#[cfg(test)]
mod tests;
