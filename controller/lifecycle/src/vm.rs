//! The machine's state, and what events do to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use guest_units::{Moment, Size};

use crate::action::{Action, Notice, What};
use crate::backoff::Backoff;
use crate::event::{Approved, Desired, Event, Pod, PodFacts, PodState};
use crate::resize::Resource;
use crate::runner::Runner;
use crate::status::{Age, Phase, Revision, Status};

/// A pod whose deletion was asked for this long ago counts as failed.
pub(crate) const TERMINATING_GRACE: Duration = Duration::from_secs(5);
/// Pauses before a replacement, after the first of a series of failures.
const RESTART_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A VM that ran for this long starts a new series.
const RAN_WELL: Duration = Duration::from_secs(60);
/// Pauses after a refused write.
const WRITE_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Notices that wait to be told; more than these are dropped, oldest first.
const MAX_NOTICES: usize = 16;

/// What is the same for all VMs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settings {
    /// A replacement waits until the old pod is really gone.
    pub at_most_one_pod: bool,
}

/// What the status said when the machine was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// Phase.
    pub phase: Phase,
    /// Name of the current pod.
    pub pod: Option<String>,
    /// Restarts so far.
    pub restarts: u32,
    /// What was plugged.
    pub size: Option<Size>,
    /// The revision that was reached.
    pub revision: Option<Revision>,
    /// The approval that was obeyed.
    pub obeyed: Option<Age>,
}

/// The part of the phase that is a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    New,
    Pending,
    Running,
    Succeeded,
    Failed,
}

/// The machine of one VM.
#[derive(Debug)]
pub struct Vm {
    pub(crate) settings: Settings,
    pub(crate) base: Base,
    pub(crate) desired: Option<Desired>,
    pub(crate) pod_name: Option<String>,
    pub(crate) pod: Pod,
    pub(crate) naming: bool,
    pub(crate) creating: bool,
    pub(crate) create_pause: Backoff,
    pub(crate) create_problem: Option<String>,
    pub(crate) restarts: u32,
    pub(crate) restart_pause: Backoff,
    ran_since: Option<Moment>,
    /// Why the last pod failed; cleared when a VM runs again.
    pub(crate) failure: Option<String>,
    /// Deletions handed out and not answered yet.
    pub(crate) deleting: BTreeSet<String>,
    /// Deletions that were refused.
    pub(crate) delete_pauses: BTreeMap<String, Backoff>,
    /// The deletion of the current pod was accepted.
    pub(crate) deleted: bool,
    pub(crate) strays: Vec<String>,
    pub(crate) runner: Option<Runner>,
    /// The runner refuses whoever led before, and was seen idle since: all orders that can be under way are ours.
    pub(crate) fenced: bool,
    /// The newest approval seen.
    newest: Option<Age>,
    /// What was plugged when somebody last knew.
    pub(crate) size: Option<Size>,
    pub(crate) cpu: Resource,
    pub(crate) memory: Resource,
    /// The last order's generation.
    pub(crate) generation: u64,
    pub(crate) written: Option<Status>,
    /// Handed out and not answered yet.
    pub(crate) writing: Option<Status>,
    pub(crate) write_pause: Backoff,
    pub(crate) notices: VecDeque<Notice>,
}

impl Vm {
    /// A machine for a VM whose status says this.
    #[must_use]
    pub fn new(stored: Stored, settings: Settings) -> Self {
        let base = match stored.phase {
            Phase::New => Base::New,
            Phase::Pending => Base::Pending,
            Phase::Running | Phase::Scaling => Base::Running,
            Phase::Succeeded => Base::Succeeded,
            Phase::Failed => Base::Failed,
        };
        Self {
            settings,
            base,
            desired: None,
            pod: if stored.pod.is_some() { Pod::Unknown } else { Pod::Absent },
            // The name counts as stored: that is where it comes from.
            written: Some(Status {
                pod: stored.pod.clone(),
                revision: stored.revision,
                obeyed: stored.obeyed,
                ..Status::default()
            }),
            pod_name: stored.pod,
            naming: false,
            creating: false,
            create_pause: Backoff::default(),
            create_problem: None,
            restarts: stored.restarts,
            restart_pause: Backoff::default(),
            ran_since: None,
            failure: None,
            deleting: BTreeSet::new(),
            delete_pauses: BTreeMap::new(),
            deleted: false,
            strays: Vec::new(),
            runner: None,
            fenced: false,
            newest: stored.obeyed,
            size: stored.size,
            cpu: Resource::default(),
            memory: Resource::default(),
            generation: 0,
            writing: None,
            write_pause: Backoff::default(),
            notices: VecDeque::new(),
        }
    }

