//! What may not change once a VM exists: one list, from which both the admission policy and
//! [`validate_update`] come. Fields that are in neither list may change; they act at once or on the next pod.

use crate::validation::Problem;
use crate::vm::VirtualMachineSpec;

/// A condition on a change of a VM's spec.
#[derive(Clone, Copy, Debug)]
pub struct UpdateRule {
    /// Path that is reported.
    pub field: &'static str,
    /// What must hold.
    pub message: &'static str,
    /// The condition for the API server, on `oldObject` and `object`.
    pub cel: &'static str,
    /// The condition for the operator, on the old and the new spec.
    pub holds: fn(&VirtualMachineSpec, &VirtualMachineSpec) -> bool,
}

const FIXED: &str = "cannot be changed";
const ONCE: &str = "cannot be changed once it is set";

/// A field that keeps its first value. Arguments: path in JSON (last step by itself), path in Rust.
macro_rules! fixed {
    ($parent:literal, $name:literal, $($rust:ident).+) => {
        UpdateRule {
            field: concat!($parent, ".", $name),
            message: FIXED,
            cel: concat!("object.", $parent, ".?", $name, " == oldObject.", $parent, ".?", $name),
            holds: |old, new| old.$($rust).+ == new.$($rust).+,
        }
    };
}

/// A quantity that keeps its value, however it is written.
macro_rules! fixed_quantity {
    ($path:literal, $($rust:ident).+) => {
        UpdateRule {
            field: $path,
            message: FIXED,
            cel: concat!(
                "quantity(string(object.", $path, ")).compareTo(quantity(string(oldObject.", $path, "))) == 0"
            ),
            holds: |old, new| old.$($rust).+ == new.$($rust).+,
        }
    };
}

/// A field that may be set later, but only once.
macro_rules! once {
    ($parent:literal, $name:literal, $($rust:ident).+) => {
        UpdateRule {
            field: concat!($parent, ".", $name),
            message: ONCE,
            cel: concat!(
                "!has(oldObject.", $parent, ".", $name, ") || object.", $parent, ".?", $name,
                " == oldObject.", $parent, ".?", $name
            ),
            holds: |old, new| old.$($rust).+.is_none() || old.$($rust).+ == new.$($rust).+,
        }
    };
}

/// All rules, in the order of the spec's fields.
pub const RULES: &[UpdateRule] = &[
    fixed!("spec", "qmp", qmp),
    fixed!("spec", "runnerPort", runner_port),
    fixed!("spec", "podResources", pod_resources),
    once!("spec", "targetArchitecture", target_architecture),
    fixed!("spec", "initScript", init_script),
    fixed!("spec", "disks", disks),
    fixed!("spec", "extraNetwork", extra_network),
    fixed!("spec", "enableAcceleration", enable_acceleration),
    fixed!("spec", "enableSSH", enable_ssh),
    fixed!("spec", "tls", tls),
    once!("spec", "cpuScalingMode", cpu_scaling_mode),
    fixed!("spec.guest", "kernelImage", guest.kernel_image),
    fixed_quantity!("spec.guest.cpus.min", guest.cpus.min),
    fixed_quantity!("spec.guest.cpus.max", guest.cpus.max),
    fixed_quantity!("spec.guest.memorySlotSize", guest.memory_slot_size),
    fixed!("spec.guest.memorySlots", "min", guest.memory_slots.min),
    fixed!("spec.guest.memorySlots", "max", guest.memory_slots.max),
    fixed!("spec.guest", "rootDisk", guest.root_disk),
    fixed!("spec.guest", "command", guest.command),
    fixed!("spec.guest", "args", guest.args),
    fixed!("spec.guest", "env", guest.env),
    fixed!("spec.guest", "ports", guest.ports),
    fixed!("spec.guest", "settings", guest.settings),
];

/// Everything that may not change but does; the new spec by itself is for [`crate::validate`].
#[must_use]
pub fn validate_update(old: &VirtualMachineSpec, new: &VirtualMachineSpec) -> Vec<Problem> {
    RULES
        .iter()
        .filter(|rule| !(rule.holds)(old, new))
        .map(|rule| Problem { field: rule.field.to_owned(), message: rule.message.to_owned() })
        .collect()
}
