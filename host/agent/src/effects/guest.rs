//! The connection to the guest's scaler, and the two questions that are put over it.
//!
//! ```text
//!   wait --> open folder --> connect --> greet --> connected --> lost
//!    ^                                                            |
//!    +---- 50 ms, doubled each time, anew after 10 s connected ---+
//! ```
//! A guest that is not there yet is looked for each second; one that hangs up gets 5 s.
//!
//! Identity is the socket's place, below the folder of the VM's pod: never what a guest says. It reports until
//! the VM is given up; every connection carries a number, so that late words of an old one are ignored.

use std::path::PathBuf;
use std::time::Duration;

use guest_protocol::{
    HandshakeError, Link, LinkError, LinkOptions, Received, ScalerHost, ScalerNotify,
    ScalerRequest, ScalerResponse, dial,
};
use guest_units::{Bytes, Chain, Size};
use host_protocol::{ConnectError, Endpoint, HybridSocket, VSOCK_NAME, vsock_folder};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause before another look for a guest that is not there.
const BACKOFF_ABSENT: Duration = Duration::from_secs(1);
/// Longest pause after a guest that was there and went: it must not set the rate.
const BACKOFF_GONE: Duration = Duration::from_secs(5);
/// A connection that lasted so long was a good one.
const STEADY: Duration = Duration::from_secs(10);
/// The guest sends at least one sample a second: so much silence is a dead connection.
const IDLE: Duration = Duration::from_secs(10);

/// What the connection reports.
pub(crate) enum GuestReport {
    Connected { connection: u64, link: Link<ScalerHost> },
    Told { connection: u64, what: Box<ScalerNotify> },
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
        let began = Instant::now();
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = one_connection(connection, &place, limits, &reports) => ended,
        };
        if let Err(err) = &ended {
            tracing::debug!(error = %Chain(err), "no connection to the guest");
        }
        if reports.is_closed() {
            return;
        }
        let absent = matches!(ended, Err(GuestError::Reach { .. }));
        let longest = if absent { BACKOFF_ABSENT } else { BACKOFF_GONE };
        pause = if began.elapsed() >= STEADY { BACKOFF_MIN } else { pause.min(longest) };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause *= 2;
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
            if reports.send(GuestReport::Told { connection, what: Box::new(what) }).await.is_err() {
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

/// Asks whether the guest can do with less. What it names as its least is taken between the two sizes.
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
            let least = least.clamp(to, from);
            Ok(Shrink::Veto { least, reason: reason.printable() })
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

#[cfg(test)]
mod tests {
    use guest_protocol::{ScalerGuest, Session, Text, accept};
    use guest_units::MilliCpu;
    use tokio_util::task::TaskTracker;

    use super::*;

    fn size(cpu: u32, mib: u64) -> Size {
        Size { cpu: MilliCpu(cpu), memory: Bytes::from_mib(mib) }
    }

    async fn greet(
        stream: tokio::io::DuplexStream,
    ) -> Session<tokio::io::DuplexStream, ScalerGuest> {
        let limit = Duration::from_secs(5);
        accept(stream, "boot", LinkOptions::default(), limit).await.unwrap()
    }

    #[tokio::test]
    async fn what_a_guest_names_is_clamped_and_its_words_are_cleaned() {
        let (endpoint, mut listener) = Endpoint::mem();
        let tasks = TaskTracker::new();
        let of_guest = tasks.clone();
        tasks.spawn(async move {
            let session = greet(listener.accept().await.unwrap()).await;
            let Session { link: _open, mut incoming, driver, .. } = session;
            of_guest.spawn(driver.run());
            while let Some(Received::Request(_, responder)) = incoming.next().await {
                let reason = format!("caf\u{e9} \u{202e}{}", "x".repeat(250)).as_str().into();
                let least = size(9000, 100);
                responder.respond(ScalerResponse::Veto { least, reason }).unwrap();
            }
        });
        let limit = Duration::from_secs(5);
        let stream = endpoint.connect(limit).await.unwrap();
        let session = dial::<ScalerHost, _>(stream, LinkOptions::default(), limit).await.unwrap();
        tasks.spawn(session.driver.run());
        let (from, to) = (size(2000, 2048), size(1000, 1024));
        let Shrink::Veto { least, reason } =
            ask(&session.link, 1, (from, to), limit).await.unwrap()
        else {
            panic!("a veto is no agreement");
        };
        assert_eq!(least, size(2000, 1024));
        assert!(
            reason.starts_with("caf xxx") && reason.len() == Text::MAX_PRINTABLE_CHARS,
            "{reason}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_hangs_up_does_not_set_the_rate() {
        let (endpoint, mut listener) = Endpoint::mem();
        let (reports, mut received) = mpsc::channel(64);
        let limits = Limits { connect: Duration::from_secs(5) };
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn(keep_connected(GuestPlace::Mem(endpoint), limits, reports, stop.clone()));
        tasks.spawn(async move { while received.recv().await.is_some() {} });
        let end = Instant::now() + Duration::from_secs(60);
        let mut connections = 0;
        while let Ok(Some(stream)) = tokio::time::timeout_at(end, listener.accept()).await {
            drop(greet(stream).await);
            connections += 1;
        }
        // 50 ms doubled up to 5 s is 8 within 11 s, then one each 5 s.
        assert!((10..=20).contains(&connections), "{connections} connections in a minute");
        stop.cancel();
    }
}
