//! The control plane in the root namespaces: etcd, API server, controller manager and the stock scheduler.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::layout::{API_PORT, ETCD_PEER_PORT, ETCD_PORT, HOST, Layout, SERVICES};
use crate::process::{self, Component};

/// Starts etcd and the API server, which begins to answer as soon as etcd does.
pub fn start_api(layout: &Layout, binaries: &Path) -> Result<()> {
    process::start(layout, &etcd(layout, binaries))?;
    process::start(layout, &api_server(layout, binaries))?;
    Ok(())
}

/// Starts the controllers and the stock scheduler.
pub fn start_controllers(layout: &Layout, binaries: &Path) -> Result<()> {
    process::start(layout, &controller_manager(layout, binaries))?;
    process::start(layout, &scheduler(layout, binaries))?;
    Ok(())
}

fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

fn etcd(layout: &Layout, binaries: &Path) -> Component {
    let client = format!("http://127.0.0.1:{ETCD_PORT}");
    let peer = format!("http://127.0.0.1:{ETCD_PEER_PORT}");
    let data = layout.data().join("etcd");
    let args = flags(&[
        ("name", "s"),
        ("data-dir", &data.to_string_lossy()),
        // The data does not outlive the cluster, so no power failure can hurt it.
        ("unsafe-no-fsync", "true"),
        ("log-level", "warn"),
        ("listen-client-urls", &client),
        ("advertise-client-urls", &client),
        ("listen-peer-urls", &peer),
        ("initial-advertise-peer-urls", &peer),
        ("initial-cluster", &format!("s={peer}")),
    ]);
    Component::new(layout, "etcd", &binaries.join("etcd"), args)
}

fn api_server(layout: &Layout, binaries: &Path) -> Component {
    let file = |name| layout.pki_file(name);
    let mut args = flags(&[
        ("etcd-servers", &format!("http://127.0.0.1:{ETCD_PORT}")),
        ("bind-address", HOST),
        ("advertise-address", HOST),
        ("secure-port", &API_PORT.to_string()),
        ("tls-cert-file", &file("apiserver.crt")),
        ("tls-private-key-file", &file("apiserver.key")),
        ("client-ca-file", &file("ca.crt")),
        ("kubelet-client-certificate", &file("kubelet-client.crt")),
        ("kubelet-client-key", &file("kubelet-client.key")),
        ("kubelet-preferred-address-types", "InternalIP"),
        ("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
        ("service-account-key-file", &file("sa.pub")),
        ("service-account-signing-key-file", &file("sa.key")),
        ("service-account-extend-token-expiration", "false"),
        ("service-cluster-ip-range", SERVICES),
        ("authorization-mode", "Node,RBAC"),
        ("enable-admission-plugins", "NodeRestriction"),
        ("allow-privileged", "true"),
        // Webhooks and aggregated APIs are called at their pods' addresses: no kube-proxy is needed here.
        ("enable-aggregator-routing", "true"),
        ("v", "1"),
    ]);
    args.extend(flags(&[
        ("requestheader-client-ca-file", &file("ca.crt")),
        ("requestheader-allowed-names", "front-proxy-client"),
        ("requestheader-username-headers", "X-Remote-User"),
        ("requestheader-group-headers", "X-Remote-Group"),
        ("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
        ("proxy-client-cert-file", &file("front-proxy-client.crt")),
        ("proxy-client-key-file", &file("front-proxy-client.key")),
    ]));
    Component::new(layout, "kube-apiserver", &binaries.join("kube-apiserver"), args)
}

/// What the controller manager and the scheduler have in common: one of each, on loopback, with their own identity.
fn common(kubeconfig: &str) -> Vec<String> {
    flags(&[
        ("kubeconfig", kubeconfig),
        ("authentication-kubeconfig", kubeconfig),
        ("authorization-kubeconfig", kubeconfig),
        ("bind-address", "127.0.0.1"),
        ("leader-elect", "false"),
        ("v", "1"),
    ])
}

fn controller_manager(layout: &Layout, binaries: &Path) -> Component {
    let file = |name| layout.pki_file(name);
    let mut args = common(&file("kcm.kubeconfig"));
    args.extend(flags(&[
        // The default lies below /usr, and would be made there.
        ("flex-volume-plugin-dir", &layout.state().join("volume-plugins").to_string_lossy()),
        ("use-service-account-credentials", "true"),
        ("service-account-private-key-file", &file("sa.key")),
        ("root-ca-file", &file("ca.crt")),
        ("cluster-signing-cert-file", &file("ca.crt")),
        ("cluster-signing-key-file", &file("ca.key")),
        ("allocate-node-cidrs", "false"),
        ("cluster-name", "neonvm"),
        // With the default of 20 a second it takes 5 s until the controllers have their identities.
        ("kube-api-qps", "200"),
        ("kube-api-burst", "400"),
        // A dead node shows within seconds; the kubelets' settings match (they renew every second).
        ("node-monitor-period", "1s"),
        ("node-monitor-grace-period", "12s"),
    ]));
    let program = binaries.join("kube-controller-manager");
    Component::new(layout, "kube-controller-manager", &program, args)
}

fn scheduler(layout: &Layout, binaries: &Path) -> Component {
    let args = common(&layout.pki_file("scheduler.kubeconfig"));
    Component::new(layout, "kube-scheduler", &binaries.join("kube-scheduler"), args)
}

/// Whether etcd says that it is healthy.
pub fn etcd_healthy() -> bool {
    let ask = || -> Result<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], ETCD_PORT));
        let limit = Duration::from_secs(1);
        let mut stream = TcpStream::connect_timeout(&address, limit).context("connect to etcd")?;
        stream.set_read_timeout(Some(limit)).context("set the deadline")?;
        stream
            .write_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .context("ask etcd for its health")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("read etcd's answer")?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"health\":\"true\""))
}

/// Whether something listens where the API server will.
pub fn api_listens() -> bool {
    let Ok(host) = HOST.parse::<std::net::IpAddr>() else { return false };
    let address = SocketAddr::from((host, API_PORT));
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_carry_what_the_project_relies_on() {
        let layout = Layout::from_env().unwrap();
        let api = api_server(&layout, Path::new("/bin")).command;
        assert!(api.contains(&"--service-account-extend-token-expiration=false".to_owned()));
        assert!(api.contains(&"--authorization-mode=Node,RBAC".to_owned()));
        for component in [controller_manager, scheduler] {
            let command = component(&layout, Path::new("/bin")).command;
            assert!(command.contains(&"--leader-elect=false".to_owned()), "{command:?}");
        }
    }
}
