//! What this release does not act on: refused where it asks for something, warned of where it is
//! written without asking.

use super::Rule;
use crate::vm::{
    CpuArchitecture, DEFAULT_QMP_MANUAL_PORT, DEFAULT_QMP_PORT, DEFAULT_RUNNER_PORT, thousandths,
};

pub(super) const RULES: &[Rule] = &[
    Rule {
        at: "qmp",
        field: "spec.qmp",
        message: "another port than 20183 is not supported: the QEMU monitor is not on the network",
        cel: "self == 20183",
        holds: |spec| spec.qmp == DEFAULT_QMP_PORT,
        warn_when: None,
    },
    Rule {
        at: "qmpManual",
        field: "spec.qmpManual",
        message: "another port than 20184 is not supported",
        cel: "self == 20184",
        holds: |spec| spec.qmp_manual == DEFAULT_QMP_MANUAL_PORT,
        warn_when: None,
    },
    Rule {
        at: "runnerPort",
        field: "spec.runnerPort",
        message: "another port than 25183 is not supported",
        cel: "self == 25183",
        holds: |spec| spec.runner_port == DEFAULT_RUNNER_PORT,
        warn_when: None,
    },
    Rule {
        at: "targetArchitecture",
        field: "spec.targetArchitecture",
        message: "arm64 is not supported yet",
        cel: "self != 'arm64'",
        holds: |spec| spec.target_architecture != Some(CpuArchitecture::Arm64),
        warn_when: None,
    },
    Rule {
        at: "extraInitContainers",
        field: "spec.extraInitContainers",
        message: "not supported yet",
        cel: "self.size() == 0",
        holds: |spec| spec.extra_init_containers.is_empty(),
        warn_when: Some("has(object.spec.extraInitContainers)"),
    },
    Rule {
        at: "initScript",
        field: "spec.initScript",
        message: "not supported yet",
        cel: "self == ''",
        holds: |spec| spec.init_script.as_ref().is_none_or(String::is_empty),
        warn_when: Some("has(object.spec.initScript)"),
    },
    Rule {
        at: "disks",
        field: "spec.disks",
        message: "disks besides the root disk are not supported yet",
        cel: "self.size() == 0",
        holds: |spec| spec.disks.is_empty(),
        warn_when: Some("has(object.spec.disks)"),
    },
    Rule {
        at: "extraNetwork",
        field: "spec.extraNetwork.enable",
        message: "the overlay network is not supported yet",
        cel: "!self.enable",
        holds: |spec| spec.extra_network.as_ref().is_none_or(|network| !network.enable),
        warn_when: Some("has(object.spec.extraNetwork)"),
    },
    Rule {
        at: "",
        field: "spec.tls",
        message: "certificates inside the guest are not supported yet",
        cel: "!has(self.tls)",
        holds: |spec| spec.tls.is_none(),
        warn_when: None,
    },
    Rule {
        at: "enableNetworkMonitoring",
        field: "spec.enableNetworkMonitoring",
        message: "not supported yet",
        cel: "!self",
        holds: |spec| !spec.enable_network_monitoring,
        warn_when: None,
    },
    Rule {
        at: "enableSSH",
        field: "spec.enableSSH",
        message: "keys for SSH are not made yet; set it to false to say that none are wanted",
        cel: "true",
        // The reference's default asks for keys, so refusing would refuse nearly every manifest.
        holds: |_| true,
        warn_when: Some("has(object.spec.enableSSH) && object.spec.enableSSH"),
    },
    Rule {
        at: "guest.kernelImage",
        field: "spec.guest.kernelImage",
        message: "not supported yet: the runner's kernel is used",
        cel: "self == ''",
        holds: |spec| spec.guest.kernel_image.as_ref().is_none_or(String::is_empty),
        warn_when: Some("has(object.spec.guest.kernelImage)"),
    },
    Rule {
        at: "guest.memhpAutoMovableRatio",
        field: "spec.guest.memhpAutoMovableRatio",
        message: "not supported yet",
        cel: "self == ''",
        holds: |spec| spec.guest.memhp_auto_movable_ratio.as_ref().is_none_or(String::is_empty),
        warn_when: Some("has(object.spec.guest.memhpAutoMovableRatio)"),
    },
    Rule {
        at: "guest.rootDisk",
        field: "spec.guest.rootDisk.size",
        message: "growing the root disk is not supported yet",
        cel: "!has(self.size)",
        holds: |spec| spec.guest.root_disk.size.is_none(),
        warn_when: None,
    },
    Rule {
        at: "guest.rootDisk.execute",
        field: "spec.guest.rootDisk.execute",
        message: "not supported",
        cel: "self.size() == 0",
        holds: |spec| spec.guest.root_disk.execute.is_empty(),
        warn_when: Some("has(object.spec.guest.rootDisk.execute)"),
    },
    Rule {
        at: "guest.settings",
        field: "spec.guest.settings.sysctl",
        message: "not supported yet",
        cel: "!has(self.sysctl) || self.sysctl.size() == 0",
        holds: |spec| spec.guest.settings.as_ref().is_none_or(|it| it.sysctl.is_empty()),
        warn_when: Some("has(object.spec.guest.settings)"),
    },
    Rule {
        at: "guest.settings",
        field: "spec.guest.settings.swap",
        message: "not supported yet",
        cel: "!has(self.swap) || quantity(string(self.swap)).compareTo(quantity('0')) == 0",
        holds: |spec| {
            let swap = spec.guest.settings.as_ref().and_then(|it| it.swap.as_ref());
            swap.is_none_or(|swap| thousandths(swap) == Some(0))
        },
        warn_when: None,
    },
];
