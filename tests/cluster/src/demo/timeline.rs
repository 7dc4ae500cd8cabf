//! The way of one growth through the system, hop by hop, from the parts' own logs.

use guest_units::Bytes;

use super::logs::{Event, Kind, Part};
use super::recording::{At, Recording, Stage};

/// From the permit to the guest's word it takes no longer, or it is another growth's.
const LONGEST: f64 = 20.0;

/// One hop: what happened, and when after the guest's demand.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hop {
    pub(crate) kind: Kind,
    pub(crate) part: Part,
    pub(crate) at: At,
    pub(crate) ms: f64,
}

/// A growth of memory from the guest's demand to its confirmation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Growth {
    pub(crate) from: Option<Bytes>,
    pub(crate) to: Bytes,
    pub(crate) hops: Vec<Hop>,
}

impl Growth {
    /// Milliseconds from the demand to the last hop.
    pub(crate) fn total_ms(&self) -> f64 {
        self.hops.last().map_or(0.0, |hop| hop.ms)
    }
}

/// All growths of memory that can be followed from end to end.
pub(crate) fn growths(events: &[Event]) -> Vec<Growth> {
    let permits = events.iter().filter(|event| event.kind == Kind::PermitAsked);
    permits.filter_map(|permit| follow(events, permit)).collect()
}

/// The growth to show: the first one that begins in the memory-heavy stage, else the first one at all.
pub(crate) fn chosen(recording: &Recording) -> Option<Growth> {
    let all = growths(&recording.events);
    let stage = recording.phase(Stage::MemoryHeavy);
    let within = |growth: &&Growth| stage.is_some_and(|stage| growth.hops[0].at >= stage.begun);
    all.iter().find(within).or_else(|| all.first()).cloned()
}

/// The memory that was confirmed, or given by a patch, last before a moment.
fn before(events: &[Event], at: At) -> Option<Bytes> {
    let told = |event: &&Event| {
        matches!(event.kind, Kind::GuestConfirmed | Kind::PlugDone) && event.memory.is_some()
    };
    events.iter().filter(|event| event.at < at).rfind(told)?.memory
}

fn follow(events: &[Event], permit: &Event) -> Option<Growth> {
    let from = before(events, permit.at);
    let want = permit.memory?;
    if from.is_some_and(|from| want <= from) {
        return None;
    }
    let floor = from.unwrap_or_default();
    let demand = events
        .iter()
        .find(|event| event.kind == Kind::Demanded && event.generation == permit.generation)?;
    let same = |kind, after: At, generation: u64| {
        next(events, kind, after, |event| event.generation == generation)
    };
    let more = |event: &Event| event.memory.is_some_and(|memory| memory > floor);
    let decided = same(Kind::PermitDecided, permit.at, permit.generation)?;
    let answered = same(Kind::PermitAnswered, permit.at, permit.generation)?;
    // The controller may see the patch before the agent has its answer: both follow the permit.
    let patched = next(events, Kind::VmPatched, answered.at, more)?;
    let sent = next(events, Kind::OrderSent, answered.at, more)?;
    let started = same(Kind::PlugStarted, sent.at, sent.generation)?;
    let done = next(events, Kind::PlugDone, started.at, |event| {
        event.generation == sent.generation && more(event)
    })?;
    let ordered = same(Kind::OrderDone, done.at, sent.generation)?;
    let confirmed = next(events, Kind::GuestConfirmed, done.at, more)?;
    let way = [demand, permit, decided, answered, patched, sent, started, done, ordered, confirmed];
    if confirmed.at.since(demand.at) > LONGEST {
        return None;
    }
    let mut hops: Vec<Hop> = way
        .iter()
        .map(|event| Hop {
            kind: event.kind,
            part: event.part,
            at: event.at,
            ms: event.at.since(demand.at) * 1000.0,
        })
        .collect();
    hops.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    Some(Growth { from, to: done.memory?, hops })
}

/// The first event of a kind, not before a moment, that suits.
fn next(events: &[Event], kind: Kind, after: At, suits: impl Fn(&Event) -> bool) -> Option<&Event> {
    events.iter().find(|event| event.kind == kind && event.at >= after && suits(event))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The events of one growth from 512 to 768 MiB that begins at a moment.
    pub(crate) fn one_growth(begin: f64) -> Vec<Event> {
        let event = |ms: f64, part, kind, generation, mib| Event {
            at: At(begin + ms / 1000.0),
            part,
            kind,
            generation,
            memory: Some(Bytes::from_mib(mib)),
        };
        vec![
            event(-900.0, Part::Agent, Kind::GuestConfirmed, 3, 512),
            event(0.0, Part::Agent, Kind::Demanded, 4, 768),
            event(2.0, Part::Agent, Kind::PermitAsked, 4, 768),
            event(61.0, Part::Scheduler, Kind::PermitDecided, 4, 768),
            event(63.0, Part::Agent, Kind::PermitAnswered, 4, 768),
            event(80.0, Part::Controller, Kind::OrderSent, 12, 768),
            event(82.0, Part::Agent, Kind::VmPatched, 5, 768),
            event(90.0, Part::Runner, Kind::PlugStarted, 12, 768),
            event(130.0, Part::Runner, Kind::PlugDone, 12, 768),
            event(135.0, Part::Controller, Kind::OrderDone, 12, 768),
            event(170.0, Part::Agent, Kind::GuestConfirmed, 6, 768),
        ]
    }

    #[test]
    fn a_growth_is_followed_from_the_demand_to_the_guests_word() {
        let growths = growths(&one_growth(1000.0));
        assert_eq!(growths.len(), 1);
        let growth = &growths[0];
        assert_eq!((growth.from, growth.to), (Some(Bytes::from_mib(512)), Bytes::from_mib(768)));
        let ms: Vec<f64> = growth.hops.iter().map(|hop| hop.ms.round()).collect();
        assert_eq!(ms, [0.0, 2.0, 61.0, 63.0, 80.0, 82.0, 90.0, 130.0, 135.0, 170.0]);
        assert_eq!(growth.hops[4].kind, Kind::OrderSent);
        assert_eq!(growth.total_ms().round(), 170.0);
    }

    #[test]
    fn a_growth_that_misses_a_hop_is_not_told() {
        for missing in 1..one_growth(0.0).len() {
            let mut events = one_growth(1000.0);
            events.remove(missing);
            assert!(growths(&events).is_empty(), "event {missing} is not needed");
        }
    }

    #[test]
    fn a_shrink_is_no_growth() {
        let mut events = one_growth(1000.0);
        for event in &mut events[1..] {
            event.memory = Some(Bytes::from_mib(384));
        }
        assert!(growths(&events).is_empty());
    }

    #[test]
    fn the_one_under_memory_load_is_shown() {
        let mut recording = Recording { events: one_growth(1000.0), ..Recording::default() };
        let mut later = one_growth(2000.0);
        for event in &mut later {
            event.generation += 100;
            event.memory = event.memory.map(|memory| Bytes(memory.0 * 2));
        }
        recording.events.extend(later);
        assert_eq!(chosen(&recording).unwrap().hops[0].at, At(1000.0));
        recording.enter(Stage::MemoryHeavy, At(1500.0));
        assert_eq!(chosen(&recording).unwrap().hops[0].at, At(2000.0));
    }
}
