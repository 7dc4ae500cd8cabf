//! One task per VM: it owns the VM's brain, tells it what the watches, the runner and its own effects show, and
//! starts what the brain says. Every effect runs beside it and ends in a [`Message`].

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use controller_api::VirtualMachine;
use controller_lifecycle as lifecycle;
use controller_lifecycle::{Action, Event, Settings, Status, Vm, Why};
use guest_units::Chain;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::execute::{self, Context};
use crate::gate;
use crate::index::Snapshot;
use crate::observe::{self, Clock};
use crate::order;
use crate::pod::{self, PodSettings};
use crate::poll::{self, FirstOrder};
use crate::status::{self, Kept};
use crate::upkeep::{self, Upkeep, Upkept};

/// How often it is checked that the pod's certificate is good for long enough.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(6 * 3600);
/// Pause before a refused side write (metadata, default mode, a closer look) is tried again.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// What comes back to the task.
#[derive(Debug)]
pub(crate) enum Message {
    /// For the brain.
    Event(Event),
    /// From the runner of this pod.
    Runner { pod: String, event: Event },
    /// The API server's own word about a pod that the watch does not show.
    Looked { name: String, pod: Option<Box<Pod>> },
    /// The look failed.
    LookFailed,
    /// The status was stored, or not; what is stored now, if that is known.
    Stored { status: Status, done: bool, kept: Option<Box<Kept>> },
    /// Something beside the brain ended.
    Upkept(Upkept),
}

struct Follow {
    pod: String,
    ip: IpAddr,
    stop: CancellationToken,
}

pub(crate) struct Task {
    pub(crate) context: Arc<Context>,
    clock: Clock,
    pub(crate) vm: Arc<VirtualMachine>,
    uid: String,
    snapshot: Snapshot,
    brain: Vm,
    /// The status as this process knows it to be stored.
    pub(crate) kept: Kept,
    report: mpsc::Sender<Message>,
    follow: Option<Follow>,
    looking: bool,
    pub(crate) upkeep: Upkeep,
    first_order: FirstOrder,
    failing: bool,
}

/// Drives one VM until it is gone or `shutdown` comes.
pub(crate) async fn drive(
    context: Arc<Context>,
    uid: String,
    mut snapshots: watch::Receiver<Snapshot>,
    shutdown: CancellationToken,
) {
    let snapshot = snapshots.borrow_and_update().clone();
    let Some(vm) = snapshot.vm.clone() else { return };
    let (report, mut messages) = mpsc::channel(64);
    let mut task = Task::new(context, uid, vm, report);
    task.look(snapshot);
    let mut authority = task.context.certs.authority();
    let first_check = tokio::time::Instant::now() + CERTIFICATE_CHECK;
    let mut certificates = tokio::time::interval_at(first_check, CERTIFICATE_CHECK);
    certificates.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wake_at = task.act();
        let mut wake = pin!(async {
            match wake_at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        });
        tokio::select! {
            changed = snapshots.changed() => {
                let snapshot = snapshots.borrow_and_update().clone();
                if changed.is_err() || snapshot.vm.is_none() {
                    break;
                }
                task.look(snapshot);
            }
            Some(message) = messages.recv() => task.hear(message),
            () = &mut wake => task.tell_brain(Event::Woke),
            _ = certificates.tick() => task.check_certificate(),
            _ = authority.changed() => task.keep_certificate(),
            () = shutdown.cancelled() => break,
        }
    }
    task.end();
}

impl Task {
    fn new(
        context: Arc<Context>,
        uid: String,
        vm: Arc<VirtualMachine>,
        report: mpsc::Sender<Message>,
    ) -> Self {
        let kept = Kept::of(&vm);
        let settings = Settings { at_most_one_pod: context.config.at_most_one_pod };
        Self {
            context,
            clock: Clock::start(),
            uid,
            snapshot: Snapshot::default(),
            brain: Vm::new(status::stored(&kept.status), settings),
            kept,
            report,
            follow: None,
            looking: false,
            upkeep: Upkeep::default(),
            first_order: FirstOrder::default(),
            failing: false,
            vm,
        }
    }

    fn tell_brain(&mut self, event: Event) {
        match &event {
            Event::CreateFailed(_) | Event::DeleteFailed(_) | Event::StatusFailed => {
                self.set_failing(true);
            }
            Event::PodDeleted(_) | Event::StatusWritten(_) => self.set_failing(false),
            _ => {}
        }
        self.brain.handle(event, self.clock.now());
    }

