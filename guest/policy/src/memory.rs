//! How much memory is needed, how fast that grows, and how long it lasts.

use std::time::Duration;

use guest_units::{Bytes, Moment};

use crate::reading::{MemoryReading, Zones};
use crate::tuning::Tuning;
use crate::window::{Window, faded, per_second, permille, share};

/// Growth is measured over each of these, and the steepest counts.
const SPANS: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(60),
    Duration::from_millis(200),
    Duration::from_millis(1000),
];
/// The kernel counts per CPU and sums up late: such a step is no growth.
const NOISE: Bytes = Bytes::from_mib(1);
/// A slope that ended is remembered for so long: bursts come in rows.
const SLOPE_MEMORY: Duration = Duration::from_secs(1);
/// Over which refaults and pressure are measured.
const RATE_SPAN: Duration = Duration::from_millis(500);
/// So many refaults per second show that the page cache is in use and too small.
pub(crate) const REFAULTS_IN_USE: u64 = 50;
/// Threads wait for memory so much of the time.
const PRESSURE_PERMILLE: u16 = 100;
/// Blocks that leave are emptied first, and threads wait for their pages: for so long after it, pressure is no shortage.
const UNPLUG_SETTLES: Duration = Duration::from_millis(1500);
/// Size of a page.
const PAGE: u64 = 4096;
/// Page cache that any running system needs: its programs.
const PROGRAMS: Bytes = Bytes::from_mib(32);
/// No kernel keeps more for itself than this share of a machine.
const UNMANAGED_SHARE: u64 = 4;

/// What is known of the memory.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    levels: Window<Bytes>,
    counters: Window<(u64, u64)>,
    /// What no counter names, over about a second.
    unnamed: Window<Bytes>,
    last: Option<(Moment, MemoryReading)>,
    slope: Bytes,
    cache_missed_at: Option<Moment>,
    /// The kernel had less than before.
    unplugged_at: Option<Moment>,
    pressed_since: Option<Moment>,
    zones: Option<Zones>,
    told: Option<Told>,
    view: MemoryView,
}

/// What the host said, and what the kernel kept of it at that moment.
#[derive(Debug, Clone, Copy)]
struct Told {
    plugged: Bytes,
    kept: Option<Bytes>,
}

/// What follows from the readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MemoryView {
    pub(crate) total: Bytes,
    /// What the kernel keeps for itself: `total` and this are the VM's memory.
    pub(crate) unmanaged: Bytes,
    pub(crate) hard: Bytes,
    /// Of `hard`, what stays: without pages that are on their way out of the VM.
    pub(crate) lasting: Bytes,
    pub(crate) usable: Bytes,
    pub(crate) dirty: Bytes,
    pub(crate) swap_used: Bytes,
    pub(crate) slope_per_second: Bytes,
    pub(crate) refaults_per_second: u64,
    pub(crate) pressure_permille: u16,
    /// Threads wait for memory because there is too little of it.
    pub(crate) pressed: bool,
    pub(crate) kernel_short: bool,
    pub(crate) demand: Bytes,
}

impl MemoryView {
    /// The VM's memory.
    pub(crate) fn vm(&self) -> Bytes {
        self.total.saturating_add(self.unmanaged)
    }

    /// What is used of it.
    pub(crate) fn used(&self) -> Bytes {
        self.lasting.saturating_add(self.unmanaged)
    }

    /// What will be allocated within `span` at the present rate.
    pub(crate) fn growth(&self, span: Duration) -> Bytes {
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.slope_per_second.times(millis, 1000)
    }

