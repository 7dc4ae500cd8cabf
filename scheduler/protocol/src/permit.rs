//! An agent's request for a size, and the answers to it.
//!
//! | version | what is new |
//! |---|---|
//! | 1 | |
//! | 2 | the answer says what the VM would get at once: [`PermitAnswer::leased`] |
//!
//! An answer is of the version of its request. A scheduler understands the version before its own. An agent begins each connection
//! with its own version, and repeats a request that is refused as [`RefusalCode::BadRequest`] in the one before: so either side may be
//! replaced first.

use guest_units::{Bytes, MilliCpu, Size};
use serde::{Deserialize, Serialize};

/// The version that this crate speaks.
pub const VERSION: u32 = 2;
/// The oldest version that it understands.
pub const OLDEST_VERSION: u32 = 1;
/// Port of the Service `autoscale-scheduler.kube-system`.
pub const PORT: u16 = 10299;
/// Path of a permit request.
pub const PERMIT_PATH: &str = "/v1/permit";
/// Audience of the agents' tokens.
pub const AUDIENCE: &str = "autoscale-scheduler";
/// A longer body of a permit request is refused unread.
pub const MAX_BODY_BYTES: usize = 16 * 1024;
/// More CPU than any machine has: a request beyond it is a mistake or an attack.
pub const MAX_CPU: MilliCpu = MilliCpu(4_096_000);
/// More memory than any machine has.
pub const MAX_MEMORY: Bytes = Bytes(64 << 40);
/// Reasons are cut to this many characters.
pub const MAX_REASON_CHARS: usize = 512;

/// One object of the cluster, exactly: a later object of the same name has another `uid`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectRef {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Identity of the object.
    pub uid: String,
}

/// An agent asks what one VM of its node may have. Body of `POST /v1/permit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermitRequest {
    /// Version of the protocol, from [`OLDEST_VERSION`] to [`VERSION`].
    pub version: u32,
    /// The VM.
    pub vm: ObjectRef,
    /// Its runner pod.
    pub pod: ObjectRef,
    /// Grows with every request for this pod, also across restarts of the agent: a process starts counting at the
    /// milliseconds since the Unix epoch. The same number again is a repetition; a lower one is refused with
    /// [`RefusalCode::Stale`], which names the newest one seen.
    pub generation: u64,
    /// The total that is wanted, per resource. Less than the permit gives back what is no longer needed.
    pub want: Size,
    /// The least total that is of use, per resource: a resource that cannot have it keeps its present permit.
    pub least: Size,
    /// What the VM has, or may get by what its agent has already written. A scheduler that does not know that it was approved, since
    /// another one did so, counts it as approved if the pod has it.
    pub current: Size,
}

impl PermitRequest {
    /// Checks everything that can be checked without knowing the cluster.
    pub fn check(&self) -> Result<(), BadRequest> {
        let Self { version, vm, pod, generation: _, want, least, current } = self;
        if !(OLDEST_VERSION..=VERSION).contains(version) {
            return Err(BadRequest::Version { got: *version });
        }
        for (field, object) in [("vm", vm), ("pod", pod)] {
            check_object(field, object)?;
        }
        if vm.namespace != pod.namespace {
            return Err(BadRequest::Namespaces);
        }
        for (field, size) in [("want", want), ("least", least), ("current", current)] {
            if size.cpu > MAX_CPU || size.memory > MAX_MEMORY {
                return Err(BadRequest::Absurd { field });
            }
        }
        for (field, size) in [("want", want), ("least", least)] {
            if size.cpu == MilliCpu(0) || size.memory == Bytes(0) {
                return Err(BadRequest::Zero { field });
            }
        }
        if least.cpu > want.cpu || least.memory > want.memory {
            return Err(BadRequest::LeastAboveWant);
        }
        Ok(())
    }
}

fn check_object(field: &'static str, object: &ObjectRef) -> Result<(), BadRequest> {
    let parts = [
        ("namespace", object.namespace.as_str(), 63),
        ("name", object.name.as_str(), 253),
        ("uid", object.uid.as_str(), 64),
    ];
    for (part, text, limit) in parts {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if text.is_empty() || text.len() > limit || !text.chars().all(plain) {
            return Err(BadRequest::Name { field, part });
        }
    }
    Ok(())
}

