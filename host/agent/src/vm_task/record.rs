//! Lines of JSON for `why` and `top`.

use guest_units::{Moment, Size};
use host_scaling::Scaler;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;

use crate::view::VmKey;

#[derive(Serialize)]
struct Top<'a> {
    namespace: &'a str,
    name: &'a str,
    desired: Size,
    permit: Size,
    plugged: Size,
    used: Size,
}

/// The decisions, oldest first, one line each.
pub(super) fn why(scaler: &Scaler, origin: Timestamp) -> Vec<String> {
    scaler
        .decisions()
        .filter_map(|decision| {
            let since = SignedDuration::try_from(decision.at.0).ok()?;
            let at = origin.checked_add(since).ok()?;
            let at = at.round(jiff::Unit::Millisecond).ok()?;
            let mut line = serde_json::to_value(decision).ok()?;
            line["at"] = json!(at);
            Some(line.to_string())
        })
        .collect()
}

/// The VM's sizes, one line. What is not known yet is shown as nothing.
pub(super) fn top(scaler: &Scaler, key: &VmKey, now: Moment) -> Vec<String> {
    let Some(overview) = scaler.overview(now) else { return Vec::new() };
    let line = Top {
        namespace: &key.namespace,
        name: &key.name,
        desired: overview.desired,
        permit: overview.permit.unwrap_or_default(),
        plugged: overview.plugged,
        used: overview.used.unwrap_or_default(),
    };
    serde_json::to_string(&line).into_iter().collect()
}
