//! The connection to the guest's scaler, and the two questions that are put over it.
//!
//! ```text
//!   wait --> open folder --> connect --> greet --> connected --> lost
//!    ^                                                            |
//!    +----------- 50 ms, doubled up to 1 s, anew after a success -+
//! ```
//! Identity is the socket's place, below the folder of the VM's pod: never what a guest says. It reports until
//! the VM is given up; every connection carries a number, so that late words of an old one are ignored.

use std::path::PathBuf;
use std::time::Duration;

use guest_protocol::{
    HandshakeError, Link, LinkError, LinkOptions, Received, ScalerHost, ScalerNotify,
    ScalerRequest, ScalerResponse, dial,
};
use guest_units::{Bytes, Size};
use host_protocol::{ConnectError, Endpoint, HybridSocket, VSOCK_NAME, vsock_folder};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::Chain;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The guest sends at least one sample a second: so much silence is a dead connection.
const IDLE: Duration = Duration::from_secs(10);

/// What the connection reports.
pub(crate) enum GuestReport {
    Connected { connection: u64, link: Link<ScalerHost> },
    Told { connection: u64, what: ScalerNotify },
    Lost { connection: u64 },
}

/// Where the guest of one pod is reached.
#[derive(Debug, Clone)]
pub(crate) enum GuestPlace {
    /// Through the vsock socket of its pod.
    Pod { pods: PathBuf, pod_uid: String, port: u32 },
    /// Inside this process.
    #[cfg(test)]
    Mem(Endpoint),
}

/// Deadlines of the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) connect: Duration,
}

#[derive(Debug, thiserror::Error)]
enum GuestError {
    #[error("reach the guest")]
    Reach { source: ConnectError },
    #[error("greet the guest")]
    Greet { source: HandshakeError },
}

/// Keeps the connection until `stop`; reports each one's begin, words and end.
pub(crate) async fn keep_connected(
    place: GuestPlace,
    limits: Limits,
    reports: mpsc::Sender<GuestReport>,
    stop: CancellationToken,
) {
    let mut pause = BACKOFF_MIN;
    for connection in 1.. {
        tokio::select! {
            () = stop.cancelled() => return,
            ended = one_connection(connection, &place, limits, &reports) => match ended {
                Ok(()) => pause = BACKOFF_MIN,
                Err(err) => tracing::debug!(error = %Chain(&err), "no connection to the guest"),
            },
        }
        if reports.is_closed() {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

async fn one_connection(
    connection: u64,
    place: &GuestPlace,
    limits: Limits,
    reports: &mpsc::Sender<GuestReport>,
) -> Result<(), GuestError> {
    let reach = |source| GuestError::Reach { source };
    let stream = endpoint(place).map_err(reach)?.connect(limits.connect).await.map_err(reach)?;
    let options = LinkOptions { idle: Some(IDLE), ..LinkOptions::default() };
    let session = dial::<ScalerHost, _>(stream, options, limits.connect)
        .await
        .map_err(|source| GuestError::Greet { source })?;
    let guest_protocol::Session { link, mut incoming, driver, welcome: _ } = session;
    if reports.send(GuestReport::Connected { connection, link }).await.is_err() {
        return Ok(());
    }
    let listen = async {
        while let Some(received) = incoming.next().await {
            let Received::Notify(what) = received; // a guest makes no requests
            if reports.send(GuestReport::Told { connection, what }).await.is_err() {
                return;
            }
        }
    };
    let closed = tokio::select! {
        closed = driver.run() => Some(closed),
        () = listen => None,
    };
    if let Some(closed) = closed {
        tracing::info!(reason = closed.label(), "connection to the guest ended");
    }
    let _given_up = reports.send(GuestReport::Lost { connection }).await;
    Ok(())
}

fn endpoint(place: &GuestPlace) -> Result<Endpoint, ConnectError> {
    match place {
        GuestPlace::Pod { pods, pod_uid, port } => {
            let folder = vsock_folder(pods, pod_uid);
            let socket = HybridSocket::in_folder(&folder, VSOCK_NAME)?;
            Ok(Endpoint::Hybrid { socket, port: *port })
        }
        #[cfg(test)]
        GuestPlace::Mem(endpoint) => Ok(endpoint.clone()),
    }
}

/// How the guest took a question about a shrink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shrink {
    Fine,
    Veto { least: Size, reason: String },
}

/// Asks whether the guest can do with less.
pub(crate) async fn ask(
    link: &Link<ScalerHost>,
    generation: u64,
    (from, to): (Size, Size),
    limit: Duration,
) -> Result<Shrink, LinkError> {
    let generation = generation.into();
    let request = ScalerRequest::MayShrink { generation, from, to };
    match link.request(request, limit).await? {
        ScalerResponse::Fine {} => Ok(Shrink::Fine),
        ScalerResponse::Veto { least, reason } => {
            Ok(Shrink::Veto { least, reason: reason.as_str().to_owned() })
        }
        // An answer to another question: counts as a refusal of this size.
        ScalerResponse::Confirmed { .. } => {
            Ok(Shrink::Veto { least: from, reason: "the guest's answer makes no sense".to_owned() })
        }
    }
}

/// Tells the guest what is plugged; it confirms what it sees.
pub(crate) async fn tell(
    link: &Link<ScalerHost>,
    generation: u64,
    plugged: Size,
    limit: Duration,
) -> Result<Option<(u32, Bytes)>, LinkError> {
    let request = ScalerRequest::Resized { generation: generation.into(), plugged };
    match link.request(request, limit).await? {
        ScalerResponse::Confirmed { cpus_online, memory_total } => {
            Ok(Some((cpus_online, memory_total)))
        }
        ScalerResponse::Fine {} | ScalerResponse::Veto { .. } => Ok(None),
    }
}
