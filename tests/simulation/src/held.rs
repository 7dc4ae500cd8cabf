//! The memory that a workload really holds: it follows the wish, but only as fast as a CPU touches memory, and not beyond what
//! there is.
//!
//! ```text
//!   following   held = wish; a wish that falls is followed at once, for freeing costs next to nothing
//!   catching    held < wish; held rises at the touch speed until it meets the wish
//!   down        killed: nothing is held for [`RESTART`], then it catches up from zero
//! ```
//!
//! A kill happens at the first nanosecond at which held memory would be more than what is available. While the wish stays
//! above that, the workload is killed once in every cycle of restart and rise, as a service under a supervisor is.
//!
//! All changes come at whole nanoseconds that follow from the inputs alone, so that looking often or seldom gives the same.
//! Of what happens at one nanosecond, more memory or another load comes before a kill, unless that was already looked at.
//! Touching takes no CPU from the rest of the workload, and its speed follows the CPU wished, not the CPU granted: memory
//! grows at least as fast here as in a VM that is short of CPU.

use std::time::Duration;

use guest_units::{Bytes, Moment};

use crate::line::{Line, moment, nanos};
use crate::load::Load;

/// How long a killed workload takes until it runs again.
pub const RESTART: Duration = Duration::from_secs(5);

/// How fast a workload takes memory into use, per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// With each core that the load keeps busy; a core that is busy in part counts as one.
    pub per_core: Bytes,
    /// At most, with however many cores.
    pub most: Bytes,
}

/// A core that also computes; and what one core reaches that does nothing but touch new memory, which is where the memory
/// bus is the bound in a VM (4.2 GiB/s, measured for virtio-mem under KVM).
impl Default for Touch {
    fn default() -> Self {
        Self { per_core: Bytes::from_gib(1), most: Bytes::from_gib(4) }
    }
}

/// OOM kills since the last call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use = "kills are told once"]
pub struct Kills(pub u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Following,
    Catching,
    /// `held.at` is the restart.
    Down,
}

/// The memory that one workload holds. Moments never go back from call to call.
#[derive(Debug, Clone)]
pub struct Held {
    touch: Touch,
    wish: Line,
    /// While it does not follow the wish.
    held: Line,
    speed: i64,
    available: u64,
    phase: Phase,
}

impl Held {
    /// A workload that wishes nothing yet, in a VM with no memory for it.
    #[must_use]
    pub fn new(touch: Touch) -> Self {
        let nothing = Line { at: 0, value: 0, slope: 0 };
        let phase = Phase::Following;
        Self { touch, wish: nothing, held: nothing, speed: 0, available: 0, phase }
    }

    /// A workload that has run for long: it holds what it wishes. Where that does not fit it has just begun, and holds nothing.
    #[must_use]
    pub fn running(touch: Touch, load: &Load, available: Bytes) -> Self {
        let wish = Line::wished(load);
        let mut held = Self { wish, available: available.0, ..Self::new(touch) };
        held.speed = held.speed_with(load);
        let fits = wish.value <= available.0;
        held.settle(wish.at, if fits { wish.value } else { 0 });
        held
    }

    /// How fast it takes memory into use, in bytes a second.
    fn speed_with(&self, load: &Load) -> i64 {
        let cores = u64::from(load.cpu.whole_up().max(1));
        let speed = self.touch.per_core.saturating_mul(cores).min(self.touch.most);
        i64::try_from(speed.0).unwrap_or(i64::MAX)
    }

    /// The wish becomes `load`, which has begun by `now`. Tells the kills before `now`: the wish before does not kill then.
    pub fn wish(&mut self, load: &Load, now: Moment) -> Kills {
        let kills = self.pass(nanos(now), false);
        let held = self.at(now).0;
        self.speed = self.speed_with(load);
        self.wish = Line::wished(load);
        if self.phase != Phase::Down {
            self.settle(nanos(now), held);
        }
        kills
    }

    /// From `now` on the VM has so much for the workload. Tells the kills before `now`, with the one that less memory may
    /// bring; where memory would just have been too little at `now`, more comes in time.
    pub fn available(&mut self, bytes: Bytes, now: Moment) -> Kills {
        let Kills(mut kills) = self.pass(nanos(now), false);
        let less = bytes.0 < self.available;
        self.available = bytes.0;
        if less && self.at(now) > bytes {
            self.kill(nanos(now));
            kills = kills.saturating_add(1);
        }
        Kills(kills)
    }

