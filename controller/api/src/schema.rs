//! Schemas of the quantities, which the API server must be able to check before anything decodes
//! them: an object that the watchers cannot read would stop them all.

use schemars::{Schema, SchemaGenerator, json_schema};

/// Milli-CPUs: an integer number of CPUs, or a quantity such as `250m` and `0.25`.
/// Unquoted fractions are turned into the second form before this is checked.
pub(crate) fn cpu(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "pattern": "^[0-9]{1,9}((\\.[0-9]{0,9})?|m)$",
    })
}

/// Bytes: an integer, or a quantity with a suffix.
pub(crate) fn bytes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "pattern": "^[0-9]{1,18}(\\.[0-9]{0,9})?([KMGTP]i|[kMGTP])?$",
    })
}

/// Any quantity that Kubernetes knows.
pub(crate) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "pattern": "^(\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))))?$",
    })
}

/// A list of objects of any shape.
pub(crate) fn free_objects(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
    })
}