    /// Until nothing is usable at the present rate; `None`: it does not grow.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        if self.slope_per_second.is_zero() {
            return None;
        }
        Some(Duration::from_micros(share(self.usable.0, 1_000_000, self.slope_per_second.0)))
    }
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self {
            levels: Window::new(64, Duration::from_millis(8)),
            counters: Window::new(16, Duration::from_millis(50)),
            unnamed: Window::new(8, Duration::from_millis(150)),
            last: None,
            slope: Bytes::ZERO,
            cache_missed_at: None,
            unplugged_at: None,
            pressed_since: None,
            zones: None,
            told: None,
            view: MemoryView::default(),
        }
    }

    pub(crate) fn view(&self) -> &MemoryView {
        &self.view
    }

    /// Neither growth nor a missing page cache is remembered.
    pub(crate) fn settled(&self) -> bool {
        self.slope.is_zero() && self.cache_missed_at.is_none() && self.pressed_since.is_none()
    }

    /// How long threads have been waiting for memory that is not there.
    pub(crate) fn pressed_for(&self, now: Moment) -> Option<Duration> {
        self.pressed_since.map(|since| now.since(since))
    }

    pub(crate) fn zones(&mut self, zones: Zones) {
        self.zones = Some(zones);
    }

    /// The host says what the VM has.
    pub(crate) fn plugged(&mut self, memory: Bytes) {
        let total = self.last.map(|(_, reading)| reading.total);
        let kept = total.and_then(|total| kept(memory, total));
        self.told = Some(Told { plugged: memory, kept });
    }

    pub(crate) fn read(&mut self, reading: MemoryReading, tuning: &Tuning, now: Moment) {
        let level = reading.level();
        let unnamed = self.unnamed.values().fold(reading.unnamed(), Bytes::min);
        self.follow_slope(level, now);
        let (mut refaults, mut pressure) = (0, 0);
        if let Some((span, (faults, usec))) = self.counters.before(now, RATE_SPAN) {
            refaults = per_second(reading.refaults.saturating_sub(faults), span);
            pressure = permille(reading.pressure_usec.saturating_sub(usec), span);
        }
        if refaults >= REFAULTS_IN_USE {
            self.cache_missed_at = Some(now);
        }
        if self.last.is_some_and(|(_, last)| reading.total < last.total) {
            self.unplugged_at = Some(now);
        }
        let unmanaged = self.unmanaged(reading.total);
        let settled = self.unplugged_at.is_none_or(|at| now.since(at) > UNPLUG_SETTLES);
        // With enough memory unused, threads wait for pages that are being moved: more memory would not help.
        let scarce = reading.free < tuning.reserve(reading.total.saturating_add(unmanaged));
        let pressed = pressure >= PRESSURE_PERMILLE && scarce && settled;
        self.pressed_since = pressed.then(|| self.pressed_since.unwrap_or(now));
        let view = MemoryView {
            total: reading.total,
            unmanaged,
            hard: reading.hard(),
            lasting: reading.hard().min(reading.counted.saturating_add(unnamed)),
            usable: reading.usable(),
            dirty: reading.dirty,
            swap_used: reading.swap_used,
            slope_per_second: self.slope,
            refaults_per_second: refaults,
            pressure_permille: pressure,
            pressed,
            kernel_short: self.zones.is_some_and(|zones| kernel_short(&zones)),
            demand: Bytes::ZERO,
        };
        self.view = MemoryView { demand: self.demand(&view, &reading, tuning, now), ..view };
        self.levels.push(now, level);
        self.unnamed.push(now, reading.unnamed());
        self.counters.push(now, (reading.refaults, reading.pressure_usec));
        self.last = Some((now, reading));
    }

    fn follow_slope(&mut self, level: Bytes, now: Moment) {
        let measured = SPANS
            .iter()
            .filter_map(|span| self.levels.before(now, *span))
            .map(|(age, then)| {
                let growth = level.saturating_sub(then).saturating_sub(NOISE);
                Bytes(per_second(growth.0, age))
            })
            .max()
            .unwrap_or_default();
        let passed = self.last.map_or(Duration::ZERO, |(at, _)| now.since(at));
        self.slope = measured.max(Bytes(faded(self.slope.0, passed, SLOPE_MEMORY)));
    }

    /// What the host says where it fits; else what the kernel shows. Between a resize and the host's word of it the
    /// difference is no measure: what was unplugged meanwhile would look like the kernel's own.
    fn unmanaged(&self, total: Bytes) -> Bytes {
        let told = self.told.and_then(|Told { plugged, kept: then }| {
            let now = kept(plugged, total);
            now.zip(then).map(|(now, then)| now.min(then)).or(then).or(now)
        });
        let seen = self.zones.map(|zones| zones.present.saturating_sub(zones.managed));
        told.or(seen).unwrap_or_default()
    }

    fn demand(
        &self,
        view: &MemoryView,
        reading: &MemoryReading,
        tuning: &Tuning,
        now: Moment,
    ) -> Bytes {
        let programs = reading.active_file.min(PROGRAMS);
        view.used()
            .saturating_add(view.growth(tuning.demand_horizon))
            .saturating_add(programs.max(self.working_set(view, reading, tuning, now)))
            .min(guest_protocol::MAX_MEMORY)
    }

    /// Page cache and swap count only while something misses them: an idle guest whose cache is full
    /// needs nothing of it, and one that reads again what it had just dropped needs all of it, and more.
    fn working_set(
        &self,
        view: &MemoryView,
        reading: &MemoryReading,
        tuning: &Tuning,
        now: Moment,
    ) -> Bytes {
        let Some(at) = self.cache_missed_at else { return Bytes::ZERO };
        let cached = reading.active_file.saturating_add(reading.inactive_file);
        let missed = Bytes(view.refaults_per_second.saturating_mul(PAGE));
        let working = cached.saturating_add(missed).saturating_add(reading.swap_used);
        Bytes(faded(working.0, now.since(at), tuning.cache_memory))
    }
}

