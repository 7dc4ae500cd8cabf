//! The back end of the VM's vsock device: a process of its own beside QEMU.
//!
//! It runs before QEMU connects to it. When it dies the guest runs on, without anybody to talk to; then the
//! device is taken out of the guest, and a new back end and a new device take its place:
//!
//! ```text
//! back end dies -> device_del -> DEVICE_DELETED -> chardev-remove -> start back end -> chardev-add -> device_add
//!                       ^------------- any failure: wait longer each time, from the start -------------'
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use controller_qmp::{
    ChardevAdd, ChardevRemove, Client, Command, DeviceAdd, DeviceDel, QmpError, QomGet,
};
use guest_units::Chain;
use rustix::fs::Mode;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::cmdline::{GUEST_CID, VSOCK_BUS, VSOCK_CHARDEV, VSOCK_DEVICE};
use crate::console::log_lines;
use crate::metrics::Metrics;
use crate::process::{Child, Children, ProcessError};

const PROGRAM: &str = "vhost-device-vsock";
/// The agent connects with the group of the folder: owner and group may, others may not.
const MASK: Mode = Mode::from_raw_mode(0o007);
/// Its socket appears within milliseconds.
const SOCKET_LIMIT: Duration = Duration::from_secs(5);
const SOCKET_LOOK: Duration = Duration::from_millis(2);
const COMMAND_LIMIT: Duration = Duration::from_secs(2);
/// The guest lets the device go within 200 ms.
const REMOVAL_LIMIT: Duration = Duration::from_secs(5);
const REMOVAL_LOOK: Duration = Duration::from_millis(20);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(30);
/// A back end that lived this long died of something new.
const LONG_LIFE: Duration = Duration::from_secs(60);

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VsockError {
    #[error("remove the old socket {path}")]
    OldSocket { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Process {
        #[from]
        source: ProcessError,
    },
    #[error("no socket at {path} within {SOCKET_LIMIT:?}")]
    NoSocket { path: PathBuf },
    #[error("exchange the vsock device")]
    Qmp {
        #[from]
        source: QmpError,
    },
    #[error("the guest does not let the old vsock device go")]
    Kept,
}

/// How to start the back end.
#[derive(Debug, Clone)]
pub(crate) struct Backend {
    pub(crate) children: Children,
    /// The hybrid socket that the host connects to.
    pub(crate) vsock: PathBuf,
    /// The socket that QEMU connects to.
    pub(crate) socket: PathBuf,
    /// Told when the guest cannot be reached through it, although it lives.
    pub(crate) renew: Arc<Notify>,
}

impl Backend {
    /// Starts it and waits until QEMU can connect.
    pub(crate) async fn start(&self) -> Result<Child, VsockError> {
        for path in [&self.vsock, &self.socket] {
            remove_socket(path)?;
        }
        let vm = format!(
            "guest-cid={GUEST_CID},uds-path={},socket={}",
            self.vsock.display(),
            self.socket.display()
        );
        let mut child = self.children.start(PROGRAM, &["--vm".to_owned(), vm], MASK)?;
        let limit = Instant::now() + SOCKET_LIMIT;
        while !self.socket.exists() {
            if Instant::now() >= limit {
                child.kill();
                return Err(VsockError::NoSocket { path: self.socket.clone() });
            }
            sleep(SOCKET_LOOK).await;
        }
        Ok(child)
    }
}

/// Logs what the back end says, in a task of its own.
pub(crate) fn log(child: &mut Child, tasks: &tokio_util::task::TaskTracker) {
    for output in [child.stdout.take(), child.stderr.take()].into_iter().flatten() {
        tasks.spawn(log_lines(PROGRAM.to_owned(), output));
    }
}

/// Keeps a back end alive until the VM stops.
pub(crate) async fn supervise(
    backend: Backend,
    mut child: Child,
    qmp: Client,
    metrics: Metrics,
    tasks: tokio_util::task::TaskTracker,
    stop: CancellationToken,
) {
    let mut retry = RETRY_FIRST;
    loop {
        let started = Instant::now();
        tokio::select! {
            ended = child.ended() => {
                let how = ended.map_or_else(|err| err.to_string(), |ended| ended.to_string());
                tracing::warn!(ended = how, "the vsock back end died");
            }
            () = backend.renew.notified() => {
                tracing::warn!("the vsock back end is replaced: nobody answers behind it");
                child.kill();
            }
            () = stop.cancelled() => {
                child.kill();
                return;
            }
        }
        if started.elapsed() >= LONG_LIFE {
            retry = RETRY_FIRST;
        }
        child = loop {
            tokio::select! {
                () = sleep(retry) => {}
                () = stop.cancelled() => return,
            }
            retry = (retry * 2).min(RETRY_LAST);
            match replace(&backend, &qmp).await {
                Ok(child) => break child,
                Err(err) => tracing::warn!(error = %Chain(&err), "no new vsock back end"),
            }
        };
        log(&mut child, &tasks);
        metrics.vsock_restarted();
        tracing::info!("the vsock back end runs again");
    }
}

/// Takes the old device out and puts a new one on a new back end in. May be repeated after any failure.
async fn replace(backend: &Backend, qmp: &Client) -> Result<Child, VsockError> {
    remove_device(qmp).await?;
    tolerate(execute(qmp, &ChardevRemove { id: VSOCK_CHARDEV.to_owned() }).await)?;
    let mut child = backend.start().await?;
    match add_device(backend, qmp).await {
        Ok(()) => Ok(child),
        Err(err) => {
            child.kill();
            Err(err.into())
        }
    }
}

async fn remove_device(qmp: &Client) -> Result<(), VsockError> {
    tolerate(execute(qmp, &DeviceDel { id: VSOCK_DEVICE.to_owned() }).await)?;
    let limit = Instant::now() + REMOVAL_LIMIT;
    loop {
        let path = format!("/machine/peripheral/{VSOCK_DEVICE}");
        match execute(qmp, &QomGet { path, property: "type".to_owned() }).await {
            Err(QmpError::Refused { .. }) => return Ok(()), // no such object
            Err(err) => return Err(err.into()),
            Ok(_) if Instant::now() >= limit => return Err(VsockError::Kept),
            Ok(_) => sleep(REMOVAL_LOOK).await,
        }
    }
}

async fn add_device(backend: &Backend, qmp: &Client) -> Result<(), QmpError> {
    let path = backend.socket.display().to_string();
    execute(qmp, &ChardevAdd::unix_client(VSOCK_CHARDEV, &path)).await?;
    let mut arguments = serde_json::Map::new();
    arguments.insert("chardev".to_owned(), json!(VSOCK_CHARDEV));
    arguments.insert("bus".to_owned(), json!(VSOCK_BUS));
    let driver = "vhost-user-vsock-pci".to_owned();
    execute(qmp, &DeviceAdd { driver, id: VSOCK_DEVICE.to_owned(), arguments }).await?;
    Ok(())
}

async fn execute<C: Command>(qmp: &Client, command: &C) -> Result<C::Answer, QmpError> {
    qmp.execute(command, COMMAND_LIMIT).await
}

/// A refusal to remove what an earlier attempt has removed.
fn tolerate<T>(result: Result<T, QmpError>) -> Result<(), QmpError> {
    match result {
        Ok(_) | Err(QmpError::Refused { .. }) => Ok(()),
        Err(err) => Err(err),
    }
}

fn remove_socket(path: &Path) -> Result<(), VsockError> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            Err(VsockError::OldSocket { path: path.to_owned(), source: err })
        }
        _ => Ok(()),
    }
}
