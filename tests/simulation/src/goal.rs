//! Goals for metrics that come as lines of JSON: one object a line in, one object a line out.
//!
//! In: `{"config":{…},"computeUnit":{"vCPUs":0.25,"mem":1073741824},"system":{"loadAverage1Min":…,"loadAverage5Min":…,
//! "memoryUsageBytes":…,"memoryCachedBytes":…},"lfc":{"approximateWorkingSetSizeBuckets":[…],"cacheHits":…,"cacheMisses":…,
//! "cacheWrites":…}|null}`. Fields of `config` that are absent have the values that the reference ships.
//!
//! Out: `{"goalCU":n,"components":{"cpu":…,"mem":…,"lfc":…|null}}` in compute units, before rounding (`lfc` is `null` where the
//! cache's metrics are off or missing, and 0 where there are too few windows); or, in its place, `{"error":"…"}` with the field that is
//! wrong. Lines without anything have no answer.

use guest_units::{Bytes, MilliCpu};
use host_scaling::reference::{
    CacheMetrics, Components, ComputeUnit, Goal, ReferenceConfig, SystemMetrics, goal,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// One line.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    #[serde(default)]
    config: Map<String, Value>,
    compute_unit: Unit,
    system: System,
    lfc: Option<Cache>,
}

/// Quantities, as numbers or texts: what is finer than a thousandth of a CPU or a byte rounds up.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unit {
    #[serde(rename = "vCPUs")]
    vcpus: MilliCpu,
    mem: Bytes,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct System {
    #[serde(rename = "loadAverage1Min")]
    short: f64,
    #[serde(rename = "loadAverage5Min")]
    long: f64,
    #[serde(rename = "memoryUsageBytes")]
    usage: f64,
    #[serde(rename = "memoryCachedBytes")]
    cached: f64,
}

/// Hits, misses and writes are told by the cache and decide nothing.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cache {
    approximate_working_set_size_buckets: Vec<f64>,
    #[expect(dead_code, reason = "part of the format")]
    cache_hits: f64,
    #[expect(dead_code, reason = "part of the format")]
    cache_misses: f64,
    #[expect(dead_code, reason = "part of the format")]
    cache_writes: f64,
}

/// The answer to a line.
#[must_use]
pub fn answer(line: &[u8]) -> Value {
    judge(line).unwrap_or_else(|error| json!({ "error": error }))
}

fn judge(line: &[u8]) -> Result<Value, String> {
    let Line { mut config, compute_unit, system, lfc } =
        serde_json::from_slice(line).map_err(|err| err.to_string())?;
    // As in the agent's annotations.
    config.retain(|_, value| !value.is_null());
    let config = ReferenceConfig::default().with(&config).map_err(|problems| {
        let named: Vec<_> = problems.iter().map(|problem| format!("config.{problem}")).collect();
        named.join("; ")
    })?;
    let unit = ComputeUnit { cpu: compute_unit.vcpus, memory: compute_unit.mem };
    if unit.cpu == MilliCpu::ZERO || unit.memory == Bytes::ZERO {
        return Err("computeUnit: vCPUs and mem must be above 0".to_owned());
    }
    let system = SystemMetrics {
        load_average_1min: level("system.loadAverage1Min", system.short)?,
        load_average_5min: level("system.loadAverage5Min", system.long)?,
        memory_usage: Bytes(whole("system.memoryUsageBytes", system.usage)?),
        memory_cached: Bytes(whole("system.memoryCachedBytes", system.cached)?),
    };
    let windows = lfc.map(|lfc| lfc.approximate_working_set_size_buckets);
    for pages in windows.iter().flatten() {
        level("lfc.approximateWorkingSetSizeBuckets", *pages)?;
    }
    let cache = windows.as_deref().map(|pages| CacheMetrics { working_set_pages: pages });
    let Goal { units, components, .. } = goal(&config, unit, Some(&system), cache);
    let Components { cpu, memory, cache } = components;
    // JSON knows no infinity.
    let told = |part: f64| part.min(f64::MAX);
    let (cpu, memory, cache) = (told(cpu), told(memory), cache.map(told));
    Ok(json!({ "goalCU": units, "components": { "cpu": cpu, "mem": memory, "lfc": cache } }))
}

fn level(field: &str, value: f64) -> Result<f64, String> {
    if value >= 0.0 { Ok(value) } else { Err(format!("{field}: {value} is below 0")) }
}

