//! The connection to the guest's keeper: made again whenever it breaks, for as long as the VM runs.
//!
//! Whenever a keeper connects, the guest gets the CPU that it should have: the keeper may be a new one, after a
//! restart, which released the quota. A heartbeat tells whether it still answers, and whether the CPU is still
//! so; if not, it is restored. How often all this happens is not for the guest to say: pauses double until
//! something lasts.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use guest_protocol::{
    KeeperHost, KeeperRequest, KeeperResponse, KeeperState, Link, LinkError, LinkOptions, Session,
    dial,
};
use guest_units::{Bytes, Chain, MilliCpu};
use host_protocol::{Endpoint, Generation, GuestLink, HybridSocket, OrderResult, Stream};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use crate::api::Ready;
use crate::execute::Executor;
use crate::guest::{Consent, Guest, GuestCpu, GuestError};
use crate::metrics::Metrics;
use crate::ready::Readiness;
use crate::state::State;

/// For a connection and a greeting at first; a guest that still boots does not answer at all. Doubled after each try
/// that ran out of time, since a guest on a busy host may need longer, and given up requests cost it work.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
const CONNECT_LIMIT_LAST: Duration = Duration::from_secs(8);
/// Without a keeper for so long, the vsock device is replaced: its back end may be wedged. Doubled each time.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries; doubled after each connection that did not last.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// Before the guest's CPU is restored again; doubled as long as it does not last.
const RESTORE: Duration = Duration::from_secs(1);
const RESTORE_LAST: Duration = Duration::from_secs(60);
/// What was good for so long has lasted.
const LASTING: Duration = Duration::from_secs(10);
/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// A keeper that does not answer a heartbeat for this long is gone.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(5);

/// The guest's keeper, connected or not; cheap to clone.
#[derive(Clone)]
pub(crate) struct Keeper {
    endpoint: Endpoint,
    link: Arc<watch::Sender<Option<Link<KeeperHost>>>>,
}

/// What learns of the connection.
pub(crate) struct Surroundings {
    pub(crate) state: State,
    pub(crate) metrics: Metrics,
    pub(crate) ready: Ready,
    /// Asks for a new vsock device.
    pub(crate) renew_vsock: Arc<Notify>,
}

impl Keeper {
    /// The keeper behind a VM's hybrid socket.
    pub(crate) fn new(vsock: PathBuf, port: u32) -> Self {
        Self::at(Endpoint::Hybrid { socket: HybridSocket::Path(vsock), port })
    }

    pub(crate) fn at(endpoint: Endpoint) -> Self {
        Self { endpoint, link: Arc::new(watch::Sender::new(None)) }
    }

    async fn ask(
        &self,
        name: &'static str,
        request: KeeperRequest,
        limit: Duration,
    ) -> Result<KeeperResponse, GuestError> {
        let link = self.link.borrow().clone().ok_or(GuestError::NotConnected)?;
        link.request(request, limit).await.map_err(|err| match err {
            LinkError::Refused { error } => {
                GuestError::Refused { request: name, reason: error.message.printable() }
            }
            err => GuestError::NoAnswer { request: name, source: Box::new(err) },
        })
    }

    async fn connect(&self, limit: Duration) -> anyhow::Result<Session<Stream, KeeperHost>> {
        let stream = self.endpoint.connect(limit).await?;
        Ok(dial(stream, LinkOptions::default(), limit).await?)
    }
}

impl Guest for Keeper {
    fn reachable(&self) -> Result<(), GuestError> {
        self.link.borrow().as_ref().map(|_| ()).ok_or(GuestError::NotConnected)
    }

    async fn set_cpu(
        &self,
        generation: Generation,
        cpu: MilliCpu,
        limit: Duration,
    ) -> Result<GuestCpu, GuestError> {
        let request = KeeperRequest::SetCpu { generation: theirs(generation), cpu };
        match self.ask("SetCpu", request, limit).await? {
            KeeperResponse::State(state) => Ok(claimed(&state)),
            other => Err(unexpected("SetCpu", &other)),
        }
    }

    async fn may_shrink_memory(
        &self,
        generation: Generation,
        from: Bytes,
        to: Bytes,
        limit: Duration,
    ) -> Result<Consent, GuestError> {
        let request = KeeperRequest::MayShrinkMemory { generation: theirs(generation), from, to };
        match self.ask("MayShrinkMemory", request, limit).await? {
            KeeperResponse::Fine {} => Ok(Consent::Fine),
            KeeperResponse::Veto { least, reason } => {
                Ok(Consent::Veto { least, reason: reason.printable() })
            }
            other => Err(unexpected("MayShrinkMemory", &other)),
        }
    }

    async fn power_down(&self, limit: Duration) -> Result<(), GuestError> {
        self.ask("PowerDown", KeeperRequest::PowerDown {}, limit).await.map(|_| ())
    }
}