    /// Time passes until `now`, that moment included.
    pub fn advance(&mut self, now: Moment) -> Kills {
        self.pass(nanos(now), true)
    }

    fn pass(&mut self, now: u64, kill_now: bool) -> Kills {
        let mut kills = 0_u32;
        while let Some((at, phase)) = self.next_phase().filter(|(at, _)| *at <= now) {
            match phase {
                Phase::Following => self.phase = Phase::Following,
                Phase::Catching => self.settle(at, 0),
                Phase::Down if at == now && !kill_now => break,
                Phase::Down => {
                    self.kill(at);
                    kills = kills.saturating_add(1);
                }
            }
        }
        Kills(kills)
    }

    /// What is held, for a moment up to the next change. At the change itself it is the value just before, until `advance`
    /// is called.
    #[must_use]
    pub fn at(&self, now: Moment) -> Bytes {
        Bytes(match self.phase {
            Phase::Following => self.wish.value_at(nanos(now)),
            Phase::Catching => self.held.value_at(nanos(now)),
            Phase::Down => 0,
        })
    }

    /// How that changes with each second, in bytes.
    #[must_use]
    pub fn per_second(&self, now: Moment) -> i64 {
        match self.phase {
            Phase::Following if self.wish.slope < 0 && self.at(now).is_zero() => 0,
            Phase::Following => self.wish.slope,
            Phase::Catching => self.speed,
            Phase::Down => 0,
        }
    }

    /// It was killed, and does not run yet.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.phase == Phase::Down
    }

    /// The next moment at which the held or the wished memory bends or jumps without any call but `advance`: after `now`, to
    /// which it was advanced last.
    #[must_use]
    pub fn next_change(&self, now: Moment) -> Option<Moment> {
        // A falling wish ends at zero.
        let bottom = if self.wish.slope < 0 { self.wish.first_at_most(0) } else { None };
        let bottom = bottom.filter(|at| *at > nanos(now));
        let phase = self.next_phase().map(|(at, _)| at);
        [bottom, phase].into_iter().flatten().min().map(moment)
    }

    /// When the phase ends by itself, and the one that begins. The last moment that there is counts as never.
    fn next_phase(&self) -> Option<(u64, Phase)> {
        let next = match self.phase {
            Phase::Down => Some((self.held.at, Phase::Catching)),
            // It fits now; only a rise can change that.
            Phase::Following if self.wish.slope <= 0 => None,
            Phase::Following => self.wish.first_above(self.available).map(|at| (at, Phase::Down)),
            Phase::Catching => {
                let meets = self.held.reaches(&self.wish).map(|at| (at, Phase::Following));
                let kill = self.held.first_above(self.available).map(|at| (at, Phase::Down));
                // At the same nanosecond the wish is the smaller of the two, and may be what still fits: it goes first.
                [meets, kill].into_iter().flatten().min_by_key(|(at, _)| *at)
            }
        };
        next.filter(|(at, _)| *at < u64::MAX)
    }

    fn kill(&mut self, now: u64) {
        let pause = u64::try_from(RESTART.as_nanos()).unwrap_or(u64::MAX);
        self.held = Line { at: now.saturating_add(pause), value: 0, slope: 0 };
        self.phase = Phase::Down;
    }

    /// Goes on from `held`: what is above the wish is freed at once.
    fn settle(&mut self, now: u64, held: u64) {
        let wish = self.wish.value_at(now);
        self.held = Line { at: now, value: held.min(wish), slope: self.speed };
        // One that rises faster than touching falls behind from where it is.
        let follows = wish <= held && self.wish.slope <= self.speed;
        self.phase = if follows { Phase::Following } else { Phase::Catching };
    }
}

#[cfg(test)]
mod tests {
    use guest_units::MilliCpu;
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn load(at_millis: u64, cores: u32, memory: u64, memory_per_second: i64) -> Load {
        let (cpu, memory) = (MilliCpu::from_cpus(cores), Bytes(memory));
        Load { at: Moment::from_millis(at_millis), cpu, memory, memory_per_second }
    }

    fn millis(at: u64) -> Moment {
        Moment::from_millis(at)
    }

    #[test]
    fn a_million_of_them_are_small() {
        assert!(size_of::<Held>() <= 96, "{}", size_of::<Held>());
    }

