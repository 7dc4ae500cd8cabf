//! The commands that are used, each with the type of its answer.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A command: serialises to its arguments.
pub trait Command: Serialize + Sync {
    /// QEMU's name of it.
    const NAME: &'static str;
    /// What it returns.
    type Answer: DeserializeOwned + Send;
}

/// The answer of commands that return nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Empty {}

/// A command without arguments.
macro_rules! plain {
    ($(#[$doc:meta])* $name:ident = $wire:literal -> $answer:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        pub struct $name {}
        impl Command for $name {
            const NAME: &'static str = $wire;
            type Answer = $answer;
        }
    };
}

plain!(/// Ends the negotiation, without optional capabilities.
    QmpCapabilities = "qmp_capabilities" -> Empty);
plain!(/// Whether the guest runs.
    QueryStatus = "query-status" -> Status);
plain!(/// The vCPUs that exist.
    QueryCpus = "query-cpus-fast" -> Vec<Cpu>);
plain!(/// All places for vCPUs, in no useful order.
    QueryHotpluggableCpus = "query-hotpluggable-cpus" -> Vec<HotpluggableCpu>);
plain!(/// Pauses the guest.
    Stop = "stop" -> Empty);
plain!(/// Lets the guest run on.
    Cont = "cont" -> Empty);
plain!(/// Ends QEMU at once.
    Quit = "quit" -> Empty);
plain!(/// Presses the power button.
    SystemPowerdown = "system_powerdown" -> Empty);

/// Answer to [`QueryStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// The guest's CPUs run.
    pub running: bool,
    /// For example `running`, `paused`, `shutdown`, `guest-panicked`.
    pub status: String,
}

/// One vCPU of [`QueryCpus`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cpu {
    /// Its number.
    pub cpu_index: u32,
    /// Its place in the object tree.
    pub qom_path: String,
}

/// One place of [`QueryHotpluggableCpus`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct HotpluggableCpu {
    /// The driver to plug here.
    #[serde(rename = "type")]
    pub driver: String,
    /// The place, as arguments of [`DeviceAdd`].
    pub props: Map<String, Value>,
    /// The vCPU that is here.
    #[serde(rename = "qom-path")]
    pub qom_path: Option<String>,
}

impl HotpluggableCpu {
    /// Sorts places in the order in which CPUs boot: socket, core, thread.
    #[must_use]
    pub fn position(&self) -> [u64; 4] {
        ["socket-id", "die-id", "core-id", "thread-id"]
            .map(|key| self.props.get(key).and_then(Value::as_u64).unwrap_or(0))
    }

    /// The id of the device that was added here, if one was.
    #[must_use]
    pub fn added_id(&self) -> Option<&str> {
        self.qom_path.as_deref()?.strip_prefix("/machine/peripheral/")
    }
}

/// Adds a device; for a vCPU it returns before the guest sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceAdd {
    /// Kind of the device.
    pub driver: String,
    /// Its id.
    pub id: String,
    /// Everything else.
    #[serde(flatten)]
    pub arguments: Map<String, Value>,
}

impl Command for DeviceAdd {
    const NAME: &'static str = "device_add";
    type Answer = Empty;
}

/// Asks the guest to let a device go: the end is the event `DEVICE_DELETED`, a refusal, or nothing at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceDel {
    /// Its id.
    pub id: String,
}

impl Command for DeviceDel {
    const NAME: &'static str = "device_del";
    type Answer = Empty;
}

/// Reads a property of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QomGet {
    /// The object.
    pub path: String,
    /// Its property.
    pub property: String,
}

impl Command for QomGet {
    const NAME: &'static str = "qom-get";
    type Answer = Value;
}

/// Writes a property of an object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QomSet {
    /// The object.
    pub path: String,
    /// Its property.
    pub property: String,
    /// The new value.
    pub value: Value,
}

impl Command for QomSet {
    const NAME: &'static str = "qom-set";
    type Answer = Empty;
}

/// Adds a character device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChardevAdd {
    /// Its id.
    pub id: String,
    /// What is behind it.
    pub backend: Value,
}

impl ChardevAdd {
    /// One that connects to the Unix socket at `path`.
    #[must_use]
    pub fn unix_client(id: &str, path: &str) -> Self {
        let address = json!({"type": "unix", "data": {"path": path}});
        let backend = json!({"type": "socket", "data": {"addr": address, "server": false}});
        Self { id: id.to_owned(), backend }
    }
}

impl Command for ChardevAdd {
    const NAME: &'static str = "chardev-add";
    type Answer = Value;
}

/// Removes a character device; it is busy until its user is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChardevRemove {
    /// Its id.
    pub id: String,
}

impl Command for ChardevRemove {
    const NAME: &'static str = "chardev-remove";
    type Answer = Empty;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let props = json!({"core-id": 1, "socket-id": 0}).as_object().unwrap().clone();
        let add =
            DeviceAdd { driver: "max-x86_64-cpu".into(), id: "cpu1".into(), arguments: props };
        for (value, wire) in [
            (serde_json::to_value(Quit {}).unwrap(), json!({})),
            (
                serde_json::to_value(add).unwrap(),
                json!({"driver": "max-x86_64-cpu", "id": "cpu1", "core-id": 1, "socket-id": 0}),
            ),
            (
                serde_json::to_value(ChardevAdd::unix_client("vhu", "/run/vm/vhu.sock")).unwrap(),
                json!({"id": "vhu", "backend": {"type": "socket", "data": {
                    "addr": {"type": "unix", "data": {"path": "/run/vm/vhu.sock"}}, "server": false}}}),
            ),
        ] {
            assert_eq!(value, wire);
        }
    }

    #[test]
    fn answers_of_other_versions() {
        let slots: Vec<HotpluggableCpu> = serde_json::from_value(json!([
            {"props": {"core-id": 1, "thread-id": 0, "socket-id": 0, "node-id": 0}, "vcpus-count": 1,
             "qom-path": "/machine/peripheral/cpu1", "type": "max-x86_64-cpu", "new": []},
            {"props": {"core-id": 0, "thread-id": 0, "socket-id": 0}, "vcpus-count": 1,
             "qom-path": "/machine/unattached/device[0]", "type": "max-x86_64-cpu"},
            {"props": {"core-id": 2, "module-id": 0}, "vcpus-count": 1, "type": "max-x86_64-cpu"},
        ]))
        .unwrap();
        let ids: Vec<_> = slots.iter().map(HotpluggableCpu::added_id).collect();
        assert_eq!(ids, [Some("cpu1"), None, None]);
        assert!(
            slots[1].position() < slots[0].position() && slots[0].position() < slots[2].position()
        );
        let status: Status = serde_json::from_value(
            json!({"running": true, "status": "brand-new", "singlestep": false}),
        )
        .unwrap();
        assert!(status.running);
    }
}
