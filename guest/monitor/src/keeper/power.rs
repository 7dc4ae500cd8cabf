//! The power button, and the end of the machine.
//!
//! The kernel tells of the button by generic netlink: family `acpi_event`, multicast group
//! `acpi_mc_group`. No input device and no daemon are needed for that.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

/// Sockets and a buffer only.
const STACK: usize = 64 * 1024;
const FAMILY: &[u8] = b"acpi_event\0";
const GROUP: &[u8] = b"acpi_mc_group\0";
const BUTTON: &[u8] = b"button/power";

/// Lengths of the headers before the attributes.
const NETLINK_HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
/// The family that knows the others, and what it is asked.
const CONTROL_FAMILY: u16 = 16;
const GET_FAMILY: u8 = 3;
const REQUEST: u16 = 1;
const ATTR_FAMILY_NAME: u16 = 2;
const ATTR_GROUPS: u16 = 7;
const ATTR_GROUP_NAME: u16 = 1;
const ATTR_GROUP_ID: u16 = 2;
const ATTR_EVENT: u16 = 1;
/// The two upper bits of an attribute's type are flags.
const ATTR_TYPE: u16 = 0x3fff;

/// Runs the power-off command, once at a time.
#[derive(Clone)]
pub(crate) struct Poweroff {
    command: Arc<Vec<String>>,
    running: Arc<Mutex<Option<Child>>>,
}

impl Poweroff {
    pub(crate) fn new(command: Vec<String>) -> Self {
        Self { command: Arc::new(command), running: Arc::default() }
    }

    /// Starts it, unless it is running already.
    pub(crate) fn run(&self, why: &'static str) -> io::Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = running.as_mut()
            && child.try_wait()?.is_none()
        {
            return Ok(());
        }
        tracing::info!(why, "power off");
        let (program, args) =
            self.command.split_first().ok_or_else(|| io::Error::other("the command is empty"))?;
        *running = Some(Command::new(program).args(args).spawn()?);
        Ok(())
    }
}

/// Listens for the button from a thread of its own. Where that is not possible it is logged: the
/// host can still ask the keeper.
pub(crate) fn watch(poweroff: Poweroff) {
    let listen = move || {
        if let Err(err) = listen(&poweroff) {
            let error = anyhow::Error::from(err);
            tracing::warn!(error = %format_args!("{error:#}"), "the power button is not heard");
        }
    };
    let thread = std::thread::Builder::new().name("power".to_owned()).stack_size(STACK);
    if let Err(err) = thread.spawn(listen) {
        tracing::warn!(error = %err, "the power button is not heard");
    }
}

#[derive(Debug, thiserror::Error)]
enum PowerError {
    #[error("open a netlink socket")]
    Open { source: rustix::io::Errno },
    #[error("ask for the family acpi_event")]
    Ask { source: rustix::io::Errno },
    #[error("the kernel has no group acpi_mc_group")]
    NoGroup,
    #[error("group {group} of acpi_event cannot be joined by a mask")]
    GroupNumber { group: u32 },
    #[error("receive from netlink")]
    Receive { source: rustix::io::Errno },
}

fn listen(poweroff: &Poweroff) -> Result<(), PowerError> {
    let control = open(0)?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&control, &family_request(), SendFlags::empty(), &kernel)
        .map_err(|source| PowerError::Ask { source })?;
    let mut buffer = [0; 8192];
    let length = receive(&control, &mut buffer)?;
    let group = group_id(&buffer[..length]).ok_or(PowerError::NoGroup)?;
    let mask = group.checked_sub(1).and_then(|bit| 1u32.checked_shl(bit));
    let events = open(mask.ok_or(PowerError::GroupNumber { group })?)?;
    tracing::info!(group, "the power button is heard");
    loop {
        let length = receive(&events, &mut buffer)?;
        if is_power_button(&buffer[..length])
            && let Err(err) = poweroff.run("the power button was pressed")
        {
            tracing::error!(error = %err, "the power-off command did not start");
        }
    }
}

