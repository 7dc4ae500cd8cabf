//! One node: namespaces of its own with containerd, kubelet and kube-proxy at the places where they expect everything.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cgroup;
use crate::command::Run;
use crate::interrupt;
use crate::layout::{DNS, Layout, MARK, Node, PODS};
use crate::options::{EVICTION_BYTES, NodeSize, machine_size};
use crate::process::{self, Component, enter};
use crate::tools;

/// The fixed places that become the node's own.
const PRIVATE: &[&str] = &[
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/run/containerd",
    "/var/lib/cni",
    "/etc/cni",
    "/run/netns",
    "/var/log/pods",
    "/var/log/containers",
    "/etc/cdi",
    "/run/cdi",
    "/run/nri",
];

/// Binds the node's own folders over the fixed places; runs inside the new mount namespace.
const MOUNTS: &str = r#"set -e
data=$1; shift
mount --make-rshared /
for place in "$@"; do
  mkdir -p "$data$place"
  mount --bind "$data$place" "$place"
  mount --make-rshared "$place"
done"#;

/// A slow machine may be busy with other things when containerd starts.
const RUNTIME_START: Duration = Duration::from_secs(120);
const IMPORT: Duration = Duration::from_secs(600);

/// Makes the node's groups and mount namespace and starts its container runtime; the network namespace exists already.
pub fn prepare(layout: &Layout, node: &Node, binaries: &Path) -> Result<()> {
    cgroup::make(node)?;
    make_mounts(layout, node).with_context(|| format!("make the mounts of {}", node.name()))?;
    let config = write(node, "containerd.toml", &containerd_config(binaries)?)?;
    write_data(node, "etc/cni/net.d/10-neonvm.conflist", &cni_config(node))?;
    let program = binaries.join("containerd");
    let args = vec!["--config".into(), config];
    let component = Component::on_node(layout, node, "containerd", &program, args);
    process::start(layout, &component.env("PATH", &search_path(binaries)))?;
    wait_for_runtime(layout, node, binaries)
}

/// Starts kubelet and kube-proxy, once the API server answers.
pub fn join(layout: &Layout, node: &Node, binaries: &Path, size: NodeSize) -> Result<()> {
    let (name, path) = (node.name(), search_path(binaries));
    let kubelet = write(node, "kubelet.yaml", &kubelet_config(layout, node, size)?.to_string())?;
    let args = vec![
        format!("--config={kubelet}"),
        format!("--kubeconfig={}", layout.pki_file(&format!("node-{name}.kubeconfig"))),
        format!("--hostname-override={name}"),
        format!("--node-ip={}", node.address()),
        format!("--cert-dir={}", node.state().join("kubelet-pki").display()),
        "--v=2".into(),
    ];
    let component = Component::on_node(layout, node, "kubelet", &binaries.join("kubelet"), args);
    process::start(layout, &component.env("PATH", &path))?;
    let proxy = write(node, "proxy.yaml", &proxy_config(layout, node).to_string())?;
    let args =
        vec![format!("--config={proxy}"), format!("--hostname-override={name}"), "--v=1".into()];
    let program = binaries.join("kube-proxy");
    let component = Component::on_node(layout, node, "kube-proxy", &program, args);
    process::start(layout, &component.env("PATH", &path))?;
    Ok(())
}

/// A command that runs inside the node.
pub fn inside(node: &Node, program: impl AsRef<Path>) -> Run {
    let words = enter(node);
    Run::new(&words[0])
        .args(&words[1..])
        .arg(program.as_ref())
        .env(MARK, node.state().parent().unwrap_or(node.state()))
}

/// Imports one image archive into the node.
pub fn import(node: &Node, binaries: &Path, archive: &Path, log: &Path) -> Result<()> {
    inside(node, binaries.join("ctr"))
        .args(["-n", "k8s.io", "images", "import", "--snapshotter", "overlayfs"])
        .arg(archive)
        .log(log)
        .deadline(IMPORT)
        .status()
        .with_context(|| format!("import {} into {}", archive.display(), node.name()))
}

fn make_mounts(layout: &Layout, node: &Node) -> Result<()> {
    for place in PRIVATE {
        make_folder(layout, Path::new(place))?;
    }
    let file = node.mount_namespace();
    File::create(&file).with_context(|| format!("make {}", file.display()))?;
    Run::new("unshare")
        .arg(format!("--mount={}", file.display()))
        .args(["--propagation", "private", "sh", "-c", MOUNTS, "mounts"])
        .arg(node.data())
        .args(PRIVATE)
        .env(MARK, layout.state())
        .status()
}