    /// The name of the VM's current pod.
    #[must_use]
    pub fn pod_name(&self) -> Option<&str> {
        self.pod_name.as_deref()
    }

    /// Whether the machine thinks that its pod may exist. If the pod cannot be seen, look closer before saying
    /// that it is absent: a pod is replaced when it is.
    #[must_use]
    pub fn believes_in_pod(&self) -> bool {
        self.pod_name.is_some() && self.pod != Pod::Absent
    }

    /// Records what happened. Never fails, never blocks. When the time that `next` named has come, say
    /// [`Event::Woke`] before asking again: what happens by the mere passing of time is recorded then.
    pub fn handle(&mut self, event: Event, now: Moment) {
        match event {
            Event::Desired(desired) => self.desire(desired),
            Event::PodObserved(pod) => self.observe(pod, now),
            Event::Strays(names) => self.strays = names,
            Event::RunnerObserved { first, revision, plugged, guest, busy } => {
                self.runner_observed(Runner { revision, plugged, guest }, first, busy);
            }
            Event::RunnerLost => {
                if let Some(runner) = &mut self.runner {
                    runner.guest = false;
                }
            }
            Event::Woke => {}
            Event::Started(action) => self.started(action, now),
            Event::PodNamed(name) => {
                if self.naming {
                    self.naming = false;
                    self.pod_name = Some(name);
                    self.pod = Pod::Absent;
                    self.deleted = false;
                }
            }
            Event::CreateFailed(reason) => {
                self.creating = false;
                self.create_problem = Some(reason);
                self.create_pause.fail(now, WRITE_PAUSE.0, WRITE_PAUSE.1);
            }
            Event::PodDeleted(name) => {
                self.deleting.remove(&name);
                self.delete_pauses.remove(&name);
                self.strays.retain(|stray| *stray != name);
                self.deleted |= self.pod_name.as_ref() == Some(&name);
            }
            Event::DeleteFailed(name) => {
                self.deleting.remove(&name);
                self.delete_pauses.entry(name).or_default().fail(now, WRITE_PAUSE.0, WRITE_PAUSE.1);
            }
            Event::OrderEnded { generation, revision, plugged, ending } => {
                let guest = self.runner.is_none_or(|runner| runner.guest);
                self.order_ended(generation, Runner { revision, plugged, guest }, &ending, now);
            }
            Event::OrderFailed { generation, reason } => {
                let (cpu, memory) = self.goals();
                let _known = self.cpu.lost(generation, &reason, cpu, now)
                    || self.memory.lost(generation, &reason, memory, now);
            }
            // Said once more, or of a write that was given up, it says nothing about what is stored now.
            Event::StatusWritten(status) => {
                if let Some(written) = self.writing.take_if(|writing| *writing == status) {
                    self.write_pause.reset();
                    self.written = Some(written);
                }
            }
            Event::StatusFailed => {
                self.writing = None;
                self.write_pause.fail(now, WRITE_PAUSE.0, WRITE_PAUSE.1);
            }
        }
        self.expire(now);
    }

    fn desire(&mut self, mut desired: Desired) {
        if let Approved::Size { age, .. } = desired.approved {
            if self.newest.is_some_and(|newest| age < newest) {
                let why = "the scheduler's approval is older than one seen before";
                desired.approved = Approved::Missing(why.to_owned());
            } else {
                self.newest = Some(age);
            }
        }
        let before = self.desired.as_ref().and_then(|desired| desired.invalid.as_ref());
        if let Some(problem) = desired.invalid.as_ref().filter(|problem| before != Some(problem)) {
            let problem = problem.clone();
            self.notice(Notice::InvalidSpec(problem));
        }
        if self.base == Base::New && desired.invalid.is_none() && !desired.deleting {
            self.base = Base::Pending;
        }
        self.desired = Some(desired);
    }

    fn observe(&mut self, pod: Pod, now: Moment) {
        match pod {
            Pod::Unknown => {}
            Pod::Absent => self.pod_absent(now),
            Pod::Present(facts) if self.pod_name.as_ref() == Some(&facts.name) => {
                self.pod_present(facts, now);
            }
            Pod::Present(_) => {}
        }
    }

