//! The brain itself.

use std::time::Duration;

use guest_protocol::{Ask, AskReason, Metrics, Sample, Signals};
use guest_units::{Bytes, MilliCpu, Moment, Size};

use crate::cpu::Cpu;
use crate::event::{Action, Actions, Event, Why};
use crate::memory::Memory;
use crate::reading::Reading;
use crate::tuning::Tuning;
use crate::veto::{self, Verdict};
use crate::window::share;

/// Zones are read this often; it is the most expensive file.
const ZONES_EVERY: Duration = Duration::from_secs(5);
/// At the CPU limit for so long before it is worth an ask.
const CPU_PATIENCE: Duration = Duration::from_millis(100);
/// Threads wait for memory for so long before it is worth an ask: growth and a broken reserve are seen at once.
const PRESSURE_PATIENCE: Duration = Duration::from_millis(250);
/// One core can fill this much per second: the longest sleep depends on what is usable.
const BURST_PER_SECOND: Bytes = Bytes::from_gib(1);
/// Readings until exhaustion, at least.
const LOOKS: u32 = 50;
/// Use below this share of the capacity is idle.
const IDLE_DIVISOR: u32 = 20;

/// What a guest needs, what it asks for, and what it refuses to lose.
#[derive(Debug, Clone)]
pub struct Policy {
    tuning: Tuning,
    cpu: Cpu,
    memory: Memory,
    /// What is passed on as it was read.
    metrics: Option<Metrics>,
    read_at: Option<Moment>,
    zones_at: Option<Moment>,
    pressed: bool,
    reported: Option<(Moment, Size)>,
    asked: Option<Asked>,
    seq: u64,
}

/// The last ask, and those before it that were not served.
#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Moment,
    /// The most of each that was wanted.
    want: Size,
    reason: AskReason,
    /// What the VM had then.
    had: Size,
    /// How often it was repeated.
    repeats: u32,
}

impl Policy {
    /// A policy that has seen nothing.
    #[must_use]
    pub fn new(tuning: Tuning) -> Self {
        Self {
            tuning,
            cpu: Cpu::new(),
            memory: Memory::new(),
            metrics: None,
            read_at: None,
            zones_at: None,
            pressed: false,
            reported: None,
            asked: None,
            seq: 0,
        }
    }

    /// Records what happened.
    pub fn handle(&mut self, event: Event, now: Moment) {
        match event {
            // A reading that fails is tried again when the next one is due, not at once.
            Event::Started(Action::Read) => {
                self.read_at = Some(now);
                self.pressed = false;
            }
            Event::Started(Action::ReadZones) => self.zones_at = Some(now),
            Event::Started(Action::Report(sample)) => self.reported = Some((now, sample.demand)),
            Event::Started(Action::Ask(ask)) => {
                self.asked = Some(self.asked_now(ask, now));
                self.seq = ask.seq;
            }
            Event::Read(reading) => {
                self.read_at = Some(now);
                self.metrics = metrics(&reading);
                self.cpu.read(reading.cpu, now);
                self.memory.read(reading.memory, &self.tuning, now);
            }
            Event::Zones(zones) => self.memory.zones(zones),
            Event::Plugged(size) => self.memory.plugged(size.memory),
            Event::Pressure => self.pressed = true,
            Event::Connected => (self.reported, self.asked) = (None, None),
        }
    }

    /// Says what to do next. Same state and `now`, same answer.
    #[must_use]
    pub fn next(&self, now: Moment) -> Actions {
        let mut actions = Actions::default();
        let zones_due = self.zones_at.map_or(now, |at| at + ZONES_EVERY);
        if zones_due <= now {
            actions.start.push((Action::ReadZones, Why::Due));
        }
        let read_due = self.read_due(now);
        if read_due <= now {
            let why = if self.pressed { Why::Pressure } else { Why::Due };
            actions.start.push((Action::Read, why));
        }
        if self.measured() {
            actions.start.extend(self.ask(now));
            actions.start.extend(self.report(now));
        }
        if actions.start.is_empty() {
            actions.wake_at = Some(read_due);
        }
        actions
    }

