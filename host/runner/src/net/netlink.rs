//! Forwarding of one device by rtnetlink: `RTM_SETLINK { IFLA_AF_SPEC { AF_INET { IFLA_INET_CONF { .. } } } }`.
//! One message, written by hand, because the crates know no word for these attributes.

use std::io;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLA_F_NESTED: u16 = 0x8000;
const RTM_SETLINK: u16 = 19;
const IFLA_AF_SPEC: u16 = 26;
const AF_INET: u16 = 2;
const IFLA_INET_CONF: u16 = 1;

/// A setting of a device, by its number in the kernel's table of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    /// Packets that come in here may go out elsewhere.
    Forwarding = 1,
    /// Loopback addresses may be routed over this device.
    RouteLocalnet = 26,
}

/// Switches settings of the device with this index on.
pub(super) fn set(index: i32, settings: &[Setting]) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None, // the first protocol is rtnetlink
    )?;
    rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    rustix::net::send(&socket, &message(index, settings), SendFlags::empty())?;
    let mut answer = [0; 4096];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    acknowledged(answer.get(..length).unwrap_or_default())
}

fn message(index: i32, settings: &[Setting]) -> Vec<u8> {
    let conf: Vec<u8> = settings
        .iter()
        .flat_map(|setting| attribute(*setting as u16, &1u32.to_ne_bytes()))
        .collect();
    let inet = attribute(IFLA_INET_CONF | NLA_F_NESTED, &conf);
    let family = attribute(AF_INET | NLA_F_NESTED, &inet);
    let spec = attribute(IFLA_AF_SPEC | NLA_F_NESTED, &family);

    let mut body = vec![0; 4]; // family, padding, type of device: any
    body.extend(index.to_ne_bytes());
    body.extend([0; 8]); // no flags to change
    body.extend(spec);

    let mut bytes = Vec::new();
    let length = u32::try_from(body.len() + 16).expect("a handful of attributes");
    bytes.extend(length.to_ne_bytes());
    bytes.extend(RTM_SETLINK.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    bytes.extend(1u32.to_ne_bytes()); // sequence
    bytes.extend(0u32.to_ne_bytes()); // to the kernel
    bytes.extend(body);
    bytes
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 4).expect("a handful of attributes");
    let mut bytes = Vec::with_capacity(payload.len() + 4);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The kernel's answer: an error number, 0 for none.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        _ => Err(io::Error::other("the answer is not an acknowledgement")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_what_the_kernel_reads() {
        let bytes = message(7, &[Setting::Forwarding, Setting::RouteLocalnet]);
        #[rustfmt::skip]
        let expected: &[u8] = &[
            60, 0, 0, 0, 19, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, // header
            0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,   // device
            28, 0, 26, 0x80, 24, 0, 2, 0x80, 20, 0, 1, 0x80,  // nested
            8, 0, 1, 0, 1, 0, 0, 0, 8, 0, 26, 0, 1, 0, 0, 0,  // settings
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn answers() {
        let answer = |kind: u16, code: i32| {
            let mut bytes = vec![36, 0, 0, 0];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(code.to_ne_bytes());
            bytes
        };
        assert!(acknowledged(&answer(NLMSG_ERROR, 0)).is_ok());
        let refused = acknowledged(&answer(NLMSG_ERROR, -1)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(acknowledged(&answer(16, 0)).is_err());
        assert!(acknowledged(b"short").is_err());
    }
}