    fn set_failing(&mut self, failing: bool) {
        if self.failing != failing {
            self.failing = failing;
            self.context.metrics.failing("failure", if failing { 1 } else { -1 });
        }
    }

    /// The watches show something new.
    fn look(&mut self, snapshot: Snapshot) {
        if let Some(vm) = &snapshot.vm {
            self.vm = Arc::clone(vm);
        }
        self.snapshot = snapshot;
        let keys = self.context.certs.keys();
        let approved = gate::judge(&self.vm, &self.uid, &keys.approvals);
        let config = &self.context.config;
        let settings = PodSettings {
            runner_image: config.runner_image.clone(),
            cpu_scaling: config.cpu_scaling,
            // What the nodes have does not matter for what the specification says.
            kvm: false,
        };
        self.tell_brain(Event::Desired(observe::desired(&self.vm, approved, &settings)));
        self.store_mode();
        self.observe_pod();
        self.sync_metadata();
        self.keep_certificate();
        self.follow_runner();
    }

    pub(crate) fn current_pod(&self) -> Option<&Arc<Pod>> {
        self.snapshot.pods.get(self.brain.pod_name()?)
    }

    pub(crate) fn observe_pod(&mut self) {
        if let Some(pod) = self.current_pod().cloned() {
            let facts = observe::facts(&pod, self.clock.now(), k8s_openapi::jiff::Timestamp::now());
            self.tell_brain(Event::PodObserved(lifecycle::Pod::Present(facts)));
        } else if self.brain.believes_in_pod() && !self.looking {
            self.looking = true;
            self.look_closer();
        }
        let strays = observe::strays(&self.snapshot, self.brain.pod_name());
        self.tell_brain(Event::Strays(strays));
    }

