//! Sizes set by hand: both ways, seen by the hypervisor and inside the guest; and a shrink that the guest cannot bear.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::books::wait_balanced;
use super::space::Space;
use super::vm::{SLOT, Shape, Vm, size};
use super::{Needs, Scenario};
use crate::cluster::Cluster;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "a VM is resized by hand, and never below what its guest needs",
        needs: Needs::System,
        deadline: Duration::from_secs(420),
        run: resize,
    }]
}

const SOON: Duration = Duration::from_secs(45);
/// An emulated CPU takes its time to write so much.
const FILLED: Duration = Duration::from_secs(90);
/// A shrink that was vetoed is tried again after a pause that grows.
const RETRIED: Duration = Duration::from_secs(90);

fn resize(cluster: &Cluster) -> Result<()> {
    let (space, vm) = Space::with_vm(cluster, "resize", &Shape::default())?;
    let small = Guest::look(&space)?;
    ensure!(small.cpu_milli == 250, "the quota is {} at first", small.cpu_milli);
    let postmaster = space.sql("select pg_postmaster_start_time()")?;

    both_ways(&space, &vm, &small)?;
    veto(&space, &vm)?;

    let after = space.sql("select pg_postmaster_start_time()")?;
    ensure!(after == postmaster, "Postgres was restarted");
    Ok(())
}

/// What the guest itself sees.
struct Guest {
    cpu_milli: u64,
    memory_kib: u64,
}

impl Guest {
    fn look(space: &Space) -> Result<Self> {
        let memory_kib = space.guest_value("/proc/meminfo", "MemTotal")?;
        let text = space.sql("select pg_read_file('/sys/fs/cgroup/workload/cpu.max')")?;
        let cpu_milli = quota(&text).with_context(|| format!("read the quota {text:?}"))?;
        Ok(Self { cpu_milli, memory_kib })
    }
}

/// Thousandths of a CPU from `QUOTA PERIOD`.
fn quota(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota * 1000).checked_div(period)
}

fn both_ways(space: &Space, vm: &Vm, small: &Guest) -> Result<()> {
    let cluster = &space.cluster;
    let grown = size(1250, 12);
    vm.resize(grown)?;
    vm.wait_size(cluster, grown, SOON)?;
    let online = space.sql("select pg_read_file('/sys/devices/system/cpu/online')")?;
    ensure!(online == "0-1", "the CPUs on line are {online}");
    let guest = Guest::look(space)?;
    ensure!(guest.cpu_milli == 1250, "the quota is {}", guest.cpu_milli);
    let more = guest.memory_kib.saturating_sub(small.memory_kib);
    ensure!(more >= 8 * (SLOT >> 10) * 95 / 100, "the guest has only {more} KiB more");
    wait_balanced(cluster, vm, SOON)?;

    let least = size(250, 4);
    vm.resize(least)?;
    vm.wait_size(cluster, least, SOON)?;
    let guest = Guest::look(space)?;
    ensure!(guest.cpu_milli == 250, "the quota is {}", guest.cpu_milli);
    let kept = guest.memory_kib.saturating_sub(small.memory_kib);
    ensure!(kept <= 16 << 10, "the guest keeps {kept} KiB");
    wait_balanced(cluster, vm, SOON)
}

fn veto(space: &Space, vm: &Vm) -> Result<()> {
    const USED_MIB: u64 = 768;
    let cluster = &space.cluster;
    let large = size(1000, 14);
    vm.resize(large)?;
    vm.wait_size(cluster, large, SOON)?;
    // Memory that can be moved, but not dropped.
    let hold = format!("neon-test allocate-loop {} {}", USED_MIB, USED_MIB + 1);
    space.start_in_guest(&hold)?;
    cluster.wait_until("the guest's memory is in use", FILLED, || {
        Ok(space.guest_value("/proc/meminfo", "Shmem")? >= USED_MIB << 10)
    })?;

    let least = size(1000, 4);
    vm.resize(least)?;
    cluster.wait_until("the guest's veto is on record", SOON, || {
        let seen = vm.see()?;
        let (status, reason, message) = seen.condition("Resized");
        ensure!(seen.plugged()?.memory.0 > USED_MIB << 20, "it was shrunk below its use");
        if (status.as_str(), reason.as_str()) == ("False", "ShrinkVetoed") {
            ensure!(message.contains("memory"), "the message does not say what: {message}");
            return Ok(true);
        }
        bail!("Resized is {status}: {reason} {message}");
    })?;
    let (from, killed) = ("/sys/fs/cgroup/workload/memory.events", "oom_kill");
    ensure!(space.guest_value(from, killed)? == 0, "the kernel killed for want of memory");

    space.start_in_guest("pkill allocate-loop")?;
    vm.wait_size(cluster, least, RETRIED)?;
    wait_balanced(cluster, vm, SOON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_read_in_thousandths() {
        assert_eq!(quota("125000 100000\n"), Some(1250));
        assert_eq!(quota("max 100000"), None);
        assert_eq!(quota("1 0"), None);
    }
}
