//! Scaling configuration: the reference's fields, as the file's defaults and as a VM's annotation, and the
//! numbers of the `headroom` policy.

use host_scaling::Headroom;
use host_scaling::reference::ReferenceConfig;
use serde_json::{Map, Value};

use super::Problems;
use super::section::Section;

/// The reference's fields as the file's defaults.
pub(crate) fn defaults(mut section: Section, problems: &mut Problems) -> ReferenceConfig {
    let path = section.name("");
    let config = ReferenceConfig::from_json(&known(&mut section)).unwrap_or_else(|wrong| {
        wrong.iter().for_each(|problem| problems.push(format!("{path}{problem}")));
        ReferenceConfig::default()
    });
    section.end(problems);
    config
}

/// A VM's configuration annotation: its fields over the file's. Unknown fields are ignored, as users of the
/// reference rely on.
pub(crate) fn annotation(
    text: &str,
    default: &ReferenceConfig,
) -> Result<ReferenceConfig, Problems> {
    let mut problems = Problems::default();
    match serde_json::from_str::<Value>(text) {
        Err(err) => problems.push(format!("not JSON: {err}")),
        Ok(value) => {
            let mut section = Section::root(value, &mut problems);
            match default.with(&known(&mut section)) {
                Ok(config) if problems.0.is_empty() => return Ok(config),
                Ok(_) => {}
                Err(wrong) => wrong.iter().for_each(|it| problems.push(it.to_string())),
            }
        }
    }
    Err(problems)
}

fn known(section: &mut Section) -> Map<String, Value> {
    ReferenceConfig::fields()
        .filter_map(|name| Some((name.to_owned(), section.take(name)?)))
        .collect()
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

    fn shipped() -> ReferenceConfig {
        super::super::file::tests::shipped().policies.reference.config
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
                Some("lfcWindowSizeMinutes: 1 is not a whole number from 2"),
            ),
            (
                r#"{"lfcMinWaitBeforeDownscaleMinutes": 3}"#,
                Some("lfcMinWaitBeforeDownscaleMinutes: 3 is below lfcWindowSizeMinutes 5"),
            ),
            (r#"{"lfcToMemoryRatio": "x"}"#, Some("lfcToMemoryRatio: \"x\" is not a number")),
        ];
        for (text, expected) in table {
            let found = annotation(text, &shipped()).err().map(|problems| problems.to_string());
            match (expected, found) {
                (None, None) => {}
                (Some(expected), Some(found)) => assert!(found.starts_with(expected), "{found}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
