//! The rules that a VM obeys from its creation on: one list, read twice.
//!
//! Each [`Rule`] has its CEL, which `manifest` puts into the CRD at the rule's place, and the same
//! condition in Rust, with which the operator checks again before it acts ([`validate`]). The list has two parts: what can
//! never work (`shape`), and what this release does not act on (`not_yet`), which is refused rather
//! than silently ignored. A field of the second part that is written at its default is let through
//! with an admission warning ([`Rule::warn_when`]).

use std::collections::BTreeSet;

use crate::vm::VirtualMachineSpec;

mod not_yet;
mod shape;

/// Something is wrong with a VM's spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Problem {
    /// Path of the field, as `spec.guest.cpus`.
    pub field: String,
    /// What must hold.
    pub message: String,
}

/// A condition on a VM's spec.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Name of the field below `spec` in whose schema the rule is, as `guest.cpus`; `self` is its value.
    /// Or [`POLICY`].
    pub at: &'static str,
    /// Path that is reported.
    pub field: &'static str,
    /// What must hold.
    pub message: &'static str,
    /// The condition for the API server.
    pub cel: &'static str,
    /// The condition for the operator.
    pub holds: fn(&VirtualMachineSpec) -> bool,
    /// For a field that nothing acts on: when `object` has it, though at a value that asks for nothing.
    pub warn_when: Option<&'static str>,
}

/// Place of a rule that is too costly for a schema, whose rules must be cheap for the largest object that
/// could be: it is in an admission policy, and its CEL is about `object`.
pub const POLICY: &str = "policy";

/// All rules, in the order of the spec's fields.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    shape::RULES.iter().chain(not_yet::RULES)
}

/// Everything that is wrong with a spec; empty if it can run.
#[must_use]
pub fn validate(spec: &VirtualMachineSpec) -> Vec<Problem> {
    rules()
        .filter(|rule| !(rule.holds)(spec))
        .map(|rule| Problem { field: rule.field.to_owned(), message: rule.message.to_owned() })
        .collect()
}

/// Whether no two items are equal.
fn unique<T: Ord>(items: impl IntoIterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    items.into_iter().all(|item| seen.insert(item))
}
