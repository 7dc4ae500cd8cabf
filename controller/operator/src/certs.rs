//! Keeps the certificates and keys of the whole system in Secrets: made before anything else, renewed in
//! time, repaired when somebody deleted or damaged them.
//!
//! | object | holds |
//! |---|---|
//! | Secret `neonvm-ca` (own namespace) | the authority |
//! | ConfigMap `neonvm-ca` (own namespace and `kube-system`) | its certificate |
//! | Secret `autoscale-scheduler-tls` (`kube-system`) | the extender's server certificate |
//! | Secret `kube-scheduler-client-tls` (`kube-system`) | kube-scheduler's client certificate |
//! | Secret `autoscale-scheduler-signing` (`kube-system`) | the extender's signing key |
//! | Secret `<pod>-tls` (namespace of the VM) | the runner's server certificate |
//!
//! The controller's own client certificate exists in this process only.
//!
//! An authority whose Secret was lost is written back by the process that holds it: a new one would shut every
//! runner out until all certificates were made anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use controller_api::names;
use host_protocol::{CLIENT_SAN, server_san};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Resource};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use scheduler_protocol::KUBE_SCHEDULER_SAN;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::pki::{self, Pair, PkiError, Role};

const CA: &str = "neonvm-ca";
const SCHEDULER_TLS: &str = "autoscale-scheduler-tls";
const SCHEDULER_SANS: [&str; 3] = ["autoscale-scheduler.kube-system.svc", "localhost", "127.0.0.1"];
const KUBE_SCHEDULER_TLS: &str = "kube-scheduler-client-tls";
const SIGNING: &str = "autoscale-scheduler-signing";
const SIGNING_KEY: &str = "key.pk8";
const SIGNING_PUBLIC: &str = "public.key";
const TLS_CERT: &str = "tls.crt";
const TLS_KEY: &str = "tls.key";
const CA_CERT: &str = "ca.crt";
/// A call to the API server that takes longer counts as failed.
const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertsError {
    #[error("read {object}")]
    Read { object: String, source: kube::Error },
    #[error("write {object}")]
    Write { object: String, source: kube::Error },
    #[error("no answer about {object} within {limit:?}")]
    Deadline { object: String, limit: Duration },
    #[error("make the signing key")]
    SigningKey,
    #[error("make a certificate")]
    Pki {
        #[from]
        source: PkiError,
    },
}

/// What the process keeps of them.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    /// The authority.
    ca: Pair,
    /// The controller's own certificate.
    pub(crate) client: Pair,
    /// The extender's public key, raw.
    pub(crate) approvals: Vec<u8>,
}

impl Keys {
    /// The authority's certificate, PEM.
    pub(crate) fn ca_cert(&self) -> &str {
        &self.ca.cert
    }

    /// A certificate of this authority.
    #[cfg(test)]
    pub(crate) fn issue_for_test(&self, role: Role, san: &str) -> Pair {
        pki::issue(&self.ca, role, &[san], SystemTime::now()).unwrap()
    }
}

/// Keeper of all certificates.
#[derive(Clone)]
pub(crate) struct Certs {
    client: Client,
    namespace: String,
    /// Those who wait are told when the authority changes.
    keys: Arc<watch::Sender<Arc<Keys>>>,
}

impl Certs {
    /// Makes what is missing, for the whole system.
    pub(crate) async fn establish(client: Client, namespace: String) -> Result<Self, CertsError> {
        let keys = establish(&client, &namespace, None).await?;
        Ok(Self { client, namespace, keys: Arc::new(watch::Sender::new(Arc::new(keys))) })
    }

    /// Renews what has become old and repairs what was damaged.
    pub(crate) async fn refresh(&self) -> Result<(), CertsError> {
        let keys = establish(&self.client, &self.namespace, Some(&self.keys())).await?;
        self.keys.send_if_modified(|known| {
            let changed = known.ca.cert != keys.ca.cert;
            *known = Arc::new(keys);
            changed
        });
        Ok(())
    }

    pub(crate) fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.borrow())
    }

    /// Tells of every new certificate of the authority: those of the runners must follow.
    pub(crate) fn authority(&self) -> watch::Receiver<Arc<Keys>> {
        self.keys.subscribe()
    }

    /// A valid certificate of a runner pod, owned by the VM.
    pub(crate) async fn ensure_runner(
        &self,
        namespace: &str,
        pod: &str,
        owner: OwnerReference,
    ) -> Result<(), CertsError> {
        let san = server_san(pod);
        let secret = Leaf {
            namespace,
            name: &runner_secret(pod),
            role: Role::Server,
            sans: &[&san],
            with_ca: true,
            owner: Some(owner),
        };
        ensure_leaf(&self.client, &self.keys().ca, secret, SystemTime::now()).await
    }
}

