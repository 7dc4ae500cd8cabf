//! Reads one object of a JSON file key by key and collects every problem, so that a user sees all at once.

use std::time::Duration;

use guest_units::{Bytes, MilliCpu};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::Problems;

/// One object of the file; keys are taken out, what is left at the end is unknown.
#[derive(Debug)]
pub(crate) struct Section {
    path: String,
    keys: Map<String, Value>,
}

impl Section {
    /// The whole file.
    pub(crate) fn root(value: Value, problems: &mut Problems) -> Self {
        Self::of(String::new(), value, problems)
    }

    fn of(path: String, value: Value, problems: &mut Problems) -> Self {
        let keys = match value {
            Value::Object(keys) => keys,
            _ => {
                let name = if path.is_empty() { "the file" } else { &path };
                problems.push(format!("{name} is not an object"));
                Map::new()
            }
        };
        Self { path, keys }
    }

    /// The full name of a key, as in messages.
    pub(crate) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.keys.remove(key).filter(|value| !value.is_null())
    }

    /// A part that must be there; empty and reported if not.
    pub(crate) fn section(&mut self, key: &str, problems: &mut Problems) -> Self {
        self.optional(key, problems).unwrap_or_else(|| {
            problems.push(format!("{} is missing", self.name(key)));
            Self { path: self.name(key), keys: Map::new() }
        })
    }

    pub(crate) fn optional(&mut self, key: &str, problems: &mut Problems) -> Option<Self> {
        let value = self.take(key)?;
        Some(Self::of(self.name(key), value, problems))
    }

    fn typed<T: DeserializeOwned>(
        &mut self,
        key: &str,
        what: &str,
        problems: &mut Problems,
    ) -> Option<T> {
        let value = self.take(key)?;
        let shown = value.to_string();
        serde_json::from_value(value)
            .map_err(|_| problems.push(format!("{}: {shown} is not {what}", self.name(key))))
            .ok()
    }

    fn required<T>(
        &mut self,
        key: &str,
        problems: &mut Problems,
        value: Option<T>,
        at: usize,
    ) -> Option<T> {
        if value.is_none() && problems.0.len() == at {
            problems.push(format!("{} is missing", self.name(key)));
        }
        value
    }

    /// A whole number above zero.
    pub(crate) fn count(&mut self, key: &str, problems: &mut Problems) -> u64 {
        let at = problems.0.len();
        let value = self.typed::<u64>(key, "a whole number", problems);
        let value = self.required(key, problems, value, at);
        if value == Some(0) {
            problems.push(format!("{} must not be zero", self.name(key)));
        }
        value.unwrap_or_default()
    }

    /// A whole number of seconds above zero.
    pub(crate) fn seconds(&mut self, key: &str, problems: &mut Problems) -> Duration {
        Duration::from_secs(self.count(key, problems))
    }

    /// A port above zero.
    pub(crate) fn port(&mut self, key: &str, problems: &mut Problems) -> u16 {
        let value = self.count(key, problems);
        u16::try_from(value).unwrap_or_else(|_| {
            problems.push(format!("{}: {value} is not a port", self.name(key)));
            0
        })
    }

    /// A text that is not empty.
    pub(crate) fn text(&mut self, key: &str, problems: &mut Problems) -> String {
        let at = problems.0.len();
        let value = self.typed::<String>(key, "a text", problems);
        let value = self.required(key, problems, value, at).unwrap_or_default();
        if value.is_empty() && problems.0.len() == at {
            problems.push(format!("{} must not be empty", self.name(key)));
        }
        value
    }

    /// A number that is not zero.
    pub(crate) fn nonzero_float(&mut self, key: &str, problems: &mut Problems) {
        let at = problems.0.len();
        let value = self.float(key, problems);
        if self.required(key, problems, value, at) == Some(0.0) {
            problems.push(format!("{} must not be zero", self.name(key)));
        }
    }

    pub(crate) fn float(&mut self, key: &str, problems: &mut Problems) -> Option<f64> {
        self.typed(key, "a number", problems)
    }

    pub(crate) fn whole(&mut self, key: &str, problems: &mut Problems) -> Option<i64> {
        self.typed(key, "a whole number", problems)
    }

    pub(crate) fn cpu(&mut self, key: &str, problems: &mut Problems) -> Option<MilliCpu> {
        self.typed(key, "an amount of CPU", problems)
    }

    pub(crate) fn bytes(&mut self, key: &str, problems: &mut Problems) -> Option<Bytes> {
        self.typed(key, "an amount of memory", problems)
    }

    pub(crate) fn optional_seconds(
        &mut self,
        key: &str,
        problems: &mut Problems,
    ) -> Option<Duration> {
        let value: f64 = self.typed(key, "a number of seconds", problems)?;
        if (0.0..=86_400.0).contains(&value) && value > 0.0 {
            return Some(Duration::from_secs_f64(value));
        }
        problems.push(format!("{}: {value} is not between 0 and 86400", self.name(key)));
        None
    }

    /// What nobody took is unknown.
    pub(crate) fn end(self, problems: &mut Problems) {
        for key in self.keys.keys() {
            let name = self.name(key);
            problems.push(format!("{name} is not known"));
        }
    }
}
