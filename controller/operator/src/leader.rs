//! Leadership through a Lease. Its count of transitions is the epoch of all orders, so that the runners refuse
//! the orders of a deposed leader.
//!
//! Every process is a new candidate, a restarted one too: each term has an epoch of its own. A leader that
//! could not renew by its deadline (on its own monotonic clock) stops acting; another one takes over only after
//! the longer lease duration, seen on *its* own clock. A Lease that vanished counts as one that is silent: its leader
//! may still act, and makes it again. Only a process that has never seen one makes one at once.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio_util::sync::CancellationToken;

use crate::config::Leadership;
use crate::term::Term;

/// The name that the reference uses, too: so the two never act at the same time.
pub(crate) const LEASE_NAME: &str = "a3b22509.neon.tech";

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaderError {
    #[error("the leadership was not renewed within {deadline:?}")]
    Lost { deadline: Duration },
    #[error("another process became the leader: {holder}")]
    Deposed { holder: String },
    #[error("runners obey epoch {newest}, newer than {epoch}; the next term will be newer still")]
    Outrun { epoch: u64, newest: u64 },
}

/// A candidate, later the leader.
pub(crate) struct Leader {
    api: Api<Lease>,
    namespace: String,
    identity: String,
    settings: Leadership,
}

/// What a candidate may do about the Lease it sees.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    /// There is none: make it.
    Create,
    /// Take it over.
    Take,
    /// Somebody else holds it.
    Wait,
}

/// The Lease as it was when it last changed, and when that was seen.
struct Seen {
    version: Option<String>,
    since: Instant,
    /// Whether there ever was one.
    ever: bool,
}

