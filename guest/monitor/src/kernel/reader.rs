//! One reading of everything that the policy wants.

use std::io;
use std::path::Path;

use guest_policy::{CpuReading, Reading, Zones};

use super::file::Kept;
use super::parse;

/// Reads the counters of one system.
pub(crate) struct Reader {
    meminfo: Kept,
    vmstat: Kept,
    stat: Kept,
    loadavg: Kept,
    zoneinfo: Kept,
    cpu_stat: Kept,
    cpu_max: Kept,
    cpu_pressure: Kept,
    memory_pressure: Kept,
}

/// A file without which nothing can be judged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("read {path}")]
    Read { path: String, source: io::Error },
    #[error("{path} lacks what must be in it")]
    Content { path: String },
}

impl Reader {
    /// For the system whose `proc` is below `root`, and the workload's cgroup.
    pub(crate) fn new(root: &Path, cgroup: &Path) -> Self {
        let proc = |name: &str| Kept::new(root.join("proc").join(name));
        Self {
            meminfo: proc("meminfo"),
            vmstat: proc("vmstat"),
            stat: proc("stat"),
            loadavg: proc("loadavg"),
            zoneinfo: proc("zoneinfo"),
            cpu_stat: Kept::new(cgroup.join("cpu.stat")),
            cpu_max: Kept::new(cgroup.join("cpu.max")),
            // Of the workload: that of the system does not know its throttling.
            cpu_pressure: Kept::new(cgroup.join("cpu.pressure")),
            memory_pressure: proc("pressure/memory"),
        }
    }

    /// Counters and levels. What is missing but `meminfo` and `stat` counts as zero: a kernel
    /// without pressure files, or a workload that has not started.
    pub(crate) fn read(&mut self) -> Result<Reading, ReadError> {
        let path = |kept: &Kept| kept.path().display().to_string();
        let missing = path(&self.meminfo);
        let mut memory = match self.meminfo.read() {
            Ok(text) => parse::meminfo(text).ok_or(ReadError::Content { path: missing })?,
            Err(source) => return Err(ReadError::Read { path: missing, source }),
        };
        memory.refaults = self.vmstat.read().map_or(0, parse::refaults);
        memory.pressure_usec = self.memory_pressure.read().map_or(0, parse::pressure);
        let mut cpu = CpuReading::default();
        let missing = path(&self.stat);
        match self.stat.read() {
            Ok(text) => parse::stat(text, &mut cpu),
            Err(source) => return Err(ReadError::Read { path: missing, source }),
        }
        if let Ok(text) = self.cpu_stat.read() {
            parse::cpu_stat(text, &mut cpu);
        }
        cpu.loads_milli = self.loadavg.read().ok().and_then(parse::loads);
        cpu.quota = self.cpu_max.read().ok().and_then(parse::quota);
        cpu.pressure_usec = self.cpu_pressure.read().map_or(0, parse::pressure);
        Ok(Reading { memory, cpu })
    }

    /// The zones.
    pub(crate) fn zones(&mut self) -> Result<Zones, ReadError> {
        let path = self.zoneinfo.path().display().to_string();
        let text = self.zoneinfo.read().map_err(|source| ReadError::Read { path, source })?;
        Ok(parse::zoneinfo(text))
    }
}