/// Why a request cannot be meant as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Another version of the protocol.
    #[error("protocol version {got} is not understood, versions {OLDEST_VERSION} to {VERSION} are")]
    Version {
        /// What the request says.
        got: u32,
    },
    /// A name that no object can have.
    #[error("{field}.{part} is empty, too long or has characters that no name has")]
    Name {
        /// Which reference.
        field: &'static str,
        /// Which part of it.
        part: &'static str,
    },
    /// VM and pod can only share a namespace.
    #[error("vm and pod are in different namespaces")]
    Namespaces,
    /// Larger than any machine.
    #[error("{field} is larger than {MAX_CPU} CPUs or {MAX_MEMORY} of memory")]
    Absurd {
        /// Which size.
        field: &'static str,
    },
    /// A VM without CPU or memory.
    #[error("{field} has no CPU or no memory")]
    Zero {
        /// Which size.
        field: &'static str,
    },
    /// The least is more than what is wanted.
    #[error("least is more than want")]
    LeastAboveWant,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The permit is what was wanted.
    Granted,
    /// The permit grew (or, with growth refused, shrank) but is not all that was wanted.
    Partial,
    /// No part of the growth was possible; the permit is what it was.
    Denied,
}

impl Outcome {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Granted, Self::Partial, Self::Denied];

    /// Fixed text for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Partial => "partial",
            Self::Denied => "denied",
        }
    }
}

/// A signed size: what opens the plug's gate. The agent copies it into the VM's two annotations as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// The total that may be plugged.
    pub size: Size,
    /// Epoch of the scheduler that signed it.
    pub epoch: u64,
    /// Number of the approval, growing within the epoch for one VM. Not the generation of the request.
    pub generation: u64,
    /// Ed25519 over the VM's identity and all of the above, base64 with padding.
    pub signature: String,
}

/// The answer to a request, status 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermitAnswer {
    /// Version of the protocol: that of the request.
    pub version: u32,
    /// Epoch of the scheduler that answers: an older one than the last is to be refused.
    pub epoch: u64,
    /// Generation of the request.
    pub generation: u64,
    /// How the request ended.
    pub outcome: Outcome,
    /// What the VM may have now, in total. Equal to `approval.size`.
    pub permit: Size,
    /// The permit, signed.
    pub approval: Approval,
    /// What the VM would get at once if it asked, in total: kubelet has allocated it. Never less than the permit, and no promise: it may be
    /// gone when the VM asks. From version 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leased: Option<Size>,
    /// Why it is less than wanted; empty when granted.
    pub reason: String,
}

/// Why no answer can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// 400: the request cannot be meant as it stands.
    BadRequest,
    /// 401: no token, or one that is not valid.
    Unauthenticated,
    /// 403: the token is not that of the agent of the pod's node.
    Forbidden,
    /// 404: VM or pod is not known (yet).
    Unknown,
    /// 409: a newer generation was seen; also the end of a request that a newer one replaced.
    Stale,
    /// 413: the body is too large.
    TooLarge,
    /// 429: too many requests at a time.
    Busy,
    /// 503: this replica does not hold the lease, or does not know the cluster yet.
    NotReady,
    /// 500: a fault of the scheduler itself.
    Internal,
    /// A code of a later version.
    #[serde(other)]
    Other,
}

impl RefusalCode {
    /// The status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::Unknown => 404,
            Self::Stale => 409,
            Self::TooLarge => 413,
            Self::Busy => 429,
            Self::NotReady => 503,
            Self::Internal | Self::Other => 500,
        }
    }

    /// Fixed text for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::Unknown => "unknown",
            Self::Stale => "stale",
            Self::TooLarge => "too_large",
            Self::Busy => "busy",
            Self::NotReady => "not_ready",
            Self::Internal => "internal",
            Self::Other => "other",
        }
    }
}

/// The body of every other status than 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind of refusal.
    pub code: RefusalCode,
    /// The same for people.
    pub message: String,
    /// With [`RefusalCode::Stale`]: the newest generation seen for the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<u64>,
}
