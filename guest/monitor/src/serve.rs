//! Waits for the host. One connection counts: a new one takes the place of the old.

use std::io;
use std::time::Duration;

use guest_protocol::{
    ErrorBody, ErrorCode, Generation, Incoming, Link, LinkOptions, Received, Responder, Side,
    accept,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener};

use crate::config::Listen;

/// A greeting may take so long.
const HANDSHAKE: Duration = Duration::from_secs(4);
/// So many may greet at the same time.
const GREETING: usize = 4;
/// After an accept that failed, for lack of descriptors say.
const PAUSE: Duration = Duration::from_millis(200);

/// A stream to the host.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
type Stream = Box<dyn Duplex>;

/// Where the host connects.
pub(crate) enum Listener {
    Vsock(VsockListener),
    Unix(UnixListener),
}

/// A host that has greeted.
pub(crate) struct Peer<W: Side> {
    pub(crate) link: Link<W>,
    incoming: Incoming<W>,
}

impl Listener {
    pub(crate) fn bind(listen: &Listen) -> io::Result<Self> {
        match listen {
            Listen::Vsock(port) => {
                VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, *port)).map(Self::Vsock)
            }
            Listen::Unix(path) => {
                match std::fs::remove_file(path) {
                    Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                    _ => {}
                }
                UnixListener::bind(path).map(Self::Unix)
            }
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
            Self::Vsock(listener) => loop {
                let (stream, from) = listener.accept().await?;
                if from.cid() == VMADDR_CID_HOST {
                    return Ok(Box::new(stream));
                }
                tracing::warn!(cid = from.cid(), "refused a peer that is not the host");
            },
        }
    }
}

/// Hosts that have greeted, one after the other. Ends with `shutdown`.
pub(crate) fn peers<W: Side>(
    listener: Listener,
    boot_id: String,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> mpsc::Receiver<Peer<W>> {
    let (greeted, peers) = mpsc::channel(GREETING);
    let (tracker, shutdown) = (tasks.clone(), shutdown.clone());
    let _task = tasks.spawn(async move {
        let greeting = std::sync::Arc::new(tokio::sync::Semaphore::new(GREETING));
        loop {
            let stream = tokio::select! {
                stream = listener.accept() => stream,
                () = shutdown.cancelled() => return,
            };
            let stream = match stream {
                Ok(stream) => stream,
                Err(err) => {
                    tracing::warn!(error = %err, "accept failed");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = std::sync::Arc::clone(&greeting).try_acquire_owned() else {
                tracing::warn!("too many peers greet at the same time");
                continue;
            };
            let (greeted, boot_id) = (greeted.clone(), boot_id.clone());
            let shutdown = shutdown.clone();
            let _task = tracker.spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = converse(stream, boot_id, greeted, permit) => {}
                }
            });
        }
    });
    peers
}

async fn converse<W: Side>(
    stream: Stream,
    boot_id: String,
    greeted: mpsc::Sender<Peer<W>>,
    permit: tokio::sync::OwnedSemaphorePermit,
) {
    let session = match accept(stream, &boot_id, LinkOptions::default(), HANDSHAKE).await {
        Ok(session) => session,
        Err(err) => {
            tracing::warn!(error = chain(err), "a peer did not greet");
            return;
        }
    };
    drop(permit);
    let peer = Peer { link: session.link, incoming: session.incoming };
    if greeted.send(peer).await.is_err() {
        return;
    }
    let closed = session.driver.run().await;
    tracing::info!(reason = closed.label(), "host disconnected");
}

/// Answers a request.
pub(crate) fn answer<W: Side>(responder: Responder<W>, answer: Result<W::Gives, ErrorBody>) {
    let sent = match answer {
        Ok(response) => responder.respond(response),
        Err(error) => responder.refuse(error),
    };
    if let Err(err) = sent {
        tracing::warn!(reason = err.label(), "an answer was not sent");
    }
}

/// A request older than the newest of its kind does nothing.
pub(crate) fn refuse_older(
    newest: &mut Generation,
    generation: Generation,
) -> Result<(), ErrorBody> {
    if generation < *newest {
        let Generation { epoch, counter } = *newest;
        let message = format!("newest seen is {epoch}.{counter}");
        return Err(ErrorBody::new(ErrorCode::Stale, &message));
    }
    *newest = generation;
    Ok(())
}

/// An error with its causes, for a log line.
pub(crate) fn chain(err: impl Into<anyhow::Error>) -> String {
    format!("{:#}", err.into())
}

/// What the present host says next; without one nothing. `None`: it is gone.
pub(crate) async fn heard<W: Side>(peer: &mut Option<Peer<W>>) -> Option<Received<W>> {
    match peer {
        Some(peer) => peer.incoming.next().await,
        None => std::future::pending().await,
    }
}
