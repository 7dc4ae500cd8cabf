//! JSON that people or other programs wrote: what is wrong with it is said in one line that names the field.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// The value that a text stands for; else what is wrong, with the field and the column.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|err| {
        let column = err.inner().column();
        format!("{} (column {column})", with_path(&err))
    })?;
    reader.end().map_err(|err| format!("{} (column {})", message(&err), err.column()))?;
    Ok(value)
}

/// The same of a value that was read before: there are no columns any more.
pub(crate) fn convert<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|err| with_path(&err))
}

fn with_path(err: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let message = message(err.inner());
    let path = err.path().to_string();
    // A field whose name was cut is a question mark, and the root a dot.
    match path.trim_end_matches('?').trim_matches('.') {
        "" => message,
        path => format!("{path}: {message}"),
    }
}

/// Without its place, which is told in other words.
pub(crate) fn message(err: &serde_json::Error) -> String {
    let text = err.to_string();
    let place = format!(" at line {} column {}", err.line(), err.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[expect(dead_code, reason = "only read")]
        inner: Inner,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[expect(dead_code, reason = "only read")]
        number: u32,
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, error) in [
            (
                r#"{"inner":{"number":-1}}"#,
                "inner.number: invalid value: integer `-1`, expected u32 (column 21)",
            ),
            (r#"{"inner":{}}"#, "inner: missing field `number` (column 11)"),
            (r#"{"inner":{"number":1}"#, "EOF while parsing an object (column 21)"),
            (r#"{"inner":{"num"#, "inner: EOF while parsing a string (column 14)"),
            (r#"{"inner":{"number":1}} 2"#, "trailing characters (column 24)"),
        ] {
            assert_eq!(read::<Outer>(text).unwrap_err(), error, "{text}");
        }
        let unknown = read::<Outer>(r#"{"inner":{"number":1,"other":2}}"#).unwrap_err();
        assert!(unknown.contains("inner") && unknown.contains("`other`"), "{unknown}");
        let error = convert::<Outer>(json!({"inner": {"number": "x"}})).unwrap_err();
        assert!(error.starts_with("inner.number: invalid type: string"), "{error}");
    }
}
