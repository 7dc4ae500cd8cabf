//! What the machine is told.

use guest_units::{Bytes, MilliCpu, Moment, Size};

use crate::action::Action;
use crate::status::{Age, Revision, Status};

/// The restart policy of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Whatever the end was.
    Always,
    /// Only after a failure.
    OnFailure,
    /// Never.
    Never,
}

/// The size that the scheduler has approved, after its signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Approved {
    /// A valid approval.
    Size {
        /// Up to so much.
        size: Size,
        /// How old it is. One that is older than another seen before counts for nothing: somebody wrote it back.
        age: Age,
    },
    /// There is none, or it does not hold; the text says why.
    Missing(String),
}

/// What the VM object asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Smallest size; the VM boots with it.
    pub min: Size,
    /// The size wanted now.
    pub wanted: Size,
    /// Largest size.
    pub max: Size,
    /// Memory comes and goes in pieces of this size.
    pub slot: Bytes,
    /// What to do when the pod has ended.
    pub restart: Restart,
    /// The object is being deleted.
    pub deleting: bool,
    /// What the scheduler allows.
    pub approved: Approved,
    /// The marker of this state of the specification, if it has one.
    pub revision: Option<Revision>,
    /// Why the specification cannot be carried out, if so.
    pub invalid: Option<String>,
}

/// How a pod is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodState {
    /// Not started yet.
    Pending,
    /// Its container runs.
    Running {
        /// The readiness probe succeeds.
        ready: bool,
    },
    /// Ended by itself with success.
    Succeeded,
    /// Ended otherwise; the text says how.
    Failed(String),
}

/// A pod that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// How it is doing.
    pub state: PodState,
    /// When its deletion was asked for.
    pub terminating_since: Option<Moment>,
    /// Why no node takes it, in its scheduler's words.
    pub unschedulable: Option<String>,
    /// Its node, once it has one.
    pub node: Option<String>,
    /// Its address, once it has one.
    pub ip: Option<String>,
}

/// What is known of the VM's current pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pod {
    /// Nobody has looked yet.
    Unknown,
    /// The API server has no pod of that name.
    Absent,
    /// It exists.
    Present(PodFacts),
}

/// What the hypervisor really has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plugged {
    /// vCPUs present.
    pub vcpus: u32,
    /// CPU that the guest may use: vCPUs present, limited by the confirmed quota.
    pub cpu: MilliCpu,
    /// Base plus plugged memory.
    pub memory: Bytes,
}

/// How an order ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// As ordered.
    Done,
    /// Only in part; the text says why.
    Partial(String),
    /// The guest refused to shrink so far.
    Vetoed {
        /// The smallest total that it accepts (milli-vCPU or bytes).
        least: u64,
        /// Why.
        reason: String,
    },
    /// The runner has seen a newer order than this one.
    Stale {
        /// The counter of the newest order that it has seen.
        newest: u64,
    },
    /// Not carried out; the text says why.
    Failed(String),
}

/// What happened outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Nothing happened, but time has passed.
    Woke,
    /// The VM object says this.
    Desired(Desired),
    /// The VM's pod is so. Facts of a pod with another name are ignored.
    PodObserved(Pod),
    /// These pods belong to the VM but are not its current one, and nobody deletes them yet.
    Strays(Vec<String>),
    /// The runner says what is plugged. By being asked it has learnt of this leadership and of what it has given up: it
    /// refuses the orders of earlier ones, and those before `first`, from then on.
    RunnerObserved {
        /// [`Vm::first_order`](crate::Vm::first_order) when it was asked.
        first: u64,
        /// Counts the runner's changes; what is older than another observation of the same pod is ignored.
        revision: u64,
        /// What the hypervisor has.
        plugged: Plugged,
        /// The guest's keeper is connected, so that orders can be carried out.
        guest: bool,
        /// Some order still runs or is unsettled, whoever gave it.
        busy: bool,
    },
    /// The runner cannot be asked at present.
    RunnerLost,
    /// This action was handed out; `next` no longer names it.
    Started(Action),
    /// A name was chosen.
    PodNamed(String),
    /// The pod could not be created.
    CreateFailed(String),
    /// The API server accepted the deletion of this pod, or had it no more.
    PodDeleted(String),
    /// The deletion of this pod was not accepted.
    DeleteFailed(String),
    /// The order ended.
    OrderEnded {
        /// Which order.
        generation: u64,
        /// The runner's revision at the end.
        revision: u64,
        /// What the hypervisor had at the end.
        plugged: Plugged,
        /// How it ended.
        ending: Ending,
    },
    /// No answer to the order, or none that says how it ends: it may still have an effect.
    OrderFailed {
        /// Which order.
        generation: u64,
        /// Why not.
        reason: String,
    },
    /// This status is stored now.
    StatusWritten(Status),
    /// The status could not be stored.
    StatusFailed,
}
