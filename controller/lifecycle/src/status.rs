//! What the status of the VM object should say.

use guest_units::{Moment, Size};

use crate::event::{Approved, Pod, PodFacts, PodState};
use crate::resize::{Decision, Problem};
use crate::vm::{Base, Vm};

/// An opaque marker of a state of the specification: value and flags.
pub type Revision = (i64, u64);

/// Orders the approvals of one VM: the extender's term, and a count within it.
pub type Age = (u64, u64);

/// Where the VM is in its life, as the object shows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was done yet.
    #[default]
    New,
    /// Waiting for its pod.
    Pending,
    /// The VM runs.
    Running,
    /// The VM runs and an order is in flight.
    Scaling,
    /// The pod ended with success.
    Succeeded,
    /// The pod ended otherwise, or is gone.
    Failed,
}

/// Which condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionKind {
    /// The VM serves.
    Available,
    /// Something is wrong.
    Degraded,
    /// The size is what the specification asks; if not, the reason says what it waits for.
    Resized,
}

impl ConditionKind {
    /// As in the object.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "Available",
            Self::Degraded => "Degraded",
            Self::Resized => "Resized",
        }
    }
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody knows yet.
    Unknown,
}

impl Truth {
    /// As in the object.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Which.
    pub kind: ConditionKind,
    /// Whether it holds.
    pub truth: Truth,
    /// One word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// The whole status that this machine is responsible for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Where the VM is in its life.
    pub phase: Phase,
    /// The pod's name; set before the pod exists.
    pub pod: Option<String>,
    /// The pod's address, while the pod lives.
    pub pod_ip: Option<String>,
    /// The pod's node, while the VM runs.
    pub node: Option<String>,
    /// What is plugged, while the VM runs.
    pub size: Option<Size>,
    /// Pods that the restart policy replaced.
    pub restarts: u32,
    /// All conditions, each exactly once, in the order of their kinds.
    pub conditions: Vec<Condition>,
    /// The VM runs and there is nothing left to order.
    pub settled: bool,
    /// The last revision with which it was settled.
    pub revision: Option<Revision>,
    /// Age of the newest approval that is obeyed: no order beyond it and those after it is under way, and none
    /// will ever be given.
    pub obeyed: Option<Age>,
}

impl Vm {
    /// The status as it should be at `now`.
    pub(crate) fn status(&self, now: Moment) -> Status {
        let facts = match &self.pod {
            Pod::Present(facts) => Some(facts),
            Pod::Unknown | Pod::Absent => None,
        };
        let running = self.base == Base::Running;
        let settled = self.settled(now);
        let revision = self.desired.as_ref().and_then(|desired| desired.revision);
        let before = self.written.as_ref().and_then(|status| status.revision);
        let scaling = running && self.awaited(now).is_some();
        Status {
            phase: match self.base {
                Base::New => Phase::New,
                Base::Pending => Phase::Pending,
                Base::Running if scaling => Phase::Scaling,
                Base::Running => Phase::Running,
                Base::Succeeded => Phase::Succeeded,
                Base::Failed => Phase::Failed,
            },
            pod: self.pod_name.clone(),
            pod_ip: facts.and_then(|facts| facts.ip.clone()),
            node: facts.filter(|_| running).and_then(|facts| facts.node.clone()),
            size: self.size.filter(|_| running),
            restarts: self.restarts,
            conditions: vec![self.available(), self.degraded(now), self.resized(now)],
            settled,
            revision: revision.filter(|_| settled).or(before),
            obeyed: self.obeyed(),
        }
    }

    /// The valid approval's age, if nothing larger than it can be under way any more; else what was written before.
    fn obeyed(&self) -> Option<Age> {
        let before = self.written.as_ref().and_then(|status| status.obeyed);
        let Some(Approved::Size { size, age }) = self.desired.as_ref().map(|it| &it.approved)
        else {
            return before;
        };
        let safe = match &self.pod {
            Pod::Absent => true,
            Pod::Unknown => false,
            // Nothing can be under way to a pod without a node; the scheduler waits for this word before it binds it.
            Pod::Present(PodFacts { state: PodState::Pending, node: None, .. }) => true,
            // Whoever led before may have given orders, until the runner was seen idle by this process.
            Pod::Present(_) => {
                self.fenced
                    && !self.cpu.may_exceed(u64::from(size.cpu.0))
                    && !self.memory.may_exceed(size.memory.0)
            }
        };
        if safe { before.max(Some(*age)) } else { before }
    }

