//! QEMU's monitor protocol (QMP): lines of JSON over a Unix socket.
//!
//! ```text
//! QEMU:  {"QMP": {"version": .., "capabilities": [..]}}         greeting, once
//! we:    {"execute": "qmp_capabilities", "id": 0}               negotiation, once
//! we:    {"execute": NAME, "arguments": {..}, "id": n}
//! QEMU:  {"return": {..}, "id": n} | {"error": {"class", "desc"}, "id": n}
//! QEMU:  {"event": NAME, "data": {..}, "timestamp": {..}}       at any time, also before an answer
//! ```
//!
//! - `wire` knows lines and the shape of messages, without any IO.
//! - `command` holds the commands that are used, each with the type of its answer. The types are our own and
//!   take only the fields that are read: answers and enums grow with every version of QEMU, and a new word
//!   must never end a connection.
//! - `event` keeps an event as name and raw value, decoded by whoever cares.
//! - `client` (feature `io`) drives a connection: ids, deadlines, late answers, events.

#![forbid(unsafe_code)]

#[cfg(feature = "io")]
mod client;
mod command;
#[cfg(feature = "io")]
mod error;
mod event;
mod wire;

#[cfg(feature = "io")]
pub use client::{Client, Driver, Events};
pub use command::{
    ChardevAdd, ChardevRemove, Command, Cont, Cpu, DeviceAdd, DeviceDel, Empty, HotpluggableCpu,
    QmpCapabilities, QomGet, QomSet, QueryCpus, QueryHotpluggableCpus, QueryStatus, Quit, Status,
    Stop, SystemPowerdown,
};
#[cfg(feature = "io")]
pub use error::QmpError;
pub use event::{DeletedDevice, Event};
pub use wire::{LINE_LIMIT, Lines, Message, Refusal, WireError, request};
