//! The Rust side of the rules, on the cases that the API server is asked about, too.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use controller_api::update::RULES;
use controller_api::validation::{rules, validate};
use controller_api::{Problem, VirtualMachineSpec};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    name: String,
    spec: Value,
    #[serde(default)]
    refused: Vec<String>,
    #[serde(default)]
    schema: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Update {
    name: String,
    before: Value,
    after: Value,
    refused: Vec<String>,
}

fn read<T: for<'de> Deserialize<'de>>(path: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path);
    serde_yaml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn minimal() -> Value {
    read::<Value>("samples/minimal.yaml")["spec"].clone()
}

fn merge(base: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *base = patch.clone();
        return;
    };
    if !base.is_object() {
        *base = Value::Object(serde_json::Map::new());
    }
    let base = base.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            base.remove(key);
        } else {
            merge(base.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn fields(problems: &[Problem]) -> Vec<&str> {
    problems.iter().map(|problem| problem.field.as_str()).collect()
}

#[test]
fn creation_rules() {
    let cases: Vec<Create> = read("cases/create.yaml");
    for case in cases.iter().filter(|case| !case.schema) {
        let mut spec = minimal();
        merge(&mut spec, &case.spec);
        let spec: VirtualMachineSpec = serde_json::from_value(spec).expect(&case.name);
        assert_eq!(fields(&validate(&spec)), case.refused, "{}", case.name);
    }
}

/// What these cases are refused for is the API server's to say; here, that they are about changes alone.
#[test]
fn update_cases_change_a_good_vm() {
    let cases: Vec<Update> = read("cases/update.yaml");
    for case in cases {
        let mut spec = minimal();
        merge(&mut spec, &case.before);
        let old: VirtualMachineSpec = serde_json::from_value(spec.clone()).unwrap();
        assert_eq!(validate(&old), [], "{}", case.name);
        merge(&mut spec, &case.after);
        let new: Result<VirtualMachineSpec, _> = serde_json::from_value(spec);
        assert!(new.is_ok(), "{}", case.name);
        let known = |field: &&String| !RULES.iter().any(|rule| rule.field == **field);
        assert_eq!(case.refused.iter().find(known), None, "{}", case.name);
    }
}

/// A rule that no case breaks is a rule that nobody knows to work.
#[test]
fn every_rule_is_broken_by_some_case() {
    let cases: Vec<Create> = read("cases/create.yaml");
    let specs: Vec<VirtualMachineSpec> = cases
        .iter()
        .filter(|case| !case.schema)
        .map(|case| {
            let mut spec = minimal();
            merge(&mut spec, &case.spec);
            serde_json::from_value(spec).unwrap()
        })
        .collect();
    for rule in rules().filter(|rule| rule.cel != "true") {
        let broken = specs.iter().any(|spec| !(rule.holds)(spec));
        assert!(broken, "no case breaks {}: {}", rule.field, rule.message);
    }
    let updates: Vec<Update> = read("cases/update.yaml");
    for rule in RULES {
        let refused = updates.iter().any(|case| case.refused.iter().any(|it| it == rule.field));
        let has_rule = ["spec.qmp", "spec.runnerPort", "spec.initScript", "spec.disks"]
            .into_iter()
            .chain(["spec.extraNetwork", "spec.tls", "spec.guest.kernelImage"])
            .chain(["spec.guest.settings"])
            .any(|field| field == rule.field); // refused already at creation
        assert!(refused || has_rule, "no case changes {}", rule.field);
    }
}

#[test]
fn problems_name_the_field() {
    let mut spec = minimal();
    merge(&mut spec, &serde_json::json!({ "guest": { "kernelImage": "k" } }));
    let spec = serde_json::from_value(spec).unwrap();
    let text = validate(&spec)[0].to_string();
    assert_eq!(text, "spec.guest.kernelImage: not supported yet: the runner's kernel is used");
}
