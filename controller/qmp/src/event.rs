//! Events: name and raw value, decoded by whoever cares.

use serde::Deserialize;
use serde_json::Value;

/// Something that happened in QEMU.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// For example `DEVICE_DELETED`; newer versions know more names.
    pub name: String,
    /// Its data, `Null` without any.
    pub data: Value,
}

/// Data of `DEVICE_DELETED` and `DEVICE_UNPLUG_GUEST_ERROR`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DeletedDevice {
    /// The id, where the device has one. A vCPU's inner device has none.
    pub device: Option<String>,
    /// The path in QEMU's object tree.
    pub path: String,
}

impl Event {
    /// A device is gone: its id or its path tells which one.
    #[must_use]
    pub fn deleted(&self) -> Option<DeletedDevice> {
        self.decode("DEVICE_DELETED")
    }

    /// The guest refused to let a device go.
    #[must_use]
    pub fn unplug_refused(&self) -> Option<DeletedDevice> {
        self.decode("DEVICE_UNPLUG_GUEST_ERROR")
    }

    fn decode<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Option<T> {
        (self.name == name).then(|| T::deserialize(&self.data).ok()).flatten()
    }
}

impl DeletedDevice {
    /// Whether this is the device `id`. For a vCPU only the path of its inner device is told
    /// (`/machine/peripheral/ID/lapic`).
    #[must_use]
    pub fn is(&self, id: &str) -> bool {
        let below =
            self.path.strip_prefix("/machine/peripheral/").and_then(|rest| rest.strip_prefix(id));
        self.device.as_deref() == Some(id)
            || below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, data: Value) -> Event {
        Event { name: name.to_owned(), data }
    }

    #[test]
    fn a_deleted_device_is_known_by_id_or_path() {
        for (data, id, is) in [
            (json!({"path": "/machine/peripheral/cpu1/lapic"}), "cpu1", true),
            (json!({"path": "/machine/peripheral/cpu1/lapic"}), "cpu", false),
            (json!({"path": "/machine/peripheral/cpu10/lapic"}), "cpu1", false),
            (json!({"path": "/machine/peripheral/vsock0", "device": "vsock0"}), "vsock0", true),
            (json!({"path": "/machine/unattached/device[0]"}), "cpu1", false),
        ] {
            assert_eq!(
                event("DEVICE_DELETED", data.clone()).deleted().unwrap().is(id),
                is,
                "{data}"
            );
        }
    }

    #[test]
    fn other_events_and_other_shapes_are_nothing() {
        assert_eq!(event("STOP", Value::Null).deleted(), None);
        assert_eq!(event("DEVICE_DELETED", json!({"changed": 1})).deleted(), None);
        let refused =
            event("DEVICE_UNPLUG_GUEST_ERROR", json!({"path": "/machine/peripheral/cpu1"}));
        assert!(refused.unplug_refused().unwrap().is("cpu1"));
    }
}