/// Makes a mount point on the machine, and remembers which folders were not there.
fn make_folder(layout: &Layout, path: &Path) -> Result<()> {
    let absent: Vec<_> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    for dir in absent.into_iter().rev() {
        match fs::create_dir(dir) {
            Ok(()) => {}
            // The other node was faster, and remembers it.
            Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => continue,
            Err(err) => return Err(err).with_context(|| format!("make {}", dir.display())),
        }
        let list = layout.made_folders();
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&list)
            .and_then(|mut file| file.write_all(format!("{}\n", dir.display()).as_bytes()))
            .with_context(|| format!("write {}", list.display()))?;
    }
    Ok(())
}

fn wait_for_runtime(layout: &Layout, node: &Node, binaries: &Path) -> Result<()> {
    let begun = Instant::now();
    while !inside(node, binaries.join("ctr")).arg("version").succeeds() {
        interrupt::check()?;
        process::check_all(layout)?;
        ensure!(begun.elapsed() < RUNTIME_START, "containerd of {} does not answer", node.name());
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn search_path(binaries: &Path) -> String {
    format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", binaries.display())
}

fn write(node: &Node, name: &str, text: &str) -> Result<String> {
    let path = node.state().join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path.to_string_lossy().into_owned())
}

/// Writes a file where the node sees it below its own root.
fn write_data(node: &Node, name: &str, value: &Value) -> Result<()> {
    let path = node.data().join(name);
    let dir = path.parent().context("a file lies in a folder")?;
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    fs::write(&path, value.to_string()).with_context(|| format!("write {}", path.display()))
}

fn cni_config(node: &Node) -> Value {
    json!({"cniVersion": "1.0.0", "name": "neonvm", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": 1500,
         "ipam": {"type": "host-local", "ranges": [[{"subnet": node.pods()}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]})
}

fn containerd_config(binaries: &Path) -> Result<String> {
    let runc = tools::find("runc").context("find runc")?;
    let (runc, binaries) = (runc.display(), binaries.display());
    Ok(format!(
        r#"version = 3
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "localhost/pause:local"
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  # Raising a score needs a capability that not every machine gives.
  restrict_oom_score_adj = true
  # Lets a container that is not root open the devices which the device plug-in gives it.
  device_ownership_from_security_context = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{binaries}"]
"#
    ))
}

fn kubelet_config(layout: &Layout, node: &Node, size: NodeSize) -> Result<Value> {
    let reserved = size.reserved(machine_size()?)?;
    Ok(json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address(),
        "healthzBindAddress": "127.0.0.1",
        "readOnlyPort": 0,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", node.cgroup()),
        "failCgroupV1": false,
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": layout.pki_file("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "evictionHard": {"memory.available": EVICTION_BYTES.to_string(), "nodefs.available": "1%", "imagefs.available": "1%"},
        "systemReserved": reserved,
        "maxPods": 64,
        // Images come from archives and cannot be fetched again: never collect them.
        "imageGCHighThresholdPercent": 100,
        "serializeImagePulls": false,
        "containerLogMaxSize": "50Mi",
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
        "nodeStatusUpdateFrequency": "1s",
        "nodeLeaseDurationSeconds": 8,
        // The default lies below /usr.
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
    }))
}

fn proxy_config(layout: &Layout, node: &Node) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "bindAddress": node.address(),
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clusterCIDR": PODS,
        "detectLocalMode": "ClusterCIDR",
        "clientConnection": {"kubeconfig": layout.pki_file("proxy.kubeconfig")},
        // The limits are the machine's, not the namespace's.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "oomScoreAdj": 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_its_own_group_and_address() {
        let layout = Layout::from_env().unwrap();
        let [one, two] = layout.nodes();
        let one = kubelet_config(&layout, &one, NodeSize::default()).unwrap();
        let two = kubelet_config(&layout, &two, NodeSize::default()).unwrap();
        assert_eq!(one["cgroupRoot"], "/neonvm-n1");
        assert_ne!(one["cgroupRoot"], two["cgroupRoot"]);
        assert_ne!(one["address"], two["address"]);
        assert_eq!(one["systemReserved"], json!({"cpu": "0m", "memory": "0"}));
    }

    #[test]
    fn pods_of_a_node_get_addresses_of_its_range() {
        let [one, _] = Layout::from_env().unwrap().nodes();
        let config = cni_config(&one);
        let subnet = &config["plugins"][0]["ipam"]["ranges"][0][0]["subnet"];
        assert_eq!(subnet, "10.244.1.0/24");
    }
}
