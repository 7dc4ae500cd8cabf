//! Scaling configuration: the reference's fields, as the file's defaults and as a VM's annotation, and the
//! numbers of the `headroom` policy.

use host_scaling::Headroom;
use serde_json::Value;

use super::Problems;
use super::section::Section;

/// The reference's fields. They belong to its policy: checked here, acted on there.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct ReferenceFields {
    load_average_fraction_target: Option<f64>,
    memory_usage_fraction_target: Option<f64>,
    memory_total_fraction_target: Option<f64>,
    enable_lfc_metrics: Option<bool>,
    lfc_use_largest_window: Option<bool>,
    lfc_to_memory_ratio: Option<f64>,
    lfc_window_size_minutes: Option<i64>,
    lfc_min_wait_before_downscale_minutes: Option<i64>,
    cpu_stable_zone_ratio: Option<f64>,
    cpu_mixed_zone_ratio: Option<f64>,
}

impl ReferenceFields {
    pub(crate) fn take(section: &mut Section, problems: &mut Problems) -> Self {
        Self {
            load_average_fraction_target: section.float("loadAverageFractionTarget", problems),
            memory_usage_fraction_target: section.float("memoryUsageFractionTarget", problems),
            memory_total_fraction_target: section.float("memoryTotalFractionTarget", problems),
            enable_lfc_metrics: section.flag("enableLFCMetrics", problems),
            lfc_use_largest_window: section.flag("lfcUseLargestWindow", problems),
            lfc_to_memory_ratio: section.float("lfcToMemoryRatio", problems),
            lfc_window_size_minutes: section.whole("lfcWindowSizeMinutes", problems),
            lfc_min_wait_before_downscale_minutes: section
                .whole("lfcMinWaitBeforeDownscaleMinutes", problems),
            cpu_stable_zone_ratio: section.float("cpuStableZoneRatio", problems),
            cpu_mixed_zone_ratio: section.float("cpuMixedZoneRatio", problems),
        }
    }

    /// The VM's own value where it has one.
    fn over(self, default: &Self) -> Self {
        Self {
            load_average_fraction_target: self
                .load_average_fraction_target
                .or(default.load_average_fraction_target),
            memory_usage_fraction_target: self
                .memory_usage_fraction_target
                .or(default.memory_usage_fraction_target),
            memory_total_fraction_target: self
                .memory_total_fraction_target
                .or(default.memory_total_fraction_target),
            enable_lfc_metrics: self.enable_lfc_metrics.or(default.enable_lfc_metrics),
            lfc_use_largest_window: self.lfc_use_largest_window.or(default.lfc_use_largest_window),
            lfc_to_memory_ratio: self.lfc_to_memory_ratio.or(default.lfc_to_memory_ratio),
            lfc_window_size_minutes: self
                .lfc_window_size_minutes
                .or(default.lfc_window_size_minutes),
            lfc_min_wait_before_downscale_minutes: self
                .lfc_min_wait_before_downscale_minutes
                .or(default.lfc_min_wait_before_downscale_minutes),
            cpu_stable_zone_ratio: self.cpu_stable_zone_ratio.or(default.cpu_stable_zone_ratio),
            cpu_mixed_zone_ratio: self.cpu_mixed_zone_ratio.or(default.cpu_mixed_zone_ratio),
        }
    }

    /// Every field is there and in range; names are told as `path` and field.
    pub(crate) fn check(&self, path: &str, problems: &mut Problems) {
        let mut float =
            |name: &str, value: Option<f64>, ok: fn(f64) -> bool, range: &str| match value {
                None => problems.push(format!("{path}{name} is missing")),
                Some(value) if !ok(value) => {
                    problems.push(format!("{path}{name}: {value} is not {range}"));
                }
                Some(_) => {}
            };
        let below_one: fn(f64) -> bool = |x| x > 0.0 && x < 1.0;
        let ratio: fn(f64) -> bool = |x| x >= 0.0 && x.is_finite();
        float(
            "loadAverageFractionTarget",
            self.load_average_fraction_target,
            |x| x > 0.0 && x < 2.0,
            "above 0 and below 2",
        );
        for (name, value) in [
            ("memoryUsageFractionTarget", self.memory_usage_fraction_target),
            ("memoryTotalFractionTarget", self.memory_total_fraction_target),
        ] {
            float(name, value, below_one, "above 0 and below 1");
        }
        let positive: fn(f64) -> bool = |x| x > 0.0 && x.is_finite();
        float("lfcToMemoryRatio", self.lfc_to_memory_ratio, positive, "above 0");
        float("cpuStableZoneRatio", self.cpu_stable_zone_ratio, ratio, "0 or above");
        float("cpuMixedZoneRatio", self.cpu_mixed_zone_ratio, ratio, "0 or above");
        for (name, value) in [
            ("enableLFCMetrics", self.enable_lfc_metrics),
            ("lfcUseLargestWindow", self.lfc_use_largest_window),
        ] {
            if value.is_none() {
                problems.push(format!("{path}{name} is missing"));
            }
        }
        self.check_windows(path, problems);
    }

    fn check_windows(&self, path: &str, problems: &mut Problems) {
        let window = self.lfc_window_size_minutes;
        let wait = self.lfc_min_wait_before_downscale_minutes;
        match window {
            None => problems.push(format!("{path}lfcWindowSizeMinutes is missing")),
            Some(window) if !(2..=60).contains(&window) => {
                problems
                    .push(format!("{path}lfcWindowSizeMinutes: {window} is not between 2 and 60"));
            }
            Some(_) => {}
        }
        match (wait, window) {
            (None, _) => problems.push(format!("{path}lfcMinWaitBeforeDownscaleMinutes is missing")),
            (Some(wait), Some(window)) if wait < window => problems.push(format!(
                "{path}lfcMinWaitBeforeDownscaleMinutes: {wait} is below lfcWindowSizeMinutes {window}"
            )),
            (Some(_), _) => {}
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
            let fields = ReferenceFields::take(&mut section, &mut problems).over(default);
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
