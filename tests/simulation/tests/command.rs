//! The binary as users run it: what it ends with, and that bad input is told in one line before anything was done.

#![expect(clippy::unwrap_used, reason = "a failure to unwrap is a failed test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// In a folder of its own, with these files.
fn simulate(folder: &str, files: &[(&str, &str)], args: &[&str]) -> Output {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    fs::create_dir_all(&folder).unwrap();
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulate"));
    command.args(args).current_dir(folder).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// It fails with one line that has all of these, and prints nothing else.
fn refuses(output: &Output, told: &[&str]) {
    let (said, printed) = (text(&output.stderr), text(&output.stdout));
    assert_eq!((output.status.code(), printed), (Some(1), ""), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in told {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}

#[test]
fn a_search_fails_exactly_when_a_rule_is_broken_and_says_how_to_see_it_again() {
    let clean = simulate("clean", &[], &["faults", "--seeds", "0..1", "--only", "none"]);
    assert_eq!(clean.status.code(), Some(0), "{}", text(&clean.stderr));
    assert!(text(&clean.stdout).contains("no rule broken"), "{}", text(&clean.stdout));
    let bug = ["--bug", "extender-grants-nothing"];
    let broken =
        simulate("broken", &[], &[["faults", "--seeds", "0..4"].as_slice(), &bug].concat());
    assert_eq!(broken.status.code(), Some(1), "{}", text(&broken.stderr));
    let first = text(&broken.stdout).lines().next().unwrap();
    let (_, again) = first.split_once("repeat with: simulate ").unwrap();
    let again: Vec<_> = again.split(' ').collect();
    let again = simulate("again", &[], &again);
    assert_eq!(again.status.code(), Some(1), "{}", text(&again.stderr));
    assert_eq!(text(&again.stdout).lines().next(), Some(first));
}

#[test]
fn arguments_that_make_no_sense_are_told_from_failures() {
    for args in [
        ["faults", "--seeds", "5..3"].as_slice(),
        &["faults", "--seeds", "0..1", "--bug", "none-such"],
        &["fleet", "--nodes", "many"],
        &["nothing"],
    ] {
        let output = simulate("usage", &[], args);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(64), ""), "{args:?}");
    }
}

#[test]
fn a_wrong_trace_is_told_with_its_line_and_field() {
    const HEAD: &str = "timestamp,value\n2014-02-14 14:30:00,1\n2014-02-14 14:35:00,2\n";
    for (row, told) in [
        ("2014-02-14 14:40:00,much", "trace.csv:4: field `value`"),
        ("2014-02-14 14:31:00,2", "trace.csv:4: field `timestamp`"),
        ("2014-02-15 14:40:00,2", "trace.csv:4: field `timestamp`"),
    ] {
        let files = [("trace.csv", &*format!("{HEAD}{row}\n"))];
        let fleet = ["fleet", "--nodes", "1", "--vms", "1", "--hours", "1"];
        let output = simulate("trace", &files, &[&fleet[..], &["--trace", "trace.csv"]].concat());
        refuses(&output, &[told]);
    }
}

#[test]
fn a_wrong_configuration_is_told_with_all_its_fields() {
    let files = [("config.json", r#"{"loadAverageFractionTarget": 7, "none": 1}"#)];
    let args = ["timeline", "--policy", "reference", "--config", "config.json"];
    let output = simulate("config", &files, &args);
    refuses(&output, &["config.json: ", "loadAverageFractionTarget", "none"]);
    let missing = simulate("config", &[], &[&args[..4], &["missing.json"]].concat());
    refuses(&missing, &["missing.json"]);
}

#[test]
fn a_record_that_was_cut_off_is_told_with_its_line() {
    let files = [("record.jsonl", r#"{"at":"2025-01-01T00:00:00Z","seq"#)];
    let output = simulate("record", &files, &["replay", "record.jsonl"]);
    refuses(&output, &["record.jsonl", "line 1"]);
}
