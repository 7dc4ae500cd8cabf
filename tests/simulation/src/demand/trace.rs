//! What was recorded about one real VM, and the conventions by which it becomes a demand.

use std::sync::Arc;
use std::time::Duration;

use guest_units::{Bytes, MilliCpu};

use super::draw::{bytes, milli};

/// A recorded VM: samples at equal distances, shared by everyone who replays it.
///
/// - Percentages of CPU are of four vCPUs.
/// - Memory that was recorded is taken as it is. Where none was, it is 1 GiB and half a GiB for each busy vCPU: it rises at once with
///   use and falls back exponentially with a time constant of ten minutes, replayed in straight pieces of two minutes at most.
/// - No trace has the short bursts that decide about memory running out, so they are laid over every trace: a Poisson process of six an
///   hour, each 5 to 60 seconds long (uniform) and as high as one Pareto draw (exponent 1.5, from 1 up) says: a quarter of a vCPU and
///   128 MiB times that draw. Together those that overlap add at most three vCPUs and 2 GiB. Memory of a burst is a step: how fast it can
///   be touched is up to who simulates the guest.
/// - A trace that ends starts again.
#[derive(Debug, Clone)]
pub struct Trace {
    pub(super) name: Arc<str>,
    pub(super) samples: Arc<[Sample]>,
    pub(super) resolution: Duration,
    pub(super) memory: TraceMemory,
}

/// What a VM used during one stretch of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// CPU.
    pub cpu: MilliCpu,
    /// Recorded memory, or what derived memory tends to.
    pub memory: Bytes,
}

/// Where the memory of a trace comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceMemory {
    /// It was recorded.
    Recorded,
    /// It follows CPU.
    Derived,
}

/// mCPU for each percent.
const MILLI_PER_PERCENT: f64 = 40.0;
const IDLE_MEMORY: Bytes = Bytes::from_gib(1);
const MEMORY_PER_MILLI: f64 = (512 << 20) as f64 / 1000.0;

impl Sample {
    /// CPU in percent of four vCPUs and memory in bytes.
    pub(super) fn recorded(percent: f64, memory: f64) -> Self {
        Self { cpu: milli(percent * MILLI_PER_PERCENT), memory: bytes(memory) }
    }

    /// CPU in percent of four vCPUs; memory follows.
    pub(super) fn derived(percent: f64) -> Self {
        let cpu = milli(percent * MILLI_PER_PERCENT);
        let busy = bytes(f64::from(cpu.0) * MEMORY_PER_MILLI);
        Self { cpu, memory: IDLE_MEMORY.saturating_add(busy) }
    }
}

impl Trace {
    /// The name of the file without its extension; of a file with many VMs, `:` and the number of the line as well.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The samples, the first at 0; never empty.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The time from one sample to the next, 1 second to a day.
    #[must_use]
    pub fn resolution(&self) -> Duration {
        self.resolution
    }

    /// How long the trace is before it starts again.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.resolution.saturating_mul(u32::try_from(self.samples.len()).unwrap_or(u32::MAX))
    }

    /// Where its memory comes from.
    #[must_use]
    pub fn memory(&self) -> TraceMemory {
        self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percent_is_of_four_vcpus() {
        let sample = Sample::derived(50.0);
        assert_eq!((sample.cpu, sample.memory), (MilliCpu::from_cpus(2), Bytes::from_gib(2)));
        assert_eq!(Sample::derived(0.0).memory, Bytes::from_gib(1));
        let sample = Sample::recorded(0.73, 1024.0);
        assert_eq!((sample.cpu, sample.memory), (MilliCpu(29), Bytes::from_kib(1)));
    }
}