impl Leader {
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        identity: String,
        settings: Leadership,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            identity,
            settings,
        }
    }

    /// Waits for the leadership; `None` if `shutdown` comes first.
    pub(crate) async fn acquire(&self, shutdown: &CancellationToken) -> Option<Term> {
        let mut seen = Seen { version: None, since: Instant::now(), ever: false };
        loop {
            let asked = Instant::now();
            let attempt =
                tokio::time::timeout(self.settings.renew_deadline, self.attempt(&mut seen));
            match attempt.await {
                Ok(Ok(Some(epoch))) => {
                    return Some(Term::new(epoch, asked, self.settings.renew_deadline));
                }
                Ok(Ok(None)) => {}
                Err(_) => tracing::warn!("leadership not acquired: no answer in time"),
                Ok(Err(err)) => tracing::warn!(error = %err, "leadership not acquired"),
            }
            tokio::select! {
                () = tokio::time::sleep(self.settings.retry) => {}
                () = shutdown.cancelled() => return None,
            }
        }
    }

    async fn attempt(&self, seen: &mut Seen) -> Result<Option<u64>, kube::Error> {
        let lease = self.api.get_opt(LEASE_NAME).await?;
        let version = lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
        if version != seen.version {
            *seen = Seen { version, since: Instant::now(), ever: true };
        }
        let spec = lease.as_ref().and_then(|lease| lease.spec.as_ref());
        let epoch = next_epoch(spec);
        let params = PostParams::default();
        let written = match claim(lease.as_ref(), seen.ever, seen.since.elapsed(), &self.settings) {
            Claim::Wait => return Ok(None),
            Claim::Create => self.api.create(&params, &self.lease(epoch, None)).await,
            Claim::Take => {
                let version = seen.version.clone();
                self.api.replace(LEASE_NAME, &params, &self.lease(epoch, version)).await
            }
        };
        match written {
            Ok(_) => Ok(Some(epoch)),
            // Another candidate was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Renews until `shutdown`, then gives the leadership back. An error means that it is lost: nothing may be
    /// done any more.
    pub(crate) async fn keep(
        &self,
        term: &Term,
        shutdown: &CancellationToken,
    ) -> Result<(), LeaderError> {
        let Term { epoch, .. } = *term;
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.settings.retry) => {}
                () = shutdown.cancelled() => {
                    self.leave(epoch, true).await;
                    return Ok(());
                }
            }
            if let Some(newest) = term.outrun_by() {
                term.end();
                self.leave(newest, false).await;
                return Err(LeaderError::Outrun { epoch, newest });
            }
            let asked = Instant::now();
            match tokio::time::timeout(term.left(), self.renew(epoch)).await {
                Ok(Ok(None)) => term.renewed(asked, self.settings.renew_deadline),
                Ok(Ok(Some(holder))) => return Err(LeaderError::Deposed { holder }),
                Ok(Err(err)) => tracing::warn!(error = %err, "leadership not renewed"),
                Err(_) => {}
            }
            if !term.holds() {
                return Err(LeaderError::Lost { deadline: self.settings.renew_deadline });
            }
        }
    }

    /// `Some(holder)`: somebody else is the leader now.
    async fn renew(&self, epoch: u64) -> Result<Option<String>, kube::Error> {
        let lease = self.api.get_opt(LEASE_NAME).await?;
        let holder = lease.as_ref().and_then(|lease| lease.spec.as_ref()?.holder_identity.clone());
        let params = PostParams::default();
        let Some(lease) = lease else {
            self.api.create(&params, &self.lease(epoch, None)).await?;
            return Ok(None);
        };
        if holder.as_deref() != Some(&self.identity) {
            return Ok(Some(holder.unwrap_or_default()));
        }
        let renewed = self.lease(epoch, lease.metadata.resource_version);
        self.api.replace(LEASE_NAME, &params, &renewed).await?;
        Ok(None)
    }

    /// The last word of a leader. Unless nothing that it began is under way any more, its time has to run out.
    async fn leave(&self, epoch: u64, nothing_is_under_way: bool) {
        let leave = async {
            let Some(lease) = self.api.get_opt(LEASE_NAME).await? else { return Ok(()) };
            if lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref())
                != Some(&self.identity)
            {
                return Ok(());
            }
            let mut last = self.lease(epoch, lease.metadata.resource_version);
            if let Some(spec) = last.spec.as_mut().filter(|_| nothing_is_under_way) {
                spec.holder_identity = None;
            }
            self.api.replace(LEASE_NAME, &PostParams::default(), &last).await.map(|_| ())
        };
        match tokio::time::timeout(Duration::from_secs(2), leave).await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => {
                let err: kube::Error = err;
                tracing::warn!(error = %err, "Lease not left in order");
            }
            Err(_) => tracing::warn!("Lease not left in order in time"),
        }
    }

    fn lease(&self, epoch: u64, version: Option<String>) -> Lease {
        let now = MicroTime(Timestamp::now());
        Lease {
            metadata: ObjectMeta {
                name: Some(LEASE_NAME.to_owned()),
                namespace: Some(self.namespace.clone()),
                resource_version: version,
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(self.settings.lease.as_secs().max(1)).ok(),
                lease_transitions: i32::try_from(epoch).ok(),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }
}

fn next_epoch(spec: Option<&LeaseSpec>) -> u64 {
    let last = spec.and_then(|spec| spec.lease_transitions).unwrap_or(0);
    u64::try_from(last).unwrap_or(0) + 1
}

/// What may be done about a Lease that has not changed for `unchanged`; `ever`: there was one before.
fn claim(lease: Option<&Lease>, ever: bool, unchanged: Duration, settings: &Leadership) -> Claim {
    let Some(lease) = lease else {
        let may_act = ever && settings.wait && unchanged <= settings.lease;
        return if may_act { Claim::Wait } else { Claim::Create };
    };
    let spec = lease.spec.as_ref();
    let held = spec
        .and_then(|spec| spec.holder_identity.as_ref())
        .is_some_and(|holder| !holder.is_empty());
    let seconds =
        spec.and_then(|spec| spec.lease_duration_seconds).and_then(|it| u64::try_from(it).ok());
    let lease_time = seconds.map_or(settings.lease, Duration::from_secs);
    if !held || !settings.wait || unchanged > lease_time { Claim::Take } else { Claim::Wait }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(wait: bool) -> Leadership {
        Leadership {
            wait,
            lease: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }

    fn lease(holder: Option<&str>) -> Lease {
        Lease {
            spec: Some(LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                lease_duration_seconds: Some(20),
                lease_transitions: Some(7),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_it_is_free_or_was_silent_for_its_own_duration() {
        let claim = |lease: Option<&Lease>, seconds, wait| {
            super::claim(lease, false, Duration::from_secs(seconds), &settings(wait))
        };
        let vanished =
            |seconds| super::claim(None, true, Duration::from_secs(seconds), &settings(true));
        assert_eq!((vanished(15), vanished(16)), (Claim::Wait, Claim::Create));
        let (held, free) = (lease(Some("other")), lease(None));
        assert_eq!(claim(None, 0, true), Claim::Create);
        assert_eq!(claim(Some(&free), 0, true), Claim::Take);
        assert_eq!(claim(Some(&lease(Some(""))), 0, true), Claim::Take);
        assert_eq!(claim(Some(&held), 20, true), Claim::Wait);
        assert_eq!(claim(Some(&held), 21, true), Claim::Take);
        assert_eq!(claim(Some(&held), 0, false), Claim::Take);
    }

    #[test]
    fn every_term_has_an_epoch_of_its_own() {
        assert_eq!(next_epoch(None), 1);
        assert_eq!(next_epoch(lease(Some("other")).spec.as_ref()), 8);
        assert_eq!(
            next_epoch(Some(&LeaseSpec { lease_transitions: Some(-5), ..LeaseSpec::default() })),
            1
        );
    }

    #[tokio::test]
    async fn a_deposed_leader_learns_it_and_a_stopped_one_gives_back() {
        let server = crate::fake::ApiServer::default();
        let fast = |wait| Leadership { wait, retry: Duration::from_millis(5), ..settings(wait) };
        let candidate =
            |name: &str, wait| Leader::new(server.client(), "ns", name.into(), fast(wait));
        let (one, two) = (candidate("one", true), candidate("two", false));
        let stop = CancellationToken::new();
        let first = one.acquire(&stop).await.unwrap();
        let second = two.acquire(&stop).await.unwrap();
        assert_eq!((first.epoch, second.epoch), (1, 2), "without waiting it is taken");
        let lost = one.keep(&first, &stop).await;
        assert!(matches!(lost, Err(LeaderError::Deposed { holder }) if holder == "two"));
        stop.cancel();
        two.keep(&second, &stop).await.unwrap();
        let waiting = candidate("three", true);
        let third = waiting.acquire(&CancellationToken::new()).await.unwrap();
        assert_eq!(third.epoch, 3, "it was given back");
        assert!(candidate("four", true).acquire(&stop).await.is_none(), "stopped while waiting");
        third.saw(40);
        let outrun = waiting.keep(&third, &CancellationToken::new()).await;
        assert!(matches!(outrun, Err(LeaderError::Outrun { epoch: 3, newest: 40 })));
        assert!(!third.holds());
        let free = server.objects().into_values().any(|lease| {
            lease["spec"]["leaseTransitions"] == 40 && lease["spec"].get("holderIdentity").is_none()
        });
        assert!(!free, "what the third one began may still be under way");
        let fourth = candidate("four", false).acquire(&CancellationToken::new()).await.unwrap();
        assert_eq!(fourth.epoch, 41, "newer than what the runners have seen");
    }
}
