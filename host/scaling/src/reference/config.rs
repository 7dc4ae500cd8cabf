//! The numbers of the policy: names, defaults and ranges of the reference's scaling configuration.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

const WINDOW: &str = "lfcWindowSizeMinutes";
const WAIT: &str = "lfcMinWaitBeforeDownscaleMinutes";

/// Name of a field, what is right for it, and how that is said.
type Field = (&'static str, fn(&Value) -> bool, &'static str);

const FIELDS: [Field; 10] = [
    ("loadAverageFractionTarget", |v| is(v, |x| x > 0.0 && x < 2.0), "above 0 and below 2"),
    ("memoryUsageFractionTarget", |v| is(v, |x| x > 0.0 && x < 1.0), "above 0 and below 1"),
    ("memoryTotalFractionTarget", |v| is(v, |x| x > 0.0 && x < 1.0), "above 0 and below 1"),
    ("enableLFCMetrics", Value::is_boolean, "true or false"),
    ("lfcUseLargestWindow", Value::is_boolean, "true or false"),
    ("lfcToMemoryRatio", |v| is(v, |x| x > 0.0), "a number above 0"),
    (WINDOW, minutes, "a whole number from 2 to 4294967295"),
    (WAIT, minutes, "a whole number from 2 to 4294967295"),
    ("cpuStableZoneRatio", |v| is(v, |x| x >= 0.0), "0 or above"),
    ("cpuMixedZoneRatio", |v| is(v, |x| x >= 0.0), "0 or above"),
];

fn is(value: &Value, right: fn(f64) -> bool) -> bool {
    value.as_f64().is_some_and(right)
}

fn minutes(value: &Value) -> bool {
    value.as_u64().is_some_and(|minutes| (2..=u32::MAX.into()).contains(&minutes))
}

/// The policy's numbers. `Default` is what the reference ships.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReferenceConfig {
    /// Load average per CPU that is aimed at.
    pub load_average_fraction_target: f64,
    /// Share of the memory that may be in use, without page cache.
    pub memory_usage_fraction_target: f64,
    /// Share of the memory that may be in use with the cache's working set.
    pub memory_total_fraction_target: f64,
    /// Whether the cache's metrics count, and are expected.
    #[serde(rename = "enableLFCMetrics")]
    pub enable_lfc_metrics: bool,
    /// Takes the last window for the working set.
    pub lfc_use_largest_window: bool,
    /// Share of the memory that the cache may take.
    pub lfc_to_memory_ratio: f64,
    /// Windows that are compared with each other.
    pub lfc_window_size_minutes: u32,
    /// The working set is looked for from this window on.
    pub lfc_min_wait_before_downscale_minutes: u32,
    /// Below this difference of the load averages, as a share of the longer, the longer counts.
    pub cpu_stable_zone_ratio: f64,
    /// Over this range above it, both count.
    pub cpu_mixed_zone_ratio: f64,
}

impl Default for ReferenceConfig {
    fn default() -> Self {
        Self {
            load_average_fraction_target: 0.9,
            memory_usage_fraction_target: 0.75,
            memory_total_fraction_target: 0.9,
            enable_lfc_metrics: false,
            lfc_use_largest_window: false,
            lfc_to_memory_ratio: 0.75,
            lfc_window_size_minutes: 5,
            lfc_min_wait_before_downscale_minutes: 5,
            cpu_stable_zone_ratio: 0.0,
            cpu_mixed_zone_ratio: 0.0,
        }
    }
}

/// What is wrong with a configuration; the text begins with the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigProblem {
    /// A field is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field has another type, or is out of its range.
    #[error("{field}: {value} is not {expected}")]
    Wrong {
        /// Its name.
        field: &'static str,
        /// Its value, as JSON.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// There is no such field.
    #[error("{0} is not known")]
    Unknown(String),
    /// The working set would be looked for before there is a whole window.
    #[error("{WAIT}: {wait} is below {WINDOW} {window}")]
    WaitBelowWindow {
        /// In minutes.
        wait: i64,
        /// In minutes.
        window: i64,
    },
}

