//! QEMU's command line: VM and machine in, words out.
//!
//! Every device has an explicit place, so that a second QEMU with the same description has the same PCI
//! topology whatever was plugged in between. All memory is a shared memfd, because the vsock back end maps
//! it. What a VM may grow by exists from the start: places for vCPUs, and one virtio-mem device as large as
//! the difference between most and least memory.

use std::path::PathBuf;

use guest_units::Bytes;
use host_protocol::{
    CONFIG_DISK_SERIAL, CpuScaling, GUEST_ADDRESS, HOST_ADDRESS, RunnerSpec, TAP_NAME,
};

/// Under emulation QEMU aborts once more vCPUs were ever created than places exist: have many.
const EMULATED_PLACES: u32 = 64;
/// Network of the tap.
const NETMASK: &str = "255.255.255.252";

/// Id of the virtio-mem device.
pub(crate) const MEMORY_DEVICE: &str = "vm0";
/// Id of the vsock device.
pub(crate) const VSOCK_DEVICE: &str = "vsock0";
/// Id of its character device.
pub(crate) const VSOCK_CHARDEV: &str = "vhu";
/// The bus that the vsock device sits on; it can be unplugged there.
pub(crate) const VSOCK_BUS: &str = "rp1";
/// The VM's address on its own vsock.
pub(crate) const GUEST_CID: u32 = 3;

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accel {
    /// The processor.
    Kvm,
    /// An emulator.
    Tcg,
}

/// What the machine offers and where files are.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) accel: Accel,
    /// The kernel moves packets between tap and guest.
    pub(crate) vhost_net: bool,
    pub(crate) kernel: PathBuf,
    pub(crate) root_disk: PathBuf,
    pub(crate) config_disk: PathBuf,
    pub(crate) qmp_socket: PathBuf,
    pub(crate) vsock_backend: PathBuf,
}

/// How many vCPUs a VM starts with and has places for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cpus {
    pub(crate) start: u32,
    pub(crate) places: u32,
}

/// vCPUs of a VM.
pub(crate) fn cpus(spec: &RunnerSpec, accel: Accel) -> Cpus {
    let most = spec.cpu_max.whole_up();
    match (spec.cpu_scaling, accel) {
        (CpuScaling::SysfsScaling, _) => Cpus { start: most, places: most },
        (CpuScaling::QmpScaling, Accel::Kvm) => {
            Cpus { start: spec.cpu_min.whole_up(), places: most }
        }
        (CpuScaling::QmpScaling, Accel::Tcg) => {
            Cpus { start: spec.cpu_min.whole_up(), places: most.max(EMULATED_PLACES) }
        }
    }
}

/// All words after the program's name.
pub(crate) fn arguments(spec: &RunnerSpec, machine: &Machine) -> Vec<String> {
    let mut line = Line(Vec::new());
    base(&mut line, spec, machine);
    disks(&mut line, machine);
    devices(&mut line, spec, machine);
    memory_device(&mut line, spec);
    line.0
}

/// Words in pairs of option and value.
struct Line(Vec<String>);

impl Line {
    fn flag(&mut self, option: &str) {
        self.0.push(option.to_owned());
    }

    fn pair(&mut self, option: &str, value: impl Into<String>) {
        self.flag(option);
        self.0.push(value.into());
    }
}

