//! What the API server shows: nodes, pods, VMs and migrations, as events for the ledger.

use std::collections::BTreeSet;
use std::fmt::Debug;

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
    let stream = watcher(Api::<Node>::all(client), watcher::Config::default());
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
    let stream = watcher(Api::<Pod>::all(client), watcher::Config::default());
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
    let stream = watcher(Api::<Vm>::all(client), watcher::Config::default());
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
    follow(watcher(all, watcher::Config::default()).default_backoff(), kind, core).await
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
