//! The guest's own policy against the host's brain, under loads that do not change: sizes must come to rest. What a guest
//! says it needs depends on the size it has, so neither brain alone can show this.

#![expect(clippy::unwrap_used, reason = "a failure to unwrap is a failed test")]

mod world;

use std::time::Duration;

use guest_policy::{
    Action as GuestAction, CpuReading, Event as GuestEvent, MemoryReading, Policy, Reading, Tuning,
    Zones,
};
use guest_units::{Bytes, MilliCpu, Moment, Size};
use host_scaling::{Action, Event, Sample};
use world::{World, limits, size};

const STEP: Duration = Duration::from_millis(5);
const STEP_USEC: u64 = 5000;
/// Of the CPU quota.
const PERIOD_STEPS: u64 = 20;

/// What a guest does, whatever its size.
#[derive(Debug, Clone, Copy)]
struct Workload {
    /// CPU time that requests want, together.
    cpu: MilliCpu,
    /// CPU time of one request, on average.
    request_usec: u64,
    /// Memory that programs hold.
    hard: Bytes,
    /// Files that are read again and again.
    hot: Bytes,
}

/// A guest under a workload, and the host around it.
struct Loop {
    world: World,
    policy: Policy,
    workload: Workload,
    random: u64,
    /// CPU time that each open request still wants.
    requests: Vec<u64>,
    cpu: CpuReading,
    budget_usec: u64,
    throttled: bool,
    steps: u64,
    refaults: u64,
    heard: usize,
    /// Sizes as they were written, with their times.
    written: Vec<(Moment, Size)>,
}

impl Loop {
    fn new(workload: Workload, max: Size, slot_mib: u64) -> Self {
        let world = World::new(limits(size(250, 1024), max, slot_mib));
        let cpu = CpuReading { workload_usec: Some(0), ..CpuReading::default() };
        Self {
            world,
            policy: Policy::new(Tuning::default()),
            workload,
            random: 0x9e37_79b9_7f4a_7c15,
            requests: Vec::new(),
            cpu,
            budget_usec: 0,
            throttled: false,
            steps: 0,
            refaults: 0,
            heard: 0,
            written: Vec::new(),
        }
    }

    /// Between nothing and one.
    fn draw(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }

    fn run(&mut self, span: Duration) {
        let end = self.world.now + span;
        while self.world.now < end {
            let next = self.world.now + STEP;
            self.work();
            self.world.until(next);
            self.hear();
            self.decide();
        }
    }

    /// Requests come at random and share the CPUs.
    fn work(&mut self) {
        let quota = self.world.real().cpu;
        let usec = |cpu: MilliCpu| u64::from(cpu.0) * STEP_USEC / 1000;
        if self.steps.is_multiple_of(PERIOD_STEPS) {
            let active = !self.requests.is_empty();
            self.cpu.periods += u64::from(active || self.throttled);
            self.cpu.throttled += u64::from(self.throttled);
            (self.budget_usec, self.throttled) = (usec(quota) * PERIOD_STEPS, false);
        }
        self.steps += 1;
        let arrivals = usec(self.workload.cpu) as f64 / self.workload.request_usec as f64;
        if self.draw() < arrivals {
            let wants = -(1.0 - self.draw()).ln() * self.workload.request_usec as f64;
            self.requests.push(Duration::from_secs_f64(wants).as_secs() + 1);
        }
        let running = self.requests.len().min(quota.whole_up() as usize);
        for request in &mut self.requests[..running] {
            let given = (*request).min(STEP_USEC).min(self.budget_usec);
            *request -= given;
            self.budget_usec -= given;
            self.cpu.system_usec += given;
        }
        self.cpu.workload_usec = Some(self.cpu.system_usec);
        self.throttled |= self.budget_usec == 0 && running > 0;
        let waits = self.requests.len() > running || (self.throttled && running > 0);
        self.cpu.pressure_usec += if waits { STEP_USEC } else { 0 };
        self.requests.retain(|left| *left > 0);
        self.cpu.runnable = u32::try_from(self.requests.len()).unwrap_or(u32::MAX);
        (self.cpu.quota, self.cpu.online) = (Some(quota), quota.whole_up());
        let missing = self.workload.hot.saturating_sub(self.room());
        self.refaults += missing.whole_mib() / 10;
    }

    /// What the kernel manages of the VM's memory.
    fn total(&self) -> Bytes {
        let memory = self.world.real().memory;
        memory.saturating_sub(memory.times(1, 60))
    }

    /// For the page cache.
    fn room(&self) -> Bytes {
        self.total().saturating_sub(self.workload.hard).saturating_sub(Bytes::from_mib(64))
    }

