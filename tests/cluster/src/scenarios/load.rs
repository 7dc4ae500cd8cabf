//! A VM that is autoscaled: its size follows the load, up and down, and even a burst that fills memory in seconds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest_units::{Bytes, MilliCpu};

use super::books::{Books, wait_balanced};
use super::space::Space;
use super::vm::{Shape, size};
use super::{Needs, Scenario};
use crate::cluster::Cluster;

pub(super) fn scenarios() -> Vec<Scenario> {
    let scenario = |name, run| Scenario {
        name,
        needs: Needs::System,
        deadline: Duration::from_secs(420),
        run,
    };
    vec![
        scenario("an autoscaled VM follows the load up and down within its bounds", up_and_down),
        scenario("a burst that fills memory in seconds is served without a kill", burst),
    ]
}

const UP: Duration = Duration::from_secs(30);
const DOWN: Duration = Duration::from_secs(120);
/// Narrower than the specification's.
const BOUNDS: &str = r#"{"min": {"cpu": 0.25, "mem": "512Mi"}, "max": {"cpu": 1, "mem": "2Gi"}}"#;

fn up_and_down(cluster: &Cluster) -> Result<()> {
    let shape = Shape { scaled: true, bounds: BOUNDS, ..Shape::default() };
    let (space, vm) = Space::with_vm(cluster, "load", &shape)?;
    let postmaster = space.sql("select pg_postmaster_start_time()")?;

    let load = space.pgbench(4, 30);
    vm.wait_plugged(cluster, "one CPU", UP, |plugged| plugged.cpu == MilliCpu(1000))?;
    let mut samples = 0;
    while !load.ended() {
        let plugged = vm.see()?.plugged()?;
        ensure!(plugged.fits_in(size(1000, 16)), "{plugged} is beyond the bounds");
        Books::read(cluster)?.check()?;
        samples += 1;
        std::thread::sleep(Duration::from_millis(500));
    }
    load.join()?;
    ensure!(samples > 0, "the VM grew only when the load had ended");

    vm.wait_size(cluster, size(250, 4), DOWN)?;
    wait_balanced(cluster, &vm, DOWN)?;
    let after = space.sql("select pg_postmaster_start_time()")?;
    ensure!(after == postmaster, "Postgres was restarted");
    Ok(())
}

const SWING: Duration = Duration::from_secs(90);

fn burst(cluster: &Cluster) -> Result<()> {
    const LEAST_MIB: u64 = 256;
    const MOST_MIB: u64 = 2280;
    let shape = Shape { scaled: true, slots: "{min: 4, use: 4, max: 28}", ..Shape::default() };
    let (space, vm) = Space::with_vm(cluster, "burst", &shape)?;
    let killed =
        |space: &Space| space.guest_value("/sys/fs/cgroup/workload/memory.events", "oom_kill");
    ensure!(killed(&space)? == 0, "the kernel killed something before the load");
    // One swing up and down; the last line of the record is the exit code.
    let swing = format!(
        "neon-test allocate-loop {LEAST_MIB} {MOST_MIB} 1 >/tmp/swing 2>&1; echo ended \\$? >>/tmp/swing"
    );
    space.start_in_guest(&swing)?;
    let mut peak = Bytes(0);
    cluster.wait_until("the load has swung up and down", SWING, || {
        peak = peak.max(vm.see()?.plugged()?.memory);
        let said = space.sql("select pg_read_file('/tmp/swing')")?;
        let last = said.lines().last().context("the load has said nothing")?.to_owned();
        ensure!(
            !last.starts_with("ended") || last == "ended 0",
            "the load did not survive: {last}"
        );
        Ok(last == "ended 0")
    })?;
    ensure!(killed(&space)? == 0, "the kernel killed for want of memory");
    ensure!(peak.0 >= MOST_MIB << 20, "the VM had only {peak} at its largest");
    vm.wait_plugged(cluster, "less memory than at its peak", DOWN, |plugged| plugged.memory < peak)
        .map(drop)
}
