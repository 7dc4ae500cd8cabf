//! Short texts that come from somebody who is not trusted.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// A text of at most [`Text::MAX_CHARS`] characters without control characters. Longer ones are cut,
/// wherever they come from, so it is safe to log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Text(String);

impl Text {
    /// Longest text.
    pub const MAX_CHARS: usize = 256;
    /// Longest line of [`Text::printable`].
    pub const MAX_PRINTABLE_CHARS: usize = 120;

    /// Cuts and cleans a text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        Self(text.chars().take(Self::MAX_CHARS).map(clean).collect())
    }

    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What may stand in a condition, an Event or a log: a short line of printable ASCII.
    #[must_use]
    pub fn printable(&self) -> String {
        self.0.chars().filter(|c| matches!(c, ' '..='~')).take(Self::MAX_PRINTABLE_CHARS).collect()
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_dirty_texts_are_cut_and_cleaned() {
        let json = format!("\"a\\u001b[31m\\n{}\"", "ä".repeat(1000));
        let text: Text = serde_json::from_str(&json).unwrap();
        assert_eq!(text.as_str().chars().count(), Text::MAX_CHARS);
        assert!(text.as_str().starts_with("a [31m ä"));
        assert_eq!(text.printable(), "a [31m ");
        let long = Text::new(&"x".repeat(1000)).printable();
        assert_eq!(long, "x".repeat(Text::MAX_PRINTABLE_CHARS));
    }
}