/// Name of the Secret of a runner pod.
pub(crate) fn runner_secret(pod: &str) -> String {
    format!("{pod}-tls")
}

async fn establish(
    client: &Client,
    namespace: &str,
    held: Option<&Keys>,
) -> Result<Keys, CertsError> {
    let now = SystemTime::now();
    let ca = ensure_ca(client, namespace, held.map(|keys| &keys.ca), now).await?;
    for namespace in [namespace, names::KUBE_SYSTEM] {
        ensure_ca_published(client, namespace, &ca.cert).await?;
    }
    let approvals = ensure_signing(client).await?;
    for (name, role, sans, with_ca) in [
        (SCHEDULER_TLS, Role::Server, &SCHEDULER_SANS[..], false),
        (KUBE_SCHEDULER_TLS, Role::Client, &[KUBE_SCHEDULER_SAN][..], true),
    ] {
        let namespace = names::KUBE_SYSTEM;
        ensure_leaf(client, &ca, Leaf { namespace, name, role, sans, with_ca, owner: None }, now)
            .await?;
    }
    let own = held.map(|keys| &keys.client);
    let good =
        own.filter(|pair| pki::leaf_is_good(pair, &ca.cert, Role::Client, &[CLIENT_SAN], now));
    let own = match good {
        Some(pair) => pair.clone(),
        None => pki::issue(&ca, Role::Client, &[CLIENT_SAN], now)?,
    };
    Ok(Keys { ca, client: own, approvals })
}

/// The authority as it is stored, else the one that is held, else a new one.
async fn ensure_ca(
    client: &Client,
    namespace: &str,
    held: Option<&Pair>,
    now: SystemTime,
) -> Result<Pair, CertsError> {
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    let old = read(&api, namespace, CA).await?;
    let stored = old.as_ref().and_then(pair_of);
    if let Some(pair) = stored.as_ref().filter(|pair| pki::ca_is_fresh(pair, now)) {
        return Ok(pair.clone());
    }
    let ca = match stored.as_ref().filter(|pair| pki::ca_key_matches(pair)).or(held) {
        Some(pair) if pki::ca_is_fresh(pair, now) => pair.clone(),
        Some(pair) => pki::renew_ca(pair, now)?,
        None => pki::new_ca(now)?,
    };
    let secret = tls_secret(namespace, CA, &ca, None, None);
    write(&api, namespace, CA, secret, old).await?;
    tracing::info!(namespace, name = CA, "certificate authority written");
    Ok(ca)
}

async fn ensure_ca_published(client: &Client, namespace: &str, ca: &str) -> Result<(), CertsError> {
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let old = read(&api, namespace, CA).await?;
    let published =
        old.as_ref().and_then(|map| map.data.as_ref()).and_then(|data| data.get(CA_CERT));
    if published.is_some_and(|published| published == ca) {
        return Ok(());
    }
    let map = ConfigMap {
        metadata: meta(namespace, CA, None),
        data: Some(BTreeMap::from([(CA_CERT.to_owned(), ca.to_owned())])),
        ..ConfigMap::default()
    };
    write(&api, namespace, CA, map, old).await
}

async fn ensure_signing(client: &Client) -> Result<Vec<u8>, CertsError> {
    let namespace = names::KUBE_SYSTEM;
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    let old = read(&api, namespace, SIGNING).await?;
    let data = old.as_ref().and_then(|secret| secret.data.as_ref());
    let stored = data.and_then(|data| data.get(SIGNING_KEY)).map(|key| key.0.clone());
    let usable = stored.and_then(|pk8| signing_public(&pk8).map(|public| (pk8, public)));
    let (pk8, public) = match usable {
        Some((pk8, public)) => {
            if data
                .and_then(|data| data.get(SIGNING_PUBLIC))
                .is_some_and(|stored| stored.0 == public)
            {
                return Ok(public);
            }
            (pk8, public)
        }
        None => new_signing_key()?,
    };
    let secret = Secret {
        metadata: meta(namespace, SIGNING, None),
        data: Some(BTreeMap::from([
            (SIGNING_KEY.to_owned(), ByteString(pk8)),
            (SIGNING_PUBLIC.to_owned(), ByteString(public.clone())),
        ])),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    write(&api, namespace, SIGNING, secret, old).await?;
    tracing::info!(namespace, name = SIGNING, "signing key written");
    Ok(public)
}

fn new_signing_key() -> Result<(Vec<u8>, Vec<u8>), CertsError> {
    let document =
        Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| CertsError::SigningKey)?;
    let pk8 = document.as_ref().to_vec();
    let public = signing_public(&pk8).ok_or(CertsError::SigningKey)?;
    Ok((pk8, public))
}

