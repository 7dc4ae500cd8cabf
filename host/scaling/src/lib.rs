//! What size next, for one VM: the brain of the host's agent.
//!
//! Events come in through [`Scaler::handle`], which only records; [`Scaler::next`] says what to do now and
//! when to ask again. There is no clock, no IO and no Kubernetes here: `now` is a parameter, and the agent
//! converts what it hears from guest, scheduler and API server.
//!
//! ```text
//!            demand, ask                 permit                    patch
//!   guest ---------------> goal -------> scheduler -------------> VM object ----> hypervisor
//!     ^                     |  grow                                   ^               |
//!     |   may it shrink?    |  shrink                                 |               |
//!     +---------------------+-----------------------------------------+               |
//!     ^                                                                               |
//!     +---- told what is plugged; what is gone is returned to the scheduler <---------+
//! ```
//!
//! Invariants, each held by a property in `tests/properties.rs`: never above the bounds' maximum, never
//! patched above the permit, no shrink that the guest did not agree to, a stale message changes nothing,
//! one request in flight for each counterparty, no reversal for a constant demand.
#![forbid(unsafe_code)]

mod action;
mod decision;
mod event;
mod goal;
mod guest;
mod peak;
mod permit;
mod policy;
pub mod reference;
mod scaler;
mod vm;

pub use action::{Action, Actions, Why};
pub use decision::{Alternative, Decision, Inputs, Outcome, ReferenceInputs};
pub use event::{Event, Limits, Sample, SystemSample, VmView};
pub use policy::{Headroom, Policy, Reference, Retries, Rules};
pub use scaler::{Overview, Scaler};
