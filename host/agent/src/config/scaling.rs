//! Scaling configuration: the reference's fields, as the file's defaults and as a VM's annotation, and the
//! numbers of the `headroom` policy.

use host_scaling::Headroom;
use serde_json::{Map, Value};

use super::Problems;
use super::section::Section;

/// Name of a field, what is right for it, and how that is said.
type Field = (&'static str, fn(&Value) -> bool, &'static str);

/// The reference's fields. They belong to its policy: checked here, acted on there.
const FIELDS: [Field; 10] = [
    ("loadAverageFractionTarget", |v| is(v, |x| x > 0.0 && x < 2.0), "above 0 and below 2"),
    ("memoryUsageFractionTarget", |v| is(v, |x| x > 0.0 && x < 1.0), "above 0 and below 1"),
    ("memoryTotalFractionTarget", |v| is(v, |x| x > 0.0 && x < 1.0), "above 0 and below 1"),
    ("enableLFCMetrics", Value::is_boolean, "true or false"),
    ("lfcUseLargestWindow", Value::is_boolean, "true or false"),
    ("lfcToMemoryRatio", |v| is(v, |x| x > 0.0), "a number above 0"),
    (WINDOW, |v| v.as_i64().is_some_and(|x| (2..=60).contains(&x)), "between 2 and 60"),
    (WAIT, Value::is_i64, "a whole number"),
    ("cpuStableZoneRatio", |v| is(v, |x| x >= 0.0), "0 or above"),
    ("cpuMixedZoneRatio", |v| is(v, |x| x >= 0.0), "0 or above"),
];
const WINDOW: &str = "lfcWindowSizeMinutes";
const WAIT: &str = "lfcMinWaitBeforeDownscaleMinutes";

fn is(value: &Value, right: fn(f64) -> bool) -> bool {
    value.as_f64().is_some_and(right)
}

/// Values of [`FIELDS`].
#[derive(Debug, Clone, Default)]
pub(crate) struct ReferenceFields(Map<String, Value>);

impl ReferenceFields {
    pub(crate) fn take(section: &mut Section) -> Self {
        let present =
            FIELDS.iter().filter_map(|(name, ..)| Some(((*name).to_owned(), section.take(name)?)));
        Self(present.collect())
    }

    /// Every field is there and right; names are told as `path` and field.
    pub(crate) fn check(&self, path: &str, problems: &mut Problems) {
        for (name, right, what) in FIELDS {
            match self.0.get(name) {
                None => problems.push(format!("{path}{name} is missing")),
                Some(value) if !right(value) => {
                    problems.push(format!("{path}{name}: {value} is not {what}"));
                }
                Some(_) => {}
            }
        }
        let minutes = |name| self.0.get(name).and_then(Value::as_i64);
        if let (Some(wait), Some(window)) = (minutes(WAIT), minutes(WINDOW))
            && wait < window
        {
            problems.push(format!("{path}{WAIT}: {wait} is below {WINDOW} {window}"));
        }
    }
}

/// Checks a VM's configuration annotation: its fields over the file's. Unknown fields are ignored, as users
/// of the reference rely on.
pub(crate) fn check_annotation(text: &str, default: &ReferenceFields) -> Result<(), Problems> {
    let mut problems = Problems::default();
    match serde_json::from_str::<Value>(text) {
        Err(err) => problems.push(format!("not JSON: {err}")),
        Ok(value) => {
            let mut section = Section::root(value, &mut problems);
            let mut fields = default.clone();
            fields.0.extend(ReferenceFields::take(&mut section).0);
            if problems.0.is_empty() {
                fields.check("", &mut problems);
            }
        }
    }
    if problems.0.is_empty() { Ok(()) } else { Err(problems) }
}

/// The numbers of the `headroom` policy, each of them optional.
pub(crate) fn headroom(section: Option<Section>, problems: &mut Problems) -> Headroom {
    let default = Headroom::default();
    let Some(mut section) = section else { return default };
    let mut percent = |section: &mut Section, key: &str, default: u32| {
        let Some(value) = section.whole(key, problems) else { return default };
        match u32::try_from(value) {
            Ok(value) if value <= 1000 => value,
            _ => {
                problems.push(format!("{}: {value} is not between 0 and 1000", section.name(key)));
                default
            }
        }
    };
    let cpu_headroom_percent =
        percent(&mut section, "cpuHeadroomPercent", default.cpu_headroom_percent);
    let memory_reserve_percent =
        percent(&mut section, "memoryReservePercent", default.memory_reserve_percent);
    let mut seconds = |section: &mut Section, key: &str, default: std::time::Duration| {
        section.optional_seconds(key, problems).unwrap_or(default)
    };
    let cpu_calm = seconds(&mut section, "cpuCalmSeconds", default.cpu_calm);
    let memory_calm = seconds(&mut section, "memoryCalmSeconds", default.memory_calm);
    let step_pause = seconds(&mut section, "stepPauseSeconds", default.step_pause);
    let silence = seconds(&mut section, "silenceSeconds", default.silence);
    let headroom = Headroom {
        cpu_grid: section.cpu("cpuGrid", problems).unwrap_or(default.cpu_grid),
        cpu_headroom_percent,
        cpu_headroom_min: section
            .cpu("cpuHeadroomMin", problems)
            .unwrap_or(default.cpu_headroom_min),
        cpu_calm,
        memory_reserve_percent,
        memory_reserve_min: section
            .bytes("memoryReserveMin", problems)
            .unwrap_or(default.memory_reserve_min),
        memory_calm,
        step_pause,
        silence,
    };
    if headroom.cpu_grid.0 == 0 {
        problems.push(format!("{} must not be zero", section.name("cpuGrid")));
    }
    section.end(problems);
    headroom
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> ReferenceFields {
        super::super::file::tests::shipped().defaults
    }

    #[test]
    fn annotations_are_checked_over_the_defaults() {
        let table = [
            (r"{}", None),
            (r#"{"unknown": 1, "cpuStableZoneRatio": 0.5}"#, None),
            (r"[]", Some("the file is not an object")),
            (
                r#"{"loadAverageFractionTarget": 0}"#,
                Some("loadAverageFractionTarget: 0 is not above 0"),
            ),
            (r#"{"memoryUsageFractionTarget": 1}"#, Some("memoryUsageFractionTarget: 1 is not")),
            (
                r#"{"lfcWindowSizeMinutes": 1}"#,
                Some("lfcWindowSizeMinutes: 1 is not between 2 and 60"),
            ),
            (
                r#"{"lfcMinWaitBeforeDownscaleMinutes": 3}"#,
                Some("lfcMinWaitBeforeDownscaleMinutes: 3 is below lfcWindowSizeMinutes 5"),
            ),
            (r#"{"lfcToMemoryRatio": "x"}"#, Some("lfcToMemoryRatio: \"x\" is not a number")),
        ];
        for (text, expected) in table {
            let found =
                check_annotation(text, &defaults()).err().map(|problems| problems.to_string());
            match (expected, found) {
                (None, None) => {}
                (Some(expected), Some(found)) => assert!(found.starts_with(expected), "{found}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
