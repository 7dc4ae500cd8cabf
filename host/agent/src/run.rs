//! Puts the parts together and runs them until stopped.
//!
//! What the agent leaves behind: every VM keeps its size and its approval. Requests in flight are given up; their
//! generations make sure that they do no harm later.

use std::sync::Arc;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Board};
use crate::config::Config;
use crate::device;
use crate::effects::scheduler::SchedulerClient;
use crate::events;
use crate::http::{self, Ready};
use crate::metrics::Metrics;
use crate::vm_metrics::VmMetrics;
use crate::vm_task::Shared;
use crate::watch::{self, Keeper};

/// Runs until `shutdown`, or until a part that must not end does.
pub(crate) async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Config {
        node,
        kubelet_dir,
        host_dev,
        scheduler_url,
        ca_file,
        token_file,
        admin_socket,
        metrics: metrics_address,
        vm_metrics: vm_metrics_address,
        grace,
        file,
    } = config;
    let tasks = TaskTracker::new();
    let client = watch::connect().await.context("make the API server's client")?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let (publisher, writer) = events::channel();
    let limit = file.scheduler.request_timeout;
    let shared = Arc::new(Shared {
        file,
        node,
        client: client.clone(),
        scheduler: SchedulerClient::new(scheduler_url, ca_file, token_file, limit, tasks.clone()),
        metrics,
        events: publisher,
        board: Board::default(),
        tasks: tasks.clone(),
    });
    let (vm_metrics, ready) = (Arc::new(VmMetrics::default()), Ready::default());

    let agent = http::listen(metrics_address).await?;
    let vms = http::listen(vm_metrics_address).await?;
    let admin = admin::bind(&admin_socket)?;
    let agent_router = http::agent_router(registry, count_runners(&shared), ready.clone());
    let vm_router = http::vm_router({
        let vm_metrics = Arc::clone(&vm_metrics);
        Arc::new(move || vm_metrics.registry())
    });
    tasks.spawn(http::serve(agent, agent_router, shutdown.clone()));
    tasks.spawn(http::serve(vms, vm_router, shutdown.clone()));
    tasks.spawn(admin::serve(admin, shared.board.clone(), tasks.clone(), shutdown.clone()));
    tasks.spawn(writer.run(client.clone(), shutdown.clone()));
    device::start(&tasks, &kubelet_dir.join("device-plugins"), &host_dev, &shutdown);
    let pods = kubelet_dir.join("pods");
    let keeper = Keeper::new(Arc::clone(&shared), vm_metrics, ready, pods, shutdown.clone());
    let keeper = tasks.spawn(keeper.run(client));

    let early = tokio::select! {
        ended = keeper => !shutdown.is_cancelled() || ended.is_err(),
        () = shutdown.cancelled() => false,
    };
    shutdown.cancel();
    shared.scheduler.end();
    tasks.close();
    if timeout(grace, tasks.wait()).await.is_err() {
        tracing::warn!(late = tasks.len(), "stopped without waiting further");
    }
    anyhow::ensure!(!early, "the task that watches the VMs ended early");
    Ok(())
}

/// Before each scrape: how many VMs there are in which state.
fn count_runners(shared: &Arc<Shared>) -> Arc<dyn Fn() + Send + Sync> {
    let shared = Arc::clone(shared);
    Arc::new(move || {
        let entries = shared.board.entries();
        let states = entries.iter().map(|(_, entry)| (entry.is_endpoint, entry.stuck));
        shared.metrics.set_runners(states);
    })
}
