//! Sizes over time without our brains, to compare with: the same demand, the same model of held memory, the same numbers.
//!
//! | baseline | sizes |
//! |---|---|
//! | `static` | one size for the whole run: P99.5 of the demand and 20 % more, with hindsight |
//! | `vpa` | as the Kubernetes Vertical Pod Autoscaler recommends from what was used, resized in place |
//! | `oracle` | the least that serves every demand, with hindsight and with the time that a plug takes |
//!
//! All sizes are on the machine's grid and between its bounds. Demand beyond what the largest size holds is cut off first
//! ([`Machine::capped`]). Two baselines know the whole run: they read the demand a second time, so it must be repeatable.

mod fixed;
mod machine;
mod oracle;
#[cfg(test)]
mod tests;
mod vpa;

use std::iter::Peekable;

use guest_units::{Bytes, Moment, Size};

pub use self::machine::{Capped, Machine};
pub use self::vpa::Decaying;

use crate::held::{Held, Kills, Touch};
use crate::line::{moment, nanos};
use crate::load::Load;
use crate::quality::{Ends, Quality, Stretch};

/// Who chooses the sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Baseline {
    /// P99.5 of the demand and 20 % more, for the whole run.
    Static,
    /// As the Kubernetes Vertical Pod Autoscaler.
    Vpa,
    /// The least that serves every demand.
    Oracle,
}

impl Baseline {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 3] = [Self::Static, Self::Vpa, Self::Oracle];

    /// Its name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Vpa => "vpa",
            Self::Oracle => "oracle",
        }
    }
}

/// The quality of a baseline on one VM's demand, from the first load until `end`. Loads come in the order of time.
#[must_use]
pub fn run<I>(baseline: Baseline, loads: I, machine: &Machine, touch: Touch, end: Moment) -> Quality
where
    I: Iterator<Item = Load> + Clone,
{
    let loads = machine.capped(loads.take_while(move |load| load.at < end));
    let Some(first) = loads.clone().next() else { return Quality::new(end) };
    match baseline {
        Baseline::Static => {
            let sizes = Fixed(fixed::size(loads.clone(), machine, end));
            Run::new(sizes, machine, touch, &first).until(end, loads)
        }
        Baseline::Vpa => {
            let sizes = vpa::Vpa::new(machine, &first);
            Run::new(sizes, machine, touch, &first).until(end, loads)
        }
        Baseline::Oracle => {
            let sizes = oracle::oracle(loads.clone(), machine);
            Run::new(sizes, machine, touch, &first).until(end, loads)
        }
    }
}

/// What a policy can look at.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// What is plugged.
    size: Size,
    /// What the workload holds.
    held: Bytes,
    /// Thousandths of a CPU × nanoseconds used since the beginning.
    cpu_time: u128,
    /// OOM kills since the beginning.
    kills: u32,
}

/// Chooses what is plugged.
trait Sizes {
    /// When to ask next: after the last time that it was asked. Nanoseconds.
    fn next(&self) -> Option<u64>;
    /// What is plugged from now on.
    fn at(&mut self, now: u64, seen: &Seen) -> Size;
}

/// The same for ever.
struct Fixed(Size);

impl Sizes for Fixed {
    fn next(&self) -> Option<u64> {
        None
    }

    fn at(&mut self, _now: u64, _seen: &Seen) -> Size {
        self.0
    }
}

/// One VM under one policy.
struct Run<'a, S> {
    machine: &'a Machine,
    sizes: S,
    held: Held,
    load: Option<Load>,
    now: Moment,
    seen: Seen,
    quality: Quality,
}

impl<'a, S: Sizes> Run<'a, S> {
    fn new(mut sizes: S, machine: &'a Machine, touch: Touch, first: &Load) -> Self {
        let (now, quality) = (first.at, Quality::new(first.at));
        let seen = Seen { size: machine.min, held: Bytes::ZERO, cpu_time: 0, kills: 0 };
        let size = sizes.at(nanos(now), &seen);
        let held = Held::running(touch, first, machine.available(size.memory));
        Self { machine, sizes, held, load: None, now, seen: Seen { size, ..seen }, quality }
    }

    fn until(mut self, end: Moment, loads: impl Iterator<Item = Load>) -> Quality {
        let mut loads = loads.peekable();
        self.begin(&mut loads, self.seen.size);
        while self.now < end {
            let sizes = self.sizes.next().map(moment);
            let load = loads.peek().map(|load| load.at);
            let held = self.held.next_change(self.now);
            let next = [sizes, load, held].into_iter().flatten().fold(end, Moment::min);
            self.pass(next);
            let size = match sizes {
                Some(at) if at <= next && next < end => self.sizes.at(nanos(next), &self.seen),
                _ => self.seen.size,
            };
            self.begin(&mut loads, size);
        }
        self.quality
    }

    /// Time passes, and nothing happens before `next`.
    fn pass(&mut self, next: Moment) {
        if let Some(load) = self.load {
            let Self { now, seen, .. } = *self;
            let stretch = Stretch {
                cpu_wished: load.cpu,
                memory_wished: Ends { from: load.memory_at(now), to: load.memory_at(next) },
                memory_held: Ends { from: self.held.at(now), to: self.held.at(next) },
                size: seen.size,
                available: self.machine.available(seen.size.memory),
            };
            self.quality.advance(next, &stretch);
            let used = load.cpu.min(seen.size.cpu).0;
            self.seen.cpu_time += u128::from(used) * next.since(now).as_nanos();
        }
        self.now = next;
        self.seen.held = self.held.at(next);
    }

    /// What happens now: growth comes before the load that needs it, a smaller size after the load that leaves it.
    fn begin(&mut self, loads: &mut Peekable<impl Iterator<Item = Load>>, size: Size) {
        self.plug(self.seen.size.max(size));
        while let Some(load) = loads.next_if(|load| load.at <= self.now) {
            let kills = self.held.wish(&load, self.now);
            self.count(kills);
            self.load = Some(load);
        }
        self.plug(size);
        let kills = self.held.advance(self.now);
        self.count(kills);
        self.seen.held = self.held.at(self.now);
    }

    fn plug(&mut self, size: Size) {
        self.seen.size = size;
        let kills = self.held.available(self.machine.available(size.memory), self.now);
        self.count(kills);
    }

    fn count(&mut self, kills: Kills) {
        self.quality.killed(kills);
        self.seen.kills = self.seen.kills.saturating_add(kills.0);
    }
}
