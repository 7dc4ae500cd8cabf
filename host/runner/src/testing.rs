//! A VM and a QEMU for tests.

use std::time::Duration;

use controller_qmp::Client;
use guest_units::{Bytes, MilliCpu};
use host_protocol::{CpuScaling, GuestPort, RunnerSpec, Transport};
use tokio::io::AsyncWriteExt;
use tokio_util::task::TaskTracker;

const LIMIT: Duration = Duration::from_secs(20);

/// A monitor that answers nothing, for tests that are not about QEMU: every command ends at once.
pub(crate) async fn silent_monitor(tasks: &TaskTracker) -> Client {
    let (ours, mut theirs) = tokio::io::duplex(4096);
    theirs.write_all(b"{\"QMP\": {}}\n{\"return\": {}, \"id\": 0}\n").await.unwrap();
    let (client, driver) = Client::over(ours, LIMIT).await.unwrap();
    drop(theirs);
    tasks.spawn(async move { driver.run().await.is_ok() });
    client
}

/// A VM of 250m to 3 CPUs and 1 to 4 GiB that scales in the guest.
pub(crate) fn spec() -> RunnerSpec {
    RunnerSpec {
        name: "pg".to_owned(),
        namespace: "default".to_owned(),
        uid: "6f8e2c1a-0000-4000-8000-1234567890ab".to_owned(),
        pod_name: "pg-x7k2p".to_owned(),
        hostname: "pg-x7k2p".to_owned(),
        cpu_min: MilliCpu(250),
        cpu_max: MilliCpu(3000),
        cpu_boot: MilliCpu(500),
        memory_min: Bytes(1 << 30),
        memory_max: Bytes(4 << 30),
        cpu_scaling: CpuScaling::SysfsScaling,
        acceleration: false,
        ports: vec![GuestPort { port: 5432, protocol: Transport::Tcp }],
        env: Vec::new(),
        command: Vec::new(),
        args: Vec::new(),
        sysctl: Vec::new(),
        append_kernel_cmdline: String::new(),
    }
}
