//! Wires the parts together.
//!
//! What a stop leaves behind: promises, requests and approvals as they are, in the objects; the lease is released, so that the
//! next process begins at once. Open requests are answered while the drain lasts.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use guest_units::Chain;
use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Api, Client};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Authenticator;
use crate::config::{Config, Policy};
use crate::core::{Inbox, Known, Owner};
use crate::effects::Effects;
use crate::endpoint::Endpoint;
use crate::lanes::{Lanes, Newest};
use crate::lease::{Candidate, LeaseState};
use crate::metrics::Metrics;
use crate::plain::{Health, Scrape};
use crate::routes::{MAX_PERMITS, Shared};
use crate::sign::Signer;
use crate::tls::TlsFiles;
use crate::{admin, core, http, plain, routes, tls, watch};

const NAME: &str = "autoscale-scheduler";
/// The operator makes keys and certificates after the installation: they are looked for so often.
const KEYS_EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (watching, client) = watch::connect().await.context("make the API server's clients")?;
    let listener = bind(config.listen).await?;
    let (tasks, ledger, grace) = (TaskTracker::new(), TaskTracker::new(), config.grace);
    // The owner of the ledger outlives the drain of the requests: it is stopped last.
    let stop_ledger = CancellationToken::new();
    let (parts, mut critical) = open(&config, client, &tasks, &shutdown).await?;
    critical.push(ledger.spawn(parts.owner.run(parts.inbox, stop_ledger.clone())));
    if keys(&parts.shared.effects.signer, &parts.tls, &shutdown).await {
        let Parts { core, tls, shared, candidate, endpoint, .. } = parts;
        let signer = shared.effects.signer.clone();
        let routes = routes::router(shared);
        let stop = shutdown.clone();
        critical.push(tasks.spawn(http::serve(listener, tls, routes, tasks.clone(), stop)));
        critical.push(tasks.spawn(candidate.run(shutdown.clone())));
        critical.push(tasks.spawn(endpoint.run(shutdown.clone())));
        let watches = watches(watching, core, signer, config.policy, shutdown.clone());
        critical.push(tasks.spawn(watches));
        tracing::info!(listen = %config.listen, "serving");
    }
    let early = tokio::select! {
        _ = futures::future::select_all(&mut critical) => !shutdown.is_cancelled(),
        () = shutdown.cancelled() => false,
    };
    shutdown.cancel();
    drain(&tasks, grace).await;
    stop_ledger.cancel();
    drain(&ledger, grace).await;
    anyhow::ensure!(!early, "a task that everything depends on ended early");
    Ok(())
}

/// What the process consists of. All but the owner of the ledger begins when there are keys.
struct Parts {
    core: core::Core,
    tls: Arc<TlsFiles>,
    shared: Arc<Shared>,
    candidate: Candidate,
    endpoint: Endpoint,
    owner: Owner,
    inbox: Inbox,
}

/// Makes the parts, and starts what can be looked at before there are keys.
async fn open(
    config: &Config,
    client: Client,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> anyhow::Result<(Parts, Vec<JoinHandle<()>>)> {
    let Config { policy, pod_name, .. } = config;
    let (metrics_listener, health_listener) =
        (bind(config.metrics_listen).await?, bind(config.health_listen).await?);
    let admin_listener = admin::listen(&config.admin_socket)
        .with_context(|| format!("listen on {}", config.admin_socket.display()))?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let (core, inbox) = core::channel(policy.settings.clone());
    let (known, lease) = (Arc::new(Known::default()), LeaseState::default());
    let signer = Signer::new(config.signing_key.clone());
    let tls =
        Arc::new(tls::files(config.certificate.clone(), config.key.clone(), config.ca.clone()));
    let reporter = Reporter { controller: NAME.to_owned(), instance: Some(pod_name.clone()) };
    let fenced = TaskTracker::new();
    let effects = Effects {
        client: client.clone(),
        signer: signer.clone(),
        lease: lease.clone(),
        recorder: Recorder::new(client.clone(), reporter),
        core: core.clone(),
        tasks: tasks.clone(),
        fenced: fenced.clone(),
        metrics: metrics.clone(),
        limit: policy.call_limit,
        lanes: Arc::new(Lanes::new()),
        fences: Newest::default(),
        requested: Newest::default(),
    };
    let shared = Arc::new(Shared {
        agents: Authenticator::new(client.clone(), policy.call_limit),
        effects: effects.clone(),
        permits: Semaphore::new(MAX_PERMITS),
    });
    let leases: Api<Lease> = Api::namespaced(client.clone(), &config.namespace);
    let (name, state, seen) = (pod_name.clone(), lease.clone(), Arc::clone(&known));
    let (leads, led) = tokio::sync::watch::channel(None);
    let endpoint = Endpoint::new(&client, config, lease.clone(), fenced.clone(), led);
    let candidate = Candidate::new(leases, name, state, seen, core.clone(), fenced, leads);
    let owner = Owner { effects, known: Arc::clone(&known) };
    let health = Health { core: core.clone(), known, lease, tls: Arc::clone(&tls) };
    let (watermark, turn) = (policy.watermark, Mutex::default());
    let scrape = Scrape { registry, metrics, core: core.clone(), watermark, turn };
    let (metrics, health) = (plain::metrics(Arc::new(scrape)), plain::health(health));
    let critical = vec![
        tasks.spawn(serve_plain(metrics_listener, metrics, shutdown.clone())),
        tasks.spawn(serve_plain(health_listener, health, shutdown.clone())),
        tasks.spawn(admin::serve(admin_listener, core.clone(), shutdown.clone())),
    ];
    Ok((Parts { core, tls, shared, candidate, endpoint, owner, inbox }, critical))
}

/// Waits for what is under way.
async fn drain(tasks: &TaskTracker, grace: Duration) {
    tasks.close();
    if timeout(grace, tasks.wait()).await.is_err() {
        tracing::warn!(late = tasks.len(), "stopped without waiting further");
    }
}

async fn bind(address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))
}

async fn serve_plain(listener: TcpListener, routes: Router, shutdown: CancellationToken) {
    let served = axum::serve(listener, routes)
        .with_graceful_shutdown(async move { shutdown.cancelled().await });
    if let Err(err) = served.await {
        tracing::error!(error = %Chain(&err), "plain listener ended");
    }
}

/// Waits for keys and certificates. Says whether they came before the stop.
async fn keys(signer: &Signer, tls: &TlsFiles, shutdown: &CancellationToken) -> bool {
    loop {
        let missing = signer.check().and_then(|()| tls.get().map(drop));
        let Err(err) = missing else { return true };
        tracing::warn!(error = %Chain(&err), "waiting for keys and certificates");
        tokio::select! {
            () = sleep(KEYS_EVERY) => {}
            () = shutdown.cancelled() => return false,
        }
    }
}

async fn watches(
    client: Client,
    core: core::Core,
    signer: Signer,
    policy: Policy,
    shutdown: CancellationToken,
) {
    let Policy { scheduler_name, settings, .. } = policy;
    let migrations = async {
        match settings.moves {
            Some(_) => watch::migrations(client.clone(), core.clone()).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = watch::nodes(client.clone(), core.clone()) => ended,
        ended = watch::pods(client.clone(), core.clone()) => ended,
        ended = watch::vms(client.clone(), core.clone(), signer, scheduler_name) => ended,
        ended = migrations => ended,
        () = shutdown.cancelled() => return,
    };
    if ended.is_ok() {
        tracing::error!("a watch has ended");
    }
}
