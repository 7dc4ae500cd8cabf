//! One task for each VM: it owns the VM's brain, feeds it with what happens and starts what it names.
//!
//! ```text
//!   watch ----+                                   +--> scheduler --+
//!   guest ----+--> handle(event) --> next() ------+--> VM object --+--> event
//!   effects --+                                   +--> guest ------+
//! ```
//! Every effect has a deadline and ends in an event. The task leaves sizes as they are when it ends.

mod perform;
mod record;

use std::sync::Arc;
use std::time::{Duration, Instant};

use controller_api::Approval;
use guest_protocol::{Link, ScalerHost, ScalerNotify};
use guest_units::{Moment, Size};
use host_scaling::reference::CacheWindows;
use host_scaling::{Action, Event, Policy, Sample, Scaler, SystemSample, Why};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Board, Query};
use crate::config::FileConfig;
use crate::effects::guest::{self, GuestPlace, GuestReport};
use crate::effects::scheduler::SchedulerClient;
use crate::events::{Limiter, Publisher, Reason};
use crate::health::Health;
use crate::metrics::{ByEndpointAndCode, ByWhy, Metrics};
use crate::view::VmView;

/// Reports that wait for the task.
const QUEUE: usize = 256;

/// What all tasks share.
pub(crate) struct Shared {
    pub(crate) file: FileConfig,
    pub(crate) node: String,
    pub(crate) client: kube::Client,
    pub(crate) scheduler: SchedulerClient,
    pub(crate) metrics: Metrics,
    pub(crate) events: Publisher,
    pub(crate) board: Board,
    pub(crate) tasks: TaskTracker,
}

/// What effects report.
enum Report {
    /// Straight to the brain.
    Event(Event),
    Permit {
        generation: u64,
        permit: Size,
        reason: String,
        approval: Approval,
        want: Size,
    },
    PermitFailed {
        generation: u64,
        newest: Option<u64>,
    },
    /// `seen`: the object after the patch, or after a lost race.
    Patched {
        generation: u64,
        from: Size,
        to: Size,
        seen: Option<Box<VmView>>,
    },
    PatchFailed {
        generation: u64,
        raced: bool,
        seen: Option<Box<VmView>>,
    },
    Vetoed {
        generation: u64,
        least: Size,
        reason: String,
    },
    GuestFailed {
        generation: u64,
    },
}

/// What a VM's task is made from.
pub(crate) struct Start {
    pub(crate) view: VmView,
    pub(crate) pod_uid: String,
    pub(crate) place: GuestPlace,
    pub(crate) views: watch::Receiver<VmView>,
    pub(crate) queries: mpsc::Receiver<Query>,
    pub(crate) stop: CancellationToken,
}

/// The task of one VM.
struct Task {
    shared: Arc<Shared>,
    view: VmView,
    pod_uid: String,
    scaler: Scaler,
    /// Moments are counted from here.
    origin: Instant,
    /// The same on the clock on the wall.
    wall: Timestamp,
    link: Option<(u64, Link<ScalerHost>)>,
    /// When the guest last said what it needs.
    heard_at: Option<Instant>,
    /// Of the permit that holds, with its generation.
    approval: Option<(u64, Approval)>,
    report: mpsc::Sender<Report>,
    health: Health,
    was_stuck: bool,
    limiter: Limiter,
    /// A change of size on its way: since when, from, to.
    changing: Option<(Instant, Size, Size)>,
}

