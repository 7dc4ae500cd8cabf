//! Runs one of the two roles until it is told to stop.
//!
//! Left behind: by the scaler nothing but the settings of Postgres, which fit the size. The keeper
//! lifts the CPU limit that it set; CPUs stay online or offline as they are.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::serve::{self, Listener};
use crate::{keeper, scaler};

/// A stop may take so long.
const GRACE: Duration = Duration::from_secs(2);

/// Runs until `shutdown`, or until something that cannot be repaired.
pub(crate) async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let tasks = TaskTracker::new();
    let result = match config {
        Config::Scaler(config) => {
            let boot_id = boot_id(&config.root).context("read the boot id")?;
            let listener = Listener::bind(&config.listen).context("listen for the host")?;
            let peers = serve::peers(listener, boot_id, &tasks, &shutdown);
            scaler::run(config, peers, &tasks, &shutdown).await
        }
        Config::Keeper(config) => {
            let boot_id = boot_id(&config.root).context("read the boot id")?;
            let listener = Listener::bind(&config.listen).context("listen for the host")?;
            let peers = serve::peers(listener, boot_id, &tasks, &shutdown);
            keeper::run(config, peers, &shutdown).await
        }
    };
    shutdown.cancel();
    tasks.close();
    if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
        tracing::warn!(late = tasks.len(), "stopped without waiting further");
    }
    result
}

fn boot_id(root: &Path) -> io::Result<String> {
    let id = std::fs::read_to_string(root.join("proc/sys/kernel/random/boot_id"))?;
    Ok(id.trim().to_owned())
}
