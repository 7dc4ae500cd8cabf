//! A guest: a workload that uses what it has, the counters that its kernel would show, and the shipped policy that reads them.
//!
//! A policy that sees the same readings again and again says the same again and again. So once nothing has changed for
//! [`STEADY`], longer than any of the policy's windows, it reads only as often as it reports; and a VM whose host is at rest, too,
//! sleeps until shortly before its workload changes. `tests/sleep.rs` shows that this changes nothing.

use std::time::Duration;

use guest_policy::reference::{Detector, DetectorAction, DetectorAnswer};
use guest_policy::{
    Action, CpuReading, Event, MemoryReading, Policy, Reading, Tuning, Unsafe, Verdict, Zones,
};
use guest_protocol::Signals;
use guest_units::{Bytes, MilliCpu, Moment, Size};
use host_scaling::{Sample, SystemSample};

use super::object::{KERNEL, for_workload, managed};
use crate::held::{Held, Kills, Touch};
use crate::load::Load;
use crate::quality::{Ends, Quality, Stretch};
use crate::report::Tap;

/// What a workload wants, load by load.
pub type Loads = Box<dyn Iterator<Item = Load> + Send>;

/// What the policy says has been the same for so long. While a window of it fills, what it says changes.
pub(crate) const STEADY: Duration = Duration::from_millis(1500);
/// A dozing guest reports this often: the host takes one for silent that says nothing for longer.
const DOZE: Duration = Duration::from_millis(3600);
/// So long before the workload changes it looks as often as its policy wants to, so that what it remembers is as fresh.
const WAKES: Duration = Duration::from_millis(1200);
/// So little memory changes nothing.
const CREEP: Bytes = Bytes::from_mib(1);
/// Of the CPU quota.
const PERIOD_MS: u64 = 100;
/// Page cache of the programs that any system runs.
const PROGRAMS: Bytes = Bytes::from_mib(32);
/// The kernel reclaims, and threads wait for it, when less than this is left.
const TIGHT: Bytes = Bytes::from_mib(16);

/// Who watches in the guest.
#[expect(clippy::large_enum_variant, reason = "nearly all are of the large kind")]
pub(crate) enum Mind {
    /// The shipped policy.
    Policy(Policy),
    /// The reference's detector: it looks at memory alone, and the host at everything else every five seconds.
    Detector(Detector),
}

/// Load averages as the kernel makes them, of the CPUs that are wanted.
#[derive(Debug, Clone, Copy, Default)]
struct LoadAverages {
    one: f64,
    five: f64,
}

/// Between two polls of the reference's detector.
const POLL: Duration = Duration::from_millis(100);
/// The reference's host looks at the guest's system metrics this often.
const SCRAPE: Duration = Duration::from_secs(5);

/// What a guest does that it should not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Honest,
    /// The monitor hangs.
    Silent,
    /// It says what is not so, by this number.
    Lying(u64),
    /// It asks all the time.
    Flooding,
}

/// How often a guest looks at counters that show the same again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doze {
    /// As often as its policy wants to.
    Never,
    /// Only as often as it reports, where that can change nothing that it says.
    Exact,
    /// The same, a workload at its limit included: what it repeats, it may repeat somewhat later.
    Coarse,
}

impl Mind {
    fn new(detector: bool, memory: Bytes) -> Self {
        if detector {
            Self::Detector(Detector::new(managed(memory)))
        } else {
            Self::Policy(Policy::new(Tuning::default()))
        }
    }
}

impl LoadAverages {
    /// In thousandths.
    fn milli(&self) -> (u32, u32) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let milli = |load: f64| (load * 1000.0).round() as u32;
        (milli(self.one), milli(self.five))
    }

    /// So many CPUs were wanted for so long.
    fn pass(&mut self, wanted: f64, passed: Duration) {
        let seconds = passed.as_secs_f64();
        self.one = wanted + (self.one - wanted) * (-seconds / 60.0).exp();
        self.five = wanted + (self.five - wanted) * (-seconds / 300.0).exp();
    }

    /// Both have come so close to what is wanted that their thousandths stay.
    fn settled(&self, wanted: f64) -> bool {
        (self.one - wanted).abs() < 4e-4 && (self.five - wanted).abs() < 4e-4
    }
}

