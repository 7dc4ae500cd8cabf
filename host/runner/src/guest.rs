//! What the runner asks of the guest while it carries an order out; `keeper` asks the real one.

use std::time::Duration;

use guest_units::{Bytes, MilliCpu};
use host_protocol::Generation;

/// The guest's CPUs as its keeper tells them: a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestCpu {
    pub(crate) online: u32,
    pub(crate) quota: MilliCpu,
}

/// The guest's answer to a shrink of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Consent {
    Fine,
    /// The smallest total that would be fine.
    Veto {
        least: Bytes,
        reason: String,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    #[error("the guest does not answer: its keeper is not connected")]
    NotConnected,
    #[error("the guest does not answer {request}")]
    NoAnswer { request: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the guest refused {request}: {reason}")]
    Refused { request: &'static str, reason: String },
}

/// The guest's keeper.
pub(crate) trait Guest: Send + Sync + 'static {
    /// Whether it is worth asking.
    fn reachable(&self) -> Result<(), GuestError>;

    /// Onlines or offlines CPUs and sets the workload's quota.
    fn set_cpu(
        &self,
        generation: Generation,
        cpu: MilliCpu,
        limit: Duration,
    ) -> impl Future<Output = Result<GuestCpu, GuestError>> + Send;

    /// Asks whether the guest can do with less memory. Sizes are totals.
    fn may_shrink_memory(
        &self,
        generation: Generation,
        from: Bytes,
        to: Bytes,
        limit: Duration,
    ) -> impl Future<Output = Result<Consent, GuestError>> + Send;

    /// Shuts the guest down cleanly.
    fn power_down(&self, limit: Duration) -> impl Future<Output = Result<(), GuestError>> + Send;
}
