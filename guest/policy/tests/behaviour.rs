//! The policy at work in a simulated guest: readings when it wants them, memory plugged some time
//! after it asked.

use std::time::Duration;

use guest_policy::{
    Action, CpuReading, Event, MemoryReading, Policy, Reading, Tuning, Verdict, Why, Zones,
};
use guest_protocol::{Ask, AskReason};
use guest_units::{Bytes, MilliCpu, Moment, Size};
use proptest::prelude::*;

fn mib(mib: u64) -> Bytes {
    Bytes::from_mib(mib)
}

/// A guest whose memory use is a function of time, and a host that grants everything, late.
struct Guest {
    policy: Policy,
    now: Moment,
    vm: Bytes,
    plug_at: Option<(Moment, Bytes)>,
    plug_takes: Duration,
    kernel_free: Bytes,
    cpu_milli: u64,
    quota: MilliCpu,
    cpu_usec: u64,
    asks: Vec<(Moment, Ask)>,
    reads: u32,
    reports: u32,
    least_free: Bytes,
}

impl Guest {
    fn new(vm: Bytes, tuning: Tuning) -> Self {
        Self {
            policy: Policy::new(tuning),
            now: Moment::from_secs(1),
            vm,
            plug_at: None,
            plug_takes: Duration::from_millis(250),
            kernel_free: mib(60),
            cpu_milli: 0,
            quota: MilliCpu(1000),
            cpu_usec: 0,
            asks: Vec::new(),
            reads: 0,
            reports: 0,
            least_free: vm,
        }
    }

    fn managed(&self) -> Bytes {
        self.vm.saturating_sub(mib(27))
    }

    fn reading(&self, used: Bytes) -> Reading {
        let total = self.managed();
        let free = total.saturating_sub(used);
        Reading {
            memory: MemoryReading {
                total,
                free,
                available: free.saturating_sub(mib(8)),
                ..MemoryReading::default()
            },
            cpu: CpuReading {
                workload_usec: Some(self.cpu_usec),
                system_usec: self.cpu_usec,
                runnable: 1,
                quota: Some(self.quota),
                online: self.quota.whole_up(),
                ..CpuReading::default()
            },
        }
    }

    /// Runs for so long; `used` says how much memory is in use after a time.
    fn run(&mut self, span: Duration, used: impl Fn(Duration) -> Bytes) {
        let (start, end) = (self.now, self.now + span);
        while self.now < end {
            self.plug();
            let used = used(self.now.since(start));
            self.least_free = self.least_free.min(self.managed().saturating_sub(used));
            let actions = self.policy.next(self.now);
            assert_eq!(actions, self.policy.next(self.now), "asking changes nothing");
            for (action, _why) in &actions.start {
                self.policy.handle(Event::Started(*action), self.now);
                self.perform(*action, used);
            }
            if actions.start.is_empty() {
                let wake = actions.wake_at.expect("a reading is always due some time");
                assert!(wake > self.now, "no busy loop");
                let next = wake.min(end).min(
                    self.plug_at.map_or(end, |(at, _)| at.max(self.now + Duration::from_micros(1))),
                );
                self.cpu_usec += u64::try_from(next.since(self.now).as_micros()).unwrap_or(0)
                    * self.cpu_milli
                    / 1000;
                self.now = next;
            }
        }
    }

    fn plug(&mut self) {
        if let Some((at, size)) = self.plug_at
            && at <= self.now
        {
            self.vm = self.vm.max(size);
            self.plug_at = None;
        }
    }

    fn perform(&mut self, action: Action, used: Bytes) {
        match action {
            Action::Read => {
                self.reads += 1;
                self.policy.handle(Event::Read(self.reading(used)), self.now);
            }
            Action::ReadZones => {
                let zones = Zones {
                    present: self.vm,
                    managed: self.managed(),
                    kernel_free: self.kernel_free,
                    kernel_low: mib(4),
                    ..Zones::default()
                };
                self.policy.handle(Event::Zones(zones), self.now);
            }
            Action::Report(_) => self.reports += 1,
            Action::Ask(ask) => {
                self.asks.push((self.now, ask));
                let size = ask.want.memory.round_up(mib(128));
                let at = self.plug_at.map_or(self.now + self.plug_takes, |(at, _)| at);
                self.plug_at = Some((at, size));
            }
        }
    }
}

