//! How the host reaches a process in the guest: one `connect` with a deadline.
//!
//! The transport is *hybrid*: the vhost-user back end of the VM's vsock device listens on a Unix socket in
//! the VM's run directory. After `CONNECT port\n`, answered by `OK number\n`, that socket carries the
//! connection. Traps, each handled here:
//!
//! - The request must be one write: the back end reads without blocking, and a split line ends in EPIPE.
//! - Payload may follow the answer in the same segment: the answer is read byte by byte.
//! - Nobody listens in the guest: end of file or a reset, without a message.
//! - Paths of Unix sockets end at 107 bytes, and the folder below the kubelet's is 97 long. The folder also
//!   belongs to somebody else, who could put a link there. So both the folder and the socket are opened
//!   without following links, and the connection goes through the descriptor.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The answer to `CONNECT` is shorter than this.
const ANSWER_LIMIT: usize = 32;
/// Buffer of an in-memory connection.
const MEM_BUFFER: usize = 64 * 1024;

/// A connected stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connected stream of any transport.
pub type Stream = Box<dyn Duplex>;

/// Where a process of the guest listens.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// Through the socket of the VM's vhost-user back end.
    Hybrid {
        /// The socket.
        socket: HybridSocket,
        /// Port in the guest.
        port: u32,
    },
    /// Inside one process, for tests.
    Mem(mpsc::Sender<DuplexStream>),
}

/// The hybrid socket of a VM.
#[derive(Debug, Clone)]
pub enum HybridSocket {
    /// In a folder of our own.
    Path(PathBuf),
    /// In a folder that belongs to somebody else, held open.
    Folder {
        /// The folder.
        folder: Arc<OwnedFd>,
        /// Name of the socket in it.
        name: String,
    },
}

impl HybridSocket {
    /// Opens the folder of the socket `name`; the folder itself must not be a link.
    ///
    /// # Errors
    /// When the folder does not exist, is a link, or may not be opened.
    pub fn in_folder(path: &Path, name: &str) -> Result<Self, ConnectError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(CWD, path, flags, Mode::empty())
            .map_err(|err| ConnectError::Folder { path: path.to_owned(), source: err.into() })?;
        Ok(Self::Folder { folder: Arc::new(folder), name: name.to_owned() })
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        match self {
            Self::Path(path) => UnixStream::connect(path).await,
            Self::Folder { folder, name } => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let socket = openat(folder, name.as_str(), flags, Mode::empty())?;
                if FileType::from_raw_mode(fstat(&socket)?.st_mode) != FileType::Socket {
                    return Err(io::Error::other("not a socket"));
                }
                UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
            }
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The folder of the socket.
    #[error("open the folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The transport.
    #[error("connect to {endpoint}")]
    Transport {
        /// A description of the endpoint.
        endpoint: String,
        /// The cause.
        source: io::Error,
    },
    /// The back end answered, but nobody in the guest took the connection.
    #[error("nobody listens in the guest at {endpoint}")]
    NobodyListens {
        /// A description of the endpoint.
        endpoint: String,
        /// The cause.
        source: io::Error,
    },
    /// It took too long.
    #[error("no connection to {endpoint} within {limit:?}")]
    Deadline {
        /// A description of the endpoint.
        endpoint: String,
        /// The time that it had.
        limit: Duration,
    },
}

impl Endpoint {
    /// Connects within `limit`.
    ///
    /// # Errors
    /// When nobody listens, the transport fails or the time is over. All of these may pass: try again later.
    pub async fn connect(&self, limit: Duration) -> Result<Stream, ConnectError> {
        let transport = |source| ConnectError::Transport { endpoint: self.describe(), source };
        let connected = timeout(limit, async {
            let stream: Stream = match self {
                Self::Hybrid { socket, port } => {
                    let stream = socket.connect().await.map_err(transport)?;
                    let opened = open_port(stream, *port).await;
                    Box::new(opened.map_err(|source| ConnectError::NobodyListens {
                        endpoint: self.describe(),
                        source,
                    })?)
                }
                Self::Mem(listener) => {
                    let (ours, theirs) = tokio::io::duplex(MEM_BUFFER);
                    let gone = |_| transport(io::ErrorKind::ConnectionRefused.into());
                    listener.send(theirs).await.map_err(gone)?;
                    Box::new(ours)
                }
            };
            Ok(stream)
        });
        connected
            .await
            .unwrap_or_else(|_| Err(ConnectError::Deadline { endpoint: self.describe(), limit }))
    }

    /// An endpoint inside this process, and where its connections arrive.
    #[must_use]
    pub fn mem() -> (Self, MemListener) {
        let (sender, receiver) = mpsc::channel(4);
        (Self::Mem(sender), MemListener(receiver))
    }

    fn describe(&self) -> String {
        match self {
            Self::Hybrid { socket: HybridSocket::Path(path), port } => {
                format!("{}:{port}", path.display())
            }
            Self::Hybrid { socket: HybridSocket::Folder { name, .. }, port } => {
                format!("{name}:{port}")
            }
            Self::Mem(_) => "memory".to_owned(),
        }
    }
}

/// Where the connections to [`Endpoint::mem`] arrive.
#[derive(Debug)]
pub struct MemListener(mpsc::Receiver<DuplexStream>);

impl MemListener {
    /// The next connection; nothing when all endpoints are gone.
    pub async fn accept(&mut self) -> Option<DuplexStream> {
        self.0.recv().await
    }
}

async fn open_port<S>(mut stream: S, port: u32) -> io::Result<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?; // one write
    let mut answer = Vec::with_capacity(ANSWER_LIMIT);
    while answer.last() != Some(&b'\n') {
        if answer.len() == ANSWER_LIMIT {
            return Err(io::Error::other("no newline in the answer to CONNECT"));
        }
        answer.push(stream.read_u8().await?); // payload may follow
    }
    if answer.starts_with(b"OK ") {
        Ok(stream)
    } else {
        Err(io::Error::other("the answer to CONNECT is not OK"))
    }
}
