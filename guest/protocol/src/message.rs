//! Envelopes, and what both roles say in them.

use guest_units::{Bytes, MilliCpu, Size};
use serde::{Deserialize, Serialize};

use crate::metrics::{CacheWindows, Metrics};
use crate::text::Text;

/// Which of two orders is newer. A receiver refuses what is older than the newest it has seen.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Generation {
    /// Of the sender: rises with each of its starts. The more significant part.
    #[serde(default)]
    pub epoch: u64,
    /// Rises with each order.
    pub counter: u64,
}

/// A counter alone, of a sender without epochs.
impl From<u64> for Generation {
    fn from(counter: u64) -> Self {
        Self { epoch: 0, counter }
    }
}

/// What a frame holds, as it is written. Use [`Message`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope<Q, P, N> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    request: Option<Q>,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    response: Option<P>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<ErrorBody>,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    notify: Option<N>,
}

/// Keeps the derive from demanding a default of the type inside.
fn none<T>() -> Option<T> {
    None
}

/// What a frame holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Message<Q, P, N> {
    /// Wants an answer with this id.
    Request {
        /// Chosen by the sender; ids of the two directions are independent.
        id: u64,
        /// What is wanted.
        request: Q,
    },
    /// The answer.
    Response {
        /// Of the request.
        id: u64,
        /// The answer.
        response: P,
    },
    /// The request was not carried out.
    Error {
        /// Of the request.
        id: u64,
        /// Why.
        error: ErrorBody,
    },
    /// Wants no answer.
    Notify(N),
}

/// An envelope with nothing, or with more than one thing in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an envelope holds exactly one of request, response, error and notify, and an id for the first three"
)]
pub struct Malformed;

impl<Q, P, N> From<Message<Q, P, N>> for Envelope<Q, P, N> {
    fn from(message: Message<Q, P, N>) -> Self {
        let empty = Self { id: None, request: None, response: None, error: None, notify: None };
        match message {
            Message::Request { id, request } => {
                Self { id: Some(id), request: Some(request), ..empty }
            }
            Message::Response { id, response } => {
                Self { id: Some(id), response: Some(response), ..empty }
            }
            Message::Error { id, error } => Self { id: Some(id), error: Some(error), ..empty },
            Message::Notify(notify) => Self { notify: Some(notify), ..empty },
        }
    }
}

impl<Q, P, N> TryFrom<Envelope<Q, P, N>> for Message<Q, P, N> {
    type Error = Malformed;

    fn try_from(envelope: Envelope<Q, P, N>) -> Result<Self, Malformed> {
        let Envelope { id, request, response, error, notify } = envelope;
        match (id, request, response, error, notify) {
            (Some(id), Some(request), None, None, None) => Ok(Self::Request { id, request }),
            (Some(id), None, Some(response), None, None) => Ok(Self::Response { id, response }),
            (Some(id), None, None, Some(error), None) => Ok(Self::Error { id, error }),
            (None, None, None, None, Some(notify)) => Ok(Self::Notify(notify)),
            _ => Err(Malformed),
        }
    }
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    #[serde(default)]
    pub message: Text,
}

impl ErrorBody {
    /// Both together.
    #[must_use]
    pub fn new(code: ErrorCode, message: &str) -> Self {
        Self { code, message: Text::new(message) }
    }
}

/// The kind of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// A newer order was seen; nothing was done.
    Stale,
    /// Too much at once; nothing was done, try again.
    Busy,
    /// Not possible here; trying again is useless.
    Unsupported,
    /// Wrong role or version; the connection ends.
    Refused,
    /// It was tried and did not work.
    Failed,
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

/// A type without values, for directions in which nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Never {}

/// What the scaler says unasked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are samples, and there is one in a second"
)]
pub enum ScalerNotify {
    /// A measurement: at least one a second, more when things change fast.
    Sample(Sample),
    /// More is needed at once.
    Ask(Ask),
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// What the guest needs, by its own estimate, without any reserve.
    pub demand: Size,
    /// What it uses at this moment.
    pub used: Size,
    /// What the estimate rests on; shown to people, never decided on.
    #[serde(default)]
    pub signals: Signals,
    /// What the host's policy `reference` decides on; `None` from a guest that does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// The working set of the file cache, where it was measured since the last sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheWindows>,
}

