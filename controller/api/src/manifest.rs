//! The YAML that is installed: `crds/` and `policies/` hold exactly what these functions return; a
//! test compares them, and rewrites the files with `UPDATE_EXPECT=1`.

use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use crate::migration::VirtualMachineMigration;
use crate::policy;
use crate::pool::IPPool;
use crate::structure::{add_rule, add_rules, tidy};
use crate::validation;
use crate::vm::VirtualMachine;
use crate::yaml;

const GENERATED: &str =
    "Generated from the Rust types; `UPDATE_EXPECT=1 cargo test -p controller-api` rewrites it.";

/// The custom resource definitions: file name and content.
#[must_use]
pub fn crds() -> Vec<(String, String)> {
    let mut vm = json!(VirtualMachine::crd());
    tidy(&mut vm);
    add_rules(&mut vm, validation::rules());

    let mut migration = json!(VirtualMachineMigration::crd());
    tidy(&mut migration);
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    if let Some(spec) = migration.pointer_mut(spec).and_then(Value::as_object_mut) {
        add_rule(spec, "self == oldSelf", "a migration cannot be changed");
    }

    let mut pool = json!(IPPool::crd());
    tidy(&mut pool);

    [("virtualmachines", vm), ("virtualmachinemigrations", migration), ("ippools", pool)]
        .into_iter()
        .map(|(name, crd)| (format!("{name}.yaml"), yaml::documents(GENERATED, &[crd])))
        .collect()
}

/// The admission policies: file name and content.
#[must_use]
pub fn policies() -> Vec<(String, String)> {
    policy::all()
        .into_iter()
        .map(|file| {
            let heading = format!("{}\n{GENERATED}", file.heading);
            (format!("{}.yaml", file.name), yaml::documents(&heading, &file.objects))
        })
        .collect()
}
