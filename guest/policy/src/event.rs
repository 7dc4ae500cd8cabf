//! What goes into the brain, and what comes out.

use guest_protocol::{Ask, AskReason, Sample};
use guest_units::{Moment, Size};

use crate::reading::{Reading, Zones};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The shell starts this; the next call does not name it again.
    Started(Action),
    /// Counters and levels were read.
    Read(Reading),
    /// The zones were read.
    Zones(Zones),
    /// The host says what the VM has.
    Plugged(Size),
    /// The kernel signalled pressure: read at once.
    Pressure,
    /// Somebody listens from now on: what was said before was said to somebody else.
    Connected,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a report is rare, and nothing is allocated for it")]
pub enum Action {
    /// Read counters and levels.
    Read,
    /// Read the zones.
    ReadZones,
    /// Send a sample.
    Report(Sample),
    /// Send an ask.
    Ask(Ask),
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is time.
    Due,
    /// The demand has changed much.
    Changed,
    /// The kernel signalled pressure.
    Pressure,
    /// More is needed at once.
    Needed(AskReason),
}

/// What to do now, and when to ask again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Actions {
    /// To be started now, in this order.
    pub start: Vec<(Action, Why)>,
    /// Call `next` again then. `None`: only an event can change the answer.
    pub wake_at: Option<Moment>,
}
