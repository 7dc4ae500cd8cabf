//! How much CPU is needed.
//!
//! Not the load average: it counts what waits for disks and is minutes late. Use is measured over a
//! short and a longer window. A workload at its limit shows only the limit, so there the demand is
//! found by growing: at first by half, and by as much as the run queue shows once the limit has held or the first
//! growth was not enough. What was found is remembered while the load goes on: requests come in bursts, so the size that
//! is enough lies above the use, and without a memory it would be lost and found again all the time.

use std::time::Duration;

use guest_units::{MilliCpu, Moment};

use crate::reading::CpuReading;
use crate::window::{Window, micros, per_second, permille, share};

/// Long enough that a reload of settings or one new connection on a quarter of a CPU is no demand; short enough to be
/// served within a second of a real load's beginning.
const SHORT: Duration = Duration::from_millis(750);
/// What was seen for a shorter time than this cannot be a limit.
const SEEN_LONG_ENOUGH: Duration = Duration::from_millis(250);
const LONG: Duration = Duration::from_secs(4);
/// Weight of the run queue's average.
const QUEUE_MEMORY: Duration = Duration::from_millis(250);
/// At the limit when so much of the periods were throttled, and most of the capacity is used.
const THROTTLED_PERMILLE: u16 = 300;
/// At the limit when some thread waits so much of the time, and most of the capacity is used.
const PRESSURE_PERMILLE: u16 = 300;
/// The most that is asked for in one step, as a multiple of what there is, once the limit has held for so long. Before,
/// half more: with the host's headroom that is a doubling.
const LEAP: u32 = 4;
const LEAP_AFTER: Duration = Duration::from_millis(750);
/// A limit that is reached again so soon after it was raised has held.
const OUTGROWN: Duration = Duration::from_millis(1500);
/// A capacity that was not enough for a load is not tried again for so long while that load goes on; twice as long each
/// time that it was tried in vain.
const REMEMBERED: Duration = Duration::from_secs(60);
const REMEMBERED_LONGEST: Duration = Duration::from_secs(960);

/// What is known of the CPU.
#[derive(Debug, Clone)]
pub(crate) struct Cpu {
    short: Window<CpuReading>,
    long: Window<CpuReading>,
    last: Option<(Moment, CpuReading)>,
    queue_milli: u64,
    view: CpuView,
    saturated_since: Option<Moment>,
    /// The last growth while at the limit: the windows still show the smaller capacity.
    outgrown_at: Option<Moment>,
    lesson: Option<Lesson>,
}

/// A capacity at which the workload was at its limit: below it, the host would find out the same again.
#[derive(Debug, Clone, Copy)]
struct Lesson {
    capacity: MilliCpu,
    seen_at: Moment,
    holds: Duration,
}

impl Lesson {
    /// What is known once the limit was reached at this capacity.
    fn learned(before: Option<Self>, capacity: MilliCpu, now: Moment) -> Self {
        let recent = before.filter(|it| now.since(it.seen_at) <= it.holds * 2);
        let holds = recent.map_or(REMEMBERED, |before| {
            let tried_in_vain = capacity <= before.capacity && !before.holds(now);
            if tried_in_vain { (before.holds * 2).min(REMEMBERED_LONGEST) } else { before.holds }
        });
        Self { capacity, seen_at: now, holds }
    }

    fn holds(&self, now: Moment) -> bool {
        now.since(self.seen_at) < self.holds
    }
}

/// What follows from the readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CpuView {
    pub(crate) use_short: MilliCpu,
    pub(crate) use_long: MilliCpu,
    pub(crate) capacity: MilliCpu,
    pub(crate) runnable: u32,
    pub(crate) pressure_permille: u16,
    pub(crate) throttled_permille: u16,
    pub(crate) saturated: bool,
    pub(crate) demand: MilliCpu,
}

impl Cpu {
    pub(crate) fn new() -> Self {
        Self {
            short: Window::new(40, Duration::from_millis(20)),
            long: Window::new(24, Duration::from_millis(250)),
            last: None,
            queue_milli: 0,
            view: CpuView::default(),
            saturated_since: None,
            outgrown_at: None,
            lesson: None,
        }
    }

    pub(crate) fn view(&self) -> &CpuView {
        &self.view
    }

    /// No limit is remembered.
    pub(crate) fn settled(&self, now: Moment) -> bool {
        self.saturated_since.is_none() && self.lesson.is_none_or(|lesson| !lesson.holds(now))
    }

    /// How long it has been at its limit.
    pub(crate) fn saturated_for(&self, now: Moment) -> Option<Duration> {
        self.saturated_since.map(|since| now.since(since))
    }

