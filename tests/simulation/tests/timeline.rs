//! Timelines of events: what a brain does after each. The files under `timelines` are examples of the format;
//! `UPDATE_EXPECT=1` rewrites their expected output.

#![expect(clippy::unwrap_used, reason = "a failure to unwrap is a failed test")]

use std::path::Path;

use host_scaling::reference::ReferenceConfig;
use proptest::prelude::*;
use serde_json::{Value, json};
use tests_simulation::policy::PolicyName;
use tests_simulation::timeline::{Timeline, drive};

const GIB: u64 = 1 << 30;

fn size(cpu: u32, gib: f64) -> Value {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sizes of tests are small"
    )]
    let bytes = (gib * GIB as f64) as u64;
    json!({"cpuMilli": cpu, "memoryBytes": bytes})
}

fn start() -> Value {
    let limits = json!({"min": size(250, 1.0), "max": size(4000, 16.0), "slotBytes": 128 << 20});
    json!({"atMs": 0, "start": {"limits": limits, "firstGeneration": 100}})
}

/// `900/2.375`: millicores and GiB.
fn text(size: &Value) -> String {
    let gib = size["memoryBytes"].as_u64().unwrap() as f64 / GIB as f64;
    format!("{}/{gib}", size["cpuMilli"])
}

/// Time, event, each action with what it aims at, and the desired size.
fn short(answer: &str) -> String {
    let answer: Value = serde_json::from_str(answer).unwrap();
    let mut words = vec![answer["atMs"].to_string(), answer["event"].as_str().unwrap().to_owned()];
    for act in answer["actions"].as_array().unwrap() {
        let aim = ["want", "size", "to", "plugged"].iter().find_map(|field| act.get(*field));
        let (name, why) = (act["action"].as_str().unwrap(), act["why"].as_str().unwrap());
        words.push(format!("{name} {} {why} {};", act["generation"], text(aim.unwrap())));
    }
    words.push(format!("-> {}", text(&answer["desired"])));
    words.join(" ")
}

/// Feeds the lines after the usual beginning: a VM at rest, whose guest is connected and knows what it has.
fn after_rest(policy: PolicyName, rest: &Value, lines: &[Value]) -> Vec<String> {
    let mut timeline = Timeline::new(policy, ReferenceConfig::default());
    for line in [
        start(),
        json!({"atMs": 0, "vm": {"spec": rest, "approved": rest, "plugged": rest}}),
        json!({"atMs": 0, "guestConnected": {}}),
        json!({"atMs": 0, "permitAnswered": {"generation": 100, "permit": rest}}),
        json!({"atMs": 0, "guestTold": {"generation": 101}}),
        json!({"atMs": 0, "patched": {"generation": 102}}),
        json!({"atMs": 2000, "tick": {}}),
    ] {
        timeline.line(&line.to_string()).unwrap();
    }
    lines
        .iter()
        .flat_map(|line| timeline.line(&line.to_string()).unwrap())
        .map(|it| short(&it))
        .collect()
}

fn demand(at: u64, cpu: u32, gib: f64) -> Value {
    json!({"atMs": at, "sample": {"demand": size(cpu, gib), "used": size(cpu, gib)}})
}

fn loads(at: u64, load: f64, gib: f64) -> Value {
    let system = json!({"loadAverage1Min": load, "loadAverage5Min": load,
        "memoryUsageBytes": size(0, gib)["memoryBytes"], "memoryCachedBytes": 0});
    json!({"atMs": at, "sample": {"demand": size(0, 0.0), "used": size(0, 0.0), "system": system}})
}

fn answered(at: u64, generation: u64, permit: &Value) -> Value {
    json!({"atMs": at, "permitAnswered": {"generation": generation, "permit": permit, "reason": "r"}})
}

fn of(at: u64, event: &str, generation: u64) -> Value {
    json!({"atMs": at, event: {"generation": generation}})
}

#[test]
fn growth_is_asked_for_and_written() {
    let lines =
        [demand(3000, 900, 2.0), answered(3010, 103, &size(1250, 2.375)), of(3020, "patched", 104)];
    assert_eq!(
        after_rest(PolicyName::Headroom, &size(250, 1.0), &lines),
        [
            "3000 sample askPermit 103 grow 1250/2.375; -> 1250/2.375",
            "3010 permitAnswered patchVm 104 permit_unused 1250/2.375; -> 1250/2.375",
            "3020 patched -> 1250/2.375",
        ]
    );
}

