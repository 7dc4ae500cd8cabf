//! Wiring: endpoints, leadership, certificates, the two watches, one task per VM.
//!
//! A stop leaves everything as it is: pods run on, orders that were sent are carried out by their runners, the
//! status says what was last known, and the next leader goes on from there. The leadership is given back only
//! after the last task has ended, so that two processes never act at the same time. A leader that lost its
//! leadership does not drain: it ends at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use controller_api::{VirtualMachine, names};
use futures::StreamExt as _;
use guest_units::Chain;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use prometheus_client::registry::Registry;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::certs::Certs;
use crate::config::Config;
use crate::execute::Context;
use crate::index::{Fresh, Index};
use crate::leader::Leader;
use crate::metrics::Metrics;
use crate::term::Term;
use crate::{http, vm};

/// How often it is checked that the system's certificates are there and good for long enough.
const CERTIFICATES: Duration = Duration::from_secs(60);
/// Pause before the first certificates are tried for again.
const RETRY: Duration = Duration::from_secs(2);
/// A watch is begun anew, from where it was, so often: what its connection lost without a sign is noticed then.
const RENEW_S: u32 = 45;
/// The silence after which a connection to the API server counts as dead, which bounds a list too. A watch is renewed earlier.
const SILENCE: Duration = Duration::from_secs(60);

/// Runs until `shutdown`, or until something that everything depends on fails.
pub(crate) async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let endpoints = CancellationToken::new();
    let ready = Arc::new(AtomicBool::new(false));
    let serve_metrics = http::serve_metrics(config.metrics, Arc::new(registry), endpoints.clone());
    let serve_health = http::serve_health(config.health, Arc::clone(&ready), endpoints.clone());
    let work = lead(config, metrics, ready, shutdown.clone());
    let result = tokio::select! {
        ended = serve_metrics => Err(ended.err().map_or_else(
            || anyhow::anyhow!("the metrics endpoint ended"),
            |err| anyhow::Error::new(err).context("serve metrics"),
        )),
        ended = serve_health => Err(ended.err().map_or_else(
            || anyhow::anyhow!("the health endpoint ended"),
            |err| anyhow::Error::new(err).context("serve health"),
        )),
        result = work => result,
    };
    endpoints.cancel();
    shutdown.cancel();
    result
}

/// Waits for the leadership, acts, and gives it back.
async fn lead(
    config: Config,
    metrics: Metrics,
    ready: Arc<AtomicBool>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let client = connect().await.context("make the API server's client")?;
    let identity = identity(&config.identity)?;
    let leader =
        Leader::new(client.clone(), &config.namespace, identity.clone(), config.leadership.clone());
    ready.store(true, Ordering::Relaxed);
    tracing::info!(identity, "waiting for the leadership");
    let Some(term) = leader.acquire(&shutdown).await else { return Ok(()) };
    tracing::info!(identity, epoch = term.epoch, "leading");
    let resigned = CancellationToken::new();
    let act = async {
        let drained = act(client, config, metrics, term.clone(), shutdown.clone()).await?;
        // With a task that has not ended, the leadership is not given back: its time has to run out.
        anyhow::ensure!(drained, "stopped without waiting further");
        resigned.cancel();
        Ok(())
    };
    let keep = async { leader.keep(&term, &resigned).await.context("keep the leadership") };
    // An error of the one drops the other: a deposed leader does nothing more.
    tokio::try_join!(act, keep).map(|_| ())
}

async fn connect() -> anyhow::Result<Client> {
    let mut config = kube::Config::infer().await?;
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    Ok(Client::try_from(config)?)
}

fn identity(name: &str) -> anyhow::Result<String> {
    let mut random = [0u8; 8];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| anyhow::anyhow!("no randomness for an identity"))?;
    Ok(format!("{name}_{:016x}", u64::from_be_bytes(random)))
}

/// Says whether everything that was begun has ended.
async fn act(
    client: Client,
    config: Config,
    metrics: Metrics,
    term: Term,
    shutdown: CancellationToken,
) -> anyhow::Result<bool> {
    let Some(certs) = first_certificates(&client, &config.namespace, &shutdown).await else {
        return Ok(true);
    };
    let reporter = Reporter { controller: "neonvm-controller".to_owned(), instance: None };
    let (grace, calls) = (config.grace, config.concurrency);
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        config,
        certs,
        metrics,
        tasks: TaskTracker::new(),
        term,
        calls: Semaphore::new(calls),
        kvm: Mutex::new(None),
    });
    let renewing = context.tasks.spawn(renew(context.certs.clone(), shutdown.clone()));
    let watching = context.tasks.spawn(watch(Arc::clone(&context), shutdown.clone()));
    let early = tokio::select! {
        ended = renewing => !shutdown.is_cancelled() || ended.is_err(),
        ended = watching => !shutdown.is_cancelled() || ended.is_err(),
        () = shutdown.cancelled() => false,
    };
    shutdown.cancel();
    context.tasks.close();
    let drained = tokio::time::timeout(grace, context.tasks.wait()).await.is_ok();
    anyhow::ensure!(!early, "a task that everything depends on ended early");
    Ok(drained)
}

async fn first_certificates(
    client: &Client,
    namespace: &str,
    shutdown: &CancellationToken,
) -> Option<Certs> {
    loop {
        match Certs::establish(client.clone(), namespace.to_owned()).await {
            Ok(certs) => return Some(certs),
            Err(err) => tracing::warn!(error = %Chain(&err), "certificates not made yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = shutdown.cancelled() => return None,
        }
    }
}

async fn renew(certs: Certs, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(CERTIFICATES) => {}
            () = shutdown.cancelled() => return,
        }
        if let Err(err) = certs.refresh().await {
            tracing::warn!(error = %Chain(&err), "certificates not checked");
        }
    }
}

/// Owns the index: feeds it from both watches and starts a task for each VM.
async fn watch(context: Arc<Context>, shutdown: CancellationToken) {
    let mut index = Index::default();
    let vms = Api::<VirtualMachine>::all(context.client.clone());
    let pods = Api::<Pod>::all(context.client.clone());
    let mut vms =
        watcher(vms, watcher::Config::default().timeout(RENEW_S)).default_backoff().boxed();
    let runners = watcher::Config::default().timeout(RENEW_S).labels(names::LABEL_VM_NAME);
    let mut pods = watcher(pods, runners).default_backoff().boxed();
    loop {
        let fresh = tokio::select! {
            Some(event) = vms.next() => match event {
                Ok(event) => index.vm_event(event),
                Err(err) => lost("VirtualMachines", &err),
            },
            Some(event) = pods.next() => match event {
                Ok(event) => index.pod_event(event),
                Err(err) => lost("Pods", &err),
            },
            () = shutdown.cancelled() => return,
            else => return,
        };
        for Fresh { uid, snapshots } in fresh {
            context.tasks.spawn(vm::drive(Arc::clone(&context), uid, snapshots, shutdown.clone()));
        }
        context.metrics.vms.set(i64::try_from(index.vms()).unwrap_or(i64::MAX));
    }
}

fn lost(kind: &'static str, err: &watcher::Error) -> Vec<Fresh> {
    tracing::warn!(kind, error = %Chain(err), "watch interrupted");
    Vec::new()
}
