//! Decision records as the agent tells them. Fields that no policy decides on are passed over: a later agent may tell more.

use std::collections::BTreeMap;

use guest_units::{Bytes, MilliCpu, Size};
use host_scaling::SystemSample;
use host_scaling::reference::{CacheWindows, ComputeUnit, ReferenceConfig};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::json;
use crate::policy::PolicyName;
use crate::timeline::Load;

/// One decision.
#[derive(Debug, Clone, Deserialize)]
pub struct Record {
    /// When it was made first.
    #[serde(deserialize_with = "time")]
    pub at: Timestamp,
    /// The size before.
    pub from: Size,
    /// The size aimed at.
    pub to: Size,
    /// The rules that decided.
    pub rule: String,
    /// What it was decided from.
    pub(super) inputs: Inputs,
    /// How it ended.
    pub outcome: String,
    /// How often it was tried.
    #[serde(default = "once")]
    pub attempts: u32,
}

fn once() -> u32 {
    1
}

fn time<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        serde::de::Error::custom(format!("{text:?} is no time such as 2025-09-23T10:11:12.345Z"))
    })
}

impl Record {
    /// Whose rules made it.
    #[must_use]
    pub fn policy(&self) -> PolicyName {
        match self.inputs.reference {
            Some(_) => PolicyName::Reference,
            None => PolicyName::Headroom,
        }
    }

    /// The rule of CPU and of memory, where the rules of a resource are apart.
    pub(super) fn rules(&self) -> Option<(&str, &str)> {
        self.rule.strip_prefix("cpu ")?.split_once(", memory ")
    }
}

/// What a decision was made from.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Inputs {
    pub(super) demand: Option<Size>,
    pub(super) cpu_peak: Option<MilliCpu>,
    pub(super) memory_peak: Option<Bytes>,
    pub(super) min: Size,
    pub(super) max: Size,
    pub(super) plugged: Size,
    pub(super) permit: Option<Size>,
    pub(super) veto: Option<Size>,
    pub(super) guest_live: bool,
    pub(super) reference: Option<Reference>,
}

/// What the reference decides from.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Metrics")]
pub(super) struct Reference {
    pub(super) config: ReferenceConfig,
    pub(super) unit: ComputeUnit,
    /// None, if the guest had not told any.
    pub(super) system: Option<SystemSample>,
    /// Windows that lead to the recorded goal.
    pub(super) windows: Option<CacheWindows>,
    /// What the guest knew to have when it asked for more.
    pub(super) requested: Option<Size>,
    pub(super) denied: Option<Denied>,
}

/// The same as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metrics {
    load1: Option<Load>,
    load5: Option<Load>,
    memory_usage: Option<Bytes>,
    memory_cached: Option<Bytes>,
    goal: Goal,
    requested: Option<Requested>,
    denied: Option<Denied>,
    unit: Unit,
    config: Config,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Goal {
    working_set: Option<WorkingSet>,
    complete: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WorkingSet {
    projected_pages: f64,
}

#[derive(Debug, Deserialize)]
struct Requested {
    base: Size,
}

/// A question to the guest that it denied.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Denied {
    pub(super) target: Size,
    pub(super) current: Size,
}

#[derive(Debug, Deserialize)]
struct Unit {
    cpu: MilliCpu,
    memory: Bytes,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
struct Config(ReferenceConfig);

impl TryFrom<Map<String, Value>> for Config {
    type Error = String;

    fn try_from(fields: Map<String, Value>) -> Result<Self, String> {
        ReferenceConfig::from_json(&fields).map(Self).map_err(|problems| {
            let named: Vec<_> = problems.iter().map(ToString::to_string).collect();
            named.join("; ")
        })
    }
}

impl TryFrom<Metrics> for Reference {
    type Error = String;

