//! What the two listeners answer.
//!
//! | listener | request | answer |
//! |---|---|---|
//! | plain | `GET /ready` | 200 as soon as the VM is ready, or 503 after a moment |
//! | plain | `GET /metrics` | text |
//! | orders | `PUT /v1/orders` with an order | its outcome, within the order's deadline |
//! | orders | `GET /v1/state?epoch=EPOCH&counter=COUNTER&known=REVISION` | the state, as soon as its revision differs; orders before that generation are refused from then on |
//!
//! An order that was begun is ended, even when the one who gave it has gone away.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, State as Shared, rejection};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use host_protocol::{Generation, ORDERS_PATH, Order, STATE_PATH, STATE_WAIT};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use crate::execute::Executor;
use crate::guest::Guest;
use crate::metrics::Metrics;
use crate::ready::Readiness;
use crate::state::State;

/// Orders are tiny.
const BODY_LIMIT: usize = 16 * 1024;
/// So long a VM may become ready while it is asked: the pod's probe asks every second, and waits two.
const READY_WAIT: Duration = Duration::from_millis(900);
/// So many are kept waiting at a time; anybody may ask.
const READY_PLACES: usize = 8;

/// Facts about readiness with the clock they are measured on.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    origin: Instant,
    facts: Arc<Mutex<Readiness>>,
    told: Arc<Notify>,
    /// Places for those who wait.
    places: Arc<Semaphore>,
}

impl Ready {
    pub(crate) fn new(needs_port: bool) -> Self {
        Self {
            origin: Instant::now(),
            facts: Arc::new(Mutex::new(Readiness::new(needs_port))),
            told: Arc::default(),
            places: Arc::new(Semaphore::new(READY_PLACES)),
        }
    }

    /// Adds a fact; the function gets the time.
    pub(crate) fn tell(&self, fact: impl FnOnce(&mut Readiness, Duration)) {
        self.with(fact);
        self.told.notify_waiters();
    }

    /// Whether the VM serves. A no is held back for a moment, because it may become a yes.
    async fn soon(&self) -> bool {
        let waiting = async {
            let Ok(_place) = self.places.try_acquire() else { return };
            loop {
                let told = self.told.notified(); // before the look: nothing is missed
                if self.with(Readiness::ready) {
                    return;
                }
                told.await;
            }
        };
        let _over = timeout(READY_WAIT, waiting).await;
        self.with(Readiness::ready)
    }

    /// Reads the facts; the function gets the time.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Readiness, Duration) -> T) -> T {
        f(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner), self.origin.elapsed())
    }
}

/// What the plain listener shows.
#[derive(Clone)]
pub(crate) struct Plain {
    pub(crate) ready: Ready,
    pub(crate) state: State,
    pub(crate) metrics: Metrics,
    pub(crate) registry: Arc<Registry>,
}

/// The plain listener's answers.
pub(crate) fn plain(plain: Plain) -> Router {
    Router::new()
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(plain)
}

async fn ready(Shared(plain): Shared<Plain>) -> (StatusCode, &'static str) {
    if plain.ready.soon().await {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn metrics(Shared(plain): Shared<Plain>) -> Response {
    let text = plain.metrics.text(&plain.registry, &plain.state.get());
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
        .into_response()
}

struct Orders<G> {
    executor: Arc<Executor<G>>,
    state: State,
    tasks: TaskTracker,
}

/// The orders listener's answers.
pub(crate) fn orders<G: Guest>(
    executor: Arc<Executor<G>>,
    state: State,
    tasks: TaskTracker,
) -> Router {
    Router::new()
        .route(ORDERS_PATH, put(order::<G>))
        .route(STATE_PATH, get(watch::<G>))
        .fallback(async || problem(StatusCode::NOT_FOUND, "unknown_path", ""))
        .method_not_allowed_fallback(async || {
            problem(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", "")
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Arc::new(Orders { executor, state, tasks }))
}

/// Why a request was not understood.
#[derive(Serialize)]
struct Problem<'a> {
    error: &'a str,
    message: &'a str,
}

fn problem(status: StatusCode, error: &str, message: &str) -> Response {
    (status, Json(Problem { error, message })).into_response()
}

async fn order<G: Guest>(
    Shared(orders): Shared<Arc<Orders<G>>>,
    body: Result<Bytes, rejection::BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejected) => {
            return problem(rejected.status(), "unreadable_body", &rejected.body_text());
        }
    };
    let order: Order = match serde_json::from_slice(&body) {
        Ok(order) => order,
        Err(err) => {
            return problem(StatusCode::BAD_REQUEST, "malformed_order", &err.to_string());
        }
    };
    let executor = Arc::clone(&orders.executor);
    let performing = orders.tasks.spawn(async move { executor.perform(order).await });
    match performing.await {
        Ok(outcome) => Json(outcome).into_response(),
        Err(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, "broken_order", ""),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    /// The caller's leadership.
    epoch: u64,
    /// The first of its orders that may still come.
    #[serde(default)]
    counter: u64,
    /// The revision that the caller has; without one the answer comes at once.
    known: Option<u64>,
}

async fn watch<G: Guest>(
    Shared(orders): Shared<Arc<Orders<G>>>,
    query: Result<Query<Known>, rejection::QueryRejection>,
) -> Response {
    let Query(Known { epoch, counter, known }) = match query {
        Ok(query) => query,
        Err(rejected) => {
            return problem(StatusCode::BAD_REQUEST, "malformed_query", &rejected.body_text());
        }
    };
    orders.executor.fence(Generation { epoch, counter });
    let state = match known {
        None => orders.state.get(),
        Some(known) => timeout(STATE_WAIT, orders.state.other_than(known))
            .await
            .unwrap_or_else(|_| orders.state.get()),
    };
    Json(state).into_response()
}

#[cfg(test)]
mod tests;
