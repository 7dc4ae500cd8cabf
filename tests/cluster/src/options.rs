//! How large a node shows itself: what the scheduler may fill, at most what the machine has.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A kubelet evicts pods when less than this is free, and counts it as not allocatable.
pub const EVICTION_BYTES: u64 = 50 << 20;

/// What a node offers; without a value, everything the machine has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSize {
    /// CPU in thousandths.
    pub cpu_milli: Option<u64>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
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
        let cpu = rest("CPU (thousandths)", machine.cpu_milli, self.cpu_milli)?;
        let memory = rest("memory (bytes)", machine.memory_bytes, self.memory_bytes)?;
        // The kubelet takes the eviction threshold off, too.
        let memory = memory.saturating_sub(EVICTION_BYTES);
        Ok(json!({"cpu": format!("{cpu}m"), "memory": memory.to_string()}))
    }
}

/// Reads `1500m`, `2` or `0.5` as thousandths of a CPU.
pub fn parse_cpu(text: &str) -> Result<u64> {
    let hint = || format!("{text:?} is no amount of CPU such as 1500m or 1.5");
    if let Some(milli) = text.strip_suffix('m') {
        return milli.parse().with_context(hint);
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    ensure!(fraction.len() <= 3, hint());
    let whole: u64 = whole.parse().with_context(hint)?;
    let fraction: u64 = format!("{fraction:0<3}").parse().with_context(hint)?;
    whole.checked_mul(1000).and_then(|milli| milli.checked_add(fraction)).with_context(hint)
}

/// Reads `6Gi`, `512Mi`, `1G` or plain bytes.
pub fn parse_memory(text: &str) -> Result<u64> {
    const UNITS: &[(&str, u64)] = &[
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("k", 1000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
    ];
    let hint = || format!("{text:?} is no amount of memory such as 6Gi or 512Mi");
    let found = UNITS.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)));
    let (number, unit) = found.unwrap_or((text, 1));
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).with_context(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_cpu() {
        for (text, milli) in [("1500m", 1500), ("2", 2000), ("0.5", 500), ("1.25", 1250)] {
            assert_eq!(parse_cpu(text).unwrap(), milli, "{text}");
        }
        for bad in ["", "x", "1.2345", "-1", "1,5"] {
            assert!(parse_cpu(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts_of_memory() {
        for (text, bytes) in
            [("6Gi", 6 << 30), ("512Mi", 512 << 20), ("1G", 1_000_000_000), ("7", 7)]
        {
            assert_eq!(parse_memory(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "Gi", "1.5Gi", "6Ti6", "99999999999Gi"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_kubelet_holds_back_what_the_node_is_not_to_show() {
        let machine = MachineSize { cpu_milli: 2000, memory_bytes: 8 << 30 };
        let size = NodeSize { cpu_milli: Some(1500), memory_bytes: Some(6 << 30) };
        let reserved = size.reserved(machine).unwrap();
        assert_eq!(
            reserved,
            json!({"cpu": "500m", "memory": ((2_u64 << 30) - EVICTION_BYTES).to_string()})
        );
        assert!(NodeSize { cpu_milli: Some(2001), ..size }.reserved(machine).is_err());
        assert!(NodeSize { cpu_milli: Some(0), ..size }.reserved(machine).is_err());
    }
}
