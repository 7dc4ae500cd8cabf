//! Runs whole fleets: VMs in clusters that have nothing to do with each other, so that all cores have work and the result is the
//! same on any number of them.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;

use guest_units::{Bytes, MilliCpu, Moment, Size};
use host_scaling::reference::{ComputeUnit, ReferenceConfig};
use host_scaling::{Limits, Policy};
use scheduler_ledger::{Amount, Price};

use crate::baseline::{Capped, Machine};
use crate::demand::Demand;
use crate::fleet::{Doze, Settings, World};
use crate::quality::FleetQuality;
use crate::report::{Plan, Recording};
use crate::workload::Source;

/// So many VMs make a cluster, or those of one node if that has more. Nothing crosses from one node to another in a fleet
/// without faults, and what serves so few VMs stays in a core's cache: a thousand in one cluster take three times as long.
const CLUSTER_VMS: usize = 16;

/// The shipped policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Brain {
    /// Ours: the guest says what it needs, the host adds a reserve.
    #[default]
    Headroom,
    /// The reference's goal on the host, and its detector in the guest.
    Reference,
}

impl Brain {
    /// Its name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Headroom => "headroom",
            Self::Reference => "reference",
        }
    }

    /// Of the host.
    #[must_use]
    pub fn policy(self) -> Policy {
        match self {
            Self::Headroom => Policy::default(),
            Self::Reference => {
                let config =
                    ReferenceConfig { enable_lfc_metrics: false, ..ReferenceConfig::default() };
                Policy::reference(config, ComputeUnit::SHIPPED)
            }
        }
    }
}

/// A fleet.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// What one VM can be.
    pub machine: Machine,
    /// Who scales.
    pub brain: Brain,
    /// Nodes; VMs are spread evenly.
    pub nodes: usize,
    /// What pods may take on each.
    pub node: Amount,
    /// Of everything random.
    pub seed: u64,
    /// How long it runs.
    pub end: Moment,
    /// Nothing is looked at that does not change.
    pub sleep: bool,
    /// How it goes over time is recorded.
    pub record: Option<Plan>,
    /// The rules are checked after each event.
    pub checks: bool,
}

/// What a fleet led to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// How well it was scaled.
    pub quality: FleetQuality,
    /// How it went over time, if that was recorded.
    pub recording: Option<Recording>,
    /// Events.
    pub events: u64,
    /// The first rule that was broken, if the rules were checked.
    pub violation: Option<String>,
}

impl Fleet {
    /// Runs VMs with these demands.
    #[must_use]
    pub fn run(&self, sources: &[&Source]) -> Outcome {
        let clusters = self.clusters(sources.len());
        let next = AtomicUsize::new(0);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut outcomes: Vec<(usize, Outcome)> = std::thread::scope(|scope| {
            let work = || {
                let mut done = Vec::new();
                loop {
                    let cluster = next.fetch_add(1, Ordering::Relaxed);
                    if cluster >= clusters {
                        return done;
                    }
                    done.push((cluster, self.cluster(cluster, clusters, sources)));
                }
            };
            let threads: Vec<_> = (0..cores.min(clusters)).map(|_| scope.spawn(work)).collect();
            threads.into_iter().flat_map(joined).collect()
        });
        outcomes.sort_by_key(|(cluster, _)| *cluster);
        let mut all = Outcome::default();
        for (_, outcome) in outcomes {
            all.quality.merge(&outcome.quality);
            match (&mut all.recording, outcome.recording) {
                (Some(recording), Some(other)) => recording.merge(other),
                (recording, other) => *recording = recording.take().or(other),
            }
            all.events += outcome.events;
            all.violation = all.violation.or(outcome.violation);
        }
        all
    }

    fn clusters(&self, vms: usize) -> usize {
        let nodes = CLUSTER_VMS * self.nodes / vms.max(1);
        self.nodes.div_ceil(nodes.max(1)).max(1)
    }

    /// The nodes of a cluster, and the numbers of its VMs.
    fn part(&self, cluster: usize, clusters: usize, vms: usize) -> (usize, Range<usize>) {
        let share = |count: usize| count * (cluster + 1) / clusters - count * cluster / clusters;
        let first = vms * cluster / clusters;
        (share(self.nodes.max(1)).max(1), first..first + share(vms))
    }