    /// Whether the guest can live with the smaller size, by the last reading: take a fresh one before.
    #[must_use]
    pub fn may_shrink(&self, from: Size, to: Size) -> Verdict {
        let view = self.measured().then(|| self.memory.view());
        veto::may_shrink(view, &self.tuning, from, to)
    }

    /// What would be reported now.
    #[must_use]
    pub fn sample(&self) -> Sample {
        let (cpu, memory) = (self.cpu.view(), self.memory.view());
        let pages = u32::try_from(memory.refaults_per_second).unwrap_or(u32::MAX);
        Sample {
            demand: Size::new(cpu.demand, memory.demand),
            used: Size::new(cpu.use_short, memory.used()),
            signals: Signals {
                cpu_short: cpu.use_short,
                cpu_long: cpu.use_long,
                runnable: cpu.runnable,
                cpu_pressure_permille: cpu.pressure_permille,
                throttled_permille: cpu.throttled_permille,
                memory_total: memory.total,
                memory_available: memory.usable,
                memory_slope_per_second: memory.slope_per_second,
                memory_pressure_permille: memory.pressure_permille,
                refaults_per_second: pages,
                swap_used: memory.swap_used,
            },
            metrics: self.metrics,
            // Nobody measures it yet: that needs a connection to Postgres, and its extension.
            cache: None,
        }
    }

    /// Nothing of the past counts any more: as long as the readings stay, so does what is said.
    #[must_use]
    pub fn settled(&self, now: Moment) -> bool {
        self.cpu.settled(now) && self.memory.settled()
    }

    fn measured(&self) -> bool {
        !self.memory.view().total.is_zero()
    }

    fn has(&self) -> Size {
        Size::new(self.cpu.view().capacity, self.memory.view().vm())
    }

    /// How long until the next reading: a fraction of the time that the memory lasts.
    fn interval(&self) -> Duration {
        let Tuning { fastest, slowest, busy, .. } = self.tuning;
        let (cpu, memory) = (self.cpu.view(), self.memory.view());
        let burst = Duration::from_micros(share(memory.usable.0, 1_000_000, BURST_PER_SECOND.0));
        let lasts = memory.time_left().map_or(slowest, |left| left / LOOKS);
        let idle = cpu.use_short.0 <= cpu.capacity.0 / IDLE_DIVISOR;
        let active = if idle && !cpu.saturated { slowest } else { busy };
        burst.min(lasts).min(active).clamp(fastest, slowest)
    }

    fn read_due(&self, now: Moment) -> Moment {
        match self.read_at {
            None => now,
            Some(at) if self.pressed => at + self.tuning.fastest,
            Some(at) => at + self.interval(),
        }
    }

    fn report(&self, now: Moment) -> Option<(Action, Why)> {
        let sample = self.sample();
        let Some((at, demand)) = self.reported else {
            return Some((Action::Report(sample), Why::Due));
        };
        let passed = now.since(at);
        // A reading that is due soon carries the next report; none is sent twice without one.
        if passed >= self.tuning.report_slowest {
            Some((Action::Report(sample), Why::Due))
        } else if passed >= self.tuning.report_fastest && changed(demand, sample.demand) {
            Some((Action::Report(sample), Why::Changed))
        } else {
            None
        }
    }

    fn ask(&self, now: Moment) -> Option<(Action, Why)> {
        let memory = self.memory_want(now);
        let cpu = self.cpu_want(now);
        let reason = memory.map(|(_, reason)| reason).or(cpu.map(|_| AskReason::CpuSaturated))?;
        let demand = Size::new(self.cpu.view().demand, self.memory.view().demand);
        let want = Size::new(
            cpu.unwrap_or(demand.cpu),
            memory.map_or(demand.memory, |(want, _)| want.max(demand.memory)),
        )
        .min(self.tuning.most);
        if want.fits_in(self.has()) || !self.may_ask(want, reason, now) {
            return None;
        }
        Some((Action::Ask(Ask { seq: self.seq + 1, want, reason }), Why::Needed(reason)))
    }