/// When to look as often as the policy wants to again, for the sake of a change. Not always so long before, for a policy that
/// looks once a second would always look at the same moment after the change.
fn wakes(change: Moment) -> Moment {
    let scattered =
        change.0.subsec_nanos().wrapping_add(u32::try_from(change.0.as_secs() % 3600).unwrap_or(0));
    let scattered = scattered.wrapping_mul(2_654_435_761) % 1_000_000_000;
    change.earlier(WAKES + Duration::from_nanos(scattered.into()))
}

/// The detector's first poll after a change, of those from `next` on: a doze does not move them.
fn poll_after(next: Moment, change: Moment) -> Moment {
    let polls = change.since(next).as_nanos().div_ceil(POLL.as_nanos());
    next + POLL.saturating_mul(u32::try_from(polls).unwrap_or(u32::MAX))
}

/// The same but for rounding, and for memory that creeps.
fn alike(one: &guest_protocol::Sample, other: &guest_protocol::Sample) -> bool {
    let cpu = |sample: &guest_protocol::Sample| {
        let signals = sample.signals;
        [sample.demand.cpu, sample.used.cpu, signals.cpu_short, signals.cpu_long].map(|cpu| cpu.0)
    };
    let memory = |sample: &guest_protocol::Sample| {
        [sample.demand.memory, sample.used.memory, sample.signals.memory_available].map(|it| it.0)
    };
    let rest = |sample: &guest_protocol::Sample| {
        let none = MilliCpu::ZERO;
        Signals {
            cpu_short: none,
            cpu_long: none,
            memory_available: Bytes::ZERO,
            memory_slope_per_second: sample
                .signals
                .memory_slope_per_second
                .round_down(CREEP.times(16, 1)),
            ..sample.signals
        }
    };
    let cpus = cpu(one).iter().zip(cpu(other)).all(|(one, other)| one.abs_diff(other) <= 2);
    let creeps = memory(one)
        .iter()
        .zip(memory(other))
        .all(|(one, other)| one.abs_diff(other) <= 5 * CREEP.0);
    cpus && creeps && rest(one) == rest(other)
}

/// Counters since boot.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    /// Thousandths of a CPU times nanoseconds.
    used: u128,
    waited: Duration,
    periods: u64,
    throttled: u64,
    memory_waited: Duration,
}

/// A guest and its workload.
pub(crate) struct Guest {
    pub(crate) mind: Mind,
    averages: LoadAverages,
    scraped_at: Option<Moment>,
    /// How well it is scaled, where that is measured.
    pub(crate) quality: Option<Box<Quality>>,
    /// How it goes over time, where that is recorded.
    pub(crate) tap: Option<Box<Tap>>,
    pub(crate) held: Held,
    loads: Loads,
    pub(crate) load: Load,
    pub(crate) next: Option<Load>,
    /// Kills since this load began.
    pub(crate) kills_of_load: u32,
    /// What the hypervisor has.
    pub(crate) size: Size,
    counters: Counters,
    counted_at: Moment,
    held_since: Bytes,
    /// The monitor runs.
    pub(crate) monitor: bool,
    pub(crate) manner: Manner,
    /// Counts the looks that are scheduled: those of before are void.
    pub(crate) look: u32,
    pub(crate) steady_since: Moment,
    pub(crate) last: Option<guest_protocol::Sample>,
    pub(crate) asleep: bool,
}

/// What one look at the counters led to.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) sample: Option<Sample>,
    pub(crate) ask: Option<Size>,
    /// The next look.
    pub(crate) wake: Option<Moment>,
}

impl Said {
    /// Of a deliberate bug.
    pub(crate) fn overlook_memory(&mut self) {
        self.ask = None;
        if let Some(sample) = &mut self.sample {
            sample.demand.memory = sample.demand.memory.min(KERNEL);
        }
    }
}

impl Guest {
    pub(crate) fn new(mut loads: Loads, size: Size, detector: bool) -> Self {
        let nothing = Load {
            at: Moment::ZERO,
            cpu: MilliCpu::ZERO,
            memory: Bytes::ZERO,
            memory_per_second: 0,
        };
        let load = loads.next().unwrap_or(nothing);
        let next = loads.next();
        let mut guest = Self {
            mind: Mind::new(detector, size.memory),
            averages: LoadAverages::default(),
            scraped_at: None,
            quality: None,
            tap: None,
            held: Held::running(Touch::default(), &load, for_workload(size.memory)),
            loads,
            load,
            next,
            kills_of_load: 0,
            size,
            counters: Counters::default(),
            counted_at: Moment::ZERO,
            held_since: Bytes::ZERO,
            monitor: true,
            manner: Manner::Honest,
            look: 0,
            steady_since: Moment::ZERO,
            last: None,
            asleep: false,
        };
        guest.held_since = guest.held.at(Moment::ZERO);
        guest
    }