/// Runs until `start.stop`. The VM's entry on the board is the keeper's.
pub(crate) async fn run(shared: Arc<Shared>, start: Start) {
    let Start { view, pod_uid, place, mut views, mut queries, stop } = start;
    let (report, mut reports) = mpsc::channel(QUEUE);
    let (guest_reports, mut from_guest) = mpsc::channel(QUEUE);
    let limits = guest::Limits { connect: shared.file.guest.connection_timeout };
    let connecting = guest::keep_connected(place, limits, guest_reports, stop.clone());
    shared.tasks.spawn(connecting);
    let mut task = Task::new(shared, view, pod_uid, report);
    let mut refresh = tokio::time::interval(task.shared.file.refresh);
    loop {
        let wake_at = task.act();
        let wake = async {
            match wake_at {
                Some(at) => tokio::time::sleep_until((task.origin + at.0).into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            Some(report) = reports.recv() => task.reported(report),
            Some(report) = from_guest.recv() => task.guest_reported(report),
            changed = views.changed() => match changed {
                Ok(()) => {
                    let view = views.borrow_and_update().clone();
                    task.seen(view);
                }
                Err(_) => break,
            },
            Some(query) = queries.recv() => task.answer(query),
            _ = refresh.tick() => task.look_at_health(),
            () = wake => {}
        }
    }
}

impl Task {
    fn new(
        shared: Arc<Shared>,
        view: VmView,
        pod_uid: String,
        report: mpsc::Sender<Report>,
    ) -> Self {
        let (origin, wall) = (Instant::now(), Timestamp::now());
        let policy = policy_of(&view);
        // The clock makes numbers that are above those of every earlier process.
        let first = u64::try_from(wall.as_millisecond()).unwrap_or(1);
        let mut scaler = Scaler::new(view.limits, policy, first);
        scaler.handle(Event::Vm(view.for_scaler()), Moment(Duration::ZERO));
        let health = Health::new(&shared.file, origin);
        Self {
            shared,
            view,
            pod_uid,
            scaler,
            origin,
            wall,
            link: None,
            heard_at: None,
            approval: None,
            report,
            health,
            was_stuck: false,
            limiter: Limiter::default(),
            changing: None,
        }
    }

    fn now(&self) -> Moment {
        Moment(self.origin.elapsed())
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        self.scaler.handle(event, now);
    }

    /// Starts what the brain names; says when it wants to be asked again.
    fn act(&mut self) -> Option<Moment> {
        let actions = self.scaler.next(self.now());
        self.shared.metrics.next_actions.inc();
        for (action, why) in actions.start {
            self.handle(Event::Started(action));
            let by_why = ByWhy { why: why.label() };
            self.shared.metrics.actions.get_or_create(&by_why).inc();
            self.perform(action, why);
        }
        actions.wake_at
    }

    fn perform(&mut self, action: Action, why: Why) {
        if let Action::PatchVm { from, size, .. } = action
            && from != size
        {
            self.changing = Some((Instant::now(), from, size));
        }
        perform::start(self, action, why);
    }

    fn seen(&mut self, view: VmView) {
        if view.is_older_than(&self.view) {
            return; // the watch lags behind our own patch
        }
        if view.limits != self.view.limits {
            self.handle(Event::Limits(view.limits));
        }
        if view.policy != self.view.policy {
            self.handle(Event::Policy(Box::new(policy_of(&view))));
        }
        self.view = view;
        self.handle(Event::Vm(self.view.for_scaler()));
        if let Some((since, from, to)) = self.changing
            && self.view.plugged == to
        {
            self.changing = None;
            Metrics::observe(&self.shared.metrics.scaling_latency, from, to, since.elapsed());
        }
    }

    fn guest_reported(&mut self, report: GuestReport) {
        match report {
            GuestReport::Connected { connection, link } => {
                tracing::info!(
                    vm = self.view.key.name,
                    namespace = self.view.key.namespace,
                    "guest connected"
                );
                self.link = Some((connection, link));
                self.handle(Event::GuestConnected);
            }
            GuestReport::Lost { connection } if self.is_current(connection) => {
                self.link = None;
                self.handle(Event::GuestLost);
            }
            GuestReport::Told { connection, what } if self.is_current(connection) => {
                self.told(&what);
            }
            GuestReport::Lost { .. } | GuestReport::Told { .. } => {} // of an earlier connection
        }
    }

    fn is_current(&self, connection: u64) -> bool {
        self.link.as_ref().is_some_and(|(current, _)| *current == connection)
    }

    fn told(&mut self, what: &ScalerNotify) {
        let now = Instant::now();
        self.heard_at = Some(now);
        let endpoint = match what {
            ScalerNotify::Sample(sample) => {
                self.health.heard(now);
                self.handle(Event::Sample(sample_of(sample)));
                if let Some(windows) = sample.cache {
                    let windows = CacheWindows::new(windows.pages().iter().copied());
                    self.handle(Event::Cache(Box::new(windows)));
                }
                "Sample"
            }
            ScalerNotify::Ask(ask) => {
                tracing::info!(
                    vm = self.view.key.name,
                    namespace = self.view.key.namespace,
                    generation = ask.seq,
                    want_cpu = ask.want.cpu.0,
                    want_memory = ask.want.memory.0,
                    reason = ?ask.reason,
                    "guest asked"
                );
                self.handle(Event::Asked(ask.want));
                "Ask"
            }
        };
        let labels = ByEndpointAndCode { endpoint, code: "ok" };
        self.shared.metrics.guest_inbound.get_or_create(&labels).inc();
    }

    fn reported(&mut self, report: Report) {
        let now = Instant::now();
        match report {
            Report::Event(event) => self.handle(event),
            Report::Permit { generation, permit, reason, approval, want } => {
                if !want.fits_in(permit) {
                    self.health.scheduler_failed(now);
                    self.publish(Reason::ScaleDenied, || {
                        format!("wanted {}, permitted {}: {reason}", text(want), text(permit))
                    });
                }
                self.handle(Event::PermitAnswered { generation, permit, reason });
                if self.scaler.permit_generation() == Some(generation) {
                    self.approval = Some((generation, approval));
                }
            }
            Report::PermitFailed { generation, newest } => {
                self.health.scheduler_failed(now);
                if let Some(newest) = newest {
                    self.handle(Event::Newest(newest));
                }
                self.handle(Event::PermitFailed { generation });
            }
            Report::Patched { generation, from, to, seen } => {
                self.handle(Event::Patched { generation });
                if from != to {
                    let rule = self.rule_for(to);
                    self.publish(Reason::Scaled, || {
                        format!("{} to {}: {rule}", text(from), text(to))
                    });
                }
                if let Some(seen) = seen {
                    self.seen(*seen);
                }
            }
            Report::PatchFailed { generation, raced, seen } => {
                if !raced {
                    self.health.patch_failed(now);
                }
                self.handle(Event::PatchFailed { generation, raced });
                if let Some(seen) = seen {
                    self.seen(*seen);
                }
            }
            Report::Vetoed { generation, least, reason } => {
                self.publish(Reason::ShrinkVetoed, || {
                    format!("the guest needs at least {}: {reason}", text(least))
                });
                self.handle(Event::GuestVeto { generation, least });
            }
            Report::GuestFailed { generation } => {
                self.health.guest_failed(now);
                self.handle(Event::GuestFailed { generation });
            }
        }
    }

    fn rule_for(&self, to: Size) -> String {
        let decisions: Vec<_> = self.scaler.decisions().collect();
        let found = decisions.iter().rev().find(|decision| decision.to == to);
        found.or(decisions.last()).map_or_else(String::new, |decision| decision.rule.clone())
    }

    fn publish(&mut self, reason: Reason, text: impl FnOnce() -> String) {
        if self.limiter.allows(reason, Instant::now()) {
            self.shared.events.publish(&self.view.key, &self.view.uid, reason, &text());
        }
    }

    fn answer(&self, query: Query) {
        let (to, lines) = match query {
            Query::Why(to) => (to, record::why(&self.scaler, self.wall)),
            Query::Top(to) => (to, record::top(&self.scaler, &self.view.key, self.now())),
        };
        let _asker_left = to.send(lines);
    }

    fn look_at_health(&mut self) {
        let stuck = self.health.stuck(Instant::now());
        if let Some(why) = stuck.filter(|_| !self.was_stuck) {
            tracing::warn!(
                vm = self.view.key.name,
                namespace = self.view.key.namespace,
                why,
                "VM is stuck"
            );
        }
        self.was_stuck = stuck.is_some();
        self.shared.board.set_stuck(&self.view.key, self.was_stuck);
    }
}

/// Statements of many VMs are spread: the interval is shortened by 0 to 99 ms, fixed for each VM.
fn policy_of(view: &VmView) -> Policy {
    let jitter =
        view.uid.bytes().fold(7u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte)) % 100;
    let mut policy = view.policy;
    let every = policy.retries.permit_every;
    policy.retries.permit_every = every.saturating_sub(Duration::from_millis(jitter));
    policy
}

/// What the brain takes from a sample; the guest's own numbers were brought within bounds when they arrived.
fn sample_of(sample: &guest_protocol::Sample) -> Sample {
    let system = sample.metrics.map(|metrics| SystemSample {
        load1_milli: metrics.load1_milli,
        load5_milli: metrics.load5_milli,
        memory_usage: SystemSample::usage(metrics.memory_total, metrics.memory_available),
        memory_cached: metrics.memory_cached,
    });
    Sample { demand: sample.demand, used: sample.used, system }
}

/// A size for people.
fn text(size: Size) -> String {
    format!("{} vCPU, {} memory", size.cpu, size.memory)
}

#[cfg(test)]
mod tests;
