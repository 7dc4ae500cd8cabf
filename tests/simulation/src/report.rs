//! `simulate fleet --report`: how a fleet was scaled, as one HTML page that needs nothing else.
//!
//! While the fleet runs, a recorder keeps sums of all VMs for each bucket of time, from the same stretches that the quality is
//! measured by; afterwards the page draws them. The same fleet leads to the same page, on any number of cores.

mod bucket;
mod charts;
mod closeup;
mod file;
mod page;
mod recorder;
mod style;
mod svg;
#[cfg(test)]
mod tests;

pub use bucket::{Bucket, Buckets, Sums};
pub use closeup::{Closeup, Point, Window};
pub use file::{Draft, DraftProblem};
pub use page::{Subject, page};
pub use recorder::{Plan, Recording, VmRecord};

pub(crate) use recorder::{Recorder, Tap};
