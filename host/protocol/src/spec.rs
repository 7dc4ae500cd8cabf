//! The description of a VM that its pod starts with.

use std::collections::BTreeSet;
use std::fmt;

use guest_units::{Bytes, MilliCpu};
use serde::{Deserialize, Serialize};

/// Everything that the runner needs to know to start the VM; JSON in [`SPEC_ENV`](crate::SPEC_ENV).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunnerSpec {
    /// Name of the VirtualMachine.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID.
    pub uid: String,
    /// Name of the pod.
    pub pod_name: String,
    /// Host name inside the guest.
    pub hostname: String,
    /// Least CPU.
    pub cpu_min: MilliCpu,
    /// Most CPU.
    pub cpu_max: MilliCpu,
    /// CPU that the VM boots with, between the two.
    pub cpu_boot: MilliCpu,
    /// Least memory: the base that cannot be unplugged, and what the VM boots with.
    pub memory_min: Bytes,
    /// Most memory.
    pub memory_max: Bytes,
    /// How CPUs come and go.
    pub cpu_scaling: CpuScaling,
    /// Hardware acceleration is wanted where it works.
    #[serde(default)]
    pub acceleration: bool,
    /// Ports of the guest that the pod serves.
    #[serde(default)]
    pub ports: Vec<GuestPort>,
    /// Environment of the workload.
    #[serde(default)]
    pub env: Vec<EnvVar>,
    /// Command of the workload; the image's own when empty.
    #[serde(default)]
    pub command: Vec<String>,
    /// Arguments of the workload.
    #[serde(default)]
    pub args: Vec<String>,
    /// Lines of the guest's `sysctl.conf`.
    #[serde(default)]
    pub sysctl: Vec<String>,
    /// Words to add to the kernel's command line.
    #[serde(default)]
    pub append_kernel_cmdline: String,
}

/// How CPUs come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuScaling {
    /// QEMU adds and removes vCPUs.
    QmpScaling,
    /// All vCPUs exist; the guest switches them on and off.
    SysfsScaling,
}

/// A port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestPort {
    /// Number, the same on the pod and in the guest.
    pub port: u16,
    /// Protocol.
    pub protocol: Transport,
}

/// Protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// An environment variable of the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Value, any text without a NUL byte.
    #[serde(default)]
    pub value: String,
}

/// One thing that is wrong with a description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The JSON field.
    pub field: &'static str,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// virtio-mem plugs blocks of this size.
const MEMORY_BLOCK: u64 = 2 << 20;
/// The kernel takes no longer command line; ours needs some of it.
const CMDLINE_LIMIT: usize = 1024;

impl RunnerSpec {
    /// Everything that is wrong with this description; empty when the VM can start.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut wrong = |field, message: String| found.push(Problem { field, message });
        for (field, value) in [
            ("name", &self.name),
            ("namespace", &self.namespace),
            ("uid", &self.uid),
            ("podName", &self.pod_name),
            ("hostname", &self.hostname),
        ] {
            if !is_word(value) {
                wrong(field, format!("{value:?} is not a name of letters, digits, '-' and '.'"));
            }
        }
        if self.cpu_min == MilliCpu::default() {
            wrong("cpuMin", "must be greater than 0".to_owned());
        }
        if !(self.cpu_min <= self.cpu_boot && self.cpu_boot <= self.cpu_max) {
            wrong("cpuBoot", "must lie between cpuMin and cpuMax".to_owned());
        }
        if self.memory_min == Bytes::default() {
            wrong("memoryMin", "must be greater than 0".to_owned());
        }
        if self.memory_max < self.memory_min {
            wrong("memoryMax", "must not be less than memoryMin".to_owned());
        }
        for (field, value) in [("memoryMin", self.memory_min), ("memoryMax", self.memory_max)] {
            if value.0 % MEMORY_BLOCK != 0 {
                wrong(field, format!("must be a multiple of {MEMORY_BLOCK} bytes"));
            }
        }
        found.extend(self.workload_problems());
        found
    }

    fn workload_problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut wrong = |field, message: String| found.push(Problem { field, message });
        let mut seen = BTreeSet::new();
        for port in &self.ports {
            if port.port == 0 {
                wrong("ports", "0 is not a port".to_owned());
            }
            if !seen.insert(*port) {
                wrong("ports", format!("{} is declared twice", port.port));
            }
            if port.protocol == Transport::Tcp
                && [crate::RUNNER_PORT, crate::ORDERS_PORT].contains(&port.port)
            {
                wrong("ports", format!("{} is the runner's own", port.port));
            }
        }
        for var in &self.env {
            if !is_variable(&var.name) {
                wrong("env", format!("{:?} is not the name of a shell variable", var.name));
            }
            if var.value.contains('\0') {
                wrong("env", format!("the value of {:?} holds a NUL byte", var.name));
            }
        }
        for (field, words) in
            [("command", &self.command), ("args", &self.args), ("sysctl", &self.sysctl)]
        {
            if words.iter().any(|word| word.contains('\0')) {
                wrong(field, "holds a NUL byte".to_owned());
            }
        }
        if self.append_kernel_cmdline.contains(['\0', '\n', '\r']) {
            wrong("appendKernelCmdline", "must be one line".to_owned());
        }
        if self.append_kernel_cmdline.len() > CMDLINE_LIMIT {
            wrong("appendKernelCmdline", format!("is longer than {CMDLINE_LIMIT} bytes"));
        }
        found
    }
}

/// Names end up on command lines and in QEMU's option syntax: only what Kubernetes allows in names.
fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
}

fn is_variable(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}