fn signing_public(pk8: &[u8]) -> Option<Vec<u8>> {
    let key = Ed25519KeyPair::from_pkcs8(pk8).ok()?;
    Some(key.public_key().as_ref().to_vec())
}

struct Leaf<'a> {
    namespace: &'a str,
    name: &'a str,
    role: Role,
    sans: &'a [&'a str],
    with_ca: bool,
    owner: Option<OwnerReference>,
}

async fn ensure_leaf(
    client: &Client,
    ca: &Pair,
    leaf: Leaf<'_>,
    now: SystemTime,
) -> Result<(), CertsError> {
    let Leaf { namespace, name, role, sans, with_ca, owner } = leaf;
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    let old = read(&api, namespace, name).await?;
    let ca_cert = with_ca.then_some(ca.cert.as_str());
    if old.as_ref().is_some_and(|secret| leaf_secret_is_good(secret, ca, role, sans, ca_cert, now))
    {
        return Ok(());
    }
    let pair = pki::issue(ca, role, sans, now)?;
    let secret = tls_secret(namespace, name, &pair, ca_cert, owner);
    write(&api, namespace, name, secret, old).await?;
    tracing::info!(namespace, name, "certificate written");
    Ok(())
}

fn leaf_secret_is_good(
    secret: &Secret,
    ca: &Pair,
    role: Role,
    sans: &[&str],
    ca_cert: Option<&str>,
    now: SystemTime,
) -> bool {
    let stored_ca =
        secret.data.as_ref().and_then(|data| data.get(CA_CERT)).map(|ca| ca.0.as_slice());
    stored_ca == ca_cert.map(str::as_bytes)
        && pair_of(secret).is_some_and(|pair| pki::leaf_is_good(&pair, &ca.cert, role, sans, now))
}

fn pair_of(secret: &Secret) -> Option<Pair> {
    let data = secret.data.as_ref()?;
    let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
    Some(Pair { cert: text(TLS_CERT)?, key: text(TLS_KEY)? })
}

fn tls_secret(
    namespace: &str,
    name: &str,
    pair: &Pair,
    ca: Option<&str>,
    owner: Option<OwnerReference>,
) -> Secret {
    let mut data = BTreeMap::from([
        (TLS_CERT.to_owned(), ByteString(pair.cert.clone().into_bytes())),
        (TLS_KEY.to_owned(), ByteString(pair.key.clone().into_bytes())),
    ]);
    if let Some(ca) = ca {
        data.insert(CA_CERT.to_owned(), ByteString(ca.as_bytes().to_vec()));
    }
    Secret {
        metadata: meta(namespace, name, owner),
        data: Some(data),
        type_: Some("kubernetes.io/tls".to_owned()),
        ..Secret::default()
    }
}

fn meta(namespace: &str, name: &str, owner: Option<OwnerReference>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some(BTreeMap::from([(
            "app.kubernetes.io/managed-by".to_owned(),
            "neonvm-controller".to_owned(),
        )])),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

async fn read<K>(api: &Api<K>, namespace: &str, name: &str) -> Result<Option<K>, CertsError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let object = || format!("{} {namespace}/{name}", K::kind(&()));
    let read = in_time(&object, api.get_opt(name)).await?;
    read.map_err(|source| CertsError::Read { object: object(), source })
}

/// Creates the object, or replaces exactly the one that was read: a change in between is an error, and the
/// caller looks again.
async fn write<K>(
    api: &Api<K>,
    namespace: &str,
    name: &str,
    mut new: K,
    old: Option<K>,
) -> Result<(), CertsError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let object = || format!("{} {namespace}/{name}", K::kind(&()));
    let params = PostParams::default();
    let written = match old {
        None => in_time(&object, api.create(&params, &new)).await?,
        Some(old) => {
            new.meta_mut().resource_version = old.meta().resource_version.clone();
            in_time(&object, api.replace(name, &params, &new)).await?
        }
    };
    written.map(|_| ()).map_err(|source| CertsError::Write { object: object(), source })
}

