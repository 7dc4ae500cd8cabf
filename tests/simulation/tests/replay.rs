//! Records of real brains, replayed: the policy that made them decides the same again, and others what they would.

#![expect(clippy::unwrap_used, reason = "a failure to unwrap is a failed test")]

#[path = "../../../host/scaling/tests/world/mod.rs"]
mod world;

use std::time::Duration;

use guest_units::Size;
use host_scaling::reference::{CacheWindows, ComputeUnit, ReferenceConfig};
use host_scaling::{Event, Policy, SystemSample};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};
use tests_simulation::policy::PolicyName;
use tests_simulation::replay::{Row, read, replay};
use world::{World, limits, size};

/// The brain's decisions as the agent tells them.
fn records(world: &World) -> Vec<Value> {
    let origin: Timestamp = "2025-09-23T10:11:12Z".parse().unwrap();
    let told = world.scaler.decisions().map(|decision| {
        let mut record = serde_json::to_value(decision).unwrap();
        let at = origin + SignedDuration::try_from(decision.at.0).unwrap();
        record["at"] = json!(at.to_string());
        record
    });
    told.collect()
}

fn lines(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}

fn again(records: &[Value]) -> Vec<Row> {
    replay(read(&lines(records)).unwrap(), &PolicyName::ALL, None)
}