    /// Another hypervisor booted: counters begin again.
    pub(crate) fn boot(&mut self, size: Size, now: Moment) -> Kills {
        let kills = self.resize(size, now);
        (self.counters, self.monitor) = (Counters::default(), true);
        self.restart_monitor(now);
        kills
    }

    pub(crate) fn restart_monitor(&mut self, now: Moment) {
        self.mind = Mind::new(matches!(self.mind, Mind::Detector(_)), self.size.memory);
        self.last = None;
        self.scraped_at = None;
        self.changed(now);
    }

    /// The counters, up to now.
    fn count(&mut self, now: Moment) {
        let passed = now.since(self.counted_at);
        if passed.is_zero() {
            return;
        }
        self.measure(now);
        self.averages.pass(f64::from(self.load.cpu.0) / 1000.0, passed);
        let used = self.load.cpu.min(self.size.cpu);
        self.counters.used += u128::from(used.0) * passed.as_nanos();
        let short = self.load.cpu > self.size.cpu;
        if short {
            self.counters.waited += passed;
        }
        if !used.is_zero() {
            let number = |at: Moment| u64::try_from(at.0.as_millis()).unwrap_or(0) / PERIOD_MS;
            let periods = number(now).saturating_sub(number(self.counted_at));
            self.counters.periods += periods;
            self.counters.throttled += if short { periods } else { 0 };
        }
        if self.free(now) < TIGHT {
            self.counters.memory_waited += passed;
        }
        self.counted_at = now;
    }

    /// What has been since the last time counts for the quality of scaling.
    fn measure(&mut self, now: Moment) {
        let Some(quality) = &mut self.quality else { return };
        let since = self.counted_at;
        let stretch = Stretch {
            cpu_wished: self.load.cpu,
            memory_wished: Ends { from: self.load.memory_at(since), to: self.load.memory_at(now) },
            memory_held: Ends { from: self.held_since, to: self.held.at(now) },
            size: self.size,
            available: for_workload(self.size.memory),
        };
        quality.advance(now, &stretch);
        if let Some(tap) = &mut self.tap {
            tap.advance(now, &stretch, quality.resizes());
        }
        self.held_since = self.held.at(now);
    }

    /// The end: everything counts up to now.
    pub(crate) fn finish(&mut self, now: Moment) -> Option<Box<Quality>> {
        self.count(now);
        self.quality.take()
    }

    /// What the kernel and the workload hold.
    pub(crate) fn hard(&self, now: Moment) -> Bytes {
        KERNEL.saturating_add(self.held.at(now))
    }

    fn free(&self, now: Moment) -> Bytes {
        managed(self.size.memory).saturating_sub(self.hard(now))
    }

    /// The hypervisor has another size now.
    pub(crate) fn resize(&mut self, size: Size, now: Moment) -> Kills {
        self.count(now);
        self.size = size;
        self.changed(now);
        let kills = self.held.available(for_workload(size.memory), now);
        self.held_since = self.held.at(now);
        kills
    }

    /// Loads that have begun, and what memory does by itself.
    pub(crate) fn work(&mut self, now: Moment) -> Kills {
        self.count(now);
        let Kills(mut kills) = self.held.advance(now);
        while let Some(next) = self.next.filter(|next| next.at <= now) {
            (self.load, self.kills_of_load) = (next, 0);
            self.next = self.loads.next();
            kills += self.held.wish(&next, now).0;
        }
        self.kills_of_load += kills;
        self.held_since = self.held.at(now);
        self.changed(now);
        Kills(kills)
    }

    /// Its supervisor has restarted the workload often enough, and runs it with so much memory until the load changes.
    pub(crate) fn give_up(&mut self, memory: Bytes, now: Moment) {
        let load = Load { at: now, memory, memory_per_second: 0, ..self.load };
        (self.load, self.kills_of_load) = (load, 0);
        let Kills(none) = self.held.wish(&load, now);
        debug_assert_eq!(none, 0, "it was advanced to now");
    }

