//! What is believed at most: brings received numbers into the range that is possible at all.

use guest_units::{Bytes, MilliCpu, Size};

use crate::message::{
    Ask, KeeperRequest, KeeperResponse, KeeperState, Never, Sample, ScalerNotify, ScalerRequest,
    ScalerResponse, Signals,
};
use crate::metrics::Metrics;

/// No VM has more CPU; larger claims are brought down to it.
pub const MAX_CPU: MilliCpu = MilliCpu(4_096_000);
/// No VM has more memory; larger claims are brought down to it.
pub const MAX_MEMORY: Bytes = Bytes(64 << 40);
/// No share is larger: thousandths.
const MAX_PERMILLE: u16 = 1000;

/// No load average is larger: a million threads, in thousandths.
const MAX_LOAD_MILLI: u32 = 1_000_000_000;

/// Something that may be received: brings every number into the range that is possible at all.
pub trait Bounded {
    /// The same, within bounds.
    #[must_use]
    fn bounded(self) -> Self;
}

impl Bounded for Never {
    fn bounded(self) -> Self {
        self
    }
}

fn bounded_size(size: Size) -> Size {
    size.min(Size::new(MAX_CPU, MAX_MEMORY))
}

impl Bounded for ScalerNotify {
    fn bounded(self) -> Self {
        match self {
            Self::Sample(Sample { demand, used, signals, metrics, cache }) => {
                Self::Sample(Sample {
                    demand: bounded_size(demand),
                    used: bounded_size(used),
                    signals: signals.bounded(),
                    metrics: metrics.map(Bounded::bounded),
                    // Bounded by its type.
                    cache,
                })
            }
            Self::Ask(ask) => Self::Ask(Ask { want: bounded_size(ask.want), ..ask }),
        }
    }
}

impl Bounded for Metrics {
    fn bounded(self) -> Self {
        Self {
            load1_milli: self.load1_milli.min(MAX_LOAD_MILLI),
            load5_milli: self.load5_milli.min(MAX_LOAD_MILLI),
            memory_total: self.memory_total.min(MAX_MEMORY),
            memory_available: self.memory_available.min(MAX_MEMORY),
            memory_cached: self.memory_cached.min(MAX_MEMORY),
        }
    }
}

impl Bounded for Signals {
    fn bounded(self) -> Self {
        Self {
            cpu_short: self.cpu_short.min(MAX_CPU),
            cpu_long: self.cpu_long.min(MAX_CPU),
            runnable: self.runnable,
            cpu_pressure_permille: self.cpu_pressure_permille.min(MAX_PERMILLE),
            throttled_permille: self.throttled_permille.min(MAX_PERMILLE),
            memory_total: self.memory_total.min(MAX_MEMORY),
            memory_available: self.memory_available.min(MAX_MEMORY),
            memory_slope_per_second: self.memory_slope_per_second.min(MAX_MEMORY),
            memory_pressure_permille: self.memory_pressure_permille.min(MAX_PERMILLE),
            refaults_per_second: self.refaults_per_second,
            swap_used: self.swap_used.min(MAX_MEMORY),
        }
    }
}

impl Bounded for ScalerRequest {
    fn bounded(self) -> Self {
        match self {
            Self::MayShrink { generation, from, to } => {
                Self::MayShrink { generation, from: bounded_size(from), to: bounded_size(to) }
            }
            Self::Resized { generation, plugged } => {
                Self::Resized { generation, plugged: bounded_size(plugged) }
            }
        }
    }
}

impl Bounded for ScalerResponse {
    fn bounded(self) -> Self {
        match self {
            Self::Fine {} => Self::Fine {},
            Self::Veto { least, reason } => Self::Veto { least: bounded_size(least), reason },
            Self::Confirmed { cpus_online, memory_total } => Self::Confirmed {
                cpus_online: cpus_online.min(MAX_CPU.whole_up()),
                memory_total: memory_total.min(MAX_MEMORY),
            },
        }
    }
}

impl Bounded for KeeperRequest {
    fn bounded(self) -> Self {
        match self {
            Self::State {} => Self::State {},
            Self::SetCpu { generation, cpu } => Self::SetCpu { generation, cpu: cpu.min(MAX_CPU) },
            Self::MayShrinkMemory { generation, from, to } => Self::MayShrinkMemory {
                generation,
                from: from.min(MAX_MEMORY),
                to: to.min(MAX_MEMORY),
            },
            Self::PowerDown {} => Self::PowerDown {},
        }
    }
}

impl Bounded for KeeperResponse {
    fn bounded(self) -> Self {
        match self {
            Self::State(state) => Self::State(KeeperState {
                cpus_present: state.cpus_present.min(MAX_CPU.whole_up()),
                cpus_online: state.cpus_online.min(MAX_CPU.whole_up()),
                quota: state.quota.min(MAX_CPU),
                memory_total: state.memory_total.min(MAX_MEMORY),
            }),
            Self::Veto { least, reason } => Self::Veto { least: least.min(MAX_MEMORY), reason },
            other @ (Self::Fine {} | Self::PoweringDown {}) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_that_no_vm_has_are_brought_down() {
        let metrics = Metrics {
            load1_milli: u32::MAX,
            load5_milli: u32::MAX,
            memory_total: Bytes(u64::MAX),
            memory_available: Bytes(u64::MAX),
            memory_cached: Bytes(u64::MAX),
        };
        let bounded = metrics.bounded();
        assert_eq!((bounded.load1_milli, bounded.load5_milli), (MAX_LOAD_MILLI, MAX_LOAD_MILLI));
        let Metrics { memory_total, memory_available, memory_cached, .. } = bounded;
        assert_eq!([memory_total, memory_available, memory_cached], [MAX_MEMORY; 3]);
    }
}