fn base(line: &mut Line, spec: &RunnerSpec, machine: &Machine) {
    let Cpus { start, places } = cpus(spec, machine.accel);
    line.pair("-name", spec.name.as_str());
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.flag("-no-reboot");
    line.pair("-display", "none");
    line.pair("-action", "panic=exit-failure"); // else a panic ends like a clean stop
    line.pair("-M", "pc-q35-10.0,memory-backend=mem0,hpet=off");
    match machine.accel {
        Accel::Kvm => {
            line.pair("-accel", "kvm");
            line.pair("-cpu", "host");
        }
        Accel::Tcg => {
            line.pair("-accel", "tcg,thread=multi");
            line.pair("-cpu", "max");
        }
    }
    line.pair("-smp", format!("cpus={start},maxcpus={places},sockets=1,cores={places},threads=1"));
    let least = mib(spec.memory_min);
    if spec.memory_max > spec.memory_min {
        line.pair("-m", format!("size={least}M,maxmem={}M,slots=1", mib(spec.memory_max)));
    } else {
        line.pair("-m", format!("size={least}M"));
    }
    line.pair("-object", format!("memory-backend-memfd,id=mem0,size={least}M,share=on"));
    line.pair("-kernel", path(&machine.kernel));
    line.pair("-append", kernel_arguments(spec));
    line.pair("-chardev", "stdio,id=con,signal=off"); // the runner copies it to the pod's log
    line.pair("-serial", "chardev:con");
    line.pair("-qmp", format!("unix:{},server=on,wait=off", path(&machine.qmp_socket)));
}

fn disks(line: &mut Line, machine: &Machine) {
    let root = path(&machine.root_disk);
    line.pair("-blockdev", format!("driver=file,node-name=rootf,filename={root},discard=unmap"));
    line.pair("-blockdev", "driver=qcow2,node-name=root,file=rootf,discard=unmap");
    line.pair("-device", "virtio-blk-pci,drive=root,id=root,addr=3");
    let config = path(&machine.config_disk);
    line.pair("-blockdev", format!("driver=file,node-name=confn,filename={config},read-only=on"));
    line.pair("-blockdev", "driver=raw,node-name=conf,file=confn,read-only=on");
    line.pair(
        "-device",
        format!("virtio-blk-pci,drive=conf,id=conf,serial={CONFIG_DISK_SERIAL},addr=4"),
    );
}

fn devices(line: &mut Line, spec: &RunnerSpec, machine: &Machine) {
    line.pair("-device", "virtio-rng-pci,addr=5");
    let vhost = if machine.vhost_net { "on" } else { "off" };
    line.pair(
        "-netdev",
        format!("tap,id=n0,ifname={TAP_NAME},script=no,downscript=no,vhost={vhost}"),
    );
    let mac = mac(&spec.uid);
    line.pair("-device", format!("virtio-net-pci,netdev=n0,id=net0,mac={mac},addr=6,romfile="));
    line.pair(
        "-device",
        "virtio-balloon-pci,id=bal0,addr=7,free-page-reporting=on,deflate-on-oom=on",
    );
    line.pair("-device", format!("pcie-root-port,id={VSOCK_BUS},chassis=1,slot=1,addr=8"));
    line.pair("-device", "pcie-root-port,id=rp2,chassis=2,slot=2,addr=9");
    line.pair("-device", "pvpanic-pci,id=panic0,addr=b");
    let backend = path(&machine.vsock_backend);
    line.pair("-chardev", format!("socket,id={VSOCK_CHARDEV},path={backend}"));
    line.pair(
        "-device",
        format!("vhost-user-vsock-pci,chardev={VSOCK_CHARDEV},id={VSOCK_DEVICE},bus={VSOCK_BUS}"),
    );
}

/// Without room to grow there is no device: its size would be 0.
fn memory_device(line: &mut Line, spec: &RunnerSpec) {
    let room = mib(spec.memory_max) - mib(spec.memory_min);
    if room == 0 {
        return;
    }
    line.pair(
        "-object",
        format!("memory-backend-memfd,id=vmem0,size={room}M,share=on,reserve=off"),
    );
    line.pair(
        "-device",
        format!("virtio-mem-pci,id={MEMORY_DEVICE},memdev=vmem0,requested-size=0,addr=a"),
    );
}

