//! The life of one VM: specification, what was observed, and the time go in; the next steps come out.
//!
//! ```text
//!            spec valid                 pod ready
//!   New ───────────────▶ Pending ───────────────────▶ Running ◀──▶ (Scaling: an order is in flight)
//!                          ▲  │ pod ended, vanished      │ pod ended, vanished,
//!                          │  │ or is being killed       │ or is being killed
//!              restart     │  ▼                          ▼
//!              policy      └── Succeeded / Failed ◀──────┘
//!                                 pod deleted, then forgotten
//! ```
//!
//! *Happy path.* A name for the pod is chosen and written to the status before the pod is created, so that
//! a crash between the two never makes a second pod. The pod boots at the VM's minimum. Once it is ready,
//! CPU and memory are ordered from its runner, each on its own, until they are what the specification asks.
//!
//! *The gate.* Growth is ordered up to `min(use, approved)` only. Without a valid approval a VM stays where
//! it is: losing the scheduler never shrinks it. Shrinking needs no approval, nor does the minimum.
//! The status says which approval is obeyed: the scheduler keeps the room of every approval from that one on, and
//! gives the room of older ones away. So an approval becomes the obeyed one only when no order beyond it can be
//! under way: the runner refuses whoever led before, and every order of our own that was given up without an answer, and
//! was seen idle since. No clock says how long an order may be on its way.
//!
//! *Failures.* An order that is refused, vetoed, partly done or lost is tried again after a growing pause;
//! what was reached is what the status says, and the condition `Resized` says why it is not more or less.
//! An order has a deadline here too, so a lost answer cannot hold up the next order. A growth that is no longer
//! wanted is overtaken by an order of the smaller total. A pod that ended or
//! vanished is replaced as the restart policy says, at once the first time, later after a growing pause.
//!
//! `Scaling` is not a state but a view: the VM runs and an order is in flight. So it cannot get stuck.

#![forbid(unsafe_code)]

mod action;
mod backoff;
mod event;
mod next;
mod resize;
mod runner;
mod size;
mod status;
mod vm;

pub use action::{Action, Actions, Notice, What, Why};
pub use event::{Approved, Desired, Ending, Event, Plugged, Pod, PodFacts, PodState, Restart};
pub use status::{Age, Condition, ConditionKind, Phase, Revision, Status, Truth};
pub use vm::{Settings, Stored, Vm};
