//! Moves the bytes of a connection, and holds its bounds.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::{LinkOptions, Received, Responder, Shared, encode_message};
use crate::bounds::Bounded;
use crate::codec::{CodecError, Decoder, decode};
use crate::message::{Envelope, ErrorBody, ErrorCode, Malformed, Message};
use crate::roles::Side;

/// Bytes that are read at once.
const CHUNK: usize = 8 * 1024;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    /// The peer closed it.
    #[error("the peer closed the connection")]
    Peer,
    /// This end gave it up: the link and every clone of it, or `Incoming`, were dropped.
    #[error("this end closed the connection")]
    Here,
    /// Nothing was received for too long.
    #[error("nothing received for {limit:?}")]
    Idle {
        /// How long was waited.
        limit: Duration,
    },
    /// The peer takes nothing.
    #[error("a frame was not taken for {limit:?}")]
    Stuck {
        /// How long was waited.
        limit: Duration,
    },
    /// The peer sent something that is no frame or no message.
    #[error("received a frame that makes no sense")]
    Frame {
        /// What is wrong with it.
        source: CodecError,
    },
    /// The peer sent an envelope that is none.
    #[error("received an envelope that makes no sense")]
    Envelope {
        /// What is wrong with it.
        source: Malformed,
    },
    /// Reading or writing failed.
    #[error("read or write")]
    Io {
        /// Why.
        source: io::Error,
    },
}

impl Closed {
    /// Fixed text for metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Here => "here",
            Self::Idle { .. } => "idle",
            Self::Stuck { .. } => "stuck",
            Self::Frame { .. } | Self::Envelope { .. } => "malformed",
            Self::Io { .. } => "io",
        }
    }
}

/// Moves the bytes; without it nothing happens.
pub struct LinkDriver<S, W: Side> {
    stream: S,
    options: LinkOptions,
    to_write: mpsc::Receiver<Vec<u8>>,
    reader: Reader<W>,
}

struct Reader<W: Side> {
    received: mpsc::Sender<Received<W>>,
    frames: mpsc::WeakSender<Vec<u8>>,
    shared: Arc<Shared<W>>,
    notifies: Rate,
    /// All that is read is parsed: without a limit, one fast peer would take the time of all others.
    pace: Rate,
}

impl<S, W: Side> LinkDriver<S, W> {
    pub(super) fn new(
        stream: S,
        options: LinkOptions,
        to_write: mpsc::Receiver<Vec<u8>>,
        received: mpsc::Sender<Received<W>>,
        frames: mpsc::WeakSender<Vec<u8>>,
        shared: Arc<Shared<W>>,
    ) -> Self {
        let notifies = Rate::new(options.notifies_per_second);
        let pace = Rate::new(options.frames_per_second);
        let reader = Reader { received, frames, shared, notifies, pace };
        Self { stream, options, to_write, reader }
    }
}

impl<S: AsyncRead + AsyncWrite, W: Side> LinkDriver<S, W> {
    /// Runs until the connection ends, and says why. Dropping the future ends it, too.
    pub async fn run(self) -> Closed {
        let Self { stream, options, to_write, mut reader } = self;
        let _close = CloseAtEnd(Arc::clone(&reader.shared));
        let (read, write) = split(stream);
        let received = reader.received.clone();
        tokio::select! {
            closed = reader.run(read, options.idle) => closed,
            closed = write_frames(write, to_write, options.write_limit) => closed,
            () = received.closed() => Closed::Here,
        }
    }
}

/// Fails the pending requests however the driver ends.
struct CloseAtEnd<W: Side>(Arc<Shared<W>>);

impl<W: Side> Drop for CloseAtEnd<W> {
    fn drop(&mut self) {
        self.0.close();
    }
}

