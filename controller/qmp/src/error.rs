//! What can go wrong on a connection to QEMU.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::wire::{Refusal, WireError};

/// What can go wrong on a connection to QEMU. Only [`QmpError::Refused`], [`QmpError::Deadline`] and
/// [`QmpError::Shape`] leave the connection usable.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// No connection; it may come later.
    #[error("connect to the monitor at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The connection broke.
    #[error("{operation} the monitor")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// What came is not QMP.
    #[error("understand the monitor")]
    Wire {
        /// The cause.
        source: WireError,
    },
    /// The other end is not a QMP monitor, or is used already.
    #[error("the monitor does not negotiate: {reason}")]
    Negotiation {
        /// What was wrong.
        reason: String,
    },
    /// QEMU said no.
    #[error("{command} refused: {refusal}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's answer.
        refusal: Refusal,
    },
    /// The arguments or the answer have another shape than expected.
    #[error("arguments or answer of {command}")]
    Shape {
        /// The command.
        command: &'static str,
        /// The cause.
        source: serde_json::Error,
    },
    /// No answer in time; the command may still take effect.
    #[error("no answer to {command} within {limit:?}")]
    Deadline {
        /// The command.
        command: &'static str,
        /// The time that it had.
        limit: Duration,
    },
    /// The connection has ended.
    #[error("the connection to the monitor has ended before {command} was answered")]
    Closed {
        /// The command.
        command: &'static str,
    },
}

impl QmpError {
    /// A fixed word for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Io { .. } => "io",
            Self::Wire { .. } => "wire",
            Self::Negotiation { .. } => "negotiation",
            Self::Refused { .. } => "refused",
            Self::Shape { .. } => "shape",
            Self::Deadline { .. } => "deadline",
            Self::Closed { .. } => "closed",
        }
    }
}
