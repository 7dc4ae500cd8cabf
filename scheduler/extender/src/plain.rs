//! Plain and read-only: `/metrics` on one port, `/healthz` and `/readyz` on another.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use scheduler_ledger::{Ledger, NodeLevel};
use tokio::time::timeout;

use crate::core::{Command, Core, Ended, Known};
use crate::lease::LeaseState;
use crate::metrics::Metrics;
use crate::tls::TlsFiles;

/// A ledger that does not answer within this is stuck.
const STUCK: Duration = Duration::from_secs(5);
/// The books are read so many nodes at a time: for less than a millisecond.
const NODES_AT_A_TIME: usize = 64;

/// What the metrics are made of.
pub(crate) struct Scrape {
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
    pub(crate) core: Core,
    pub(crate) watermark: f64,
    /// Two scrapes at a time would take each other's nodes.
    pub(crate) turn: Mutex<()>,
}

pub(crate) fn metrics(scrape: Arc<Scrape>) -> Router {
    Router::new().route("/metrics", get(render)).with_state(scrape)
}

async fn render(State(scrape): State<Arc<Scrape>>) -> Response {
    let levels = levels(&scrape.core).await;
    let epoch = scrape.core.read(Ledger::epoch);
    let mut text = String::new();
    let _turn = scrape.turn.lock().unwrap_or_else(PoisonError::into_inner);
    scrape.metrics.leads(epoch.ok().flatten());
    if let Ok(levels) = levels {
        scrape.metrics.nodes(&levels, scrape.watermark);
    }
    match encode(&mut text, &scrape.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The sums of all nodes, of some at a time: meanwhile the owner goes on.
async fn levels(core: &Core) -> Result<Vec<(String, NodeLevel)>, Ended> {
    let mut levels = Vec::new();
    for names in core.read(Ledger::node_names)?.chunks(NODES_AT_A_TIME) {
        core.read(|ledger| {
            let known = names.iter().filter_map(|name| Some((name.clone(), ledger.level(name)?)));
            levels.extend(known);
        })?;
        tokio::task::yield_now().await;
    }
    Ok(levels)
}

/// What health is made of.
#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) core: Core,
    pub(crate) known: Arc<Known>,
    pub(crate) lease: LeaseState,
    pub(crate) tls: Arc<TlsFiles>,
}

pub(crate) fn health(health: Health) -> Router {
    Router::new().route("/healthz", get(alive)).route("/readyz", get(ready)).with_state(health)
}

async fn alive(State(health): State<Health>) -> Response {
    match timeout(STUCK, health.core.ask(|reply| Command::Alive { reply })).await {
        Ok(Ok(())) => "ok".into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "the ledger does not answer").into_response(),
    }
}

async fn ready(State(health): State<Health>) -> Response {
    let reason = if health.tls.get().is_err() {
        "there is no certificate yet"
    } else if health.known.newest_epoch().is_none() {
        "nodes, pods and VMs are not completely known yet"
    } else if !health.lease.held_at_all() && !health.lease.stands_by() {
        "nobody is known to hold the lease"
    } else {
        return "ok".into_response();
    };
    (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
}
