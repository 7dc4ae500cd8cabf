//! What crosses the vsock between the host and a guest.
//!
//! The host dials, the guest listens. Frames are a 4-byte big-endian length and JSON, at most 64 KiB.
//! The host speaks first (`Hello`), the guest answers (`Welcome` or an error and the end), then
//! envelopes travel in both directions. Two roles share the machinery: the *scaler* measures, asks
//! and vetoes, the *keeper* carries out a closed list of privileged acts.
//!
//! Everything that a guest says is a claim: frames are bounded, texts are cut, numbers are brought
//! into a range that no real VM exceeds, and notifications are limited in rate.

#![forbid(unsafe_code)]

mod bounds;
mod codec;
mod greeting;
#[cfg(feature = "io")]
mod link;
mod message;
mod metrics;
mod roles;
mod text;
mod version;

pub use bounds::{Bounded, MAX_CPU, MAX_MEMORY};
pub use codec::{CodecError, Decoder, HEADER, MAX_FRAME, decode, encode};
pub use greeting::{Greeting, Hello, RoleName, Welcome};
#[cfg(feature = "io")]
pub use link::{
    Closed, HandshakeError, Incoming, Link, LinkDriver, LinkError, LinkOptions, Received,
    Responder, Session, accept, dial,
};
pub use message::{
    Ask, AskReason, Envelope, ErrorBody, ErrorCode, Generation, KeeperRequest, KeeperResponse,
    KeeperState, Malformed, Message, Never, Sample, ScalerNotify, ScalerRequest, ScalerResponse,
    Signals,
};
pub use metrics::{CacheWindows, Metrics};
pub use roles::{KeeperGuest, KeeperHost, Receivable, ScalerGuest, ScalerHost, Sendable, Side};
pub use text::Text;
pub use version::{CURRENT, SUPPORTED, VersionError, Versions, negotiate};

/// Port in the guest on which the scaler listens.
pub const SCALER_PORT: u32 = 10301;
/// Port in the guest on which the keeper listens.
pub const KEEPER_PORT: u32 = 25183;
