//! What may not change once a VM exists: the API server checks it, by the admission policy that is made from
//! this list. Fields that are not in it may change; they act at once or on the next pod.

/// A condition on a change of a VM's spec.
#[derive(Clone, Copy, Debug)]
pub struct UpdateRule {
    /// Path that is reported.
    pub field: &'static str,
    /// What must hold.
    pub message: &'static str,
    /// The condition, on `oldObject` and `object`.
    pub cel: &'static str,
}

const FIXED: &str = "cannot be changed";
const ONCE: &str = "cannot be changed once it is set";

/// A field that keeps its first value. Arguments: its path, the last step by itself.
macro_rules! fixed {
    ($parent:literal, $name:literal) => {
        UpdateRule {
            field: concat!($parent, ".", $name),
            message: FIXED,
            cel: concat!("object.", $parent, ".?", $name, " == oldObject.", $parent, ".?", $name),
        }
    };
}

/// A quantity that keeps its value, however it is written.
macro_rules! fixed_quantity {
    ($path:literal) => {
        UpdateRule {
            field: $path,
            message: FIXED,
            cel: concat!(
                "quantity(string(object.",
                $path,
                ")).compareTo(quantity(string(oldObject.",
                $path,
                "))) == 0"
            ),
        }
    };
}

/// A field that may be set later, but only once.
macro_rules! once {
    ($parent:literal, $name:literal) => {
        UpdateRule {
            field: concat!($parent, ".", $name),
            message: ONCE,
            cel: concat!(
                "!has(oldObject.",
                $parent,
                ".",
                $name,
                ") || object.",
                $parent,
                ".?",
                $name,
                " == oldObject.",
                $parent,
                ".?",
                $name
            ),
        }
    };
}

/// All rules, in the order of the spec's fields.
pub const RULES: &[UpdateRule] = &[
    fixed!("spec", "qmp"),
    fixed!("spec", "runnerPort"),
    fixed!("spec", "podResources"),
    once!("spec", "targetArchitecture"),
    fixed!("spec", "initScript"),
    fixed!("spec", "disks"),
    fixed!("spec", "extraNetwork"),
    fixed!("spec", "enableAcceleration"),
    fixed!("spec", "enableSSH"),
    fixed!("spec", "tls"),
    once!("spec", "cpuScalingMode"),
    fixed!("spec.guest", "kernelImage"),
    fixed_quantity!("spec.guest.cpus.min"),
    fixed_quantity!("spec.guest.cpus.max"),
    fixed_quantity!("spec.guest.memorySlotSize"),
    fixed!("spec.guest.memorySlots", "min"),
    fixed!("spec.guest.memorySlots", "max"),
    fixed!("spec.guest", "rootDisk"),
    fixed!("spec.guest", "command"),
    fixed!("spec.guest", "args"),
    fixed!("spec.guest", "env"),
    fixed!("spec.guest", "ports"),
    fixed!("spec.guest", "settings"),
];