#[test]
fn a_denied_wish_is_repeated_by_itself_and_a_part_of_it_is_used() {
    let lines = [
        demand(3000, 900, 2.0),
        answered(3010, 103, &size(250, 1.0)),
        answered(5020, 104, &size(500, 1.5)),
        of(5030, "patched", 105),
        json!({"atMs": 7021, "tick": {}}),
    ];
    assert_eq!(
        after_rest(PolicyName::Headroom, &size(250, 1.0), &lines),
        [
            "3000 sample askPermit 103 grow 1250/2.375; -> 1250/2.375",
            "3010 permitAnswered -> 1250/2.375",
            "5010 tick askPermit 104 grow 1250/2.375; -> 1250/2.375",
            "5020 permitAnswered patchVm 105 permit_unused 500/1.5; -> 1250/2.375",
            "5030 patched -> 1250/2.375",
            "7020 tick askPermit 106 grow 1250/2.375; -> 1250/2.375",
            "7021 tick -> 1250/2.375",
        ]
    );
}

#[test]
fn a_veto_binds_for_five_seconds() {
    let mut lines: Vec<_> = (2..=17).map(|second| demand(second * 1000, 100, 0.5)).collect();
    let veto = json!({"generation": 104, "least": size(1000, 4.0)});
    lines.push(json!({"atMs": 17_010, "guestVeto": veto}));
    lines.extend((18..=22).map(|second| demand(second * 1000, 100, 0.5)));
    lines.push(json!({"atMs": 22_010, "tick": {}}));
    let found = after_rest(PolicyName::Headroom, &size(1000, 4.0), &lines);
    let asked: Vec<_> = found.iter().filter(|line| line.contains("askGuest")).collect();
    // CPU is calm after 15 seconds, and memory after 20. The statement of the 15th second has a generation, too.
    assert_eq!(asked[0], "17000 sample askGuest 104 plan_shrink 500/4; -> 500/4");
    assert!(found.iter().any(|line| line == "17010 guestVeto -> 1000/4"), "{found:?}");
    assert!(found.iter().any(|line| line == "22000 sample -> 1000/4"), "{found:?}");
    assert_eq!(asked[1], "22010 tick askGuest 105 plan_shrink 500/2.25; -> 500/2.25");
    assert_eq!(asked.len(), 2);
}

#[test]
fn the_reference_shrinks_by_one_unit_for_each_round_trip() {
    let lines = [
        loads(3000, 0.1, 0.25),
        of(3010, "guestFine", 103),
        of(3020, "patched", 104),
        json!({"atMs": 3300, "vm": {"spec": size(500, 2.0), "approved": size(750, 3.0), "plugged": size(500, 2.0)}}),
        of(3310, "guestTold", 106),
        answered(3310, 105, &size(500, 2.0)),
        of(3320, "patched", 107),
    ];
    assert_eq!(
        after_rest(PolicyName::Reference, &size(750, 3.0), &lines),
        [
            "3000 sample askGuest 103 plan_shrink 500/2; -> 250/1",
            "3010 guestFine patchVm 104 guest_agreed 500/2; -> 250/1",
            "3020 patched -> 250/1",
            "3300 vm askPermit 105 return 500/2; tellGuest 106 plugged 500/2; -> 250/1",
            "3310 guestTold askGuest 107 plan_shrink 250/1; -> 250/1",
            "3310 permitAnswered patchVm 108 approval 500/2; -> 250/1",
            "3320 patched -> 250/1",
        ]
    );
}

#[test]
fn what_the_guest_asks_the_reference_for_counts_for_ten_seconds() {
    let ask = json!({"atMs": 4000, "guestAsks": {"want": size(0, 1.5)}});
    let lines = [
        loads(3000, 0.1, 0.25),
        ask,
        answered(4010, 103, &size(500, 2.0)),
        loads(13_999, 0.1, 0.25),
        json!({"atMs": 14_001, "tick": {}}),
    ];
    let found = after_rest(PolicyName::Reference, &size(250, 1.0), &lines);
    let ends = ["4000 guestAsks", "13999 sample", "14000 tick", "14001 tick"].map(|from| {
        let line = found.iter().find(|line| line.starts_with(from));
        line.unwrap_or_else(|| panic!("{from}: {found:?}")).rsplit(' ').next().unwrap().to_owned()
    });
    assert_eq!(ends, ["500/2", "500/2", "250/1", "250/1"]);
}