/// Keeps the keeper connected; never ends by itself.
pub(crate) async fn stay_connected(
    keeper: Keeper,
    executor: Arc<Executor<Keeper>>,
    around: Surroundings,
) {
    let (mut limit, mut patience, mut alone_since) = (CONNECT_LIMIT, PATIENCE, Instant::now());
    let mut pauses = Pauses { next: RETRY, first: RETRY, last: RETRY_LAST };
    let mut pause = RETRY;
    loop {
        let tried = Instant::now();
        match keeper.connect(limit).await {
            Ok(session) => {
                around.metrics.keeper_connected();
                let since = Instant::now();
                let why = attend(&keeper, session, &executor, &around).await;
                keeper.link.send_replace(None);
                around.state.change(|state| state.guest = GuestLink::Waiting);
                tracing::info!(why, "the keeper is gone");
                pause = pauses.after(since.elapsed());
                (limit, patience, alone_since) = (CONNECT_LIMIT, PATIENCE, Instant::now());
            }
            Err(err) => {
                tracing::trace!(error = format!("{err:#}"), "no keeper");
                if tried.elapsed() >= limit {
                    limit = (limit * 2).min(CONNECT_LIMIT_LAST);
                }
                if alone_since.elapsed() >= patience {
                    let seconds = patience.as_secs();
                    tracing::warn!(seconds, error = format!("{err:#}"), "still no keeper");
                    // Not kept for later: a back end that is just being replaced must not die for it.
                    around.renew_vsock.notify_waiters();
                    (limit, patience, alone_since) = (CONNECT_LIMIT, patience * 2, Instant::now());
                    pause = pauses.after(Duration::ZERO);
                }
            }
        }
        sleep(pause).await;
    }
}

/// Pauses that double until something lasts.
struct Pauses {
    next: Duration,
    first: Duration,
    last: Duration,
}

impl Pauses {
    /// The pause after something that was good for so long.
    fn after(&mut self, lasted: Duration) -> Duration {
        let pause = if lasted >= LASTING { self.first } else { self.next };
        self.next = (pause * 2).min(self.last);
        pause
    }
}

/// One connection to its end.
async fn attend(
    keeper: &Keeper,
    session: Session<Stream, KeeperHost>,
    executor: &Executor<Keeper>,
    around: &Surroundings,
) -> String {
    let Session { link, incoming: _held_open, driver, welcome } = session;
    keeper.link.send_replace(Some(link.clone()));
    around.state.change(|state| state.guest = GuestLink::Connected);
    tracing::info!(version = welcome.version, "the keeper is connected");
    let differs = Notify::new();
    tokio::select! {
        closed = driver.run() => Chain(&closed).to_string(),
        why = heartbeats(&link, executor, &around.ready, &differs) => why,
        never = keep_cpu(executor, &differs) => match never {},
    }
}

async fn heartbeats(
    link: &Link<KeeperHost>,
    executor: &Executor<Keeper>,
    ready: &Ready,
    differs: &Notify,
) -> String {
    loop {
        match link.request(KeeperRequest::State {}, HEARTBEAT_LIMIT).await {
            Ok(KeeperResponse::State(state)) => {
                ready.tell(Readiness::keeper_heard);
                if !executor.has_cpu(claimed(&state)) {
                    differs.notify_waiters();
                }
            }
            Ok(other) => return Chain(&unexpected("State", &other)).to_string(),
            Err(err) => return Chain(&err).to_string(),
        }
        sleep(HEARTBEAT).await;
    }
}

/// Gives the guest the CPU that it should have, and again whenever it differs.
async fn keep_cpu(executor: &Executor<Keeper>, differs: &Notify) -> Infallible {
    let mut pauses = Pauses { next: RESTORE, first: RESTORE, last: RESTORE_LAST };
    let mut lasted = Duration::ZERO;
    loop {
        let result = executor.restore_cpu().await;
        if result != OrderResult::Done {
            tracing::warn!(result = result.label(), "the guest does not have its CPU");
        }
        sleep(pauses.after(lasted)).await;
        let since = Instant::now();
        differs.notified().await;
        lasted = since.elapsed();
    }
}

fn claimed(state: &KeeperState) -> GuestCpu {
    GuestCpu { online: state.cpus_online, quota: state.quota }
}

fn theirs(Generation { epoch, counter }: Generation) -> guest_protocol::Generation {
    guest_protocol::Generation { epoch, counter }
}

fn unexpected(request: &'static str, _response: &KeeperResponse) -> GuestError {
    GuestError::Refused { request, reason: "its answer belongs to another request".to_owned() }
}

