//! Lines and messages, without any IO.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::Event;

/// The longest line that is taken; the longest real ones are a tenth of it.
pub const LINE_LIMIT: usize = 1 << 20;

/// What cannot be understood; the connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A line without end.
    #[error("a line is longer than {LINE_LIMIT} bytes")]
    TooLong,
    /// Not JSON, or not a message.
    #[error("read a message")]
    Malformed {
        /// The cause.
        source: serde_json::Error,
    },
    /// JSON that is none of greeting, answer or event.
    #[error("a message is neither a greeting, nor an answer, nor an event")]
    Unknown,
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// Up to here the buffer holds no line end.
    searched: usize,
}

impl Lines {
    /// Takes bytes as they arrive.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line without its end; nothing when more bytes are needed. Empty lines are skipped.
    ///
    /// # Errors
    /// When a line, whole or not, is longer than [`LINE_LIMIT`].
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        loop {
            let Some(found) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n')
            else {
                self.searched = self.buffer.len();
                return if self.searched > LINE_LIMIT { Err(WireError::TooLong) } else { Ok(None) };
            };
            let end = self.searched + found;
            if end > LINE_LIMIT {
                return Err(WireError::TooLong);
            }
            let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
            self.searched = 0;
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if !line.is_empty() {
                return Ok(Some(line));
            }
        }
    }
}

/// QEMU's answer to a command that it refused.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// Mostly `GenericError`.
    pub class: String,
    /// For humans.
    pub desc: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.desc, self.class)
    }
}

/// One message from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first one of a connection.
    Greeting,
    /// The end of a command; without an id when QEMU could not read the command.
    Answer {
        /// The command's id.
        id: Option<u64>,
        /// What it returned.
        result: Result<Value, Refusal>,
    },
    /// Something happened.
    Event(Event),
}

/// All keys that a message may have; others are ignored.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    /// A value of `null` is a value.
    #[serde(rename = "return", default, deserialize_with = "present")]
    returned: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    data: Option<Value>,
    id: Option<u64>,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Message {
    /// Reads one line.
    ///
    /// # Errors
    /// When it is not JSON, or no message.
    pub fn parse(line: &[u8]) -> Result<Self, WireError> {
        let raw: Raw =
            serde_json::from_slice(line).map_err(|source| WireError::Malformed { source })?;
        match raw {
            Raw { event: Some(name), data, .. } => {
                Ok(Self::Event(Event { name, data: data.unwrap_or(Value::Null) }))
            }
            Raw { returned: Some(value), id, .. } => Ok(Self::Answer { id, result: Ok(value) }),
            Raw { error: Some(refusal), id, .. } => Ok(Self::Answer { id, result: Err(refusal) }),
            Raw { greeting: Some(_), .. } => Ok(Self::Greeting),
            _ => Err(WireError::Unknown),
        }
    }
}

#[derive(Serialize)]
struct Request<'a, A> {
    execute: &'a str,
    arguments: A,
    id: u64,
}

/// One command as a line.
///
/// # Errors
/// When the arguments cannot be written as JSON.
pub fn request<A: Serialize>(
    name: &str,
    arguments: A,
    id: u64,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(&Request { execute: name, arguments, id })?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn messages() {
        let answer = |id, value| Message::Answer { id, result: Ok(value) };
        for (line, message) in [
            (r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#, Message::Greeting),
            (r#"{"return": {}, "id": 7}"#, answer(Some(7), json!({}))),
            (r#"{"return": null, "id": 7}"#, answer(Some(7), Value::Null)),
            (
                r#"{"return": [1], "id": 18446744073709551615, "new": 1}"#,
                answer(Some(u64::MAX), json!([1])),
            ),
            (
                r#"{"id": 1, "error": {"class": "GenericError", "desc": "no"}}"#,
                Message::Answer {
                    id: Some(1),
                    result: Err(Refusal { class: "GenericError".into(), desc: "no".into() }),
                },
            ),
            (
                r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#,
                Message::Event(Event { name: "STOP".into(), data: Value::Null }),
            ),
            (
                r#"{"event": "BRAND_NEW", "data": {"x": [1, {}]}}"#,
                Message::Event(Event { name: "BRAND_NEW".into(), data: json!({"x": [1, {}]}) }),
            ),
        ] {
            assert_eq!(Message::parse(line.as_bytes()).unwrap(), message, "{line}");
        }
    }

    #[test]
    fn junk() {
        for line in
            ["", "x", "[]", "{}", "3", r#"{"id": 3}"#, r#"{"return": {}, "id": "x"}"#, "\u{0}"]
        {
            assert!(Message::parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn a_line_has_a_limit() {
        let mut lines = Lines::default();
        lines.push(&vec![b' '; LINE_LIMIT]);
        assert!(matches!(lines.next_line(), Ok(None)));
        lines.push(b" ");
        assert!(matches!(lines.next_line(), Err(WireError::TooLong)));

        let mut lines = Lines::default();
        lines.push(&vec![b' '; LINE_LIMIT + 1]);
        lines.push(b"\n");
        assert!(matches!(lines.next_line(), Err(WireError::TooLong)));
    }

    #[test]
    fn a_request_is_one_line() {
        let line = request("qom-get", json!({"path": "/a\nb"}), 3).unwrap();
        let text = String::from_utf8(line).unwrap();
        assert_eq!(
            text,
            "{\"execute\":\"qom-get\",\"arguments\":{\"path\":\"/a\\nb\"},\"id\":3}\n"
        );
    }

    proptest! {
        /// However a stream is cut into pieces, the same lines come out.
        #[test]
        fn pieces_do_not_matter(text in "[a-c\r\n]{0,60}", cuts in proptest::collection::vec(1usize..7, 0..60)) {
            let whole: Vec<Vec<u8>> = text
                .split_inclusive('\n')
                .filter_map(|line| line.strip_suffix('\n'))
                .map(|line| line.strip_suffix('\r').unwrap_or(line).as_bytes().to_vec())
                .filter(|line| !line.is_empty())
                .collect();
            let mut lines = Lines::default();
            let mut found = Vec::new();
            let mut rest = text.as_bytes();
            let mut cuts = cuts.into_iter();
            while !rest.is_empty() {
                let (piece, tail) = rest.split_at(cuts.next().unwrap_or(rest.len()).min(rest.len()));
                lines.push(piece);
                rest = tail;
                while let Some(line) = lines.next_line().unwrap() {
                    found.push(line);
                }
            }
            prop_assert_eq!(found, whole);
        }

        /// Nothing that QEMU could send makes the parser panic.
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::parse(&bytes);
        }
    }
}