    fn settled(&self, now: Moment) -> bool {
        let done = |decision| matches!(decision, Decision::Settled | Decision::Pausing { .. });
        self.base == Base::Running
            && self.decisions(now).is_some_and(|(cpu, memory)| done(cpu) && done(memory))
    }

    fn available(&self) -> Condition {
        let ready = matches!(
            &self.pod,
            Pod::Present(facts) if facts.state == (PodState::Running { ready: true })
        );
        let (truth, reason, message) = match self.base {
            Base::New => (Truth::Unknown, "Starting", "Starting reconciliation"),
            Base::Pending if self.restarts > 0 && self.unschedulable().is_none() => {
                (Truth::False, "Restarting", "A new pod is starting")
            }
            Base::Pending => match self.unschedulable() {
                Some(why) => (Truth::False, "Unschedulable", why),
                None => (Truth::Unknown, "Starting", "The pod is starting"),
            },
            Base::Running if ready => (Truth::True, "Running", "The VM runs"),
            Base::Running if self.pod == Pod::Unknown => {
                (Truth::Unknown, "Checking", "The pod has not been looked at yet")
            }
            Base::Running => (Truth::False, "NotReady", "The VM's pod is not ready"),
            Base::Succeeded => (Truth::False, "Succeeded", "The VM has ended"),
            Base::Failed => (Truth::False, "Failed", "The VM has failed"),
        };
        Condition { kind: ConditionKind::Available, truth, reason, message: message.to_owned() }
    }

    /// Why no node takes the pod.
    fn unschedulable(&self) -> Option<&str> {
        match &self.pod {
            Pod::Present(facts) if facts.node.is_none() => facts.unschedulable.as_deref(),
            Pod::Present(_) | Pod::Unknown | Pod::Absent => None,
        }
    }

    fn degraded(&self, now: Moment) -> Condition {
        let invalid = self.desired.as_ref().and_then(|desired| desired.invalid.clone());
        let (truth, reason, message) = if let Some(problem) = invalid {
            (Truth::True, "InvalidSpec", problem)
        } else if let Some(reason) = &self.create_problem {
            (Truth::True, "PodCreateFailed", reason.clone())
        } else if let Some(reason) = &self.failure {
            let waits = self.restart_pause.pending(now).is_some();
            (Truth::True, if waits { "RestartBackOff" } else { "PodFailed" }, reason.clone())
        } else {
            (Truth::False, "AsExpected", String::new())
        };
        Condition { kind: ConditionKind::Degraded, truth, reason, message }
    }

    fn resized(&self, now: Moment) -> Condition {
        let kind = ConditionKind::Resized;
        let Some((cpu, memory)) = self.decisions(now) else {
            let reason = if self.base == Base::Running { "RunnerUnknown" } else { "NotRunning" };
            return Condition { kind, truth: Truth::Unknown, reason, message: String::new() };
        };
        let mut parts = Vec::new();
        // The memory's reason wins: it is what people ask about.
        let mut reason = None;
        for (name, decision, resource) in
            [("memory", memory, &self.memory), ("CPU", cpu, &self.cpu)]
        {
            let Some((word, text)) = self.explain(decision, resource.problem()) else { continue };
            reason = reason.or(Some(word));
            parts.push(if text.is_empty() { name.to_owned() } else { format!("{name}: {text}") });
        }
        match reason {
            Some(reason) => {
                Condition { kind, truth: Truth::False, reason, message: parts.join("; ") }
            }
            None => {
                Condition { kind, truth: Truth::True, reason: "AsDesired", message: String::new() }
            }
        }
    }

    fn explain(
        &self,
        decision: Decision,
        problem: Option<&Problem>,
    ) -> Option<(&'static str, String)> {
        match (decision, problem) {
            (Decision::Settled, _) => None,
            (Decision::WaitsForApproval, _) => {
                let why = match self.desired.as_ref().map(|desired| &desired.approved) {
                    Some(Approved::Missing(why)) => why.clone(),
                    _ => "the scheduler has approved less than is wanted".to_owned(),
                };
                Some(("WaitingForApproval", why))
            }
            (_, Some(Problem::ShrinkVetoed(why))) => Some(("ShrinkVetoed", why.clone())),
            (_, Some(Problem::PartialUnplug(why))) => Some(("PartialUnplug", why.clone())),
            (_, Some(Problem::PartialPlug(why))) => Some(("PartialPlug", why.clone())),
            (_, Some(Problem::OrderFailed(why))) => Some(("OrderFailed", why.clone())),
            (
                Decision::Busy { .. }
                | Decision::Order { .. }
                | Decision::Pausing { .. }
                | Decision::Uncertain,
                None,
            ) => Some(("InProgress", String::new())),
        }
    }
}
