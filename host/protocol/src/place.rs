//! Where things are: ports, paths and names that both sides of the pod's border must agree on.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Plain, read-only: `GET /ready`, `GET /metrics`.
pub const RUNNER_PORT: u16 = 25183;
/// Orders and state, mutual TLS.
pub const ORDERS_PORT: u16 = 20186;
/// `PUT` an [`Order`](crate::Order) here.
pub const ORDERS_PATH: &str = "/v1/orders";
/// `GET` the [`RunnerState`](crate::RunnerState) here, with `?epoch=EPOCH&counter=COUNTER&known=REVISION`: orders before
/// this generation are refused from then on.
pub const STATE_PATH: &str = "/v1/state";
/// An order is answered within this time, whatever happens.
pub const ORDER_DEADLINE: Duration = Duration::from_secs(10);
/// A state request is answered within this time, even when nothing changed.
pub const STATE_WAIT: Duration = Duration::from_secs(20);

/// Environment variable of the pod that holds the [`RunnerSpec`](crate::RunnerSpec) as JSON.
pub const SPEC_ENV: &str = "NEONVM_SPEC";
/// The init container that prepares the pod's network.
pub const NET_CONTAINER_NAME: &str = "net";
/// The user and group that the VM runs as.
pub const RUNNER_UID: u32 = 10001;

/// Run directory of the VM: emptyDir `run`.
pub const RUN_DIR: &str = "/run/vm";
/// Writable disks of the VM: emptyDir `disks`.
pub const DISKS_DIR: &str = "/disks";
/// The root disk inside the VM's image volume.
pub const DISK_IMAGE: &str = "/vm/image/disk.qcow2";
/// Certificate, key and CA of the runner: `tls.crt`, `tls.key`, `ca.crt`.
pub const TLS_DIR: &str = "/run/neonvm/tls";
/// Hybrid vsock socket in the run directory.
pub const VSOCK_NAME: &str = "vs";
/// QEMU's monitor socket in the run directory.
pub const QMP_SOCKET: &str = "qmp.sock";
/// The guest's console in the run directory.
pub const SERIAL_LOG: &str = "serial.log";
/// Serial number of the disk that carries the VM's configuration.
pub const CONFIG_DISK_SERIAL: &str = "vmconfig";

/// The network device between pod and guest.
pub const TAP_NAME: &str = "tap0";
/// The pod's end of the network to the guest.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 254, 253);
/// The guest's end.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 254, 254);

/// Who may give orders: the subject alternative name of the operator's client certificate.
pub const CLIENT_SAN: &str = "vm-controller.neonvm.internal";

/// The subject alternative name of a runner's server certificate.
#[must_use]
pub fn server_san(pod_name: &str) -> String {
    format!("{pod_name}.runner.neonvm.internal")
}

/// The folder on the node that holds a VM's [`VSOCK_NAME`], below the kubelet's folder of pods.
#[must_use]
pub fn vsock_folder(pods: &Path, pod_uid: &str) -> PathBuf {
    pods.join(pod_uid).join("volumes/kubernetes.io~empty-dir/run")
}
