//! Brings CPUs online and takes them offline. Never CPU 0: it serves interrupts.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::kernel::{Kept, cpu_list};

/// CPUs that are being plugged appear within this time.
const APPEAR: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The CPUs of the system.
pub(crate) struct Cpus {
    folder: PathBuf,
    present: Kept,
    online: Kept,
}

/// How far it came.
#[derive(Debug, thiserror::Error)]
#[error("{online} CPUs are online instead of {wanted}{}", if refused.is_empty() { String::new() } else { format!("; refused: {refused}") })]
pub(crate) struct NotReached {
    wanted: u32,
    online: usize,
    refused: String,
}

impl Cpus {
    pub(crate) fn new(root: &Path) -> Self {
        let folder = root.join("sys/devices/system/cpu");
        let present = Kept::new(folder.join("present"));
        let online = Kept::new(folder.join("online"));
        Self { folder, present, online }
    }

    pub(crate) fn present(&mut self) -> io::Result<Vec<u32>> {
        self.present.read().map(cpu_list)
    }

    pub(crate) fn online(&mut self) -> io::Result<Vec<u32>> {
        self.online.read().map(cpu_list)
    }

    /// Brings the number of CPUs online to `wanted`, ascending; takes them down descending. Waits for
    /// CPUs that have not appeared yet.
    pub(crate) async fn bring(&mut self, wanted: u32) -> Result<(), NotReached> {
        let wanted = wanted.max(1);
        let deadline = Instant::now() + APPEAR;
        loop {
            let refused = match self.step(wanted) {
                Ok(None) => return Ok(()),
                Ok(Some(refused)) => refused,
                Err(err) => err.to_string(),
            };
            if Instant::now() >= deadline {
                let online = self.online().map_or(0, |online| online.len());
                return Err(NotReached { wanted, online, refused });
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// One pass; `None` when the number is reached, else what was refused.
    fn step(&mut self, wanted: u32) -> io::Result<Option<String>> {
        let online = self.online()?;
        let count = usize::try_from(wanted).unwrap_or(usize::MAX);
        let (chosen, value): (Vec<u32>, &str) = if online.len() < count {
            let offline = self.present()?.into_iter().filter(|cpu| !online.contains(cpu));
            (offline.take(count - online.len()).collect(), "1")
        } else {
            let down = online.iter().rev().copied().filter(|cpu| *cpu != 0);
            (down.take(online.len() - count).collect(), "0")
        };
        let mut refused = String::new();
        for cpu in chosen {
            if let Err(err) = std::fs::write(self.folder.join(format!("cpu{cpu}/online")), value) {
                refused = format!("cpu{cpu}: {err}");
            }
        }
        let reached = self.online()?.len() == count;
        Ok(if reached { None } else { Some(refused) })
    }
}
