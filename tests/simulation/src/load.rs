//! What a workload wants, as steps in time.

use guest_units::{Bytes, MilliCpu, Moment};

/// What a workload wants from `at` until the next load: CPU stays, memory may rise or fall steadily.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// From when on.
    pub at: Moment,
    /// CPU that it would use if it could.
    pub cpu: MilliCpu,
    /// Memory that it would hold at `at` if it could: anonymous and shared, no page cache.
    pub memory: Bytes,
    /// How that memory changes with each second.
    pub memory_per_second: i64,
}

impl Load {
    /// The memory wanted at a moment not before `at`.
    #[must_use]
    pub fn memory_at(&self, now: Moment) -> Bytes {
        let nanos = i128::try_from(now.since(self.at).as_nanos()).unwrap_or(i128::MAX);
        let change = i128::from(self.memory_per_second).saturating_mul(nanos) / 1_000_000_000;
        let wanted = i128::from(self.memory.0).saturating_add(change).max(0);
        Bytes(u64::try_from(wanted).unwrap_or(u64::MAX))
    }
}