    fn try_from(metrics: Metrics) -> Result<Self, String> {
        let Metrics { load1, load5, memory_usage, memory_cached, goal, .. } = metrics;
        let system = match (load1, load5, memory_usage, memory_cached) {
            (Some(load1), Some(load5), Some(memory_usage), Some(memory_cached)) => {
                let (load1_milli, load5_milli) = (load1.0, load5.0);
                Some(SystemSample { load1_milli, load5_milli, memory_usage, memory_cached })
            }
            (None, None, None, None) => None,
            _ => {
                return Err(
                    "load1, load5, memoryUsage and memoryCached are there together, or none is"
                        .to_owned(),
                );
            }
        };
        let unit = ComputeUnit { cpu: metrics.unit.cpu, memory: metrics.unit.memory };
        if unit.cpu.is_zero() || unit.memory.is_zero() {
            return Err("unit: cpu and memory must be above 0".to_owned());
        }
        let Config(config) = metrics.config;
        let windows = (config.enable_lfc_metrics && goal.complete).then(|| windows(&goal));
        let requested = metrics.requested.map(|requested| requested.base);
        Ok(Self { config, unit, system, windows, requested, denied: metrics.denied })
    }
}

/// Windows that are all as large as what the cache was said to need need just that; without any there is no working set.
fn windows(goal: &Goal) -> CacheWindows {
    let pages = goal.working_set.as_ref().map(|set| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "casts from floats saturate"
        )]
        let pages = set.projected_pages.round() as u32;
        pages
    });
    let count = if pages.is_some() { CacheWindows::MOST } else { 0 };
    CacheWindows::new(std::iter::repeat_n(pages.unwrap_or_default(), count))
}

/// The records of a text: lines of JSON, an array, or an object that holds one.
///
/// # Errors
/// What is wrong, with the line or the number of the record, counted from one, and the field.
pub fn read(text: &str) -> Result<Vec<Record>, String> {
    let mut values = values(text)?;
    let alone = values.len() == 1;
    let items = match values.pop() {
        None => return Err("there are no records".to_owned()),
        Some((_, Value::Array(items))) if alone => numbered(items),
        Some((place, Value::Object(fields))) if alone && is_holder(&fields) => {
            held(&place, fields)?
        }
        Some(last) => {
            values.push(last);
            values
        }
    };
    if items.is_empty() {
        return Err("there are no records".to_owned());
    }
    let record = |(place, value)| json::convert(value).map_err(|err| format!("{place}: {err}"));
    items.into_iter().map(record).collect()
}

/// All values of the text, each with its line.
fn values(text: &str) -> Result<Vec<(String, Value)>, String> {
    let mut found = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    loop {
        let rest = text.get(stream.byte_offset()..).unwrap_or_default();
        let begin = text.len() - rest.trim_start().len();
        match stream.next() {
            None => return Ok(found),
            Some(Ok(value)) => {
                let line = 1 + text.get(..begin).unwrap_or_default().matches('\n').count();
                found.push((format!("line {line}"), value));
            }
            Some(Err(err)) => {
                let (line, column) = (err.line(), err.column());
                return Err(format!("line {line}: {} (column {column})", json::message(&err)));
            }
        }
    }
}

fn numbered(items: Vec<Value>) -> Vec<(String, Value)> {
    (1..).zip(items).map(|(number, item): (u32, _)| (format!("record {number}"), item)).collect()
}

/// Whether it is no record itself.
fn is_holder(fields: &Map<String, Value>) -> bool {
    !fields.contains_key("at") && !fields.contains_key("inputs")
}

fn held(place: &str, fields: Map<String, Value>) -> Result<Vec<(String, Value)>, String> {
    let arrays = fields.into_iter().filter_map(|(name, value)| match value {
        Value::Array(items) => Some((name, items)),
        _ => None,
    });
    let mut arrays: BTreeMap<String, Vec<Value>> = arrays.collect();
    match (arrays.len(), arrays.pop_first()) {
        (1, Some((_, items))) => Ok(numbered(items)),
        (0, _) => Err(format!("{place}: neither a record nor an object that holds records")),
        _ => Err(format!("{place}: holds several arrays, of which one may be the records")),
    }
}
