//! Limits the CPU of the workload by `cpu.max` of its cgroup.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest_units::MilliCpu;

use crate::kernel::{self, Kept};

/// A quota shorter than about this costs throughput: ticks and slices are some milliseconds long.
const SHORTEST_QUOTA_USEC: u64 = 10_000;
/// A longer period makes the pauses of a throttled workload longer.
const SHORTEST_PERIOD_USEC: u64 = 20_000;
const LONGEST_PERIOD_USEC: u64 = 100_000;
/// The kernel refuses less.
const LEAST_QUOTA_USEC: u64 = 1_000;
/// No limit, with the kernel's own period.
const RELEASED: &str = "max 100000";

/// The limit of one cgroup.
pub(crate) struct Quota {
    path: PathBuf,
    file: Kept,
    period: Option<Duration>,
    limited: bool,
}

impl Quota {
    pub(crate) fn new(cgroup: &Path, period: Option<Duration>) -> Self {
        let path = cgroup.join("cpu.max");
        Self { file: Kept::new(path.clone()), path, period, limited: false }
    }

    /// What the workload may use; `None`: no limit, or no such cgroup.
    pub(crate) fn get(&mut self) -> Option<MilliCpu> {
        self.file.read().ok().and_then(kernel::quota)
    }

    pub(crate) fn set(&mut self, cpu: MilliCpu) -> io::Result<()> {
        let (quota, period) = times(cpu, self.period);
        std::fs::write(&self.path, format!("{quota} {period}"))?;
        self.limited = true;
        Ok(())
    }

    /// Lifts the limit, if there is one of ours: nobody would ever change it again.
    pub(crate) fn release(&mut self) {
        if !std::mem::take(&mut self.limited) {
            return;
        }
        match std::fs::write(&self.path, RELEASED) {
            Ok(()) => tracing::info!("cpu limit lifted"),
            Err(err) => tracing::error!(error = %err, "the CPU limit was not lifted"),
        }
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        self.release();
    }
}

/// Quota and period in microseconds. A whole number of CPUs has a quota, too: it can be read back.
fn times(cpu: MilliCpu, fixed: Option<Duration>) -> (u64, u64) {
    let milli = u64::from(cpu.0.max(1));
    let period = match fixed {
        Some(fixed) => u64::try_from(fixed.as_micros()).unwrap_or(LONGEST_PERIOD_USEC),
        // In whole milliseconds, so that quota and period give back exactly this CPU.
        None => (SHORTEST_QUOTA_USEC.div_ceil(milli) * 1000)
            .clamp(SHORTEST_PERIOD_USEC, LONGEST_PERIOD_USEC),
    };
    ((milli * period / 1000).max(LEAST_QUOTA_USEC), period)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn periods_give_a_quota_of_ten_milliseconds() {
        let cases = [
            (4000, (80_000, 20_000)),
            (1000, (20_000, 20_000)),
            (500, (10_000, 20_000)),
            (250, (10_000, 40_000)),
            (100, (10_000, 100_000)),
            (50, (5_000, 100_000)),
            (1, (1_000, 100_000)),
        ];
        for (milli, expected) in cases {
            assert_eq!(times(MilliCpu(milli), None), expected, "{milli}m");
        }
        let fixed = Some(Duration::from_millis(10));
        assert_eq!(times(MilliCpu(250), fixed), (2_500, 10_000));
    }

    proptest! {
        #[test]
        fn a_quota_is_read_back_as_it_was_set(milli in 10u32..4_096_000) {
            let (quota, period) = times(MilliCpu(milli), None);
            prop_assert!((20_000..=100_000).contains(&period));
            let text = format!("{quota} {period}\n");
            prop_assert_eq!(kernel::quota(text.as_bytes()), Some(MilliCpu(milli)));
        }
    }
}