fn open(groups: u32) -> Result<OwnedFd, PowerError> {
    let open = || {
        let protocol = Some(netlink::GENERIC);
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(socket)
    };
    open().map_err(|source| PowerError::Open { source })
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, PowerError> {
    loop {
        match recv(socket, &mut *buffer, RecvFlags::empty()) {
            Ok((_, length)) => return Ok(length.min(buffer.len())),
            // Lost events are followed by others, or the button is pressed again.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::NOBUFS) => {}
            Err(source) => return Err(PowerError::Receive { source }),
        }
    }
}

/// Asks the control family for `acpi_event`.
fn family_request() -> Vec<u8> {
    let padded = FAMILY.len().next_multiple_of(4);
    let total = NETLINK_HEADER + GENERIC_HEADER + 4 + padded;
    let mut message = Vec::with_capacity(total);
    message.extend_from_slice(&u32::try_from(total).unwrap_or(0).to_ne_bytes());
    message.extend_from_slice(&CONTROL_FAMILY.to_ne_bytes());
    message.extend_from_slice(&REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence and port
    message.extend_from_slice(&[GET_FAMILY, 1, 0, 0]);
    message.extend_from_slice(&u16::try_from(4 + FAMILY.len()).unwrap_or(0).to_ne_bytes());
    message.extend_from_slice(&ATTR_FAMILY_NAME.to_ne_bytes());
    message.extend_from_slice(FAMILY);
    message.resize(total, 0);
    message
}

/// Number of the multicast group in the control family's answer.
fn group_id(message: &[u8]) -> Option<u32> {
    let attributes = message.get(NETLINK_HEADER + GENERIC_HEADER..)?;
    let (_, groups) = Attributes(attributes).find(|(kind, _)| *kind == ATTR_GROUPS)?;
    Attributes(groups).find_map(|(_, group)| {
        let named = Attributes(group).any(|item| item == (ATTR_GROUP_NAME, GROUP));
        let (_, id) = Attributes(group).find(|(kind, _)| *kind == ATTR_GROUP_ID)?;
        named.then_some(u32::from_ne_bytes(id.try_into().ok()?))
    })
}

/// Whether an event tells of the power button.
fn is_power_button(message: &[u8]) -> bool {
    let attributes = message.get(NETLINK_HEADER + GENERIC_HEADER..).unwrap_or_default();
    Attributes(attributes).any(|(kind, event)| kind == ATTR_EVENT && event.starts_with(BUTTON))
}

/// Attributes of a netlink message: length, type, value, padded to four bytes.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & ATTR_TYPE, value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut message = vec![0; NETLINK_HEADER + GENERIC_HEADER];
        attributes.iter().for_each(|attribute| message.extend_from_slice(attribute));
        message
    }

    #[test]
    fn the_group_is_found_in_the_answer() {
        let group = |name: &[u8], id: u32| {
            [attribute(ATTR_GROUP_ID, &id.to_ne_bytes()), attribute(ATTR_GROUP_NAME, name)].concat()
        };
        let groups = [attribute(1, &group(b"other\0", 3)), attribute(2, &group(GROUP, 5))].concat();
        let answer = message(&[
            attribute(ATTR_FAMILY_NAME, FAMILY),
            attribute(0x8000 | ATTR_GROUPS, &groups),
        ]);
        assert_eq!(group_id(&answer), Some(5));
        assert_eq!(group_id(&message(&[attribute(ATTR_FAMILY_NAME, FAMILY)])), None);
        assert_eq!(group_id(&[]), None);
    }

    #[test]
    fn only_the_power_button_is_heard() {
        let event = |class: &[u8]| {
            let mut event = class.to_vec();
            event.resize(20, 0);
            event.extend_from_slice(b"LNXPWRBN:00\0\0\0\0");
            message(&[attribute(ATTR_EVENT, &event)])
        };
        assert!(is_power_button(&event(b"button/power")));
        assert!(!is_power_button(&event(b"button/sleep")));
        assert!(!is_power_button(b"button/power"));
    }

    #[test]
    fn the_request_is_well_formed() {
        let request = family_request();
        assert_eq!(request.len(), 36);
        assert_eq!(request[..4], 36u32.to_ne_bytes());
        let attributes = &request[NETLINK_HEADER + GENERIC_HEADER..];
        assert_eq!(Attributes(attributes).next(), Some((ATTR_FAMILY_NAME, FAMILY)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (group_id(&bytes), is_power_button(&bytes));
        }
    }
}
