//! A connection over any stream: handshake, requests with deadlines in both directions, bounds.
//!
//! [`dial`] (host) and [`accept`] (guest) return a [`Session`]. Its driver is a future that the
//! caller spawns where it spawns its other tasks; when it ends, the connection is gone, every
//! pending request fails and [`Incoming`] runs dry.

mod driver;
mod handshake;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

pub use driver::{Closed, LinkDriver};
pub use handshake::{HandshakeError, accept, dial};

use crate::codec::{CodecError, encode};
use crate::greeting::Welcome;
use crate::message::{Envelope, ErrorBody, ErrorCode, Message};
use crate::roles::Side;

/// Bounds of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkOptions {
    /// The connection ends when nothing was received for so long. `None`: it may be silent.
    pub idle: Option<Duration>,
    /// The connection ends when the peer does not take a frame for so long.
    pub write_limit: Duration,
    /// Notifications per second that are let through; the others are dropped and counted.
    pub notifies_per_second: u32,
    /// Frames per second that are read, each KiB of one counting as one more; a peer that sends faster has to wait.
    pub frames_per_second: u32,
    /// Received requests and notifications that may wait for the reader.
    pub queue: usize,
    /// Requests of this end that may be without an answer.
    pub in_flight: usize,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            idle: None,
            write_limit: Duration::from_secs(5),
            notifies_per_second: 100,
            frames_per_second: 1000,
            queue: 64,
            in_flight: 32,
        }
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The connection is gone. Nobody knows whether the request was carried out.
    #[error("the connection is closed")]
    Closed,
    /// No answer in time. Nobody knows whether the request was carried out.
    #[error("no answer within {limit:?}")]
    Deadline {
        /// How long was waited.
        limit: Duration,
    },
    /// Too many requests or frames are waiting; nothing was sent.
    #[error("too many messages wait to be sent or answered")]
    Busy,
    /// The peer refused.
    #[error("refused as {:?}: {}", error.code, error.message)]
    Refused {
        /// What it said.
        error: ErrorBody,
    },
    /// The message cannot be sent.
    #[error("encode the message")]
    Encode {
        /// Why.
        source: CodecError,
    },
}

impl LinkError {
    /// Fixed text for metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Deadline { .. } => "deadline",
            Self::Busy => "busy",
            Self::Refused { .. } => "refused",
            Self::Encode { .. } => "encode",
        }
    }
}

/// A connection after the handshake.
pub struct Session<S, W: Side> {
    /// For requests and notifications; cheap to clone.
    pub link: Link<W>,
    /// What the peer says unasked.
    pub incoming: Incoming<W>,
    /// Moves the bytes; spawn `driver.run()`.
    pub driver: LinkDriver<S, W>,
    /// What the guest said of itself (on the guest's end: what it said).
    pub welcome: Welcome,
}

impl<S, W: Side> Session<S, W> {
    fn new(stream: S, options: LinkOptions, welcome: Welcome) -> Self {
        let (frames, to_write) = mpsc::channel(options.queue.max(1));
        let (received, incoming) = mpsc::channel(options.queue.max(1));
        let shared = Arc::new(Shared {
            pending: Mutex::new(Some(HashMap::new())),
            next_id: AtomicU64::new(1),
            in_flight: options.in_flight,
            dropped: AtomicU64::new(0),
        });
        let link = Link { frames, shared: Arc::clone(&shared) };
        let driver =
            LinkDriver::new(stream, options, to_write, received, link.frames.downgrade(), shared);
        Self { link, incoming: Incoming { received: incoming }, driver, welcome }
    }
}

type Answer<W> = Result<<W as Side>::Gets, ErrorBody>;
type Pending<W> = HashMap<u64, oneshot::Sender<Answer<W>>>;

/// What handle and driver share.
struct Shared<W: Side> {
    /// Requests without an answer. `None`: closed.
    pending: Mutex<Option<Pending<W>>>,
    next_id: AtomicU64,
    in_flight: usize,
    dropped: AtomicU64,
}

impl<W: Side> Shared<W> {
    fn pending(&self) -> MutexGuard<'_, Option<Pending<W>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over an answer. One to an unknown id came too late, or was never asked for.
    fn answer(&self, id: u64, answer: Answer<W>) {
        let waiting = self.pending().as_mut().and_then(|pending| pending.remove(&id));
        if let Some(waiting) = waiting {
            let _late = waiting.send(answer);
        }
    }

    fn close(&self) {
        self.pending().take();
    }
}

/// Takes the request off the list again, also when its future is dropped.
struct Waiting<'a, W: Side> {
    shared: &'a Shared<W>,
    id: u64,
}

