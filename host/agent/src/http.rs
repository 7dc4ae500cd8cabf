//! The two plain, read-only listeners: metrics about the agent (with health), and about each VM.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the agent has seen the VMs of its node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ready(Arc<AtomicBool>);

impl Ready {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Metrics about the agent, `/healthz` and `/readyz`.
pub(crate) fn agent_router(
    registry: Registry,
    before: Arc<dyn Fn() + Send + Sync>,
    ready: Ready,
) -> Router {
    let registry = Arc::new(registry);
    let metrics = move || {
        before();
        let text = encode(&registry);
        async move { text }
    };
    let readyz = move || {
        let ready = ready.get();
        async move { if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE } }
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { StatusCode::OK }))
        .route("/readyz", get(readyz))
}

/// Metrics about each VM.
pub(crate) fn vm_router(make: Arc<dyn Fn() -> Registry + Send + Sync>) -> Router {
    let metrics = move || {
        let text = encode(&make());
        async move { text }
    };
    Router::new().route("/metrics", get(metrics))
}

pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))
}

pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .context("serve metrics")
}

fn encode(registry: &Registry) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, TEXT)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