/// The kernel's command line. `swiotlb=noforce` gives the guest 64 MiB back that it would reserve otherwise;
/// `noreplace-smp` spares it from rewriting its locks for the only CPU that it boots with, and back for the second.
fn kernel_arguments(spec: &RunnerSpec) -> String {
    let hostname = spec.hostname.split('.').next().unwrap_or_default();
    let mut words = vec![
        "console=ttyS0 reboot=k panic=-1 quiet".to_owned(),
        "root=/dev/vda rw rootfstype=ext4 init=/init".to_owned(),
        "memhp_default_state=online_movable swiotlb=noforce noreplace-smp".to_owned(),
        format!("ip={GUEST_ADDRESS}::{HOST_ADDRESS}:{NETMASK}:{hostname}:eth0:off"),
    ];
    let appended = spec.append_kernel_cmdline.trim();
    if !appended.is_empty() {
        words.push(appended.to_owned());
    }
    if spec.cpu_scaling == CpuScaling::SysfsScaling {
        words.push(format!("maxcpus={}", spec.cpu_min.whole_up())); // last: it is ours to say
    }
    words.join(" ")
}

/// A locally administered address that follows from the VM, so that it stays over restarts.
pub(crate) fn mac(uid: &str) -> String {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let hash = uid.bytes().fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
    format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}

fn mib(bytes: Bytes) -> u64 {
    bytes.0 >> 20
}

/// In QEMU's option syntax a comma is written twice.
fn path(path: &std::path::Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use guest_units::MilliCpu;

    use super::*;
    use crate::snapshot;
    use crate::testing::spec;

    fn machine(accel: Accel) -> Machine {
        Machine {
            accel,
            vhost_net: accel == Accel::Kvm,
            kernel: "/vm/kernel/vmlinux".into(),
            root_disk: "/disks/root.qcow2".into(),
            config_disk: "/disks/config.tar".into(),
            qmp_socket: "/run/vm/qmp.sock".into(),
            vsock_backend: "/run/vm/vhu.sock".into(),
        }
    }

    fn text(spec: &RunnerSpec, accel: Accel) -> String {
        let mut text = String::new();
        for word in arguments(spec, &machine(accel)) {
            text.push_str(if word.starts_with('-') { "\n" } else { " " });
            text.push_str(&word);
        }
        text.trim_start().to_owned() + "\n"
    }

    #[test]
    fn emulated_with_hotplug() {
        let spec = RunnerSpec { cpu_scaling: CpuScaling::QmpScaling, ..spec() };
        snapshot::check("qemu-tcg-qmp.txt", &text(&spec, Accel::Tcg));
    }

    #[test]
    fn emulated_with_sysfs() {
        let mut spec = spec();
        spec.append_kernel_cmdline = " debug maxcpus=9 ".to_owned();
        snapshot::check("qemu-tcg-sysfs.txt", &text(&spec, Accel::Tcg));
    }

    #[test]
    fn accelerated_without_room_to_grow() {
        let mut spec = RunnerSpec { cpu_scaling: CpuScaling::QmpScaling, ..spec() };
        spec.memory_max = spec.memory_min;
        snapshot::check("qemu-kvm-fixed.txt", &text(&spec, Accel::Kvm));
    }

    #[test]
    fn places_for_cpus() {
        for (scaling, accel, min, max, start, places) in [
            (CpuScaling::QmpScaling, Accel::Tcg, 250, 4000, 1, 64),
            (CpuScaling::QmpScaling, Accel::Tcg, 1500, 80_000, 2, 80),
            (CpuScaling::QmpScaling, Accel::Kvm, 1500, 4500, 2, 5),
            (CpuScaling::SysfsScaling, Accel::Tcg, 250, 1500, 2, 2),
        ] {
            let spec = RunnerSpec {
                cpu_scaling: scaling,
                cpu_min: MilliCpu(min),
                cpu_max: MilliCpu(max),
                ..spec()
            };
            assert_eq!(cpus(&spec, accel), Cpus { start, places });
        }
    }

    #[test]
    fn a_mac_is_local_and_follows_from_the_vm() {
        let one = mac("6f8e2c1a-0000-4000-8000-1234567890ab");
        assert_eq!(one, mac("6f8e2c1a-0000-4000-8000-1234567890ab"));
        assert_ne!(one, mac("6f8e2c1a-0000-4000-8000-1234567890ac"));
        assert!(one.starts_with("02:") && one.len() == 17, "{one}");
    }
}