    pub(crate) fn read(&mut self, reading: CpuReading, now: Moment) {
        self.forget_if_reset(&reading);
        self.average_queue(reading.runnable, now);
        let was_saturated = self.view.saturated;
        let grew = reading.capacity() > self.view.capacity;
        if grew && was_saturated {
            self.outgrown_at = Some(now);
        }
        self.view = self.judge(&reading, now);
        if self.view.saturated {
            let capacity = self.view.capacity;
            self.lesson = Some(Lesson::learned(self.lesson, capacity, now));
        }
        self.saturated_since =
            if self.view.saturated { self.saturated_since.or(Some(now)) } else { None };
        self.short.push(now, reading);
        self.long.push(now, reading);
        self.last = Some((now, reading));
    }

    /// The cgroup was made anew, or appeared: its counters have nothing to do with the old ones.
    fn forget_if_reset(&mut self, reading: &CpuReading) {
        let reset = self.last.is_some_and(|(_, last)| {
            last.workload_usec.is_some() != reading.workload_usec.is_some()
                || last.workload_usec > reading.workload_usec
                || last.system_usec > reading.system_usec
                || last.periods > reading.periods
        });
        if reset {
            self.short.clear();
            self.long.clear();
        }
    }

    fn average_queue(&mut self, runnable: u32, now: Moment) {
        let passed = self.last.map_or(Duration::MAX, |(at, _)| now.since(at)).min(QUEUE_MEMORY * 4);
        let (passed, memory) = (micros(passed), micros(QUEUE_MEMORY));
        // At most 2^32 threads, in thousandths, times a second in microseconds: it fits.
        let fresh = u64::from(runnable) * 1000 * passed;
        self.queue_milli =
            self.queue_milli.saturating_mul(memory).saturating_add(fresh) / (passed + memory);
    }

    fn judge(&self, reading: &CpuReading, now: Moment) -> CpuView {
        let (mut use_short, mut pressure, mut throttled) = (MilliCpu::ZERO, 0, 0);
        let (mut seen, mut system) = (Duration::ZERO, MilliCpu::ZERO);
        if let Some((span, then)) = self.short.before(now, SHORT) {
            seen = span;
            use_short = used(&then, reading, span);
            system = system_used(&then, reading, span);
            pressure = permille(reading.pressure_usec.saturating_sub(then.pressure_usec), span);
            throttled = throttled_permille(&then, reading);
        }
        let use_long = self
            .long
            .before(now, LONG)
            .map_or(use_short, |(span, then)| used(&then, reading, span));
        let capacity = reading.capacity();
        let waits = throttled >= THROTTLED_PERMILLE || pressure >= PRESSURE_PERMILLE;
        let saturated = capacity > MilliCpu::ZERO
            && seen >= SEEN_LONG_ENOUGH
            && ((use_short >= capacity.times_up(9, 10) && (waits || self.queues(capacity)))
                || (throttled >= THROTTLED_PERMILLE && use_short >= capacity.times_up(6, 10))
                || (waits && system >= MilliCpu::from_cpus(reading.online).times_up(9, 10)));
        let needed = use_short.max(use_long);
        let demand = if saturated {
            needed.max(self.grown(capacity, now))
        } else {
            needed.max(self.remembered(needed, now))
        };
        CpuView {
            use_short,
            use_long,
            capacity,
            runnable: reading.runnable,
            pressure_permille: pressure,
            throttled_permille: throttled,
            saturated,
            demand,
        }
    }

    /// More wants to run than may.
    fn queues(&self, capacity: MilliCpu) -> bool {
        self.queue_milli > u64::from(capacity.0)
    }

    /// The host would shrink to a capacity that this load has outgrown before.
    fn remembered(&self, needed: MilliCpu, now: Moment) -> MilliCpu {
        let lesson = self.lesson.filter(|lesson| lesson.holds(now));
        lesson
            .map(|lesson| lesson.capacity)
            .filter(|it| needed >= it.times_up(1, 2))
            .unwrap_or_default()
    }

    fn grown(&self, capacity: MilliCpu, now: Moment) -> MilliCpu {
        let first = capacity.times_up(3, 2);
        let held = self.saturated_for(now).is_some_and(|span| span >= LEAP_AFTER);
        let outgrown = self.outgrown_at.is_some_and(|at| now.since(at) <= OUTGROWN);
        if !held && !outgrown {
            return first;
        }
        let queue = MilliCpu(u32::try_from(self.queue_milli).unwrap_or(u32::MAX));
        first.max(queue.min(capacity.saturating_mul(LEAP)))
    }
}