impl ReferenceConfig {
    /// Names of all fields.
    pub fn fields() -> impl Iterator<Item = &'static str> {
        FIELDS.iter().map(|(name, ..)| *name)
    }

    /// This configuration with some of its fields changed.
    ///
    /// # Errors
    /// As for [`Self::from_json`].
    pub fn with(&self, changes: &Map<String, Value>) -> Result<Self, Vec<ConfigProblem>> {
        let mut object = match serde_json::to_value(self) {
            Ok(Value::Object(object)) => object,
            _ => Map::new(),
        };
        object.extend(changes.clone());
        Self::from_json(&object)
    }

    /// The configuration that a JSON object stands for: every field is there, in range, and none besides.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the fields.
    pub fn from_json(object: &Map<String, Value>) -> Result<Self, Vec<ConfigProblem>> {
        let mut problems = Vec::new();
        for (field, right, expected) in FIELDS {
            match object.get(field) {
                None => problems.push(ConfigProblem::Missing(field)),
                Some(value) if !right(value) => {
                    let value = value.to_string();
                    problems.push(ConfigProblem::Wrong { field, value, expected });
                }
                Some(_) => {}
            }
        }
        let unknown = object.keys().filter(|name| !Self::fields().any(|known| known == *name));
        problems.extend(unknown.cloned().map(ConfigProblem::Unknown));
        let minutes = |name| object.get(name).and_then(Value::as_i64);
        if let (Some(wait), Some(window)) = (minutes(WAIT), minutes(WINDOW))
            && wait < window
        {
            problems.push(ConfigProblem::WaitBelowWindow { wait, window });
        }
        match serde_json::from_value(Value::Object(object.clone())) {
            Ok(config) if problems.is_empty() => Ok(config),
            // What serde would say was said above.
            _ => Err(problems),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shipped() -> Map<String, Value> {
        let Value::Object(object) = json!({
            "loadAverageFractionTarget": 0.9, "memoryUsageFractionTarget": 0.75,
            "memoryTotalFractionTarget": 0.9, "enableLFCMetrics": false, "lfcUseLargestWindow": false,
            "lfcToMemoryRatio": 0.75, "lfcWindowSizeMinutes": 5,
            "lfcMinWaitBeforeDownscaleMinutes": 5, "cpuStableZoneRatio": 0, "cpuMixedZoneRatio": 0,
        }) else {
            panic!("an object")
        };
        object
    }

    fn refused(name: &str, value: Value) -> Vec<ConfigProblem> {
        let mut object = shipped();
        object.insert(name.to_owned(), value);
        ReferenceConfig::from_json(&object).unwrap_err()
    }

    #[test]
    fn what_the_reference_ships_is_the_default() {
        assert_eq!(ReferenceConfig::from_json(&shipped()), Ok(ReferenceConfig::default()));
    }

    #[test]
    fn what_would_crash_or_divide_by_zero_is_refused() {
        for (name, value) in [
            ("loadAverageFractionTarget", json!(0)),
            ("loadAverageFractionTarget", json!(2)),
            ("memoryUsageFractionTarget", json!(0)),
            ("memoryTotalFractionTarget", json!(1)),
            ("lfcUseLargestWindow", json!(null)),
            ("lfcToMemoryRatio", json!(0)),
            ("lfcWindowSizeMinutes", json!(1)),
            ("lfcMinWaitBeforeDownscaleMinutes", json!(1_u64 << 32)),
            ("lfcMinWaitBeforeDownscaleMinutes", json!(4)),
            ("lfcMinWaitBeforeDownscaleMinutes", json!(5.5)),
            ("cpuStableZoneRatio", json!(-0.1)),
            ("cpuMixedZoneRatio", json!("1")),
            ("notAField", json!(1)),
        ] {
            let problems = refused(name, value.clone());
            assert_eq!(problems.len(), 1, "{name} {value}: {problems:?}");
            assert!(problems[0].to_string().starts_with(name), "{name} {value}: {problems:?}");
        }
    }

    #[test]
    fn more_windows_than_there_ever_are_only_show_no_working_set() {
        let Value::Object(changes) = json!({"enableLFCMetrics": true, "lfcWindowSizeMinutes": 61,
            "lfcMinWaitBeforeDownscaleMinutes": u32::MAX})
        else {
            panic!("an object")
        };
        let config = ReferenceConfig::default().with(&changes).unwrap();
        assert_eq!(crate::reference::goal::working_set(&config, &[1.0; 60]), None);
    }

    #[test]
    fn single_fields_are_changed() {
        let Value::Object(changes) = json!({"lfcToMemoryRatio": 0.5}) else { panic!("an object") };
        let expected = ReferenceConfig { lfc_to_memory_ratio: 0.5, ..ReferenceConfig::default() };
        assert_eq!(ReferenceConfig::default().with(&changes), Ok(expected));
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let problems = ReferenceConfig::from_json(&Map::new()).unwrap_err();
        assert_eq!(problems.len(), FIELDS.len());
        assert_eq!(problems[0].to_string(), "loadAverageFractionTarget is missing");
    }
}
