//! YAML of generated manifests: keys sorted, long text in block form, the same bytes every time.
//! (A general serialiser would follow the order of the JSON map, which depends on what else is built.)

use std::fmt::Write as _;

use serde_json::Value;

/// A stream of documents below a heading.
pub(crate) fn documents(heading: &str, documents: &[Value]) -> String {
    let mut out = String::new();
    for line in heading.lines() {
        let _ = writeln!(out, "# {line}");
    }
    for document in documents {
        out.push_str("---\n");
        block(&mut out, document, 0);
    }
    out
}

/// Writes a value that starts on a line of its own.
fn block(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            for key in keys {
                let _ = write!(out, "{:indent$}{}:", "", scalar_text(key));
                after_key(out, &map[key], indent);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                block(&mut inner, item, indent + 2);
                let _ = write!(out, "{:indent$}- ", "");
                out.push_str(inner.trim_start_matches(' '));
            }
        }
        leaf => {
            let _ = writeln!(out, "{:indent$}{}", "", scalar(leaf));
        }
    }
}

/// Writes a value behind `key:`.
fn after_key(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            block(out, value, indent + 2);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            block(out, value, indent);
        }
        Value::String(text) if text.contains('\n') => {
            out.push_str(" |-\n");
            for line in text.lines() {
                let _ = writeln!(out, "{:indent$}  {line}", "");
            }
        }
        leaf => {
            let _ = writeln!(out, " {}", scalar(leaf));
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => scalar_text(text),
        other => other.to_string(),
    }
}

/// Plain where no reader can mistake it, else quoted as in JSON, which YAML includes.
fn scalar_text(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/.-_ ".contains(c);
    let words = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic());
    if starts
        && !text.ends_with(' ')
        && text.chars().all(plain)
        && !words.contains(&text.to_ascii_lowercase().as_str())
    {
        text.to_owned()
    } else {
        Value::String(text.to_owned()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_reads_back_the_same() {
        let value = json!({
            "empty": {}, "none": [], "word": "true", "number": "12", "float": 0.5, "nothing": null,
            "lines": "first\n  second\nthird", "odd": "a: b # c", "dash": "- x", "space": " x ",
            "list": [{ "b": 1, "a": [1, [2, 3], {"c": "d"}] }, "text", []], "q": "\"'\\",
            "unicode": "ä", "blank": "", "key with: colon": 1,
        });
        let text = documents("one\ntwo", std::slice::from_ref(&value));
        let back: Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(back, value, "{text}");
    }
}
