//! The ledger: what is promised on every node, who may have more, and where a pod may go.
//!
//! ```text
//! nodes, pods, VMs --+                     +--> answers to agents
//! permits asked -----+--> handle ... next -+--> pods/resize
//! ends of effects ---+                     +--> approvals on VMs without an agent
//!                          filter, prioritize, preempt, may_bind: questions, nothing changes
//! ```
//!
//! What always holds:
//! - On every node, for CPU and memory, no decision lets the sum of what pods request and VMs are promised exceed
//!   what the node has.
//! - A promise grows only after kubelet has allocated the requests that back it. It shrinks only after the operator says that
//!   it obeys a newer approval and the hypervisor shows the difference gone.
//! - Nothing frees a promise or a placement by the passing of time.
//! - The books can be thrown away: requests of pods, approvals and sizes in VM objects are enough to write them
//!   again. Until all pods and VMs were listed, nothing grows; requests are not lowered before the operator obeys an approval
//!   of this epoch, since an earlier ledger may have given one that is not known.
//! - A pod requests its promise and a lease of headroom ([`Lease`]), as far as the node has room: what is leased beyond the promise is
//!   given back first, to other growths and to pods that no scheduler can place.
//! - Every request ends, within about [`Settings::hold`] plus [`Settings::resize_limit`], also one that waits for leases.
//!
//! What this crate does not know: clocks, Kubernetes' objects, signatures, who is allowed to ask.

#![forbid(unsafe_code)]

mod amount;
mod at_once;
mod audit;
mod backing;
mod books;
mod calls;
mod count;
mod demands;
mod dump;
mod event;
mod facts;
mod give_way;
mod headroom;
mod ledger;
mod permit;
mod place;
mod pod;
mod pods;
mod room;
mod settings;
mod settle;
mod slab;
mod standing;
mod timers;
mod vm;

pub use amount::{Amount, DEFAULT_OVERHEAD, Price};
pub use demands::{Demands, Label, Taint, Toleration};
pub use dump::{Dump, NodeDump, NodeLevel, VmDump};
pub use event::{Action, Actions, Answer, Asked, Event, Notice, ResizeResult, Ticket, Todo, Why};
pub use facts::{
    ContainerNeeds, InitNeeds, NodeFacts, Pending, PodFacts, PodKind, PodShape, RunnerFacts, Seal,
    VmFacts,
};
pub use ledger::Ledger;
pub use place::{MAX_SCORE, NotReady, Placement, Shortage};
pub use settings::{Lease, Scoring, Settings};