    /// The series of unserved asks with one more; a new series after an answer, a change or a rest.
    fn asked_now(&self, ask: Ask, now: Moment) -> Asked {
        let Ask { want, reason, .. } = ask;
        let fresh = Asked { at: now, want, reason, had: self.has(), repeats: 0 };
        match self.asked {
            Some(asked)
                if !self.presses(&asked, want, reason)
                    && now.since(asked.at) < self.tuning.ask_pause_longest * 2 =>
            {
                let repeats = asked.repeats.saturating_add(1);
                Asked { want: want.max(asked.want), repeats, ..fresh }
            }
            _ => fresh,
        }
    }

    /// Whether an ask is more than a repeat: it wants much more, is about something worse, or the VM
    /// has grown since and that was not enough.
    fn presses(&self, asked: &Asked, want: Size, reason: AskReason) -> bool {
        if reason == AskReason::KernelMemory && asked.reason == reason {
            return false;
        }
        let grew = want.memory >= asked.want.memory.saturating_add(self.tuning.step.times(1, 2))
            || want.cpu > asked.want.cpu.times_up(5, 4);
        let served = !self.has().fits_in(asked.had);
        let worse = asked.reason == AskReason::CpuSaturated && reason != AskReason::CpuSaturated;
        grew || served || worse
    }

    fn may_ask(&self, want: Size, reason: AskReason, now: Moment) -> bool {
        let Some(asked) = self.asked else { return true };
        // What is plugged may be of no use to the kernel's own zones, and costs them its page descriptors.
        let in_vain = self.has().memory > asked.had.memory;
        if reason == AskReason::KernelMemory && asked.reason == reason && in_vain {
            return false;
        }
        let Tuning { ask_pause, ask_pause_longest, fastest, .. } = self.tuning;
        let pause = ask_pause.saturating_mul(1 << asked.repeats.min(8)).min(ask_pause_longest);
        let passed = now.since(asked.at);
        passed >= pause || (passed >= fastest && self.presses(&asked, want, reason))
    }

    fn memory_want(&self, now: Moment) -> Option<(Bytes, AskReason)> {
        let (view, tuning) = (self.memory.view(), &self.tuning);
        let pressed = self.memory.pressed_for(now).is_some_and(|span| span >= PRESSURE_PATIENCE);
        let reserve = tuning.reserve(view.vm());
        let soon = view.time_left().is_some_and(|left| left < tuning.horizon);
        let reason = if soon {
            AskReason::MemorySlope
        } else if view.usable < reserve {
            AskReason::MemoryReserve
        } else if pressed {
            AskReason::MemoryPressure
        } else if view.kernel_short {
            AskReason::KernelMemory
        } else {
            return None;
        };
        let growth = view.growth(tuning.horizon).max(tuning.step);
        let want = view.used().saturating_add(reserve).saturating_add(growth);
        // A slope that the present size can carry is no need; a reserve that is broken is one.
        let least = if soon { Bytes::ZERO } else { view.vm().saturating_add(tuning.step) };
        Some((want.max(least), reason))
    }

    fn cpu_want(&self, now: Moment) -> Option<MilliCpu> {
        let lasting = self.cpu.saturated_for(now).is_some_and(|span| span >= CPU_PATIENCE);
        lasting.then(|| self.cpu.view().demand)
    }
}

/// The levels that a host with plain rules decides on. Without load averages there are none: half of them is no reason.
fn metrics(reading: &Reading) -> Option<Metrics> {
    let (load1_milli, load5_milli) = reading.cpu.loads_milli?;
    Some(Metrics {
        load1_milli,
        load5_milli,
        memory_total: reading.memory.total,
        memory_available: reading.memory.available,
        memory_cached: reading.memory.cached,
    })
}

/// By more than an eighth and by more than nothing: worth a sample ahead of time.
fn changed(before: Size, now: Size) -> bool {
    let cpu = before.cpu.0.abs_diff(now.cpu.0);
    let memory = before.memory.0.abs_diff(now.memory.0);
    cpu > (before.cpu.0 / 8).max(50) || memory > (before.memory.0 / 16).max(8 << 20)
}