    /// The watch may be behind: only the API server itself says that a pod is absent.
    fn look_closer(&self) {
        let Some(name) = self.brain.pod_name().map(str::to_owned) else { return };
        let (context, vm) = (Arc::clone(&self.context), Arc::clone(&self.vm));
        self.spawn(async move {
            match execute::read_pod(&context, &vm, &name).await {
                Ok(pod) => Message::Looked { name, pod: pod.map(Box::new) },
                Err(err) => {
                    tracing::warn!(vm = vm.name_any(), pod = name, error = %Chain(&err), "pod not read");
                    tokio::time::sleep(RETRY).await;
                    Message::LookFailed
                }
            }
        });
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Event(event) => self.tell_brain(event),
            Message::Runner { pod, event } => {
                if self.follow.as_ref().is_some_and(|follow| follow.pod == pod) {
                    self.tell_brain(event);
                }
            }
            Message::Looked { name, pod } => {
                self.looking = false;
                // Meanwhile the watch may have shown it, or another pod may have become the current one.
                if self.brain.pod_name() == Some(&name) && self.current_pod().is_none() {
                    if let Some(pod) = &pod {
                        self.sync_metadata_of(pod);
                    }
                    let (now, wall) = (self.clock.now(), k8s_openapi::jiff::Timestamp::now());
                    let pod = pod.map(|pod| observe::facts(&pod, now, wall));
                    let pod = pod.map_or(lifecycle::Pod::Absent, lifecycle::Pod::Present);
                    self.tell_brain(Event::PodObserved(pod));
                }
            }
            Message::LookFailed => {
                self.looking = false;
                self.observe_pod();
            }
            Message::Stored { status, done, kept } => {
                if let Some(kept) = kept {
                    self.kept = *kept;
                }
                let event = if done { Event::StatusWritten(status) } else { Event::StatusFailed };
                self.tell_brain(event);
            }
            Message::Upkept(what) => self.upkept(what),
        }
        self.follow_runner();
    }

    /// Starts what the brain says, until there is nothing more to start; returns when to ask again.
    fn act(&mut self) -> Option<std::time::Instant> {
        loop {
            // A process that was stopped for a while may wake up deposed.
            if !self.context.term.holds() {
                return Some(std::time::Instant::now() + RETRY);
            }
            let now = self.clock.now();
            self.first_order.store(self.brain.first_order(now), Ordering::Relaxed);
            let actions = self.brain.next(now);
            if actions.start.is_empty() {
                return actions.wake_at.map(|at| self.clock.instant(at));
            }
            for (action, why) in actions.start {
                self.tell_brain(Event::Started(action.clone()));
                self.start(action, why);
            }
        }
    }

    fn start(&mut self, action: Action, why: Why) {
        let (context, vm, clock) = (Arc::clone(&self.context), Arc::clone(&self.vm), self.clock);
        let (name, namespace) = (vm.name_any(), vm.namespace());
        let why = why.label();
        match action {
            Action::NamePod => self.tell_brain(Event::PodNamed(pod::fresh_name(&name))),
            Action::CreatePod(pod) => {
                tracing::info!(vm = name, namespace, pod, why, "creating pod");
                self.spawn(async move {
                    let event = execute::create_pod(&context, &vm, &pod, clock).await;
                    upkeep::measure_creation(&context, &vm, &event);
                    Message::Event(event)
                });
            }
            Action::DeletePod { name: pod, release } => {
                tracing::info!(vm = name, namespace, pod, why, "deleting pod");
                self.spawn(async move {
                    Message::Event(execute::delete_pod(&context, &vm, &pod, release).await)
                });
            }
            Action::ForgetPod { name: pod, restart } => {
                if restart {
                    context.metrics.restarts.inc();
                }
                self.unfollow();
                if let Some(pod) = pod {
                    let remove =
                        async move { execute::remove_certificate(&context, &vm, &pod).await };
                    self.context.tasks.spawn(remove);
                }
            }
            Action::Order { generation, what } => {
                let runner = self.follow.as_ref().map(|follow| (follow.ip, follow.pod.clone()));
                let decided = std::time::Instant::now();
                self.spawn(async move {
                    let order = order::give(context, vm, runner, generation, what, decided);
                    Message::Event(order.await)
                });
            }
            Action::WriteStatus(status) => self.write_status(status),
            Action::Tell(notice) => {
                self.measure(&notice);
                self.context
                    .tasks
                    .spawn(async move { execute::tell(&context, &vm, &notice).await });
            }
        }
    }

    fn write_status(&mut self, status: Status) {
        let before = &self.kept.status;
        let object = status::merged(before, &status, self.vm.metadata.generation, Timestamp::now());
        if object == *before {
            self.tell_brain(Event::StatusWritten(status));
            return;
        }
        let (name, namespace) = (self.vm.name_any(), self.vm.namespace());
        if before.phase != object.phase {
            let (from, to) = (before.phase.as_str(), object.phase.as_str());
            tracing::info!(vm = name, namespace, from, to, "phase changed");
        }
        let (context, vm, kept) =
            (Arc::clone(&self.context), Arc::clone(&self.vm), self.kept.clone());
        self.spawn(async move {
            let written = execute::write_status(&context, &vm, &kept, &object).await;
            if let Err(err) = &written {
                let error = Chain(err).to_string();
                tracing::warn!(vm = name, namespace, error, "status not written");
            }
            let done = written.is_ok();
            let kept = match written {
                Ok(kept) => Some(Box::new(kept)),
                Err(execute::ExecuteError::Raced { found }) => Some(found),
                Err(_) => None,
            };
            Message::Stored { status, done, kept }
        });
    }

    /// Follows the runner of the current pod, as long as that runs.
    fn follow_runner(&mut self) {
        let target = self.current_pod().and_then(|pod| {
            let status = pod.status.as_ref()?;
            let ip = status.pod_ip.as_ref()?.parse().ok()?;
            (status.phase.as_deref() == Some("Running")).then(|| (pod.name_any(), ip))
        });
        let current = self.follow.as_ref().map(|follow| (follow.pod.clone(), follow.ip));
        if target == current {
            return;
        }
        self.unfollow();
        if let Some((pod, ip)) = target {
            let stop = CancellationToken::new();
            let (context, report) = (Arc::clone(&self.context), self.report.clone());
            let first = Arc::clone(&self.first_order);
            let following = poll::follow(context, pod.clone(), ip, first, report, stop.clone());
            self.context.tasks.spawn(following);
            self.follow = Some(Follow { pod, ip, stop });
        }
    }

    fn unfollow(&mut self) {
        if let Some(follow) = self.follow.take() {
            follow.stop.cancel();
        }
    }

    pub(crate) fn spawn(&self, effect: impl Future<Output = Message> + Send + 'static) {
        let report = self.report.clone();
        self.context.tasks.spawn(async move {
            // A task that has ended wants no answer.
            let _sent = report.send(effect.await).await;
        });
    }

    fn end(mut self) {
        self.unfollow();
        self.set_failing(false);
    }
}

#[cfg(test)]
#[path = "vm_tests.rs"]
mod tests;
