//! One connection to QEMU: a [`Driver`] moves the bytes, any number of [`Client`]s give commands.
//!
//! ```text
//! Client --(id, line, where the answer goes)--> Driver --line--> QEMU
//! Client <------------------------- pending[id] Driver <-line--- QEMU
//! Events <----------------------------broadcast Driver <-line--- QEMU
//! ```
//!
//! - Dropping the future of a command is harmless: its answer is dropped when it comes.
//! - A command that was not answered in time may still take effect.
//! - There is no reconnecting: when the driver ends, every command ends with `Closed`; make a new client.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::timeout;

use crate::command::{Command, QmpCapabilities};
use crate::error::QmpError;
use crate::event::Event;
use crate::wire::{Lines, Message, Refusal, request};

/// Commands on their way to QEMU.
const COMMAND_QUEUE: usize = 64;
/// Events that a slow listener may be behind.
const EVENT_QUEUE: usize = 256;
/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

type Returned = Result<Value, Refusal>;
type Pending = HashMap<u64, oneshot::Sender<Returned>>;

/// Gives commands; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    lines: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    next_id: AtomicU64,
    /// `None` once the driver has ended.
    pending: Mutex<Option<Pending>>,
    events: broadcast::Sender<Event>,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Option<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events from the moment of [`Client::events`] on.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// The next event; nothing when the connection has ended. A listener that is far behind misses the
    /// oldest ones, so whoever waits for one event also asks QEMU now and then.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// Moves the bytes of one connection. Must run for its clients to get answers.
#[derive(Debug)]
#[must_use = "without `run` no command is ever answered"]
pub struct Driver<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    lines: Lines,
    outgoing: mpsc::Receiver<Vec<u8>>,
    shared: Arc<Shared>,
}

impl Client {
    /// Connects to the socket at `path` and negotiates, all within `limit`.
    ///
    /// # Errors
    /// When there is no socket, or no monitor behind it that talks to us.
    pub async fn connect(
        path: &Path,
        limit: Duration,
    ) -> Result<(Self, Driver<UnixStream>), QmpError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| QmpError::Connect { path: path.to_owned(), source })?;
        Self::over(stream, limit).await
    }

    /// Negotiates on a connected stream within `limit`.
    ///
    /// # Errors
    /// When the other end is not a monitor that talks to us.
    pub async fn over<S>(stream: S, limit: Duration) -> Result<(Self, Driver<S>), QmpError>
    where
        S: AsyncRead + AsyncWrite,
    {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut lines = Lines::default();
        timeout(limit, negotiate(&mut reader, &mut writer, &mut lines))
            .await
            .unwrap_or(Err(QmpError::Deadline { command: QmpCapabilities::NAME, limit }))?;
        let (commands, outgoing) = mpsc::channel(COMMAND_QUEUE);
        let (events, _) = broadcast::channel(EVENT_QUEUE);
        let shared = Arc::new(Shared {
            next_id: AtomicU64::new(1),
            pending: Mutex::new(Some(HashMap::new())),
            events,
        });
        let client = Self { lines: commands, shared: Arc::clone(&shared) };
        Ok((client, Driver { reader, writer, lines, outgoing, shared }))
    }

    /// Gives a command and waits for its answer, at most for `limit`.
    ///
    /// # Errors
    /// When QEMU refuses, does not answer in time or answers in another shape, or the connection has ended.
    pub async fn execute<C: Command>(
        &self,
        command: &C,
        limit: Duration,
    ) -> Result<C::Answer, QmpError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let line = request(C::NAME, command, id)
            .map_err(|source| QmpError::Shape { command: C::NAME, source })?;
        let closed = || QmpError::Closed { command: C::NAME };
        let (answer, answered) = oneshot::channel();
        if let Some(pending) = self.shared.pending().as_mut() {
            pending.retain(|_, waiting| !waiting.is_closed()); // of commands that were given up
            pending.insert(id, answer);
        } else {
            return Err(closed());
        }
        let returned = timeout(limit, async {
            self.lines.send(line).await.map_err(|_| closed())?;
            answered.await.map_err(|_| closed())
        })
        .await
        .unwrap_or(Err(QmpError::Deadline { command: C::NAME, limit }))?
        .map_err(|refusal| QmpError::Refused { command: C::NAME, refusal })?;
        serde_json::from_value(returned)
            .map_err(|source| QmpError::Shape { command: C::NAME, source })
    }

    /// Listens to events from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        Events(self.shared.events.subscribe())
    }
}