/// What the kernel has kept for itself of so much memory; `None` where that cannot be.
fn kept(plugged: Bytes, total: Bytes) -> Option<Bytes> {
    plugged.checked_sub(total).filter(|rest| *rest <= total.times(1, UNMANAGED_SHARE))
}

/// The zones in which the kernel may allocate are nearly empty, even if others are not.
fn kernel_short(zones: &Zones) -> bool {
    let room = zones.kernel_free.saturating_add(zones.kernel_file.times(1, 2));
    room < zones.kernel_low.saturating_mul(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(mib: u64) -> Bytes {
        Bytes::from_mib(mib)
    }

    fn reading(used: u64, active_file: u64) -> MemoryReading {
        let total = 485;
        MemoryReading {
            total: mib(total),
            free: mib(total - used - active_file),
            available: mib(total - used - 10),
            active_file: mib(active_file),
            ..MemoryReading::default()
        }
    }

    #[test]
    fn pages_on_their_way_out_are_no_growth() {
        let (mut memory, tuning) = (Memory::new(), Tuning::default());
        for step in 0..200u64 {
            // A block of 128 MiB is isolated for 100 ms before it is gone.
            let isolated = if (100..110).contains(&step) { 128 } else { 0 };
            let now = MemoryReading { counted: mib(90), ..reading(100 + isolated, 40) };
            memory.read(now, &tuning, Moment::from_millis(step * 10));
            let view = memory.view();
            assert_eq!(view.slope_per_second, Bytes::ZERO, "at step {step}");
            assert_eq!(view.lasting, mib(100), "at step {step}");
        }
    }

    #[test]
    fn what_comes_back_from_swap_is_no_growth() {
        let (mut memory, tuning) = (Memory::new(), Tuning::default());
        for step in 0..100u64 {
            let back = step.saturating_sub(50).min(40) * 2;
            let now = MemoryReading {
                counted: mib(90 + back),
                swap_used: mib(80 - back),
                ..reading(100 + back, 40)
            };
            memory.read(now, &tuning, Moment::from_millis(step * 10));
            assert_eq!(memory.view().slope_per_second, Bytes::ZERO, "at step {step}");
            assert!(memory.view().demand <= mib(100 + back + 32), "at step {step}");
        }
    }

    #[test]
    fn a_ramp_is_seen_at_its_true_rate() {
        let (mut memory, tuning) = (Memory::new(), Tuning::default());
        for step in 0..20 {
            memory.read(reading(100 + step * 5, 50), &tuning, Moment::from_millis(step * 20));
        }
        let slope = memory.view().slope_per_second.whole_mib();
        assert!((200..=255).contains(&slope), "250 MiB/s were {slope}");
        let left = memory.view().time_left().unwrap();
        assert!(
            left > Duration::from_millis(900) && left < Duration::from_millis(1500),
            "{left:?}"
        );
    }

    #[test]
    fn counting_noise_is_no_slope_and_an_old_slope_fades() {
        let (mut memory, tuning) = (Memory::new(), Tuning::default());
        for step in 0..50u64 {
            let mut noisy = reading(100, 50);
            noisy.free = Bytes(noisy.free.0 - (step % 2) * 900_000);
            memory.read(noisy, &tuning, Moment::from_millis(step * 10));
        }
        assert_eq!(memory.view().slope_per_second, Bytes::ZERO);
        memory.read(reading(200, 50), &tuning, Moment::from_millis(520));
        assert!(memory.view().slope_per_second > mib(1000));
        memory.read(reading(200, 50), &tuning, Moment::from_millis(1700));
        memory.read(reading(200, 50), &tuning, Moment::from_millis(2900));
        assert_eq!(memory.view().slope_per_second, Bytes::ZERO);
    }

    #[test]
    fn page_cache_counts_only_while_it_is_missed() {
        let (mut memory, tuning) = (Memory::new(), Tuning::default());
        memory.read(reading(100, 300), &tuning, Moment::ZERO);
        assert_eq!(memory.view().demand, mib(100 + 32));
        let missed = MemoryReading { refaults: 1000, ..reading(100, 300) };
        memory.read(missed, &tuning, Moment::from_secs(1));
        let in_use = memory.view().demand;
        assert!(in_use >= mib(100 + 300), "{in_use}");
        memory.read(missed, &tuning, Moment::from_secs(61));
        assert!(memory.view().demand < in_use);
        memory.read(missed, &tuning, Moment::from_secs(200));
        assert_eq!(memory.view().demand, mib(100 + 32));
    }

    #[test]
    fn what_the_kernel_keeps_is_part_of_the_demand() {
        let (mut memory, tuning) = (Memory::new(), Tuning::default());
        memory.zones(Zones { present: mib(512), managed: mib(485), ..Zones::default() });
        memory.read(reading(100, 0), &tuning, Moment::ZERO);
        assert_eq!((memory.view().unmanaged, memory.view().demand), (mib(27), mib(127)));
        memory.plugged(mib(520));
        memory.read(reading(100, 0), &tuning, Moment::from_secs(1));
        assert_eq!(memory.view().vm(), mib(520));
        memory.plugged(mib(4096)); // not yet onlined: no reason to believe in 3.5 GiB of overhead
        memory.read(reading(100, 0), &tuning, Moment::from_secs(2));
        assert_eq!(memory.view().vm(), mib(512));
    }

    #[test]
    fn what_is_unplugged_is_not_the_kernels() {
        let tuning = Tuning::default();
        let read = |memory: &mut Memory, vm: u64, ms| {
            let (total, used) = (mib(vm - 60), mib(5000));
            let free = total.saturating_sub(used);
            let now = MemoryReading { total, free, available: free, ..MemoryReading::default() };
            memory.read(now, &tuning, Moment::from_millis(ms));
            memory.view().demand
        };
        let mut memory = Memory::new();
        read(&mut memory, 8192, 0);
        memory.plugged(mib(8192));
        let before = read(&mut memory, 8192, 1000);
        assert_eq!(before, mib(5060));
        // The kernel gives memory back; the host says so only afterwards.
        assert_eq!(read(&mut memory, 7500, 2000), before);
        assert_eq!(read(&mut memory, 7168, 3000), before);
        memory.plugged(mib(7168));
        assert_eq!(read(&mut memory, 7168, 4000), before);
        // Grown, and said before all of it is online.
        memory.plugged(mib(8192));
        assert_eq!(read(&mut memory, 8192, 5000), before);
        assert_eq!(memory.view().vm(), mib(8192));
    }

    #[test]
    fn pressure_is_shortage_only_where_memory_is_scarce_and_nothing_leaves() {
        let tuning = Tuning::default();
        // 20 ms of each 50 ms are spent waiting.
        let pressed = |free: u64, total: fn(u64) -> u64| {
            let mut memory = Memory::new();
            let mut at: Vec<u64> = Vec::new();
            for step in 0..60u64 {
                let total = mib(total(step));
                let now = MemoryReading {
                    total,
                    free: mib(free),
                    available: total.times(1, 2),
                    pressure_usec: step * 20_000,
                    ..MemoryReading::default()
                };
                memory.read(now, &tuning, Moment::from_millis(step * 50));
                at.extend(memory.view().pressed.then_some(step * 50));
            }
            at
        };
        assert_eq!(pressed(20, |_| 900).first(), Some(&50));
        assert!(pressed(400, |_| 900).is_empty(), "there is enough, and pages are on their way");
        let shrunk = pressed(20, |step| if step < 10 { 900 } else { 772 });
        assert!(!shrunk.iter().any(|ms| (500..=2000).contains(ms)), "{shrunk:?}");
        assert_eq!(shrunk.last(), Some(&2950));
    }

    #[test]
    fn the_kernels_zones_can_be_short_alone() {
        let zones = Zones {
            kernel_free: mib(3),
            kernel_file: mib(2),
            kernel_low: mib(4),
            movable_free: mib(2000),
            ..Zones::default()
        };
        assert!(kernel_short(&zones));
        assert!(!kernel_short(&Zones { kernel_file: mib(40), ..zones }));
    }
}