    /// When to work next.
    pub(crate) fn changes_at(&self, now: Moment) -> Option<Moment> {
        let bend = self.held.next_change(now);
        [self.next.map(|next| next.at), bend].into_iter().flatten().min()
    }

    pub(crate) fn changed(&mut self, now: Moment) {
        self.steady_since = now;
    }

    pub(crate) fn reading(&mut self, now: Moment) -> Reading {
        self.count(now);
        let Counters { used, waited, periods, throttled, memory_waited } = self.counters;
        let usec = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let used = u64::try_from(used).map_or_else(
            |_| u64::try_from(used / 1_000_000).unwrap_or(u64::MAX),
            |narrow| narrow / 1_000_000,
        );
        let total = managed(self.size.memory);
        let hard = self.hard(now).min(total);
        let left = total.saturating_sub(hard);
        let programs = PROGRAMS.min(left);
        Reading {
            memory: MemoryReading {
                total,
                free: left.saturating_sub(programs),
                available: left,
                active_file: programs,
                counted: hard,
                pressure_usec: usec(memory_waited),
                ..MemoryReading::default()
            },
            cpu: CpuReading {
                workload_usec: Some(used),
                system_usec: used,
                runnable: self.load.cpu.whole_up(),
                periods,
                throttled,
                pressure_usec: usec(waited),
                quota: Some(self.size.cpu),
                online: self.size.cpu.whole_up().max(1),
                loads_milli: Some(self.averages.milli()),
            },
        }
    }

    fn zones(&self) -> Zones {
        let present = self.size.memory;
        let managed = managed(present);
        let room = Bytes::from_mib(64);
        Zones {
            present,
            managed,
            kernel_free: room,
            kernel_file: room,
            kernel_low: Bytes::from_mib(4),
            movable_free: managed,
        }
    }

    /// Looks at the counters and asks what follows.
    pub(crate) fn look(&mut self, doze: Doze, now: Moment) -> Said {
        match self.mind {
            Mind::Policy(_) => self.look_by_policy(doze, now),
            Mind::Detector(_) => self.look_by_detector(doze, now),
        }
    }

    fn look_by_detector(&mut self, doze: Doze, now: Moment) -> Said {
        self.count(now);
        let hard = self.held.at(now);
        let mut said = Said::default();
        let Mind::Detector(detector) = &mut self.mind else { return said };
        for _ in 0..4 {
            let (action, wake) = detector.next(now);
            said.wake = Some(wake);
            match action {
                Some(DetectorAction::Sample) => detector.sampled(hard, now),
                Some(DetectorAction::Ask) => {
                    detector.asked(now);
                    said.ask = Some(Size {
                        memory: self.size.memory.saturating_add(Bytes(1)),
                        ..self.size
                    });
                }
                None => break,
            }
        }
        if self.scraped_at.is_none_or(|at| at + SCRAPE <= now) {
            self.scraped_at = Some(now);
            let used = Size { cpu: self.load.cpu.min(self.size.cpu), memory: self.hard(now) };
            said.sample = Some(Sample { demand: used, used, system: Some(self.system(now)) });
        }
        // The mean of samples that are all the same is the same: only the next scrape or the next change brings anything.
        let same = self.steady(now) && self.held.per_second(now) == 0;
        if doze != Doze::Never && same && said.ask.is_none() {
            let next = said.wake.unwrap_or(now);
            let change = self.changes_at(now).map(|change| poll_after(next, change));
            let scrape = self.scraped_at.map(|at| at + SCRAPE);
            said.wake = [change, scrape].into_iter().flatten().min();
        }
        said
    }

    /// What the reference's host reads.
    fn system(&self, now: Moment) -> SystemSample {
        let total = managed(self.size.memory);
        let (load1_milli, load5_milli) = self.averages.milli();
        SystemSample {
            load1_milli,
            load5_milli,
            memory_usage: SystemSample::usage(total, total.saturating_sub(self.hard(now))),
            memory_cached: PROGRAMS,
        }
    }

    /// The host says what is plugged.
    pub(crate) fn told(&mut self, plugged: Size, now: Moment) {
        match &mut self.mind {
            Mind::Policy(policy) => policy.handle(Event::Plugged(plugged), now),
            Mind::Detector(detector) => detector.told(plugged.memory),
        }
        self.changed(now);
    }

