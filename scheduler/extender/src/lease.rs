//! Who may grant: the holder of the Lease `autoscale-scheduler`.
//!
//! The number of changes of hands is the epoch. A process that begins counts as a new holder, so an epoch is never
//! used twice. A holder stops granting when it could not renew for [`DEADLINE`], by its own monotonic clock; another takes over
//! only after the lease has stood still for [`DURATION`], by its own clock: no two grant at a time, whatever the clocks say.
//! All are as short as a failover within five seconds needs: without the API server there is little to grant anyway.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guest_units::Chain;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use ring::rand::{SecureRandom as _, SystemRandom};
use scheduler_ledger::Event;
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::core::{Core, Ended, Known};
use crate::effects::CallError;

const NAME: &str = "autoscale-scheduler";
/// A lease that stands still so long is nobody's.
const DURATION: Duration = Duration::from_millis(3750);
/// For people who read the object; rounded up.
const DURATION_SECONDS: i32 = 4;
/// A holder grants so long after its last renewal.
const DEADLINE: Duration = Duration::from_millis(2500);
const RENEW_EVERY: Duration = Duration::from_millis(500);
/// A standby looks this often.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const CALL_LIMIT: Duration = Duration::from_millis(1250);
/// A call that began while the lease was held and takes no longer than this ends before another can hold it.
pub(crate) const MARGIN: Duration = Duration::from_millis(1250);

/// Whether the lease is held right now. The last check before anything is signed.
#[derive(Clone, Default)]
pub(crate) struct LeaseState(Arc<Mutex<State>>);

#[derive(Clone, Copy, Default)]
struct State {
    held: Option<Held>,
    /// Another replica holds it.
    stands_by: bool,
}

#[derive(Clone, Copy)]
struct Held {
    epoch: u64,
    until: Instant,
}

impl LeaseState {
    pub(crate) fn holds(&self, epoch: u64) -> bool {
        self.held().is_some_and(|held| held.epoch == epoch)
    }

    pub(crate) fn held_at_all(&self) -> bool {
        self.held().is_some()
    }

    /// Another replica held it when it was looked at last.
    pub(crate) fn stands_by(&self) -> bool {
        self.state().stands_by
    }

    fn held(&self) -> Option<Held> {
        self.state().held.filter(|held| Instant::now() < held.until)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock cannot leave the state half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, held: Option<Held>) {
        self.state().held = held;
    }
}

/// The one that wants the lease.
pub(crate) struct Candidate {
    api: Api<Lease>,
    pod_name: String,
    identity: String,
    state: LeaseState,
    known: Arc<Known>,
    core: Core,
    /// Calls that only the holder may make.
    fenced: TaskTracker,
    /// Told when this replica begins or ends to lead.
    leads: watch::Sender<Option<u64>>,
    mine: Option<u64>,
    /// The highest epoch that the lease was seen in.
    seen: Option<u64>,
    /// The lease of another, and since when it stands still. Without a version: it vanished.
    other: Option<(Option<String>, Instant)>,
}