async fn in_time<T>(
    object: &impl Fn() -> String,
    call: impl Future<Output = T>,
) -> Result<T, CertsError> {
    let limit = CALL_DEADLINE;
    let answer = tokio::time::timeout(limit, call).await;
    answer.map_err(|_| CertsError::Deadline { object: object(), limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_secret_is_left_alone_and_any_damage_is_noticed() {
        let now = SystemTime::now();
        let ca = pki::new_ca(now).unwrap();
        let sans = ["vm-abc.runner.neonvm.internal"];
        let pair = pki::issue(&ca, Role::Server, &sans, now).unwrap();
        let good = tls_secret("default", "vm-abc-tls", &pair, Some(&ca.cert), None);
        let check = |secret: &Secret| {
            leaf_secret_is_good(secret, &ca, Role::Server, &sans, Some(&ca.cert), now)
        };
        assert!(check(&good));
        for key in [TLS_CERT, TLS_KEY, CA_CERT] {
            let mut damaged = good.clone();
            damaged.data.as_mut().unwrap().remove(key);
            assert!(!check(&damaged), "{key} is missing");
            damaged.data.as_mut().unwrap().insert(key.to_owned(), ByteString(b"junk".to_vec()));
            assert!(!check(&damaged), "{key} is junk");
        }
        assert!(!check(&Secret::default()));
    }

    #[test]
    fn the_signing_key_yields_its_public_half() {
        let (pk8, public) = new_signing_key().unwrap();
        assert_eq!(public.len(), 32);
        assert_eq!(signing_public(&pk8), Some(public));
        assert_eq!(signing_public(b"junk"), None);
    }

    #[tokio::test]
    async fn everything_is_made_once_and_repaired_when_damaged() {
        let server = crate::fake::ApiServer::default();
        let certs = Certs::establish(server.client(), "neonvm-system".into()).await.unwrap();
        let objects = server.objects();
        let paths: Vec<&str> = objects.keys().map(String::as_str).collect();
        assert_eq!(
            paths,
            [
                "/api/v1/namespaces/kube-system/configmaps/neonvm-ca",
                "/api/v1/namespaces/kube-system/secrets/autoscale-scheduler-signing",
                "/api/v1/namespaces/kube-system/secrets/autoscale-scheduler-tls",
                "/api/v1/namespaces/kube-system/secrets/kube-scheduler-client-tls",
                "/api/v1/namespaces/neonvm-system/configmaps/neonvm-ca",
                "/api/v1/namespaces/neonvm-system/secrets/neonvm-ca",
            ]
        );
        let before = certs.keys();
        certs.refresh().await.unwrap();
        assert_eq!(server.objects(), objects, "nothing is written without need");
        let again = Certs::establish(server.client(), "neonvm-system".into()).await.unwrap();
        assert_eq!(again.keys().ca, before.ca, "a new leader has the same authority");
        assert_eq!(again.keys().approvals, before.approvals);
        assert_ne!(again.keys().client, before.client, "its own certificate is its own");
        assert_eq!(server.objects(), objects);

        let tls = "/api/v1/namespaces/kube-system/secrets/autoscale-scheduler-tls";
        let ca = "/api/v1/namespaces/kube-system/configmaps/neonvm-ca";
        server.remove(tls);
        server.remove(ca);
        certs.refresh().await.unwrap();
        assert!(server.objects().contains_key(tls));
        assert_eq!(server.objects()[ca]["data"], objects[ca]["data"]);
    }

    #[tokio::test]
    async fn a_lost_authority_is_written_back_and_every_certificate_follows_a_new_one() {
        let server = crate::fake::ApiServer::default();
        let certs = Certs::establish(server.client(), "neonvm-system".into()).await.unwrap();
        let (before, objects, mut authority) = (certs.keys(), server.objects(), certs.authority());
        let tls = "/api/v1/namespaces/kube-system/secrets/autoscale-scheduler-tls";
        let published = "/api/v1/namespaces/kube-system/configmaps/neonvm-ca";
        let secret = "/api/v1/namespaces/neonvm-system/secrets/neonvm-ca";

        server.remove(secret);
        certs.refresh().await.unwrap();
        assert_eq!(certs.keys().ca, before.ca);
        assert_eq!(server.objects()[secret]["data"], objects[secret]["data"]);
        let mut damaged = objects[secret].clone();
        damaged["data"]["tls.key"] = serde_json::json!("anVuaw==");
        server.put(secret, damaged);
        certs.refresh().await.unwrap();
        assert_eq!(server.objects()[secret]["data"], objects[secret]["data"]);
        assert_eq!(server.objects()[tls], objects[tls]);
        assert!(!authority.has_changed().unwrap());

        // Somebody has put another one in its place.
        let other = crate::fake::ApiServer::default();
        Certs::establish(other.client(), "neonvm-system".into()).await.unwrap();
        server.put(secret, other.objects()[secret].clone());
        certs.refresh().await.unwrap();
        assert_ne!(certs.keys().ca, before.ca);
        assert_ne!(certs.keys().client, before.client);
        assert_ne!(server.objects()[tls]["data"], objects[tls]["data"]);
        assert_ne!(server.objects()[published]["data"], objects[published]["data"]);
        assert!(authority.has_changed().unwrap());
        assert_eq!(authority.borrow_and_update().ca, certs.keys().ca);
    }
}
