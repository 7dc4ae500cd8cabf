//! `simulate compare` and `simulate fleet`: the same demand under several policies, side by side.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use guest_units::Moment;
use serde::Serialize;

use crate::baseline::{self, Baseline, Machine};
use crate::held::Touch;
use crate::quality::{BEYOND, FleetQuality, FleetReport, is_beyond};
use crate::run::{AMPLE, Brain, Fleet, joined};
use crate::workload::{Group, Source};

/// VMs that share one run of the simulator.
const TOGETHER: usize = 16;

/// What to compare.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// What a VM can be.
    pub machine: Machine,
    /// Whose demand.
    pub groups: Vec<Group>,
    /// Seeds: each trace is run with each, for its bursts; archetypes have as many VMs.
    pub seeds: std::ops::RangeInclusive<u64>,
    /// Each VM lives so long, or as long as its trace; one with an archetype no longer than [`DAY`].
    pub most: Option<Duration>,
}

/// How long archetypes are run at most.
pub const DAY: Duration = Duration::from_secs(86_400);

/// A group under all policies.
#[derive(Debug, Clone, Serialize)]
pub struct Compared {
    /// The archetype or the file.
    pub demand: String,
    /// By policy, in the order of the table.
    pub policies: Vec<(&'static str, FleetReport)>,
}

/// Seed, end, and the demands with the numbers of their VMs.
type Together<'a> = (u64, Moment, Vec<(&'a Source, u64)>);

/// Runs a group under every policy.
#[must_use]
pub fn compare(comparison: &Comparison, group: &Group) -> Compared {
    let lives: Vec<(Source, u64, u64, Moment)> = (0_u64..)
        .zip(&group.sources)
        .flat_map(|(vm, source)| {
            let lasts = source.lasts().unwrap_or(DAY);
            let end = Moment(comparison.most.map_or(lasts, |most| most.min(lasts)));
            comparison.seeds.clone().map(move |seed| (source.clone(), seed, vm, end))
        })
        .collect();
    let fixed = |baseline| {
        in_parallel(lives.len(), |index| {
            let (source, seed, vm, end) = &lives[index];
            let demand = source.demand(comparison.machine.max, *seed, *vm, *end);
            let mut fleet = FleetQuality::default();
            let machine = &comparison.machine;
            fleet.add(&baseline::run(baseline, demand, machine, Touch::default(), *end));
            fleet
        })
    };
    let scaled = |brain| {
        // VMs of one seed and one length run together.
        let mut runs: Vec<Together<'_>> = Vec::new();
        for (source, seed, vm, end) in &lives {
            let full =
                |run: &&mut Together<'_>| run.0 == *seed && run.1 == *end && run.2.len() < TOGETHER;
            match runs.iter_mut().rev().find(full) {
                Some(run) => run.2.push((source, *vm)),
                None => runs.push((*seed, *end, vec![(source, *vm)])),
            }
        }
        in_parallel(runs.len(), |index| {
            let (seed, end, sources) = &runs[index];
            let fleet = Fleet {
                machine: comparison.machine,
                brain,
                nodes: 1,
                node: AMPLE,
                seed: *seed,
                end: *end,
                sleep: true,
                record: None,
                checks: false,
            };
            fleet.alone(sources).quality
        })
    };
    let oracle = fixed(Baseline::Oracle);
    let against = |quality: FleetQuality| quality.report(Some(&oracle));
    let policies = vec![
        (Baseline::Static.name(), against(fixed(Baseline::Static))),
        (Baseline::Vpa.name(), against(fixed(Baseline::Vpa))),
        (Brain::Reference.name(), against(scaled(Brain::Reference))),
        (Brain::Headroom.name(), against(scaled(Brain::Headroom))),
        (Baseline::Oracle.name(), oracle.report(Some(&oracle))),
    ];
    Compared { demand: group.name.clone(), policies }
}

/// Shares work among the cores; what comes of it is put together in its order.
fn in_parallel(count: usize, work: impl Fn(usize) -> FleetQuality + Sync) -> FleetQuality {
    let next = AtomicUsize::new(0);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut parts: Vec<(usize, FleetQuality)> = std::thread::scope(|scope| {
        let run = || {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return done;
                }
                done.push((index, work(index)));
            }
        };
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(run)).collect();
        threads.into_iter().flat_map(joined).collect()
    });
    parts.sort_by_key(|(index, _)| *index);
    let mut all = FleetQuality::default();
    for (_, part) in &parts {
        all.merge(part);
    }
    all
}

/// The numbers that matter most, a line for each policy; Markdown.
#[must_use]
pub fn summary(compared: &[Compared]) -> String {
    let mut text = String::from(
        "| demand | policy | CPU short, % of time | memory short, % of time | CPU missing then, % | OOM kills | CPU wait p99, ms | resizes a VM-hour | reversals a VM-hour | CU-hours, × oracle |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for Compared { demand, policies } in compared {
        for (policy, report) in policies {
            let share = |share: Option<f64>| percent(share);
            let hourly = |count: u64| rounded(count as f64 / report.vm_hours.max(1e-9));
            let wait = report.cpu.time_to_adequate_p99_milliseconds;
            let _written = writeln!(
                text,
                "| {demand} | {policy} | {} | {} | {} | {} | {} | {} | {} | {} |",
                share(report.cpu.short_share_of_time),
                share(report.memory.short_share_of_time),
                share(report.cpu.short_depth_share_of_demand),
                report.oom_kills,
                match wait {
                    _ if is_beyond(wait) => BEYOND.to_owned(),
                    wait => wait.map_or_else(|| "–".to_owned(), |wait| wait.to_string()),
                },
                hourly(report.cpu.resizes + report.memory.resizes),
                hourly(report.cpu.reversals + report.memory.reversals),
                report.cu_hours_ratio_to_oracle.map_or_else(|| "–".to_owned(), rounded),
            );
        }
    }
    text
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "–".to_owned(), |share| rounded(share * 100.0))
}

/// Three digits that count.
fn rounded(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if value < 0.001 => "<0.001".to_owned(),
        value if value < 0.1 => format!("{value:.3}"),
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use guest_units::Bytes;

    use super::*;
    use crate::run::machine;
    use crate::workload::parse;

    fn comparison(demand: &str) -> Comparison {
        Comparison {
            machine: machine(8, Bytes::from_mib(128)),
            groups: parse(demand).unwrap(),
            seeds: 1..=2,
            most: Some(Duration::from_secs(7200)),
        }
    }

    #[test]
    fn every_policy_meets_the_same_demand_and_the_oracle_is_never_short() {
        let comparison = comparison("heavy-tailed-bursts");
        let compared = compare(&comparison, &comparison.groups[0]);
        let again = compare(&comparison, &comparison.groups[0]);
        assert_eq!(summary(std::slice::from_ref(&compared)), summary(&[again]), "bit-identical");
        let hours: Vec<f64> = compared.policies.iter().map(|(_, it)| it.vm_hours).collect();
        assert!(hours.iter().all(|it| (it - 4.0).abs() < 1e-6), "{hours:?}");
        let (name, oracle) = compared.policies.last().unwrap();
        assert_eq!(*name, "oracle");
        assert_eq!((oracle.cpu.short_share_of_time, oracle.oom_kills), (Some(0.0), 0));
        for (name, report) in &compared.policies {
            let ratio = report.cu_hours_ratio_to_oracle.unwrap();
            assert!(ratio >= 0.9, "{name} {ratio}");
        }
    }
}
