//! What happens to the ledger, and what it wants done.

use std::collections::BTreeSet;

use guest_units::{Moment, Size};
use scheduler_protocol::{ObjectRef, Outcome, RefusalCode};

use crate::amount::Amount;
use crate::facts::{MigrationFacts, NodeFacts, PodFacts, Seal, VmFacts};

/// A request that is to be answered, by a number of the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What happened outside.
#[derive(Debug, Clone)]
pub enum Event {
    /// The lease is held, with this epoch; or it is not.
    Leader(Option<u64>),
    /// A node was seen.
    Node(NodeFacts),
    /// A node is gone.
    NodeGone(String),
    /// These are all the nodes.
    NodesListed(BTreeSet<String>),
    /// A pod was seen.
    Pod(PodFacts),
    /// A pod is gone, by its uid.
    PodGone(String),
    /// These are all the pods, by uid.
    PodsListed(BTreeSet<String>),
    /// A VM was seen.
    Vm(VmFacts),
    /// A VM is gone, by its uid.
    VmGone(String),
    /// These are all the VMs, by uid.
    VmsListed(BTreeSet<String>),
    /// A migration was seen.
    Migration(MigrationFacts),
    /// A migration is gone, by its uid.
    MigrationGone(String),
    /// These are all the migrations, by uid.
    MigrationsListed(BTreeSet<String>),
    /// An agent asks for a permit.
    Asked(Asked),
    /// A pod is about to be bound to the node that its facts name.
    Placing(PodFacts),
    /// The API server did not bind the pod, as far as is known: it is asked how the pod is.
    PlacingFailed(String),
    /// The API server was asked for a pod.
    LookedUp {
        /// The pod's uid.
        uid: String,
        /// The pod; none if there is no such pod any more.
        found: Option<PodFacts>,
    },
    /// A fence was carried out. Of one that failed nothing is told: another follows.
    Fenced {
        /// The pod's uid.
        uid: String,
        /// Number of the fence.
        number: u64,
        /// The pod as it is since; none if there is no such pod any more.
        found: Option<PodFacts>,
    },
    /// The action was started: [`crate::Ledger::next`] no longer names it.
    Started(u64),
    /// A resize ended.
    ResizeEnded {
        /// The pod's uid.
        pod: String,
        /// Number of the order.
        number: u64,
        /// How.
        result: ResizeResult,
    },
    /// An approval was written, or it was not.
    ApproveEnded {
        /// The VM's uid.
        vm: String,
        /// Generation of the approval.
        generation: u64,
        /// Whether it was.
        written: bool,
    },
    /// A migration was made, or it was not.
    MigrateEnded {
        /// The VM's uid.
        vm: String,
        /// Name of the migration.
        name: String,
        /// Whether the API server has it. None: as far as is known, it may.
        made: Option<bool>,
    },
    /// The time that [`Actions::wake_at`] named has come.
    Woke,
}

/// An agent's request, its sender known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Where the answer goes.
    pub ticket: Ticket,
    /// The node that the sender's token is bound to.
    pub caller_node: String,
    /// The VM.
    pub vm: ObjectRef,
    /// Its pod.
    pub pod: ObjectRef,
    /// Generation of the request.
    pub generation: u64,
    /// The total wanted.
    pub want: Size,
    /// The least that is of use.
    pub least: Size,
    /// What the VM has or may get by what its agent has written: the agent relies on it, whoever approved it.
    pub current: Size,
}

/// How the API server answered a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeResult {
    /// The spec has it, with this generation. Kubelet has yet to decide.
    Accepted {
        /// Generation of the pod's spec.
        generation: u64,
    },
    /// Refused for good, as what no pod may be.
    Refused,
    /// Refused since the namespace has a quota that is used up.
    Quota,
    /// The pod has another version by now: nothing was done, or the order came twice and had been carried out.
    Raced,
    /// Nothing was done: the lease was not held, or the API server was too busy.
    NotDone,
    /// No answer, or a fault: it may have been done.
    Unknown,
}

/// An action with its number and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Todo {
    /// For [`Event::Started`].
    pub id: u64,
    /// What to do.
    pub action: Action,
    /// Why.
    pub why: Why,
}

/// What to do now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actions {
    /// In this order.
    pub start: Vec<Todo>,
    /// Call `handle` with [`Event::Woke`] then. `None`: only an event can change the answer.
    pub wake_at: Option<Moment>,
}

