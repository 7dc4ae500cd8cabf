//! The connection to the guest's keeper: made again whenever it breaks, for as long as the VM runs.
//!
//! Whenever a keeper connects, the CPU of the newest order is applied: it may be a new one, after a restart
//! of the guest or of the keeper, which released the quota. A heartbeat tells whether it still answers.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use guest_protocol::{
    KeeperHost, KeeperRequest, KeeperResponse, Link, LinkError, LinkOptions, Session, Text, dial,
};
use guest_units::{Bytes, MilliCpu};
use host_protocol::{Endpoint, Generation, GuestLink, HybridSocket, Stream};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use crate::api::Ready;
use crate::error::Chain;
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
/// Between two tries.
const RETRY: Duration = Duration::from_millis(50);
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
                GuestError::Refused { request: name, reason: said(&error.message) }
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
            KeeperResponse::State(state) => {
                Ok(GuestCpu { online: state.cpus_online, quota: state.quota })
            }
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
                Ok(Consent::Veto { least, reason: said(&reason) })
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
    loop {
        let tried = Instant::now();
        match keeper.connect(limit).await {
            Ok(session) => {
                around.metrics.keeper_connected();
                let why = attend(&keeper, session, &executor, &around).await;
                keeper.link.send_replace(None);
                around.state.change(|state| state.guest = GuestLink::Waiting);
                tracing::info!(why, "the keeper is gone");
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
                    around.renew_vsock.notify_one();
                    (limit, patience, alone_since) = (CONNECT_LIMIT, patience * 2, Instant::now());
                }
            }
        }
        sleep(RETRY).await;
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
    let restoring = async {
        let result = executor.restore_cpu().await;
        tracing::debug!(result = result.label(), "the guest has its CPU");
        pending::<String>().await
    };
    tokio::select! {
        closed = driver.run() => Chain(&closed).to_string(),
        why = heartbeats(&link, &around.ready) => why,
        never = restoring => never,
    }
}

async fn heartbeats(link: &Link<KeeperHost>, ready: &Ready) -> String {
    loop {
        match link.request(KeeperRequest::State {}, HEARTBEAT_LIMIT).await {
            Ok(_) => ready.with(Readiness::keeper_heard),
            Err(err) => return Chain(&err).to_string(),
        }
        sleep(HEARTBEAT).await;
    }
}

fn theirs(Generation { epoch, counter }: Generation) -> guest_protocol::Generation {
    guest_protocol::Generation { epoch, counter }
}

fn unexpected(request: &'static str, _response: &KeeperResponse) -> GuestError {
    GuestError::Refused { request, reason: "its answer belongs to another request".to_owned() }
}

/// What a guest says ends up in conditions and logs: the protocol has cut it and taken control characters out.
fn said(text: &Text) -> String {
    text.as_str().to_owned()
}

#[cfg(test)]
mod tests {
    use guest_protocol::{
        ErrorBody, ErrorCode, KeeperGuest, KeeperState, Received, RoleName, accept,
    };
    use host_protocol::MemListener;
    use tokio::task::JoinSet;

    use super::*;

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
            Ok(KeeperResponse::Veto { least: gib, reason: Text::new("in\x1b[31m use\n") }),
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
        let reason = "in [31m use ".to_owned();
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
}