/// Numbers behind a [`Sample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Signals {
    /// CPU used by the workload over some 100 ms.
    pub cpu_short: MilliCpu,
    /// CPU used by the workload over some seconds.
    pub cpu_long: MilliCpu,
    /// Threads that run or could run.
    pub runnable: u32,
    /// Share of the time in which some thread waited for CPU, in thousandths.
    pub cpu_pressure_permille: u16,
    /// Share of the time in which the workload had used up its quota, in thousandths.
    pub throttled_permille: u16,
    /// What the kernel manages.
    pub memory_total: Bytes,
    /// What could be used without swapping.
    pub memory_available: Bytes,
    /// Growth of the memory in use, per second.
    pub memory_slope_per_second: Bytes,
    /// Share of the time in which some thread waited for memory, in thousandths.
    pub memory_pressure_permille: u16,
    /// Pages per second that were read again shortly after they had been dropped.
    pub refaults_per_second: u32,
    /// Swap in use.
    pub swap_used: Bytes,
}

/// More is needed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Rises with each ask of a connection.
    pub seq: u64,
    /// The total that is wanted.
    pub want: Size,
    /// Why.
    pub reason: AskReason,
}

/// Why more is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskReason {
    /// Memory will be used up soon at the present rate.
    MemorySlope,
    /// Less memory is available than the reserve.
    MemoryReserve,
    /// Memory for the kernel itself runs short.
    KernelMemory,
    /// Threads wait for memory.
    MemoryPressure,
    /// The workload has used up its CPU quota, or threads queue.
    CpuSaturated,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

/// What the host wants from the scaler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScalerRequest {
    /// Would a smaller size be fine?
    MayShrink {
        /// Of the question.
        generation: Generation,
        /// The size now.
        from: Size,
        /// The size planned.
        to: Size,
    },
    /// The size has changed.
    Resized {
        /// Of the notice.
        generation: Generation,
        /// What is plugged now.
        plugged: Size,
    },
}

/// What the scaler answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScalerResponse {
    /// The shrink is fine at this moment.
    Fine {},
    /// It is not.
    Veto {
        /// The smallest size that would be fine.
        least: Size,
        /// Why.
        #[serde(default)]
        reason: Text,
    },
    /// The notice was heard, and this is what the guest sees.
    Confirmed {
        /// CPUs online.
        cpus_online: u32,
        /// Memory that the kernel manages.
        memory_total: Bytes,
    },
}

/// What the host wants from the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeeperRequest {
    /// How things are.
    State {},
    /// Bring `ceil(cpu)` CPUs online and limit the workload to `cpu`.
    SetCpu {
        /// Of the order.
        generation: Generation,
        /// The total.
        cpu: MilliCpu,
    },
    /// Would less memory be fine at this moment?
    MayShrinkMemory {
        /// Of the order.
        generation: Generation,
        /// The total now.
        from: Bytes,
        /// The total planned.
        to: Bytes,
    },
    /// End the workload and power off.
    PowerDown {},
}

/// What the keeper answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeeperResponse {
    /// How things are, after the order where there was one.
    State(KeeperState),
    /// The shrink is fine at this moment.
    Fine {},
    /// It is not.
    Veto {
        /// The smallest total that would be fine.
        least: Bytes,
        /// Why.
        #[serde(default)]
        reason: Text,
    },
    /// The guest is going down.
    PoweringDown {},
}

/// What the keeper sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KeeperState {
    /// CPUs that the kernel knows, online or not.
    pub cpus_present: u32,
    /// CPUs online.
    pub cpus_online: u32,
    /// What the workload may use: its quota, or all CPUs online where there is none.
    pub quota: MilliCpu,
    /// Memory that the kernel manages.
    pub memory_total: Bytes,
}
