//! A line of a timeline's input. What a number may be is checked while it is read, so that errors name the field.

use guest_units::{Bytes, MilliCpu, Moment, Size};
use host_scaling::reference::{CacheWindows, ComputeUnit};
use host_scaling::{Event, Limits, Sample, SystemSample, VmView};
use serde::Deserialize;

use super::output::Amount;

/// Largest whole number that every reader of JSON reads exactly.
const LARGEST: u64 = 1 << 53;

/// A time or a generation.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u64")]
pub(super) struct Whole(pub(super) u64);

impl TryFrom<u64> for Whole {
    type Error = String;

    fn try_from(value: u64) -> Result<Self, String> {
        if value <= LARGEST { Ok(Self(value)) } else { Err(format!("{value} is above {LARGEST}")) }
    }
}

/// A load average, in thousandths.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "f64")]
pub(crate) struct Load(pub(crate) u32);

impl TryFrom<f64> for Load {
    type Error = String;

    fn try_from(value: f64) -> Result<Self, String> {
        let milli = (value * 1000.0).round();
        if !(0.0..=f64::from(u32::MAX)).contains(&milli) {
            return Err(format!("{value} is not between 0 and {}", u32::MAX / 1000));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole, and in range"
        )]
        let milli = milli as u32;
        Ok(Self(milli))
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "RawLimits")]
pub(super) struct Bounds(pub(super) Limits);

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawLimits {
    min: Amount,
    max: Amount,
    slot_bytes: u64,
}

impl TryFrom<RawLimits> for Bounds {
    type Error = String;

    fn try_from(raw: RawLimits) -> Result<Self, String> {
        let (min, max, slot) = (Size::from(raw.min), raw.max.into(), Bytes(raw.slot_bytes));
        if slot == Bytes::ZERO {
            return Err("slotBytes must be above 0".to_owned());
        }
        if !min.fits_in(max) {
            return Err("max is below min".to_owned());
        }
        Ok(Self(Limits { min, max, slot }))
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "Amount")]
struct Unit(ComputeUnit);

impl TryFrom<Amount> for Unit {
    type Error = String;