/// What is plugged may be of no use to the kernel's own zones: they stay short, however large the VM becomes.
#[test]
fn a_kernel_that_plugging_does_not_help_asks_once() {
    let mut guest = Guest::new(mib(1024), Tuning::default());
    guest.kernel_free = mib(2);
    guest.run(Duration::from_secs(120), |_| mib(300));
    let reasons: Vec<_> = guest.asks.iter().map(|(_, ask)| ask.reason).collect();
    assert!(reasons.iter().all(|reason| *reason == AskReason::KernelMemory), "{reasons:?}");
    assert!(!reasons.is_empty() && guest.vm <= mib(1024 + 256), "{} after {reasons:?}", guest.vm);
}

#[test]
fn an_idle_guest_asks_for_nothing_and_is_rarely_read() {
    let mut guest = Guest::new(mib(2048), Tuning::default());
    guest.run(Duration::from_secs(60), |_| mib(300));
    assert!(guest.asks.is_empty(), "{:?}", guest.asks);
    assert!((60..=75).contains(&guest.reads), "{} readings", guest.reads);
    assert!((55..=70).contains(&guest.reports), "{} reports", guest.reports);
}

#[test]
fn a_ramp_of_256_mib_a_second_is_outrun() {
    let mut guest = Guest::new(mib(512), Tuning::default());
    guest.run(Duration::from_secs(2), |_| mib(150));
    let ramp = |at: Duration| {
        Bytes(150 << 20).saturating_add(Bytes(u64::try_from(at.as_micros()).unwrap() * 268))
    };
    guest.run(Duration::from_secs(6), ramp);
    let (first, ask) = guest.asks[0];
    assert!(first < Moment::from_millis(3500), "first ask {first:?}");
    assert_eq!(ask.reason, AskReason::MemorySlope);
    assert!(guest.least_free > mib(32), "only {} were left", guest.least_free);
}

#[test]
fn a_sudden_burst_is_seen_within_milliseconds() {
    let mut guest = Guest::new(mib(512), Tuning::default());
    guest.run(Duration::from_secs(2), |_| mib(200));
    // 150 MiB in 60 ms, then nothing.
    guest.run(Duration::from_secs(2), |at| {
        mib(200 + u64::try_from(at.as_millis()).unwrap().min(60) * 150 / 60)
    });
    let (first, _) = guest.asks[0];
    assert!(first < Moment::from_millis(3400), "asked at {first:?}");
    assert!(guest.vm >= mib(640), "{}", guest.vm);
}

