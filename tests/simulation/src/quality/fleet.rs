//! The quality of a fleet: sums, and how a number spreads over the VMs.
//!
//! Everything inside is a whole number, so that the order in which VMs are added and parts are merged leaves no trace.

use std::collections::BTreeMap;

use serde::Serialize;

use super::axis::{Axis, Sums};
use super::histogram::{FleetWaits, Spread};
use super::report::{VmReport, depth, hours, ratio, short_share, slack};
use super::{KILLS_FOR_A_RATE, Quality, UNIT};

/// A number that each VM has: its name with the unit, and where a VM's report has it.
struct Metric {
    name: &'static str,
    of: fn(&VmReport) -> Option<f64>,
}

macro_rules! metrics {
    ($($name:literal => |$vm:ident| $of:expr,)*) => {
        [$(Metric { name: $name, of: |$vm| $of }),*]
    };
}

/// Those that are told as percentiles over the VMs.
static METRICS: [Metric; 19] = metrics! {
    "cpu_short_share_of_time" => |vm| vm.cpu.short_share_of_time,
    "cpu_short_depth_share_of_demand" => |vm| vm.cpu.short_depth_share_of_demand,
    "cpu_short_worst_share_of_demand" => |vm| Some(vm.cpu.short_worst_share_of_demand),
    "cpu_slack_share_of_size" => |vm| vm.cpu.slack_share_of_size,
    "cpu_resizes_per_vm_hour" => |vm| vm.cpu.resizes_per_vm_hour,
    "cpu_reversals_per_vm_hour" => |vm| vm.cpu.reversals_per_vm_hour,
    "cpu_never_adequate_count" => |vm| Some(vm.cpu.never_adequate.into()),
    "memory_short_share_of_time" => |vm| vm.memory.short_share_of_time,
    "memory_short_depth_share_of_demand" => |vm| vm.memory.short_depth_share_of_demand,
    "memory_short_worst_share_of_demand" => |vm| Some(vm.memory.short_worst_share_of_demand),
    "memory_slack_share_of_size" => |vm| vm.memory.slack_share_of_size,
    "memory_resizes_per_vm_hour" => |vm| vm.memory.resizes_per_vm_hour,
    "memory_reversals_per_vm_hour" => |vm| vm.memory.reversals_per_vm_hour,
    "memory_never_adequate_count" => |vm| Some(vm.memory.never_adequate.into()),
    "oom_kills_count" => |vm| Some(vm.oom_kills.into()),
    "cu_hours" => |vm| Some(vm.cu_hours),
    "vcpu_hours" => |vm| Some(vm.vcpu_hours),
    "gib_hours" => |vm| Some(vm.gib_hours),
    "in_place_share_of_scale_ups" => |vm| vm.in_place_share_of_scale_ups,
};

/// One resource of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct FleetAxis {
    sums: Sums,
    waits: FleetWaits,
    never: u64,
    resizes: u64,
    reversals: u64,
}

impl FleetAxis {
    fn add(&mut self, axis: &Axis) {
        self.sums.add(&axis.sums);
        self.waits.add(&axis.waits);
        self.never += u64::from(axis.never_adequate());
        self.resizes += u64::from(axis.resizes);
        self.reversals += u64::from(axis.reversals);
    }

    fn merge(&mut self, other: &Self) {
        self.sums.add(&other.sums);
        self.waits.merge(&other.waits);
        self.never += other.never;
        self.resizes += other.resizes;
        self.reversals += other.reversals;
    }
}

/// The quality of a fleet. Threads may have one each and merge them at the end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FleetQuality {
    vms: u64,
    lived: u128,
    cpu: FleetAxis,
    memory: FleetAxis,
    units: u128,
    kills: u64,
    wanted: u64,
    in_place: u64,
    at_once: u64,
    by_resize: u64,
    pod_resizes: u64,
    spreads: [Spread; METRICS.len()],
}

impl FleetQuality {
    /// Counts a VM.
    pub fn add(&mut self, vm: &Quality) {
        self.vms += 1;
        self.lived += u128::from(vm.lived);
        self.cpu.add(&vm.cpu);
        self.memory.add(&vm.memory);
        self.units += vm.units;
        self.kills += u64::from(vm.kills);
        self.wanted += u64::from(vm.wanted);
        self.in_place += u64::from(vm.in_place);
        self.at_once += u64::from(vm.permits.at_once);
        self.by_resize += u64::from(vm.permits.by_resize);
        self.pod_resizes += u64::from(vm.permits.pod_resizes);
        let report = vm.report();
        for (spread, metric) in self.spreads.iter_mut().zip(&METRICS) {
            if let Some(value) = (metric.of)(&report) {
                spread.add(value);
            }
        }
    }

    /// Counts the VMs of another part of the fleet.
    pub fn merge(&mut self, other: &Self) {
        self.vms += other.vms;
        self.lived += other.lived;
        self.cpu.merge(&other.cpu);
        self.memory.merge(&other.memory);
        self.units += other.units;
        self.kills += other.kills;
        self.wanted += other.wanted;
        self.in_place += other.in_place;
        self.at_once += other.at_once;
        self.by_resize += other.by_resize;
        self.pod_resizes += other.pod_resizes;
        for (spread, other) in self.spreads.iter_mut().zip(&other.spreads) {
            spread.merge(other);
        }
    }