    /// Somebody listens from now on.
    pub(crate) fn connected(&mut self, now: Moment) {
        if let Mind::Policy(policy) = &mut self.mind {
            policy.handle(Event::Connected, now);
        }
        self.scraped_at = None;
    }

    /// Whether it can do with less, by a fresh reading.
    pub(crate) fn may_shrink(&mut self, from: Size, to: Size, now: Moment) -> Verdict {
        let reading = self.reading(now);
        match &mut self.mind {
            Mind::Policy(policy) => {
                policy.handle(Event::Read(reading), now);
                policy.may_shrink(from, to)
            }
            Mind::Detector(detector) => {
                if to.memory >= from.memory {
                    return Verdict::Fine;
                }
                // The samples are as fresh as its poll: the last mean holds while the guest dozes.
                detector.sampled(reading.memory.counted.saturating_sub(KERNEL), now);
                match detector.may_shrink(to.memory, now) {
                    DetectorAnswer::Fine => Verdict::Fine,
                    DetectorAnswer::Denied | DetectorAnswer::Unknown => {
                        Verdict::Veto { least: from, reason: Unsafe::Reserve }
                    }
                }
            }
        }
    }

    /// Nothing of the past counts any more. `by_loads`: its host goes by the load averages.
    pub(crate) fn settled(&self, by_loads: bool, now: Moment) -> bool {
        let averages = || self.averages.settled(f64::from(self.load.cpu.0) / 1000.0);
        match &self.mind {
            Mind::Policy(policy) => policy.settled(now) && (!by_loads || averages()),
            Mind::Detector(_) => averages(),
        }
    }

    /// How long nothing of note changes.
    fn doze(&self, now: Moment) -> Duration {
        let slope = self.held.per_second(now).unsigned_abs();
        let creeps = (CREEP.0 * 4000).checked_div(slope);
        creeps.map_or(DOZE, |millis| DOZE.min(Duration::from_millis(millis)))
    }

    fn look_by_policy(&mut self, doze: Doze, now: Moment) -> Said {
        let mut said = Said::default();
        for _ in 0..16 {
            let Mind::Policy(policy) = &mut self.mind else { break };
            let actions = policy.next(now);
            if actions.start.is_empty() {
                said.wake = actions.wake_at;
                break;
            }
            for (action, _why) in actions.start {
                self.tell_policy(Event::Started(action), now);
                match action {
                    Action::Read => {
                        let reading = self.reading(now);
                        self.tell_policy(Event::Read(reading), now);
                    }
                    Action::ReadZones => {
                        let zones = self.zones();
                        self.tell_policy(Event::Zones(zones), now);
                    }
                    Action::Report(sample) => {
                        let guest_protocol::Sample { demand, used, .. } = sample;
                        let system = sample.metrics.is_some().then(|| self.system(now));
                        said.sample = Some(Sample { demand, used, system });
                    }
                    Action::Ask(ask) => said.ask = Some(ask.want),
                }
            }
        }
        let Mind::Policy(policy) = &self.mind else { return said };
        let sample = policy.sample();
        let same = self.last.is_some_and(|last| alike(&last, &sample));
        self.last = Some(sample);
        if !same || (said.ask.is_some() && doze != Doze::Coarse) {
            self.changed(now);
        }
        let dozes = match doze {
            Doze::Never => false,
            Doze::Exact => self.steady(now),
            Doze::Coarse => now.since(self.steady_since) >= STEADY,
        };
        if dozes {
            let until = now + self.doze(now);
            let until = self.changes_at(now).map_or(until, |at| until.min(wakes(at)));
            said.wake = said.wake.map(|wake| wake.max(until));
        }
        said
    }

    fn tell_policy(&mut self, event: Event, now: Moment) {
        if let Mind::Policy(policy) = &mut self.mind {
            policy.handle(event, now);
        }
    }

    /// Nothing has changed for so long that looking again shows the same.
    pub(crate) fn steady(&self, now: Moment) -> bool {
        now.since(self.steady_since) >= STEADY
            && self.load.cpu <= self.size.cpu
            && !self.held.is_down()
            && self.held.per_second(now).unsigned_abs() <= 32 * CREEP.0
    }
}
