//! From a derived schema to the CRD that is installed: readable, without warnings from the API
//! server, and with the rules of `validation` in their places.

use serde_json::{Map, Value, json};

use crate::validation::{POLICY, Rule};

/// Longest description; the texts of embedded Kubernetes types are pages long.
const MAX_DESCRIPTION: usize = 160;

/// Tidies a CRD: no `nullable` (so that the API server drops nulls and fills in defaults), no integer
/// formats that it does not know, short descriptions, no status.
pub(crate) fn tidy(crd: &mut Value) {
    if let Some(crd) = crd.as_object_mut() {
        crd.remove("status");
    }
    if let Some(schema) = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema") {
        tidy_schema(schema);
    }
}

fn tidy_schema(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    schema.remove("nullable");
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
    let known = match schema.get("format").and_then(Value::as_str) {
        Some("uint8" | "uint16" | "uint32") => Some("int32"),
        Some("uint64") => Some("int64"),
        _ => None,
    };
    if let Some(known) = known {
        schema.insert("format".to_owned(), json!(known));
    }
    for bound in ["minimum", "maximum"] {
        // The CRD's own type knows only floating point; `512` reads better than `512.0`.
        if let Some(whole) = schema.get(bound).and_then(Value::as_f64).and_then(whole) {
            schema.insert(bound.to_owned(), whole);
        }
    }
    shorten(schema);
    for (key, value) in schema.iter_mut() {
        match key.as_str() {
            "properties" => {
                for property in value.as_object_mut().into_iter().flat_map(Map::values_mut) {
                    tidy_schema(property);
                }
            }
            "items" | "additionalProperties" => tidy_schema(value),
            _ => {}
        }
    }
}

/// A floating point number without fraction as an integer.
fn whole(number: f64) -> Option<Value> {
    format!("{number}").parse::<i64>().ok().map(Value::from)
}

/// Keeps the first sentence of a description.
fn shorten(schema: &mut Map<String, Value>) {
    let Some(text) = schema.get("description").and_then(Value::as_str) else { return };
    let line = text.lines().next().unwrap_or_default();
    let mut short = line.split_once(". ").map_or(line, |(first, _)| first).to_owned();
    if short.chars().count() > MAX_DESCRIPTION {
        short = short.chars().take(MAX_DESCRIPTION - 3).collect::<String>() + "...";
    }
    let short = short.trim_end_matches('.').to_owned();
    schema.insert("description".to_owned(), json!(short));
}

/// Puts rules into the schema of `spec`.
///
/// # Panics
/// If a rule names a field that the schema does not have: a mistake in the list, found by its test.
pub(crate) fn add_rules<'a>(crd: &mut Value, rules: impl IntoIterator<Item = &'a Rule>) {
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    for rule in rules {
        if rule.cel == "true" || rule.at == POLICY {
            continue; // only a warning, or elsewhere
        }
        let path = rule.at.split('.').filter(|step| !step.is_empty());
        let pointer = path.fold(spec.to_owned(), |path, step| format!("{path}/properties/{step}"));
        let node = crd.pointer_mut(&pointer).and_then(Value::as_object_mut);
        let node = node.expect("a rule's field is in the schema");
        // The API server names the place of the rule; the field may lie deeper.
        if rule.field.strip_prefix("spec.") == Some(rule.at) {
            add_rule(node, rule.cel, rule.message);
        } else {
            add_rule(node, rule.cel, &format!("{}: {}", rule.field, rule.message));
        }
    }
}

/// Adds one CEL rule to a schema.
pub(crate) fn add_rule(node: &mut Map<String, Value>, cel: &str, message: &str) {
    let list = node.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut() {
        list.push(json!({ "rule": cel, "message": message }));
    }
}
