//! The units that every part speaks: amounts of memory, amounts of CPU, both together, points in time, and the way an error is told.
//!
//! All are small `Copy` types. In JSON they look as in the Kubernetes API: a memory amount is a bare
//! integer below 1024 and a quantity such as `"1500Mi"` above, a CPU amount is a bare integer for
//! whole CPUs and a quantity such as `"250m"` otherwise.

#![forbid(unsafe_code)]

mod bytes;
mod chain;
mod milli_cpu;
mod moment;
mod quantity;
mod size;
mod wire;

pub use bytes::Bytes;
pub use chain::Chain;
pub use milli_cpu::MilliCpu;
pub use moment::Moment;
pub use quantity::{QuantityError, parse_scaled};
pub use size::Size;