#[test]
fn a_broken_reserve_is_asked_for_slowly_while_nobody_serves() {
    let mut guest = Guest::new(mib(512), Tuning::default());
    guest.plug_takes = Duration::from_secs(3600);
    guest.run(Duration::from_secs(30), |_| mib(440));
    // After 0.5, 1, 2, 4 and then every 5 seconds.
    assert!((8..=11).contains(&guest.asks.len()), "{} asks", guest.asks.len());
    let gaps: Vec<_> = guest.asks.windows(2).map(|pair| pair[1].0.since(pair[0].0)).collect();
    assert!(gaps[0] < Duration::from_millis(700), "{gaps:?}");
    let wants: Vec<_> = guest.asks.iter().map(|(_, ask)| ask.want.memory).collect();
    assert!(wants.windows(2).all(|pair| pair[0] == pair[1]), "{wants:?}");
    let seqs: Vec<_> = guest.asks.iter().map(|(_, ask)| ask.seq).collect();
    assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn a_throttled_workload_asks_for_cpu() {
    let mut guest = Guest::new(mib(2048), Tuning::default());
    guest.quota = MilliCpu(250);
    guest.cpu_milli = 248;
    guest.run(Duration::from_secs(2), |_| mib(300));
    let (first, ask) = guest.asks[0];
    assert_eq!(ask.reason, AskReason::CpuSaturated);
    assert!(ask.want.cpu >= MilliCpu(375), "{ask:?}");
    assert!(first < Moment::from_millis(2700), "first ask {first:?}");
}

#[test]
fn the_kernels_signal_brings_a_reading_at_once() {
    let mut guest = Guest::new(mib(4096), Tuning::default());
    guest.run(Duration::from_secs(3), |_| mib(300));
    let soon = guest.now + Duration::from_millis(15);
    guest.policy.handle(Event::Pressure, guest.now);
    let actions = guest.policy.next(soon);
    assert!(actions.start.contains(&(Action::Read, Why::Pressure)), "{actions:?}");
}

#[test]
fn a_new_listener_is_told_at_once() {
    let mut guest = Guest::new(mib(512), Tuning::default());
    guest.run(Duration::from_secs(3), |_| mib(440));
    let asks = guest.asks.len();
    guest.policy.handle(Event::Connected, guest.now);
    guest.run(Duration::from_millis(1), |_| mib(440));
    assert!(guest.asks.len() > asks || guest.vm > mib(512));
}

#[test]
fn nothing_may_shrink_before_the_first_reading() {
    let policy = Policy::new(Tuning::default());
    let size = |mib| Size::new(MilliCpu(1000), Bytes::from_mib(mib));
    assert!(matches!(policy.may_shrink(size(1024), size(512)), Verdict::Veto { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens, no ask goes beyond the bound, and each wants more than there is.
    #[test]
    fn asks_stay_within_the_bound(
        levels in prop::collection::vec(0u64..2000, 1..20),
        most in 512u64..3000,
        cpu in 0u64..1200,
    ) {
        let most = Size::new(MilliCpu(2000), mib(most));
        let mut guest = Guest::new(mib(512), Tuning { most, ..Tuning::default() });
        guest.cpu_milli = cpu;
        for pair in levels.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            guest.run(Duration::from_millis(500), |at| {
                let part = u64::try_from(at.as_millis()).unwrap().min(500);
                mib((from * (500 - part) + to * part) / 500)
            });
        }
        for (_, ask) in &guest.asks {
            prop_assert!(ask.want.fits_in(most), "{:?} beyond {:?}", ask, most);
        }
    }

    /// The more is used, the more is wanted.
    #[test]
    fn asks_grow_with_use(used in 400u64..470, more in 0u64..15) {
        let want = |used| {
            let mut guest = Guest::new(mib(512), Tuning::default());
            guest.run(Duration::from_millis(50), |_| mib(used));
            guest.asks.first().map(|(_, ask)| ask.want.memory)
        };
        prop_assert!(want(used) <= want(used + more));
    }

    /// No reading makes it panic or spin.
    #[test]
    fn absurd_readings_are_survived(values in prop::collection::vec(prop::array::uniform16(any::<u64>()), 1..12)) {
        let mut policy = Policy::new(Tuning::default());
        let mut now = Moment::ZERO;
        for v in values {
            let memory = MemoryReading {
                total: Bytes(v[0]), free: Bytes(v[1]), available: Bytes(v[2]), active_file: Bytes(v[3]),
                inactive_file: Bytes(v[4]), slab_reclaimable: Bytes(v[5]), dirty: Bytes(v[6]),
                swap_used: Bytes(v[7]), counted: Bytes(v[9]), refaults: v[8], pressure_usec: v[9],
                cached: Bytes(v[3]),
            };
            let cpu = CpuReading {
                workload_usec: (v[10] % 3 != 0).then_some(v[10]), system_usec: v[11],
                runnable: u32::try_from(v[12] >> 32).unwrap(), periods: v[13], throttled: v[14],
                pressure_usec: v[15], quota: Some(MilliCpu(u32::try_from(v[1] >> 32).unwrap())),
                online: u32::try_from(v[2] >> 32).unwrap(), loads_milli: Some((u32::MAX, 0)),
            };
            policy.handle(Event::Read(Reading { memory, cpu }), now);
            for (action, _) in policy.next(now).start {
                policy.handle(Event::Started(action), now);
                if let Action::Ask(ask) = action {
                    prop_assert!(ask.want.fits_in(Tuning::default().most));
                }
            }
            now += Duration::from_micros(v[0] % 3_000_000);
        }
    }
}
