//! An API server that lists a cluster in pages, lets everybody watch it in vain, keeps a lease, and takes the leader's endpoints.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::objects::{Cluster, Kind};

/// What is known of the server from outside.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    cluster: Cluster,
    lease: Mutex<Option<Bytes>>,
    lists: AtomicUsize,
    writes: AtomicUsize,
    /// Watches that began before this number changed end.
    broken: watch::Sender<usize>,
}

#[derive(Deserialize)]
struct Options {
    limit: Option<usize>,
    #[serde(rename = "continue")]
    from: Option<usize>,
    watch: Option<bool>,
    #[serde(rename = "resourceVersion")]
    version: Option<String>,
}

impl Server {
    pub(crate) async fn start(cluster: Cluster) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen")?;
        let address = listener.local_addr().context("find the port")?;
        let shared = Arc::new(Shared {
            cluster,
            lease: Mutex::default(),
            lists: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
            broken: watch::channel(0).0,
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        #[expect(clippy::disallowed_methods, reason = "it ends with the process")]
        let _serving = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, shared })
    }

    /// How many kinds were listed to their end, in all.
    pub(crate) fn lists(&self) -> usize {
        self.shared.lists.load(Ordering::Relaxed)
    }

    /// Requests that change something, but for the lease.
    pub(crate) fn writes(&self) -> usize {
        self.shared.writes.load(Ordering::Relaxed)
    }

    /// All watches end, and what they knew is too old to go on from.
    pub(crate) fn break_watches(&self) {
        self.shared.broken.send_modify(|number| *number += 1);
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    Query(options): Query<Options>,
    body: Bytes,
) -> Response {
    let path = uri.path();
    if path.contains("/leases") {
        return shared.lease(&method, body);
    }
    if path.contains("/endpointslices") {
        return (StatusCode::OK, [(header::CONTENT_TYPE, JSON)], body).into_response();
    }
    let Some(kind) = Kind::of(path).filter(|_| method == Method::GET) else {
        shared.writes.fetch_add(1, Ordering::Relaxed);
        return (StatusCode::OK, [(header::CONTENT_TYPE, JSON)], body).into_response();
    };
    if options.watch == Some(true) {
        return shared.watch(options.version.as_deref().unwrap_or_default());
    }
    let from = options.from.unwrap_or(0);
    let limit = options.limit.unwrap_or(usize::MAX);
    let version = *shared.broken.borrow();
    let (page, more) = shared.cluster.page(kind, from, limit, version);
    if !more {
        shared.lists.fetch_add(1, Ordering::Relaxed);
    }
    json(StatusCode::OK, page)
}

const JSON: &str = "application/json";

fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, JSON)], body.into()).into_response()
}

impl Shared {
    fn watch(&self, version: &str) -> Response {
        let mut broken = self.broken.subscribe();
        let now = *broken.borrow_and_update();
        if version != (now + 1).to_string() {
            let gone = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version","reason":"Expired","code":410}}"#;
            return json(StatusCode::OK, format!("{gone}\n"));
        }
        let until_broken = stream::once(async move {
            let _changed = broken.changed().await;
            Ok::<_, std::convert::Infallible>(Bytes::new())
        });
        json(StatusCode::OK, Body::from_stream(until_broken))
    }

    fn lease(&self, method: &Method, body: Bytes) -> Response {
        let mut lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        if *method != Method::GET {
            *lease = Some(body);
        }
        match &*lease {
            Some(lease) => json(StatusCode::OK, lease.clone()),
            None => {
                let none = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"not found","reason":"NotFound","code":404}"#;
                json(StatusCode::NOT_FOUND, none)
            }
        }
    }
}
