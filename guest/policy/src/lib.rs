//! What a guest needs, what it must ask for at once, and what it must not lose.
//!
//! [`Policy`] is a brain: the shell hands it readings of the kernel's counters and does what it says.
//! Growth of memory is judged by the time until it is exhausted, not by a level, and the closer that
//! is, the more often it wants to be shown readings. CPU is judged by use against what may be used,
//! by throttling and by the run queue.

#![forbid(unsafe_code)]

mod cpu;
mod event;
mod memory;
mod policy;
pub mod postgres;
mod reading;
pub mod reference;
mod tuning;
mod veto;
mod window;

pub use event::{Action, Actions, Event, Why};
pub use policy::Policy;
pub use reading::{CpuReading, MemoryReading, Reading, Zones};
pub use tuning::Tuning;
pub use veto::{Unsafe, Verdict};
