//! The API that users, operators and the system's parts share: the three kinds of group
//! `vm.neon.tech/v1` as Rust types, the rules they obey, and the labels and annotations around them.
//!
//! - [`vm`], [`guest`], [`disk`], [`status`], [`migration`], [`pool`]: the kinds;
//! - [`validation`]: the rules of a spec, each as CEL for the API server and in Rust for the operator;
//!   [`update`]: what may not change, for the API server alone;
//! - [`manifest`]: the YAML that is installed (`crds/`, `policies/`), generated from all of the above;
//! - [`names`], [`annotations`], [`conditions`]: everything that is a string in an object.
//!
//! What this crate never does: talk to an API server, read a clock, verify a signature.
#![forbid(unsafe_code)]

pub mod annotations;
pub mod conditions;
pub mod disk;
pub mod guest;
pub mod manifest;
pub mod migration;
pub mod names;
pub mod policy;
pub mod pool;
mod schema;
pub mod status;
mod structure;
pub mod update;
pub mod validation;
pub mod vm;
mod yaml;

pub use annotations::{Approval, Bounds};
pub use migration::{VirtualMachineMigration, VirtualMachineMigrationSpec};
pub use pool::{IPPool, IPPoolSpec};
pub use status::{ApprovalAge, Phase, VirtualMachineStatus};
pub use validation::{Problem, validate};
pub use vm::{VirtualMachine, VirtualMachineSpec};

/// API group of all kinds.
pub const GROUP: &str = "vm.neon.tech";
/// The only version.
pub const VERSION: &str = "v1";