impl Candidate {
    pub(crate) fn new(
        api: Api<Lease>,
        pod_name: String,
        state: LeaseState,
        known: Arc<Known>,
        core: Core,
        fenced: TaskTracker,
        leads: watch::Sender<Option<u64>>,
    ) -> Self {
        let mut random = [0_u8; 6];
        // Without randomness, the time still tells processes apart.
        if SystemRandom::new().fill(&mut random).is_err() {
            let nanos = Timestamp::now().subsec_nanosecond().to_be_bytes();
            random[..4].copy_from_slice(&nanos);
        }
        let suffix: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let identity = format!("{pod_name}_{suffix}");
        let (mine, seen, other) = (None, None, None);
        Self { api, pod_name, identity, state, known, core, fenced, leads, mine, seen, other }
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let began = tokio::time::Instant::now();
            let epoch = match timeout(CALL_LIMIT, self.step()).await {
                Ok(Ok(epoch)) => epoch,
                Ok(Err(err)) => {
                    tracing::warn!(error = %Chain(&err), "lease not renewed");
                    self.mine.filter(|_| self.state.held_at_all())
                }
                Err(_) => {
                    tracing::warn!(limit = ?CALL_LIMIT, "lease not renewed in time");
                    self.mine.filter(|_| self.state.held_at_all())
                }
            };
            if self.note(epoch).await.is_err() {
                return;
            }
            let pause = if epoch.is_some() { RENEW_EVERY } else { LOOK_EVERY };
            tokio::select! {
                () = sleep_until(began + pause) => {}
                () = shutdown.cancelled() => break,
            }
        }
        self.state.set(None);
        // What has begun must not arrive after the next one has looked; nothing begins any more.
        self.fenced.close();
        if self.mine.is_some() && timeout(MARGIN, self.fenced.wait()).await.is_ok() {
            let _ = timeout(CALL_LIMIT, self.release()).await;
        }
    }

    /// Makes a change known to the ledger.
    async fn note(&mut self, epoch: Option<u64>) -> Result<(), Ended> {
        if epoch == self.mine {
            return Ok(());
        }
        self.mine = epoch;
        match epoch {
            Some(epoch) => tracing::info!(epoch, "lease taken"),
            None => {
                self.state.set(None);
                tracing::warn!("lease lost, nothing is granted");
            }
        }
        // Nobody is led here any more where the other end is gone: the process stops.
        let _ = self.leads.send(epoch);
        self.core.tell(Event::Leader(epoch)).await
    }

    /// One attempt to get or keep the lease. Says the epoch, if it is held now.
    async fn step(&mut self) -> Result<Option<u64>, CallError> {
        let started = Instant::now();
        let Some(lease) = self.api.get_opt(NAME).await? else {
            let Some(epoch) = self.epoch_of_new() else { return Ok(None) };
            let lease = self.lease(ObjectMeta::default(), epoch, None);
            self.api.create(&PostParams::default(), &lease).await?;
            return Ok(Some(self.held(epoch, started)));
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let counted = u64::try_from(spec.lease_transitions.unwrap_or(0)).unwrap_or(0);
        self.seen = self.seen.max(Some(counted));
        let holder = spec.holder_identity.unwrap_or_default();
        let newest = self.known.newest_epoch();
        if holder == self.identity {
            // Approvals of a later epoch than ours can only come from a lease that was deleted: they would all win.
            let epoch = newest.filter(|it| *it > counted).map_or(counted, |it| it + 1);
            let since = spec.acquire_time.filter(|_| epoch == counted);
            let renewed = self.lease(lease.metadata, epoch, since);
            self.api.replace(NAME, &PostParams::default(), &renewed).await?;
            return Ok(Some(self.held(epoch, started)));
        }
        let lasts = spec.lease_duration_seconds.unwrap_or(0);
        if !self.may_take(&holder, lease.metadata.resource_version.clone(), lasts) {
            self.state.state().stands_by = true;
            return Ok(None);
        }
        if newest.is_none() {
            // A replica that knows everything may take it meanwhile.
            return Ok(None);
        }
        let epoch = self.next_epoch();
        let taken = self.lease(lease.metadata, epoch, None);
        self.api.replace(NAME, &PostParams::default(), &taken).await?;
        Ok(Some(self.held(epoch, started)))
    }

    fn held(&self, epoch: u64, started: Instant) -> u64 {
        let held = Some(Held { epoch, until: started + DEADLINE });
        *self.state.state() = State { held, stands_by: false };
        epoch
    }

    fn next_epoch(&self) -> u64 {
        self.seen.max(self.known.newest_epoch()).unwrap_or(0) + 1
    }

    /// There is no lease: its holder makes it again. For all others it is that of one who is silent, if there ever was one.
    fn epoch_of_new(&mut self) -> Option<u64> {
        if let Some(mine) = self.mine.filter(|_| self.state.held_at_all()) {
            return Some(mine);
        }
        self.known.newest_epoch()?;
        let free = self.seen.is_none() || self.stands_still(None, 0);
        free.then(|| self.next_epoch())
    }

    /// Whether the holder is gone: it said so, it ran in this very pod, or the lease stands still. It stands still from when
    /// it was read: the holder may have renewed it while the answer was on its way.
    fn may_take(&mut self, holder: &str, version: Option<String>, lasts_seconds: i32) -> bool {
        let same_pod = holder.rsplit_once('_').is_some_and(|(pod, _)| pod == self.pod_name);
        holder.is_empty() || same_pod || self.stands_still(version, lasts_seconds)
    }

    fn stands_still(&mut self, version: Option<String>, lasts_seconds: i32) -> bool {
        let now = Instant::now();
        match &self.other {
            Some((known, since)) if *known == version => {
                // A holder of another version of this program may count on more.
                let longer = lasts_seconds > DURATION_SECONDS;
                let lasts = u64::try_from(lasts_seconds).ok().filter(|_| longer);
                now - *since > lasts.map_or(DURATION, Duration::from_secs)
            }
            _ => {
                self.other = Some((version, now));
                false
            }
        }
    }

    fn lease(&self, metadata: ObjectMeta, epoch: u64, since: Option<MicroTime>) -> Lease {
        let now = MicroTime(Timestamp::now());
        Lease {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: self.api.namespace().map(str::to_owned),
                resource_version: metadata.resource_version,
                uid: metadata.uid,
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(DURATION_SECONDS),
                lease_transitions: Some(i32::try_from(epoch).unwrap_or(i32::MAX)),
                acquire_time: Some(since.unwrap_or_else(|| now.clone())),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Lets the next one begin at once.
    async fn release(&self) -> Result<(), CallError> {
        let Some(mut lease) = self.api.get_opt(NAME).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut() else { return Ok(()) };
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = Some(String::new());
            self.api.replace(NAME, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_by_itself_and_is_of_one_epoch() {
        let state = LeaseState::default();
        assert!(!state.holds(1));
        state.set(Some(Held { epoch: 3, until: Instant::now() + DURATION }));
        assert!(state.holds(3) && !state.holds(2) && state.held_at_all());
        state.set(Some(Held { epoch: 3, until: Instant::now() }));
        assert!(!state.holds(3) && !state.held_at_all());
    }

    #[test]
    fn a_holder_stops_before_another_begins() {
        assert!(DEADLINE + CALL_LIMIT <= DURATION && DEADLINE + MARGIN <= DURATION);
        // Two renewals in a row may fail.
        assert!(2 * RENEW_EVERY + CALL_LIMIT <= DEADLINE);
        // However long those take that succeed, there is no gap between them.
        assert!(2 * CALL_LIMIT <= DEADLINE);
    }

    /// The lease of another, or none; and when it was last looked at.
    type Shown = Arc<Mutex<(Option<u64>, Instant)>>;

    /// An API server that shows it, and says yes to whoever writes it.
    async fn answer(
        shown: Shown,
        request: http::Request<kube::client::Body>,
    ) -> Result<http::Response<axum::body::Body>, kube::Error> {
        if request.method() != http::Method::GET {
            let body = request.into_body().collect_bytes().await?;
            return Ok(http::Response::new(axum::body::Body::from(body)));
        }
        let mut shown = shown.lock().unwrap();
        shown.1 = Instant::now();
        let (status, body) = match shown.0 {
            Some(epoch) => (
                200,
                serde_json::json!({
                    "metadata": {"resourceVersion": "5"},
                    "spec": {"holderIdentity": "other_1", "leaseTransitions": epoch},
                }),
            ),
            None => (
                404,
                serde_json::json!({
                    "kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound",
                    "message": "",
                }),
            ),
        };
        let body = axum::body::Body::from(body.to_string());
        Ok(http::Response::builder().status(status).body(body).unwrap())
    }

    /// A replica that has listed everything.
    fn candidate(shown: &Shown) -> Candidate {
        let shown = Arc::clone(shown);
        let api = tower::service_fn(move |request| answer(Arc::clone(&shown), request));
        let api = Api::namespaced(kube::Client::new(api, "default"), "kube-system");
        let settings = scheduler_ledger::Settings::default();
        let mut ledger = scheduler_ledger::Ledger::new(settings.clone());
        for event in [Event::NodesListed, Event::PodsListed, Event::VmsListed] {
            ledger.handle(event([].into()), guest_units::Moment::default());
        }
        let (core, _inbox) = crate::core::channel(settings);
        let (state, known) = (LeaseState::default(), Arc::<Known>::default());
        known.note(&ledger);
        let (fenced, (leads, _)) = (TaskTracker::new(), watch::channel(None));
        Candidate::new(api, "one".into(), state, known, core, fenced, leads)
    }

    #[tokio::test]
    async fn a_lease_stands_still_from_when_its_answer_came() {
        let shown: Shown = Arc::new(Mutex::new((Some(1), Instant::now())));
        let mut one = candidate(&shown);
        assert_eq!(one.step().await.unwrap(), None);
        let (_, since) = one.other.unwrap();
        assert!(since >= shown.lock().unwrap().1, "the holder may have renewed it until then");
    }

    #[tokio::test]
    async fn a_lease_that_vanished_is_made_again_by_its_holder_and_waited_for_by_others() {
        let shown: Shown = Arc::new(Mutex::new((Some(7), Instant::now())));
        let (mut holder, mut other) = (candidate(&shown), candidate(&shown));
        holder.mine = Some(7);
        holder.state.set(Some(Held { epoch: 7, until: Instant::now() + DEADLINE }));
        assert_eq!(other.step().await.unwrap(), None);
        shown.lock().unwrap().0 = None;
        assert_eq!(holder.step().await.unwrap(), Some(7));
        assert_eq!(other.step().await.unwrap(), None, "the holder may still grant");
        other.other = Some((None, Instant::now() - DURATION - RENEW_EVERY));
        assert_eq!(other.step().await.unwrap(), Some(8), "no epoch is used twice");
        assert_eq!(candidate(&shown).step().await.unwrap(), Some(1), "there never was one");
    }

    #[tokio::test]
    async fn nobody_makes_the_lease_before_everything_is_known() {
        let shown: Shown = Arc::new(Mutex::new((None, Instant::now())));
        let mut one = candidate(&shown);
        one.known = Arc::default();
        assert_eq!(one.step().await.unwrap(), None);
    }
}