#[test]
fn what_is_wrong_is_said_once_with_line_and_field_and_nothing_follows() {
    let beginning = start();
    let vm = json!({"spec": size(250, 1.0), "plugged": size(250, 1.0)});
    let vm = json!({"atMs": 5, "vm": vm}).to_string();
    for (line, error) in [
        (r#"{"atMs":4,"tick":{}}"#, "line 3: atMs: 4 is before 5"),
        (r#"{"atMs":-4,"tick":{}}"#, "line 3: atMs: invalid value: integer `-4`"),
        (r#"{"atMs":99007199254740993,"tick":{}}"#, "line 3: atMs: 99007199254740993 is above"),
        (r#"{"tick":{}}"#, "line 3: missing field `atMs`"),
        (r#"{"atMs":9}"#, "line 3: an event is missing beside atMs"),
        (r#"{"atMs":9,"tick":{},"newest":{"generation":1}}"#, "line 3: tick: newest is there"),
        (r#"{"atMs":9,"tick":{"x":1}}"#, "line 3: tick.x: unknown field `x`"),
        (r#"{"atMs":9,"tock":{}}"#, "line 3: tock: unknown field `tock`"),
        (r#"{"atMs":9,"tick":{},"tick":{}}"#, "line 3: duplicate field `tick`"),
        (r#"{"atMs":9,"newest":{"generation":1e30}}"#, "line 3: newest.generation: invalid type"),
        (r#"{"atMs":9,"vm":{"spec":{"cpuMilli":4294967296"#, "line 3: vm.spec.cpuMilli: invalid"),
        (r#"{"atMs":9,"vm":{"spec":{"cpuMilli":4"#, "line 3: vm.spec: EOF while parsing"),
        (&beginning.to_string().replace("\"atMs\":0", "\"atMs\":9"), "line 3: start: only the"),
        (&loads(9, -0.1, 0.0).to_string(), "line 3: sample.system.loadAverage1Min: -0.1 is not"),
    ] {
        let input = format!("{beginning}\n{vm}\n{line}\n{vm}\n");
        let mut output = Vec::new();
        let mut timeline = Timeline::new(PolicyName::Headroom, ReferenceConfig::default());
        let found = drive(&mut timeline, input.as_bytes(), &mut output).unwrap_err().to_string();
        assert!(found.starts_with(error) && !found.contains('\n'), "{line}: {found}");
        assert_eq!(String::from_utf8(output).unwrap().lines().count(), 2, "{line}");
    }
}

#[test]
fn without_a_start_there_is_no_brain() {
    for (input, error) in [
        ("", "line 1: start: is missing"),
        ("\n\n", "line 3: start: is missing"),
        (r#"{"atMs":0,"tick":{}}"#, "line 1: start: must come first"),
    ] {
        let mut timeline = Timeline::new(PolicyName::Headroom, ReferenceConfig::default());
        let found = drive(&mut timeline, input.as_bytes(), Vec::new()).unwrap_err();
        assert_eq!(found.to_string(), error);
    }
}

#[test]
fn examples() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/timelines");
    for (name, policy) in
        [("headroom-grows", PolicyName::Headroom), ("reference-shrinks", PolicyName::Reference)]
    {
        let input = std::fs::read_to_string(folder.join(format!("{name}.jsonl"))).unwrap();
        let mut output = Vec::new();
        let mut timeline = Timeline::new(policy, ReferenceConfig::default());
        drive(&mut timeline, input.as_bytes(), &mut output).unwrap();
        let (found, path) =
            (String::from_utf8(output).unwrap(), folder.join(format!("{name}.expected.jsonl")));
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&path, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == expected, "{} differs; found:\n{found}", path.display());
    }
}

fn sizes() -> impl Strategy<Value = Value> {
    let memory = prop_oneof![0..16 * GIB, any::<u64>()];
    (any::<u32>(), memory).prop_map(|(cpu, bytes)| json!({"cpuMilli": cpu, "memoryBytes": bytes}))
}

fn events() -> impl Strategy<Value = Value> {
    let generation = 100u64..140;
    prop_oneof![
        (sizes(), sizes())
            .prop_map(|(a, b)| json!({"vm": {"spec": a, "approved": a, "plugged": b}})),
        sizes().prop_map(|a| json!({"sample": {"demand": a, "used": a, "system": {
            "loadAverage1Min": 7, "loadAverage5Min": 1e5, "memoryUsageBytes": a["memoryBytes"],
            "memoryCachedBytes": 1}}})),
        sizes().prop_map(|a| json!({"guestAsks": {"want": a}})),
        Just(json!({"guestConnected": {}})),
        (generation.clone(), sizes())
            .prop_map(|(it, a)| json!({"permitAnswered": {"generation": it, "permit": a}})),
        (generation.clone(), sizes())
            .prop_map(|(it, a)| json!({"guestVeto": {"generation": it, "least": a}})),
        (
            generation,
            prop::sample::select(vec!["patched", "guestFine", "guestTold", "permitFailed"])
        )
            .prop_map(|(it, name)| json!({name: {"generation": it}})),
    ]
}

proptest! {
    /// Whatever is in range is taken: the brain answers every line, and its own wake-ups end.
    #[test]
    fn every_line_in_range_has_its_answer(
        events in prop::collection::vec((0u64..30_000, events()), 1..60),
        reference: bool,
    ) {
        let policy = PolicyName::ALL[usize::from(reference)];
        let mut timeline = Timeline::new(policy, ReferenceConfig::default());
        timeline.line(&start().to_string()).unwrap();
        let mut clock = 0;
        for (pause, mut event) in events {
            clock += pause;
            event["atMs"] = json!(clock);
            let answers = timeline.line(&event.to_string()).unwrap();
            let last: Value = serde_json::from_str(answers.last().unwrap()).unwrap();
            prop_assert_eq!(&last["atMs"], &json!(clock));
            prop_assert!(answers.len() < 20);
        }
    }
}
