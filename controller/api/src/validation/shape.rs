//! What can never work: sizes out of order, names used twice, sources that exclude each other.

use guest_units::{Bytes, MilliCpu};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{POLICY, Rule, unique};
use crate::disk::RESERVED_DISK_NAMES;
use crate::guest::MEMORY_BLOCK;
use crate::vm::{VirtualMachineSpec, thousandths};

/// Names of ports that the runner has itself.
pub(crate) const RESERVED_PORT_NAMES: [&str; 4] = ["qmp", "qmp-manual", "runner", "orders"];
/// Numbers of ports that the runner has itself.
pub(crate) const RESERVED_PORTS: [u16; 2] = [20186, 25183];
/// More than any machine has, and far from where arithmetic on milli-CPUs ends.
const MAX_CPU: MilliCpu = MilliCpu(1024 * 1000);
/// Keeps 512 slots far below 2^63 bytes.
const MAX_SLOT_SIZE: Bytes = Bytes(1 << 40);

pub(super) const RULES: &[Rule] = &[
    Rule {
        at: "guest.cpus",
        field: "spec.guest.cpus.min",
        message: "min must be above zero",
        cel: "quantity(string(self.min)).isGreaterThan(quantity('0'))",
        holds: |spec| spec.guest.cpus.min.0 > 0,
        warn_when: None,
    },
    Rule {
        at: "guest.cpus",
        field: "spec.guest.cpus",
        message: "min <= use <= max must hold",
        cel: "[quantity(string(self.use))].all(it, quantity(string(self.min)).compareTo(it) <= 0 \
              && it.compareTo(quantity(string(self.max))) <= 0)",
        holds: |spec| {
            let cpus = spec.guest.cpus;
            cpus.min <= cpus.r#use && cpus.r#use <= cpus.max
        },
        warn_when: None,
    },
    Rule {
        at: "guest.cpus",
        field: "spec.guest.cpus.max",
        message: "max must be at most 1024",
        cel: "quantity(string(self.max)).compareTo(quantity('1024')) <= 0",
        holds: |spec| spec.guest.cpus.max <= MAX_CPU,
        warn_when: None,
    },
    Rule {
        at: "guest.memorySlots",
        field: "spec.guest.memorySlots",
        message: "min <= use <= max must hold",
        cel: "self.min <= self.use && self.use <= self.max",
        holds: |spec| {
            let slots = spec.guest.memory_slots;
            slots.min >= 1
                && slots.min <= slots.r#use
                && slots.r#use <= slots.max
                && slots.max <= 512
        },
        warn_when: None,
    },
    Rule {
        at: "guest.memorySlotSize",
        field: "spec.guest.memorySlotSize",
        message: "must be a whole multiple of 8Mi, from 8Mi to 1Ti",
        cel: "[quantity(string(self))].all(it, it.isInteger() && it.asInteger() > 0 \
              && it.asInteger() <= 1099511627776 && it.asInteger() % 8388608 == 0)",
        holds: |spec| {
            let size = spec.guest.memory_slot_size;
            size.0 > 0 && size <= MAX_SLOT_SIZE && size.0 % MEMORY_BLOCK.0 == 0
        },
        warn_when: None,
    },
    Rule {
        at: "guest.env",
        field: "spec.guest.env",
        message: "a name must be one that a shell can export: letters, digits and _, no digit first",
        cel: "self.all(e, e.name.matches('^[A-Za-z_][A-Za-z0-9_]*$'))",
        holds: |spec| spec.guest.env.iter().all(|variable| exportable(&variable.name)),
        warn_when: None,
    },
    Rule {
        at: "guest.ports",
        field: "spec.guest.ports",
        message: "the port names qmp, qmp-manual, runner and orders are the runner's own",
        cel: "!self.exists(p, has(p.name) && p.name in ['qmp', 'qmp-manual', 'runner', 'orders'])",
        holds: |spec| {
            let mut names = spec.guest.ports.iter().filter_map(|port| port.name.as_deref());
            !names.any(|name| RESERVED_PORT_NAMES.contains(&name))
        },
        warn_when: None,
    },
    Rule {
        at: "guest.ports",
        field: "spec.guest.ports",
        message: "the ports 20186 and 25183 are the runner's own",
        cel: "!self.exists(p, p.port == 20186 || p.port == 25183)",
        holds: |spec| !spec.guest.ports.iter().any(|port| RESERVED_PORTS.contains(&port.port)),
        warn_when: None,
    },
    Rule {
        at: "guest.ports",
        field: "spec.guest.ports",
        message: "a port name may be used once",
        cel: "self.all(p, !has(p.name) || self.exists_one(q, has(q.name) && q.name == p.name))",
        holds: |spec| unique(spec.guest.ports.iter().filter_map(|port| port.name.as_ref())),
        warn_when: None,
    },
    Rule {
        at: "guest.ports",
        field: "spec.guest.ports",
        message: "a port number may be used once for each protocol",
        cel: "self.all(p, self.exists_one(q, q.port == p.port && q.protocol == p.protocol))",
        holds: |spec| {
            unique(spec.guest.ports.iter().map(|port| (port.port, port.protocol.as_str())))
        },
        warn_when: None,
    },
    Rule {
        at: "disks",
        field: "spec.disks",
        message: "a disk may not have a name that the runner uses itself",
        cel: "!self.exists(d, d.name in ['virtualmachineimages', 'rootdisk', 'runtime', 'swapdisk', \
              'sysfscgroup', 'ssh-privatekey', 'ssh-publickey', 'ssh-authorized-keys', 'tls'])",
        holds: |spec| {
            !spec.disks.iter().any(|disk| RESERVED_DISK_NAMES.contains(&disk.name.as_str()))
        },
        warn_when: None,
    },
    Rule {
        at: "disks",
        field: "spec.disks",
        message: "a disk name may be used once",
        cel: "self.all(d, self.exists_one(e, e.name == d.name))",
        holds: |spec| unique(spec.disks.iter().map(|disk| &disk.name)),
        warn_when: None,
    },
    Rule {
        at: "disks",
        field: "spec.disks",
        message: "a mount path may be used once",
        cel: "self.all(d, self.exists_one(e, e.mountPath == d.mountPath))",
        holds: |spec| unique(spec.disks.iter().map(|disk| &disk.mount_path)),
        warn_when: None,
    },
    Rule {
        at: "disks",
        field: "spec.disks",
        message: "a mount path must be absolute and without ':'",
        cel: "self.all(d, d.mountPath.startsWith('/') && !d.mountPath.contains(':'))",
        holds: |spec| {
            let mut paths = spec.disks.iter().map(|disk| &disk.mount_path);
            paths.all(|path| path.starts_with('/') && !path.contains(':'))
        },
        warn_when: None,
    },
    Rule {
        at: "disks",
        field: "spec.disks",
        message: "a disk has at most one of emptyDisk, configMap, secret and tmpfs",
        cel: "self.all(d, [has(d.emptyDisk), has(d.configMap), has(d.secret), has(d.tmpfs)]\
              .filter(it, it).size() <= 1)",
        holds: |spec| spec.disks.iter().all(|disk| disk.sources() <= 1),
        warn_when: None,
    },
    Rule {
        at: "disks",
        field: "spec.disks",
        message: "the name of an emptyDisk is a file system label: at most 16 characters",
        cel: "self.all(d, !has(d.emptyDisk) || d.name.size() <= 16)",
        holds: |spec| {
            let mut empty = spec.disks.iter().filter(|disk| disk.empty_disk.is_some());
            empty.all(|disk| disk.name.len() <= 16)
        },
        warn_when: None,
    },
    Rule {
        at: "tls",
        field: "spec.tls",
        message: "certificateIssuer and serverName must not be empty",
        cel: "self.certificateIssuer != '' && self.serverName != ''",
        holds: |spec| {
            let tls = spec.tls.as_ref();
            tls.is_none_or(|tls| !tls.certificate_issuer.is_empty() && !tls.server_name.is_empty())
        },
        warn_when: None,
    },
    Rule {
        at: "tls",
        field: "spec.tls",
        message: "renewBefore must be shorter than expireAfter",
        cel: "duration(self.renewBefore) < duration(self.expireAfter)",
        holds: |spec| {
            spec.tls.as_ref().is_none_or(|tls| {
                let times = (milliseconds(&tls.renew_before), milliseconds(&tls.expire_after));
                matches!(times, (Some(renew), Some(expire)) if renew < expire)
            })
        },
        warn_when: None,
    },
    Rule {
        at: "tls",
        field: "spec.tls.mountPath",
        message: "must be absolute and without ':'",
        cel: "self.mountPath.startsWith('/') && !self.mountPath.contains(':')",
        holds: |spec| {
            let tls = spec.tls.as_ref();
            tls.is_none_or(|tls| tls.mount_path.starts_with('/') && !tls.mount_path.contains(':'))
        },
        warn_when: None,
    },
    Rule {
        at: "overcommit",
        field: "spec.overcommit.cpu",
        message: "must be above zero and at most 1000",
        cel: "!has(self.cpu) || (quantity(string(self.cpu)).isGreaterThan(quantity('0')) \
              && quantity(string(self.cpu)).compareTo(quantity('1000')) <= 0)",
        holds: |spec| spec.overcommit.as_ref().is_none_or(|it| it.cpu.as_ref().is_none_or(divides)),
        warn_when: None,
    },
    Rule {
        at: "overcommit",
        field: "spec.overcommit.memory",
        message: "must be above zero and at most 1000",
        cel: "!has(self.memory) || (quantity(string(self.memory)).isGreaterThan(quantity('0')) \
              && quantity(string(self.memory)).compareTo(quantity('1000')) <= 0)",
        holds: |spec| {
            spec.overcommit.as_ref().is_none_or(|it| it.memory.as_ref().is_none_or(divides))
        },
        warn_when: None,
    },
    Rule {
        at: POLICY,
        field: "spec.podResources.limits.memory",
        message: "must not be below the VM's largest memory",
        cel: "!has(object.spec.podResources) || !has(object.spec.podResources.limits) \
              || !('memory' in object.spec.podResources.limits) \
              || quantity(string(object.spec.podResources.limits['memory'])).compareTo(quantity(string(\
              object.spec.guest.memorySlots.max * quantity(string(object.spec.guest.memorySlotSize)).asInteger()))) >= 0",
        holds: |spec| match limit(spec, "memory") {
            None => true,
            Some(limit) => parse::<Bytes>(limit).is_some_and(|it| it >= spec.max_size().memory),
        },
        warn_when: None,
    },
    Rule {
        at: POLICY,
        field: "spec.podResources.limits.cpu",
        message: "must not be below the VM's largest CPU",
        cel: "!has(object.spec.podResources) || !has(object.spec.podResources.limits) \
              || !('cpu' in object.spec.podResources.limits) \
              || quantity(string(object.spec.podResources.limits['cpu']))\
              .compareTo(quantity(string(object.spec.guest.cpus.max))) >= 0",
        holds: |spec| match limit(spec, "cpu") {
            None => true,
            Some(limit) => parse::<MilliCpu>(limit).is_some_and(|it| it >= spec.guest.cpus.max),
        },
        warn_when: None,
    },
];

fn exportable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn divides(divisor: &Quantity) -> bool {
    thousandths(divisor).is_some_and(|divisor| divisor > 0 && divisor <= 1_000_000)
}

fn limit<'a>(spec: &'a VirtualMachineSpec, resource: &str) -> Option<&'a Quantity> {
    spec.pod_resources.as_ref()?.limits.as_ref()?.get(resource)
}

fn parse<T: serde::de::DeserializeOwned>(quantity: &Quantity) -> Option<T> {
    serde_json::from_value(serde_json::Value::String(quantity.0.clone())).ok()
}

/// A duration such as `1h30m`, the fractions of its parts dropped below a millisecond.
fn milliseconds(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |end| digits + end);
        let scale = match &rest[digits..unit_end] {
            "h" => 3_600_000.0,
            "m" => 60_000.0,
            "s" => 1000.0,
            "ms" => 1.0,
            _ => return None,
        };
        let part = std::time::Duration::try_from_secs_f64(number * scale / 1000.0).ok()?;
        total = total.checked_add(u64::try_from(part.as_millis()).ok()?)?;
        rest = &rest[unit_end..];
    }
    Some(total)
}
