//! `vm-runner net`: prepares the pod's network for the guest, then ends.
//!
//! Runs once, in an init container of user 0 with the capability NET_ADMIN and nothing else, so that nothing
//! that lives as long as the VM needs a privilege:
//!
//! 1. a persistent tap device that belongs to the user of the main container, with the pod's end of the
//!    network to the guest on it, and the guest's link address known;
//! 2. forwarding for the pod's interface and the tap. `/proc/sys` is read-only in a pod, but the same
//!    settings exist per device over rtnetlink, where NET_ADMIN over the pod's own network is enough;
//! 3. packet rules: the VM's ports lead to the guest, and the guest leaves with the pod's address.
//!
//! Every step may be repeated: a restarted init container finds what an earlier one left.

mod netlink;
mod route;
mod rules;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use host_protocol::{GUEST_ADDRESS, HOST_ADDRESS, RUNNER_UID, RunnerSpec, TAP_NAME};

use self::netlink::Setting;
use crate::cmdline::mac;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the pod has no default route")]
    NoRoute,
    #[error("{path} does not hold the number of an interface")]
    Index { path: PathBuf, source: std::num::ParseIntError },
    #[error("start {program}")]
    Start { program: &'static str, source: io::Error },
    #[error("{command} failed with {status}: {stderr}")]
    Failed { command: String, status: std::process::ExitStatus, stderr: String },
    #[error("set forwarding of {device}")]
    Forwarding { device: String, source: io::Error },
}

/// Prepares the network of the VM's pod.
pub(crate) fn prepare(spec: &RunnerSpec) -> Result<(), NetError> {
    let outside = route::default_interface(&read("/proc/net/route")?).ok_or(NetError::NoRoute)?;
    if PathBuf::from(format!("/sys/class/net/{TAP_NAME}")).exists() {
        ip(&format!("tuntap del dev {TAP_NAME} mode tap"))?; // of an init container that was cut off
    }
    for command in tap_commands(&mac(&spec.uid)) {
        ip(&command)?;
    }
    forward(&outside, &[Setting::Forwarding])?;
    forward(TAP_NAME, &[Setting::Forwarding, Setting::RouteLocalnet])?;
    let rules = rules::ruleset(&outside, &spec.ports);
    checked("nft", &["-f", "-"], rules.as_bytes())?;
    tracing::info!(interface = outside, tap = TAP_NAME, ports = spec.ports.len(), "network ready");
    Ok(())
}

/// What `ip` is told to make the tap. The guest's address is known from the start: without a question for it
/// the first packet to the guest leaves at once, and not a second later.
fn tap_commands(mac: &str) -> [String; 4] {
    [
        format!("tuntap add dev {TAP_NAME} mode tap vnet_hdr user {RUNNER_UID}"),
        format!("address add {HOST_ADDRESS}/30 dev {TAP_NAME}"),
        format!("link set dev {TAP_NAME} up"),
        format!("neighbour replace {GUEST_ADDRESS} lladdr {mac} dev {TAP_NAME} nud permanent"),
    ]
}

fn forward(device: &str, settings: &[Setting]) -> Result<(), NetError> {
    let path = format!("/sys/class/net/{device}/ifindex");
    let index = read(&path)?
        .trim()
        .parse()
        .map_err(|source| NetError::Index { path: path.into(), source })?;
    netlink::set(index, settings)
        .map_err(|source| NetError::Forwarding { device: device.to_owned(), source })
}

fn ip(command: &str) -> Result<(), NetError> {
    checked("ip", &command.split(' ').collect::<Vec<_>>(), b"")
}

fn read(path: &str) -> Result<String, NetError> {
    std::fs::read_to_string(path).map_err(|source| NetError::Read { path: path.into(), source })
}

/// Runs a program to its end with `input` as its standard input.
fn checked(program: &'static str, args: &[&str], input: &[u8]) -> Result<(), NetError> {
    let started = || -> io::Result<Output> {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input)?;
        }
        child.wait_with_output()
    };
    let output = started().map_err(|source| NetError::Start { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(NetError::Failed {
        command: format!("{program} {}", args.join(" ")),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_known_before_it_runs() {
        let commands = tap_commands("02:01:02:03:04:05");
        let neighbour = "169.254.254.254 lladdr 02:01:02:03:04:05 dev tap0 nud permanent";
        assert_eq!(commands[3], format!("neighbour replace {neighbour}"));
        assert_eq!(commands[2], "link set dev tap0 up", "a device that is down has no neighbours");
    }
}
