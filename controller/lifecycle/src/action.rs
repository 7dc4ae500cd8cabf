//! What the machine wants done, and why.

use guest_units::{Bytes, MilliCpu, Moment, Size};

use crate::status::Status;

/// A total to reach; never a difference, so that a repetition is harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// CPU of the VM.
    Cpu(MilliCpu),
    /// Memory of the VM, base included.
    Memory(Bytes),
}

/// Something that people should know of, as an event on the VM object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A pod was created.
    Created(String),
    /// The VM runs.
    Running(String),
    /// The plugged size changed.
    Scaled {
        /// Before.
        from: Size,
        /// After.
        to: Size,
    },
    /// The guest refused to shrink.
    ShrinkVetoed(String),
    /// Not all of what was ordered could be done.
    Partial(String),
    /// The pod ended badly or is gone.
    PodFailed(String),
    /// A new pod replaces the old one.
    Restarted(u32),
    /// The specification cannot be carried out.
    InvalidSpec(String),
}

/// One step. It says everything, so that the executor makes no choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Choose a fresh name for a pod and report it.
    NamePod,
    /// Create the pod and what it needs.
    CreatePod(String),
    /// Delete the pod and what was made for it.
    DeletePod {
        /// Its name.
        name: String,
        /// Take the VM off its owners afterwards, so that a pod on a lost node cannot hold up the VM's deletion.
        release: bool,
    },
    /// The pod is done with: remove what is left of it and do the bookkeeping.
    ForgetPod {
        /// Its name, if it had one.
        name: Option<String>,
        /// A new one follows.
        restart: bool,
    },
    /// Order a total from the runner.
    Order {
        /// Distinguishes it from every other order of this machine.
        generation: u64,
        /// The total.
        what: What,
    },
    /// Store the status.
    WriteStatus(Status),
    /// Tell people.
    Tell(Notice),
}

/// Why an action is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The VM has no pod.
    NoPod,
    /// Its name is stored, so the pod may be made.
    NameStored,
    /// The pod has ended.
    PodEnded,
    /// The VM is being deleted.
    VmDeleted,
    /// The pod is not the VM's current one.
    Stray,
    /// The restart policy.
    RestartPolicy,
    /// More is wanted and approved than is plugged.
    Grow,
    /// Less is wanted than is plugged.
    Shrink,
    /// What the status should say has changed.
    StatusChanged,
    /// Something happened that people should know.
    Happened,
}

impl Why {
    /// Fixed text for logs and metric labels.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NoPod => "no_pod",
            Self::NameStored => "name_stored",
            Self::PodEnded => "pod_ended",
            Self::VmDeleted => "vm_deleted",
            Self::Stray => "stray",
            Self::RestartPolicy => "restart_policy",
            Self::Grow => "grow",
            Self::Shrink => "shrink",
            Self::StatusChanged => "status_changed",
            Self::Happened => "happened",
        }
    }
}

/// What to do now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actions {
    /// To be started, in this order; orders come first, they are what somebody waits for.
    pub start: Vec<(Action, Why)>,
    /// Ask again then. `None`: only an event can change the answer.
    pub wake_at: Option<Moment>,
}

impl Actions {
    pub(crate) fn push(&mut self, action: Action, why: Why) {
        self.start.push((action, why));
    }

    pub(crate) fn wake(&mut self, at: Moment) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}
