//! Does a guest really boot with KVM here?
//!
//! `/dev/kvm` may exist, open, and even create a VM, and still never run an ordinary guest (a paravirtual back
//! end does that). So two things are asked for: the CPU says `vmx` or `svm`, and the device opens. Without any
//! capability the agent's own container may not open it (the device cgroup answers EPERM): that the node is there
//! and that its driver is not missing is what an unprivileged process can find out, so EPERM counts as open.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

/// All CPUs of a machine have the same flags: the first one's are within this.
const CPUINFO_BYTES: u64 = 64 * 1024;
const EPERM: i32 = 1;

/// Whether there is such a device.
pub(super) fn is_character_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_char_device())
}

/// `Err`: why not.
pub(super) fn kvm(device: &Path, cpuinfo: &Path) -> Result<(), &'static str> {
    if !is_character_device(device) {
        return Err("there is no kvm device");
    }
    if !cpu_virtualises(cpuinfo) {
        return Err("the CPU flags have neither vmx nor svm");
    }
    let opened = OpenOptions::new().read(true).write(true).open(device);
    if opens(opened.map(drop)) { Ok(()) } else { Err("the kvm device does not open") }
}

fn opens(opened: io::Result<()>) -> bool {
    match opened {
        Ok(()) => true,
        Err(err) => err.raw_os_error() == Some(EPERM),
    }
}

fn cpu_virtualises(cpuinfo: &Path) -> bool {
    let mut text = Vec::new();
    let read = File::open(cpuinfo).and_then(|f| f.take(CPUINFO_BYTES).read_to_end(&mut text));
    read.is_ok() && has_flag(&String::from_utf8_lossy(&text))
}

fn has_flag(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| matches!(flag, "vmx" | "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_decide_and_a_forbidden_device_counts_as_open() {
        assert!(has_flag("flags\t\t: fpu vmx sse\n"));
        assert!(has_flag("model\t: x\nflags\t: svm\n"));
        assert!(!has_flag("flags\t: fpu sse\nvmx flags\t: vnmi\nbugs\t: vmx\n"));
        assert!(opens(Ok(())));
        assert!(opens(Err(io::Error::from_raw_os_error(EPERM))));
        assert!(!opens(Err(io::Error::from_raw_os_error(19))), "no driver");
        assert_eq!(kvm(Path::new("/none"), Path::new("/none")), Err("there is no kvm device"));
        assert!(!is_character_device(Path::new("/proc/self/exe")));
        assert!(is_character_device(Path::new("/dev/null")));
    }
}