    fn pod_absent(&mut self, now: Moment) {
        let existed = matches!(self.pod, Pod::Present(_)) || self.base == Base::Running;
        self.pod = Pod::Absent;
        if existed && matches!(self.base, Base::Pending | Base::Running) {
            self.fail("the pod is gone".to_owned(), now);
        }
    }

    fn pod_present(&mut self, facts: PodFacts, now: Moment) {
        let state = facts.state.clone();
        let live = matches!(self.base, Base::Pending | Base::Running);
        if self.creating {
            self.notice(Notice::Created(facts.name.clone()));
        }
        self.creating = false;
        self.create_pause.reset();
        self.create_problem = None;
        self.pod = Pod::Present(facts);
        match state {
            PodState::Running { ready: true } if self.base == Base::Pending => self.run(now),
            PodState::Pending | PodState::Running { .. } => {}
            PodState::Succeeded if live => self.end(Base::Succeeded, now),
            PodState::Failed(reason) if live => self.fail(reason, now),
            PodState::Succeeded | PodState::Failed(_) => {}
        }
    }

    /// A pod that was asked to go and does not (its node may be lost) is as good as gone.
    fn expire(&mut self, now: Moment) {
        if self.terminating_until().is_some_and(|until| until <= now) {
            self.fail("the pod does not end although its deletion was asked for".to_owned(), now);
        }
    }

    /// When the current pod counts as failed, if it is being deleted.
    pub(crate) fn terminating_until(&self) -> Option<Moment> {
        match (&self.pod, self.base) {
            (Pod::Present(facts), Base::Pending | Base::Running) => {
                facts.terminating_since.map(|since| since + TERMINATING_GRACE)
            }
            _ => None,
        }
    }

    fn run(&mut self, now: Moment) {
        self.base = Base::Running;
        self.ran_since = Some(now);
        self.failure = None;
        self.notice(Notice::Running(self.pod_name.clone().unwrap_or_default()));
    }

    fn fail(&mut self, reason: String, now: Moment) {
        self.notice(Notice::PodFailed(reason.clone()));
        self.failure = Some(reason);
        self.end(Base::Failed, now);
    }

    fn end(&mut self, base: Base, now: Moment) {
        self.base = base;
        self.runner = None;
        self.fenced = false;
        self.size = None;
        self.cpu.reset();
        self.memory.reset();
        let ran_well = self.ran_since.take().is_some_and(|since| now.since(since) >= RAN_WELL);
        if ran_well {
            self.restart_pause.reset();
        }
        // The first replacement of a series comes at once.
        let first = self.restart_pause.failures() == 0;
        let pause = if first { Duration::ZERO } else { RESTART_PAUSE.0 };
        self.restart_pause.fail(now, pause, RESTART_PAUSE.1);
    }

    fn started(&mut self, action: Action, now: Moment) {
        match action {
            Action::NamePod => self.naming = true,
            Action::CreatePod(_) => self.creating = true,
            Action::DeletePod { name, .. } => {
                self.deleting.insert(name);
            }
            Action::ForgetPod { restart, .. } => self.forget(restart),
            Action::Order { generation, what } => {
                self.generation = self.generation.max(generation);
                let Some(runner) = self.runner else { return };
                match what {
                    What::Cpu(to) => {
                        let from = u64::from(runner.plugged.cpu.0);
                        self.cpu.started(generation, from, u64::from(to.0), now);
                    }
                    What::Memory(to) => {
                        self.memory.started(generation, runner.plugged.memory.0, to.0, now);
                    }
                }
            }
            Action::WriteStatus(status) => self.writing = Some(status),
            Action::Tell(notice) => {
                if self.notices.front() == Some(&notice) {
                    self.notices.pop_front();
                }
            }
        }
    }

    fn forget(&mut self, restart: bool) {
        self.pod_name = None;
        self.pod = Pod::Absent;
        self.deleted = false;
        self.naming = false;
        self.creating = false;
        if restart {
            self.restarts = self.restarts.saturating_add(1);
            self.base = Base::Pending;
            self.notice(Notice::Restarted(self.restarts));
        }
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        if self.notices.len() == MAX_NOTICES {
            self.notices.pop_front();
        }
        self.notices.push_back(notice);
    }
}