async fn write_frames<T: AsyncWrite + Unpin>(
    mut stream: T,
    mut frames: mpsc::Receiver<Vec<u8>>,
    limit: Duration,
) -> Closed {
    while let Some(frame) = frames.recv().await {
        let write = async {
            stream.write_all(&frame).await?;
            stream.flush().await
        };
        match timeout(limit, write).await {
            Err(_) => return Closed::Stuck { limit },
            Ok(Err(source)) => return Closed::Io { source },
            Ok(Ok(())) => {}
        }
    }
    let _peer_may_be_gone = timeout(limit, stream.shutdown()).await;
    Closed::Here
}

impl<W: Side> Reader<W> {
    async fn run<T: AsyncRead + Unpin>(&mut self, mut stream: T, idle: Option<Duration>) -> Closed {
        let mut decoder = Decoder::default();
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = match read_some(&mut stream, &mut chunk, idle).await {
                Ok(length) => length,
                Err(closed) => return closed,
            };
            decoder.push(&chunk[..length]);
            loop {
                match decoder.next_frame() {
                    Err(source) => return Closed::Frame { source },
                    Ok(None) => break,
                    Ok(Some(frame)) => {
                        let kib = frame.len() / 1024;
                        self.pace.spend(Instant::now(), 1.0 + kib as f64);
                        if let Err(closed) = self.take(frame) {
                            return closed;
                        }
                    }
                }
            }
            let debt = self.pace.debt();
            if !debt.is_zero() {
                sleep(debt).await;
            }
        }
    }

    /// One frame. Never waits: a reader that is slow delays no answer.
    fn take(&mut self, frame: &[u8]) -> Result<(), Closed> {
        let envelope: Envelope<W::Asked, W::Gets, W::Told> =
            decode(frame).map_err(|source| Closed::Frame { source })?;
        match Message::try_from(envelope).map_err(|source| Closed::Envelope { source })? {
            Message::Response { id, response } => self.shared.answer(id, Ok(response.bounded())),
            Message::Error { id, error } => self.shared.answer(id, Err(error)),
            Message::Request { id, request } => self.requested(id, request.bounded()),
            Message::Notify(notify) => {
                let passed = self.notifies.take(Instant::now())
                    && self.received.try_send(Received::Notify(notify.bounded())).is_ok();
                if !passed {
                    self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    fn requested(&self, id: u64, request: W::Asked) {
        let Ok(place) = self.received.try_reserve() else {
            let error = ErrorBody::new(ErrorCode::Busy, "too many requests wait");
            let frame = encode_message::<W::Asks, W::Gives, W::Tells>(Message::Error { id, error });
            if let (Ok(frame), Some(frames)) = (frame, self.frames.upgrade()) {
                let _full = frames.try_send(frame);
            }
            return;
        };
        place.send(Received::Request(request, Responder::new(self.frames.clone(), id)));
    }
}

async fn read_some<T: AsyncRead + Unpin>(
    stream: &mut T,
    chunk: &mut [u8],
    idle: Option<Duration>,
) -> Result<usize, Closed> {
    let read = stream.read(chunk);
    let read = match idle {
        None => read.await,
        Some(limit) => timeout(limit, read).await.map_err(|_| Closed::Idle { limit })?,
    };
    match read {
        Ok(0) => Err(Closed::Peer),
        Ok(length) => Ok(length),
        Err(source) => Err(Closed::Io { source }),
    }
}

/// A bucket that holds one second's worth.
struct Rate {
    per_second: f64,
    left: f64,
    at: Option<Instant>,
}

impl Rate {
    fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: per_second, at: None }
    }

    fn take(&mut self, now: Instant) -> bool {
        self.earn(now);
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }

    /// Takes it whether or not it is there.
    fn spend(&mut self, now: Instant, amount: f64) {
        self.earn(now);
        self.left -= amount;
    }

    /// How long it takes to earn what was spent too much.
    fn debt(&self) -> Duration {
        Duration::from_secs_f64((-self.left).max(0.0) / self.per_second.max(1.0))
    }

    fn earn(&mut self, now: Instant) {
        let passed = self.at.map_or(0.0, |at| (now - at).as_secs_f64());
        self.at = Some(now);
        self.left = (self.left + passed * self.per_second).min(self.per_second);
    }
}
