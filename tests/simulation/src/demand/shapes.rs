//! The machines behind the archetypes: each draws its character once, and then one step after the other.

mod fill;

use fill::{Analytic, Ramps};
use guest_units::{Bytes, Moment, Size};

use super::archetype::Archetype;
use super::draw::{between, bytes, exponential, milli, normal, one_of, pareto, slope, span};
use crate::load::Load;
use crate::random::Random;

const MINUTE: f64 = 60.0;
const HOUR: f64 = 60.0 * MINUTE;
const DAY: f64 = 24.0 * HOUR;

/// A stretch of time: CPU stays, memory goes straight from one part of the largest amount to another.
#[derive(Debug, Clone, Copy)]
struct Step {
    seconds: f64,
    cpu: Use,
    memory: f64,
    after: f64,
}

/// CPU.
#[derive(Debug, Clone, Copy)]
enum Use {
    /// A part of the largest amount.
    Part(f64),
    /// What it takes on a VM of any size.
    Milli(f64),
}

/// One archetype as a source of loads.
#[derive(Debug, Clone)]
pub(super) struct Generator {
    random: Random,
    max: Size,
    /// When the next step begins; `None` after the end of time.
    next: Option<Moment>,
    shape: Shape,
}

impl Generator {
    pub(super) fn new(archetype: Archetype, max: Size, mut random: Random) -> Self {
        let shape = Shape::new(archetype, max, &mut random);
        Self { random, max, next: Some(Moment::ZERO), shape }
    }

    pub(super) fn next_load(&mut self) -> Option<Load> {
        let at = self.next?;
        let step = self.shape.step(&mut self.random, at.0.as_secs_f64());
        let lasts = span(step.seconds);
        self.next = at.0.checked_add(lasts).map(Moment);
        let cpu = match step.cpu {
            Use::Part(part) => milli(part * f64::from(self.max.cpu.0)),
            Use::Milli(amount) => milli(amount),
        };
        let (memory, after) = (self.memory(step.memory), self.memory(step.after));
        Some(Load {
            at,
            cpu: cpu.min(self.max.cpu),
            memory,
            memory_per_second: slope(memory, after, lasts),
        })
    }

    /// That part of the largest amount in whole KiB: the last digits of logarithms and powers, which machines may differ in, are
    /// gone.
    fn memory(&self, part: f64) -> Bytes {
        #[expect(clippy::cast_precision_loss, reason = "a whole KiB is less exact")]
        let max = self.max.memory.0 as f64;
        bytes(part * max).min(self.max.memory).round_down(Bytes::from_kib(1))
    }
}

/// The character of one VM and where it stands.
#[derive(Debug, Clone)]
enum Shape {
    Visits(Visits),
    Diurnal(Diurnal),
    Cron(Cron),
    Steady(Steady),
    Analytic(Analytic),
    Bursts(HeavyTailed),
    Ramps(Ramps),
}

impl Shape {
    fn new(archetype: Archetype, max: Size, random: &mut Random) -> Self {
        match archetype {
            Archetype::Idle => Self::Visits(Visits::rare(random)),
            Archetype::IdleToZero => Self::Visits(Visits::short(random)),
            Archetype::Diurnal => Self::Diurnal(Diurnal::new(random)),
            Archetype::CronSpikes => Self::Cron(Cron::new(random)),
            Archetype::SteadyOltp => Self::Steady(Steady::new(random)),
            Archetype::AnalyticRamps => Self::Analytic(Analytic::new(random)),
            Archetype::HeavyTailedBursts => Self::Bursts(HeavyTailed::new(random)),
            Archetype::MemoryRamps => Self::Ramps(Ramps::new(random, max)),
        }
    }

    /// What comes next, from `at` on, in seconds.
    fn step(&mut self, random: &mut Random, at: f64) -> Step {
        match self {
            Self::Visits(shape) => shape.step(random),
            Self::Diurnal(shape) => shape.step(random, at),
            Self::Cron(shape) => shape.step(random, at),
            Self::Steady(shape) => shape.step(random),
            Self::Analytic(shape) => shape.step(random),
            Self::Bursts(shape) => shape.step(random),
            Self::Ramps(shape) => shape.step(random),
        }
    }
}

/// Nothing, and now and then somebody.
#[derive(Debug, Clone)]
struct Visits {
    /// mCPU between visits, and the part of memory.
    cpu: f64,
    memory: f64,
    /// Seconds from one visit to the next: at least, and on average more than that.
    quiet: (f64, f64),
    /// The most that a visit takes: seconds, the part of CPU, the part of memory.
    visit: (f64, f64, f64),
    visited: bool,
}

impl Visits {
    fn rare(random: &mut Random) -> Self {
        Self {
            cpu: between(random, 2.0, 10.0),
            memory: between(random, 0.02, 0.04),
            quiet: (0.0, 12.0 * HOUR),
            visit: (MINUTE, 0.05, 0.01),
            visited: true,
        }
    }

    fn short(random: &mut Random) -> Self {
        Self {
            cpu: between(random, 0.0, 10.0),
            memory: between(random, 0.02, 0.04),
            quiet: (6.0 * MINUTE, 34.0 * MINUTE),
            visit: (5.0 * MINUTE, 0.6, 0.2),
            visited: true,
        }
    }