impl<W: Side> Drop for Waiting<'_, W> {
    fn drop(&mut self) {
        if let Some(pending) = self.shared.pending().as_mut() {
            pending.remove(&self.id);
        }
    }
}

/// The sending end of a connection.
pub struct Link<W: Side> {
    frames: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared<W>>,
}

impl<W: Side> Clone for Link<W> {
    fn clone(&self) -> Self {
        Self { frames: self.frames.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<W: Side> Link<W> {
    /// Asks, and waits for the answer at most so long. Dropping the future is harmless.
    ///
    /// # Errors
    /// When there is no answer, or the peer refuses.
    pub async fn request(&self, request: W::Asks, limit: Duration) -> Result<W::Gets, LinkError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let frame =
            encode_message::<W::Asks, W::Gives, W::Tells>(Message::Request { id, request })?;
        let (answered, answer) = oneshot::channel();
        match self.shared.pending().as_mut() {
            None => return Err(LinkError::Closed),
            Some(pending) if pending.len() >= self.shared.in_flight => return Err(LinkError::Busy),
            Some(pending) => pending.insert(id, answered),
        };
        let _waiting = Waiting { shared: &self.shared, id };
        let exchange = async {
            self.frames.send(frame).await.map_err(|_| LinkError::Closed)?;
            answer.await.map_err(|_| LinkError::Closed)
        };
        match timeout(limit, exchange).await {
            Err(_) => Err(LinkError::Deadline { limit }),
            Ok(Err(err)) => Err(err),
            Ok(Ok(Err(error))) => Err(LinkError::Refused { error }),
            Ok(Ok(Ok(response))) => Ok(response),
        }
    }

    /// Tells, without waiting: when too much waits already, it is not sent.
    ///
    /// # Errors
    /// When it was not sent.
    pub fn notify(&self, notify: W::Tells) -> Result<(), LinkError> {
        let frame = encode_message::<W::Asks, W::Gives, W::Tells>(Message::Notify(notify))?;
        self.frames.try_send(frame).map_err(|err| match err {
            mpsc::error::TrySendError::Full(_) => LinkError::Busy,
            mpsc::error::TrySendError::Closed(_) => LinkError::Closed,
        })
    }

    /// Whether the connection is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.frames.is_closed()
    }

    /// Notifications that were dropped, because they came too fast or nobody took them.
    #[must_use]
    pub fn dropped_notifies(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

fn encode_message<Q, P, N>(message: Message<Q, P, N>) -> Result<Vec<u8>, LinkError>
where
    Q: serde::Serialize,
    P: serde::Serialize,
    N: serde::Serialize,
{
    encode(&Envelope::from(message)).map_err(|source| LinkError::Encode { source })
}

/// What the peer says unasked.
pub struct Incoming<W: Side> {
    received: mpsc::Receiver<Received<W>>,
}

impl<W: Side> Incoming<W> {
    /// The next one; `None` when the connection is gone. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Received<W>> {
        self.received.recv().await
    }
}

/// Something that the peer said.
pub enum Received<W: Side> {
    /// It wants an answer.
    Request(W::Asked, Responder<W>),
    /// It does not.
    Notify(W::Told),
}

/// Answers one request. Dropped without an answer, it says that the request failed.
pub struct Responder<W: Side> {
    frames: mpsc::WeakSender<Vec<u8>>,
    id: u64,
    answered: bool,
    side: std::marker::PhantomData<fn() -> W>,
}

impl<W: Side> Responder<W> {
    fn new(frames: mpsc::WeakSender<Vec<u8>>, id: u64) -> Self {
        Self { frames, id, answered: false, side: std::marker::PhantomData }
    }

    /// Answers with a response.
    ///
    /// # Errors
    /// When the connection is gone, or its queue is full.
    pub fn respond(mut self, response: W::Gives) -> Result<(), LinkError> {
        self.send(Message::Response { id: self.id, response })
    }

    /// Answers with an error.
    ///
    /// # Errors
    /// When the connection is gone, or its queue is full.
    pub fn refuse(mut self, error: ErrorBody) -> Result<(), LinkError> {
        self.send(Message::Error { id: self.id, error })
    }

    fn send(&mut self, message: Message<W::Asks, W::Gives, W::Tells>) -> Result<(), LinkError> {
        self.answered = true;
        let frame = encode_message(message)?;
        let frames = self.frames.upgrade().ok_or(LinkError::Closed)?;
        frames.try_send(frame).map_err(|_| LinkError::Busy)
    }
}

impl<W: Side> Drop for Responder<W> {
    fn drop(&mut self) {
        if !self.answered {
            let error = ErrorBody::new(ErrorCode::Failed, "the request was dropped");
            let _gone = self.send(Message::Error { id: self.id, error });
        }
    }
}
