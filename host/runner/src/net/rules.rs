//! The packet rules of a VM's pod: VM -> text for `nft -f`.

use std::fmt::Write;

use host_protocol::{GUEST_ADDRESS, GuestPort, TAP_NAME, Transport};

/// Rules that replace those of an earlier run as one transaction.
pub(super) fn ruleset(outside: &str, ports: &[GuestPort]) -> String {
    let mut text = String::from("add table ip vm\ndelete table ip vm\n\ntable ip vm {\n");
    // From other pods and nodes to the guest.
    chain(
        &mut text,
        "pre",
        "type nat hook prerouting priority dstnat",
        &dnat(&format!("iifname \"{outside}\""), ports),
    );
    // From the pod itself: port-forward, exec. (`priority dstnat` is refused in an output chain.)
    chain(
        &mut text,
        "out",
        "type nat hook output priority -100",
        &dnat("fib daddr type local", ports),
    );
    chain(
        &mut text,
        "post",
        "type nat hook postrouting priority srcnat",
        &[
            format!("oifname \"{outside}\" masquerade"),
            // The guest cannot answer to a loopback address.
            format!("ip saddr 127.0.0.0/8 oifname \"{TAP_NAME}\" masquerade"),
        ],
    );
    // Nothing in the pod listens for its guest: only answers come in from there.
    chain(
        &mut text,
        "in",
        "type filter hook input priority filter",
        &[
            format!("iifname \"{TAP_NAME}\" ct state established,related accept"),
            format!("iifname \"{TAP_NAME}\" icmp type echo-request accept"),
            format!("iifname \"{TAP_NAME}\" drop"),
        ],
    );
    text.push_str("}\n");
    text
}

fn dnat(matching: &str, ports: &[GuestPort]) -> Vec<String> {
    let of = |transport| {
        let mut numbers: Vec<u16> =
            ports.iter().filter(|port| port.protocol == transport).map(|port| port.port).collect();
        numbers.sort_unstable();
        numbers.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
    };
    [(Transport::Tcp, "tcp"), (Transport::Udp, "udp")]
        .into_iter()
        .map(|(transport, word)| (of(transport), word))
        .filter(|(numbers, _)| !numbers.is_empty())
        .map(|(numbers, word)| {
            format!("{matching} {word} dport {{ {numbers} }} dnat to {GUEST_ADDRESS}")
        })
        .collect()
}

fn chain(text: &mut String, name: &str, hook: &str, rules: &[String]) {
    let _infallible = writeln!(text, "  chain {name} {{\n    {hook};");
    for rule in rules {
        let _infallible = writeln!(text, "    {rule}");
    }
    text.push_str("  }\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot;

    fn port(port: u16, protocol: Transport) -> GuestPort {
        GuestPort { port, protocol }
    }

    #[test]
    fn ports_of_both_protocols() {
        let ports =
            [port(5432, Transport::Tcp), port(53, Transport::Udp), port(53, Transport::Tcp)];
        snapshot::check("rules-ports.nft", &ruleset("eth0", &ports));
    }

    #[test]
    fn no_ports() {
        snapshot::check("rules-none.nft", &ruleset("ens5", &[]));
    }
}
