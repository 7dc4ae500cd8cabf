//! The kubelet's device plug-in: gives unprivileged VM pods the node's devices.
//!
//! | resource | devices | offered |
//! |---|---|---|
//! | `neonvm/tun` | /dev/net/tun, and /dev/vhost-net where present | always |
//! | `neonvm/kvm` | /dev/kvm | where a guest really boots with it, see [`probe`] |
//!
//! ```text
//!   bind own socket --> serve --> register with kubelet --> watch both sockets --+
//!        ^                                                                       |
//!        +---- kubelet's socket is another one, or ours is gone (kubelet started anew)
//! ```
//! A count is no scarcity: devices are shared, the numbers are just large enough for every pod of a node.

mod plugin;
mod probe;
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    unreachable_pub,
    reason = "generated code"
)]
mod v1beta1;

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::plugin::Plugin;
use self::v1beta1::DeviceSpec;

/// More pods than any kubelet takes.
const PODS: u32 = 1000;

/// One resource that kubelet offers to pods.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Resource {
    /// As in a pod's limits.
    name: &'static str,
    /// File name of the plug-in's socket.
    socket: &'static str,
    /// How many pods may have it.
    count: u32,
    /// What each of them gets.
    devices: Vec<DeviceSpec>,
}

/// Starts one plug-in for each resource of this node.
pub(crate) fn start(
    tasks: &TaskTracker,
    plugins: &Path,
    host_dev: &Path,
    stop: &CancellationToken,
) {
    for resource in resources(host_dev, Path::new("/proc/cpuinfo")) {
        tracing::info!(
            resource = resource.name,
            devices = resource.devices.len(),
            "device offered"
        );
        let plugin = Plugin::new(resource, plugins.to_owned());
        tasks.spawn(plugin.run(stop.clone()));
    }
}

fn resources(host_dev: &Path, cpuinfo: &Path) -> Vec<Resource> {
    let mut tun = vec![device("net/tun")];
    if probe::is_character_device(&host_dev.join("vhost-net")) {
        tun.push(device("vhost-net"));
    }
    let mut resources = vec![Resource {
        name: controller_api::names::RESOURCE_TUN,
        socket: "neonvm-tun.sock",
        count: PODS,
        devices: tun,
    }];
    match probe::kvm(&host_dev.join("kvm"), cpuinfo) {
        Ok(()) => resources.push(Resource {
            name: controller_api::names::RESOURCE_KVM,
            socket: "neonvm-kvm.sock",
            count: PODS,
            devices: vec![device("kvm")],
        }),
        Err(why) => tracing::info!(why, "no hardware virtualisation"),
    }
    resources
}

fn device(name: &str) -> DeviceSpec {
    let path = PathBuf::from("/dev").join(name).display().to_string();
    DeviceSpec { container_path: path.clone(), host_path: path, permissions: "rw".to_owned() }
}

#[cfg(test)]
mod tests;
