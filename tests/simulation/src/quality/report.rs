//! The numbers of one VM, ready to print.

use serde::Serialize;

use super::axis::{Axis, Sums};
use super::{Quality, UNIT};

/// Nanoseconds of an hour.
const HOUR: f64 = 3.6e12;

/// An integral over nanoseconds, in hours.
pub(super) fn hours(nanos: u128) -> f64 {
    nanos as f64 / HOUR
}

/// `part / whole`, `None` for a whole of nothing.
pub(super) fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

/// One resource of one VM. What is a share of nothing is absent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AxisReport {
    /// Share of time with more demand than supply.
    pub short_share_of_time: Option<f64>,
    /// What was missing then, as a share of the demand.
    pub short_depth_share_of_demand: Option<f64>,
    /// The largest such share.
    pub short_worst_share_of_demand: f64,
    /// What was not used of the size.
    pub slack_share_of_size: Option<f64>,
    /// Time to adequate, half of the cases.
    pub time_to_adequate_p50_milliseconds: Option<u64>,
    /// Time to adequate, 99 % of the cases.
    pub time_to_adequate_p99_milliseconds: Option<u64>,
    /// Demands above the supply that fell before they were served, or still wait.
    pub never_adequate: u32,
    /// Changes of the size.
    pub resizes_per_vm_hour: Option<f64>,
    /// Changes against the one before, within five minutes.
    pub reversals_per_vm_hour: Option<f64>,
}

impl AxisReport {
    fn of(axis: &Axis, lived: u128) -> Self {
        let hours = hours(lived);
        Self {
            short_share_of_time: short_share(&axis.sums, lived),
            short_depth_share_of_demand: depth(&axis.sums),
            short_worst_share_of_demand: f64::from(axis.worst) / 1e6,
            slack_share_of_size: slack(&axis.sums),
            time_to_adequate_p50_milliseconds: axis.waits.percentile(0.5),
            time_to_adequate_p99_milliseconds: axis.waits.percentile(0.99),
            never_adequate: axis.never_adequate(),
            resizes_per_vm_hour: ratio(f64::from(axis.resizes), hours),
            reversals_per_vm_hour: ratio(f64::from(axis.reversals), hours),
        }
    }
}

pub(super) fn short_share(sums: &Sums, lived: u128) -> Option<f64> {
    ratio(sums.short as f64, lived as f64)
}

pub(super) fn depth(sums: &Sums) -> Option<f64> {
    ratio(sums.missing2 as f64, sums.demanded2 as f64)
}

pub(super) fn slack(sums: &Sums) -> Option<f64> {
    let size2 = 2 * sums.sized;
    ratio(size2.saturating_sub(sums.used2) as f64, size2 as f64)
}

/// The numbers of one VM.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VmReport {
    /// How long it was looked at.
    pub vm_hours: f64,
    /// CPU.
    pub cpu: AxisReport,
    /// Memory.
    pub memory: AxisReport,
    /// Times that the workload was killed.
    pub oom_kills: u32,
    /// Compute units over time.
    pub cu_hours: f64,
    /// CPU of the size over time.
    pub vcpu_hours: f64,
    /// Memory of the size over time.
    pub gib_hours: f64,
    /// Share of the scale-ups that the node had room for at once.
    pub in_place_share_of_scale_ups: Option<f64>,
}

impl VmReport {
    pub(super) fn of(quality: &Quality) -> Self {
        let lived = u128::from(quality.lived);
        Self {
            vm_hours: hours(lived),
            cpu: AxisReport::of(&quality.cpu, lived),
            memory: AxisReport::of(&quality.memory, lived),
            oom_kills: quality.kills,
            cu_hours: quality.cu_hours(),
            vcpu_hours: hours(quality.cpu.sums.sized) / 1000.0,
            gib_hours: hours(quality.memory.sums.sized) / UNIT as f64,
            in_place_share_of_scale_ups: ratio(quality.in_place.into(), quality.wanted.into()),
        }
    }
}
