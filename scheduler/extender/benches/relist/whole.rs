//! The control: a process that keeps all objects whole, as a cache of a client does.

use std::hash::Hash;

use anyhow::{Context as _, Result};
use controller_api::VirtualMachine;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Lists everything, keeps it, follows it; says so at this address once it has it.
pub(crate) async fn hold(address: &str) -> Result<()> {
    let client = Client::try_default().await.context("reach the API server")?;
    let nodes = follow(Api::<Node>::all(client.clone()));
    let pods = follow(Api::<Pod>::all(client.clone()));
    let vms = follow(Api::<VirtualMachine>::all(client));
    nodes.wait_until_ready().await.context("list nodes")?;
    pods.wait_until_ready().await.context("list pods")?;
    vms.wait_until_ready().await.context("list VMs")?;
    let listener = TcpListener::bind(address).await.context("listen")?;
    loop {
        let (mut stream, _) = listener.accept().await.context("accept")?;
        let mut request = [0; 512];
        let _read = stream.read(&mut request).await;
        let _sent = stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await;
    }
}

fn follow<K>(api: Api<K>) -> Store<K>
where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
    K::DynamicType: Hash + Eq,
{
    let (store, writer) = reflector::store();
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    let stream = reflector::reflector(writer, stream);
    #[expect(clippy::disallowed_methods, reason = "it ends with the process")]
    let _following = tokio::spawn(stream.for_each(|_| std::future::ready(())));
    store
}