/// Metrics are floats even where they count something.
fn whole(field: &str, value: f64) -> Result<u64, String> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and is not below 0"
    )]
    let whole = level(field, value)? as u64;
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(changes: &[(&str, Value)]) -> Value {
        let mut line = json!({
            "config": {"loadAverageFractionTarget": 0.5},
            "computeUnit": {"vCPUs": 0.25, "mem": 1 << 30},
            "system": {"loadAverage1Min": 0.3, "loadAverage5Min": 0.1,
                       "memoryUsageBytes": 1.5e9, "memoryCachedBytes": 0},
            "lfc": null,
        });
        for (pointer, value) in changes {
            *line.pointer_mut(pointer).unwrap() = value.clone();
        }
        answer(line.to_string().as_bytes())
    }

    #[test]
    fn a_goal_has_its_components() {
        let answer = line(&[]);
        assert_eq!(answer["goalCU"], 2);
        assert!((answer["components"]["cpu"].as_f64().unwrap() - 2.4).abs() < 1e-9);
        assert_eq!(answer["components"]["lfc"], Value::Null);
    }

    #[test]
    fn numbers_are_read_to_the_last_bit() {
        let shipped = ("/config", json!({}));
        for (load, units) in [("1.4625000000000001", 7), ("1.4625", 6), ("0.11249999999999999", 0)]
        {
            let load = ("/system/loadAverage1Min", serde_json::from_str(load).unwrap());
            let none = ("/system/memoryUsageBytes", json!(0));
            assert_eq!(line(&[shipped.clone(), load.clone(), none])["goalCU"], units, "{load:?}");
        }
    }

    #[test]
    fn a_unit_is_a_size_as_everywhere() {
        let goal = |vcpus: Value, mem: Value| {
            line(&[("/computeUnit/vCPUs", vcpus), ("/computeUnit/mem", mem)])
        };
        assert_eq!(goal(json!("250m"), json!("1Gi")), line(&[]));
        assert_eq!(goal(json!(0.2504), json!(1 << 30)), goal(json!("251m"), json!("1Gi")));
        assert!(goal(json!(-1), json!(1)).get("error").is_some());
    }

    #[test]
    fn no_answer_is_without_its_numbers() {
        let answer = line(&[("/system/loadAverage1Min", json!(1e308))]);
        assert_eq!(answer["goalCU"], u32::MAX);
        assert!(answer["components"]["cpu"].is_f64(), "{answer}");
        let config = ("/config", json!({"enableLFCMetrics": true, "lfcToMemoryRatio": null}));
        let few = json!({"approximateWorkingSetSizeBuckets": [1, 2], "cacheHits": 1, "cacheMisses": 1, "cacheWrites": 1});
        assert_eq!(line(&[config, ("/lfc", few)])["components"]["lfc"], 0.0);
    }

    #[test]
    fn windows_count_when_they_are_enabled() {
        let windows: Vec<u32> = (1..=20).map(|minute| minute * 10_000).collect();
        let lfc = json!({"approximateWorkingSetSizeBuckets": windows, "cacheHits": 1, "cacheMisses": 1, "cacheWrites": 1});
        let off = line(&[("/lfc", lfc.clone())]);
        assert_eq!(off["components"]["lfc"], Value::Null);
        let on = line(&[("/lfc", lfc), ("/config", json!({"enableLFCMetrics": true}))]);
        assert!(on["components"]["lfc"].as_f64().unwrap() > 1.0, "{on}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (pointer, value, named) in [
            (
                "/config",
                json!({"loadAverageFractionTarget": 0}),
                "config.loadAverageFractionTarget",
            ),
            ("/config", json!({"load": 0}), "config.load is not known"),
            ("/computeUnit/vCPUs", json!(0), "computeUnit"),
            ("/system/loadAverage1Min", json!(-1), "system.loadAverage1Min"),
            ("/system/memoryUsageBytes", json!("1"), "invalid type"),
            ("/system", json!({"loadAverage1Min": 1}), "loadAverage5Min"),
        ] {
            let answer = line(&[(pointer, value)]);
            let error = answer["error"].as_str().unwrap_or_default();
            assert!(error.contains(named), "{pointer}: {answer}");
        }
        for line in [&b"{"[..], b"{\"\xff\":1}", b"\xff"] {
            assert!(answer(line).get("error").is_some(), "{line:?}");
        }
    }
}