    fn reading(&self) -> Reading {
        let (total, cached) = (self.total(), self.workload.hot.min(self.room()));
        let free = total.saturating_sub(self.workload.hard).saturating_sub(cached);
        let memory = MemoryReading {
            total,
            free,
            available: free.saturating_add(cached),
            active_file: cached.times(1, 2),
            inactive_file: cached.saturating_sub(cached.times(1, 2)),
            counted: self.workload.hard,
            refaults: self.refaults,
            ..MemoryReading::default()
        };
        Reading { memory, cpu: self.cpu }
    }

    /// What the host's brain did since the last look.
    fn hear(&mut self) {
        for (at, action, _why) in self.world.log.split_off(0) {
            self.heard += 1;
            match action {
                Action::TellGuest { plugged, .. } => {
                    self.policy.handle(GuestEvent::Read(self.reading()), at);
                    self.policy.handle(GuestEvent::Plugged(plugged), at);
                }
                Action::PatchVm { from, size, .. } if from != size => self.written.push((at, size)),
                _ => {}
            }
        }
    }

    fn decide(&mut self) {
        let now = self.world.now;
        for _ in 0..8 {
            for (action, _why) in self.policy.next(now).start {
                self.policy.handle(GuestEvent::Started(action), now);
                match action {
                    GuestAction::Read => self.policy.handle(GuestEvent::Read(self.reading()), now),
                    GuestAction::ReadZones => {
                        let (present, managed) = (self.world.real().memory, self.total());
                        let zones = Zones { present, managed, ..Zones::default() };
                        self.policy.handle(GuestEvent::Zones(zones), now);
                    }
                    GuestAction::Report(said) => self.world.event(Event::Sample(Sample {
                        demand: said.demand,
                        used: said.used,
                        system: None,
                    })),
                    GuestAction::Ask(ask) => self.world.event(Event::Asked(ask.want)),
                }
            }
        }
    }

    /// How often a size went up again after it had gone down, since a moment.
    fn reversals(&self, since: Moment, of: impl Fn(Size) -> u64) -> usize {
        let sizes: Vec<u64> =
            self.written.iter().filter(|(at, _)| *at >= since).map(|(_, size)| of(*size)).collect();
        let mut ups_and_downs: Vec<bool> =
            sizes.windows(2).filter(|two| two[0] != two[1]).map(|two| two[1] > two[0]).collect();
        ups_and_downs.dedup();
        ups_and_downs.windows(2).filter(|two| two[1]).count()
    }
}

fn cpu_of(size: Size) -> u64 {
    size.cpu.0.into()
}

fn memory_of(size: Size) -> u64 {
    size.memory.0
}

const QUIET: Workload = Workload {
    cpu: MilliCpu(50),
    request_usec: 10_000,
    hard: Bytes::from_mib(300),
    hot: Bytes::from_mib(100),
};

#[test]
fn a_steady_cpu_load_comes_to_rest() {
    for cpu in [300, 1000, 2300] {
        let workload = Workload { cpu: MilliCpu(cpu), request_usec: 20_000, ..QUIET };
        let mut all = Loop::new(workload, size(8000, 4096), 128);
        all.run(Duration::from_secs(900));
        let reversals = all.reversals(Moment::from_secs(120), cpu_of);
        assert!(reversals <= 6, "{cpu}m: {reversals} reversals in 13 min: {:?}", all.written);
        let last = cpu_of(all.world.view.spec);
        assert!(last >= cpu.into() && last <= u64::from(cpu) * 3 + 250, "{cpu}m rests at {last}m");
    }
}

#[test]
fn a_shrink_of_memory_is_not_undone() {
    let slot = 1024;
    let workload = Workload { hard: Bytes::from_mib(5250), ..QUIET };
    let mut all = Loop::new(workload, size(8000, 16 * slot), slot);
    all.world.event(Event::Asked(size(250, 16 * slot)));
    all.run(Duration::from_secs(600));
    assert_eq!(all.reversals(Moment::ZERO, memory_of), 0, "{:?}", all.written);
    assert_eq!(all.world.view.plugged.memory, Bytes::from_mib(7 * slot));
}

#[test]
fn a_hot_page_cache_is_kept_once_it_was_missed() {
    let workload = Workload { hot: Bytes::from_gib(3), ..QUIET };
    let mut all = Loop::new(workload, size(8000, 8192), 128);
    all.world.event(Event::Asked(size(250, 8192)));
    let mut missed = 0;
    for second in 0..900u32 {
        let before = all.refaults;
        all.run(Duration::from_secs(1));
        missed += u32::from(second >= 300 && all.refaults - before > 500);
    }
    assert!(missed <= 60, "the cache was missed in {missed} s of 600: {:?}", all.written);
}
