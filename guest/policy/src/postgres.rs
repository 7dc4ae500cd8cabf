//! Postgres settings that follow the size. Only such as a reload of the configuration applies: no
//! restart, no broken connection.

use guest_units::{Bytes, Size};

/// Memory that is left to the system before Postgres gets its share.
const BASE: Bytes = Bytes::from_mib(256);

/// Which settings are managed; the others are left as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Managed {
    /// `effective_cache_size`.
    pub effective_cache_size: bool,
    /// `work_mem`.
    pub work_mem: bool,
    /// `maintenance_work_mem`.
    pub maintenance_work_mem: bool,
    /// `max_parallel_workers` and `max_parallel_workers_per_gather`.
    pub parallel_workers: bool,
}

impl Default for Managed {
    fn default() -> Self {
        Self {
            effective_cache_size: true,
            work_mem: true,
            maintenance_work_mem: true,
            parallel_workers: true,
        }
    }
}

/// A setting and its value, as Postgres reads it. Names and values need no quoting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
}

/// The settings for a size.
#[must_use]
pub fn settings(size: Size, managed: Managed) -> Vec<Setting> {
    let Managed { effective_cache_size, work_mem, maintenance_work_mem, parallel_workers } =
        managed;
    let room = size.memory.saturating_sub(BASE);
    let cpus = size.cpu.whole_up().max(1);
    let mut settings = Vec::new();
    let mut set = |on: bool, name, value: String| {
        if on {
            settings.push(Setting { name, value });
        }
    };
    set(
        effective_cache_size,
        "effective_cache_size",
        mib(room.times(3, 4), Bytes::from_mib(64), Bytes(u64::MAX)),
    );
    // A hundred sorting backends at work_mem use at most about half of the room.
    set(work_mem, "work_mem", mib(room.times(1, 200), Bytes::from_mib(4), Bytes::from_mib(256)));
    set(
        maintenance_work_mem,
        "maintenance_work_mem",
        mib(room.times(1, 16), Bytes::from_mib(16), Bytes::from_gib(1)),
    );
    set(parallel_workers, "max_parallel_workers", cpus.to_string());
    // With one CPU parallel plans only add work.
    set(parallel_workers, "max_parallel_workers_per_gather", (cpus / 2).min(4).to_string());
    settings
}

fn mib(value: Bytes, least: Bytes, most: Bytes) -> String {
    format!("{}MB", value.max(least).min(most).whole_mib())
}

#[cfg(test)]
mod tests {
    use guest_units::MilliCpu;
    use proptest::prelude::*;

    use super::*;

    fn values(cpu: u32, mib: u64) -> Vec<String> {
        let size = Size::new(MilliCpu(cpu), Bytes::from_mib(mib));
        settings(size, Managed::default()).into_iter().map(|setting| setting.value).collect()
    }

    #[test]
    fn settings_follow_the_size() {
        assert_eq!(values(250, 512), ["192MB", "4MB", "16MB", "1", "0"]);
        assert_eq!(values(2000, 2304), ["1536MB", "10MB", "128MB", "2", "1"]);
        assert_eq!(values(16000, 65792), ["49152MB", "256MB", "1024MB", "16", "4"]);
        assert_eq!(values(0, 0), ["64MB", "4MB", "16MB", "1", "0"]);
    }

    #[test]
    fn each_can_be_switched_off() {
        let size = Size::new(MilliCpu(1000), Bytes::from_gib(1));
        let off = Managed {
            effective_cache_size: false,
            work_mem: false,
            maintenance_work_mem: false,
            parallel_workers: false,
        };
        assert!(settings(size, off).is_empty());
        let one = settings(size, Managed { work_mem: true, ..off });
        assert_eq!(one.iter().map(|setting| setting.name).collect::<Vec<_>>(), ["work_mem"]);
    }

    proptest! {
        #[test]
        fn more_memory_never_means_less(cpu: u32, mib in 0u64..1 << 24, more in 0u64..1 << 24) {
            let number = |text: &String| text.trim_end_matches("MB").parse::<u64>().unwrap();
            let (small, large) = (values(cpu, mib), values(cpu, mib + more));
            for (small, large) in small.iter().zip(&large) {
                prop_assert!(number(small) <= number(large));
            }
        }
    }
}
