//! The first frame of each side, within a deadline.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::{LinkOptions, Session};
use crate::codec::{CodecError, HEADER, body_length, decode, encode};
use crate::greeting::{Greeting, Hello, RoleName, Welcome};
use crate::message::{ErrorBody, ErrorCode};
use crate::roles::Side;
use crate::text::Text;
use crate::version::{SUPPORTED, VersionError, negotiate};

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Not done in time.
    #[error("no handshake within {limit:?}")]
    Deadline {
        /// How long was waited.
        limit: Duration,
    },
    /// Reading or writing failed, or the peer closed.
    #[error("exchange greetings")]
    Io {
        /// Why.
        source: io::Error,
    },
    /// The peer's greeting is no frame, or cannot be read.
    #[error("read the peer's greeting")]
    Greeting {
        /// Why.
        source: CodecError,
    },
    /// The peer greets like the wrong end.
    #[error("the peer did not greet as this protocol demands")]
    Unexpected,
    /// The peer refused.
    #[error("refused as {:?}: {}", error.code, error.message)]
    Refused {
        /// What it said.
        error: ErrorBody,
    },
    /// Another role was called or answers.
    #[error("the peer speaks of role {theirs:?}, expected {ours:?}")]
    Role {
        /// Ours.
        ours: RoleName,
        /// The peer's.
        theirs: RoleName,
    },
    /// No common version.
    #[error("agree on a version")]
    Version {
        /// The ranges.
        source: VersionError,
    },
    /// The guest chose a version that was not offered.
    #[error("the guest chose version {version}, which was not offered")]
    Choice {
        /// What it chose.
        version: u32,
    },
}

/// The host's end: greets, and waits for the guest's welcome at most so long.
///
/// # Errors
/// When the guest does not answer, refuses, or answers as something else.
pub async fn dial<W: Side, S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    options: LinkOptions,
    limit: Duration,
) -> Result<Session<S, W>, HandshakeError> {
    let exchange = async {
        write(&mut stream, &Greeting::Hello(Hello { role: W::ROLE, versions: SUPPORTED })).await?;
        read(&mut stream).await
    };
    let greeting =
        timeout(limit, exchange).await.map_err(|_| HandshakeError::Deadline { limit })?;
    let welcome = match greeting? {
        Greeting::Welcome(welcome) => welcome,
        Greeting::Error(error) => return Err(HandshakeError::Refused { error }),
        Greeting::Hello(_) => return Err(HandshakeError::Unexpected),
    };
    if welcome.role != W::ROLE {
        return Err(HandshakeError::Role { ours: W::ROLE, theirs: welcome.role });
    }
    if !(SUPPORTED.min..=SUPPORTED.max).contains(&welcome.version) {
        return Err(HandshakeError::Choice { version: welcome.version });
    }
    Ok(Session::new(stream, options, welcome))
}

/// The guest's end: waits for the host's hello at most so long, and answers.
///
/// # Errors
/// When the host does not greet, or wants something else; it was told so then.
pub async fn accept<W: Side, S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    boot_id: &str,
    options: LinkOptions,
    limit: Duration,
) -> Result<Session<S, W>, HandshakeError> {
    let exchange = async {
        let Greeting::Hello(hello) = read(&mut stream).await? else {
            return Err(HandshakeError::Unexpected);
        };
        match answer::<W>(hello, boot_id) {
            Ok(welcome) => {
                write(&mut stream, &Greeting::Welcome(welcome.clone())).await?;
                Ok(welcome)
            }
            Err(err) => {
                let error = ErrorBody::new(ErrorCode::Refused, &err.to_string());
                write(&mut stream, &Greeting::Error(error)).await?;
                Err(err)
            }
        }
    };
    let welcome = timeout(limit, exchange).await.map_err(|_| HandshakeError::Deadline { limit })?;
    Ok(Session::new(stream, options, welcome?))
}

fn answer<W: Side>(hello: Hello, boot_id: &str) -> Result<Welcome, HandshakeError> {
    if hello.role != W::ROLE {
        return Err(HandshakeError::Role { ours: W::ROLE, theirs: hello.role });
    }
    let version = negotiate(SUPPORTED, hello.versions)
        .map_err(|source| HandshakeError::Version { source })?;
    Ok(Welcome { role: W::ROLE, version, boot_id: Text::new(boot_id) })
}

async fn write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    greeting: &Greeting,
) -> Result<(), HandshakeError> {
    let frame = encode(greeting).map_err(|source| HandshakeError::Greeting { source })?;
    let write = async {
        stream.write_all(&frame).await?;
        stream.flush().await
    };
    write.await.map_err(|source| HandshakeError::Io { source })
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Greeting, HandshakeError> {
    let mut prefix = [0; HEADER];
    stream.read_exact(&mut prefix).await.map_err(|source| HandshakeError::Io { source })?;
    let length = body_length(prefix).map_err(|source| HandshakeError::Greeting { source })?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(|source| HandshakeError::Io { source })?;
    decode(&body).map_err(|source| HandshakeError::Greeting { source })
}
