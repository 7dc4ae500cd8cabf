//! The numbers behind the policy.

use std::time::Duration;

use guest_units::{Bytes, Size};

/// The numbers behind the policy. The defaults fit guests from 512 MiB up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Never ask for more than this.
    pub most: Size,
    /// Ask when memory would be exhausted within this time. Covers the way of an ask through host
    /// and scheduler, and the plug itself.
    pub horizon: Duration,
    /// A sample's demand looks so far ahead.
    pub demand_horizon: Duration,
    /// Smallest reserve that must stay available; a tenth of the memory if that is more.
    pub reserve_min: Bytes,
    /// An ask for memory wants at least this much more.
    pub step: Bytes,
    /// An unchanged ask is not repeated earlier; the pause doubles with each repeat.
    pub ask_pause: Duration,
    /// Up to this: a host that cannot give more is not told all the time.
    pub ask_pause_longest: Duration,
    /// Shortest time between readings.
    pub fastest: Duration,
    /// Longest time between readings.
    pub slowest: Duration,
    /// Longest time between readings while the workload does something.
    pub busy: Duration,
    /// A sample is sent at least so often.
    pub report_slowest: Duration,
    /// Samples are sent at most so often.
    pub report_fastest: Duration,
    /// The page cache counts as in use for so long after it was missed.
    pub cache_memory: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            most: Size::new(guest_protocol::MAX_CPU, guest_protocol::MAX_MEMORY),
            horizon: Duration::from_millis(1500),
            demand_horizon: Duration::from_millis(500),
            reserve_min: Bytes::from_mib(64),
            step: Bytes::from_mib(128),
            ask_pause: Duration::from_millis(500),
            ask_pause_longest: Duration::from_secs(5),
            fastest: Duration::from_millis(10),
            slowest: Duration::from_secs(1),
            busy: Duration::from_millis(100),
            report_slowest: Duration::from_millis(900),
            report_fastest: Duration::from_millis(100),
            cache_memory: Duration::from_secs(120),
        }
    }
}

impl Tuning {
    /// What must stay available of so much memory.
    pub(crate) fn reserve(&self, total: Bytes) -> Bytes {
        self.reserve_min.max(total.times(1, 10))
    }
}
