//! How large a node shows itself: what the scheduler may fill, at most what the machine has.

use std::fs;

use anyhow::{Context, Result, ensure};
use guest_units::{Bytes, MilliCpu};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A kubelet evicts pods when less than this is free, and counts it as not allocatable.
pub const EVICTION_BYTES: u64 = 50 << 20;

/// What a node offers; without a value, everything the machine has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSize {
    /// CPU.
    pub cpu: Option<MilliCpu>,
    /// Memory.
    pub memory: Option<Bytes>,
}

/// The machine: thousandths of CPU, bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineSize {
    cpu_milli: u64,
    memory_bytes: u64,
}

/// Measures this machine.
pub fn machine_size() -> Result<MachineSize> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .context("find MemTotal in /proc/meminfo")?;
    let cpus = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let cpus = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let cpus = u64::try_from(cpus).context("count the CPUs")?;
    Ok(MachineSize { cpu_milli: cpus * 1000, memory_bytes: kib * 1024 })
}

impl NodeSize {
    /// What a kubelet holds back so that the node shows this size.
    pub fn reserved(self, machine: MachineSize) -> Result<Value> {
        let rest = |what: &str, all: u64, wanted: Option<u64>| {
            let wanted = wanted.unwrap_or(all);
            ensure!(wanted > 0, "a node needs some {what}");
            all.checked_sub(wanted).with_context(|| {
                format!("a node cannot show more {what} than the machine has ({wanted} > {all})")
            })
        };
        let cpu = rest("CPU (thousandths)", machine.cpu_milli, self.cpu.map(|cpu| cpu.0.into()))?;
        let memory =
            rest("memory (bytes)", machine.memory_bytes, self.memory.map(|memory| memory.0))?;
        // The kubelet takes the eviction threshold off, too.
        let memory = memory.saturating_sub(EVICTION_BYTES);
        Ok(json!({"cpu": format!("{cpu}m"), "memory": memory.to_string()}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_holds_back_what_the_node_is_not_to_show() {
        let machine = MachineSize { cpu_milli: 2000, memory_bytes: 8 << 30 };
        let size = NodeSize { cpu: Some(MilliCpu(1500)), memory: Some(Bytes(6 << 30)) };
        let reserved = size.reserved(machine).unwrap();
        assert_eq!(
            reserved,
            json!({"cpu": "500m", "memory": ((2_u64 << 30) - EVICTION_BYTES).to_string()})
        );
        assert!(NodeSize { cpu: Some(MilliCpu(2001)), ..size }.reserved(machine).is_err());
        assert!(NodeSize { cpu: Some(MilliCpu(0)), ..size }.reserved(machine).is_err());
    }
}
