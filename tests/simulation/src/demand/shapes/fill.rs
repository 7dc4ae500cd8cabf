//! Machines that fill their memory and give it back: slowly with queries, or as fast as it goes.

use guest_units::{MilliCpu, Size};

use super::{MINUTE, Step, Use};
use crate::demand::draw::{between, between_scales, exponential, one_of};
use crate::random::Random;

/// Where a VM stands that fills its memory and gives it back.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Quiet,
    Rise,
    /// With this part of memory.
    Hold(f64),
}

/// Large queries.
#[derive(Debug, Clone)]
pub(super) struct Analytic {
    memory: f64,
    stage: Stage,
}

impl Analytic {
    pub(super) fn new(random: &mut Random) -> Self {
        Self { memory: between(random, 0.05, 0.1), stage: Stage::Quiet }
    }

    pub(super) fn step(&mut self, random: &mut Random) -> Step {
        match self.stage {
            Stage::Quiet => {
                self.stage = Stage::Rise;
                let seconds = MINUTE + exponential(random, 19.0 * MINUTE);
                Step { seconds, cpu: Use::Part(0.03), memory: self.memory, after: self.memory }
            }
            Stage::Rise => {
                let after = between(random, 0.3, 0.85);
                self.stage = Stage::Hold(after);
                let seconds = between(random, MINUTE, 10.0 * MINUTE);
                let workers = one_of(random, &[0.25, 0.5, 0.75, 1.0]);
                Step { seconds, cpu: Use::Part(workers), memory: self.memory, after }
            }
            Stage::Hold(memory) => {
                self.stage = Stage::Quiet;
                let seconds = between(random, 10.0, MINUTE);
                Step { seconds, cpu: Use::Part(0.25), memory, after: memory }
            }
        }
    }
}

/// Memory as fast as it can be touched.
#[derive(Debug, Clone)]
pub(super) struct Ramps {
    /// The largest memory in GiB: rates are amounts, whatever the size of the VM.
    gib: f64,
    memory: f64,
    stage: Stage,
}

impl Ramps {
    /// GiB a second.
    const RATES: (f64, f64) = (1.0 / 16.0, 4.0);
    /// Whoever touches memory uses one CPU for it.
    const TOUCHING: Use = Use::Milli(MilliCpu::ONE.0 as f64);

    pub(super) fn new(random: &mut Random, max: Size) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "exact enough for a duration")]
        let gib = max.memory.0 as f64 / f64::from(1 << 30);
        Self { gib, memory: between(random, 0.05, 0.1), stage: Stage::Quiet }
    }

    pub(super) fn step(&mut self, random: &mut Random) -> Step {
        match self.stage {
            Stage::Quiet => {
                self.stage = Stage::Rise;
                let seconds = exponential(random, 10.0 * MINUTE);
                Step { seconds, cpu: Use::Part(0.03), memory: self.memory, after: self.memory }
            }
            Stage::Rise => {
                let after = between(random, 0.4, 0.95);
                self.stage = Stage::Hold(after);
                let rate = between_scales(random, Self::RATES.0, Self::RATES.1);
                // Rounded up, so that a span in whole milliseconds is never steeper than the rate.
                let seconds = ((after - self.memory) * self.gib / rate * 1000.0).ceil() / 1000.0;
                Step { seconds, cpu: Self::TOUCHING, memory: self.memory, after }
            }
            Stage::Hold(memory) => {
                self.stage = Stage::Quiet;
                let seconds = between(random, 5.0, MINUTE);
                Step { seconds, cpu: Use::Part(0.1), memory, after: memory }
            }
        }
    }
}
