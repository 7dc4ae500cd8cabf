//! What the API server shows: nodes, pods, VMs and migrations, as events for the ledger.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use controller_api::VirtualMachineMigration;
use futures::{Stream, StreamExt as _, pin_mut};
use guest_units::Chain;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, ResourceExt as _};
use scheduler_ledger::Event;

use crate::convert;
use crate::core::{Core, Ended};
use crate::moves;
use crate::objects::{Node, Pod, Vm};
use crate::sign::Signer;

/// A watch is begun anew, from where it was, so often: what its connection lost without a sign is noticed then.
const RENEW_S: u32 = 45;
/// The silence after which a connection to the API server counts as dead, which bounds a list too. A watch is renewed earlier.
const SILENCE: Duration = Duration::from_secs(60);

/// Clients of the API server: the watches' own, which repeats a page of a list that the server was too busy for, and that of all
/// others. What these send is sent once: the refusal of a repetition would be taken for that of what had been done.
pub(crate) async fn connect() -> anyhow::Result<(Client, Client)> {
    let config = kube::Config::infer().await?;
    Ok((client(config.clone(), true)?, client(config, false)?))
}

fn client(mut config: kube::Config, repeats: bool) -> anyhow::Result<Client> {
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    config.default_retry = repeats;
    Ok(Client::try_from(config)?)
}

fn renewed() -> watcher::Config {
    watcher::Config::default().timeout(RENEW_S)
}

/// How objects of one kind become events.
struct Kind<K, S> {
    name: &'static str,
    /// What tells objects apart.
    key: fn(&K) -> Option<String>,
    seen: S,
    gone: fn(String) -> Event,
    listed: fn(BTreeSet<String>) -> Event,
}

pub(crate) async fn nodes(client: Client, core: Core) -> Result<(), Ended> {
    let kind = Kind {
        name: "nodes",
        key: |node: &Node| node.metadata.name.clone(),
        seen: |node: &Node| convert::node(node).map(Event::Node),
        gone: Event::NodeGone,
        listed: Event::NodesListed,
    };
    let stream = watcher(Api::<Node>::all(client), renewed());
    follow(stream.default_backoff(), kind, core).await
}

pub(crate) async fn pods(client: Client, core: Core) -> Result<(), Ended> {
    let kind = Kind {
        name: "pods",
        key: |pod: &Pod| pod.metadata.uid.clone(),
        seen: |pod: &Pod| convert::pod(pod).map(Event::Pod),
        gone: Event::PodGone,
        listed: Event::PodsListed,
    };
    let stream = watcher(Api::<Pod>::all(client), renewed());
    follow(stream.default_backoff(), kind, core).await
}

pub(crate) async fn vms(
    client: Client,
    core: Core,
    signer: Signer,
    scheduler_name: String,
) -> Result<(), Ended> {
    let kind = Kind {
        name: "virtualmachines",
        key: |vm: &Vm| vm.metadata.uid.clone(),
        seen: |vm: &Vm| match &vm.read {
            Ok(vm) => convert::vm(vm, &scheduler_name, &signer).map(Event::Vm),
            Err(error) => {
                tracing::error!(
                    vm = vm.name_any(),
                    namespace = vm.namespace(),
                    error,
                    "VM not readable"
                );
                None
            }
        },
        gone: Event::VmGone,
        listed: Event::VmsListed,
    };
    let stream = watcher(Api::<Vm>::all(client), renewed());
    follow(stream.default_backoff(), kind, core).await
}

/// Migrations of VMs, which matter only where VMs are moved.
pub(crate) async fn migrations(client: Client, core: Core) -> Result<(), Ended> {
    let kind = Kind {
        name: "virtualmachinemigrations",
        key: |migration: &VirtualMachineMigration| migration.metadata.uid.clone(),
        seen: |migration: &VirtualMachineMigration| moves::facts(migration).map(Event::Migration),
        gone: Event::MigrationGone,
        listed: Event::MigrationsListed,
    };
    let all = Api::<VirtualMachineMigration>::all(client);
    follow(watcher(all, renewed()).default_backoff(), kind, core).await
}

async fn follow<K: Debug>(
    stream: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>>,
    kind: Kind<K, impl Fn(&K) -> Option<Event>>,
    core: Core,
) -> Result<(), Ended> {
    let mut listing = BTreeSet::new();
    pin_mut!(stream);
    while let Some(item) = stream.next().await {
        match item {
            Ok(watcher::Event::Init) => listing.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                listing.extend((kind.key)(&object));
                tell(&core, (kind.seen)(&object)).await?;
            }
            Ok(watcher::Event::InitDone) => {
                tracing::info!(kind = kind.name, count = listing.len(), "listed");
                core.tell((kind.listed)(std::mem::take(&mut listing))).await?;
            }
            Ok(watcher::Event::Apply(object)) => tell(&core, (kind.seen)(&object)).await?,
            Ok(watcher::Event::Delete(object)) => {
                tell(&core, (kind.key)(&object).map(kind.gone)).await?;
            }
            Err(err) => {
                tracing::warn!(kind = kind.name, error = %Chain(&err), "watch interrupted");
            }
        }
    }
    Ok(())
}

async fn tell(core: &Core, event: Option<Event>) -> Result<(), Ended> {
    match event {
        Some(event) => core.tell(event).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::body::Bytes;
    use http::{Request, Response};
    use http_body_util::combinators::BoxBody;
    use http_body_util::{BodyExt, Full, StreamBody};
    use scheduler_ledger::Settings;
    use serde_json::json;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;
    use crate::core;

    #[tokio::test]
    async fn what_the_api_server_does_not_take_is_not_sent_again() {
        let asked = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&asked);
        let busy = axum::Router::new().fallback(move || {
            seen.fetch_add(1, Ordering::Relaxed);
            std::future::ready(http::StatusCode::SERVICE_UNAVAILABLE)
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let pods =
            Api::<Pod>::namespaced(client(kube::Config::new(url), false).unwrap(), "default");
        let served = async move { axum::serve(listener, busy).await };
        tokio::select! {
            _ = served => panic!("the server has ended"),
            answer = pods.get("p") => assert!(answer.is_err()),
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_whose_connection_is_dead_is_begun_anew_within_a_minute() {
        let watches = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&watches);
        let silent = tower::service_fn(move |request: Request<kube::client::Body>| {
            let list = json!({"kind": "NodeList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": []});
            let body: BoxBody<Bytes, Infallible> =
                if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                    seen.fetch_add(1, Ordering::Relaxed);
                    BodyExt::boxed(StreamBody::new(futures::stream::pending()))
                } else {
                    Full::from(list.to_string()).boxed()
                };
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        });
        let (core, _inbox) = core::channel(Settings::default());
        let watching = nodes(Client::new(silent, "default"), core);
        timeout(Duration::from_secs(60), watching).await.unwrap_err();
        assert_eq!(watches.load(Ordering::Relaxed), 2);
    }
}