    fn try_from(amount: Amount) -> Result<Self, String> {
        let Size { cpu, memory } = amount.into();
        if cpu == MilliCpu::ZERO || memory == Bytes::ZERO {
            return Err("cpuMilli and memoryBytes must be above 0".to_owned());
        }
        Ok(Self(ComputeUnit { cpu, memory }))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Start {
    pub(super) limits: Bounds,
    #[serde(default = "first")]
    pub(super) first_generation: Whole,
    compute_unit: Option<Unit>,
}

fn first() -> Whole {
    Whole(1)
}

impl Start {
    pub(super) fn unit(&self) -> ComputeUnit {
        self.compute_unit.map_or(ComputeUnit::SHIPPED, |Unit(unit)| unit)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vm {
    spec: Amount,
    approved: Option<Amount>,
    plugged: Amount,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Measured {
    demand: Amount,
    used: Amount,
    system: Option<System>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct System {
    #[serde(rename = "loadAverage1Min")]
    short: Load,
    #[serde(rename = "loadAverage5Min")]
    long: Load,
    #[serde(rename = "memoryUsageBytes")]
    usage: u64,
    #[serde(rename = "memoryCachedBytes")]
    cached: u64,
}

impl From<System> for SystemSample {
    fn from(System { short, long, usage, cached }: System) -> Self {
        Self {
            load1_milli: short.0,
            load5_milli: long.0,
            memory_usage: Bytes(usage),
            memory_cached: Bytes(cached),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cache {
    working_set_pages: Vec<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asks {
    want: Amount,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Permit {
    generation: Whole,
    permit: Amount,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Failed {
    generation: Whole,
    #[serde(default)]
    raced: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Veto {
    generation: Whole,
    least: Amount,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Of {
    generation: Whole,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// A line as it is written: all but one of the events are absent.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Line {
    at_ms: Whole,
    start: Option<Start>,
    limits: Option<Bounds>,
    vm: Option<Vm>,
    sample: Option<Measured>,
    cache: Option<Cache>,
    guest_asks: Option<Asks>,
    guest_connected: Option<Nothing>,
    guest_lost: Option<Nothing>,
    permit_answered: Option<Permit>,
    permit_failed: Option<Of>,
    patched: Option<Of>,
    patch_failed: Option<Failed>,
    guest_fine: Option<Of>,
    guest_veto: Option<Veto>,
    guest_told: Option<Of>,
    guest_failed: Option<Of>,
    newest: Option<Of>,
    tick: Option<Nothing>,
}

/// What a line says.
#[derive(Debug)]
pub(super) enum What {
    Start(Start),
    Event(Event),
    Tick,
}

impl Line {
    /// When, the event's name, and the event.
    pub(super) fn event(self) -> Result<(Moment, &'static str, What), String> {
        let at = Moment::from_millis(self.at_ms.0);
        let mut found = self.events();
        match (found.pop(), found.pop()) {
            (Some((name, what)), None) => Ok((at, name, what)),
            (None, _) => Err("an event is missing beside atMs".to_owned()),
            (Some((second, _)), Some((first, _))) => {
                Err(format!("{second}: {first} is there already, and a line has one event"))
            }
        }
    }

    /// Those that are there, in the order of their fields.
    fn events(self) -> Vec<(&'static str, What)> {
        fn named<T>(
            name: &'static str,
            field: Option<T>,
            event: impl FnOnce(T) -> Event,
        ) -> Option<(&'static str, What)> {
            field.map(|it| (name, What::Event(event(it))))
        }
        [
            self.start.map(|it| ("start", What::Start(it))),
            named("limits", self.limits, |Bounds(limits)| Event::Limits(limits)),
            named("vm", self.vm, |Vm { spec, approved, plugged }| {
                let approved = approved.map(Into::into);
                Event::Vm(VmView { spec: spec.into(), approved, plugged: plugged.into() })
            }),
            named("sample", self.sample, |Measured { demand, used, system }| {
                let system = system.map(Into::into);
                Event::Sample(Sample { demand: demand.into(), used: used.into(), system })
            }),
            named("cache", self.cache, |cache| {
                Event::Cache(Box::new(CacheWindows::new(cache.working_set_pages)))
            }),
            named("guestAsks", self.guest_asks, |it| Event::Asked(it.want.into())),
            named("guestConnected", self.guest_connected, |Nothing {}| Event::GuestConnected),
            named("guestLost", self.guest_lost, |Nothing {}| Event::GuestLost),
            named("permitAnswered", self.permit_answered, |it| {
                let (generation, permit) = (it.generation.0, it.permit.into());
                Event::PermitAnswered { generation, permit, reason: it.reason }
            }),
            named("permitFailed", self.permit_failed, |Of { generation: Whole(generation) }| {
                Event::PermitFailed { generation }
            }),
            named("patched", self.patched, |Of { generation: Whole(generation) }| Event::Patched {
                generation,
            }),
            named("patchFailed", self.patch_failed, |it| Event::PatchFailed {
                generation: it.generation.0,
                raced: it.raced,
            }),
            named("guestFine", self.guest_fine, |Of { generation: Whole(generation) }| {
                Event::GuestFine { generation }
            }),
            named("guestVeto", self.guest_veto, |it| Event::GuestVeto {
                generation: it.generation.0,
                least: it.least.into(),
            }),
            named("guestTold", self.guest_told, |Of { generation: Whole(generation) }| {
                Event::GuestTold { generation }
            }),
            named("guestFailed", self.guest_failed, |Of { generation: Whole(generation) }| {
                Event::GuestFailed { generation }
            }),
            named("newest", self.newest, |Of { generation: Whole(it) }| Event::Newest(it)),
            self.tick.map(|Nothing {}| ("tick", What::Tick)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