    #[test]
    fn one_that_has_run_for_long_holds_what_it_wishes_if_that_fits() {
        let mut held = Held::running(Touch::default(), &load(0, 1, 1 << 30, 5), Bytes(2 << 30));
        assert_eq!(held.at(Moment::ZERO), Bytes(1 << 30));
        assert_eq!(held.per_second(Moment::ZERO), 5);
        assert_eq!(held.available(Bytes((1 << 30) - 1), Moment::ZERO), Kills(1));
        let tight = Held::running(Touch::default(), &load(0, 1, 1 << 30, 0), Bytes(1 << 29));
        assert_eq!(tight.at(Moment::ZERO), Bytes::ZERO);
        assert_eq!(tight.next_change(Moment::ZERO), Some(moment(500_000_001)), "the kill");
    }

    #[test]
    fn a_jump_is_followed_at_touch_speed_and_a_fall_at_once() {
        let mut held = Held::new(Touch::default());
        assert_eq!(held.available(Bytes::from_gib(8), Moment::ZERO), Kills(0));
        assert_eq!(held.wish(&load(0, 2, 4 << 30, 0), Moment::ZERO), Kills(0));
        assert_eq!(held.at(millis(500)), Bytes::from_gib(1));
        assert_eq!(held.per_second(Moment::ZERO), 2 << 30);
        assert_eq!(held.next_change(Moment::ZERO), Some(millis(2000)));
        assert_eq!(held.advance(millis(9000)), Kills(0));
        assert_eq!((held.at(millis(9000)), held.next_change(millis(9000))), (Bytes(4 << 30), None));
        assert_eq!(held.wish(&load(9000, 1, 1 << 30, -(1 << 29)), millis(9000)), Kills(0));
        assert_eq!(held.at(millis(10_000)), Bytes::from_mib(512));
        assert_eq!(held.next_change(millis(9000)), Some(millis(11_000)), "the wish ends at zero");
        assert_eq!(held.per_second(millis(11_000)), 0);
    }

    #[test]
    fn every_restart_cycle_kills_once_while_the_wish_does_not_fit() {
        let mut held = Held::new(Touch { per_core: Bytes(1000), most: Bytes(4000) });
        let _none = held.available(Bytes(999), Moment::ZERO);
        let _none = held.wish(&load(0, 1, 5000, 0), Moment::ZERO);
        // One second of rise, five of restart.
        assert_eq!(held.next_change(Moment::ZERO), Some(millis(1000)));
        assert_eq!(held.advance(millis(999)), Kills(0));
        assert_eq!(held.advance(millis(1000)), Kills(1));
        assert_eq!((held.at(millis(5000)), held.per_second(millis(5000))), (Bytes::ZERO, 0));
        assert_eq!(held.advance(millis(60_999)), Kills(9));
        assert_eq!(held.advance(millis(61_000)), Kills(1));
        assert_eq!(held.available(Bytes(5000), millis(62_000)), Kills(0), "down");
        assert_eq!(held.advance(millis(100_000)), Kills(0));
        assert_eq!(held.at(millis(100_000)), Bytes(5000));
        assert_eq!(held.available(Bytes(4999), millis(100_000)), Kills(1), "memory taken away");
    }

    #[test]
    fn more_memory_at_the_moment_of_a_kill_is_in_time() {
        for (available, kills) in [(1999, 0), (999, 1)] {
            let mut held = Held::new(Touch { per_core: Bytes(1000), most: Bytes(4000) });
            let _none = held.available(Bytes(999), Moment::ZERO);
            let _none = held.wish(&load(0, 1, 5000, 0), Moment::ZERO);
            assert_eq!(held.available(Bytes(available), millis(1000)), Kills(0));
            assert_eq!(held.advance(millis(1000)), Kills(kills));
        }
    }

    /// The same in steps of 1 ms. It takes the exact moment of a kill from the model under test, after it has found that the
    /// kill is due within the step: its own would be late by up to a step, and all that follows with it.
    struct Naive {
        held: f64,
        up_at: Option<u64>,
    }

    impl Naive {
        fn step(&mut self, end: u64, wish: f64, slope: f64, speed: f64, available: f64) -> bool {
            let mut seconds = 0.001;
            if let Some(up) = self.up_at.take_if(|up| *up <= end * 1_000_000) {
                seconds = Duration::from_nanos(end * 1_000_000 - up).as_secs_f64();
            }
            if self.up_at.is_some() {
                return false;
            }
            // Where it meets a wish that falls it is at its highest: that may lie within the step.
            let first = wish - slope * seconds;
            let until = ((first - self.held) / (speed - slope)).clamp(0.0, seconds);
            let peak = if slope < 0.0 { (self.held + speed * until).min(first) } else { 0.0 };
            self.held = (self.held + speed * seconds).min(wish);
            self.held.max(peak) > available
        }
    }