#[cfg(test)]
mod tests {
    use guest_protocol::{
        ErrorBody, ErrorCode, KeeperGuest, KeeperState, Received, RoleName, Text, accept,
    };
    use host_protocol::MemListener;
    use prometheus_client::registry::Registry;
    use tokio::task::JoinSet;
    use tokio::time::timeout;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::cmdline::{Accel, Cpus};
    use crate::execute::Layout;
    use crate::testing::{silent_monitor, spec};

    const LIMIT: Duration = Duration::from_secs(20);

    /// A keeper of one connection that gives these answers, and returns what it was asked.
    async fn guest(
        mut listener: MemListener,
        answers: Vec<Result<KeeperResponse, ErrorBody>>,
    ) -> Vec<KeeperRequest> {
        let stream = listener.accept().await.unwrap();
        let options = LinkOptions::default();
        let Session { link: _open, mut incoming, driver, .. } =
            accept::<KeeperGuest, _>(stream, "boot", options, LIMIT).await.unwrap();
        let mut driving = JoinSet::new();
        driving.spawn(driver.run());
        let mut asked = Vec::new();
        for answer in answers {
            let Some(Received::Request(request, responder)) = incoming.next().await else { break };
            asked.push(request);
            match answer {
                Ok(response) => responder.respond(response).unwrap(),
                Err(error) => responder.refuse(error).unwrap(),
            }
        }
        let _ended = driving.join_next().await; // when the host hangs up
        asked
    }

    async fn connected(keeper: &Keeper) -> JoinSet<guest_protocol::Closed> {
        let session = keeper.connect(LIMIT).await.unwrap();
        assert_eq!(session.welcome.role, RoleName::Keeper);
        keeper.link.send_replace(Some(session.link));
        let mut driving = JoinSet::new();
        let (driver, mut incoming) = (session.driver, session.incoming);
        driving.spawn(async move {
            tokio::select! {
                closed = driver.run() => closed,
                _ = incoming.next() => unreachable!("a keeper says nothing unasked"),
            }
        });
        driving
    }

    #[tokio::test]
    async fn answers_are_understood() {
        let (endpoint, listener) = Endpoint::mem();
        let keeper = Keeper::at(endpoint);
        let (gib, two) = (Bytes::from_gib(1), Bytes::from_gib(2));
        let generation = Generation { epoch: 1, counter: 2 };
        let none = keeper.set_cpu(generation, MilliCpu(500), LIMIT).await;
        assert!(matches!(none, Err(GuestError::NotConnected)) && keeper.reachable().is_err());

        let state = KeeperState { cpus_online: 1, quota: MilliCpu(500), ..KeeperState::default() };
        let answers = vec![
            Ok(KeeperResponse::State(state)),
            Ok(KeeperResponse::Fine {}),
            Ok(KeeperResponse::Veto { least: gib, reason: Text::new("in\x1b[31m \u{202e}use\n") }),
            Err(ErrorBody::new(ErrorCode::Stale, "old")),
            Ok(KeeperResponse::Fine {}),
            Ok(KeeperResponse::PoweringDown {}),
        ];
        let mut guests = JoinSet::new();
        guests.spawn(guest(listener, answers));
        let driving = connected(&keeper).await;

        let cpu = keeper.set_cpu(generation, MilliCpu(500), LIMIT).await.unwrap();
        assert_eq!(cpu, GuestCpu { online: 1, quota: MilliCpu(500) });
        let consent = keeper.may_shrink_memory(generation, two, gib, LIMIT).await.unwrap();
        assert_eq!(consent, Consent::Fine);
        let consent = keeper.may_shrink_memory(generation, two, gib, LIMIT).await.unwrap();
        let reason = "in [31m use ".to_owned(); // nothing that turns or hides text
        assert_eq!(consent, Consent::Veto { least: gib, reason });
        let stale = keeper.may_shrink_memory(generation, two, gib, LIMIT).await.unwrap_err();
        assert_eq!(stale.to_string(), "the guest refused MayShrinkMemory: old");
        let odd = keeper.set_cpu(generation, MilliCpu(500), LIMIT).await.unwrap_err();
        assert!(odd.to_string().contains("another request"), "{odd}");
        keeper.power_down(LIMIT).await.unwrap();

        drop(driving);
        let asked = guests.join_next().await.unwrap().unwrap();
        let generation = theirs(generation);
        assert_eq!(asked[0], KeeperRequest::SetCpu { generation, cpu: MilliCpu(500) });
        assert_eq!(asked[1], KeeperRequest::MayShrinkMemory { generation, from: two, to: gib });
        let gone = keeper.set_cpu(Generation::default(), MilliCpu(500), LIMIT).await;
        assert!(matches!(gone, Err(GuestError::NoAnswer { .. })));
    }
    /// A guest whose keeper is asked again and again.
    #[derive(Clone)]
    struct Actor(Arc<std::sync::Mutex<Acts>>);

