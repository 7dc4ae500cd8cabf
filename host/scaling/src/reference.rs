//! The policy `reference`: how large the reference would make a VM, given the same metrics.
//!
//! ```text
//!   load average ------> CPU goal ------+
//!   memory in use -----> memory goal ---+--> largest, whole compute units --> desired size
//!   cache windows -----> cache goal ----+          ^                              ^
//!                    (and memory with cache)       | asked for lately,            | bounds, present use,
//!                                                  | denied lately                | denied lately
//! ```
//!
//! Exact: the same inputs give the same goal, to the unit. What differs on purpose, each shown by a test:
//!
//! | the reference | here | test |
//! |---|---|---|
//! | a target of zero makes a goal infinite, which ends as the smallest size | refused | `config::tests::what_would_crash_or_divide_by_zero_is_refused` |
//! | windows below 2, a wait below the window, a missing choice of the window crash the VM's tasks | refused | the same |
//! | a goal beyond 16 bits wraps to a tiny one | saturates | `goal::tests::absurd_metrics_saturate` |
//! | cache windows drive the goal after their metrics were switched off | dropped at once | `goal::tests::windows_count_only_while_they_are_enabled` |

mod cache;
mod config;
mod desired;
mod goal;
mod state;

pub use cache::CacheWindows;
pub use config::{ConfigProblem, ReferenceConfig};
pub use desired::{ComputeUnit, Denied, Desired, Requested};
pub use goal::{CacheMetrics, Components, Goal, SystemMetrics, WorkingSet, goal};
pub(crate) use state::State;