/// The rows whose decision under this policy is another one.
fn different(rows: &[Row], policy: PolicyName) -> Vec<String> {
    let other = |row: &&Row| {
        let again = row.again.iter().find(|(it, _)| *it == policy);
        again.and_then(|(_, again)| again.as_ref()).is_none_or(|again| !again.same)
    };
    rows.iter().filter(other).map(|row| format!("{row:#?}")).collect()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Grows, is denied a part, shrinks by steps, and is vetoed.
fn day(world: &mut World, load: impl Fn(u32) -> (Size, SystemSample)) {
    let run = |world: &mut World, part: u32, span| {
        let (demand, system) = load(part);
        world.system = Some(system);
        world.run(seconds(span), Some(demand));
    };
    run(world, 0, 5);
    run(world, 3, 3);
    world.behaviour.cap = Some(size(2000, 4096));
    run(world, 9, 8);
    world.behaviour.cap = None;
    run(world, 9, 30);
    run(world, 1, 60);
    run(world, 6, 5);
    world.behaviour.veto = Some(size(1500, 3000));
    run(world, 1, 60);
    world.behaviour.veto = None;
    run(world, 0, 60);
    world.disconnect();
    run(world, 0, 60);
    world.connect();
    run(world, 7, 60);
}

fn load(part: u32) -> (Size, SystemSample) {
    let system = SystemSample {
        load1_milli: part * 300,
        load5_milli: part * 200,
        memory_usage: guest_units::Bytes::from_mib(u64::from(part) * 500 + 200),
        memory_cached: guest_units::Bytes::from_mib(500),
    };
    (size(part * 400 + 100, u64::from(part) * 700 + 300), system)
}

fn world(policy: Policy) -> World {
    World::with(limits(size(250, 1024), size(4000, 8192), 256), policy)
}

#[test]
fn headroom_decides_the_same_again_and_the_reference_has_no_metrics() {
    let mut world = world(Policy::default());
    day(&mut world, load);
    let records = records(&world);
    let rows = again(&records);
    assert!(rows.len() > 10, "{} records", rows.len());
    assert_eq!(different(&rows, PolicyName::Headroom), [""; 0]);
    assert!(rows.iter().all(|row| row.again[1].1.is_none()));
}

#[test]
fn the_reference_decides_the_same_again_and_headroom_decides_for_itself() {
    for config in [
        ReferenceConfig::default(),
        ReferenceConfig { enable_lfc_metrics: true, ..ReferenceConfig::default() },
    ] {
        let mut world = world(Policy::reference(config, ComputeUnit::SHIPPED));
        let windows = || {
            let pages = (1..=20).map(|minute| minute * 5000);
            Event::Cache(Box::new(CacheWindows::new(pages)))
        };
        world.event(windows());
        day(&mut world, load);
        // The day has had another connection, over which they come anew.
        world.event(windows());
        world.system = Some(load(0).1);
        world.run(seconds(30), Some(size(0, 0)));
        world.event(Event::Asked(size(0, 8192)));
        world.run(seconds(30), Some(size(0, 0)));
        let records = records(&world);
        assert!(
            records.iter().any(|record| record["inputs"]["reference"]["requested"].is_object())
        );
        let rows = again(&records);
        assert!(rows.len() > 10, "{} records", rows.len());
        assert_eq!(different(&rows, PolicyName::Reference), [""; 0]);
        assert!(rows.iter().all(|row| row.again[0].1.is_some()));
    }
}

#[test]
fn records_come_as_lines_as_an_array_or_within_an_object() {
    let mut world = world(Policy::default());
    day(&mut world, load);
    let mut records = records(&world);
    let count = records.len();
    let shapes = [
        lines(&records),
        json!(records).to_string(),
        format!("{:#}", json!({"namespace": "default", "decisions": records})),
        records.iter().map(|record| format!("{record:#}\n")).collect(),
    ];
    for shape in &shapes {
        assert_eq!(read(shape).map(|found| found.len()), Ok(count), "{shape:.200}");
    }
    assert_eq!(read(&records[0].to_string()).unwrap().len(), 1);
    records.reverse();
    let rows = again(&records);
    assert!(rows.is_sorted_by_key(|row| row.record.at));
    assert_eq!(different(&rows, PolicyName::Headroom), [""; 0]);
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_place_and_field() {
    let mut world = world(Policy::reference(ReferenceConfig::default(), ComputeUnit::SHIPPED));
    day(&mut world, load);
    let records = &records(&world)[..3];
    let with = |pointer: &str, value: Value| {
        let mut records = records.to_vec();
        *records[1].pointer_mut(pointer).unwrap() = value;
        records
    };
    for (pointer, value, error) in [
        ("/at", json!("yesterday"), "at: \"yesterday\" is no time"),
        ("/at", json!(5), "at: invalid type: integer `5`"),
        ("/from/vCPUs", json!("many"), "from.vCPUs: "),
        ("/inputs/plugged", Value::Null, "inputs.plugged: invalid type: null"),
        ("/inputs/guestLive", json!("yes"), "inputs.guestLive: invalid type"),
        ("/inputs/reference/load1", Value::Null, "inputs.reference: load1, load5"),
        ("/inputs/reference/load1", json!(-1), "inputs.reference.load1: -1 is not"),
        ("/inputs/reference/unit/cpu", json!(0), "inputs.reference: unit: cpu and memory"),
        (
            "/inputs/reference/config/loadAverageFractionTarget",
            json!(0),
            "inputs.reference.config: loadAverageFractionTarget: 0 is not above 0",
        ),
        ("/attempts", json!(-1), "attempts: invalid value"),
    ] {
        let wrong = with(pointer, value);
        for (text, place) in [(lines(&wrong), "line 2"), (json!(wrong).to_string(), "record 2")] {
            let found = read(&text).unwrap_err();
            assert!(found.starts_with(&format!("{place}: {error}")), "{pointer}: {found}");
            assert!(!found.contains('\n'), "{found}");
        }
    }
    let text = lines(records);
    let cut = read(&text[..text.len() - 20]).unwrap_err();
    assert!(cut.starts_with("line 3: EOF while parsing"), "{cut}");
    for (text, error) in [
        ("", "there are no records"),
        ("[]", "there are no records"),
        ("{}", "line 1: neither a record nor an object that holds records"),
        (r#"{"error":"x"}"#, "line 1: neither a record nor an object that holds records"),
        (r#"{"a":[],"b":[]}"#, "line 1: holds several arrays, of which one may be the records"),
        ("[1]", "record 1: invalid type: integer `1`, expected struct Record"),
        ("\n\n{\"at\":\"2025-09-23T10:11:12Z\"}", "line 3: missing field `from`"),
        ("oops", "line 1: expected value (column 1)"),
    ] {
        assert_eq!(read(text).unwrap_err(), error, "{text}");
    }
}

proptest! {
    /// Clocks, peaks, vetoes, steps and partial permits are all brought back as they were.
    #[test]
    fn whatever_a_brain_decided_it_decides_again(
        parts in prop::collection::vec((0u32..10, 1u64..40, 0u32..8), 1..30),
        reference: bool,
    ) {
        let rules = Policy::reference(ReferenceConfig::default(), ComputeUnit::SHIPPED);
        let mut world = world(if reference { rules } else { Policy::default() });
        for (part, span, how) in parts {
            let (demand, system) = load(part);
            world.system = Some(system);
            match how {
                0 => world.disconnect(),
                1 => world.connect(),
                2 => world.behaviour.cap = Some(size(1500, 3072)),
                3 => world.behaviour.veto = Some(size(1500, 3000)),
                4 => world.event(Event::Asked(size(2000, 4000))),
                _ => world.behaviour = world::Behaviour::default(),
            }
            world.run(seconds(span), Some(demand));
        }
        let made = records(&world);
        prop_assume!(!made.is_empty());
        let rows = again(&made);
        let policy = PolicyName::ALL[usize::from(reference)];
        prop_assert_eq!(different(&rows, policy), [""; 0]);
    }
}
