//! Which interface leads out of the pod.

/// The interface of the default route with the smallest metric, from the text of `/proc/net/route`.
pub(super) fn default_interface(table: &str) -> Option<String> {
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            [device, "00000000", _gateway, _flags, _refs, _use, metric, "00000000", ..] => {
                Some((metric.parse::<u32>().ok()?, device))
            }
            _ => None,
        }
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, device)| device.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    #[test]
    fn the_default_route_with_the_smallest_metric() {
        for (routes, found) in [
            ("", None),
            ("eth0\t00010AF4\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n", None),
            ("eth0\t00000000\t01010AF4\t0003\t0\t0\t0\t00000000\t0\t0\t0\n", Some("eth0")),
            (
                "net1\t00000000\t01010A0A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                 ens5\t00000000\t01010AF4\t0003\t0\t0\t20\t00000000\t0\t0\t0\n",
                Some("ens5"),
            ),
            ("eth0\t00000000\t01010AF4\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0\n", None),
            ("short line\n", None),
        ] {
            assert_eq!(default_interface(&format!("{HEAD}{routes}")).as_deref(), found, "{routes}");
        }
    }
}
