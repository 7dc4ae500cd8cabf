//! The TLS listener: accepts, finds out who the client is, serves the routes.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::{Extension, Router};
use guest_units::Chain;
use http::header::CONNECTION;
use http::{HeaderValue, StatusCode};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::tls::{Peer, TlsFiles};
use crate::visitors::{STRANGERS_STAY, Visitor, Visitors};

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
const HEADER_LIMIT: Duration = Duration::from_secs(30);
/// A refusal is answered no sooner: whoever sends what is refused does so this often on a connection, and others have the cores.
/// An agent that is newer than this extender pays it once per connection.
pub(crate) const REFUSAL_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the stop; then open requests may end.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<TlsFiles>,
    routes: Router,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) {
    let visitors = Arc::new(Visitors::new());
    loop {
        let (stream, from) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(err) => {
                    // Out of descriptors, or a client that went away: others may still come.
                    tracing::warn!(error = %Chain(&err), "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => return,
        };
        let Some(visitor) = visitors.enter(from.ip()) else {
            tracing::debug!(%from, "connection closed: too many strangers");
            continue;
        };
        let (tls, routes, shutdown) = (Arc::clone(&tls), routes.clone(), shutdown.clone());
        let _task = tasks.spawn(connection(stream, tls, routes, visitor, shutdown));
    }
}

async fn connection(
    stream: TcpStream,
    tls: Arc<TlsFiles>,
    routes: Router,
    visitor: Visitor,
    shutdown: CancellationToken,
) {
    let config = match tls.get() {
        Ok(config) => config,
        Err(err) => {
            tracing::error!(error = %Chain(&err), "no usable certificate, connection closed");
            return;
        }
    };
    let _ = stream.set_nodelay(true);
    let stream = match timeout(HANDSHAKE_LIMIT, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(err)) => {
            tracing::debug!(error = %Chain(&err), "handshake failed");
            return;
        }
        Err(_) => return,
    };
    let peer = Peer::of(stream.get_ref().1.peer_certificates());
    if peer.kube_scheduler && visitor.is_scheduler().is_err() {
        tracing::warn!("connection closed: kube-scheduler has too many");
        return;
    }
    let visitor = Arc::new(visitor);
    let routes = routes
        .layer(Extension(peer))
        .layer(Extension(Arc::clone(&visitor)))
        .layer(from_fn(pause_refusals))
        .layer(from_fn(send_away));
    let service = TowerToHyperService::new(routes);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let unknown = async {
        sleep(STRANGERS_STAY).await;
        if !visitor.is_stranger() {
            std::future::pending::<()>().await;
        }
    };
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = unknown => return,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(err) = served {
        tracing::debug!(error = %Chain(&err), "connection broken");
    }
}

/// Holds back the answer to what its sender should not have sent; nothing else waits for it. Stale and busy agents, and those
/// of VMs that have just gone, did nothing wrong.
async fn pause_refusals(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if matches!(response.status().as_u16(), 400 | 401 | 403 | 413) {
        tokio::time::sleep(REFUSAL_PAUSE).await;
    }
    response
}

/// Closes the connection after what only the leader answers: the next one is led to it.
async fn send_away(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