/// What to do. Says everything, so that the shell makes no choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Answer a request.
    Answer {
        /// Which.
        ticket: Ticket,
        /// With what.
        answer: Answer,
    },
    /// Set the requests of a runner pod's main container. Ends in [`Event::ResizeEnded`].
    Resize {
        /// The pod.
        pod: ObjectRef,
        /// Version of the pod that is meant: one that has changed since is not resized. 0: any.
        version: u64,
        /// Epoch of the lease that must still be held.
        epoch: u64,
        /// Number of the order.
        number: u64,
        /// The requests.
        requests: Amount,
    },
    /// Sign an approval and write it on the VM. Ends in [`Event::ApproveEnded`].
    Approve {
        /// The VM.
        vm: ObjectRef,
        /// The approval. One that is as new or newer stays.
        seal: Seal,
    },
    /// Change a pod's version, and nothing else that means anything: orders for earlier versions come to nothing. Ends in
    /// [`Event::Fenced`], or is repeated.
    Fence {
        /// The pod.
        pod: ObjectRef,
        /// Nobody else leads.
        epoch: u64,
        /// Number of the fence: each must make another version.
        number: u64,
        /// A VM cannot grow, or run, before it: it does not stand behind those of VMs that only say what they have.
        urgent: bool,
    },
    /// Ask the API server for a pod. Ends in [`Event::LookedUp`], or is repeated.
    LookUp {
        /// The pod.
        pod: ObjectRef,
    },
    /// Make a migration. Ends in [`Event::MigrateEnded`].
    Migrate {
        /// The VM.
        vm: ObjectRef,
        /// The pod that it leaves.
        pod: ObjectRef,
        /// The only node that the target may come to.
        to: String,
        /// Name of the migration: another one of this name stands for something else.
        name: String,
        /// Epoch of the lease that must still be held.
        epoch: u64,
    },
    /// Delete a migration, which ends it if it has not ended. Ends in [`Event::MigrationGone`], or is repeated.
    EndMigration {
        /// The migration.
        migration: ObjectRef,
        /// Epoch of the lease that must still be held.
        epoch: u64,
    },
    /// Tell the users of the VM.
    Notice {
        /// The VM.
        vm: ObjectRef,
        /// What.
        notice: Notice,
    },
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// What the VM may have.
    Permit {
        /// Generation of the request.
        generation: u64,
        /// How the request ended.
        outcome: Outcome,
        /// The approval.
        seal: Seal,
        /// What the VM would get at once if it asked, in total.
        leased: Size,
        /// Why it is less than wanted; empty when granted.
        reason: String,
    },
    /// No answer can be given.
    Refused {
        /// What kind.
        code: RefusalCode,
        /// For people.
        message: String,
        /// The newest generation seen, when the request was stale.
        newest: Option<u64>,
    },
}

/// What users of a VM are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The VM gets less than it wants.
    Denied {
        /// Why.
        reason: String,
    },
    /// It has got it after all.
    Served {
        /// What it may have now.
        size: Size,
    },
}

/// Why: log line and metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The request wants no more than the permit.
    NothingGrows,
    /// The same was asked before.
    Repeated,
    /// There is room, and the pod's requests back it already.
    AlreadyBacked,
    /// Kubelet has allocated what was wished for.
    KubeletAllocated,
    /// The node has no room.
    NoRoom,
    /// Kubelet or the API server refused.
    KubeletRefused,
    /// Kubelet has not answered in time.
    KubeletSlow,
    /// The node is not completely known yet.
    Incomplete,
    /// The request cannot be answered.
    Refused,
    /// A newer request took its place.
    Superseded,
    /// Room for a growth.
    Grow,
    /// A lease of headroom.
    Lease,
    /// The pod's requests are more than its promise needs.
    Return,
    /// A lease is needed elsewhere.
    GiveWay,
    /// The spec of a VM without an agent, or of one that has just got its pod.
    SpecWants,
    /// The VM obeys an approval of an earlier ledger.
    Renewed,
    /// The VM has no pod: its approval returns to what the spec wants.
    NoPod,
    /// The watch has not shown the pod as it was bound or looked up.
    Unconfirmed,
    /// The node is above its watermark.
    Hot,
    /// The VM moves: until that has ended its size stays.
    Moves,
    /// The migration has ended, and the VM has rested from it.
    Ended,
    /// The migration's target has not come to its node.
    NoTarget,
}

impl Why {
    /// Fixed text for logs and metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NothingGrows => "nothing_grows",
            Self::Repeated => "repeated",
            Self::AlreadyBacked => "already_backed",
            Self::KubeletAllocated => "kubelet_allocated",
            Self::NoRoom => "no_room",
            Self::KubeletRefused => "kubelet_refused",
            Self::KubeletSlow => "kubelet_slow",
            Self::Incomplete => "incomplete",
            Self::Refused => "refused",
            Self::Superseded => "superseded",
            Self::Grow => "grow",
            Self::Lease => "lease",
            Self::Return => "return",
            Self::GiveWay => "give_way",
            Self::SpecWants => "spec_wants",
            Self::Renewed => "renewed",
            Self::NoPod => "no_pod",
            Self::Unconfirmed => "unconfirmed",
            Self::Hot => "hot",
            Self::Moves => "moves",
            Self::Ended => "ended",
            Self::NoTarget => "no_target",
        }
    }
}