impl<S> Driver<S> {
    /// Moves bytes until QEMU closes the connection, no client is left, or something breaks.
    ///
    /// # Errors
    /// When the connection breaks or what comes is not QMP. QEMU closing it is no error.
    pub async fn run(self) -> Result<(), QmpError>
    where
        S: AsyncRead + AsyncWrite,
    {
        let Self { reader, writer, lines, outgoing, shared } = self;
        let result = tokio::select! {
            result = read(reader, lines, &shared) => result,
            result = write(writer, outgoing) => result,
        };
        *shared.pending() = None; // ends every command that waits
        result
    }
}

async fn read<S: AsyncRead>(
    mut reader: ReadHalf<S>,
    mut lines: Lines,
    shared: &Shared,
) -> Result<(), QmpError> {
    while let Some(message) = next_message(&mut reader, &mut lines).await? {
        match message {
            Message::Greeting => {}
            Message::Event(event) => {
                let _nobody_listens = shared.events.send(event);
            }
            Message::Answer { id, result } => {
                let waiting = id.and_then(|id| shared.pending().as_mut()?.remove(&id));
                if let Some(waiting) = waiting {
                    let _given_up = waiting.send(result);
                }
            }
        }
    }
    Ok(())
}

async fn write<S: AsyncWrite>(
    mut writer: WriteHalf<S>,
    mut outgoing: mpsc::Receiver<Vec<u8>>,
) -> Result<(), QmpError> {
    while let Some(line) = outgoing.recv().await {
        let written = async {
            writer.write_all(&line).await?;
            writer.flush().await
        };
        written.await.map_err(|source| QmpError::Io { operation: "write to", source })?;
    }
    Ok(())
}

/// The next message; nothing at the end of the stream.
async fn next_message<S: AsyncRead>(
    reader: &mut ReadHalf<S>,
    lines: &mut Lines,
) -> Result<Option<Message>, QmpError> {
    let mut chunk = [0; CHUNK];
    loop {
        if let Some(line) = lines.next_line().map_err(|source| QmpError::Wire { source })? {
            return Message::parse(&line).map(Some).map_err(|source| QmpError::Wire { source });
        }
        let read = reader.read(&mut chunk).await;
        let length = read.map_err(|source| QmpError::Io { operation: "read from", source })?;
        if length == 0 {
            return Ok(None);
        }
        lines.push(&chunk[..length]);
    }
}

async fn negotiate<S: AsyncRead + AsyncWrite>(
    reader: &mut ReadHalf<S>,
    writer: &mut WriteHalf<S>,
    lines: &mut Lines,
) -> Result<(), QmpError> {
    let failed = |reason: String| QmpError::Negotiation { reason };
    match next_message(reader, lines).await? {
        Some(Message::Greeting) => {}
        Some(_) => return Err(failed("the first message is not a greeting".to_owned())),
        None => return Err(failed("the connection was closed".to_owned())),
    }
    let line = request(QmpCapabilities::NAME, QmpCapabilities {}, 0)
        .map_err(|source| QmpError::Shape { command: QmpCapabilities::NAME, source })?;
    let written = writer.write_all(&line).await;
    written.map_err(|source| QmpError::Io { operation: "write to", source })?;
    loop {
        match next_message(reader, lines).await? {
            Some(Message::Answer { id: Some(0), result: Ok(_) }) => return Ok(()),
            Some(Message::Answer { result: Err(refusal), .. }) => {
                return Err(failed(refusal.to_string()));
            }
            Some(_) => {}
            None => return Err(failed("the connection was closed".to_owned())),
        }
    }
}