    /// The numbers; `oracle` is the same fleet under the oracle.
    #[must_use]
    pub fn report(&self, oracle: Option<&Self>) -> FleetReport {
        let vm_hours = hours(self.lived);
        let to_oracle = |of: fn(&Self) -> u128| {
            oracle.and_then(|oracle| ratio(of(self) as f64, of(oracle) as f64))
        };
        let rate = ratio(self.kills as f64 * 1e6, vm_hours);
        FleetReport {
            vms: self.vms,
            vm_hours,
            oom_kills: self.kills,
            oom_kills_per_million_vm_hours: rate.filter(|_| self.kills >= KILLS_FOR_A_RATE),
            cu_hours: hours(self.units) / UNIT as f64,
            vcpu_hours: hours(self.cpu.sums.sized) / 1000.0,
            gib_hours: hours(self.memory.sums.sized) / UNIT as f64,
            cu_hours_ratio_to_oracle: to_oracle(|fleet| fleet.units),
            vcpu_hours_ratio_to_oracle: to_oracle(|fleet| fleet.cpu.sums.sized),
            gib_hours_ratio_to_oracle: to_oracle(|fleet| fleet.memory.sums.sized),
            scale_ups_wanted: self.wanted,
            in_place_share_of_scale_ups: ratio(self.in_place as f64, self.wanted as f64),
            at_once_share_of_growths: ratio(
                self.at_once as f64,
                (self.at_once + self.by_resize) as f64,
            ),
            pod_resizes_per_vm_hour: ratio(self.pod_resizes as f64, vm_hours),
            cpu: FleetAxisReport::of(&self.cpu, self.lived),
            memory: FleetAxisReport::of(&self.memory, self.lived),
            per_vm: METRICS
                .iter()
                .zip(&self.spreads)
                .filter_map(|(metric, spread)| Some((metric.name, Percentiles::of(spread)?)))
                .collect(),
        }
    }
}

/// A number over the VMs of a fleet, each to less than 1 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of the VMs have no more.
    pub p50: f64,
    /// 99 % of the VMs have no more.
    pub p99: f64,
}

impl Percentiles {
    fn of(spread: &Spread) -> Option<Self> {
        Some(Self { p50: spread.percentile(0.5)?, p99: spread.percentile(0.99)? })
    }
}

/// One resource of a fleet, all VMs together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FleetAxisReport {
    /// Share of the VMs' time with more demand than supply.
    pub short_share_of_time: Option<f64>,
    /// What was missing then, as a share of the demand.
    pub short_depth_share_of_demand: Option<f64>,
    /// What was not used of the sizes.
    pub slack_share_of_size: Option<f64>,
    /// Half of all waits of all VMs, to 50 %.
    pub time_to_adequate_p50_milliseconds: Option<u64>,
    /// 99 % of all waits of all VMs, to 50 %.
    pub time_to_adequate_p99_milliseconds: Option<u64>,
    /// Demands above the supply that were never served.
    pub never_adequate: u64,
    /// Changes of sizes.
    pub resizes: u64,
    /// Changes against the one before, within five minutes.
    pub reversals: u64,
}

impl FleetAxisReport {
    fn of(axis: &FleetAxis, lived: u128) -> Self {
        Self {
            short_share_of_time: short_share(&axis.sums, lived),
            short_depth_share_of_demand: depth(&axis.sums),
            slack_share_of_size: slack(&axis.sums),
            time_to_adequate_p50_milliseconds: axis.waits.percentile(0.5),
            time_to_adequate_p99_milliseconds: axis.waits.percentile(0.99),
            never_adequate: axis.never,
            resizes: axis.resizes,
            reversals: axis.reversals,
        }
    }
}

/// The numbers of a fleet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FleetReport {
    /// VMs counted.
    pub vms: u64,
    /// Their time together.
    pub vm_hours: f64,
    /// Times that a workload was killed.
    pub oom_kills: u64,
    /// The rate; absent when there were too few kills for one.
    pub oom_kills_per_million_vm_hours: Option<f64>,
    /// Compute units over time.
    pub cu_hours: f64,
    /// CPU of the sizes over time.
    pub vcpu_hours: f64,
    /// Memory of the sizes over time.
    pub gib_hours: f64,
    /// Against the least that could have served the demand.
    pub cu_hours_ratio_to_oracle: Option<f64>,
    /// The same of the CPU alone.
    pub vcpu_hours_ratio_to_oracle: Option<f64>,
    /// The same of the memory alone.
    pub gib_hours_ratio_to_oracle: Option<f64>,
    /// Scale-ups that policies asked for.
    pub scale_ups_wanted: u64,
    /// Share of them that the node had room for at once.
    pub in_place_share_of_scale_ups: Option<f64>,
    /// Share of the growths that were permitted without waiting for kubelet.
    pub at_once_share_of_growths: Option<f64>,
    /// Orders to resize a VM's pod.
    pub pod_resizes_per_vm_hour: Option<f64>,
    /// CPU.
    pub cpu: FleetAxisReport,
    /// Memory.
    pub memory: FleetAxisReport,
    /// Percentiles over the VMs that have such a number; the unit is in the name.
    pub per_vm: BTreeMap<&'static str, Percentiles>,
}