    struct Acts {
        /// Its keeper hangs up as soon as it has greeted.
        hangs_up: bool,
        /// It refuses to change its CPU.
        refuses: bool,
        quota: MilliCpu,
        connections: u32,
        ordered: u32,
    }

    impl Actor {
        fn new(hangs_up: bool) -> Self {
            let quota = MilliCpu(9000);
            let acts = Acts { hangs_up, refuses: false, quota, connections: 0, ordered: 0 };
            Self(Arc::new(std::sync::Mutex::new(acts)))
        }

        fn with<T>(&self, f: impl FnOnce(&mut Acts) -> T) -> T {
            f(&mut self.0.lock().unwrap())
        }

        async fn serve(self, mut listener: MemListener) {
            while let Some(stream) = listener.accept().await {
                let options = LinkOptions::default();
                let Session { link: _open, mut incoming, driver, .. } =
                    accept::<KeeperGuest, _>(stream, "boot", options, LIMIT).await.unwrap();
                if self.with(|acts| {
                    acts.connections += 1;
                    acts.hangs_up
                }) {
                    continue;
                }
                let answering = async {
                    while let Some(Received::Request(request, responder)) = incoming.next().await {
                        responder.respond(self.with(|acts| acts.answer(&request))).unwrap();
                    }
                };
                tokio::join!(driver.run(), answering);
            }
        }
    }

    impl Acts {
        fn answer(&mut self, request: &KeeperRequest) -> KeeperResponse {
            if let KeeperRequest::SetCpu { cpu, .. } = request {
                self.ordered += 1;
                self.quota = if self.refuses { self.quota } else { *cpu };
            }
            let state = KeeperState { cpus_online: 1, quota: self.quota, ..KeeperState::default() };
            KeeperResponse::State(state)
        }
    }

    /// Stays connected to what is behind the endpoint for so long.
    async fn stay(endpoint: Endpoint, renew: &Arc<Notify>, during: impl Future<Output = ()>) {
        let tasks = TaskTracker::new();
        let keeper = Keeper::at(endpoint);
        let layout = Layout { spec: spec(), accel: Accel::Tcg, cpus: Cpus { start: 3, places: 3 } };
        let around = Surroundings {
            state: State::new(None),
            metrics: Metrics::register(&mut Registry::default()),
            ready: Ready::new(false),
            renew_vsock: Arc::clone(renew),
        };
        let qmp = silent_monitor(&tasks).await;
        let (state, metrics) = (around.state.clone(), around.metrics.clone());
        let executor = Arc::new(Executor::new(layout, qmp, keeper.clone(), state, metrics));
        tokio::select! {
            () = stay_connected(keeper, executor, around) => unreachable!("it never ends"),
            () = during => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_hangs_up_is_not_called_again_at_once() {
        let (endpoint, listener) = Endpoint::mem();
        let actor = Actor::new(true);
        let mut guests = JoinSet::new();
        guests.spawn(actor.clone().serve(listener));
        stay(endpoint, &Arc::default(), sleep(Duration::from_secs(60))).await;
        let connections = actor.with(|acts| acts.connections);
        assert!((10..25).contains(&connections), "{connections}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_cpu_of_the_guest_is_restored_until_it_lasts() {
        let (endpoint, listener) = Endpoint::mem();
        let actor = Actor::new(false);
        let mut guests = JoinSet::new();
        guests.spawn(actor.clone().serve(listener));
        let boot = spec().cpu_boot;
        let story = async {
            sleep(Duration::from_secs(30)).await;
            assert_eq!(actor.with(|acts| (acts.quota, acts.ordered)), (boot, 1));
            actor.with(|acts| acts.quota = MilliCpu(2000));
            sleep(Duration::from_secs(5)).await;
            assert_eq!(actor.with(|acts| (acts.quota, acts.ordered)), (boot, 2));

            actor.with(|acts| (acts.quota, acts.refuses) = (MilliCpu(2000), true));
            sleep(Duration::from_secs(60)).await;
            let tries =
                actor.with(|acts| std::mem::take(&mut acts.refuses).then_some(acts.ordered));
            assert!(tries.is_some_and(|tries| (5..9).contains(&tries)), "{tries:?}");
            sleep(RESTORE_LAST).await;
            assert_eq!(actor.with(|acts| acts.quota), boot);
            assert_eq!(actor.with(|acts| acts.connections), 1);
        };
        stay(endpoint, &Arc::default(), story).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_wish_for_a_new_device_is_not_kept_for_later() {
        let (endpoint, nobody) = Endpoint::mem();
        drop(nobody);
        let renew = Arc::new(Notify::new());
        let story = async {
            timeout(PATIENCE * 2, renew.notified()).await.unwrap();
            sleep(PATIENCE * 3).await; // the next one
        };
        stay(endpoint, &renew, story).await;
        assert!(timeout(LIMIT, renew.notified()).await.is_err(), "nobody waited for it");
    }
}
