//! Two listeners: a plain, read-only one for everybody, and one for orders behind mutual TLS.
//!
//! Anybody who reaches the pod can connect, so connections are counted, and a peer that does not finish its
//! handshake or its request headers in time is dropped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use guest_units::Chain;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::tls::{TlsFiles, check_client};

/// Connections at a time, per listener.
const CONNECTIONS: usize = 64;
/// For the handshake, and for the headers of a request.
const PATIENCE: Duration = Duration::from_secs(5);
/// For an answer that is under way when the runner stops.
const FAREWELL: Duration = Duration::from_millis(200);
/// After an error of `accept`, for example too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// What a listener needs besides its socket.
#[derive(Clone)]
pub(crate) struct Serving {
    pub(crate) router: Router,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

/// Listens on all addresses of the pod.
pub(crate) async fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await
}

/// Serves everybody.
pub(crate) async fn plain(listener: TcpListener, serving: Serving) {
    each_connection(listener, serving.clone(), |stream, permit| {
        let Serving { router, shutdown, .. } = serving.clone();
        async move { connection(stream, router, shutdown, permit).await }
    })
    .await;
}

/// Serves the operator only.
pub(crate) async fn mutual_tls(
    listener: TcpListener,
    serving: Serving,
    files: Arc<TlsFiles>,
    metrics: Metrics,
) {
    each_connection(listener, serving.clone(), |stream, permit| {
        let Serving { router, shutdown, .. } = serving.clone();
        let (files, metrics) = (Arc::clone(&files), metrics.clone());
        async move {
            if let Some(stream) = handshake(stream, &files, &metrics).await {
                connection(stream, router, shutdown, permit).await;
            }
        }
    })
    .await;
}

async fn handshake(
    stream: TcpStream,
    files: &TlsFiles,
    metrics: &Metrics,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    let config = match files.config() {
        Ok(config) => config,
        Err(err) => {
            tracing::warn!(error = %Chain(&err), "no certificates to serve with");
            metrics.refused_connection("no certificates");
            return None;
        }
    };
    let stream = match timeout(PATIENCE, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(err)) => {
            tracing::debug!(error = %err, "no handshake");
            metrics.refused_connection("handshake");
            return None;
        }
        Err(_) => {
            metrics.refused_connection("slow");
            return None;
        }
    };
    match check_client(stream.get_ref().1.peer_certificates()) {
        Ok(()) => Some(stream),
        Err(err) => {
            tracing::warn!(error = %Chain(&err), "refused a client");
            metrics.refused_connection("client");
            None
        }
    }
}

async fn each_connection<F>(
    listener: TcpListener,
    serving: Serving,
    serve: impl Fn(TcpStream, OwnedSemaphorePermit) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = serving.shutdown.cancelled() => return,
        };
        match accepted {
            (Ok(permit), Ok((stream, _))) => {
                let _nagle_costs_only_time = stream.set_nodelay(true);
                serving.tasks.spawn(serve(stream, permit));
            }
            (_, Err(err)) => {
                tracing::warn!(error = %err, "cannot accept a connection");
                sleep(PAUSE).await;
            }
            (Err(_), Ok(_)) => return, // the semaphore is never closed
        }
    }
}

async fn connection<S>(
    stream: S,
    router: Router,
    shutdown: CancellationToken,
    permit: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            timeout(FAREWELL, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(err) = ended {
        tracing::debug!(error = %err, "a connection broke");
    }
    drop(permit);
}
