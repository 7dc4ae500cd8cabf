//! A guest whose files a test writes, and a host that connects to it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use guest_protocol::{Incoming, Link, LinkOptions, Side, Welcome, dial};
use tokio::net::UnixStream;
use tokio_util::task::TaskTracker;

/// Ten times what anything takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A guest whose files a test writes.
pub(crate) struct FakeGuest {
    pub(crate) root: PathBuf,
}

impl FakeGuest {
    pub(crate) fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("guest-{}-{name}", std::process::id()));
        let _absent = fs::remove_dir_all(&root);
        for folder in
            ["proc/pressure", "proc/sys/kernel/random", "cgroup", "sys/devices/system/cpu"]
        {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let guest = Self { root };
        guest.write("proc/sys/kernel/random/boot_id", "b0071d\n");
        guest.write(
            "proc/stat",
            "cpu  10 0 10 900 0 0 0 0 0 0\ncpu0 10 0 10 900 0\nprocs_running 1\n",
        );
        guest.write("proc/loadavg", "0.30 0.25 0.20 1/99 1234\n");
        guest.write("proc/vmstat", "workingset_refault_anon 0\nworkingset_activate_file 0\n");
        guest.write(
            "proc/zoneinfo",
            "Node 0, zone   Normal\n  pages free     60000\n  low 500\n  present 131072\n  managed 124160\n",
        );
        for file in ["proc/pressure/memory", "cgroup/cpu.pressure"] {
            guest.write(file, "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
        }
        guest.write("cgroup/cpu.stat", "usage_usec 1000\nnr_periods 0\nnr_throttled 0\n");
        guest.write("cgroup/cpu.max", "max 100000\n");
        guest.memory(485, 300);
        guest
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        fs::write(self.root.join(file), text).unwrap();
    }

    pub(crate) fn memory(&self, total_mib: u64, free_mib: u64) {
        let (total, free) = (total_mib * 1024, free_mib * 1024);
        let text = format!("MemTotal: {total} kB\nMemFree: {free} kB\nMemAvailable: {free} kB\n");
        // Not truncated and then written: the reader must never see an empty file.
        self.write("proc/meminfo.new", &text);
        fs::copy(self.root.join("proc/meminfo.new"), self.root.join("proc/meminfo")).unwrap();
    }

    pub(crate) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.root.join(file)).unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root.join("socket")
    }

    pub(crate) fn cgroup(&self) -> PathBuf {
        self.root.join("cgroup")
    }

    /// Connects as a host as soon as somebody listens.
    pub(crate) async fn host<W: Side>(&self, tasks: &TaskTracker) -> Host<W> {
        let connect = async {
            loop {
                match UnixStream::connect(self.socket()).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
        };
        let stream = tokio::time::timeout(LIMIT, connect).await.unwrap();
        let session = dial(stream, LinkOptions::default(), LIMIT).await.unwrap();
        let _task = tasks.spawn(session.driver.run());
        Host { link: session.link, incoming: session.incoming, welcome: session.welcome }
    }
}

/// The host's end of a connection.
pub(crate) struct Host<W: Side> {
    pub(crate) link: Link<W>,
    pub(crate) incoming: Incoming<W>,
    pub(crate) welcome: Welcome,
}

impl Drop for FakeGuest {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.root);
    }
}
