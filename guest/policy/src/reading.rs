//! What the shell reads from the kernel.

use guest_units::{Bytes, MilliCpu};

/// Everything that is read each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// Memory.
    pub memory: MemoryReading,
    /// CPU.
    pub cpu: CpuReading,
}

/// Levels of `/proc/meminfo`, and counters since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryReading {
    /// What the kernel manages (`MemTotal`).
    pub total: Bytes,
    /// Unused (`MemFree`).
    pub free: Bytes,
    /// The kernel's own estimate of what can be used without swapping (`MemAvailable`).
    pub available: Bytes,
    /// Page cache that was used repeatedly (`Active(file)`).
    pub active_file: Bytes,
    /// The rest of the page cache that can be dropped (`Inactive(file)`).
    pub inactive_file: Bytes,
    /// Kernel caches that can be dropped (`SReclaimable`).
    pub slab_reclaimable: Bytes,
    /// What counters name as in use: `AnonPages`, `Shmem`, `SUnreclaim`, `KernelStack`, `PageTables`, `Percpu`. Zero: not read.
    pub counted: Bytes,
    /// Page cache as the kernel counts it (`Cached`): with shared memory.
    pub cached: Bytes,
    /// Must be written before it can be dropped (`Dirty` and `Writeback`).
    pub dirty: Bytes,
    /// What is in swap alone (`SwapTotal` - `SwapFree` - `SwapCached`): a page that came back and still has its place in
    /// swap counts once, as memory.
    pub swap_used: Bytes,
    /// Pages that were read again and would still be there with somewhat more memory (`workingset_activate_file`: one
    /// reading of a large file is none), and pages that came back from swap (`workingset_refault_anon`).
    pub refaults: u64,
    /// Time in which some thread waited for memory (`some` of `pressure/memory`).
    pub pressure_usec: u64,
}

/// Levels and counters about CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuReading {
    /// CPU time of the workload's cgroup; `None` without one.
    pub workload_usec: Option<u64>,
    /// CPU time of everything.
    pub system_usec: u64,
    /// Threads that run or could run, without the reader itself.
    pub runnable: u32,
    /// Periods of the quota that the workload was active in.
    pub periods: u64,
    /// Periods in which it had used up its quota.
    pub throttled: u64,
    /// Time in which some thread waited for CPU (`some` of `pressure/cpu`).
    pub pressure_usec: u64,
    /// What the workload may use; `None` without a limit.
    pub quota: Option<MilliCpu>,
    /// CPUs online.
    pub online: u32,
    /// Load averages over one and five minutes, in thousandths; `None`: not read.
    pub loads_milli: Option<(u32, u32)>,
}

impl CpuReading {
    /// What can be used: the quota, at most all CPUs.
    #[must_use]
    pub fn capacity(&self) -> MilliCpu {
        let online = MilliCpu::from_cpus(self.online);
        self.quota.map_or(online, |quota| quota.min(online))
    }
}

/// What is read rarely, from `/proc/zoneinfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Zones {
    /// All memory of the machine, with what the kernel keeps for itself.
    pub present: Bytes,
    /// What the kernel manages of it.
    pub managed: Bytes,
    /// Unused where the kernel may allocate for itself.
    pub kernel_free: Bytes,
    /// Page cache there, which makes room when dropped.
    pub kernel_file: Bytes,
    /// Below this the kernel reclaims in the foreground.
    pub kernel_low: Bytes,
    /// Unused where only movable allocations go.
    pub movable_free: Bytes,
}

impl MemoryReading {
    /// What cannot be dropped: everything but free memory, page cache and kernel caches. Counted
    /// from above, so that allocations which no counter names are included.
    #[must_use]
    pub fn hard(&self) -> Bytes {
        let soft = self
            .free
            .saturating_add(self.active_file)
            .saturating_add(self.inactive_file)
            .saturating_add(self.slab_reclaimable);
        self.total.saturating_sub(soft)
    }

    /// What is in use without a counter that names it. While memory is unplugged, the pages on their way out show up here
    /// for some milliseconds, since they are neither free nor gone.
    #[must_use]
    pub fn unnamed(&self) -> Bytes {
        self.hard().saturating_sub(self.counted)
    }

    /// Whose growth is a workload's growth: a resize does not move it.
    #[must_use]
    pub fn level(&self) -> Bytes {
        let level = if self.counted.is_zero() { self.hard() } else { self.counted };
        level.saturating_add(self.swap_used)
    }

    /// What can still be used: by the kernel's estimate, and never more than [`Self::hard`] leaves.
    #[must_use]
    pub fn usable(&self) -> Bytes {
        self.available.min(self.total.saturating_sub(self.hard()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn page_cache_is_not_hard_but_dirty_sums_never_wrap() {
        let mib = Bytes::from_mib;
        let memory = MemoryReading {
            total: mib(485),
            free: mib(100),
            available: mib(260),
            active_file: mib(80),
            inactive_file: mib(90),
            slab_reclaimable: mib(15),
            ..MemoryReading::default()
        };
        assert_eq!(memory.hard(), mib(200));
        assert_eq!(memory.usable(), mib(260));
        let lying = MemoryReading { free: mib(900), ..memory };
        assert_eq!(lying.hard(), Bytes::ZERO);
    }

    #[test]
    fn capacity_is_the_quota_but_never_more_than_the_cpus() {
        let cpu = |quota, online| CpuReading { quota, online, ..CpuReading::default() }.capacity();
        assert_eq!(cpu(None, 2), MilliCpu(2000));
        assert_eq!(cpu(Some(MilliCpu(250)), 2), MilliCpu(250));
        assert_eq!(cpu(Some(MilliCpu(4000)), 2), MilliCpu(2000));
    }

    proptest! {
        #[test]
        fn hard_and_usable_never_exceed_the_total(values in prop::array::uniform6(any::<u64>())) {
            let [total, free, available, active, inactive, slab] = values.map(Bytes);
            let memory = MemoryReading {
                total, free, available, active_file: active, inactive_file: inactive,
                slab_reclaimable: slab, ..MemoryReading::default()
            };
            prop_assert!(memory.hard() <= total);
            prop_assert!(memory.hard().saturating_add(memory.usable()) <= total);
        }
    }
}
