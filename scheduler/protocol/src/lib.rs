//! What the scheduler says and is told: permits of the agents, and the calls of kube-scheduler.
//!
//! ```text
//! agent                      autoscale-scheduler                    kubelet
//!   |  POST /v1/permit             |                                   |
//!   |  PermitRequest ------------->|  room on the node?                |
//!   |                              |  pods/resize -------------------->|
//!   |                              |<------------------ allocated      |
//!   |<------------- PermitAnswer   |                                   |
//!   |  use + approval, one patch   |                                   |
//! ```
//!
//! Every request ends: with a [`PermitAnswer`] (status 200) or with a [`Refusal`] (status 4xx or 5xx), within a few
//! seconds. Sizes are totals, so repeating a request is harmless. Agents refuse answers of an epoch older than
//! one they have seen.
//!
//! Version window: [`VERSION`] is spoken, [`OLDEST_VERSION`] still understood.

#![forbid(unsafe_code)]

pub mod extender;
mod permit;

pub use extender::KUBE_SCHEDULER_SAN;
pub use permit::{
    AUDIENCE, Approval, BadRequest, MAX_BODY_BYTES, MAX_CPU, MAX_MEMORY, MAX_REASON_CHARS,
    OLDEST_VERSION, ObjectRef, Outcome, PERMIT_PATH, PORT, PermitAnswer, PermitRequest, Refusal,
    RefusalCode, VERSION,
};