    fn cluster(&self, cluster: usize, clusters: usize, sources: &[&Source]) -> Outcome {
        let (nodes, vms) = self.part(cluster, clusters, sources.len());
        let ours = vms.map(|vm| (sources[vm], vm as u64));
        let seed = self.seed.wrapping_mul(1_000_003).wrapping_add(cluster as u64);
        self.world(seed, nodes, ours)
    }

    /// Whether all VMs have room on their nodes in the beginning.
    ///
    /// # Errors
    /// What does not fit where.
    pub fn fits(&self, sources: &[&Source]) -> Result<(), String> {
        let clusters = self.clusters(sources.len());
        for cluster in 0..clusters {
            let (nodes, vms) = self.part(cluster, clusters, sources.len());
            let mut used = vec![Amount::ZERO; nodes];
            for (index, vm) in vms.enumerate() {
                let loads = self.loads(sources[vm], vm as u64);
                let at = &mut used[index % nodes];
                *at = *at + Price::default().cost(self.begins_with(&loads));
            }
            if let Some(used) = used.into_iter().find(|used| !used.fits_in(self.node)) {
                return Err(format!(
                    "the VMs of a node need {used} in the beginning, it has {}",
                    self.node
                ));
            }
        }
        Ok(())
    }

    fn loads(&self, source: &Source, vm: u64) -> Capped<Demand> {
        self.machine.capped(source.demand(self.machine.max, self.seed, vm, self.end))
    }

    /// As somebody would have made it who knows what it does at first.
    fn begins_with(&self, loads: &Capped<Demand>) -> Size {
        loads.clone().next().map_or(self.machine.min, |first| {
            let memory = self.machine.memory_for(first.memory.times(5, 4));
            Size::new(self.machine.cpu_for(first.cpu.times_up(5, 4)), memory)
        })
    }

    /// Runs VMs with these demands and numbers, on the calling thread.
    #[must_use]
    pub fn alone(&self, sources: &[(&Source, u64)]) -> Outcome {
        self.world(self.seed, self.nodes, sources.iter().copied())
    }

    fn world<'a>(
        &self,
        seed: u64,
        nodes: usize,
        sources: impl Iterator<Item = (&'a Source, u64)>,
    ) -> Outcome {
        let mut sources = sources.peekable();
        let first = sources.peek().map_or(0, |(_, vm)| *vm);
        let settings = Settings {
            seed,
            policy: self.brain.policy(),
            doze: if self.sleep { Doze::Exact } else { Doze::Never },
            sleep: self.sleep,
            gives_up: None,
            detector: self.brain == Brain::Reference,
            measure: true,
            record: self.record.map(|plan| plan.beginning_with(first)),
            checks: self.checks,
            standby: false,
            trace: None,
        };
        let mut world = World::new(settings, &vec![self.node; nodes]);
        let Machine { min, max, slot, .. } = self.machine;
        let limits = Limits { min, max, slot };
        for (index, (source, vm)) in sources.enumerate() {
            let loads = self.loads(source, vm);
            let size = self.begins_with(&loads);
            let node = u32::try_from(index % nodes).unwrap_or_default();
            world.add_running(limits, size, node, Box::new(loads));
        }
        world.begin();
        world.run(self.end);
        Outcome {
            quality: world.quality(),
            recording: world.recording(),
            events: world.events(),
            violation: world.violation().map(|it| format!("rule {}: {}", it.rule, it.text)),
        }
    }
}

/// What a thread has done; where it panicked, so does this one: a part of the VMs would pass for all of them.
pub(crate) fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A node on which nobody is ever short.
pub const AMPLE: Amount = Amount { cpu_millis: 100_000_000, memory_bytes: 1 << 50 };

/// Sizes from a quarter of a CPU and 1 GiB up to so many CPUs with 4 GiB each.
#[must_use]
pub fn machine(cpus: u32, slot: Bytes) -> Machine {
    let max = Size::new(MilliCpu::from_cpus(cpus), Bytes::from_gib(u64::from(cpus) * 4));
    Machine { max, slot, ..Machine::default() }
}
