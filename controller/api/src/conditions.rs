//! Conditions in a status: set in place, with a transition time that moves only when the status does.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// What a condition should be.
#[derive(Clone, Copy, Debug)]
pub struct NewCondition<'a> {
    /// For example `Available`.
    pub kind: &'a str,
    /// Whether it holds: `True`, `False` or `Unknown`.
    pub status: &'a str,
    /// One word for programs.
    pub reason: &'a str,
    /// A sentence for people.
    pub message: &'a str,
    /// `metadata.generation` that this was concluded from.
    pub observed_generation: Option<i64>,
}

/// Sets one condition and says whether anything changed; if nothing did, nothing need be written.
pub fn set(conditions: &mut Vec<Condition>, new: NewCondition<'_>, now: Timestamp) -> bool {
    let NewCondition { kind, status, reason, message, observed_generation } = new;
    let old = conditions.iter_mut().find(|condition| condition.type_ == kind);
    let moved = old.as_ref().is_none_or(|old| old.status != status);
    let last_transition_time = match &old {
        Some(old) if !moved => old.last_transition_time.clone(),
        _ => Time(now),
    };
    let condition = Condition {
        last_transition_time,
        message: message.to_owned(),
        observed_generation,
        reason: reason.to_owned(),
        status: status.to_owned(),
        type_: kind.to_owned(),
    };
    match old {
        Some(old) if *old == condition => return false,
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
    true
}

/// The condition of this type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether a condition is there and holds.
#[must_use]
pub fn holds(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}