    #[derive(Debug, Clone)]
    struct Step {
        millis: u64,
        cores: u32,
        memory: u64,
        slope: i64,
        available: u64,
    }

    /// No two levels within a few bytes of each other: there the rounding of the naive model would decide.
    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (1u64..8000, 0u32..6, 0u64..64, -20i64..20, 0u64..64).prop_map(
            |(millis, cores, a, s, b)| {
                let (memory, available) = (a * 100 * MIB, b * 100 * MIB + 50 * MIB + 501);
                Step { millis, cores, memory, slope: s * 70_000_000, available }
            },
        );
        prop::collection::vec(step, 1..8)
    }

    #[test]
    fn a_peak_between_two_milliseconds_kills() {
        let mut held = Held::new(Touch::default());
        let _none = held.available(Bytes(1_520_435_701), Moment::ZERO);
        let falls = load(0, 4, 1_992_294_400, -1_330_000_000);
        assert_eq!(held.wish(&falls, Moment::ZERO), Kills(0));
        assert!(falls.memory_at(millis(355)) < Bytes(1_520_435_701));
        assert_eq!(held.advance(millis(355)), Kills(1));
    }

    proptest! {
        #[test]
        fn it_is_the_naive_model(steps in steps()) {
            let mut held = Held::new(Touch::default());
            let mut naive = Naive { held: 0.0, up_at: None };
            let mut now = 0;
            for step in &steps {
                let wish = load(now, step.cores, step.memory, step.slope);
                let _told = held.wish(&wish, millis(now));
                naive.held = naive.held.min(step.memory as f64);
                if held.available(Bytes(step.available), millis(now)) != Kills(0) {
                    prop_assert!(naive.held > step.available as f64);
                    naive = Naive { held: 0.0, up_at: Some(now * 1_000_000 + 5_000_000_000) };
                }
                let speed = (step.cores.clamp(1, 4) as f64) * (1u64 << 30) as f64;
                for end in now + 1..=now + step.millis {
                    let wished = wish.memory_at(millis(end)).0 as f64;
                    let kill = naive.step(end, wished, step.slope as f64, speed, step.available as f64);
                    let mut kills = 0;
                    // Looking at every change or only at the end gives the same.
                    let (mut look, mut seen) = (held.clone(), millis(end - 1));
                    while let Some(at) = look.next_change(seen).filter(|at| *at <= millis(end)) {
                        let Kills(more) = look.advance(at);
                        kills += more;
                        if more > 0 {
                            naive = Naive { held: 0.0, up_at: Some(nanos(at) + 5_000_000_000) };
                        }
                        seen = at;
                    }
                    prop_assert_eq!(held.advance(millis(end)), Kills(kills));
                    prop_assert_eq!(kills == 1, kill, "at {} ms", end);
                    let (exact, close) = (held.at(millis(end)).0 as f64, naive.held);
                    prop_assert!((exact - close).abs() < 100.0, "{exact} is not {close} at {end} ms");
                }
                now += step.millis;
            }
        }

        #[test]
        fn looking_often_changes_nothing(steps in steps(), looks in prop::collection::vec(1u64..3_000_000_000, 1..40)) {
            let (mut often, mut seldom) = (Held::new(Touch::default()), Held::new(Touch::default()));
            let (mut now, mut kills) = (0, (0, 0));
            for step in &steps {
                let wish = load(now, step.cores, step.memory, step.slope);
                for (held, kills) in [(&mut often, &mut kills.0), (&mut seldom, &mut kills.1)] {
                    *kills += held.wish(&wish, millis(now)).0;
                    *kills += held.available(Bytes(step.available), millis(now)).0;
                }
                let end = now + step.millis;
                let mut look = now * 1_000_000;
                for span in &looks {
                    look = (look + span).min(end * 1_000_000);
                    kills.0 += often.advance(moment(look)).0;
                    prop_assert!(often.at(moment(look)).0 <= step.available);
                    prop_assert!(often.at(moment(look)) <= wish.memory_at(moment(look)));
                    prop_assert!(often.next_change(moment(look)).is_none_or(|next| next > moment(look)));
                }
                now = end;
            }
            kills.0 += often.advance(millis(now)).0;
            kills.1 += seldom.advance(millis(now)).0;
            prop_assert_eq!(kills.0, kills.1);
            prop_assert_eq!(often.at(millis(now)), seldom.at(millis(now)));
        }
    }
}