/// The workload's use. Not the whole system's: what the kernel does for a resize would ask for the next one.
fn used(then: &CpuReading, now: &CpuReading, span: Duration) -> MilliCpu {
    match (then.workload_usec, now.workload_usec) {
        (Some(then), Some(now)) => rate(now.saturating_sub(then), span),
        _ => system_used(then, now, span),
    }
}

fn system_used(then: &CpuReading, now: &CpuReading, span: Duration) -> MilliCpu {
    rate(now.system_usec.saturating_sub(then.system_usec), span)
}

fn rate(usec: u64, span: Duration) -> MilliCpu {
    MilliCpu(u32::try_from(per_second(usec, span) / 1000).unwrap_or(u32::MAX))
}

fn throttled_permille(then: &CpuReading, now: &CpuReading) -> u16 {
    let periods = now.periods.saturating_sub(then.periods);
    let throttled = now.throttled.saturating_sub(then.throttled).min(periods);
    // One period says nothing: a burst at its end is not a limit.
    if periods < 2 {
        return 0;
    }
    u16::try_from(share(throttled, 1000, periods)).unwrap_or(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 s of a workload that uses `use_milli` of `quota_milli`, read every 50 ms.
    fn run(use_milli: u64, quota_milli: u32, online: u32, runnable: u32, throttled: bool) -> Cpu {
        let mut cpu = Cpu::new();
        for step in 0..60u64 {
            let reading = CpuReading {
                workload_usec: Some(step * use_milli * 50),
                system_usec: step * use_milli * 50,
                runnable,
                periods: step * 2,
                throttled: if throttled { step * 2 } else { 0 },
                pressure_usec: 0,
                quota: Some(MilliCpu(quota_milli)),
                online,
                loads_milli: None,
            };
            cpu.read(reading, Moment::from_millis(step * 50));
        }
        cpu
    }

    #[test]
    fn an_unlimited_workload_needs_what_it_uses() {
        let view = *run(300, 1000, 1, 1, false).view();
        assert_eq!((view.demand, view.saturated), (MilliCpu(300), false));
        assert_eq!(run(0, 1000, 1, 0, false).view().demand, MilliCpu::ZERO);
    }

    #[test]
    fn a_workload_at_its_limit_needs_more_than_it_has() {
        let cpu = run(240, 250, 1, 1, true);
        assert!(cpu.view().saturated);
        assert_eq!(cpu.view().throttled_permille, 1000);
        assert!(cpu.view().demand >= MilliCpu(375), "{:?}", cpu.view());
        assert!(cpu.saturated_for(Moment::from_millis(3000)).is_some());
    }

    #[test]
    fn the_run_queue_shows_how_much_more_up_to_a_leap() {
        let view = *run(1000, 1000, 1, 3, false).view();
        assert!(view.demand > MilliCpu(2500) && view.demand <= MilliCpu(3000), "{view:?}");
        let view = *run(1000, 1000, 1, 50, false).view();
        assert_eq!(view.demand, MilliCpu(4000));
    }

    #[test]
    fn a_limit_that_was_just_reached_is_no_reason_to_leap() {
        let mut cpu = Cpu::new();
        for step in 0..60u64 {
            let reading = CpuReading {
                workload_usec: Some(step * 50_000),
                system_usec: step * 50_000,
                runnable: 50,
                quota: Some(MilliCpu(1000)),
                online: 1,
                ..CpuReading::default()
            };
            let now = Moment::from_millis(step * 50);
            cpu.read(reading, now);
            let held = cpu.saturated_for(now).is_some_and(|span| span >= LEAP_AFTER);
            let most = MilliCpu(if held { 4000 } else { 1500 });
            assert!(cpu.view().demand <= most, "{:?} at {step}", cpu.view());
        }
        assert_eq!(cpu.view().demand, MilliCpu(4000));
    }

    /// 3 s after it was idle, `threads` want to run for `busy_ms` of CPU time together; the host gives a fifth more than
    /// the demand, in quarters, `plug_ms` after it is seen. What was given, and how long after the beginning.
    fn host(threads: u32, busy_ms: u64, plug_ms: u64) -> Vec<(u64, u32)> {
        const STEP_MS: u64 = 25;
        let mut cpu = Cpu::new();
        let (mut quota, mut used_usec) = (250u32, 0);
        let (mut periods, mut throttled) = (0, 0);
        let mut plug: Option<(u64, u32)> = None;
        let mut given = Vec::new();
        for ms in (0..8000).step_by(25) {
            let left = (busy_ms * 1000).saturating_sub(used_usec);
            let wants = if ms < 3000 || left == 0 { 0 } else { threads };
            let could = u64::from(quota.min(threads * 1000)) * STEP_MS;
            if wants > 0 {
                used_usec += left.min(could);
                periods += 1;
                throttled += u64::from(could < left && threads * 1000 > quota);
            }
            let reading = CpuReading {
                workload_usec: Some(used_usec),
                system_usec: used_usec,
                runnable: wants,
                periods,
                throttled,
                pressure_usec: 0,
                quota: Some(MilliCpu(quota)),
                online: quota.div_ceil(1000),
                loads_milli: None,
            };
            cpu.read(reading, Moment::from_millis(ms));
            let demand = cpu.view().demand.0;
            let goal = (demand + (demand / 5).max(50)).next_multiple_of(250).min(2000);
            if goal > quota && plug.is_none_or(|(_, size)| goal > size) {
                plug = Some((plug.map_or(ms + plug_ms, |(at, _)| at), goal));
            }
            if let Some((_, size)) = plug.take_if(|(at, _)| *at <= ms) {
                quota = size;
                given.push((ms.saturating_sub(3000), size));
            }
        }
        given
    }

    #[test]
    fn a_burst_doubles_the_size_at_most() {
        for (busy_ms, plug_ms) in [(100, 25), (125, 100), (150, 25), (150, 300), (175, 300)] {
            let given = host(8, busy_ms, plug_ms);
            assert!(given.iter().all(|(_, size)| *size <= 500), "{busy_ms} ms: {given:?}");
        }
        assert!(host(8, 50, 300).is_empty(), "not even that for 50 ms of work");
    }

    #[test]
    fn a_load_that_stays_reaches_its_size_within_a_second_and_a_half() {
        for plug_ms in [25, 100, 200, 300] {
            let given = host(8, 1_000_000, plug_ms);
            let (at, size) = given[given.len() - 1];
            assert_eq!(size, 2000, "{given:?}");
            assert!(at <= 1500, "with {plug_ms} ms for each plug: {given:?}");
        }
    }

    #[test]
    fn one_thread_on_one_cpu_lacks_nothing() {
        let view = *run(1000, 1000, 1, 1, false).view();
        assert_eq!((view.demand, view.saturated), (MilliCpu(1000), false));
    }

    #[test]
    fn a_short_burst_against_a_small_quota_is_no_limit() {
        let mut cpu = Cpu::new();
        for step in 0..60u64 {
            // 100 ms of one CPU in the middle of idleness: throttled in every period meanwhile.
            let busy_ms = (step * 50).clamp(1000, 1100) - 1000;
            let reading = CpuReading {
                workload_usec: Some(busy_ms * 1000),
                system_usec: busy_ms * 1000,
                runnable: u32::from(busy_ms > 0 && busy_ms < 100),
                periods: step,
                throttled: busy_ms / 50,
                pressure_usec: busy_ms * 1000,
                quota: Some(MilliCpu(250)),
                online: 1,
                loads_milli: None,
            };
            cpu.read(reading, Moment::from_millis(step * 50));
            assert!(!cpu.view().saturated, "{:?} at step {step}", cpu.view());
        }
    }

    #[test]
    fn the_kernels_own_work_is_demand_only_while_the_workload_waits() {
        for (waits, expected) in [(0, false), (1, true)] {
            let mut cpu = Cpu::new();
            for step in 0..60u64 {
                let reading = CpuReading {
                    workload_usec: Some(step * 1000),
                    system_usec: step * 50_000,
                    runnable: 2,
                    pressure_usec: step * 25_000 * waits,
                    quota: Some(MilliCpu(1000)),
                    online: 1,
                    ..CpuReading::default()
                };
                cpu.read(reading, Moment::from_millis(step * 50));
            }
            assert_eq!(cpu.view().saturated, expected, "{:?}", cpu.view());
        }
    }

    #[test]
    fn a_long_run_queue_alone_is_no_demand() {
        let view = *run(100, 1000, 1, 20, false).view();
        assert_eq!(view.demand, MilliCpu(100));
    }

    #[test]
    fn a_new_cgroup_does_not_look_like_a_burst() {
        let mut cpu = run(300, 1000, 1, 1, false);
        let fresh = CpuReading {
            workload_usec: Some(5),
            system_usec: u64::MAX / 2,
            online: 1,
            ..CpuReading::default()
        };
        cpu.read(fresh, Moment::from_millis(3050));
        assert_eq!(cpu.view().demand, MilliCpu::ZERO);
    }
}