    fn step(&mut self, random: &mut Random) -> Step {
        self.visited = !self.visited;
        if self.visited {
            let (seconds, cpu, memory) = self.visit;
            return Step {
                seconds: between(random, seconds / 10.0, seconds),
                cpu: Use::Part(between(random, cpu / 6.0, cpu)),
                memory: self.memory,
                after: self.memory + between(random, memory / 10.0, memory),
            };
        }
        let (least, more) = self.quiet;
        Step {
            seconds: least + exponential(random, more),
            cpu: Use::Milli(self.cpu),
            memory: self.memory,
            after: self.memory,
        }
    }
}

/// Day and night.
#[derive(Debug, Clone)]
struct Diurnal {
    /// Seconds after midnight.
    peak: f64,
    /// The day of the week on which the simulation begins.
    weekday: f64,
    quiet: f64,
    busy: f64,
}

impl Diurnal {
    fn new(random: &mut Random) -> Self {
        Self {
            peak: between(random, 10.0 * HOUR, 17.0 * HOUR),
            weekday: between(random, 0.0, 7.0).floor(),
            quiet: between(random, 0.02, 0.08),
            busy: between(random, 0.4, 0.9),
        }
    }

    /// The part of the day's most, without noise.
    fn level(&self, at: f64) -> f64 {
        let hours = ((at - self.peak) / DAY * std::f64::consts::TAU).cos();
        // Squared: nights are longer than rush hours.
        let bump = (0.5 + 0.5 * hours).powi(2);
        let weekend = (self.weekday + at / DAY) % 7.0 >= 5.0;
        if weekend { 0.3 * bump } else { bump }
    }

    fn step(&self, random: &mut Random, at: f64) -> Step {
        // Not the same for all: a fleet must not move in one moment.
        let seconds = between(random, 4.0 * MINUTE, 6.0 * MINUTE);
        let cpu = self.quiet + (self.busy - self.quiet) * self.level(at);
        let memory = |level: f64| 0.1 + 0.6 * self.busy * level;
        Step {
            seconds,
            cpu: Use::Part(cpu * (1.0 + 0.1 * normal(random))),
            memory: memory(self.level(at)),
            after: memory(self.level(at + seconds)),
        }
    }
}

/// Jobs on the clock.
#[derive(Debug, Clone)]
struct Cron {
    /// Seconds.
    period: f64,
    offset: f64,
    lasts: f64,
    cpu: f64,
    memory: f64,
    running: bool,
}

impl Cron {
    const QUIET_MEMORY: f64 = 0.06;

    fn new(random: &mut Random) -> Self {
        let period = one_of(random, &[5.0, 10.0, 15.0, 30.0, 60.0]) * MINUTE;
        Self {
            period,
            offset: between(random, 1.0, period),
            lasts: between(random, 20.0, 150.0),
            cpu: between(random, 0.6, 1.0),
            memory: between(random, 0.1, 0.4),
            running: true,
        }
    }

    fn step(&mut self, random: &mut Random, at: f64) -> Step {
        self.running = !self.running;
        if self.running {
            return Step {
                seconds: self.lasts * between(random, 0.8, 1.2),
                cpu: Use::Part(self.cpu),
                memory: Self::QUIET_MEMORY,
                after: Self::QUIET_MEMORY + self.memory * between(random, 0.8, 1.2),
            };
        }
        let runs = ((at - self.offset) / self.period).floor() + 1.0;
        let next = self.offset + runs * self.period;
        Step {
            // Jobs start a moment late; what makes them so also keeps a fleet apart.
            seconds: next - at + between(random, 0.0, 2.0),
            cpu: Use::Part(0.03),
            memory: Self::QUIET_MEMORY,
            after: Self::QUIET_MEMORY,
        }
    }
}

/// Transactions around the clock.
#[derive(Debug, Clone)]
struct Steady {
    cpu: f64,
    memory: f64,
    /// How far both are off, in deviations; it wanders slowly.
    off: f64,
}

impl Steady {
    fn new(random: &mut Random) -> Self {
        Self {
            cpu: between(random, 0.25, 0.6),
            memory: between(random, 0.4, 0.6),
            off: normal(random),
        }
    }

    fn step(&mut self, random: &mut Random) -> Step {
        let before = self.off;
        // Keeps the deviation at 1: 0.8² + 0.6² = 1.
        self.off = 0.8 * self.off + 0.6 * normal(random);
        Step {
            seconds: between(random, 50.0, 70.0),
            cpu: Use::Part(self.cpu * (1.0 + 0.1 * before)),
            memory: self.memory * (1.0 + 0.01 * before),
            after: self.memory * (1.0 + 0.01 * self.off),
        }
    }
}

/// Mostly small, now and then everything.
#[derive(Debug, Clone)]
struct HeavyTailed {
    cpu: f64,
    memory: f64,
    burst: bool,
}

impl HeavyTailed {
    fn new(random: &mut Random) -> Self {
        Self { cpu: between(random, 0.02, 0.08), memory: between(random, 0.05, 0.15), burst: true }
    }

    fn step(&mut self, random: &mut Random) -> Step {
        self.burst = !self.burst;
        if !self.burst {
            let seconds = exponential(random, 5.0 * MINUTE);
            return Step {
                seconds,
                cpu: Use::Part(self.cpu),
                memory: self.memory,
                after: self.memory,
            };
        }
        let height = (0.05 * pareto(random)).min(1.0);
        let memory = self.memory + 0.6 * height;
        Step {
            seconds: (2.0 * pareto(random)).min(10.0 * MINUTE),
            cpu: Use::Part(self.cpu + height),
            memory,
            after: memory,
        }
    }
}

#[cfg(test)]
mod tests;
